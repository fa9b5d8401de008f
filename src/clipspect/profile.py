"""Product profiles: everything that judges one product, in one file.

A profile is a ZIP file without compression:

    profile.toml            object, methods, options, backbone, calibrations, threshold, provenance
    references.safetensors  encoded known-good images, where a method compares images
    roi.png                 mask of the region of interest, where there is one
    prompts.toml            the user's prompt file, where there is one

It is named by the hash of its contents, and reading one loads no torch.
"""

from __future__ import annotations

import hashlib
import io
import tomllib
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import tomli_w

from clipspect import __version__
from clipspect.config import DetectorConfig
from clipspect.data.roi import RegionOfInterest, roi_of_polygons
from clipspect.detection import check_threshold
from clipspect.errors import ProfileError, UsageError
from clipspect.postprocess.calibration import Calibration
from clipspect.prompts import clean_object_name
from clipspect.registry import method_class

SUFFIX = ".clipspect"
FORMAT = 1
SCORES = 1
"""Raised whenever an image's scores change, so that thresholds of earlier profiles do not fit any more."""
TABLE, REFERENCES, MASK, PROMPTS = "profile.toml", "references.safetensors", "roi.png", "prompts.toml"
MEMBERS = (TABLE, REFERENCES, MASK, PROMPTS)
_EPOCH = (1980, 1, 1, 0, 0, 0)
NOT_STORED = ("method", "settings", "preset", "device", "batch_size", "prompts", "roi", "ignore_border")
"""Fields of the configuration that a profile keeps elsewhere, or that do not change a score."""
CHOSEN_BY_USER = ("device", "batch_size", "max_pixels", "weights", "model")
"""Options that may be given beside a profile: where to compute, and where the same weights lie."""


@dataclass(frozen=True)
class BackboneIdentity:
    """The backbone that a profile was made with."""

    model: str
    weights: str
    fingerprint: str
    """Hash of the weights and precision."""
    precision: str
    image_size: int


