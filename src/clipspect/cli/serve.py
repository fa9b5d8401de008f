"""`clipspect ui` and `clipspect serve`: the page and the service, on this machine only unless --host is given."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from clipspect.cli import options as opt
from clipspect.cli.output import console
from clipspect.config import MODEL, REFERENCES, DetectorConfig
from clipspect.errors import UsageError

LOOPBACK = "127.0.0.1"
LISTEN = "Network"
SCALE = "Scale"
SAFETY = "Safety"

ModelsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--model", help="A model that may be asked for. Repeatable, the first is the default \\[default: tiny].",
        rich_help_panel=MODEL, show_default=False,
    ),
]  # fmt: skip
HostOption = Annotated[
    str,
    typer.Option("--host", help="Address to listen on; 0.0.0.0 = all of them.", rich_help_panel=LISTEN),
]
MaxImagesOption = Annotated[
    int, typer.Option("--max-images", min=1, help="Images at once.", rich_help_panel=SAFETY)
]
MaxMegabytesOption = Annotated[
    float, typer.Option("--max-mb", help="Megabytes of one image.", rich_help_panel=SAFETY)
]
MaxPixelsOption = Annotated[
    int,
    typer.Option("--max-pixels", min=1, help="Pixels of one image.", rich_help_panel=SAFETY),
]


@opt.detector_options(
    "weights", "image_size", "device", "precision", "set_size", "aspect", "tile", "bit_depth", "window", "domain",
    "prompts",
)  # fmt: skip
def ui(
    config: DetectorConfig,
    host: HostOption = LOOPBACK,
    port: Annotated[int, typer.Option("--port", help="Port of the page.", rich_help_panel=LISTEN)] = 7860,
    model: ModelsOption = None,
    line: Annotated[
        Path | None,
        typer.Option(
            "--line", help="Show the operator's view of a watch: its results folder.", show_default=False
        ),
    ] = None,
    shifts: Annotated[
        str, typer.Option("--shifts", help="With --line: when shifts begin.")
    ] = "06:00,14:00,22:00",
    max_images: MaxImagesOption = 200,
    max_mb: MaxMegabytesOption = 24,
    max_pixels: MaxPixelsOption = 50_000_000,
) -> None:
    """Open a page for people: drop images, name the object, look at what is wrong with them."""
    _need("fastapi", "ui")
    from clipspect.server.limits import Limits
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
    limits = Limits(
        images=max_images,
        references=max_images,
        image_mb=max_mb,
        pixels=max_pixels,
        body_mb=2 * max_mb * max_images,
    )
    said = f"the page is at {address}"
    serve_page(
        tuple(model or ["tiny"]),
        limits,
        config,
        host=host,
        port=port,
        ready=lambda: console(stderr=True).print(said, highlight=False),
    )


@opt.detector_options("weights", "image_size", "device", "precision", "aspect", "tile", "bit_depth", "domain")
def serve(
    config: DetectorConfig,
    port: Annotated[int, typer.Option("--port", help="Port of the service.", rich_help_panel=LISTEN)] = 8000,
    host: HostOption = LOOPBACK,
    model: ModelsOption = None,
    references: Annotated[
        Path,
        typer.Option("--references", help="Folder of kept references.", rich_help_panel=REFERENCES),
    ] = Path("clipspect-references"),
    products: Annotated[
        Path,
        typer.Option("--products", help="Folder of product profiles.", rich_help_panel=REFERENCES),
    ] = Path("clipspect-products"),
    profile: Annotated[
        list[Path] | None,
        typer.Option(
            "--profile",
            help="A profile that becomes a product, named like its file. Repeatable; brings its model along.",
            rich_help_panel=REFERENCES,
            show_default=False,
        ),
    ] = None,
    replicas: Annotated[
        int, typer.Option("--replicas", min=1, help="Copies of the models.", rich_help_panel=SCALE)
    ] = 1,
    cpus: Annotated[
        float,
        typer.Option(
            "--cpus", help="CPUs of each replica; another number than 1 needs Ray.", rich_help_panel=SCALE
        ),
    ] = 1,
    gpus: Annotated[
        float,
        typer.Option("--gpus", help="GPUs of each replica; a share of one needs Ray.", rich_help_panel=SCALE),
    ] = 0,
    batch: Annotated[
        int, typer.Option("--batch", min=1, help="Most requests scored together.", rich_help_panel=SCALE)
    ] = 16,
    batch_wait_ms: Annotated[
        float,
        typer.Option("--batch-wait-ms", min=0, help="Longest wait for others.", hidden=True),
    ] = 2,
    queue: Annotated[
        int,
        typer.Option("--queue", min=0, help="Requests that may wait; more get 429.", rich_help_panel=SCALE),
    ] = 64,
    time_limit: Annotated[
        float, typer.Option("--time-limit", help="Seconds for one request.", rich_help_panel=SAFETY)
    ] = 60,
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            "--api-key-file",
            help="Ask for a key of this file, one per line, name: key \\[default: $CLIPSPECT_API_KEY, or none].",
            rich_help_panel=SAFETY,
            show_default=False,
        ),
    ] = None,
    decision_log: Annotated[
        Path | None,
        typer.Option(
            "--decision-log",
            help="Append every decision to this file, without images.",
            rich_help_panel=SAFETY,
            show_default=False,
        ),
    ] = None,
    max_images: MaxImagesOption = 16,
    max_mb: MaxMegabytesOption = 24,
    max_pixels: MaxPixelsOption = 50_000_000,
    max_body_mb: Annotated[
        float, typer.Option("--max-body-mb", help="Megabytes of one request.", rich_help_panel=SAFETY)
    ] = 64,
) -> None:
    """Run the REST service on this machine; with several --replicas on Ray Serve. On a cluster: docs/service.md."""
    _need("fastapi", "serve")
    from pydantic import ValidationError

    from clipspect.profile import read_profile
    from clipspect.server.limits import Limits
    from clipspect.server.service import run_service
    from clipspect.server.settings import ServiceSettings

    profiles = tuple(path.resolve() for path in profile or ())
    needed = dict.fromkeys(read_profile(path).backbone.model for path in profiles)
    if len({path.name for path in profiles}) < len(profiles):
        raise UsageError("two profiles have one file name, which names the product; rename one of them")
    try:
        settings = ServiceSettings(
            models=tuple(model or needed or ["tiny"]),
            profiles=profiles,
            weights=config.weights,
            image_size=config.image_size,
            device=config.device,
            precision=config.precision,  # type: ignore[arg-type]
            aspect=config.aspect,
            tile=config.tile,
            bit_depth=config.bit_depth,
            domain=config.domain,
            references=references.resolve(),
            products=products.resolve(),
            decision_log=decision_log and decision_log.resolve(),
            limits=Limits(body_mb=max_body_mb, image_mb=max_mb, pixels=max_pixels, images=max_images),
            replicas=replicas,
            cpus=cpus,
            gpus=gpus,
            batch=batch,
            batch_wait_ms=batch_wait_ms,
            queue=queue,
            time_limit=time_limit,
            api_key_file=api_key_file and api_key_file.resolve(),
        )
    except ValidationError as error:
        first: Any = error.errors()[0]
        raise UsageError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None

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
