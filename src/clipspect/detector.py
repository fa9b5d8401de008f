"""Detector: images and an object's name in, Detections out. Every surface goes through it."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from clipspect import __version__
from clipspect.backbones.base import Backbone
from clipspect.backbones.features import Features
from clipspect.config import DetectorConfig
from clipspect.data.find import check_source, scan_folder
from clipspect.data.loader import LoadedImage, Templates, cache_loaded, load_images, source_name
from clipspect.data.pool import sample_pool
from clipspect.data.prepare import ImageLoader, Source, hash_source
from clipspect.detection import Detection
from clipspect.errors import ImageError, UsageError
from clipspect.methods.base import Method
from clipspect.model import AnomalyModel
from clipspect.postprocess.agreement import MapAgreement
from clipspect.references import (
    GoodImages,
    calibrate,
    encode_references,
    read_given,
    read_references,
    write_references,
)
from clipspect.results.detections import Detections
from clipspect.scoring import RunContext, judge_together, prepare, score_images
from clipspect.types import Step, counted

NOT_IDENTITY = ("clipspect", "methods", "set_size", "max_pixels", "model", "weights")
"""Settings that a calibration does not depend on; the backbone's fingerprint stands for model and weights."""


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
            **({"object_as_is": True} if self.model.prompts.object_as_is else {}),
        }

    @overload
    def detect(
        self,
        source: bytes | NDArray[Any] | Image,
        object: str,
        *,
        references: Features | None = None,
        good: GoodImages | None = None,
    ) -> Detection: ...
    @overload
    def detect(
        self,
        source: list[Any] | tuple[Any, ...],
        object: str,
        *,
        references: Features | None = None,
        good: GoodImages | None = None,
    ) -> Detections: ...
    @overload
    def detect(
        self, source: Any, object: str, *, references: Features | None = None, good: GoodImages | None = None
    ) -> Any: ...
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
                (3, H, W): one Detection. A folder, list or tuple: Detections. Any other iterable: a lazy iterator.
            object: what is on the images, in plain words: "metal nut".
            references: encoded references (see :meth:`encode_references`) for methods that use them.
            good: known-good images (see :meth:`calibrate`). Without them, 20 images or more are compared with each
                other, fewer are ranked, and one image alone is held against the level the model ships with.

        Returns:
            One :class:`Detection` for one image and one method; :class:`Detections`, or an iterator, otherwise.

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
            return _together(self.stream(scan.images, root=Path(source), **options), good)
        if isinstance(source, str | Path) or not _is_many(source):
            found = list(self.stream([source], **options))
            if found[0].error is not None:
                raise ImageError(found[0].path, found[0].error)
            return found[0] if len(self.methods) == 1 else Detections(found)
        many = self.stream(source, **options)
        return _together(many, good) if isinstance(source, list | tuple) else many

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
        on_step: Step | None = None,
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
            on_step: called while the images of the set are encoded, before the first Detection.

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
            pool = counted(pool, len(chosen), "encoding the images of the set", on_step)
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
        own = good is not None and good.pool is not None
        return prepare(
            self.model.set_object(object),
            references=references,
            templates=templates,
            pool=pool,
            fitted=(good.pool, good.paired) if good is not None and good.pool is not None else None,
            own_references=own or own_references,
            set_size=self.set_size,
            calibrations=calibrations,
        )

    def score(self, loaded: Iterable[LoadedImage], run: RunContext) -> Iterator[Detection]:
        """Yield one Detection per image and method, in order; images are taken in batches, lazily."""
        yield from score_images(run.model, self.reader, loaded, run.calibrations)

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
        kept = {k: v for k, v in settings.items() if k not in NOT_IDENTITY}
        made = {**kept, "method": method, "settings": settings["methods"][method]}
        return hashlib.sha256(json.dumps(made, sort_keys=True, default=str).encode()).hexdigest()[:16]

    encode_references = encode_references
    write_references = write_references
    read_references = read_references
    read_given = read_given
    calibrate = calibrate


def _together(found: Iterable[Detection], good: GoodImages | None) -> Detections:
    return judge_together(found) if good is None else Detections(found)


def _is_many(source: object) -> bool:
    """Whether something is a collection of images; arrays, bytes, tensors and PIL images are one image each."""
    one = isinstance(source, np.ndarray | bytes) or hasattr(source, "detach") or hasattr(source, "getexif")
    return isinstance(source, Iterable) and not one
