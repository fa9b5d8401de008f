"""Real materials as normal surfaces: random crops of images of wood, plaster, metal, stone and felt."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from clipspect.errors import UsageError
from clipspect.training.render.fields import Canvas

_SIDE = 512
_NOT_MATERIALS = ("can", "cereal", "glass", "soda")
"""Images among robosuite's textures that show a print, or nothing."""


def load_materials(folder: Path) -> Tensor:
    """Read the PNG images of a folder as (M, 3, T, T) bytes.

    Raises:
        UsageError: the folder holds none.
    """
    paths = [path for path in sorted(folder.glob("*.png")) if path.stem not in _NOT_MATERIALS]
    if not paths:
        raise UsageError(
            f"{folder} holds no PNG images of materials; `make train-tiny` fetches robosuite's, or set materials to"
            ' another folder, or to ""'
        )
    images = []
    for path in paths:
        with Image.open(path) as image:
            side = min(image.size)
            square = image.convert("RGB").crop((0, 0, side, side))
            images.append(np.asarray(square.resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)))
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


def lay_materials(c: Canvas, surfaces: Tensor, materials: Tensor, share: float) -> None:
    """Replace a share of the surfaces (N, 3, S, S) by crops of materials, in place.

    Each crop has its own position, rotation, scale, tint, contrast and brightness.
    """
    rows = c.some(len(surfaces), share)
    if not len(rows):
        return
    n = len(rows)
    zoom, turn = c.log_uniform(n, 0.2, 1.3), c.angle(n)
    x, y = c.x * zoom, c.y * zoom * c.log_uniform(n, 0.7, 1.4)
    x, y = x * turn.cos() + y * turn.sin(), y * turn.cos() - x * turn.sin()
    grid = torch.stack([x + c.uniform(n, -1, 1), y + c.uniform(n, -1, 1)], -1)
    kind = c.integers(n, 0, len(materials)).to(materials.device)
    chosen = materials[kind].to(c.device).float() / 255
    cut = F.grid_sample(chosen, grid, padding_mode="reflection", align_corners=False)
    mean = cut.mean((2, 3), keepdim=True)
    grey = c.chance(n, 0.45)[:, None]
    cut = grey * cut.mean(1, keepdim=True) + (1 - grey) * cut
    mean = grey * mean.mean(1, keepdim=True) + (1 - grey) * mean
    tint = torch.exp(0.25 * c.normal(n, 3, 1, 1) * (1 - grey) + 0.5 * c.normal(n, 1, 1, 1))
    contrast = c.log_uniform(n, 0.4, 2.0)[:, None]
    surfaces[rows] = ((mean + contrast * (cut - mean)) * tint).clamp(0, 1)
