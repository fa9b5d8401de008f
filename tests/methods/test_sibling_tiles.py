"""In every method that compares images, no tile of an image is compared with another tile of the same image."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from clipspect.backbones.sources import Sources
from clipspect.methods.base import MethodContext
from clipspect.registry import list_methods, make_method, method_class

from .conftest import SIZE, make_images

VISUAL = {"output": "visual"}
SET_METHODS = [
    ("dual-image", {**VISUAL, "references": 1}),
    ("dual-image", {**VISUAL, "references": 5, "pairing": "random"}),
    ("dual-image", {**VISUAL, "references": 2, "path": "ordinary"}),
    ("dual-image+", {**VISUAL, "references": 3}),
    ("mutual", {**VISUAL, "lowest": 1.0}),
    ("mutual", {**VISUAL, "lowest": 0.1, "degrees": "1,3"}),
    ("mutual", {**VISUAL, "lowest": 0.1, "left_out": 0.2}),
    ("mutual", {**VISUAL, "lowest": 0.1, "exact_limit": 1}),
    ("mutual", {**VISUAL, "lowest": 0.1, "repeated": "leave-out"}),
    ("musc", {"lowest": 0.1}),
    ("musc", {"lowest": 0.1, "exact_limit": 1, "rescoring": ""}),
]
REFERENCE_METHODS = [
    ("dual-image", VISUAL),
    ("dual-image", {**VISUAL, "explicit": "mean"}),
    ("mutual", VISUAL),
    ("musc", {"rescoring": ""}),
    ("anomaly-dino", {"rotations": 1}),
    ("anomaly-dino", {"rotations": 1, "neighbors": 3}),
    ("subspace", {"rotations": 1}),
    ("winclip+", {}),
]


def test_every_method_that_compares_images_is_here():
    named = {name for name, _ in (*SET_METHODS, *REFERENCE_METHODS)}
    kinds = {name: method_class(name) for name in list_methods()}
    assert named == {n for n, kind in kinds.items() if kind.scope == "set" or kind.accepts_references}


def encode(backbone, method, photos, names, tiles):
    features = backbone.encode(photos, method.request())
    return replace(features, sources=Sources(tuple(names), tuple(tiles)))


@torch.inference_mode()
def score_first(backbone, anchors, method, photos, names, tiles, references=None):
    """Scores of the first image: of a set, or against explicit references."""
    features = encode(backbone, method, photos, names, tiles)
    seeds = [int(name, 36) + tile for name, tile in zip(names, tiles, strict=True)]

    def context(rows, state):
        return MethodContext(
            anchors,
            (SIZE, SIZE),
            [seeds[i] for i in rows],
            backbone=backbone,
            images=photos[rows],
            references=references,
            pool_index=rows if references is None else [-1] * len(rows),
            state=state,
        )

    rows = list(range(len(photos)))
    state = method.prepare(features, context(rows, None)) if method.scope == "set" else None
    scores = method.score(features[[0]], context([0], state))
    assert not scores.notes or scores.notes[0] == ()
    return scores.map[0]


@pytest.mark.parametrize(("name", "settings"), SET_METHODS)
def test_a_sibling_in_the_set_changes_nothing(backbone, anchors, name, settings):
    """The sibling shows the very same defect: a comparison with it would find no distance at all."""
    photos = make_images(9, seed=3)[[1, 0, 2, 4, 6, 8]]  # one with a spot, five without
    names = ["a", "b", "c", "d", "e", "f"]
    method = make_method(name, settings)
    alone = score_first(backbone, anchors, method, photos, names, [0] * 6)
    tiled = torch.cat([photos[:1], photos])
    found = score_first(backbone, anchors, method, tiled, ["a", *names], [0, 1, 0, 0, 0, 0, 0])
    if name == "mutual" and "exact_limit" not in settings:
        assert alone.max() > 0.01
    torch.testing.assert_close(found, alone, rtol=0, atol=1e-4 if "exact_limit" in settings else 5e-6)


@pytest.mark.parametrize(("name", "settings"), REFERENCE_METHODS)
def test_tiles_of_the_image_among_the_references_change_nothing(backbone, anchors, name, settings):
    photos = make_images(5, seed=3)[[1, 0, 2, 3, 4]]
    method = make_method(name, settings)
    query, good = photos[:1], photos[1:4]
    without = encode(backbone, method, good, ["b", "c", "d"], [0, 0, 0])
    among = encode(
        backbone, method, torch.cat([query, good, query]), ["a", "b", "c", "d", "a"], [1, 0, 0, 0, 2]
    )
    alone = score_first(backbone, anchors, method, query, ["a"], [0], without)
    found = score_first(backbone, anchors, method, query, ["a"], [0], among)
    torch.testing.assert_close(found, alone, rtol=0, atol=1e-5)
    foreign = encode(
        backbone, method, torch.cat([query, good, query]), ["x", "b", "c", "d", "x"], [1, 0, 0, 0, 2]
    )
    assert not torch.allclose(
        score_first(backbone, anchors, method, query, ["a"], [0], foreign), alone, atol=1e-3
    )
