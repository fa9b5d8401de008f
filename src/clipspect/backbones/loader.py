"""Load a backbone by name: presets and open_clip models, or a plug-in's ``prefix:name``."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import get_args

from clipspect.backbones.base import Backbone, check_device
from clipspect.backbones.features import FeatureRequest
from clipspect.backbones.fetch import folder_image_size
from clipspect.backbones.presets import DEFAULT_MODEL, PRESETS
from clipspect.errors import UsageError
from clipspect.registry import backbone_loader
from clipspect.types import Precision


def load_backbone(
    model: str = DEFAULT_MODEL,
    weights: str | None = None,
    *,
    image_size: int | None = None,
    device: str = "auto",
    precision: Precision = "fp32",
    seed: int = 0,
    request: FeatureRequest | None = None,
    needs_text: bool = False,
) -> Backbone:
    """Load a backbone by name.

    Args:
        model: a preset ("tiny", "ViT-B-16-plus-240", …), any open_clip ViT or ResNet architecture, "hf-hub:org/name",
            "timm:NAME" for a vision transformer of timm without text, a folder with weights and open_clip's
            ``open_clip_config.json`` or timm's ``config.json``, or an OpenAI checkpoint file.
        weights: a pretrained tag, a checkpoint file (safetensors, or ``.pt`` read with ``weights_only``), "random"
            for a seeded control, or None for the preset's own.
        image_size: input side in pixels, a multiple of the patch; None for the preset's or the model's own.
        device: "auto", "cpu", "cuda", "cuda:1", "mps".
        precision: arithmetic of the two towers; features come out as float32 either way.
        seed: of random weights.
        request: what methods will need; what the model cannot give is refused before weights are downloaded.
        needs_text: whether they need a text tower.

    Raises:
        UsageError: unknown name or impossible setting.
        WeightsError: weights that are not here or not readable; the message says which file and how to pass it.
    """
    if precision not in get_args(Precision):
        raise UsageError(f"unknown precision {precision!r}; there are: {', '.join(get_args(Precision))}")
    device = check_device(device)
    if image_size is None:
        image_size = PRESETS[model].image_size if model in PRESETS else folder_image_size(Path(model))
    architecture = model
    if model in PRESETS and PRESETS[model].architecture.startswith("timm:"):
        architecture, weights = PRESETS[model].architecture, weights or PRESETS[model].weights
    load = backbone_loader(architecture)
    check = getattr(load, "check", None)
    if check is not None and request is not None:
        check(architecture, request.merged(), needs_text=needs_text)
    backbone = load(architecture, weights, image_size=image_size, device=device, seed=seed)
    backbone.name = model
    backbone = backbone.with_precision(precision) if precision != "fp32" else backbone
    if backbone.is_random:
        warnings.warn(
            f"{model} runs with random weights: a control whose scores mean nothing by themselves",
            stacklevel=2,
        )
    return backbone
