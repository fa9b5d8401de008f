"""Calibration: promised against realized false-alarm rates, one scale, and flagged if and only if a region is shown."""

import json

import numpy as np
import pytest

from clipspect.errors import UsageError
from clipspect.postprocess.calibration import (
    Calibration,
    Summary,
    calibrate_good,
    calibrate_unlabeled,
    gumbel_factor,
    shipped_level,
    summarize,
)
from clipspect.postprocess.regions import find_regions, region_mask
from clipspect.postprocess.verdict import describe, threshold_of, verdict_of

RNG = np.random.default_rng(5)


def summaries(peaks, medians=-2.0):
    """Images of one layer with these peaks."""
    return [Summary((float(peak),), (float(medians),), None) for peak in peaks]


@pytest.mark.parametrize(
    ("rate", "factors"),
    [
        (0.05, {3: 4.56, 5: 3.05, 8: 2.54, 10: 2.40, 15: 2.22, 20: 2.11, 30: 2.03, 40: 1.99}),
        (0.01, {3: 11.3, 5: 6.05, 8: 4.69, 10: 4.37, 15: 3.92, 20: 3.71, 30: 3.52, 40: 3.41}),
    ],
)
def test_the_factors_of_the_gumbel_bound_are_those_of_the_study(rate, factors):
    for count, factor in factors.items():
        assert gumbel_factor(count, rate) == pytest.approx(factor, rel=0.02)


@pytest.mark.parametrize("count", [3, 5, 10, 19, 40])
@pytest.mark.parametrize("rate", [0.05, 0.1])
@pytest.mark.parametrize("draw", ["gumbel", "normal"])
def test_a_further_good_image_is_flagged_at_most_at_the_promised_rate(count, rate, draw):
    rng = np.random.default_rng(count)
    flagged, trials = 0, 400
    for _ in range(trials):
        good = getattr(rng, draw)(size=count)
        calibration = calibrate_good(summaries(good), rate)
        later = getattr(rng, draw)(size=10)
        flagged += sum(calibration.peak(s) >= calibration.threshold for s in summaries(later))
    assert flagged / (10 * trials) <= rate + 0.02


@pytest.mark.parametrize("count", [3, 5, 9, 10, 40])
@pytest.mark.parametrize("draw", ["gumbel", "normal"])
def test_two_layers_keep_the_promised_rate_too(count, draw):
    """Peaks of the two layers correlate by 0.7 and differ in spread, as those of raw and smoothed maps."""
    rng = np.random.default_rng(count)
    flagged, trials = 0, 1200

    def images(number):
        first, other = getattr(rng, draw)(size=(2, number))
        pairs = zip(first, 0.6 * (0.7 * first + 0.51**0.5 * other), strict=True)
        return [Summary((float(a), float(b)), (-2.0, -2.0), None) for a, b in pairs]

    for _ in range(trials):
        calibration = calibrate_good(images(count), 0.05)
        flagged += sum(calibration.peak(s) >= calibration.threshold for s in images(5))
    assert flagged / (5 * trials) <= 0.05 + 0.02


def test_no_good_image_is_flagged_when_there_are_few_and_the_share_is_kept_when_there_are_many():
    few = calibrate_good(summaries(RNG.normal(size=7)), 0.05)
    assert few.rule == "gumbel"
    assert max(few.peaks) < few.threshold
    many = summaries(RNG.normal(size=100))
    calibration = calibrate_good(many, 0.05)
    assert calibration.rule == "conformal"
    assert sum(calibration.peak(s) >= calibration.threshold for s in many) == 4  # rank 96 of 100


@pytest.mark.parametrize("count", [1, 2])
def test_fewer_than_three_good_images_allow_no_threshold(count):
    calibration = calibrate_good(summaries(RNG.normal(size=count)), 0.05)
    assert calibration.rule == "none"
    assert threshold_of(calibration) is None
    assert verdict_of(calibration, 0.9) == "undecided"
    assert "fewer than 3" in describe(calibration)


@pytest.mark.parametrize("rate", [0, 1, -0.1, 2])
def test_an_impossible_rate_is_refused(rate):
    with pytest.raises(UsageError, match="false-alarm rate"):
        calibrate_good(summaries([0.0] * 5), rate)


def test_no_good_image_is_refused():
    with pytest.raises(UsageError, match="none of the known-good images"):
        calibrate_good([], 0.05)


def test_twenty_unlabeled_images_tell_what_stands_out_and_never_what_is_clean():
    peaks = [*RNG.normal(0, 1, 24), 9.0]
    calibration = calibrate_unlabeled(summaries(peaks))
    scores = [float(calibration.probability(calibration.peak(s))) for s in summaries(peaks)]
    verdicts = [verdict_of(calibration, score) for score in scores]
    assert verdicts == ["undecided"] * 24 + ["stands_out"]
    assert "None is called clean" in describe(calibration)


def test_fewer_unlabeled_images_are_ranked_and_none_is_flagged():
    calibration = calibrate_unlabeled(summaries([*RNG.normal(0, 1, 18), 50.0]))
    assert calibration.rule == "none"
    score = float(calibration.probability(calibration.peak(summaries([50.0])[0])))
    assert score == pytest.approx(0.5, abs=1e-6)
    assert verdict_of(calibration, score) == "undecided"


