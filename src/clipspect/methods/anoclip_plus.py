"""AnoCLIP+: AnoCLIP with an adapter trained for a few steps on the image itself.

Deng, Zhang, Bao, Li (arXiv 2308.15939), §3.4; docs/methods.md §4. The official loop carries the optimizer's moments
from one image to the next, so its results depend on the order of the images. Here every image starts with new moments.

"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from clipspect.backbones.features import Features
from clipspect.methods.anoclip import VERDICT_SMOOTHING, AnoCLIP
from clipspect.methods.base import MethodContext, Scores, check_choice, check_range, setting
from clipspect.methods.scoring import abnormal_probability, log_odds, smooth, stitch, verdict_layers
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

    adapter: Literal["text-bank", "linear"] = setting(
        "linear",
        'Adapter: "linear", official for VisA, or "text-bank", the larger one for MVTec AD (through all '
        "sentence embeddings), which loses more than it gains with the offline model (docs/ablations.md).",
    )
    epochs: int = setting(5, "AdamW steps per image; 0 = the untrained adapter.")
    learning_rate: float = setting(1e-3, "Learning rate of AdamW; weight decay is 1e-2.")
    noise: float = setting(
        NOISE, "Standard deviation of the noise on the tokens; 0.055 in the official code."
    )
    tiles: Literal["separate", "together"] = setting(
        "separate",
        "Adapters of an image cut into tiles: one per tile, or one for all of them, whose loss is taken "
        'on the stitched logits ("together", official for VisA with --tile square).',
    )

    @property
    def joins_tiles(self) -> bool:
        """Return whether tiles share an adapter."""
        return self.tiles == "together"

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        check_choice("adapter", self.adapter, ("text-bank", "linear"))
        check_range("epochs", self.epochs, 0, 1000)
        check_range("learning_rate", self.learning_rate, 0, 1e30)
        check_range("noise", self.noise, 0, 1e3)
        check_choice("tiles", self.tiles, ("separate", "together"))

    def score(self, features: Features, context: MethodContext) -> Scores:
        """Return AnoCLIP's scores with the adapted map; if the loss diverged, AnoCLIP's map and a note."""
        if self.joins_tiles:
            adapted, finite = self._adapt_together(features, context)
        else:
            adapted, finite = self._adapt_each(features, context)
        grid = keep_where(finite, adapted, self.patch_map(features, context))
        notes = [() if good else (DIVERGED,) for good in finite.tolist()]
        image = self.image_score(features, context)
        layers = verdict_layers(smooth(grid, VERDICT_SMOOTHING))
        return Scores(image, self.finish(grid, context), notes, grid, layers, log_odds(image))

    def _adapt_each(self, features: Features, context: MethodContext) -> tuple[Tensor, Tensor]:
        """Return (B, H, W) maps of rows with an adapter each, and (B,) whether their training stayed finite."""
        tokens = self.text_patches(features).flatten(1, 2)  # (B, N, D)
        start, noise = self._draw(context.seeds, tokens, context)
        optimized = self.adapt(tokens, start, noise, context)
        adapted = self.adapted_map(tokens, optimized.layers, context)
        return adapted.reshape(-1, *features.grid), optimized.finite

    def _adapt_together(self, features: Features, context: MethodContext) -> tuple[Tensor, Tensor]:
        """Return the same for adapters that the tiles of an image share."""
        patches = self.text_patches(features)
        sources = features.sources
        groups = [slice(row, row + 1) for row in range(len(patches))] if sources is None else sources.images()
        maps, finite = [], []
        for rows in groups:
            tiles = patches[rows].flatten(1, 2)  # (T, N, D)
            offsets = None if sources is None or sources.offsets is None else sources.offsets[rows]
            places = offsets or ((0, 0),) * len(tiles)
            start, noise = self._draw(context.seeds[rows][:1], tiles.flatten(0, 1)[None], context)
            optimized = self.adapt_tiles(tiles, features.grid, places, start, noise, context)
            shared = Layers(
                *(part.expand(len(tiles), *part.shape[1:]) for part in vars(optimized.layers).values())
            )
            maps.append(self.adapted_map(tiles, shared, context).reshape(-1, *features.grid))
            finite.append(optimized.finite.expand(len(tiles)))
        return torch.cat(maps), torch.cat(finite)

    def _draw(self, seeds: Sequence[int], tokens: Tensor, context: MethodContext) -> tuple[Layers, Tensor]:
        """Draw initial layers and the (B, epochs, N, D) noise of (B, N, D) tokens."""
        outputs = self.make_adapter(context).outputs(tokens.shape[-1])
        start = draw_layers(seeds, outputs, tokens.shape[-1])
        noise = draw_noise(seeds, (self.epochs, *tokens.shape[1:]), self.noise)
        return Layers(start.weight.to(tokens.device), start.bias.to(tokens.device)), noise.to(tokens.device)

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

    def adapt_tiles(
        self,
        tokens: Tensor,
        grid: tuple[int, int],
        offsets: Sequence[tuple[int, int]],
        start: Layers,
        noise: Tensor,
        context: MethodContext,
    ) -> Optimized:
        """Train one adapter on all tiles of an image, with the loss on upsampled and stitched logits.

        Args:
            tokens: (T, N, D) V-V tokens of the tiles, not normalized.
            grid: (H, W) of the patches, N = H·W.
            offsets: (top, left) of each tile on the stitched map, in pixels of the input.
            start: one initial layer.
            noise: (1, epochs, T·N, D), added to the tokens epoch by epoch.
            context: source of the text embeddings and of the tiles' size.
        """
        fixed = self.make_adapter(context)
        adapter = Adapter(None if fixed.bank is None else trainable(fixed.bank))
        flat, noise = trainable(tokens).flatten(0, 1)[None], trainable(noise)
        pair = trainable(context.anchors.pair)

        def stitched(tokens: Tensor, layers: Layers) -> Tensor:
            logits = state_logits(adapter(tokens, layers), pair, self.temperature)[0]
            maps = logits.unflatten(0, (len(offsets), *grid)).permute(0, 3, 1, 2)  # (T, 2, H, W)
            large = F.interpolate(maps, context.size, mode="bilinear", align_corners=True)
            return stitch(large, offsets).permute(1, 2, 0)[None]

        def loss(layers: Layers, epoch: int) -> Tensor:
            return noise_contrast_loss(stitched(flat, layers), stitched(flat + noise[:, epoch], layers))

        return optimize(loss, start, self.epochs, learning_rate=self.learning_rate)

    def adapted_map(self, tokens: Tensor, layers: Layers, context: MethodContext) -> Tensor:
        """Return (B, N) abnormal probabilities of the adapted tokens."""
        adapted = self.make_adapter(context)(tokens, layers)
        return abnormal_probability(adapted, context.anchors.pair, self.temperature)
