"""What every test may use: a private cache, a small model folder, rendered images of a plate with a blot."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from helpers.images import plate

WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if (
    WORKERS > 1
):  # the cores are divided among the processes; tests of parallel paths set their number of threads
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // WORKERS))

SMALL_VIT = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 3, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture(autouse=True)
def private_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Anchors are cached in a folder of the test session, never in the user's own."""
    monkeypatch.setenv("CLIPSPECT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small random ViT as open_clip would publish it."""
    folder = tmp_path_factory.mktemp("small-vit")
    torch.manual_seed(0)
    model = open_clip.CLIP(**SMALL_VIT)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": SMALL_VIT, "preprocess_cfg": {}}))
    return folder


@pytest.fixture
def plates(tmp_path: Path) -> Path:
    """A folder of ten images of plates in two subfolders, three of them with a blot."""
    folder = tmp_path / "plates"
    for number in range(10):
        path = folder / ("a" if number % 2 else "b") / f"plate {number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(plate(number, blot=number < 3)).save(path)
    return folder


@pytest.fixture
def run(monkeypatch, capsys, small_model, tmp_path_factory):
    """Run the command line in this process, in an empty folder: exit code, stdout and stderr."""
    from clipspect.cli import main

    monkeypatch.chdir(tmp_path_factory.mktemp("current"))

    def call(*words: str, model: bool = True) -> tuple[int, str, str]:
        extra = ["--model", str(small_model)] if model else []
        monkeypatch.setattr(sys, "argv", ["clipspect", *words, *extra])
        with pytest.raises(SystemExit) as stopped:
            main()
        captured = capsys.readouterr()
        return int(stopped.value.code or 0), captured.out, captured.err

    return call
