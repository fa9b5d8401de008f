"""Accumulator: counts the detections of one method on one set of images and computes its metrics."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from clipspect.benchmark.masks import fit_mask, read_mask
from clipspect.benchmark.metrics import PixelCurve, image_metrics
from clipspect.benchmark.samples import Sample
from clipspect.detection import Detection
from clipspect.errors import ImageError
from clipspect.postprocess.maps import resize_map, resize_mask
from clipspect.types import plural

METRICS = (
    "image_auroc", "image_ap", "image_f1max", "pixel_auroc", "pixel_ap", "pixel_f1max", "aupro",
)  # fmt: skip
"""Metrics of a row, in column order."""

RANDOM_WEIGHTS = "random weights"
"""Prefix of the warning in every row of a random-weights control; tables name the control anyway."""

Resolution = Literal["map", "photo"]
"""Resolution of the pixel metrics.

"map" is the method's map size (the backbone's input size), as in the papers and anomalib; "photo" is the image's size.
"""


ProRule = Literal["exact", "200-thresholds"]
"""Thresholds of AUPRO: all scores, or 200 as in the official AnoCLIP code."""


@dataclass(frozen=True)
class Figures:
    """Metrics of a set of images."""

    values: Mapping[str, float | None]
    """metric of :data:`METRICS` → value in [0, 1], None where it is not defined."""
    undefined: Mapping[str, str]
    """metric without a value → reason."""
    pixel_error: float
    """Upper bound on the error of pixel AUROC and AUPRO; 0 = exact."""
    images: int
    failed: Mapping[str, str]
    """image that could not be scored → reason; excluded from all metrics."""
    warnings: Sequence[str]


@dataclass
class Accumulator:
    """Counter of detections. Memory does not grow with the number of images (see :class:`PixelCurve`)."""

    resolution: Resolution = "map"
    pro: ProRule = "exact"
    curve: PixelCurve = field(default_factory=PixelCurve)
    labels: list[bool] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    grey: int = 0
    warned: Counter[str] = field(default_factory=Counter)
    """Warning → number of detections that have it."""
    empty: list[str] = field(default_factory=list)
    full: list[str] = field(default_factory=list)
    vanished: list[str] = field(default_factory=list)
    masked: int = 0

    def add(self, sample: Sample, detection: Detection) -> None:
        """Add one image, or its error if its detection or mask failed."""
        if detection.error is not None or detection.score_map is None:
            self.failed[detection.path] = detection.error or "has no map"
            return
        try:
            mask = read_mask(sample.mask, detection.height, detection.width) if sample.mask else None
        except ImageError as error:
            self.failed[detection.path] = error.reason
            return
        self.warned.update(w for w in detection.warnings if not w.startswith(RANDOM_WEIGHTS))
        self.labels.append(sample.defective)
        self.scores.append(detection.raw_score)
        if mask is None and sample.defective:
            return
        scores = detection.score_map
        if self.resolution == "photo":
            scores = resize_map(scores, detection.height, detection.width)
        truth = np.zeros(scores.shape, bool) if mask is None else fit_mask(mask.pixels, *scores.shape)
        inside = None if detection.inside is None else resize_mask(detection.inside, *scores.shape)
        truth = truth if inside is None else truth & inside
        self.curve.add(truth, scores, detection.path, inside)
        if mask is not None:
            self.grey += mask.grey
            self.empty += [detection.path] * mask.empty
            self.full += [detection.path] * mask.full
            self.vanished += [detection.path] * (not mask.empty and not truth.any())
        self.masked += mask is not None

    def figures(self) -> Figures:
        """Return the metrics of all images added so far."""
        image = image_metrics(np.array(self.labels, bool), np.array(self.scores))
        pixel = self.curve.metrics()
        aupro = pixel.aupro if self.pro == "exact" else self.curve.aupro_at_steps()
        found = (image.auroc, image.ap, image.f1_max, pixel.auroc, pixel.ap, pixel.f1_max, aupro)
        values = {
            name: None if math.isnan(value) else value for name, value in zip(METRICS, found, strict=True)
        }
        undefined = {name: self._reason(name) for name, value in values.items() if value is None}
        warnings = [f"{plural(count, 'image')}: {text}" for text, count in self.warned.items()]
        if self.pro != "exact":
            warnings.append("AUPRO is that of the official AnoCLIP code, with 200 thresholds")
        if self.grey:
            warnings.append(
                f"masks that are not binary, thresholded between black and their maximum value: {self.grey}"
            )
        for paths, what in (
            (self.empty, "masks of defective images that are empty"),
            (self.full, "masks that mark the whole image as defective"),
            (
                self.vanished,
                "masks with no pixel left at the map's size, whose defects count as normal (use --full-size)",
            ),
        ):
            if paths:
                warnings.append(f"{what}: {len(paths)}, the first is that of {paths[0]}")
        count = len(self.labels) + len(self.failed)
        return Figures(values, undefined, pixel.error, count, dict(self.failed), warnings)

    def _reason(self, metric: str) -> str:
        if not self.labels:
            return "no image could be scored"
        if metric.startswith("image"):
            return "no normal images" if all(self.labels) else "no defective images"
        if not any(self.labels):
            return "no defective images"
        if not self.masked:
            return "no masks"
        if not self.curve.regions:
            return "no defective pixels in the masks"
        if metric == "aupro" and self.pro != "exact":
            return "fewer than two of the 200 thresholds give a false-positive rate below 0.3"
        return "no normal pixels"
