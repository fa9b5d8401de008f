"""The training-free value-value (V-V) path of docs/methods.md §1, computed in one pass with the ordinary path.

AnoCLIP (arXiv 2308.15939), §3.2. A second residual stream starts as the tokens after ``ln_pre``. At every block it adds
``out_proj(softmax(v vᵀ / √d) v)`` with ``v`` of the *ordinary* path. It has no MLP and does not feed back. The
functions are pure, differentiable functions on open_clip modules.

"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from clipspect.backbones.cpu.linear import linear
from clipspect.backbones.features import PositionRule
from clipspect.backbones.openclip.blocks import (
    attend,
    attention_residual,
    is_standard,
    merge_heads,
    mlp_residual,
    project_heads,
    run_block,
    split_heads,
)
from clipspect.errors import UsageError


@dataclass(frozen=True)
class Tokens:
    """Output of one forward pass. N patches in row-major order, D the joint dimension."""

    pooled: Tensor
    """(B, D) image embeddings, not normalized, equal to open_clip's ``encode_image``."""
    value: Mapping[int, Tensor] = field(default_factory=dict)
    """block → (B, N, D) V-V patch tokens after ``ln_post @ proj``, not normalized."""
    ordinary: Mapping[int, Tensor] = field(default_factory=dict)
    """block → (B, N, D) ordinary patch tokens after ``ln_post @ proj``, not normalized."""
    unprojected: Tensor | None = None
    """(B, N, width) ordinary patch tokens of the last block after ``ln_post``, before the projection."""
    trunk: Tensor | None = None
    """(B, N, C) features of the convolutional trunk, for comparing images; None without a trunk."""
    hidden: Mapping[int, Tensor] = field(default_factory=dict)
    """block → (B, N, width) ordinary patch tokens before ``ln_post``."""
    raw_class: Tensor | None = None
    """(B, D) class tokens through the projection without ``ln_post``; None for a ResNet."""


def interpolate_positions(
    positions: Tensor, grid: tuple[int, int], base: tuple[int, int], rule: PositionRule = "bicubic"
) -> Tensor:
    """Interpolate position embeddings to another patch grid; the class token's stays.

    Args:
        positions: (1 + h·w, C) as trained.
        grid: target (H, W).
        base: trained (h, w).
        rule: "bicubic", antialiased; or "bilinear", not antialiased, as AnomalyCLIP's official code.

    Returns:
        (1 + H·W, C).
    """
    if grid == base:
        return positions
    cls, patches = positions[:1], positions[1:]
    image = patches.float().unflatten(0, base).permute(2, 0, 1)[None]  # (1, C, h, w)
    image = F.interpolate(image, grid, mode=rule, antialias=rule == "bicubic", align_corners=False)
    return torch.cat([cls, image[0].flatten(1).T.to(positions.dtype)])


def embed_patches(
    visual: Any, images: Tensor, features: Tensor | None = None, positions: PositionRule = "bicubic"
) -> tuple[Tensor, tuple[int, int]]:
    """Return patch and class tokens with positions, before ``ln_pre``, for any size divisible by the patch.

    Args:
        visual: an open_clip ``VisionTransformer``, or a ``PlainVision``.
        images: (B, 3, S, T) normalized.
        features: (B, C, H, W) of the vision encoder's trunk if already computed.
        positions: rule of :func:`interpolate_positions`.

    Returns:
        (B, 1 + H·W, width) tokens and (H, W).

    Raises:
        UsageError: the image size is not a multiple of the patch size.
    """
    patch = visual.patch_size
    if images.shape[-2] % patch[0] or images.shape[-1] % patch[1]:
        raise UsageError(
            f"image size {tuple(images.shape[-2:])} is not a multiple of the patch size {tuple(patch)}"
        )
    grid = (images.shape[-2] // patch[0], images.shape[-1] // patch[1])
    trunk = getattr(visual, "trunk", None)
    if trunk is None:
        # The convolution's stride equals its size, so a matmul of patch pixels and weights is equal and faster.
        pixels = images.unflatten(-1, (grid[1], patch[1])).unflatten(
            -3, (grid[0], patch[0])
        )  # (B, 3, H, p, W, p)
        vectors = pixels.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)  # (B, N, 3·p·p)
    else:
        features = trunk(images) if features is None else features
        vectors = features.flatten(2).transpose(1, 2)  # (B, N, C)
    weight = visual.conv1.weight
    patches = linear(vectors.to(weight.dtype), weight.flatten(1))
    cls, trained = visual.class_embedding, visual.positional_embedding
    tokens = torch.cat([cls.expand(patches.shape[0], 1, -1), patches.to(cls.dtype)], 1)
    return tokens + interpolate_positions(trained, grid, tuple(visual.grid_size), positions), grid


