"""Dual-Image against an independent derivation of docs/methods.md §5 (dual_image.npz): our reading, not the paper."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from clipspect.backbones.features import Features, span_blocks
from clipspect.methods.base import MethodContext
from clipspect.methods.dual_image import DualImage
from clipspect.methods.scoring import smooth, upsample
from clipspect.prompts.anchors import make_anchors

ATOL = 1e-6
CASES = ["k1", "k4"]


@pytest.fixture(scope="module")
def recorded(load_arrays):
    return load_arrays("dual_image")


@pytest.fixture(scope="module")
def features(recorded):
    tokens = torch.from_numpy(recorded["patch_tokens"])
    patches = dict(enumerate(tokens, start=1))
    embeddings = torch.from_numpy(recorded["image_embeddings"])
    return Features(embeddings, tuple(tokens.shape[2:4]), len(tokens), value_patches=patches)


@pytest.fixture(scope="module")
def context(recorded):
    normal, abnormal = torch.from_numpy(recorded["anchors"])
    size = tuple(int(n) for n in recorded["map_size"])
    return MethodContext(make_anchors(normal[None], abnormal[None]), size, [], pool_index=[-1])


def run(method, features, context, pairs):
    """Scores and visual maps of every image with its references, one image at a time."""
    scores, visual = [], []
    for image, rows in enumerate(pairs.tolist()):
        one = features[[image]]
        known = replace(context, seeds=[0], references=features[rows])
        state = method.prepare(one, replace(known, pool_index=[0]))
        scores.append(method.score(one, replace(known, state=state)))
        visual.append(method.visual_map(one, known, state.compared))
    return type(scores[0]).concat(scores), torch.cat(visual)


def test_the_last_quarter_of_the_blocks_is_compared(recorded, features):
    assert [b - 1 for b in DualImage().visual_blocks(features.depth)] == recorded["blocks"].tolist()
    assert [b - 1 for b in span_blocks((0.75, 1.0), features.depth)] == recorded["blocks"].tolist()


def test_language_maps_and_scores(recorded, features, context, close):
    method = DualImage(fusion="mean", explicit="mean")
    grid = method.patch_map(features, context)
    close(grid, recorded["language.grid"], ATOL)
    close(smooth(grid), recorded["language.grid_smoothed"], ATOL)
    close(method.finish(grid, context), recorded["language.map"], ATOL)
    close(method.image_score(features, context), recorded["language.image_score"], ATOL)
    sharp = DualImage(temperature=0.07).patch_map(features, context)
    close(sharp, recorded["language.grid_temperature_0.07"], 2e-6)


@pytest.mark.parametrize("case", CASES)
def test_joint_maps_and_scores(recorded, features, context, close, case):
    scores, visual = run(
        DualImage(fusion="mean", explicit="mean"), features, context, recorded[f"pairs_{case}"]
    )
    close(visual, recorded[f"{case}.visual.grid"], ATOL)
    close(smooth(visual), recorded[f"{case}.visual.grid_smoothed"], ATOL)
    close(upsample(smooth(visual), context.size), recorded[f"{case}.visual.map"], ATOL)
    close(scores.map, recorded[f"{case}.anomaly_map"], ATOL)
    close(scores.image, recorded[f"{case}.image_score"], ATOL)


@pytest.mark.parametrize("case", CASES)
def test_each_reference_by_itself(recorded, features, context, close, case):
    method, pairs = DualImage(fusion="mean", explicit="mean"), recorded[f"pairs_{case}"]
    for place in range(pairs.shape[1]):
        _, visual = run(method, features, context, pairs[:, place : place + 1])
        close(visual, recorded[f"{case}.visual.grid_per_reference"][:, place], ATOL)


def test_a_list_of_blocks_in_place_of_the_span(recorded, features, context, close):
    method = DualImage(fusion="mean", explicit="mean", blocks="3,6,9,12")
    _, visual = run(method, features, context, recorded["pairs_k1"])
    close(visual, recorded["k1.visual.grid_blocks_3_6_9_12"], ATOL)


def test_one_reference_for_each_image_gives_the_same(recorded, features, context, close):
    method, rows = DualImage(fusion="mean", explicit="mean"), list(range(len(features)))
    paired = features[recorded["pairs_k1"][:, 0].tolist()]
    known = replace(context, seeds=rows, paired_references=paired, pool_index=rows)
    scores = method.score(features, replace(known, state=method.prepare(features, known)))
    close(scores.map, recorded["k1.anomaly_map"], ATOL)
    close(scores.image, recorded["k1.image_score"], ATOL)
