"""MuSc against the official modules (musc.npz)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from clipspect.backbones.features import Features
from clipspect.backbones.sources import Sources
from clipspect.methods.base import MethodContext
from clipspect.methods.mutual import Mutual
from clipspect.methods.set_scoring import aggregate_neighborhood, normalize_images, rescore_images
from clipspect.registry import make_method


@pytest.fixture(scope="module")
def recorded(load_arrays):
    return load_arrays("musc")


@pytest.fixture(scope="module")
def features(recorded):
    """The planted tokens as hidden states of as many blocks as there are layers."""
    grid = recorded["grid_map"].shape[1:]
    tokens = torch.from_numpy(recorded["tokens"])[:, :, 1:]
    layers = tokens.shape[1]
    return Features(
        torch.from_numpy(recorded["cls_tokens"]),
        grid,
        layers,
        hidden_patches={b + 1: tokens[:, b].unflatten(1, grid) for b in range(layers)},
    )


def settings(recorded, **others):
    layers = recorded["tokens"].shape[1]
    listed = {key: ",".join(map(str, recorded[key].tolist())) for key in ("r_list", "k_mvtec", "k_visa")}
    return {"blocks": ",".join(str(b + 1) for b in range(layers)), "degrees": listed["r_list"], **others}


def run(method, recorded, features, pool_index=None):
    size = recorded["anomaly_map"].shape[1:]
    rows = list(range(len(features)))
    context = MethodContext(None, size, rows, pool_index=rows)
    state = method.prepare(features, context)
    pool_index = rows if pool_index is None else pool_index
    return method.score(features, replace(context, state=state, pool_index=pool_index)), state


def test_neighborhoods_are_aggregated_as_officially(recorded, features, close):
    for degree, atol in ((1, 5e-6), (3, 1e-5), (5, 1e-5)):
        expected = recorded[f"lnamd_r{degree}"]
        for layer in range(features.depth):
            tokens = normalize_images(features.hidden(layer + 1)[: len(expected)])
            close(aggregate_neighborhood(tokens, degree), expected[:, layer], atol)


def test_mutual_scores_of_each_degree_and_layer(recorded, features, close):
    rows = list(range(len(features)))
    context = MethodContext(None, (8, 8), rows, pool_index=rows)
    for number, degree in enumerate(recorded["r_list"].tolist()):
        for layer in range(features.depth):
            options = settings(recorded, blocks=str(layer + 1), degrees=str(degree), rescoring="")
            method = make_method("musc", options)
            found = method.visual_map(features, context, method.gather(features, context))
            close(2 * found, recorded["msm_map"][number, layer], 2e-5)


def test_maps_and_scores(recorded, features, close):
    scores, state = run(make_method("musc", settings(recorded, rescoring="")), recorded, features)
    close(2 * state.visual, recorded["grid_map"], 5e-6)
    close(2 * state.visual, recorded["grid_map_f64"], 5e-6)
    close(2 * scores.map, recorded["anomaly_map"], 5e-6)
    close(2 * scores.image, recorded["score_raw"], 2e-6)
    assert scores.text is None
    assert scores.class_logit is None


@pytest.mark.parametrize("data", ["mvtec", "visa"])
def test_scores_after_rescoring(recorded, features, close, data):
    numbers = ",".join(map(str, recorded[f"k_{data}"].tolist()))
    method = make_method("musc", settings(recorded, rescoring=numbers))
    scores, _ = run(method, recorded, features)
    close(scores.image, recorded[f"score_rscin_{data}"], 5e-6)
    raw, embeddings = torch.from_numpy(recorded["score_raw"]).float(), features.image
    others = [[j for j in range(len(raw)) if j != i] for i in range(len(raw))]
    alone = rescore_images(raw, embeddings, raw, embeddings, others, recorded[f"k_{data}"].tolist())
    close(alone, recorded[f"score_rscin_{data}"], 5e-6)


def test_images_outside_the_pool_that_are_in_it_by_content_get_the_same_scores(recorded, features, close):
    """An image that is recognized by its source is scored as the pool's own, without the cached map."""
    sources = Sources(tuple(str(i) for i in range(len(features))), (0,) * len(features))
    known = replace(features, sources=sources)
    method = make_method("musc", settings(recorded))
    own, _ = run(method, recorded, known)
    again, _ = run(method, recorded, known, pool_index=[-1] * len(known))
    close(again.map, own.map, 1e-6)
    close(again.image, own.image, 2e-6)


def test_tiles_and_copies_of_an_image_are_not_its_references(recorded, features, close):
    """With every image there twice, as a second tile, the means over all others are those of the single set."""
    count = len(features)
    twice = Features.concat([features, features])
    names = tuple(str(i % count) for i in range(2 * count))
    tiled = replace(twice, sources=Sources(names, (0,) * count + (1,) * count))
    one, _ = run(make_method("musc", settings(recorded, rescoring="", lowest=1.0)), recorded, features)
    two, _ = run(make_method("musc", settings(recorded, rescoring="", lowest=1.0)), recorded, tiled)
    close(two.map[:count], one.map, 2e-6)
    close(two.map[count:], one.map, 2e-6)


def test_mutual_has_the_same_arithmetic_as_options(recorded, features, close):
    options = settings(recorded, path="hidden", distance="euclidean", rounding="down", image_norm=True)
    method = Mutual(**options)
    rows = list(range(len(features)))
    context = MethodContext(None, (8, 8), rows, pool_index=rows)
    compared = method.gather(features, context)
    close(2 * method.visual_map(features, context, compared), recorded["grid_map"], 5e-6)


def test_maps_and_image_scores_may_use_different_degrees(recorded, features, close):
    rows = list(range(len(features)))
    context = MethodContext(None, (8, 8), rows, pool_index=rows)
    found = {}
    for maps, images in (("1", ""), ("5", ""), ("1", "5")):
        method = Mutual(**settings(recorded, path="hidden", degrees=maps, image_degrees=images))
        found[maps, images] = method.visual_scores(features, context, method.gather(features, context))
    close(found["1", "5"][0], found["1", ""][0], 0)
    close(found["1", "5"][1], found["5", ""][1], 0)
