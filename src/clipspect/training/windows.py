"""Windows cut from stored scenes, and their augmentation: what one training step looks at."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from clipspect.training.render import DEFECTS
from clipspect.training.scene_store import Shard

_OVER_DEFECT = 0.8
"""Share of windows that hold some of the defect, where there is one."""
_RESIZED, _ZOOM = 0.5, (0.6, 2.0)
"""Share of the steps whose windows are cut smaller or larger and then resized, and the range of that factor: it varies
scale, sharpness and aspect ratio.
"""
_JITTER = 8
"""A clean twin is cut up to this many pixels beside its defective one: references are never aligned to the pixel."""
_EXPOSURE = 0.04
_COMPRESSED = 0.35
"""Share of windows that JPEG compression has been over."""
_TO_YCC = ((0.299, 0.587, 0.114), (-0.1687, -0.3313, 0.5), (0.5, -0.4187, -0.0813))
_KINDS = list(DEFECTS)


@dataclass(frozen=True)
class WindowBatch:
    """B windows of defective pictures and their clean twins."""

    defective: Tensor
    """(B, 3, S, S) in [0, 1]."""
    clean: Tensor
    """(B, 3, S, S) in [0, 1]."""
    mask: Tensor
    """(B, S, S) in [0, 1]."""
    nouns: list[str]
    kinds: Tensor
    """(B,) index of the defect's kind in ``DEFECTS``."""


def draw_windows(shards: Sequence[Shard], count: int, side: int, generator: torch.Generator) -> WindowBatch:
    """Cut ``count`` windows of ``side`` pixels at random places of random scenes and augment them."""
    full = shards[0].mask.shape[-1]
    height, width = _cut_size(side, full, generator)
    chosen = [
        (shards[int(number)], int(row * len(shards[int(number)].mask)))
        for number, row in zip(
            torch.randint(0, len(shards), (count,), generator=generator),
            torch.rand(count, generator=generator),
            strict=True,
        )
    ]
    pictures = torch.stack([torch.stack([s.defective[row], s.clean[row]]) for s, row in chosen])
    masks = torch.stack([s.mask[row] for s, row in chosen])  # (B, S, S)
    corner = _corners(masks, height, width, generator)
    jitter = torch.randint(-_JITTER, _JITTER + 1, (count, 2), generator=generator)
    room = torch.tensor((full - height, full - width))
    beside = (corner + jitter).clamp_min(0).minimum(room)
    own = _cut(pictures[:, 0], corner, height, width)
    twin = _cut(pictures[:, 1], beside, height, width)
    picture = torch.stack([own, twin], 1).float() / 255  # (B, 2, 3, height, width)
    mask = _cut(masks[:, None], corner, height, width).float()
    if (height, width) != (side, side):
        picture = _resize(picture.flatten(0, 1), side).clamp(0, 1).view(count, 2, 3, side, side)
        mask = _resize(mask, side)
    picture, mask = _augment(picture, mask[:, 0], generator)
    kinds = torch.tensor([_KINDS.index(s.defects[row]) for s, row in chosen], device=picture.device)
    return WindowBatch(picture[:, 0], picture[:, 1], mask, [s.nouns[row] for s, row in chosen], kinds)


def _cut_size(side: int, full: int, generator: torch.Generator) -> tuple[int, int]:
    """Draw the height and width to cut before windows are resized to ``side``: other scales and aspect ratios."""
    drawn = torch.rand(3, generator=generator)
    if float(drawn[0]) >= _RESIZED:
        return side, side
    low, high = (math.log(bound) for bound in _ZOOM)
    zoom = math.exp(low + (high - low) * float(drawn[1]))
    aspect = math.exp(0.35 * (2 * float(drawn[2]) - 1) ** 3)
    height, width = (min(max(round(side * zoom * ratio), 16), full) for ratio in (aspect, 1 / aspect))
    return height, width


