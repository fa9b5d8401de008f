"""Detector: images and an object's name in, Detections out. Every surface goes through it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from clipspect import __version__
from clipspect.backbones.base import Backbone
from clipspect.backbones.features import Features
from clipspect.data.find import find_images
from clipspect.data.loader import LoadedImage, Templates, batches, cache_loaded, load_images, source_name
from clipspect.data.pool import sample_pool
from clipspect.data.prefetch import prefetch
from clipspect.data.prepare import ImageLoader, Source
from clipspect.detection import Detection
from clipspect.errors import ClipspectError, ImageError, UsageError
from clipspect.methods.base import Method, Scores
from clipspect.model import AnomalyModel
from clipspect.postprocess.agreement import MapAgreement
from clipspect.references import calibrate, encode_references, read_references, write_references
from clipspect.tensors import encode_pool, make_detections, to_tensors
from clipspect.types import Thresholds


@dataclass(frozen=True)
class RunContext:
    """What stays the same while the images of one run pass (:meth:`Detector.begin`)."""

    model: AnomalyModel
    """Knows the object, the references and the set."""
    thresholds: Thresholds | None


class Detector:
    """One model with one method, or several that share each image's one encoding."""

    def __init__(
        self,
        model: AnomalyModel,
        reader: ImageLoader,
        *,
        set_size: int = 128,
        agreement: MapAgreement | None = None,
    ) -> None:
        """Put a detector together; :func:`clipspect.load` is the usual way.

        Args:
            model: backbone, methods and prompts.
            reader: decodes, cuts and resizes images; its size must be the backbone's.
            set_size: maximum number of images (tiles) of a set that serve as each other's references.
            agreement: of the backbone's precision with fp32, where it was measured.
        """
        if set_size < 2:
            raise UsageError("set_size must be at least 2")
        self.model, self.reader, self.set_size, self.agreement = model, reader, set_size, agreement
        self.ahead = max(2 * model.batch_size, 4)

    @property
    def backbone(self) -> Backbone:
        """The model's backbone."""
        return self.model.backbone

    @property
    def methods(self) -> Sequence[Method]:
        """The model's methods."""
        return self.model.methods

    @property
    def uses_sets(self) -> bool:
        """Whether a score depends on the set an image is in."""
        return self.model.uses_sets

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
            **self.reader.settings(),
            "set_size": self.set_size if self.uses_sets else None,
            "domain": self.model.prompts.domain,
            "prompts": self.model.prompt_digest,
        }

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
            thresholds: see :meth:`calibrate`; without them flags and regions are a guess.

        Returns:
            One :class:`Detection` for one image and one method; a list, or an iterator, otherwise.

        Raises:
            ImageError: the one image cannot be read. Among many, its Detection carries the error.
            UsageError: an impossible name or setting, a method that needs a pair given one image.
        """
        options: dict[str, Any] = {"object": object, "references": references, "thresholds": thresholds}
        if isinstance(source, str | Path) and Path(source).is_dir():
            return list(self.stream(find_images(Path(source)), root=Path(source), **options))
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
        should_score: Callable[[Path], bool] | None = None,
        context_images: Iterable[Source] = (),
        thresholds: Thresholds | None = None,
    ) -> Iterator[Detection]:
        """Yield Detections in the order of the images, decoded ahead in threads, in bounded memory.

        Args:
            images: paths, images, arrays; an iterable is consumed lazily unless a method needs the set.
            object: what is on them.
            root: paths are named relative to it.
            references: encoded references for every image.
            templates: gives each image's own reference file.
            should_score: which files to score; the others merely belong to the set.
            context_images: further images of the set, never scored (see :meth:`calibrate`).
            thresholds: attached to every Detection.

        Yields:
            One Detection per image and method. An image that cannot be read or scored yields Detections that carry
            the error; the stream continues.

        Raises:
            UsageError: a method that needs references or a pair has none.
        """
        sources = images
        pool: Iterable[LoadedImage] = ()
        cache: dict[int, LoadedImage] = {}  # of the pool, which is bounded: its images are decoded once
        if self.uses_sets:
            sources = list(images)
            members = [*sources, *context_images]
            chosen = self.sample_pool([source_name(s, i) for i, s in enumerate(members)])
            pool = load_images(
                members, self.reader, ahead=self.ahead, templates=templates, keep=lambda i, _: i in chosen
            )
            pool = cache_loaded(pool, cache, len(sources))
        run = self.begin(
            object, references=references, templates=templates is not None, pool=pool, thresholds=thresholds
        )
        loaded = load_images(
            sources,
            self.reader,
            ahead=self.ahead,
            root=root,
            templates=templates,
            keep=lambda _, s: should_score is None or not isinstance(s, str | Path) or should_score(Path(s)),
            cache=cache,
        )
        yield from self.score(loaded, run)

    def sample_pool(self, names: Sequence[str]) -> set[int]:
        """Positions of the images of a set that :meth:`begin` is to be given, from their names alone."""
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
        """Prepare to :meth:`score`: anchors, and what methods of scope "set" learn from the set's pool.

        Args:
            object: what is on the images.
            references: encoded references for every image.
            templates: whether the loaded images bring their own references.
            pool: the images of the set that :meth:`sample_pool` names; ignored where no method needs them.
            thresholds: attached to every Detection.

        Raises:
            UsageError: a method that needs references or a pair has none.
        """
        self.model.check_references(given=references is not None or templates)
        model = self.model.set_object(object).set_references(references)
        if model.uses_sets and (encoded := encode_pool(pool, model, self.set_size)) is not None:
            model = model.fit_set(*encoded)
        return RunContext(model, thresholds)

    def score(self, loaded: Iterable[LoadedImage], run: RunContext) -> Iterator[Detection]:
        """Yield one Detection per image and method, in order; images are taken in batches, lazily.

        The next batch is encoded in a thread while the consumer looks at, draws or writes the present one.
        """
        waiting = batches(loaded, self.model.batch_size)
        for batch, scored in prefetch(waiting, lambda b: self._score(b, run.model), workers=1, ahead=2):
            if isinstance(scored, ClipspectError):
                raise scored
            yield from make_detections(batch, *scored, run.model, self.reader, run.thresholds)

    def _score(self, batch: Sequence[LoadedImage], model: AnomalyModel) -> tuple[Mapping[str, Scores], float]:
        """Scores of the batch's tiles by method, and seconds per image."""
        readable = [loaded for loaded in batch if loaded.image is not None]
        if not readable:
            return {}, 0.0
        started = perf_counter()
        scores = model(*to_tensors(readable, model.backbone))
        return scores, (perf_counter() - started) / len(readable)

    encode_references = encode_references
    write_references = write_references
    read_references = read_references
    calibrate = calibrate


def _is_many(source: object) -> bool:
    """Whether something is a collection of images; arrays, bytes, tensors and PIL images are one image each."""
    one = isinstance(source, np.ndarray | bytes) or hasattr(source, "detach") or hasattr(source, "getexif")
    return isinstance(source, Iterable) and not one
