"""The command line: thin Typer commands that parse, call the Detector, and say what came out."""

from __future__ import annotations

import json
import sys
import warnings
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clipspect import __version__
from clipspect.errors import ClipspectError, UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from clipspect.detection import Detection, Thresholds
    from clipspect.detector import Detector
    from clipspect.results.run import RunSummary

EXIT_ANOMALIES, EXIT_USAGE, EXIT_SOME_FAILED = 1, 2, 3

app = typer.Typer(
    name="clipspect",
    help="Zero-shot visual inspection with CLIP: name the object, get scores, heatmaps and a report.\n\n"
    "Start here: [bold]clipspect demo[/bold], then [bold]clipspect detect photos/ --object 'metal nut'[/bold].",
    no_args_is_help=True,
    rich_markup_mode="rich",
    add_completion=False,
)
references_app = typer.Typer(help="Encoded known-good references, kept in one file.", no_args_is_help=True)
app.add_typer(references_app, name="references")


class Maps(str, Enum):
    """Anomaly maps at the photographs' own size."""

    none = "none"
    png16 = "png16"
    npy = "npy"


class Overlays(str, Enum):
    """Which photographs get an overlay picture."""

    all = "all"
    flagged = "flagged"
    none = "none"


MODEL = "Model"
INPUT = "Photographs"
PROMPTS = "Words"
REFERENCES = "References"
JUDGE = "Thresholds"
OUTPUT = "Output"

ObjectOption = Annotated[
    str, typer.Option("--object", "-o", help="What is on the photographs, in plain words: 'metal nut'.")
]
MethodOption = Annotated[
    str, typer.Option("--method", "-m", help="See [bold]clipspect methods[/bold].", rich_help_panel=MODEL)
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", "-s", help="A setting of the method: views=official. Repeatable.", rich_help_panel=MODEL
    ),
]
ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        help="See [bold]clipspect models[/bold]; or an open_clip name, hf-hub:org/name, a folder, a checkpoint.",
        rich_help_panel=MODEL,
    ),
]
WeightsOption = Annotated[
    str | None,
    typer.Option(
        "--weights",
        help="A pretrained tag, a checkpoint file, or 'random' for a control.",
        rich_help_panel=MODEL,
    ),
]
ImageSizeOption = Annotated[
    int | None,
    typer.Option("--image-size", help="Input side, a multiple of the patch.", rich_help_panel=MODEL),
]
DeviceOption = Annotated[
    str, typer.Option("--device", help="auto, cpu, cuda, cuda:1 …", rich_help_panel=MODEL)
]
PrecisionOption = Annotated[
    str, typer.Option("--precision", help="fp32, bf16 or fp16.", rich_help_panel=MODEL)
]
BatchOption = Annotated[
    int, typer.Option("--batch-size", min=1, help="Images encoded at once.", rich_help_panel=MODEL)
]
AspectOption = Annotated[
    str, typer.Option("--aspect", help="squash to a square (as the papers), or pad.", rich_help_panel=INPUT)
]
InterpolationOption = Annotated[
    str, typer.Option("--interpolation", help="bicubic, or bilinear.", rich_help_panel=INPUT)
]
TileOption = Annotated[
    str | None,
    typer.Option(
        "--tile",
        help="Cut large photographs into overlapping tiles of this side in pixels; 'square' = the shorter side.",
        rich_help_panel=INPUT,
    ),
]
DomainOption = Annotated[
    str,
    typer.Option(
        "--domain", help="auto, object, texture, medical, x-ray, aerial, microscopy.", rich_help_panel=PROMPTS
    ),
]
PromptsOption = Annotated[
    Path | None,
    typer.Option(
        "--prompts", help="A TOML file of your own words (docs/prompts.md).", rich_help_panel=PROMPTS
    ),
]
NormalOption = Annotated[
    list[str] | None,
    typer.Option(
        "--normal-state",
        help="A further normal state: '{} as machined'. Repeatable.",
        rich_help_panel=PROMPTS,
    ),
]
AbnormalOption = Annotated[
    list[str] | None,
    typer.Option(
        "--abnormal-state",
        help="A further abnormal state: '{} with a scratch'. Repeatable.",
        rich_help_panel=PROMPTS,
    ),
]


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    if version:
        typer.echo(f"clipspect {__version__}")
        raise typer.Exit


