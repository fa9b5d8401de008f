"""Adapter layers: one linear layer per image, with all of a batch in one block of parameters.

Random values are drawn per image from a generator seeded by the image's content, so a result depends neither on the
image's batch nor on its position.

"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from clipspect.backbones.cpu.linear import batched_linear


@dataclass(frozen=True)
class Layers:
    """B linear layers from D to O values."""

    weight: Tensor
    """(B, O, D)."""
    bias: Tensor
    """(B, O)."""

    def __call__(self, tokens: Tensor) -> Tensor:
        """Apply each image's layer: (B, N, D) → (B, N, O)."""
        return batched_linear(tokens, self.weight, self.bias)


@dataclass(frozen=True)
class Adapter:
    """Fixed part of an adapter on patch tokens (docs/methods.md §4)."""

    bank: Tensor | None = None
    """(P, D) sentence embeddings of the text-bank adapter, or None for the linear one."""

    def outputs(self, dim: int) -> int:
        """Return the number of outputs its layers need on tokens of ``dim`` values."""
        return dim if self.bank is None else len(self.bank)

    def __call__(self, tokens: Tensor, layers: Layers) -> Tensor:
        """Compute Φ(p) = ½ p + ½ Eᵀ tanh(W p̂ + b), or ½ p + ½ (W p̂ + b).

        Args:
            tokens: (B, N, D), of any length; p̂ is p at unit length.
            layers: B layers of :meth:`outputs` outputs.

        Returns:
            (B, N, D) adapted tokens, not normalized.
        """
        change = layers(F.normalize(tokens, dim=-1))
        if self.bank is not None:
            change = change.tanh() @ self.bank
        return (tokens + change) / 2


def draw_layers(seeds: Sequence[int], outputs: int, dim: int) -> Layers:
    """Draw initial layers like ``nn.Linear``: weight and bias uniform within ±1/√dim."""
    bound = dim**-0.5
    layers = Layers(torch.empty(len(seeds), outputs, dim), torch.empty(len(seeds), outputs))
    for seed, weight, bias in zip(seeds, layers.weight, layers.bias, strict=True):
        generator = _generator(seed, "layer")
        weight.uniform_(-bound, bound, generator=generator)
        bias.uniform_(-bound, bound, generator=generator)
    return layers


def draw_noise(seeds: Sequence[int], shape: Sequence[int], deviation: float) -> Tensor:
    """Draw (B, *shape) Gaussian noise, one generator per image."""
    noise = torch.empty(len(seeds), *shape)
    for seed, one in zip(seeds, noise, strict=True):
        one.normal_(0, deviation, generator=_generator(seed, "noise"))
    return noise


def _generator(seed: int, purpose: str) -> torch.Generator:
    """Return a CPU generator; different purposes have independent streams."""
    mixed = (seed * 0x9E3779B97F4A7C15 + sum(purpose.encode())) % (1 << 63)
    return torch.Generator().manual_seed(mixed)
