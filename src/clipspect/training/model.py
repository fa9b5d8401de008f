"""The tiny CLIP: built from its configuration, saved as a model folder."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from clipspect.backbones.openclip.plain_clip import PlainCLIP, initialize
from clipspect.training.config import TrainingConfig
from clipspect.training.render import Canvas, draw_scenes
from clipspect.training.trunk_weights import load_imagenet, standardize

_STATISTICS_SIDE, _STATISTICS_SCENES = 256, 48
"""Number of rendered scenes for standardizing the trunk's features."""


def build_tiny(config: TrainingConfig) -> PlainCLIP:
    """Return the untrained model, drawn from the configuration's seed, on a trunk with its ImageNet weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = PlainCLIP(config.model)
        initialize(model)
        if model.visual.trunk is not None:
            model.visual.trunk.requires_grad_(config.trunk_learning_rate > 0)
        if model.visual.trunk is not None and config.trunk_weights != "given":
            if config.trunk_weights == "imagenet":
                load_imagenet(model.visual.trunk, config.model["vision_cfg"]["trunk"])
            scenes = draw_scenes(Canvas(_STATISTICS_SIDE, config.seed), _STATISTICS_SCENES)
            standardize(model.visual.trunk, normalize(scenes.clean, config))
    return model


def encode_captions(model: PlainCLIP, ids: Tensor) -> Tensor:
    """Encode (P, context) token ids to (P, D) text embeddings, not normalized.

    ``encode_sentences`` looks for common prefixes first, which stalls a GPU; this function does not.
    """
    x = model.transformer(model.token_embedding(ids) + model.positional_embedding, model.attn_mask)
    ends = ids.argmax(1)
    pooled: Tensor = model.ln_final(x[torch.arange(len(ids), device=ids.device), ends])
    return pooled @ model.text_projection


def normalize(pictures: Tensor, config: TrainingConfig) -> Tensor:
    """Normalize images (B, 3, S, S) in [0, 1] for the model."""
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
    path.chmod(0o644)  # safetensors makes the file private; a wheel needs public read access
    return path
