"""MuSc: mutual scoring of an unlabelled set, without text.

Li et al., "MuSc: Zero-Shot Industrial Anomaly Classification and Segmentation with Mutual Scoring of the Unlabeled
Images" (ICLR 2024, arXiv 2401.16753), §3; docs/methods.md §8. Tokens are hidden states (B, H, W, width) of four
blocks; each map is the mean over blocks and degrees of half the Euclidean distance, so that values are in [0, 1].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from clipspect.methods.base import MethodContext, check_choice, setting
from clipspect.methods.fast_search import Search
from clipspect.methods.fusion import Rule
from clipspect.methods.mutual import Mutual
from clipspect.methods.scoring import upsample
from clipspect.methods.set_scoring import Distance, Rounding


@dataclass(frozen=True)
class MuSc(Mutual):
    """The published settings of mutual scoring. Any backbone, with or without text."""

    name: ClassVar[str] = "musc"
    needs_text: ClassVar[bool] = False
    fixed: ClassVar[frozenset[str]] = frozenset(
        {
            "output",
            "views",
            "temperature",
            "block",
            "fusion",
            "image_rule",
            "prompt_set",
            "domain",
            "text_weight",
            "left_out",
            "blocks_from",
            "blocks_to",
            "visual_features",
        }
    )

    output: Literal["joint", "text", "visual"] = setting("visual", "Only the visual score exists.")
    fusion: Rule = setting("mean", "Unused: there is one score.")
    visual_features: Literal["auto", "both", "trunk", "blocks"] = setting(
        "blocks",
        "Only tokens of blocks are compared, as published.",
    )
    path: Literal["value", "ordinary", "hidden"] = setting(
        "hidden",
        'Hidden states before the final norm and projection, as published; or "ordinary" or "value" tokens.',
    )
    blocks: str = setting(
        "25%,50%,75%,100%",
        "Blocks by number, such as 6,12,18,24, or by relative depth; four evenly spaced ones as published.",
    )
    search: Search = setting(
        "exact",
        '"exact" compares all patches, as published; "fast" and "auto" as in ``mutual``.',
    )
    smoothing: int = setting(1, "Side of the mean filter on the patch grid, odd; 1 = none, as published.")
    rounding: Rounding = setting(
        "down",
        'Rounding of the number of images that share gives: "down" as in MuSc\'s code, or "up"; at least '
        "one image.",
    )
    degrees: str = setting(
        "1,3,5",
        "Sides of the neighborhoods in patches that a patch is averaged over (LNAMD); the maps are averaged.",
    )
    distance: Distance = setting(
        "euclidean",
        'Distance of unit tokens before the mean over images: "euclidean", half the length, or "cosine", '
        "½ (1 − cos).",
    )
    image_norm: bool = setting(True, "Normalize each image's tokens by their common mean and variance first.")
    rescoring: str = setting(
        "1,2,3",
        "Numbers of similar images whose image scores are averaged (RsCIN): 1,2,3 for MVTec AD, 1,8,9 for "
        "VisA; empty = none.",
    )

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        check_choice("output", self.output, ("visual",))
        if self.left_out:
            check_choice("left_out", self.left_out, (0.0,))

    def highest(self, visual: Tensor, context: MethodContext) -> Tensor:
        """(B,) highest values of the maps at input size, as published."""
        return upsample(visual, context.size).amax((1, 2))
