"""Detector: photographs and an object's name in, Detections out. The only facade; every surface goes through it."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from itertools import chain
from operator import or_
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clipspect import __version__
from clipspect.backbones.features import FeatureRequest, Features
from clipspect.backbones.open_clip import Backbone, Precision, load_backbone
from clipspect.backbones.presets import DEFAULT_MODEL
from clipspect.detection import Detection, Thresholds
from clipspect.errors import ClipspectError, ImageError, UsageError
from clipspect.images.convert import MAX_PIXELS
from clipspect.images.find import find_photographs
from clipspect.images.photograph import Photograph, Reader, Source, hash_source
from clipspect.images.prefetch import prefetch
from clipspect.images.transforms import Aspect, Fit, Interpolation, normalise
from clipspect.methods import DEFAULT_METHOD, make_method
from clipspect.methods.base import Method, Scene, Scores
from clipspect.prompts import PromptTable, clean_object_name, load_prompts
from clipspect.prompts.anchors import TextAnchors, encode_anchors

References = Features
"""Encoded references that serve every photograph."""


@dataclass(frozen=True)
class Wording:
    """What the object is compared with in words."""

    table: PromptTable
    domain: str = "auto"
    """"auto" (object or texture by the noun), or a domain of the table."""
    normal: tuple[str, ...] = ()
    """The user's own normal states, such as "{} fresh from the mould"."""
    abnormal: tuple[str, ...] = ()
    """The user's own abnormal states, such as "{} with a scratch"."""

    def sentences(self, prompt_set: str, noun: str) -> tuple[list[str], list[str]]:
        """Normal and abnormal sentences of a prompt set for a noun."""
        states = self.table.prompt_set(prompt_set).with_states(self.normal, self.abnormal)
        return states.sentences(noun, self.table.domain(self.domain, noun))


@dataclass
class _Entry:
    """A photograph on its way through a batch, or the error that stands in its place."""

    position: int
    name: str
    photograph: Photograph | None = None
    template: Photograph | None = None
    error: ClipspectError | None = None
    content_hash: str = ""
    started: float = field(default_factory=time.perf_counter)


@dataclass(frozen=True)
class _Pool:
    """The encoded sample of a set, and where each of its photographs' pieces lie in it."""

    features: Features
    images: Tensor
    seeds: list[int]
    slices: Mapping[int, slice]
    """position of a photograph in the run → its pieces in the pool."""


