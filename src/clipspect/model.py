"""AnomalyModel: image tensors in, Scores out. The only place that joins backbone, text anchors and methods."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial, reduce
from itertools import chain
from operator import or_
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from clipspect.backbones.base import Backbone
from clipspect.backbones.cpu.batch_parallel import parallel_map
from clipspect.backbones.features import FeatureRequest, Features
from clipspect.backbones.pair import BackbonePair
from clipspect.backbones.sources import Sources
from clipspect.backbones.views import rotate
from clipspect.errors import UsageError
from clipspect.methods.base import Method, MethodContext, Scores
from clipspect.prompts import PromptConfig
from clipspect.prompts.anchors import TextAnchors, encode_anchors

CACHED_OBJECTS = 32
"""Objects whose anchors stay in memory."""


@dataclass(frozen=True)
class Encoded:
    """N encoded images (or tiles) beside the tensors they came from."""

    features: Features
    """With sources."""
    images: Tensor
    """(N, 3, S, T) float32, normalized, on the backbone's device."""

    def __len__(self) -> int:
        """Number of rows N."""
        return len(self.features)

    def __getitem__(self, index: slice | Sequence[int]) -> Encoded:
        """Some of the rows."""
        return Encoded(self.features[index], self.images[index])

    @staticmethod
    def concat(parts: Sequence[Encoded]) -> Encoded:
        """Join several, in order."""
        return Encoded(Features.concat([p.features for p in parts]), torch.cat([p.images for p in parts]))


@dataclass(frozen=True)
class _Rows:
    """Image tensors with their origin and paired reference, divided among threads."""

    images: Tensor
    sources: Sources
    paired: Tensor | None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: slice) -> _Rows:
        paired = None if self.paired is None else self.paired[index]
        return _Rows(self.images[index], self.sources[index], paired)


