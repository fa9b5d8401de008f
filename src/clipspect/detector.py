"""Detector: images and an object's name in, Detections out. The only facade; every surface goes through it."""

from __future__ import annotations

import hashlib
import warnings as python_warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import chain
from operator import or_
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from clipspect import __version__
from clipspect.backbones.cpu.batch_parallel import parallel_map
from clipspect.backbones.encoder import Encoded, Encoder, Pool, sample_pool
from clipspect.backbones.features import Features
from clipspect.backbones.openclip.backbone import Backbone
from clipspect.data.find import check_source, find_images, scan_folder
from clipspect.data.loader import LoadedImage, Templates, batches, cache_loaded, load_images, source_name
from clipspect.data.prefetch import prefetch
from clipspect.data.prepare import ImageLoader, Source
from clipspect.detection import Detection, Thresholds
from clipspect.errors import ClipspectError, ImageError, UsageError
from clipspect.methods.base import Method, MethodContext, Scores
from clipspect.methods.visual import ONLY_ITSELF
from clipspect.postprocess.agreement import MapAgreement
from clipspect.prompts import PromptConfig, clean_object_name
from clipspect.prompts.anchors import TextAnchors, encode_anchors
from clipspect.reference_file import Manifest, load_references, save_references

REFERENCES_SUFFIX = ".refs"
ANCHORS_IN_MEMORY = 32
"""Objects whose anchors are kept at hand; a service is asked for names without end."""


@dataclass(frozen=True)
class RunContext:
    """What stays the same while the images of one run pass (:meth:`Detector.begin`)."""

    noun: str
    anchors: Mapping[str, TextAnchors]
    """method → anchors."""
    references: Features | None
    thresholds: Thresholds | None
    pool: Pool | None = None
    states: Mapping[str, Any] | None = None
    """method → what it prepared from the pool."""


