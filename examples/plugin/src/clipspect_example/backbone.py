"""A backbone without weights: means and deviations of the pixels of each patch."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipspect.backbones.base import Backbone, check_image_size
from clipspect.backbones.features import FeatureRequest, Features
from clipspect.errors import UsageError


class PixelBackbone(Backbone):
    """Color statistics of square patches; one block, no text tower."""

    def __init__(self, name: str, patch: int, image_size: int, device: str) -> None:
        """Set what every backbone has."""
        self.name, self.weights, self.precision = name, "none", "fp32"
        self.device = torch.device(device)
        self.patch, self.depth = patch, 1
        self.image_size = check_image_size(image_size, patch, name)
        self.mean, self.std = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
        self._network = nn.Identity()

    @property
    def network(self) -> nn.Module:
        """A module without weights."""
        return self._network

    def check(self, request: FeatureRequest) -> None:
        """Raise UsageError for V-V tokens and hidden states, of which there are none."""
        if request.value_blocks or request.value_spans or request.hidden_blocks or request.hidden_spans:
            raise UsageError(f"{self.name} has ordinary tokens only")

    def features(self, images: Tensor, request: FeatureRequest) -> Features:
        """(B, H, W, 7) tokens: a constant, mean and deviation of each color."""
        mean = F.avg_pool2d(images, self.patch)
        deviation = (F.avg_pool2d(images.square(), self.patch) - mean.square()).clamp_min(0).sqrt()
        tokens = torch.cat([torch.ones_like(mean[:, :1]), mean, deviation], 1).permute(0, 2, 3, 1)
        grid = (int(tokens.shape[1]), int(tokens.shape[2]))
        ordinary = {1: tokens} if request.ordinary_blocks else {}
        return Features(F.normalize(tokens.mean((1, 2)), dim=-1), grid, 1, ordinary_patches=ordinary)


def load_pixels(
    model: str, weights: str | None, *, image_size: int | None, device: str, seed: int
) -> PixelBackbone:
    """Load ``pixels:PATCH``, such as ``pixels:16``.

    Raises:
        UsageError: something else than a number behind the colon, or weights.
    """
    side = model.partition(":")[2]
    if not side.isdecimal() or int(side) < 1:
        raise UsageError(f"{model}: name the side of a patch in pixels, such as pixels:16")
    if weights is not None:
        raise UsageError(f"{model} has no weights; leave --weights out")
    patch = int(side)
    return PixelBackbone(model, patch, image_size or 16 * patch, device)
