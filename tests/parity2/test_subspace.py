"""SubspaceAD against the official modules (subspacead.npz)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from clipspect.backbones.features import Features
from clipspect.methods.base import MethodContext
from clipspect.methods.few_shot import highest_mean
from clipspect.registry import make_method


@pytest.fixture(scope="module")
def recorded(load_arrays):
    return load_arrays("subspacead")


@pytest.fixture(scope="module")
def halves(recorded):
    """Features of the references and of the queries."""
    grid = recorded["tokens"].shape[1:3]
    states = torch.from_numpy(recorded["hidden_states"])
    states = states[:, :, states.shape[2] - grid[0] * grid[1] :].unflatten(2, grid)
    queries = len(recorded["score.reconstruction"])

    def features(rows):
        hidden = {block + 1: layer[rows] for block, layer in enumerate(states)}
        count = len(states[0][rows])
        return Features(torch.zeros(count, 1), grid, len(states), hidden_patches=hidden)

    return features(slice(0, -queries)), features(slice(-queries, None))


def make(recorded, **settings):
    blocks = ",".join(str(b + 1) for b in range(len(recorded["hidden_states"])))
    return make_method("subspace", {"blocks": blocks, **settings})


def test_tokens_are_the_mean_of_the_layers(recorded, halves, close):
    method = make(recorded)
    found = torch.cat([method.tokens(half) for half in halves])
    close(found, recorded["tokens"], 5e-5)


def test_subspace(recorded, halves, close):
    method = make(recorded)
    exact = torch.from_numpy(recorded["tokens"])[: len(halves[0])]
    shift = exact.double().flatten(0, 2).mean(0)
    centered = exact.double().flatten(0, 2) - shift
    fitted = method.fit(len(centered), centered.sum(0), centered.T @ centered, shift)
    close(fitted.mean, recorded["mean"], 1e-9)
    close(fitted.eigenvalues, recorded["eigenvalues"], 1e-9)
    close(fitted.components @ fitted.components.T, recorded["projector_ev99"], 1e-10)
    assert fitted.components.shape[1] == recorded["k_ev99"]


@pytest.mark.parametrize(
    ("settings", "name", "atol"),
    [
        ({}, "reconstruction", 5e-4),
        ({"variance": 0.95}, "reconstruction_ev95", 2e-4),
        ({"components": 5}, "reconstruction_dim5", 5e-4),
    ],
)
def test_residuals(recorded, halves, close, settings, name, atol):
    method = make(recorded, **settings)
    subspace = method.prepare_references(halves[0]).whole
    close(subspace.residuals(method.tokens(halves[1])), recorded[f"score.{name}"], atol)
    kept = {"reconstruction": "k_ev99", "reconstruction_ev95": "k_ev95", "reconstruction_dim5": "k_dim5"}
    assert subspace.components.shape[1] == recorded[kept[name]]


@pytest.mark.parametrize(
    ("settings", "name", "atol"),
    [
        ({"rule": "euclidean"}, "euclidean", 2e-2),
        ({"rule": "mahalanobis"}, "mahalanobis", 2e-5),
        ({"rule": "cosine"}, "cosine", 2e-6),
        ({"drop_components": 2}, "reconstruction_drop2", 1e-2),
    ],
)
def test_optional_scores(recorded, halves, close, settings, name, atol):
    method = make(recorded, **settings)
    subspace = method.prepare_references(halves[0]).whole
    close(subspace.scores(method.tokens(halves[1]), method.rule), recorded[f"score.{name}"], atol)
    own = subspace.scores(subspace_tokens(method, halves), method.rule).mean()
    if method.rule != "cosine":
        assert float(own) == pytest.approx(subspace.mean_score(method.rule), rel=0.01)
    scores = method.score(halves[1], MethodContext(None, (50, 50), [], references=halves[0]))
    assert 0 <= scores.map.min() <= scores.map.max() <= 1


def subspace_tokens(method, halves):
    return method.tokens(halves[0]).double()


def test_optional_image_scores_are_other_shares_of_the_map(recorded, close):
    maps = torch.from_numpy(recorded["anomaly_map"]).flatten(1)
    for name, share, atol in (("max", 1e-6, 5e-4), ("mtop5", 5 / maps.shape[1], 2e-4), ("mean", 1.0, 2e-4)):
        close(highest_mean(maps, share), recorded[f"image_score.{name}"], atol)


def test_residuals_in_float64(recorded, halves, close):
    method = make(recorded)
    subspace = method.prepare_references(halves[0]).whole
    close(subspace.residuals(method.tokens(halves[1]).double()), recorded["score.reconstruction_f64"], 2e-4)


def test_maps_and_scores(recorded, halves, close):
    method = make(recorded)
    size = recorded["anomaly_map"].shape[1:]
    known = method.prepare_references(halves[0])
    blurred = method.finish(known.whole.residuals(method.tokens(halves[1])), size)
    close(blurred, recorded["anomaly_map"], 5e-4)
    close(highest_mean(blurred.flatten(1), 0.01), recorded["image_score.mtop1p"], 2e-4)
    scores = method.score(halves[1], MethodContext(None, size, [], references=halves[0]))
    scale = known.whole.mean_residual
    expected = recorded["anomaly_map"] / (recorded["anomaly_map"] + scale)
    close(scores.map, expected, 5e-4 / scale)
    image = recorded["image_score.mtop1p"]
    close(scores.image, image / (image + scale), 2e-4 / scale)


def test_the_mean_residual_is_that_of_the_references(recorded, halves):
    method = make(recorded)
    known = method.prepare_references(halves[0])
    residuals = known.whole.residuals(known.tokens.double())
    assert known.whole.mean_residual == pytest.approx(float(residuals.mean()), rel=0.01)


def test_leaving_an_image_out_is_fitting_without_it(recorded, halves):
    method = make(recorded)
    known = method.prepare_references(halves[0])
    rows = tuple(range(1, len(halves[0])))
    left = method.without(known, rows)
    alone = method.prepare_references(halves[0][list(rows)]).whole
    np.testing.assert_allclose(left.eigenvalues, alone.eigenvalues, atol=1e-8)
    np.testing.assert_allclose(left.mean, alone.mean, atol=1e-9)
