"""`clipspect references`: encoded references kept in one file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clipspect.cli import options as opt
from clipspect.cli.output import console
from clipspect.cli.run import load_detector
from clipspect.cli.strict import PlainGroup, StrictCommand
from clipspect.config import DetectorConfig
from clipspect.types import plural

references_app = typer.Typer(
    cls=PlainGroup,
    help="Encoded known-good references, kept in one file and used with detect --reference.",
    no_args_is_help=True,
)


@references_app.callback()
def _references() -> None:
    """Encoded known-good references, kept in one file and used with detect --reference."""


@references_app.command(cls=StrictCommand)
@opt.detector_options(
    "method", "settings", "model", "visual_model", "weights", "image_size", "device", "precision", "aspect",
    "interpolation", "tile", "max_pixels", "bit_depth", "window", method="dual-image",
)  # fmt: skip
def build(
    good: Annotated[Path, typer.Argument(help="A known-good image, or a folder.", show_default=False)],
    object: Annotated[
        str,
        typer.Option("--object", help="What is on them, in plain words: 'metal nut'.", show_default=False),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="File to write, such as bottle.refs.", show_default=False)
    ],
    config: DetectorConfig,
) -> None:
    """Encode known-good images once: clipspect references build good/ --object bottle -o bottle.refs."""
    detector = load_detector(config)
    with console(stderr=True).status(f"encoding the references in {good}"):
        count = detector.write_references(good, object, out)
    console().print(
        f"{plural(count, 'reference')} of {object!r} in {out}", highlight=False, markup=False, soft_wrap=True
    )
