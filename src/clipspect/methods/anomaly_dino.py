"""AnomalyDINO: distance of each patch to the nearest patch of a few known-good images.

Damm, Laszkiewicz, Lederer, Fischer, "AnomalyDINO: Boosting Patch-based Few-shot Anomaly Detection with DINOv2" (WACV
2025, arXiv 2405.14529), §3; docs/methods.md §9. Tokens are (B, H, W, D) patch tokens of one block, made for DINOv2;
held to the official code by ``tests/parity2/test_anomaly_dino.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from clipspect.backbones.cpu.linear import linear
from clipspect.backbones.features import FeatureRequest, Features
from clipspect.errors import UsageError
from clipspect.methods.base import MethodContext, Scores, check_choice, check_range, setting
from clipspect.methods.fast_search import FastSearch, Search, resolve_search
from clipspect.methods.few_shot import FewShot, coreset, gaussian_smooth, highest_mean
from clipspect.methods.scoring import upsample, verdict_layers
from clipspect.methods.visual import map_images, normalize_tokens, reference_notes

Foreground = Literal["none", "published", "grid"]
_DISTANCES_AT_ONCE = 1 << 24  # 64 MiB of float32
_THRESHOLD = 10.0
"""Of the first principal component; in units of DINOv2's normalized tokens."""
_CENTER, _MIN_CENTER = (0.2, 0.8), 0.35
"""The central window, and its smallest share of foreground before the component's sign is switched."""


