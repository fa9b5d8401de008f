"""Linear layers with the library that is fast on this CPU.

PyTorch uses Intel's MKL for float32 matmuls, whose AVX-512 kernels serve Intel CPUs only. On an AMD EPYC with AVX-512
oneDNN, which is part of PyTorch, is more than twice as fast; on one with AVX2 MKL is faster (docs/speed.md).

"""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``x Wᵀ + b``: (..., C) with (O, C) gives (..., O)."""
    if _suits_onednn(x) and not _needs_torch(x, weight, bias):
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return product
    return F.linear(x, weight, bias)


def _suits_onednn(x: Tensor) -> bool:
    return x.dtype == torch.float32 and x.device.type == "cpu" and onednn_is_faster()


def _needs_torch(*tensors: Tensor | None) -> bool:
    # oneDNN's operator has no gradient and cannot be exported.
    wanted = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    return wanted or torch.compiler.is_compiling()


@cache
def onednn_is_faster() -> bool:
    """Return whether oneDNN is available and MKL slower: on an AMD CPU with AVX-512.

    The decision uses the CPU's vendor and instructions, not a timing, so that results on a machine are bitwise
    reproducible. Verified on an AMD EPYC with AVX-512 and on one with AVX2; not on Intel CPUs, where PyTorch's choice
    stays.
    """
    has_avx512 = torch.backends.cpu.get_cpu_capability() == "AVX512"
    on_x86 = platform.machine().lower() in ("x86_64", "amd64")
    at_hand = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    is_amd = "AuthenticAMD" in _maker()
    return on_x86 and has_avx512 and at_hand and torch.backends.mkl.is_available() and is_amd


def _maker() -> str:
    """Return the system's description of the CPU, which contains the vendor."""
    listing = Path("/proc/cpuinfo")
    return (
        listing.read_text(encoding="utf-8", errors="replace") if listing.is_file() else platform.processor()
    )


def batched_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return ``x Wᵀ + b`` of B independent layers: (B, N, C), (B, O, C) and (B, O) give (B, N, O); differentiable."""
    if _suits_onednn(x):
        product: Tensor = _BatchedLinear.apply(x, weight, bias)
        return product
    return torch.baddbmm(bias[:, None], x, weight.mT)


class _BatchedLinear(torch.autograd.Function):
    """Batched linear layer by :func:`linear`, image by image: oneDNN has no batched matmul that MKL would not run."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return torch.stack([linear(*image) for image in zip(x, weight, bias, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        (x, weight), (gradient,) = ctx.saved_tensors, gradients
        to_x, to_weight, to_bias = ctx.needs_input_grad
        return (
            torch.stack([linear(g, w.T) for g, w in zip(gradient, weight, strict=True)]) if to_x else None,
            torch.stack([linear(g.T, i.T) for g, i in zip(gradient, x, strict=True)]) if to_weight else None,
            gradient.sum(1) if to_bias else None,
        )
