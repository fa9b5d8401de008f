"""`POST /v1/inspect`: one inspection of the page as a stream of JSON lines: progress, then the viewer's data."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from time import perf_counter
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from clipspect.errors import ClipspectError
from clipspect.server.engine import Engine, InspectRequest
from clipspect.server.errors import internal_error, service_error
from clipspect.server.middleware import log
from clipspect.server.schemas import ObjectName, PreparedImage
from clipspect.ui.view import view_data

MAX_METHODS = 16


class Inspection(BaseModel):
    """Images to inspect. Files in multipart requests; references are known-good images."""

    model_config = ConfigDict(extra="forbid")

    object: ObjectName
    images: list[PreparedImage] = Field(min_length=1)
    methods: list[str] = Field(min_length=1, max_length=MAX_METHODS)
    model: str | None = None
    references: list[PreparedImage] = []

    def inquiry(self, default_model: str) -> InspectRequest:
        """Return the request in the engine's form; from three on, known-good images give a threshold too."""
        return InspectRequest(
            tuple(self.images),
            self.object,
            tuple(dict.fromkeys(self.methods)),
            self.model or default_model,
            tuple(self.references),
            calibrate=True,
        )


class _StoppedError(Exception):
    """The client has left."""


async def inspect_lines(engine: Engine, inquiry: InspectRequest) -> AsyncIterator[bytes]:
    """Yield JSON lines: {"stage", "done", "total", "seconds"} while it works, then {"result"} or {"error"}.

    The engine runs in a thread. It stops at its next step when the iterator is closed.
    """
    loop, stopped = asyncio.get_running_loop(), threading.Event()
    lines: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
    started = perf_counter()

    def emit(line: dict[str, Any] | None) -> None:
        loop.call_soon_threadsafe(lines.put_nowait, line)

    def step(stage: str, done: int, total: int) -> None:
        if stopped.is_set():
            raise _StoppedError
        emit({"stage": stage, "done": done, "total": total, "seconds": perf_counter() - started})

    def work() -> None:
        try:
            for progress in engine.inspect(inquiry, step):
                step(progress.stage, progress.count, progress.total)
            step("drawing the results", 0, 0)
            seconds = perf_counter() - started
            emit({"result": view_data(progress.detections, inquiry.methods, inquiry.images, seconds)})
        except _StoppedError:
            pass
        except ClipspectError as error:
            emit(service_error(error).body())
        except Exception:
            log.exception("an inspection failed")
            emit(internal_error().body())
        finally:
            emit(None)

    thread = threading.Thread(target=work, name="clipspect-inspection", daemon=True)
    thread.start()
    try:
        while (line := await lines.get()) is not None:
            yield json.dumps(line, allow_nan=False).encode() + b"\n"
    finally:
        stopped.set()
