"""AnoCLIP's maps, views and scores against the official test loops (anoclip_map.npz, anoclip_visa.npz)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from clipspect.backbones.features import FeatureRequest
from clipspect.backbones.views import official_views
from clipspect.data.tiling import blend_tiles, plan_tiles
from clipspect.methods.anoclip import AnoCLIP
from clipspect.methods.base import MethodContext
from clipspect.methods.scoring import abnormal_probability, smooth


@pytest.fixture
def recorded(parity):
    return parity.arrays("anoclip_map")


@pytest.fixture
def images(parity):
    return parity.tensor(parity.arrays("vv"), "images")


def scene_of(parity, object_name, images):
    return MethodContext(parity.anchors(object_name), tuple(images.shape[-2:]), [0] * len(images))


def test_map_step_by_step(parity, recorded, images, close):
    method = AnoCLIP()
    context = scene_of(parity, "bottle", images)
    close(context.anchors.pair, recorded["class_embeddings"], 5e-6)
    features = parity.backbone.encode(images, method.request())
    patches = method.patch_map(features, context)
    close(patches, recorded["patch_prob_abnormal"], 2e-6)
    close(1 - patches, recorded["patch_probs"][..., 0], 2e-6)
    close(smooth(patches, 3), recorded["smoothed"], 2e-6)
    close(method.score(features, context).map, recorded["anomaly_map"], 2e-6)


def test_views(recorded, images, close):
    views = official_views(images[:1])[0]
    interpolated = 19  # from here on kornia interpolates where a quarter turn is exact
    close(views[:interpolated], recorded["views"][:interpolated], 1e-5)
    close(views[interpolated:], recorded["views"][interpolated:], 1e-4)


def test_image_scores_with_and_without_views(parity, recorded, images, close):
    context = scene_of(parity, "bottle", images)
    for views, key in (("official", "image_score"), ("none", "single_view_score")):
        method = AnoCLIP(views=views)
        scores = method.score(parity.backbone.encode(images, method.request()), context)
        close(scores.image, recorded[key], 2e-6)
    features = parity.backbone.encode(images[:1], FeatureRequest(views=True))
    close(abnormal_probability(features.views[0], context.anchors.pair), recorded["view_scores"], 2e-6)


def test_landscape_images_as_two_square_tiles(parity, close):
    recorded = parity.arrays("anoclip_visa")
    images = parity.tensor(recorded, "images")
    height, width = images.shape[-2:]
    tiles = plan_tiles(height, width, "square")
    method = AnoCLIP()
    for number, image in enumerate(images):
        pieces = torch.stack([image[:, *tile.slices] for tile in tiles])
        scores = method.score(
            parity.backbone.encode(pieces, method.request()), scene_of(parity, "macaroni", pieces)
        )
        stitched = blend_tiles(list(scores.map.numpy()), tiles, (height, width), taper=False)
        close(stitched, recorded["anomaly_map"][number], 2e-6)
        close(scores.image.mean(), np.float64(recorded["image_score"][number]), 2e-6)


def test_ordinary_tokens_in_place_of_the_value_path(parity, images, close):
    """The ablation of the V-V path: the same map from the ordinary path's recorded tokens."""
    method = AnoCLIP(path="ordinary")
    context = scene_of(parity, "bottle", images)
    recorded = parity.tensor(parity.arrays("vv"), "ori_l12").reshape(2, 5, 5, -1)
    expected = abnormal_probability(recorded, context.anchors.pair)
    features = parity.backbone.encode(images, method.request())
    assert not features.value_patches
    close(method.patch_map(features, context), expected, 2e-6)
