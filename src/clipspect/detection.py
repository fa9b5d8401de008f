"""Detection: what a user holds for one image. NumPy only; pictures are made when asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from clipspect.errors import ImageError, ResultsError, UsageError
from clipspect.postprocess.calibration import Calibration, Summary, calibrate_unlabeled, summarize
from clipspect.types import FLAGS, Region, Verdict, plural

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True, repr=False)
class Detection:
    """One image's result. Where it could not be read or scored, ``error`` says why and there is no map.

    ``pred_score``, ``pred_label``, ``pred_mask`` and ``anomaly_map`` are anomalib's names.
    """

    path: str
    """Path below the folder that was asked for, with forward slashes; or the name of the file or image."""
    content_hash: str
    """SHA-256 (hex) of the file's bytes, or of shape and pixels of an image without a file."""
    width: int
    height: int
    object: str
    method: str
    model: str
    weights: str
    raw_score: float
    """The method's own image score in [0, 1], as published; NaN where ``error`` is set. For ranking and benchmarks."""
    score_map: NDArray[np.float32] | None = field(repr=False, compare=False)
    """(h, w) the method's own map in [0, 1] over the whole image, as published. For benchmarks."""
    seconds: float
    error: str | None = None
    warnings: tuple[str, ...] = ()
    layers: NDArray[np.float16] | None = field(default=None, repr=False, compare=False)
    """(K, h, w) log-odds over the whole image, from which score and regions are made; None = from ``score_map``. Minus
    infinity outside the region of interest."""
    class_logit: float | None = None
    """Log-odds of the class token's text score, where the method has one."""
    calibration: Calibration | None = None
    """Of the run; None where the image is judged alone."""
    thumbnail: NDArray[np.uint8] | None = field(default=None, repr=False, compare=False)
    """The image at most 256 pixels a side, for previews, where it was at hand."""
    pixels: Callable[[], NDArray[np.uint8]] | None = field(default=None, repr=False, compare=False)
    """Gives the image (H, W, 3), reading it again where that is needed."""
    embedding: NDArray[np.float16] | None = field(default=None, repr=False, compare=False)
    """(D,) mean patch token of the strongest region less that of its tile, unit length; None without patch tokens."""

    @cached_property
    def compact_layers(self) -> NDArray[np.float16]:
        """(K, h, w) log-odds as they are stored. Raises ImageError where there is no map."""
        from clipspect.postprocess.maps import layers_of_map

        if self.layers is not None:
            return self.layers
        return layers_of_map(self._map)

    @cached_property
    def summary(self) -> Summary:
        """What a calibration needs of this image. Raises ImageError without a map."""
        return summarize(self.compact_layers, self.class_logit)

    @cached_property
    def calibration_used(self) -> Calibration:
        """The calibration of the run, or the scale of this image alone, which allows no threshold."""
        return self.calibration or calibrate_unlabeled([self.summary])

    @cached_property
    def score(self) -> float:
        """Calibrated anomaly score in [0, 1], the highest value of the map; NaN where ``error`` is set.

        0.5 is the threshold for every method, model and product.
        """
        if self.score_map is None:
            return float("nan")
        return self.calibration_used.score(self.summary)

    @cached_property
    def compact_map(self) -> NDArray[np.float32]:
        """(h, w) calibrated scores at the stored resolution. Raises ImageError without a map."""
        return self.calibration_used.score_map(self.compact_layers, self.class_logit)

    @property
    def anomaly_map(self) -> NDArray[np.float32]:
        """(H, W) calibrated scores in [0, 1] at the image's own size. Raises ImageError where there is no map."""
        from clipspect.postprocess.maps import resize_map

        return resize_map(self.compact_map, self.height, self.width, self.inside)

    @cached_property
    def inside(self) -> NDArray[np.bool_] | None:
        """(h, w) cells of the region of interest; None where all of the image is inspected, or it failed."""
        from clipspect.postprocess.maps import inspected_cells

        return None if self.score_map is None else inspected_cells(self.compact_layers)

    @cached_property
    def verdict(self) -> Verdict:
        """What is said of the image; see :data:`clipspect.types.Verdict`."""
        from clipspect.postprocess.verdict import verdict_of

        return "error" if self.score_map is None else verdict_of(self.calibration_used, self.score)

    @property
    def threshold(self) -> float | None:
        """The score from which on images are flagged; None where no threshold can be given."""
        from clipspect.postprocess.verdict import threshold_of

        return None if self.score_map is None else threshold_of(self.calibration_used)

    @property
    def profile(self) -> str | None:
        """The product profile that judges it, ``name@version``; None without one."""
        return None if self.calibration is None else self.calibration.profile or None

    @cached_property
    def regions(self) -> list[Region]:
        """Regions above the threshold, highest peak first; at least one if and only if the image is flagged."""
        if self.score_map is None:
            return []
        from clipspect.postprocess.regions import find_regions

        values = self.calibration_used.map(self.compact_layers, self.class_logit)
        return find_regions(values, self.calibration_used, self.height, self.width)

    @property
    def flag(self) -> bool | None:
        """Whether the image asks for a look; None where it could not be scored."""
        return None if self.score_map is None else self.verdict in FLAGS

    @property
    def pred_score(self) -> float:
        """``score`` under anomalib's name."""
        return self.score

    @property
    def pred_label(self) -> bool | None:
        """``flag`` under anomalib's name."""
        return self.flag

    @property
    def pred_mask(self) -> NDArray[np.bool_]:
        """(H, W) the regions' cells; empty where nothing is flagged. Raises ImageError without a map."""
        from clipspect.postprocess.regions import region_mask

        values = self.calibration_used.map(self.compact_layers, self.class_logit)
        return region_mask(values, self.calibration_used, self.height, self.width)

    def overlay(self, opacity: float = 0.5, max_side: int | None = None) -> Image.Image:
        """Draw the image with its heat and its regions boxed, RGB at its own size or at most ``max_side``.

        What is outside the region of interest is dimmed. Colors are clear below a score of 0.25 and hot from 0.5, the
        threshold, for every image alike.

        Raises ImageError without a map, UsageError where the image is not at hand.
        """
        from clipspect.postprocess.heatmap import draw_overlay

        scores = self.compact_map
        if self.pixels is None:
            raise UsageError(f"{self.path}: the image is not at hand; detect it again to draw on it")
        return draw_overlay(
            self.pixels(), scores, self.regions, opacity=opacity, max_side=max_side, inside=self.inside
        )

    def save(self, path: str | Path) -> None:
        """Write the overlay; the suffix of ``path`` tells the format.

        Raises ResultsError where it cannot be written, and what ``overlay`` raises.
        """
        picture = self.overlay()
        try:
            picture.save(path, compress_level=3)  # of PNG; other formats ignore it
        except ValueError as error:  # Pillow's error for a suffix it does not know
            raise UsageError(f"{path}: unknown image format; end it in .png or .jpg") from error
        except OSError as error:
            raise ResultsError(f"{path}: cannot be written ({error.strerror or error})") from error

    def __repr__(self) -> str:
        """Image, verdict, score and regions: ``Detection('part.png', flagged, score 0.831, 2 regions, anoclip)``."""
        if self.error is not None:
            return f"Detection({self.path!r}, error: {self.error})"
        regions = plural(len(self.regions), "region")
        verdict = self.verdict.replace("_", " ")
        return f"Detection({self.path!r}, {verdict}, score {self.score:.3f}, {regions}, {self.method})"

    def _repr_png_(self) -> bytes | None:
        """The overlay, for notebooks."""
        import io

        if self.score_map is None or self.pixels is None:
            return None
        buffer = io.BytesIO()
        self.overlay(max_side=800).save(buffer, "PNG")
        return buffer.getvalue()

    @property
    def _map(self) -> NDArray[np.float32]:
        if self.score_map is None:
            raise ImageError(self.path, self.error or "has no anomaly map")
        return self.score_map


