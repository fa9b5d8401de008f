"""AnoCLIP: V-V patch tokens against domain-aware text embeddings, zero-shot, one image at a time.

Deng, Zhang, Bao, Li, "Bootstrap Fine-Grained Vision-Language Alignment for Unified Zero-Shot Anomaly Localization"
(arXiv 2308.15939); docs/methods.md §1–3.

"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from clipspect.backbones.features import FeatureRequest, Features, StartBlock
from clipspect.errors import UsageError
from clipspect.methods.base import Method, MethodContext, Scores, check_choice, check_range, setting
from clipspect.methods.scoring import abnormal_probability, log_odds, smooth, upsample, verdict_layers

VERDICT_SMOOTHING = 3
"""Side of the mean filter on the maps used for verdicts, independent of the method's setting."""


@dataclass(frozen=True)
class AnoCLIP(Method):
    """Zero-shot localization with no training and no reference: the default method."""

    name: ClassVar[str] = "anoclip"

    views: Literal["none", "official"] = setting(
        "none",
        "Image score from the whole image, or averaged over the 22 views of the official code (22 more "
        "encodings).",
    )
    temperature: float = setting(
        1.0,
        "Divisor of the cosines before the softmax; 1 as in the official code, smaller = sharper maps.",
    )
    smoothing: int = setting(3, "Side of the mean filter on the patch grid, odd; 1 = none.")
    block: int = setting(-1, "Block whose V-V tokens form the map; -1 = the last, as published.")
    start_block: StartBlock = setting(
        "auto",
        'Number of blocks before the V-V stream starts; "auto" as published: all but the last 12, 0 in a '
        "ViT-B.",
    )

    path: Literal["value", "ordinary"] = setting(
        "value",
        "Patch tokens of the V-V path, or of the ordinary Q-K path, for comparison.",
    )
    prompt_set: str = setting(
        "anoclip",
        "Prompt set of the table (docs/prompts.md); for ablations with parts left out: anoclip/one-state, "
        'anoclip/no-domain, anoclip/one-template, or several joined by "+".',
    )
    domain: str = setting(
        "",
        "Domain of this method's prompts in place of the run's (--domain), for comparing domains.",
    )

    def __post_init__(self) -> None:
        """Check the settings."""
        self.check_path()
        check_choice("views", self.views, ("none", "official"))
        check_range("temperature", self.temperature, 1e-4, 1e4)
        if self.smoothing < 1 or self.smoothing % 2 == 0:
            raise UsageError(f"smoothing={self.smoothing}; it is the side of a window: an odd number from 1")
        object.__setattr__(self, "start_block", _parse_start(self.start_block))

    def check_path(self) -> None:
        """Raise UsageError for an unknown path."""
        check_choice("path", self.path, ("value", "ordinary"))

    @property
    def prompts(self) -> str:
        """Return the name of the prompt set."""
        return self.prompt_set

    @property
    def prompt_domain(self) -> str:
        """Return the domain of the prompts, empty for that of the run."""
        return self.domain

    def request(self) -> FeatureRequest:
        """Return the request: one block's tokens, and the views if they are averaged."""
        return self.text_request() | FeatureRequest(views=self.views == "official")

    def text_request(self) -> FeatureRequest:
        """Return the request for the tokens that are compared with text."""
        block = frozenset([self.block])
        if self.path == "ordinary":
            return FeatureRequest(ordinary_blocks=block)
        return FeatureRequest(value_blocks=block, start_block=self.start_block)

    def text_patches(self, features: Features) -> Tensor:
        """Return the (B, H, W, D) tokens that are compared with text, not normalized."""
        return features.ordinary(self.block) if self.path == "ordinary" else features.values(self.block)

    def score(self, features: Features, context: MethodContext) -> Scores:
        """Score images by docs/methods.md §3: map from V-V tokens, image score from the class token."""
        text = self.patch_map(features, context)
        image = self.image_score(features, context)
        layers = verdict_layers(smooth(text, VERDICT_SMOOTHING))
        return Scores(
            image, self.finish(text, context), text=text, layers=layers, class_logit=log_odds(image)
        )

    def patch_map(self, features: Features, context: MethodContext) -> Tensor:
        """Return (B, H, W) abnormal probabilities on the patch grid, before smoothing."""
        return abnormal_probability(self.text_patches(features), context.anchors.pair, self.temperature)

    def finish(self, patch_map: Tensor, context: MethodContext) -> Tensor:
        """Smooth a map (B, H, W) and resize it to the input size (B, S, T)."""
        return upsample(smooth(patch_map, self.smoothing), context.size)

    def image_score(self, features: Features, context: MethodContext) -> Tensor:
        """Return the (B,) abnormal probability of the image embedding, mean over the views."""
        embeddings = (
            features.image[:, None] if features.views is None or self.views == "none" else features.views
        )
        return abnormal_probability(embeddings, context.anchors.pair, self.temperature).mean(1)


def _parse_start(value: object) -> StartBlock:
    """Read "auto" or a number of blocks, which a command line passes as text."""
    if value == "auto":
        return "auto"
    if not str(value).isdecimal():
        raise UsageError(f"start_block={value!r}; it is 'auto' or a number of blocks from 0")
    return int(str(value))
