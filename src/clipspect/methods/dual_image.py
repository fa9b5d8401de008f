"""Dual-Image Enhanced CLIP: each photograph is the other's visual reference, either of which may be defective.

Zhang, Deng, Bao, Li (arXiv 2405.04782), §3; METHODS §5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from clipspect.backbones.features import Features
from clipspect.errors import UsageError
from clipspect.methods.base import Scene, check_choice, check_range
from clipspect.methods.joint import JointMethod
from clipspect.methods.pairing import Pairing, pair
from clipspect.methods.pairing import Rule as PairingRule
from clipspect.methods.visual import nearest_distances


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

    def gather(self, pool: Features, scene: Scene) -> Compared | None:
        """The explicit references, or the pool itself with its pairs; None where each image brings its own."""
        if scene.paired_references is not None:
            return None
        if scene.references is None:
            pairing = pair(self.pairing, self.references, scene.seeds, pool.image)
            return Compared(self.visual_tokens(pool), pairing)
        compared = Compared(self.visual_tokens(scene.references), None)
        tokens = [self.visual_tokens(pool)[-1], compared.blocks[-1]]
        if all(len(others_than(image, tokens[1])) == 0 for image in tokens[0]):
            raise UsageError("the only reference is the photograph itself; name another one as reference")
        return compared

    def visual_map(self, features: Features, scene: Scene, compared: Compared | None) -> Tensor:
        """(B, H, W) distance to the nearest reference patch, mean over references and blocks."""
        blocks = self.visual_tokens(features)
        maps = []
        for i in range(len(features)):
            if compared is None:
                assert scene.paired_references is not None
                known = self.visual_tokens(scene.paired_references[i : i + 1])
            else:
                known = [tokens[self.partners(i, features, scene, compared)] for tokens in compared.blocks]
            distances = [
                nearest_distances(tokens[i], others).mean(0)
                for tokens, others in zip(blocks, known, strict=True)
            ]
            maps.append(torch.stack(distances).mean(0))
        return torch.stack(maps).reshape(-1, *features.grid)

    def partners(self, i: int, features: Features, scene: Scene, compared: Compared) -> list[int]:
        """Positions of one image's references among the tokens it is compared with."""
        if compared.pairing is not None:
            return compared.pairing.of(scene.own[i], scene.seeds[i], features.image[i])
        # A photograph among its own references is left out; as the only one it stays, and finds no difference.
        others = others_than(self.visual_tokens(features[i : i + 1])[-1][0], compared.blocks[-1])
        return others or list(range(len(compared.blocks[-1])))


def others_than(image: Tensor, references: Tensor) -> list[int]:
    """Which of (M, N, D) unit tokens are not those of the (N, D) image itself, encoded in another batch perhaps."""
    likeness = torch.einsum("nd,mnd->m", image, references) / len(image)
    return [i for i, mean in enumerate(likeness.tolist()) if mean < 1 - 1e-6]
