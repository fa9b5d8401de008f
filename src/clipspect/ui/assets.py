"""What every page needs: the viewer's files, headers that confine it, and refusal of requests of other sites."""

from __future__ import annotations

from urllib.parse import urlsplit

from fastapi import FastAPI
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clipspect.server.errors import ServiceError
from clipspect.viewer import asset, view_page

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
_TYPES = {"viewer.js": "text/javascript", "viewer.css": "text/css"}


def add_viewer(app: FastAPI, *, view: str, hosts: frozenset[str] | None) -> None:
    """Add the viewer's page and files to an application.

    Args:
        app: of the routes that the view asks.
        view: "page" or "line".
        hosts: the only host names the application answers to; None = any.
    """

    @app.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(view_page(view))

    @app.get("/viewer/{name}", include_in_schema=False)
    async def viewer(name: str) -> Response:
        if name not in _TYPES:
            raise ServiceError(404, "not_found", "no such file")
        return Response(asset(name), media_type=_TYPES[name], headers={"cache-control": "no-cache"})

    app.add_middleware(SameOrigin, hosts=hosts)


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
