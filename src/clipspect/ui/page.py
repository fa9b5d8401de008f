"""The page's application: the routes of the service, the viewer, and the stream of an inspection."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clipspect.demo import DEMO_GOOD, DEMO_IMAGES, DEMO_OBJECT
from clipspect.server.app import create_app, read_request
from clipspect.server.errors import ServiceError
from clipspect.server.local import LocalBackend
from clipspect.server.settings import ServiceSettings
from clipspect.ui.inspect import Inspection, inspect_lines
from clipspect.viewer import PAGE, asset

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
"""Content-Security-Policy: the browser runs the viewer alone and sends nothing to other hosts."""
_HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}
_EXAMPLES = {path.name: path for folder in (DEMO_IMAGES, DEMO_GOOD) for path in sorted(folder.glob("*.jpg"))}
_TYPES = {"viewer.js": "text/javascript", "viewer.css": "text/css"}


def create_page(
    backend: LocalBackend, settings: ServiceSettings, *, hosts: frozenset[str] | None = None
) -> FastAPI:
    """Return the page as an ASGI application. ``hosts`` are the only host names it answers to; None = any."""
    app = create_app(backend, settings)

    @app.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(PAGE)

    @app.get("/viewer/{name}", include_in_schema=False)
    async def viewer(name: str) -> Response:
        if name not in _TYPES:
            raise ServiceError(404, "not_found", "no such file")
        return Response(asset(name), media_type=_TYPES[name], headers={"cache-control": "no-cache"})

    @app.get("/v1/examples", include_in_schema=False)
    async def examples() -> dict[str, Any]:
        """Return the object and the file names of the rendered example images."""
        return {
            "object": DEMO_OBJECT,
            "images": sorted(path.name for path in DEMO_IMAGES.glob("*.jpg")),
            "good": sorted(path.name for path in DEMO_GOOD.glob("*.jpg")),
        }

    @app.get("/v1/examples/{name}", include_in_schema=False)
    async def example(name: str) -> FileResponse:
        if name not in _EXAMPLES:
            raise ServiceError(404, "not_found", "no such example")
        return FileResponse(_EXAMPLES[name], media_type="image/jpeg")

    @app.post("/v1/inspect", include_in_schema=False)
    async def inspect(request: Request) -> StreamingResponse:
        """Score images with one or several methods; stream progress, then the viewer's data."""
        wanted = await read_request(request, Inspection, settings)
        lines = inspect_lines(backend.engine, wanted.inquiry(settings.models[0]))
        return StreamingResponse(lines, media_type="application/x-ndjson")

    app.add_middleware(SameOrigin, hosts=hosts)
    return app


class SameOrigin:
    """ASGI middleware: headers that confine the page, and refusal of requests that other sites cause."""

    def __init__(self, app: ASGIApp, hosts: frozenset[str] | None) -> None:
        """Wrap an application. A foreign host name means that a site has pointed its own name to this machine."""
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward the request, or refuse it, and add the headers to the response."""

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        app = self.app
        if scope["type"] == "http" and not self._is_own(Headers(scope=scope)):
            error = ServiceError(403, "foreign_request", "the page answers its own requests alone")
            app = JSONResponse(error.body(), error.status)
        await app(scope, receive, with_headers)

    def _is_own(self, headers: Headers) -> bool:
        host, origin = headers.get("host", ""), headers.get("origin")
        name = urlsplit(f"//{host}").hostname
        return (self.hosts is None or name in self.hosts) and (
            origin is None or urlsplit(origin).netloc == host
        )
