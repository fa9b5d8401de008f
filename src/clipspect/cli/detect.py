"""`clipspect detect` and `clipspect demo`."""

from __future__ import annotations

import contextlib
import json
import shutil
import warnings
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clipspect.cli import options as opt
from clipspect.cli.output import console, print_detection, print_rows, print_summary
from clipspect.data.find import OVERLAY_SUFFIX, scan_folder
from clipspect.detection import at_threshold, check_threshold
from clipspect.errors import UsageError
from clipspect.prompts import clean_object_name

if TYPE_CHECKING:
    from clipspect.detection import Detection
    from clipspect.detector import Detector
    from clipspect.references import GoodImages
    from clipspect.results.run import Engine, RunSummary

EXIT_ANOMALIES = 1
EXIT_SOME_FAILED = 3


def detect(
    source: Annotated[
        str,
        typer.Argument(
            help="An image, or a folder of them; with --engine ray also s3://bucket/prefix.",
            show_default=False,
        ),
    ],
    object: opt.ObjectOption,
    out: opt.OutOption = None,
    method: opt.MethodOption = None,
    compare: opt.CompareOption = None,
    set_: opt.SetOption = None,
    model: opt.ModelOption = "tiny",
    weights: opt.WeightsOption = None,
    image_size: opt.ImageSizeOption = None,
    device: opt.DeviceOption = "auto",
    precision: opt.PrecisionOption = "fp32",
    batch_size: opt.BatchOption = 8,
    aspect: opt.AspectOption = "squash",
    interpolation: opt.InterpolationOption = "bicubic",
    tile: opt.TileOption = None,
    max_pixels: opt.MaxPixelsOption = None,
    bit_depth: opt.BitDepthOption = None,
    window: opt.WindowOption = None,
    pages: opt.PagesOption = opt.Pages.first,
    domain: opt.DomainOption = "auto",
    prompts: opt.PromptsOption = None,
    normal_state: opt.NormalOption = None,
    abnormal_state: opt.AbnormalOption = None,
    reference: opt.ReferenceOption = None,
    templates: opt.TemplatesOption = None,
    set_size: opt.SetSizeOption = 128,
    good: opt.GoodOption = None,
    false_alarm_rate: opt.FalseAlarmOption = None,
    threshold: opt.ThresholdOption = None,
    maps: opt.MapsOption = opt.Maps.none,
    overlays: opt.OverlaysOption = opt.Overlays.all,
    csv: opt.CsvOption = False,
    report: opt.ReportOption = True,
    overwrite: opt.OverwriteOption = False,
    as_json: opt.JsonOption = False,
    fail_on_anomaly: opt.FailOption = False,
    engine: opt.EngineOption = opt.EngineName.local,
    address: opt.AddressOption = None,
    workers: opt.WorkersOption = None,
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
    if alone and (csv or maps is not opt.Maps.none):
        raise UsageError("--csv and --maps are parts of a results folder; add --out FOLDER")
    if threshold is not None:
        check_threshold(threshold)
    if false_alarm_rate is not None and good is None:
        raise UsageError("--false-alarm-rate is about known-good images; add --good FOLDER")
    chosen = method or _default_method(place, on_ray, good, reference, templates, told=not compare)
    clean_object_name(object)  # a name that says nothing is told before the model is loaded
    recipe: dict[str, Any] = {
        "method": compare.replace(" ", "").split(",") if compare else chosen,
        "model": model,
        "weights": weights,
        "image_size": image_size,
        "device": device,
        "precision": precision,
        "batch_size": batch_size,
        "aspect": aspect,
        "interpolation": interpolation,
        "tile": opt.parse_tile(tile),
        "domain": domain,
        "prompts": prompts,
        "normal": normal_state or (),
        "abnormal": abnormal_state or (),
        "set_size": set_size,
        "bit_depth": bit_depth,
        "window": opt.parse_window(window),
        **({} if max_pixels is None else {"max_pixels": max_pixels}),
    }
    detector = load_detector(settings=set_, **recipe)
    context = _references(detector, object, place, reference, templates, has_good=good is not None)
    calibrated = context.pop("good", None)
    if good is not None:
        if on_ray and detector.uses_sets:
            raise UsageError(
                "with --engine ray --good serves methods that score each image by itself; use --method anoclip"
            )
        calibrated = _calibrate(detector, object, good, false_alarm_rate, context)
    if alone:
        flagged, failed = _one(detector, place, object, calibrated, threshold, context, overlays, as_json)
    else:
        target = out or Path(f"{_name_of(source)}-results")
        options = {
            "out": target,
            "calibrations": {} if calibrated is None else calibrated.calibrations,
            "threshold": threshold,
            "maps": maps.value,
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

            build = {"settings": parse_settings(set_), **recipe}
            summary = run_on_ray(
                detector,
                build,
                source,
                object,
                reference,
                address,
                workers,
                lambda e: run_with_progress(e, **options),
            )
        else:
            from clipspect.results.run import LocalEngine

            scoring = LocalEngine(
                detector,
                place,
                object,
                good=calibrated,
                all_pages=pages is opt.Pages.all,
                **context,
            )
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


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Results folder.")] = Path("demo-results"),
    photos: Annotated[
        Path | None,
        typer.Option(
            "--photos",
            help="Instead of a run: write the sample images (photos/, good/, part.png) here.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Run the offline model on the images that ship with clipspect and write a report."""
    from clipspect.demo import DEMO_GOOD, DEMO_IMAGES, DEMO_METHOD, DEMO_OBJECT, DEMO_RATE
    from clipspect.results.run import LocalEngine

    if photos is not None:
        _write_samples(photos, DEMO_IMAGES, DEMO_GOOD)
        return
    detector = load_detector(method=DEMO_METHOD, model="tiny")
    good = _calibrate(detector, DEMO_OBJECT, DEMO_GOOD, DEMO_RATE, {})
    scoring = LocalEngine(detector, DEMO_IMAGES, DEMO_OBJECT, good=good)
    print_summary(run_with_progress(scoring, out=out, calibrations=good.calibrations, overwrite=True))


def _write_samples(folder: Path, images: Path, good: Path) -> None:
    """Copy the sample images into a folder, next to whatever is there."""
    from PIL import Image

    for source, name in ((images, "photos"), (good, "good")):
        shutil.copytree(source, folder / name, dirs_exist_ok=True)
    with Image.open(images / "08_crack.jpg") as part:
        part.save(folder / "part.png")
    console().print(
        f"written: {folder / 'photos'}, {folder / 'good'}, {folder / 'part.png'}", highlight=False
    )


def parse_settings(pairs: list[str] | None) -> dict[str, str]:
    """--set pairs as names and values; UsageError for one without an equals sign."""
    parsed = {}
    for pair in pairs or ():
        key, equals, value = pair.partition("=")
        if not equals:
            raise UsageError(f"--set {pair}: write it as name=value, such as --set views=official")
        parsed[key.strip().replace("-", "_")] = value.strip()
    return parsed


def load_detector(*, settings: list[str] | None = None, **load_options: Any) -> Detector:
    """``clipspect.load`` with --set pairs read, and its warnings said in colour."""
    parsed = parse_settings(settings)
    with console(stderr=True).status("loading the model"), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        import clipspect

        detector = clipspect.load(settings=parsed, **load_options)
    for warning in caught:
        if "random weights" in str(warning.message):
            console(stderr=True).print(f"warning: {warning.message}", style="bold yellow", highlight=False)
    if detector.agreement is not None:
        told = f"precision {detector.backbone.precision}: {detector.agreement}"
        console(stderr=True).print(told, style="dim", highlight=False, soft_wrap=True)
    return detector


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
    *,
    told: bool,
) -> str:
    """The method that fits what was given, and why, said on stderr."""
    if on_ray:
        method, why = "anoclip", "each image is scored by itself"
    elif good is not None or reference is not None or templates is not None:
        method, why = "dual-image", "text, and your images as references"
    elif source.is_dir() and _holds_several(source):
        method, why = "dual-image", "text, and the images of the folder as each other's references"
    else:
        method, why = "anoclip", "one image, text only"
    if told:
        console(stderr=True).print(f"method: {method} ({why})", style="dim", highlight=False)
    return method


def _holds_several(folder: Path) -> bool:
    with contextlib.suppress(UsageError):  # an empty folder is told where it is read
        return len(scan_folder(folder).images) > 1
    return False


def _calibrate(
    detector: Detector, object: str, good: Path, rate: float | None, context: dict[str, Any]
) -> GoodImages:
    """References and calibration from known-good images; those that cannot be read are named."""
    from clipspect.postprocess.calibration import DEFAULT_FALSE_ALARM_RATE

    with console(stderr=True).status(f"encoding and scoring the known-good images in {good}"):
        calibrated = detector.calibrate(
            good, object, false_alarm_rate=rate or DEFAULT_FALSE_ALARM_RATE, **context
        )
    for name, reason in calibrated.failed:
        console(stderr=True).print(
            f"warning: {name}: left out of the known-good images ({reason})",
            style="bold yellow",
            markup=False,
        )
    return calibrated


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


def _one(
    detector: Detector,
    source: Path,
    object: str,
    good: GoodImages | None,
    threshold: float | None,
    context: dict[str, Any],
    overlays: opt.Overlays,
    json_wanted: bool,
) -> tuple[int, int]:
    """Score one image; how many methods flagged it, and how many failed."""
    from clipspect.results.export import detection_json
    from clipspect.results.outputs import short_name

    found: list[Detection] = [
        at_threshold(d, threshold)
        for d in detector.stream([source], object=object, root=source.parent, good=good, **context)
    ]
    failed = 0
    for detection in found:
        if detection.error is not None:
            message = f"failed {source}: {detection.error}"
            console(stderr=True).print(message, style="bold red", highlight=False, markup=False)
            if json_wanted:
                print(json.dumps({**detection_json(detection), "overlay": None}))
            failed += 1
            continue
        tag = "" if len(found) == 1 else f".{detection.method}"
        drawn = overlays is opt.Overlays.all or (overlays is opt.Overlays.flagged and detection.flag)
        overlay = source.with_name(short_name(source.name, f"{tag}{OVERLAY_SUFFIX}")) if drawn else None
        if overlay is not None:
            detection.save(overlay)
        if json_wanted:
            print(
                json.dumps(
                    {**detection_json(detection), "overlay": None if overlay is None else str(overlay)}
                )
            )
        else:
            print_detection(detection, overlay)
    return sum(bool(d.flag) for d in found), failed


def run_with_progress(engine: Engine, **run_options: Any) -> RunSummary:
    """``run_engine`` with a bar per stage, its rate and the time left."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from clipspect.results.run import Progress as RunProgress
    from clipspect.results.run import run_engine

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=console(stderr=True),
    )
    names = {"detect": "scoring images", "finish": "drawing and reporting"}
    tasks: dict[str, Any] = {}

    def show(state: RunProgress) -> None:
        if state.stage not in tasks:
            tasks[state.stage] = bar.add_task(names[state.stage], total=state.total, rate="")
        task = bar.tasks[bar.task_ids.index(tasks[state.stage])]
        speed = f"{task.speed:.1f}/s" if task.speed else ""
        bar.update(tasks[state.stage], completed=state.done, total=state.total, rate=speed)

    with bar:
        return run_engine(engine, progress=show, **run_options)
