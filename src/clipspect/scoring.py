"""Scoring of loaded images: what stays the same during a run, and one Detection per image and method."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from types import MappingProxyType

from clipspect.backbones.features import Features
from clipspect.data.loader import LoadedImage, batches
from clipspect.data.prefetch import prefetch
from clipspect.data.prepare import ImageLoader
from clipspect.detection import Detection
from clipspect.errors import ClipspectError
from clipspect.methods.base import Scores
from clipspect.model import AnomalyModel, Encoded
from clipspect.postprocess.calibration import Calibration, Summary, calibrate_unlabeled
from clipspect.results.detections import Detections
from clipspect.tensors import encode_pool, make_detections, to_tensors


@dataclass(frozen=True)
class RunContext:
    """What stays the same while the images of one run pass (:func:`prepare`)."""

    model: AnomalyModel
    """Knows the object, the references and the set."""
    calibrations: Mapping[str, Calibration]
    """method → calibration; a method without one is judged by what surrounds it."""
    paired: Features | None = None
    """Features of each pool image's own reference."""


def prepare(
    model: AnomalyModel,
    *,
    references: Features | None,
    templates: bool,
    pool: Iterable[LoadedImage],
    fitted: tuple[Encoded, Features | None] | None,
    own_references: bool,
    set_size: int,
    calibrations: Mapping[str, Calibration],
) -> RunContext:
    """Give a model that knows the object its references and its set.

    Args:
        model: of the run.
        references: encoded references for every image.
        templates: whether the loaded images have paired references.
        pool: images of the set; read where a method needs them.
        fitted: encoded images that take the place of the pool, with the features of their paired references.
        own_references: whether the images of the pool are the references, as known-good images are.
        set_size: maximum number of tiles of the pool.
        calibrations: method → calibration.

    Raises:
        UsageError: a method that needs references or a pair has none.
    """
    encoded = fitted
    if encoded is None and (model.uses_sets or own_references):
        encoded = encode_pool(pool, model, set_size)
    takes = any(m.accepts_references for m in model.methods)
    if own_references and takes and references is None and not templates and encoded is not None:
        references = encoded[0].features
    model.check_references(given=references is not None or templates)
    model = model.set_references(references)
    if encoded is not None:
        model = model.fit_set(*encoded)
    return RunContext(model, calibrations, encoded[1] if encoded is not None else None)


def score_images(
    model: AnomalyModel,
    reader: ImageLoader,
    loaded: Iterable[LoadedImage],
    calibrations: Mapping[str, Calibration] = MappingProxyType({}),
) -> Iterator[Detection]:
    """Yield one Detection per image and method, in order; images are taken in batches, lazily.

    The next batch is encoded in a thread while the consumer looks at, draws or writes the present one.

    Args:
        model: knows object, references and set.
        reader: stitches the maps of tiles.
        loaded: images, some of which may carry an error instead.
        calibrations: method → calibration.
    """
    waiting = batches(loaded, model.batch_size)
    for batch, scored in prefetch(waiting, lambda b: _score(b, model), workers=1, ahead=2):
        if isinstance(scored, ClipspectError):
            raise scored
        yield from make_detections(batch, *scored, model, reader, calibrations)


def _score(batch: Sequence[LoadedImage], model: AnomalyModel) -> tuple[Mapping[str, Scores], float]:
    """Scores of the batch's tiles by method, and seconds per image."""
    readable = [loaded for loaded in batch if loaded.image is not None]
    if not readable:
        return {}, 0.0
    started = perf_counter()
    scores = model(*to_tensors(readable, model.backbone))
    return scores, (perf_counter() - started) / len(readable)


def judge_together(found: Iterable[Detection]) -> Detections:
    """Detections of unlabeled images that belong together, those of each method judged by one calibration."""
    detections = Detections(found)
    summaries: dict[str, list[Summary]] = {}
    for one in detections:
        if one.error is None:
            summaries.setdefault(one.method, []).append(one.summary)
    calibrations = {method: calibrate_unlabeled(several) for method, several in summaries.items()}
    return Detections(replace(d, calibration=calibrations.get(d.method)) for d in detections)
