"""Scoring of loaded images: what stays the same during a run, and one Detection per image and method."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from types import MappingProxyType
from typing import TYPE_CHECKING

from torch import Tensor

from clipspect.backbones.features import Features
from clipspect.data.loader import LoadedImage, batches
from clipspect.data.prefetch import prefetch
from clipspect.data.prepare import ImageLoader
from clipspect.detection import Detection
from clipspect.errors import ClipspectError, UsageError
from clipspect.methods.base import Scores
from clipspect.model import AnomalyModel
from clipspect.postprocess.calibration import Calibration, Summary, calibrate_unlabeled
from clipspect.results.detections import Detections
from clipspect.tensors import encode_pool, make_detections, to_tensors
from clipspect.types import Step

if TYPE_CHECKING:
    from clipspect.detector import Detector
    from clipspect.references import GoodImages


@dataclass(frozen=True)
class RunContext:
    """What stays the same while the images of one run pass (:func:`begin`)."""

    model: AnomalyModel
    """Knows the object, the references and the set."""
    calibrations: Mapping[str, Calibration]
    """method → calibration; a method without one is judged by what surrounds it."""
    paired: Features | None = None
    """Features of each pool image's own reference."""


def begin(
    detector: Detector,
    object: str,
    *,
    references: Features | None = None,
    templates: bool = False,
    pool: Iterable[LoadedImage] = (),
    good: GoodImages | None = None,
    own_references: bool = False,
    on_step: Step | None = None,
) -> RunContext:
    """Prepare to :meth:`Detector.score`: anchors, and what methods of scope "set" learn from the set's pool.

    Args:
        detector: of the run.
        object: what is on the images.
        references: encoded references for every image.
        templates: whether the loaded images bring their own references.
        pool: the images of the set that :meth:`Detector.sample_pool` names; ignored where no method needs them.
        good: known-good images; they take the place of the pool.
        own_references: whether the images of the pool are the references, as known-good images are.
        on_step: called before and after the images of the pool are compared with each other.

    Raises:
        UsageError: a method that needs references or a pair has none, or a calibration of another detector.
    """
    _check_given(detector, references, good)
    calibrations = {} if good is None else good.calibrations
    for name, one in calibrations.items():
        if one.fingerprint and one.fingerprint != detector.fingerprint(name):
            raise UsageError(
                f"the calibration of {name} was made with another model, method setting or preparation of images;"
                " calibrate again"
            )
    model = detector.model.set_object(object)
    encoded = None
    if good is not None and good.pool is not None:
        encoded, own_references = (good.pool, good.paired), True
    elif model.uses_sets or own_references:
        encoded = encode_pool(pool, model, detector.set_size)
    takes = any(m.accepts_references for m in model.methods)
    if own_references and takes and references is None and not templates and encoded is not None:
        stored = good is not None and good.pool is not None  # with its rotated copies
        references = encoded[0].features if stored else model.add_rotations(encoded[0])
    model.check_references(given=references is not None or templates)
    model = model.set_references(references)
    if encoded is None:
        return RunContext(model, calibrations)
    sources = encoded[0].features.sources
    if on_step is None or not model.uses_sets or sources is None:
        return RunContext(model.fit_set(*encoded), calibrations, encoded[1])
    stage = f"comparing the {'known-good images' if own_references else 'images of the set'}"
    count = len(set(sources.hashes))
    on_step(stage, 0, count)
    model = model.fit_set(*encoded)
    on_step(stage, count, count)
    return RunContext(model, calibrations, encoded[1])


def _check_given(detector: Detector, references: object, good: object) -> None:
    """Raise UsageError for images in place of what is made of them, and for a calibration of other methods."""
    if references is not None and not isinstance(references, Features):
        raise UsageError("references: pass what encode_references(images) returns, not the images")
    calibrations = {} if good is None else getattr(good, "calibrations", None)
    if calibrations is None:
        raise UsageError("good: pass what calibrate(images, object) returns, not the images")
    names = [method.name for method in detector.methods]
    if calibrations and set(calibrations) != set(names):
        raise UsageError(
            f"good was calibrated for {', '.join(calibrations)}, and the detector has {', '.join(names)}; calibrate"
            " with this detector"
        )


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
        scores, tokens, seconds = scored
        yield from make_detections(batch, scores, seconds, model, reader, calibrations, tokens)


def _score(
    batch: Sequence[LoadedImage], model: AnomalyModel
) -> tuple[Mapping[str, Scores], Tensor | None, float]:
    """Scores of the batch's tiles by method, their patch tokens, and seconds per image."""
    readable = [loaded for loaded in batch if loaded.image is not None]
    if not readable:
        return {}, None, 0.0
    started = perf_counter()
    scores, tokens = model.forward_with_tokens(*to_tensors(readable, model.backbone))
    return scores, tokens, (perf_counter() - started) / len(readable)


def judge_together(found: Iterable[Detection], good: GoodImages | None) -> Detections:
    """Detections that belong together; without good images, those of each method are judged by one calibration.

    One image alone keeps its own, the level that the model ships with.
    """
    detections = Detections(found)
    if good is not None:
        return detections
    summaries: dict[str, list[Summary]] = {}
    for one in detections:
        if one.error is None:
            summaries.setdefault(one.method, []).append(one.summary)
    calibrations = {
        method: calibrate_unlabeled(several) for method, several in summaries.items() if len(several) > 1
    }
    return Detections(replace(d, calibration=calibrations.get(d.method, d.calibration)) for d in detections)
