"""From log-odds layers to one calibrated anomaly score: docs/calibration.md.

An image's layers (K, h, w) are standardized by the peaks of calibration images and joined by their maximum, plus a
small share of the class token: U. The score is p(max U), with p = 0.5 at the threshold t for every method and model.
NumPy only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clipspect.errors import UsageError

Rule = Literal["conformal", "gumbel", "median + 3 sigma", "shipped level", "none"]

DEFAULT_FALSE_ALARM_RATE = 0.05
MIN_GOOD = 3
"""Fewest good images a threshold is taken from."""
MIN_UNLABELED = 20
"""Fewest unlabeled images that tell which of them stand out."""
SIGMAS = 3.0
MAD_TO_SIGMA = 1.4826
"""Standard deviation of a normal distribution over its median absolute deviation."""
MIN_SPREAD = 1e-3
"""Lowest spread in log-odds, so that identical calibration images give finite scores."""
CLASS_WEIGHT, CLASS_LIMIT = 0.25, 3.0
"""Share of the class token's standardized log-odds in U, and where they are clipped."""
SCORE_THRESHOLD = 0.5
GROW_FROM = 0.75
"""Regions grow from values over t down to b + ¾ (t − b) …"""
PEAK_SHARE = 0.6
"""… and no further than b + 0.6 (peak − b): box IoU on rendered brackets .21 → .51 (benchmarks/verdicts.py)."""
MARGIN = 1e-6
"""Standard deviations between a threshold and the image it is taken from, so that rounding cannot flag it."""
_SIMULATIONS = 200_000
OWN_SPREADS = 10
"""From this many images on each layer is standardized by its own spread. With fewer, one spread serves all layers
(their quadratic mean): a layer whose spread came out too small would give false alarms. Simulated with two layers,
three images and 5 % promised: 11 % with own spreads, 6 % with a common one (tests/postprocess/test_calibration.py)."""


@dataclass(frozen=True)
class Summary:
    """What a calibration needs of one image."""

    peaks: tuple[float, ...]
    """Highest value of each of K layers, log-odds."""
    medians: tuple[float, ...]
    """Median of each layer."""
    class_logit: float | None
    """Log-odds of the class token's text score, or None."""


