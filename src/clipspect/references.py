"""What a detector does with known-good images: encode them as references, store them, calibrate thresholds on them."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from clipspect.backbones.features import Features
from clipspect.backbones.sources import Sources
from clipspect.data.find import check_source, find_images
from clipspect.data.loader import LoadedImage, Templates, load_images
from clipspect.data.prepare import Source
from clipspect.detection import Detection
from clipspect.errors import UsageError, refuse_unknown
from clipspect.methods.visual import ONLY_ITSELF
from clipspect.model import AnomalyModel, Encoded
from clipspect.postprocess.calibration import (
    DEFAULT_FALSE_ALARM_RATE,
    MIN_GOOD,
    Calibration,
    calibrate_good,
    check_rate,
)
from clipspect.reference_file import Manifest, load_references, save_references
from clipspect.registry import REFERENCES_SUFFIX
from clipspect.scoring import score_images
from clipspect.tensors import image_tensor, sources_of
from clipspect.types import Step, counted, plural

if TYPE_CHECKING:
    from clipspect.detector import Detector

COPY = "a copy of another known-good image"
ALIKE = (
    "{alike} of {count} known to be good look almost the same. If they show one part several times, the threshold is"
    " too low: give images of different parts."
)


def encode_references(detector: Detector, images: str | Path | Iterable[Source]) -> Features:
    """Encode reference images once; every tile of every image becomes a reference.

    Args:
        detector: whose settings the references are encoded with.
        images: an image, a folder, or an iterable of images.

    Raises:
        ImageError: one of them cannot be read. A reference is chosen on purpose: none is left out silently.
        UsageError: there are none.
    """
    return _encode_named(detector, _listed(images))[0]


def _listed(images: str | Path | Iterable[Source]) -> list[Source]:
    """The images of a folder, one file, or an iterable. Raises UsageError."""
    check_source(images)
    return list(find_images(Path(images)) if isinstance(images, str | Path) else images)


def _encode_named(detector: Detector, images: Iterable[Source]) -> tuple[Features, dict[str, str]]:
    """References, and the content hash of each image by name."""
    parts: list[Features] = []
    hashes: dict[str, str] = {}
    for loaded in load_images(images, detector.reader, ahead=detector.ahead):
        if loaded.error is not None:
            raise loaded.error
        if loaded.image is not None:
            for note in loaded.image.notes:
                warnings.warn(f"reference {loaded.name}: {note}", stacklevel=3)
            tensor = image_tensor([loaded.image], detector.backbone)
            parts.append(detector.model.encode_references(tensor, sources_of([loaded.image])))
            hashes[loaded.name] = loaded.image.content_hash
    if not parts:
        raise UsageError("no reference images were given")
    return Features.concat(parts), hashes


def write_references(
    detector: Detector,
    good: Path | Iterable[Source],
    object: str,
    path: Path,
    *,
    false_alarm_rate: float = DEFAULT_FALSE_ALARM_RATE,
) -> int:
    """Encode known-good images into a file for :meth:`read_references`; return how many references it holds.

    From three images on the file also holds a calibration (:meth:`read_given`).

    Args:
        detector: whose settings the references are encoded with.
        good: an image, a folder, or an iterable of images.
        object: what is on them.
        path: of the file, ending in ``.refs``.
        false_alarm_rate: share of good images that may be flagged, in (0, 1).

    Raises:
        ImageError: one of them cannot be read.
        ReferencesError: the file cannot be written.
    """
    images = _listed(good)
    features, hashes = _encode_named(detector, images)
    calibrations: dict[str, Calibration] = {}
    if len(hashes) >= MIN_GOOD:
        model = (
            detector.model.set_object(object).set_references(features).fit_set(as_pool(features, detector))
        )
        loaded = load_images(images, detector.reader, ahead=detector.ahead)
        calibrations, left_out, notes = _calibrate(detector, model, loaded, false_alarm_rate)
        for text in (*(f"{name}: left out of the threshold ({why})" for name, why in left_out), *notes):
            warnings.warn(text, stacklevel=3)
    manifest = make_manifest(detector, object, hashes, features)
    save_references(path, features, manifest, detector.model.request, calibrations)
    return len(features)


def make_manifest(detector: Detector, object: str, hashes: Mapping[str, str], features: Features) -> Manifest:
    """What a file of references says of them: name → content hash of the images, object, backbone and preparation."""
    return Manifest(
        detector.model.prompts.object_name(object),
        detector.backbone.name,
        detector.backbone.fingerprint,
        detector.backbone.image_size,
        detector.reader.preparation,
        hashes,
        len(features),
    )


def read_references(detector: Detector, source: Path, object: str) -> Features:
    """Read references from a file of :meth:`write_references`, or encode images now.

    Raises:
        ReferencesError: the file is damaged, or was made with another backbone, object or other settings.
        ImageError: an image cannot be read.
    """
    if source.suffix != REFERENCES_SUFFIX:
        return detector.encode_references(find_images(source))
    return _read_file(detector, source, object)[0]


def read_given(detector: Detector, source: Path, object: str) -> Given:
    """Read references as arguments of :meth:`Detector.stream`, with the calibration that a file may hold.

    Returns:
        ``good`` where a file of :meth:`write_references` holds a calibration of each of the detector's methods;
        ``references`` otherwise.

    Raises:
        ReferencesError, ImageError: as :meth:`read_references`.
    """
    if source.suffix != REFERENCES_SUFFIX:
        return {"references": read_references(detector, source, object)}
    features, calibrations = _read_file(detector, source, object)
    fitting = {m.name: calibrations[m.name] for m in detector.methods if m.name in calibrations}
    complete = len(fitting) == len(detector.methods)
    fits = all(one.fingerprint == detector.fingerprint(name) for name, one in fitting.items())
    if complete and not fits:
        warnings.warn(
            f"{source}: its thresholds were taken with other settings and are not used; build it again, or pass --good",
            stacklevel=2,
        )
    if complete and fits:
        return {"good": GoodImages(fitting, as_pool(features, detector))}
    return {"references": features}


def _read_file(detector: Detector, source: Path, object: str) -> tuple[Features, Mapping[str, Calibration]]:
    stored = load_references(source, detector.backbone.device)
    features = stored.check(
        source,
        object=detector.model.prompts.object_name(object),
        model=detector.backbone.name,
        fingerprint=detector.backbone.fingerprint,
        image_size=detector.backbone.image_size,
        preparation=detector.reader.preparation,
        request=detector.model.request,
    )
    return features, stored.calibrations


def as_pool(features: Features, detector: Detector) -> Encoded:
    """Features as a pool of references; the images behind them are not needed any more."""
    side = detector.backbone.image_size
    return Encoded(features, features.image.new_zeros(1).expand(len(features), 3, side, side))


@dataclass(frozen=True)
class GoodImages:
    """Known-good images of a product: references and calibration in one."""

    calibrations: Mapping[str, Calibration]
    """method → calibration, each image scored without itself as reference."""
    pool: Encoded | None
    """The encoded images and their rotated copies, for methods that compare images; None where no method does."""
    paired: Features | None = None
    """Features of each pool image's own reference, where references go by file."""
    failed: tuple[tuple[str, str], ...] = ()
    """(name, reason) of images that could not be scored or are copies of others, and are left out."""
    notes: tuple[str, ...] = ()
    """What may be wrong with the images as a whole."""

    @property
    def set_digest(self) -> str | None:
        """Hash of the images that scores depend on; None where scores depend on the image alone."""
        if self.pool is None or self.pool.features.sources is None:
            return None
        keys = sorted(self.pool.features.sources.hashes)
        return hashlib.sha256("".join(keys).encode()).hexdigest()


