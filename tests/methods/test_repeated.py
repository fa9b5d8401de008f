"""Repeated defects: images that share an unusual pattern are no references for each other."""

import sys

import pytest
import torch
from torch.nn import functional as F

from clipspect.backbones.features import Features
from clipspect.errors import UsageError
from clipspect.methods.base import MethodContext
from clipspect.methods.repeated import find_communities, link_images, repeated_images
from clipspect.registry import make_method

COUNT, GRID, WIDTH = 12, (5, 5), 16
SHARED = [0, 3, 5, 8]
"""Images with the same pattern, each at a different patch."""


def make_features(shared=(), own=(), seed=0):
    """Images of 25 directions that all have in common; some have another direction at one patch."""
    generator = torch.Generator().manual_seed(seed)
    normal = F.normalize(torch.randn(25, WIDTH, generator=generator), dim=-1)
    patches = normal + 0.1 * torch.randn(COUNT, 25, WIDTH, generator=generator)
    pattern = -4 * normal.sum(0)
    for image in shared:
        patches[image, image] = pattern + 0.1 * torch.randn(WIDTH, generator=generator)
    for image in own:
        patches[image, 20] = 4 * torch.randn(WIDTH, generator=generator)
    embeddings = F.normalize(torch.randn(COUNT, 8, generator=generator), dim=-1)
    return Features(embeddings, GRID, 1, value_patches={1: patches.unflatten(1, GRID)})


def run(features, **settings):
    method = make_method("mutual", {"output": "visual", "blocks": "1", **settings})
    rows = list(range(len(features)))
    context = MethodContext(None, (20, 20), rows, pool_index=rows)
    compared = method.gather(features, context)
    return method.visual_map(features, context, compared).flatten(1), compared


def test_a_repeated_defect_is_found_where_its_images_are_left_out():
    features = make_features(SHARED, own=[6])
    kept, _ = run(features, repeated="keep", lowest=0.25)
    found, compared = run(features, repeated="leave-out", lowest=0.25)
    assert compared.left_out == set(SHARED)
    for image in SHARED:
        assert kept[image, image] < kept[6, 20] / 5
        assert found[image, image] > 0.8 * found[6, 20]
    others = [i for i in range(COUNT) if i not in SHARED]
    assert found[others].argmax() == kept[others].argmax()


@pytest.mark.parametrize("shared", [[], [2], [2, 9]])
def test_nothing_is_left_out_where_fewer_than_three_images_share_a_pattern(shared):
    _, compared = run(make_features(shared, own=[4, 6, 7]), repeated="leave-out")
    assert compared.left_out == frozenset()


def test_what_recurs_in_more_than_half_of_the_images_is_normal():
    _, compared = run(make_features(range(7)), repeated="leave-out")
    assert compared.left_out == frozenset()


def test_two_groups_are_two_communities_and_at_most_half_of_the_set_is_left_out():
    weights = torch.zeros(10, 10)
    for group, strength in (([0, 1, 2], 5.0), ([4, 5, 6, 7], 2.0)):
        for a in group:
            for b in group:
                weights[a, b] = strength * (a != b)
    assert [0, 1, 2] in find_communities(weights)
    assert [4, 5, 6, 7] in find_communities(weights)
    assert repeated_images(weights) == [0, 1, 2]  # both would be seven of ten
    assert repeated_images(0.05 * weights) == []
    weights[8, 0] = weights[0, 8] = 0.3  # a stray link
    assert repeated_images(weights) == [0, 1, 2]


def test_tiles_of_two_images_are_two_images_not_four():
    weights = torch.zeros(10, 10)
    weights[:4, :4] = 4 * (1 - torch.eye(4))
    assert repeated_images(weights) == [0, 1, 2, 3]
    assert repeated_images(weights, ["a", "a", "b", "b", "c", "d", "e", "f", "g", "h"]) == []


def test_an_image_without_others_links_nothing():
    assert link_images(torch.zeros(2, 2, 4), [[], []]).tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_copies_are_not_a_repeated_pattern_but_excluded_as_before(detect, photos):
    """Without anything shared, leaving out changes no score."""
    kept = detect(make_method("mutual", {"output": "visual"}), photos)
    found = detect(make_method("mutual", {"output": "visual", "repeated": "leave-out"}), photos)
    assert torch.equal(kept.map, found.map)


def test_known_good_references_are_never_left_out():
    features = make_features(SHARED)
    method = make_method("mutual", {"output": "visual", "blocks": "1", "repeated": "leave-out"})
    rows = list(range(COUNT))
    context = MethodContext(None, (20, 20), rows, references=features, pool_index=rows)
    assert method.gather(features, context).left_out == frozenset()


def test_images_left_out_say_so():
    features = make_features(SHARED)
    method = make_method(
        "musc", {"path": "value", "blocks": "1", "repeated": "leave-out", "image_norm": False}
    )
    rows = list(range(COUNT))
    context = MethodContext(None, (20, 20), rows, pool_index=rows)
    state = method.prepare(features, context)
    scores = method.score(features, MethodContext(None, (20, 20), rows, pool_index=rows, state=state))
    assert [bool(notes) for notes in scores.notes] == [row in SHARED for row in rows]
    assert "4 images with it are no references" in scores.notes[0][0]


def test_errors_name_the_remedy(monkeypatch):
    features = make_features(SHARED)
    with pytest.raises(UsageError, match="raise exact_limit"):
        run(features, repeated="leave-out", exact_limit=4)
    monkeypatch.setitem(sys.modules, "leidenalg", None)
    with pytest.raises(UsageError, match=r"pip install 'clipspect\[mutual\]'"):
        run(features, repeated="leave-out")
    with pytest.raises(UsageError, match="'keep', 'leave-out'"):
        make_method("mutual", {"repeated": "yes"})
