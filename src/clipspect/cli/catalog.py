"""`clipspect models` and `clipspect methods`: what there is, by name."""

from __future__ import annotations

from typing import Annotated

import typer

from clipspect.cli.output import console


def models() -> None:
    """List the models by name, and what else may stand in their place."""
    from rich.table import Table

    from clipspect.backbones.presets import PRESETS

    columns = ("model", "size", "patch", "text", "license", "weights", "about")
    table = Table(*columns, title="Models", title_justify="left")
    for name, preset in PRESETS.items():
        size, patch = str(preset.image_size), str(preset.patch)
        text = "yes" if preset.text else "no"
        table.add_row(name, size, patch, text, preset.license, preset.source, preset.about)
    console().print(table)
    console().print(
        "Also: any ViT or ResNet of open_clip with --weights TAG or FILE (ViT-B-32, RN50 …), hf-hub:org/name,\n"
        "timm:NAME for a vision transformer of timm without text (timm:vit_small_patch14_reg4_dinov2),\n"
        "a folder with open_clip_config.json and weights, an OpenAI checkpoint file."
    )


def methods(
    name: Annotated[
        str | None, typer.Argument(help="Show one method's settings.", show_default=False)
    ] = None,
) -> None:
    """List the methods, or one method's settings for --set."""
    from rich.table import Table

    from clipspect.registry import list_methods

    if name is None:
        table = Table("method", "about", title="Methods", title_justify="left")
        for key, about in list_methods().items():
            table.add_row(key, about)
        console().print(table)
        console().print("Settings of one: [bold]clipspect methods anoclip[/bold]")
        return
    from clipspect.methods.describe import describe_settings

    table = Table("setting", "default", "about", title=f"Settings of {name}", title_justify="left")
    for setting, default, about in describe_settings(name):
        table.add_row(setting, default, about)
    console().print(table)
