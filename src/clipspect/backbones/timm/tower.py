"""One forward pass of a timm vision transformer with the V-V stream of docs/methods.md §1 beside it.

Serves timm's ``VisionTransformer`` (plain ViT, DINOv2, SigLIP) and ``Eva`` (EVA02, DINOv3, PE-Core). The ordinary path
is timm's own: position embeddings, RoPE, blocks and norms. The V-V stream starts after ``norm_pre`` and gains, at every
block, ``ls1(proj(softmax(v vᵀ / √d) v))`` with ``v`` of the ordinary stream's ``norm1``; prefix tokens take part.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from clipspect.errors import UsageError


@dataclass(frozen=True)
class TowerTokens:
    """What one forward pass gives. P prefix tokens, N patches in row-major order, C the width."""

    last: Tensor
    """(B, P + N, C) ordinary tokens after the final norm: timm's ``forward_features``."""
    value: Mapping[int, Tensor]
    """block → (B, N, C) V-V patch tokens after the final norm."""
    ordinary: Mapping[int, Tensor]
    """block → (B, N, C) ordinary patch tokens after the final norm."""
    hidden: Mapping[int, Tensor]
    """block → (B, N, C) ordinary patch tokens before the final norm."""


def check_trunk(trunk: nn.Module, name: str) -> None:
    """Raise UsageError for anything but a vision transformer whose forward pass is timm's standard one."""
    from timm.models.eva import Eva
    from timm.models.vision_transformer import VisionTransformer

    known = (VisionTransformer.forward_features, Eva.forward_features)
    if getattr(type(trunk), "forward_features", None) not in known:
        raise UsageError(
            f"{name} is a {type(trunk).__name__}; of timm, clipspect runs VisionTransformer and Eva models, such as"
            " vit_base_patch14_reg4_dinov2 and vit_base_patch16_dinov3"
        )


def value_path_problem(trunk: Any) -> str | None:
    """Say why the V-V path is not defined for a trunk; None where it is."""
    from timm.layers.attention import Attention, AttentionRope
    from timm.models.eva import EvaAttention, EvaBlock
    from timm.models.vision_transformer import Block

    for block in trunk.blocks:
        if type(block) not in (Block, EvaBlock):
            return f"blocks of type {type(block).__name__}"
        if type(block.attn) not in (Attention, AttentionRope, EvaAttention):
            return f"attention of type {type(block.attn).__name__}"
        if getattr(block.attn, "gate", None) is not None:
            return "gated attention"
    return None


