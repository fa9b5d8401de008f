"""What the tiny model is trained on: V-V patch tokens and the class token against text anchors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from clipspect.training.config import LossWeights


@dataclass(frozen=True)
class StepEmbeddings:
    """Everything one step compares, unit length. B windows, defective ones first, N patches, D joint."""

    value: Tensor
    """(B, N, D) V-V patch tokens of the last block."""
    ordinary: Tensor
    """(B, N, D) ordinary patch tokens of the last block."""
    image: Tensor
    """(B, D) class tokens."""
    anchors: Tensor
    """(B, 2, D) normal and abnormal text anchors, one pair a window."""
    captions: Tensor
    """(2, P, D) single captions, normal and abnormal."""
    kinds: Tensor
    """(K, D) captions that name one defect kind each."""
    prototypes: Tensor
    """(2, D) free normal and abnormal directions, used in training only."""
    scale: Tensor
    """() CLIP's logit scale."""


def patch_targets(mask: Tensor, patch: int) -> Tensor:
    """(B, N) in [0, 1]: min(1, 4 × share of the patch that is defective); (B, S, S) masks in."""
    return (4 * F.avg_pool2d(mask[:, None], patch).flatten(1)).clamp_max(1)


def abnormal_logit(tokens: Tensor, pair: Tensor, scale: Tensor) -> Tensor:
    """Scale · ⟨token, abnormal − normal⟩; (B, N, D) with (B, 2, D) gives (B, N), the sign says abnormal."""
    return scale * (tokens @ (pair[:, 1] - pair[:, 0])[..., None]).squeeze(-1)


def dense_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy of patches; defective ones, which are few, weigh up to four times as much."""
    loss = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    weight = 1 + 3 * targets
    return (weight * loss).sum() / weight.sum()


def total_loss(e: StepEmbeddings, targets: Tensor, kinds: Tensor, weights: LossWeights) -> dict[str, Tensor]:
    """All terms and their weighted ``total``.

    Args:
        e: the embeddings of one step.
        targets: (B, N) patch targets; zeros for the clean half.
        kinds: (B/2,) defect kind of each defective window.
        weights: of the terms.
    """
    batch, half = len(e.image), len(e.image) // 2
    prototypes = e.prototypes.expand(batch, 2, -1)
    image_logit = abnormal_logit(e.image[:, None], e.anchors, e.scale)[:, 0]
    shows_defect = (targets.amax(1) > 0.25).float()
    bad = shows_defect[:half] > 0
    caption_logit = e.scale * (e.captions @ (e.prototypes[1] - e.prototypes[0]))  # (2, P)
    sides = torch.tensor([[0.0], [1.0]], device=caption_logit.device).expand_as(caption_logit)
    gap = (image_logit[:half] - image_logit[half:])[bad]
    named = e.scale * (e.image[:half][bad] @ e.kinds.T)
    terms = {
        "dense": dense_loss(abnormal_logit(e.value, e.anchors, e.scale), targets),
        "prototypes": dense_loss(abnormal_logit(e.value, prototypes, e.scale), targets),
        "ordinary": dense_loss(abnormal_logit(e.ordinary, e.anchors, e.scale), targets),
        "image": F.binary_cross_entropy_with_logits(image_logit, shows_defect),
        "pair": F.softplus(-gap).sum() / bad.sum().clamp_min(1),
        "words": F.cross_entropy(named, kinds[bad], reduction="sum") / bad.sum().clamp_min(1),
        "captions": F.binary_cross_entropy_with_logits(caption_logit, sides),
    }
    total = terms["dense"]
    for name in ("prototypes", "ordinary", "image", "pair", "words", "captions"):
        total = total + getattr(weights, name) * terms[name]
    return {"total": total, **terms}
