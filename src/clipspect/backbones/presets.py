"""Backbones by short name: the papers' settings, and the model that ships in the wheel."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Preset:
    """A named backbone: which open_clip architecture, which weights, which input size."""

    architecture: str
    """open_clip's name, or the folder of a local model."""
    weights: str | None
    """open_clip's pretrained tag; None where the weights lie in the architecture's folder."""
    image_size: int
    """Input side in pixels the methods run at."""
    about: str


TINY_FOLDER = Path(__file__).parent / "tiny"


PRESETS: dict[str, Preset] = {
    "tiny": Preset(
        str(TINY_FOLDER),
        None,
        256,
        "ships in the wheel, works offline; ImageNet trunk, trained on rendered scenes",
    ),
    "tiny-4": Preset(str(TINY_FOLDER), None, 256, "pinned alias of the current tiny weights"),
    "ViT-B-16-plus-240": Preset(
        "ViT-B-16-plus-240", "laion400m_e32", 240, "the papers' backbone (AnoCLIP, Dual-Image, WinCLIP)"
    ),
    "ViT-B-16": Preset("ViT-B-16", "openai", 224, "smaller and widely cached"),
    "ViT-L-14-336": Preset("ViT-L-14-336", "openai", 336, "larger and slower, finer grid (24×24)"),
}

DEFAULT_MODEL = "tiny"
