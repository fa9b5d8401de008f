"""Attention as plain bfloat16 matmuls, for training on CPUs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class PlainAttention(TorchFunctionMode):
    """Context in which ``scaled_dot_product_attention`` without a mask is two matmuls and a softmax.

    PyTorch's fused kernel is better for inference. Its backward pass on CPUs takes three to eight times as long as
    these matmuls at the tiny model's training sizes (65 to 257 tokens, head width 64).
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replace this function and pass all others through."""
        if func is F.scaled_dot_product_attention and len(args) == 3 and not kwargs:
            return _attend(*args)
        return func(*args, **(kwargs or {}))


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return attention (B, heads, N, d) of inputs with the same shape."""
    with torch.autocast(q.device.type, enabled=False):
        affinity = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        attended: Tensor = affinity.softmax(-1) @ v
        return attended
