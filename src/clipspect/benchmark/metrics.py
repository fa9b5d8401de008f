"""AUROC, average precision, F1-max and AUPRO of images and pixels: exact, with one anomaly map in memory at a time.

scikit-learn computes AUROC, average precision and the curve of F1-max. Pixels are passed as distinct scores weighted
by their counts, because single pixels of a VisA category would need gigabytes. This module computes AUPRO (Bergmann et
al., MVTec AD). torchmetrics has none. anomalib's keeps every pixel of the data set, or bins scores between 0 and 1,
which is too coarse for maps within a few hundredths of ½. Tests compare AUPRO with anomalib's and with brute force.
A metric that is undefined because one class is missing is NaN, never 0 or 1.

"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from clipspect.errors import UsageError
from clipspect.types import plural

AUPRO_LIMIT = 0.3
"""Upper false-positive rate of the AUPRO integral, the usual value in the literature."""
OFFICIAL_STEPS = 200
"""Thresholds of the official AnoCLIP code's PRO."""
_EIGHT_CONNECTED = np.ones((3, 3), dtype=int)

Array = NDArray[np.float64]


@dataclass(frozen=True)
class BinaryMetrics:
    """Ranking metrics of scores against labels, each in [0, 1], or NaN where undefined."""

    auroc: float
    ap: float
    """Average precision: the sum of precision times gain in recall."""
    f1_max: float


@dataclass(frozen=True)
class PixelMetrics(BinaryMetrics):
    """Pixel metrics: those of :class:`BinaryMetrics`, and the mean overlap of regions."""

    aupro: float
    """Area under the per-region-overlap curve to a false-positive rate of 0.3, divided by 0.3."""
    error: float = 0.0
    """Upper bound on the error of AUROC and AUPRO; 0 = exact (see :class:`PixelCurve`)."""


def image_metrics(labels: NDArray[np.bool_], scores: NDArray[np.floating]) -> BinaryMetrics:
    """Return the metrics of N image scores.

    Args:
        labels: (N,) true if the image is defective.
        scores: (N,) higher is more anomalous.

    Raises:
        UsageError: shapes differ, or a score is NaN.
    """
    labels, scores = np.asarray(labels, dtype=bool), np.asarray(scores)
    if labels.shape != scores.shape or labels.ndim != 1:
        raise UsageError(
            f"labels {labels.shape} and image scores {scores.shape} must be vectors of one length"
        )
    _refuse_nan(scores, "image scores")
    order = np.argsort(-scores, kind="stable")
    first = _starts(scores[order])
    if not len(first):
        return _binary(np.empty(0), np.empty(0))
    defective = np.add.reduceat(labels[order].astype(np.float64), first)
    return _binary(defective, np.diff(first, append=len(scores)) - defective)


def pixel_metrics(masks: Sequence[NDArray[np.bool_]], maps: Sequence[NDArray[np.floating]]) -> PixelMetrics:
    """Return the metrics of N anomaly maps against their masks; images may differ in size.

    Args:
        masks: N arrays (H, W), true on defects.
        maps: N arrays (H, W) of the same sizes, higher is more anomalous.

    Raises:
        UsageError: shapes differ, or a map holds NaN.
    """
    return _curve(masks, maps).metrics()


def aupro(
    masks: Sequence[NDArray[np.bool_]], maps: Sequence[NDArray[np.floating]], limit: float = AUPRO_LIMIT
) -> float:
    """Return only AUPRO, up to any false-positive rate in (0, 1]; see :func:`pixel_metrics`."""
    return _curve(masks, maps).aupro(limit)


def _curve(masks: Sequence[NDArray[np.bool_]], maps: Sequence[NDArray[np.floating]]) -> PixelCurve:
    if len(masks) != len(maps):
        raise UsageError(f"{plural(len(masks), 'mask')} for {plural(len(maps), 'anomaly map')}")
    curve = PixelCurve()
    for number, (mask, scores) in enumerate(zip(masks, maps, strict=True)):
        curve.add(mask, scores, f"anomaly map {number}")
    return curve


@dataclass(frozen=True)
class _Cells:
    """Disjoint score intervals, ascending, with their counts. An exact value is an interval of zero width."""

    low: NDArray[np.floating]
    high: NDArray[np.floating]
    weights: Array
    """(3, K): normal pixels, defective pixels, overlap gained (the sum of 1 / area of each pixel's region)."""

    def __len__(self) -> int:
        return len(self.low)


