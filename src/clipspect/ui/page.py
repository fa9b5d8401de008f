"""The page's application: the routes of the service, the viewer, and the stream of an inspection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, StreamingResponse

from clipspect.demo import DEMO_GOOD, DEMO_IMAGES, DEMO_OBJECT
from clipspect.postprocess.verdict import threshold_of
from clipspect.profile import Profile
from clipspect.server.app import create_app, read_request
from clipspect.server.errors import ServiceError
from clipspect.server.local import LocalBackend
from clipspect.server.settings import ServiceSettings
from clipspect.ui.assets import add_viewer
from clipspect.ui.inspect import Inspection, NewProfile, inspect_lines, profile_lines

_EXAMPLES = {path.name: path for folder in (DEMO_IMAGES, DEMO_GOOD) for path in sorted(folder.glob("*.jpg"))}
_LINES = "application/x-ndjson"


def create_page(
    backend: LocalBackend,
    settings: ServiceSettings,
    profiles: Sequence[Profile] = (),
    *,
    hosts: frozenset[str] | None = None,
) -> FastAPI:
    """Return the page as an ASGI application.

    Args:
        backend: scores the images.
        settings: of the service.
        profiles: that the page offers; it opens with the first.
        hosts: the only host names it answers to; None = any.
    """
    app = create_app(backend, settings)
    served = {one.name: one for one in profiles}

    @app.get("/v1/profiles", include_in_schema=False)
    async def list_profiles() -> list[dict[str, Any]]:
        """Return what the page shows of its profiles."""
        return [
            {
                "name": one.name,
                "object": one.object,
                "methods": list(one.methods),
                "good": max(calibration.images for calibration in one.calibrations.values()),
                "thresholds": [threshold_of(calibration) for calibration in one.used_calibrations.values()],
            }
            for one in served.values()
        ]

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
        lines = inspect_lines(backend.engine, wanted, settings.models[0], served)
        return StreamingResponse(lines, media_type=_LINES)

    @app.post("/v1/profile", include_in_schema=False)
    async def profile(request: Request) -> StreamingResponse:
        """Make a product profile of known-good images; stream progress, then its contents."""
        wanted = await read_request(request, NewProfile, settings)
        lines = profile_lines(backend.engine, wanted, settings.models[0])
        return StreamingResponse(lines, media_type=_LINES)

    add_viewer(app, view="page", hosts=hosts)
    return app
