"""A product: a detector that a profile describes, with its object, references, calibration and threshold."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipspect.backbones.base import Backbone
from clipspect.config import DetectorConfig
from clipspect.data.loader import source_name
from clipspect.data.prepare import Source
from clipspect.data.roi import load_roi
from clipspect.detector import Detector
from clipspect.errors import ProfileError, WeightsError
from clipspect.loading import build_detector
from clipspect.postprocess.calibration import DEFAULT_FALSE_ALARM_RATE
from clipspect.profile import (
    BackboneIdentity,
    Profile,
    make_provenance,
    read_profile,
    stored_options,
)
from clipspect.reference_file import load_references, save_references
from clipspect.references import GoodImages, as_pool, make_manifest
from clipspect.types import Step


@dataclass(frozen=True)
class Product:
    """A loaded profile."""

    profile: Profile
    detector: Detector
    good: GoodImages
    """References and calibrations, with the profile's label and threshold."""

    def detect(self, source: Source | Iterable[Source]) -> Any:
        """Detect anomalies on an image or many, as :meth:`clipspect.Detector.detect`, judged by the profile."""
        return self.detector.detect(source, self.profile.object, good=self.good)


def load_product(
    source: str | Path | Profile, config: DetectorConfig | None = None, backbone: Backbone | None = None
) -> Product:
    """Load what a profile describes.

    Args:
        source: path of the profile, or the profile.
        config: device, batch size, pixel limit, and where the weights lie; everything else is the profile's.
        backbone: one that is loaded already, so that several products share it.

    Raises:
        ProfileError: the profile cannot be read, or was made with other weights.
        UsageError: ``config`` sets what the profile sets.
        WeightsError: the weights are not here.
    """
    profile = source if isinstance(source, Profile) else read_profile(Path(source))
    try:
        detector = build_detector(profile.config(config), backbone)
    except WeightsError as error:
        raise WeightsError(
            f"{error}; the profile {profile.name} was made with {profile.backbone.model} ({profile.backbone.weights}):"
            " tell where the same weights lie with --model and --weights"
        ) from error
    made, here = profile.backbone, identity_of(detector)
    for what, there, now in (
        ("weights, or in another precision", made.fingerprint, here.fingerprint),
        ("input size", made.image_size, here.image_size),
    ):
        if there != now:
            raise ProfileError(
                f"{profile.name} was made with another {what}: {made.model} ({made.weights}, {made.precision},"
                f" {made.image_size} pixels) and not {here.model} ({here.weights}, {here.precision}, {here.image_size}"
                " pixels); use those, or create the profile again"
            )
    for name, one in profile.calibrations.items():
        if one.fingerprint != detector.fingerprint(name):
            raise ProfileError(
                f"{profile.name}: its thresholds belong to other settings of {name} or another preparation of images"
                " than it holds; create it again"
            )
    return Product(profile, detector, GoodImages(profile.used_calibrations, _pool(profile, detector)))


def create_profile(
    detector: Detector,
    good: str | Path | Iterable[Source],
    object: str,
    name: str,
    *,
    false_alarm_rate: float = DEFAULT_FALSE_ALARM_RATE,
    threshold: float | None = None,
    provenance: Mapping[str, Any] | None = None,
    on_step: Step | None = None,
) -> tuple[Profile, GoodImages]:
    """Make a profile of a product from known-good images.

    Args:
        detector: whose methods, model and options the profile holds.
        good: a folder or an iterable of images without defects; 10 or more are advised, 3 are needed for a threshold.
        object: what is on them.
        name: of the profile.
        false_alarm_rate: share of good images that may be flagged, in (0, 1).
        threshold: a score to flag from instead of 0.5.
        provenance: further entries that say where it comes from.
        on_step: called while the images are encoded and scored.

    Returns:
        The profile, and the good images, some of which may have failed.

    Raises:
        UsageError: no good image that can be read, or an option that a profile cannot hold.
    """
    config = detector.config
    given = config.prompts
    calibrated = detector.calibrate(good, object, false_alarm_rate=false_alarm_rate, on_step=on_step)
    known = {
        "false_alarm_rate": false_alarm_rate,
        "good": str(good) if isinstance(good, str | Path) else _names(good),
        "left_out": [one for one, _ in calibrated.failed],
        **(provenance or {}),
    }
    profile = Profile(
        name=name,
        object=object,
        methods={one.name: _stored(one.settings()) for one in detector.methods},
        options=stored_options(config),
        backbone=identity_of(detector),
        calibrations=dict(calibrated.calibrations),
        threshold=threshold,
        roi=load_roi(config.roi, config.ignore_border),
        prompts=given.read_bytes() if isinstance(given, Path) else given,
        references=_encoded(detector, calibrated, object),
        provenance=make_provenance(**known),
    )
    return profile, calibrated


def identity_of(detector: Detector) -> BackboneIdentity:
    """What a profile keeps of a detector's backbone."""
    one = detector.backbone
    return BackboneIdentity(one.name, one.weights, one.fingerprint, one.precision, one.image_size)


def _stored(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if value is not None}


def _names(images: Iterable[Source]) -> list[str]:
    return [source_name(one, number) for number, one in enumerate(images)]


def _encoded(detector: Detector, calibrated: GoodImages, object: str) -> bytes | None:
    """The encoded good images as a reference file's contents; None where no method compares images."""
    if calibrated.pool is None:
        return None
    features = calibrated.pool.features
    hashes = () if features.sources is None else features.sources.hashes
    manifest = make_manifest(detector, object, {digest: digest for digest in hashes}, features)
    with tempfile.TemporaryDirectory(prefix="clipspect-") as folder:
        path = Path(folder) / "references.refs"
        save_references(path, features, manifest, detector.model.request)
        return path.read_bytes()


def _pool(profile: Profile, detector: Detector) -> Any:
    if profile.references is None:
        return None
    with tempfile.TemporaryDirectory(prefix="clipspect-") as folder:
        path = Path(folder) / f"{profile.name}.refs"
        path.write_bytes(profile.references)
        return as_pool(load_references(path, detector.backbone.device).features, detector)
