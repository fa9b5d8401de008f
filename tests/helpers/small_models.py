"""Small architectures of every supported family."""

from __future__ import annotations

from typing import Any

import torch

_TEXT = {"context_length": 20, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1}

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "vit": {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 64, "layers": 2, "width": 48, "head_width": 24, "patch_size": 16},
        "text_cfg": {**_TEXT, "width": 16, "heads": 2},
    },
    "quick-gelu-vit": {
        "embed_dim": 32,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 48, "layers": 3, "width": 32, "head_width": 8, "patch_size": 8},
        "text_cfg": {**_TEXT, "width": 24, "heads": 3},
    },
    "resnet": {
        "embed_dim": 32,
        "vision_cfg": {
            "image_size": 64,
            "layers": [1, 1, 1, 1],
            "width": 8,
            "head_width": 64,
            "patch_size": None,
        },
        "text_cfg": {**_TEXT, "width": 16, "heads": 2},
    },
    "openai-vit": {
        "embed_dim": 64,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 64, "layers": 2, "width": 128, "patch_size": 16},
        "text_cfg": _TEXT,
    },
    "openai-resnet": {
        "embed_dim": 64,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None},
        "text_cfg": _TEXT,
    },
}


def normalised_images(count: int, size: int, seed: int = 0) -> torch.Tensor:
    """(count, 3, size, size) of unit variance."""
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))
