"""Middleware: API key, admission, size and time limits, logging and metrics, applied before reading the body."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from time import perf_counter
from typing import Any
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
PRODUCT_PATH = "/v1/products/{name}"
DOCS = "/docs"
BROWSER_CHALLENGE = 'Basic realm="the API key as password"'
"""Makes a browser ask for the key; the user's name is ignored."""
CLIENT = "clipspect.client"
"""Entry of an ASGI scope with the name of the request's API key."""
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
        self.scores = Histogram(
            "clipspect_scores",
            "Scores of images judged with a product.",
            ["object", "profile"],
            buckets=[step / 10 for step in range(1, 11)],
            registry=own,
        )
        self.verdicts = Counter(
            "clipspect_verdicts",
            "Images judged with a product.",
            ["object", "profile", "verdict"],
            registry=own,
        )
        self.batched = Histogram(
            "clipspect_batched_requests",
            "Requests scored together.",
            buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=own,
        )

    def count(self, results: Sequence[Mapping[str, Any]]) -> None:
        """Count scored images, and verdicts and scores of those judged with a product."""
        for one in results:
            self.images.labels(one["method"], one["model"]).inc()
            if one["profile"]:
                product = one["object"], one["profile"]
                self.verdicts.labels(*product, one["verdict"]).inc()
                if one["score"] is not None:
                    self.scores.labels(*product).observe(one["score"])


class Middleware:
    """ASGI middleware. All refusals use the service's error format."""

    def __init__(
        self, app: ASGIApp, settings: ServiceSettings, metrics: Metrics, paths: frozenset[str]
    ) -> None:
        """Wrap an application. Only ``paths`` get their own metric label, which bounds the number of labels."""
        self.app, self.settings, self.metrics, self.paths = app, settings, metrics, paths
        self._keys = {name: _digest(key) for name, key in settings.api_keys().items()}
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
                log.exception("%s %s failed", request, self._label(scope["path"]))
                if status:
                    raise
                await _say(internal_error())(scope, receive, watched)
        finally:
            path = self._label(scope["path"])
            seconds = perf_counter() - started
            self.metrics.requests.labels(path, status or 499).inc()
            self.metrics.seconds.labels(path).observe(seconds)
            client = scope.get(CLIENT, "-")
            log.info(
                "%s %s %s %s %s %.0f ms",
                request,
                client,
                scope["method"],
                path,
                status or 499,
                1000 * seconds,
            )

    def _label(self, path: str) -> str:
        """The route of a path; names within it are left out."""
        if path in self.paths:
            return path
        return PRODUCT_PATH if path.startswith("/v1/products/") else "other"

    async def _admit(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        if self._keys and scope["path"] not in OPEN_PATHS:
            shown = _digest(_shown_key(headers.get("authorization", "")))
            names = [name for name, key in self._keys.items() if hmac.compare_digest(shown, key)]
            if not names:
                refusal = ServiceError(401, "unauthorized", "send the API key as Authorization: Bearer KEY")
                if scope["path"] == DOCS:
                    refusal.challenge = BROWSER_CHALLENGE
                raise refusal
            scope[CLIENT] = names[0]
        if scope["method"] not in ("POST", "PUT"):
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


def _shown_key(authorization: str) -> str:
    """The key of a header: ``Bearer KEY``, or the password of ``Basic`` that a browser asks for."""
    kind, _, shown = authorization.partition(" ")
    if kind.lower() == "bearer":
        return shown.strip()
    if kind.lower() == "basic":
        with suppress(ValueError):
            return base64.b64decode(shown.strip(), validate=True).decode().partition(":")[2]
    return ""


def _say(refusal: ServiceError) -> JSONResponse:
    return JSONResponse(refusal.body(), refusal.status, refusal.headers)


def _digest(key: str) -> bytes:
    """Return a digest of fixed length, so that comparing keys takes constant time."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