@dataclass(frozen=True)
class Profile:
    """What judges one product."""

    name: str
    """For people: the file's name without suffix."""
    object: str
    methods: Mapping[str, Mapping[str, Any]]
    """method → all of its settings."""
    options: Mapping[str, Any]
    """Fields of :class:`DetectorConfig` that differ from their defaults."""
    backbone: BackboneIdentity
    calibrations: Mapping[str, Calibration]
    """method → calibration on the known-good images."""
    threshold: float | None = None
    """A score chosen by the user instead of 0.5."""
    roi: RegionOfInterest | None = None
    prompts: bytes | None = None
    """The user's prompt file."""
    references: bytes | None = None
    """Encoded known-good images (:mod:`clipspect.reference_file`)."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """When, with which clipspect and of which images it was made, and the version it replaced."""

    def __post_init__(self) -> None:
        """Raise UsageError for an object's name, threshold or region that cannot be used."""
        clean_object_name(self.object)
        if self.threshold is not None:
            check_threshold(self.threshold)
        if self.roi is not None and self.roi.folder is not None:
            raise UsageError("a profile holds one mask for all images; give --roi a mask or polygons")

    @cached_property
    def version(self) -> str:
        """Hash (16 hex digits) of the contents; another threshold or reference is another version."""
        digest = hashlib.sha256()
        for member, data in sorted(self._members().items()):
            digest.update(f"{member}:{hashlib.sha256(data).hexdigest()};".encode())
        return digest.hexdigest()[:16]

    @property
    def label(self) -> str:
        """Name and version, as rows carry them: ``bracket@3f2a91c04d55e812``."""
        return f"{self.name}@{self.version}"

    @property
    def used_calibrations(self) -> dict[str, Calibration]:
        """Method → calibration with the profile's label and threshold."""
        changes: dict[str, Any] = {"profile": self.label}
        if self.threshold is not None:
            changes["score_threshold"] = self.threshold
        return {name: replace(one, **changes) for name, one in self.calibrations.items()}

    def config(self, given: DetectorConfig | None = None) -> DetectorConfig:
        """Return the detector's options.

        Args:
            given: options from a user; device, batch size, pixel limit and the place of the weights are taken.

        Raises:
            UsageError: ``given`` sets what the profile sets, or a method of a plug-in that is not installed.
        """
        default = DetectorConfig()
        chosen = {}
        for one in fields(DetectorConfig) if given is not None else ():
            value = getattr(given, one.name)
            if value == getattr(default, one.name):
                continue
            if one.name not in CHOSEN_BY_USER:
                raise UsageError(
                    f"{one.name.replace('_', '-')} is set by the profile {self.name}; make another profile with"
                    " clipspect profile create"
                )
            chosen[one.name] = value
        methods = [
            method_class(name)(**{key: _tuples(value) for key, value in settings.items()})
            for name, settings in self.methods.items()
        ]
        options = {key: _tuples(value) for key, value in self.options.items()}
        return DetectorConfig(methods, **{**options, "prompts": self.prompts, "roi": self.roi, **chosen})

    def with_threshold(self, threshold: float | None) -> Profile:
        """The profile with another threshold; itself for None."""
        if threshold is None or threshold == self.threshold:
            return self
        provenance = {**self.provenance, **make_provenance(replaces=self.label)}
        return replace(self, threshold=threshold, provenance=provenance)

    def to_bytes(self) -> bytes:
        """The file's contents; equal profiles give equal bytes."""
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
            for member, data in self._members().items():
                archive.writestr(zipfile.ZipInfo(member, _EPOCH), data)
        return buffer.getvalue()

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all. Raises ResultsError."""
        from clipspect.results.files import open_beside

        with open_beside(path) as file:
            file.write(self.to_bytes())

    def to_table(self) -> dict[str, Any]:
        """What profile.toml holds."""
        roi = self.roi or RegionOfInterest()
        region = {"inspect": roi.inspect, "ignore": roi.ignore, "border": roi.border}
        table = {
            "format": FORMAT,
            "scores": SCORES,
            "object": self.object,
            "threshold": self.threshold,
            "backbone": {one.name: getattr(self.backbone, one.name) for one in fields(BackboneIdentity)},
            "methods": self.methods,
            "options": self.options,
            "roi": {key: value for key, value in region.items() if value},
            "calibrations": {name: one.to_dict() for name, one in self.calibrations.items()},
            "provenance": self.provenance,
        }
        plain: dict[str, Any] = _without_none(table)
        return plain

    def _members(self) -> dict[str, bytes]:
        members = {
            TABLE: tomli_w.dumps(self.to_table()).encode(),
            REFERENCES: self.references,
            MASK: None if self.roi is None else self.roi.mask,
            PROMPTS: self.prompts,
        }
        return {name: data for name, data in members.items() if data is not None}


def read_profile(source: Path | bytes, name: str = "profile") -> Profile:
    """Read a profile. :func:`clipspect.product.load_product` loads what it describes.

    Args:
        source: of the file, or its contents.
        name: of a profile given by its contents.

    Raises:
        ProfileError: missing, damaged, no profile, or made by another version of clipspect.
    """
    shown = name
    if isinstance(source, Path):
        name, shown = source.name.removesuffix(SUFFIX), str(source)
        if not source.is_file():
            raise ProfileError(f"{source}: no such profile; make one with clipspect profile create")
        source = source.read_bytes()
    try:
        with zipfile.ZipFile(io.BytesIO(source)) as archive:
            entries = archive.infolist()
            if strange := [one.filename for one in entries if one.filename not in MEMBERS]:
                raise ProfileError(f"{shown} is not a profile of clipspect: it holds {strange[0]!r}")
            if any(one.compress_type != zipfile.ZIP_STORED for one in entries):
                raise ProfileError(f"{shown} was compressed; use the file that clipspect wrote")
            members = {one.filename: archive.read(one) for one in entries}
        table = tomllib.loads(members[TABLE].decode())
        _check_versions(table, shown)
        return _from_table(table, members, name)
    except (zipfile.BadZipFile, KeyError, ValueError, TypeError, NotImplementedError, EOFError) as error:
        raise ProfileError(
            f"{shown} is damaged or not a profile of clipspect ({error}); copy or create it again"
        ) from error
    except UsageError as error:
        raise ProfileError(f"{shown}: {error}") from error


def make_provenance(**known: Any) -> dict[str, Any]:
    """What a new profile says of its making: time, clipspect, and what is known."""
    made = datetime.now(UTC).isoformat(timespec="seconds")
    return {"created": made, "clipspect": __version__, **known}


def stored_options(config: DetectorConfig) -> dict[str, Any]:
    """Options of a configuration that a profile keeps: those that differ from the defaults."""
    default = DetectorConfig().to_dict()
    return {
        key: value
        for key, value in config.to_dict().items()
        if key not in NOT_STORED and value != default[key]
    }


def _check_versions(table: Mapping[str, Any], name: str) -> None:
    maker = table.get("provenance", {}).get("clipspect", "another version")
    if table["format"] != FORMAT:
        raise ProfileError(
            f"{name} has format {table['format']}, and this clipspect ({__version__}) reads {FORMAT}; use clipspect"
            f" {maker}, which made it, or create it again"
        )
    if table["scores"] != SCORES:
        raise ProfileError(
            f"{name} was made by clipspect {maker}, whose scores differ from those of this one ({__version__}), so that"
            " its thresholds do not fit; create it again"
        )


def _from_table(table: Mapping[str, Any], members: Mapping[str, bytes], name: str) -> Profile:
    region = dict(table.get("roi", {}))
    border = region.pop("border", "")
    polygons = roi_of_polygons(region) if region else RegionOfInterest()
    roi = RegionOfInterest(members.get(MASK), None, polygons.inspect, polygons.ignore, border)
    return Profile(
        name=name,
        object=table["object"],
        methods=table["methods"],
        options=table.get("options", {}),
        backbone=BackboneIdentity(**table["backbone"]),
        calibrations={method: Calibration.from_dict(one) for method, one in table["calibrations"].items()},
        threshold=table.get("threshold"),
        roi=None if roi.is_everything else roi,
        prompts=members.get(PROMPTS),
        references=members.get(REFERENCES),
        provenance=table.get("provenance", {}),
    )


def _without_none(value: Any) -> Any:
    """TOML has no null: entries without a value are left out."""
    if isinstance(value, Mapping):
        return {str(key): _without_none(one) for key, one in value.items() if one is not None}
    return [_without_none(one) for one in value] if isinstance(value, list | tuple) else value


def _tuples(value: Any) -> Any:
    return tuple(_tuples(one) for one in value) if isinstance(value, list) else value
