"""`clipspect watch`: judge images as they arrive in a folder, or the frames of a camera, stream or video."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from clipspect.cli import options as opt
from clipspect.cli.output import console
from clipspect.cli.profile import open_product
from clipspect.config import DetectorConfig
from clipspect.errors import UsageError
from clipspect.postprocess.verdict import WORDS
from clipspect.types import plural

SOURCE = "Source"
ACTIONS = "Actions"
SECRET = "CLIPSPECT_WEBHOOK_SECRET"


@opt.detector_options("model", "weights", "device", "max_pixels", "batch_size")
def watch(
    source: Annotated[
        str,
        typer.Argument(
            help="A folder; or a camera (0), a stream (rtsp://…) or a video file, with clipspect\\[video].",
            show_default=False,
        ),
    ],
    config: DetectorConfig,
    profile: Annotated[
        Path,
        typer.Option(
            "--profile", help="The product's profile (clipspect profile create).", show_default=False
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Results folder.", show_default=False)],
    once: Annotated[
        bool, typer.Option("--once", help="Stop when nothing waits, instead of watching on.")
    ] = False,
    poll: Annotated[
        float, typer.Option("--poll", min=0.05, help="Seconds between two looks.", rich_help_panel=SOURCE)
    ] = 1.0,
    settle: Annotated[
        float,
        typer.Option(
            "--settle",
            min=0,
            help="A file is complete after so many seconds unchanged.",
            rich_help_panel=SOURCE,
        ),
    ] = 1.0,
    every: Annotated[
        int, typer.Option("--every", min=1, help="Of a video: each n-th frame.", rich_help_panel=SOURCE)
    ] = 1,
    move_to: Annotated[
        Path | None,
        typer.Option(
            "--move-to", help="Move images to ok/, ng/ or error/ in this folder.", rich_help_panel=ACTIONS
        ),
    ] = None,
    copy_to: Annotated[
        Path | None,
        typer.Option(
            "--copy-to", help="Copy images to ok/, ng/ or error/ in this folder.", rich_help_panel=ACTIONS
        ),
    ] = None,
    webhook: Annotated[
        str | None,
        typer.Option("--webhook", help="POST each verdict to this address, signed.", rich_help_panel=ACTIONS),
    ] = None,
    webhook_secret_file: Annotated[
        Path | None,
        typer.Option(
            "--webhook-secret-file",
            help=f"File with the key of the signatures \\[default: ${SECRET}].",
            rich_help_panel=ACTIONS,
            show_default=False,
        ),
    ] = None,
    mqtt: Annotated[
        str | None,
        typer.Option(
            "--mqtt",
            help="Publish each verdict: mqtt://host/topic, with clipspect\\[mqtt].",
            rich_help_panel=ACTIONS,
        ),
    ] = None,
    run: Annotated[
        str | None,
        typer.Option(
            "--run", help="Run this program with each verdict as JSON on its input.", rich_help_panel=ACTIONS
        ),
    ] = None,
    overlays: Annotated[
        bool, typer.Option("--overlays/--no-overlays", help="Draw overlays of flagged images.")
    ] = True,
    report: opt.ReportOption = True,
    as_json: opt.JsonOption = False,
) -> None:
    """Judge images as they arrive, each once: clipspect watch incoming/ --profile bracket.clipspect -o line3.

    A stopped or killed watch continues where it was. Actions are repeated until they succeed: docs/line.md.
    """
    folder = Path(source)
    if move_to is not None and copy_to is not None:
        raise UsageError("give --move-to or --copy-to, not both")
    targets = _targets(folder, move_to, copy_to, webhook, webhook_secret_file, mqtt, run)
    if not folder.is_dir() and (move_to or copy_to):
        raise UsageError("--move-to and --copy-to are for folders; frames of a video are no files")
    product = open_product(profile, config)
    from clipspect.watch.journal import DEAD_LETTERS
    from clipspect.watch.targets import shown_address
    from clipspect.watch.watcher import Watcher

    out_console, err = console(), console(stderr=True)

    def say(text: str) -> None:
        err.print(text, style="yellow", highlight=False, markup=False, soft_wrap=True)

    def show(event: Mapping[str, Any]) -> None:
        if as_json:
            import json

            print(json.dumps(event), flush=True)
        else:
            _print_event(out_console, event)

    stop = threading.Event()
    watcher = Watcher(
        product, _source(folder, source, settle, every, (move_to, copy_to), out, once), out, targets,
        config.batch_size, poll, overlays, say, show, stop,
    )  # fmt: skip
    before = {name: signal.signal(name, lambda *_: stop.set()) for name in (signal.SIGINT, signal.SIGTERM)}
    err.print(
        f"watching {shown_address(source)} with {product.profile.label}" + ("" if once else " (stop it with Ctrl-C)"),
        highlight=False, markup=False, soft_wrap=True,
    )  # fmt: skip
    try:
        counts = watcher.run(once=once)
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
    said = ", ".join(f"{count} {WORDS[name]}" for name, count in sorted(counts.verdicts.items()))
    err.print(f"{plural(counts.images, 'image')} judged" + (f": {said}" if said else ""), highlight=False)
    waiting = watcher.waiting()
    if waiting.get("waiting"):
        say(f"{plural(waiting['waiting'], 'action')} not delivered yet; the next watch resumes them")
    if waiting.get("given up"):
        say(f"{plural(waiting['given up'], 'action')} given up: {out / DEAD_LETTERS}")
    if report and counts.images:
        err.print(f"report: {watcher.report()}", highlight=False, markup=False, soft_wrap=True)


def _source(
    folder: Path,
    source: str,
    settle: float,
    every: int,
    places: tuple[Path | None, ...],
    out: Path,
    once: bool,
) -> Any:
    from clipspect.watch.sources import FolderSource
    from clipspect.watch.video import Camera, VideoFile

    if folder.is_file():
        return VideoFile(folder, every)
    if not folder.is_dir():
        if "://" not in source and not source.isdigit():
            raise UsageError(f"{source}: no such folder; create it, or give a camera, stream or video file")
        if once:
            raise UsageError("--once is for folders and video files; a camera or stream does not end")
        return Camera(source, every)
    skip = tuple(place.resolve() for place in (*places, out) if place is not None)
    if folder.resolve() in skip:
        raise UsageError(f"{folder} is watched; images and results need another folder")
    return FolderSource(folder, settle, skip=skip)


def _targets(
    folder: Path,
    move_to: Path | None,
    copy_to: Path | None,
    webhook: str | None,
    secret_file: Path | None,
    mqtt: str | None,
    run: str | None,
) -> list[Any]:
    from clipspect.watch.targets import Command, FileTarget, Mqtt, Webhook

    targets: list[Any] = []
    place = move_to or copy_to
    if webhook is not None:
        secret = secret_file.read_bytes().strip() if secret_file else os.environ.get(SECRET, "").encode()
        if not secret:
            raise UsageError(f"--webhook signs what it sends: give --webhook-secret-file or set ${SECRET}")
        targets.append(Webhook(webhook, secret))
    if mqtt is not None:
        targets.append(Mqtt(mqtt))
    if run is not None:
        targets.append(Command(run))
    if place is not None:
        targets.append(FileTarget(place, folder, moves=move_to is not None))
    return targets


def _print_event(out: Any, event: Mapping[str, Any]) -> None:
    verdict = WORDS[str(event["verdict"])]
    score = "" if event["score"] is None else f"  {event['score']:.3f}"
    reason = f"  {event['error']}" if event["error"] else ""
    style = {"clean": "green", "undecided": ""}.get(str(event["verdict"]), "bold red")
    text = f"{verdict:<10}{score}  {event['path']}{reason}"
    out.print(text, style=style, highlight=False, markup=False, soft_wrap=True)