@app.command()
def detect(
    source: Annotated[Path, typer.Argument(help="A photograph, or a folder of them.", show_default=False)],
    object: ObjectOption,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Results folder [default: NAME-results].",
            rich_help_panel=OUTPUT,
            show_default=False,
        ),
    ] = None,
    method: MethodOption = "anoclip",
    set_: SetOption = None,
    model: ModelOption = "tiny",
    weights: WeightsOption = None,
    image_size: ImageSizeOption = None,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "fp32",
    batch_size: BatchOption = 8,
    aspect: AspectOption = "squash",
    interpolation: InterpolationOption = "bicubic",
    tile: TileOption = None,
    domain: DomainOption = "auto",
    prompts: PromptsOption = None,
    normal_state: NormalOption = None,
    abnormal_state: AbnormalOption = None,
    good: Annotated[
        Path | None,
        typer.Option(
            "--good", help="Known-good photographs to set the thresholds by.", rich_help_panel=JUDGE
        ),
    ] = None,
    false_alarm_rate: Annotated[
        float,
        typer.Option(
            "--false-alarm-rate", help="Share of good photographs that may be flagged.", rich_help_panel=JUDGE
        ),
    ] = 0.01,
    threshold: Annotated[
        float | None, typer.Option("--threshold", help="Flag scores from here on.", rich_help_panel=JUDGE)
    ] = None,
    pixel_threshold: Annotated[
        float | None,
        typer.Option("--pixel-threshold", help="Map values from here on are regions.", rich_help_panel=JUDGE),
    ] = None,
    maps: Annotated[
        Maps, typer.Option("--maps", help="Also write the maps.", rich_help_panel=OUTPUT)
    ] = Maps.none,
    overlays: Annotated[
        Overlays, typer.Option("--overlays", help="Which overlays to write.", rich_help_panel=OUTPUT)
    ] = Overlays.all,
    csv: Annotated[
        bool, typer.Option("--csv", help="Also write detections.csv.", rich_help_panel=OUTPUT)
    ] = False,
    report: Annotated[
        bool, typer.Option("--report/--no-report", help="Write report.html.", rich_help_panel=OUTPUT)
    ] = True,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a run with other settings.", rich_help_panel=OUTPUT)
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object per photograph on stdout.", rich_help_panel=OUTPUT)
    ] = False,
    fail_on_anomaly: Annotated[
        bool,
        typer.Option(
            "--fail-on-anomaly", help="Exit with 1 where anything is flagged.", rich_help_panel=OUTPUT
        ),
    ] = False,
) -> None:
    """Find anomalies on a photograph, or on every photograph of a folder.

    A folder gives a results folder: Parquet rows, overlays and [bold]report.html[/bold]. Run it again and it goes on
    where it stopped. One photograph gives its score here and an overlay beside it.

    Exit codes: 0 done, 1 anomalies found (with --fail-on-anomaly), 2 wrong usage, 3 some photographs failed.
    """
    if not source.exists():
        raise UsageError(f"{source}: no such file or folder; give a photograph or a folder of photographs")
    detector = _load(
        method=method,
        settings=set_,
        model=model,
        weights=weights,
        image_size=image_size,
        device=device,
        precision=precision,
        batch_size=batch_size,
        aspect=aspect,
        interpolation=interpolation,
        tile=_tile(tile),
        domain=domain,
        prompts=prompts,
        normal=normal_state or (),
        abnormal=abnormal_state or (),
    )
    thresholds = _thresholds(detector, object, good, false_alarm_rate, threshold, pixel_threshold)
    if source.is_file() and out is None:
        flagged, failed = _one(detector, source, object, thresholds, as_json)
    else:
        target = out or Path(f"{source.resolve().name}-results")
        summary = _folder(
            detector,
            source,
            object=object,
            out=target,
            thresholds=thresholds,
            maps=maps.value,
            overlays=overlays.value,
            csv=csv,
            report=report,
            overwrite=overwrite,
        )
        flagged, failed = summary.flagged, summary.failed
        if as_json:
            _print_rows(target)
        else:
            _print_summary(summary)
    if failed:
        raise typer.Exit(EXIT_SOME_FAILED)
    if flagged and fail_on_anomaly:
        raise typer.Exit(EXIT_ANOMALIES)


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="Results folder.")] = Path("demo-results"),
) -> None:
    """Run the offline model on the photographs that ship with clipspect and write a report."""
    from clipspect.demo import DEMO_OBJECT, DEMO_PHOTOS

    detector = _load(method="anoclip", model="tiny")
    summary = _folder(detector, DEMO_PHOTOS, object=DEMO_OBJECT, out=out, overwrite=True)
    _print_summary(summary)


