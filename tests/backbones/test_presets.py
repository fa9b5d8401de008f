"""Presets: what they say of a model is what the model is."""

from __future__ import annotations

import open_clip
import pytest
import timm
from timm.models import get_pretrained_cfg

from clipspect.backbones.loader import load_backbone
from clipspect.backbones.presets import PRESETS, TINY_FOLDER, Preset

TIMM = [name for name, preset in PRESETS.items() if preset.architecture.startswith("timm:")]
OPEN_CLIP = [name for name in PRESETS if name not in TIMM and not name.startswith("tiny")]


@pytest.mark.parametrize("name", list(PRESETS))
def test_sizes_are_multiples_of_the_patch(name):
    assert PRESETS[name].image_size % PRESETS[name].patch == 0
    assert PRESETS[name].license


@pytest.mark.parametrize("name", TIMM)
def test_timm_presets_name_known_weights(name):
    preset = PRESETS[name]
    tagged = preset.architecture.removeprefix("timm:")
    assert tagged in timm.list_pretrained(f"{tagged.partition('.')[0]}.*")
    assert not preset.text
    license = get_pretrained_cfg(tagged).license.replace("-", " ").lower()
    assert license == preset.license.replace("-", " ").lower()
    assert f"patch{preset.patch}_" in tagged


@pytest.mark.parametrize("name", OPEN_CLIP)
def test_open_clip_presets_name_known_weights(name):
    preset = PRESETS[name]
    assert preset.weights in open_clip.list_pretrained_tags_by_model(preset.architecture)


def test_the_shipped_model_is_as_listed():
    backbone = load_backbone("tiny", device="cpu")
    preset = PRESETS["tiny"]
    assert (backbone.patch, backbone.image_size, backbone.has_text) == (preset.patch, preset.image_size, True)
    assert preset.architecture == str(TINY_FOLDER)


def test_a_timm_preset_keeps_its_name_and_size(monkeypatch):
    made = Preset("timm:vit_tiny_patch16_224", "random", 96, 16, "none", "for this test", text=False)
    monkeypatch.setitem(PRESETS, "DINO-test", made)
    backbone = load_backbone("DINO-test", device="cpu")
    assert (backbone.name, backbone.image_size) == ("DINO-test", 96)
