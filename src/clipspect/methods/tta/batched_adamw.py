"""AdamW on a batch of independent layers, numerically equal to ``torch.optim.AdamW`` on each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from clipspect.methods.tta.adapters import Layers

_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-8


@dataclass(frozen=True)
class BatchedAdamW:
    """Result of an optimization."""

    layers: Layers
    """Trained layers of B images, detached."""
    losses: Tensor
    """(steps, B) loss of each image before each step."""
    finite: Tensor
    """(B,) whether every loss and every final parameter of the image was finite."""


def trainable(tensor: Tensor) -> Tensor:
    """Return a tensor that autograd may save for backward: the tensor, or a copy if it comes from inference mode."""
    with torch.inference_mode(False):
        return tensor.clone() if tensor.is_inference() else tensor.detach()


def optimize(
    loss: Callable[[Layers, int], Tensor],
    start: Layers,
    steps: int,
    *,
    learning_rate: float = 1e-3,
    weight_decay: float = 1e-2,
) -> BatchedAdamW:
    """Train B layers for some steps, each on its own loss with its own AdamW state (docs/methods.md §4).

    Works inside ``torch.inference_mode`` if the loss only uses tensors made by :func:`trainable`, and leaves no graph.
    Images share no state: a diverging image does not affect the others.

    Args:
        loss: (layers, step from 0) → (B,) losses, each of its own image's layer only.
        start: initial layers; not changed.
        steps: number of AdamW steps; 0 returns the start.
        learning_rate: learning rate of AdamW.
        weight_decay: decoupled weight decay of AdamW.
    """
    losses = []
    with torch.inference_mode(False), torch.enable_grad():
        parameters = [start.weight.detach().clone(), start.bias.detach().clone()]
        moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in parameters]
        for step in range(steps):
            leaves = [p.requires_grad_() for p in parameters]
            values = loss(Layers(*leaves), step)
            gradients = torch.autograd.grad(values.sum(), leaves)
            losses.append(values.detach())
            parameters = [p.detach() for p in leaves]
            for parameter, gradient, (first, second) in zip(parameters, gradients, moments, strict=True):
                parameter.mul_(1 - learning_rate * weight_decay)
                first.lerp_(gradient, 1 - _BETA1)
                second.mul_(_BETA2).addcmul_(gradient, gradient, value=1 - _BETA2)
                size = learning_rate / (1 - _BETA1 ** (step + 1))
                # Moving the root's bias correction to the other terms saves a pass over all parameters.
                shrink = (1 - _BETA2 ** (step + 1)) ** 0.5
                parameter.addcdiv_(first, second.sqrt().add_(shrink * _EPSILON), value=-size * shrink)
    history = torch.stack(losses) if losses else parameters[0].new_zeros(0, len(start.weight))
    finite = history.isfinite().all(0)
    for parameter in parameters:
        finite = finite & parameter.flatten(1).isfinite().all(1)
    return BatchedAdamW(Layers(*parameters), history, finite)
