"""Pairing of images within a set (docs/methods.md §5), independent of order and batch."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from clipspect.errors import UsageError

Rule = Literal["random", "nearest"]
ONLY_ONE = (
    "compares images with each other and was given one: there is only one that can be read (copies count once); give it"
    " a folder of the same product, or known-good images as references"
)


@dataclass(frozen=True)
class Pairing:
    """References of each image among the M images of a pool."""

    rule: Rule
    count: int
    """Number of references of each image; fewer if the pool is too small."""
    embeddings: Tensor
    """(M, D) unit image embeddings of the pool."""
    cycle: Sequence[int]
    """The pool in a random circular order."""

    def of(self, own: int, seed: int, embedding: Tensor, allowed: Sequence[int]) -> list[int]:
        """Choose the references of one image.

        Args:
            own: the image's row in the pool, -1 if it is not in the pool.
            seed: seed of the image's content.
            embedding: (D,) unit image embedding.
            allowed: rows of the pool that are other images (:func:`~clipspect.methods.visual.non_self_indices`).

        Returns:
            At most ``count`` of the allowed rows.
        """
        if self.rule == "nearest":
            likeness = (self.embeddings @ embedding)[list(allowed)]
            nearest = likeness.argsort(descending=True, stable=True)[: self.count]
            return [allowed[int(i)] for i in nearest]
        # With one circular order no image is paired with itself, and all are used equally often.
        place = self.cycle.index(own) if own >= 0 else seed % len(self.cycle) - 1
        following = (self.cycle[(place + step) % len(self.cycle)] for step in range(1, len(self.cycle) + 1))
        return [row for row in following if row in set(allowed)][: self.count]


def pair(rule: Rule, count: int, seeds: Sequence[int], embeddings: Tensor, run_seed: int = 0) -> Pairing:
    """Pair the images of a pool.

    "random" is a derangement drawn from the contents of the whole pool and the seed of the run: the same set gives the
    same pairs in any file order.

    Args:
        rule: "random", or "nearest" by image embedding.
        count: number of references of each image.
        seeds: M seeds of the images' contents.
        embeddings: (M, D) unit image embeddings.
        run_seed: draws other pairs of the same pool.

    Raises:
        UsageError: a pool of one image, which has no partner.
    """
    if len(seeds) < 2:
        raise UsageError(f"this method {ONLY_ONE}")
    cycle = sorted(range(len(seeds)), key=lambda i: (seeds[i], i))
    drawn_from = repr(sorted(seeds)) + (f" {run_seed}" if run_seed else "")
    contents = hashlib.sha256(drawn_from.encode()).digest()
    random.Random(contents).shuffle(cycle)
    return Pairing(rule, count, embeddings, cycle)