def check_threshold(threshold: float) -> None:
    """Raise UsageError for a threshold outside (0, 1)."""
    if not 0 < threshold < 1:
        raise UsageError(f"threshold {threshold}: give a score between 0 and 1; 0.5 is the default")


def at_threshold(detection: Detection, threshold: float | None) -> Detection:
    """The detection at a chosen threshold; itself where none is chosen or the image failed."""
    if threshold is None or detection.error is not None:
        return detection
    return move_threshold(detection, threshold)


def move_threshold(detection: Detection, threshold: float) -> Detection:
    """The same detection, flagged from another score than 0.5. Raises UsageError outside (0, 1)."""
    check_threshold(threshold)
    calibration = replace(detection.calibration_used, score_threshold=threshold)
    return replace(detection, calibration=calibration)


def only_inside(detection: Detection, inside: NDArray[np.bool_]) -> Detection:
    """The detection with an empty map outside a region of interest.

    Its raw score is the highest value of the remaining map, and the class token, which sees all of the image, has no
    part in its score.

    Args:
        detection: with a map.
        inside: (h, w) of any size, whether a cell is inspected.

    Raises:
        ImageError: the region is thinner than a cell of the map.
    """
    from clipspect.postprocess.maps import cells_inside

    layers = detection.compact_layers.copy()
    cells = cells_inside(inside, *layers.shape[1:])
    if not cells.any():
        raise ImageError(
            detection.path,
            f"the region of interest is thinner than a cell of the map of {layers.shape[1:]} cells",
        )
    layers[:, ~cells] = -np.inf
    score_map = detection._map.copy()
    score_map[~cells_inside(inside, *score_map.shape)] = 0
    return replace(
        detection, layers=layers, score_map=score_map, raw_score=float(score_map.max()), class_logit=None
    )
