"""The official settings by name, from image file to map, against the official code's recorded runs."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import Resize

import clipspect
from clipspect.data.prepare import ImageLoader
from clipspect.data.transforms import ResizeSpec
from clipspect.methods import anoclip_plus
from clipspect.methods.paper_settings import PAPER_SETTINGS, paper_settings
from clipspect.methods.tta.adapters import Layers
from clipspect.model import AnomalyModel
from clipspect.prompts import PromptConfig, load_prompts
from clipspect.registry import make_method

MEAN, STD = np.array((0.48145466, 0.4578275, 0.40821073)), np.array((0.26862954, 0.26130258, 0.27577711))


@pytest.fixture(scope="module")
def model_folder(parity, tmp_path_factory):
    """The fixtures' model as a folder that ``load`` takes."""
    folder = tmp_path_factory.mktemp("parity-model")
    config = json.loads((parity.folder / "model_config.json").read_text(encoding="utf-8"))
    config = {"model_cfg": config.get("model_cfg", config), "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    shutil.copy(parity.folder / "weights.safetensors", folder / "open_clip_model.safetensors")
    return folder


@pytest.fixture
def detector_of(model_folder):
    """``detector_of(preset, method)``: a detector with the settings of a preset and the fixtures' model."""
    return lambda preset, method: clipspect.load(method, str(model_folder), preset=preset, device="cpu")


def save_images(folder, pixels):
    """Write (B, H, W, 3) uint8 as PNG files."""
    paths = []
    for number, image in enumerate(pixels):
        paths.append(folder / f"{number}.png")
        Image.fromarray(image).save(paths[-1])
    return paths


def record_draws(monkeypatch, parity, recorded, prefix):
    """Let the adapter start from the recorded weights and noise of the image that is scored next."""
    images = iter(range(2))

    def layers(seeds, outputs, dim):
        name = f"{prefix}.image{next(images)}"
        monkeypatch.setattr(anoclip_plus, "draw_noise", lambda *_: noise(name))
        weight, bias = (parity.tensor(recorded, f"{name}.init_{part}")[None] for part in ("weight", "bias"))
        assert weight.shape == (len(seeds), outputs, dim)
        return Layers(weight, bias)

    def noise(name):
        return parity.tensor(recorded, f"{name}.noise").flatten(1, -2)[None]

    monkeypatch.setattr(anoclip_plus, "draw_layers", layers)


def test_mvtec_from_file_to_map(detector_of, parity, tmp_path, close):
    recorded = parity.arrays("anoclip_map")
    paths = save_images(tmp_path, parity.arrays("vv")["image_u8"])
    found = detector_of("anovl-mvtec", "anoclip").detect(paths, object="bottle")
    for detection, expected, score in zip(
        found, recorded["anomaly_map"], recorded["image_score"], strict=True
    ):
        close(detection.score_map, expected, 2e-6)
        assert detection.raw_score == pytest.approx(float(score), abs=2e-6)


def test_mvtec_with_its_adapter(detector_of, parity, tmp_path, close, monkeypatch):
    recorded = parity.arrays("anoclip_tta")
    record_draws(monkeypatch, parity, recorded, "text_adapter")
    paths = save_images(tmp_path, parity.arrays("vv")["image_u8"])
    found = detector_of("anovl-mvtec", "anoclip+").detect(paths[0], object="bottle")
    close(found.score_map, recorded["text_adapter.image0.anomaly_map"], 5e-6)


@pytest.fixture
def visa(parity, tmp_path):
    """The recorded VisA run, and its images as files."""
    recorded = parity.arrays("anoclip_visa")
    pixels = recorded["images"].transpose(0, 2, 3, 1) * STD + MEAN
    return recorded, save_images(tmp_path, (255 * pixels).round().astype(np.uint8))


def test_visa_from_file_to_map(detector_of, parity, visa, close):
    recorded, paths = visa
    found = detector_of("anovl-visa", "anoclip").detect(paths, object="macaroni2")
    for detection, expected, score in zip(
        found, recorded["anomaly_map"], recorded["image_score"], strict=True
    ):
        assert detection.object == "macaroni"
        close(detection.score_map, expected, 2e-6)
        assert detection.raw_score == pytest.approx(float(score), abs=2e-6)


def test_visa_with_one_adapter_for_both_tiles(detector_of, parity, visa, close, monkeypatch):
    recorded, paths = visa
    record_draws(monkeypatch, parity, recorded, "adapter")
    found = detector_of("anovl-visa", "anoclip+").detect(paths[0], object="macaroni2")
    close(found.score_map, recorded["adapter.anomaly_map"][0], 5e-6)


def test_an_adapter_per_tile_is_another_number(detector_of, parity, visa):
    _, paths = visa
    detector = detector_of("anovl-visa", "anoclip+")
    together = detector.detect(paths[0], object="macaroni2").score_map
    separate = make_method("anoclip+", {"tiles": "separate"})
    detector.model = AnomalyModel(detector.backbone, (separate,), detector.model.prompts)
    assert np.abs(detector.detect(paths[0], object="macaroni2").score_map - together).max() > 1e-4


def test_maps_of_tiled_images_do_not_depend_on_the_batch(detector_of, parity, visa):
    _, paths = visa
    detector = detector_of("anovl-visa", "anoclip+")
    both = [d.score_map for d in detector.detect(paths, object="macaroni2")]
    alone = detector.detect(paths[1], object="macaroni2").score_map
    np.testing.assert_allclose(both[1], alone, atol=1e-6)


@pytest.mark.parametrize("size", [(300, 211), (133, 250), (160, 160)])
def test_images_are_resized_and_then_cut_as_officially(size):
    """The official transform of VisA: torchvision's Resize of the shorter side, then the two ends."""
    pixels = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    loader = ImageLoader(ResizeSpec(80, interpolation="bilinear"), "square")
    pieces = loader.read(pixels).pieces
    expected = np.asarray(Resize(80)(Image.fromarray(pixels)))
    assert min(expected.shape[:2]) == 80
    first, last = expected[:80, :80], expected[-80:, -80:]
    np.testing.assert_array_equal(pieces[0], first)
    np.testing.assert_array_equal(pieces[-1], last)
    assert len(pieces) == (1 if size[0] == size[1] else 2)


def test_every_object_of_the_official_prompts_gets_its_own_sentences(parity):
    official = json.loads((parity.folder / "prompts.json").read_text(encoding="utf-8"))
    config = PromptConfig(load_prompts(), object_as_is=True)
    for name in official:
        normal, abnormal = config.sentences("anoclip", config.object_name(name))
        assert normal == official[name]["normal"], name
        assert abnormal == official[name]["abnormal"], name


@pytest.mark.parametrize("name", ["metal_nut", "pcb1", "pcb4", "pipe_fryum"])
def test_names_stay_as_they_are_where_that_is_asked_for(name):
    table = load_prompts()
    assert PromptConfig(table, object_as_is=True).object_name(name) == name
    assert PromptConfig(table).object_name(name) != name


@pytest.mark.parametrize("name", PAPER_SETTINGS)
def test_every_setting_of_a_preset_belongs_to_one_of_its_methods(name):
    chosen = paper_settings(name)
    known = set().union(*(make_method(method).settings() for method in chosen.methods))
    assert set(chosen.settings) <= known


def test_options_given_beside_a_preset_win(model_folder):
    folder = str(model_folder)
    detector = clipspect.load(
        "anoclip", folder, preset="anovl-mvtec", settings={"views": "none"}, interpolation="bicubic"
    )
    assert detector.methods[0].settings()["views"] == "none"
    assert detector.reader.fit.interpolation == "bicubic"
    assert clipspect.load(model=folder, preset="anovl-visa").methods[0].name == "anoclip+"
    with pytest.raises(clipspect.UsageError, match="unknown preset 'anovl'.*anovl-visa"):
        clipspect.load(preset="anovl")
