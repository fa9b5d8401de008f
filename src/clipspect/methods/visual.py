"""Visual scores: distance of each patch to the nearest patch of a reference (docs/methods.md §5).

Dual-Image Enhanced CLIP (arXiv 2405.04782): ``½ (1 − cos)``, so that 0 is identical and 1 is opposite. Images are
processed one at a time, so that a score never depends on the other images of its batch, and in blocks, which bounds
memory.

"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from clipspect.backbones.cpu.batch_parallel import parallel_map
from clipspect.backbones.cpu.linear import linear
from clipspect.backbones.features import Features
from clipspect.backbones.sources import Sources

_COSINES_AT_ONCE = 1 << 22  # 16 MiB of float32 per worker
ONLY_ITSELF = "its only reference is the image itself or a copy of it, so nothing visual could be compared"
"""The note of a row whose visual map is zero because no other image is available."""


def normalize_tokens(patches: Tensor) -> Tensor:
    """Convert (B, H, W, D) patch tokens of any length to (B, N, D) unit tokens, row-major. A zero token stays zero."""
    return F.normalize(patches.flatten(1, -2), dim=-1)


def nearest_distances(tokens: Tensor, references: Tensor) -> Tensor:
    """Return the distance of each patch of one image to the nearest patch of each reference image.

    Args:
        tokens: (N, D) unit.
        references: (K, R, D) unit: K images of R patches.

    Returns:
        (K, N) in [0, 1].
    """
    count, length, dim = references.shape
    images_at_once = max(_COSINES_AT_ONCE // (len(tokens) * length), 1)
    nearest = [
        linear(tokens, part.reshape(-1, dim)).reshape(len(tokens), len(part), length).amax(2).T
        for part in torch.split(references, images_at_once)
    ]
    return ((1 - torch.cat(nearest)) / 2).clamp(0, 1) if count else tokens.new_zeros(0, len(tokens))


def map_images(compare: Callable[[int], Tensor], images: Tensor) -> Tensor:
    """Apply ``compare`` to the index of each of B images: (B, ...); in parallel on a CPU."""
    numbers = range(len(images))
    return torch.cat(
        parallel_map(lambda some: torch.stack([compare(i) for i in some]), numbers, images.device)
    )


def reference_notes(allowed: Sequence[Sequence[int]]) -> list[tuple[str, ...]]:
    """Return per image a note if it has no reference but itself.

    Args:
        allowed: per image the rows of :func:`non_self_indices`.
    """
    return [() if rows else (ONLY_ITSELF,) for rows in allowed]


def non_self_indices(
    features: Features, references: Sources | None, count: int, pool_index: Sequence[int] = ()
) -> list[list[int]]:
    """Find the references each image may be compared with, excluding itself, its tiles and copies of it.

    Args:
        features: features of N images.
        references: sources of the references if known.
        count: number M of references.
        pool_index: each image's row among the references, -1 if it has none.

    Returns:
        Per image the rows of the references that remain.
    """
    excluded = torch.zeros(len(features), count, dtype=torch.bool)
    if features.sources is not None and references is not None:
        excluded |= features.sources.same_image(references)
    for row, own in enumerate(pool_index):
        if own >= 0:
            excluded[row, own] = True
    return [(~row).nonzero().flatten().tolist() for row in excluded]
