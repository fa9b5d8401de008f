"""What may be asked for on the command line: typed options with their help, shared by the commands."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Literal

import typer

from clipspect.errors import UsageError


class Maps(str, Enum):
    """Anomaly maps at the images' own size."""

    none = "none"
    png16 = "png16"
    npy = "npy"


class Pages(str, Enum):
    """What is read of files with several pages or frames."""

    first = "first"
    all = "all"


class EngineName(str, Enum):
    """Where images are scored."""

    local = "local"
    ray = "ray"


class Overlays(str, Enum):
    """Which images get an overlay picture."""

    all = "all"
    flagged = "flagged"
    none = "none"


MODEL = "Model"
INPUT = "Images"
PROMPTS = "Words"
REFERENCES = "References"
JUDGE = "Thresholds"
OUTPUT = "Output"
SCALE = "Scale"

ObjectOption = Annotated[
    str, typer.Option("--object", help="What is on the images, in plain words: 'metal nut'.")
]
MethodOption = Annotated[
    str | None,
    typer.Option("--method", "-m", help="See [bold]clipspect methods[/bold].", rich_help_panel=MODEL),
]
CompareOption = Annotated[
    str | None,
    typer.Option(
        "--compare",
        help="Several methods over one encoding, side by side: anoclip,dual-image.",
        rich_help_panel=MODEL,
    ),
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
    str,
    typer.Option(
        "--precision",
        help="fp32; bf16, fp16 or int8, held against fp32 first; auto = the fastest whose maps agree.",
        rich_help_panel=MODEL,
    ),
]
BatchOption = Annotated[
    int, typer.Option("--batch-size", min=1, help="Images encoded at once.", rich_help_panel=MODEL)
]
AspectOption = Annotated[
    str,
    typer.Option("--aspect", help="squash to a square (as the papers), or pad.", rich_help_panel=INPUT),
]
InterpolationOption = Annotated[
    str, typer.Option("--interpolation", help="bicubic, or bilinear.", rich_help_panel=INPUT)
]
TileOption = Annotated[
    str | None,
    typer.Option(
        "--tile",
        help="Cut large images into overlapping tiles of this side in pixels; 'square' = the shorter side.",
        rich_help_panel=INPUT,
    ),
]
MaxPixelsOption = Annotated[
    int | None,
    typer.Option(
        "--max-pixels",
        help="Refuse larger images before decoding them [default: 100000000].",
        rich_help_panel=INPUT,
        show_default=False,
    ),
]
BitDepthOption = Annotated[
    int | None,
    typer.Option(
        "--bit-depth",
        help="Bits of images that do not declare them: 12 for 12-bit values in 16-bit files.",
        rich_help_panel=INPUT,
    ),
]
WindowOption = Annotated[
    str | None,
    typer.Option(
        "--window",
        help="Values that are black and white in images with more than 8 bits: 0,4095.",
        rich_help_panel=INPUT,
    ),
]
PagesOption = Annotated[
    Pages,
    typer.Option(
        "--pages",
        help="Of files with several pages or frames: the first, or all of them.",
        rich_help_panel=INPUT,
    ),
]
DomainOption = Annotated[
    str,
    typer.Option(
        "--domain",
        help="auto, object, texture, medical, x-ray, aerial, microscopy, or your own.",
        rich_help_panel=PROMPTS,
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
ReferenceOption = Annotated[
    Path | None,
    typer.Option(
        "--reference",
        help="Known-good image, folder of them, or a .refs file, for every image.",
        rich_help_panel=REFERENCES,
    ),
]
TemplatesOption = Annotated[
    Path | None,
    typer.Option(
        "--templates",
        help="Folder with each image's own reference, told by its file name.",
        rich_help_panel=REFERENCES,
    ),
]
SetSizeOption = Annotated[
    int,
    typer.Option(
        "--set-size",
        min=2,
        help="Most images that serve as each other's references.",
        rich_help_panel=REFERENCES,
    ),
]
GoodOption = Annotated[
    Path | None,
    typer.Option(
        "--good",
        help="Known-good images: references and threshold in one; 10 or more are advised.",
        rich_help_panel=JUDGE,
    ),
]
FalseAlarmOption = Annotated[
    float | None,
    typer.Option(
        "--false-alarm-rate",
        help="Share of good images that may be flagged, with --good [default: 0.05].",
        rich_help_panel=JUDGE,
        show_default=False,
    ),
]
ThresholdOption = Annotated[
    float | None,
    typer.Option("--threshold", help="Flag scores from here on [default: 0.5].", rich_help_panel=JUDGE),
]
EngineOption = Annotated[
    EngineName,
    typer.Option(
        "--engine",
        help="local: this process. ray: many, here or on a cluster (clipspect\\[ray]); reads s3:// and gs:// too.",
        rich_help_panel=SCALE,
    ),
]
AddressOption = Annotated[
    str | None,
    typer.Option("--address", help="A running Ray cluster; without it this machine.", rich_help_panel=SCALE),
]
WorkersOption = Annotated[
    int | None,
    typer.Option(
        "--workers",
        min=1,
        help="Ray actors [default: one per GPU, else per core].",
        rich_help_panel=SCALE,
        show_default=False,
    ),
]
OutOption = Annotated[
    Path | None,
    typer.Option(
        "--out",
        "-o",
        help="Results folder [default: NAME-results].",
        rich_help_panel=OUTPUT,
        show_default=False,
    ),
]
MapsOption = Annotated[Maps, typer.Option("--maps", help="Also write the maps.", rich_help_panel=OUTPUT)]
OverlaysOption = Annotated[
    Overlays, typer.Option("--overlays", help="Which overlays to write.", rich_help_panel=OUTPUT)
]
CsvOption = Annotated[bool, typer.Option("--csv", help="Also write detections.csv.", rich_help_panel=OUTPUT)]
ReportOption = Annotated[
    bool, typer.Option("--report/--no-report", help="Write report.html.", rich_help_panel=OUTPUT)
]
OverwriteOption = Annotated[
    bool,
    typer.Option("--overwrite", help="Replace a run with other settings.", rich_help_panel=OUTPUT),
]
JsonOption = Annotated[
    bool,
    typer.Option("--json", help="One JSON object per image on stdout.", rich_help_panel=OUTPUT),
]
FailOption = Annotated[
    bool,
    typer.Option(
        "--fail-on-anomaly",
        help="Exit with 1 where any image is flagged, stands out or is suspicious.",
        rich_help_panel=OUTPUT,
    ),
]


def parse_window(text: str | None) -> tuple[float, float] | None:
    """--window as two numbers; UsageError for anything else."""
    if text is None:
        return None
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--window {text}: give two numbers, such as 0,4095") from None
    return low, high


def parse_tile(text: str | None) -> int | Literal["square"] | None:
    """--tile as a number of pixels or "square"; UsageError for anything else."""
    if text is None:
        return None
    if text == "square":
        return "square"
    if not text.isdigit():
        raise UsageError(f"--tile {text}: give a number of pixels, or 'square'")
    return int(text)
