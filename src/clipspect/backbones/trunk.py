"""The first stages of EfficientNet-Lite: a convolutional trunk whose features are the patch tokens of a small CLIP.

EfficientNet-Lite (Apache-2.0) is EfficientNet (arXiv 1905.11946) without squeeze-and-excitation and with ReLU6. Batch
normalization is folded into the convolutions, so a trunk is convolutions with biases and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STRIDE = 8
"""Pixels per token: features of the other strides are brought to this grid."""


@dataclass(frozen=True)
class Stage:
    """Inverted-residual blocks of one resolution."""

    kernel: int
    stride: int
    expand: int
    channels: int
    blocks: int


_STEM = 32
TRUNKS = {
    "efficientnet-lite0": (
        Stage(3, 1, 1, 16, 1),
        Stage(3, 2, 6, 24, 2),
        Stage(5, 2, 6, 40, 2),
        Stage(3, 2, 6, 80, 3),
        Stage(5, 1, 6, 112, 3),
    ),
    "efficientnet-lite1": (
        Stage(3, 1, 1, 16, 1),
        Stage(3, 2, 6, 24, 3),
        Stage(5, 2, 6, 40, 3),
        Stage(3, 2, 6, 80, 4),
        Stage(5, 1, 6, 112, 4),
    ),
    "efficientnet-lite2": (
        Stage(3, 1, 1, 16, 1),
        Stage(3, 2, 6, 24, 3),
        Stage(5, 2, 6, 48, 3),
        Stage(3, 2, 6, 88, 4),
        Stage(5, 1, 6, 120, 4),
    ),
}
"""Stages up to stride 16; the later ones classify and are left out."""
_TAPS = (1, 2, 4)
"""Stages whose output is used: strides 4, 8 and 16."""


class _Conv(nn.Conv2d):
    """A convolution with TensorFlow's SAME padding for even sizes, which is not symmetric at stride 2."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, groups=groups)
        before = (kernel - stride) // 2
        self._around = (before, kernel - stride - before) * 2

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (B, C, H, W) to (B, O, H / stride, W / stride)."""
        return super().forward(F.pad(x, self._around) if self._around[1] else x)


class _Block(nn.Module):
    """Expand, filter each channel, project back; a residual where the shape stays."""

    def __init__(self, inputs: int, stage: Stage, stride: int) -> None:
        super().__init__()
        inner = inputs * stage.expand
        self.expand = _Conv(inputs, inner, 1) if stage.expand > 1 else None
        self.depthwise = _Conv(inner, inner, stage.kernel, stride, groups=inner)
        self.project = _Conv(inner, stage.channels, 1)
        self._residual = stride == 1 and inputs == stage.channels

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (B, C, H, W) to (B, O, H / stride, W / stride)."""
        inner = x if self.expand is None else F.relu6(self.expand(x))
        out: Tensor = self.project(F.relu6(self.depthwise(inner)))
        return out + x if self._residual else out


class Trunk(nn.Module):
    """Standardized features at strides 4, 8 and 16 on the grid of stride 8."""

    shift: Tensor
    scale: Tensor

    def __init__(self, name: str) -> None:
        """Build the trunk of a name in ``TRUNKS``; its weights are not loaded."""
        super().__init__()
        stages = TRUNKS[name]
        self.stem = _Conv(3, _STEM, 3, 2)
        inputs = _STEM
        self.stages = nn.ModuleList()
        for stage in stages:
            strides = [stage.stride] + [1] * (stage.blocks - 1)
            widths = [inputs] + [stage.channels] * (stage.blocks - 1)
            blocks = [_Block(width, stage, stride) for width, stride in zip(widths, strides, strict=True)]
            self.stages.append(nn.Sequential(*blocks))
            inputs = stage.channels
        self.channels = tuple(stages[tap].channels for tap in _TAPS)
        """Channels of each stride."""
        self.register_buffer("shift", torch.zeros(sum(self.channels)))
        self.register_buffer("scale", torch.ones(sum(self.channels)))

    def forward(self, images: Tensor) -> Tensor:
        """Compute standardized features.

        Args:
            images: (B, 3, S, T), normalized to [-1, 1].

        Returns:
            (B, C, S / 8, T / 8).
        """
        x = F.relu6(self.stem(images.to(self.stem.weight.dtype)))
        taps = []
        for number, stage in enumerate(self.stages):
            x = stage(x)
            if number in _TAPS:
                taps.append(x)
        fine, middle, coarse = taps
        grid = middle.shape[-2:]
        coarse = F.interpolate(coarse, grid, mode="bilinear", align_corners=False)
        features = torch.cat([F.avg_pool2d(fine, 2), middle, coarse], 1).to(self.shift.dtype)
        return (features - self.shift[:, None, None]) * self.scale[:, None, None]

    def compared(self, features: Tensor) -> Tensor:
        """Return what images are compared by: strides 8 and 16, mean over 3×3 tokens, each stride of unit length.

        As the network made them, not standardized: channels that vary little say little.

        Args:
            features: (B, C, H, W) from :meth:`forward`.

        Returns:
            (B, H·W, C').
        """
        made = features / self.scale[:, None, None] + self.shift[:, None, None]
        _, middle, coarse = made.split(self.channels, 1)
        pooled = (F.avg_pool2d(part, 3, 1, 1, count_include_pad=False) for part in (middle, coarse))
        return torch.cat([F.normalize(part, dim=1) for part in pooled], 1).flatten(2).transpose(1, 2)
