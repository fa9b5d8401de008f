"""`clipspect detect`."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from clipspect.cli import options as opt
from clipspect.cli.judge import Given, Judge, judge_by_export, judge_by_options, judge_by_profile
from clipspect.cli.output import print_rows, print_summary
from clipspect.cli.run import run_with_progress, score_one
from clipspect.config import DetectorConfig
from clipspect.detection import check_threshold
from clipspect.errors import UsageError

if TYPE_CHECKING:
    from clipspect.detector import Detector
    from clipspect.results.run import RunSummary

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

    A folder gives a results folder: Parquet rows, overlays and [bold]report.html[/bold]. Run it again
    to resume. One image gives its score here and an overlay in clipspect-overlays/.

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
    given = Given(place, config, object, objects, good, reference, templates, false_alarm_rate, on_ray)
    if profile is not None and runtime is opt.Runtime.onnx:
        raise UsageError("--runtime onnx reads what clipspect export --profile wrote; leave --profile out")
    if profile is not None:
        judge = judge_by_profile(profile, given)
    elif runtime is opt.Runtime.onnx:
        judge = judge_by_export(given)
    else:
        judge = judge_by_options(given)
    if alone:
        flagged, failed = score_one(
            judge.detector, place, judge.object, judge.good, threshold, dict(judge.context), overlays, as_json
        )
    else:
        target = out or Path(f"{_name_of(source)}-results")
        options = {
            "out": target,
            "calibrations": judge.calibrations,
            "threshold": threshold,
            "maps": maps.value,
            "masks": masks,
            "overlays": overlays.value,
            "csv": csv,
            "report": report,
            "overwrite": overwrite,
        }
        if on_ray:
            summary = _run_on_ray(judge, source, given, pages, address, workers, options)
        else:
            summary = _run_here(judge, given, pages, options)
        flagged, failed = summary.flagged, summary.failed
        if as_json:
            print_rows(target)
        else:
            print_summary(summary)
    if failed:
        raise typer.Exit(EXIT_SOME_FAILED)
    if flagged and fail_on_anomaly:
        raise typer.Exit(EXIT_ANOMALIES)


def _run_here(judge: Judge, given: Given, pages: opt.Pages, options: dict[str, Any]) -> RunSummary:
    from clipspect.results.mixed import mixed_engine
    from clipspect.results.run import LocalEngine

    if judge.table is not None and given.objects is not None:
        mixed = mixed_engine(judge.detector, given.source, judge.table, given.objects, judge.good_by_object)
        return run_with_progress(mixed, **{**options, "calibrations": mixed.calibrations()})
    engine = LocalEngine(
        judge.detector,
        given.source,
        judge.object,
        good=judge.good,
        all_pages=pages is opt.Pages.all,
        **judge.context,
    )
    return run_with_progress(engine, **options)


def _run_on_ray(
    judge: Judge,
    source: str,
    given: Given,
    pages: opt.Pages,
    address: str | None,
    workers: int | None,
    options: dict[str, Any],
) -> RunSummary:
    if pages is opt.Pages.all:
        raise UsageError("--pages all works with --engine local alone")
    if given.templates is not None:
        raise UsageError("--templates work with --engine local alone")
    from clipspect.cli.ray import run_on_ray

    return run_on_ray(
        cast("Detector", judge.detector),
        source,
        judge.object,
        given.reference,
        address,
        workers,
        lambda engine: run_with_progress(engine, **options),
    )


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
