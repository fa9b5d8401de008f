"""Method interface: a frozen dataclass of settings that turns Features and TextAnchors into Scores."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, TypeVar

import torch
from torch import Tensor

from clipspect.backbones.features import FeatureRequest, Features
from clipspect.errors import UsageError
from clipspect.prompts.anchors import TextAnchors
from clipspect.prompts.learned import AnchorSource

if TYPE_CHECKING:
    from clipspect.backbones.base import Backbone

Value = TypeVar("Value")


def setting(default: Value, help: str) -> Value:
    """Declare a setting of a method: a dataclass field with its help text (``clipspect methods NAME``)."""
    declared: Value = field(default=default, metadata={"help": help})
    return declared


@dataclass(frozen=True)
class Scores:
    """Scores of B images, passed from methods to the detector."""

    image: Tensor
    """(B,) image anomaly scores in [0, 1]."""
    map: Tensor
    """(B, S, T) anomaly maps in [0, 1] at the input size."""
    notes: Sequence[tuple[str, ...]] = ()
    """Per image, a note for the user (an adaptation that diverged); empty = no notes."""
    text: Tensor | None = None
    """(B, H, W) language map on the patch grid in [0, 1], not smoothed; None if the method has none."""
    layers: Tensor | None = None
    """(B, K, H, W) log-odds maps on the patch grid for the verdict (docs/calibration.md).

    These are the joint map with the visual half unsmoothed and smoothed, or one map; None = the log-odds of
    :attr:`map`.
    """
    class_logit: Tensor | None = None
    """(B,) log-odds of the class token's text score; None if the method has none."""

    def __getitem__(self, index: slice) -> Scores:
        """Return the scores of some of the images."""
        tensors = (self.text, self.layers, self.class_logit)
        optional = (None if t is None else t[index] for t in tensors)
        return Scores(self.image[index], self.map[index], self.notes[index], *optional)

    @staticmethod
    def concat(parts: Sequence[Scores]) -> Scores:
        """Concatenate Scores in order."""
        notes: list[tuple[str, ...]] = []
        for part in parts:
            notes.extend(part.notes or [()] * len(part.image))

        def join(maps: list[Tensor | None]) -> Tensor | None:
            there = [one for one in maps if one is not None]
            if len(there) < len(maps):
                return None
            return there[0] if len(there) == 1 else torch.cat(there)

        return Scores(
            torch.cat([p.image for p in parts]),
            torch.cat([p.map for p in parts]),
            notes,
            join([p.text for p in parts]),
            join([p.layers for p in parts]),
            join([p.class_logit for p in parts]),
        )


@dataclass(frozen=True)
class MethodContext:
    """Inputs of a method besides the features, for N images of one object."""

    text_anchors: TextAnchors | None
    """None for methods that need no text."""
    size: tuple[int, int]
    """(S, T) of the input, and of the maps."""
    seeds: Sequence[int]
    """N seeds from the images' content: random draws depend on the image, never on batch or order."""
    backbone: Backbone | None = None
    """Encoder for methods that generate images (Dual-Image+)."""
    images: Tensor | None = None
    """(N, 3, S, T) normalized images."""
    references: Features | None = None
    """Features of explicit references, used for every image; None if the set itself is the reference."""
    paired_references: Features | None = None
    """Features of N explicit references, one for each image, in order."""
    pool_index: Sequence[int] = ()
    """Per image its row in the pool given to :meth:`Method.prepare`, -1 if it is not in the pool."""
    state: Any = None
    """Return value of :meth:`Method.prepare` for the run."""
    reference_state: Any = None
    """What :meth:`Method.prepare_references` returned for :attr:`references`."""

    @property
    def anchors(self) -> TextAnchors:
        """Return the text embeddings of a method that needs text."""
        assert self.text_anchors is not None
        return self.text_anchors

    def part(self, rows: Sequence[int]) -> MethodContext:
        """Return the context of some of the N images."""
        return replace(
            self,
            seeds=[self.seeds[row] for row in rows] if self.seeds else [],
            images=None if self.images is None else self.images[list(rows)],
            paired_references=None if self.paired_references is None else self.paired_references[list(rows)],
            pool_index=[self.pool_index[row] for row in rows] if self.pool_index else [],
        )


@dataclass(frozen=True)
class Method(ABC):
    """Published method or baseline. Its dataclass fields are its settings, documented and typed."""

    name: ClassVar[str]
    """Name of the method in the user interface."""
    scope: ClassVar[Literal["image", "set"]] = "image"
    """"image": each image is scored independently. "set": other images are references or set the scale."""
    accepts_references: ClassVar[bool] = False
    """Whether it uses explicit references."""
    needs_references: ClassVar[bool] = False
    """Whether it requires explicit references."""
    needs_text: ClassVar[bool] = True
    """Whether it uses text embeddings; False for methods that run on a backbone without a text encoder."""

    needs_file: ClassVar[bool] = False
    """Whether one of its settings names a file that it cannot run without."""
    fixed: ClassVar[frozenset[str]] = frozenset()
    """Inherited settings that mean nothing to it: neither listed nor accepted."""

    @property
    def joins_tiles(self) -> bool:
        """Return whether :meth:`score` needs all tiles of an image at once."""
        return False

    @property
    def uses_seed(self) -> bool:
        """Return whether results depend on the seed of a run."""
        return False

    def with_seed(self, seed: int) -> Self:
        """Return the method for a run with this seed."""
        return self

    @property
    def prompts(self) -> str:
        """Return the name of its prompt set (prompts.toml)."""
        return "anoclip"

    @property
    def prompt_domain(self) -> str:
        """Return the domain of its prompts, empty for that of the run."""
        return ""

    @property
    def anchor_source(self) -> AnchorSource | None:
        """Return where its text anchors come from; None = the sentences of :attr:`prompts`.

        Raises:
            UsageError, WeightsError: a file that is needed and not given, or not readable.
        """
        return None

    @abstractmethod
    def request(self) -> FeatureRequest:
        """Return the features it needs from the single encoding of each image."""

    def prepare(self, pool: Features, context: MethodContext) -> Any:
        """Fit to the set once before its images are scored; only called if :attr:`scope` is "set".

        Args:
            pool: features of a bounded sample of the set's images (all of a small set). They are the references if
                there are no explicit ones, and the set whose statistics align maps.
            context: context of the pool's images, in order; ``pool_index`` is 0…M-1.

        Returns:
            A value that :meth:`score` receives as ``context.state``.
        """
        return None

    def prepare_references(self, references: Features) -> Any:
        """Look once at explicit references before images are scored with them.

        Args:
            references: features of R reference images.

        Returns:
            Whatever :meth:`score` wants to find in ``context.reference_state``.
        """
        return None

    @abstractmethod
    def score(self, features: Features, context: MethodContext) -> Scores:
        """Score N images of one object.

        Args:
            features: features of the N images, a batch of any size.
            context: text embeddings, sizes, seeds, references, the state of the set.
        """

    def settings(self) -> dict[str, Any]:
        """Return its settings as JSON-serializable values."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in self.fixed}


def check_choice(what: str, value: object, choices: Sequence[object]) -> None:
    """Raise UsageError if a setting is none of its choices."""
    if value not in choices:
        raise UsageError(f"{what}={value!r}; there are: {', '.join(map(repr, choices))}")


def check_range(what: str, value: float, low: float, high: float) -> None:
    """Raise UsageError if a number is outside [low, high]."""
    if not low <= value <= high:
        raise UsageError(f"{what}={value}; allowed are {low:g} to {high:g}")
