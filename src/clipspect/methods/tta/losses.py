"""Losses of adapters: pure, differentiable functions, one loss per image."""

from __future__ import annotations

import torch
from torch import Tensor


def state_logits(tokens: Tensor, pair: Tensor, temperature: float = 1.0) -> Tensor:
    """Return (B, N, 2) cosines of (B, N, D) tokens of any length with (2, D) text embeddings, over the temperature."""
    length = torch.linalg.vector_norm(
        tokens, dim=-1, keepdim=True
    )  # dividing two cosines is cheaper than dividing D values
    logits: Tensor = tokens @ pair.T / (temperature * length).clamp_min(1e-12)
    return logits


def noise_contrast_loss(clean: Tensor, noisy: Tensor) -> Tensor:
    """Return AnoCLIP+'s loss: ``H(P(Φ(p))) + ½ mean(−log P_abn(Φ(p̃)) − log P_norm(Φ(p)))`` (docs/methods.md §4).

    Args:
        clean: (B, ..., 2) normal and abnormal logits of the adapted tokens, or of any map made of them.
        noisy: the same for the adapted noise-corrupted tokens.

    Returns:
        (B,) natural-log losses, mean over everything but the image.
    """
    clean_log, noisy_log = clean.log_softmax(-1), noisy.log_softmax(-1)
    entropy = -(clean_log.exp() * clean_log).sum(-1)
    contrast = -noisy_log[..., 1] - clean_log[..., 0]
    return (entropy + contrast / 2).flatten(1).mean(1)


def soft_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Return (B,) mean cross-entropy of (B, N, 2) logits with (B, N) abnormal probabilities (docs/methods.md §6)."""
    log = logits.log_softmax(-1)
    return -(target * log[..., 1] + (1 - target) * log[..., 0]).mean(1)


def focal_loss(probability: Tensor, mask: Tensor, gamma: float = 2.0) -> Tensor:
    """Return the binary focal loss (Lin et al., arXiv 1708.02002), which gives easy patches a low weight.

    Args:
        probability: (B, N) that a patch is corrupted, in [0, 1].
        mask: (B, N) corrupted share of the patch.
        gamma: exponent that reduces the weight of easy patches.

    Returns:
        (B,).
    """
    p = probability.clamp(1e-6, 1 - 1e-6)
    positive = mask * (1 - p) ** gamma * p.log()
    negative = (1 - mask) * p**gamma * (1 - p).log()
    return -(positive + negative).mean(1)


def dice_loss(probability: Tensor, mask: Tensor) -> Tensor:
    """Return (B,) one minus the Dice overlap of (B, N) probabilities and masks; finite for an empty mask."""
    overlap = 2 * (probability * mask).sum(1) + 1
    return 1 - overlap / ((probability**2).sum(1) + (mask**2).sum(1) + 1)


def keep_where(finite: Tensor, adapted: Tensor, fallback: Tensor) -> Tensor:
    """Return (B, ...) the adapted values of images whose adaptation stayed finite, the fallback's for the others."""
    shape = (-1, *[1] * (adapted.ndim - 1))
    return torch.where(finite.view(shape), adapted, fallback)