class Detector:
    """One backbone with one method, or several that share each photograph's one encoding."""

    def __init__(
        self,
        backbone: Backbone,
        methods: Sequence[Method],
        reader: Reader,
        wording: Wording,
        *,
        batch_size: int = 8,
        set_size: int = 128,
    ) -> None:
        """Put a detector together; :func:`load` is the usual way.

        Args:
            backbone: encodes photographs and sentences.
            methods: one, or several to compare.
            reader: decodes, cuts and fits photographs; its size must be the backbone's.
            wording: prompts, domain and the user's own states.
            batch_size: pieces encoded at once.
            set_size: most pieces of a set that serve as each other's references (methods of scope "set").
        """
        if batch_size < 1 or set_size < 2:
            raise UsageError("batch_size must be at least 1 and set_size at least 2")
        if not methods or len({m.name for m in methods}) < len(methods):
            raise UsageError("name at least one method, and each only once")
        self.backbone, self.methods, self.reader, self.wording = backbone, tuple(methods), reader, wording
        self.batch_size, self.set_size = batch_size, set_size
        self._request: FeatureRequest = reduce(or_, (m.request() for m in methods))
        self._request.resolved(backbone.depth)
        self._anchors: dict[tuple[str, str], TextAnchors] = {}

    def settings(self) -> dict[str, Any]:
        """Everything a result depends on beside photographs, object and references, as JSON-able values."""
        return {
            "clipspect": __version__,
            "methods": {m.name: m.settings() for m in self.methods},
            "model": self.backbone.name,
            "weights": self.backbone.weights,
            "fingerprint": self.backbone.fingerprint,
            "precision": self.backbone.precision,
            "image_size": self.backbone.image_size,
            "aspect": self.reader.fit.aspect,
            "interpolation": self.reader.fit.interpolation,
            "tile": self.reader.tile,
            "max_pixels": self.reader.max_pixels,
            "set_size": self.set_size if self._uses_sets else None,
            "domain": self.wording.domain,
            "prompts": self._prompt_digest(),
        }

    @property
    def fingerprint(self) -> str:
        """Tells the backbone's weights and precision apart."""
        return self.backbone.fingerprint

    @property
    def _uses_sets(self) -> bool:
        return any(m.scope == "set" for m in self.methods)

    def _prompt_digest(self) -> str:
        sentences = [self.wording.sentences(m.prompts, "object") for m in self.methods]
        return hashlib.sha256(repr(sentences).encode()).hexdigest()[:16]

    def anchors(self, object: str, method: Method | None = None) -> TextAnchors:  # noqa: A002
        """The text anchors of an object for a method (the first one by default); made once, cached on disk."""
        key = ((method or self.methods[0]).prompts, clean_object_name(object))
        if key not in self._anchors:
            self._anchors[key] = encode_anchors(self.backbone, *self.wording.sentences(*key))
        return self._anchors[key]

    def detect(
        self,
        source: Source | Iterable[Source],
        object: str,  # noqa: A002
        *,
        references: References | None = None,
        thresholds: Thresholds | None = None,
    ) -> Any:
        """Detect anomalies on one photograph or many.

        Args:
            source: a path, PIL image, array (H, W[, 3]) of uint8, uint16 or float, or tensor (3, H, W): one
                Detection. A folder, list or tuple: a list of them. Any other iterable: a lazy iterator.
            object: what is on the photographs, in plain words: "metal nut".
            references: encoded references (see :meth:`encode_references`) for methods that use them.
            thresholds: see :meth:`calibrate`; without them flags and regions are a guess, and say so.

        Returns:
            One :class:`Detection` for one photograph and one method; a list, or an iterator, otherwise.

        Raises:
            ImageError: the one photograph cannot be read. Among many, its Detection carries the error.
            UsageError: an impossible name or setting, a method that needs a pair given one photograph.
        """
        options: dict[str, Any] = {"object": object, "references": references, "thresholds": thresholds}
        if isinstance(source, str | Path) and Path(source).is_dir():
            return list(self.stream(find_photographs(Path(source)), root=Path(source), **options))
        if isinstance(source, str | Path) or not _is_many(source):
            found = list(self.stream([source], **options))
            if found[0].error is not None:
                raise ImageError(found[0].path, found[0].error)
            return found[0] if len(self.methods) == 1 else found
        many = self.stream(source, **options)
        return list(many) if isinstance(source, list | tuple) else many

    def stream(
        self,
        photographs: Iterable[Source],
        *,
        object: str,  # noqa: A002
        root: Path | None = None,
        references: References | None = None,
        templates: Callable[[Path], Path] | None = None,
        only: Callable[[Path], bool] | None = None,
        thresholds: Thresholds | None = None,
    ) -> Iterator[Detection]:
        """Detections in the order of the photographs, decoded ahead in threads, in bounded memory.

        Args:
            photographs: paths, images, arrays; an iterable is consumed lazily unless a method needs the set.
            object: what is on them.
            root: paths are named relative to it.
            references: encoded references for every photograph.
            templates: gives each photograph's own reference file.
            only: which files to score; the others merely belong to the set.
            thresholds: attached to every Detection.

        Yields:
            One Detection per photograph and method. A photograph that cannot be read or scored yields
            Detections that carry the error; the stream goes on.
        """
        noun = clean_object_name(object)
        self._check_references(references, templates)
        anchors = {m.name: self.anchors(noun, m) for m in self.methods}
        items: Iterable[Source] = photographs
        pool: _Pool | None = None
        states: dict[str, Any] = {}
        if self._uses_sets:
            items = list(photographs)
            pool = self._encode_pool(items)
            if pool is not None:
                states = self._prepare(pool, anchors, items, references, templates)
        entries = self._entries(items, root, templates, only)
        for batch in _batches(entries, self.batch_size):
            yield from self._score_batch(batch, noun, anchors, pool, states, references, thresholds)

    def encode_references(self, photographs: Iterable[Source]) -> References:
        """Encode reference photographs once; every piece of every photograph becomes a reference.

        Raises:
            ImageError: one of them cannot be read: a reference is chosen on purpose, so none is left out silently.
        """
        parts = []
        for _, loaded in prefetch(photographs, self.reader.read, workers=_workers(), ahead=2 * self.batch_size):
            if isinstance(loaded, ClipspectError):
                raise loaded
            parts.append(self._encode(loaded.pieces)[0])
        if not parts:
            raise UsageError("no reference photographs were given")
        return Features.concat(parts)

    def calibrate(
        self, good: str | Path | Iterable[Source], object: str, *, false_alarm_rate: float = 0.01  # noqa: A002
    ) -> Thresholds:
        """Thresholds from known-good photographs, without any label of a defect.

        Args:
            good: a folder or an iterable of photographs without defects.
            object: what is on them.
            false_alarm_rate: share of good photographs that may be flagged, in (0, 1).
        """
        from clipspect.results.thresholds import thresholds_from_good

        if len(self.methods) > 1:
            raise UsageError("thresholds belong to one method; calibrate each by itself")
        photographs = find_photographs(Path(good)) if isinstance(good, str | Path) else good
        scored = [d for d in self.stream(photographs, object=object) if d.error is None]
        if not scored:
            raise UsageError("none of the known-good photographs could be read")
        peaks = [float(d.compact_map.max()) for d in scored]
        return thresholds_from_good([d.score for d in scored], peaks, false_alarm_rate)

    # -- how a run goes ---------------------------------------------------------------------------------------

    def _check_references(self, references: References | None, templates: object | None) -> None:
        given = references is not None or templates is not None
        for method in self.methods:
            if method.needs_references and not given:
                raise UsageError(f"{method.name} needs known-good references; pass them with --reference")
        if given and not any(m.accepts_references for m in self.methods):
            names = ", ".join(m.name for m in self.methods)
            raise UsageError(f"{names} uses no references; choose a method that does, such as dual-image")

    def _entries(
        self,
        items: Iterable[Source],
        root: Path | None,
        templates: Callable[[Path], Path] | None,
        only: Callable[[Path], bool] | None,
    ) -> Iterator[_Entry]:
        def wanted() -> Iterator[tuple[int, Source]]:
            for position, item in enumerate(items):
                if only is None or not isinstance(item, str | Path) or only(Path(item)):
                    yield position, item

        def load(numbered: tuple[int, Source]) -> tuple[Photograph, Photograph | None]:
            position, item = numbered
            photograph = self.reader.read(item, _name(item, position, root))
            if templates is None:
                return photograph, None
            template = self.reader.read(templates(Path(item)))
            if len(template.pieces) != len(photograph.pieces):
                raise ImageError(
                    photograph.name,
                    f"its reference is {template.width}×{template.height} pixels and cut into other tiles than the"
                    f" photograph of {photograph.width}×{photograph.height}; use references of the same size",
                )
            return photograph, template

        ahead = max(2 * self.batch_size, 4)
        for (position, item), loaded in prefetch(wanted(), load, workers=_workers(), ahead=ahead):
            name = _name(item, position, root)
            if isinstance(loaded, ClipspectError):
                yield _Entry(position, name, error=loaded, content_hash=hash_source(item))
            else:
                yield _Entry(position, name, *loaded)

    def _encode(self, pieces: NDArray[np.uint8]) -> tuple[Features, Tensor]:
        """Features of (n, S, S, 3) pieces in batches, and the normalised images."""
        images = torch.from_numpy(normalise(pieces, self.backbone.mean, self.backbone.std))
        parts = [self.backbone.encode(part, self._request) for part in images.split(self.batch_size)]
        return Features.concat(parts), images.to(self.backbone.device)

    def _encode_pool(self, items: Sequence[Source]) -> _Pool | None:
        """Encode a bounded sample of the set: all of a small one, else a choice by name that repeats itself."""
        order = sorted(range(len(items)), key=lambda i: hashlib.sha256(_name(items[i], i, None).encode()).digest())
        if len(items) <= self.set_size:
            order = list(range(len(items)))
        features: list[Features] = []
        images: list[Tensor] = []
        seeds: list[int] = []
        slices: dict[int, slice] = {}
        loaded = prefetch(order, lambda i: self.reader.read(items[i]), workers=_workers(), ahead=2 * self.batch_size)
        for position, photograph in loaded:
            if isinstance(photograph, ClipspectError):
                continue  # its own row will say so
            if seeds and len(seeds) + len(photograph.pieces) > self.set_size:
                break
            encoded, normalised = self._encode(photograph.pieces)
            slices[position] = slice(len(seeds), len(seeds) + len(photograph.pieces))
            features.append(encoded)
            images.append(normalised)
            seeds += photograph.seeds
        return _Pool(Features.concat(features), torch.cat(images), seeds, slices) if features else None

    def _prepare(
        self,
        pool: _Pool,
        anchors: Mapping[str, TextAnchors],
        items: Sequence[Source],
        references: References | None,
        templates: Callable[[Path], Path] | None,
    ) -> dict[str, Any]:
        paired = None
        if templates is not None:
            paired = self.encode_references([templates(Path(items[position])) for position in pool.slices])
        return {
            m.name: m.prepare(
                pool.features,
                self._scene(
                    anchors[m.name], pool.seeds, pool.images, references, paired, list(range(len(pool.seeds))), None
                ),
            )
            for m in self.methods
            if m.scope == "set"
        }

    def _scene(
        self,
        anchors: TextAnchors,
        seeds: Sequence[int],
        images: Tensor,
        references: References | None,
        paired: Features | None,
        own: Sequence[int],
        state: Any,
    ) -> Scene:
        size = (int(images.shape[-2]), int(images.shape[-1]))
        return Scene(anchors, size, seeds, self.backbone, images, references, paired, own, state)

    def _score_batch(
        self,
        batch: list[_Entry],
        noun: str,
        anchors: Mapping[str, TextAnchors],
        pool: _Pool | None,
        states: Mapping[str, Any],
        references: References | None,
        thresholds: Thresholds | None,
    ) -> Iterator[Detection]:
        good = [e for e in batch if e.photograph is not None]
        started = time.perf_counter()
        scores: dict[str, Scores] = {}
        if good:
            features, images, own = self._batch_features(good, pool)
            paired = None
            if good[0].template is not None:
                paired = self._encode(np.concatenate([e.template.pieces for e in good if e.template]))[0]
            seeds = list(chain.from_iterable(e.photograph.seeds for e in good if e.photograph))
            for method in self.methods:
                scene = self._scene(
                    anchors[method.name], seeds, images, references, paired, own, states.get(method.name)
                )
                scores[method.name] = method.score(features, scene)
        seconds = (time.perf_counter() - started) / max(len(good), 1)
        start = 0
        for entry in batch:
            count = len(entry.photograph.pieces) if entry.photograph else 0
            for method in self.methods:
                yield self._detection(
                    entry, method, scores.get(method.name), slice(start, start + count), noun, seconds, thresholds
                )
            start += count

    def _batch_features(
        self, entries: Sequence[_Entry], pool: _Pool | None
    ) -> tuple[Features, Tensor, list[int]]:
        """Features of a batch, each piece encoded once in the run: those of the pool are taken from it."""
        features: list[Features] = []
        images: list[Tensor] = []
        own: list[int] = []
        fresh = [e.photograph for e in entries if e.photograph and not (pool and e.position in pool.slices)]
        encoded, normalised = self._encode(np.concatenate([p.pieces for p in fresh])) if fresh else (None, None)
        used = 0
        for entry in entries:
            assert entry.photograph is not None
            count = len(entry.photograph.pieces)
            if pool is not None and entry.position in pool.slices:
                at = pool.slices[entry.position]
                features.append(pool.features[at])
                images.append(pool.images[at])
                own += range(at.start, at.stop)
            else:
                assert encoded is not None
                assert normalised is not None
                features.append(encoded[used : used + count])
                images.append(normalised[used : used + count])
                own += [-1] * count
                used += count
        return Features.concat(features), torch.cat(images), own

    def _detection(
        self,
        entry: _Entry,
        method: Method,
        scores: Scores | None,
        pieces: slice,
        noun: str,
        seconds: float,
        thresholds: Thresholds | None,
    ) -> Detection:
        warnings = ("random weights: a control, not a result",) if self.backbone.is_random else ()
        common: dict[str, Any] = {
            "path": entry.name,
            "object": noun,
            "method": method.name,
            "model": self.backbone.name,
            "weights": self.backbone.weights,
            "thresholds": thresholds,
        }
        photograph, error = entry.photograph, str(entry.error.reason if isinstance(entry.error, ImageError) else entry.error)
        if photograph is not None and scores is not None:
            maps = scores.map[pieces].float().cpu().numpy()
            image_scores = scores.image[pieces].float().cpu().numpy()
            if np.isfinite(maps).all() and np.isfinite(image_scores).all():
                notes = tuple(chain.from_iterable(scores.notes[pieces])) if scores.notes else ()
                return Detection(
                    content_hash=photograph.content_hash,
                    width=photograph.width,
                    height=photograph.height,
                    score=self.reader.join_scores(image_scores),
                    score_map=self.reader.lay_back(photograph, maps),
                    seconds=seconds,
                    warnings=(*warnings, *dict.fromkeys(notes)),
                    pixels=photograph.pixels,
                    **common,
                )
            error = f"{method.name} gave scores that are not numbers; the weights may be damaged"
        return Detection(
            content_hash=photograph.content_hash if photograph else entry.content_hash,
            width=photograph.width if photograph else 0,
            height=photograph.height if photograph else 0,
            score=float("nan"),
            score_map=None,
            seconds=time.perf_counter() - entry.started,
            error=error,
            warnings=warnings,
            **common,
        )


