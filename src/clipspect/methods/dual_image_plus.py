"""Dual-Image+: Dual-Image with a linear layer trained for a few steps on the image and corrupted copies of it.

Zhang, Deng, Bao, Li (arXiv 2405.04782), §3.4; docs/methods.md §6. The public text leaves most choices open; each is
a setting. The layer starts as the identity, so that zero epochs give Dual-Image's map.

"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from clipspect.backbones.features import Features
from clipspect.errors import UsageError
from clipspect.methods.anoclip import VERDICT_SMOOTHING
from clipspect.methods.anoclip_plus import DIVERGED
from clipspect.methods.base import MethodContext, Scores, check_choice, check_range, setting
from clipspect.methods.dual_image import DualImage
from clipspect.methods.scoring import abnormal_probability, log_odds, smooth, verdict_layers
from clipspect.methods.tta.adapters import Layers
from clipspect.methods.tta.losses import (
    dice_loss,
    focal_loss,
    keep_where,
    soft_cross_entropy,
    state_logits,
)
from clipspect.methods.tta.optimize import Optimized, optimize, trainable
from clipspect.methods.tta.pseudo_anomalies import Kind, TextureFolder, corrupted_copies

_UNCHANGED = 2.0  # σ(−2) = 0.12 is the predicted corruption of a patch that is not more abnormal

MaskRule = Literal["text-change", "distance", "joint"]


@dataclass(frozen=True)
class DualImagePlus(DualImage):
    """Dual-Image's joint map, averaged with the map of tokens adapted to each image."""

    name: ClassVar[str] = "dual-image+"

    anomalies: Kind = setting(
        "mixed",
        'Corruption of a copy: "cut-paste", "perlin", "noise", all three at different positions '
        '("mixed"), or "draem": irregular regions filled from a folder of textures.',
    )
    textures: str = setting(
        "",
        "Folder of texture images for anomalies=draem, such as the Describable Textures Dataset.",
    )
    copies: int = setting(
        1,
        "Corrupted copies of each image; each costs one more encoding, and one can contain every kind.",
    )
    epochs: int = setting(5, "AdamW steps per image; 0 = Dual-Image.")
    learning_rate: float = setting(
        3e-3,
        "Learning rate of AdamW; weight decay is 1e-2. Chosen on rendered scenes (docs/ablations.md).",
    )
    mask_rule: MaskRule = setting(
        "distance",
        "Prediction of a copy's mask: from the increase of the text score over the same patch of the "
        'image ("text-change"), from the distance of both adapted patches ("distance"), or from the joint '
        'score of the copy with the image as its reference ("joint").',
    )
    training_temperature: float = setting(
        0.07,
        "Divisor of the cosines in the losses; at 1, similar text embeddings cannot reach the joint map's "
        "range. The final map uses ``temperature``, as Dual-Image's.",
    )
    adapted_weight: float = setting(
        0.5,
        "Share of the map with adapted text in the final one; the rest is Dual-Image's map.",
    )

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        check_choice("anomalies", self.anomalies, ("mixed", "cut-paste", "perlin", "noise", "draem"))
        check_choice("mask_rule", self.mask_rule, ("text-change", "distance", "joint"))
        check_range("training_temperature", self.training_temperature, 1e-4, 1e4)
        check_range("adapted_weight", self.adapted_weight, 0, 1)
        if (self.anomalies == "draem") != bool(self.textures):
            raise UsageError("anomalies=draem and textures=FOLDER go together; set both or neither")
        check_range("copies", self.copies, 1, 64)
        check_range("epochs", self.epochs, 0, 1000)
        check_range("learning_rate", self.learning_rate, 0, 1e30)

    def score(self, features: Features, context: MethodContext) -> Scores:
        """Return Dual-Image's scores, its map averaged with that of the adapted text score.

        Both maps have the same temperature and fusion. A diverged image keeps Dual-Image's map.
        """
        text, visual, highest = self.both_maps(features, context)
        image, joint = self.join(text, visual, highest, features, context)
        tokens = self.text_tokens(features)
        corrupted, masks = self.corrupt(features, context)
        optimized = self.adapt(tokens, joint.flatten(1), corrupted, masks, context)
        adapted = abnormal_probability(
            _adapt(tokens, optimized.layers), context.anchors.pair, self.temperature
        ).reshape(joint.shape)
        _, adapted_joint = self.join(adapted, visual, highest, features, context)
        grid = torch.lerp(joint, adapted_joint, self.adapted_weight)
        grid = keep_where(optimized.finite, grid, joint)
        notes = [
            note if finite else (*note, DIVERGED)
            for note, finite in zip(self.notes(features, context), optimized.finite.tolist(), strict=True)
        ]
        layers = verdict_layers(grid, smooth(grid, VERDICT_SMOOTHING))
        class_logit = log_odds(self.image_score(features, context))
        return Scores(image, self.finish(grid, context), notes, text, layers, class_logit)

    def text_tokens(self, features: Features) -> Tensor:
        """Return (B, N, D) tokens of the text block."""
        return self.text_patches(features).flatten(1, 2)

    def corrupt(self, features: Features, context: MethodContext) -> tuple[Tensor, Tensor]:
        """Encode corrupted copies of the images.

        Returns:
            (B, C, N, D) tokens of C copies, and (B, C, N) the share of each patch that visibly changed.
        """
        assert context.images is not None
        assert context.backbone is not None
        textures = None
        if self.textures:
            textures = TextureFolder(Path(self.textures), context.backbone.mean, context.backbone.std)
        copies, masks = corrupted_copies(context.images, self.anomalies, self.copies, context.seeds, textures)
        request = self.text_request()
        # Encode the first copy of every image, then the second, to keep the batch size.
        parts = [self.text_tokens(context.backbone.encode(part, request)) for part in copies.unbind(1)]
        shares = F.adaptive_avg_pool2d(masks, features.grid).flatten(2)
        return torch.stack(parts, dim=1), shares

    def adapt(
        self, tokens: Tensor, joint: Tensor, corrupted: Tensor, shares: Tensor, context: MethodContext
    ) -> Optimized:
        """Train one linear layer per image.

        Args:
            tokens: (B, N, D) tokens of the images.
            joint: (B, N) zero-shot joint map, the target of the adapted probabilities.
            corrupted: (B, C, N, D) tokens of their copies.
            shares: (B, C, N) corrupted share of each patch, the target of the prediction.
            context: source of the text embeddings.
        """
        count, _, dim = tokens.shape
        tokens, joint, pair = trainable(tokens), trainable(joint), trainable(context.anchors.pair)
        corrupted, shares = trainable(corrupted).flatten(1, 2), trainable(shares).flatten(1)

        def loss(layers: Layers, step: int) -> Tensor:
            images, copies = _adapt(tokens, layers), _adapt(corrupted, layers)
            logits = state_logits(images, pair, self.training_temperature)
            others = state_logits(copies, pair, self.training_temperature)
            predicted = self.predict_masks(logits, others, images, copies)
            recovery = focal_loss(predicted, shares) + dice_loss(predicted, shares)
            return soft_cross_entropy(logits, joint) + recovery

        start = Layers(tokens.new_zeros(count, dim, dim), tokens.new_zeros(count, dim))
        return optimize(loss, start, self.epochs, learning_rate=self.learning_rate)

    def predict_masks(self, logits: Tensor, others: Tensor, images: Tensor, copies: Tensor) -> Tensor:
        """Predict which patches of the copies are corrupted, by :attr:`mask_rule`.

        Args:
            logits: (B, N, 2) normal and abnormal logits of the adapted images.
            others: (B, C·N, 2) the same of their copies.
            images: (B, N, D) adapted tokens of the images.
            copies: (B, C·N, D) adapted tokens of the copies.

        Returns:
            (B, C·N) in [0, 1].
        """
        if self.mask_rule == "text-change":
            abnormal = logits[..., 1] - logits[..., 0]
            change = others[..., 1] - others[..., 0] - abnormal.repeat(1, self.copies)
            return (change - _UNCHANGED).sigmoid()
        known, unit = F.normalize(images, dim=-1), F.normalize(copies, dim=-1)
        if self.mask_rule == "distance":
            return (1 - (unit * known.repeat(1, self.copies, 1)).sum(-1)) / 2
        nearest = (1 - (unit @ known.mT).amax(-1)) / 2
        return (others.softmax(-1)[..., 1] + nearest) / 2


def _adapt(tokens: Tensor, layers: Layers) -> Tensor:
    """Apply the layers to (B, N, D): Φ(p) = p̂ + W p̂ + b."""
    unit = F.normalize(tokens, dim=-1)
    return unit + layers(unit)