class PixelCurve:
    """Statistics for all pixel metrics of the maps added so far, in bounded memory; maps are not kept.

    The curve keeps distinct scores with their counts. Metrics are exact up to ``limit`` distinct scores. Beyond the
    limit, neighboring scores are merged into one cell and count as tied. ``metrics().error`` is then a strict bound on
    the resulting difference in AUROC and AUPRO, of the order of 1 / ``limit``.
    """

    def __init__(self, limit: int = 1 << 20) -> None:
        """Set the maximum number of distinct scores, at 40 bytes each; the unsorted buffer holds as many pixels."""
        if limit < 16:
            raise UsageError(f"limit={limit}; the minimum is 16")
        self.limit = limit
        self.pictures = 0
        self.regions = 0
        """Number of 8-connected regions of the masks so far."""
        empty = np.empty(0, np.float32)
        self._cells = _Cells(empty, empty, np.empty((3, 0)))
        self._waiting: list[tuple[NDArray[np.floating], NDArray[np.floating], Array]] = []
        # per map: scores of normal pixels, of defective ones, and 1 / area of each defective one's region
        self._count = 0

    def add(
        self,
        mask: NDArray[np.bool_],
        scores: NDArray[np.floating],
        name: str = "anomaly map",
        inside: NDArray[np.bool_] | None = None,
    ) -> None:
        """Add one anomaly map (H, W) with its mask (H, W), true on defects.

        Only pixels ``inside`` (H, W) the region of interest count, where there is one.

        Raises:
            UsageError: shapes differ, or the map holds NaN; the message contains ``name``.
        """
        mask, scores = np.asarray(mask, dtype=bool), np.asarray(scores)
        if mask.shape != scores.shape or mask.ndim != 2:
            raise UsageError(f"{name}: mask {mask.shape} against anomaly map {scores.shape}")
        _refuse_nan(scores, name)
        counted = np.ones_like(mask) if inside is None else inside
        mask = mask & counted
        numbers, regions = ndimage.label(mask, structure=_EIGHT_CONNECTED)
        share = 1 / np.maximum(np.bincount(numbers.ravel(), minlength=regions + 1), 1)
        share[0] = 0.0
        self._waiting.append((scores[counted & ~mask], scores[mask], share[numbers[mask]]))
        self._count += scores.size
        self.pictures += 1
        self.regions += regions
        if self._count >= self.limit:
            self._sort_in()

    def metrics(self) -> PixelMetrics:
        """Return the metrics of all maps added so far; NaN if one class is missing."""
        normal, defective, _ = self._downwards()
        binary = _binary(defective, normal)
        return PixelMetrics(binary.auroc, binary.ap, binary.f1_max, self.aupro(), self._error())

    def aupro(self, limit: float = AUPRO_LIMIT) -> float:
        """Return the area under mean region overlap against false-positive rate up to ``limit``, divided by it."""
        normal, _, overlap = self._downwards()
        if not self.regions or not normal.sum():
            return float("nan")
        rate = np.append(0.0, np.cumsum(normal) / normal.sum())
        covered = np.append(0.0, np.cumsum(overlap) / self.regions)
        inside = int(np.searchsorted(rate, limit, side="right"))
        at_limit = np.interp(limit, rate, covered)
        x, y = np.append(rate[:inside], limit), np.append(covered[:inside], at_limit)
        return float(np.trapezoid(y, x) / limit)

    def aupro_at_steps(self, steps: int = OFFICIAL_STEPS, limit: float = AUPRO_LIMIT) -> float:
        """Return AUPRO as the official AnoCLIP code computes it, for comparison with published figures.

        It takes equally spaced thresholds between the lowest and the highest score instead of all scores, keeps points
        below the limit, and stretches their false-positive rates to [0, 1]. NaN where fewer than two points remain.
        """
        self._sort_in()
        scores, (normal, _, overlap) = self._cells.low, self._cells.weights
        if not self.regions or not normal.sum() or not np.isfinite(scores).all() or scores[0] == scores[-1]:
            return float("nan")
        thresholds = np.arange(scores[0], scores[-1], (scores[-1] - scores[0]) / steps)
        first = np.searchsorted(scores, thresholds, side="right")  # of the scores above each threshold
        above = [np.append(np.cumsum(w[::-1])[::-1], 0.0)[first] for w in (normal, overlap)]
        rate, covered = above[0] / normal.sum(), above[1] / self.regions
        rate, covered = rate[rate < limit], covered[rate < limit]
        if len(rate) < 2 or rate.max() == rate.min():
            return float("nan")
        stretched = (rate - rate.min()) / (rate.max() - rate.min())
        return float(np.trapezoid(covered[::-1], stretched[::-1]))

    def _downwards(self) -> Array:
        """Return (3, K) weights of the cells from the highest score to the lowest."""
        self._sort_in()
        return self._cells.weights[:, ::-1]

    def _error(self) -> float:
        """Return half the area that the curves leave open: that of the rectangles of cells with nonzero width."""
        wide = self._cells.high > self._cells.low
        if not wide.any():
            return 0.0
        normal, defective, overlap = self._cells.weights
        areas = (
            normal
            / normal.sum()
            * np.stack([defective / max(defective.sum(), 1), overlap / max(self.regions, 1) / AUPRO_LIMIT])
        )
        return float(areas[:, wide].sum(1).max() / 2)

    def _sort_in(self) -> None:
        if not self._waiting:
            return
        normal, defective, share = (np.concatenate(parts) for parts in zip(*self._waiting, strict=True))
        self._waiting, self._count = [], 0
        cells = self._cells
        for fresh in (_normal_cells(normal), _defective_cells(defective, share)):
            cells = _merged(cells, fresh)
        self._cells = self._shrunk(cells)

    def _shrunk(self, cells: _Cells) -> _Cells:
        """Merge neighbors with the least weight, in each of the three weights, until at most ``limit`` cells remain."""
        if len(cells) <= self.limit:
            return cells
        totals = np.maximum(cells.weights.sum(1, keepdims=True), 1e-300)
        places = (np.cumsum(cells.weights, axis=1) / totals).sum(0)  # in (0, 3], rising
        groups = np.minimum(places * (self.limit / 2 / 3), self.limit / 2 - 1).astype(np.int64)
        first = _starts(groups)
        last = np.append(first[1:], len(cells)) - 1
        return _Cells(cells.low[first], cells.high[last], np.add.reduceat(cells.weights, first, axis=1))


