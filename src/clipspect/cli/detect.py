"""`clipspect detect`."""

from __future__ import annotations

import contextlib
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from clipspect.cli import options as opt
from clipspect.cli.output import console, print_rows, print_summary
from clipspect.cli.profile import open_product
from clipspect.cli.run import calibrate, load_detector, load_exported, run_with_progress, score_one
from clipspect.config import DetectorConfig
from clipspect.data.find import scan_folder
from clipspect.data.objects import read_objects
from clipspect.detection import check_threshold
from clipspect.errors import UsageError
from clipspect.prompts import clean_object_name

if TYPE_CHECKING:
    from collections.abc import Mapping

    from clipspect.data.objects import ObjectTable
    from clipspect.detector import Detector
    from clipspect.export.onnx_detector import OnnxDetector
    from clipspect.postprocess.calibration import Calibration
    from clipspect.references import GoodImages

EXIT_ANOMALIES = 1
EXIT_SOME_FAILED = 3


@opt.detector_options(
    "method", "settings", "model", "visual_model", "weights", "preset", "object_as_is",
    "image_size", "device", "precision", "batch_size", "aspect",
    "interpolation", "tile", "max_pixels", "bit_depth", "window", "roi", "ignore_border",
    "domain", "prompts", "normal", "abnormal", "set_size",
)  # fmt: skip
def detect(
    source: Annotated[
        str,
        typer.Argument(
            help="An image, or a folder of them; with --engine ray also s3://bucket/prefix.",
            show_default=False,
        ),
    ],
    config: DetectorConfig,
    object: opt.OptionalObjectOption = None,
    profile: opt.ProfileOption = None,
    objects: opt.ObjectsOption = None,
    out: opt.OutOption = None,
    pages: opt.PagesOption = opt.Pages.first,
    reference: opt.ReferenceOption = None,
    templates: opt.TemplatesOption = None,
    good: opt.GoodOption = None,
    false_alarm_rate: opt.FalseAlarmOption = None,
    threshold: opt.ThresholdOption = None,
    maps: opt.MapsOption = opt.Maps.none,
    masks: opt.MasksOption = False,
    overlays: opt.OverlaysOption = opt.Overlays.all,
    csv: opt.CsvOption = False,
    report: opt.ReportOption = True,
    overwrite: opt.OverwriteOption = False,
    as_json: opt.JsonOption = False,
    fail_on_anomaly: opt.FailOption = False,
    engine: opt.EngineOption = opt.EngineName.local,
    address: opt.AddressOption = None,
    workers: opt.WorkersOption = None,
    runtime: opt.RuntimeOption = opt.Runtime.torch,
) -> None:
    """Find anomalies on an image, or on every image of a folder.

    A folder gives a results folder: Parquet rows, overlays and [bold]report.html[/bold]. Run it again and it goes on
    where it stopped. One image gives its score here and an overlay beside it.

    Exit codes: 0 done, 1 anomalies found (with --fail-on-anomaly), 2 wrong usage, 3 some images failed.
    """
    place, on_ray = Path(source), engine is opt.EngineName.ray
    if not on_ray:
        _check_local(source, address, workers)
    alone = not on_ray and place.is_file() and out is None and pages is opt.Pages.first
    if alone and (csv or masks or maps is not opt.Maps.none):
        raise UsageError("--csv, --masks and --maps are parts of a results folder; add --out FOLDER")
    if threshold is not None:
        check_threshold(threshold)
    if false_alarm_rate is not None and good is None:
        raise UsageError("--false-alarm-rate is about known-good images; add --good FOLDER")
    context: dict[str, Any] = {}
    detector: Detector | OnnxDetector
    calibrated: GoodImages | None = None
    calibrations: Mapping[str, Calibration] = {}
    if profile is not None:
        _check_beside_profile(
            object=object, objects=objects, good=good, reference=reference, templates=templates
        )
        if runtime is opt.Runtime.onnx:
            raise UsageError(
                "--runtime onnx reads what clipspect export --profile wrote; leave --profile out"
            )
        product = open_product(profile, config)
        detector, calibrated, object = product.detector, product.good, product.profile.object
        if on_ray and detector.uses_sets:
            raise UsageError("with --engine ray profiles serve methods that score single images")
    elif runtime is opt.Runtime.onnx:
        if on_ray or (reference, templates, good, objects) != (None, None, None, None):
            raise UsageError(
                "--runtime onnx scores images one by one in this process: leave out --engine ray, --reference and"
                " --templates, and give --good to clipspect export"
            )
        detector = load_exported(config)
        object = object or detector.object
        calibrations = detector.calibrations
    else:
        if objects is not None:
            _check_objects(place, on_ray=on_ray, object=object, reference=reference, templates=templates)
            table = read_objects(objects)
            object = ", ".join(table.objects)
        else:
            assert object is not None  # the option's callback saw to it
            clean_object_name(object)  # a name that says nothing is an error before the model is loaded
        if config.method is None:
            config = config.replace(method=_default_method(place, on_ray, good, reference, templates))
        detector = load_detector(config)
        context = _references(detector, object, place, reference, templates, has_good=good is not None)
        calibrated = context.pop("good", None)
        if good is not None:
            if on_ray and detector.uses_sets:
                raise UsageError(
                    "with --engine ray --good serves methods that score single images; use --method anoclip"
                )
            if objects is None:
                calibrated = calibrate(detector, object, good, false_alarm_rate, context)
    if calibrated is not None:
        calibrations = calibrated.calibrations
    if alone:
        flagged, failed = score_one(
            detector, place, object, calibrated, threshold, context, overlays, as_json
        )
    else:
        target = out or Path(f"{_name_of(source)}-results")
        options = {
            "out": target,
            "calibrations": calibrations,
            "threshold": threshold,
            "maps": maps.value,
            "masks": masks,
            "overlays": overlays.value,
            "csv": csv,
            "report": report,
            "overwrite": overwrite,
        }
        if on_ray:
            if pages is opt.Pages.all:
                raise UsageError("--pages all works with --engine local alone")
            if templates is not None:
                raise UsageError("--templates work with --engine local alone")
            from clipspect.cli.ray import run_on_ray

            summary = run_on_ray(
                cast("Detector", detector),
                source,
                object,
                reference,
                address,
                workers,
                lambda e: run_with_progress(e, **options),
            )
        else:
            from clipspect.results.mixed import mixed_engine
            from clipspect.results.run import LocalEngine

            scoring: Any = LocalEngine(
                detector,
                place,
                object,
                good=calibrated,
                all_pages=pages is opt.Pages.all,
                **context,
            )
            if objects is not None:
                known = _calibrate_objects(cast("Detector", detector), table, good, false_alarm_rate)
                scoring = mixed_engine(detector, place, table, objects, known)
                options["calibrations"] = scoring.calibrations()
            summary = run_with_progress(scoring, **options)
        flagged, failed = summary.flagged, summary.failed
        if as_json:
            print_rows(target)
        else:
            print_summary(summary)
    if failed:
        raise typer.Exit(EXIT_SOME_FAILED)
    if flagged and fail_on_anomaly:
        raise typer.Exit(EXIT_ANOMALIES)


