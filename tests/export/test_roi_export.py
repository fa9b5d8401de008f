"""An exported file inspects the region of interest alone, in clipspect and in any other runtime."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

import clipspect
from clipspect.config import DetectorConfig
from clipspect.data.roi import RegionOfInterest
from clipspect.demo import DEMO_IMAGES
from clipspect.detection import move_threshold
from clipspect.errors import UsageError
from clipspect.export import exporter
from clipspect.export.exported_model import ExportedDetector
from clipspect.export.exporter import export_detector
from clipspect.export.onnx_detector import OnnxDetector
from clipspect.postprocess.maps import cells_inside
from clipspect.training.demo_images import KNOWN_GOOD, as_pixels, render_image

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

PHOTOS = sorted(DEMO_IMAGES.glob("*.jpg"))


def mask(side: int = 300) -> bytes:
    pixels = np.zeros((side, side), np.uint8)
    pixels[:, : side // 2] = 255
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def corners(left: float, right: float) -> tuple:
    return ((left, left), (right, left), (right, right), (left, right))


REGIONS = {
    "mask": RegionOfInterest(mask()),
    "border": RegionOfInterest(border="20%"),
    "polygons": RegionOfInterest(inspect=(corners(0.1, 0.9),), ignore=(corners(0.35, 0.65),)),
}


def load(roi: RegionOfInterest | None, **options):
    return clipspect.load("anoclip", "tiny", image_size=128, device="cpu", roi=roi, **options)


def prepared(path) -> np.ndarray:
    image = Image.fromarray(clipspect.read_image(path))
    return np.asarray(image.resize((128, 128), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("name", REGIONS)
def test_the_flags_of_the_file_are_those_of_the_detector(name, tmp_path):
    detector = load(REGIONS[name])
    good = detector.calibrate(PHOTOS[:6], "metal flange")
    (calibration,) = good.calibrations.values()
    unmoved = [one.score for one in detector.stream(PHOTOS, object="metal flange", good=good)]
    ranked = sorted(set(unmoved))
    gap = int(np.argmax(np.diff(ranked)))  # far from every score, since float16 layers round
    threshold = (ranked[gap] + ranked[gap + 1]) / 2
    expected = [
        move_threshold(one, threshold) for one in detector.stream(PHOTOS, object="metal flange", good=good)
    ]
    assert {one.flag for one in expected} == {True, False}

    moved = replace(calibration, score_threshold=threshold)
    path = export_detector(detector, "metal flange", tmp_path / "flange.onnx", calibration=moved).path
    found = list(OnnxDetector.load(DetectorConfig(model=str(path))).stream(PHOTOS, object="metal flange"))
    assert [one.flag for one in found] == [one.flag for one in expected]
    for one, other in zip(found, expected, strict=True):
        assert np.array_equal(one.inside, other.inside)
        assert one.score == pytest.approx(other.score, abs=5e-3)
        assert len(one.regions) == len(other.regions)

    score, maps = onnxruntime.InferenceSession(path).run(
        ["score", "map"], {"image": np.stack([prepared(photo) for photo in PHOTOS])}
    )
    assert (score >= threshold).tolist() == [one.flag for one in expected]
    inside = REGIONS[name].of_image("part", 128, 128)
    near = ndimage.binary_dilation(
        inside, np.ones((3, 3)), iterations=2
    )  # a cell of the layers covers 1.6 pixels
    assert (maps[:, ~near] == 0).all()
    assert (maps[:, inside] > 0).any()
    assert (~near).mean() > 0.1


def test_without_calibration_the_outside_is_empty_too(tmp_path):
    detector = load(REGIONS["mask"])
    path = export_detector(detector, "metal flange", tmp_path / "flange.onnx").path
    image = prepared(PHOTOS[0])[None]
    score, maps = onnxruntime.InferenceSession(path).run(["score", "map"], {"image": image})
    assert (maps[0, :, 64:] == 0).all()
    assert (maps[0, :, :64] > 0).all()
    detection = detector.detect(PHOTOS[0], "metal flange")
    assert score[0] == pytest.approx(detection.raw_score, abs=1e-5)
    (found,) = OnnxDetector.load(DetectorConfig(model=str(path))).stream([PHOTOS[0]], object="metal flange")
    assert found.raw_score == pytest.approx(detection.raw_score, abs=1e-5)


SMALL = RegionOfInterest(inspect=(corners(0.45, 0.55),))


def test_a_small_region_of_a_calibrated_network_is_exported(tmp_path):
    """In some images the calibrated map is 0 in all of the region, so that it has no rank correlation."""
    detector = load(SMALL)
    brackets = [as_pixels(render_image("good", seed)[0]) for seed in KNOWN_GOOD]
    (calibration,) = detector.calibrate(brackets, "metal bracket").calibrations.values()
    path = tmp_path / "bracket.onnx"
    exported = export_detector(detector, "metal bracket", path, calibration=calibration)
    maps = exporter.run_onnx(path, exporter._pieces(detector, ()))["map"]
    assert any(np.ptp(one) == 0 for one in maps)
    assert exported.agreement.rank_correlation > 0.99999
    assert exported.agreement.max_abs < 1e-4


def test_a_damaged_network_with_a_small_region_is_refused(tmp_path, monkeypatch):
    """Outside of the region all maps are 0: these ties must not stand for agreement."""
    detector = load(RegionOfInterest(inspect=(corners(0.375, 0.625),)))
    write = exporter.write_onnx

    def write_damaged(network, path, described):
        sound = {name: value.clone() for name, value in network.network.state_dict().items()}
        noise = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for one in (p for p in network.network.visual.parameters() if p.numel() > 1):
                one += 0.05 * one.std() * torch.randn(one.shape, generator=noise)
        write(network, path, described)
        network.network.load_state_dict(sound)

    monkeypatch.setattr(exporter, "write_onnx", write_damaged)
    path = tmp_path / "flange.onnx"
    with pytest.raises(UsageError, match="refused"):
        export_detector(detector, "metal flange", path, calibrate=PHOTOS[:3])
    assert not path.exists()


def test_a_region_that_differs_between_images_is_refused_with_the_remedy(tmp_path):
    folder = tmp_path / "masks"
    folder.mkdir()
    (folder / "a.png").write_bytes(mask())
    for options, message in (
        ({"roi": RegionOfInterest(folder=folder)}, "one mask per image"),
        ({"roi": RegionOfInterest(border="20")}, "give it in percent"),
        ({"roi": REGIONS["mask"], "aspect": "pad"}, "--aspect squash"),
        ({"roi": RegionOfInterest(inspect=(corners(0.5, 0.501),))}, "thinner than a cell"),
    ):
        with pytest.raises(UsageError, match=message):
            ExportedDetector(load(**options), "metal flange")


def test_a_border_differs_by_a_pixel_at_most_between_an_image_and_the_file():
    """docs/export.md: 4 % of 60 pixels are rounded to 2 pixels for the image and not for the file."""
    for percent, side in ((4, 60), (6.25, 64), (12.5, 128)):
        roi = RegionOfInterest(border=f"{percent}%")
        image = roi.of_image("part", side, side)
        fine = 4 * side  # cells of a quarter of a pixel
        different = cells_inside(image, fine, fine) != roi.fixed_cells(fine, fine)
        assert different.any() == (side == 60)
        rows, columns = np.nonzero(different)
        to_edge = np.minimum.reduce([rows, columns, fine - 1 - rows, fine - 1 - columns])
        assert (abs(to_edge - percent / 100 * fine) <= 4).all()


def test_tiles_of_a_file_are_inspected_inside_the_region_alone(tmp_path):
    options = {"tile": 300, "roi": REGIONS["polygons"]}
    path = export_detector(
        load(REGIONS["polygons"]), "flange", tmp_path / "f.onnx", calibrate=PHOTOS[:2]
    ).path
    detector = clipspect.load("anoclip", "tiny", image_size=128, device="cpu", **options)
    expected = detector.detect(PHOTOS[0], "flange")
    (found,) = OnnxDetector.load(DetectorConfig(model=str(path), tile=300)).stream(
        [PHOTOS[0]], object="flange"
    )
    assert len(detector.reader.read(PHOTOS[0]).tiles) > 1
    assert np.array_equal(found.inside, expected.inside)
    assert found.raw_score == pytest.approx(expected.raw_score, abs=1e-5)
    np.testing.assert_allclose(found.score_map, expected.score_map, atol=1e-5)
    assert np.isneginf(found.compact_layers).any()


def test_a_region_survives_the_file():
    for roi in REGIONS.values():
        assert RegionOfInterest.from_dict(roi.to_dict()) == roi
        assert RegionOfInterest.from_dict(roi.to_dict()).digest == roi.digest
