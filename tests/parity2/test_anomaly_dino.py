"""AnomalyDINO against the official run (anomalydino.npz)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from clipspect.backbones.features import Features
from clipspect.methods.anomaly_dino import first_component, foreground_mask, nearest_squared
from clipspect.methods.base import MethodContext
from clipspect.methods.few_shot import highest_mean
from clipspect.registry import make_method


@pytest.fixture(scope="module")
def recorded(load_arrays):
    return load_arrays("anomalydino")


def features_of(recorded, key):
    grid = recorded["plain.distances"].shape[1:]
    tokens = torch.from_numpy(recorded[key]).unflatten(1, grid)
    return Features(torch.zeros(len(tokens), 1), grid, 1, ordinary_patches={1: tokens})


def score(recorded, **settings):
    """The method's scores of the queries, with and without the state of the references."""
    size = tuple(int(n) for n in recorded["image_shape"])
    method = make_method("anomaly-dino", settings)
    references = features_of(recorded, "reference_features")
    context = MethodContext(None, size, [], references=references)
    prepared = replace(context, reference_state=method.prepare_references(references))
    queries = features_of(recorded, "query_features")
    scores = method.score(queries, prepared)
    assert torch.equal(scores.map, method.score(queries, context).map)
    return scores


def test_distances(recorded, close):
    bank = [F.normalize(torch.from_numpy(image), dim=1) for image in recorded["reference_features"]]
    queries = F.normalize(torch.from_numpy(recorded["query_features"]), dim=2)
    for neighbors, name in ((1, "plain"), (3, "knn3")):
        found = torch.stack([nearest_squared(query, bank, neighbors) for query in queries]) / 2
        expected = recorded[f"{name}.distances"]
        close(found.view(expected.shape), expected, 2e-6 if name == "plain" else 1e-6)
    close(
        torch.stack([nearest_squared(query, bank, 1) for query in queries]).view(expected.shape) / 2,
        recorded["plain.distances_f64"],
        2e-6,
    )


def test_euclidean_distances_of_tokens_as_they_are(recorded, close):
    bank = [torch.from_numpy(image).double() for image in recorded["reference_features"]]
    queries = torch.from_numpy(recorded["query_features"]).double()
    found = torch.stack([nearest_squared(query, bank, 1) for query in queries]).sqrt()
    close(found.view(recorded["l2.distances"].shape), recorded["l2.distances"], 5e-4)
    close(highest_mean(found, 0.01), recorded["l2.image_score"], 1e-4)


def test_maps_and_scores(recorded, close):
    scores = score(recorded)
    close(2 * scores.image, recorded["plain.image_score"], 1e-6)
    close(2 * scores.map, recorded["plain.anomaly_map"], 1e-6)
    close(2 * score(recorded, neighbors=3).image, recorded["knn3.image_score"], 1e-6)


def test_scores_with_a_foreground_mask(recorded, close):
    close(2 * score(recorded, foreground="published").image, recorded["masked.image_score"], 1e-6)


def test_distances_with_masked_queries_and_references(recorded, close):
    bank = [F.normalize(torch.from_numpy(image), dim=1) for image in recorded["reference_features"]]
    queries = F.normalize(torch.from_numpy(recorded["query_features"]), dim=2)
    masked = [b[m.ravel()] for b, m in zip(bank, recorded["reference_masks"], strict=True)]
    for name, known in (("masked", bank), ("masked_ref", masked)):
        found = torch.stack([nearest_squared(query, known, 1) for query in queries]) / 2
        found = found.view(recorded[f"{name}.distances"].shape) * torch.from_numpy(recorded["query_masks"])
        close(found, recorded[f"{name}.distances"], 2e-6)
        close(highest_mean(found.flatten(1), 0.01), recorded[f"{name}.image_score"], 1e-6)


def test_foreground_masks(recorded, close):
    tokens = np.concatenate([recorded["reference_features"], recorded["query_features"]])
    grid = recorded["query_masks"].shape[1:]
    patches = torch.from_numpy(tokens).unflatten(1, grid)
    component = torch.stack([first_component(image.flatten(0, 1)).abs() for image in patches])
    close(component.unflatten(1, grid), recorded["first_component_abs"], 2e-4)
    for flat, suffix in ((True, ""), (False, "_2d")):
        found = np.stack([foreground_mask(image, flat=flat).numpy() for image in patches])
        expected = np.concatenate([recorded[f"{kind}_masks{suffix}"] for kind in ("reference", "query")])
        assert np.array_equal(found, expected)
