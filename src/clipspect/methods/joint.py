"""What Dual-Image and mutual scoring share: a language map and a visual map, brought to one scale and averaged."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from torch import Tensor

from clipspect.backbones.features import FeatureRequest, Features, Span, block_numbers, parse_blocks
from clipspect.backbones.sources import Sources
from clipspect.errors import ReferencesError, UsageError
from clipspect.methods.anoclip import VERDICT_SMOOTHING, AnoCLIP
from clipspect.methods.base import MethodContext, Scores, check_choice, check_range, setting
from clipspect.methods.fusion import RULES, Fusion, Rule, fit_fusion
from clipspect.methods.scoring import log_odds, smooth, verdict_layers
from clipspect.methods.visual import non_self_indices, normalize_tokens, reference_notes

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
    """What the visual score compares with; None with paired references."""
    visual: Tensor
    """(M, H, W) visual maps of the pool, so that none is made twice."""
    highest: Tensor
    """(M,) visual image scores of the pool."""
    maps: Fusion
    scores: Fusion


@dataclass(frozen=True)
class JointMethod(AnoCLIP):
    """AnoCLIP's language score and a visual one, joined."""

    scope: ClassVar[Literal["image", "set"]] = "set"
    accepts_references: ClassVar[bool] = True

    output: Literal["joint", "text", "visual"] = setting(
        "joint",
        "The joined score, or one of its halves alone (for looking at what each contributes).",
    )
    fusion: Rule = setting(
        "temperature",
        'How the two are brought to one scale: "mean" (as they are), "min-max", "rank", "z-score" or '
        '"temperature".',
    )
    text_weight: float = setting(0.5, "Share of the language score in the joint one.")
    image_rule: Literal["mean", "map", "text"] = setting(
        "mean",
        "Image score of the joint output: the mean of language score and highest visual value, the "
        'highest value of the joint map ("map"), or the language score alone ("text").',
    )
    path: Literal["value", "ordinary", "hidden"] = setting(  # type: ignore[assignment]
        "value",
        "Patch tokens of the V-V path, of the ordinary Q-K path (for comparison), or, for the visual "
        "score alone, hidden states: ordinary tokens before the final norm and projection, as MuSc takes "
        "them.",
    )
    visual_features: Literal["auto", "both", "trunk", "blocks"] = setting(
        "auto",
        "Features that images are compared by: those of the backbone's convolutional trunk, V-V tokens of "
        'blocks, or the mean of both scores; "auto" = blocks beside an image\'s template, both otherwise. '
        "A backbone without a trunk always compares by blocks.",
    )
    blocks_from: float = setting(
        0.75,
        "The visual score is averaged over blocks deeper than this share of the backbone; see blocks_to.",
    )
    blocks_to: float = setting(
        1.0, "Deepest blocks of the visual score, as a share of the backbone: 0.75 to 1 is the last quarter."
    )
    blocks: str = setting(
        "",
        "Blocks of the visual score in place of that span: numbers such as 3,6,9,12, or relative depths "
        "such as 50%.",
    )

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        check_choice("output", self.output, ("joint", "text", "visual"))
        check_choice("fusion", self.fusion, RULES)
        check_choice("image_rule", self.image_rule, ("mean", "map", "text"))
        check_choice("visual_features", self.visual_features, ("auto", "both", "trunk", "blocks"))
        if self.blocks:
            parse_blocks(self.blocks)
        check_range("text_weight", self.text_weight, 0, 1)
        check_range("blocks_to", self.blocks_to, 1e-6, 1)
        check_range("blocks_from", self.blocks_from, 0, self.blocks_to)

    def check_path(self) -> None:
        """Raise UsageError for an unknown path."""
        check_choice("path", self.path, ("value", "ordinary", "hidden"))

    @property
    def visual_parts(self) -> tuple[frozenset[int], frozenset[Span]]:
        """The blocks the visual score looks at: numbers, and parts of the backbone by relative depth."""
        if self.blocks:
            return parse_blocks(self.blocks)
        return frozenset(), frozenset([(self.blocks_from, self.blocks_to)])

    def visual_blocks(self, depth: int) -> list[int]:
        """The blocks of the visual score in a backbone of ``depth`` blocks, from 1."""
        return sorted(block_numbers(*self.visual_parts, depth))

    def request(self) -> FeatureRequest:
        """Tokens of the text block, where there is a text score, and of the visual blocks."""
        blocks, spans = self.visual_parts
        if self.path == "ordinary":
            visual = FeatureRequest(ordinary_blocks=blocks, ordinary_spans=spans)
        else:
            hidden = FeatureRequest(hidden_blocks=blocks, hidden_spans=spans)
            value = FeatureRequest(value_blocks=blocks, value_spans=spans, start_block=self.start_block)
            visual = value if self.path == "value" else hidden
        visual |= FeatureRequest(trunk=self.visual_features != "blocks")
        return replace(super().request(), visual=visual) if self.needs_text else FeatureRequest(visual=visual)

    @abstractmethod
    def gather(self, pool: Features, context: MethodContext) -> References | None:
        """Collect what :meth:`visual_map` compares with, from the pool or from explicit references."""

    @abstractmethod
    def visual_map(self, features: Features, context: MethodContext, compared: Any) -> Tensor:
        """(B, H, W) visual scores on the patch grid, before smoothing."""

    def visual_scores(
        self, features: Features, context: MethodContext, compared: Any
    ) -> tuple[Tensor, Tensor]:
        """(B, H, W) visual maps before smoothing and (B,) visual image scores: their highest values."""
        visual = self.visual_map(features, context, compared)
        return visual, visual.amax((1, 2))

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
            if references is not None and (references.compared.trunk is None) != (
                pool.compared.trunk is None
            ):
                raise ReferencesError(
                    "the references were encoded with another setting of visual_features; build them again"
                )
        compared = self.gather(pool, context)
        if not any(self.allowed(pool, context, compared)):
            raise UsageError(
                "every image has only itself or a copy of it as reference; add other images or references"
                + _set_size_hint(pool)
            )
        return self.align(pool, context, compared, *self.visual_scores(pool, context, compared))

    def align(
        self, pool: Features, context: MethodContext, compared: Any, visual: Tensor, highest: Tensor
    ) -> SetState:
        """Take the scales of both scores from the pool.

        Args:
            pool: features of M images.
            context: of the pool.
            compared: what the visual score compares with.
            visual: (M, H, W) visual maps.
            highest: (M,) visual image scores.
        """
        if not self.needs_text:
            alone = fit_fusion("mean", visual, visual)
            return SetState(compared, visual, highest, alone, alone)
        text = self.patch_map(pool, context)
        scores_rule: Rule = self.fusion if len(pool) >= FEWEST_SCORES else "mean"
        return SetState(
            compared,
            visual,
            highest,
            fit_fusion(self.fusion, text, visual),
            fit_fusion(scores_rule, self.image_score(pool, context), highest),
        )

    def score(self, features: Features, context: MethodContext) -> Scores:
        """docs/methods.md §5: the mean of language and visual map, and of language score and highest visual value."""
        text, visual, highest = self.both_maps(features, context)
        image, grid = self.join(text, visual, highest, features, context)
        return Scores(
            image,
            self.finish(grid, context),
            self.notes(features, context),
            text,
            self.layers(text, visual, context),
            None if text is None else log_odds(self.image_score(features, context)),
        )

    def layers(self, text: Tensor | None, visual: Tensor, context: MethodContext) -> Tensor:
        """(B, K, H, W) log-odds of the joint map with the visual half as it is and, but for templates, smoothed."""
        state: SetState = context.state
        halves = [visual] if state.compared is None else [visual, smooth(visual, VERDICT_SMOOTHING)]
        if self.output == "visual" or text is None:
            return verdict_layers(*halves)
        language = smooth(text, VERDICT_SMOOTHING)
        if self.output == "text":
            return verdict_layers(language)
        return verdict_layers(*(state.maps(language, half, self.text_weight) for half in halves))

    def notes(self, features: Features, context: MethodContext) -> list[tuple[str, ...]]:
        """Per image, whether its references hold nothing but the image itself."""
        return reference_notes(self.allowed(features, context, context.state.compared))

    def both_maps(self, features: Features, context: MethodContext) -> tuple[Tensor | None, Tensor, Tensor]:
        """(B, H, W) language map, (B, H, W) visual map and (B,) visual image scores.

        The language map is None for methods without text. Visual scores of the pool's images are taken from the state.
        """
        state: SetState = context.state
        text = self.patch_map(features, context) if self.needs_text else None
        index = list(context.pool_index) or [-1] * len(features)
        new = [row for row, place in enumerate(index) if place < 0]
        if len(new) == len(index):
            return text, *self.visual_scores(features, context, state.compared)
        visual, highest = state.visual[index], state.highest[index]
        if new:
            found = self.visual_scores(features[new], context.part(new), state.compared)
            visual[new], highest[new] = found
        return text, visual, highest

    def join(
        self,
        text: Tensor | None,
        visual: Tensor,
        highest: Tensor,
        features: Features,
        context: MethodContext,
    ) -> tuple[Tensor, Tensor]:
        """(B,) image scores and (B, H, W) maps of the output asked for."""
        state: SetState = context.state
        if self.output == "visual" or text is None:
            return highest, visual
        if self.output == "text":
            return self.image_score(features, context), text
        joint = state.maps(text, visual, self.text_weight)
        if self.image_rule == "map":
            return joint.amax((1, 2)), joint
        language = self.image_score(features, context)
        if self.image_rule == "text":
            return language, joint
        return state.scores(language, highest, self.text_weight), joint

    def visual_tokens(self, features: Features, *, paired: bool = False) -> list[Tensor]:
        """(B, N, D) unit tokens of each visual block, and of the trunk; see :meth:`visual_patches`."""
        return [normalize_tokens(patches) for patches in self.visual_patches(features, paired=paired)]

    def visual_patches(self, features: Features, *, paired: bool = False) -> list[Tensor]:
        """(B, H, W, D) features of the trunk and tokens of each visual block, not normalized.

        Args:
            features: of B images, or of B references.
            paired: whether each image is compared with its template.
        """
        features = features.compared
        kinds: dict[str, Mapping[int, Tensor]] = {
            "value": features.value_patches,
            "ordinary": features.ordinary_patches,
            "hidden": features.hidden_patches,
        }
        blocks = [kinds[self.path][block] for block in self.visual_blocks(features.depth)]
        chosen = self.visual_features
        if chosen == "auto":
            chosen = "blocks" if paired else "both"
        if features.trunk is None or chosen == "blocks":
            return blocks
        return [features.trunk, *(blocks if chosen == "both" else [])]


def _set_size_hint(pool: Features) -> str:
    """Return what to do if the tiles of one image fill the set."""
    tiles = 1 if pool.sources is None else 1 + max(pool.sources.tiles)
    return "" if tiles == 1 else f", or raise --set-size, which counts tiles: one image has {tiles}"
