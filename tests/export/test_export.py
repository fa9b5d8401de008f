"""Exported files score images as torch does, without clipspect, for any batch."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from PIL import Image

import clipspect
from clipspect.cli import main
from clipspect.demo import DEMO_IMAGES
from clipspect.errors import UsageError
from clipspect.export.exported_model import metadata
from clipspect.export.exporter import export_detector, run_onnx, run_openvino

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

PHOTOS = sorted(DEMO_IMAGES.glob("*.jpg"))


def score_and_map(outputs: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    return outputs["score"], outputs["map"]


@pytest.fixture(scope="module")
def detector():
    return clipspect.load("anoclip", "tiny", image_size=128, device="cpu")


@pytest.fixture(scope="module")
def onnx_file(detector, tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "flange.onnx"
    exported = export_detector(detector, "metal flange", path, calibrate=PHOTOS[:3])
    assert exported.path == path
    assert exported.compared == 3
    assert exported.agreement.max_abs < 1e-5
    return path


def test_an_image_scores_as_in_clipspect(detector, onnx_file):
    photo = PHOTOS[-1]
    expected = detector.detect(photo, object="metal flange")
    image = Image.open(photo).convert("RGB").resize((128, 128), Image.Resampling.BICUBIC)
    found = run_onnx(onnx_file, np.asarray(image)[None])
    assert found["score"][0] == pytest.approx(expected.raw_score, abs=1e-5)
    np.testing.assert_allclose(found["map"][0], expected.score_map, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 3, 5])
def test_the_batch_is_free_and_its_images_do_not_see_each_other(onnx_file, batch):
    images = np.random.default_rng(batch).integers(0, 256, (batch, 128, 128, 3), dtype=np.uint8)
    score, maps = score_and_map(run_onnx(onnx_file, images))
    assert score.shape == (batch,)
    assert maps.shape == (batch, 128, 128)
    last_score, last_map = score_and_map(run_onnx(onnx_file, images[-1:]))
    np.testing.assert_allclose(score[-1:], last_score, atol=1e-6)
    np.testing.assert_allclose(maps[-1:], last_map, atol=1e-6)


def test_a_calibrated_file_gives_the_scores_and_flags_of_clipspect(detector, tmp_path):
    good = detector.calibrate(PHOTOS[:6], "metal flange")
    (calibration,) = good.calibrations.values()
    exported = export_detector(
        detector, "metal flange", tmp_path / "flange.onnx", calibration=calibration, calibrate=PHOTOS[:3]
    )
    expected = detector.detect(PHOTOS, object="metal flange", good=good)
    pieces = np.concatenate([detector.reader.read(photo).pieces for photo in PHOTOS])
    scores, maps = score_and_map(run_onnx(exported.path, pieces))
    # Layers are stored as float16, the file computes in float32.
    np.testing.assert_allclose(scores, [d.score for d in expected], atol=5e-3)
    sure = [abs(d.score - 0.5) > 5e-3 for d in expected]
    assert [s >= 0.5 for s in scores[sure]] == [
        d.flag for d, is_sure in zip(expected, sure, strict=True) if is_sure
    ]
    assert maps.shape == (len(PHOTOS), 128, 128)
    about = onnxruntime.InferenceSession(exported.path).get_modelmeta().custom_metadata_map
    assert (float(about["threshold"]), about["threshold_source"]) == (0.5, "gumbel")
    assert json.loads(about["calibration"]) == json.loads(json.dumps(calibration.to_dict()))


def test_one_file_carries_settings(detector, onnx_file):
    assert [entry.name for entry in onnx_file.parent.iterdir()] == ["flange.onnx"]
    about = onnxruntime.InferenceSession(onnx_file).get_modelmeta().custom_metadata_map
    assert about["object"] == "metal flange"
    assert "threshold" not in about  # none was given, and none is made up
    assert about["fingerprint"] == detector.backbone.fingerprint
    assert json.loads(about["methods"]) == {"anoclip": detector.methods[0].settings()}
    assert int(about["image_size"]) == 128


def test_openvino_reads_the_same_file(onnx_file):
    pytest.importorskip("openvino")
    images = np.stack([np.asarray(Image.open(p).convert("RGB").resize((128, 128))) for p in PHOTOS[:2]])
    score, maps = score_and_map(run_openvino(onnx_file, images))
    expected_score, expected_maps = score_and_map(run_onnx(onnx_file, images))
    np.testing.assert_allclose(score, expected_score, atol=1e-3)
    np.testing.assert_allclose(maps, expected_maps, atol=2e-3)


def test_two_good_images_give_an_exported_file_no_threshold(detector):
    (calibration,) = detector.calibrate(PHOTOS[:2], "metal flange").calibrations.values()
    about = metadata(detector, "metal flange", calibration)
    assert ("threshold" in about, about["threshold_source"]) == (False, "none")


def test_int8_is_calibrated_on_images_and_held_to_torch(detector, tmp_path):
    pytest.importorskip("nncf")
    openvino = pytest.importorskip("openvino")
    path = tmp_path / "flange.xml"
    exported = export_detector(
        detector, "metal flange", path, precision="int8", calibrate=PHOTOS[:6], bar=0.9
    )
    assert 0.99 < exported.agreement.rank_correlation < 1 - 1e-7
    model = openvino.Core().read_model(path)
    quantised = [op for op in model.get_ops() if op.get_type_name() == "FakeQuantize"]
    perceptrons = 2 * detector.backbone.depth
    assert len(quantised) == perceptrons
    assert model.get_rt_info(["clipspect", "object"]).astype(str) == "metal flange"
    with pytest.raises(UsageError, match="refused"):
        export_detector(
            detector, "metal flange", tmp_path / "refused.xml", precision="int8", calibrate=PHOTOS[:6], bar=1
        )
    assert not (tmp_path / "refused.xml").exists()


@pytest.mark.parametrize(
    ("method", "options", "name", "message"),
    [
        ("mutual", {}, "a.onnx", "cannot be exported; choose one of: anoclip"),
        ("anoclip+", {}, "a.onnx", "cannot be exported"),
        ("anoclip", {}, "a.pb", "use the suffix .onnx"),
        ("anoclip", {"precision": "int8"}, "a.onnx", "use a file name that ends in .xml"),
        ("anoclip", {"precision": "int8"}, "a.xml", "--calibrate"),
    ],
)
def test_what_cannot_be_exported_says_what_can(tmp_path, method, options, name, message):
    detector = clipspect.load(method, "tiny")
    with pytest.raises(UsageError, match=message):
        export_detector(detector, "flange", tmp_path / name, **options)


def test_the_command_writes_the_file_with_thresholds_of_good_images(tmp_path, monkeypatch, capsys):
    good = tmp_path / "good"
    good.mkdir()
    for number, photo in enumerate(PHOTOS[:4]):
        (good / f"{number}.jpg").write_bytes(photo.read_bytes())
    out = tmp_path / "made" / "flange.onnx"
    words = [
        "clipspect",
        "export",
        "--object",
        "flange",
        "-o",
        str(out),
        "--image-size",
        "64",
        "--good",
        str(good),
    ]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as stopped:
        main()
    assert not stopped.value.code
    said = capsys.readouterr().out
    assert "rank correlation 1.00000" in said
    about = onnxruntime.InferenceSession(out).get_modelmeta().custom_metadata_map
    assert about["threshold_source"] == "gumbel"


def test_the_command_exports_a_profile_with_its_calibration(tmp_path, run, small_model):
    for number, photo in enumerate(PHOTOS[:4]):
        (tmp_path / "good").mkdir(exist_ok=True)
        (tmp_path / "good" / f"{number}.jpg").write_bytes(photo.read_bytes())
    path, out = tmp_path / "flange.clipspect", tmp_path / "flange.onnx"
    create = [
        "profile",
        "create",
        str(tmp_path / "good"),
        "--object",
        "flange",
        "-m",
        "anoclip",
        "-o",
        str(path),
    ]
    code, _, errors = run(*create)
    assert code == 0, errors
    code, _, errors = run("export", "--profile", str(path), "-o", str(out), model=False)
    assert code == 0, errors
    about = onnxruntime.InferenceSession(out).get_modelmeta().custom_metadata_map
    calibration = json.loads(about["calibration"])
    assert calibration["profile"].startswith("flange@")
    assert about["object"] == "flange"
    run(*create[:-2], "--overwrite", "-o", str(path), "--ignore-border", "5%")
    code, _, errors = run("export", "--profile", str(path), "-o", str(out), model=False)
    assert code == 0, errors
    about = onnxruntime.InferenceSession(out).get_modelmeta().custom_metadata_map
    assert json.loads(about["roi"])["border"] == "5%"
    run(*create[:-2], "--overwrite", "-o", str(path), "--ignore-border", "5")
    code, _, errors = run("export", "--profile", str(path), "-o", str(out), model=False)
    assert code == 2
    assert "give it in percent" in " ".join(errors.split())
