"""Attention as plain bfloat16 products, for training on processors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class PlainAttention(TorchFunctionMode):
    """Within it, ``scaled_dot_product_attention`` without a mask is two products and a softmax.

    torch's fused kernel is the better one for inference, but its backward pass on processors takes three to
    eight times as long as these at the sizes the tiny model is trained at (65 to 257 tokens, head width 64).
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replace the one function, pass every other through."""
        if func is F.scaled_dot_product_attention and len(args) == 3 and not kwargs:
            return _attend(*args)
        return func(*args, **(kwargs or {}))


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(B, heads, N, d) each, to the same."""
    with torch.autocast(q.device.type, enabled=False):
        affinity = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        attended: Tensor = affinity.softmax(-1) @ v
        return attended
