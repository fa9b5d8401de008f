"""Long requests of the page, answered as JSON lines: progress, then the result. Inspections, and new profiles."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from time import perf_counter
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from clipspect.errors import ClipspectError
from clipspect.profile import Profile, read_profile
from clipspect.server.engine import Engine
from clipspect.server.errors import ServiceError, internal_error, service_error
from clipspect.server.middleware import log
from clipspect.server.product_store import NAME_PATTERN
from clipspect.server.requests import InspectRequest
from clipspect.server.schemas import ObjectName, PreparedImage
from clipspect.types import Step
from clipspect.ui.view import view_data

MAX_METHODS = 16


class Inspection(BaseModel):
    """Images to inspect. Files in multipart requests; references are known-good images."""

    model_config = ConfigDict(extra="forbid")

    object: Annotated[str, Field(max_length=80)] = ""
    images: list[PreparedImage] = Field(min_length=1)
    methods: list[str] = Field([], max_length=MAX_METHODS)
    model: str | None = None
    references: list[PreparedImage] = []
    profile: list[PreparedImage] = Field([], max_length=1)
    """Contents of a product profile, in place of object, methods, model and references."""
    product: str = ""
    """Name of a profile that the page was started with, in place of its contents."""

    @model_validator(mode="after")
    def _complete(self) -> Inspection:
        if self.profile and self.product:
            raise ValueError("give a profile or the name of one, not both")
        if self.has_profile and (self.object or self.methods or self.references):
            raise ValueError("a profile gives object, methods and known-good images; leave them out")
        if not self.has_profile and not (self.object and self.methods):
            raise ValueError("give object and methods, or a profile")
        return self

    @property
    def has_profile(self) -> bool:
        """Whether a profile gives object, methods and references."""
        return bool(self.profile or self.product)

    def to_request(self, default_model: str) -> InspectRequest:
        """Return the request in the engine's form; from three on, known-good images give a threshold too."""
        return InspectRequest(
            tuple(self.images),
            self.object,
            tuple(dict.fromkeys(self.methods)),
            "" if self.has_profile else self.model or default_model,
            tuple(self.references),
            calibrate=True,
        )


class NewProfile(BaseModel):
    """Known-good images to make a product profile of."""

    model_config = ConfigDict(extra="forbid")

    object: ObjectName
    images: list[PreparedImage] = Field(min_length=1)
    methods: list[str] = Field(min_length=1, max_length=MAX_METHODS)
    model: str | None = None
    name: str = Field(pattern=NAME_PATTERN)


class _StoppedError(Exception):
    """The client has left."""


def inspect_lines(
    engine: Engine, wanted: Inspection, default_model: str, served: Mapping[str, Profile]
) -> AsyncIterator[bytes]:
    """Yield JSON lines of an inspection; the result is the data of the viewer. ``served`` are profiles by name."""
    request = wanted.to_request(default_model)

    def work(step: Step) -> dict[str, Any]:
        started = perf_counter()
        product, methods = None, request.methods
        if wanted.has_profile:
            step("loading the profile", 0, 0)
            product = engine.product(_profile_of(wanted, served))
            methods = tuple(method.name for method in product.detector.methods)
        for progress in engine.inspect(request, step, product):
            step(progress.stage, progress.count, progress.total)
        step("drawing the results", 0, 0)
        seconds = perf_counter() - started
        good = len(wanted.references)
        return {"result": view_data(progress.detections, methods, request.images, seconds, good)}

    return _lines(work)


def profile_lines(engine: Engine, wanted: NewProfile, default_model: str) -> AsyncIterator[bytes]:
    """Yield JSON lines of a new profile; the result is its contents as base64."""

    def work(step: Step) -> dict[str, Any]:
        from clipspect.product import create_profile  # imports torch, which the page does not wait for

        detector = engine.detector(tuple(dict.fromkeys(wanted.methods)), wanted.model or default_model)
        with engine.alone():
            profile, _ = create_profile(detector, wanted.images, wanted.object, wanted.name, on_step=step)
        return {"profile": base64.b64encode(profile.to_bytes()).decode()}

    return _lines(work)


def _profile_of(wanted: Inspection, served: Mapping[str, Profile]) -> Profile:
    """Return the profile that was sent or named. Raises ProfileError, and ServiceError (404)."""
    if wanted.profile:
        return read_profile(wanted.profile[0])
    if wanted.product not in served:
        raise ServiceError(404, "unknown_product", "the page has no such profile; reload it")
    return served[wanted.product]


async def _lines(work: Callable[[Step], dict[str, Any]]) -> AsyncIterator[bytes]:
    """Yield {"stage", "done", "total", "seconds"} for each step of ``work``, then what it returns, or {"error"}.

    ``work`` runs in a thread. It stops at its next step when the iterator is closed.
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

    def run() -> None:
        try:
            emit(work(step))
        except _StoppedError:
            pass
        except ClipspectError as error:
            emit(service_error(error).body())
        except Exception:
            log.exception("a request of the page failed")
            emit(internal_error().body())
        finally:
            emit(None)

    threading.Thread(target=run, name="clipspect-inspection", daemon=True).start()
    try:
        while (line := await lines.get()) is not None:
            yield json.dumps(line, allow_nan=False).encode() + b"\n"
    finally:
        stopped.set()
