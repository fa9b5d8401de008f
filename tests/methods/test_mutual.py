"""Mutual scoring: the lowest share of reference images, exactly or through an index."""

import sys

import pytest
import torch
from torch.nn import functional as F

from clipspect.errors import UsageError
from clipspect.methods import fast_search
from clipspect.methods.fast_search import FastSearch
from clipspect.methods.patch_index import PatchIndex
from clipspect.methods.set_scoring import lowest_mean
from clipspect.methods.visual import mutual_distances, nearest_distances
from clipspect.registry import make_method

from .conftest import make_images, run_set


def random_tokens(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_nearest_distances_are_the_brute_force_ones():
    tokens, references = random_tokens(5, 8), random_tokens(3, 7, 8, seed=1)
    expected = ((1 - torch.einsum("nd,krd->knr", tokens, references)) / 2).amin(2)
    torch.testing.assert_close(nearest_distances(tokens, references), expected, rtol=0, atol=1e-6)
    assert nearest_distances(references[1], references)[1].max() == pytest.approx(0, abs=1e-6)
    assert nearest_distances(tokens, torch.zeros(2, 3, 8)).tolist() == [[0.5] * 5] * 2


def test_the_lowest_share_is_averaged_over_images_not_patches(detect, photos):
    """With a share of one reference image, mutual is the nearest over all; with all of them, the mean."""
    one = detect(make_method("mutual", {"lowest": 0.01, "output": "visual"}), photos)
    every = detect(make_method("mutual", {"lowest": 1.0, "output": "visual"}), photos)
    all_partners = detect(make_method("dual-image", {"references": 5, "output": "visual"}), photos)
    torch.testing.assert_close(every.map, all_partners.map, rtol=0, atol=2e-6)
    assert (one.map <= every.map + 1e-6).all()


def test_an_index_that_visits_everything_agrees_with_the_exact_score(detect, photos):
    exact = detect(make_method("mutual", {"output": "visual"}), photos)
    index = detect(make_method("mutual", {"output": "visual", "exact_limit": 1}), photos)
    torch.testing.assert_close(index.map, exact.map, rtol=0, atol=1e-4)


def test_an_image_outside_the_index_is_compared_with_all_of_it():
    known = random_tokens(4, 50, 8)
    index = PatchIndex(known)
    assert index.lowest_mean(known[2], [], 1).max() == pytest.approx(0, abs=1e-6)
    assert index.lowest_mean(known[2], [2], 1).min() > 1e-3
    one, two = (index.lowest_mean(known[2], own, 1) for own in ([2], [1, 2]))
    assert (two >= one).all()
    assert (two > one).any()


def test_explicit_references_take_the_place_of_the_set(detect, photos):
    method = make_method("mutual", {"output": "visual", "lowest": 1.0})
    scores = detect(method, photos[:2], reference_images=photos[2:4])
    pair = detect(
        make_method("dual-image", {"output": "visual", "explicit": "mean"}),
        photos[:2],
        reference_images=photos[2:4],
    )
    torch.testing.assert_close(scores.map, pair.map, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    "settings",
    [{}, {"exact_limit": 1}, {"left_out": 0.3}, {"search": "fast"}, {"search": "fast", "left_out": 0.3}],
)
def test_an_image_among_its_references_is_not_compared_with_itself(detect, photos, settings):
    method = make_method("mutual", {"output": "visual", **settings})
    among = detect(method, photos[:1], reference_images=photos[:3])
    without = detect(method, photos[:1], reference_images=photos[1:3])
    torch.testing.assert_close(among.map, without.map, rtol=0, atol=1e-4)
    assert among.map.max() > 1e-3


def test_leaving_out_suspicious_patches_can_only_raise_distances(detect, photos):
    settings = {"output": "visual", "lowest": 0.01}
    everything = detect(make_method("mutual", settings), photos)
    without = detect(make_method("mutual", {**settings, "left_out": 0.5}), photos)
    assert (without.map >= everything.map - 1e-6).all()
    assert (without.map - everything.map).max() > 1e-3


def test_a_set_beyond_the_pool_is_scored_in_bounded_memory(backbone, anchors):
    photos = make_images(9, seed=4)
    method = make_method("mutual")
    batches = [run_set(backbone, anchors, method, photos, pool=4, batch=b).map for b in (9, 2)]
    torch.testing.assert_close(*batches, rtol=0, atol=2e-6)


def test_without_faiss_the_message_says_how_to_get_it(detect, photos, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UsageError, match=r"pip install 'clipspect\[mutual\]'"):
        detect(make_method("mutual", {"exact_limit": 2}), photos)


def test_only_the_named_reference_images_are_compared():
    tokens, references = random_tokens(5, 8), random_tokens(6, 7, 8, seed=1)
    every = nearest_distances(tokens, references)
    for rows in ([1, 2, 3], [5, 0, 2], [0, 2, 1, 3]):
        torch.testing.assert_close(
            nearest_distances(tokens, references, rows), every[rows], rtol=0, atol=1e-6
        )
    assert nearest_distances(tokens, references, []).shape == (0, 5)


def test_each_pair_of_a_set_is_multiplied_once_and_gives_both_distances():
    tokens = random_tokens(5, 9, 8)
    pairs = mutual_distances(tokens)
    for i in range(5):
        others = [j for j in range(5) if j != i]
        expected = nearest_distances(tokens[i], tokens, others)
        torch.testing.assert_close(pairs[i, others], expected, rtol=0, atol=1e-6)


def test_fast_search_that_keeps_everything_is_exact():
    """Eight dimensions fit into the components, and all patches are searched."""
    known, tokens = random_tokens(6, 40, 8), random_tokens(30, 8, seed=1)
    search, rows = FastSearch.fit(known, None), [0, 2, 3, 5]
    distances = nearest_distances(tokens, known, rows)
    torch.testing.assert_close(
        search.lowest_mean(tokens, rows, 2), lowest_mean(distances, 2), rtol=0, atol=1e-5
    )
    torch.testing.assert_close(
        search.lowest_mean(tokens, rows, 3, euclidean=True),
        lowest_mean(distances.sqrt(), 3),
        rtol=0,
        atol=1e-4,
    )


@pytest.mark.parametrize(
    ("name", "settings"),
    [("mutual", {}), ("mutual", {"degrees": "1,3"}), ("musc", {}), ("mutual", {"left_out": 0.2})],
)
def test_fast_scores_are_close_to_exact_ones(detect, photos, name, settings):
    exact, fast = (
        detect(make_method(name, {**settings, "search": search}), photos) for search in ("exact", "fast")
    )
    assert (fast.map - exact.map).abs().max() < 0.01
    assert torch.corrcoef(torch.stack([fast.map.flatten(), exact.map.flatten()]))[0, 1] > 0.999


def test_large_sets_are_searched_fast_by_default(detect, photos, monkeypatch):
    monkeypatch.setattr(fast_search, "COLUMNS", 4)  # few components, so that fast and exact differ
    exact, fast = (detect(make_method("mutual", {"search": how}), photos) for how in ("exact", "fast"))
    assert not torch.equal(exact.map, fast.map)
    assert torch.equal(detect(make_method("mutual"), photos).map, exact.map)
    monkeypatch.setattr(fast_search, "AUTO_EXACT", len(photos) - 1)
    assert torch.equal(detect(make_method("mutual"), photos).map, fast.map)
    assert make_method("mutual", {"repeated": "leave-out"}).search_of(100) == "exact"
    assert make_method("musc").search_of(100) == "exact", "as published"


def test_fast_search_compares_with_a_bounded_number_of_patches(monkeypatch):
    """Reported distances are still exact, so leaving patches out can only raise them."""
    monkeypatch.setattr(fast_search, "MAX_PATCHES", 60)
    known, tokens = random_tokens(6, 40, 8), random_tokens(30, 8, seed=1)
    search = FastSearch.fit(known, None)
    assert search.tokens.shape == (6, 10, 8)
    bounded, every = search.lowest_mean(tokens, range(6), 1), nearest_distances(tokens, known).amin(0)
    assert (bounded >= every - 1e-5).all()
    assert (bounded - every).max() > 1e-3


@pytest.mark.parametrize("euclidean", [False, True])
def test_an_image_without_numbers_leaves_the_fast_scores_of_others_as_they_are(euclidean):
    known, tokens = random_tokens(6, 40, 8), random_tokens(30, 8, seed=1)
    known[2] = float("nan")
    found = FastSearch.fit(known, None).lowest_mean(tokens, range(6), 5, euclidean=euclidean)
    distances = nearest_distances(tokens, known, [0, 1, 3, 4, 5])
    distances = distances.sqrt() if euclidean else distances
    torch.testing.assert_close(found, lowest_mean(distances, 5), rtol=0, atol=1e-4)
    assert FastSearch.fit(known[2:3], None).lowest_mean(tokens, [0], 1).isnan().all()


def test_fast_scores_do_not_depend_on_the_order_of_the_set(backbone, anchors, monkeypatch):
    monkeypatch.setattr(fast_search, "MAX_PATCHES", 200)
    photos = make_images(6, seed=4)
    method = make_method("mutual", {"search": "fast"})
    order = [3, 0, 5, 2, 1, 4]
    first, second = (run_set(backbone, anchors, method, photos, order=o) for o in (None, order))
    torch.testing.assert_close(first.map, second.map, rtol=0, atol=1e-5)


def test_fast_search_and_left_out_images_exclude_each_other(detect, photos):
    with pytest.raises(UsageError, match="search=exact"):
        detect(make_method("mutual", {"search": "fast", "repeated": "leave-out"}), photos)