def _check_beside_profile(**given: Any) -> None:
    for name, value in given.items():
        if value is not None:
            raise UsageError(f"--{name} is set by the profile; leave it out, or make another profile")


def _check_objects(place: Path, *, on_ray: bool, **given: Any) -> None:
    for name, value in given.items():
        if value is not None:
            raise UsageError(f"--objects names the object of every image; leave --{name} out")
    if on_ray or not place.is_dir():
        raise UsageError("--objects is for a folder, with --engine local")


def _calibrate_objects(
    detector: Detector, table: ObjectTable, good: Path | None, rate: float | None
) -> dict[str, GoodImages]:
    """Object → known-good images, from the folders of ``good`` that are named as objects."""
    if good is None:
        return {}
    folders = {object: good / object for object in table.objects if (good / object).is_dir()}
    if not folders:
        raise UsageError(f"{good}: has no folder named as an object: {', '.join(table.objects)}")
    return {object: calibrate(detector, object, folder, rate, {}) for object, folder in folders.items()}


def _check_local(source: str, address: str | None, workers: int | None) -> None:
    if "://" in source:
        raise UsageError(f"{source}: object storage is read by --engine ray; add it, or give a folder")
    if not Path(source).exists():
        raise UsageError(f"{source}: no such file or folder; give an image or a folder of images")
    if address is not None or workers is not None:
        raise UsageError("--address and --workers go with --engine ray")


def _name_of(source: str) -> str:
    """The last name of a path or of a URI."""
    return PurePosixPath(source.partition("?")[0]).name if "://" in source else Path(source).resolve().name


def _default_method(
    source: Path,
    on_ray: bool,
    good: Path | None,
    reference: Path | None,
    templates: Path | None,
) -> str:
    """The method that fits what was given, and why, said on stderr."""
    if on_ray:
        method, why = "anoclip", "images are scored one by one"
    elif good is not None or reference is not None or templates is not None:
        method, why = "dual-image", "text, and your images as references"
    elif source.is_dir() and _holds_several(source):
        method, why = "dual-image", "text, and the images of the folder as each other's references"
    else:
        method, why = "anoclip", "one image, text only"
    console(stderr=True).print(f"method: {method} ({why})", style="dim", highlight=False)
    return method


def _holds_several(folder: Path) -> bool:
    with contextlib.suppress(UsageError):  # an empty folder raises where it is read
        return len(scan_folder(folder).images) > 1
    return False


def _references(
    detector: Detector,
    object: str,
    source: Path,
    reference: Path | None,
    templates: Path | None,
    *,
    has_good: bool,
) -> dict[str, Any]:
    """What the run is to be compared with, as arguments of ``Detector.stream``."""
    if reference is not None and templates is not None:
        raise UsageError("--reference serves every image, --templates each its own; use one of them")
    if reference is not None:
        with console(stderr=True).status(f"reading the references in {reference}"):
            if has_good:
                return {"references": detector.read_references(reference, object)}
            return {**detector.read_given(reference, object)}
    if templates is not None:
        from clipspect.data.templates import match_templates

        return {"templates": match_templates(templates, source)}
    return {}
