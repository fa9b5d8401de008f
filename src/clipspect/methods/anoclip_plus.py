"""AnoCLIP+: AnoCLIP with an adapter trained for a few steps on the image itself.

Deng, Zhang, Bao, Li (arXiv 2308.15939), §3.4; docs/methods.md §4. The official loop carries the optimizer's moments
from one image to the next, so its results depend on the order of the images. Here every image starts with new moments.

"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from clipspect.backbones.features import Features
from clipspect.methods.anoclip import VERDICT_SMOOTHING, AnoCLIP
from clipspect.methods.base import MethodContext, Scores, check_choice, check_range
from clipspect.methods.scoring import abnormal_probability, log_odds, smooth, verdict_layers
from clipspect.methods.tta.adapters import Adapter, Layers, draw_layers, draw_noise
from clipspect.methods.tta.losses import keep_where, noise_contrast_loss, state_logits
from clipspect.methods.tta.optimize import Optimized, optimize, trainable

NOISE = 0.05 * 1.1
"""Standard deviation of the noise on the tokens, as published."""
DIVERGED = "the adaptation diverged; the map is the one without adaptation"


@dataclass(frozen=True)
class AnoCLIPPlus(AnoCLIP):
    """AnoCLIP's map, refined on each image separately. The image score is AnoCLIP's."""

    name: ClassVar[str] = "anoclip+"

    adapter: Literal["text-bank", "linear"] = "linear"
    """Adapter: "linear", official for VisA, or "text-bank", the larger one for MVTec AD (through all sentence
    embeddings), which loses more than it gains with the offline model (docs/ablations.md).
    """
    epochs: int = 5
    """AdamW steps per image; 0 = the untrained adapter."""
    learning_rate: float = 1e-3
    """Learning rate of AdamW; weight decay is 1e-2."""

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        check_choice("adapter", self.adapter, ("text-bank", "linear"))
        check_range("epochs", self.epochs, 0, 1000)
        check_range("learning_rate", self.learning_rate, 0, 1e30)

    def score(self, features: Features, context: MethodContext) -> Scores:
        """Return AnoCLIP's scores with the adapted map; if the loss diverged, AnoCLIP's map and a note."""
        tokens = features.values(self.block).flatten(1, 2)  # (B, N, D)
        adapter = self.make_adapter(context)
        start = draw_layers(context.seeds, adapter.outputs(tokens.shape[-1]), tokens.shape[-1])
        noise = draw_noise(context.seeds, (self.epochs, *tokens.shape[1:]), NOISE)
        start = Layers(start.weight.to(tokens.device), start.bias.to(tokens.device))
        descent = self.adapt(tokens, start, noise.to(tokens.device), context)
        adapted = self.adapted_map(tokens, descent.layers, context).reshape(-1, *features.grid)
        grid = keep_where(descent.finite, adapted, self.patch_map(features, context))
        notes = [() if finite else (DIVERGED,) for finite in descent.finite.tolist()]
        image = self.image_score(features, context)
        layers = verdict_layers(smooth(grid, VERDICT_SMOOTHING))
        return Scores(image, self.finish(grid, context), notes, grid, layers, log_odds(image))

    def make_adapter(self, context: MethodContext) -> Adapter:
        """Return the fixed part of the adapter for the context's object."""
        return Adapter(context.anchors.bank if self.adapter == "text-bank" else None)

    def adapt(self, tokens: Tensor, start: Layers, noise: Tensor, context: MethodContext) -> Optimized:
        """Train the adapter of each image on its own tokens.

        Args:
            tokens: (B, N, D) V-V tokens, not normalized.
            start: initial layers.
            noise: (B, epochs, N, D), added to the tokens epoch by epoch.
            context: source of the text embeddings.
        """
        fixed = self.make_adapter(context)
        adapter = Adapter(None if fixed.bank is None else trainable(fixed.bank))
        tokens, noise, pair = trainable(tokens), trainable(noise), trainable(context.anchors.pair)

        def loss(layers: Layers, epoch: int) -> Tensor:
            both = torch.cat([tokens, tokens + noise[:, epoch]], 1)  # one matmul for both
            logits = state_logits(adapter(both, layers), pair, self.temperature)
            return noise_contrast_loss(*logits.chunk(2, 1))

        return optimize(loss, start, self.epochs, learning_rate=self.learning_rate)

    def adapted_map(self, tokens: Tensor, layers: Layers, context: MethodContext) -> Tensor:
        """Return (B, N) abnormal probabilities of the adapted tokens."""
        adapted = self.make_adapter(context)(tokens, layers)
        return abnormal_probability(adapted, context.anchors.pair, self.temperature)
