"""Sizes of anomaly maps: stretched to the image, shrunk for storage."""

from __future__ import annotations

from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

COMPACT_SIDE = 128
COMPACT_SHARE = 8
"""Values along a side that one cell of a stored map covers, where the map is longer than 1024 …"""
COMPACT_SIDE_MOST = 512
"""… up to this many cells."""


def resize_map(score_map: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """Bilinear resize (h, w) → (height, width), pixel centres half-way as torch's ``align_corners=False``."""
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(score_map, dtype=np.float32))
    return np.array(image.resize((width, height), Image.Resampling.BILINEAR))


def shrink_map(score_map: NDArray[np.float32]) -> NDArray[np.float16]:
    """The compact map that is stored: area means, long side at most 128 (up to 512 for maps longer than 1024),
    float16.

    A map already that small keeps its size.
    """
    height, width = score_map.shape
    side = min(max(COMPACT_SIDE, round(max(height, width) / COMPACT_SHARE)), COMPACT_SIDE_MOST)
    factor = min(1.0, side / max(height, width))
    if factor == 1:
        return score_map.astype(np.float16)
    means = _area_means(score_map, max(1, round(height * factor)))
    return _area_means(means.T, max(1, round(width * factor))).T.astype(np.float16, order="C")


def write_grey(file: IO[bytes], score_map: NDArray[np.float32]) -> None:
    """A map (H, W) in [0, 1] as a PNG of 16-bit grey: 65535 is 1."""
    from PIL import Image

    Image.fromarray((np.clip(score_map, 0, 1) * 65535 + 0.5).astype(np.uint16)).save(file, "PNG")


def _area_means(samples: NDArray[Any], cells: int) -> NDArray[np.float64]:
    """(N, M) → (cells, M): means over equal parts of the first axis, which may cut through samples.

    By running sums and not by a product of matrices: NumPy's products keep threads waiting that want the cores.
    """
    length = len(samples)
    sums = np.zeros((length + 1, samples.shape[1]))
    np.cumsum(samples, axis=0, dtype=np.float64, out=sums[1:])
    edges = np.linspace(0, length, cells + 1)
    whole = np.minimum(edges.astype(np.intp), length - 1)
    up_to = sums[whole] + (edges - whole)[:, None] * samples[whole]
    means: NDArray[np.float64] = np.diff(up_to, axis=0) * (cells / length)
    return means
