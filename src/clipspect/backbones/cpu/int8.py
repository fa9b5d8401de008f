"""Linear layers in int8 on CPUs: twice the rate of bfloat16 with VNNI or AMX.

Weights are quantized once, symmetrically, with one scale per output. Inputs are quantized at run time by their range
in one image, so that results do not depend on the other images of a batch. Sums are exact (int32). Without VNNI, oneDNN
adds pairs of products in 16 bits and saturates, so weights use half the range there.

"""

from __future__ import annotations

import math
import platform
from typing import Any

import torch
from torch import Tensor, nn

from clipspect.errors import UsageError

_STEPS = 254  # of 256: leaves room for rounding the zero point
FULL_RANGE, HALF_RANGE = 127, 63
"""Largest weight level. Two products of an 8-bit input with a weight of 63 fit in 16 bits (2 · 255 · 63 < 2¹⁵)."""


def has_int8() -> bool:
    """Return whether PyTorch has oneDNN's int8 matmul here, fast or not."""
    on_x86 = platform.machine().lower() in ("x86_64", "amd64")
    return on_x86 and torch.backends.mkldnn.is_available() and hasattr(torch.ops.onednn, "qlinear_pointwise")


def has_vnni() -> bool:
    """Return whether PyTorch reports instructions (VNNI) that add int8 products in 32 bits."""
    checks = [getattr(torch.cpu, name, None) for name in ("_is_vnni_supported", "_is_avx512_vnni_supported")]
    return any(check() for check in checks if check is not None)


def fast_int8() -> bool:
    """Return whether int8 linear layers exist here and are faster than float32 ones."""
    return has_int8() and has_vnni()


def weight_range() -> int:
    """Return the largest weight level whose sums are exact on this CPU."""
    return FULL_RANGE if has_vnni() else HALF_RANGE


class Int8Linear(nn.Module):
    """Linear layer ``x Wᵀ + b`` of one image's tokens, with W in int8."""

    weight: Tensor
    scale: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor, levels: int | None = None) -> None:
        """Quantize an (O, C) float32 weight to ±``levels`` (default: :func:`weight_range`), not its (O,) bias."""
        super().__init__()
        scale = (weight.abs().amax(1) / (levels or weight_range())).clamp_min(1e-12)
        rounded = (weight / scale[:, None]).round().to(torch.int8)
        self.register_buffer("weight", rounded)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", bias)
        self._packed = torch.ops.onednn.qlinear_prepack(rounded, None)
        self._zeros = torch.zeros(len(scale), dtype=torch.int64)

    def forward(self, x: Tensor, dtype: torch.dtype = torch.float32, *, gelu: bool = False) -> Tensor:
        """Map (N, C) of any type to (N, O) of ``dtype``, through the exact GELU if ``gelu``; NaN if x has no range."""
        low, high = (float(end) for end in x.aminmax())
        if not (math.isfinite(low) and math.isfinite(high)):
            return x.new_full((len(x), len(self.scale)), math.nan, dtype=dtype)
        low, high = min(low, 0.0), max(high, 0.0)
        step = max((high - low) / _STEPS, 1e-12)
        zero = round(-low / step)
        # A separate dimension makes bfloat16 inputs accumulate in float32.
        half_up = torch.tensor([zero + 0.5])
        levels = torch.add(half_up, x, alpha=1 / step).to(torch.uint8)  # truncation after adding ½ rounds
        activation: tuple[Any, ...] = ("gelu", [], "none") if gelu else ("none", [], "")
        product: Tensor = torch.ops.onednn.qlinear_pointwise(
            levels, step, zero, self._packed, self.scale, self._zeros, self.bias, 1.0, 0, dtype, *activation
        )
        return product


class Int8Block(nn.Module):
    """Int8 linear layers of the ordinary path of a transformer block.

    The V-V stream's output projection is not quantized, because its output is added to the map directly.
    """

    def __init__(self, block: Any) -> None:
        """Quantize the weights of a float32 block."""
        super().__init__()
        attention, mlp = block.attn, block.mlp
        self.heads = Int8Linear(attention.in_proj_weight.detach(), attention.in_proj_bias.detach())
        self.out = Int8Linear(attention.out_proj.weight.detach(), attention.out_proj.bias.detach())
        self.wide = Int8Linear(mlp.c_fc.weight.detach(), mlp.c_fc.bias.detach())
        self.narrow = Int8Linear(mlp.c_proj.weight.detach(), mlp.c_proj.bias.detach())
        self.gelu = mlp.gelu
        self._exact = isinstance(mlp.gelu, nn.GELU) and mlp.gelu.approximate == "none"

    def project(self, normed: Tensor, dtype: torch.dtype) -> Tensor:
        """Project (B, N, C) float32 to (B, N, 3·C) queries, keys and values."""
        return torch.stack([self.heads(image, dtype) for image in normed])

    def join(self, merged: Tensor) -> Tensor:
        """Project (B, N, C) attended values to (B, N, C) float32."""
        return torch.stack([self.out(image) for image in merged])

    def mlp(self, normed: Tensor) -> Tensor:
        """Apply the MLP to (B, N, C) float32, image by image, so that intermediate values stay in the cache."""
        return torch.stack([self.narrow(self._bend(image)) for image in normed])

    def _bend(self, image: Tensor) -> Tensor:
        bent: Tensor = self.wide(image, gelu=True) if self._exact else self.gelu(self.wide(image))
        return bent


def add_int8(transformer: Any) -> None:
    """Add an :class:`Int8Block` to every float32 block of a vision transformer, as ``block.int8``.

    Raises:
        UsageError: PyTorch has no int8 matmul on this machine, or the blocks are of another kind.
    """
    if not has_int8():
        raise UsageError("this build of torch has no int8 products for this processor; use fp32 or bf16")
    for block in transformer.resblocks:
        if not isinstance(getattr(block.mlp, "c_fc", None), nn.Linear):
            raise UsageError("int8 is for plain CLIP vision transformers; use fp32 or bf16 for this backbone")
        block.int8 = Int8Block(block)
