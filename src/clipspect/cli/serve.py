"""`clipspect ui` and `clipspect serve`: the page and the service, on this machine only unless --host is given."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from clipspect.cli import options as opt
from clipspect.cli.output import console
from clipspect.config import DetectorConfig
from clipspect.errors import UsageError
from clipspect.server.limits import Limits
from clipspect.server.settings import DETECTOR_OPTIONS, ServiceSettings

LOOPBACK = "127.0.0.1"
LISTEN = "Network"

HostOption = Annotated[
    str,
    typer.Option("--host", help="Address to listen on; 0.0.0.0 = all of them.", rich_help_panel=LISTEN),
]


@opt.detector_options(
    "weights", "image_size", "device", "precision", "set_size", "aspect", "tile", "bit_depth", "window", "domain",
    "prompts",
)  # fmt: skip
@opt.options_of("settings", ServiceSettings, "models", "profiles")
@opt.options_of("limits", Limits, "images", "image_mb", "pixels", images=200)
def ui(
    config: DetectorConfig,
    settings: ServiceSettings,
    limits: Limits,
    host: HostOption = LOOPBACK,
    port: Annotated[int, typer.Option("--port", help="Port of the page.", rich_help_panel=LISTEN)] = 7860,
    line: Annotated[
        Path | None,
        typer.Option(
            "--line", help="Show the operator's view of a watch: its results folder.", show_default=False
        ),
    ] = None,
    shifts: Annotated[
        str, typer.Option("--shifts", help="With --line: when shifts begin.")
    ] = "06:00,14:00,22:00",
) -> None:
    """Open a page for people: drop images, name the object, look at what is wrong with them."""
    _need("fastapi", "ui")
    from clipspect.ui.host import serve_line, serve_page

    address = f"http://{_shown(host)}:{port}/ (stop it with Ctrl-C)"
    if line is not None:
        said = f"the operator's view of {line} is at {address}"
        serve_line(
            line,
            shifts,
            host=host,
            port=port,
            ready=lambda: console(stderr=True).print(said, highlight=False),
        )
        return
    limits = replace(limits, references=limits.images, body_mb=2 * limits.image_mb * limits.images)
    said = f"the page is at {address}"
    serve_page(
        settings,
        limits,
        config,
        host=host,
        port=port,
        ready=lambda: console(stderr=True).print(said, highlight=False),
    )


@opt.detector_options(*DETECTOR_OPTIONS)
@opt.options_of("settings", ServiceSettings)
@opt.options_of("limits", Limits)
def serve(
    config: DetectorConfig,
    settings: ServiceSettings,
    limits: Limits,
    port: Annotated[int, typer.Option("--port", help="Port of the service.", rich_help_panel=LISTEN)] = 8000,
    host: HostOption = LOOPBACK,
) -> None:
    """Run the REST service on this machine; with several --replicas on Ray Serve. On a cluster: docs/service.md."""
    _need("fastapi", "serve")
    from clipspect.server.service import run_service

    settings = replace(
        settings,
        config=config,
        limits=limits,
        references=settings.references.resolve(),
        products=settings.products.resolve(),
        decision_log=settings.decision_log and settings.decision_log.resolve(),
        api_key_file=settings.api_key_file and settings.api_key_file.resolve(),
    )
    if settings.needs_ray:
        _need("ray", "serve")
    out = console(stderr=True)
    key = "an API key is asked for" if settings.api_keys() else "no API key is asked for"
    out.print("starting Ray and loading the models" if settings.needs_ray else "loading the models")
    run_service(
        settings,
        host=host,
        port=port,
        ready=lambda: out.print(
            f"the service is at http://{_shown(host)}:{port}/, {key} (stop it with Ctrl-C)", highlight=False
        ),
    )


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _need(module: str, extra: str) -> None:
    if find_spec(module) is None:
        raise UsageError(f"this needs the extra [{extra}]: pip install 'clipspect[{extra}]'")
