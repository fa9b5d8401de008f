"""`clipspect demo`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from clipspect.cli.output import console, print_summary
from clipspect.cli.run import calibrate, load_detector, run_with_progress
from clipspect.config import DetectorConfig


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
    from clipspect.demo import DEMO_GOOD, DEMO_IMAGES, DEMO_METHOD, DEMO_OBJECT
    from clipspect.results.run import LocalEngine

    if photos is not None:
        _write_samples(photos, DEMO_IMAGES, DEMO_GOOD)
        return
    detector = load_detector(DetectorConfig(DEMO_METHOD))
    good = calibrate(detector, DEMO_OBJECT, DEMO_GOOD, None, {})
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
