"""Mutual scoring: every image of the set is a reference, and what recurs in few of them is anomalous.

Beyond the papers (docs/methods.md §8): the dual-image idea with all unlabelled images at once, as MuSc scores them
(arXiv 2401.16753). Leaving out what the language score calls abnormal is the idea of FiSeCLIP (arXiv 2507.11003).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from clipspect.backbones.features import Features
from clipspect.backbones.sources import Sources
from clipspect.errors import UsageError
from clipspect.methods.base import MethodContext, Scores, check_choice, check_range, setting
from clipspect.methods.fast_search import FastSearch, Search, resolve_search
from clipspect.methods.joint import JointMethod, References, SetState
from clipspect.methods.pairing import ONLY_ONE
from clipspect.methods.patch_index import PatchIndex
from clipspect.methods.repeated import link_images, repeated_images
from clipspect.methods.set_scoring import (
    Distance,
    Rounding,
    aggregate_neighborhood,
    lowest_count,
    lowest_mean,
    normalize_images,
    rescore_images,
)
from clipspect.methods.visual import (
    map_images,
    mutual_distances,
    nearest_distances,
    non_self_indices,
    normalize_tokens,
)

Compare = Callable[[int], Tensor]
"""Function that returns the (N,) distances of the patches of an image of the batch."""
_MUTUAL_DISTANCES = 1 << 26
"""Most distances of all pairs of images kept at once, 256 MiB; beyond it every image is compared on its own."""


@dataclass(frozen=True)
class SetReferences(References):
    """The patches of all reference images, as they are or in an index."""

    patches: list[Tensor]
    """Per visual block (M, H, W, D) tokens."""
    kept: Tensor | None
    """(M, K) row-major numbers of the patches that serve as references; None = all."""
    tokens: Mapping[tuple[int, int], Tensor]
    """(block's place, degree) → (M, K, D) unit tokens; empty where several degrees would multiply the memory."""
    indices: Mapping[tuple[int, int], PatchIndex]
    """(block's place, degree) → index; empty where images are compared exactly."""
    searches: Mapping[tuple[int, int], FastSearch] = field(default_factory=dict)
    """(block's place, degree) → fast search; empty unless the method asks for it."""
    left_out: frozenset[int] = frozenset()
    """Numbers of references that share a repeated pattern and are no references."""


@dataclass(frozen=True)
class RescoredState(SetState):
    """What re-scoring needs of the pool."""

    image: Tensor
    """(M,) image scores before re-scoring."""
    embeddings: Tensor
    """(M, D) unit image embeddings."""
    sources: Sources | None
    """Of the M images."""


@dataclass(frozen=True)
class Mutual(JointMethod):
    """Text and the whole set: normal patches recur across images, defects do not."""

    name: ClassVar[str] = "mutual"

    lowest: float = setting(
        0.3,
        "Share of the other images, those nearest to a patch, whose distances are averaged.",
    )
    rounding: Rounding = setting(
        "up",
        'Rounding of the number of images that share gives: "up", or "down" as in MuSc\'s code; at least '
        "one image.",
    )
    left_out: float = setting(
        0.0,
        "Share of each image's patches, those the language score calls most abnormal, that are not used "
        "as references.",
    )
    exact_limit: int = setting(
        128,
        'Maximum number of images or tiles that search="exact" compares exactly; the cost grows with its '
        "square. Beyond it an index is built (FAISS).",
    )
    search: Search = setting(
        "auto",
        '"exact" compares all patches, or uses the index beyond exact_limit. "fast" finds the nearest '
        "patches in 32 dimensions among at most 32,768, then measures their distances exactly "
        '(docs/speed.md). "auto" is exact up to 32 images or tiles and fast beyond, so that an image '
        "costs at most about twice AnoCLIP's time in a set of any size.",
    )
    degrees: str = setting(
        "1",
        "Sides of the neighborhoods in patches that a patch is averaged over (MuSc's LNAMD), such as "
        "1,3,5; the maps of all degrees are averaged. The time grows with their number.",
    )
    image_degrees: str = setting("", "Degrees of the image scores; empty = those of the maps.")
    distance: Distance = setting(
        "cosine",
        'Distance of unit tokens before the mean over images: "cosine", ½ (1 − cos), or "euclidean", half '
        "the length.",
    )
    image_norm: bool = setting(
        False,
        "Normalize each image's tokens by their common mean and variance first, as MuSc does.",
    )
    rescoring: str = setting(
        "",
        "Numbers of similar images, such as 1,2,3, whose image scores are averaged (MuSc's RsCIN); empty "
        "= none.",
    )
    repeated: Literal["keep", "leave-out"] = setting(
        "keep",
        'Images that share a pattern which most of the set has not: "keep" them as references, or '
        '"leave-out", so that a defect that many images carry is found. A variant of the product is then '
        "found too (CoDeGraph's problem).",
    )

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        check_range("lowest", self.lowest, 1e-6, 1)
        check_range("left_out", self.left_out, 0, 0.95)
        check_range("exact_limit", self.exact_limit, 1, 1e6)
        check_choice("rounding", self.rounding, ("up", "down"))
        check_choice("distance", self.distance, ("cosine", "euclidean"))
        check_choice("repeated", self.repeated, ("keep", "leave-out"))
        check_choice("search", self.search, ("auto", "exact", "fast"))
        for what in ("degrees", "image_degrees", "rescoring"):
            numbers = parse_numbers(what, getattr(self, what))
            if what != "rescoring" and any(n % 2 == 0 for n in numbers):
                raise UsageError(
                    f"{what}={getattr(self, what)!r}; sides of neighborhoods are odd, such as 1,3,5"
                )
        if not self.degrees:
            raise UsageError("degrees is empty; 1 stands for the patches as they are")

    def search_of(self, count: int) -> Literal["exact", "fast"]:
        """Return how ``count`` images are searched: what "auto" stands for."""
        if self.search == "auto" and self.repeated == "leave-out":
            return "exact"  # repeated patterns are looked for in all distances
        return resolve_search(self.search, count)

    @property
    def map_degrees(self) -> list[int]:
        """Degrees whose mean is the map."""
        return parse_numbers("degrees", self.degrees)

    @property
    def score_degrees(self) -> list[int]:
        """Degrees whose mean gives the image score."""
        return parse_numbers("image_degrees", self.image_degrees) or self.map_degrees

    def gather(self, pool: Features, context: MethodContext) -> SetReferences:
        """Tokens of the pool, or of the explicit references, without the patches left out.

        Raises:
            UsageError: one image alone; a reference for each image; an index without FAISS.
        """
        if context.paired_references is not None:
            raise UsageError(
                f"{self.name} compares with the whole set; for one reference per file use dual-image"
            )
        references = pool if context.references is None else context.references
        if context.references is None and len(pool) < 2:
            raise UsageError(f"{self.name} {ONLY_ONE}")
        patches = self.visual_patches(references)
        kept = None
        if self.left_out > 0:
            suspicion = self.patch_map(references, context).flatten(1)  # (M, N)
            count = max(round((1 - self.left_out) * suspicion.shape[1]), 1)
            kept = suspicion.argsort(dim=1, stable=True)[:, :count]
        from_pool = context.references is None
        compared = SetReferences(references.sources, len(references), from_pool, patches, kept, {}, {})
        degrees = sorted({*self.map_degrees, *self.score_degrees})
        keys = [(place, degree) for place in range(len(patches)) for degree in degrees]
        search = self.search_of(len(references))
        is_exact = search == "exact" and len(references) <= self.exact_limit
        if self.repeated == "leave-out" and from_pool and not is_exact:
            raise UsageError(
                f"repeated=leave-out compares all {len(references)} images exactly; use search=exact, and raise"
                f" exact_limit ({self.exact_limit}) or lower the set size"
            )
        if search == "fast":
            searches = {
                key: FastSearch.fit(self._reference_tokens(compared, key), references.sources) for key in keys
            }
            return replace(compared, searches=searches)
        if not is_exact:
            indices = {key: PatchIndex(self._reference_tokens(compared, key)) for key in keys}
            return replace(compared, indices=indices)
        if self.repeated == "leave-out" and from_pool:
            compared = replace(compared, left_out=self.find_repeated(pool, context, compared))
        if len(degrees) == 1:
            return replace(compared, tokens={key: self._reference_tokens(compared, key) for key in keys})
        return compared

    def find_repeated(
        self, pool: Features, context: MethodContext, compared: SetReferences
    ) -> frozenset[int]:
        """Find the images of the pool that share a repeated pattern, by cosine distances of the lowest map degree.

        Takes M² · N · 2 bytes beside the tokens: 34 MB for 128 images of 32×32 patches.

        Raises:
            UsageError: igraph or leidenalg is not installed.
        """
        allowed = self.allowed(pool, context, compared)
        degree = min(self.map_degrees)
        distances = pool.image.new_zeros(len(pool), len(pool), pool.grid[0] * pool.grid[1])
        distances = distances.to("cpu", torch.float16)
        for place, patches in enumerate(compared.patches):
            tokens, known = self.tokens_of(patches, degree), self._reference_tokens(compared, (place, degree))

            def compare(i: int, tokens: Tensor = tokens, known: Tensor = known) -> Tensor:
                return nearest_distances(tokens[i], known).to("cpu", torch.float16)

            distances += map_images(compare, pool.image) / len(compared.patches)
        owners = None if pool.sources is None else pool.sources.hashes
        return frozenset(repeated_images(link_images(distances, allowed), owners))

    def allowed(
        self, features: Features, context: MethodContext, compared: References | None
    ) -> list[list[int]]:
        """Per image the rows of the references that are other images, without those left out."""
        rows = super().allowed(features, context, compared)
        if not isinstance(compared, SetReferences) or not compared.left_out:
            return rows
        return [[row for row in own if row not in compared.left_out] for own in rows]

    def notes(self, features: Features, context: MethodContext) -> list[tuple[str, ...]]:
        """Per image, whether it has no other reference, and whether it shares a repeated pattern."""
        notes = super().notes(features, context)
        left_out: frozenset[int] = context.state.compared.left_out
        shared = (
            f"shares an unusual pattern with other images; {len(left_out)} images with it are no references"
        )
        index = context.pool_index or [-1] * len(features)
        return [(*own, shared) if row in left_out else own for own, row in zip(notes, index, strict=True)]

    def visual_map(self, features: Features, context: MethodContext, compared: SetReferences) -> Tensor:
        """(B, H, W) mean over the nearest images of the distance to their nearest patch, over blocks and degrees."""
        return self.visual_scores(features, context, compared)[0]

    def visual_scores(
        self, features: Features, context: MethodContext, compared: SetReferences
    ) -> tuple[Tensor, Tensor]:
        """(B, H, W) visual maps before smoothing and (B,) visual image scores, each with its degrees."""
        maps, scores = self.map_degrees, self.score_degrees
        each = {
            degree: self.degree_map(degree, features, context, compared)
            for degree in sorted({*maps, *scores})
        }
        visual = torch.stack([each[degree] for degree in maps]).mean(0)
        return visual, self.highest(torch.stack([each[degree] for degree in scores]).mean(0), context)

    def highest(self, visual: Tensor, context: MethodContext) -> Tensor:
        """(B,) image scores of (B, H, W) visual maps."""
        return visual.amax((1, 2))

    def degree_map(
        self, degree: int, features: Features, context: MethodContext, compared: SetReferences
    ) -> Tensor:
        """(B, H, W) visual map of one degree, mean over blocks. One block's references are in memory at a time."""
        allowed = self.allowed(features, context, compared)
        is_pool = compared.from_pool and list(context.pool_index) == list(range(compared.count))
        maps = []
        for place, patches in enumerate(self.visual_patches(features)):
            tokens = self.tokens_of(patches, degree)
            key = (place, degree)
            if compared.searches:
                compare = self._searched(tokens, compared.searches[key], allowed)
            elif compared.indices:
                compare = self._indexed(tokens, compared, key, allowed)
            else:
                known = compared.tokens.get(key)
                known = self._reference_tokens(compared, key) if known is None else known
                compare = self._exact(tokens, known, allowed, mutual=is_pool)
            maps.append(map_images(compare, features.image))
        return torch.stack(maps).mean(0).reshape(-1, *features.grid)

    def tokens_of(self, patches: Tensor, degree: int) -> Tensor:
        """(B, N, D) unit tokens of (B, H, W, D) patches, averaged over neighborhoods."""
        if self.image_norm:
            patches = normalize_images(patches)
        return normalize_tokens(aggregate_neighborhood(patches, degree))

    def align(
        self, pool: Features, context: MethodContext, compared: Any, visual: Tensor, highest: Tensor
    ) -> SetState:
        """Take the scales of both scores from the pool, and its image scores where they are averaged."""
        state = super().align(pool, context, compared, visual, highest)
        if not self.rescoring:
            return state
        known = replace(context, state=state)
        image, _ = self.join(*self.both_maps(pool, known), pool, known)
        return RescoredState(**vars(state), image=image, embeddings=pool.image, sources=pool.sources)

    def score(self, features: Features, context: MethodContext) -> Scores:
        """docs/methods.md §5 and §8, with image scores averaged over similar images where that is set."""
        scores = super().score(features, context)
        state = context.state
        if not isinstance(state, RescoredState):
            return scores
        image = rescore_images(
            scores.image,
            features.image,
            state.image,
            state.embeddings,
            non_self_indices(features, state.sources, len(state.image), context.pool_index),
            parse_numbers("rescoring", self.rescoring),
        )
        return replace(scores, image=image.clamp(0, 1))

    def _reference_tokens(self, compared: SetReferences, key: tuple[int, int]) -> Tensor:
        tokens = self.tokens_of(compared.patches[key[0]], key[1])
        if compared.kept is None:
            return tokens
        return tokens.gather(1, compared.kept[:, :, None].expand(-1, -1, tokens.shape[-1]))

    def _exact(self, tokens: Tensor, known: Tensor, allowed: list[list[int]], *, mutual: bool) -> Compare:
        """Compare with all patches; of a whole pool, each pair of images is multiplied once."""
        mutual = mutual and tokens.device.type == "cpu" and tokens.shape == known.shape
        fits = len(tokens) * tokens.shape[0] * tokens.shape[1] <= _MUTUAL_DISTANCES
        all_pairs = mutual_distances(tokens) if mutual and fits else None

        def compare(i: int) -> Tensor:
            rows = allowed[i]
            if not rows:  # the row's note says that no other image was there
                return tokens.new_zeros(tokens.shape[1])
            distances = nearest_distances(tokens[i], known, rows) if all_pairs is None else all_pairs[i, rows]
            return lowest_mean(self._scaled(distances), self._count(len(rows)))

        return compare

    def _searched(self, tokens: Tensor, search: FastSearch, allowed: list[list[int]]) -> Compare:
        euclidean = self.distance == "euclidean"

        def compare(i: int) -> Tensor:
            rows = allowed[i]
            if not rows:
                return tokens.new_zeros(tokens.shape[1])
            return search.lowest_mean(tokens[i], rows, self._count(len(rows)), euclidean=euclidean)

        return compare

    def _indexed(
        self, tokens: Tensor, compared: SetReferences, key: tuple[int, int], allowed: list[list[int]]
    ) -> Compare:
        def compare(i: int) -> Tensor:
            rows = allowed[i]
            if not rows:
                return tokens.new_zeros(tokens.shape[1])
            excluded = sorted(set(range(compared.count)) - set(rows))
            euclidean = self.distance == "euclidean"
            return compared.indices[key].lowest_mean(
                tokens[i], excluded, self._count(len(rows)), euclidean=euclidean
            )

        return compare

    def _scaled(self, distances: Tensor) -> Tensor:
        # ½ (1 − cos) is the square of half the Euclidean distance of unit vectors.
        return distances.sqrt() if self.distance == "euclidean" else distances

    def _count(self, others: int) -> int:
        return lowest_count(self.lowest, others, self.rounding)


def parse_numbers(what: str, text: str) -> list[int]:
    """Read a comma-separated list of numbers from 1; empty text is an empty list. Raises UsageError otherwise."""
    try:
        numbers = [int(part) for part in text.split(",")] if text.strip() else []
    except ValueError as error:
        raise UsageError(f"{what}={text!r}; list whole numbers, such as 1,3,5") from error
    if any(n < 1 for n in numbers):
        raise UsageError(f"{what}={text!r}; numbers start from 1")
    return numbers
