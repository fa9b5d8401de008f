"""Backbones by short name: the papers' settings, and the model that ships in the wheel."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path


@dataclass(frozen=True)
class Preset:
    """A named backbone: which architecture, which weights, which input size."""

    architecture: str
    """open_clip's name, ``timm:NAME``, or the folder of a local model."""
    weights: str | None
    """Pretrained tag; None where the weights lie in the architecture's folder or are part of its name."""
    image_size: int
    """Input side in pixels the methods run at."""
    patch: int
    """Side of a patch in pixels."""
    license: str
    """License of the weights."""
    about: str
    """What it is good for."""
    text: bool = True
    """Whether there is a text tower."""
    source: str = "Hugging Face hub"
    """Where the weights come from."""
    object_note: str = ""
    """What users should know about the object's name with this model."""


TINY_FOLDER = Path(__file__).parent / "tiny"
_TINY = Preset(
    str(TINY_FOLDER),
    None,
    256,
    8,
    "Apache-2.0",
    "works offline; ImageNet trunk, trained on rendered scenes",
    source="in the wheel",
    object_note="With tiny the object's name only picks the prompt templates; another name changes almost nothing.",
)


PRESETS: dict[str, Preset] = {
    "tiny": _TINY,
    "tiny-4": replace(_TINY, about="pinned alias of the current tiny weights"),
    "ViT-B-16-plus-240": Preset(
        "ViT-B-16-plus-240",
        "laion400m_e32",
        240,
        16,
        "MIT",
        "the papers' backbone (AnoCLIP, Dual-Image, WinCLIP)",
    ),
    "ViT-B-16-plus-512": Preset(
        "ViT-B-16-plus-240",
        "laion400m_e32",
        512,
        16,
        "MIT",
        "the same at 512 pixels: small defects, 4.5 times the cost",
    ),
    "ViT-B-16": Preset("ViT-B-16", "openai", 224, 16, "MIT", "smaller and widely cached"),
    "ViT-L-14-336": Preset("ViT-L-14-336", "openai", 336, 14, "MIT", "larger and slower, finer grid (24×24)"),
    "ViT-L-14-336-518": Preset(
        "ViT-L-14-336", "openai", 518, 14, "MIT", "the same at 518 pixels (37×37), MuSc's setting"
    ),
    "SigLIP2-B-16-512": Preset(
        "ViT-B-16-SigLIP2-512",
        "webli",
        512,
        16,
        "Apache-2.0",
        "recent text and image tower; needs the extra siglip",
    ),
    "PE-Core-L-14-336": Preset(
        "PE-Core-L-14-336", "meta", 336, 14, "Apache-2.0", "recent text and image tower of Meta's"
    ),
    "DINOv2-B-518": Preset(
        "timm:vit_base_patch14_reg4_dinov2.lvd142m",
        None,
        518,
        14,
        "Apache-2.0",
        "visual methods: anomaly-dino, subspace, musc",
        text=False,
    ),
    "DINOv2-L-518": Preset(
        "timm:vit_large_patch14_reg4_dinov2.lvd142m",
        None,
        518,
        14,
        "Apache-2.0",
        "the same, larger and slower",
        text=False,
    ),
    "DINOv3-B-512": Preset(
        "timm:vit_base_patch16_dinov3.lvd1689m",
        None,
        512,
        16,
        "DINOv3 License",
        "visual methods; custom license with limits of use",
        text=False,
    ),
    "C-RADIOv3-B-512": Preset(
        "timm:vit_base_patch16_radio_v3.c_radio",
        None,
        512,
        16,
        "NVIDIA Open Model License",
        "visual methods; distilled from several large vision models",
        text=False,
    ),
}

DEFAULT_MODEL = "tiny"
