"""Image and pixel metrics, exact: every distinct score is a threshold, nothing is binned.

The arithmetic is scikit-learn's (AUROC, average precision, F1-max), and AUPRO is the exact integral of the
per-region-overlap curve (Bergmann et al., MVTec AD). One sort serves all of them. A metric that is not
defined, because one class is missing, is NaN: never 0 or 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from clipspect.errors import UsageError

AUPRO_LIMIT = 0.3
"""False-positive rate up to which AUPRO integrates, as the field reports it."""
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
    """The same over pixels, and the mean overlap of regions."""

    aupro: float
    """Area under the per-region-overlap curve to a false-positive rate of 0.3, divided by 0.3."""


def image_metrics(labels: NDArray[np.bool_], scores: NDArray[np.floating]) -> BinaryMetrics:
    """Metrics of N image scores.

    Args:
        labels: (N,) true where the image is defective.
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
    return _binary(*_counts(labels, scores))


def pixel_metrics(masks: Sequence[NDArray[np.bool_]], maps: Sequence[NDArray[np.floating]]) -> PixelMetrics:
    """Metrics of N anomaly maps against their masks; pictures may differ in size.

    Args:
        masks: N arrays (H, W), true on defects.
        maps: N arrays (H, W) of the same sizes, higher is more anomalous.

    Raises:
        UsageError: shapes differ, or a map holds NaN.
    """
    if len(masks) != len(maps):
        raise UsageError(f"{len(masks)} masks for {len(maps)} anomaly maps")
    for number, (mask, scores) in enumerate(zip(masks, maps, strict=True)):
        if np.shape(mask) != np.shape(scores) or np.ndim(mask) != 2:
            raise UsageError(
                f"picture {number}: mask {np.shape(mask)} against anomaly map {np.shape(scores)}"
            )
        _refuse_nan(np.asarray(scores), f"anomaly map {number}")
    if not len(masks):
        return PixelMetrics(*[float("nan")] * 4)
    flat_maps = np.concatenate([np.ravel(scores) for scores in maps])
    weights, regions = _region_weights(masks)
    order = np.argsort(-flat_maps, kind="stable")
    scores, weight = flat_maps[order], weights[order]
    binary = _binary(*_curve_counts(weight > 0, scores))
    return PixelMetrics(binary.auroc, binary.ap, binary.f1_max, _aupro(scores, weight, regions, AUPRO_LIMIT))


def aupro(
    masks: Sequence[NDArray[np.bool_]], maps: Sequence[NDArray[np.floating]], limit: float = AUPRO_LIMIT
) -> float:
    """AUPRO alone, to any false-positive rate in (0, 1]; see :func:`pixel_metrics`."""
    for number, scores in enumerate(maps):
        _refuse_nan(np.asarray(scores), f"anomaly map {number}")
    flat_maps = np.concatenate([np.ravel(scores) for scores in maps])
    weights, regions = _region_weights(masks)
    order = np.argsort(-flat_maps, kind="stable")
    return _aupro(flat_maps[order], weights[order], regions, limit)


def _refuse_nan(scores: NDArray[np.floating], what: str) -> None:
    if np.isnan(scores).any():
        raise UsageError(f"{what}: {int(np.isnan(scores).sum())} of {scores.size} values are NaN")


def _counts(labels: NDArray[np.bool_], scores: NDArray[np.floating]) -> tuple[Array, Array]:
    order = np.argsort(-scores, kind="stable")
    return _curve_counts(labels[order], scores[order])


def _curve_counts(labels: NDArray[np.bool_], scores: NDArray[np.floating]) -> tuple[Array, Array]:
    """True and false positives at every distinct threshold of scores sorted downwards."""
    ends = _last_of_ties(scores)
    true = np.cumsum(labels, dtype=np.int64)[ends].astype(np.float64)
    return true, ends + 1 - true


def _last_of_ties(scores: NDArray[np.floating]) -> NDArray[np.intp]:
    return np.flatnonzero(np.append(scores[1:] != scores[:-1], True)) if len(scores) else np.empty(0, np.intp)


def _binary(true: Array, false: Array) -> BinaryMetrics:
    if not len(true) or true[-1] == 0 or false[-1] == 0:
        return BinaryMetrics(*[float("nan")] * 3)
    recall, fall_out = true / true[-1], false / false[-1]
    precision = true / (true + false)
    auroc = np.trapezoid(np.append(0.0, recall), np.append(0.0, fall_out))
    ap = np.sum(np.diff(recall, prepend=0.0) * precision)
    f1 = 2 * true / (true + false + true[-1])
    return BinaryMetrics(float(auroc), float(ap), float(f1.max()))


def _region_weights(masks: Sequence[NDArray[np.bool_]]) -> tuple[Array, int]:
    """For every pixel 1 / area of its 8-connected region, 0 where normal; and the number of regions."""
    parts, regions = [], 0
    for mask in masks:
        numbers, count = ndimage.label(np.asarray(mask, dtype=bool), structure=_EIGHT_CONNECTED)
        area = np.bincount(numbers.ravel(), minlength=count + 1).astype(np.float64)
        share = 1 / np.maximum(area, 1)
        share[0] = 0.0
        parts.append(share[numbers].ravel())
        regions += count
    return np.concatenate(parts), regions


def _aupro(scores: NDArray[np.floating], weights: Array, regions: int, limit: float) -> float:
    """Area under mean region overlap against false-positive rate; scores sorted downwards."""
    normal = weights == 0
    total = int(normal.sum())
    if not regions or not total:
        return float("nan")
    ends = _last_of_ties(scores)
    fall_out = np.append(0.0, np.cumsum(normal, dtype=np.int64)[ends] / total)
    overlap = np.append(0.0, np.cumsum(weights)[ends] / regions)
    inside = int(np.searchsorted(fall_out, limit, side="right"))
    at_limit = np.interp(limit, fall_out, overlap)
    x, y = np.append(fall_out[:inside], limit), np.append(overlap[:inside], at_limit)
    return float(np.trapezoid(y, x) / limit)
