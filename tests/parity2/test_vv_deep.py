"""The V-V path of models deeper than 12 blocks against the official fork (vv_deep.npz)."""

from __future__ import annotations

import json
import re

import open_clip
import pytest
import torch
from safetensors.torch import load_file

from clipspect.backbones.features import FeatureRequest
from clipspect.backbones.openclip.backbone import OpenClipBackbone
from clipspect.methods.anoclip import AnoCLIP
from clipspect.methods.base import MethodContext
from clipspect.methods.scoring import abnormal_probability
from clipspect.prompts.anchors import make_anchors


@pytest.fixture(scope="module")
def recorded(load_arrays):
    return load_arrays("vv_deep")


@pytest.fixture(scope="module")
def models(folder, recorded):
    """Depth → backbone, for every model of the folder."""
    loaded = {}
    for key in sorted({name.partition(".")[0] for name in recorded if re.match(r"d\d+\.", name)}):
        depth = key.removeprefix("d")
        config = json.loads((folder / f"vv_deep{depth}_model_config.json").read_text(encoding="utf-8"))
        model = open_clip.CLIP(**config)
        model.load_state_dict(load_file(folder / f"vv_deep{depth}_weights.safetensors"))
        loaded[key] = OpenClipBackbone(model, None, name=f"deep {depth}", weights="fixture")
    return loaded


@pytest.fixture(scope="module")
def images(recorded):
    return torch.from_numpy(recorded["images"])


def value_blocks(recorded, key):
    """Block → name of its array, of the blocks whose V-V tokens are recorded."""
    pattern = re.compile(rf"{key}\.vv_l(\d+)")
    return {int(m[1]): m[0] for name in recorded if (m := pattern.fullmatch(name))}


def test_tokens_as_published(recorded, models, images, close):
    for key, backbone in models.items():
        names = value_blocks(recorded, key)
        found = backbone.encode(images, FeatureRequest(frozenset(names), frozenset([-1])))
        for block, name in names.items():
            close(found.values(block).flatten(1, 2), recorded[name], 5e-5)
        close(found.values(-1).flatten(1, 2), recorded[f"{key}.vv_last"], 5e-5)
        close(found.values(-1).flatten(1, 2), recorded[f"{key}.pooled"][:, 1:], 5e-5)
        for name in (n for n in recorded if n.startswith(f"{key}.fork_l")):  # overwritten by the last block
            close(found.values(-1).flatten(1, 2), recorded[name], 5e-5)
        close(found.ordinary(-1).flatten(1, 2), recorded[f"{key}.ori_l{backbone.depth}"], 5e-5)


def test_image_embeddings(recorded, models, images, close):
    for key, backbone in models.items():
        expected = torch.from_numpy(recorded[f"{key}.cls"])
        with torch.inference_mode():
            close(backbone.network.encode_image(images), expected, 2e-5)
        found = backbone.encode(images, FeatureRequest()).image
        close(found, expected / expected.norm(dim=1, keepdim=True), 1e-5)


def test_maps_and_probabilities(recorded, models, images, close):
    normal, abnormal = torch.from_numpy(recorded["anchors"])
    anchors, method = make_anchors(normal[None], abnormal[None]), AnoCLIP()
    for key, backbone in models.items():
        features = backbone.encode(images, method.request())
        context = MethodContext(anchors, tuple(images.shape[2:]), [])
        close(method.patch_map(features, context), recorded[f"{key}.patch_prob_abnormal"], 1e-6)
        scores = method.score(features, context)
        close(scores.map, recorded[f"{key}.anomaly_map"], 1e-6)
        close(scores.image, recorded[f"{key}.cls_prob_abnormal"], 1e-6)
        close(abnormal_probability(features.image, anchors.pair), recorded[f"{key}.cls_prob_abnormal"], 1e-6)


def test_a_stream_through_all_blocks_is_another_number(recorded, models, images, close):
    for key, backbone in models.items():
        found = backbone.encode(images, FeatureRequest(frozenset([-1]), start_block=0))
        close(found.values(-1).flatten(1, 2), recorded[f"{key}.vv_last_all_blocks_f64"], 5e-5)
        published = backbone.encode(images, FeatureRequest(frozenset([-1]), start_block=backbone.depth - 12))
        auto = backbone.encode(images, AnoCLIP().request())
        assert torch.equal(published.values(-1), auto.values(-1))
