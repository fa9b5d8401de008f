"""What Dual-Image and mutual scoring share: a language map and a visual map, brought to one scale and averaged."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from clipspect.backbones.features import FeatureRequest, Features, Span, span_blocks
from clipspect.errors import ReferenceError, UsageError
from clipspect.methods.anoclip import AnoCLIP
from clipspect.methods.base import MethodContext, Scores, check_choice, check_range
from clipspect.methods.fusion import RULES, Fusion, Rule, fit_fusion
from clipspect.methods.scoring import abnormal_probability
from clipspect.methods.visual import ONLY_ITSELF, non_self_indices, normalize_tokens

FEWEST_SCORES = 8
"""Image scores a common scale can be taken from; with fewer images their plain values are averaged."""


@dataclass(frozen=True)
class SetState:
    """What was seen of the set before its images are scored."""

    compared: Any
    """What the visual score compares with."""
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
    def gather(self, pool: Features, scene: MethodContext) -> Any:
        """Whatever :meth:`visual_map` compares with, from the pool or from the scene's explicit references."""

    @abstractmethod
    def visual_map(self, features: Features, scene: MethodContext, compared: Any) -> Tensor:
        """(B, H, W) visual scores on the patch grid, before smoothing."""

    def prepare(self, pool: Features, scene: MethodContext) -> SetState:
        """Gather what to compare with, make the pool's visual maps, and align both scores.

        Raises:
            UsageError: a pool of one image and no explicit reference, or no reference but the image itself.
            ReferenceError: explicit references of another size.
        """
        for references in (scene.references, scene.paired_references):
            if references is not None and references.grid != pool.grid:
                raise ReferenceError(
                    f"the references have {references.grid} patches, the images {pool.grid}; they must be"
                    f" encoded at the same size"
                )
            if references is not None and (references.trunk is None) != (pool.trunk is None):
                raise ReferenceError(
                    "the references were encoded with another setting of visual_features; build them again"
                )
        if all(self.notes(pool, scene)):
            raise UsageError("the only reference is the image itself; name another one as reference")
        compared = self.gather(pool, scene)
        return self.align(pool, scene, compared, self.visual_map(pool, scene, compared))

    def align(self, pool: Features, scene: MethodContext, compared: Any, visual: Tensor) -> SetState:
        """Take the scales of both scores from the pool, whose (M, H, W) visual maps are known."""
        text = self.patch_map(pool, scene)
        scores_rule: Rule = self.fusion if len(pool) >= FEWEST_SCORES else "mean"
        return SetState(
            compared,
            visual,
            fit_fusion(self.fusion, text, visual),
            fit_fusion(scores_rule, self.image_score(pool, scene), visual.amax((1, 2))),
        )

    def score(self, features: Features, scene: MethodContext) -> Scores:
        """METHODS §5: the mean of language and visual map, and of language score and highest visual value."""
        text, visual = self.both_maps(features, scene)
        image, grid = self.join(text, visual, features, scene)
        return Scores(image, self.finish(grid, scene), self.notes(features, scene))

    def notes(self, features: Features, scene: MethodContext) -> list[tuple[str, ...]]:
        """Per image, whether explicit references hold nothing but the image itself."""
        known = scene.references
        if known is None:
            return [()] * len(features)

        def alone(image: Tensor) -> bool:
            # Reference by reference: most often the first one is another picture.
            return not any(
                non_self_indices(image, self.last_tokens(known[k : k + 1])) for k in range(len(known))
            )

        return [(ONLY_ITSELF,) if alone(image) else () for image in self.last_tokens(features)]

    def both_maps(self, features: Features, scene: MethodContext) -> tuple[Tensor, Tensor]:
        """(B, H, W) language and visual map; visual maps of the pool's images are taken from the state."""
        state: SetState = scene.state
        text = self.patch_map(features, scene)
        if min(scene.own) >= 0:
            return text, state.visual[list(scene.own)]
        return text, self.visual_map(features, scene, state.compared)

    def join(
        self, text: Tensor, visual: Tensor, features: Features, scene: MethodContext
    ) -> tuple[Tensor, Tensor]:
        """(B,) image scores and (B, H, W) maps of the output asked for."""
        state: SetState = scene.state
        if self.output == "text":
            return self.image_score(features, scene), text
        highest = visual.amax((1, 2))
        if self.output == "visual":
            return highest, visual
        return (
            state.scores(self.image_score(features, scene), highest, self.text_weight),
            state.maps(text, visual, self.text_weight),
        )

    def patch_map(self, features: Features, scene: MethodContext) -> Tensor:
        """(B, H, W) abnormal probabilities of the path's tokens, before smoothing."""
        tokens = features.values(self.block) if self.path == "value" else features.ordinary(self.block)
        return abnormal_probability(tokens, scene.anchors.pair, self.temperature)

    def visual_tokens(self, features: Features) -> list[Tensor]:
        """(B, N, D) unit tokens of each visual block, and of the trunk."""
        patches, trunk = self._patches(features), features.trunk
        blocks = [normalize_tokens(patches[block]) for block in span_blocks(self.span, features.depth)]
        if trunk is None or self.visual_features == "blocks":
            return blocks
        return [normalize_tokens(trunk), *(blocks if self.visual_features == "both" else [])]

    def last_tokens(self, features: Features) -> Tensor:
        """(B, N, D) unit tokens of the deepest visual block."""
        return normalize_tokens(self._patches(features)[span_blocks(self.span, features.depth)[-1]])

    def _patches(self, features: Features) -> Mapping[int, Tensor]:
        return features.value_patches if self.path == "value" else features.ordinary_patches
