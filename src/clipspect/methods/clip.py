"""CLIP-AC baseline: plain CLIP classification of the image as normal or damaged (docs/methods.md §7)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from clipspect.backbones.features import FeatureRequest, Features
from clipspect.methods.base import Method, MethodContext, Scores, check_range, setting
from clipspect.methods.scoring import abnormal_probability, log_odds, smooth, upsample, verdict_layers


@dataclass(frozen=True)
class CLIP(Method):
    """Image embedding against two text embeddings. CLIP-AC itself has no map.

    To provide a map, the ordinary (Q-K) patch tokens of the last block are compared with the same text embeddings. This
    shows how well CLIP localizes without modification, which is poorly.
    """

    name: ClassVar[str] = "clip"

    ensemble: bool = setting(
        True,
        "WinCLIP's compositional ensemble of 147 and 84 sentences per side; false = one plain sentence "
        "per side.",
    )
    temperature: float = setting(0.07, "Divisor of the cosines before the softmax, as in WinCLIP.")

    def __post_init__(self) -> None:
        """Check the settings."""
        check_range("temperature", self.temperature, 1e-4, 1e4)

    @property
    def prompts(self) -> str:
        """Return the prompt set: one sentence per side, "a photo of a damaged {}", or the ensemble."""
        return "winclip" if self.ensemble else "plain"

    def request(self) -> FeatureRequest:
        """Return the request: the ordinary tokens of the last block."""
        return FeatureRequest(ordinary_blocks=frozenset([-1]))

    def score(self, features: Features, context: MethodContext) -> Scores:
        """Return abnormal probabilities of the image embedding and of the ordinary patch tokens."""
        pair = context.anchors.pair
        grid = abnormal_probability(features.ordinary(-1), pair, self.temperature)
        image = abnormal_probability(features.image, pair, self.temperature)
        return Scores(
            image,
            upsample(grid, context.size),
            text=grid,
            layers=verdict_layers(smooth(grid)),
            class_logit=log_odds(image),
        )
