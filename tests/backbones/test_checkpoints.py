"""Small random checkpoints in every real format load to the numbers upstream open_clip gives, or fail with a remedy."""

from __future__ import annotations

import hashlib
import json
import pickle
import warnings
import zipfile
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from clipspect.backbones.features import FeatureRequest
from clipspect.backbones.loader import load_backbone
from clipspect.backbones.openclip.torchscript import read_tensors
from clipspect.errors import UsageError, WeightsError
from helpers.small_models import ARCHITECTURES, normalised_images


def write_folder(folder, config, model, suffix="safetensors"):
    folder.mkdir(exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    path = folder / f"open_clip_model.{suffix}"
    save_file(model.state_dict(), path) if suffix == "safetensors" else torch.save(model.state_dict(), path)
    return path


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("suffix", ["safetensors", "pt", "bin"])
def test_a_folder_gives_the_image_and_text_embeddings_of_open_clip(tmp_path, name, suffix):
    torch.manual_seed(1)
    config = ARCHITECTURES[name]
    model = open_clip.CLIP(**config).eval()
    write_folder(tmp_path / "model", config, model, suffix)
    backbone = load_backbone(str(tmp_path / "model"))
    images = normalised_images(3, backbone.image_size)
    with torch.inference_mode():
        expected = model.encode_image(images, normalize=True)
        tokens = open_clip.SimpleTokenizer(context_length=config["text_cfg"]["context_length"])(
            ["a photo of a nut"]
        )
        expected_text = model.encode_text(tokens)
    torch.testing.assert_close(backbone.encode(images, FeatureRequest()).image, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(backbone.encode_text(["a photo of a nut"]), expected_text, atol=1e-5, rtol=0)


def test_an_architecture_of_open_clip_takes_a_checkpoint_file(tmp_path, monkeypatch):
    config = ARCHITECTURES["vit"]
    added = tmp_path / "tiny-test-vit.json"
    added.write_text(json.dumps(config))
    open_clip.add_model_config(added)
    model = open_clip.CLIP(**config).eval()
    file = tmp_path / "weights.pt"
    torch.save({"state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}, "epoch": 3}, file)
    backbone = load_backbone("tiny-test-vit", str(file))
    images = normalised_images(2, backbone.image_size)
    with torch.inference_mode():
        expected = model.encode_image(images, normalize=True)
    torch.testing.assert_close(backbone.encode(images, FeatureRequest()).image, expected, atol=1e-5, rtol=0)
    assert backbone.weights == "weights.pt"


@pytest.mark.parametrize("name", ["openai-vit", "openai-resnet"])
def test_an_openai_checkpoint_needs_no_architecture_and_runs_with_quick_gelu(tmp_path, name):
    torch.manual_seed(2)
    config = ARCHITECTURES[name]
    model = open_clip.CLIP(**config).eval()
    marks = {"input_resolution": 64, "context_length": 20, "vocab_size": 49408}
    state = {key: value.half().float() for key, value in model.state_dict().items()}
    model.load_state_dict(state)
    file = tmp_path / "openai.pt"
    torch.save(state | {key: torch.tensor(value) for key, value in marks.items()}, file)
    backbone = load_backbone(str(file))
    images = normalised_images(2, backbone.image_size)
    with torch.inference_mode():
        expected = model.encode_image(images, normalize=True)
    torch.testing.assert_close(backbone.encode(images, FeatureRequest()).image, expected, atol=1e-5, rtol=0)


def test_random_weights_are_seeded_named_and_warned_about(small_model):
    with pytest.warns(UserWarning, match="random weights"):
        first = load_backbone(str(small_model), "random", seed=3)
    with pytest.warns(UserWarning, match="control"):
        again = load_backbone(str(small_model), "random", seed=3)
    with pytest.warns(UserWarning):
        other = load_backbone(str(small_model), "random", seed=4)
    assert first.is_random
    assert first.weights == "random (seed 3)"
    assert first.fingerprint == again.fingerprint != other.fingerprint


def test_weights_that_cannot_be_had_are_named_with_their_source_and_the_option(monkeypatch):
    monkeypatch.setattr("socket.getaddrinfo", lambda *_: (_ for _ in ()).throw(OSError("no network")))
    with pytest.raises(WeightsError, match=r"open_clip_model\.safetensors.*Hugging Face hub.*--weights FILE"):
        load_backbone("ViT-B-16-plus-240")
    with pytest.raises(WeightsError, match=r"open_clip_config\.json.*'nobody/nothing'.*--model FOLDER"):
        load_backbone("hf-hub:nobody/nothing")


def test_a_truncated_checkpoint_is_called_damaged_in_every_format(tmp_path):
    config = ARCHITECTURES["vit"]
    model = open_clip.CLIP(**config)
    for suffix in ("safetensors", "pt"):
        path = write_folder(tmp_path / suffix, config, model, suffix)
        path.write_bytes(path.read_bytes()[:5000])
        with pytest.raises(WeightsError, match="cannot be read as weights"):
            load_backbone(str(tmp_path / suffix))


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_weights_are_held_to_the_sha256_that_lies_beside_them(tmp_path, suffix):
    path = write_folder(
        tmp_path / "model", ARCHITECTURES["vit"], open_clip.CLIP(**ARCHITECTURES["vit"]), suffix
    )
    beside = path.with_name(f"{path.name}.sha256")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    beside.write_text(f"{digest}  {path.name}\n")
    load_backbone(str(tmp_path / "model"))
    beside.write_text(f"{digest[::-1]}  {path.name}\n")
    with pytest.raises(WeightsError, match=f"is not what {beside.name} says"):
        load_backbone(str(tmp_path / "model"))


def test_one_flipped_bit_gives_weights_another_fingerprint(small_model):
    backbone = load_backbone(str(small_model))
    before = backbone.fingerprint
    weight = backbone._model.visual.conv1.weight
    weight.view(torch.int32).flatten()[1234] ^= 1
    backbone._fingerprint = None
    assert backbone.fingerprint != before


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path):
    write_folder(tmp_path / "model", ARCHITECTURES["vit"], open_clip.CLIP(**ARCHITECTURES["quick-gelu-vit"]))
    with pytest.raises(WeightsError, match="does not fit"):
        load_backbone(str(tmp_path / "model"))


def test_a_pickle_that_would_run_code_is_not_opened(tmp_path):
    class Attack:
        def __reduce__(self):
            return print, ("attacked",)

    file = tmp_path / "model.pt"
    torch.save({"state_dict": Attack()}, file)
    with pytest.raises(WeightsError, match="cannot be read as weights"):
        load_backbone(str(file))


def openai_archive(name: str, file: Path) -> open_clip.CLIP:
    """A model saved as OpenAI's releases are: a traced TorchScript archive with three marks as buffers."""
    torch.manual_seed(2)
    model = open_clip.CLIP(**ARCHITECTURES[name]).eval()
    # OpenAI's files hold halves
    model.load_state_dict({key: value.half().float() for key, value in model.state_dict().items()})
    model._buffers.pop("attn_mask")  # no buffer in OpenAI's, and of no use to images
    for mark, value in {"input_resolution": 64, "context_length": 20, "vocab_size": 49408}.items():
        vars(model).pop(mark, None)
        model.register_buffer(mark, torch.tensor(value))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TracerWarning, and that TorchScript is deprecated
        example = {"encode_image": (torch.zeros(1, 3, 64, 64),)}
        torch.jit.save(torch.jit.trace_module(model, example, check_trace=False), file)
    return model


@pytest.mark.parametrize("name", ["openai-vit", "openai-resnet"])
def test_an_openai_torchscript_archive_gives_its_weights_and_runs_none_of_its_code(
    tmp_path, name, monkeypatch
):
    file = tmp_path / "openai.pt"
    model = openai_archive(name, file)
    monkeypatch.setattr(torch.jit, "load", None)
    state = read_tensors(file)
    assert state.keys() == model.state_dict().keys()
    for key, value in model.state_dict().items():
        torch.testing.assert_close(state[key], value, atol=0, rtol=0)
    backbone = load_backbone(str(file))
    images = normalised_images(2, backbone.image_size)
    with torch.inference_mode():
        expected = model.encode_image(images, normalize=True)
    torch.testing.assert_close(backbone.encode(images, FeatureRequest()).image, expected, atol=1e-5, rtol=0)


def test_an_openai_archive_or_its_state_dict_fits_a_named_architecture(tmp_path):
    added = tmp_path / "tiny-test-openai.json"
    added.write_text(json.dumps(ARCHITECTURES["openai-vit"]))
    open_clip.add_model_config(added)
    model = openai_archive("openai-vit", tmp_path / "archive.pt")
    torch.save(model.state_dict(), tmp_path / "state.pt")
    for file in ("archive.pt", "state.pt"):
        backbone = load_backbone("tiny-test-openai", str(tmp_path / file))
        images = normalised_images(2, backbone.image_size)
        with torch.inference_mode():
            expected = model.encode_image(images, normalize=True)
        torch.testing.assert_close(
            backbone.encode(images, FeatureRequest()).image, expected, atol=1e-5, rtol=0
        )


def test_a_torchscript_archive_that_holds_more_than_weights_is_refused(tmp_path):
    file, marker = tmp_path / "jit.pt", tmp_path / "ran"

    class Attack:
        def __reduce__(self):
            return open, (str(marker), "w")

    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("jit/constants.pkl", pickle.dumps(()))
        archive.writestr("jit/data.pkl", pickle.dumps(Attack()))
    with pytest.raises(WeightsError, match=r"TorchScript archive.*which is no weight.*safetensors"):
        load_backbone(str(file))
    assert not marker.exists()


def test_a_torchscript_archive_of_something_else_says_what_is_missing(tmp_path):
    file = tmp_path / "jit.pt"
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), file)
    with pytest.raises(UsageError, match="does not say which architecture"):
        load_backbone(str(file))


def test_a_state_dict_without_architecture_says_what_to_add(tmp_path):
    file = tmp_path / "weights.safetensors"
    save_file(open_clip.CLIP(**ARCHITECTURES["vit"]).state_dict(), file)
    with pytest.raises(UsageError, match="--model ViT-B-16 --weights weights.safetensors"):
        load_backbone(str(file))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "ViT-Z-99"}, "unknown model 'ViT-Z-99'"),
        ({"model": "RN50"}, "has no default weights.*openai"),
        ({"model": "RN50", "weights": "no-such-tag"}, "neither a file here nor a known tag"),
        ({"model": "hf-hub:a/b", "weights": "random"}, "name an open_clip one"),
        ({"model": "tiny", "image_size": 250}, "not a multiple.*try 248"),
        ({"model": "tiny", "device": "cuda:77"}, "not usable here"),
        ({"model": "tiny", "precision": "fp8"}, "unknown precision"),
    ],
)
def test_impossible_settings_say_what_is_possible(options, message):
    with pytest.raises((UsageError, WeightsError), match=message):
        load_backbone(**options)


def test_a_model_without_patch_tokens_is_refused(tmp_path):
    config = json.loads(json.dumps(ARCHITECTURES["vit"]))
    config["vision_cfg"]["attentional_pool"] = True
    config["vision_cfg"]["attn_pooler_heads"] = 2
    write_folder(tmp_path / "coca", config, open_clip.CLIP(**config))
    with pytest.raises(UsageError, match="attentional pooler"):
        load_backbone(str(tmp_path / "coca"))
