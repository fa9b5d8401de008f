"""Regions: connected parts of a map at or above a threshold."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipspect.types import Region

MIN_CELLS = 4
"""Cells of a map with a side of 64 or more that a region must cover: fewer only graze the threshold."""
MAX_REGIONS = 100
"""Regions kept of one image, the highest peaks first; more of them show no object but noise."""


def find_regions(score_map: NDArray[Any], threshold: float, height: int, width: int) -> list[Region]:
    """Regions of a map (h, w) where it is ≥ ``threshold``, in pixels of its image of height × width.

    Cells touching by an edge or a corner belong together. Sorted by peak, highest first. Regions below
    ``MIN_CELLS`` are dropped; in maps smaller than 64 a side every cell counts.
    """
    from scipy import ndimage

    values = score_map.astype(np.float64)  # a threshold just above a float16 value must stay above it
    labels, _ = ndimage.label(values >= threshold, structure=np.ones((3, 3)))
    least = MIN_CELLS if max(values.shape) >= 64 else 1
    cell_height, cell_width = height / values.shape[0], width / values.shape[1]
    regions = []
    for label, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1):
        inside = labels[rows, columns] == label
        cells = int(inside.sum())
        if cells < least:
            continue
        part = np.where(inside, values[rows, columns], -np.inf)
        peak_row, peak_column = np.unravel_index(int(part.argmax()), part.shape)
        left, top = int(columns.start * cell_width), int(rows.start * cell_height)
        right = min(width, max(left + 1, round(columns.stop * cell_width)))
        bottom = min(height, max(top + 1, round(rows.stop * cell_height)))
        regions.append(
            Region(
                left=left,
                top=top,
                width=right - left,
                height=bottom - top,
                area=max(1, round(cells * cell_height * cell_width)),
                peak=float(part.max()),
                peak_x=min(width - 1, int((columns.start + peak_column + 0.5) * cell_width)),
                peak_y=min(height - 1, int((rows.start + peak_row + 0.5) * cell_height)),
            )
        )
    regions.sort(key=lambda region: (-region.peak, region.top, region.left))
    return regions[:MAX_REGIONS]
