"""Tally: the detections of one method on one set of images, counted as they come; figures at the end."""

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
from clipspect.postprocess.maps import resize_map

METRICS = (
    "image_auroc", "image_ap", "image_f1max", "pixel_auroc", "pixel_ap", "pixel_f1max", "aupro",
)  # fmt: skip
"""The figures of a row, in the order of tables."""

RANDOM_WEIGHTS = "random weights"
"""Begins the warning of every row of a control, which tables name anyway."""

Resolution = Literal["map", "photo"]
"""Where maps meet masks: "map" at the method's own map, the backbone's input size, as the papers and anomalib measure;
"photo" at the image's size."""


@dataclass(frozen=True)
class Figures:
    """What was measured on a set of images."""

    values: Mapping[str, float | None]
    """metric of :data:`METRICS` → value in [0, 1], None where it is not defined."""
    undefined: Mapping[str, str]
    """metric without a value → why."""
    pixel_error: float
    """Most by which pixel AUROC and AUPRO can differ from the exact value; 0 = exact."""
    images: int
    failed: Mapping[str, str]
    """image that could not be scored → why; none of them counts in a metric."""
    warnings: Sequence[str]


@dataclass
class Accumulator:
    """Counts detections. Memory does not grow with the images (see :class:`PixelCurve`)."""

    resolution: Resolution = "map"
    curve: PixelCurve = field(default_factory=PixelCurve)
    labels: list[bool] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    grey: int = 0
    told: Counter[str] = field(default_factory=Counter)
    """What detections warn of → how many do."""
    empty: list[str] = field(default_factory=list)
    full: list[str] = field(default_factory=list)
    vanished: list[str] = field(default_factory=list)
    masked: int = 0

    def add(self, sample: Sample, detection: Detection) -> None:
        """Count one image; where its detection or its mask failed, the error."""
        if detection.error is not None or detection.score_map is None:
            self.failed[detection.path] = detection.error or "has no map"
            return
        try:
            mask = read_mask(sample.mask, detection.height, detection.width) if sample.mask else None
        except ImageError as error:
            self.failed[detection.path] = error.reason
            return
        self.told.update(w for w in detection.warnings if not w.startswith(RANDOM_WEIGHTS))
        self.labels.append(sample.defective)
        self.scores.append(detection.raw_score)
        if mask is None and sample.defective:
            return
        scores = detection.score_map
        if self.resolution == "photo":
            scores = resize_map(scores, detection.height, detection.width)
        truth = np.zeros(scores.shape, bool) if mask is None else fit_mask(mask.pixels, *scores.shape)
        self.curve.add(truth, scores, detection.path)
        if mask is not None:
            self.grey += mask.grey
            self.empty += [detection.path] * mask.empty
            self.full += [detection.path] * mask.full
            self.vanished += [detection.path] * (not mask.empty and not truth.any())
        self.masked += mask is not None

    def figures(self) -> Figures:
        """The figures of everything counted so far."""
        image = image_metrics(np.array(self.labels, bool), np.array(self.scores))
        pixel = self.curve.metrics()
        found = (image.auroc, image.ap, image.f1_max, pixel.auroc, pixel.ap, pixel.f1_max, pixel.aupro)
        values = {
            name: None if math.isnan(value) else value for name, value in zip(METRICS, found, strict=True)
        }
        undefined = {name: self._reason(name) for name, value in values.items() if value is None}
        warnings = [f"{count} images: {text}" for text, count in self.told.items()]
        if self.grey:
            warnings.append(f"{self.grey} masks are not binary; they were cut at half their brightest value")
        for paths, what in (
            (self.empty, "of defective images are empty"),
            (self.full, "mark the whole image as defective"),
            (
                self.vanished,
                "have no pixel left at the map's size, so their defects count as normal; use --full-size",
            ),
        ):
            if paths:
                warnings.append(f"{len(paths)} masks {what}, the first is that of {paths[0]}")
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
        return "no defective pixels in the masks" if not self.curve.regions else "no normal pixels"
