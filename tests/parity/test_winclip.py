"""WinCLIP gives anomalib's numbers: embeddings, grids, maps and scores, without and with references."""

import json

import pytest

from clipspect.backbones.openclip.value_attention import window_index
from clipspect.methods.base import MethodContext
from clipspect.registry import make_method


@pytest.fixture(scope="module")
def recorded(parity):
    return parity.arrays("winclip")


@pytest.fixture(scope="module")
def object_name(parity):
    return json.loads((parity.folder / "winclip_prompts.json").read_text(encoding="utf-8"))["class_name"]


@pytest.fixture(scope="module")
def features(parity, recorded):
    method = make_method("winclip+")
    return parity.backbone.encode(parity.tensor(recorded, "images"), method.request())


@pytest.fixture(scope="module")
def context(parity, recorded, object_name):
    return MethodContext(parity.anchors(object_name, "winclip"), recorded["images"].shape[2:], seeds=(0, 1))


def sizes_in(recorded):
    return sorted(int(k.removeprefix("window_masks_s")) for k in recorded if k.startswith("window_masks_s"))


def test_sentences_are_those_anomalib_composed(parity, object_name):
    expected = json.loads((parity.folder / "winclip_prompts.json").read_text(encoding="utf-8"))
    normal, abnormal = parity.prompts.prompt_set("winclip").sentences(object_name, ())
    assert normal == expected["normal"]
    assert abnormal == expected["abnormal"]


def test_window_embeddings_and_masks_match(features, recorded, close):
    for size in sizes_in(recorded):
        close(window_index(features.grid, size), recorded[f"window_masks_s{size}"], 0)
        close(features.windows[size], recorded[f"window_embeddings_s{size}"], 1e-5)


def test_patch_tokens_before_the_projection_match(features, recorded, close):
    close(features.unprojected.flatten(1, 2), recorded["patch_embeddings"], 1e-5)


def test_zero_shot_grid_map_and_score_match(features, context, recorded, close):
    method = make_method("winclip")
    scores = method.score(features, context)
    close(method.text_grid(features, context), recorded["zero_shot.zero_shot_grid"], 2e-6)
    close(scores.map, recorded["zero_shot.anomaly_map"], 2e-6)
    close(scores.image, recorded["zero_shot.image_score"], 2e-6)


@pytest.mark.parametrize(("shots", "case"), [(1, "one_shot"), (2, "two_shot")])
def test_few_shot_grid_map_and_score_match(parity, features, context, recorded, close, shots, case):
    method = make_method("winclip+")
    references = parity.backbone.encode(parity.tensor(recorded, "reference_images")[:shots], method.request())
    context = MethodContext(context.anchors, context.size, context.seeds, references=references)
    scores = method.score(features, context)
    close(method.text_grid(features, context), recorded[f"{case}.zero_shot_grid"], 2e-6)
    close(method.visual_grid(features, context), recorded[f"{case}.few_shot_grid"], 2e-6)
    close(scores.map, recorded[f"{case}.anomaly_map"], 2e-6)
    close(scores.image, recorded[f"{case}.image_score"], 2e-6)