def test_the_threshold_is_one_half_and_the_scale_never_swaps_two_values():
    calibration = calibrate_good(summaries(RNG.normal(size=30)), 0.05)
    assert float(calibration.probability(calibration.threshold)) == 0.5
    assert float(calibration.probability(calibration.base)) == 0
    values = np.sort(RNG.normal(0, 5, 1000))
    scores = calibration.probability(values)
    assert (np.diff(scores) >= 0).all()
    assert scores.min() >= 0
    assert scores.max() <= 1
    for score in (0.1, 0.5, 0.77):
        assert float(calibration.probability(calibration.value(score))) == pytest.approx(score)


def test_two_layers_are_joined_by_the_larger_deviation_and_the_class_token_counts_a_quarter():
    good = [Summary((float(a), float(b)), (-1.0, -1.0), float(c)) for a, b, c in RNG.normal(size=(50, 3))]
    calibration = calibrate_good(good, 0.05)
    centers, spreads = np.array(calibration.centers), np.array(calibration.spreads)
    one = Summary((2.0, 1.0), (0, 0), calibration.class_center + 100)
    deviations = (np.array(one.peaks) - centers) / spreads
    assert calibration.peak(one) == pytest.approx(deviations.max() + 0.25 * 3)
    layers = RNG.normal(size=(2, 9, 7))
    summary = summarize(layers, 0.3)
    assert calibration.map(layers, 0.3).max() == pytest.approx(calibration.peak(summary))


def test_a_calibration_survives_json():
    calibration = calibrate_good(summaries(RNG.normal(size=12)), 0.05, ["a", "b"], "print")
    assert Calibration.from_dict(json.loads(json.dumps(calibration.to_dict()))) == calibration


def test_equal_images_give_finite_scores():
    calibration = calibrate_good(summaries([0.2] * 25), 0.05)
    scores = calibration.probability([calibration.peak(s) for s in summaries([0.2, 0.3])])
    assert np.isfinite(scores).all()
    assert scores[0] < 0.5 <= scores[1]


def test_the_shipped_level_gives_suspicious_or_undecided():
    level = shipped_level(0.454, 0.40, 500, 0.05)
    values = {0.47: "suspicious", 0.44: "undecided"}
    for peak, verdict in values.items():
        score = float(level.probability(level.peak(summaries([np.log(peak / (1 - peak))])[0])))
        assert verdict_of(level, score) == verdict


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("shape", [(72, 96), (5, 5), (1, 1), (300, 20)])
def test_an_image_is_flagged_if_and_only_if_it_has_a_region(seed, shape):
    rng = np.random.default_rng(seed)
    good = [rng.normal(size=(2, *shape)).astype(np.float16) for _ in range(4)]
    calibration = calibrate_good([summarize(one, float(rng.normal())) for one in good], 0.2)
    layers = (rng.normal(size=(2, *shape)) * rng.uniform(0.8, 1.6)).astype(np.float16)
    summary = summarize(layers, float(rng.normal()))
    values = calibration.map(layers, summary.class_logit)
    score = float(calibration.probability(calibration.peak(summary)))
    regions = find_regions(values, calibration, 480, 640)
    assert (verdict_of(calibration, score) == "flagged") == bool(regions)
    assert region_mask(values, calibration, 480, 640).any() == bool(regions)
    if regions:
        assert regions[0].peak == pytest.approx(score)


def test_regions_grow_below_the_threshold_from_their_seeds_only():
    values = np.zeros((80, 80))
    values[10:20, 10:30] = 0.8  # a weak part with a strong core: grows
    values[12:15, 12:15] = 1.2  # 0.6 of it is below the weak part
    values[50:60, 50:60] = 0.9  # weak alone: no seed
    calibration = Calibration("conformal", 1.0, 0.0, (0.0,), (1.0,))
    (region,) = find_regions(values, calibration, 80, 80)
    assert (region.left, region.top, region.width, region.height) == (10, 10, 20, 10)
    assert region.area == 200
    assert (region.peak_x, region.peak_y) == (12, 12)


def test_around_a_high_peak_a_region_ends_at_a_share_of_the_peak():
    values = np.zeros((80, 80))
    values[10:40, 10:40] = 1.1  # over the threshold, and below the cut around the peak
    values[20:30, 20:30] = 4.0
    calibration = Calibration("conformal", 1.0, 0.0, (0.0,), (1.0,))
    (region,) = find_regions(values, calibration, 80, 80)
    assert (region.left, region.top, region.width, region.height) == (20, 20, 10, 10)


def test_a_lone_cell_at_the_peak_is_kept_and_others_are_dropped():
    values = np.zeros((80, 80))
    values[5, 5], values[40, 40] = 2.0, 1.5
    calibration = Calibration("conformal", 1.0, 0.0, (0.0,), (1.0,))
    (region,) = find_regions(values, calibration, 80, 80)
    assert (region.left, region.top) == (5, 5)


@pytest.mark.parametrize("size", [(5, 7), (20, 300), (300, 20)])
def test_a_region_has_pixels_where_pixels_are_fewer_than_cells(size):
    values = np.full((60, 60), -1.0)
    values[41, 23] = 9.0
    calibration = Calibration("gumbel", 2.0, 0.0, (0.0,), (1.0,), images=10)
    (region,) = find_regions(values, calibration, *size)
    assert region_mask(values, calibration, *size)[region.peak_y, region.peak_x]
