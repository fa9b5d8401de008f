"""Drift: whether a run's images still look like those that a threshold was taken from, or like those of another run.

Per object and method: the distribution of the images' peaks (population stability index, Kolmogorov–Smirnov), the share
of flagged images, and brightness and sharpness of the images. Too few images are not compared.
"""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clipspect.errors import UsageError
from clipspect.postprocess.calibration import Calibration
from clipspect.results.rows import calibration_of, summary_of
from clipspect.results.store import iterate_rows, read_manifest

MIN_BEFORE, MIN_AFTER = 10, 50
"""Fewest images of the reference and of the present that a distribution is compared from."""
BINS = 10
PSI_LIMIT = 0.25
"""Population stability index from which a distribution counts as changed (the usual rule of credit scoring)."""
P_LIMIT = 0.01
"""Largest p value of the Kolmogorov–Smirnov test at which it is."""
CHUNK = ("path", "method", "object", "error", "missing", "flag", "class_logit", "peaks", "medians", "preview")


@dataclass(frozen=True)
class Comparison:
    """Two samples of one quantity."""

    before: int
    """Number of values of the reference."""
    after: int
    median_before: float | None
    median_after: float | None
    psi: float | None
    """Population stability index over ten bins of the reference; None with too few images."""
    ks: float | None
    """Kolmogorov–Smirnov statistic."""
    p: float | None

    @property
    def has_changed(self) -> bool | None:
        """Whether both measures say so; None with too few images."""
        if self.psi is None or self.p is None:
            return None
        return self.psi >= PSI_LIMIT and self.p <= P_LIMIT


@dataclass(frozen=True)
class Drift:
    """What has changed for one object under one method."""

    object: str
    method: str
    scores: Comparison
    """Peaks on the scale of the reference's calibration."""
    brightness: Comparison
    """Mean grey level, 0 to 255."""
    sharpness: Comparison
    """Variance of the Laplacian of the preview."""
    flagged_before: float | None
    """Share of flagged images; None where the reference are known-good images."""
    flagged_after: float | None

    @property
    def has_changed(self) -> bool:
        """Whether scores, brightness or sharpness have changed."""
        return any(one.has_changed for one in (self.scores, self.brightness, self.sharpness))

    def to_dict(self) -> dict[str, Any]:
        """As JSON-serializable values."""
        return {**asdict(self), "has_changed": self.has_changed}


@dataclass
class _Sample:
    peaks: list[float] = field(default_factory=list)
    brightness: list[float] = field(default_factory=list)
    sharpness: list[float] = field(default_factory=list)
    flags: list[bool] = field(default_factory=list)


def find_drift(after: Path, before: Path | None = None) -> list[Drift]:
    """Compare a results folder with another, or with the known-good images that its thresholds were taken from.

    Args:
        after: the present results folder.
        before: the reference; without it the calibration in ``after``, which has scores and no images.

    Raises:
        ResultsError: no results folder.
        UsageError: no calibration to compare with, or no object and method in both.
    """
    reference = read_manifest(after if before is None else before)
    calibrations = {
        name: Calibration.from_dict(one) for name, one in reference.get("calibrations", {}).items()
    }
    if not calibrations:
        raise UsageError(f"{before or after}: has no calibration to compare with; finish the run first")
    now = _samples(after, calibrations)
    if before is not None:
        then = _samples(before, calibrations)
    else:
        then = {key: _Sample(list(_calibration(calibrations, *key).peaks)) for key in now}
        if not any(sample.peaks for sample in then.values()):
            raise UsageError(
                f"{after}: its threshold is not from calibration images; give a folder to compare with"
            )
    both = [key for key in now if key in then]
    if not both:
        raise UsageError("the two folders have no object and method in common")
    return [_drift(key, then[key], now[key]) for key in sorted(both)]


