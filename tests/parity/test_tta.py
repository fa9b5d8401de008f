"""Test-time adaptation gives the official numbers, from the official initial weights and noise."""

import json

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from clipspect.methods.base import MethodContext
from clipspect.methods.scoring import smooth, stitch
from clipspect.methods.tta.adapters import Layers
from clipspect.methods.tta.losses import state_logits
from clipspect.registry import make_method

ADAPTERS = [("text_adapter", "text-bank"), ("adapter", "linear")]


@pytest.fixture(scope="module")
def recorded(parity):
    return parity.arrays("anoclip_tta")


@pytest.fixture(scope="module")
def object_name(parity):
    """The object the fixtures were recorded with: the one whose anchors the AnoCLIP fixture holds."""
    pair = parity.arrays("anoclip_map")["class_embeddings"]
    text = parity.arrays("text")
    nouns = list(json.loads((parity.folder / "prompts.json").read_text(encoding="utf-8")))
    stored = {n: text.get(f"{n.replace(' ', '-')}.class_embeddings") for n in nouns}
    return next(
        n for n, embedding in stored.items() if embedding is not None and np.allclose(embedding, pair)
    )


@pytest.fixture(scope="module")
def images(parity):
    return parity.tensor(parity.arrays("vv"), "images")


@pytest.fixture(scope="module")
def context(parity, object_name, images):
    return MethodContext(parity.anchors(object_name), tuple(images.shape[2:]), seeds=(0, 1))


@pytest.fixture(scope="module")
def features(parity, images):
    return parity.backbone.encode(images, make_method("anoclip+").request())


def adapted(parity, recorded, features, context, prefix, adapter, image):
    """What our adaptation makes of one image from the recorded weights and noise."""
    epochs = len(recorded[f"{prefix}.loss"])
    method = make_method("anoclip+", {"adapter": adapter, "epochs": epochs})
    start = Layers(
        parity.tensor(recorded, f"{prefix}.init_weight")[None],
        parity.tensor(recorded, f"{prefix}.init_bias")[None],
    )
    noise = parity.tensor(recorded, f"{prefix}.noise").flatten(1, -2)[None]
    tokens = features.values(-1)[image : image + 1].flatten(1, 2)
    descent = method.adapt(tokens, start, noise, context)
    grid = method.adapted_map(tokens, descent.layers, context).reshape(1, *features.grid)
    return method, descent, grid


def check_weights(actual, expected):
    """AdamW normalises near-zero gradients, so rounding is amplified in a few entries."""
    off = np.abs(actual.numpy() - expected)
    assert off.max() <= 5e-4
    assert (off <= 1e-5).mean() >= 0.98


@pytest.mark.parametrize(("prefix", "adapter"), ADAPTERS)
def test_first_image_follows_the_official_run(parity, recorded, features, context, close, prefix, adapter):
    name = f"{prefix}.image0"
    method, descent, grid = adapted(parity, recorded, features, context, name, adapter, image=0)
    close(descent.losses[:, 0], recorded[f"{name}.loss"], 2e-6)
    check_weights(descent.layers.weight[0], recorded[f"{name}.final_weight"])
    check_weights(descent.layers.bias[0], recorded[f"{name}.final_bias"])
    close(grid[0], recorded[f"{name}.patch_prob_abnormal"], 5e-6)
    close(method.finish(grid, context)[0], recorded[f"{name}.anomaly_map"], 5e-6)


@pytest.mark.parametrize(("prefix", "adapter"), ADAPTERS)
def test_second_image_starts_with_a_fresh_optimiser(
    parity, recorded, features, context, close, prefix, adapter
):
    name, fresh = f"{prefix}.image1", f"{prefix}.image1_fresh_optimizer"
    _, descent, grid = adapted(parity, recorded, features, context, name, adapter, image=1)
    close(descent.losses[:, 0], recorded[f"{fresh}.loss"], 2e-6)
    check_weights(descent.layers.bias[0], recorded[f"{fresh}.final_bias"])
    close(grid[0], recorded[f"{fresh}.patch_prob_abnormal"], 5e-6)


@pytest.mark.parametrize(("prefix", "adapter"), ADAPTERS)
def test_predictions_of_the_first_epoch_match(parity, recorded, features, context, close, prefix, adapter):
    for image in range(2):
        name = f"{prefix}.image{image}"
        layers = Layers(
            parity.tensor(recorded, f"{name}.init_weight")[None],
            parity.tensor(recorded, f"{name}.init_bias")[None],
        )
        tokens = features.values(-1)[image : image + 1].flatten(1, 2)
        noisy = tokens + parity.tensor(recorded, f"{name}.noise")[0].flatten(0, -2)
        fixed = make_method("anoclip+", {"adapter": adapter}).make_adapter(context)
        for row, part in enumerate((tokens, noisy)):
            probabilities = state_logits(fixed(part, layers), context.anchors.pair).softmax(-1)[0]
            close(probabilities.reshape(*features.grid, 2), recorded[f"{name}.pred_first_epoch"][row], 2e-6)


def test_two_tiles_adapt_as_one_image(parity, close):
    """The official VisA setting: one adapter for both tiles, its loss on the stitched logits (image 0)."""
    visa = parity.arrays("anoclip_visa")
    image = parity.tensor(visa, "images")[:1]
    height, width = image.shape[2:]
    tiles = torch.cat([image[..., :height], image[..., width - height :]])
    method = make_method("anoclip+", {"tiles": "together", "epochs": len(visa["adapter.image0.loss"])})
    features = parity.backbone.encode(tiles, method.request())
    context = MethodContext(parity.anchors("macaroni"), (height, height), seeds=(0, 0))
    start = Layers(
        parity.tensor(visa, "adapter.image0.init_weight")[None],
        parity.tensor(visa, "adapter.image0.init_bias")[None],
    )
    noise = parity.tensor(visa, "adapter.image0.noise").flatten(1, -2)[None]
    tokens = features.values(-1).flatten(1, 2)
    places = ((0, 0), (0, width - height))
    descent = method.adapt_tiles(tokens, features.grid, places, start, noise, context)
    close(descent.losses[:, 0], visa["adapter.image0.loss"], 2e-6)
    check_weights(descent.layers.weight[0], visa["adapter.image0.final_weight"])
    check_weights(descent.layers.bias[0], visa["adapter.image0.final_bias"])
    shared = Layers(*(part.repeat_interleave(2, 0) for part in vars(descent.layers).values()))
    grid = smooth(method.adapted_map(tokens, shared, context).reshape(2, *features.grid))
    large = F.interpolate(grid[:, None], (height, height), mode="bilinear", align_corners=True)
    close(stitch(large, places)[0], visa["adapter.anomaly_map"][0], 2e-6)
