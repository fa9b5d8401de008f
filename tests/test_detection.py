"""A Detection gives its map at the image's size, its regions, its flag and its picture."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipspect.detection import Detection, move_threshold
from clipspect.errors import ImageError, ResultsError, UsageError
from clipspect.postprocess.calibration import Calibration
from clipspect.types import Region

ODDS = Calibration("conformal", 0.0, -4.0, (0.0,), (1.0,), images=40, false_alarm_rate=0.05)
"""A calibration that flags map values from 0.5 on: U is their log-odds."""
GREY = np.full((300, 400, 3), 128, np.uint8)


def detection(score_map: np.ndarray | None = None, **changes: object) -> Detection:
    """A 400 × 300 image with one hot square at columns 120…199, rows 60…119."""
    if score_map is None:
        score_map = np.full((240, 240), 0.1, np.float32)
        score_map[48:96, 72:120] = 0.9
    whole = Detection(
        path="a/b.png", content_hash="0" * 64, width=400, height=300, object="plate", method="m", model="tiny",
        weights="w", raw_score=0.8, score_map=score_map, seconds=0.1, calibration=ODDS, pixels=lambda: GREY,
    )  # fmt: skip
    return replace(whole, **changes)


FAILED = replace(detection(), raw_score=float("nan"), score_map=None, error="the file is empty")


def scored(value: float) -> float:
    """The calibrated score of a map value."""
    return float(ODDS.probability(np.log(value / (1 - value))))


def test_the_anomaly_map_has_the_size_of_the_image():
    found = detection()
    assert found.anomaly_map.shape == (300, 400)
    assert found.anomaly_map.dtype == np.float32
    assert found.anomaly_map[90, 160] == pytest.approx(scored(0.9), abs=1e-3)
    assert found.anomaly_map[20, 20] == pytest.approx(scored(0.1), abs=1e-3)


def test_the_anomaly_map_is_interpolated_between_pixel_centers():
    found = detection(np.array([[0.3, 0.6]], np.float32), width=4, height=1)
    low, high = scored(0.3), scored(0.6)
    expected = [[low, 0.75 * low + 0.25 * high, 0.25 * low + 0.75 * high, high]]
    np.testing.assert_allclose(found.anomaly_map, expected, atol=1e-3)


@pytest.mark.parametrize(
    ("shape", "compact"),
    [((240, 240), (128, 128)), ((240, 120), (128, 64)), ((60, 15), (60, 15)), ((9000, 1), (128, 1))],
)
def test_layers_of_a_map_are_bounded_and_keep_the_proportions_and_the_mean(shape, compact):
    score_map = 0.2 + np.random.default_rng(1).random(shape, np.float32) / 2
    layers = detection(score_map).compact_layers
    assert layers.shape == (1, *compact)
    assert layers.dtype == np.float16
    means = 1 / (1 + np.exp(-layers[0].astype(np.float64)))
    assert means.mean() == pytest.approx(score_map.mean(dtype=np.float64), abs=2e-3)


def test_a_hot_square_is_one_region_in_photo_pixels():
    (region,) = detection().regions
    assert abs(region.left - 120) <= 4
    assert abs(region.top - 60) <= 3
    assert abs(region.width - 80) <= 7
    assert abs(region.height - 60) <= 5
    assert region.area == pytest.approx(80 * 60, rel=0.1)
    assert region.peak == pytest.approx(scored(0.9), abs=1e-3)
    assert region.left <= region.peak_x < region.left + region.width
    assert region.top <= region.peak_y < region.top + region.height


def test_regions_touching_at_a_corner_are_one_and_the_highest_peak_comes_first():
    score_map = np.zeros((20, 40), np.float32)
    score_map[2:4, 2:4] = 0.6
    score_map[4:6, 4:6] = 0.7
    score_map[10:14, 20:30] = 0.9
    found = detection(score_map, width=40, height=20)
    assert found.regions[0] == Region(20, 10, 10, 4, 40, pytest.approx(scored(0.9), abs=1e-3), 20, 10)
    assert found.regions[1] == Region(2, 2, 4, 4, 8, pytest.approx(scored(0.7), abs=1e-3), 4, 4)
    assert len(found.regions) == 2


def test_specks_are_no_regions_but_every_cell_of_a_small_map_counts():
    large, small = np.zeros((128, 128), np.float32), np.zeros((15, 15), np.float32)
    large[5, 5:8] = small[5, 5] = 0.9
    large[50, 50:54] = 0.95
    assert [region.top for region in detection(large, width=128, height=128).regions] == [50]
    assert len(detection(small).regions) == 1


def test_regions_never_leave_the_image():
    hot = detection(np.ones((240, 240), np.float32), width=3, height=1)
    assert hot.regions == [Region(0, 0, 3, 1, 3, pytest.approx(1, abs=0.02), 0, 0)]


def test_an_image_is_flagged_from_the_threshold_on():
    found = detection()
    assert (found.flag, found.pred_label, found.verdict) == (True, True, "flagged")
    assert found.score == found.pred_score == pytest.approx(scored(0.9), abs=1e-3)
    clean = detection(np.full((240, 240), 0.4, np.float32))
    assert (clean.flag, clean.verdict, clean.regions, clean.threshold) == (False, "clean", [], 0.5)
    assert move_threshold(clean, clean.score).verdict == "flagged"
    assert move_threshold(found, found.score + 0.01).verdict == "clean"
    with pytest.raises(UsageError, match="between 0 and 1"):
        move_threshold(found, 1)


def test_the_mask_covers_the_regions():
    found = detection()
    assert found.pred_mask.dtype == np.bool_
    assert found.pred_mask.sum() == pytest.approx(80 * 60, rel=0.05)
    assert not detection(np.full((240, 240), 0.4, np.float32)).pred_mask.any()


def test_one_image_without_a_calibration_is_undecided_and_its_hottest_place_shows():
    found = detection(calibration=None)
    assert (found.verdict, found.flag, found.regions, found.threshold) == ("undecided", False, [], None)
    assert found.score == pytest.approx(0.5, abs=1e-3)
    pixels = np.asarray(found.overlay()).astype(int)
    assert np.abs(pixels[90, 160] - 128).max() > 20


def test_a_failed_image_has_no_flag_no_regions_and_tells_why_it_has_no_map():
    assert FAILED.flag is None
    assert FAILED.regions == []
    for ask in (lambda: FAILED.anomaly_map, lambda: FAILED.pred_mask, FAILED.overlay):
        with pytest.raises(ImageError, match=r"a/b.png: the file is empty"):
            ask()


def test_the_overlay_is_warm_on_the_defect_and_the_image_elsewhere():
    picture = detection().overlay()
    assert picture.size == (400, 300)
    assert picture.mode == "RGB"
    pixels = np.asarray(picture).astype(int)
    assert pixels[280, 380].tolist() == [128, 128, 128]
    red, _, blue = pixels[90, 160]
    assert red > blue + 30
    assert (pixels[60:120, 118:124] == 255).all(axis=2).any()  # the box


def test_opacity_changes_the_heat_and_scores_below_a_quarter_are_clear():
    found = detection()
    faint, strong = (np.asarray(found.overlay(opacity)).astype(int)[90, 160] for opacity in (0.1, 0.9))
    assert abs(faint - 128).sum() < abs(strong - 128).sum()
    even = detection(np.full((240, 240), 0.1, np.float32))
    assert scored(0.1) < 0.25
    assert (np.asarray(even.overlay()) == 128).all()


def test_a_large_image_keeps_its_size_in_the_overlay():
    large = detection(width=2600, height=1500, pixels=lambda: np.full((1500, 2600, 3), 90, np.uint8))
    assert large.overlay().size == (2600, 1500)


def test_saving_writes_the_overlay_and_says_what_went_wrong(tmp_path: Path):
    detection().save(tmp_path / "o.png")
    np.testing.assert_array_equal(Image.open(tmp_path / "o.png"), detection().overlay())
    with pytest.raises(UsageError, match=r"\.png or \.jpg"):
        detection().save(tmp_path / "o.nonsense")
    with pytest.raises(ResultsError, match="cannot be written"):
        detection().save(tmp_path / "missing" / "o.png")


def test_an_overlay_needs_the_image():
    with pytest.raises(UsageError, match="not at hand"):
        detection(pixels=None).overlay()


def test_results_and_images_load_neither_torch_nor_anything_heavy_before_it_is_used():
    modules = "detection, data.decode, data.find, data.tiling, data.prefetch, results.run, results.store"
    script = (
        f"import sys, {', '.join('clipspect.' + name for name in modules.split(', '))}; print(*sys.modules)"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"torch", "open_clip", "pyarrow", "scipy", "matplotlib"} & set(loaded)