def run_tower(
    trunk: Any,
    images: Tensor,
    value_blocks: Collection[int] = (),
    ordinary_blocks: Collection[int] = (),
    hidden_blocks: Collection[int] = (),
    *,
    start_block: int = 0,
) -> tuple[TowerTokens, tuple[int, int]]:
    """Encode images once.

    Args:
        trunk: a timm ``VisionTransformer`` or ``Eva`` made with ``dynamic_img_size``.
        images: (B, 3, S, T) normalized, sides multiples of the patch.
        value_blocks: blocks (from 1) whose V-V tokens are wanted, as the stream stood when the block finished.
        ordinary_blocks: blocks whose ordinary tokens are wanted.
        hidden_blocks: blocks whose tokens are wanted before the final norm.
        start_block: how many blocks pass before the V-V stream starts, as a copy of the ordinary one.

    Returns:
        The tokens, and the (H, W) of the patch grid.

    Raises:
        UsageError: the image size is not a multiple of the patch size.
    """
    size = tuple(images.shape[-2:])
    patch = tuple(trunk.patch_embed.feat_ratio(as_scalar=False))
    if size[0] % patch[0] or size[1] % patch[1]:
        raise UsageError(f"image size {size} is not a multiple of the patch size {patch}")
    grid = (size[0] // patch[0], size[1] // patch[1])
    x, ropes = _embed(trunk, images)
    prefix, last_value = int(trunk.num_prefix_tokens), max(value_blocks, default=0)
    stream, value, ordinary, hidden = x, {}, {}, {}
    for number, block in enumerate(trunk.blocks, start=1):
        if number == start_block + 1:
            stream = x
        if start_block < number <= last_value:
            stream = stream + value_residual(block, x)
            if number in value_blocks:
                value[number] = trunk.norm(stream)[:, prefix:]
        rope = ropes[number - 1] if ropes is not None else None
        x = block(x) if ropes is None else block(x, rope=rope)
        if number in ordinary_blocks:
            ordinary[number] = trunk.norm(x)[:, prefix:]
        if number in hidden_blocks:
            hidden[number] = x[:, prefix:]
    return TowerTokens(trunk.norm(x), value, ordinary, hidden), grid


def _embed(trunk: Any, images: Tensor) -> tuple[Tensor, list[Tensor | None] | None]:
    """Tokens after ``norm_pre``, and the rotary embedding of every block; None for blocks that take none."""
    embedded = trunk._pos_embed(trunk.patch_embed(images))
    if not isinstance(embedded, tuple):
        return trunk.norm_pre(trunk.patch_drop(embedded)), None
    x, rope = embedded
    mixed = getattr(trunk, "rope_mixed", False) and rope is not None
    return trunk.norm_pre(x), list(rope) if mixed else [rope] * len(trunk.blocks)


def value_residual(block: Any, x: Tensor) -> Tensor:
    """What a block adds to the V-V stream, (B, P + N, C), from the ordinary stream ``x`` of the same shape."""
    attention = block.attn
    v = _values(attention, block.norm1(x))
    merged = F.scaled_dot_product_attention(v, v, v).transpose(1, 2).flatten(2)
    gain: Tensor = attention.proj(getattr(attention, "norm", nn.Identity())(merged))
    scale = getattr(block, "gamma_1", None)
    scaled: Tensor = getattr(block, "ls1", nn.Identity())(gain) if scale is None else scale * gain
    return scaled


def _values(attention: Any, normed: Tensor) -> Tensor:
    """(B, heads, P + N, d) value vectors of (B, P + N, C) normalized tokens, one for each query head."""
    separate = getattr(attention, "v_proj", None)
    if separate is not None:
        v = separate(normed)
    else:
        weight = attention.qkv.weight
        width = weight.shape[0] // 3
        bias = getattr(attention, "v_bias", None)
        if bias is None and attention.qkv.bias is not None:
            bias = attention.qkv.bias[2 * width :]
        v = F.linear(normed, weight[2 * width :], bias)
    heads = getattr(attention, "num_kv_heads", attention.num_heads)
    split: Tensor = v.unflatten(-1, (heads, -1)).transpose(1, 2)
    groups = attention.num_heads // heads
    return split.repeat_interleave(groups, dim=1) if groups > 1 else split


def read_patches(trunk: Any, tokens: Tensor) -> Tensor:
    """Read each patch token as if it were the whole image: pooling head, norm and classifier of the trunk.

    Attention pooling (SigLIP, PE-Core) of a single token is its value projection, output projection and MLP. Pixel
    scores of tokens that skip it are near chance.

    Args:
        trunk: a timm ``VisionTransformer`` or ``Eva``.
        tokens: (B, N, C) patch tokens after the final norm.

    Returns:
        (B, N, D).
    """
    if trunk.attn_pool is not None:
        single = tokens.flatten(0, 1)[:, None]
        tokens = trunk.attn_pool(single).reshape(*tokens.shape[:2], -1)
    read: Tensor = trunk.head(trunk.fc_norm(tokens))
    return read


def pool_image(trunk: Any, last: Tensor) -> Tensor:
    """(B, D) image embeddings of (B, P + N, C) tokens after the final norm, as timm pools them."""
    pooled: Tensor = trunk.head(trunk.fc_norm(trunk.pool(last)))
    return pooled