def _normal_cells(scores: NDArray[np.floating]) -> _Cells:
    scores = np.sort(scores)
    first = _starts(scores)
    weights = np.zeros((3, len(first)))
    weights[0] = np.diff(first, append=len(scores))
    return _Cells(scores[first], scores[first], weights)


def _defective_cells(scores: NDArray[np.floating], share: Array) -> _Cells:
    order = np.argsort(scores)
    scores, share = scores[order], share[order]
    first = _starts(scores)
    weights = np.zeros((3, len(first)))
    if len(first):
        weights[1], weights[2] = np.diff(first, append=len(scores)), np.add.reduceat(share, first)
    return _Cells(scores[first], scores[first], weights)


def _merged(cells: _Cells, fresh: _Cells) -> _Cells:
    """Merge two sets of cells; the fresh cells have zero width."""
    if not len(cells) or not len(fresh):
        return cells if len(cells) else fresh
    # A score inside an existing cell joins it: the order within a cell is already unknown.
    cell = np.searchsorted(cells.low, fresh.low, side="right") - 1
    scores = np.where((cell >= 0) & (fresh.low <= cells.high[cell]), cells.low[cell], fresh.low)
    low = np.concatenate([cells.low, scores])
    order = np.argsort(low, kind="stable")  # a cell comes before the scores that join it
    low = low[order]
    first = _starts(low)
    high = np.concatenate([cells.high, scores])[order][first]
    weights = np.concatenate([cells.weights, fresh.weights], axis=1)[:, order]
    return _Cells(low[first], high, np.add.reduceat(weights, first, axis=1))


def _starts(ordered: NDArray[Any]) -> NDArray[np.intp]:
    """Return the positions where a new value begins."""
    return (
        np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1])) if len(ordered) else np.empty(0, np.intp)
    )


def _refuse_nan(scores: NDArray[np.floating], what: str) -> None:
    if np.isnan(scores).any():
        raise UsageError(f"{what}: {int(np.isnan(scores).sum())} of {scores.size} values are NaN")


def scikit_learn() -> Any:
    """Return scikit-learn's metrics module.

    Raises:
        UsageError: it is not installed.
    """
    try:
        from sklearn import metrics
    except ImportError as error:
        raise UsageError("benchmarks need scikit-learn: pip install 'clipspect[benchmark]'") from error
    return metrics


def _binary(defective: Array, normal: Array) -> BinaryMetrics:
    """Return metrics from the counts of defective and normal items per distinct score, highest score first."""
    library = scikit_learn()
    if not defective.sum() or not normal.sum():
        return BinaryMetrics(*[float("nan")] * 3)
    ranks = np.arange(
        len(normal), 0, -1
    )  # metrics depend on ranks only, and ranks are finite for infinite scores
    weights = np.concatenate([defective, normal])
    kept = weights > 0
    labels = np.repeat([True, False], len(normal))[kept]
    data = labels, np.tile(ranks, 2)[kept]
    precision, recall, _ = library.precision_recall_curve(*data, sample_weight=weights[kept])
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-300)
    return BinaryMetrics(
        float(library.roc_auc_score(*data, sample_weight=weights[kept])),
        float(library.average_precision_score(*data, sample_weight=weights[kept])),
        float(f1.max()),
    )
