"""Features: the data passed from backbones to methods, and the request that selects them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil
from typing import Literal

import torch
from torch import Tensor

from clipspect.backbones.sources import Sources
from clipspect.errors import UsageError

Span = tuple[float, float]
"""Part of a backbone by relative depth: (0.75, 1) is the last quarter of its blocks."""


def span_blocks(span: Span, depth: int) -> list[int]:
    """Return the blocks of a span in a backbone of ``depth`` blocks, from 1; at least the one that contains its end."""
    start, end = span
    return [b for b in range(1, depth + 1) if start * depth < b <= end * depth] or [max(ceil(end * depth), 1)]


def block_numbers(blocks: Iterable[int], spans: Iterable[Span], depth: int) -> frozenset[int]:
    """Return block numbers from 1, of numbers that may count from the end and of relative depths."""
    numbers = frozenset(b + depth + 1 if b < 0 else b for b in blocks)
    return numbers.union(*(span_blocks(span, depth) for span in spans))


PUBLISHED_BLOCKS = 12
"""The official AnoCLIP code replaces the attention of this many blocks, the last ones, whatever the depth."""

StartBlock = int | Literal["auto"]
"""How many blocks pass before the V-V stream starts; "auto" as published: all but the last 12 (docs/methods.md §1).
Negative numbers count from the end: −19 is all but the last 19."""
PositionRule = Literal["bicubic", "bilinear"]
"""Interpolation of position embeddings."""


def resolve_start(start_block: StartBlock, depth: int) -> int:
    """Number of blocks before the V-V stream in a backbone of ``depth`` blocks."""
    start = -PUBLISHED_BLOCKS if start_block == "auto" else start_block
    return max(depth + start, 0) if start < 0 else start


def parse_blocks(text: str) -> tuple[frozenset[int], frozenset[Span]]:
    """Read a comma-separated list of blocks.

    Args:
        text: block numbers from 1, negative ones from the end, and relative depths in percent: "3,6,-1" or "50%,100%".

    Returns:
        Block numbers, and one span per relative depth.

    Raises:
        UsageError: something else.
    """
    numbers, spans = set(), set()
    for part in (piece.strip() for piece in text.split(",")):
        try:
            if part.endswith("%"):
                depth = float(part[:-1]) / 100
                if not 0 < depth <= 1:
                    raise ValueError
                spans.add((depth, depth))
            else:
                if int(part) == 0:
                    raise ValueError
                numbers.add(int(part))
        except ValueError as error:
            raise UsageError(
                f"blocks={text!r}: list block numbers from 1 or relative depths, such as 3,6,9,12 or 50%,100%"
            ) from error
    return frozenset(numbers), frozenset(spans)


@dataclass(frozen=True)
class FeatureRequest:
    """Features that a method needs from one encoding. Blocks count from 1, negative ones from the end.

    Requests are joined with ``|``, so that several methods share one encoding.
    """

    value_blocks: frozenset[int] = frozenset()
    """Blocks whose V-V patch tokens are needed (docs/methods.md §1)."""
    ordinary_blocks: frozenset[int] = frozenset()
    """Blocks whose ordinary (Q-K) patch tokens are needed: baselines and ablations."""
    start_block: StartBlock = "auto"
    """How many blocks pass before the V-V stream starts; "auto" = all but the last 12, as published."""
    views: bool = False
    """Whether the image embeddings of the 22 official views are needed (docs/methods.md §3)."""
    windows: frozenset[int] = frozenset()
    """Window sizes in patches for WinCLIP's window embeddings (docs/methods.md §7)."""
    unprojected: bool = False
    """Whether ordinary patch tokens after ``ln_post``, before the projection, are needed (WinCLIP's references)."""
    value_spans: frozenset[Span] = frozenset()
    """V-V blocks by relative depth, for methods that do not depend on the backbone's depth."""
    ordinary_spans: frozenset[Span] = frozenset()
    """Ordinary (Q-K) blocks by relative depth."""
    trunk: bool = False
    """Whether features of the convolutional trunk are needed, if the backbone has one."""
    hidden_blocks: frozenset[int] = frozenset()
    """Blocks whose hidden states are wanted: ordinary patch tokens before the final norm and projection."""
    hidden_spans: frozenset[Span] = frozenset()
    """Blocks of hidden states by relative depth."""
    reference_rotations: int = 1
    """Rotated copies of each reference image, itself among them; other images are encoded as they are."""
    raw_class: bool = False
    """Whether image embeddings without the final norm are needed (AnomalyCLIP)."""
    positions: PositionRule = "bicubic"
    """Interpolation of position embeddings at sizes the backbone was not trained at."""
    visual: FeatureRequest | None = None
    """Features that images are compared by; of the second backbone where there are two, of the same one otherwise."""

    def merged(self) -> FeatureRequest:
        """Return the request of one backbone that gives the visual features too."""
        return self if self.visual is None else replace(self, visual=None) | self.visual

    def __or__(self, other: FeatureRequest) -> FeatureRequest:
        """Return the request that serves both.

        Raises:
            UsageError: the two start the V-V stream at different blocks.
        """
        starts = {r.start_block for r in (self, other) if r.value_blocks or r.value_spans}
        if len(starts) > 1:
            raise UsageError(
                f"methods that share one encoding must share start_block; these ask for {sorted(starts, key=str)}"
            )
        asks = [r for r in (self, other) if r != FeatureRequest()]
        if len({r.positions for r in asks}) > 1:
            raise UsageError("anomaly-clip interpolates positions in its own way; run it alone")
        return FeatureRequest(
            value_blocks=self.value_blocks | other.value_blocks,
            ordinary_blocks=self.ordinary_blocks | other.ordinary_blocks,
            start_block=starts.pop() if starts else "auto",
            views=self.views or other.views,
            windows=self.windows | other.windows,
            unprojected=self.unprojected or other.unprojected,
            value_spans=self.value_spans | other.value_spans,
            ordinary_spans=self.ordinary_spans | other.ordinary_spans,
            trunk=self.trunk or other.trunk,
            hidden_blocks=self.hidden_blocks | other.hidden_blocks,
            hidden_spans=self.hidden_spans | other.hidden_spans,
            reference_rotations=max(self.reference_rotations, other.reference_rotations),
            raw_class=self.raw_class or other.raw_class,
            positions=asks[0].positions if asks else "bicubic",
            visual=self.visual | other.visual
            if self.visual is not None and other.visual is not None
            else self.visual or other.visual,
        )

    def resolved(self, depth: int, visual_depth: int | None = None) -> FeatureRequest:
        """Return the request with every block number in 1…depth, and no spans.

        Args:
            depth: of the backbone.
            visual_depth: of the second backbone, whose features stay separate; None = there is one backbone.

        Raises:
            UsageError: a block the backbone does not have, or whose V-V stream has not started.
        """
        if self.visual is not None:
            if visual_depth is None:
                return self.merged().resolved(depth)
            own = replace(self, visual=None).resolved(depth)
            return replace(own, visual=self.visual.resolved(visual_depth))

        def resolve(blocks: frozenset[int], spans: frozenset[Span]) -> frozenset[int]:
            numbers = block_numbers(blocks, spans, depth)
            if any(not 1 <= b <= depth for b in numbers):
                raise UsageError(f"blocks {sorted(blocks)} asked for; this backbone has blocks 1…{depth}")
            return numbers

        start = resolve_start(self.start_block, depth)
        if not 0 <= start < depth:
            raise UsageError(f"start_block={start}; this backbone allows 0…{depth - 1}")
        values = resolve(self.value_blocks, self.value_spans)
        if values and min(values) <= start:
            raise UsageError(
                f"V-V tokens of block {min(values)} asked for, and start_block={start} lets the stream start"
                f" at block {start + 1}; choose a smaller start_block or deeper blocks"
            )
        return FeatureRequest(
            values,
            resolve(self.ordinary_blocks, self.ordinary_spans),
            start,
            self.views,
            self.windows,
            self.unprojected,
            trunk=self.trunk,
            hidden_blocks=resolve(self.hidden_blocks, self.hidden_spans),
            reference_rotations=self.reference_rotations,
            raw_class=self.raw_class,
            positions=self.positions,
        )


