"""Tiling of large and long images into overlapping tiles, and stitching of the tiles' maps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Tile:
    """Rectangle of an image, in image pixels."""

    top: int
    left: int
    height: int
    width: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Return row and column slices for indexing an array (H, W, …)."""
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)


OVERLAP = 0.25
"""Least share of a tile's side that neighbors have in common (docs/speed.md, Tiles)."""


def plan_tiles(
    height: int, width: int, side: int | Literal["square"], overlap: float | None = None
) -> list[Tile]:
    """Return tiles that cover an image exactly, row by row, evenly spaced, the outer ones flush with its border.

    ``side`` is the tiles' side in pixels; neighbors overlap by at least ``overlap`` of it. An image smaller than a tile
    in one direction is not tiled in that direction. ``"square"`` uses the shorter side and the minimum number of tiles:
    two for every image up to 2 : 1, which is the official VisA setting of AnoCLIP (docs/methods.md §4).

    Raises ValueError for a side below 1 or an overlap outside [0, 1).
    """
    if side == "square":
        return plan_tiles(height, width, min(height, width), overlap=0.0)
    overlap = OVERLAP if overlap is None else overlap
    if side < 1 or not 0 <= overlap < 1:
        raise ValueError(
            f"tiles of side {side} with overlap {overlap}: wanted is side ≥ 1 and overlap in [0, 1)"
        )
    return [
        Tile(top, left, min(side, height), min(side, width))
        for top in _offsets(height, side, overlap)
        for left in _offsets(width, side, overlap)
    ]


def blend_tiles(
    maps: Sequence[NDArray[np.float32]], tiles: Sequence[Tile], size: tuple[int, int], *, taper: bool = True
) -> NDArray[np.float32]:
    """Stitch one map (h, w) per tile to one map (H, W) of ``size``: the weighted mean where tiles overlap.

    With ``taper`` a tile's weight falls linearly from its center to its border (a tent), which hides seams. Without it,
    overlaps are plain averages, the official VisA rule.

    Raises ValueError if a map's shape differs from its tile's, or the tiles leave a gap.
    """
    total = np.zeros(size, np.float32)
    weight = np.zeros(size, np.float32)
    for tile_map, tile in zip(maps, tiles, strict=True):
        if tile_map.shape != (tile.height, tile.width):
            raise ValueError(f"a map of shape {tile_map.shape} for a tile of {tile.height} × {tile.width}")
        share = np.outer(_tent(tile.height), _tent(tile.width)) if taper else np.float32(1)
        total[tile.slices] += share * tile_map
        weight[tile.slices] += share
    if not weight.all():
        raise ValueError("the tiles leave a part of the image uncovered")
    return total / weight


def _offsets(length: int, side: int, overlap: float) -> list[int]:
    if length <= side:
        return [0]
    stride = max(1.0, side * (1 - overlap))
    count = math.ceil((length - side) / stride) + 1
    return [round(i * (length - side) / (count - 1)) for i in range(count)]


def _tent(length: int) -> NDArray[np.float32]:
    distance = np.minimum(np.arange(length), np.arange(length)[::-1]) + 0.5
    return (distance / (length / 2)).astype(np.float32)
