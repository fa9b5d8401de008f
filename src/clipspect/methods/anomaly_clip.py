"""AnomalyCLIP: patches and image against learned prompts that name no object.

Zhou, Pang, Tian, He, Chen, "AnomalyCLIP: Object-agnostic Prompt Learning for Zero-shot Anomaly Detection" (ICLR 2024,
arXiv 2310.18961; code zqhang/AnomalyCLIP); docs/methods.md §10. Made for ViT-L-14-336 at 518 pixels. Held to an
independent statement of the official forward pass by ``tests/methods/test_anomaly_clip.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from clipspect.backbones.features import FeatureRequest, Features, StartBlock, block_numbers, parse_blocks
from clipspect.errors import UsageError
from clipspect.methods.anoclip import VERDICT_SMOOTHING
from clipspect.methods.base import Method, MethodContext, Scores, check_range, setting
from clipspect.methods.few_shot import gaussian_smooth
from clipspect.methods.scoring import abnormal_probability, log_odds, smooth, upsample, verdict_layers
from clipspect.prompts.learned import AnomalyCLIPAnchors

_VALUE_BLOCKS = 19
"""The official code asks for 20 blocks and replaces the attention of 19, the last ones."""


@dataclass(frozen=True)
class AnomalyCLIP(Method):
    """Learned prompts for normal and abnormal, the same for every object. No reference, no sentence."""

    name: ClassVar[str] = "anomaly-clip"
    needs_file: ClassVar[bool] = True

    checkpoint: str = setting("", "Prompt checkpoint (.pth) as AnomalyCLIP publishes it, for ViT-L-14-336.")
    blocks: str = setting(
        "25%,50%,75%,100%",
        "Blocks whose V-V tokens' maps are averaged: numbers or relative depths; as published 6,12,18,24 "
        "of 24.",
    )
    temperature: float = setting(0.07, "Divisor of the cosines before the softmax.")
    sigma: float = setting(4.0, "Of the Gaussian that smooths the map, in pixels of the input.")

    def __post_init__(self) -> None:
        """Check the settings."""
        parse_blocks(self.blocks)
        check_range("temperature", self.temperature, 1e-4, 1e4)
        check_range("sigma", self.sigma, 0.1, 100)

    @cached_property
    def anchor_source(self) -> AnomalyCLIPAnchors:
        """The prompts of the checkpoint.

        Raises:
            UsageError: none was given.
            WeightsError: it cannot be read.
        """
        if not self.checkpoint:
            raise UsageError(
                "anomaly-clip needs learned prompts: download a checkpoint that AnomalyCLIP publishes and pass"
                " --set checkpoint=FILE"
            )
        source = AnomalyCLIPAnchors(Path(self.checkpoint))
        _ = source.prompts  # a file that cannot be read is named before a model is loaded
        return source

    def request(self) -> FeatureRequest:
        """V-V tokens of several blocks, and the class token without the final norm, as in the official code."""
        blocks, spans = parse_blocks(self.blocks)
        start: StartBlock = -_VALUE_BLOCKS
        return FeatureRequest(
            value_blocks=blocks, value_spans=spans, start_block=start, raw_class=True, positions="bilinear"
        )

    def score(self, features: Features, context: MethodContext) -> Scores:
        """Mean map of the blocks, smoothed at the input size, and the class token's abnormal probability."""
        assert features.raw_class is not None
        pair = context.anchors.pair
        text = self.patch_map(features, context)
        maps = upsample(text, context.size, align_corners=False)
        maps = gaussian_smooth(maps, self.sigma, int(4 * self.sigma + 0.5), repeat_edge=True)
        image = abnormal_probability(features.raw_class, pair, self.temperature)
        layers = verdict_layers(smooth(text, VERDICT_SMOOTHING))
        return Scores(image, maps.clamp(0, 1), text=text, layers=layers, class_logit=log_odds(image))

    def patch_map(self, features: Features, context: MethodContext) -> Tensor:
        """(B, H, W) abnormal probabilities, mean over the blocks; the official map is their sum."""
        blocks = sorted(block_numbers(*parse_blocks(self.blocks), features.depth))
        pair = context.anchors.pair
        maps = [abnormal_probability(features.values(b), pair, self.temperature) for b in blocks]
        return torch.stack(maps).mean(0)
