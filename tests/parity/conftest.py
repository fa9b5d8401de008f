"""The parity folder: inputs, random weights and outputs recorded from the official and peer code."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from clipspect.backbones.openclip.backbone import OpenClipBackbone
from clipspect.prompts import PromptTable, load_prompts
from clipspect.prompts.anchors import TextAnchors, encode_anchors

FIXTURES = Path(__file__).parents[1] / "fixtures" / "parity"


@dataclass(frozen=True)
class Parity:
    """A folder of fixtures and the model they were recorded with. No size is known beforehand."""

    folder: Path
    model: Any
    backbone: OpenClipBackbone
    prompts: PromptTable

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """The arrays of ``name.npz``."""
        with np.load(self.folder / f"{name}.npz") as stored:
            return dict(stored)

    def tensor(self, arrays: dict[str, np.ndarray], key: str) -> Tensor:
        """One array as a float32 tensor."""
        return torch.from_numpy(arrays[key]).float()

    def anchors(self, object_name: str, prompt_set: str = "anoclip") -> TextAnchors:
        """Anchors of a noun, as it stands."""
        domain = self.prompts.domain("auto", object_name)
        return encode_anchors(
            self.backbone, *self.prompts.prompt_set(prompt_set).sentences(object_name, domain)
        )


@pytest.fixture(scope="session")
def parity(tmp_path_factory: pytest.TempPathFactory) -> Parity:
    """The fixtures of the repository, or another set in the folder named by CLIPSPECT_PARITY."""
    folder = Path(os.environ.get("CLIPSPECT_PARITY", FIXTURES))
    config = json.loads((folder / "model_config.json").read_text(encoding="utf-8"))
    config = config.get("model_cfg", config)
    model = open_clip.CLIP(**config)
    model.load_state_dict({k: v.float() for k, v in load_file(folder / "weights.safetensors").items()})
    context = config["text_cfg"].get("context_length", 77)
    tokenizer = open_clip.SimpleTokenizer(context_length=context)
    previous = os.environ.get("CLIPSPECT_CACHE")
    os.environ["CLIPSPECT_CACHE"] = str(tmp_path_factory.mktemp("anchors"))
    yield Parity(
        folder, model, OpenClipBackbone(model, tokenizer, name="parity", weights="fixture"), load_prompts()
    )
    if previous is None:
        del os.environ["CLIPSPECT_CACHE"]
    else:
        os.environ["CLIPSPECT_CACHE"] = previous


@pytest.fixture(scope="session")
def close() -> Callable[[Any, Any, float], None]:
    """``close(actual, expected, atol)``: same shape, all finite, nothing further off than atol."""

    def check(actual: Any, expected: Any, atol: float) -> None:
        actual, expected = np.asarray(actual, dtype=np.float64), np.asarray(expected, dtype=np.float64)
        assert actual.shape == expected.shape
        assert np.isfinite(actual).all()
        assert np.abs(actual - expected).max() <= atol

    return check