@app.command()
def models() -> None:
    """List the models by name, and what else may stand in their place."""
    from rich.table import Table

    from clipspect.backbones.presets import PRESETS

    table = Table("model", "weights", "size", "about", title="Models", title_justify="left")
    for name, preset in PRESETS.items():
        table.add_row(name, preset.weights or "in the wheel", str(preset.image_size), preset.about)
    _console().print(table)
    _console().print(
        "Also: any ViT or ResNet of open_clip with --weights TAG or FILE (ViT-B-32, RN50 …), hf-hub:org/name,\n"
        "a folder with open_clip_config.json and weights, an OpenAI checkpoint file."
    )


@app.command()
def methods(
    name: Annotated[
        str | None, typer.Argument(help="Show one method's settings.", show_default=False)
    ] = None,
) -> None:
    """List the methods, or one method's settings for --set."""
    from rich.table import Table

    from clipspect.methods import METHODS

    if name is None:
        table = Table("method", "about", title="Methods", title_justify="left")
        for key, (_, about) in METHODS.items():
            table.add_row(key, about)
        _console().print(table)
        _console().print("Settings of one: [bold]clipspect methods anoclip[/bold]")
        return
    from clipspect.methods.describe import describe_settings

    table = Table("setting", "default", "about", title=f"Settings of {name}", title_justify="left")
    for setting, default, about in describe_settings(name):
        table.add_row(setting, default, about)
    _console().print(table)


# -- what the commands share --------------------------------------------------------------------------------------


def _load(*, settings: list[str] | None = None, **options: Any) -> Detector:
    parsed = {}
    for pair in settings or ():
        key, equals, value = pair.partition("=")
        if not equals:
            raise UsageError(f"--set {pair}: write it as name=value, such as --set views=official")
        parsed[key.strip().replace("-", "_")] = value.strip()
    with _console(stderr=True).status("loading the model"):
        import clipspect

        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            detector = clipspect.load(settings=parsed, **options)
    for warning in caught:
        if "random weights" in str(warning.message):
            _console(stderr=True).print(f"[bold yellow]warning[/] {warning.message}")
    return detector


def _thresholds(
    detector: Detector,
    object: str,
    good: Path | None,
    rate: float,
    image: float | None,
    pixel: float | None,
) -> Thresholds | None:
    if good is not None and (image is not None or pixel is not None):
        raise UsageError("--good and --threshold both set the thresholds; use one of them")
    if good is not None:
        with _console(stderr=True).status(f"scoring the known-good photographs in {good}"):
            return detector.calibrate(good, object, false_alarm_rate=rate)
    if image is None:
        if pixel is not None:
            raise UsageError("--pixel-threshold goes with --threshold")
        return None
    from clipspect.results.thresholds import given_thresholds

    return given_thresholds(image, pixel)


def _one(
    detector: Detector,
    source: Path,
    object: str,
    thresholds: Thresholds | None,
    as_json: bool,
) -> tuple[int, int]:
    """Score one photograph; the number flagged and the number failed."""
    found: list[Detection] = list(
        detector.stream([source], object=object, root=source.parent, thresholds=thresholds)
    )
    failed = 0
    for detection in found:
        if detection.error is not None:
            _console(stderr=True).print(f"[bold red]failed[/] {source}: {detection.error}", highlight=False)
            failed += 1
            continue
        tag = "" if len(found) == 1 else f".{detection.method}"
        overlay = source.with_name(f"{source.stem}{tag}.clipspect.png")
        detection.save(overlay)
        if as_json:
            print(json.dumps(_as_json(detection, overlay)))
        else:
            _print_detection(detection, overlay)
    return sum(bool(d.flag) for d in found), failed


