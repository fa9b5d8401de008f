"""Dual-Image whose distances and text scores are computed once, so that many choices of references cost little."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Self

import torch
from torch import Tensor

from clipspect.backbones.features import Features
from clipspect.methods.base import MethodContext
from clipspect.methods.dual_image import DualImage, PairedReferences
from clipspect.methods.visual import nearest_distances
from clipspect.model import AnomalyModel, Encoded

Key = tuple[str, int]


@dataclass(frozen=True)
class Recalled(DualImage):
    """DualImage with explicit references that looks up what :meth:`remember` computed; the rest is DualImage's own."""

    row_of: Mapping[Key, int] = field(default_factory=dict)
    """Image → its row in the tables."""
    distances: tuple[Tensor, ...] = ()
    """Per visual block (rows, M, N): distance of each patch to the nearest patch of each possible reference; the
    references are the first M rows."""
    text: Tensor | None = None
    """(rows, H, W) text maps."""
    scores: Tensor | None = None
    """(rows,) image scores."""

    @classmethod
    def remember(cls, method: DualImage, model: AnomalyModel, images: Encoded, references: int) -> Self:
        """Compute the tables of a method; the first ``references`` images may serve as references."""
        features = images.features
        assert features.sources is not None
        size = (int(images.images.shape[-2]), int(images.images.shape[-1]))
        context = MethodContext(model.anchors[method.name], size, [], model.backbone)
        rows = list(range(references))
        with torch.inference_mode():
            distances = tuple(
                torch.stack([nearest_distances(one, tokens[:references], rows) for one in tokens])
                for tokens in method.visual_tokens(features)
            )
            text, scores = method.patch_map(features, context), method.image_score(features, context)
        own = {f.name: getattr(method, f.name) for f in fields(method)}
        places = {key: row for row, key in enumerate(features.sources.keys)}
        return cls(**own, row_of=places, distances=distances, text=text, scores=scores)

    def visual_map(
        self, features: Features, context: MethodContext, compared: PairedReferences | None
    ) -> Tensor:
        """Look up the (B, H, W) distances to the nearest reference patch."""
        assert compared is not None
        assert compared.sources is not None
        assert self.explicit == "nearest"
        columns = self._rows(compared.sources.keys)
        allowed = self.allowed(features, context, compared)
        maps = [
            torch.stack([table[row][columns[rows]].amin(0) for table in self.distances]).mean(0)
            for row, rows in zip(self._rows(_keys(features)).tolist(), allowed, strict=True)
        ]
        return torch.stack(maps).reshape(-1, *features.grid)

    def patch_map(self, features: Features, context: MethodContext) -> Tensor:
        """Look up the (B, H, W) text maps."""
        return (
            super().patch_map(features, context)
            if self.text is None
            else self.text[self._rows(_keys(features))]
        )

    def image_score(self, features: Features, context: MethodContext) -> Tensor:
        """Look up the (B,) image scores."""
        if self.scores is None:
            return super().image_score(features, context)
        return self.scores[self._rows(_keys(features))]

    def _rows(self, keys: list[Key]) -> Tensor:
        return torch.tensor([self.row_of[key] for key in keys])


def _keys(features: Features) -> list[Key]:
    assert features.sources is not None
    return features.sources.keys
