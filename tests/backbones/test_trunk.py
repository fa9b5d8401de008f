"""The convolutional trunk: its shapes, its padding, and a small CLIP that stands on it."""

from __future__ import annotations

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from clipspect.backbones.features import FeatureRequest
from clipspect.backbones.loader import load_backbone
from clipspect.backbones.openclip.backbone import OpenClipBackbone
from clipspect.backbones.openclip.plain_clip import LazyTokenizer, PlainCLIP, initialize, is_plain_config
from clipspect.backbones.presets import TINY_FOLDER
from clipspect.backbones.trunk import TRUNKS, Trunk
from clipspect.errors import WeightsError
from clipspect.methods.base import MethodContext
from clipspect.registry import make_method

CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {
        "image_size": 64,
        "patch_size": 8,
        "width": 32,
        "layers": 2,
        "head_width": 16,
        "trunk": "efficientnet-lite0",
    },
    "text_cfg": {"context_length": 8, "vocab_size": 100, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def model() -> PlainCLIP:
    torch.manual_seed(0)
    built = PlainCLIP(CONFIG)
    initialize(built)
    return built.eval()


@pytest.fixture(scope="module")
def backbone(model) -> OpenClipBackbone:
    return OpenClipBackbone(
        copy.deepcopy(model), LazyTokenizer(8), name="small", weights="seeded", image_size=64
    )


@pytest.mark.parametrize("name", TRUNKS)
@pytest.mark.parametrize("size", [(64, 96), (72, 64)])
def test_features_of_three_strides_lie_on_the_grid_of_stride_eight(name, size):
    trunk = Trunk(name)
    features = trunk(torch.zeros(2, 3, *size))
    assert features.shape == (2, sum(trunk.channels), size[0] // 8, size[1] // 8)
    assert trunk.compared(features).shape == (2, size[0] * size[1] // 64, sum(trunk.channels[1:]))


def test_a_stride_of_two_pads_as_tensorflow_does_at_even_sizes():
    stem = Trunk("efficientnet-lite0").stem
    x = torch.randn(1, 3, 32, 32)
    padded = F.pad(x, (0, 1, 0, 1))  # SAME: what is missing for the last window, after before before
    torch.testing.assert_close(stem(x), F.conv2d(padded, stem.weight, stem.bias, 2))


def test_both_strides_have_the_same_say_in_a_comparison(model):
    trunk = model.visual.trunk
    with torch.inference_mode():
        tokens = trunk.compared(trunk(torch.randn(1, 3, 64, 64)))
    for part in tokens.split(trunk.channels[1:], -1):
        torch.testing.assert_close(part.norm(dim=-1), torch.ones(1, 64))


def test_a_backbone_gives_trunk_features_on_request_alone(backbone):
    images = torch.randn(2, 3, 64, 64)
    with_trunk = backbone.encode(images, FeatureRequest(frozenset([-1]), trunk=True))
    without = backbone.encode(images, FeatureRequest(frozenset([-1])))
    assert with_trunk.trunk is not None
    assert with_trunk.trunk.shape == (2, 8, 8, 152)
    assert without.trunk is None
    torch.testing.assert_close(with_trunk.values(-1), without.values(-1))
    assert with_trunk[[1]].trunk.shape == (1, 8, 8, 152)


@pytest.mark.parametrize("name", ["dual-image", "dual-image+", "mutual"])
def test_templates_are_compared_by_blocks_and_sets_by_the_trunk_too(backbone, name):
    method = make_method(name)
    features = backbone.encode(torch.randn(2, 3, 64, 64), method.request())
    of_a_set = method.visual_patches(features)
    assert [patches.shape[-1] for patches in of_a_set] == [152, 16]
    beside_its_template = method.visual_patches(features, paired=True)
    assert len(beside_its_template) == 1
    assert torch.equal(beside_its_template[0], of_a_set[1])
    both = make_method(name, {"visual_features": "both"})
    assert len(both.visual_patches(features, paired=True)) == 2


def test_a_map_beside_a_template_is_that_of_the_blocks(backbone):
    images = torch.randn(2, 3, 64, 64)
    rows = [0, 1]

    def visual(choice):
        method = make_method("dual-image", {"output": "visual", "visual_features": choice})
        features = backbone.encode(images, method.request())
        context = MethodContext(None, (64, 64), rows, pool_index=rows, paired_references=features[[1, 0]])
        return method.visual_map(features, context, None)

    torch.testing.assert_close(visual("auto"), visual("blocks"))
    assert (visual("auto") - visual("both")).abs().max() > 1e-3


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_the_trunk_stays_float32_in_lower_precision(backbone, precision):
    try:
        rounded = backbone.with_precision(precision)
    except Exception as error:
        pytest.skip(str(error))
    convolutions = [m for m in rounded.network.visual.trunk.modules() if isinstance(m, torch.nn.Conv2d)]
    assert {conv.weight.dtype for conv in convolutions} == {torch.float32}
    images = torch.randn(1, 3, 64, 64)
    request = FeatureRequest(frozenset([-1]))
    close, exact = rounded.encode(images, request).values(-1), backbone.encode(images, request).values(-1)
    assert F.cosine_similarity(close, exact, dim=-1).min() > 0.98


def test_windows_of_winclip_go_through_the_transformer(backbone):
    features = backbone.encode(torch.randn(1, 3, 64, 64), FeatureRequest(windows=frozenset([2])))
    assert features.windows[2].shape == (1, 49, 16)


def write(folder, model, config):
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    written = {"model_cfg": config, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    (folder / "open_clip_config.json").write_text(json.dumps(written))


def test_a_folder_with_a_trunk_loads_and_has_a_random_control(model, tmp_path):
    write(tmp_path, model, CONFIG)
    loaded = load_backbone(str(tmp_path))
    assert loaded.patch == 8
    assert torch.equal(loaded.network.visual.trunk.stem.weight, model.visual.trunk.stem.weight)
    with pytest.warns(UserWarning, match="random weights"):
        control = load_backbone(str(tmp_path), "random")
    assert control.is_random
    assert not torch.equal(control.network.visual.trunk.stem.weight, model.visual.trunk.stem.weight)


@pytest.mark.parametrize(("key", "value"), [("trunk", "resnet-50"), ("patch_size", 16)])
def test_an_unknown_trunk_is_refused_with_the_known_ones(model, tmp_path, key, value):
    config = copy.deepcopy(CONFIG)
    config["vision_cfg"][key] = value
    assert not is_plain_config(config)
    write(tmp_path, model, config)
    with pytest.raises(WeightsError, match=r"needs one of efficientnet-lite0.*patch size 8"):
        load_backbone(str(tmp_path))


def test_the_shipped_model_stands_on_a_trunk():
    description = json.loads((TINY_FOLDER / "open_clip_config.json").read_text(encoding="utf-8"))
    assert description["model_cfg"]["vision_cfg"]["trunk"] in TRUNKS
    assert is_plain_config(description["model_cfg"])
