"""The V-V path of a timm model against a plain derivation (timm_vv.npz)."""

from __future__ import annotations

import json
import re

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from clipspect.backbones.features import FeatureRequest
from clipspect.backbones.timm.backbone import TimmBackbone
from clipspect.backbones.timm.tower import run_tower


@pytest.fixture(scope="module")
def recorded(load_arrays):
    return load_arrays("timm_vv")


@pytest.fixture(scope="module")
def backbone(folder):
    config = json.loads((folder / "timm_vv_config.json").read_text(encoding="utf-8"))
    trunk = timm.create_model(config["timm_name"], **config["create_model"], dynamic_img_size=True)
    trunk.load_state_dict(load_file(folder / "timm_vv_weights.safetensors"))
    statistics = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    return TimmBackbone(trunk, name="timm", weights="fixture", mean=statistics[0], std=statistics[1])


@pytest.fixture(scope="module")
def images(recorded):
    return torch.from_numpy(recorded["images"])


def test_prepared_images(recorded, backbone, close):
    pixels = torch.from_numpy(recorded["image_u8"]).permute(0, 3, 1, 2).float() / 255
    shape = (1, 3, 1, 1)
    found = (pixels - torch.tensor(backbone.mean).view(shape)) / torch.tensor(backbone.std).view(shape)
    close(found, recorded["images"], 2e-6)


def test_value_tokens_of_every_recorded_block(recorded, backbone, images, close):
    names = {int(m[1]): m[0] for name in recorded if (m := re.fullmatch(r"vv_patches_l(\d+)", name))}
    features = backbone.encode(images, FeatureRequest(frozenset(names), frozenset([-1])))
    for block, name in names.items():
        close(features.values(block).flatten(1, 2), recorded[name], 2e-5 if block < backbone.depth else 5e-5)
    close(features.values(-1).flatten(1, 2), recorded["vv_patches_last"], 5e-5)
    prefix = recorded["vv_tokens_last"].shape[1] - recorded["vv_patches_last"].shape[1]
    close(features.ordinary(-1).flatten(1, 2), recorded["ordinary_tokens_last"][:, prefix:], 5e-5)


def test_ordinary_tokens_and_image_embedding(recorded, backbone, images, close):
    with torch.inference_mode():
        tokens, _ = run_tower(backbone.network, images)
    close(tokens.last, recorded["ordinary_tokens_last"], 5e-5)
    expected = F.normalize(torch.from_numpy(recorded["ordinary_cls_last"]), dim=1)
    close(backbone.encode(images, FeatureRequest()).image, expected, 5e-5)


def test_in_float64_the_numbers_agree_to_ten_digits(recorded, backbone, images, close):
    import copy

    exact = copy.deepcopy(backbone.network).double()
    with torch.inference_mode():
        tokens, _ = run_tower(exact, images.double(), [backbone.depth], [backbone.depth])
    close(tokens.value[backbone.depth], recorded["vv_patches_last"], 1e-10)
    close(tokens.last, recorded["ordinary_tokens_last"], 1e-10)
