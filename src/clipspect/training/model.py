"""The tiny CLIP: built from its configuration, saved as a folder that plain open_clip loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from clipspect.training.config import TrainingConfig


def build_tiny(config: TrainingConfig) -> open_clip.CLIP:
    """The untrained model, drawn from the configuration's seed."""
    settings: dict[str, Any] = config.model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return open_clip.CLIP(
            embed_dim=settings["embed_dim"],
            vision_cfg=dict(settings["vision_cfg"]),
            text_cfg=dict(settings["text_cfg"]),
            init_logit_scale=2.302585,  # ln 10: CLIP's own 14.3 saturates early with two anchors
        )


def normalize(pictures: Tensor, config: TrainingConfig) -> Tensor:
    """Pictures (B, 3, S, S) in [0, 1] as the model reads them."""
    mean, std = (
        torch.tensor(config.preprocess[key], device=pictures.device).view(3, 1, 1) for key in ("mean", "std")
    )
    return (pictures - mean) / std


def save_model(folder: Path, model: nn.Module, config: TrainingConfig) -> Path:
    """Write ``open_clip_config.json`` and ``open_clip_model.safetensors`` (float16); returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    description = {"model_cfg": config.model, "preprocess_cfg": config.preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(description, indent=2) + "\n")
    path = folder / "open_clip_model.safetensors"
    state = {name: tensor.detach().half().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, path, metadata={"format": "pt"})
    path.chmod(0o644)  # safetensors writes for the owner alone, a wheel is for everybody
    return path
