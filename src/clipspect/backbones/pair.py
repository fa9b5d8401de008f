"""Two backbones in one detector: sentences are compared by one, images with each other by the other.

A CLIP relates patches to words; a model of images alone, such as DINOv2, compares patches better. Methods that do both
(dual-image, mutual) take each from the model that is good at it. Each image is encoded once by each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipspect.backbones.base import Backbone
from clipspect.backbones.features import FeatureRequest, Features
from clipspect.errors import UsageError
from clipspect.postprocess.calibration import Calibration
from clipspect.prompts.learned import LearnedPrompts


class BackbonePair(Backbone):
    """A backbone for text and one for comparing images. Inputs are in [0, 1] at the larger of the two sizes."""

    def __init__(self, text: Backbone, visual: Backbone) -> None:
        """Join two backbones on one device.

        Args:
            text: gives the patch grid, the image embedding and everything that sentences are compared with.
            visual: gives the features that images are compared by; its grid is resampled to that of ``text``.

        Raises:
            UsageError: a precision other than fp32.
        """
        for one in (text, visual):
            if one.precision != "fp32":
                raise UsageError(f"two backbones run in fp32; {one.name} is in {one.precision}")
        self.text, self.visual = text, visual
        self.name = f"{text.name} + {visual.name}"
        self.weights = f"{text.weights} + {visual.weights}"
        self.device, self.precision = text.device, text.precision
        self.image_size = max(text.image_size, visual.image_size)
        self.patch, self.depth, self.has_text = text.patch, text.depth, text.has_text
        self.mean, self.std = (0.0,) * 3, (1.0,) * 3

    @property
    def network(self) -> nn.Module:
        """Both networks."""
        return nn.ModuleDict({"text": self.text.network, "visual": self.visual.network})

    @property
    def is_random(self) -> bool:
        """Whether either of the two has random weights."""
        return self.text.is_random or self.visual.is_random

    @property
    def levels(self) -> Mapping[str, Calibration]:
        """None: levels belong to one model at its own input size."""
        return {}

    def to(self, device: str | torch.device) -> None:
        """Move both to another device."""
        self.text.to(device)
        self.visual.to(device)
        self.device = self.text.device

    def resolve(self, request: FeatureRequest) -> FeatureRequest:
        """Resolve each part by the depth of its backbone."""
        return request.resolved(self.text.depth, self.visual.depth)

    def check(self, request: FeatureRequest) -> None:
        """Raise UsageError for a part that its backbone cannot serve."""
        self.text.check(replace(request, visual=None))
        if request.visual is not None:
            self.visual.check(request.visual)

    def features(self, images: Tensor, request: FeatureRequest) -> Features:
        """Encode images by both as a plain function of tensors: (B, 3, S, S) in [0, 1], the request resolved."""
        found = self.text.features(_fit(images, self.text), replace(request, visual=None))
        if request.visual is None:
            return found
        other = self.visual.features(_fit(images, self.visual), request.visual)
        return replace(found, visual=resample(other, found.grid))

    def encode_text(self, sentences: Sequence[str]) -> Tensor:
        """(P, D) text embeddings of the first backbone, not normalized."""
        return self.text.encode_text(sentences)

    def encode_prompts(self, prompts: LearnedPrompts) -> Tensor:
        """(P, D) embeddings of learned prompts by the first backbone, not normalized."""
        return self.text.encode_prompts(prompts)


def resample(features: Features, grid: tuple[int, int]) -> Features:
    """Resample the patch tokens of B images to another grid, bilinear between the centers of patches.

    Args:
        features: of any grid.
        grid: target (H, W).
    """
    if features.grid == grid:
        return features

    def resize(tokens: Tensor) -> Tensor:
        moved = F.interpolate(tokens.permute(0, 3, 1, 2), grid, mode="bilinear", align_corners=False)
        return moved.permute(0, 2, 3, 1).contiguous()

    each: dict[str, Any] = {
        name: {block: resize(tokens) for block, tokens in getattr(features, name).items()}
        for name in ("value_patches", "ordinary_patches", "hidden_patches")
    }
    trunk = None if features.trunk is None else resize(features.trunk)
    return replace(features, grid=grid, trunk=trunk, **each)


def _fit(images: Tensor, backbone: Backbone) -> Tensor:
    """Images in [0, 1] → a backbone's size, mean and std."""
    side = backbone.image_size
    if images.shape[-2:] != (side, side):
        images = F.interpolate(images, (side, side), mode="bicubic", antialias=True, align_corners=False)
        images = images.clamp(0, 1)
    mean, std = (images.new_tensor(values).view(1, 3, 1, 1) for values in (backbone.mean, backbone.std))
    return (images - mean) / std
