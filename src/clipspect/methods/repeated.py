"""Repeated defects: find images of a set that share an unusual pattern, so that they are not each other's references.

A defect that occurs in many images finds near patches in those images and gets a low mutual score. This is the problem
of Le-Gia and Ahn, "On the Problem of Consistent Anomalies in Zero-Shot Industrial Anomaly Detection" (CoDeGraph, arXiv
2510.10456). The idea is theirs: patches that are near a few images and far from the rest link those images, and
communities of the graph of images (Leiden) are left out. Rules and thresholds are our own (docs/methods.md §8).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from clipspect.errors import UsageError

FAR_SHARE = 0.5
"""Share of the other images at whose distance a patch counts as far: what recurs in more of them is normal."""
MIN_DEVIATION = 4.0
"""Robust standard deviations by which a suspicious patch's far distance exceeds the median of all patches."""
MAX_RATIO = 0.6
"""Share of a suspicious patch's far distance within which an image is linked."""
MIN_COMMUNITY = 3
"""Fewest images that repeat a pattern; two may agree by chance."""
MIN_LINKS = 0.5
"""Least mean weight of the links between two images of a community; a stray patch or two give less."""
MIN_MEMBER = 0.1
"""Links of a member within its community, as a share of the community's median; images with fewer are kept."""


def link_images(distances: Tensor, allowed: Sequence[Sequence[int]]) -> Tensor:
    """Link images that share patterns which most of the set has not.

    A patch is suspicious where it is far from most images (``MIN_DEVIATION``) and near to some (``MAX_RATIO``). It
    links its image to those, the nearer the stronger: by 1 where it finds itself again.

    Args:
        distances: (M, M, N) cosine distances of the N patches of each image to each image.
        allowed: per image the numbers of the images that are other ones.

    Returns:
        (M, M) symmetric weights, zero on the diagonal.
    """
    weights = torch.zeros(distances.shape[:2])
    images = [image for image, others in enumerate(allowed) if others]
    if not images:
        return weights
    fars = []
    for image in images:
        each = distances[image, list(allowed[image])].float()  # (K, N)
        fars.append(each.kthvalue(max(round(FAR_SHARE * len(each)), 1), dim=0).values)
    far = torch.stack(fars)
    center = far.median()
    spread = 1.4826 * (far - center).abs().median().clamp_min(1e-9)
    for image, own in zip(images, far, strict=True):
        others, unusual = list(allowed[image]), own >= center + MIN_DEVIATION * spread
        ratio = distances[image, others][:, unusual].float() / own[unusual].clamp_min(1e-9)
        weights[image, others] = (1 - ratio / MAX_RATIO).clamp_min(0).sum(1)
    return weights + weights.T


def find_communities(weights: Tensor) -> list[list[int]]:
    """Divide a graph of images by modularity with the Leiden algorithm; the seed is fixed.

    Args:
        weights: (M, M) symmetric.

    Returns:
        Communities of image numbers.

    Raises:
        UsageError: igraph or leidenalg is not installed.
    """
    igraph, leidenalg = _graph_packages()
    pairs = weights.triu(1).nonzero()
    graph = igraph.Graph(n=len(weights), edges=pairs.tolist())
    found = leidenalg.find_partition(
        graph,
        leidenalg.ModularityVertexPartition,
        weights=weights[pairs[:, 0], pairs[:, 1]].tolist(),
        seed=0,
    )
    return [sorted(part) for part in found]


def repeated_images(weights: Tensor, owners: Sequence[str] | None = None) -> list[int]:
    """Find images that share a pattern which most of the set has not.

    Args:
        weights: (M, M) of :func:`link_images`.
        owners: names the image of each row, where rows are tiles; None = each row is an image.

    Returns:
        Numbers of the rows to leave out as references, at most half of the set.
    """
    found: list[tuple[float, list[int]]] = []
    for part in find_communities(weights):
        inside = weights[part][:, part].sum(1)
        members = [
            image for image, own in zip(part, inside, strict=True) if own > MIN_MEMBER * inside.median()
        ]
        pairs = len(part) * (len(part) - 1)
        images = len(members) if owners is None else len({owners[row] for row in members})
        if images >= MIN_COMMUNITY and float(inside.sum()) >= MIN_LINKS * pairs:
            found.append((float(inside.sum()) / pairs, members))
    left_out: list[int] = []
    for _, members in sorted(found, reverse=True):
        if len(left_out) + len(members) <= FAR_SHARE * len(weights):
            left_out += members
    return sorted(left_out)


def _graph_packages() -> tuple[Any, Any]:
    try:
        import igraph
        import leidenalg
    except ImportError as error:
        raise UsageError(
            "leaving out repeated defects needs igraph and leidenalg: pip install 'clipspect[mutual]'"
        ) from error
    return igraph, leidenalg
