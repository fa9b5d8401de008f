"""Detector: images and an object's name in, Detections out. Every surface goes through it."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from types import MappingProxyType
from typing import Any

import numpy as np

from clipspect import __version__
from clipspect.backbones.base import Backbone
from clipspect.backbones.features import Features
from clipspect.config import DetectorConfig
from clipspect.data.find import check_source, scan_folder
from clipspect.data.loader import LoadedImage, Templates, batches, cache_loaded, load_images, source_name
from clipspect.data.pool import sample_pool
from clipspect.data.prefetch import prefetch
from clipspect.data.prepare import ImageLoader, Source, hash_source
from clipspect.detection import Detection
from clipspect.errors import ClipspectError, ImageError, UsageError
from clipspect.methods.base import Method, Scores
from clipspect.model import AnomalyModel, Encoded
from clipspect.postprocess.agreement import MapAgreement
from clipspect.postprocess.calibration import Calibration, calibrate_unlabeled
from clipspect.references import (
    GoodImages,
    calibrate,
    encode_references,
    read_given,
    read_references,
    write_references,
)
from clipspect.tensors import encode_pool, make_detections, to_tensors


@dataclass(frozen=True)
class RunContext:
    """What stays the same while the images of one run pass (:meth:`Detector.begin`)."""

    model: AnomalyModel
    """Knows the object, the references and the set."""
    calibrations: Mapping[str, Calibration]
    """method → calibration; a method without one is judged by what surrounds it."""
    paired: Features | None = None
    """Features of each pool image's own reference."""


