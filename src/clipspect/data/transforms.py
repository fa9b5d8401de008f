"""Resizing of an image to a backbone's square input, and of its map back (docs/methods.md, preprocessing)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipspect.errors import UsageError

Aspect = Literal["squash", "pad"]
Interpolation = Literal["bicubic", "bilinear"]
_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


@dataclass(frozen=True)
class ResizeSpec:
    """Rule that resizes images to the backbone's square input."""

    size: int
    """Side in pixels."""
    aspect: Aspect = "squash"
    """"squash" stretches to the square, as in the papers; "pad" keeps proportions and repeats the border."""
    interpolation: Interpolation = "bicubic"
    """PIL's filter: "bicubic" as in open_clip's training, "bilinear" as in the official AnoCLIP code."""

    def __post_init__(self) -> None:
        """Check the choices."""
        if self.aspect not in ("squash", "pad"):
            raise UsageError(f"aspect={self.aspect!r}; there are: 'squash', 'pad'")
        if self.interpolation not in _FILTERS:
            raise UsageError(f"interpolation={self.interpolation!r}; there are: 'bicubic', 'bilinear'")

    def apply(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Resize (H, W, 3) to (size, size, 3)."""
        top, left, height, width = self.content(*pixels.shape[:2])
        image = Image.fromarray(pixels).resize((width, height), _FILTERS[self.interpolation])
        below, right = self.size - top - height, self.size - left - width
        return np.pad(np.asarray(image), ((top, below), (left, right), (0, 0)), mode="edge")

    def shrink_to_side(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Resize (H, W, 3) in proportion until the shorter side is ``size``, as torchvision's ``Resize(size)`` does."""
        height, width = pixels.shape[:2]
        short = min(height, width)
        if short == self.size:
            return pixels
        tall, wide = (int(self.size * side / short) for side in (height, width))
        return np.asarray(Image.fromarray(pixels).resize((wide, tall), _FILTERS[self.interpolation]))

    def undo(self, score_map: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
        """Crop the padding from a square map of any side, for an image of that height and width."""
        share = len(score_map) / self.size
        top, left, h, w = (round(edge * share) for edge in self.content(height, width))
        return score_map[top : top + max(h, 1), left : left + max(w, 1)]

    def content(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Return top, left, height and width of an image of that height and width inside the square."""
        if self.aspect == "squash":
            return 0, 0, self.size, self.size
        scale = self.size / max(height, width)
        h, w = max(round(height * scale), 1), max(round(width * scale), 1)
        return (self.size - h) // 2, (self.size - w) // 2, h, w


def make_thumbnail(pixels: NDArray[np.uint8], side: int = 256) -> NDArray[np.uint8]:
    """Shrink (H, W, 3) to a long side of at most ``side``."""
    image = Image.fromarray(pixels)
    factor = side / max(image.size)
    if factor >= 1:
        return pixels
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    # A whole-number reduction first is several times faster on large images, without visible difference.
    return np.asarray(image.resize(size, Image.Resampling.BICUBIC, reducing_gap=1.0))


def normalize(images: NDArray[np.uint8], mean: Sequence[float], std: Sequence[float]) -> NDArray[np.float32]:
    """Normalize (B, S, T, 3) pixels to (B, 3, S, T) float32 by a backbone's mean and deviation, contiguous."""
    levels = np.arange(256, dtype=np.float32)[:, None] / np.float32(255)
    # (256, 3): lookup table of all values.
    values = (levels - np.array(mean, np.float32)) / np.array(std, np.float32)
    scaled = np.empty((len(images), 3, *images.shape[1:3]), np.float32)
    for channel in range(3):
        np.take(values[:, channel], images[..., channel], out=scaled[:, channel])
    return scaled
