"""The 22 views of the official AnoCLIP code, whose image scores are averaged (docs/methods.md §3)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from clipspect.errors import UsageError

_ANGLES = tuple(math.pi / 16 * k for k in (-4, -3, -2, -1, 1, 2, 3, 4))
_SHIFTS = tuple((a * s, b * s) for s in (0.2, 0.1) for a, b in ((1, 1), (-1, 1), (-1, -1), (1, -1)))
_LUMA = (0.299, 0.587, 0.114)


def _warp(images: Tensor, matrix: list[list[float]]) -> Tensor:
    # In float64: at a sharp edge the float32 sampling grid's rounding, which differs from machine to machine, moves a
    # pixel by up to 1e-5, the whole tolerance of the parity fixtures.
    exact = torch.float32 if images.device.type == "mps" else torch.float64
    theta = torch.tensor(matrix, dtype=exact, device=images.device).expand(len(images), 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=True)
    warped = F.grid_sample(images.to(exact), grid, padding_mode="reflection", align_corners=True)
    return warped.to(images.dtype)


def rotate(images: Tensor, angle: float) -> Tensor:
    """Rotate images about their center, mirrored at the border.

    Args:
        images: (B, 3, S, T).
        angle: in radians, counterclockwise.

    Returns:
        (B, 3, S, T).
    """
    c, s = math.cos(angle), math.sin(angle)
    ratio = images.shape[-2] / images.shape[-1]
    return _warp(images, [[c, -s * ratio, 0.0], [s / ratio, c, 0.0]])


def official_views(images: Tensor) -> Tensor:
    """Identity, 8 rotations, 8 translations, horizontal flip, grey, three quarter turns, in that order.

    Args:
        images: (B, 3, S, S) normalised.

    Returns:
        (B, 22, 3, S, S).

    Raises:
        UsageError: the images are not square (a quarter turn would change their shape).
    """
    if images.shape[-1] != images.shape[-2]:
        raise UsageError("views='official' needs square input; use aspect='squash' or views='none'")
    views = [images]
    for angle in _ANGLES:
        c, s = math.cos(angle), math.sin(angle)
        views.append(_warp(images, [[c, -s, 0.0], [s, c, 0.0]]))
    views += [_warp(images, [[1.0, 0.0, a], [0.0, 1.0, b]]) for a, b in _SHIFTS]
    views.append(images.flip(-1))
    luma = torch.tensor(_LUMA, dtype=images.dtype, device=images.device).view(1, 3, 1, 1)
    views.append((images * luma).sum(1, keepdim=True).expand_as(images))
    views += [torch.rot90(images, turns, (-2, -1)) for turns in (1, 2, 3)]
    return torch.stack(views, 1)
