"""A Detection gives its map at the image's size, its regions, its flag and its picture."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipspect.detection import Detection
from clipspect.errors import ImageError, ResultsError, UsageError
from clipspect.types import Region, Thresholds

GREY = np.full((300, 400, 3), 128, np.uint8)


def detection(score_map: np.ndarray | None = None, **changes: object) -> Detection:
    """A 400 × 300 image with one hot square at columns 120…199, rows 60…119."""
    if score_map is None:
        score_map = np.full((240, 240), 0.1, np.float32)
        score_map[48:96, 72:120] = 0.9
    whole = Detection(
        path="a/b.png", content_hash="0" * 64, width=400, height=300, object="plate", method="m", model="tiny",
        weights="w", score=0.8, score_map=score_map, seconds=0.1,
        thresholds=Thresholds(0.6, 0.5, "given", "Chosen by hand."), pixels=lambda: GREY,
    )  # fmt: skip
    return replace(whole, **changes)


FAILED = replace(detection(), score=float("nan"), score_map=None, error="the file is empty")


def test_the_anomaly_map_has_the_size_of_the_image():
    found = detection()
    assert found.anomaly_map.shape == (300, 400)
    assert found.anomaly_map.dtype == np.float32
    assert found.anomaly_map[90, 160] == pytest.approx(0.9)
    assert found.anomaly_map[20, 20] == pytest.approx(0.1)


def test_the_anomaly_map_is_interpolated_between_pixel_centres():
    found = detection(np.array([[0.0, 1.0]], np.float32), width=4, height=1)
    np.testing.assert_allclose(found.anomaly_map, [[0, 0.25, 0.75, 1]], atol=1e-6)


def test_a_map_of_the_images_own_size_is_not_changed():
    score_map = np.random.default_rng(0).random((30, 40), np.float32)
    np.testing.assert_array_equal(detection(score_map, width=40, height=30).anomaly_map, score_map)


@pytest.mark.parametrize(
    ("shape", "compact"),
    [((240, 240), (128, 128)), ((240, 120), (128, 64)), ((60, 15), (60, 15)), ((1024, 512), (128, 64)),
     ((1028, 514), (128, 64)), ((2048, 1000), (256, 125)), ((9000, 1), (512, 1))],
)  # fmt: skip
def test_the_compact_map_is_bounded_and_keeps_the_proportions_and_the_mean(shape, compact):
    score_map = np.random.default_rng(1).random(shape, np.float32)
    found = detection(score_map)
    assert found.compact_map.shape == compact
    assert found.compact_map.dtype == np.float16
    assert found.compact_map.mean(dtype=np.float64) == pytest.approx(
        score_map.mean(dtype=np.float64), abs=2e-4
    )


def test_compact_cells_are_the_means_of_what_they_cover():
    score_map = np.arange(256, dtype=np.float32)[None].repeat(256, axis=0) / 256
    expected = score_map.reshape(128, 2, 128, 2).mean(axis=(1, 3))
    np.testing.assert_allclose(detection(score_map).compact_map, expected, atol=5e-4)


def test_a_hot_square_is_one_region_in_photo_pixels():
    (region,) = detection().regions
    assert abs(region.left - 120) <= 4
    assert abs(region.top - 60) <= 3
    assert abs(region.width - 80) <= 7
    assert abs(region.height - 60) <= 5
    assert region.area == pytest.approx(80 * 60, rel=0.1)
    assert region.peak == pytest.approx(0.9, abs=1e-3)
    assert region.left <= region.peak_x < region.left + region.width
    assert region.top <= region.peak_y < region.top + region.height


def test_regions_touching_at_a_corner_are_one_and_the_highest_peak_comes_first():
    score_map = np.zeros((20, 40), np.float32)
    score_map[2:4, 2:4] = 0.6
    score_map[4:6, 4:6] = 0.7
    score_map[10:14, 20:30] = 0.9
    found = detection(score_map, width=40, height=20)
    assert found.regions[0] == Region(20, 10, 10, 4, 40, pytest.approx(0.9, abs=1e-3), 20, 10)
    assert found.regions[1] == Region(2, 2, 4, 4, 8, pytest.approx(0.7, abs=1e-3), 4, 4)
    assert len(found.regions) == 2


def test_specks_are_no_regions_but_every_cell_of_a_small_map_counts():
    large, small = np.zeros((128, 128), np.float32), np.zeros((15, 15), np.float32)
    large[5, 5:8] = small[5, 5] = 0.9
    large[50, 50:54] = 0.9
    assert [region.top for region in detection(large, width=128, height=128).regions] == [50]
    assert len(detection(small).regions) == 1


def test_regions_never_leave_the_image():
    hot = detection(np.ones((240, 240), np.float32), width=3, height=1)
    assert hot.regions == [Region(0, 0, 3, 1, 3, 1.0, 0, 0)]


def test_an_image_is_flagged_from_the_threshold_on():
    assert detection(score=0.6).flag is True
    assert detection(score=0.599).flag is False
    assert detection(score=0.599).pred_label is False
    assert detection().pred_score == 0.8


def test_the_mask_is_the_map_at_the_pixel_threshold():
    found = detection()
    assert found.pred_mask.dtype == np.bool_
    assert found.pred_mask.sum() == pytest.approx(80 * 60, rel=0.03)


def test_without_thresholds_a_guess_is_made_from_the_image_and_says_so():
    noisy = np.random.default_rng(0).normal(0.1, 0.01, (240, 240)).astype(np.float32)
    noisy[48:96, 72:120] = 0.9
    found = detection(noisy, thresholds=None)
    assert found.thresholds_used.source == "guess"
    assert 0.11 < found.thresholds_used.pixel < 0.4
    assert found.thresholds_used.note.startswith("A guess")
    assert len(found.regions) == 1
    assert found.flag is True  # 0.8 is above the neutral score


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


def test_opacity_and_a_shared_colour_scale_change_the_heat():
    found = detection()
    faint, strong = (np.asarray(found.overlay(opacity)).astype(int)[90, 160] for opacity in (0.1, 0.9))
    assert abs(faint - 128).sum() < abs(strong - 128).sum()
    cool = np.asarray(found.overlay(scale=(0.8, 20.0)))[90, 160]
    assert cool.tolist() == [128, 128, 128]


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


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.999])
def test_the_most_suspicious_places_show_whatever_the_threshold(threshold):
    score_map = np.full((240, 240), 0.1, np.float32)
    score_map[48:96, 72:120] = 0.3
    hot = detection(score_map, thresholds=Thresholds(0.5, threshold, "given", ""))
    pixels = np.asarray(hot.overlay()).astype(int)
    assert np.abs(pixels[90, 160] - 128).max() > 20
    assert pixels[280, 380].tolist() == [128, 128, 128]


def test_colours_of_a_map_without_any_difference_are_clear():
    even = detection(np.full((240, 240), 0.2, np.float32))
    assert (np.asarray(even.overlay()) == 128).all()


def test_results_and_images_load_neither_torch_nor_anything_heavy_before_it_is_used():
    modules = (
        "detection, images.decode, images.find, images.tiling, images.prefetch, results.run, results.store"
    )
    script = (
        f"import sys, {', '.join('clipspect.' + name for name in modules.split(', '))}; print(*sys.modules)"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"torch", "open_clip", "pyarrow", "scipy", "matplotlib"} & set(loaded)


def test_a_good_image_has_no_mask_above_a_threshold_calibrated_on_its_compact_map():
    score_map = np.random.default_rng(4).random((512, 512), np.float32)
    found = detection(score_map, width=700, height=600)
    highest = float(found.compact_map.max())
    just_above = replace(found, thresholds=given_thresholds(0.5, float(np.nextafter(highest, 1))))
    assert found.anomaly_map.max() > highest
    assert not just_above.pred_mask.any()
    assert just_above.regions == []
    hot = np.zeros((512, 512), np.float32)
    hot[100:200, 100:200] = 1
    found = detection(hot, width=512, height=512)
    marked = replace(found, thresholds=given_thresholds(0.5, 0.5))
    assert abs(int(marked.pred_mask.sum()) - marked.regions[0].area) <= 0.05 * 100 * 100


def test_an_image_threshold_alone_leaves_the_pixel_threshold_to_the_maps():
    score_map = 0.1 + np.random.default_rng(4).random((64, 64), np.float32) / 100
    score_map[20:30, 20:30] = 0.4
    found = replace(detection(score_map), thresholds=given_thresholds(0.9))
    assert found.thresholds_used.image == 0.9
    assert 0.11 < found.thresholds_used.pixel < 0.4
    assert len(found.regions) == 1


@pytest.mark.parametrize("side", [1000, 1024, 1028, 1100])
def test_maps_of_about_1024_find_the_same_regions(side):
    noise = np.random.default_rng(3).random((side, side)).astype(np.float32) / 3
    noise[::9, ::9] = 1  # single values, which the means of cells must not show
    found = replace(detection(noise), thresholds=given_thresholds(0.5, 0.5))
    assert found.compact_map.shape[0] in (125, 128, 138)
    assert found.regions == []
