"""Pairs: never oneself, the same for the same set in any order, each image used as often as any other."""

from collections import Counter

import pytest
import torch
from torch.nn import functional as F

from clipspect.errors import UsageError
from clipspect.methods.pairing import pair

SEEDS = [11, 5, 8, 21, 3, 34, 13]
EMBEDDINGS = F.normalize(torch.randn(7, 4, generator=torch.Generator().manual_seed(1)), dim=1)


def others(own, count):
    """Every row but an image's own."""
    return [row for row in range(count) if row != own]


def partners(rule, count, order):
    """seed → seeds of its references, for the pool in some order."""
    seeds = [SEEDS[i] for i in order]
    pairing = pair(rule, count, seeds, EMBEDDINGS[order])
    return {
        seed: [seeds[j] for j in pairing.of(i, seed, EMBEDDINGS[order][i], others(i, 7))]
        for i, seed in enumerate(seeds)
    }


@pytest.mark.parametrize("rule", ["random", "nearest"])
@pytest.mark.parametrize("count", [1, 3, 6, 20])
def test_pairs_are_the_same_in_any_order_and_never_with_oneself(rule, count):
    first = partners(rule, count, list(range(7)))
    assert partners(rule, count, [6, 2, 0, 5, 3, 1, 4]) == first
    for seed, references in first.items():
        assert seed not in references
        assert len(set(references)) == len(references) == min(count, 6)


def test_random_pairs_use_each_image_as_often():
    used = Counter(
        seed for references in partners("random", 2, list(range(7))).values() for seed in references
    )
    assert set(used.values()) == {2}


def test_nearest_is_by_cosine():
    references = partners("nearest", 1, list(range(7)))
    likeness = EMBEDDINGS @ EMBEDDINGS.T - 2 * torch.eye(7)
    assert [references[s][0] for s in SEEDS] == [SEEDS[int(j)] for j in likeness.argmax(1)]


def test_another_set_is_paired_otherwise():
    pairs = {tuple(pair("random", 1, [*SEEDS[:-1], last], EMBEDDINGS).cycle) for last in range(100, 110)}
    assert len(pairs) > 5


def test_an_image_outside_the_pool_draws_by_its_own_content():
    pairing = pair("random", 1, SEEDS, EMBEDDINGS)
    drawn = Counter(pairing.of(-1, seed, EMBEDDINGS[0], range(7))[0] for seed in range(700))
    assert set(drawn.values()) == {100}
    assert pair("nearest", 1, SEEDS, EMBEDDINGS).of(-1, 0, EMBEDDINGS[4], range(7)) == [4]


@pytest.mark.parametrize("rule", ["random", "nearest"])
def test_copies_of_an_image_are_never_its_references(rule):
    pairing = pair(rule, 2, [5, 5, 9], EMBEDDINGS[[0, 0, 1]])
    assert [pairing.of(i, 5, EMBEDDINGS[0], [2]) for i in range(2)] == [[2], [2]]


def test_a_pool_of_one_is_refused():
    with pytest.raises(UsageError, match="there is only one"):
        pair("random", 1, [5], EMBEDDINGS[:1])


def test_another_seed_of_the_run_pairs_the_same_pool_otherwise():
    cycles = {tuple(pair("random", 1, SEEDS, EMBEDDINGS, seed).cycle) for seed in range(10)}
    assert len(cycles) > 5
    assert pair("random", 1, SEEDS, EMBEDDINGS, 0).cycle == pair("random", 1, SEEDS, EMBEDDINGS).cycle
