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

_COSINES_AT_ONCE = 1 << 20  # 4 MiB of float32 per worker, so that a product is read again from the cache
_COSINES_AT_ONCE_ON_GPU = 1 << 24
ONLY_ITSELF = "its only reference is the image itself or a copy of it, so nothing visual could be compared"
"""The note of a row whose visual map is zero because no other image is available."""


def normalize_tokens(patches: Tensor) -> Tensor:
    """Convert (B, H, W, D) patch tokens of any length to (B, N, D) unit tokens, row-major. A zero token stays zero."""
    return F.normalize(patches.flatten(1, -2), dim=-1)


def nearest_distances(tokens: Tensor, references: Tensor, rows: Sequence[int] | None = None) -> Tensor:
    """Return the distance of each patch of one image to the nearest patch of each reference image.

    Args:
        tokens: (N, D) unit.
        references: (M, R, D) unit: M images of R patches.
        rows: the K reference images to compare with; None = all M.

    Returns:
        (K, N) in [0, 1].
    """
    rows = range(len(references)) if rows is None else rows
    if not rows:
        return tokens.new_zeros(0, len(tokens))
    length, dim = references.shape[1:]
    at_once = max(cosines_at_once(tokens) // (len(tokens) * length), 1)
    nearest = [
        linear(tokens, part.reshape(-1, dim)).reshape(len(tokens), len(part), length).amax(2).T
        for part in (take_rows(references, rows[i : i + at_once]) for i in range(0, len(rows), at_once))
    ]
    return ((1 - torch.cat(nearest)) / 2).clamp(0, 1)


_FARTHER = 0.02
"""Added to the distance to a patch of a template out of reach; chosen on rendered scenes (tiny's model card)."""


def near_patches(grid: tuple[int, int], reach: float, device: torch.device) -> Tensor | None:
    """Return (N, N), whether patches lie within a share of the grid's side of each other; None below one patch."""
    most = [int(reach * side) for side in grid]
    if min(most) == 0:
        return None
    places = (torch.arange(side, device=device) for side in grid)
    rows, columns = ((p[:, None] - p).abs() <= far for p, far in zip(places, most, strict=True))
    near = rows[:, None, :, None] & columns[None, :, None]  # (H, W, H, W)
    return near.flatten(2).flatten(0, 1)


def template_distances(tokens: Tensor, template: Tensor, near: Tensor | None) -> Tensor:
    """Return the distance of each patch of one image to the nearest patch of its template.

    Patches of the template out of reach count as a little farther away: a missing part is not excused by a like part
    elsewhere, and a template that does not lie on the image costs little.

    Args:
        tokens: (N, D) unit.
        template: (N, D) unit.
        near: (N, N) of :func:`near_patches`; None = all patches of the template count alike.

    Returns:
        (N,) in [0, 1].
    """
    cosines = linear(tokens, template)
    distances = (1 - cosines.amax(1)) / 2
    if near is not None:
        within = (1 - cosines.masked_fill(~near, -1).amax(1)) / 2
        distances = torch.minimum(distances + _FARTHER, within)
    return distances.clamp(0, 1)


def mutual_distances(tokens: Tensor) -> Tensor:
    """Return the distance of each patch to the nearest patch of each image of a set; each pair is multiplied once.

    Args:
        tokens: (M, N, D) unit tokens of the set.

    Returns:
        (M, M, N): [i, j, n] is the distance of patch n of image i to image j ≠ i; ½ where i = j.
    """
    count, length = tokens.shape[:2]
    distances = tokens.new_zeros(count, count, length)

    def compare(images: Sequence[int]) -> None:
        with torch.inference_mode():
            for i in images:
                for j in range(i + 1, count):
                    cosines = linear(tokens[i], tokens[j])
                    distances[i, j] = cosines.amax(1)
                    distances[j, i] = cosines.amax(0)

    # Image i has count − 1 − i partners: long and short ones alternate, so that the shares of the threads are equal.
    order = [i for pair in zip(range(count), reversed(range(count)), strict=True) for i in pair][:count]
    parallel_map(compare, order, tokens.device)
    return distances.neg_().add_(1).div_(2).clamp_(0, 1)


def cosines_at_once(tokens: Tensor) -> int:
    """Return the number of cosines that one matmul makes, which bounds memory."""
    return _COSINES_AT_ONCE if tokens.device.type == "cpu" else _COSINES_AT_ONCE_ON_GPU


def take_rows(values: Tensor, rows: Sequence[int]) -> Tensor:
    """Return some rows of a tensor; a view where they are consecutive."""
    consecutive = list(rows) == list(range(rows[0], rows[0] + len(rows)))
    return values[rows[0] : rows[0] + len(rows)] if consecutive else values[list(rows)]


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
