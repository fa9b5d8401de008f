"""Detection: what a user holds for one image. NumPy only; pictures are made when asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from clipspect.errors import ImageError, ResultsError, UsageError

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class Region:
    """A connected part of an image whose map values reach the pixel threshold, in image pixels."""

    left: int
    top: int
    width: int
    height: int
    area: int
    """Pixels covered, at most width · height."""
    peak: float
    """Highest map value in the region, in [0, 1]."""
    peak_x: int
    peak_y: int


@dataclass(frozen=True)
class Thresholds:
    """From which values on an image and its pixels count as anomalous."""

    image: float
    """Scores ≥ this flag the image."""
    pixel: float
    """Map values ≥ this belong to regions."""
    source: Literal["given", "good images", "guess"]
    note: str
    """How they came about, in one or two sentences for people."""
    pixel_open: bool = False
    """Whether nobody chose the pixel threshold, so that it is estimated from the maps."""


@dataclass(frozen=True)
class Detection:
    """One image's result. Where it could not be read or scored, ``error`` says why and there is no map.

    ``pred_score``, ``pred_label``, ``pred_mask`` and ``anomaly_map`` are anomalib's names.
    """

    path: str
    """Path below the folder that was asked for, with forward slashes; or the file's or the picture's name."""
    content_hash: str
    """SHA-256 (hex) of the file's bytes, or of shape and pixels of a picture without a file."""
    width: int
    height: int
    object: str
    method: str
    model: str
    weights: str
    score: float
    """Anomaly score of the image in [0, 1]; NaN where ``error`` is set."""
    score_map: NDArray[np.float32] | None = field(repr=False, compare=False)
    """(h, w) in [0, 1] over the whole image, at the method's own resolution."""
    seconds: float
    error: str | None = None
    warnings: tuple[str, ...] = ()
    thresholds: Thresholds | None = None
    """The thresholds of the run; None where every image stands alone and a guess takes their place."""
    thumbnail: NDArray[np.uint8] | None = field(default=None, repr=False, compare=False)
    """The image at most 256 pixels a side, for previews, where it was at hand."""
    pixels: Callable[[], NDArray[np.uint8]] | None = field(default=None, repr=False, compare=False)
    """Gives the image (H, W, 3), reading it again where that is needed."""

    @property
    def anomaly_map(self) -> NDArray[np.float32]:
        """(H, W) in [0, 1] at the image's own size. Raises ImageError where there is no map."""
        from clipspect.postprocess.maps import resize_map

        return resize_map(self._map, self.height, self.width)

    @cached_property
    def compact_map(self) -> NDArray[np.float16]:
        """(h, w) area means, long side ≤ 128, up to 512 for maps longer than 1024: what is stored.

        Raises ImageError where there is no map.
        """
        from clipspect.postprocess.maps import shrink_map

        return shrink_map(self._map)

    @cached_property
    def thresholds_used(self) -> Thresholds:
        """The thresholds of the run, or a guess from this image. Raises ImageError without a map."""
        if self.thresholds is not None and (not self.thresholds.pixel_open or self.score_map is None):
            return self.thresholds
        from clipspect.postprocess.thresholds import guess_thresholds, settle_pixel

        guess = guess_thresholds([self.score], [float(self.compact_map.max())], self.compact_map)
        return guess if self.thresholds is None else settle_pixel(self.thresholds, guess)

    @cached_property
    def regions(self) -> list[Region]:
        """Regions of the compact map at the pixel threshold, highest peak first; none where there is no map.

        Always the compact map, so that Python, the command line and a rebuilt report agree.
        """
        if self.score_map is None:
            return []
        from clipspect.postprocess.regions import find_regions

        return find_regions(self.compact_map, self.thresholds_used.pixel, self.height, self.width)

    @property
    def flag(self) -> bool | None:
        """Whether the score reaches the image threshold; None where the image could not be scored."""
        return None if self.score_map is None else self.score >= self.thresholds_used.image

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
        """(H, W): where the compact map reaches the pixel threshold. Raises ImageError without a map.

        The compact map, interpolated, so that the mask agrees with regions and with calibrated thresholds.
        """
        from clipspect.postprocess.maps import resize_map

        values = resize_map(self.compact_map.astype(np.float32), self.height, self.width)
        # a threshold just above a float16 value must stay above it
        return values.astype(np.float64) >= self.thresholds_used.pixel

    def overlay(
        self, opacity: float = 0.5, scale: tuple[float, float] | None = None, max_side: int | None = None
    ) -> Image.Image:
        """The image with its heat and its regions boxed, RGB at its own size or at most ``max_side``.

        ``scale`` gives the map values at the cool and the warm end of the colours, so that pictures can share
        one; without it they span this image's own values around the pixel threshold.

        Raises ImageError without a map, UsageError where the image is not at hand.
        """
        from clipspect.postprocess.heatmap import colour_scale, draw_overlay

        score_map = self._map
        if self.pixels is None:
            raise UsageError(f"{self.path}: the image is not at hand; detect it again to draw on it")
        scale = scale or colour_scale(score_map, self.thresholds_used.pixel)
        return draw_overlay(
            self.pixels(), score_map, self.regions, scale=scale, opacity=opacity, max_side=max_side
        )

    def save(self, path: str | Path) -> None:
        """Write the overlay; the suffix of ``path`` tells the format.

        Raises ResultsError where it cannot be written, and what ``overlay`` raises.
        """
        picture = self.overlay()
        try:
            picture.save(path)
        except ValueError as error:  # Pillow's word for a suffix it does not know
            raise UsageError(f"{path}: unknown picture format; end it in .png or .jpg") from error
        except OSError as error:
            raise ResultsError(f"{path}: cannot be written ({error.strerror or error})") from error

    @property
    def _map(self) -> NDArray[np.float32]:
        if self.score_map is None:
            raise ImageError(self.path, self.error or "has no anomaly map")
        return self.score_map
