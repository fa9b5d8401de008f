"""Middleware: API key, admission, size and time limits, logging and metrics, applied before reading the body."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
from time import perf_counter
from uuid import uuid4

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clipspect.server.errors import ServiceError, internal_error
from clipspect.server.limits import MEGABYTE
from clipspect.server.settings import ServiceSettings

OPEN_PATHS = frozenset({"/healthz", "/readyz"})
"""Paths that monitoring requests without a key."""
log = logging.getLogger("clipspect.service")


def log_requests() -> None:
    """Log requests and errors to standard error."""
    logging.basicConfig(format="%(asctime)s %(name)s %(message)s")
    log.setLevel(logging.INFO)


class Metrics:
    """Prometheus metrics of the service."""

    def __init__(self) -> None:
        """Create metrics in a separate registry, because several services may share one process."""
        self.registry = CollectorRegistry()
        own = self.registry
        self.requests = Counter("clipspect_requests", "Requests answered.", ["path", "status"], registry=own)
        self.seconds = Histogram(
            "clipspect_request_seconds", "Seconds from first byte to response.", ["path"], registry=own
        )
        self.ongoing = Gauge("clipspect_requests_ongoing", "Requests in progress.", registry=own)
        self.images = Counter("clipspect_images", "Images scored.", ["method", "model"], registry=own)
        self.batched = Histogram(
            "clipspect_batched_requests",
            "Requests scored together.",
            buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=own,
        )


class Middleware:
    """ASGI middleware. All refusals use the service's error format."""

    def __init__(
        self, app: ASGIApp, settings: ServiceSettings, metrics: Metrics, paths: frozenset[str]
    ) -> None:
        """Wrap an application. Only ``paths`` get their own metric label, which bounds the number of labels."""
        self.app, self.settings, self.metrics, self.paths = app, settings, metrics, paths
        key = settings.api_key()
        self._key = None if key is None else _digest(key)
        self._ongoing = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward a request, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, request = perf_counter(), uuid4().hex[:16]
        status = 0

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-clipspect-request", request.encode())]
            await send(message)

        try:
            try:
                await self._admit(scope, receive, watched)
            except ServiceError as refusal:
                if status:  # the response has started and cannot be replaced
                    raise
                await _say(refusal)(scope, receive, watched)
            except ClientDisconnect:
                pass  # the client left before sending the whole request
            except Exception:
                log.exception(
                    "%s %s failed", request, scope["path"] if scope["path"] in self.paths else "other"
                )
                if status:
                    raise
                await _say(internal_error())(scope, receive, watched)
        finally:
            path = scope["path"] if scope["path"] in self.paths else "other"
            seconds = perf_counter() - started
            self.metrics.requests.labels(path, status or 499).inc()
            self.metrics.seconds.labels(path).observe(seconds)
            log.info("%s %s %s %s %.0f ms", request, scope["method"], path, status or 499, 1000 * seconds)

    async def _admit(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        if self._key is not None and scope["path"] not in OPEN_PATHS:
            kind, _, shown = headers.get("authorization", "").partition(" ")
            if not hmac.compare_digest(_digest(shown.strip()), self._key) or kind.lower() != "bearer":
                raise ServiceError(401, "unauthorized", "send the API key as Authorization: Bearer KEY")
        if scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        limit = int(self.settings.limits.body_mb * MEGABYTE)
        too_large = ServiceError(413, "too_large", f"the request is larger than {limit / MEGABYTE:g} MB")
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > limit:
            raise too_large
        if self._ongoing >= self.settings.admitted:
            raise ServiceError(429, "too_many_requests", "too many requests are waiting; retry later")
        self._ongoing += 1
        self.metrics.ongoing.set(self._ongoing)
        try:
            async with asyncio.timeout(self.settings.time_limit):
                await _run_until_disconnect(self.app, scope, _Body(receive, limit, too_large), send)
        except TimeoutError:
            raise ServiceError(
                503,
                "time_limit",
                f"no answer within {self.settings.time_limit:g} s; send less, or retry later",
            ) from None
        finally:
            self._ongoing -= 1
            self.metrics.ongoing.set(self._ongoing)


class _Body:
    """Request body with a size limit, and disconnect detection."""

    def __init__(self, receive: Receive, limit: int, too_large: ServiceError) -> None:
        self._receive, self._limit, self._too_large = receive, limit, too_large
        self._received = 0
        self._read, self._gone = asyncio.Event(), asyncio.Event()

    async def receive(self) -> Message:
        """Return the next part of the request. Raises ServiceError beyond the limit."""
        if self._read.is_set():  # later messages are read by ``gone``
            await self._gone.wait()
            return {"type": "http.disconnect"}
        message = await self._receive()
        self._received += len(message.get("body", b""))
        if self._received > self._limit:
            raise self._too_large
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            self._read.set()
        return message

    async def gone(self) -> None:
        """Wait until the whole request has been read and the client has disconnected."""
        await self._read.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._gone.set()


async def _run_until_disconnect(app: ASGIApp, scope: Scope, body: _Body, send: Send) -> None:
    """Run the application until it answers or the client disconnects. Cancelling this cancels the application."""
    answering = asyncio.ensure_future(app(scope, body.receive, send))
    leaving = asyncio.ensure_future(body.gone())
    try:
        await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if answering.done():
            await answering
    finally:
        for task in (answering, leaving):
            task.cancel()
        await asyncio.gather(answering, leaving, return_exceptions=True)


def _say(refusal: ServiceError) -> JSONResponse:
    return JSONResponse(refusal.body(), refusal.status, refusal.headers)


def _digest(key: str) -> bytes:
    """Return a digest of fixed length, so that comparing keys takes constant time."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
