"""A service in this process, over the small model: the routes without Ray."""

from __future__ import annotations

import asyncio
import io
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from helpers.images import plate

MEGABYTE = 1_000_000


def free_port() -> int:
    """A free port of the loopback address."""
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


@pytest.fixture
def backend(engine, small_model):
    """The product's backend in this process; a test may hold requests before they are scored."""
    from clipspect.server.local import LocalBackend
    from clipspect.server.settings import ServiceSettings

    class HeldBackend(LocalBackend):
        hold: Callable[[], None] = staticmethod(lambda: None)

        async def detect(self, request, include, seconds):
            await asyncio.to_thread(self.hold)
            return await super().detect(request, include, seconds)

    return HeldBackend(engine, ServiceSettings(models=(str(small_model),)))


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
