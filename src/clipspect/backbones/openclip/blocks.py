"""Parts of a pre-norm transformer block as pure functions: shared by image tower, V-V stream and text tower.

They run open_clip's modules (and their like) with one product for queries, keys and values. Where the weights of the
products are in half precision (:func:`cast_products`), the residual streams, norms and projections stay float32: that
costs about one percent, and most of what half precision loses is lost in the streams (docs/speed.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipspect.backbones.cpu.linear import linear
from clipspect.backbones.trunk import Trunk

_AFFINITIES_AT_ONCE = 1 << 20
"""2 MiB of bfloat16: the softmax between the two products finds them in the cache."""


def cast_products(module: nn.Module, dtype: torch.dtype) -> None:
    """Cast the weights of matrix products and convolutions in place, and nothing else.

    A trunk stays float32: processors have no fast depthwise convolutions in half precision.
    """
    trunks = [part for part in module.modules() if isinstance(part, Trunk)]
    kept = {id(part) for trunk in trunks for part in trunk.modules()}
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv2d | nn.MultiheadAttention) and id(part) not in kept:
            part.to(dtype)


def is_standard(block: Any) -> bool:
    """Whether the functions here are the block's arithmetic."""
    attention = getattr(block, "attn", None)
    return isinstance(attention, nn.MultiheadAttention) and attention.in_proj_weight is not None


def fast_bf16() -> bool:
    """Whether oneDNN has bfloat16 products here: AVX512-BF16 or AMX on x86, BF16 on Arm."""
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def project_heads(
    block: Any, x: Tensor, *, queries: int | None = None, int8: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of a block.

    Args:
        block: an open_clip ``ResidualAttentionBlock``.
        x: (B, N, C) residual stream.
        queries: of how many of the first tokens queries are wanted; None = of all, in one product.
        int8: whether that one product runs in int8, on a block that has it.

    Returns:
        q (B, heads, queries or N, d), k and v (B, heads, N, d).
    """
    attention = block.attn
    weight, bias = attention.in_proj_weight, attention.in_proj_bias
    normed = block.ln_1(x)
    parts: Sequence[Tensor]
    if queries is None:
        dtype = weight.dtype
        joint = block.int8.project(normed, dtype) if int8 else linear(normed.to(dtype), weight, bias)
        parts = joint.chunk(3, dim=-1)
    else:
        width, normed = x.shape[-1], normed.to(weight.dtype)
        first = linear(normed[:, :queries], weight[:width], bias[:width])
        parts = (first, *linear(normed, weight[width:], bias[width:]).chunk(2, dim=-1))
    q, k, v = (split_heads(part, attention.num_heads) for part in parts)
    if _by_products(v):  # laid out once for both streams
        return q.contiguous(), k.contiguous(), v.contiguous()
    return q, k, v


def attention_residual(block: Any, attended: Tensor, *, int8: bool = False) -> Tensor:
    """What (B, heads, N, d) attended values add to the stream, (B, N, C)."""
    merged, out = merge_heads(attended), block.attn.out_proj
    gain: Tensor = block.ls_1(block.int8.join(merged) if int8 else linear(merged, out.weight, out.bias))
    return gain


def mlp_residual(block: Any, x: Tensor, *, int8: bool = False) -> Tensor:
    """What the block's perceptron adds to the (B, N, C) stream."""
    normed = block.ln_2(x)
    gained = block.int8.mlp(normed) if int8 else _mlp(block.mlp, normed)
    gain: Tensor = block.ls_2(gained)
    return gain


def _mlp(mlp: Any, normed: Tensor) -> Tensor:
    wide, narrow = mlp.c_fc, mlp.c_proj
    bent = mlp.gelu(linear(normed.to(wide.weight.dtype), wide.weight, wide.bias))
    return linear(bent, narrow.weight, narrow.bias)


def run_block(block: Any, x: Tensor, *, queries: int | None = None) -> Tensor:
    """(B, N, C) → (B, N, C), or (B, queries, C): the ordinary block, for the first tokens alone where that is all."""
    q, k, v = project_heads(block, x, queries=queries)
    x = x[:, :queries] + attention_residual(block, attend(q, k, v))
    return x + mlp_residual(block, x)


def attend(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
    """``softmax(q kᵀ / √d) v``: (B, heads, N, d), keys and values (B, heads, M, d) → (B, heads, N, d).

    torch's fused kernel; where bfloat16 meets a processor, two oneDNN products, which are twice as fast there.
    """
    if causal:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    if not _by_products(v):
        return F.scaled_dot_product_attention(q, k, v)
    shape = q.shape
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))  # (B·heads, N, d)
    attended = torch.empty_like(q)
    step = max(_AFFINITIES_AT_ONCE // (q.shape[1] * k.shape[1]), 1)
    nothing = q.new_empty(1, 1, 1)
    for start in range(0, len(q), step):
        part = slice(start, start + step)
        affinities = torch.baddbmm(nothing, q[part], k[part].mT, beta=0, alpha=shape[-1] ** -0.5)
        torch.bmm(affinities.softmax(-1), v[part], out=attended[part])
    return attended.view(shape)


def _by_products(v: Tensor) -> bool:
    return v.dtype == torch.bfloat16 and v.device.type == "cpu" and not torch.is_grad_enabled()


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, N, C) → (B, heads, N, C/heads)."""
    split: Tensor = x.unflatten(-1, (heads, -1))
    return split.transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(B, heads, N, d) → (B, N, heads·d)."""
    return x.transpose(1, 2).flatten(2)