def _corners(masks: Tensor, height: int, width: int, generator: torch.Generator) -> Tensor:
    """Draw the (B, 2) top and left of windows in (B, S, S) masks; most windows hold a pixel of their mask."""
    count, side = len(masks), masks.shape[-1]
    drawn = torch.rand(count, 6, generator=generator)
    size = torch.tensor((height, width))
    room = side - size
    anywhere = (drawn[:, :2] * (room + 1)).long()
    flat = masks.flatten(1).float().cumsum(1)  # one pixel of each mask, all equally likely
    wanted = (drawn[:, 2:3].to(flat.device) * flat[:, -1:]).contiguous()
    index = torch.searchsorted(flat, wanted, right=True)[:, 0].clamp_max(side * side - 1).cpu()
    point = torch.stack([index // side, index % side], 1)
    over = (point - (drawn[:, 3:5] * size).long()).clamp_min(0).minimum(room)
    takes = (drawn[:, 5] < _OVER_DEFECT) & (flat[:, -1].cpu() > 0)
    return torch.where(takes[:, None], over, anywhere)


def _cut(images: Tensor, corner: Tensor, height: int, width: int) -> Tensor:
    """Cut (B, C, height, width) windows at (B, 2) corners out of (B, C, S, S) images."""
    device = images.device
    rows = (corner[:, :1] + torch.arange(height)).to(device)
    columns = (corner[:, 1:] + torch.arange(width)).to(device)
    each = torch.arange(len(images), device=device)[:, None, None]
    return images[each, :, rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2)


def _resize(images: Tensor, side: int) -> Tensor:
    return F.interpolate(images, (side, side), mode="bilinear", antialias=True, align_corners=False)


def _augment(picture: Tensor, mask: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Flips, quarter turns, channel order, grey, inversion, gamma: the same for both pictures of a window, which
    differ in exposure alone, as two images do.
    """

    def chance(probability: float) -> Tensor:
        return torch.rand(len(picture), generator=generator) < probability

    for dimension in (-1, -2):
        rows = chance(0.5)
        picture[rows] = picture[rows].flip(dimension)
        mask[rows] = mask[rows].flip(dimension)
    rows = chance(0.5)
    picture[rows], mask[rows] = picture[rows].transpose(-1, -2), mask[rows].transpose(-1, -2)
    order = torch.rand(len(picture), 3, generator=generator).argsort(1).to(picture.device)
    picture = picture.gather(2, order[:, None, :, None, None].expand_as(picture))
    rows = chance(0.3)
    picture[rows] = picture[rows].mean(2, keepdim=True).expand(-1, -1, 3, -1, -1)
    rows = chance(0.2)
    picture[rows] = 1 - picture[rows]
    gamma = torch.exp(0.25 * torch.randn(len(picture), generator=generator)).view(-1, 1, 1, 1, 1)
    picture = picture.clamp_min(1e-4) ** gamma.to(picture.device)
    exposure = torch.exp(_EXPOSURE * torch.randn(len(picture), 2, 1, 1, 1, generator=generator))
    picture = (picture * exposure.to(picture.device)).clamp_max(1)
    rows = chance(_COMPRESSED)
    quality = 25 + 70 * torch.rand(len(picture), generator=generator)
    if rows.any():
        picture[rows] = compress(picture[rows], quality[rows])
    return picture, mask


def compress(picture: Tensor, quality: Tensor) -> Tensor:
    """Apply JPEG's quantization, without subsampling of color.

    Args:
        picture: (B, 2, 3, S, S) in [0, 1]; S a multiple of 8.
        quality: (B,) in 1 … 100.

    Returns:
        The same shape and range.
    """
    device, side = picture.device, picture.shape[-1]
    n = torch.arange(8.0, device=device)
    dct = torch.cos(math.pi / 8 * (n + 0.5) * n[:, None]) / 2
    dct[0] /= math.sqrt(2)
    to_ycc = torch.tensor(_TO_YCC, device=device)
    ycc = torch.einsum("ij,bpjhw->bpihw", to_ycc, 255 * picture) - torch.tensor(
        [128.0, 0, 0], device=device
    ).view(3, 1, 1)
    blocks = ycc.unflatten(-1, (side // 8, 8)).unflatten(-3, (side // 8, 8))  # (B, 2, 3, H, 8, W, 8)
    waves = torch.einsum("uy,bpchywx,vx->bpchuwv", dct, blocks, dct)
    scale = torch.where(quality < 50, 50 / quality, 2 - quality / 50).to(device)
    grow = (n[:, None] + n) / 14  # a smooth stand-in for the two tables of the standard
    steps = torch.stack([12 + 90 * grow, 17 + 82 * grow.sqrt(), 17 + 82 * grow.sqrt()])
    steps = (steps * scale.view(-1, 1, 1, 1)).clamp_min(1)[:, None, :, None, :, None, :]
    waves = (waves / steps).round() * steps
    back = torch.einsum("uy,bpchuwv,vx->bpchywx", dct, waves, dct)
    ycc = back.flatten(-4, -3).flatten(-2, -1)
    ycc = ycc + torch.tensor([128.0, 0, 0], device=device).view(3, 1, 1)
    return (torch.einsum("ij,bpjhw->bpihw", torch.linalg.inv(to_ycc), ycc) / 255).clamp(0, 1)
