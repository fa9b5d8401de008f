"""Pretrained weights: the right repository, the published SHA-256, proxies, and refusals before a download."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import open_clip
import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.utils import close_session
from open_clip import factory, pretrained
from safetensors.torch import save_file

from clipspect.backbones import hub
from clipspect.backbones.features import FeatureRequest
from clipspect.backbones.loader import load_backbone
from clipspect.backbones.openclip.backbone import load_openclip
from clipspect.backbones.openclip.towers import check_towers
from clipspect.errors import UsageError, WeightsError
from helpers.links import link
from helpers.small_models import ARCHITECTURES

E31, E32 = (f"timm/vit_base_patch16_plus_clip_240.laion400m_{epoch}" for epoch in ("e31", "e32"))
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def small_clip(seed: int) -> open_clip.CLIP:
    torch.manual_seed(seed)
    return open_clip.CLIP(**ARCHITECTURES["vit"]).eval()


def add_to_cache(cache: Path, repository: str, files: dict[str, bytes]) -> dict[str, Path]:
    """Put files into a hub cache as the hub client does: a blob named by its SHA-256, and a link to it."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    snapshot = folder / "snapshots" / COMMIT
    for path in (snapshot, folder / "blobs", folder / "refs"):
        path.mkdir(parents=True, exist_ok=True)
    (folder / "refs" / "main").write_text(COMMIT)
    blobs = {}
    for name, content in files.items():
        blobs[name] = folder / "blobs" / hashlib.sha256(content).hexdigest()
        blobs[name].write_bytes(content)
        link(snapshot / name, blobs[name])
    return blobs


def weights_bytes(folder: Path, model: open_clip.CLIP) -> bytes:
    path = folder / "weights.safetensors"
    save_file(model.state_dict(), path)
    return path.read_bytes()


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine without network, with an empty hub cache, on which the papers' architecture is a small one."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub, "RELEASES", tmp_path / "clip")
    monkeypatch.setattr("socket.getaddrinfo", lambda *_: (_ for _ in ()).throw(OSError("no network")))
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setitem(factory._MODEL_CONFIGS, "ViT-B-16-plus-240", ARCHITECTURES["vit"])
    return tmp_path


def load_papers_backbone():
    return load_backbone("ViT-B-16-plus-240", image_size=64, device="cpu")


def test_the_papers_preset_loads_the_epoch_it_names(machine):
    for seed, repository in enumerate((E31, E32)):
        content = weights_bytes(machine, small_clip(seed))
        add_to_cache(machine / "hub", repository, {"open_clip_model.safetensors": content})
    backbone = load_papers_backbone()
    assert backbone.weights == "laion400m_e32"
    assert backbone.weights_file.source == f"{E32}/open_clip_model.safetensors"
    assert backbone.weights_file.sha256 == backbone.weights_file.published
    expected = small_clip(1).state_dict()
    assert all(torch.equal(t, expected[k]) for k, t in backbone.network.state_dict().items())


def test_weights_of_the_other_epoch_are_not_taken_instead(machine):
    content = weights_bytes(machine, small_clip(0))
    add_to_cache(machine / "hub", E31, {"open_clip_model.safetensors": content})
    with pytest.raises(WeightsError, match=re.escape(E32)):
        load_papers_backbone()


def test_no_other_tag_of_open_clip_names_the_repository_of_another_epoch():
    for name, tags in pretrained._PRETRAINED.items():
        for tag in tags:
            config = hub.weights_config(name, tag)
            repository, release = str(config.get("hf_hub")), str(config.get("url"))
            if repository.startswith("timm/") and f"-{tag}-" in release:
                assert repository.rstrip("/").endswith(f".{tag}"), (name, tag)


def test_a_damaged_file_of_the_cache_is_refused(machine):
    content = weights_bytes(machine, small_clip(0))
    blobs = add_to_cache(machine / "hub", E32, {"open_clip_model.safetensors": content})
    blobs["open_clip_model.safetensors"].write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(WeightsError, match="not the published file"):
        load_papers_backbone()


def release_file(folder: Path, seed: int) -> Path:
    """A checkpoint named as open_clip's releases are, with the beginning of its SHA-256."""
    folder.mkdir(exist_ok=True)
    raw = folder / "raw.pt"
    torch.save({"state_dict": small_clip(seed).state_dict()}, raw)
    digits = hashlib.sha256(raw.read_bytes()).hexdigest()[:8]
    return raw.rename(folder / f"vit_b_16_plus_240-laion400m_e32-{digits}.pt")


def test_a_release_file_that_open_clip_downloaded_earlier_is_used(machine, monkeypatch):
    file = release_file(machine / "clip", 3)
    config = {
        **open_clip.get_pretrained_cfg("ViT-B-16-plus-240", "laion400m_e32"),
        "url": f"https://x/{file.name}",
    }
    monkeypatch.setitem(pretrained._PRETRAINED["ViT-B-16-plus-240"], "laion400m_e32", config)
    backbone = load_papers_backbone()
    assert backbone.weights_file.source == file.name
    assert file.name.endswith(f"-{backbone.weights_file.published}.pt")