def check_vit(visual: Any) -> None:
    """Raise UsageError for a vision transformer with parts that the V-V path does not define."""
    if visual.attn_pool is not None or visual.pool_type not in ("tok", "avg"):
        raise UsageError("models with an attentional pooler (CoCa) have no projection for patch tokens")
    for block in visual.transformer.resblocks:
        if not is_standard(block):
            raise UsageError(
                f"attention of type {type(block.attn).__name__} is not supported by the V-V path"
            )


def encode_vit(
    visual: Any,
    images: Tensor,
    value_blocks: Collection[int] = (),
    ordinary_blocks: Collection[int] = (),
    *,
    hidden_blocks: Collection[int] = (),
    start_block: int = 0,
    unprojected: bool = False,
    trunk: bool = False,
    features: Tensor | None = None,
    positions: PositionRule = "bicubic",
) -> tuple[Tokens, tuple[int, int]]:
    """Run an open_clip vision transformer and its V-V stream in one pass (docs/methods.md §1).

    Only requested tokens are computed. The stream ends at the last requested block, and the last block's ordinary path
    is computed for the class token only, unless its patches are requested.

    Args:
        visual: an open_clip ``VisionTransformer``.
        images: (B, 3, S, T) normalised, sides multiples of the patch.
        value_blocks: blocks (from 1) whose V-V tokens are wanted, as the stream stood when the block finished.
        ordinary_blocks: blocks whose ordinary patch tokens are wanted.
        hidden_blocks: blocks whose ordinary patch tokens are wanted before ``ln_post``.
        start_block: how many blocks pass before the stream starts, as a copy of the ordinary one; 0 = all blocks.
        unprojected: also the ordinary patch tokens after ``ln_post`` alone.
        trunk: also the features of the trunk, where the vision tower has one.
        features: (B, C, H, W) of the trunk where they are known already.
        positions: rule of :func:`interpolate_positions`.

    Returns:
        The tokens, and the (H, W) of the patch grid.
    """
    blocks = visual.transformer.resblocks
    depth, last_value = len(blocks), max(value_blocks, default=0)
    # The class token is sufficient at the end if only it is pooled and no other tokens are requested.
    cls_only = (
        visual.pool_type == "tok" and not unprojected and depth not in {*ordinary_blocks, *hidden_blocks}
    )

    def project(tokens: Tensor) -> Tensor:
        out: Tensor = visual.ln_post(tokens)
        return out if visual.proj is None else linear(out, visual.proj.T)

    if features is None and getattr(visual, "trunk", None) is not None:
        features = visual.trunk(images)
    x, grid = embed_patches(visual, images, features, positions)
    x = visual.ln_pre(visual.patch_dropout(x))
    stream, value, ordinary, hidden = x, {}, {}, {}
    for number, block in enumerate(blocks, start=1):
        if number == start_block + 1:
            stream = x
        queries = 1 if number == depth and cls_only else None
        int8 = hasattr(block, "int8")
        q, k, v = project_heads(block, x, queries=queries, int8=int8)
        if start_block < number <= last_value:
            stream = stream + attention_residual(block, attend(v, v, v))
            if number in value_blocks:
                value[number] = project(stream[:, 1:])
        x = x[:, :queries] + attention_residual(block, attend(q, k, v), int8=int8 and queries is None)
        x = x + mlp_residual(block, x, int8=int8 and queries is None)
        if number in ordinary_blocks:
            ordinary[number] = project(x[:, 1:])
        if number in hidden_blocks:
            hidden[number] = x[:, 1:]

    raw = visual.ln_post(x[:, 1:]) if unprojected else None
    pooled, _ = visual._pool(x)
    pooled = pooled if visual.proj is None else pooled @ visual.proj
    compared = visual.trunk.compared(features) if trunk and features is not None else None
    raw_class = x[:, 0] if visual.proj is None else x[:, 0] @ visual.proj
    return Tokens(pooled, value, ordinary, raw, compared, hidden, raw_class), grid


