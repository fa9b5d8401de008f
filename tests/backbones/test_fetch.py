"""`clipspect models fetch` from a hub on this machine, and the fetched folder without any hub."""

from __future__ import annotations

import hashlib
import json

import open_clip
import pytest
import timm
import torch
from huggingface_hub import constants
from open_clip import pretrained
from safetensors.torch import save_file

import clipspect
from clipspect.backbones.features import FeatureRequest
from clipspect.backbones.fetch import FOLDER_FILE, fetch_model
from clipspect.backbones.loader import load_backbone
from clipspect.backbones.presets import PRESETS, Preset
from clipspect.cli import main
from clipspect.errors import UsageError, WeightsError
from helpers.local_hub import local_hub
from helpers.small_models import ARCHITECTURES, normalised_images

TIMM = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
SIGLIP = {
    "embed_dim": 192,
    "custom_text": True,
    "vision_cfg": {
        "image_size": 64,
        "timm_model_name": "vit_tiny_patch16_224",
        "timm_model_pretrained": False,
        "timm_pool": "map",
        "timm_proj": "none",
    },
    "text_cfg": {
        **ARCHITECTURES["vit"]["text_cfg"],
        "width": 192,
        "heads": 3,
        "hf_tokenizer_name": "org/words",
    },
}


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """Repositories as they are on the hub: an OpenAI CLIP, a CLIP with a timm tower, its tokenizer, a timm model."""
    folder = tmp_path_factory.mktemp("hub")
    torch.manual_seed(0)
    clip = open_clip.CLIP(**{**ARCHITECTURES["openai-vit"], "quick_gelu": True})
    siglip = open_clip.CustomTextCLIP(**{k: v for k, v in SIGLIP.items() if k != "custom_text"})
    trunk = timm.create_model(TIMM)
    for repository, file, model in (
        ("org/clip", "open_clip_model.safetensors", clip),
        ("org/siglip", "open_clip_model.safetensors", siglip),
        (f"timm/{TIMM}", "model.safetensors", trunk),
    ):
        (folder / repository).mkdir(parents=True)
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / repository / file)
    (folder / "org/words").mkdir()
    (folder / "org/words/tokenizer.json").write_text("{}")
    (folder / "org/words/tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer"}')
    return folder, clip.eval()


@pytest.fixture
def hub(served, tmp_path, monkeypatch):
    """A connected machine with an empty cache; calling it takes the network away."""
    for name, config, repository in (
        ("fetch-clip", {**ARCHITECTURES["openai-vit"], "quick_gelu": False}, "org/clip/"),
        ("fetch-siglip", SIGLIP, "org/siglip/"),
    ):
        added = tmp_path / f"{name}.json"
        added.write_text(json.dumps(config))
        open_clip.add_model_config(added)
        mean = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4), "hf_hub": repository}
        monkeypatch.setitem(
            pretrained._PRETRAINED, name, {"openai": {**mean, "quick_gelu": name == "fetch-clip"}}
        )
        made = Preset(name, "openai", 96, 16, "MIT", "for this test")
        monkeypatch.setitem(PRESETS, name, made)
    with local_hub(served[0], frozenset(["org/gated"])) as (endpoint, asked):
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))

        def disconnect():
            monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "another machine"))
            monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
            asked.clear()
            return asked

        yield disconnect


