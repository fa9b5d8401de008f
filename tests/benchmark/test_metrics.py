"""Streamed metrics: exact against scikit-learn, anomalib and brute force; bounded memory with a bound that holds."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from clipspect.benchmark.metrics import PixelCurve, image_metrics, pixel_metrics
from clipspect.errors import UsageError


def pictures(count: int, side: int = 24, seed: int = 0, levels: int | None = None):
    """Masks with up to three regions, and maps that see them faintly; ``levels`` makes ties."""
    random = np.random.default_rng(seed)
    masks, maps = [], []
    for number in range(count):
        mask = np.zeros((side, side), bool)
        for _ in range(number % 4):
            y, x = random.integers(0, side - 4, 2)
            mask[y : y + random.integers(1, 5), x : x + random.integers(1, 5)] = True
        scores = ndimage.gaussian_filter(random.standard_normal((side, side)), 1) + 0.5 * mask
        if levels:
            scores = np.round(scores * levels) / levels
        masks.append(mask)
        maps.append((0.5 + 0.01 * scores).astype(np.float32))
    return masks, maps


def brute_force_aupro(masks, maps, limit=0.3) -> float:
    """Every threshold by itself: the mean overlap of regions against the share of normal pixels above it."""
    flat, truth = np.concatenate([m.ravel() for m in maps]), np.concatenate([m.ravel() for m in masks])
    regions = []
    for mask, scores in zip(masks, maps, strict=True):
        numbers, count = ndimage.label(mask, np.ones((3, 3)))
        regions += [scores[numbers == n] for n in range(1, count + 1)]
    points = [(0.0, 0.0)]
    for threshold in np.unique(flat)[::-1]:
        rate = float((flat[~truth] >= threshold).mean())
        points.append((rate, float(np.mean([(r >= threshold).mean() for r in regions]))))
    x, y = np.array(points).T
    inside = x <= limit
    at = np.interp(limit, x, y)
    return float(np.trapezoid(np.append(y[inside], at), np.append(x[inside], limit)) / limit)


@pytest.mark.parametrize("levels", [None, 3])
def test_pixel_metrics_are_those_of_the_libraries_and_of_brute_force(levels):
    from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

    masks, maps = pictures(9, levels=levels)
    found = pixel_metrics(masks, maps)
    truth, scores = np.stack(masks).ravel(), np.stack(maps).ravel()
    precision, recall, _ = precision_recall_curve(truth, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    assert found.auroc == pytest.approx(roc_auc_score(truth, scores), abs=1e-9)
    assert found.ap == pytest.approx(average_precision_score(truth, scores), abs=1e-9)
    assert found.f1_max == pytest.approx(f1.max(), abs=1e-9)
    assert found.aupro == pytest.approx(brute_force_aupro(masks, maps), abs=1e-9)
    assert found.error == 0


def test_aupro_agrees_with_anomalib():
    torch = pytest.importorskip("torch")
    aupro = pytest.importorskip("anomalib.metrics.aupro", reason="anomalib is not installed")
    masks, maps = pictures(12, seed=3)
    theirs = aupro._AUPRO()
    theirs.update(torch.tensor(np.stack(maps)), torch.tensor(np.stack(masks)).int())
    assert pixel_metrics(masks, maps).aupro == pytest.approx(float(theirs.compute()), abs=1e-3)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([64, 256, 1024]), st.permutations(range(8)))
def test_the_stated_error_holds_whatever_the_order(seed, limit, order):
    masks, maps = pictures(8, seed=seed)
    exact = pixel_metrics(masks, maps)
    curve = PixelCurve(limit)
    for number in order:
        curve.add(masks[number], maps[number])
        assert len(curve._cells) <= limit
    found = curve.metrics()
    assert 0 < found.error < 40 / limit
    assert abs(found.auroc - exact.auroc) <= found.error + 1e-9
    assert abs(found.aupro - exact.aupro) <= found.error + 1e-9


def test_the_error_of_the_default_is_far_below_what_tables_show():
    masks, maps = pictures(30, side=200, seed=1)  # 1.2 million pixels, more than are kept
    exact = PixelCurve(1 << 24)
    kept = PixelCurve()
    for mask, scores in zip(masks, maps, strict=True):
        exact.add(mask, scores)
        kept.add(mask, scores)
    assert exact.metrics().error == 0
    assert kept.metrics().error < 1e-4
    assert kept.aupro() == pytest.approx(exact.aupro(), abs=1e-4)


def test_what_is_kept_does_not_grow_with_the_pictures():
    curve = PixelCurve(512)
    masks, maps = pictures(40, seed=2)
    sizes = []
    for mask, scores in zip(masks, maps, strict=True):
        curve.add(mask, scores)
        sizes.append(len(curve._cells) + sum(s.size + d.size for s, d, _ in curve._waiting))
    assert max(sizes) <= 512 + maps[0].size


def test_one_class_alone_is_undefined():
    _, maps = pictures(3)
    for mask in (np.zeros((24, 24), bool), np.ones((24, 24), bool)):
        found = pixel_metrics([mask] * 3, maps)
        assert all(math.isnan(v) for v in (found.auroc, found.ap, found.f1_max, found.aupro))
    assert math.isnan(image_metrics(np.array([True, True]), np.array([0.1, 0.2])).auroc)
    assert math.isnan(image_metrics(np.array([], bool), np.array([])).ap)
    assert math.isnan(PixelCurve().metrics().auroc)


def test_wrong_shapes_and_nan_are_named():
    curve = PixelCurve()
    with pytest.raises(UsageError, match=r"tile\.png: mask \(4, 5\)"):
        curve.add(np.zeros((4, 5), bool), np.zeros((4, 4)), "tile.png")
    with pytest.raises(UsageError, match=r"tile\.png: 1 of 16 values are NaN"):
        curve.add(np.zeros((4, 4), bool), np.pad([[np.nan]], (0, 3)), "tile.png")


def test_without_scikit_learn_a_benchmark_says_what_to_install_before_it_measures(tmp_path, monkeypatch):
    from clipspect.benchmark.runner import run_benchmark

    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(UsageError, match=r"clipspect\[benchmark\]"):
        run_benchmark("folder", [], [], tmp_path / "out")
    assert not (tmp_path / "out").exists()
