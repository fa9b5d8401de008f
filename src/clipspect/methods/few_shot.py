"""What methods with a few known-good reference images and no text share (docs/methods.md §9)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from clipspect.backbones.features import FeatureRequest, Features
from clipspect.errors import UsageError
from clipspect.methods.base import Method, MethodContext, check_range, setting
from clipspect.methods.visual import non_self_indices


@dataclass(frozen=True)
class FewShot(Method):
    """A method that learns what is normal from the patches of reference images, from one image up."""

    accepts_references: ClassVar[bool] = True
    needs_references: ClassVar[bool] = True
    needs_text: ClassVar[bool] = False

    rotations: int = setting(
        8,
        "Rotated copies of each reference image, evenly spaced over 360°, the image itself among them; 1 "
        "= none. Use 1 where parts always lie the same way. Each copy costs one encoding when the "
        "references are read; of tiled images each tile has one copy or few.",
    )

    def __post_init__(self) -> None:
        """Check the settings."""
        check_range("rotations", self.rotations, 1, 360)

    def request(self) -> FeatureRequest:
        """Rotated references; methods add the tokens they need."""
        return FeatureRequest(reference_rotations=self.rotations)

    def references(self, features: Features, context: MethodContext) -> Features:
        """Explicit references of all images, or one for each image.

        Raises:
            UsageError: there are none.
        """
        found = context.paired_references if context.references is None else context.references
        if found is None:
            raise UsageError(f"{self.name} compares with known-good images; name some with --reference")
        return found

    def allowed(self, features: Features, context: MethodContext) -> list[list[int]]:
        """Per image the rows of the references that are other images; its paired reference is always allowed."""
        if context.references is None:
            return [[row] for row in range(len(features))]
        return non_self_indices(features, context.references.sources, len(context.references))


def highest_mean(values: Tensor, share: float) -> Tensor:
    """Mean of the highest share of each row's values: int(share · N) of them, at least one.

    Args:
        values: (B, N).
        share: in (0, 1].

    Returns:
        (B,).
    """
    return values.topk(max(int(share * values.shape[1]), 1), dim=1).values.mean(1)


def gaussian_smooth(maps: Tensor, sigma: float, radius: int, *, repeat_edge: bool) -> Tensor:
    """Smooth maps by a Gaussian of 2·radius + 1 weights along each axis.

    Args:
        maps: (B, S, T).
        sigma: in pixels.
        radius: where the Gaussian is cut off, in pixels.
        repeat_edge: whether mirroring at the border repeats the edge pixel (SciPy's "reflect") or not (OpenCV's).

    Returns:
        (B, S, T).
    """
    steps = torch.arange(-radius, radius + 1, device=maps.device, dtype=maps.dtype)
    weights = torch.exp(-0.5 * (steps / sigma) ** 2)
    weights = weights / weights.sum()
    for dim in (1, 2):
        size = maps.shape[dim]
        period = 2 * size if repeat_edge else max(2 * size - 2, 1)
        index = torch.arange(-radius, size + radius, device=maps.device) % period
        mirrored = torch.where(index < size, index, period - index - int(repeat_edge))
        padded = maps.index_select(dim, mirrored).movedim(dim, -1)
        smoothed = F.conv1d(padded.reshape(-1, 1, padded.shape[-1]), weights.view(1, 1, -1))
        maps = smoothed.reshape(*padded.shape[:-1], size).movedim(-1, dim)
    return maps


def coreset(tokens: Tensor, count: int) -> Tensor:
    """Choose tokens that cover all others: greedy k-center, from the token nearest to the mean.

    Args:
        tokens: (N, D) unit.
        count: how many are kept.

    Returns:
        (min(count, N), D).
    """
    if count >= len(tokens):
        return tokens
    chosen = [int((tokens @ tokens.mean(0)).argmax())]
    farthest = 1 - tokens @ tokens[chosen[0]]
    while len(chosen) < count:
        chosen.append(int(farthest.argmax()))
        farthest = torch.minimum(farthest, 1 - tokens @ tokens[chosen[-1]])
    return tokens[sorted(chosen)]


def distinct_rows(allowed: Sequence[Sequence[int]]) -> dict[tuple[int, ...], list[int]]:
    """Group images by the references they may be compared with, so that each group is compared at once."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for image, rows in enumerate(allowed):
        groups.setdefault(tuple(rows), []).append(image)
    return groups