def load(
    method: str | Method | Sequence[str | Method] = DEFAULT_METHOD,
    model: str = DEFAULT_MODEL,
    weights: str | None = None,
    *,
    settings: Mapping[str, Any] | None = None,
    image_size: int | None = None,
    device: str = "auto",
    precision: Precision = "fp32",
    aspect: Aspect = "squash",
    interpolation: Interpolation = "bicubic",
    tile: int | Literal["square"] | None = None,
    domain: str = "auto",
    prompts: Path | None = None,
    normal: Sequence[str] = (),
    abnormal: Sequence[str] = (),
    batch_size: int = 8,
    set_size: int = 128,
    max_pixels: int = MAX_PIXELS,
    seed: int = 0,
) -> Detector:
    """Load a detector.

    Args:
        method: a name of ``clipspect methods``, a method object with its settings, or several to compare.
        model: a preset of ``clipspect models``, an open_clip architecture, "hf-hub:org/name", a folder, a checkpoint.
        weights: a pretrained tag, a checkpoint file, "random" for a seeded control; None = the preset's own.
        settings: settings of the named method, field → value; a setting several methods share goes to each.
        image_size: input side in pixels, a multiple of the backbone's patch; None = the preset's own.
        device: "auto", "cpu", "cuda", …
        precision: "fp32", "bf16" or "fp16" in both towers.
        aspect: "squash" to a square as the papers do, or "pad".
        interpolation: "bicubic" or "bilinear".
        tile: side in photo pixels to cut large photographs into overlapping tiles; "square" for VisA's setting.
        domain: "auto", or a domain of the prompt table: "object", "texture", "medical", …
        prompts: a TOML file merged over the shipped prompt table.
        normal: further normal states, such as "{} fresh from the mould".
        abnormal: further abnormal states, such as "{} with a scratch".
        batch_size: images encoded at once.
        set_size: most images of a set that serve as each other's references.
        max_pixels: larger photographs are refused before they are decoded.
        seed: of random weights.

    Raises:
        UsageError: an unknown name or an impossible setting; the message lists what there is.
        WeightsError: weights that are not here; the message says which file and how to pass it.
    """
    wanted = [method] if isinstance(method, str | Method) else list(method)
    made = [_make(one, settings or {}, alone=len(wanted) == 1) for one in wanted]
    wording = Wording(load_prompts(prompts), domain, tuple(normal), tuple(abnormal))
    for one in made:
        wording.sentences(one.prompts, "object")  # a bad domain or phrase is told before weights are loaded
    backbone = load_backbone(
        model, weights, image_size=image_size, device=device, precision=precision, seed=seed
    )
    reader = Reader(Fit(backbone.image_size, aspect, interpolation), tile, max_pixels)
    return Detector(backbone, made, reader, wording, batch_size=batch_size, set_size=set_size)