@dataclass(frozen=True)
class AnomalyDINO(FewShot):
    """Nearest-neighbor distance to the patches of a few known-good images. Any backbone; DINOv2 as published."""

    name: ClassVar[str] = "anomaly-dino"

    path: Literal["ordinary", "value"] = setting(
        "ordinary",
        "Ordinary patch tokens, as published, or those of the V-V path.",
    )
    block: int = setting(-1, "Block whose tokens are compared; -1 = the last, as published.")
    neighbors: int = setting(1, "Nearest reference patches whose distances are averaged.")
    top_share: float = setting(
        0.01,
        "Share of an image's patches, those with the largest distances, whose mean is the image score.",
    )
    foreground: Foreground = setting(
        "none",
        "Mask of the object by the first principal component of an image's tokens; other patches score 0. "
        '"published" is the official code, which dilates along the flattened grid; "grid" dilates in both '
        "directions. For DINOv2 alone.",
    )
    sigma: float = setting(4.0, "Of the Gaussian that smooths the map, in pixels of the input.")
    bank_limit: int = setting(
        131072,
        "Most reference patches kept; beyond it each image keeps a coreset. Bounds memory: D · 4 bytes a "
        "patch.",
    )
    search: Search = setting(
        "exact",
        '"exact" compares all patches, as published; "fast" as in ``mutual``, so that an image costs the same with '
        'any number of references (docs/speed.md); "auto" is exact up to 32 references, rotated copies and tiles '
        "among them, and fast beyond.",
    )

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        check_choice("path", self.path, ("ordinary", "value"))
        check_choice("foreground", self.foreground, ("none", "published", "grid"))
        check_range("neighbors", self.neighbors, 1, 1000)
        check_range("top_share", self.top_share, 1e-6, 1)
        check_range("sigma", self.sigma, 0.1, 100)
        check_range("bank_limit", self.bank_limit, 1000, 1e9)
        check_choice("search", self.search, ("auto", "exact", "fast"))
        if self.search != "exact" and self.neighbors > 1:
            raise UsageError(
                f"search={self.search} finds one neighbor, not {self.neighbors}; use search=exact"
            )

    def request(self) -> FeatureRequest:
        """One block's tokens."""
        blocks = frozenset([self.block])
        tokens = (
            FeatureRequest(ordinary_blocks=blocks)
            if self.path == "ordinary"
            else FeatureRequest(value_blocks=blocks)
        )
        return super().request() | tokens

    def prepare_references(self, references: Features) -> list[Tensor] | FastSearch:
        """Per reference image (N, D) unit tokens, a coreset of them where there are too many; or a fast search."""
        tokens = normalize_tokens(self.patches(references))
        if resolve_search(self.search, len(tokens)) == "fast":
            return FastSearch.fit(tokens, references.sources)
        count = max(self.bank_limit // len(tokens), 1)
        return [coreset(image, count) for image in tokens]

    def score(self, features: Features, context: MethodContext) -> Scores:
        """Map of halved cosine distances, smoothed, and the mean of the highest patch distances as image score."""
        references = self.references(features, context)
        known: list[Tensor] | FastSearch = context.reference_state or self.prepare_references(references)
        allowed = self.allowed(features, context)
        patches = self.patches(features)
        tokens = normalize_tokens(patches)

        def compare(i: int) -> Tensor:
            if not allowed[i]:  # the row's note says that no other image was there
                return tokens.new_zeros(tokens.shape[1])
            if isinstance(known, FastSearch):
                return known.lowest_mean(tokens[i], allowed[i], 1)
            bank = [known[row] for row in allowed[i]]
            # ‖a − b‖² of unit vectors is 2 (1 − cos); a quarter of it is in [0, 1].
            return nearest_squared(tokens[i], bank, self.neighbors) / 4

        distances = map_images(compare, tokens).reshape(-1, *features.grid)
        if self.foreground != "none":
            flat = self.foreground == "published"
            masks = [foreground_mask(image, flat=flat) for image in patches]
            distances = distances * torch.stack(masks).to(distances.dtype)
        image = highest_mean(distances.flatten(1), self.top_share)
        notes = reference_notes(allowed)
        return Scores(image, self.finish(distances, context.size), notes, layers=verdict_layers(distances))

    def patches(self, features: Features) -> Tensor:
        """(B, H, W, D) tokens of the block."""
        return features.ordinary(self.block) if self.path == "ordinary" else features.values(self.block)

    def finish(self, distances: Tensor, size: tuple[int, int]) -> Tensor:
        """(B, H, W) → (B, S, T): brought to the input size, then smoothed."""
        maps = upsample(distances, size, align_corners=False)
        return gaussian_smooth(maps, self.sigma, int(4 * self.sigma + 0.5), repeat_edge=True).clamp(0, 1)


def nearest_squared(tokens: Tensor, bank: list[Tensor], neighbors: int) -> Tensor:
    """Mean squared Euclidean distance of each patch to its nearest patches in a bank.

    Args:
        tokens: (N, D).
        bank: per reference image (R, D) tokens.
        neighbors: how many nearest patches of the whole bank are averaged.

    Returns:
        (N,).
    """
    nearest = tokens.new_zeros(len(tokens), 0)
    step = max(_DISTANCES_AT_ONCE // len(tokens), 1)
    parts = (part for image in bank for part in image.split(step))
    for part in parts:
        # ‖b‖² − 2ab; ‖a‖² is the same for all b and is added at the end.
        squared = linear(tokens, part).mul_(-2).add_(part.square().sum(1))
        if neighbors == 1:
            squared = squared.amin(1, keepdim=True)
        nearest = torch.cat([nearest, squared], 1)
        nearest = nearest.topk(min(neighbors, nearest.shape[1]), dim=1, largest=False).values
    mean: Tensor = (nearest + tokens.square().sum(1, keepdim=True)).clamp_min(0).mean(1)
    return mean


def first_component(tokens: Tensor) -> Tensor:
    """(N,) scores of (N, D) tokens on their first principal component; the sign is arbitrary."""
    centered = tokens.double() - tokens.double().mean(0)
    direction: Tensor = torch.linalg.eigh(centered.T @ centered).eigenvectors[:, -1]
    return centered @ direction


def foreground_mask(patches: Tensor, *, flat: bool) -> Tensor:
    """Mask the object by the first principal component of an image's tokens, dilated and closed.

    Args:
        patches: (H, W, D) tokens, not normalized.
        flat: dilate and close along the row-major order of the patches, as the official code does, and not in 2-D.

    Returns:
        (H, W) bool.
    """
    height, width = patches.shape[:2]
    component = first_component(patches.flatten(0, 1)).view(height, width)
    rows, columns = (slice(int(_CENTER[0] * n), int(_CENTER[1] * n)) for n in (height, width))
    mask = component > _THRESHOLD
    if mask[rows, columns].double().mean() <= _MIN_CENTER:
        mask = component < -_THRESHOLD
    grid = mask.float().view(1, 1, 1, -1) if flat else mask.float().view(1, 1, height, width)
    grid = _dilate(_dilate(grid))
    return (-_dilate(-grid)).view(height, width) > 0.5


def _dilate(grid: Tensor) -> Tensor:
    # The padding of max_pool2d counts for nothing, in dilation and, with the sign changed, in erosion.
    return F.max_pool2d(grid, 3, stride=1, padding=1)
