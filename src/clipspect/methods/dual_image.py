"""Dual-Image Enhanced CLIP: images of a set are visual references for each other, and any may be defective.

Zhang, Deng, Bao, Li (arXiv 2405.04782), §3; docs/methods.md §5.

"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from clipspect.backbones.features import Features
from clipspect.methods.base import MethodContext, check_choice, check_range, setting
from clipspect.methods.fast_search import FastSearch, Search, resolve_search
from clipspect.methods.joint import JointMethod, References
from clipspect.methods.pairing import Pairing, pair
from clipspect.methods.pairing import Rule as PairingRule
from clipspect.methods.visual import map_images, near_patches, nearest_distances, template_distances


@dataclass(frozen=True)
class PairedReferences(References):
    """Reference tokens of a set, and the references of each image."""

    blocks: list[Tensor]
    """Per visual block (M, N, D) unit tokens; empty with a fast search, which holds those it needs."""
    pairing: Pairing | None
    """Pairing; None if every image is compared with all of them."""
    searches: Sequence[FastSearch] = ()
    """Per visual block a fast search; empty if all patches are compared."""


@dataclass(frozen=True)
class DualImage(JointMethod):
    """Text scores and visual distances to the nearest patches of other images of the set."""

    name: ClassVar[str] = "dual-image"

    pairing: PairingRule = setting(
        "nearest",
        'Choice of partners within a set: "nearest" by image embedding, or "random" as in the paper.',
    )
    references: int = setting(
        4,
        "Number of partners of each image, averaged so that a defective one has little influence; 1 as in "
        "the paper. All explicit references are used.",
    )
    pair_seed: int = setting(
        0,
        "Seed of random pairs; a benchmark takes that of the run (--seeds), so that its deviation is over "
        "pairs.",
    )
    explicit: Literal["nearest", "mean"] = setting(
        "nearest",
        "Rule for several explicit references, such as known-good images: the nearest patch of any, or "
        "the mean.",
    )
    reach: float = setting(
        0.0625,
        "Beside an image's template, patches farther away than this share of the side count as a little less "
        "alike; less than one patch = all count alike.",
    )
    search: Search = setting(
        "auto",
        'Comparison with explicit references: "exact" with all patches; "fast" as in ``mutual``, so that an image '
        'costs the same with any number of references (docs/speed.md); "auto" is exact up to 32 images or tiles '
        "and fast beyond.",
    )

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        check_choice("pairing", self.pairing, ("random", "nearest"))
        check_range("references", self.references, 1, 1024)
        check_choice("explicit", self.explicit, ("nearest", "mean"))
        check_range("reach", self.reach, 0, 1)
        check_choice("search", self.search, ("auto", "exact", "fast"))

    @property
    def uses_seed(self) -> bool:
        """Return whether pairs are random."""
        return self.pairing == "random"

    def with_seed(self, seed: int) -> Self:
        """Return the method with the pairs of a run's seed."""
        return replace(self, pair_seed=seed)

    def gather(self, pool: Features, context: MethodContext) -> PairedReferences | None:
        """Return the explicit references, or the pool with its pairs; None if each image has its own reference."""
        if context.paired_references is not None:
            return None
        if context.references is None:
            pairing = pair(self.pairing, self.references, context.seeds, pool.image, self.pair_seed)
            return PairedReferences(pool.sources, len(pool), True, self.visual_tokens(pool), pairing)
        known = context.references
        blocks = self.visual_tokens(known)
        if resolve_search(self.search, len(known)) == "exact":
            return PairedReferences(known.sources, len(known), False, blocks, None)
        searches = [FastSearch.fit(tokens, known.sources) for tokens in blocks]
        return PairedReferences(known.sources, len(known), False, [], None, searches)

    def visual_map(
        self, features: Features, context: MethodContext, compared: PairedReferences | None
    ) -> Tensor:
        """Return the (B, H, W) distance to the nearest reference patch, mean over references and blocks."""
        blocks = self.visual_tokens(features, paired=compared is None)
        allowed = self.allowed(features, context, compared)
        device = features.image.device
        near = near_patches(features.grid, self.reach, device) if compared is None else None

        def compare(i: int) -> Tensor:
            if compared is None:
                assert context.paired_references is not None
                own = self.visual_tokens(context.paired_references[i : i + 1], paired=True)
                pairs = zip(blocks, own, strict=True)
                beside = [template_distances(t[i], k[0], near) for t, k in pairs]
                return torch.stack(beside).mean(0)
            known, rows = compared.blocks, allowed[i]
            if compared.pairing is not None:
                rows = compared.pairing.of(context.pool_index[i], context.seeds[i], features.image[i], rows)
            if not rows:  # the row's note reports that there is no other image
                return blocks[-1].new_zeros(blocks[-1].shape[1])
            if compared.searches:
                count = 1 if self.explicit == "nearest" else len(rows)
                searched = zip(blocks, compared.searches, strict=True)
                return torch.stack([s.lowest_mean(t[i], rows, count) for t, s in searched]).mean(0)
            join = torch.amin if compared.pairing is None and self.explicit == "nearest" else torch.mean
            distances = [
                join(nearest_distances(tokens[i], others, rows), dim=0)
                for tokens, others in zip(blocks, known, strict=True)
            ]
            return torch.stack(distances).mean(0)

        return map_images(compare, features.image).reshape(-1, *features.grid)