@dataclass(frozen=True)
class Features:
    """Backbone output for a batch of B images. Every tensor is float32, on the backbone's device."""

    image: Tensor
    """(B, D) image embeddings, unit length: the class token of the ordinary path after ``ln_post @ proj``."""
    grid: tuple[int, int]
    """(H, W) of the patch grid."""
    depth: int
    """Number of blocks of the backbone; blocks below are numbered 1…depth."""
    value_patches: Mapping[int, Tensor] = field(default_factory=dict)
    """block → (B, H, W, D) V-V patch tokens in the joint space, not normalized."""
    ordinary_patches: Mapping[int, Tensor] = field(default_factory=dict)
    """block → (B, H, W, D) ordinary patch tokens in the joint space, not normalized."""
    views: Tensor | None = None
    """(B, V, D) unit image embeddings of the official views."""
    windows: Mapping[int, Tensor] = field(default_factory=dict)
    """window size → (B, number of windows, D) window embeddings, not normalized."""
    unprojected: Tensor | None = None
    """(B, H, W, width) ordinary patch tokens after ``ln_post``, before the projection."""
    trunk: Tensor | None = None
    """(B, H, W, C) features of the convolutional trunk; None if the backbone has none."""
    hidden_patches: Mapping[int, Tensor] = field(default_factory=dict)
    """block → (B, H, W, width) ordinary patch tokens before the final norm and projection."""
    raw_class: Tensor | None = None
    """(B, D) unit image embeddings without the final norm."""
    visual: Features | None = None
    """Features of a second backbone on the same grid, by which images are compared; None if there is one backbone."""
    sources: Sources | None = None
    """Source image of each row; None if nothing is excluded from references."""

    def hidden(self, block: int) -> Tensor:
        """(B, H, W, width) hidden states of a block, negative numbers counted from the end."""
        return self.hidden_patches[block + self.depth + 1 if block < 0 else block]

    @property
    def digest(self) -> str:
        """Return a hash of the image embeddings, which identifies the images."""
        return hashlib.sha256(self.image.detach().cpu().numpy().tobytes()).hexdigest()

    def __len__(self) -> int:
        """Number of images B."""
        return len(self.image)

    def values(self, block: int) -> Tensor:
        """Return (B, H, W, D) V-V tokens of a block, negative numbers counted from the end."""
        return self.value_patches[block + self.depth + 1 if block < 0 else block]

    def ordinary(self, block: int) -> Tensor:
        """Return (B, H, W, D) ordinary tokens of a block, negative numbers counted from the end."""
        return self.ordinary_patches[block + self.depth + 1 if block < 0 else block]

    @property
    def compared(self) -> Features:
        """Return the features that images are compared by: those of the second backbone where there are two."""
        return self if self.visual is None else self.visual

    @property
    def compared_patches(self) -> Tensor | None:
        """Return (B, H, W, D) tokens that describe a place, of the backbone that images are compared by.

        They are of the deepest block that was asked for: its V-V tokens if there are any, else its ordinary ones,
        else those before the final norm; without blocks, those before the projection or the trunk's features. None if
        no patch tokens were asked for.
        """
        own = self.compared
        for kind in (own.value_patches, own.ordinary_patches, own.hidden_patches):
            if kind:
                return kind[max(kind)]
        return own.trunk if own.unprojected is None else own.unprojected

    def __getitem__(self, index: slice | Sequence[int] | Tensor) -> Features:
        """Return the features of some of the images."""
        chosen = self._map(lambda parts: parts[0][index], [self])
        return chosen if self.sources is None else replace(chosen, sources=self.sources[index])

    @staticmethod
    def concat(parts: Sequence[Features]) -> Features:
        """Concatenate Features in order. All must come from one backbone and one request."""
        if len(parts) == 1:
            return parts[0]
        sources = [p.sources for p in parts if p.sources is not None]
        joined = Sources.concat(sources) if len(sources) == len(parts) else None
        return replace(Features._map(torch.cat, parts), sources=joined)

    @staticmethod
    def _map(combine: Callable[[list[Tensor]], Tensor], parts: Sequence[Features]) -> Features:
        first = parts[0]

        def each(name: str) -> dict[int, Tensor]:
            return {key: combine([getattr(p, name)[key] for p in parts]) for key in getattr(first, name)}

        def one(name: str) -> Tensor | None:
            return None if getattr(first, name) is None else combine([getattr(p, name) for p in parts])

        return Features(
            combine([p.image for p in parts]),
            first.grid,
            first.depth,
            each("value_patches"),
            each("ordinary_patches"),
            one("views"),
            each("windows"),
            one("unprojected"),
            one("trunk"),
            each("hidden_patches"),
            one("raw_class"),
            None if first.visual is None else Features._map(combine, [p.visual for p in parts if p.visual]),
        )
