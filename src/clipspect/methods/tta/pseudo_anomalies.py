"""Pseudo-anomalies generated from the image itself (docs/methods.md §6): a corrupted copy and its mask.

Dual-Image Enhanced CLIP (arXiv 2405.04782), §3.4, similar to CutPaste (arXiv 2104.04015) and DRAEM (arXiv 2108.07610),
without their texture data sets. A generator seeded by the image's content draws every copy.

"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Kind = Literal["mixed", "cut-paste", "perlin", "noise"]

_VISIBLE = 0.1  # normalized units; smaller changes are invisible
_AREA = (0.01, 0.12)  # share of the image


def corrupted_copies(images: Tensor, kind: Kind, copies: int, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return corrupted copies of each image.

    Args:
        images: (B, 3, S, T) normalized.
        kind: "cut-paste" (a piece of the image at another position), "perlin" (an irregular region shows an enlarged
            piece with other lighting), "noise" (noise in an irregular region), or "mixed": all three on every copy.
        copies: number C of copies of each image.
        seeds: B seeds of the images' contents.

    Returns:
        (B, C, 3, S, T) copies and (B, C, S, T) masks of 0 and 1: the pixels that visibly changed.
    """
    pictures, masks = [], []
    kinds = tuple(_CORRUPTIONS) if kind == "mixed" else (kind,)
    for image, seed in zip(images, seeds, strict=True):
        generator = torch.Generator().manual_seed(seed % (1 << 63))
        for _ in range(copies):
            changed, region = image, torch.zeros_like(image[0])
            for one in kinds:
                changed, part = _CORRUPTIONS[one](changed, generator)
                region = torch.maximum(region, part)
            visible = (changed - image).abs().amax(0) > _VISIBLE
            pictures.append(changed)
            masks.append(region * visible)
    shape = (len(images), copies)
    return torch.stack(pictures).unflatten(0, shape), torch.stack(masks).unflatten(0, shape)


def _cut_paste(image: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    height, width = image.shape[1:]
    area, aspect = _uniform(generator, *_AREA), math.exp(_uniform(generator, -1.2, 1.2))
    tall = min(max(round(height * math.sqrt(area * aspect)), 2), height)
    wide = min(max(round(width * math.sqrt(area / aspect)), 2), width)
    top, left = _place(generator, height - tall), _place(generator, width - wide)
    piece = _relit(image[:, top : top + tall, left : left + wide], generator)
    piece = piece.flip(1 + _place(generator, 1))
    top, left = _place(generator, height - tall), _place(generator, width - wide)
    changed, region = image.clone(), torch.zeros_like(image[0])
    changed[:, top : top + tall, left : left + wide] = piece
    region[top : top + tall, left : left + wide] = 1
    return changed, region


def _perlin(image: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    height, width = image.shape[1:]
    region = _ragged_region(image, generator)
    share = _uniform(generator, 0.3, 0.7)
    tall, wide = max(int(height * share), 2), max(int(width * share), 2)
    top, left = _place(generator, height - tall), _place(generator, width - wide)
    piece = image[:, top : top + tall, left : left + wide]
    filling = F.interpolate(piece[None], (height, width), mode="bilinear", align_corners=False)[0]
    filling = _relit(torch.rot90(filling, 2, (1, 2)), generator)
    opacity = region * _uniform(generator, 0.5, 1.0)
    return image * (1 - opacity) + filling * opacity, region


def _noise(image: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    region = _ragged_region(image, generator)
    grain = torch.randn(image.shape[1:], generator=generator).to(image)  # gray: equal in all channels
    return image + region * _uniform(generator, 0.5, 1.5) * grain, region


_CORRUPTIONS: dict[str, Callable[[Tensor, torch.Generator], tuple[Tensor, Tensor]]] = {
    "cut-paste": _cut_paste,
    "perlin": _perlin,
    "noise": _noise,
}


def perlin_noise(size: tuple[int, int], cells: int, generator: torch.Generator) -> Tensor:
    """Return (S, T) gradient noise of ``cells``×``cells`` cells, smooth, around 0 (Perlin 1985, with the 2002 fade)."""
    angles = 2 * math.pi * torch.rand(cells + 1, cells + 1, generator=generator)
    gradients = torch.stack([angles.sin(), angles.cos()], -1)  # (cells + 1, cells + 1, 2)
    places = [torch.arange(n) * (cells / n) for n in size]
    y, x = torch.meshgrid(*places, indexing="ij")
    row, column = y.long(), x.long()
    y, x = y - row, x - column

    def corner(down: int, right: int) -> Tensor:
        gradient = gradients[row + down, column + right]
        return gradient[..., 0] * (y - down) + gradient[..., 1] * (x - right)

    fade_y, fade_x = (t**3 * (t * (6 * t - 15) + 10) for t in (y, x))
    above, below = (torch.lerp(corner(d, 0), corner(d, 1), fade_x) for d in (0, 1))
    return torch.lerp(above, below, fade_y)


def _ragged_region(image: Tensor, generator: torch.Generator) -> Tensor:
    """Return an (S, T) mask of 0 and 1: the highest share of a Perlin field."""
    height, width = int(image.shape[1]), int(image.shape[2])
    field = perlin_noise((height, width), 2 ** (1 + _place(generator, 2)), generator)
    kept = max(round(_uniform(generator, *_AREA) * field.numel()), 1)
    return (field >= field.flatten().topk(kept).values[-1]).to(image)


def _relit(piece: Tensor, generator: torch.Generator) -> Tensor:
    """Change contrast and brightness."""
    mean = piece.mean((1, 2), keepdim=True)
    return (piece - mean) * _uniform(generator, 0.6, 1.4) + mean + _uniform(generator, -0.8, 0.8)


def _uniform(generator: torch.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand(1, generator=generator))


def _place(generator: torch.Generator, last: int) -> int:
    """Return a random integer from 0 to ``last``."""
    return int(torch.randint(last + 1, (1,), generator=generator))