class Given(TypedDict, total=False):
    """What images are compared with, as arguments of :meth:`Detector.detect` and :meth:`Detector.stream`."""

    references: Features | None
    good: GoodImages | None


def calibrate(
    detector: Detector,
    good: str | Path | Iterable[Source],
    object: str,
    *,
    false_alarm_rate: float = DEFAULT_FALSE_ALARM_RATE,
    references: Features | None = None,
    templates: Templates | None = None,
    on_step: Step | None = None,
    **unknown: Any,
) -> GoodImages:
    """Make references and a calibration of known-good images, without any label of a defect.

    Methods that compare images use the good images as references, and score each of them without itself. Pass the
    result to :meth:`Detector.detect` as ``good``.

    Args:
        detector: of one or several methods.
        good: a folder or an iterable of images without defects; 10 or more are advised, 3 are needed.
        object: what is on them.
        false_alarm_rate: share of good images that may be flagged, in (0, 1).
        references: other references than the good images themselves.
        templates: gives each image its own reference, as in the run.
        on_step: called while the images are encoded and scored.
        unknown: other names are refused.

    Raises:
        UsageError: no good image that can be read, or a rate outside (0, 1).
    """
    refuse_unknown(unknown, ["good", "object", "false_alarm_rate", "references", "templates", "on_step"])
    check_rate(false_alarm_rate)
    images = _listed(good)
    loaded = list(load_images(images, detector.reader, ahead=detector.ahead, templates=templates))
    failed = tuple((one.name, str(one.error)) for one in loaded if one.error is not None)
    readable = [one for one in loaded if one.image is not None]
    if not readable:
        first = f"; the first, {failed[0][1]}" if failed else ""
        raise UsageError(f"no known-good image could be scored{first}")
    alone = len(readable) == 1 and references is None and templates is None
    if alone and any(m.scope == "set" for m in detector.methods):
        raise UsageError(
            "one known-good image cannot be compared with itself: give 3 or more for a threshold, or this one as a"
            " reference (--reference)"
        )
    run = detector.begin(
        object,
        references=references,
        templates=templates is not None,
        own_references=True,
        pool=counted(readable, len(readable), "encoding the known-good images", on_step),
        on_step=on_step,
    )
    waiting = counted(loaded, len(loaded), "scoring the known-good images", on_step)
    calibrations, left_out, notes = _calibrate(detector, run.model, waiting, false_alarm_rate)
    failed += left_out
    if len(calibrations) < len(detector.methods):
        raise UsageError(f"no known-good image could be scored; the first, {failed[0][0]}: {failed[0][1]}")
    compares = any(m.accepts_references for m in detector.methods)
    pool = run.model.pool if compares else None
    if pool is not None and references is None and detector.model.request.reference_rotations > 1:
        rotated = run.model.references
        pool = pool if rotated is None else as_pool(rotated, detector)
    return GoodImages(calibrations, pool, run.paired, failed, notes)


