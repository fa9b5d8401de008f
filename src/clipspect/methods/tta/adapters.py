"""The trained part of an adapter: one linear layer per image, all of a batch in one block of parameters.

Everything random is drawn image by image from a generator seeded by the image's content, so a result depends
neither on the batch an image is in nor on its place there.
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
        """(B, N, D) → (B, N, O), each image through its own layer."""
        return batched_linear(tokens, self.weight, self.bias)


@dataclass(frozen=True)
class Adapter:
    """The fixed part of an adapter on patch tokens (docs/methods.md §4)."""

    bank: Tensor | None = None
    """(P, D) sentence embeddings of the text-bank adapter, or None for the linear one: output as it is."""

    def outputs(self, dim: int) -> int:
        """Number of outputs its layers need on tokens of ``dim`` values."""
        return dim if self.bank is None else len(self.bank)

    def __call__(self, tokens: Tensor, layers: Layers) -> Tensor:
        """Φ(p) = ½ p + ½ Eᵀ tanh(W p̂ + b), or ½ p + ½ (W p̂ + b).

        Args:
            tokens: (B, N, D), of any length; p̂ is p at unit length.
            layers: B layers of :meth:`outputs` outputs.

        Returns:
            (B, N, D) adapted tokens, not normalised.
        """
        change = layers(F.normalize(tokens, dim=-1))
        if self.bank is not None:
            change = change.tanh() @ self.bank
        return (tokens + change) / 2


def draw_layers(seeds: Sequence[int], outputs: int, dim: int) -> Layers:
    """Initial layers as ``nn.Linear`` draws them: weight and bias uniform within ±1/√dim."""
    bound = dim**-0.5
    layers = Layers(torch.empty(len(seeds), outputs, dim), torch.empty(len(seeds), outputs))
    for seed, weight, bias in zip(seeds, layers.weight, layers.bias, strict=True):
        generator = _generator(seed, "layer")
        weight.uniform_(-bound, bound, generator=generator)
        bias.uniform_(-bound, bound, generator=generator)
    return layers


def draw_noise(seeds: Sequence[int], shape: Sequence[int], deviation: float) -> Tensor:
    """(B, *shape) Gaussian noise, one generator per image."""
    noise = torch.empty(len(seeds), *shape)
    for seed, one in zip(seeds, noise, strict=True):
        one.normal_(0, deviation, generator=_generator(seed, "noise"))
    return noise


def _generator(seed: int, purpose: str) -> torch.Generator:
    """A CPU generator; what is drawn for one purpose says nothing about what is drawn for another."""
    mixed = (seed * 0x9E3779B97F4A7C15 + sum(purpose.encode())) % (1 << 63)
    return torch.Generator().manual_seed(mixed)
