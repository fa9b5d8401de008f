"""`clipspect references`: encoded references kept in one file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clipspect.cli import options as opt
from clipspect.cli.detect import load_detector
from clipspect.cli.output import console
from clipspect.cli.strict import StrictCommand

references_app = typer.Typer(
    help="Encoded known-good references, kept in one file and used with detect --reference.",
    no_args_is_help=True,
)


@references_app.callback()
def _references() -> None:
    """Encoded known-good references, kept in one file and used with detect --reference."""


@references_app.command(cls=StrictCommand)
def build(
    good: Annotated[Path, typer.Argument(help="A known-good image, or a folder.", show_default=False)],
    object: Annotated[
        str,
        typer.Option("--object", help="What is on them, in plain words: 'metal nut'.", show_default=False),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="File to write, such as bottle.refs.", show_default=False)
    ],
    method: opt.MethodOption = "dual-image",
    set_: opt.SetOption = None,
    model: opt.ModelOption = "tiny",
    weights: opt.WeightsOption = None,
    image_size: opt.ImageSizeOption = None,
    device: opt.DeviceOption = "auto",
    precision: opt.PrecisionOption = "fp32",
    aspect: opt.AspectOption = "squash",
    interpolation: opt.InterpolationOption = "bicubic",
    tile: opt.TileOption = None,
    bit_depth: opt.BitDepthOption = None,
    window: opt.WindowOption = None,
) -> None:
    """Encode known-good images once: clipspect references build good/ --object bottle -o bottle.refs."""
    detector = load_detector(
        method=method,
        settings=set_,
        model=model,
        weights=weights,
        image_size=image_size,
        device=device,
        precision=precision,
        aspect=aspect,
        interpolation=interpolation,
        tile=opt.parse_tile(tile),
        bit_depth=bit_depth,
        window=opt.parse_window(window),
    )
    with console(stderr=True).status(f"encoding the references in {good}"):
        count = detector.write_references(good, object, out)
    console().print(f"{count} references of {object!r} in {out}", highlight=False, markup=False)