def test_a_release_file_is_held_to_the_digest_in_its_name(machine):
    file = release_file(machine / "clip", 3)
    backbone = load_backbone("ViT-B-16-plus-240", str(file), image_size=64, device="cpu")
    assert backbone.weights_file.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    other = file.rename(file.with_name("vit_b_16_plus_240-laion400m_e32-699c4b84.pt"))
    with pytest.raises(WeightsError, match=r"published is 699c4b84"):
        load_backbone("ViT-B-16-plus-240", str(other), image_size=64, device="cpu")


class Hub(BaseHTTPRequestHandler):
    """Answers as the hub does, for direct requests and for those that go through it as a proxy."""

    files: dict[str, bytes] = {}
    asked: list[str] = []

    def do_GET(self):
        self.asked.append(self.path)
        name = urlsplit(self.path).path.rpartition("/")[2]
        content = self.files.get(name)
        if content is None or "/someone/small/resolve/" not in self.path:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path):
    """The address of a local hub that holds someone/small."""
    config = json.dumps({"model_cfg": ARCHITECTURES["vit"], "preprocess_cfg": {}}).encode()
    Hub.files = {
        "open_clip_config.json": config,
        "open_clip_model.safetensors": weights_bytes(tmp_path, small_clip(5)),
    }
    Hub.asked = []
    running = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_port}"
    running.shutdown()
    running.server_close()


def test_weights_come_from_a_hub_endpoint_through_a_proxy(tmp_path, server):
    """As a user does it: a command, with the hub's address, which no name server knows, and a proxy."""
    environment = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    environment |= {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": "http://hub.invalid"}
    environment |= {"http_proxy": server}
    command = "from clipspect.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", command, "models", "show", "hf-hub:someone/small"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    shown = "".join(done.stdout.split())
    digest = hashlib.sha256(Hub.files["open_clip_model.safetensors"]).hexdigest()
    assert f"{digest}(aspublished)" in shown
    assert "someone/small/open_clip_model.safetensors" in shown
    assert all(path.startswith("http://hub.invalid/") for path in Hub.asked)


def test_a_host_excluded_from_the_proxy_is_probed(monkeypatch):
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "hub.here")
    assert hub.uses_proxy("https", "huggingface.co")
    assert not hub.uses_proxy("https", "hub.here")
    monkeypatch.delenv("https_proxy")
    monkeypatch.delenv("HTTPS_PROXY", raising=False)
    monkeypatch.delenv("ALL_PROXY", raising=False)
    monkeypatch.delenv("all_proxy", raising=False)
    assert not hub.uses_proxy("https", "huggingface.co")


@pytest.mark.parametrize("weights", ["random", "laion2b_s12b_b32k", "file"])
def test_a_text_tower_without_its_package_names_the_extra(weights, machine, monkeypatch):
    monkeypatch.setattr("clipspect.backbones.openclip.towers.find_spec", lambda name: None)
    if weights == "file":
        weights = str(machine / "weights.pt")
        torch.save({}, weights)
    with pytest.raises(UsageError, match=r"text tower of roberta-ViT-B-32.*clipspect\[siglip\]"):
        load_backbone("roberta-ViT-B-32", weights)


@pytest.mark.parametrize("name", ["coca_ViT-B-32", "coca_ViT-L-14"])
def test_a_tower_without_patch_tokens_is_refused_before_its_weights_are_looked_for(name, machine):
    with pytest.raises(UsageError, match="attentional pooler"):
        load_openclip(name, "laion2b_s13b_b90k", image_size=None, device="cpu", seed=0)


def test_a_repository_is_refused_by_its_configuration(machine):
    vision = {**ARCHITECTURES["vit"]["vision_cfg"], "attentional_pool": True, "attn_pooler_heads": 2}
    config = {"model_cfg": {**ARCHITECTURES["vit"], "vision_cfg": vision}, "preprocess_cfg": {}}
    add_to_cache(machine / "hub", "someone/coca", {"open_clip_config.json": json.dumps(config).encode()})
    with pytest.raises(UsageError, match="attentional pooler"):
        load_backbone("hf-hub:someone/coca")


def test_the_towers_of_the_presets_pass():
    for name in ("ViT-B-16-plus-240", "ViT-L-14-336", "RN50"):
        check_towers(open_clip.get_model_config(name), name)


def test_weights_of_a_repository_give_the_numbers_of_open_clip(machine, server, monkeypatch):
    monkeypatch.undo()  # the machine with its network
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(machine / "hub"))
    monkeypatch.setattr(constants, "ENDPOINT", server)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server + "/{repo_id}/resolve/{revision}/{filename}"
    )
    close_session()
    backbone = load_backbone("hf-hub:someone/small", device="cpu")
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = small_clip(5).encode_image(images, normalize=True)
    torch.testing.assert_close(backbone.encode(images, FeatureRequest()).image, expected, atol=1e-5, rtol=0)
    close_session()
