"""Two backbones in one detector: text by the first, comparison of images by the second, one encoding by each."""

from __future__ import annotations

import json

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import save_file

import clipspect
from clipspect.backbones.features import FeatureRequest, Features
from clipspect.backbones.pair import BackbonePair, resample
from clipspect.errors import ReferencesError, UsageError
from clipspect.export.exported_model import ExportedDetector


@pytest.fixture(scope="module")
def other_model(tmp_path_factory):
    """Another random CLIP of the same size as ``small_model``."""
    config = {
        "embed_dim": 20,
        "vision_cfg": {"image_size": 32, "layers": 4, "width": 24, "head_width": 12, "patch_size": 8},
        "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    folder = tmp_path_factory.mktemp("other")
    torch.manual_seed(5)
    save_file(open_clip.CLIP(**config).state_dict(), folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    return folder


@pytest.fixture
def timm_folder(tmp_path):
    """A folder of a timm model without text, at 96 pixels; its weights are drawn."""
    folder = tmp_path / "vit"
    folder.mkdir()
    (folder / "config.json").write_text('{"architecture": "vit_tiny_patch16_224"}')
    (folder / "clipspect_model.json").write_text('{"image_size": 96}')
    return str(folder)


def maps(detector, plates):
    found = detector.detect(sorted(plates.rglob("*.png")), "plate")
    assert all(d.error is None for d in found)
    return np.stack([d.score_map for d in found])


@pytest.mark.parametrize("method", ["dual-image", "mutual"])
def test_each_half_of_the_score_is_that_of_its_own_model(small_model, other_model, plates, method):
    for output, single in (("text", small_model), ("visual", other_model)):
        settings = {"output": output, **({"pairing": "random"} if method == "dual-image" else {})}
        pair = clipspect.load(method, str(small_model), visual_model=str(other_model), settings=settings)
        alone = clipspect.load(method, str(single), settings=settings)
        np.testing.assert_allclose(maps(pair, plates), maps(alone, plates), rtol=0, atol=2e-5)


def test_each_image_is_encoded_once_by_each(small_model, other_model, plates, monkeypatch):
    detector = clipspect.load("dual-image", str(small_model), visual_model=str(other_model))
    rows = {}
    for name in ("text", "visual"):
        backbone = getattr(detector.backbone, name)

        def count(images, request, name=name, encode=backbone.features):
            rows[name] = rows.get(name, 0) + len(images)
            found = encode(images, request)
            blocks = {len(found.value_patches), len(request.value_blocks)}
            assert blocks == {1}  # of four: only what is compared is computed
            return found

        monkeypatch.setattr(backbone, "features", count)
    maps(detector, plates)
    assert rows == {"text": 10, "visual": 10}


def test_another_grid_size_and_kind_of_model(small_model, timm_folder, plates, tmp_path):
    detector = clipspect.load(
        "dual-image", str(small_model), "random", visual_model=timm_folder, device="cpu"
    )
    backbone = detector.backbone
    assert isinstance(backbone, BackbonePair)
    assert (backbone.image_size, backbone.is_random) == (96, True)
    images = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    features = backbone.encode(images, detector.model.request)
    assert features.grid == features.visual.grid == (4, 4)  # 6×6 on the grid of the text
    alone = backbone.visual.encode((images - 0.5) / 0.5, detector.model.request.visual)
    block = max(alone.value_patches)
    expected = torch.nn.functional.interpolate(
        alone.values(block).permute(0, 3, 1, 2), (4, 4), mode="bilinear"
    )
    found = features.visual.values(block).permute(0, 3, 1, 2)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    good = sorted(plates.rglob("*.png"))[:4]
    path = tmp_path / "plate.refs"
    detector.write_references(good, "plate", path)
    given = detector.read_given(path, "plate")
    direct = detector.calibrate(good, "plate")
    part = sorted(plates.rglob("*.png"))[5]
    one = detector.detect(part, "plate", good=given["good"])
    two = detector.detect(part, "plate", good=direct)
    assert one.score == pytest.approx(two.score, abs=1e-6)
    single = clipspect.load("dual-image", str(small_model), "random", device="cpu")
    with pytest.raises(ReferencesError, match="another backbone"):
        single.read_given(path, "plate")


def test_resampling_keeps_a_plane_and_nothing_else_moves():
    rows, columns = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    tokens = torch.stack([rows, columns], -1)[None]
    features = Features(torch.ones(1, 1), (8, 8), 1, value_patches={1: tokens})
    assert resample(features, (8, 8)) is features
    half = resample(features, (4, 4)).values(1)
    torch.testing.assert_close(half[0, :, 0, 0], torch.tensor([0.5, 2.5, 4.5, 6.5]))


def test_what_two_models_cannot_do_is_said_first(small_model, other_model):
    for method in ("anoclip", "musc", "anomaly-dino"):
        with pytest.raises(UsageError, match="name the one model with --model"):
            clipspect.load(method, str(small_model), visual_model="no such model")
    with pytest.raises(UsageError, match="run in fp32"):
        clipspect.load("dual-image", str(small_model), visual_model=str(other_model), precision="bf16")
    with pytest.raises(UsageError, match="8"):
        clipspect.load(
            "dual-image", str(small_model), visual_model=str(other_model), settings={"blocks": "8"}
        )
    detector = clipspect.load(["anoclip", "dual-image"], str(small_model), visual_model=str(other_model))
    assert detector.backbone.levels == {}
    with pytest.raises(UsageError, match="without visual_model|cannot be exported"):
        ExportedDetector(detector, "plate", None)


def test_a_request_splits_into_the_parts_of_the_two(small_model, other_model):
    request = FeatureRequest(
        value_blocks=frozenset([-1]), visual=FeatureRequest(value_spans=frozenset([(0.75, 1.0)]))
    )
    two = request.resolved(12, 24)
    assert two.value_blocks == {12}
    assert two.visual.value_blocks == set(range(19, 25))
    assert two.visual.start_block == 12
    one = request.resolved(12)
    assert one.value_blocks == {10, 11, 12}
    assert one.visual is None
