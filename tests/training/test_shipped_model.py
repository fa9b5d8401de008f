"""The model in the wheel: small, loadable by plain open_clip, and the one its card describes."""

from __future__ import annotations

import hashlib
import json
import re
from importlib import resources
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import load_file

import clipspect
from clipspect.benchmark.metrics import pixel_metrics

FOLDER = Path(str(resources.files("clipspect.backbones") / "tiny"))
WEIGHTS = FOLDER / "open_clip_model.safetensors"
DEMO = Path(str(resources.files("clipspect") / "demo"))
FINGERPRINTS = {"tiny-3": "fe824bee6aff"}
"""First digits of the fingerprint of each version in the wheel."""


def test_the_weights_are_half_precision_and_fit_the_wheel():
    assert WEIGHTS.stat().st_size <= 15_000_000
    assert {tensor.dtype for tensor in load_file(WEIGHTS).values()} == {torch.float16}


def test_plain_open_clip_loads_them_strictly():
    description = json.loads((FOLDER / "open_clip_config.json").read_text())
    model = open_clip.CLIP(**description["model_cfg"])
    model.load_state_dict(load_file(WEIGHTS), strict=True)
    loaded = open_clip.create_model(f"local-dir:{FOLDER}")
    assert all(torch.isfinite(p).all() for p in loaded.parameters())
    tokens = open_clip.get_tokenizer(f"local-dir:{FOLDER}")(["a photo of a metal bracket"])
    assert tokens.shape == (1, description["model_cfg"]["text_cfg"]["context_length"])
    with torch.inference_mode():
        assert loaded.encode_image(torch.zeros(1, 3, 128, 128)).shape == (1, 256)
        assert loaded.encode_text(tokens).shape == (1, 256)


def test_the_card_is_about_these_weights():
    card = (FOLDER / "MODEL_CARD.md").read_text()
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
    assert pixel_metrics(masks, maps).auroc > 0.75


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
