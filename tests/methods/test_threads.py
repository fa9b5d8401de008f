"""Scores and maps agree for 1, 2 and 4 threads."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

import clipspect
from helpers.images import plate


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    "method", ["anoclip", "anoclip+", "dual-image", "mutual", "musc", "winclip", "anomaly-dino"]
)
def test_any_number_of_threads_gives_the_same_scores(threads, small_model, method):
    detector = clipspect.load(method, str(small_model))
    images = [plate(number, blot=number == 0) for number in range(5)]
    needs = detector.methods[0].needs_references
    references = detector.encode_references([plate(9), plate(8)]) if needs else None
    found = {}
    for count in (1, 2, 4):
        torch.set_num_threads(count)
        found[count] = list(detector.stream(images, object="plate", references=references))
    for count in (2, 4):
        for one, other in zip(found[1], found[count], strict=True):
            assert other.error is None
            assert other.raw_score == pytest.approx(one.raw_score, abs=1e-5)
            np.testing.assert_allclose(other.score_map, one.score_map, atol=1e-5)
