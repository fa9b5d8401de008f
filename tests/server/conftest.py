"""A service in this process, over the small model: the routes without Ray."""

from __future__ import annotations

import asyncio
import io
import socket
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pytest
from PIL import Image

from helpers.images import plate

MEGABYTE = 1_000_000


def free_port() -> int:
    """A port of the loopback address that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def photo(seed: int = 0, *, kind: str = "PNG", blot: bool = True, size: tuple[int, int] = (60, 80)) -> bytes:
    """The file of an image of a plate."""
    buffer = io.BytesIO()
    Image.fromarray(plate(seed, blot=blot, height=size[0], width=size[1])).save(buffer, kind)
    return buffer.getvalue()


def picture_of(data: bytes) -> np.ndarray:
    """A picture's values."""
    return np.asarray(Image.open(io.BytesIO(data)))


@pytest.fixture
def engine(small_model: Path, tmp_path: Path):
    """An engine over the small model."""
    from clipspect.config import DetectorConfig
    from clipspect.server.engine import Engine

    return Engine(
        (str(small_model),), references=tmp_path / "references", config=DetectorConfig(batch_size=4)
    )


class LocalBackend:
    """An engine in this process, one request at a time."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self.hold: Callable[[], None] = lambda: None

    async def detect(self, inquiry, include, seconds):
        from clipspect.errors import ClipspectError
        from clipspect.server.engine import PendingRequest
        from clipspect.server.errors import service_error
        from clipspect.server.responses import Answer, describe

        started = perf_counter()
        await asyncio.to_thread(self.hold)
        (found,) = await asyncio.to_thread(self.engine.answer, [PendingRequest(inquiry, seconds)])
        if isinstance(found, ClipspectError):
            return Answer("", [], 1, 0.0, service_error(found))
        return Answer(found[0].weights, describe(found, include), 1, perf_counter() - started)

    async def keep_references(self, inquiry):
        return await asyncio.to_thread(self.engine.keep_references, inquiry)

    async def catalogue(self):
        return self.engine.catalogue()


@pytest.fixture
def backend(engine):
    return LocalBackend(engine)


@pytest.fixture
def service(backend, small_model):
    """Makes a client of a service with the settings given."""
    from starlette.testclient import TestClient

    from clipspect.server.app import create_app
    from clipspect.server.settings import ServiceSettings

    def make(**settings: Any) -> TestClient:
        app = create_app(backend, ServiceSettings(models=(str(small_model),), **settings))
        return TestClient(app, raise_server_exceptions=False)

    return make


@pytest.fixture
def client(service):
    return service()