class Detector:
    """One backbone with one method, or several that share each image's one encoding."""

    def __init__(
        self,
        backbone: Backbone,
        methods: Sequence[Method],
        reader: ImageLoader,
        wording: PromptConfig,
        *,
        batch_size: int = 8,
        set_size: int = 128,
        agreement: MapAgreement | None = None,
    ) -> None:
        """Put a detector together; :func:`clipspect.load` is the usual way.

        Args:
            backbone: encodes images and sentences.
            methods: one, or several to compare.
            reader: decodes, cuts and fits images; its size must be the backbone's.
            wording: prompts, domain and the user's own states.
            batch_size: pieces encoded at once.
            set_size: most pieces of a set that serve as each other's references (methods of scope "set").
            agreement: of the backbone's precision with fp32, where it is another and was measured.
        """
        if batch_size < 1 or set_size < 2:
            raise UsageError("batch_size must be at least 1 and set_size at least 2")
        if not methods or len({m.name for m in methods}) < len(methods):
            raise UsageError("name at least one method, and each only once")
        self.backbone, self.methods, self.reader, self.wording = backbone, tuple(methods), reader, wording
        self.set_size, self.agreement = set_size, agreement
        self._encoder = Encoder(backbone, reduce(or_, (m.request() for m in methods)), batch_size)
        self._ahead = max(2 * batch_size, 4)
        self._anchors: dict[tuple[str, str], TextAnchors] = {}

    def settings(self) -> dict[str, Any]:
        """Everything a result depends on beside images, object and references, as JSON-able values."""
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
            "bit_depth": self.reader.value_range.bit_depth,
            "window": None
            if self.reader.value_range.window is None
            else list(self.reader.value_range.window),
            "set_size": self.set_size if self.uses_sets else None,
            "domain": self.wording.domain,
            "prompts": self._prompt_digest(),
        }

    @property
    def uses_sets(self) -> bool:
        """Whether an image's score depends on the set it is in."""
        return any(m.scope == "set" for m in self.methods)

    def _prompt_digest(self) -> str:
        sentences = [self.wording.sentences(m.prompts, "object") for m in self.methods]
        return hashlib.sha256(repr(sentences).encode()).hexdigest()[:16]

    def anchors(self, object: str, method: Method | None = None) -> TextAnchors:
        """The text anchors of an object for a method (the first one by default); made once, cached on disk."""
        key = ((method or self.methods[0]).prompts, clean_object_name(object))
        anchors = self._anchors.pop(key, None)
        if anchors is None:
            anchors = encode_anchors(self.backbone, *self.wording.sentences(*key))
        self._anchors[key] = anchors  # the latest comes last
        if len(self._anchors) > ANCHORS_IN_MEMORY:
            del self._anchors[next(iter(self._anchors))]
        return anchors

    def detect(
        self,
        source: Source | Iterable[Source],
        object: str,
        *,
        references: Features | None = None,
        thresholds: Thresholds | None = None,
    ) -> Any:
        """Detect anomalies on one image or many.

        Args:
            source: a path, a file's bytes, PIL image, array (H, W[, 3]) of uint8, uint16 or float, or tensor
                (3, H, W): one Detection. A folder, list or tuple: a list of them. Any other iterable: a lazy iterator.
            object: what is on the images, in plain words: "metal nut".
            references: encoded references (see :meth:`encode_references`) for methods that use them.
            thresholds: see :meth:`calibrate`; without them flags and regions are a guess, and say so.

        Returns:
            One :class:`Detection` for one image and one method; a list, or an iterator, otherwise.

        Raises:
            ImageError: the one image cannot be read. Among many, its Detection carries the error.
            UsageError: an impossible name or setting, a method that needs a pair given one image.
        """
        options: dict[str, Any] = {"object": object, "references": references, "thresholds": thresholds}
        check_source(source)
        if isinstance(source, str | Path) and Path(source).is_dir():
            scan = scan_folder(Path(source))
            if left_out := scan.summary():
                python_warnings.warn(f"{source}: {left_out}", stacklevel=2)
            return list(self.stream(scan.images, root=Path(source), **options))
        if isinstance(source, str | Path) or not _is_many(source):
            found = list(self.stream([source], **options))
            if found[0].error is not None:
                raise ImageError(found[0].path, found[0].error)
            return found[0] if len(self.methods) == 1 else found
        many = self.stream(source, **options)
        return list(many) if isinstance(source, list | tuple) else many

    def stream(
        self,
        images: Iterable[Source],
        *,
        object: str,
        root: Path | None = None,
        references: Features | None = None,
        templates: Templates | None = None,
        only: Callable[[Path], bool] | None = None,
        company: Iterable[Source] = (),
        thresholds: Thresholds | None = None,
    ) -> Iterator[Detection]:
        """Detections in the order of the images, decoded ahead in threads, in bounded memory.

        Args:
            images: paths, images, arrays; an iterable is consumed lazily unless a method needs the set.
            object: what is on them.
            root: paths are named relative to it.
            references: encoded references for every image.
            templates: gives each image's own reference file.
            only: which files to score; the others merely belong to the set.
            company: further images of the set, never scored (see :meth:`calibrate`).
            thresholds: attached to every Detection.

        Yields:
            One Detection per image and method. An image that cannot be read or scored yields
            Detections that carry the error; the stream goes on.

        Raises:
            UsageError: a method that needs references or a pair has none.
        """
        sources = images
        pool: Iterable[LoadedImage] = ()
        known: dict[
            int, LoadedImage
        ] = {}  # of the pool, which is bounded: what it has read need not be read again
        if self.uses_sets:
            sources = list(images)
            members = [*sources, *company]
            chosen = self.sample_pool([source_name(s, i) for i, s in enumerate(members)])
            pool = load_images(
                members, self.reader, ahead=self._ahead, templates=templates, keep=lambda i, _: i in chosen
            )
            pool = cache_loaded(pool, known, len(sources))
        run = self.begin(
            object, references=references, templates=templates is not None, pool=pool, thresholds=thresholds
        )
        entries = load_images(
            sources,
            self.reader,
            ahead=self._ahead,
            root=root,
            templates=templates,
            keep=lambda _, s: only is None or not isinstance(s, str | Path) or only(Path(s)),
            known=known,
        )
        yield from self.score(entries, run)

    def sample_pool(self, names: Sequence[str]) -> set[int]:
        """Positions of the images of a set that :meth:`begin` is to be given: told by their names alone."""
        return sample_pool(names, self.set_size)

    def begin(
        self,
        object: str,
        *,
        references: Features | None = None,
        templates: bool = False,
        pool: Iterable[LoadedImage] = (),
        thresholds: Thresholds | None = None,
    ) -> RunContext:
        """Make ready to :meth:`score`: anchors, and what methods of scope "set" learn from the set's pool.

        Args:
            object: what is on the images.
            references: encoded references for every image.
            templates: whether the entries bring their own references.
            pool: the entries of the set that :meth:`sample_pool` names; not looked at where no method needs them.
            thresholds: attached to every Detection.

        Raises:
            UsageError: a method that needs references or a pair has none.
        """
        noun = clean_object_name(object)
        self._check_references(references is not None or templates)
        run = RunContext(noun, {m.name: self.anchors(noun, m) for m in self.methods}, references, thresholds)
        return self._prepare(run, pool) if self.uses_sets else run

    def score(self, entries: Iterable[LoadedImage], run: RunContext) -> Iterator[Detection]:
        """One Detection per entry and method, in order; entries are taken in batches, lazily.

        The next batch is encoded in a thread while the consumer looks at, draws or writes the present one.
        """
        waiting = batches(entries, self._encoder.batch_size)
        for batch, scored in prefetch(waiting, lambda b: self._score_batch(b, run), workers=1, ahead=2):
            if isinstance(scored, ClipspectError):
                raise scored
            yield from self._detections(batch, *scored, run)

    def encode_references(self, images: Iterable[Source]) -> Features:
        """Encode reference images once; every piece of every image becomes a reference.

        Raises:
            ImageError: one of them cannot be read. A reference is chosen on purpose: none is left out silently.
            UsageError: there are none.
        """
        return self._encode_named(images)[0]

    def _encode_named(self, images: Iterable[Source]) -> tuple[Features, dict[str, str]]:
        """References, and the content hash of each image by name."""
        parts: list[Features] = []
        sources: dict[str, str] = {}
        for entry in load_images(images, self.reader, ahead=self._ahead):
            if entry.error is not None:
                raise entry.error
            if entry.image is not None:
                for note in entry.image.notes:
                    python_warnings.warn(f"reference {entry.name}: {note}", stacklevel=2)
                parts.append(self._encoder.encode(entry.image.pieces).features)
                sources[entry.name] = entry.image.content_hash
        if not parts:
            raise UsageError("no reference images were given")
        return Features.concat(parts), sources

    def write_references(self, good: Path | Iterable[Source], object: str, path: Path) -> int:
        """Encode known-good images into a file for :meth:`read_references`; how many references it holds.

        ``good`` is an image, a folder, or an iterable of images.

        Raises:
            ImageError: one of them cannot be read.
            ReferenceError: the file cannot be written.
        """
        images = find_images(good) if isinstance(good, Path) else good
        features, sources = self._encode_named(images)
        manifest = Manifest(
            clean_object_name(object),
            self.backbone.name,
            self.backbone.fingerprint,
            self.backbone.image_size,
            self.reader.preparation,
            sources,
            len(features),
        )
        save_references(path, features, manifest, self._encoder.request)
        return len(features)

    def read_references(self, source: Path, object: str) -> Features:
        """References from a file of :meth:`write_references`, or from images, encoded now.

        Raises:
            ReferenceError: the file is damaged, or was made with another backbone, object or other settings.
            ImageError: an image cannot be read.
        """
        if source.suffix != REFERENCES_SUFFIX:
            return self.encode_references(find_images(source))
        return load_references(source, self.backbone.device).check(
            source,
            object=clean_object_name(object),
            model=self.backbone.name,
            fingerprint=self.backbone.fingerprint,
            image_size=self.backbone.image_size,
            preparation=self.reader.preparation,
            request=self._encoder.request,
        )

    def calibrate(
        self,
        good: str | Path | Iterable[Source],
        object: str,
        *,
        false_alarm_rate: float = 0.01,
        references: Features | None = None,
        templates: Templates | None = None,
        company: Iterable[Source] = (),
    ) -> Thresholds:
        """Thresholds from known-good images, without any label of a defect.

        A method that compares images with each other scores an image by the set it is in. Its thresholds
        mean the same in a run only if both look at one set: pass the run's images as ``company`` here, and the
        good ones as ``company`` of the run.

        Args:
            good: a folder or an iterable of images without defects.
            object: what is on them.
            false_alarm_rate: share of good images that may be flagged, in (0, 1).
            references: what the run's images are compared with.
            templates: gives each image's own reference file, as in the run.
            company: the images of the run.

        Raises:
            UsageError: several methods, or no good image that can be read.
        """
        from clipspect.postprocess.thresholds import thresholds_from_good

        if len(self.methods) > 1:
            raise UsageError("thresholds belong to one method; calibrate each by itself")
        check_source(good)
        images = find_images(Path(good)) if isinstance(good, str | Path) else good
        stream = self.stream(
            images, object=object, references=references, templates=templates, company=company
        )
        scored: list[Detection] = []
        failed: list[Detection] = []
        for detection in stream:
            (scored if detection.error is None else failed).append(detection)
        if not scored:
            first = f"; the first, {failed[0].path}: {failed[0].error}" if failed else ""
            raise UsageError(f"none of the {len(failed)} known-good images could be scored{first}")
        peaks = [float(d.compact_map.max()) for d in scored]
        found = thresholds_from_good([d.score for d in scored], peaks, false_alarm_rate)
        return replace(found, note=found.note + _left_out_note(failed)) if failed else found

    def _check_references(self, given: bool) -> None:
        for method in self.methods:
            if method.needs_references and not given:
                raise UsageError(f"{method.name} needs known-good references; pass them with --reference")
        if given and not any(m.accepts_references for m in self.methods):
            names = ", ".join(m.name for m in self.methods)
            raise UsageError(f"{names} uses no references; choose a method that does, such as dual-image")

    def _prepare(self, run: RunContext, entries: Iterable[LoadedImage]) -> RunContext:
        """Encode the pool of the set and let each method of scope "set" look at it once."""
        pool = self._encoder.encode_pool(entries, self.set_size)
        if pool is None:
            return run
        own = list(range(len(pool.seeds)))
        states = {
            m.name: m.prepare(
                pool.encoded.features, self._scene(m, run, pool.encoded, pool.seeds, pool.templates, own)
            )
            for m in self.methods
            if m.scope == "set"
        }
        return replace(run, pool=pool, states=states)

    def _scene(
        self,
        method: Method,
        run: RunContext,
        encoded: Encoded,
        seeds: Sequence[int],
        paired: Features | None,
        own: Sequence[int],
    ) -> MethodContext:
        images = encoded.images
        size = (int(images.shape[-2]), int(images.shape[-1]))
        state = (run.states or {}).get(method.name)
        anchors = run.anchors[method.name]
        return MethodContext(anchors, size, seeds, self.backbone, images, run.references, paired, own, state)

    def _score_batch(self, batch: Sequence[LoadedImage], run: RunContext) -> tuple[dict[str, Scores], float]:
        """Scores of the batch's pieces by method, and seconds per image."""
        good = [e for e in batch if e.image is not None]
        if not good:
            return {}, 0.0
        started = perf_counter()

        def score(entries: Sequence[LoadedImage]) -> dict[str, Scores]:
            return self._score_entries(entries, run)

        parts = parallel_map(score, good, self.backbone.device)
        scores = {name: Scores.concat([part[name] for part in parts]) for name in parts[0]}
        return scores, (perf_counter() - started) / len(good)

    def _score_entries(self, good: Sequence[LoadedImage], run: RunContext) -> dict[str, Scores]:
        encoded, own = self._encoder.encode_batch(good, run.pool)
        templates = [e.template.pieces for e in good if e.template is not None]
        paired = self._encoder.encode(np.concatenate(templates)).features if templates else None
        seeds = list(chain.from_iterable(e.image.seeds for e in good if e.image))
        scores: dict[str, Scores] = {}
        for method in self.methods:
            scene = self._scene(method, run, encoded, seeds, paired, own)
            scores[method.name] = method.score(encoded.features, scene)
        return scores

    def _detections(
        self, batch: Sequence[LoadedImage], scores: Mapping[str, Scores], seconds: float, run: RunContext
    ) -> Iterator[Detection]:
        start = 0
        for entry in batch:
            stop = start + (len(entry.image.pieces) if entry.image else 0)
            for method in self.methods:
                own_scores = scores[method.name][start:stop] if stop > start else None
                yield self._detection(entry, method, own_scores, run, seconds)
            start = stop

    def _detection(
        self, entry: LoadedImage, method: Method, scores: Scores | None, run: RunContext, seconds: float
    ) -> Detection:
        image = entry.image
        warnings: tuple[str, ...] = ("random weights: a control, not a result",) * self.backbone.is_random
        warnings += image.notes if image else ()
        if method.accepts_references and image and entry.template:
            warnings += tuple(f"Its reference: {note}" for note in entry.template.notes)
            warnings += (ONLY_ITSELF,) if image.content_hash == entry.template.content_hash else ()
        common: dict[str, Any] = {
            "path": entry.name,
            "content_hash": image.content_hash if image else entry.content_hash,
            "width": image.width if image else 0,
            "height": image.height if image else 0,
            "object": run.noun,
            "method": method.name,
            "model": self.backbone.name,
            "weights": self.backbone.weights,
            "thresholds": run.thresholds,
        }
        if image is None or scores is None:
            reason = entry.error.reason if isinstance(entry.error, ImageError) else str(entry.error)
        else:
            maps, image_scores = scores.map.float().cpu().numpy(), scores.image.float().cpu().numpy()
            if np.isfinite(maps).all() and np.isfinite(image_scores).all():
                return Detection(
                    score=self.reader.aggregate_scores(image_scores),
                    score_map=self.reader.stitch_tiles(image, maps),
                    seconds=seconds,
                    warnings=(*warnings, *dict.fromkeys(chain.from_iterable(scores.notes))),
                    thumbnail=image.thumbnail,
                    pixels=image.pixels,
                    **common,
                )
            reason = f"{method.name} gave scores that are not numbers; the weights may be damaged"
        return Detection(
            score=float("nan"),
            score_map=None,
            seconds=perf_counter() - entry.started,
            error=reason,
            warnings=warnings,
            **common,
        )


def _left_out_note(failed: Sequence[Detection]) -> str:
    """A sentence on good images that could not be scored."""
    names = ", ".join(d.path for d in failed[:3]) + (" …" if len(failed) > 3 else "")
    what = "1 further good image" if len(failed) == 1 else f"{len(failed)} further good images"
    return f" Not counted: {what} that could not be scored ({names})."


def _is_many(source: object) -> bool:
    """Whether something is a collection of pictures; arrays, bytes, tensors and PIL images are one picture each."""
    one = isinstance(source, np.ndarray | bytes) or hasattr(source, "detach") or hasattr(source, "getexif")
    return isinstance(source, Iterable) and not one
