"""Losses: their values where they can be worked out by hand."""

import math

import pytest
import torch

from clipspect.methods.tta.losses import (
    dice_loss,
    focal_loss,
    keep_where,
    noise_contrast_loss,
    soft_cross_entropy,
    state_logits,
)


def test_logits_are_cosines_over_the_temperature_whatever_the_length():
    pair = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    tokens = torch.tensor([[[0.0, 5.0], [2.0, 0.0], [0.0, 0.0]]])
    expected = torch.tensor([[[0.0, 8.0], [10.0, 6.0], [0.0, 0.0]]])
    torch.testing.assert_close(state_logits(tokens, pair, 0.1), expected)


def test_noise_contrast_of_undecided_tokens_is_entropy_and_half_of_two_logarithms():
    undecided = torch.zeros(2, 5, 2)
    assert noise_contrast_loss(undecided, undecided).tolist() == pytest.approx([2 * math.log(2)] * 2)


def test_soft_cross_entropy_is_least_where_the_probability_is_the_target():
    target = torch.tensor([[0.2, 0.9]])
    right = torch.stack([(1 - target).log(), target.log()], -1)
    least = soft_cross_entropy(right, target)
    for shift in (-0.5, 0.5):
        assert soft_cross_entropy(right + torch.tensor([0.0, shift]), target) > least


def test_focal_and_dice_are_nothing_for_the_mask_itself_and_large_for_its_opposite():
    mask = torch.tensor([[1.0, 0.0, 0.0, 1.0]])
    for loss in (focal_loss, dice_loss):
        assert loss(mask, mask).item() == pytest.approx(0, abs=1e-5)
        assert loss(1 - mask, mask).item() > 0.5
    empty = torch.zeros(1, 4)
    assert dice_loss(empty, empty).item() == 0
    assert focal_loss(empty, empty).isfinite().all()


def test_focal_counts_an_easy_patch_less_than_cross_entropy_does():
    easy = focal_loss(torch.tensor([[0.9]]), torch.ones(1, 1)).item()
    assert easy == pytest.approx(0.01 * -math.log(0.9), rel=1e-4)


def test_keep_where_falls_back_image_by_image():
    kept = keep_where(torch.tensor([True, False]), torch.full((2, 2, 2), math.nan), torch.ones(2, 2, 2))
    assert kept[0].isnan().all()
    assert (kept[1] == 1).all()
