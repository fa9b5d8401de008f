"""Sentences, tokens and text anchors against the official prompt ensemble (prompts.json, text.npz)."""

from __future__ import annotations

import json

import numpy as np
import pytest


def official_noun(name: str) -> str:
    """The official code maps macaroni1 and macaroni2 alone and keeps every other name as it stands."""
    return "macaroni" if name in ("macaroni1", "macaroni2") else name


@pytest.fixture
def composed(parity):
    return json.loads((parity.folder / "prompts.json").read_text(encoding="utf-8"))


def test_sentences_come_out_in_the_official_order(parity, composed):
    for name, expected in composed.items():
        object_name = official_noun(name)
        normal, abnormal = parity.prompts.prompt_set("anoclip").sentences(
            object_name, parity.prompts.domain("auto", object_name)
        )
        assert normal == expected["normal"]
        assert abnormal == expected["abnormal"]


def test_winclips_sentences_come_out_in_anomalibs_order(parity):
    expected = json.loads((parity.folder / "winclip_prompts.json").read_text(encoding="utf-8"))
    normal, abnormal = parity.prompts.prompt_set("winclip").sentences(expected["class_name"], ())
    assert normal == expected["normal"]
    assert abnormal == expected["abnormal"]


def test_tokens_embeddings_and_anchors(parity, composed, close):
    text = parity.arrays("text")
    names = {key.removesuffix(".class_embeddings") for key in text if key.endswith(".class_embeddings")}
    assert names
    for name in names:
        object_name = official_noun(name.replace("-", " "))
        sides = parity.prompts.prompt_set("anoclip").sentences(
            object_name, parity.prompts.domain("auto", object_name)
        )
        for side, sentences in zip(("normal", "abnormal"), sides, strict=True):
            tokens = parity.backbone.tokenize(sentences).numpy()
            expected = text[f"{name}.tokens_{side}"]
            assert np.array_equal(tokens[:, : expected.shape[1]], expected)
            assert not tokens[:, expected.shape[1] :].any()
        anchors = parity.anchors(object_name)
        close(anchors.pair, text[f"{name}.class_embeddings"], 5e-6)
        close(anchors.bank_normal, text[f"{name}.prompt_embeddings"][0], 5e-6)
        close(anchors.bank_abnormal, text[f"{name}.prompt_embeddings"][1], 5e-6)


def test_anchors_from_the_disk_cache_are_the_same(parity, close):
    first, again = parity.anchors("bottle"), parity.anchors("bottle")
    close(again.pair, first.pair, 0)
    close(again.bank, first.bank, 0)
