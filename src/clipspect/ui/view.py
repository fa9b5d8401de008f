"""Conversion of detections to page content: images, captions, tables, files. No scoring."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from clipspect.detection import Detection, at_threshold
from clipspect.postprocess.calibration import calibrate_unlabeled
from clipspect.postprocess.maps import write_grey
from clipspect.postprocess.verdict import WORDS, describe
from clipspect.results.export import light_rows, write_csv

if TYPE_CHECKING:
    from PIL import Image

SHOWN_SIDE = 1200
NAMED = 5
"""Maximum number of failures listed individually."""


@dataclass(frozen=True)
class Found:
    """Detections of one method as shown on the page, at the slider's threshold."""

    detections: tuple[Detection, ...]

    @staticmethod
    def of(detections: Sequence[Detection]) -> Found:
        """Keep the calibration of known-good images; without one, compare several images with each other."""
        summaries = [d.summary for d in detections if d.error is None and d.calibration is None]
        if len(summaries) > 1:
            calibration = calibrate_unlabeled(summaries)
            detections = [replace(d, calibration=calibration) for d in detections]
        return Found(tuple(detections))

    @property
    def most_suspicious(self) -> int:
        """Return the position of the highest score; the first if all images failed."""
        scores = [d.score if d.error is None else -1.0 for d in self.detections]
        return scores.index(max(scores))

    def judged(self, index: int, threshold: float) -> Detection:
        """Return one detection at the slider's threshold; nothing is encoded."""
        return at_threshold(self.detections[index], threshold)

    def picture(
        self, index: int, threshold: float, opacity: float, max_side: int | None = SHOWN_SIDE
    ) -> Image.Image | None:
        """Return the overlay of one detection; None if it failed."""
        detection = self.judged(index, threshold)
        if detection.error is not None or detection.pixels is None:
            return None
        pixels = _decoded(detection.pixels)
        return replace(detection, pixels=lambda: pixels).overlay(opacity, max_side)


@lru_cache(maxsize=2)
def _decoded(pixels: Callable[[], NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Return the decoded image, cached so that a moving slider does not decode it again."""
    return pixels()


def named(detections: Sequence[Detection], names: Sequence[str]) -> list[Detection]:
    """Return detections with the names of their files."""
    return [replace(d, path=name) for d, name in zip(detections, names, strict=True)]


def ranked(detections: Sequence[Detection]) -> list[Detection]:
    """Return detections by score, highest first; failed ones come last."""
    return sorted(detections, key=lambda d: (d.error is not None, -d.score if d.error is None else 0))


def caption(detection: Detection) -> str:
    """Return the caption with an image's score and name."""
    if detection.error is not None:
        return f"failed · {detection.path}"
    return f"{detection.score:.3f} · {detection.path}"


def verdict(detection: Detection) -> str:
    """Return one image's result as a line of Markdown."""
    if detection.error is not None:
        return f"**{_plain(detection.path)}** could not be scored: {_plain(detection.error)}"
    said = "".join(f"  \n⚠ {_plain(warning)}" for warning in detection.warnings)
    limit = "no threshold" if detection.threshold is None else f"threshold {detection.threshold:g}"
    return (
        f"**{_plain(detection.path)}** · score **{detection.score:.3f}** · **{WORDS[detection.verdict]}** ({limit})"
        f" · {count_regions(detection)}{said}"
    )


def note(found: Found) -> str:
    """Return a note on how the threshold was chosen."""
    return next((describe(d.calibration_used) for d in found.detections if d.error is None), " ")


def failures(detections: Sequence[Detection]) -> str:
    """Return the status text that lists images that could not be scored, and why."""
    failed = [d for d in detections if d.error is not None]
    lines = [f"  \n⚠ {_plain(d.path)} could not be scored: {_plain(d.error or '')}" for d in failed[:NAMED]]
    more = [f"  \n⚠ and {len(failed) - NAMED} more; the full table lists them"] if len(failed) > NAMED else []
    return "".join([*lines, *more])


def left_out(methods: Sequence[str]) -> str:
    """Return the status text that lists methods that were requested but lack their inputs."""
    if not methods:
        return ""
    return f"  \n⚠ without {', '.join(methods)}: give another image, or a reference"


def comparison_table(judged: Sequence[tuple[str, Detection]]) -> str:
    """Return one image under several methods as a Markdown table; empty if there is none."""
    if not judged:
        return ""
    lines = ["| method | score | verdict | regions |", "| :--- | ---: | :--- | ---: |"]
    for method, detection in judged:
        if detection.error is not None:
            lines.append(f"| {method} | | failed: {_plain(detection.error)} | |")
            continue
        word, regions = WORDS[detection.verdict], len(detection.regions)
        lines.append(f"| {method} | {detection.score:.3f} | {word} | {regions} |")
    return "\n".join(lines)


def count_regions(detection: Detection) -> str:
    """Return the number of regions in words."""
    count = len(detection.regions)
    return "no region" if count == 0 else "1 region" if count == 1 else f"{count} regions"


def region_table(detection: Detection) -> str:
    """Return the regions as a Markdown table, highest peak first; empty if there is none."""
    if not detection.regions:
        return ""
    lines = ["| region | left | top | width | height | peak |", "| ---: " * 6 + "|"]
    for number, region in enumerate(detection.regions, start=1):
        cells = (number, region.left, region.top, region.width, region.height, f"{region.peak:.4f}")
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def write_overlay(found: Found, index: int, threshold: float, opacity: float, folder: Path) -> Path:
    """Write the overlay in image size as PNG. Raises ImageError if there is none."""
    path = folder / f"{_stem(found.detections[index].path)}.overlay.png"
    found.judged(index, threshold).overlay(opacity).save(path, compress_level=3)
    return path


def write_map(found: Found, index: int, folder: Path) -> Path:
    """Write the anomaly map in image size as 16-bit grayscale PNG."""
    detection = found.detections[index]
    path = folder / f"{_stem(detection.path)}.map.png"
    with path.open("wb") as file:
        write_grey(file, detection.anomaly_map)
    return path


def write_table(found: Found, threshold: float, folder: Path) -> Path:
    """Write every image's row as CSV, at the slider's threshold."""
    path = folder / "detections.csv"
    judged = [found.judged(index, threshold) for index in range(len(found.detections))]
    with path.open("wb") as file:
        write_csv(file, light_rows(judged))
    return path


def _stem(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", Path(name).stem) or "image"


def _plain(text: str) -> str:
    """Escape text for Markdown and HTML: file names are untrusted."""
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~&-])", r"\\\1", text).replace("\n", " ")