def _as_json(detection: Detection, overlay: Path) -> dict[str, Any]:
    from dataclasses import asdict

    used = detection.thresholds_used
    return {
        "path": detection.path,
        "object": detection.object,
        "method": detection.method,
        "model": detection.model,
        "weights": detection.weights,
        "score": detection.score,
        "flag": detection.flag,
        "threshold": used.image,
        "pixel_threshold": used.pixel,
        "threshold_source": used.source,
        "regions": [asdict(region) for region in detection.regions],
        "overlay": str(overlay),
        "seconds": detection.seconds,
        "warnings": list(detection.warnings),
    }


def _print_detection(detection: Detection, overlay: Path) -> None:
    console = _console()
    used = detection.thresholds_used
    verdict = "[bold red]anomalous[/]" if detection.flag else "[bold green]normal[/]"
    guess = " [dim](threshold is a guess)[/]" if used.source == "guess" else ""
    console.print(
        f"{detection.path}  score [bold]{detection.score:.3f}[/]  {verdict} from {used.image:.3f}{guess}",
        highlight=False,
    )
    for region in detection.regions[:10]:
        console.print(
            f"  region at ({region.left}, {region.top}), {region.width}×{region.height} px, peak {region.peak:.3f}",
            highlight=False,
        )
    console.print(f"overlay: {overlay}", highlight=False, soft_wrap=True)


def _folder(detector: Detector, source: Path, **options: Any) -> RunSummary:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from clipspect.results.run import Progress as RunProgress
    from clipspect.results.run import run_folder

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=_console(stderr=True),
    )
    names = {"detect": "scoring photographs", "finish": "drawing and reporting"}
    tasks: dict[str, Any] = {}

    def show(state: RunProgress) -> None:
        if state.stage not in tasks:
            tasks[state.stage] = bar.add_task(names[state.stage], total=state.total, rate="")
        task = bar.tasks[bar.task_ids.index(tasks[state.stage])]
        speed = f"{task.speed:.1f}/s" if task.speed else ""
        bar.update(tasks[state.stage], completed=state.done, total=state.total, rate=speed)

    with bar:
        return run_folder(detector, source, progress=show, **options)


def _print_summary(summary: RunSummary) -> None:
    console = _console()
    for warning in summary.warnings:
        console.print(f"[bold yellow]warning[/] {warning}", highlight=False)
    for path, reason in summary.errors:
        console.print(f"[bold red]failed[/] {path}: {reason}", highlight=False)
    kept = f", {summary.kept} of them from an earlier run" if summary.kept else ""
    console.print(
        f"{summary.photographs} photographs{kept}: [bold]{summary.flagged} flagged[/], {summary.failed} failed,"
        f" {summary.seconds:.1f} s",
        highlight=False,
    )
    console.print(f"threshold {summary.thresholds.image:.3f}: {summary.thresholds.note}", highlight=False)
    if summary.report is not None:
        console.print(f"report: {summary.report}", highlight=False, soft_wrap=True)


def _print_rows(out: Path) -> None:
    from clipspect.results.export import json_rows

    for row in json_rows(out):
        print(json.dumps(row))


def _tile(text: str | None) -> Any:
    if text is None or text == "square":
        return text
    if not text.isdigit():
        raise UsageError(f"--tile {text}: give a number of pixels, or 'square'")
    return int(text)


def _console(*, stderr: bool = False) -> Console:
    from rich.console import Console

    return Console(stderr=stderr)


def main() -> None:
    """Run the command line; every ClipspectError becomes one red line and exit code 2."""
    try:
        app()
    except ClipspectError as error:
        _console(stderr=True).print(
            f"[bold red]error[/] {error}", highlight=False, markup=True, soft_wrap=True
        )
        sys.exit(EXIT_USAGE)
    except KeyboardInterrupt:
        _console(stderr=True).print("stopped; run the same command again to go on", highlight=False)
        sys.exit(130)
