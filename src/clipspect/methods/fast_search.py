"""Fast comparison of patches: find near patches in few dimensions, then measure their distances in all dimensions.

The search multiplies 32 values per patch instead of several hundred, with a bounded number of reference patches, so
that the cost per image does not depend on the size of the set. The distances that are averaged are exact; only the
choice of the nearest patches and images is approximate. ``benchmarks/set_speed.py`` compares it with exact scoring.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from clipspect.backbones.cpu.linear import linear
from clipspect.backbones.sources import Sources
from clipspect.methods.visual import cosines_at_once, take_rows

COLUMNS = 32
"""Values per patch in the search: principal components, and one for the length. Chosen on rendered images."""
MAX_PATCHES = 1 << 15
"""Most reference patches that one patch is compared with; beyond it each image keeps an equal share."""
AUTO_EXACT = 32
"""Maximum number of images or tiles that search="auto" compares exactly."""
Search = Literal["auto", "exact", "fast"]
_MAX_FITTED = 1 << 14
_DISTANCES_AT_ONCE = 1 << 13
_NEVER = -1e4
"""Similarity of patches that are no numbers: far below all others, which are at least −1½."""
_PERMUTATION_SEED = 0


def resolve_search(search: Search, count: int) -> Literal["exact", "fast"]:
    """Return how ``count`` images or tiles are searched: "auto" is exact up to :data:`AUTO_EXACT` and fast beyond."""
    if search != "auto":
        return search
    return "fast" if count > AUTO_EXACT else "exact"


@dataclass(frozen=True)
class FastSearch:
    """Patches of M reference images, searched by their principal components."""

    tokens: Tensor
    """(M, R, D) unit tokens of the patches that are searched."""
    basis: Tensor
    """(D, C) principal directions."""
    components: Tensor
    """(M, R, C + 1) principal components of the tokens, and minus half their squared length."""

    @classmethod
    def fit(cls, tokens: Tensor, sources: Sources | None) -> Self:
        """Fit the principal directions and choose the patches.

        Args:
            tokens: (M, N, D) unit tokens of the reference images.
            sources: of the M images; which patches of an image are kept depends on its content.
        """
        count, length, dim = tokens.shape
        sample = tokens[:, :: math.ceil(count * length / _MAX_FITTED)].flatten(0, 1).double().cpu()
        sample = sample[sample.isfinite().all(1)]
        directions = torch.linalg.eigh(sample.T @ sample).eigenvectors[:, -min(COLUMNS - 1, dim) :]
        basis = directions.to(tokens)
        kept = min(max(MAX_PATCHES // count, 1), length)
        order = torch.randperm(length, generator=torch.Generator().manual_seed(_PERMUTATION_SEED))
        starts = range(0, count * kept, kept) if sources is None else sources.seeds
        if kept < length:
            places = torch.stack([order.roll(-(start % length))[:kept] for start in starts]).to(tokens.device)
            tokens = tokens.gather(1, places[:, :, None].expand(-1, -1, dim))
        components = tokens @ basis
        squared = components.square().sum(-1, keepdim=True)
        # One image whose encoding overflowed must not disturb the others.
        finite, never = squared.isfinite(), squared.new_tensor(_NEVER)
        components = torch.where(finite, components, squared.new_zeros(()))
        return cls(tokens, basis, torch.cat([components, torch.where(finite, squared / -2, never)], -1))

    def lowest_mean(
        self, tokens: Tensor, rows: Sequence[int], count: int, *, euclidean: bool = False
    ) -> Tensor:
        """Return the mean distance of each patch to its nearest images.

        Args:
            tokens: (N, D) unit tokens of one image.
            rows: the images to compare with, at least one.
            count: number of nearest images that are averaged per patch.
            euclidean: average half the Euclidean distances, the square roots of ½ (1 − cos).

        Returns:
            (N,) in [0, 1].
        """
        nearest = self._nearest(tokens, rows, min(count, len(rows)))
        known = self.tokens.flatten(0, 1)
        if not euclidean:
            # The mean of cosines is the cosine with the mean, which needs no copy of the patches.
            mean = F.embedding_bag(nearest, known, mode="mean")
            return ((1 - (mean * tokens).sum(1)) / 2).clamp(0, 1)
        step = max(_DISTANCES_AT_ONCE // nearest.shape[1], 1)
        parts = zip(tokens.split(step), nearest.split(step), strict=True)
        cosines = torch.cat([torch.einsum("nd,nkd->nk", own, known[found]) for own, found in parts])
        return ((1 - cosines) / 2).clamp(0, 1).sqrt().mean(1)

    def _nearest(self, tokens: Tensor, rows: Sequence[int], count: int) -> Tensor:
        """Return the rows, among all patches, of the nearest patch in each of the nearest images: (N, count)."""
        components = tokens @ self.basis
        query = torch.cat([components, torch.ones_like(components[:, :1])], 1)
        kept = self.components.shape[1]
        # The lowest bits of each similarity are replaced by the patch's place, so that one maximum gives both.
        place_bits = (1 << max((kept - 1).bit_length(), 1)) - 1
        places = torch.arange(kept, dtype=torch.int32, device=tokens.device)
        at_once = max(cosines_at_once(tokens) // (len(tokens) * kept), 1)
        best = []
        for start in range(0, len(rows), at_once):
            part = take_rows(self.components, rows[start : start + at_once])
            similar = linear(query, part.flatten(0, 1)).view(len(tokens), len(part), kept)
            similar.view(torch.int32).bitwise_and_(~place_bits).bitwise_or_(places)
            best.append(similar.amax(2))
        nearest = torch.cat(best, 1).topk(count, dim=1, sorted=False)
        place = (nearest.values.view(torch.int32) & place_bits).long()
        images = torch.tensor(rows, device=tokens.device)[nearest.indices]
        return images * kept + place
