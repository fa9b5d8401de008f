"""Interactive documentation of the service at /docs: Swagger UI with its files beside it, behind the API key."""

from __future__ import annotations

from importlib.resources import files
from importlib.util import find_spec

from fastapi import FastAPI
from fastapi.responses import HTMLResponse, Response

from clipspect.server.errors import ServiceError

PACKAGE = "fastapi_offline"
"""Brings Swagger UI's files, so that a browser fetches nothing from other hosts."""
_FILES = {"swagger-ui-bundle.js": "text/javascript", "swagger-ui.css": "text/css"}
_PAGE = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>clipspect service</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="stylesheet" href="docs/swagger-ui.css"></head>
<body><div id="docs"></div>
<script src="docs/swagger-ui-bundle.js"></script><script src="docs/start.js"></script></body>
</html>
"""
_START = 'SwaggerUIBundle({url: "openapi.json", dom_id: "#docs", deepLinking: true, validatorUrl: null});\n'
_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


def add_docs_page(app: FastAPI) -> None:
    """Add the page to an application, where the package with Swagger UI is installed."""
    if find_spec(PACKAGE) is None:
        return

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(_PAGE, headers=_HEADERS)

    @app.get("/docs/{name}", include_in_schema=False)
    async def part(name: str) -> Response:
        if name == "start.js":
            return Response(_START, media_type="text/javascript", headers=_HEADERS)
        if name not in _FILES:
            raise ServiceError(404, "not_found", "no such file")
        data = (files(PACKAGE) / "static" / name).read_bytes()
        return Response(data, media_type=_FILES[name], headers=_HEADERS)
