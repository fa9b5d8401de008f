"""Server of the page, until it is stopped. No data leaves the machine."""

from __future__ import annotations

import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from clipspect.config import DetectorConfig
from clipspect.errors import ClipspectError, ProfileError
from clipspect.profile import Profile, read_profile
from clipspect.server.engine import Engine
from clipspect.server.http_server import HttpServer, check_port
from clipspect.server.limits import Limits
from clipspect.server.local import LocalBackend
from clipspect.server.middleware import log
from clipspect.server.settings import ServiceSettings
from clipspect.ui.line import create_line_page, line_state, parse_shifts
from clipspect.ui.page import create_page

LOOPBACK_NAMES = frozenset({"127.0.0.1", "localhost", "::1"})
"""Names of this machine for itself."""
TIME_LIMIT_S = 6 * 3600
"""Longest inspection: the page shows its progress and can stop it."""


def page_settings(models: tuple[str, ...], limits: Limits) -> ServiceSettings:
    """Return the settings of the page's service: no API key, because a browser could not keep it secret."""
    # four inspections at once: each may hold as many images as the limits allow
    return ServiceSettings(
        models=models, limits=limits, time_limit=TIME_LIMIT_S, has_key=False, batch=2, queue=0
    )


def serve_line(out: Path, shifts: str, *, host: str, port: int, ready: Callable[[], Any]) -> None:
    """Serve the operator's view of a watch until SIGINT or SIGTERM.

    Raises UsageError if the port is in use, or for impossible shifts, and ResultsError if no watch writes to ``out``.
    """
    moments = parse_shifts(shifts)
    line_state(out, moments, datetime.now())
    check_port(host, port)
    stopped = threading.Event()
    hosts = LOOPBACK_NAMES if host in LOOPBACK_NAMES else None
    server = HttpServer(create_line_page(out, moments, hosts=hosts), host=host, port=port)
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stopped.set())
        ready()
        while not stopped.wait(1):  # with a time limit, so that Windows delivers Ctrl-C
            pass
    finally:
        server.stop()


@contextmanager
def page_server(
    engine: Engine, limits: Limits, *, host: str, port: int, profiles: Sequence[Path] = ()
) -> Iterator[HttpServer]:
    """Serve the page over an engine while the block runs.

    Args:
        engine: scores the images.
        limits: of requests.
        host: address to listen on.
        port: to listen on.
        profiles: files of product profiles that the page offers; it opens with the first.

    Raises:
        UsageError: the port is in use.
        ProfileError: a profile that cannot be read or used.
    """
    check_port(host, port)
    loaded = [_load_profile(engine, path) for path in profiles]
    settings = page_settings(engine.models, limits)
    hosts = LOOPBACK_NAMES if host in LOOPBACK_NAMES else None
    app = create_page(LocalBackend(engine, settings), settings, loaded, hosts=hosts)
    server = HttpServer(app, host=host, port=port)
    try:
        yield server
    finally:
        server.stop()


def serve_page(
    settings: ServiceSettings,
    limits: Limits,
    config: DetectorConfig,
    *,
    host: str,
    port: int,
    ready: Callable[[], Any],
) -> None:
    """Serve the page until SIGINT or SIGTERM; call ``ready`` when it listens.

    The models load meanwhile. Profiles of the settings load before.

    Raises UsageError if the port is in use, and ProfileError for a profile that cannot be read or used.
    """
    stopped = threading.Event()
    with tempfile.TemporaryDirectory(prefix="clipspect-references-") as folder:
        options = config.replace(max_pixels=limits.pixels)
        engine = Engine(settings.models, references=Path(folder), config=options)
        with page_server(engine, limits, host=host, port=port, profiles=settings.profiles):
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, lambda *_: stopped.set())
            ready()
            threading.Thread(target=_load, args=(engine,), name="clipspect-loading", daemon=True).start()
            while not stopped.wait(1):  # with a time limit, so that Windows delivers Ctrl-C
                pass


def _load_profile(engine: Engine, path: Path) -> Profile:
    """Return the profile of a file after loading it once. Raises ProfileError, which names the file."""
    profile = read_profile(path)
    try:
        engine.product(profile)
    except ClipspectError as error:
        raise ProfileError(f"{path}: {error}") from error
    return profile


def _load(engine: Engine) -> None:
    """Load the models before the first image. An error is shown again when an image is inspected."""
    try:
        engine.load()
    except ClipspectError as error:
        log.error("the models cannot be loaded: %s", error)
