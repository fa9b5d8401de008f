"""Pseudo-anomalies generated from the image itself (docs/methods.md §6): a corrupted copy and its mask.

Dual-Image Enhanced CLIP (arXiv 2405.04782), §3.4, similar to CutPaste (arXiv 2104.04015) and DRAEM (arXiv 2108.07610),
without their texture data sets, or with one. A generator seeded by the image's content draws every copy.

"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from clipspect.data.decode import read_image
from clipspect.data.find import find_images
from clipspect.data.transforms import normalize
from clipspect.errors import UsageError

Kind = Literal["mixed", "cut-paste", "perlin", "noise", "draem"]

_VISIBLE = 0.1  # normalized units; smaller changes are invisible
_AREA = (0.01, 0.12)  # share of the image


@dataclass(frozen=True)
class TextureFolder:
    """Texture images that irregular regions are filled with, as DRAEM (arXiv 2108.07610) does."""

    folder: Path
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """Normalization of the backbone, per channel."""

    def draw(self, size: tuple[int, int], generator: torch.Generator) -> Tensor:
        """Return (3, S, T) normalized values of a random crop of a random texture.

        Raises:
            UsageError: no such folder, or no image in it.
            ImageError: the image that was drawn cannot be read.
        """
        paths = _texture_paths(self.folder)
        pixels = read_image(paths[_place(generator, len(paths) - 1)])[0]
        texture = torch.from_numpy(normalize(pixels[None], self.mean, self.std))[0]
        height, width = texture.shape[1:]
        share = _uniform(generator, 0.5, 1.0)
        tall, wide = max(int(height * share), 2), max(int(width * share), 2)
        top, left = _place(generator, height - tall), _place(generator, width - wide)
        crop = texture[None, :, top : top + tall, left : left + wide]
        turned = torch.rot90(crop, _place(generator, 3), (2, 3))
        return _relit(F.interpolate(turned, size, mode="bilinear", align_corners=False)[0], generator)


@cache
def _texture_paths(folder: Path) -> tuple[Path, ...]:
    if not folder.is_dir():
        raise UsageError(f"textures={folder}: no such folder; give one with texture images")
    paths = tuple(find_images(folder))
    if not paths:
        raise UsageError(f"textures={folder}: no images in this folder")
    return paths


def corrupted_copies(
    images: Tensor, kind: Kind, copies: int, seeds: Sequence[int], textures: TextureFolder | None = None
) -> tuple[Tensor, Tensor]:
    """Return corrupted copies of each image.

    Args:
        images: (B, 3, S, T) normalized.
        kind: "cut-paste" (a piece of the image at another position), "perlin" (an irregular region shows an enlarged
            piece with other lighting), "noise" (noise in an irregular region), "mixed": all three on every copy, or
            "draem" (an irregular region shows a texture).
        copies: number C of copies of each image.
        seeds: B seeds of the images' contents.
        textures: for "draem".

    Returns:
        (B, C, 3, S, T) copies and (B, C, S, T) masks of 0 and 1: the pixels that visibly changed.
    """
    pictures, masks = [], []
    known = dict(_CORRUPTIONS)
    if textures is not None:
        known["draem"] = partial(_textured, textures=textures)
    kinds = tuple(_CORRUPTIONS) if kind == "mixed" else (kind,)
    for image, seed in zip(images, seeds, strict=True):
        generator = torch.Generator().manual_seed(seed % (1 << 63))
        for _ in range(copies):
            changed, region = image, torch.zeros_like(image[0])
            for one in kinds:
                changed, part = known[one](changed, generator)
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


def _textured(image: Tensor, generator: torch.Generator, *, textures: TextureFolder) -> tuple[Tensor, Tensor]:
    region = _ragged_region(image, generator)
    filling = textures.draw((int(image.shape[1]), int(image.shape[2])), generator).to(image)
    opacity = region * _uniform(generator, 0.2, 1.0)  # DRAEM's β is at most 0.8
    return image * (1 - opacity) + filling * opacity, region


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
