"""Encoder: pieces of images in, Features out, each piece encoded once; pools of a set's images."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clipspect.backbones.features import FeatureRequest, Features
from clipspect.backbones.openclip.backbone import Backbone
from clipspect.data.loader import LoadedImage, batches
from clipspect.data.transforms import normalize


@dataclass(frozen=True)
class Encoded:
    """N encoded pieces, beside the normalised images they came from."""

    features: Features
    images: Tensor
    """(N, 3, S, S) normalised, on the backbone's device."""

    def __getitem__(self, index: slice) -> Encoded:
        """Some of the pieces."""
        return Encoded(self.features[index], self.images[index])

    @staticmethod
    def concat(parts: Sequence[Encoded]) -> Encoded:
        """One of several, in order."""
        return Encoded(Features.concat([p.features for p in parts]), torch.cat([p.images for p in parts]))


@dataclass(frozen=True)
class Pool:
    """The encoded sample of a set whose images are each other's references (METHODS §5, §8)."""

    encoded: Encoded
    seeds: Sequence[int]
    slices: Mapping[int, slice]
    """position of an image in the run → its pieces in the pool."""
    templates: Features | None
    """Features of each piece's own reference, where references go by file."""


class Encoder:
    """A backbone with one request, in batches of one size."""

    def __init__(self, backbone: Backbone, request: FeatureRequest, batch_size: int) -> None:
        """Check the request against the backbone; UsageError names a block it does not have."""
        request.resolved(backbone.depth)
        self.backbone, self.request, self.batch_size = backbone, request, batch_size

    def encode(self, pieces: NDArray[np.uint8]) -> Encoded:
        """(N, S, S, 3) pieces → Features, ``batch_size`` at once."""
        images = torch.from_numpy(normalize(pieces, self.backbone.mean, self.backbone.std))
        parts = [self.backbone.encode(part, self.request) for part in images.split(self.batch_size)]
        return Encoded(Features.concat(parts), images.to(self.backbone.device))

    def encode_pool(self, entries: Iterable[LoadedImage], limit: int) -> Pool | None:
        """Encode images until their pieces exceed ``limit``; None where none can be read.

        An image that cannot be read is left out here; its own row will say so.
        """
        parts: list[Encoded] = []
        templates: list[Features] = []
        seeds: list[int] = []
        slices: dict[int, slice] = {}
        for batch in batches(entries, self.batch_size):
            fitting = []
            for entry in batch:
                if entry.image is None:
                    continue
                count = len(entry.image.pieces)
                if seeds and len(seeds) + count > limit:
                    break
                slices[entry.position] = slice(len(seeds), len(seeds) + count)
                seeds += entry.image.seeds
                fitting.append(entry)
            if images := [e.image.pieces for e in fitting if e.image]:
                parts.append(self.encode(np.concatenate(images)))
            if own := [e.template.pieces for e in fitting if e.template]:
                templates.append(self.encode(np.concatenate(own)).features)
            if len(fitting) < sum(e.image is not None for e in batch):
                break  # the limit
        if not parts:
            return None
        return Pool(Encoded.concat(parts), seeds, slices, Features.concat(templates) if templates else None)

    def encode_batch(self, entries: Sequence[LoadedImage], pool: Pool | None) -> tuple[Encoded, list[int]]:
        """A batch's pieces in order, those of the pool taken from it, and each piece's place in the pool or -1."""
        known = pool.slices if pool is not None else {}
        fresh = [e.image.pieces for e in entries if e.image and e.position not in known]
        encoded = self.encode(np.concatenate(fresh)) if fresh else None
        parts: list[Encoded] = []
        own: list[int] = []
        used = 0
        for entry in entries:
            if entry.image is None:
                continue
            if pool is not None and entry.position in known:
                at = known[entry.position]
                parts.append(pool.encoded[at])
                own += range(at.start, at.stop)
            elif encoded is not None:
                count = len(entry.image.pieces)
                parts.append(encoded[used : used + count])
                own += [-1] * count
                used += count
        return Encoded.concat(parts), own


def sample_pool(names: Sequence[str], limit: int) -> set[int]:
    """Positions of a set's pool: all of a small set, else a choice by name that repeats itself."""
    order = sorted(range(len(names)), key=lambda i: hashlib.sha256(names[i].encode()).digest())
    return set(order[:limit])