def _calibrate(
    detector: Detector, model: AnomalyModel, loaded: Iterable[LoadedImage], false_alarm_rate: float
) -> tuple[dict[str, Calibration], tuple[tuple[str, str], ...], tuple[str, ...]]:
    """Calibrate each method on images of the model's pool, each scored without itself.

    Returns:
        Method → calibration, of methods with an image; (name, reason) of images that are left out; and notes.

        Images are left out where their only reference is themselves or a copy, as their scores would be too low, and
        where they are copies of other images, which add no information about good images.
    """
    sources: dict[str, Sources] = {}
    found: dict[str, list[Detection]] = {}
    alone: dict[str, str] = {}  # for methods with references; others can score them
    for detection in score_images(model, detector.reader, _with_sources(loaded, sources)):
        if ONLY_ITSELF in detection.warnings:
            alone[detection.path] = ONLY_ITSELF
        elif detection.error is None:
            found.setdefault(detection.method, []).append(detection)
    names, copies = [name for name in sources if name not in alone], dict[str, str]()
    notes: tuple[str, ...] = ()
    if names:
        known = Sources.concat([sources[name] for name in names])
        distinct = known.distinct()
        copies = {name: COPY for row, name in enumerate(names) if row not in set(distinct)}
        alike = known[distinct].alike()
        notes = (ALIKE.format(alike=len(alike), count=plural(len(distinct), "image")),) if alike else ()
    calibrations = {
        name: calibrate_good(
            [d.summary for d in kept],
            false_alarm_rate,
            [d.content_hash for d in kept],
            detector.fingerprint(name),
        )
        for name, scored in found.items()
        if (kept := [d for d in scored if d.path not in copies])
    }
    return calibrations, tuple((alone | copies).items()), notes


def _with_sources(loaded: Iterable[LoadedImage], sources: dict[str, Sources]) -> Iterator[LoadedImage]:
    """Yield the images, and note the origin of each by name."""
    for one in loaded:
        if one.image is not None:
            sources[one.name] = sources_of([one.image])[:1]
        yield one
