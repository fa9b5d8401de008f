"""Sizes of anomaly maps: stretched to the image, shrunk for storage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

COMPACT_SIDE = 128
"""Long side of a stored map made from a method's own map."""
LAYER_SIDE = 72
"""Fewest cells of a stored layer's side; patch grids are enlarged by an odd factor, which keeps their peaks."""
MAX_LAYER_SIDE = 512
"""Most cells of a stored layer's long side, of tiled images."""


def resize_map(
    score_map: NDArray[np.float32], height: int, width: int, inside: NDArray[np.bool_] | None = None
) -> NDArray[np.float32]:
    """Bilinear resize (h, w) → (height, width), pixel centres half-way as torch's ``align_corners=False``.

    Pixels of cells (h, w) that are not ``inside`` the region of interest are 0.
    """
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(score_map, dtype=np.float32))
    resized = np.array(image.resize((width, height), Image.Resampling.BILINEAR))
    if inside is not None:
        resized[~resize_mask(inside, height, width)] = 0
    return resized


def resize_mask(inside: NDArray[np.bool_], height: int, width: int) -> NDArray[np.bool_]:
    """Cells (h, w) → pixels (height, width): each that of the cell at its center."""
    from PIL import Image

    mask = Image.fromarray(inside).resize((width, height), Image.Resampling.NEAREST)
    return np.array(mask, np.bool_)


def inspected_cells(layers: NDArray[np.float16]) -> NDArray[np.bool_] | None:
    """(K, h, w) layers → (h, w) cells of the region of interest; None where all of the image is inspected."""
    inside = np.isfinite(layers[0])
    return None if inside.all() else inside


def cells_inside(inside: NDArray[np.bool_], height: int, width: int) -> NDArray[np.bool_]:
    """(H, W) → (height, width): whether every pixel that a cell touches is inside."""
    return _all_of(_all_of(inside, height).T, width).T


def _all_of(inside: NDArray[np.bool_], cells: int) -> NDArray[np.bool_]:
    """(N, M) → (cells, M) along the first axis."""
    length = len(inside)
    outside = np.zeros((length + 1, inside.shape[1]), np.int32)
    np.cumsum(~inside, axis=0, out=outside[1:])
    edges = np.arange(cells + 1) * length
    first, last = edges[:-1] // cells, -(-edges[1:] // cells)
    return np.asarray(outside[last] == outside[first])


def shrink_map(score_map: NDArray[np.float32]) -> NDArray[np.float16]:
    """Shrink a map (h, w) by area means to a long side of at most 128, as float16; smaller maps keep their size."""
    return _shrink(score_map, COMPACT_SIDE)


def layers_of_map(score_map: NDArray[np.float32]) -> NDArray[np.float16]:
    """(1, h, w) log-odds layer of a method's own map in [0, 1], for methods without layers."""
    clipped = np.clip(shrink_map(score_map).astype(np.float64), 1e-6, 1 - 1e-6)
    return np.asarray(np.log(clipped / (1 - clipped)), np.float16)[None]


def enlarge_factor(grid: Sequence[int]) -> int:
    """Odd factor by which a patch grid (h, w) is enlarged: cell centers stay cells, so the highest value stays."""
    factor = max(1, -(-LAYER_SIDE // max(grid)))
    return factor + 1 - factor % 2


def shrink_layer(layer: NDArray[np.float32]) -> NDArray[np.float32]:
    """Shrink a stitched layer (h, w) to at most 512 cells a side."""
    return _shrink(layer, MAX_LAYER_SIDE).astype(np.float32)


def _shrink(score_map: NDArray[np.float32], side: int) -> NDArray[np.float16]:
    height, width = score_map.shape
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
