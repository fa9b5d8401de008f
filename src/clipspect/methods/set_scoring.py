"""Arithmetic of MuSc: neighborhood aggregation, mutual scoring and re-scoring, as pure functions.

Li et al., "MuSc: Zero-Shot Industrial Anomaly Classification and Segmentation with Mutual Scoring of the Unlabeled
Images" (ICLR 2024, arXiv 2401.16753); held to the official code by ``tests/parity2/test_musc.py``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Rounding = Literal["up", "down"]
Distance = Literal["cosine", "euclidean"]


def normalize_images(tokens: Tensor) -> Tensor:
    """Normalize each image by one mean and one variance over all its values (MuSc §3.1, before LNAMD).

    Args:
        tokens: (B, H, W, C).

    Returns:
        (B, H, W, C).
    """
    return F.layer_norm(tokens, tokens.shape[1:])


def aggregate_neighborhood(tokens: Tensor, degree: int) -> Tensor:
    """Replace each patch by the mean of its neighborhood (LNAMD, MuSc §3.1).

    Args:
        tokens: (B, H, W, C).
        degree: side of the neighborhood in patches, odd. The zero padding counts in the mean, as in the official code.

    Returns:
        (B, H, W, C), not of unit length.
    """
    if degree == 1:
        return tokens
    pooled = F.avg_pool2d(tokens.permute(0, 3, 1, 2), degree, stride=1, padding=degree // 2)
    return pooled.permute(0, 2, 3, 1)


def lowest_count(share: float, others: int, rounding: Rounding) -> int:
    """Number of reference images whose distances are averaged: a share of the others, at least one."""
    count = int(others * share) if rounding == "down" else math.ceil(share * others)
    return max(count, 1)


def lowest_mean(distances: Tensor, count: int) -> Tensor:
    """Mean of each patch's smallest distances to the reference images (MSM, MuSc §3.2).

    Args:
        distances: (K, N) of N patches to K images.
        count: how many of the K are averaged.

    Returns:
        (N,).
    """
    return distances.topk(min(count, len(distances)), dim=0, largest=False).values.mean(0)


def rescore_images(
    scores: Tensor,
    embeddings: Tensor,
    pool_scores: Tensor,
    pool_embeddings: Tensor,
    allowed: Sequence[Sequence[int]],
    neighbors: Sequence[int],
) -> Tensor:
    """Average each image's score with those of the most similar images (RsCIN, MuSc §3.3).

    Scores are first scaled by the pool's minimum and maximum.

    Args:
        scores: (B,) image scores.
        embeddings: (B, D) class-token embeddings.
        pool_scores: (M,) image scores of the set.
        pool_embeddings: (M, D).
        allowed: per image the rows of the pool that are other images.
        neighbors: list of k. For each k, the k most similar images count, the image itself among them, weighted by
            their similarity; the results are averaged.

    Returns:
        (B,).
    """
    low, high = pool_scores.min(), pool_scores.max()
    width = (high - low).clamp_min(1e-12)
    scaled, pool_scaled = (scores - low) / width, (pool_scores - low) / width
    rescored = []
    for row, rows in enumerate(allowed):
        others = list(rows)
        similarity = torch.cat([embeddings[row : row + 1], pool_embeddings[others]]) @ embeddings[row]
        values = torch.cat([scaled[row : row + 1], pool_scaled[others]])
        each = []
        for k in neighbors:
            nearest = similarity.topk(min(k, len(similarity)))
            weights = nearest.values / nearest.values.sum().clamp_min(1e-6)
            each.append(weights @ values[nearest.indices])
        rescored.append(torch.stack(each).mean())
    return torch.stack(rescored)
