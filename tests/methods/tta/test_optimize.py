"""The batched AdamW is torch's, each layer is on its own, and nothing stays behind."""

import math

import pytest
import torch

from clipspect.methods.tta.adapters import Layers, draw_layers, draw_noise
from clipspect.methods.tta.optimize import optimize, trainable


def quadratic(targets):
    """Each layer is pulled to its own target; the scale of the losses differs by 10⁴."""
    return lambda layers, step: ((layers.weight - targets) ** 2).sum((1, 2)) + layers.bias.sin().sum(1)


def test_each_layer_gets_the_numbers_of_torchs_own_adamw():
    start = draw_layers([1, 2, 3], 5, 4)
    targets = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor(
        [1e-2, 1.0, 1e2]
    ).view(3, 1, 1)
    ours = optimize(quadratic(targets), start, 7, learning_rate=1e-2)
    for i in range(3):
        parameters = [torch.nn.Parameter(start.weight[i].clone()), torch.nn.Parameter(start.bias[i].clone())]
        optimiser = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=1e-2)
        for step in range(7):
            optimiser.zero_grad()
            loss = ((parameters[0] - targets[i]) ** 2).sum() + parameters[1].sin().sum()
            assert loss.item() == pytest.approx(ours.losses[step, i].item(), rel=1e-6)
            loss.backward()
            optimiser.step()
        torch.testing.assert_close(ours.layers.weight[i], parameters[0].detach(), rtol=0, atol=2e-7)
        torch.testing.assert_close(ours.layers.bias[i], parameters[1].detach(), rtol=0, atol=2e-7)


def test_no_steps_return_the_start():
    start = draw_layers([1], 3, 2)
    descent = optimize(quadratic(torch.zeros(1, 3, 2)), start, 0)
    assert torch.equal(descent.layers.weight, start.weight)
    assert descent.losses.shape == (0, 1)
    assert descent.finite.tolist() == [True]


def test_one_image_that_diverges_leaves_the_others_alone():
    start = draw_layers([1, 2], 3, 2)
    targets = torch.zeros(2, 3, 2)
    alone = optimize(quadratic(targets[1:]), Layers(start.weight[1:], start.bias[1:]), 4)
    targets[0, 0, 0] = math.nan
    both = optimize(quadratic(targets), start, 4)
    assert both.finite.tolist() == [False, True]
    assert torch.equal(both.layers.weight[1], alone.layers.weight[0])


def test_runs_inside_inference_mode_and_leaves_no_graph():
    with torch.inference_mode():
        start = draw_layers([1], 3, 2)
        targets = trainable(torch.ones(1, 3, 2))
        descent = optimize(quadratic(targets), start, 2)
    assert descent.losses[1] < descent.losses[0]
    for tensor in (descent.layers.weight, descent.layers.bias, descent.losses):
        assert not tensor.requires_grad
        assert tensor.grad_fn is None


def test_layers_and_noise_are_drawn_from_the_images_own_seed():
    both, second = draw_layers([7, 8], 6, 9), draw_layers([8], 6, 9)
    assert torch.equal(both.weight[1], second.weight[0])
    assert not torch.equal(both.weight[0], both.weight[1])
    assert both.weight.abs().max() <= 1 / 3  # 1/√9, as nn.Linear.reset_parameters
    assert torch.equal(draw_noise([7, 8], (2, 3), 0.1)[1], draw_noise([8], (2, 3), 0.1)[0])
    assert draw_noise([7], (100, 100), 0.055).std().item() == pytest.approx(0.055, rel=0.05)
