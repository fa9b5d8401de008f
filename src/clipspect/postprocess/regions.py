"""Regions: connected parts of a map that contain a value above the threshold."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipspect.postprocess.calibration import GROW_FROM, PEAK_SHARE, Calibration
from clipspect.postprocess.verdict import threshold_of
from clipspect.types import Region

MIN_CELLS = 4
"""Cells a region must cover in a map with a side of 64 or more; the region of the highest peak always stays."""
MAX_REGIONS = 100
"""Regions kept of one image, the highest peaks first."""


def find_regions(
    values: NDArray[np.float64], calibration: Calibration, height: int, width: int
) -> list[Region]:
    """Find the regions of an image.

    Seeds are cells at or above the threshold t. They grow to b + ¾ (t − b), and around a high peak no further than
    b + 0.6 (peak − b). Cells that touch by an edge or a corner belong together. There is at least one region if and
    only if the image's highest value reaches t.

    Args:
        values: (h, w) map on the scale of U (:meth:`Calibration.map`).
        calibration: gives t and b.
        height: of the image in pixels.
        width: of the image in pixels.

    Returns:
        Regions in image pixels, highest peak first.
    """
    return [region for region, _ in _labeled_regions(values, calibration, height, width)[0]]


def outline_regions(
    values: NDArray[np.float64], calibration: Calibration, height: int, width: int
) -> list[list[list[float]]]:
    """The outlines of the regions that :func:`find_regions` finds, in the same order; arguments as there.

    Returns:
        Per region its polygons as [x, y, …] in image pixels, holes filled.
    """
    from clipspect.postprocess.outline import outline_cells

    found, labels = _labeled_regions(values, calibration, height, width)
    across, down = width / values.shape[1], height / values.shape[0]
    return [
        [
            [round(part, 2) for x, y in polygon for part in (x * across, y * down)]
            for polygon in outline_cells(labels == label)
        ]
        for _, label in found
    ]


def _labeled_regions(
    values: NDArray[np.float64], calibration: Calibration, height: int, width: int
) -> tuple[list[tuple[Region, int]], NDArray[Any]]:
    """Regions with their labels, highest peak first, and the labeled cells."""
    labels, kept = _grow(values, calibration)
    cell_height, cell_width = height / values.shape[0], width / values.shape[1]
    regions: list[tuple[Region, int]] = []
    for label, (rows, columns) in kept.items():
        inside = labels[rows, columns] == label
        part = np.where(inside, values[rows, columns], -np.inf)
        peak_row, peak_column = np.unravel_index(int(part.argmax()), part.shape)
        left, top = int(columns.start * cell_width), int(rows.start * cell_height)
        right = min(width, max(left + 1, round(columns.stop * cell_width)))
        bottom = min(height, max(top + 1, round(rows.stop * cell_height)))
        region = Region(
            left=left,
            top=top,
            width=right - left,
            height=bottom - top,
            area=min(
                (right - left) * (bottom - top),
                max(1, round(int(inside.sum()) * cell_height * cell_width)),
            ),
            peak=float(calibration.probability(part.max())),
            peak_x=min(width - 1, int((columns.start + peak_column + 0.5) * cell_width)),
            peak_y=min(height - 1, int((rows.start + peak_row + 0.5) * cell_height)),
        )
        regions.append((region, label))
    regions.sort(key=lambda one: (-one[0].peak, one[0].top, one[0].left))
    return regions[:MAX_REGIONS], labels


def region_mask(
    values: NDArray[np.float64], calibration: Calibration, height: int, width: int
) -> NDArray[np.bool_]:
    """(height, width) whether a pixel belongs to a region; arguments as of :func:`find_regions`.

    Some pixel does if and only if there is a region, also where pixels are fewer than cells.
    """
    found, labels = _labeled_regions(values, calibration, height, width)
    cells = np.isin(labels, [label for _, label in found])
    rows = np.minimum((np.arange(height) + 0.5) * values.shape[0] / height, values.shape[0] - 1).astype(int)
    columns = np.minimum((np.arange(width) + 0.5) * values.shape[1] / width, values.shape[1] - 1).astype(int)
    mask = np.asarray(cells[np.ix_(rows, columns)])
    centers = (np.argwhere(cells) + 0.5) * (height, width) / values.shape
    mask[tuple(centers.astype(int).T)] = True  # cells between the centers of pixels
    return mask


def _grow(values: NDArray[np.float64], calibration: Calibration) -> tuple[NDArray[Any], dict[int, Any]]:
    """Labeled components at the growing level, and the slices of those that contain a seed."""
    chosen = threshold_of(calibration)
    # Compared as scores, like the verdict, so that rounding cannot part the two.
    seeds = None if chosen is None else calibration.probability(values) >= chosen
    if chosen is None or seeds is None or not seeds.any():
        return np.zeros(values.shape, int), {}
    from scipy import ndimage  # a third of a second, which an image without regions does not need

    threshold = calibration.value(chosen)
    level = calibration.base + GROW_FROM * (threshold - calibration.base)
    touching = np.ones((3, 3))
    wide, count = ndimage.label(seeds | (values >= min(level, threshold)), structure=touching)
    peaks = np.asarray(ndimage.maximum(values, wide, np.arange(count + 1)))
    cut = calibration.base + PEAK_SHARE * (peaks - calibration.base)
    inside = (wide > 0) & (values >= np.where(cut > peaks, peaks, cut)[wide])
    labels, _ = ndimage.label(inside, structure=touching)
    slices = ndimage.find_objects(labels)
    least = MIN_CELLS if max(values.shape) >= 64 else 1
    highest = int(labels.ravel()[int(values.argmax())])
    kept = {}
    for label in np.unique(labels[seeds & inside]).tolist():
        cells = int((labels[slices[label - 1]] == label).sum())
        if cells >= least or label == highest:
            kept[label] = slices[label - 1]
    return labels, kept
