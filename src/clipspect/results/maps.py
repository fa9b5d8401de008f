"""Sizes of anomaly maps: stretched to the photograph, shrunk for storage."""

from __future__ import annotations

from functools import lru_cache
from typing import IO

import numpy as np
from numpy.typing import NDArray

COMPACT_SIDE = 128
COMPACT_SIDE_TILED = 512
"""Long side of the stored map of a tiled photograph, whose own map is longer than 1024."""


def resize_map(score_map: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """Bilinear resize (h, w) → (height, width), pixel centres half-way as torch's ``align_corners=False``."""
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(score_map, dtype=np.float32))
    return np.array(image.resize((width, height), Image.Resampling.BILINEAR))


def shrink_map(score_map: NDArray[np.float32]) -> NDArray[np.float16]:
    """The compact map that is stored: area means, long side at most 128 (512 for maps longer than 1024),
    float16.

    A map already that small keeps its size.
    """
    height, width = score_map.shape
    side = COMPACT_SIDE if max(height, width) <= 1024 else COMPACT_SIDE_TILED
    factor = min(1.0, side / max(height, width))
    if factor == 1:
        return score_map.astype(np.float16)
    rows = _area_weights(height, max(1, round(height * factor)))
    columns = _area_weights(width, max(1, round(width * factor)))
    return (rows @ score_map.astype(np.float32) @ columns.T).astype(np.float16)


def write_grey(file: IO[bytes], score_map: NDArray[np.float32]) -> None:
    """A map (H, W) in [0, 1] as a PNG of 16-bit grey: 65535 is 1."""
    from PIL import Image

    Image.fromarray((np.clip(score_map, 0, 1) * 65535 + 0.5).astype(np.uint16)).save(file, "PNG")


@lru_cache(16)
def _area_weights(length: int, cells: int) -> NDArray[np.float32]:
    """(cells, length): the share of each sample in each cell's mean; cells are equal parts of the length.

    Kept, because the maps of a run have few sizes; not to be written to.
    """
    edges = np.linspace(0, length, cells + 1)
    starts = np.arange(length)
    covered = np.minimum(edges[1:, None], starts + 1) - np.maximum(edges[:-1, None], starts)
    return np.asarray(np.clip(covered, 0, None) * (cells / length), np.float32)
