"""Options shared by the commands; those of a detector come from the fields of DetectorConfig."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from functools import wraps
from inspect import Parameter, signature
from pathlib import Path
from typing import Annotated, Any

import typer

from clipspect.config import IMAGES, MODEL, REFERENCES, DetectorConfig, declared_options, fill_preset, spec_of


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


class Runtime(str, Enum):
    """What runs the network."""

    torch = "torch"
    onnx = "onnx"


class Overlays(str, Enum):
    """Which images get an overlay picture."""

    all = "all"
    flagged = "flagged"
    none = "none"


class ProRule(str, Enum):
    """Thresholds of AUPRO."""

    exact = "exact"
    official = "200-thresholds"


JUDGE = "Thresholds"
OUTPUT = "Output"
SCALE = "Scale"

ObjectOption = Annotated[
    str, typer.Option("--object", help="What is on the images, in plain words: 'metal nut'.")
]
RuntimeOption = Annotated[
    Runtime,
    typer.Option(
        "--runtime",
        help="torch; or onnx: run a file of 'clipspect export' (--model FILE.onnx) in ONNX Runtime, without PyTorch.",
        rich_help_panel=MODEL,
    ),
]


def _need_object(context: typer.Context, value: str | None) -> str | None:
    """Raise the parser's error where neither an object nor a profile is given."""
    given = [context.params.get(name) for name in ("profile", "objects")]
    is_exported = getattr(context.params.get("runtime"), "value", context.params.get("runtime")) == "onnx"
    if value is None and not context.resilient_parsing and not is_exported and not any(given):
        raise typer.BadParameter("Missing option '--object': name what is on the images, or give a --profile")
    return value


OptionalObjectOption = Annotated[
    str | None,
    typer.Option(
        "--object",
        help="What is on the images, in plain words: 'metal nut'. A profile and an exported file have it.",
        show_default=False,
        callback=_need_object,
    ),
]
PagesOption = Annotated[
    Pages,
    typer.Option(
        "--pages",
        help="Of files with several pages or frames: the first, or all of them.",
        rich_help_panel=IMAGES,
    ),
]
ReferenceOption = Annotated[
    Path | None,
    typer.Option(
        "--reference",
        help="Known-good image, folder of them, or a .refs file, for every image.",
    ),
]
TemplatesOption = Annotated[
    Path | None,
    typer.Option(
        "--templates",
        help="Folder with a reference for each image, matched by file name.",
        rich_help_panel=REFERENCES,
    ),
]
GoodOption = Annotated[
    Path | None,
    typer.Option(
        "--good",
        help="Known-good images: references and threshold in one; 10 or more are advised.",
    ),
]
ObjectsOption = Annotated[
    Path | None,
    typer.Option(
        "--objects",
        help="CSV with the columns image,object: a folder with several objects. --good then has a folder per object.",
        rich_help_panel=IMAGES,
    ),
]
ProfileOption = Annotated[
    Path | None,
    typer.Option(
        "--profile",
        help="A product profile (clipspect profile create): object, method, references and threshold in one.",
    ),
]
FalseAlarmOption = Annotated[
    float | None,
    typer.Option(
        "--false-alarm-rate",
        help="Share of good images that may be flagged, with --good \\[default: 0.05].",
        rich_help_panel=JUDGE,
        show_default=False,
    ),
]
ThresholdOption = Annotated[
    float | None,
    typer.Option(
        "--threshold", help="Flag scores of at least this value \\[default: 0.5].", rich_help_panel=JUDGE
    ),
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
        help="Ray actors \\[default: one per GPU, else per core].",
        rich_help_panel=SCALE,
        show_default=False,
    ),
]
OutOption = Annotated[
    Path | None,
    typer.Option(
        "--out",
        "-o",
        help="Results folder \\[default: NAME-results].",
        show_default=False,
    ),
]
MapsOption = Annotated[Maps, typer.Option("--maps", help="Also write the maps.", rich_help_panel=OUTPUT)]
MasksOption = Annotated[
    bool,
    typer.Option(
        "--masks", help="Also write regions as masks: 255 in a region, else 0.", rich_help_panel=OUTPUT
    ),
]
OverlaysOption = Annotated[
    Overlays, typer.Option("--overlays", help="Which overlays to write.", rich_help_panel=OUTPUT)
]
CsvOption = Annotated[bool, typer.Option("--csv", help="Also write detections.csv.")]
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


def detector_options(*names: str, **defaults: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Replace the parameter ``config`` of a command by one option per field of :class:`DetectorConfig`.

    Args:
        names: fields that the command offers.
        defaults: values of other fields, or other defaults of offered ones.
    """
    return _options(
        "config", DetectorConfig, names, defaults, lambda values: DetectorConfig(**fill_preset(values))
    )


def options_of(
    parameter: str, declared: type, *names: str, **defaults: Any
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Replace a parameter of a command by the options that a dataclass declares.

    Args:
        parameter: takes the dataclass, made of what was given.
        declared: the dataclass.
        names: fields that the command offers; none = all that are options.
        defaults: other defaults than the dataclass's.
    """
    names = names or tuple(one.name for one in declared_options(declared))
    return _options(parameter, declared, names, defaults, lambda values: declared(**values))


def _options(
    parameter: str,
    declared: type,
    names: Sequence[str],
    defaults: Mapping[str, Any],
    make: Callable[[Mapping[str, Any]], Any],
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    offered = [one for one in declared_options(declared) if one.name in names]
    assert len(offered) == len(names)

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def run(**given: Any) -> None:
            chosen = {one.name: given.pop(one.name) for one in offered}
            values = {name: value for name, value in chosen.items() if value is not None}
            parsers = {one.name: spec_of(one).parse for one in offered}
            parsed = {
                name: parse(value) if (parse := parsers[name]) else value for name, value in values.items()
            }
            command(**given, **{parameter: make({**defaults, **parsed})})

        own = signature(command, eval_str=True)
        options = [_as_parameter(one, defaults.get(one.name)) for one in offered]
        before = [p for p in own.parameters.values() if p.default is Parameter.empty and p.name != parameter]
        after = [p for p in own.parameters.values() if p.default is not Parameter.empty]
        parameters = [p.replace(kind=Parameter.KEYWORD_ONLY) for p in (*before, *options, *after)]
        run.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        vars(run).pop("__wrapped__")
        return run

    return decorate


def _as_parameter(one: Any, default: Any) -> Parameter:
    """The command-line option of a field; None where it is not given, so that the field's default holds."""
    spec = spec_of(one)
    value = default if default is not None else one.default
    shown = spec.absent
    if isinstance(value, str | int | float | Path):
        shown = str(value)
    elif isinstance(value, tuple) and value:
        shown = ", ".join(map(str, value))
    help = f"{spec.help} \\[default: {shown}]" if shown else spec.help
    option = typer.Option(
        *spec.flags, help=help, rich_help_panel=spec.group, min=spec.at_least,
        hidden=spec.hidden, show_default=False, metavar="<str>" if spec.repeatable else None,
    )  # fmt: skip
    kind: Any = list[str] if spec.repeatable else spec.kind
    return Parameter(
        one.name, Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
    )
