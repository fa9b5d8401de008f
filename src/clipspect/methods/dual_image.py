"""Dual-Image Enhanced CLIP: each image is the other's visual reference, either of which may be defective.

Zhang, Deng, Bao, Li (arXiv 2405.04782), §3; METHODS §5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from clipspect.backbones.features import Features
from clipspect.methods.base import MethodContext, check_choice, check_range
from clipspect.methods.joint import JointMethod
from clipspect.methods.pairing import Pairing, pair
from clipspect.methods.pairing import Rule as PairingRule
from clipspect.methods.visual import map_images, nearest_distances, non_self_indices


@dataclass(frozen=True)
class Compared:
    """The reference tokens of a set, and who is compared with which of them."""

    blocks: list[Tensor]
    """Per visual block (M, N, D) unit tokens."""
    pairing: Pairing | None
    """None where every image is compared with all of them."""


@dataclass(frozen=True)
class DualImage(JointMethod):
    """Text and a pair: an image's patches against the nearest patches of another image of the set."""

    name: ClassVar[str] = "dual-image"

    pairing: PairingRule = "nearest"
    """Partners within a set: "nearest" by image embedding, or "random" as in the paper."""
    references: int = 4
    """Partners of each image, averaged, so that a defective one does little harm; 1 as in the paper. Explicit
    references are all used."""

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        check_choice("pairing", self.pairing, ("random", "nearest"))
        check_range("references", self.references, 1, 1024)

    def gather(self, pool: Features, context: MethodContext) -> Compared | None:
        """The explicit references, or the pool itself with its pairs; None where each image brings its own."""
        if context.paired_references is not None:
            return None
        if context.references is None:
            pairing = pair(self.pairing, self.references, context.seeds, pool.image)
            return Compared(self.visual_tokens(pool), pairing)
        return Compared(self.visual_tokens(context.references), None)

    def visual_map(self, features: Features, context: MethodContext, compared: Compared | None) -> Tensor:
        """(B, H, W) distance to the nearest reference patch, mean over references and blocks."""
        blocks = self.visual_tokens(features)

        def compare(i: int) -> Tensor:
            kept: list[int] | slice = slice(None)
            if compared is None:
                assert context.paired_references is not None
                known = self.visual_tokens(context.paired_references[i : i + 1])
            elif compared.pairing is not None:
                partners = compared.pairing.of(context.own[i], context.seeds[i], features.image[i])
                known = [tokens[partners] for tokens in compared.blocks]
            else:
                known = compared.blocks
                # An image among its own references is left out; as the only one it stays, and finds no difference.
                kept = non_self_indices(blocks[-1][i], known[-1]) or kept
            distances = [
                nearest_distances(tokens[i], others)[kept].mean(0)
                for tokens, others in zip(blocks, known, strict=True)
            ]
            return torch.stack(distances).mean(0)

        return map_images(compare, features.image).reshape(-1, *features.grid)
