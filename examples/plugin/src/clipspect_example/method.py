"""A method: how far each patch is from the mean patch of its own image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch.nn import functional as F

from clipspect.backbones.features import FeatureRequest, Features
from clipspect.methods.base import Method, MethodContext, Scores, check_range, setting
from clipspect.methods.scoring import upsample, verdict_layers


@dataclass(frozen=True)
class Deviation(Method):
    """Distance of each patch from its image's mean patch: finds what is rare within one image."""

    name: ClassVar[str] = "deviation"
    about: ClassVar[str] = "distance of each patch from the image's mean patch (example plug-in)"
    needs_text: ClassVar[bool] = False

    block: int = setting(-1, "Block whose tokens are compared; -1 = the last.")
    power: float = setting(1.0, "Exponent of the distances; above 1 suppresses small ones.")

    def __post_init__(self) -> None:
        """Check the settings."""
        check_range("power", self.power, 0.1, 10)

    def request(self) -> FeatureRequest:
        """Ordinary tokens of one block."""
        return FeatureRequest(ordinary_blocks=frozenset([self.block]))

    def score(self, features: Features, context: MethodContext) -> Scores:
        """Half of 1 minus the cosine with the mean; the highest value is the image score."""
        tokens = F.normalize(features.ordinary(self.block), dim=-1)  # (B, H, W, D)
        mean = F.normalize(tokens.mean((1, 2), keepdim=True), dim=-1)
        distance = ((1 - (tokens * mean).sum(-1)) / 2).clamp(0, 1) ** self.power
        maps = upsample(distance, context.size)
        return Scores(distance.amax((1, 2)), maps, layers=verdict_layers(distance))
