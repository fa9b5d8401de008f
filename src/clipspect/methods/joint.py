"""What Dual-Image and mutual scoring share: a language map and a visual map, brought to one scale and averaged."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from clipspect.backbones.features import FeatureRequest, Features, Span, span_blocks
from clipspect.backbones.sources import Sources
from clipspect.errors import ReferencesError, UsageError
from clipspect.methods.anoclip import VERDICT_SMOOTHING, AnoCLIP
from clipspect.methods.base import MethodContext, Scores, check_choice, check_range
from clipspect.methods.fusion import RULES, Fusion, Rule, fit_fusion
from clipspect.methods.scoring import abnormal_probability, log_odds, smooth, verdict_layers
from clipspect.methods.visual import ONLY_ITSELF, non_self_indices, normalize_tokens

FEWEST_SCORES = 8
"""Image scores a common scale can be taken from; with fewer images their plain values are averaged."""


@dataclass(frozen=True)
class References:
    """What the visual score compares images with; methods add the form in which they keep the patches."""

    sources: Sources | None
    """Of the M references."""
    count: int
    """Number of references M."""
    from_pool: bool
    """Whether the references are the images of the set themselves."""


@dataclass(frozen=True)
class SetState:
    """What was seen of the set before its images are scored."""

    compared: References | None
    """What the visual score compares with; None where each image has a reference of its own."""
    visual: Tensor
    """(M, H, W) visual maps of the pool, so that none is made twice."""
    maps: Fusion
    scores: Fusion


@dataclass(frozen=True)
class JointMethod(AnoCLIP):
    """AnoCLIP's language score and a visual one, joined."""

    scope: ClassVar[Literal["image", "set"]] = "set"
    accepts_references: ClassVar[bool] = True

    output: Literal["joint", "text", "visual"] = "joint"
    """The joined score, or one of its halves alone (for looking at what each contributes)."""
    fusion: Rule = "temperature"
    """How the two are brought to one scale: "mean" (as they are), "min-max", "rank", "z-score" or "temperature"."""
    text_weight: float = 0.5
    """Share of the language score in the joint one."""
    path: Literal["value", "ordinary"] = "value"
    """Patch tokens of the V-V path, or of the ordinary Q-K path (for comparison)."""
    visual_features: Literal["both", "trunk", "blocks"] = "both"
    """Features that images are compared by: those of the backbone's convolutional trunk, V-V tokens of blocks, or the
    mean of both scores. A backbone without a trunk always compares by blocks."""
    blocks_from: float = 0.75
    """The visual score is averaged over blocks deeper than this share of the backbone …"""
    blocks_to: float = 1.0
    """… and no deeper than this share: 0.75 to 1 is the last quarter."""

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        check_choice("output", self.output, ("joint", "text", "visual"))
        check_choice("fusion", self.fusion, RULES)
        check_choice("path", self.path, ("value", "ordinary"))
        check_choice("visual_features", self.visual_features, ("both", "trunk", "blocks"))
        check_range("text_weight", self.text_weight, 0, 1)
        check_range("blocks_to", self.blocks_to, 1e-6, 1)
        check_range("blocks_from", self.blocks_from, 0, self.blocks_to)

    @property
    def span(self) -> Span:
        """The part of the backbone the visual score looks at."""
        return (self.blocks_from, self.blocks_to)

    def request(self) -> FeatureRequest:
        """Tokens of the text block and of the visual blocks, of one path."""
        trunk = self.visual_features != "blocks"
        if self.path == "value":
            return super().request() | FeatureRequest(
                value_spans=frozenset([self.span]), start_block=self.start_block, trunk=trunk
            )
        return FeatureRequest(
            ordinary_blocks=frozenset([self.block]),
            ordinary_spans=frozenset([self.span]),
            views=self.views == "official",
            trunk=trunk,
        )

    @abstractmethod
    def gather(self, pool: Features, context: MethodContext) -> References | None:
        """Collect what :meth:`visual_map` compares with, from the pool or from explicit references."""

    @abstractmethod
    def visual_map(self, features: Features, context: MethodContext, compared: Any) -> Tensor:
        """(B, H, W) visual scores on the patch grid, before smoothing."""

    def allowed(
        self, features: Features, context: MethodContext, compared: References | None
    ) -> list[list[int]]:
        """Per image the rows of the references that are other images; the paired reference is always allowed."""
        if compared is None:
            return [[0]] * len(features)
        pool_index = context.pool_index if compared.from_pool else ()
        return non_self_indices(features, compared.sources, compared.count, pool_index)

    def prepare(self, pool: Features, context: MethodContext) -> SetState:
        """Gather what to compare with, make the pool's visual maps, and align both scores.

        Raises:
            UsageError: a pool of one image and no explicit reference, or no reference but the image itself.
            ReferencesError: explicit references of another size.
        """
        for references in (context.references, context.paired_references):
            if references is not None and references.grid != pool.grid:
                raise ReferencesError(
                    f"the references have {references.grid} patches, the images {pool.grid}; they must be"
                    f" encoded at the same size"
                )
            if references is not None and (references.trunk is None) != (pool.trunk is None):
                raise ReferencesError(
                    "the references were encoded with another setting of visual_features; build them again"
                )
        compared = self.gather(pool, context)
        if not any(self.allowed(pool, context, compared)):
            raise UsageError(
                "every image has only itself or a copy of it as reference; add other images or references"
            )
        return self.align(pool, context, compared, self.visual_map(pool, context, compared))

    def align(self, pool: Features, context: MethodContext, compared: Any, visual: Tensor) -> SetState:
        """Take the scales of both scores from the pool, whose (M, H, W) visual maps are known."""
        text = self.patch_map(pool, context)
        scores_rule: Rule = self.fusion if len(pool) >= FEWEST_SCORES else "mean"
        return SetState(
            compared,
            visual,
            fit_fusion(self.fusion, text, visual),
            fit_fusion(scores_rule, self.image_score(pool, context), visual.amax((1, 2))),
        )

    def score(self, features: Features, context: MethodContext) -> Scores:
        """docs/methods.md §5: the mean of language and visual map, and of language score and highest visual value."""
        text, visual = self.both_maps(features, context)
        image, grid = self.join(text, visual, features, context)
        return Scores(
            image,
            self.finish(grid, context),
            self.notes(features, context),
            text,
            self.layers(text, visual, context),
            log_odds(self.image_score(features, context)),
        )

    def layers(self, text: Tensor, visual: Tensor, context: MethodContext) -> Tensor:
        """(B, K, H, W) log-odds of the joint map with the visual half as it is and, but for templates, smoothed."""
        state: SetState = context.state
        language = smooth(text, VERDICT_SMOOTHING)
        if self.output == "text":
            return verdict_layers(language)
        halves = [visual] if state.compared is None else [visual, smooth(visual, VERDICT_SMOOTHING)]
        if self.output == "visual":
            return verdict_layers(*halves)
        return verdict_layers(*(state.maps(language, half, self.text_weight) for half in halves))

    def notes(self, features: Features, context: MethodContext) -> list[tuple[str, ...]]:
        """Per image, whether its references hold nothing but the image itself."""
        allowed = self.allowed(features, context, context.state.compared)
        return [() if rows else (ONLY_ITSELF,) for rows in allowed]

    def both_maps(self, features: Features, context: MethodContext) -> tuple[Tensor, Tensor]:
        """(B, H, W) language and visual map; visual maps of the pool's images are taken from the state."""
        state: SetState = context.state
        text = self.patch_map(features, context)
        if min(context.pool_index) >= 0:
            return text, state.visual[list(context.pool_index)]
        return text, self.visual_map(features, context, state.compared)

    def join(
        self, text: Tensor, visual: Tensor, features: Features, context: MethodContext
    ) -> tuple[Tensor, Tensor]:
        """(B,) image scores and (B, H, W) maps of the output asked for."""
        state: SetState = context.state
        if self.output == "text":
            return self.image_score(features, context), text
        highest = visual.amax((1, 2))
        if self.output == "visual":
            return highest, visual
        return (
            state.scores(self.image_score(features, context), highest, self.text_weight),
            state.maps(text, visual, self.text_weight),
        )

    def patch_map(self, features: Features, context: MethodContext) -> Tensor:
        """(B, H, W) abnormal probabilities of the path's tokens, before smoothing."""
        tokens = features.values(self.block) if self.path == "value" else features.ordinary(self.block)
        return abnormal_probability(tokens, context.anchors.pair, self.temperature)

    def visual_tokens(self, features: Features) -> list[Tensor]:
        """(B, N, D) unit tokens of each visual block, and of the trunk."""
        patches, trunk = self._patches(features), features.trunk
        blocks = [normalize_tokens(patches[block]) for block in span_blocks(self.span, features.depth)]
        if trunk is None or self.visual_features == "blocks":
            return blocks
        return [normalize_tokens(trunk), *(blocks if self.visual_features == "both" else [])]

    def _patches(self, features: Features) -> Mapping[int, Tensor]:
        return features.value_patches if self.path == "value" else features.ordinary_patches