def test_a_fetched_clip_is_the_preset_on_a_machine_without_a_hub(hub, served, tmp_path):
    files = fetch_model("fetch-clip", tmp_path / "model")
    source = served[0] / "org/clip/open_clip_model.safetensors"
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    assert [(f.path.name, f.size, f.sha256) for f in files] == [(source.name, source.stat().st_size, digest)]
    preset = load_backbone("fetch-clip", device="cpu")
    asked = hub()
    fetched = load_backbone(str(tmp_path / "model"), device="cpu")
    assert (fetched.image_size, fetched.mean, fetched.std) == (96, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    assert preset.image_size == 96
    images = normalised_images(2, 96)
    request = FeatureRequest(value_blocks=frozenset([-1]))
    ours, theirs = fetched.encode(images, request), preset.encode(images, request)
    torch.testing.assert_close(ours.image, theirs.image, rtol=0, atol=1e-6)
    torch.testing.assert_close(ours.values(-1), theirs.values(-1), rtol=0, atol=1e-6)
    with torch.inference_mode():
        expected = served[1].encode_image(normalised_images(1, 64), normalize=True)
    own = fetched.encode(normalised_images(1, 64), FeatureRequest()).image
    torch.testing.assert_close(own, expected, rtol=0, atol=1e-5)
    words = ["a flawless nut", "a broken nut"]
    torch.testing.assert_close(fetched.encode_text(words), preset.encode_text(words), rtol=0, atol=1e-6)
    assert asked == []


def test_a_fetched_timm_model_needs_no_hub(hub, served, tmp_path, plates, capsys, monkeypatch):
    monkeypatch.setattr(
        "sys.argv", ["clipspect", "models", "fetch", f"timm:{TIMM}", "--to", str(tmp_path / "dino")]
    )
    with pytest.raises(SystemExit) as stopped:
        main()
    assert not stopped.value.code
    out = " ".join(capsys.readouterr().out.split())
    assert "license of the weights: apache-2.0" in out
    assert "--model" in out
    stated = json.loads((tmp_path / "dino" / FOLDER_FILE).read_text(encoding="utf-8"))["files"][
        "model.safetensors"
    ]
    source = served[0] / f"timm/{TIMM}/model.safetensors"
    assert stated == {
        "size": source.stat().st_size,
        "sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
    }
    preset = load_backbone(f"timm:{TIMM}", device="cpu", image_size=64)
    asked = hub()
    detector = clipspect.load(
        "anomaly-dino", str(tmp_path / "dino"), device="cpu", image_size=64, settings={"rotations": 1}
    )
    assert (detector.backbone.mean, detector.backbone.std) == (preset.mean, preset.std)
    images, request = normalised_images(1, 64), FeatureRequest(ordinary_blocks=frozenset([-1]))
    ours, theirs = (b.encode(images, request).ordinary(-1) for b in (detector.backbone, preset))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    paths = sorted(plates.rglob("*.png"))[:3]
    found = detector.detect(paths[:2], "plate", references=detector.encode_references(paths[2:]))
    assert all(d.error is None for d in found)
    assert asked == []


def test_a_tokenizer_comes_along(hub, tmp_path):
    files = fetch_model("fetch-siglip", tmp_path / "model")
    names = ["open_clip_model.safetensors", "tokenizer_config.json", "tokenizer.json"]
    assert [f.path.name for f in files] == names
    config = json.loads((tmp_path / "model/open_clip_config.json").read_text(encoding="utf-8"))
    assert config["model_cfg"]["text_cfg"]["hf_tokenizer_name"] == "org/words"


def test_without_a_folder_the_files_are_in_the_cache_for_the_models_name(hub):
    fetch_model("fetch-clip")
    constants.HF_HUB_OFFLINE = True  # the fixture's monkeypatch restores neither more nor less than it set
    try:
        assert load_backbone("fetch-clip", device="cpu").weights == "openai"
    finally:
        constants.HF_HUB_OFFLINE = False


def test_a_copy_that_was_damaged_on_the_way_is_not_loaded(hub, tmp_path):
    for model, file in (("fetch-clip", "open_clip_model.safetensors"), (f"timm:{TIMM}", "model.safetensors")):
        folder = tmp_path / file
        fetch_model(model, folder)
        data = bytearray((folder / file).read_bytes())
        data[-1] ^= 1
        (folder / file).write_bytes(data)
        with pytest.raises(WeightsError, match="SHA-256"):
            load_backbone(str(folder), device="cpu")


def test_the_model_in_the_wheel_is_copied(tmp_path):
    fetch_model("tiny", tmp_path / "tiny")
    copied, own = load_backbone(str(tmp_path / "tiny"), device="cpu"), load_backbone("tiny", device="cpu")
    assert (copied.fingerprint, copied.image_size) == (own.fingerprint, own.image_size)
    assert copied.levels == own.levels != {}


def test_what_cannot_be_fetched_says_why(hub, tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="takes one of tiny"):
        fetch_model("ViT-B-17")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    with pytest.raises(UsageError, match="not an empty folder"):
        fetch_model("fetch-clip", tmp_path / "full")
    monkeypatch.setitem(pretrained._PRETRAINED["fetch-clip"]["openai"], "hf_hub", "org/nowhere/")
    with pytest.raises(WeightsError, match="org/nowhere"):
        fetch_model("fetch-clip", tmp_path / "new")
    assert not (tmp_path / "new").exists()
    monkeypatch.setattr("clipspect.backbones.timm.loader.weights_repository", lambda name: "org/gated")
    with pytest.raises(WeightsError, match="gated; accept its license"):
        fetch_model(f"timm:{TIMM}", tmp_path / "new")


@pytest.mark.parametrize("content", ["{", '{"no": 1}', "[]"])
def test_a_damaged_description_is_named(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(WeightsError, match=r"config\.json"):
        load_backbone(str(tmp_path), device="cpu")
    (tmp_path / FOLDER_FILE).write_text(content)
    with pytest.raises(WeightsError, match="fetch the model again"):
        load_backbone(str(tmp_path), device="cpu")
