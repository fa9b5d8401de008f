"""Similar defects together: groups of flagged images by the embeddings of their strongest regions.

Detection stores one embedding per image and method (``Detection.embedding``), so that nothing is encoded again.

"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

SIMILAR_COLUMNS = ("path", "method", "model", "missing", "flag", "score", "embedding")
"""Columns that the groups are made of."""
MAX_COMPARED = 2000
"""Flagged images of a method that are compared, the highest scores first: 32 MB of distances."""
MAX_DISTANCE = 0.3
"""Mean cosine distance up to which groups are joined (benchmarks/similar_defects.py)."""


def group_rows(rows: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], int]:
    """Group the flagged rows of each method.

    Args:
        rows: with the columns :data:`SIMILAR_COLUMNS`; at most 2,000 of each method are kept in memory.

    Returns:
        (path, method) → number of its group from 1, the largest first, or 0 for an image unlike the others. Images
        that are not flagged or have no finite embedding, and those beyond the limit, are absent.
    """
    kept: dict[str, list[tuple[float, str, str, bytes]]] = {}
    for row in rows:
        if not row["flag"] or row["missing"] or row["embedding"] is None:
            continue
        vector = np.frombuffer(row["embedding"], "<f2")
        if not np.isfinite(vector).all() or not vector.any():
            continue
        best = kept.setdefault(row["method"], [])
        push = heapq.heappush if len(best) < MAX_COMPARED else heapq.heappushpop
        push(best, (row["score"], row["path"], row["model"], row["embedding"]))
    found: dict[tuple[str, str], int] = {}
    for method, best in kept.items():
        ranked = sorted(best, key=lambda one: (-one[0], one[1]))
        groups = group_similar(_side_by_side([(model, data) for _, _, model, data in ranked]))
        found |= {(path, method): group for (_, path, _, _), group in zip(ranked, groups, strict=True)}
    return found


def _side_by_side(embeddings: Sequence[tuple[str, bytes]]) -> NDArray[np.float32]:
    """Return (N, D) vectors of N (model, embedding).

    Each model and length has its own columns and zeros in the others, so that vectors of two models, which cannot be
    compared, have the distance 1 and share no group.
    """
    columns: dict[tuple[str, int], slice] = {}
    stop = 0
    for model, data in embeddings:
        length = len(data) // 2
        if (model, length) not in columns:
            columns[model, length] = slice(stop, stop := stop + length)
    vectors = np.zeros((len(embeddings), stop), np.float32)
    for row, (model, data) in zip(vectors, embeddings, strict=True):
        row[columns[model, len(data) // 2]] = np.frombuffer(data, "<f2")
    return vectors


def group_similar(vectors: NDArray[np.float32]) -> Sequence[int]:
    """Group vectors by average linkage of their cosine distances.

    Args:
        vectors: (N, D) of unit length.

    Returns:
        Per vector the number of its group from 1, the largest first, or 0 for one that is alone.
    """
    if len(vectors) < 2:
        return [0] * len(vectors)
    from scipy.cluster import hierarchy
    from scipy.spatial import distance

    tree = hierarchy.linkage(distance.pdist(vectors, "cosine"), "average")
    labels = hierarchy.fcluster(tree, MAX_DISTANCE, "distance")
    _, first, inverse, counts = np.unique(labels, return_index=True, return_inverse=True, return_counts=True)
    order = np.lexsort((first, -counts))
    numbers = np.empty(len(order), int)
    numbers[order] = np.arange(1, len(order) + 1)
    numbers[counts == 1] = 0
    return [int(number) for number in numbers[inverse]]
