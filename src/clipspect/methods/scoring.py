"""The arithmetic methods share: pure functions on tensors, batch first (docs/methods.md §2, §3, §5)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def abnormal_probability(tokens: Tensor, anchors: Tensor, temperature: float = 1.0) -> Tensor:
    """Softmax of a token's cosines with the normal and the abnormal anchor; the abnormal part.

    Args:
        tokens: (..., D), of any length.
        anchors: (2, D) unit, normal then abnormal.
        temperature: divides the cosines; 1 is the official code's.

    Returns:
        (...) in [0, 1].
    """
    cosines = F.normalize(tokens, dim=-1) @ anchors.T
    return (cosines / temperature).softmax(-1)[..., 1]


def smooth(maps: Tensor, kernel: int = 3) -> Tensor:
    """(B, H, W) mean over a kernel×kernel window with replicate padding (AnoCLIP's 3×3); kernel odd, 1 = as is."""
    half = kernel // 2
    padded = F.pad(maps[:, None], (half, half, half, half), mode="replicate")
    return F.avg_pool2d(padded, kernel, stride=1)[:, 0]


def upsample(maps: Tensor, size: tuple[int, int], *, align_corners: bool = True) -> Tensor:
    """(B, H, W) → (B, S, T), bilinear."""
    return F.interpolate(maps[:, None], size, mode="bilinear", align_corners=align_corners)[:, 0]
