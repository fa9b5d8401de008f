"""Settings of the papers' runs by name, as options of :func:`clipspect.load`, the command line and the benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from clipspect.errors import UsageError

PAPERS_MODEL = "ViT-B-16-plus-240"


@dataclass(frozen=True)
class PaperSettings:
    """One run of a paper."""

    methods: tuple[str, ...]
    """Methods of the benchmark; the last one is that of ``detect``."""
    settings: Mapping[str, Any]
    """Settings of the methods; each goes to the methods that have it."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further options of :func:`clipspect.load`."""
    about: str = ""


PAPER_SETTINGS: dict[str, PaperSettings] = {
    "anovl-mvtec": PaperSettings(
        ("anoclip", "anoclip+"),
        {
            "views": "official",
            "adapter": "text-bank",
            "epochs": 5,
            "learning_rate": 1e-3,
            "start_block": "auto",
        },
        {"model": PAPERS_MODEL, "interpolation": "bilinear", "object_as_is": True},
        "official AnoCLIP code for MVTec AD",
    ),
    "anovl-visa": PaperSettings(
        ("anoclip", "anoclip+"),
        {
            "views": "none",
            "adapter": "linear",
            "epochs": 5,
            "learning_rate": 1e-3,
            "start_block": "auto",
            "tiles": "together",
        },
        {"model": PAPERS_MODEL, "interpolation": "bilinear", "tile": "square", "object_as_is": True},
        "official AnoCLIP code for VisA",
    ),
    "dual-image-paper": PaperSettings(
        ("anoclip", "dual-image", "dual-image+"),
        {"pairing": "random", "references": 1, "fusion": "mean", "start_block": "auto"},
        {"model": PAPERS_MODEL, "interpolation": "bilinear", "object_as_is": True},
        "Dual-Image Enhanced CLIP, our reading of its public text",
    ),
}
"""name → settings; everything that is not listed has its default."""


def paper_settings(name: str) -> PaperSettings:
    """Return the settings of a name. Raises UsageError, which lists the names."""
    if name not in PAPER_SETTINGS:
        raise UsageError(f"unknown preset {name!r}; there are: {', '.join(PAPER_SETTINGS)}")
    return PAPER_SETTINGS[name]
