"""Arithmetic shared by the methods: pure functions on tensors, batch first (docs/methods.md §2, §3, §5)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from clipspect.methods.base import Scores
from clipspect.postprocess.calibration import CLASS_LIMIT, CLASS_WEIGHT, Calibration
from clipspect.postprocess.maps import enlarge_factor


def abnormal_probability(tokens: Tensor, anchors: Tensor, temperature: float = 1.0) -> Tensor:
    """Return the abnormal part of the softmax of a token's cosines with the text embeddings.

    Args:
        tokens: (..., D), of any length.
        anchors: (2, D) unit, normal then abnormal.
        temperature: divisor of the cosines; 1 in the official code.

    Returns:
        (...) in [0, 1].
    """
    cosines = F.normalize(tokens, dim=-1) @ anchors.T
    return (cosines / temperature).softmax(-1)[..., 1]


def log_odds(probability: Tensor) -> Tensor:
    """Return log(p / (1 − p)), finite for 0 and 1."""
    return probability.logit(1e-6)


def verdict_layers(*maps: Tensor) -> Tensor:
    """Stack maps as log-odds layers, each map's outer ring of patches replaced by its inner neighbors.

    Patches at the border see the padding of the backbone's context; their scores are not comparable with others.

    Args:
        maps: K maps (B, H, W) in [0, 1].

    Returns:
        (B, K, H, W).
    """
    layers = log_odds(torch.stack(maps, 1))
    if min(layers.shape[-2:]) < 5:
        return layers
    return F.pad(layers[..., 1:-1, 1:-1], (1, 1, 1, 1), mode="replicate")


def enlarge_layers(layers: Tensor) -> Tensor:
    """Resize (B, K, H, W) layers to the cells they are stored and compared at; the highest values stay."""
    factor = enlarge_factor(layers.shape[-2:])
    return F.interpolate(layers, scale_factor=factor, mode="bilinear", align_corners=False)


def smooth(maps: Tensor, kernel: int = 3) -> Tensor:
    """Return the (B, H, W) mean over a kernel×kernel window with replicate padding; kernel odd, 1 = unchanged.

    AnoCLIP uses 3×3.
    """
    half = kernel // 2
    padded = F.pad(maps[:, None], (half, half, half, half), mode="replicate")
    return F.avg_pool2d(padded, kernel, stride=1)[:, 0]


def upsample(maps: Tensor, size: tuple[int, int], *, align_corners: bool = True) -> Tensor:
    """Resize (B, H, W) to (B, S, T), bilinear."""
    return F.interpolate(maps[:, None], size, mode="bilinear", align_corners=align_corners)[:, 0]


def stitch(maps: Tensor, offsets: Sequence[tuple[int, int]]) -> Tensor:
    """Stitch maps of tiles to one map, the plain mean where tiles overlap: the official VisA rule, differentiable.

    Args:
        maps: (T, C, S, S).
        offsets: (top, left) of each tile on the whole map.

    Returns:
        (C, H, W).
    """
    side = maps.shape[-1]
    height, width = (max(place[axis] for place in offsets) + side for axis in (0, 1))

    def placed(tile: Tensor, top: int, left: int) -> Tensor:
        return F.pad(tile, (left, width - left - side, top, height - top - side))

    total = torch.stack([placed(tile, *place) for tile, place in zip(maps, offsets, strict=True)]).sum(0)
    ones = torch.ones_like(maps[0, 0])
    return total / torch.stack([placed(ones, *place) for place in offsets]).sum(0)


def calibrated(
    scores: Scores, calibration: Calibration, size: tuple[int, int], inside: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Apply a calibration to scores, as :class:`Calibration` does to stored layers.

    Args:
        scores: of N images, with layers.
        calibration: of the method.
        size: (S, T) of the maps.
        inside: (h, w) float, 1 in the cells of the enlarged layers that are inspected and 0 in others; None = all.

    Returns:
        (N,) scores and (N, S, T) maps in [0, 1] with the threshold 0.5.
    """
    assert scores.layers is not None
    layers = enlarge_layers(scores.layers)
    centers, spreads = (
        torch.tensor(values, device=layers.device).view(1, -1, 1, 1)
        for values in (calibration.centers, calibration.spreads)
    )
    joined = ((layers - centers) / spreads).amax(1)  # (N, h, w)
    if scores.class_logit is not None and calibration.class_spread is not None:
        z = (scores.class_logit - calibration.class_center) / calibration.class_spread
        joined = joined + CLASS_WEIGHT * z.clamp(-CLASS_LIMIT, CLASS_LIMIT)[:, None, None]
    below = (0.5 * (joined - calibration.base) / calibration.width).clamp(0.0, 0.5)
    above = 1 - 0.5 * torch.exp(-(joined - calibration.threshold).clamp_min(0.0) / calibration.width)
    maps = torch.where(joined < calibration.threshold, below, above)
    if inside is not None:
        maps = maps * inside
    image = maps.amax((1, 2))
    resized = F.interpolate(maps[:, None], size, mode="bilinear", align_corners=False)[:, 0]
    return image, resized if inside is None else resized * F.interpolate(inside[None, None], size)[:, 0]
