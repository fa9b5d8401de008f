"""Wording of verdicts: counts and nouns agree."""

from __future__ import annotations

import pytest

from clipspect.postprocess.verdict import count_verdict
from clipspect.types import plural


@pytest.mark.parametrize(("count", "text"), [(0, "0 images"), (1, "1 image"), (1200, "1,200 images")])
def test_a_noun_agrees_with_its_count(count, text):
    assert plural(count, "image") == text


@pytest.mark.parametrize(
    ("count", "verdict", "text"),
    [
        (1, "stands_out", "1 stands out"),
        (7, "stands_out", "7 stand out"),
        (7, "clean", "7 clean"),
        (1, "error", "1 failed"),
    ],
)
def test_a_verdict_agrees_with_its_count(count, verdict, text):
    assert count_verdict(count, verdict) == text
