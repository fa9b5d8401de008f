"""Fusion rules: into [0, 1], order kept, finite for constant maps, and each does what it is named after."""

import pytest
import torch

from clipspect.methods.fusion import RULES, fit_fusion

GENERATOR = torch.Generator().manual_seed(0)
TEXT = 0.5 + 0.01 * torch.randn(6, 8, 8, generator=GENERATOR)  # probabilities around ½
VISUAL = 0.05 * torch.rand(6, 8, 8, generator=GENERATOR) ** 3  # distances near 0


@pytest.mark.parametrize("rule", RULES)
def test_scales_keep_the_order_and_stay_within_bounds(rule):
    fusion = fit_fusion(rule, TEXT, VISUAL)
    for scale, pool in ((fusion.text, TEXT), (fusion.visual, VISUAL)):
        values = pool.flatten().sort().values
        scaled = scale(values)
        assert scaled.min() >= 0
        assert scaled.max() <= 1
        assert (scaled.diff() >= 0).all()
        inner = scaled[10:-10]
        assert len(inner.unique()) > 0.95 * len(inner)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_constant_maps_give_constant_finite_maps(rule, value):
    constant = torch.full((3, 4, 4), value)
    joint = fit_fusion(rule, constant, constant)(constant, constant)
    assert joint.isfinite().all()
    assert joint.min() == joint.max()
    assert 0 <= joint.min() <= 1
    beyond = fit_fusion(rule, constant, constant)(torch.rand(2, 3), torch.rand(2, 3))
    assert beyond.isfinite().all()


@pytest.mark.parametrize("rule", RULES)
def test_a_value_is_scaled_the_same_whatever_it_comes_with(rule):
    fusion = fit_fusion(rule, TEXT, VISUAL)
    assert torch.equal(fusion(TEXT[2:3], VISUAL[2:3]), fusion(TEXT, VISUAL)[2:3])


@pytest.mark.parametrize("rule", ["min-max", "rank", "z-score"])
def test_a_kind_of_score_may_be_stretched_and_shifted(rule):
    plain = fit_fusion(rule, TEXT, VISUAL)(TEXT, VISUAL)
    stretched = fit_fusion(rule, TEXT, 7 * VISUAL + 0.1)(TEXT, 7 * VISUAL + 0.1)
    torch.testing.assert_close(stretched, plain, rtol=0, atol=1e-4)


def test_min_max_spans_the_set_and_rank_is_the_share_below():
    low, high = fit_fusion("min-max", TEXT, VISUAL).visual(torch.stack([VISUAL.min(), VISUAL.max()]))
    assert (low, high) == (0, 1)
    rank = fit_fusion("rank", TEXT, VISUAL)
    for quantile in (0.1, 0.5, 0.9):
        assert rank.visual(VISUAL.quantile(quantile)).item() == pytest.approx(quantile, abs=0.01)


def test_z_score_puts_the_median_at_a_half_and_one_outlier_changes_little():
    pool = VISUAL.clone()
    pool[0, 0, 0] = 1.0
    with_outlier, without = (fit_fusion("z-score", TEXT, p).visual(VISUAL) for p in (pool, VISUAL))
    assert without.flatten().median().item() == pytest.approx(0.5, abs=1e-3)
    assert (with_outlier - without).abs().max() < 0.01


def test_temperature_gives_the_text_the_spread_of_the_visual_scores():
    calibrated = fit_fusion("temperature", TEXT, VISUAL).text(TEXT)

    def spread(values):
        return (values - values.median()).abs().median().item()

    assert spread(calibrated) == pytest.approx(spread(VISUAL), rel=0.02)