def _make(method: str | Method, settings: Mapping[str, Any], *, alone: bool) -> Method:
    if isinstance(method, Method):
        return method
    if alone:
        return make_method(method, dict(settings))
    known = make_method(method).settings()
    return make_method(method, {key: value for key, value in settings.items() if key in known})


def _name(item: Source, position: int, root: Path | None) -> str:
    if not isinstance(item, str | Path):
        return f"image {position + 1}"
    path = Path(item)
    return path.relative_to(root).as_posix() if root is not None and path.is_relative_to(root) else path.name


def _is_many(source: object) -> bool:
    """Whether something is a collection of pictures; arrays, tensors and PIL images are one picture each."""
    one = isinstance(source, np.ndarray | Tensor) or (hasattr(source, "getexif") and hasattr(source, "mode"))
    return isinstance(source, Iterable) and not one


def _batches(entries: Iterable[_Entry], size: int) -> Iterator[list[_Entry]]:
    """Entries in lists of at least ``size`` pieces; an entry that carries an error counts as one."""
    batch: list[_Entry] = []
    pieces = 0
    for entry in entries:
        batch.append(entry)
        pieces += len(entry.photograph.pieces) if entry.photograph else 1
        if pieces >= size:
            yield batch
            batch, pieces = [], 0
    if batch:
        yield batch


def _workers() -> int:
    return min(4, os.cpu_count() or 1)
