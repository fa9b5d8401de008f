"""Train a batch of independent layers; AdamW is elementwise, so that one optimizer serves all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from clipspect.methods.tta.adapters import Layers


@dataclass(frozen=True)
class Optimized:
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
) -> Optimized:
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
        optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay)
        for step in range(steps):
            for parameter in parameters:
                parameter.requires_grad_()
            values = loss(Layers(*parameters), step)
            for parameter, gradient in zip(
                parameters, torch.autograd.grad(values.sum(), parameters), strict=True
            ):
                parameter.grad = gradient
            losses.append(values.detach())
            optimizer.step()
        parameters = [parameter.detach() for parameter in parameters]
    history = torch.stack(losses) if losses else parameters[0].new_zeros(0, len(start.weight))
    finite = history.isfinite().all(0)
    for parameter in parameters:
        finite = finite & parameter.flatten(1).isfinite().all(1)
    return Optimized(Layers(*parameters), history, finite)
