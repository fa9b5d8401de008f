"""Sentences that begin alike are encoded once as far as they do, and come out as open_clip gives them."""

from __future__ import annotations

import pytest
import torch

from backbones.test_encode import backbone_of
from clipspect.backbones.openclip.text_tower import shared_beginnings


def test_tokens_behind_the_same_beginning_are_one():
    tokens = torch.tensor(
        [[9, 1, 2, 8, 0], [9, 1, 3, 8, 0], [9, 2, 2, 8, 0], [9, 1, 2, 8, 0], [9, 0, 2, 5, 8]]
    )
    places, firsts = shared_beginnings(tokens)
    rows = [tuple(row[: 5 if row[-1] else 4].tolist()) for row in tokens]
    beginnings = {row[:end] for row in rows for end in range(1, len(row) + 1)}
    assert len(firsts) == len(beginnings) == 13
    met = {}
    for number, row in enumerate(rows):
        for column in range(len(row)):
            met.setdefault(int(places[number, column]), set()).add(row[: column + 1])
    assert all(len(same) == 1 for same in met.values())
    assert sorted(met) == list(range(13))
    for place, first in enumerate(firsts.tolist()):
        row, column = divmod(first, 5)
        assert met[place] == {rows[row][: column + 1]}


@pytest.mark.parametrize("name", ["vit", "quick-gelu-vit", "resnet"])
def test_embeddings_are_open_clips_own_whatever_they_share(name):
    backbone = backbone_of(name)
    sentences = [
        f"a {way} of a {state} nut" for way in ("photo", "close-up photo") for state in ("good", "bad")
    ]
    sentences += ["a photo", "a photo of a bad nut", "a !€ nut with a hole"]
    tokens = backbone.tokenize(sentences)
    assert (tokens[-1, : int(tokens[-1].argmax())] == 0).any()  # the number of padding is also that of "!"
    with torch.inference_mode():
        expected = backbone.network.encode_text(tokens)
    torch.testing.assert_close(backbone.encode_text(sentences), expected, atol=5e-6, rtol=0)
