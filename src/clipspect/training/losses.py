"""What the tiny model is trained on: V-V patch tokens and the class token against text anchors."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from clipspect.training.config import LossWeights


@dataclass(frozen=True)
class StepEmbeddings:
    """Everything one step compares, unit length. B windows, defective ones first, N patches, D joint."""

    dense: Tensor
    """(B, N, D) patch tokens of the last block that the dense terms train: V-V ones."""
    beside: Tensor
    """(B, N, D) the other patch tokens of the last block: ordinary ones."""
    image: Tensor
    """(B, D) class tokens."""
    anchors: Tensor
    """(B, 2, D) normal and abnormal text anchors, one pair a window."""
    captions: Tensor
    """(2, P, D) single captions, normal and abnormal."""
    kinds: Tensor
    """(K, D) captions that name one defect kind each."""
    compared: tuple[Tensor, ...]
    """(B, N, D) V-V patch tokens of the blocks whose distances to another picture are trained."""
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


def dense_loss(logits: Tensor, targets: Tensor, largest: float = math.inf) -> Tensor:
    """Binary cross-entropy of patches; defective ones, which are few, weigh up to four times as much.

    Args:
        logits: (B, N).
        targets: (B, N) in [0, 1].
        largest: the number of patches above which a window's defect weighs no more. Otherwise large defects, which are
            a third of all, hold most defective patches, while AUPRO counts regions.
    """
    loss = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    share = (largest / targets.sum(1, keepdim=True).clamp_min(1e-6)).clamp_max(1)
    weight = 1 - targets + 4 * share * targets
    return (weight * loss).sum() / weight.sum()


_DISTANCE = 0.12
_STEEPNESS = 24.0
"""A patch is told from its reference with even odds at this distance, and this steeply."""


def comparison_loss(tokens: Tensor, targets: Tensor, largest: float = math.inf) -> Tensor:
    """Defective windows beside their clean twins, as Dual-Image compares them (arXiv 2405.04782).

    The distance to the nearest patch of the twin, ½ (1 − cosine), shall say which patches are defective: the
    language score may overlook what does not look wrong by itself, a comparison may not.

    Args:
        tokens: (B, N, D) unit tokens, defective windows first.
        targets: (B, N) patch targets.
        largest: see ``dense_loss``.
    """
    defective, clean = tokens.chunk(2)
    distance = 0.5 * (1 - (defective @ clean.transpose(1, 2)).amax(2))  # (B/2, N)
    return dense_loss(_STEEPNESS * (distance - _DISTANCE), targets[: len(defective)], largest)


_PEAK = 4
"""The term ``peak`` trains the mean of this many highest patches of a window: what an image is judged by."""


def total_loss(e: StepEmbeddings, targets: Tensor, kinds: Tensor, weights: LossWeights) -> dict[str, Tensor]:
    """All terms and their weighted ``total``.

    Args:
        e: the embeddings of one step.
        targets: (B, N) patch targets; zeros for the clean half.
        kinds: (B/2,) defect kind of each defective window.
        weights: of the terms.
    """
    batch, half = len(e.image), len(e.image) // 2
    prototypes, largest = e.prototypes.expand(batch, 2, -1), weights.largest_defect
    image_logit = abnormal_logit(e.image[:, None], e.anchors, e.scale)[:, 0]
    shows_defect = (targets.amax(1) > 0.25).float()
    bad = shows_defect[:half] > 0
    caption_logit = e.scale * (e.captions @ (e.prototypes[1] - e.prototypes[0]))  # (2, P)
    sides = torch.tensor([[0.0], [1.0]], device=caption_logit.device).expand_as(caption_logit)
    gap = (image_logit[:half] - image_logit[half:])[bad]
    named = e.scale * (e.image[:half][bad] @ e.kinds.T)
    dense_logit = abnormal_logit(e.dense, e.anchors, e.scale)
    highest = dense_logit.topk(min(_PEAK, dense_logit.shape[1]), dim=1).values.mean(1)
    terms = {
        "dense": dense_loss(dense_logit, targets, largest),
        "prototypes": dense_loss(abnormal_logit(e.dense, prototypes, e.scale), targets, largest),
        "beside": dense_loss(abnormal_logit(e.beside, e.anchors, e.scale), targets, largest),
        "image": F.binary_cross_entropy_with_logits(image_logit, shows_defect),
        "peak": F.binary_cross_entropy_with_logits(highest, shows_defect),
        "pair": F.softplus(-gap).sum() / bad.sum().clamp_min(1),
        "words": F.cross_entropy(named, kinds[bad], reduction="sum") / bad.sum().clamp_min(1),
        "captions": F.binary_cross_entropy_with_logits(caption_logit, sides),
        "comparison": torch.stack(
            [comparison_loss(tokens, targets, largest) for tokens in e.compared]
        ).mean(),
    }
    total = sum(getattr(weights, name) * term for name, term in terms.items())
    return {"total": total, **terms}
