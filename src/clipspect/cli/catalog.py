"""`clipspect models` and `clipspect methods`: what there is, by name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clipspect.cli import options as opt
from clipspect.cli.output import console
from clipspect.cli.strict import PlainGroup, StrictCommand
from clipspect.config import DetectorConfig

models_app = typer.Typer(
    cls=PlainGroup,
    help="List models, fetch one for use offline, or measure a model's level for one image alone.",
)


@models_app.callback(invoke_without_command=True)
def models(context: typer.Context) -> None:
    """List the models by name, and what else may stand in their place."""
    if context.invoked_subcommand is not None:
        return
    from rich.table import Column, Table

    from clipspect.backbones.presets import PRESETS

    columns = ("size", "patch", "text", "license", "weights", "about")
    table = Table(
        Column("model", no_wrap=True),
        *columns,
        title="Models",
        title_justify="left",
        box=None,
        padding=(0, 1),
    )
    for name, preset in PRESETS.items():
        size, patch = str(preset.image_size), str(preset.patch)
        text = "yes" if preset.text else "no"
        table.add_row(name, size, patch, text, preset.license, preset.source, preset.about)
    console().print(table)
    console().print(
        "Also: any ViT or ResNet of open_clip with --weights TAG or FILE (ViT-B-32, RN50 …), hf-hub:org/name,\n"
        "timm:NAME for a vision transformer of timm without text (timm:vit_small_patch14_reg4_dinov2),\n"
        "a folder with weights and open_clip_config.json, or config.json of timm, an OpenAI checkpoint file.\n"
        "For a machine without a network: clipspect models fetch NAME --to FOLDER, then --model FOLDER."
    )


@models_app.command(cls=StrictCommand)
@opt.detector_options("weights", "image_size")
def show(
    model: Annotated[str, typer.Argument(help="A preset, or what else --model takes.")],
    config: DetectorConfig,
) -> None:
    """Load a model and show which weights it has: source, SHA-256 of a downloaded file, and fingerprint.

    The fingerprint is the SHA-256 over all tensors. It is the same in every file format and on every machine.
    """
    from rich.table import Table

    from clipspect.backbones.features import resolve_start
    from clipspect.backbones.loader import load_backbone

    backbone = load_backbone(model, config.weights, image_size=config.image_size, device="cpu")
    file = backbone.weights_file
    facts = {
        "model": backbone.name,
        "weights": backbone.weights,
        "source": "this machine" if file is None else file.source,
        "SHA-256": "" if file is None else f"{file.sha256} ({_published(file.published)})",
        "fingerprint": backbone.fingerprint,
        "input": f"{backbone.image_size} px, patches of {backbone.patch} px",
        "blocks": f"{backbone.depth}, V-V stream from block {resolve_start('auto', backbone.depth) + 1}",
        "text tower": "yes" if backbone.has_text else "no",
    }
    table = Table(box=None, show_header=False, padding=(0, 1))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        if value:
            table.add_row(name, value)
    console().print(table, highlight=False)


def _published(digits: str) -> str:
    if not digits:
        return "none is published"
    return "as published" if len(digits) == 64 else f"as published: {digits}…"


@models_app.command(cls=StrictCommand)
def fetch(
    name: Annotated[str, typer.Argument(help="A model of this list, or timm:NAME.", show_default=False)],
    to: Annotated[
        Path | None,
        typer.Option(
            "--to",
            help="Write a folder that works offline on another machine [default: the hub's cache here].",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Download a model's files; print size, license and SHA-256.

    With --to the files go into a separate folder. Copy it to another machine and pass it with --model FOLDER.
    """
    from clipspect.backbones.fetch import fetch_model, license_of

    with console(stderr=True).status(f"fetching {name}"):
        files = fetch_model(name, to)
    for file in files:
        line = f"{file.sha256}  {file.path.name}  {file.size / 1e6:.1f} MB"
        console().print(line, highlight=False, soft_wrap=True)
    console().print(f"license of the weights: {license_of(name)}", highlight=False)
    where = name if to is None else str(to)
    console().print(f"use it with: --model {where}", highlight=False, soft_wrap=True)


@models_app.command(cls=StrictCommand)
@opt.detector_options("model", "weights", "image_size", "device", method="anoclip")
def calibrate(
    config: DetectorConfig,
    images: Annotated[
        Path | None,
        typer.Option(
            "--images", help="Clean images, 100 or more \\[default: rendered scenes].", show_default=False
        ),
    ] = None,
    object: Annotated[str, typer.Option("--object", help="What is on --images.")] = "object",
    scenes: Annotated[int, typer.Option("--scenes", min=100, help="Rendered scenes.")] = 300,
) -> None:
    """Measure from which peak on the map of one image alone is suspicious, and keep it for this model.

    The level of a model with other weights or another input size is another one. Known-good images of your product
    (detect --good) are better than any level.
    """
    from clipspect.backbones.levels import level_cache, measure_level, write_levels
    from clipspect.cli.run import load_detector

    detector = load_detector(config)
    backbone = detector.backbone
    if images is None:
        from clipspect.training.calibrate import level_on_scenes

        with console(stderr=True).status(f"scoring {scenes} rendered scenes"):
            found = level_on_scenes(detector, scenes, f"clipspect models calibrate --scenes {scenes}")
    else:
        with console(stderr=True).status(f"scoring the clean images in {images}"):
            scored = [d.summary for d in detector.detect(images, object=object) if d.error is None]
        found = measure_level("anoclip", scored, backbone.image_size, "clipspect models calibrate --images")
    path = level_cache(backbone.fingerprint, backbone.image_size)
    write_levels(path, found)
    level = found["levels"]["anoclip"]
    console().print(
        f"{backbone.name} at {backbone.image_size} px: suspicious from a peak of {level['peak']:.4f}"
        f" ({level['images']} clean images)",
        highlight=False,
    )


def methods(
    name: Annotated[
        str | None, typer.Argument(help="Show one method's settings.", show_default=False)
    ] = None,
) -> None:
    """List the methods, or one method's settings for --set."""
    from rich.table import Column, Table

    from clipspect.registry import describe_settings, list_methods

    if name is None:
        table = Table(Column("method", no_wrap=True), "about", title="Methods", title_justify="left")
        for key, about in list_methods().items():
            table.add_row(key, about)
        console().print(table)
        console().print("Settings of one: [bold]clipspect methods anoclip[/bold]")
        return
    table = Table(
        Column("setting", no_wrap=True), "default", "about", title=f"Settings of {name}", title_justify="left"
    )
    for setting, default, about in describe_settings(name):
        table.add_row(setting, default, about)
    console().print(table)
