"""Parts of a pre-norm transformer block as pure functions, shared by image encoder, V-V stream and text encoder.

They run open_clip's modules (and compatible ones) with one matmul for queries, keys and values. If the weights are in
half precision (:func:`cast_products`), the residual streams, norms and projections stay float32. This costs about one
percent of the time and avoids most of the error of half precision (docs/speed.md).

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
"""2 MiB of bfloat16, which stay in the cache for the softmax between the two matmuls."""


def cast_products(module: nn.Module, dtype: torch.dtype) -> None:
    """Cast only the weights of matmuls and convolutions, in place.

    A trunk stays float32: CPUs have no fast depthwise convolutions in half precision.
    """
    trunks = [part for part in module.modules() if isinstance(part, Trunk)]
    kept = {id(part) for trunk in trunks for part in trunk.modules()}
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv2d | nn.MultiheadAttention) and id(part) not in kept:
            part.to(dtype)


def is_standard(block: Any) -> bool:
    """Return whether the functions of this module compute the same as the block."""
    attention = getattr(block, "attn", None)
    return isinstance(attention, nn.MultiheadAttention) and attention.in_proj_weight is not None


def fast_bf16() -> bool:
    """Return whether oneDNN has a bfloat16 matmul here: AVX512-BF16 or AMX on x86, BF16 on Arm."""
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def project_heads(
    block: Any, x: Tensor, *, queries: int | None = None, int8: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values of a block.

    Args:
        block: an open_clip ``ResidualAttentionBlock``.
        x: (B, N, C) residual stream.
        queries: number of leading tokens for which to compute queries; None = all tokens, in one matmul.
        int8: whether this matmul runs in int8, on a block that supports it.

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
    if _by_products(v):  # made contiguous once for both streams
        return q.contiguous(), k.contiguous(), v.contiguous()
    return q, k, v


def attention_residual(block: Any, attended: Tensor, *, int8: bool = False) -> Tensor:
    """Return the attention residual (B, N, C) of attended values (B, heads, N, d)."""
    merged, out = merge_heads(attended), block.attn.out_proj
    gain: Tensor = block.ls_1(block.int8.join(merged) if int8 else linear(merged, out.weight, out.bias))
    return gain


def mlp_residual(block: Any, x: Tensor, *, int8: bool = False) -> Tensor:
    """Return the MLP residual of the (B, N, C) stream."""
    normed = block.ln_2(x)
    gained = block.int8.mlp(normed) if int8 else _mlp(block.mlp, normed)
    gain: Tensor = block.ls_2(gained)
    return gain


def _mlp(mlp: Any, normed: Tensor) -> Tensor:
    wide, narrow = mlp.c_fc, mlp.c_proj
    bent = mlp.gelu(linear(normed.to(wide.weight.dtype), wide.weight, wide.bias))
    return linear(bent, narrow.weight, narrow.bias)


def run_block(block: Any, x: Tensor, *, queries: int | None = None) -> Tensor:
    """Run the block: (B, N, C) → (B, N, C), or (B, queries, C) for the leading tokens only."""
    q, k, v = project_heads(block, x, queries=queries)
    x = x[:, :queries] + attention_residual(block, attend(q, k, v))
    return x + mlp_residual(block, x)


def attend(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
    """Return ``softmax(q kᵀ / √d) v``: (B, heads, N, d), keys and values (B, heads, M, d) → (B, heads, N, d).

    Uses PyTorch's fused kernel; for bfloat16 on a CPU two oneDNN matmuls, which are twice as fast there.
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
    """Split heads: (B, N, C) → (B, heads, N, C/heads)."""
    split: Tensor = x.unflatten(-1, (heads, -1))
    return split.transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """Merge heads: (B, heads, N, d) → (B, N, heads·d)."""
    return x.transpose(1, 2).flatten(2)
