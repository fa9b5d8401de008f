"""WinCLIP and WinCLIP+: windows of patches at several scales, without and with a few normal references.

Jeong et al., "WinCLIP: Zero-/Few-Shot Anomaly Classification and Segmentation", CVPR 2023 (arXiv 2303.14814), §4. The
results equal anomalib's.

"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from clipspect.backbones.features import FeatureRequest, Features
from clipspect.backbones.openclip.value_attention import window_index
from clipspect.errors import ReferencesError, UsageError
from clipspect.methods.base import Method, MethodContext, Scores, check_range, setting
from clipspect.methods.scoring import abnormal_probability, log_odds, upsample, verdict_layers
from clipspect.methods.visual import nearest_distances, non_self_indices, normalize_tokens, reference_notes

_SIZES = (2, 3)
_TINY = 1e-12  # avoids division by zero: a harmonic mean of zeros is zero


def harmonic_mean_over_windows(scores: Tensor, grid: tuple[int, int], size: int) -> Tensor:
    """Return, for each patch, the harmonic mean of the scores of the windows that contain it (WinCLIP eq. 5).

    Args:
        scores: (B, M) of all ``size``×``size`` windows, row-major, ≥ 0.
        grid: (H, W) of the patch grid.
        size: window side in patches.

    Returns:
        (B, H, W).
    """
    index = window_index(grid, size).to(scores.device)  # (M, size²)
    contains = torch.zeros(len(index), grid[0] * grid[1], device=scores.device)
    contains.scatter_(1, index, 1.0)  # (M, H·W)
    inverse = scores.clamp_min(_TINY).reciprocal() @ contains
    return (contains.sum(0) / inverse).reshape(-1, *grid)


@dataclass(frozen=True)
class WinCLIP(Method):
    """Language score of the image, of 2×2 and of 3×3 windows, harmonically averaged per patch."""

    name: ClassVar[str] = "winclip"

    temperature: float = setting(0.07, "Divisor of the cosines before the softmax; 0.07 as published.")

    def __post_init__(self) -> None:
        """Check the settings."""
        check_range("temperature", self.temperature, 1e-4, 1e4)

    @property
    def prompts(self) -> str:
        """Return the prompt set, the compositional ensemble."""
        return "winclip"

    def request(self) -> FeatureRequest:
        """Return the request: window embeddings, the main cost, because every window is encoded separately."""
        return FeatureRequest(windows=frozenset(_SIZES))

    def score(self, features: Features, context: MethodContext) -> Scores:
        """Score images: image score from the class token; map from all scales, upsampled without aligned corners."""
        grid = self.text_grid(features, context)
        maps = upsample(grid, context.size, align_corners=False)
        image = self.text_score(features, context)
        return Scores(image, maps, text=grid, layers=verdict_layers(grid), class_logit=log_odds(image))

    def text_score(self, features: Features, context: MethodContext) -> Tensor:
        """Return the (B,) abnormal probability of the image embedding."""
        return abnormal_probability(features.image, context.anchors.pair, self.temperature)

    def text_grid(self, features: Features, context: MethodContext) -> Tensor:
        """Return the (B, H, W) harmonic mean over the scales; the whole image is one of them."""
        scales = [self.text_score(features, context)[:, None, None].expand(-1, *features.grid)]
        for size in _SIZES:
            scores = abnormal_probability(features.windows[size], context.anchors.pair, self.temperature)
            scales.append(harmonic_mean_over_windows(scores, features.grid, size))
        inverses = torch.stack(scales).clamp_min(_TINY).reciprocal().sum(0)
        return len(scales) / inverses


@dataclass(frozen=True)
class WinCLIPPlus(WinCLIP):
    """Mean of WinCLIP and the distance to a few *normal* references, with equal weights."""

    name: ClassVar[str] = "winclip+"
    accepts_references: ClassVar[bool] = True
    needs_references: ClassVar[bool] = True

    def request(self) -> FeatureRequest:
        """Return the request, with patch tokens before the projection, used to compare references."""
        return super().request() | FeatureRequest(unprojected=True)

    def score(self, features: Features, context: MethodContext) -> Scores:
        """Return means of language and visual association, for the map and for its maximum.

        Raises:
            UsageError: no references.
            ReferencesError: references of another size.
        """
        visual = self.visual_grid(features, context)
        text = self.text_grid(features, context)
        grid = (text + visual) / 2
        image = (self.text_score(features, context) + visual.amax((1, 2))) / 2
        notes = reference_notes(_others(features, context))
        maps = upsample(grid, context.size, align_corners=False)
        class_logit = log_odds(self.text_score(features, context))
        return Scores(image, maps, notes, text, verdict_layers(grid), class_logit)

    def visual_grid(self, features: Features, context: MethodContext) -> Tensor:
        """Return the (B, H, W) mean over the scales of the distance to the nearest patch or window of any reference."""
        paired = context.references is None
        references = context.paired_references if paired else context.references
        if references is None:
            raise UsageError("winclip+ compares with normal images; name some with --reference")
        if references.grid != features.grid:
            raise ReferencesError(
                f"the references have {references.grid} patches, the images {features.grid};"
                f" they must be encoded at the same size"
            )

        def association(queries: Tensor, known: Tensor) -> Tensor:
            """Return (B, N) distances for (B, N, D) and (R, M, D)."""
            nearest = [
                nearest_distances(tokens, known[i : i + 1] if paired else known)
                for i, tokens in enumerate(queries)
            ]
            # Without another reference the distance is 0, and the row has a note.
            return torch.stack(
                [d[rows].amin(0) if rows else d[0] * 0 for d, rows in zip(nearest, others, strict=True)]
            )

        others = _others(features, context)
        patches = association(_raw_tokens(features), _raw_tokens(references))
        scales = [patches.reshape(-1, *features.grid)]
        for size in _SIZES:
            windows = association(
                F.normalize(features.windows[size], dim=-1),
                F.normalize(references.windows[size], dim=-1),
            )
            scales.append(harmonic_mean_over_windows(windows, features.grid, size))
        return torch.stack(scales).mean(0)


def _others(features: Features, context: MethodContext) -> list[list[int]]:
    """Return, per image, its references that are not the image itself."""
    if context.references is None:
        return [[0]] * len(features)
    return non_self_indices(features, context.references.sources, len(context.references))


def _raw_tokens(features: Features) -> Tensor:
    """Return (B, N, width) unit patch tokens before the projection."""
    assert features.unprojected is not None
    return normalize_tokens(features.unprojected)
