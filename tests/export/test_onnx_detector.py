"""``--runtime onnx``: an exported file gives clipspect's rows and verdicts without PyTorch."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

import clipspect
from clipspect.config import DetectorConfig
from clipspect.demo import DEMO_IMAGES
from clipspect.errors import UsageError, WeightsError
from clipspect.export.exporter import export_detector
from clipspect.export.onnx_detector import OnnxDetector
from clipspect.results.run import LocalEngine, run_engine
from clipspect.results.store import iterate_rows

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

PHOTOS = sorted(DEMO_IMAGES.glob("*.jpg"))
DETECT = """
import sys
from clipspect.cli import main
try:
    main()
finally:
    print("loaded:", *(name for name in ("torch", "open_clip", "onnxruntime") if name in sys.modules))
"""


@pytest.fixture(scope="module")
def detector():
    return clipspect.load("anoclip", "tiny", image_size=128, device="cpu")


@pytest.fixture(scope="module")
def good(detector):
    return detector.calibrate(PHOTOS[:6], "metal flange")


@pytest.fixture(scope="module")
def plain_file(detector, tmp_path_factory):
    path = tmp_path_factory.mktemp("plain") / "flange.onnx"
    return export_detector(detector, "metal flange", path, calibrate=PHOTOS[:2]).path


@pytest.fixture(scope="module")
def calibrated_file(detector, good, tmp_path_factory):
    path = tmp_path_factory.mktemp("calibrated") / "flange.onnx"
    (calibration,) = good.calibrations.values()
    return export_detector(detector, "metal flange", path, calibration=calibration, calibrate=PHOTOS[:2]).path


def load(path, **options):
    return OnnxDetector.load(DetectorConfig(model=str(path), **options))


@pytest.mark.parametrize("source", [str(PHOTOS[-1]), str(DEMO_IMAGES)], ids=["one image", "a folder"])
def test_the_command_runs_without_torch(calibrated_file, tmp_path, source):
    words = ["detect", source, "--runtime", "onnx", "--model", str(calibrated_file), "--json"]
    ran = subprocess.run(
        [sys.executable, "-c", DETECT, *words, "--out", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        env=os.environ,
        check=True,
    )
    *rows, loaded = ran.stdout.splitlines()
    assert loaded == "loaded: onnxruntime"
    assert len(rows) == (1 if source.endswith(".jpg") else len(PHOTOS))
    assert {json.loads(row)["object"] for row in rows} == {"metal flange"}


def test_images_have_the_layers_scores_and_verdicts_of_torch(detector, good, plain_file, calibrated_file):
    for path, known in ((plain_file, None), (calibrated_file, good)):
        expected = detector.stream(PHOTOS, object="metal flange", good=known)
        found = load(path).stream(PHOTOS, object="metal flange")
        for one, other in zip(found, expected, strict=True):
            assert one.raw_score == pytest.approx(other.raw_score, abs=1e-5)
            assert one.score == pytest.approx(other.score, abs=5e-3)
            assert abs(one.score_map - other.score_map).max() < 1e-5
            assert abs(one.compact_layers - other.compact_layers).max() < 0.02
            assert one.calibration == other.calibration
            assert (one.method, one.model, one.weights) == (other.method, other.model, other.weights)
            if abs(other.score - 0.5) > 5e-3:
                assert one.verdict == other.verdict
                assert len(one.regions) == len(other.regions)


def test_a_run_writes_the_rows_of_torch(detector, good, calibrated_file, tmp_path):
    engines = {
        "torch": LocalEngine(detector, DEMO_IMAGES, "metal flange", good=good),
        "onnx": LocalEngine(load(calibrated_file, batch_size=3), DEMO_IMAGES, "metal flange"),
    }
    rows = {}
    for name, engine in engines.items():
        options = {"calibrations": good.calibrations, "overlays": "none", "report": False}
        run_engine(engine, out=tmp_path / name, **options)
        rows[name] = list(iterate_rows(tmp_path / name))
    assert [row["path"] for row in rows["onnx"]] == [row["path"] for row in rows["torch"]]
    assert rows["onnx"][0].keys() == rows["torch"][0].keys()
    for one, other in zip(rows["onnx"], rows["torch"], strict=True):
        assert one["score"] == pytest.approx(other["score"], abs=5e-3)
        assert one["threshold_source"] == other["threshold_source"]
    settings = json.loads((tmp_path / "onnx" / "manifest.json").read_text(encoding="utf-8"))["settings"]
    assert settings["runtime"] == "onnx"
    assert settings["fingerprint"] == detector.backbone.fingerprint


def test_an_unreadable_image_is_a_row_with_an_error(plain_file, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    first, second = load(plain_file).stream([broken, PHOTOS[0]], object="metal flange")
    assert first.error
    assert second.error is None


def test_what_the_file_has_decided_is_refused(plain_file, tmp_path):
    with pytest.raises(UsageError, match="precision: decided when"):
        load(plain_file, precision="int8")
    with pytest.raises(UsageError, match="'metal flange', not on 'bottle'"):
        next(load(plain_file).stream(PHOTOS, object="bottle"))
    with pytest.raises(UsageError, match="--model FILE.onnx, not tiny"):
        OnnxDetector.load(DetectorConfig())
    (tmp_path / "other.onnx").write_bytes(b"something else")
    with pytest.raises(WeightsError, match="cannot read it"):
        load(tmp_path / "other.onnx")


@pytest.mark.parametrize(
    "damage",
    [
        {"roi": "{}"},
        {"roi": "[]"},
        {"roi": '{"mask": null, "inspect": [], "ignore": [], "border": 5}'},
        {"roi": '{"mask": "////", "inspect": [], "ignore": [], "border": ""}'},
        {"roi": '{"mask": null, "inspect": [[1]], "ignore": [], "border": ""}'},
        {"settings": "{"},
        {"image_size": "large"},
    ],
)
def test_damaged_metadata_is_named(plain_file, monkeypatch, damage):
    session = onnxruntime.InferenceSession(plain_file)
    about = {**session.get_modelmeta().custom_metadata_map, **damage}

    class Damaged:
        custom_metadata_map = about

    monkeypatch.setattr(onnxruntime.InferenceSession, "get_modelmeta", lambda _: Damaged)
    with pytest.raises(WeightsError, match=r"flange.onnx: its metadata is damaged .*; export again"):
        load(plain_file)