class Detector:
    """One model with one method, or several that share each image's one encoding."""

    def __init__(
        self,
        model: AnomalyModel,
        reader: ImageLoader,
        *,
        set_size: int = 128,
        agreement: MapAgreement | None = None,
        config: DetectorConfig | None = None,
    ) -> None:
        """Put a detector together; :func:`clipspect.load` is the usual way.

        Args:
            model: backbone, methods and prompts.
            reader: decodes, cuts and resizes images; its size must be the backbone's.
            set_size: maximum number of images (tiles) of a set that serve as each other's references.
            agreement: of the backbone's precision with fp32, where it was measured.
            config: the options it was loaded with; workers of a cluster load the same, and manifests keep them.
        """
        if set_size < 2:
            raise UsageError("set_size must be at least 2")
        self.model, self.reader, self.set_size, self.agreement = model, reader, set_size, agreement
        self.config = config or DetectorConfig(list(model.methods), set_size=set_size)
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
        good: GoodImages | None = None,
    ) -> Any:
        """Detect anomalies on one image or many.

        Args:
            source: a path, a file's bytes, PIL image, array (H, W[, 3]) of uint8, uint16 or float, or tensor
                (3, H, W): one Detection. A folder, list or tuple: a list of them. Any other iterable: a lazy iterator.
            object: what is on the images, in plain words: "metal nut".
            references: encoded references (see :meth:`encode_references`) for methods that use them.
            good: known-good images (see :meth:`calibrate`). Without them, 20 images or more are compared with each
                other, fewer are ranked, and one image alone is held against the level the model ships with.

        Returns:
            One :class:`Detection` for one image and one method; a list, or an iterator, otherwise.

        Raises:
            ImageError: the one image cannot be read. Among many, its Detection carries the error.
            UsageError: an impossible name or setting, a method that needs a pair given one image.
        """
        options: dict[str, Any] = {"object": object, "references": references, "good": good}
        check_source(source)
        if isinstance(source, str | Path) and Path(source).is_dir():
            scan = scan_folder(Path(source))
            if left_out := scan.summary():
                warnings.warn(f"{source}: {left_out}", stacklevel=2)
            return self._judge_together(self.stream(scan.images, root=Path(source), **options), good)
        if isinstance(source, str | Path) or not _is_many(source):
            found = list(self.stream([source], **options))
            if found[0].error is not None:
                raise ImageError(found[0].path, found[0].error)
            return found[0] if len(self.methods) == 1 else found
        many = self.stream(source, **options)
        return self._judge_together(many, good) if isinstance(source, list | tuple) else many

    def stream(
        self,
        images: Iterable[Source],
        *,
        object: str,
        root: Path | None = None,
        references: Features | None = None,
        templates: Templates | None = None,
        should_score: Callable[[Path], bool] | None = None,
        good: GoodImages | None = None,
    ) -> Iterator[Detection]:
        """Yield Detections in the order of the images, decoded ahead in threads, in bounded memory.

        Args:
            images: paths, images, arrays; an iterable is consumed lazily unless a method needs the set.
            object: what is on them.
            root: paths are named relative to it.
            references: encoded references for every image.
            templates: gives each image's own reference file.
            should_score: which files to score; the others merely belong to the set.
            good: known-good images, which then serve as references and calibration.

        Yields:
            One Detection per image and method. An image that cannot be read or scored yields Detections that carry
            the error; the stream continues.

        Raises:
            UsageError: a method that needs references or a pair has none.
        """
        sources = images
        pool: Iterable[LoadedImage] = ()
        cache: dict[int, LoadedImage] = {}  # of the pool, which is bounded: its images are decoded once
        if self.uses_sets and good is None:
            sources = list(images)
            chosen = self.sample_pool([source_name(s, i) for i, s in enumerate(sources)])
            pool = load_images(
                sources, self.reader, ahead=self.ahead, templates=templates, keep=lambda i, _: i in chosen
            )
            pool = cache_loaded(pool, cache, len(sources))
        run = self.begin(object, references=references, templates=templates is not None, pool=pool, good=good)
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
        good: GoodImages | None = None,
        own_references: bool = False,
    ) -> RunContext:
        """Prepare to :meth:`score`: anchors, and what methods of scope "set" learn from the set's pool.

        Args:
            object: what is on the images.
            references: encoded references for every image.
            templates: whether the loaded images bring their own references.
            pool: the images of the set that :meth:`sample_pool` names; ignored where no method needs them.
            good: known-good images; they take the place of the pool.
            own_references: whether the images of the pool are the references, as known-good images are.

        Raises:
            UsageError: a method that needs references or a pair has none.
        """
        calibrations = {} if good is None else dict(good.calibrations)
        for name, one in calibrations.items():
            if one.fingerprint and one.fingerprint != self.fingerprint(name):
                raise UsageError(
                    f"the calibration of {name} was made with another model, method setting or preparation of images;"
                    " calibrate again"
                )
        model = self.model.set_object(object)
        encoded: tuple[Encoded, Features | None] | None = None
        if good is not None and good.pool is not None:
            encoded, own_references = (good.pool, good.paired), True
        elif model.uses_sets or own_references:
            encoded = encode_pool(pool, model, self.set_size)
        takes = any(m.accepts_references for m in self.methods)
        if own_references and takes and references is None and not templates and encoded is not None:
            references = encoded[0].features
        model.check_references(given=references is not None or templates)
        model = model.set_references(references)
        if encoded is not None:
            model = model.fit_set(*encoded)
        return RunContext(model, calibrations, encoded[1] if encoded is not None else None)

    def score(self, loaded: Iterable[LoadedImage], run: RunContext) -> Iterator[Detection]:
        """Yield one Detection per image and method, in order; images are taken in batches, lazily.

        The next batch is encoded in a thread while the consumer looks at, draws or writes the present one.
        """
        yield from self.score_with(run.model, loaded, run.calibrations)

    def score_with(
        self,
        model: AnomalyModel,
        loaded: Iterable[LoadedImage],
        calibrations: Mapping[str, Calibration] = MappingProxyType({}),
    ) -> Iterator[Detection]:
        """:meth:`score` with a model that knows object, references and set."""
        waiting = batches(loaded, model.batch_size)
        for batch, scored in prefetch(waiting, lambda b: self._score(b, model), workers=1, ahead=2):
            if isinstance(scored, ClipspectError):
                raise scored
            yield from make_detections(batch, *scored, model, self.reader, calibrations)

    def _score(self, batch: Sequence[LoadedImage], model: AnomalyModel) -> tuple[Mapping[str, Scores], float]:
        """Scores of the batch's tiles by method, and seconds per image."""
        readable = [loaded for loaded in batch if loaded.image is not None]
        if not readable:
            return {}, 0.0
        started = perf_counter()
        scores = model(*to_tensors(readable, model.backbone))
        return scores, (perf_counter() - started) / len(readable)

    def set_identity(self, images: Sequence[Path]) -> str | None:
        """Hash of the contents of the images that serve as each other's references; None without set methods."""
        if not self.uses_sets:
            return None
        chosen = self.sample_pool([source_name(path, i) for i, path in enumerate(images)])
        hashes = sorted(hash_source(images[i]) for i in chosen)
        return hashlib.sha256("".join(hashes).encode()).hexdigest()

    def fingerprint(self, method: str) -> str:
        """Hash of model, method and preparation: what a calibration belongs to."""
        settings = self.settings()
        kept = {
            k: v for k, v in settings.items() if k not in ("clipspect", "methods", "set_size", "max_pixels")
        }
        made = {**kept, "method": method, "settings": settings["methods"][method]}
        return hashlib.sha256(json.dumps(made, sort_keys=True, default=str).encode()).hexdigest()[:16]

    def _judge_together(self, found: Iterable[Detection], good: GoodImages | None) -> list[Detection]:
        """Detections of images that belong together, each method's judged by one calibration."""
        detections = list(found)
        if good is not None:
            return detections
        calibrations = {
            m.name: calibrate_unlabeled(summaries)
            for m in self.methods
            if (summaries := [d.summary for d in detections if d.method == m.name and d.error is None])
        }
        return [replace(d, calibration=calibrations.get(d.method)) for d in detections]

    encode_references = encode_references
    write_references = write_references
    read_references = read_references
    read_given = read_given
    calibrate = calibrate


def _is_many(source: object) -> bool:
    """Whether something is a collection of images; arrays, bytes, tensors and PIL images are one image each."""
    one = isinstance(source, np.ndarray | bytes) or hasattr(source, "detach") or hasattr(source, "getexif")
    return isinstance(source, Iterable) and not one
