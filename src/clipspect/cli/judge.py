"""What `clipspect detect` judges images with: options, a product profile, or an exported file."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipspect.cli.output import console
from clipspect.cli.run import calibrate, load_detector, load_exported
from clipspect.config import DetectorConfig
from clipspect.data.find import scan_folder
from clipspect.data.objects import ObjectTable, read_objects
from clipspect.errors import UsageError

if TYPE_CHECKING:
    from clipspect.detector import Detector
    from clipspect.export.onnx_detector import OnnxDetector
    from clipspect.postprocess.calibration import Calibration
    from clipspect.references import GoodImages


@dataclass(frozen=True)
class Given:
    """What a user gives beside the images."""

    source: Path
    config: DetectorConfig
    object: str | None
    objects: Path | None
    """Table of objects by image."""
    good: Path | None
    reference: Path | None
    templates: Path | None
    false_alarm_rate: float | None
    on_ray: bool

    def refuse(self, names: tuple[str, ...], reason: str) -> None:
        """Raise UsageError if one of these options is given."""
        for name in names:
            if getattr(self, name) is not None:
                raise UsageError(f"--{name} {reason}")


@dataclass(frozen=True)
class Judge:
    """A detector with everything its verdicts come from."""

    detector: Detector | OnnxDetector
    object: str
    good: GoodImages | None = None
    calibrations: Mapping[str, Calibration] = field(default_factory=dict)
    """Method → calibration, or method and object → calibration."""
    context: Mapping[str, Any] = field(default_factory=dict)
    """What images are compared with, as arguments of ``Detector.stream``."""
    table: ObjectTable | None = None
    good_by_object: Mapping[str, GoodImages] = field(default_factory=dict)


def judge_by_profile(profile: Path, given: Given) -> Judge:
    """Judge by a product profile. Raises UsageError, ProfileError, WeightsError."""
    beside = ("object", "objects", "good", "reference", "templates")
    given.refuse(beside, "is set by the profile; leave it out, or make another profile")
    from clipspect.cli.profile import open_product

    product = open_product(profile, given.config)
    if given.on_ray and product.detector.uses_sets:
        raise UsageError("with --engine ray profiles serve methods that score single images")
    return Judge(product.detector, product.profile.object, product.good, product.good.calibrations)


def judge_by_export(given: Given) -> Judge:
    """Judge by a file of ``clipspect export``, without torch. Raises UsageError, WeightsError."""
    if given.on_ray:
        raise UsageError("--runtime onnx scores images one by one in this process: leave out --engine ray")
    beside = ("objects", "good", "reference", "templates")
    given.refuse(beside, "is not used with --runtime onnx; give --good to clipspect export")
    detector = load_exported(given.config)
    return Judge(detector, given.object or detector.object, None, detector.calibrations)


def judge_by_options(given: Given) -> Judge:
    """Judge by a model, a method and references. Raises UsageError, WeightsError, ReferencesError."""
    table = None
    if given.objects is not None:
        beside = ("object", "reference", "templates")
        given.refuse(beside, "is not used with --objects, which names the object of every image")
        if given.on_ray or not given.source.is_dir():
            raise UsageError("--objects is for a folder, with --engine local")
        table = read_objects(given.objects)
    object = given.object if table is None else ", ".join(table.objects)
    assert object is not None  # the option's callback saw to it
    if table is None:
        from clipspect.prompts import clean_object_name

        clean_object_name(object)  # a name that says nothing is an error before the model is loaded
    config = given.config
    if config.method is None:
        config = config.replace(method=_default_method(given))
    detector = load_detector(config)
    if given.good is not None and given.on_ray and detector.uses_sets:
        raise UsageError(
            "with --engine ray --good serves methods that score single images; use --method anoclip"
        )
    if table is not None:
        return _judge_by_object(detector, object, table, given)
    context = _references(detector, object, given)
    good = context.pop("good", None)
    if given.good is not None:
        good = calibrate(detector, object, given.good, given.false_alarm_rate, context)
    return Judge(detector, object, good, {} if good is None else good.calibrations, context)


def _judge_by_object(detector: Detector, object: str, table: ObjectTable, given: Given) -> Judge:
    """Known-good images of an object are those in the folder of --good that has its name."""
    folders: dict[str, Path] = {}
    if given.good is not None:
        folders = {one: given.good / one for one in table.objects if (given.good / one).is_dir()}
        if not folders:
            raise UsageError(f"{given.good}: has no folder named as an object: {', '.join(table.objects)}")
    good = {
        one: calibrate(detector, one, folder, given.false_alarm_rate, {}) for one, folder in folders.items()
    }
    return Judge(detector, object, table=table, good_by_object=good)


def _default_method(given: Given) -> str:
    """The method that fits what was given, and why, said on stderr."""
    if given.on_ray:
        method, why = "anoclip", "images are scored one by one"
    elif given.good is not None or given.reference is not None or given.templates is not None:
        method, why = "dual-image", "text, and your images as references"
    elif given.source.is_dir() and _holds_several(given.source):
        method, why = "dual-image", "text, and the images of the folder as each other's references"
    else:
        method, why = "anoclip", "one image, text only"
    console(stderr=True).print(f"method: {method} ({why})", style="dim", highlight=False)
    return method


def _holds_several(folder: Path) -> bool:
    with contextlib.suppress(UsageError):  # an empty folder raises where it is read
        return len(scan_folder(folder).images) > 1
    return False


def _references(detector: Detector, object: str, given: Given) -> dict[str, Any]:
    """What the run is to be compared with, as arguments of ``Detector.stream``."""
    reference, templates = given.reference, given.templates
    if reference is not None and templates is not None:
        raise UsageError("--reference serves every image, --templates each its own; use one of them")
    if reference is not None:
        with console(stderr=True).status(f"reading the references in {reference}"):
            if given.good is not None:
                return {"references": detector.read_references(reference, object)}
            return {**detector.read_given(reference, object)}
    if templates is not None:
        from clipspect.data.templates import match_templates

        return {"templates": match_templates(templates, given.source)}
    return {}