@dataclass(frozen=True)
class Calibration:
    """How raw layers of one method become scores and verdicts. Stored with references, runs and exports as JSON."""

    rule: Rule
    """How the threshold was found; "none" where the images allow no threshold."""
    threshold: float
    """t on the scale of U; for "none" the highest peak, which no image exceeds."""
    base: float
    """b: the median map value of the calibration images on the scale of U."""
    centers: tuple[float, ...]
    """Median over images of each layer's peak."""
    spreads: tuple[float, ...]
    """1.4826 · MAD over images of each layer's peak."""
    class_center: float = 0.0
    class_spread: float | None = None
    """None where the class token is not used."""
    images: int = 0
    """Number of calibration images."""
    false_alarm_rate: float | None = None
    """Promised share of good images that are flagged; None without known-good images."""
    peaks: tuple[float, ...] = ()
    """U of the calibration images, for drift and for the report."""
    hashes: tuple[str, ...] = ()
    """Content hashes of known-good calibration images."""
    fingerprint: str = ""
    """Hash of model, method and preparation; a calibration serves these alone."""
    score_threshold: float = SCORE_THRESHOLD
    """Scores of at least this value are flagged; 0.5 unless a user chose another."""
    profile: str = ""
    """Name and version of the product profile it comes from."""

    @property
    def is_good(self) -> bool:
        """Whether known-good images support it, so that an image can be called clean."""
        return self.rule in ("conformal", "gumbel")

    @property
    def width(self) -> float:
        """T − b, positive."""
        return max(self.threshold - self.base, 1e-6)

    def peak(self, summary: Summary) -> float:
        """U of an image: the highest value of :meth:`map`."""
        return float(self._join(np.asarray(summary.peaks)[:, None], summary.class_logit)[0])

    def map(self, layers: NDArray[Any], class_logit: float | None) -> NDArray[np.float64]:
        """U of every cell: (K, h, w) log-odds → (h, w)."""
        return self._join(layers, class_logit)

    def _join(self, layers: NDArray[Any], class_logit: float | None) -> NDArray[np.float64]:
        shape = (-1, *(1,) * (layers.ndim - 1))
        centers, spreads = (np.asarray(values).reshape(shape) for values in (self.centers, self.spreads))
        joined: NDArray[np.float64] = ((layers.astype(np.float64) - centers) / spreads).max(0)
        if class_logit is not None and self.class_spread is not None:
            z = (class_logit - self.class_center) / self.class_spread
            joined = joined + CLASS_WEIGHT * min(max(z, -CLASS_LIMIT), CLASS_LIMIT)
        return joined

    def probability(self, values: ArrayLike) -> NDArray[np.float64]:
        """P of values of U: 0 at b, ½ at t, towards 1 above; it never swaps two values."""
        u = np.asarray(values, np.float64)
        below = 0.5 * (u - self.base) / self.width
        above = 1 - 0.5 * np.exp(-np.maximum(u - self.threshold, 0) / self.width)
        return np.asarray(np.where(u < self.threshold, np.clip(below, 0, 0.5), above))

    def score(self, summary: Summary) -> float:
        """Calibrated score of an image in [0, 1], the highest value of :meth:`score_map`."""
        return float(self.probability(self.peak(summary)))

    def score_map(self, layers: NDArray[Any], class_logit: float | None) -> NDArray[np.float32]:
        """Calibrated scores of every cell: (K, h, w) log-odds → (h, w)."""
        return self.probability(self.map(layers, class_logit)).astype(np.float32)

    def value(self, probability: float) -> float:
        """The value of U with a probability: the inverse of :meth:`probability`."""
        if probability < 0.5:
            return self.base + 2 * probability * self.width
        return self.threshold - self.width * math.log(max(2 * (1 - probability), 1e-12))

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able values."""
        return asdict(self)

    @staticmethod
    def from_dict(values: dict[str, Any]) -> Calibration:
        """The inverse of :meth:`to_dict`."""
        made: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return Calibration(**made)


def summarize(layers: NDArray[Any], class_logit: float | None) -> Summary:
    """Peaks and medians of (K, h, w) layers, over the cells that are inspected."""
    flat = layers.reshape(len(layers), -1).astype(np.float64)
    flat = flat[:, np.isfinite(flat[0])]
    return Summary(tuple(flat.max(1).tolist()), tuple(np.median(flat, 1).tolist()), class_logit)


def check_rate(false_alarm_rate: float) -> None:
    """Raise UsageError for a false-alarm rate outside (0, 1)."""
    if not 0 < false_alarm_rate < 1:
        raise UsageError(f"false-alarm rate {false_alarm_rate}: give a share between 0 and 1, such as 0.05")


def calibrate_good(
    summaries: Sequence[Summary],
    false_alarm_rate: float = DEFAULT_FALSE_ALARM_RATE,
    hashes: Sequence[str] = (),
    fingerprint: str = "",
) -> Calibration:
    """Take a threshold from known-good images, each scored without itself as reference.

    With n ≥ 1/α − 1 images the conformal quantile, which holds for any distribution; with fewer, from three, the
    predictive bound of a Gumbel distribution or the highest good value, whichever is larger. Fewer than three allow no
    threshold.

    Raises:
        UsageError: a rate outside (0, 1), or no image.
    """
    check_rate(false_alarm_rate)
    if not summaries:
        raise UsageError("none of the known-good images could be scored, so no threshold follows from them")
    scale = _scale(summaries)
    peaks = np.array([scale.peak(s) for s in summaries])
    count = len(peaks)
    rank = math.ceil((count + 1) * (1 - false_alarm_rate) - 1e-9)
    rule: Rule
    if count < MIN_GOOD:
        rule, threshold = "none", float(peaks.max())
    elif rank <= count:
        rule, threshold = "conformal", float(np.sort(peaks)[rank - 1])
    else:
        bound = peaks.mean() + gumbel_factor(count, false_alarm_rate) * peaks.std(ddof=1)
        rule, threshold = "gumbel", float(max(bound, peaks.max()))
    return _finish(
        scale,
        rule,
        threshold + MARGIN,
        summaries,
        false_alarm_rate=false_alarm_rate,
        hashes=tuple(hashes),
        fingerprint=fingerprint,
    )


def calibrate_unlabeled(summaries: Sequence[Summary], fingerprint: str = "") -> Calibration:
    """Find what stands out among unlabeled images: U over median + 3 σ of the images' peaks.

    Fewer than 20 images allow ranking and heat, and no threshold.

    Raises:
        UsageError: no image.
    """
    if not summaries:
        raise UsageError("no image could be scored")
    scale = _scale(summaries)
    peaks = np.array([scale.peak(s) for s in summaries])
    if len(peaks) < MIN_UNLABELED:
        return _finish(scale, "none", float(peaks.max()) + MARGIN, summaries, fingerprint=fingerprint)
    center, spread = _center_and_spread(peaks)
    return _finish(scale, "median + 3 sigma", center + SIGMAS * spread, summaries, fingerprint=fingerprint)


def shipped_level(peak: float, median: float, images: int, false_alarm_rate: float) -> Calibration:
    """The level a model ships with for one image alone: probabilities of the smoothed language map."""
    odds = [math.log(p / (1 - p)) for p in (peak, median)]
    return Calibration(
        "shipped level", odds[0], odds[1], (0.0,), (1.0,), images=images, false_alarm_rate=false_alarm_rate
    )


@cache
def gumbel_factor(count: int, false_alarm_rate: float) -> float:
    """K such that a further draw exceeds mean + k · sd of ``count`` draws with the given probability.

    By simulation of a Gumbel distribution with a fixed seed (200,000 samples): maxima of many cells follow it.
    """
    rng = np.random.Generator(np.random.PCG64(20261127))
    good = rng.gumbel(size=(_SIMULATIONS, count))
    excess = (rng.gumbel(size=_SIMULATIONS) - good.mean(1)) / good.std(1, ddof=1)
    return float(np.quantile(excess, 1 - false_alarm_rate))


def _scale(summaries: Sequence[Summary]) -> Calibration:
    """The standardizers alone; few images share one spread among the layers (:data:`OWN_SPREADS`)."""
    peaks = np.array([s.peaks for s in summaries])  # (n, K)
    pairs = [_center_and_spread(layer) for layer in peaks.T]
    if len(peaks) < OWN_SPREADS:
        common = math.sqrt(np.mean([spread**2 for _, spread in pairs]))
        pairs = [(center, common) for center, _ in pairs]
    logits = np.array([s.class_logit for s in summaries if s.class_logit is not None])
    center, spread = _center_and_spread(logits) if len(logits) == len(summaries) else (0.0, None)
    return Calibration(
        "none", 0.0, 0.0, tuple(c for c, _ in pairs), tuple(s for _, s in pairs), center, spread
    )


def _finish(
    scale: Calibration,
    rule: Rule,
    threshold: float,
    summaries: Sequence[Summary],
    **known: Any,
) -> Calibration:
    medians = [scale.peak(replace(s, peaks=s.medians)) for s in summaries]
    peaks = tuple(round(scale.peak(s), 6) for s in summaries)
    return replace(
        scale,
        rule=rule,
        threshold=threshold,
        base=float(np.median(medians)),
        images=len(summaries),
        peaks=peaks,
        **known,
    )


def _center_and_spread(values: NDArray[np.float64]) -> tuple[float, float]:
    center = float(np.median(values))
    return center, max(MAD_TO_SIGMA * float(np.median(np.abs(values - center))), MIN_SPREAD)
