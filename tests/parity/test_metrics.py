"""Metrics against numbers recorded from scikit-learn, the official code and a brute-force AUPRO."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipspect.benchmark.metrics import PixelCurve, aupro, image_metrics, pixel_metrics
from clipspect.errors import UsageError

FIXTURES = Path(__file__).parents[1] / "fixtures" / "parity"
FOLDER = Path(os.environ.get("CLIPSPECT_PARITY", FIXTURES))
DEFINED = [
    "main",
    "ties",
    "constant",
    "perfect_binary_map",
    "perfect_with_jitter",
    "one_outlier_pixel",
    "inverted",
]


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    return json.loads((FOLDER / "metrics.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    return dict(np.load(FOLDER / "metrics.npz"))


def case_inputs(case: str, a: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Masks, maps, labels and scores of a case, as the fixtures' README defines it."""
    masks, maps = a["masks"].astype(bool), a["anomaly_maps"].copy()
    labels, scores = a["image_labels"].astype(bool), a["image_scores"].copy()
    match case:
        case "ties":
            maps, scores = a["ties_maps"], a["ties_scores"]
        case "all_normal":
            masks, labels = np.zeros_like(masks), np.zeros_like(labels)
        case "all_anomalous_pixels":
            masks, labels = np.ones_like(masks), np.ones_like(labels)
        case "constant":
            maps, scores = np.full_like(maps, 0.5), np.full_like(scores, 0.5)
        case "nan":
            maps[3, 10, 10], scores[3] = np.nan, np.nan
        case "inf_pixel":
            maps[3, 10, 10] = np.inf
        case "perfect_binary_map":
            maps, scores = masks.astype(np.float32), labels.astype(np.float32)
        case "perfect_with_jitter":
            maps = a["perfect_with_jitter_maps"]
        case "one_outlier_pixel":
            maps[2, 5, 5] = 50
        case "inverted":
            maps, scores = 1 - maps, 1 - scores
    return masks, maps, labels, scores


def recorded(expected: dict[str, Any], case: str, name: str) -> float | None:
    """The recorded value, or None where the reference raised or had nothing to say."""
    value = expected[case].get(name, {}).get("value")
    return None if value is None else float(value)


@pytest.mark.parametrize("case", DEFINED)
def test_pixel_metrics_equal_the_recorded_ones(case, expected, arrays):
    masks, maps, _, _ = case_inputs(case, arrays)
    found = pixel_metrics(list(masks), list(maps))
    names = {"auroc": "pixel_auroc_sklearn", "ap": "pixel_ap_sklearn", "aupro": "aupro_exact"}
    names["f1_max"] = "pixel_f1max_official"
    for field, name in names.items():
        assert getattr(found, field) == pytest.approx(recorded(expected, case, name), abs=1e-9), name


def test_an_infinite_pixel_counts_as_the_highest(expected, arrays):
    """scikit-learn refuses it; anomalib ranks it, in float32."""
    masks, maps, _, _ = case_inputs("inf_pixel", arrays)
    found = pixel_metrics(list(masks), list(maps))
    highest = np.where(np.isinf(maps), 1e6, maps)
    assert found == pixel_metrics(list(masks), list(highest))
    names = {"auroc": "pixel_auroc_anomalib", "f1_max": "pixel_f1max_anomalib", "aupro": "aupro_anomalib"}
    for field, name in names.items():
        assert getattr(found, field) == pytest.approx(recorded(expected, "inf_pixel", name), abs=1e-6), name


@pytest.mark.parametrize("case", [*DEFINED, "inf_pixel"])
def test_image_metrics_equal_the_recorded_ones(case, expected, arrays):
    _, _, labels, scores = case_inputs(case, arrays)
    found = image_metrics(labels, scores)
    names = {"auroc": "image_auroc_sklearn", "ap": "image_ap_sklearn", "f1_max": "image_f1max_official"}
    for field, name in names.items():
        assert getattr(found, field) == pytest.approx(recorded(expected, case, name), abs=1e-9), name


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("case", ["main", "ties", "perfect_with_jitter", "one_outlier_pixel", "inverted"])
def test_aupro_with_the_official_thresholds(case, dtype, expected, arrays):
    masks, maps, _, _ = case_inputs(case, arrays)
    curve = PixelCurve()
    for mask, scores in zip(masks, maps.astype(dtype), strict=True):
        curve.add(mask.astype(bool), scores)
    name = "aupro_official" if dtype == np.float32 else "aupro_official_float64_maps"
    assert curve.aupro_at_steps() == pytest.approx(recorded(expected, case, name), abs=1e-6)


@pytest.mark.parametrize(
    "case", ["all_normal", "all_anomalous_pixels", "constant", "inf_pixel", "perfect_binary_map"]
)
def test_aupro_with_the_official_thresholds_is_undefined_where_the_official_code_fails(case, arrays):
    masks, maps, _, _ = case_inputs(case, arrays)
    curve = PixelCurve()
    for mask, scores in zip(masks, maps, strict=True):
        curve.add(mask.astype(bool), scores)
    assert math.isnan(curve.aupro_at_steps())


@pytest.mark.parametrize("limit", [0.05, 1.0])
@pytest.mark.parametrize("case", ["main", "ties"])
def test_aupro_at_other_limits(case, limit, expected, arrays):
    masks, maps, _, _ = case_inputs(case, arrays)
    value = recorded(expected, case, f"aupro_exact_limit_{limit}")
    assert aupro(list(masks), list(maps), limit) == pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize("case", ["all_normal", "all_anomalous_pixels"])
def test_one_class_is_undefined_and_says_so(case, arrays):
    masks, maps, labels, scores = case_inputs(case, arrays)
    pixel, image = pixel_metrics(list(masks), list(maps)), image_metrics(labels, scores)
    assert all(math.isnan(v) for v in (pixel.auroc, pixel.ap, pixel.f1_max, pixel.aupro))
    assert all(math.isnan(v) for v in (image.auroc, image.ap, image.f1_max))


def test_nan_scores_are_refused_by_name(arrays):
    masks, maps, labels, scores = case_inputs("nan", arrays)
    with pytest.raises(UsageError, match="anomaly map 3: 1 of"):
        pixel_metrics(list(masks), list(maps))
    with pytest.raises(UsageError, match="image scores: 1 of"):
        image_metrics(labels, scores)


def test_pictures_of_different_sizes_count_together(arrays):
    masks, maps, _, _ = case_inputs("main", arrays)
    whole = pixel_metrics(list(masks), list(maps))
    # A border of certain normality changes the rates and keeps the regions.
    padded = [np.pad(m, 3) for m in masks[:6]] + list(masks[6:])
    padded_maps = [np.pad(m, 3, constant_values=m.min() - 1) for m in maps[:6]] + list(maps[6:])
    assert pixel_metrics(padded, padded_maps).auroc > whole.auroc
