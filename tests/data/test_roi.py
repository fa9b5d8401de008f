"""Regions of interest: outside them the map is empty and nothing is flagged."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import tifffile
from PIL import Image

from clipspect.benchmark.metrics import PixelCurve
from clipspect.data.roi import RegionOfInterest, load_roi, parse_border
from clipspect.detection import Detection, only_inside
from clipspect.errors import ImageError, UsageError
from clipspect.postprocess.calibration import calibrate_good
from clipspect.postprocess.maps import cells_inside


def png(pixels: np.ndarray, format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format)
    return buffer.getvalue()


def left_half(height: int = 40, width: int = 60) -> np.ndarray:
    mask = np.zeros((height, width), np.uint8)
    mask[:, : width // 2] = 255
    return mask


def scored(layers: np.ndarray, height: int = 40, width: int = 60) -> Detection:
    odds = layers.astype(np.float32)
    probability = 1 / (1 + np.exp(-odds[0]))
    return Detection(
        "part.png", "0" * 64, width, height, "part", "anoclip", "tiny", "w", float(probability.max()),
        probability, 0.1, layers=odds.astype(np.float16), class_logit=3.0,
    )  # fmt: skip


def test_a_cell_is_inside_if_all_of_its_pixels_are():
    inside = np.ones((10, 10), bool)
    inside[4, 7] = False
    cells = cells_inside(inside, 5, 5)
    assert cells.sum() == 24
    assert not cells[2, 3]
    assert cells_inside(inside, 20, 20).sum() == 400 - 4  # cells smaller than a pixel
    assert not cells_inside(inside, 3, 3)[1, 2]  # pixel 4 lies in the middle third


def test_masks_of_several_kinds_are_read_alike():
    mask = left_half()
    expected = RegionOfInterest(png(mask)).of_image("a", 40, 60)
    assert expected.sum() == 40 * 30
    rgba = np.zeros((40, 60, 4), np.uint8)
    rgba[..., 3] = mask
    opaque = np.dstack([mask, mask, mask, np.full_like(mask, 255)])
    for data in (
        png(mask // 255),
        png(rgba),
        png(opaque),
        png(mask.astype(np.uint16) * 257),
        png(mask, "BMP"),
    ):
        assert np.array_equal(RegionOfInterest(data).of_image("a", 40, 60), expected)


@pytest.mark.parametrize(
    ("values", "options"),
    [
        (65535 - left_half().astype(np.uint16) * 257, {"photometric": "miniswhite"}),
        (1 - left_half().astype(np.float32) / 255, {"photometric": "miniswhite"}),
        (left_half() > 0, {"photometric": "minisblack", "bigtiff": True, "byteorder": ">"}),
        (left_half().astype(np.float64), {}),
        (np.stack([left_half()] * 3) * np.uint16(257), {"photometric": "rgb", "planarconfig": "separate"}),
        (np.rot90(left_half()), {"extratags": [(274, "H", 1, 6, True)]}),
    ],
    ids=["white is zero", "float white is zero", "BigTIFF", "float64", "planar", "turned"],
)
def test_tiff_masks_of_every_layout_are_read(values, options):
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, **options)
    inside = RegionOfInterest(buffer.getvalue()).of_image("a", 40, 60)
    np.testing.assert_array_equal(inside, left_half() > 0)


def test_a_mask_is_scaled_to_images_of_its_shape_and_no_others():
    roi = RegionOfInterest(png(left_half()))
    assert roi.of_image("a", 80, 120)[:, :60].all()
    assert not roi.of_image("a", 80, 120)[:, 60:].any()
    with pytest.raises(ImageError, match="60×40 pixels and the image 50×50"):
        roi.of_image("a", 50, 50)


def test_masks_that_cannot_be_used_are_refused(tmp_path):
    rgba = np.random.default_rng(0).integers(0, 255, (8, 8, 4)).astype(np.uint8)
    for data, reason in ((png(np.zeros((4, 4), np.uint8)), "all black"), (b"text", "not an image"),
                         (png(rgba), "transparency and colors")):  # fmt: skip
        path = tmp_path / "mask.png"
        path.write_bytes(data)
        with pytest.raises(UsageError, match=reason):
            load_roi(path)
    with pytest.raises(UsageError, match="No such file"):
        load_roi(tmp_path / "absent.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no images in it"):
        load_roi(tmp_path / "empty")


@pytest.mark.parametrize("text", ["-1", "50%", "x", "2.5", "", "nan"])
def test_impossible_borders_are_refused(text):
    with pytest.raises(UsageError, match="border"):
        parse_border(text)


def test_a_border_is_left_out_in_pixels_and_in_percent():
    assert RegionOfInterest(border="5").of_image("a", 40, 60).sum() == 30 * 50
    assert RegionOfInterest(border="10%").of_image("a", 40, 60).sum() == 32 * 48
    with pytest.raises(ImageError, match="leaves nothing"):
        RegionOfInterest(border="20").of_image("a", 40, 60)


def test_polygons_select_and_exclude(tmp_path):
    path = tmp_path / "roi.toml"
    path.write_text(
        "inspect = [[[0, 0], [1, 0], [1, 0.5], [0, 0.5]]]\nignore = [[[0, 0], [0.5, 0], [0.5, 1], [0, 1]]]"
    )
    roi = load_roi(path)
    assert roi is not None
    cells = roi.of_image("a", 40, 60)
    assert cells[:19, 31:].all()
    assert not cells[21:].any()
    assert not cells[:, :29].any()
    for wrong in ("inspect = [[[0, 0], [2, 0], [1, 1]]]", "inspect = [[[0, 0], [1, 1]]]", "look = []", "inspect = 3",
                  "inspect = []", "inspect ="):  # fmt: skip
        path.write_text(wrong)
        with pytest.raises(UsageError):
            load_roi(path)


def test_a_folder_gives_each_image_its_mask(tmp_path):
    for name, mask in (("a/1.png", left_half()), ("b/1.png", 255 - left_half())):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(png(mask))
    roi = load_roi(tmp_path)
    assert roi is not None
    assert roi.of_image("a/1.jpg", 40, 60)[:, 0].all()
    assert not roi.of_image("b/1.jpg", 40, 60)[:, 0].any()
    with pytest.raises(ImageError, match="2 masks are named '1'"):
        roi.of_image("c/1.jpg", 40, 60)
    with pytest.raises(ImageError, match="no mask is named '2'"):
        roi.of_image("a/2.jpg", 40, 60)


def test_the_digest_tells_regions_apart(tmp_path):
    (tmp_path / "a.png").write_bytes(png(left_half()))
    regions = [RegionOfInterest(png(left_half())), RegionOfInterest(border="1"), RegionOfInterest(border="1%"),
               RegionOfInterest(folder=tmp_path)]  # fmt: skip
    assert len({roi.digest for roi in regions}) == 4
    before = regions[-1].digest
    (tmp_path / "a.png").write_bytes(png(255 - left_half()))
    assert RegionOfInterest(folder=tmp_path).digest != before


def test_outside_the_map_is_empty_and_cannot_flag():
    rng = np.random.default_rng(3)
    good = [scored(rng.normal(-4, 0.3, (2, 36, 36))) for _ in range(10)]
    layers = rng.normal(-4, 0.3, (2, 36, 36))
    layers[:, 10:14, 25:29] = 6  # a defect on the right
    mask = left_half() > 0
    whole, left, right = scored(layers), only_inside(scored(layers), mask), only_inside(scored(layers), ~mask)
    calibration = calibrate_good([only_inside(d, mask).summary for d in good])
    judged = {
        name: Detection(**{**one.__dict__, "calibration": calibration})
        for name, one in (("left", left), ("right", right))
    }
    assert whole.inside is None
    assert left.class_logit is None
    assert judged["left"].flag is False
    assert judged["left"].regions == []
    assert judged["right"].flag is True
    assert judged["right"].regions[0].left >= 30
    assert not judged["right"].anomaly_map[:, :30].any()
    assert not judged["right"].pred_mask[:, :30].any()
    assert left.raw_score < whole.raw_score == right.raw_score


def test_a_region_thinner_than_a_cell_is_an_error():
    line = np.zeros((400, 400), bool)
    line[:, 200] = True
    with pytest.raises(ImageError, match="thinner than a cell"):
        only_inside(scored(np.zeros((1, 36, 36)), 400, 400), line)


def test_pixel_metrics_count_the_region_alone():
    rng = np.random.default_rng(0)
    truth, scores = rng.random((30, 30)) < 0.2, rng.random((30, 30))
    inside = np.zeros((30, 30), bool)
    inside[:, :15] = True
    within, cut = PixelCurve(), PixelCurve()
    within.add(truth, scores, inside=inside)
    cut.add(truth[:, :15], scores[:, :15])
    assert within.metrics() == cut.metrics()


def test_a_run_inspects_its_region_alone(tmp_path, plates, run):
    mask = np.zeros((60, 80), np.uint8)
    mask[:, :40] = 255
    (tmp_path / "mask.png").write_bytes(png(mask))
    out = tmp_path / "out"
    options = [
        "--object",
        "plate",
        "--method",
        "anoclip",
        "--out",
        str(out),
        "--maps",
        "npy",
        "--threshold",
        "0.01",
    ]
    code, printed, errors = run(
        "detect", str(plates), *options, "--roi", str(tmp_path / "mask.png"), "--json"
    )
    assert code == 0, errors
    rows = [json.loads(line) for line in printed.splitlines()]
    assert len(rows) == 10
    assert all(row["error"] is None for row in rows)
    for row in rows:
        assert all(region["left"] + region["width"] <= row["width"] / 2 for region in row["regions"])
        values = np.load(out / "maps" / f"{row['path']}.npy")
        assert not values[:, row["width"] // 2 :].any()
    assert any(row["regions"] for row in rows)
    code, _, errors = run("detect", str(plates), *options)  # the same folder without the region
    assert code == 2
    assert "roi was" in errors