def compare_samples(before: ArrayLike, after: ArrayLike) -> Comparison:
    """Compare two samples of a quantity, where both are large enough."""
    first, second = np.asarray(before, np.float64), np.asarray(after, np.float64)
    medians = [float(np.median(one)) if len(one) else None for one in (first, second)]
    if len(first) < MIN_BEFORE or len(second) < MIN_AFTER:
        return Comparison(len(first), len(second), medians[0], medians[1], None, None, None)
    from scipy.stats import ks_2samp

    test = ks_2samp(first, second)
    return Comparison(
        len(first), len(second), medians[0], medians[1], stability_index(first, second),
        float(test.statistic), float(test.pvalue),
    )  # fmt: skip


def stability_index(before: NDArray[np.float64], after: NDArray[np.float64]) -> float:
    """Population stability index Σ (q − p) · ln(q / p) over ten equally filled bins of the reference.

    Half a count is added to every bin, so that an empty one gives a finite value.
    """
    edges = np.unique(np.quantile(before, np.linspace(0, 1, BINS + 1)[1:-1]))
    bins = len(edges) + 1
    counts = [
        np.bincount(np.searchsorted(edges, one, side="right"), minlength=bins) for one in (before, after)
    ]
    p, q = ((one + 0.5) / (one.sum() + 0.5 * bins) for one in counts)
    return float(((q - p) * np.log(q / p)).sum())


def look_of(preview: bytes) -> tuple[float, float]:
    """Mean grey level of a JPEG, and the variance of its Laplacian, which falls when an image is out of focus."""
    from PIL import Image
    from scipy.ndimage import laplace

    with Image.open(io.BytesIO(preview)) as image:
        grey = np.asarray(image.convert("L"), np.float64)
    return float(grey.mean()), float(laplace(grey).var())


def _drift(key: tuple[str, str], before: _Sample, after: _Sample) -> Drift:
    shares = [float(np.mean(one.flags)) if one.flags else None for one in (before, after)]
    return Drift(
        *key,
        compare_samples(before.peaks, after.peaks),
        compare_samples(before.brightness, after.brightness),
        compare_samples(before.sharpness, after.sharpness),
        *shares,
    )


def _calibration(calibrations: Mapping[str, Calibration], object: str, method: str) -> Calibration:
    return calibration_of(calibrations, {"object": object, "method": method})


def _samples(folder: Path, calibrations: dict[str, Calibration]) -> dict[tuple[str, str], _Sample]:
    samples: defaultdict[tuple[str, str], _Sample] = defaultdict(_Sample)
    for row in _scored(folder):
        summary = summary_of(row)
        if row["method"] not in calibrations or summary is None:
            continue
        calibration = calibration_of(calibrations, row)
        if len(summary.peaks) != len(calibration.centers):
            continue
        sample = samples[row["object"], row["method"]]
        sample.peaks.append(calibration.peak(summary))
        sample.flags.append(bool(row["flag"]))
        if row["preview"] is not None:
            brightness, sharpness = look_of(row["preview"])
            sample.brightness.append(brightness)
            sample.sharpness.append(sharpness)
    return dict(samples)


def _scored(folder: Path) -> Iterator[dict[str, Any]]:
    read_manifest(folder)
    return (row for row in iterate_rows(folder, CHUNK) if row["error"] is None and not row["missing"])


def describe_drift(found: Sequence[Drift]) -> Iterator[str]:
    """Yield a line per object, method and quantity, in words."""
    for one in found:
        yield f"{one.object}, {one.method}:" + (" changed" if one.has_changed else "")
        if one.flagged_after is not None:
            before = "" if one.flagged_before is None else f"{one.flagged_before:.1%} before, "
            yield f"  flagged     {before}{one.flagged_after:.1%} now"
        for name, part in (
            ("scores", one.scores),
            ("brightness", one.brightness),
            ("sharpness", one.sharpness),
        ):
            if part.before == 0:
                continue
            if part.psi is None:
                needed = f"needed are {MIN_BEFORE} and {MIN_AFTER}"
                yield f"  {name:<11} {part.before} and {part.after} images: too few ({needed})"
                continue
            said = "changed" if part.has_changed else "unchanged"
            yield (
                f"  {name:<11} median {part.median_before:.4g} before, {part.median_after:.4g} now; stability index"
                f" {part.psi:.2f}, Kolmogorov–Smirnov {part.ks:.2f} (p = {part.p:.2g}): {said}"
            )