@dataclass(frozen=True)
class AnomalyModel:
    """A backbone with one or several methods. Immutable: each step returns a model that shares the weights.

    Usage: ``model.set_object("metal nut").fit_set(encoded)(images)``; ``fit_set`` only for methods of scope "set".
    """

    backbone: Backbone
    methods: tuple[Method, ...]
    prompts: PromptConfig
    batch_size: int = 8
    """Rows encoded at once."""
    object_name: str = ""
    anchors: Mapping[str, TextAnchors] = field(default_factory=dict, repr=False)
    """method → text anchors, set by :meth:`set_object`."""
    references: Features | None = field(default=None, repr=False)
    """Explicit references of every image."""
    reference_states: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """method → what it prepared from the references."""
    pool: Encoded | None = field(default=None, repr=False)
    """The images of the set that serve as each other's references."""
    states: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """method → what it prepared from the pool."""
    _cache: dict[tuple[str, str, str], TextAnchors] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Check the methods and what they ask of the backbone.

        Raises:
            UsageError: no method, one twice, a block the backbone lacks, or a text method without a text tower.
        """
        if self.batch_size < 1:
            raise UsageError("batch_size must be at least 1")
        if not self.methods or len({m.name for m in self.methods}) < len(self.methods):
            raise UsageError("name at least one method, and each only once")
        for method in self.methods:
            if method.needs_text and not self.backbone.has_text:
                raise UsageError(
                    f"{method.name} compares images with sentences, and {self.backbone.name} has no text tower;"
                    " choose a CLIP model, or a method without text (clipspect methods)"
                )
        self.backbone.check(self.request)
        self.backbone.resolve(self.request)

    @cached_property
    def request(self) -> FeatureRequest:
        """What all methods together need from one encoding."""
        wanted = reduce(or_, (m.request() for m in self.methods))
        return wanted if isinstance(self.backbone, BackbonePair) else wanted.merged()

    @property
    def uses_sets(self) -> bool:
        """Whether a score depends on the set an image is in."""
        return any(m.scope == "set" for m in self.methods)

    @property
    def prompt_digest(self) -> str:
        """Hash of every sentence and learned prompt the methods use."""
        sources = [
            self.prompts.sentences(m.prompts, "object", m.prompt_domain)
            if m.anchor_source is None
            else m.anchor_source.digest
            for m in self.methods
        ]
        return hashlib.sha256(repr(sources).encode()).hexdigest()[:16]

    def set_object(self, name: str) -> AnomalyModel:
        """Name what is on the images. Text anchors are encoded once per object and cached on disk.

        Raises:
            UsageError: an empty or overlong name.
        """
        name = self.prompts.object_name(name)
        anchors = {m.name: self._anchors(m, name) for m in self.methods if m.needs_text}
        return replace(self, object_name=name, anchors=anchors)

    def set_references(self, references: Features | None) -> AnomalyModel:
        """Use explicit references for every image.

        Raises:
            UsageError: references for methods that have no use for them.
        """
        if references is not None:
            self.check_references(given=True)
        states = {}
        if references is not None:
            with torch.inference_mode():
                states = {
                    m.name: m.prepare_references(references) for m in self.methods if m.accepts_references
                }
        return replace(self, references=references, reference_states=states)

    def check_references(self, *, given: bool) -> None:
        """Raise UsageError where a method lacks references, or no method has a use for them."""
        for method in self.methods:
            if method.needs_references and not given:
                raise UsageError(f"{method.name} needs known-good references; pass them with --reference")
        if given and not any(m.accepts_references for m in self.methods):
            names = ", ".join(m.name for m in self.methods)
            raise UsageError(f"{names} uses no references; choose a method that does, such as dual-image")

    def encode(self, images: Tensor, sources: Sources | None = None) -> Encoded:
        """Encode images once for all methods.

        Args:
            images: (N, 3, S, T) float32, normalized with the backbone's mean and std.
            sources: the origin of each row; by default each tensor's values are its identity.
        """
        parts = [self.backbone.encode(part, self.request) for part in images.split(self.batch_size)]
        features = replace(Features.concat(parts), sources=sources or Sources.of_tensors(images))
        return Encoded(features, images.to(self.backbone.device))

    def encode_references(self, images: Tensor, sources: Sources | None = None) -> Features:
        """Encode reference images, and rotated copies of them where a method asks for them.

        Args:
            images: (N, 3, S, T) float32, normalized.
            sources: the origin of each row.

        Returns:
            Features of N rows, and those of their rotated copies, which have the source of their image.
        """
        return self.add_rotations(self.encode(images, sources))

    def add_rotations(self, encoded: Encoded) -> Features:
        """Return the features of encoded references, followed by those of their rotated copies."""
        sources, count = encoded.features.sources, self.request.reference_rotations
        assert sources is not None
        copies = [
            self.encode(rotate(encoded.images[rows], 2 * math.pi * turn / count), sources[rows]).features
            for turn, rows in enumerate(sources.rotated_rows(count), start=1)
            if rows
        ]
        return Features.concat([encoded.features, *copies]) if copies else encoded.features

    def fit_set(self, pool: Encoded, paired: Features | None = None) -> AnomalyModel:
        """Let every method of scope "set" look once at the images that serve as each other's references.

        Args:
            pool: a bounded sample of the set; its images are not encoded again. Of copies of an image one is kept.
            paired: features of each pool image's own reference.

        Raises:
            UsageError: nothing to compare with; ReferencesError: references of another size.
        """
        if pool.features.sources is not None:
            distinct = pool.features.sources.distinct()
            pool = pool[distinct]
            paired = None if paired is None else paired[distinct]
        model = replace(self, pool=pool, states={})
        rows = list(range(len(pool)))
        states = {
            m.name: m.prepare(pool.features, model._context(m, pool.features, pool.images, paired, rows))
            for m in self.methods
            if m.scope == "set"
        }
        return replace(model, states=states)

    def forward(
        self, images: Tensor, sources: Sources | None = None, paired: Tensor | None = None
    ) -> dict[str, Scores]:
        """Score images; on a CPU in several threads.

        Args:
            images: (N, 3, S, T) float32, normalized.
            sources: the origin of each row; rows of the pool are recognized by it and not encoded again.
            paired: (N, 3, S, T) each row's own reference, normalized.

        Returns:
            method → N scores and maps.
        """
        rows = _Rows(images, sources or Sources.of_tensors(images), paired)
        return _join([scores for scores, _ in self._in_parallel(rows)])

    def forward_with_tokens(
        self, images: Tensor, sources: Sources | None = None, paired: Tensor | None = None
    ) -> tuple[dict[str, Scores], Tensor | None]:
        """Score images as :meth:`forward` does, and return the patch tokens that describe their regions.

        Args:
            images: (N, 3, S, T) float32, normalized.
            sources: as of :meth:`forward`.
            paired: as of :meth:`forward`.

        Returns:
            method → N scores and maps; (N, H, W, D) float16 unit tokens (``Features.compared_patches``) minus their
            mean over the tile, the same for all methods, or None if no method needs patch tokens.
        """
        rows = _Rows(images, sources or Sources.of_tensors(images), paired)
        parts = self._in_parallel(rows, with_tokens=True)
        tokens = [tokens for _, tokens in parts if tokens is not None]
        return _join([scores for scores, _ in parts]), torch.cat(tokens) if tokens else None

    __call__ = forward

    def score(
        self,
        features: Features,
        images: Tensor | None = None,
        paired: Features | None = None,
        pool_index: Sequence[int] = (),
        size: tuple[int, int] | None = None,
    ) -> dict[str, Scores]:
        """Score encoded images: a function of tensors alone, which an export can trace.

        Args:
            features: of N images.
            images: (N, 3, S, T), for methods that encode variants of them, and for the size of maps.
            paired: features of each image's own reference.
            pool_index: each image's row in the pool, or -1.
            size: (S, T) of the maps, where ``images`` are not given.
        """
        return {
            m.name: m.score(features, self._context(m, features, images, paired, pool_index, size))
            for m in self.methods
        }

    def _in_parallel(
        self, rows: _Rows, *, with_tokens: bool = False
    ) -> list[tuple[dict[str, Scores], Tensor | None]]:
        """Scores, and tokens if asked for, of consecutive parts of the rows.

        A part has at most ``batch_size`` rows, so that the features of an image of many tiles are not kept together.
        """
        score = partial(self._score_rows, with_tokens=with_tokens)
        if any(method.joins_tiles for method in self.methods):
            return [score(rows)]

        def score_share(share: _Rows) -> list[tuple[dict[str, Scores], Tensor | None]]:
            starts = range(0, len(share), self.batch_size)
            return [score(share[start : start + self.batch_size]) for start in starts]

        return list(chain.from_iterable(parallel_map(score_share, rows, self.backbone.device)))

    def _score_rows(self, rows: _Rows, *, with_tokens: bool) -> tuple[dict[str, Scores], Tensor | None]:
        encoded, pool_index = self._encode_new(rows)
        paired = None if rows.paired is None else self.encode(rows.paired).features
        scores = self.score(encoded.features, encoded.images, paired, pool_index)
        patches = encoded.features.compared_patches if with_tokens else None
        if patches is None:
            return scores, None
        unit = F.normalize(patches, dim=-1)
        return scores, (unit - unit.mean((1, 2), keepdim=True)).half()

    def _encode_new(self, rows: _Rows) -> tuple[Encoded, list[int]]:
        """The rows' encoding, taken from the pool where it is there, and each row's place in the pool or -1."""
        places = self._pool_rows
        index = [places.get(key, -1) for key in rows.sources.keys]
        fresh = [i for i, place in enumerate(index) if place < 0]
        if self.pool is None or len(fresh) == len(index):
            return self.encode(rows.images, rows.sources), index
        known = [i for i, place in enumerate(index) if place >= 0]
        features = self.pool.features[[index[i] for i in known]]
        if fresh:
            features = Features.concat(
                [self.encode(rows.images[fresh], rows.sources[fresh]).features, features]
            )
            order = [*fresh, *known]
            features = features[[order.index(i) for i in range(len(order))]]
        return Encoded(features, rows.images.to(self.backbone.device)), index

    @cached_property
    def _pool_rows(self) -> dict[tuple[str, int], int]:
        if self.pool is None or self.pool.features.sources is None:
            return {}
        return {key: row for row, key in enumerate(self.pool.features.sources.keys)}

    def _context(
        self,
        method: Method,
        features: Features,
        images: Tensor | None,
        paired: Features | None,
        pool_index: Sequence[int],
        size: tuple[int, int] | None = None,
    ) -> MethodContext:
        if images is not None:
            size = (int(images.shape[-2]), int(images.shape[-1]))
        assert size is not None
        if method.needs_text and method.name not in self.anchors:
            raise UsageError("the model does not know what is on the images; call set_object('metal nut')")
        if method.scope == "set" and self.pool is None:
            raise UsageError(f"{method.name} compares images of a set with each other; call fit_set first")
        seeds = [] if features.sources is None else features.sources.seeds
        return MethodContext(
            self.anchors.get(method.name),
            size,
            seeds,
            self.backbone,
            images,
            self.references,
            paired,
            pool_index,
            self.states.get(method.name),
            self.reference_states.get(method.name),
        )

    def _anchors(self, method: Method, name: str) -> TextAnchors:
        source = method.anchor_source
        key = (method.prompts if source is None else source.digest, name, method.prompt_domain)
        anchors = self._cache.pop(key, None)
        if anchors is None and source is not None:
            anchors = source.anchors(self.backbone, name)
        elif anchors is None:
            anchors = encode_anchors(self.backbone, *self.prompts.sentences(*key))
        self._cache[key] = anchors  # the latest comes last
        if len(self._cache) > CACHED_OBJECTS:
            del self._cache[next(iter(self._cache))]
        return anchors


def _join(parts: Sequence[Mapping[str, Scores]]) -> dict[str, Scores]:
    """Concatenate the scores of each method."""
    return {name: Scores.concat([part[name] for part in parts]) for name in parts[0]}
