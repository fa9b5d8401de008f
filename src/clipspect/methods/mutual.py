"""Mutual scoring: every other image of the set is a reference, and what recurs in few of them is anomalous.

Beyond the papers (docs/methods.md §8): the dual-image idea with all unlabelled images at once, as MuSc scores them
(arXiv 2401.16753). Leaving out what the language score calls abnormal is the idea of FiSeCLIP (arXiv 2507.11003).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from clipspect.backbones.features import Features
from clipspect.errors import UsageError
from clipspect.methods.base import MethodContext, check_range
from clipspect.methods.joint import JointMethod, References
from clipspect.methods.patch_index import PatchIndex
from clipspect.methods.visual import map_images, nearest_distances


@dataclass(frozen=True)
class SetReferences(References):
    """The patches of all reference images, as they are or in an index; per visual block."""

    exact: list[Tensor]
    """(M, N, D) unit tokens; empty where there is an index instead."""
    indices: list[PatchIndex]


@dataclass(frozen=True)
class Mutual(JointMethod):
    """Text and the whole set: normal patches recur across images, defects do not."""

    name: ClassVar[str] = "mutual"

    lowest: float = 0.3
    """Share of the other images, those nearest to a patch, whose distances are averaged."""
    left_out: float = 0.0
    """Share of each image's patches, those the language score calls most abnormal, that serve nobody as reference."""
    exact_limit: int = 128
    """Most images compared exactly; the cost grows with their square. Beyond it an index is built (FAISS)."""

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        check_range("lowest", self.lowest, 1e-6, 1)
        check_range("left_out", self.left_out, 0, 0.95)
        check_range("exact_limit", self.exact_limit, 1, 1e6)

    def gather(self, pool: Features, context: MethodContext) -> SetReferences:
        """Unit tokens of the pool, or of the explicit references, without the patches left out.

        Raises:
            UsageError: one image alone; a reference for each image; an index without FAISS.
        """
        if context.paired_references is not None:
            raise UsageError("mutual compares with the whole set; for one reference per file use dual-image")
        references = pool if context.references is None else context.references
        if context.references is None and len(pool) < 2:
            raise UsageError("mutual compares images with each other and was given one; give it a folder")
        blocks = self.visual_tokens(references)
        if self.left_out > 0:
            suspicion = self.patch_map(references, context).flatten(1)  # (M, N)
            count = max(round((1 - self.left_out) * suspicion.shape[1]), 1)
            kept = suspicion.argsort(dim=1, stable=True)[:, :count, None]
            blocks = [t.gather(1, kept.expand(-1, -1, t.shape[-1])) for t in blocks]
        origin = (references.sources, len(references), context.references is None)
        if len(references) <= self.exact_limit:
            return SetReferences(*origin, blocks, [])
        return SetReferences(*origin, [], [PatchIndex(tokens) for tokens in blocks])

    def visual_map(self, features: Features, context: MethodContext, compared: SetReferences) -> Tensor:
        """(B, H, W) mean over the nearest images of the distance to their nearest patch, mean over blocks."""
        blocks = self.visual_tokens(features)

        allowed = self.allowed(features, context, compared)

        def compare(i: int) -> Tensor:
            rows = allowed[i]
            if not rows:  # the row's note says that no other image was there
                return blocks[-1].new_zeros(blocks[-1].shape[1])
            each = [
                self._lowest_mean(tokens[i], rows, known)
                for tokens, known in zip(blocks, compared.exact, strict=False)
            ]
            excluded = sorted(set(range(compared.count)) - set(rows))
            each += [
                index.lowest_mean(tokens[i], excluded, self._count(len(rows)))
                for tokens, index in zip(blocks, compared.indices, strict=False)
            ]
            return torch.stack(each).mean(0)

        return map_images(compare, features.image).reshape(-1, *features.grid)

    def _lowest_mean(self, tokens: Tensor, rows: list[int], known: Tensor) -> Tensor:
        """(N,) of one image's (N, D) tokens against some of (M, R, D) exactly."""
        distances = nearest_distances(tokens, known if len(rows) == len(known) else known[rows])
        return distances.topk(self._count(len(distances)), dim=0, largest=False).values.mean(0)

    def _count(self, others: int) -> int:
        return max(math.ceil(self.lowest * others), 1)
