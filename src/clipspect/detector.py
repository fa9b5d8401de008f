"""Detector: images and an object's name in, Detections out. Every surface goes through it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Unpack, overload

from numpy.typing import NDArray
from PIL.Image import Image

from clipspect.backbones.base import Backbone
from clipspect.backbones.features import Features
from clipspect.config import DetectorConfig
from clipspect.data.find import check_source, scan_folder
from clipspect.data.loader import LoadedImage, Templates, cache_loaded, load_images, source_name
from clipspect.data.pool import sample_pool
from clipspect.data.prepare import ImageLoader, Source, is_many
from clipspect.detection import Detection
from clipspect.errors import ImageError, UsageError, refuse_unknown
from clipspect.identity import fingerprint, set_identity, settings
from clipspect.methods.base import Method
from clipspect.model import AnomalyModel
from clipspect.postprocess.agreement import MapAgreement
from clipspect.postprocess.calibration import Calibration
from clipspect.references import (
    Given,
    GoodImages,
    calibrate,
    encode_references,
    read_given,
    read_references,
    write_references,
)
from clipspect.results.detections import Detections
from clipspect.scoring import RunContext, begin, judge_together, score_images
from clipspect.tensors import levels_of
from clipspect.types import Step, counted


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
            config: the options it was loaded with, for workers of a cluster and manifests.
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

    @property
    def levels(self) -> Mapping[str, Calibration]:
        """Method → level of one image alone, where the model has one."""
        return levels_of(self.model)

    @overload
    def detect(
        self, source: bytes | NDArray[Any] | Image, object: str, **options: Unpack[Given]
    ) -> Detection: ...
    @overload
    def detect(
        self, source: list[Any] | tuple[Any, ...], object: str, **options: Unpack[Given]
    ) -> Detections: ...
    @overload
    def detect(self, source: Any, object: str, **options: Unpack[Given]) -> Any: ...
    def detect(
        self,
        source: Source | Iterable[Source],
        object: str,
        *,
        references: Features | None = None,
        good: GoodImages | None = None,
        **unknown: Any,
    ) -> Any:
        """Detect anomalies on one image or many.

        Args:
            source: a path, a file's bytes, PIL image, array (H, W[, 3]) of uint8, uint16 or float, or tensor
                (3, H, W): one Detection. A folder, list or tuple: Detections. Any other iterable: a lazy iterator.
            object: what is on the images, in plain words: "metal nut".
            references: encoded references (see :meth:`encode_references`) for methods that use them.
            good: known-good images (see :meth:`calibrate`). Without them, 20 images or more are compared with each
                other, fewer are ranked, and one image alone is held against the level the model ships with.
            unknown: other names are refused.

        Returns:
            One :class:`Detection` for one image and one method; :class:`Detections`, or an iterator, otherwise.

        Raises:
            ImageError: the one image cannot be read. Among many, its Detection carries the error.
            UsageError: an impossible name or setting, a method that needs a pair given one image.
        """
        refuse_unknown(unknown, ["source", "object", "references", "good"])
        options: dict[str, Any] = {"object": object, "references": references, "good": good}
        check_source(source)
        if isinstance(source, str | Path) and Path(source).is_dir():
            scan = scan_folder(Path(source))
            if left_out := scan.summary():
                warnings.warn(f"{source}: {left_out}", stacklevel=2)
            return judge_together(self.stream(scan.images, root=Path(source), **options), good)
        if isinstance(source, str | Path) or not is_many(source):
            found = list(self.stream([source], **options))
            if found[0].error is not None:
                raise ImageError(found[0].path, found[0].error)
            return found[0] if len(self.methods) == 1 else Detections(found)
        many = self.stream(source, **options)
        return judge_together(many, good) if isinstance(source, list | tuple) else many

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
            should_score: which files to score; the others only belong to the set.
            good: known-good images, which then serve as references and calibration.
            on_step: called while the images of the set are encoded and compared, before the first Detection.

        Yields:
            One Detection per image and method; those of an image that cannot be read or scored carry the error.

        Raises:
            UsageError: a method that needs references or a pair has none.
        """
        learns = self.uses_sets and good is None
        load = partial(load_images, reader=self.reader, ahead=self.ahead, templates=templates)
        pool: Iterable[LoadedImage] = ()
        cache: dict[int, LoadedImage] = {}  # of the pool, which is bounded: its images are decoded once
        if learns:
            images = known = list(images)
            sampled = self.sample_pool([source_name(s, i) for i, s in enumerate(known)])
            pool = cache_loaded(load([known[i] for i in sampled]), cache, sampled)
            pool = counted(pool, len(sampled), "encoding the images of the set", on_step)
        run = self.begin(
            object,
            references=references,
            templates=templates is not None,
            pool=pool,
            good=good,
            on_step=on_step,
        )
        loaded = load(
            images,
            root=root,
            keep=lambda _, s: should_score is None or not isinstance(s, str | Path) or should_score(Path(s)),
            cache=cache,
        )
        yield from self.score(loaded, run)

    def sample_pool(self, names: Sequence[str]) -> list[int]:
        """Positions of the images of a set that :meth:`begin` is to be given, in order, from their names alone."""
        return sample_pool(names, self.set_size)

    def score(self, loaded: Iterable[LoadedImage], run: RunContext) -> Iterator[Detection]:
        """Yield one Detection per image and method, in order; images are taken in batches, lazily."""
        yield from score_images(run.model, self.reader, loaded, run.calibrations)

    settings = settings
    set_identity = set_identity
    fingerprint = fingerprint
    begin = begin
    encode_references = encode_references
    write_references = write_references
    read_references = read_references
    read_given = read_given
    calibrate = calibrate
