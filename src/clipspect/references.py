"""What a detector does with known-good images: encode them as references, store them, calibrate thresholds on them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from clipspect.backbones.features import Features
from clipspect.data.find import find_images
from clipspect.data.loader import Templates, load_images
from clipspect.data.prepare import Source
from clipspect.errors import UsageError
from clipspect.prompts import clean_object_name
from clipspect.reference_file import Manifest, load_references, save_references
from clipspect.tensors import image_tensor, sources_of
from clipspect.types import Thresholds

if TYPE_CHECKING:
    from clipspect.detector import Detector

REFERENCES_SUFFIX = ".refs"


def encode_references(detector: Detector, images: Iterable[Source]) -> Features:
    """Encode reference images once; every tile of every image becomes a reference.

    Raises:
        ImageError: one of them cannot be read. A reference is chosen on purpose: none is left out silently.
        UsageError: there are none.
    """
    return _encode_named(detector, images)[0]


def _encode_named(detector: Detector, images: Iterable[Source]) -> tuple[Features, dict[str, str]]:
    """References, and the content hash of each image by name."""
    parts: list[Features] = []
    hashes: dict[str, str] = {}
    for loaded in load_images(images, detector.reader, ahead=detector.ahead):
        if loaded.error is not None:
            raise loaded.error
        if loaded.image is not None:
            tensor = image_tensor([loaded.image], detector.backbone)
            parts.append(detector.model.encode(tensor, sources_of([loaded.image])).features)
            hashes[loaded.name] = loaded.image.content_hash
    if not parts:
        raise UsageError("no reference images were given")
    return Features.concat(parts), hashes


def write_references(detector: Detector, good: Path | Iterable[Source], object: str, path: Path) -> int:
    """Encode known-good images into a file for :meth:`read_references`; return how many references it holds.

    Args:
        detector: whose settings the references are encoded with.
        good: an image, a folder, or an iterable of images.
        object: what is on them.
        path: of the file, ending in ``.refs``.

    Raises:
        ImageError: one of them cannot be read.
        ReferencesError: the file cannot be written.
    """
    images = find_images(good) if isinstance(good, Path) else good
    features, hashes = _encode_named(detector, images)
    manifest = Manifest(
        clean_object_name(object),
        detector.backbone.name,
        detector.backbone.fingerprint,
        detector.backbone.image_size,
        detector.reader.preparation,
        hashes,
        len(features),
    )
    save_references(path, features, manifest, detector.model.request)
    return len(features)


def read_references(detector: Detector, source: Path, object: str) -> Features:
    """Read references from a file of :meth:`write_references`, or encode images now.

    Raises:
        ReferencesError: the file is damaged, or was made with another backbone, object or other settings.
        ImageError: an image cannot be read.
    """
    if source.suffix != REFERENCES_SUFFIX:
        return detector.encode_references(find_images(source))
    return load_references(source, detector.backbone.device).check(
        source,
        object=clean_object_name(object),
        model=detector.backbone.name,
        fingerprint=detector.backbone.fingerprint,
        image_size=detector.backbone.image_size,
        preparation=detector.reader.preparation,
        request=detector.model.request,
    )


def calibrate(
    detector: Detector,
    good: str | Path | Iterable[Source],
    object: str,
    *,
    false_alarm_rate: float = 0.01,
    references: Features | None = None,
    templates: Templates | None = None,
    context_images: Iterable[Source] = (),
) -> Thresholds:
    """Take thresholds from known-good images, without any label of a defect.

    A method that compares images with each other scores an image by the set it is in. Its thresholds mean the same
    in a run only if both look at one set: pass the run's images as ``context_images`` here, and the good ones as
    ``context_images`` of the run.

    Args:
        detector: of one method.
        good: a folder or an iterable of images without defects.
        object: what is on them.
        false_alarm_rate: share of good images that may be flagged, in (0, 1).
        references: what the run's images are compared with.
        templates: gives each image's own reference file, as in the run.
        context_images: the images of the run.

    Raises:
        UsageError: several methods, or no good image that can be read.
    """
    from clipspect.postprocess.thresholds import thresholds_from_good

    if len(detector.methods) > 1:
        raise UsageError("thresholds belong to one method; calibrate each by itself")
    images = find_images(Path(good)) if isinstance(good, str | Path) else good
    stream = detector.stream(
        images, object=object, references=references, templates=templates, context_images=context_images
    )
    scored = [d for d in stream if d.error is None]
    if not scored:
        raise UsageError("none of the known-good images could be read")
    peaks = [float(d.compact_map.max()) for d in scored]
    return thresholds_from_good([d.score for d in scored], peaks, false_alarm_rate)
