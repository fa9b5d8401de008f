"""Checks of an architecture's two towers before its weights are downloaded."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import torch

from clipspect.backbones.openclip.value_attention import check_vit
from clipspect.errors import UsageError


def check_towers(config: Mapping[str, Any], name: str) -> None:
    """Refuse towers that clipspect cannot run. Towers of timm are checked with the request of the methods.

    Args:
        config: open_clip's model configuration: ``embed_dim``, ``vision_cfg``, ``text_cfg``.
        name: of the model, for messages.

    Raises:
        UsageError: a text tower whose package is missing, or a vision tower without a V-V path.
    """
    text, vision = config.get("text_cfg", {}), config.get("vision_cfg", {})
    for key, what in (("hf_model_name", "text tower"), ("hf_tokenizer_name", "tokenizer")):
        if text.get(key) and find_spec("transformers") is None:
            raise UsageError(
                f"the {what} of {name} needs the package transformers: pip install 'clipspect[siglip]'"
            )
    if vision.get("timm_model_name"):
        return
    from open_clip.model import _build_vision_tower
    from open_clip.transformer import VisionTransformer

    with torch.device("meta"):
        visual = _build_vision_tower(config["embed_dim"], dict(vision), bool(config.get("quick_gelu")))
    if isinstance(visual, VisionTransformer):
        check_vit(visual)
