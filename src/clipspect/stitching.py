"""From the scores of an image's tiles to its Detection. NumPy only, shared by PyTorch and exported networks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipspect.data.loader import LoadedImage
from clipspect.data.prepare import ImageLoader, PreparedImage
from clipspect.detection import Detection, only_inside
from clipspect.errors import ImageError
from clipspect.postprocess.calibration import PEAK_SHARE
from clipspect.postprocess.maps import shrink_layer

REGION_REACH = 2
"""Patches around the peak of an image that describe its strongest region."""
RANDOM_WEIGHTS = "random weights: a control, not a result"
AMONG_GOOD = "one of the known-good images of the calibration"


@dataclass(frozen=True)
class TileScores:
    """Scores of the n tiles of one image."""

    image: NDArray[np.float32]
    """(n,) the method's own image scores in [0, 1]."""
    map: NDArray[np.float32]
    """(n, S, S) the method's own maps in [0, 1]."""
    layers: NDArray[np.float32] | None
    """(n, K, h, w) log-odds layers, enlarged from the patch grid; None = from ``map``."""
    class_logit: NDArray[np.float32] | None
    """(n,) log-odds of the class token's text score; None if the method has none."""


def make_detection(
    loaded: LoadedImage,
    scores: TileScores | None,
    reader: ImageLoader,
    *,
    seconds: float,
    warnings: tuple[str, ...],
    common: Mapping[str, Any],
) -> Detection:
    """Stitch the tiles of one image.

    Args:
        loaded: the image, or its error.
        scores: of its tiles; None where it could not be read.
        reader: knows how the tiles were cut.
        seconds: per image.
        warnings: for the user.
        common: other fields of the Detection: object, method, model, weights and calibration.
    """
    image = loaded.image
    calibration = common["calibration"]
    if image is not None and calibration is not None and image.content_hash in calibration.hashes:
        warnings = (*warnings, AMONG_GOOD)
    common = {
        "path": loaded.name,
        "content_hash": image.content_hash if image else loaded.content_hash,
        "width": image.width if image else 0,
        "height": image.height if image else 0,
        "warnings": warnings,
        **common,
    }
    if image is None or scores is None:
        reason = loaded.error.reason if isinstance(loaded.error, ImageError) else str(loaded.error)
    elif np.isfinite(scores.map).all() and np.isfinite(scores.image).all():
        logits = scores.class_logit
        made = Detection(
            raw_score=reader.aggregate_scores(scores.image),
            score_map=reader.stitch_tiles(image, scores.map),
            layers=None if scores.layers is None else _stitch_layers(scores.layers, image, reader),
            class_logit=None if logits is None else reader.aggregate_scores(logits),
            seconds=seconds,
            thumbnail=image.thumbnail,
            pixels=image.pixels,
            **common,
        )
        if reader.roi is None:
            return made
        try:
            return only_inside(made, reader.roi.of_image(loaded.name, image.height, image.width))
        except ImageError as error:
            reason = error.reason
    else:
        reason = f"{common['method']} gave scores that are not numbers; the weights may be damaged"
    return Detection(
        raw_score=float("nan"),
        score_map=None,
        seconds=perf_counter() - loaded.started,
        error=reason,
        **common,
    )


def strongest_patches(
    detection: Detection, image: PreparedImage, reader: ImageLoader, grid: tuple[int, int]
) -> tuple[int, NDArray[np.intp]]:
    """Find the patches of an image's strongest region, whether or not it will be flagged.

    The threshold is not known yet in a run without known-good images. The region is what reaches m + 0.6 (peak − m),
    where m is the median of the last layer, within two patches of its peak, and inside the region of interest.

    Args:
        detection: of the image, with a map.
        image: its tiles.
        reader: knows how the tiles were cut.
        grid: (H, W) of a tile's patches.

    Returns:
        The number of the tile whose middle is nearest to the peak, and the row-major numbers of its patches.
    """
    values = detection.compact_layers[-1].astype(np.float32)
    inside = np.isfinite(values)
    top, left = np.unravel_index(int(np.where(inside, values, -np.inf).argmax()), values.shape)
    shape = (values.shape[0], values.shape[1])
    y = (top + 0.5) * image.tiled_size[0] / shape[0]
    x = (left + 0.5) * image.tiled_size[1] / shape[1]
    off_center = {
        number: max(abs((y - t.top) / t.height - 0.5), abs((x - t.left) / t.width - 0.5))
        for number, t in enumerate(image.tiles)
        if t.top <= y < t.top + t.height and t.left <= x < t.left + t.width
    }
    tile = min(off_center, key=off_center.__getitem__)
    rows, columns = reader.cell_places(image, image.tiles[tile], shape, grid)
    median = float(np.median(values[inside]))
    strong = inside & (values >= median + PEAK_SHARE * (values[top, left] - median))
    strong &= ((rows >= 0) & (abs(rows - rows[top]) <= REGION_REACH))[:, None]
    strong &= (columns >= 0) & (abs(columns - columns[left]) <= REGION_REACH)
    across, down = np.nonzero(strong)
    return tile, np.unique(rows[across] * grid[1] + columns[down])


def _stitch_layers(
    layers: NDArray[np.float32], image: PreparedImage, reader: ImageLoader
) -> NDArray[np.float16]:
    """(K, h, w) log-odds layers over the whole image, as they are stored."""
    stitched = [shrink_layer(reader.stitch_tiles(image, layers[:, k])) for k in range(layers.shape[1])]
    return np.stack(stitched).astype(np.float16)
