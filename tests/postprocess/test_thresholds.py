"""Thresholds without labels hold what they promise and stay sensible where nothing can be promised."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipspect.errors import UsageError
from clipspect.postprocess.thresholds import given_thresholds, guess_thresholds, thresholds_from_good


def test_good_images_pass_at_the_chosen_rate():
    rng = np.random.default_rng(0)
    alarms = []
    for _ in range(300):
        scores = rng.beta(2, 20, 120)
        limits = thresholds_from_good(scores[:60], scores[:60] / 2, 0.1)
        alarms.append((scores[60:] >= limits.image).mean())
    # 1 − 55/61, what the rank ⌈61 · 0.9⌉ promises
    assert np.mean(alarms) == pytest.approx(6 / 61, abs=0.01)


def test_no_good_image_itself_reaches_a_threshold_from_few():
    limits = thresholds_from_good([0.2, 0.5, 0.3], [0.6, 0.4, 0.5], 0.01)
    assert 0.5 < limits.image < 0.5001
    assert 0.6 < limits.pixel < 0.6001
    assert limits.source == "good images"
    assert "3 good images" in limits.note
    assert "no rate below 0.25" in limits.note


def test_many_good_images_need_no_reservation():
    note = thresholds_from_good(list(np.linspace(0, 0.5, 200)), [0.1] * 200, 0.01).note
    assert note == "From 200 good images at a false-alarm rate of 0.01."


@pytest.mark.parametrize("rate", [0, 1, -0.1, float("nan")])
def test_an_impossible_rate_is_refused(rate):
    with pytest.raises(UsageError, match="between 0 and 1"):
        thresholds_from_good([0.1], [0.1], rate)


def test_good_images_that_all_failed_are_refused():
    with pytest.raises(UsageError, match="none of the good images"):
        thresholds_from_good([float("nan")], [], 0.01)


def test_given_thresholds_are_taken_as_they_are():
    limits = given_thresholds(0.7, 0.4)
    assert (limits.image, limits.pixel, limits.source) == (0.7, 0.4, "given")
    assert given_thresholds(0.3).pixel_open
    with pytest.raises(UsageError, match=r"within \[0, 1\]"):
        given_thresholds(1.2)


def pictures(
    rng: np.random.Generator, good: int, defective: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, maps (N, 1000) with a tenth of each defective one hot, and which are defective."""
    scores = np.concatenate([rng.normal(0.2, 0.03, good), rng.normal(0.75, 0.1, defective)]).clip(0, 1)
    maps = rng.normal(0.15, 0.03, (good + defective, 1000)).clip(0, 1)
    maps[good:, :100] = rng.normal(0.8, 0.05, (defective, 100)).clip(0, 1)
    return scores, maps, np.arange(good + defective) >= good


@pytest.mark.parametrize(("good", "defective"), [(100, 0), (95, 5), (70, 30), (50, 50), (10, 10), (19, 1)])
def test_a_guess_tells_good_from_defective_up_to_half_and_half(good, defective):
    flagged_good, missed = [], []
    for seed in range(20):
        scores, maps, wrong = pictures(np.random.default_rng(seed), good, defective)
        limits = guess_thresholds(scores, maps.max(axis=1), maps)
        flagged_good.append((scores[~wrong] >= limits.image).mean())
        if defective:
            missed.append((scores[wrong] < limits.image).mean())
        assert 0.2 < limits.pixel < 0.6
    assert np.mean(flagged_good) < 0.03
    assert not missed or np.mean(missed) < 0.1


def test_equal_scores_flag_nothing():
    limits = guess_thresholds([0.3] * 20, [0.2] * 20, np.full(500, 0.2))
    assert limits.image > 0.3
    assert limits.pixel > 0.2


def test_few_images_are_held_against_the_neutral_score_and_the_note_says_so():
    limits = guess_thresholds([0.9], [0.9], [0.1, 0.12, 0.11, 0.9])
    assert limits.image == 0.5
    assert "Fewer than 8 images" in limits.note


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(0, 1) | st.just(float("nan")), max_size=16),
    st.lists(st.floats(0, 1) | st.just(float("nan")), max_size=16),
)
def test_a_guess_is_always_a_pair_of_numbers_within_zero_and_one(scores, samples):
    limits = guess_thresholds(scores, scores, samples)
    assert 0 < limits.image < 1
    assert 0 < limits.pixel < 1
    assert limits.source == "guess"