def encode_resnet(
    visual: Any, images: Tensor, *, value: bool = False, ordinary: bool = False
) -> tuple[Tokens, tuple[int, int]]:
    """Run an open_clip ``ModifiedResNet``, whose only attention is its pool ("block" 1), and its V-V path.

    docs/methods.md §1: in the V-V affinity ``v`` is unit-normalized and the scale is eight times the usual one.

    Args:
        visual: an open_clip ``ModifiedResNet``.
        images: (B, 3, S, T) normalized, sides multiples of 32.
        value: whether to return V-V patch tokens.
        ordinary: whether to return ordinary patch tokens.

    Returns:
        The tokens, and the (H, W) of the feature map.
    """
    if images.shape[-2] % 32 or images.shape[-1] % 32:
        raise UsageError(f"image size {tuple(images.shape[-2:])} is not a multiple of a ResNet's 32 pixels")
    maps = visual.layer4(visual.layer3(visual.layer2(visual.layer1(visual.stem(images)))))
    pool = visual.attnpool
    grid = (int(maps.shape[-2]), int(maps.shape[-1]))
    side = int((len(pool.positional_embedding) - 1) ** 0.5)
    x = maps.flatten(2).transpose(1, 2)  # (B, N, C)
    x = torch.cat([x.mean(1, keepdim=True), x], 1)
    x = x + interpolate_positions(pool.positional_embedding, grid, (side, side)).to(x.dtype)

    k, v = (split_heads(p(x), pool.num_heads) for p in (pool.k_proj, pool.v_proj))
    q = split_heads(pool.q_proj(x if ordinary else x[:, :1]), pool.num_heads)
    attended = pool.c_proj(merge_heads(F.scaled_dot_product_attention(q, k, v)))
    value_tokens: dict[int, Tensor] = {}
    if value:
        unit = v / (v.norm(dim=-1, keepdim=True) + 1e-6)
        scale = 8 * v.shape[-1] ** -0.5
        gained = F.scaled_dot_product_attention(unit, unit, v, scale=scale)
        value_tokens[1] = pool.c_proj(merge_heads(gained))[:, 1:]
    return Tokens(attended[:, 0], value_tokens, {1: attended[:, 1:]} if ordinary else {}), grid


def encode_windows(visual: Any, images: Tensor, size: int, *, windows_per_pass: int = 4096) -> Tensor:
    """Return WinCLIP's window embeddings: each ``size``×``size`` window is encoded separately.

    WinCLIP (arXiv 2303.14814), §4.1: the input is the class token and the window's patches with their positions.

    Args:
        visual: an open_clip ``VisionTransformer``.
        images: (B, 3, S, T) normalized.
        size: window side in patches; windows slide by one patch, row-major.
        windows_per_pass: maximum number of windows per pass (bounds memory).

    Returns:
        (B, (H−size+1)·(W−size+1), D) class tokens after ``ln_post @ proj``, not normalized.
    """
    tokens, grid = embed_patches(visual, images)
    tokens = visual.ln_pre(tokens)
    index = window_index(grid, size).to(tokens.device) + 1  # (M, size²), past the class token
    index = F.pad(index, (1, 0))  # the class token is part of every window
    windows = tokens[:, index].flatten(0, 1)  # (B·M, 1 + size², width)
    out = torch.cat([_pool_windows(visual, part) for part in windows.split(windows_per_pass)])
    out = out if visual.proj is None else out @ visual.proj
    embeddings: Tensor = out.unflatten(0, (len(images), len(index)))
    return embeddings


def _pool_windows(visual: Any, windows: Tensor) -> Tensor:
    """Pool (M, 1 + size², width) tokens of windows to (M, width); the last block runs for the class token only."""
    *blocks, last = visual.transformer.resblocks
    for block in blocks:
        windows = run_block(block, windows)
    windows = run_block(last, windows, queries=1 if visual.pool_type == "tok" else None)
    pooled: Tensor = visual._pool(windows)[0]
    return pooled


def window_index(grid: tuple[int, int], size: int) -> Tensor:
    """Return (M, size²) row-major patch indices of every ``size``×``size`` window of an (H, W) grid, stride 1.

    Raises:
        UsageError: the window is larger than the grid.
    """
    if size > min(grid):
        raise UsageError(f"a window of {size} patches does not fit a patch grid of {grid[0]}×{grid[1]}")
    numbers = torch.arange(grid[0] * grid[1]).view(grid)
    return numbers.unfold(0, size, 1).unfold(1, size, 1).reshape(-1, size * size)
