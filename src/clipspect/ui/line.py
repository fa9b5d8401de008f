"""The operator's view of a watch: the latest image large, counters of the shift, recent rejects, and their review."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, Response
from pydantic import BaseModel, Field

from clipspect.errors import ClipspectError, ResultsError, UsageError
from clipspect.results.outputs import method_suffix, output_path
from clipspect.results.review import MAX_NOTE, Decision, Review, add_reviews, read_reviews
from clipspect.results.store import OVERLAYS, read_manifest
from clipspect.server.errors import ServiceError, service_error
from clipspect.types import FLAGS
from clipspect.ui.assets import add_viewer
from clipspect.watch.journal import JOURNAL, LATEST, Journal
from clipspect.watch.targets import place_of

SHOWN = 24
"""Recent rejects on the view."""
DEFAULT_SHIFTS = "06:00,14:00,22:00"


class Decided(BaseModel):
    """An operator's decision."""

    path: str
    decision: Decision
    note: str = Field("", max_length=MAX_NOTE)


def parse_shifts(text: str) -> list[tuple[int, int]]:
    """Return (hour, minute) of the times at which shifts begin, sorted. Raises UsageError."""
    try:
        moments = sorted(datetime.strptime(part.strip(), "%H:%M") for part in text.split(","))
    except ValueError:
        raise UsageError(f"--shifts {text}: give times such as {DEFAULT_SHIFTS}") from None
    return [(moment.hour, moment.minute) for moment in moments]


def shift_start(now: datetime, shifts: Sequence[tuple[int, int]]) -> datetime:
    """When the present shift began, in local time."""
    begins = [
        (now - timedelta(days=day)).replace(hour=hour, minute=minute, second=0, microsecond=0)
        for day in (0, 1)
        for hour, minute in shifts
    ]
    return max(moment for moment in begins if moment <= now)


def line_state(out: Path, shifts: Sequence[tuple[int, int]], now: datetime) -> dict[str, Any]:
    """What the view shows.

    Args:
        out: results folder of a watch.
        shifts: when shifts begin.
        now: local time.

    Raises:
        ResultsError: the folder holds no watch.
    """
    since = shift_start(now, shifts)
    settings = read_manifest(out)["settings"]
    several = len(settings["methods"]) > 1
    with closing(_journal(out)) as journal:
        latest = journal.latest(1)
        rejects = journal.latest(SHOWN, sorted(FLAGS))
        verdicts = journal.verdicts_since(since.timestamp())
        actions = journal.counts()
    counts = {"ok": 0, "ng": 0, "error": 0}
    for verdict, count in verdicts.items():
        counts[place_of(verdict)] += count
    reviews = read_reviews(out)
    first = next(iter(settings["methods"]))
    return {
        "object": settings["object"],
        "profile": settings["profile"],
        "since": since.isoformat(timespec="minutes"),
        "counts": counts,
        "waiting": actions.get("waiting", 0),
        "givenUp": actions.get("given up", 0),
        "latest": _shown(latest[0], reviews, out, first, several=several) if latest else None,
        "rejects": [_shown(one, reviews, out, first, several=several) for one in rejects],
    }


def create_line_page(
    out: Path, shifts: Sequence[tuple[int, int]], *, hosts: frozenset[str] | None = None
) -> FastAPI:
    """Return the view as an ASGI application. ``hosts`` are the only host names it answers to; None = any."""
    app = FastAPI(title="clipspect line", docs_url=None, redoc_url=None, openapi_url=None)
    add_viewer(app, view="line", hosts=hosts)

    @app.exception_handler(ClipspectError)
    async def _own(_: Request, error: ClipspectError) -> JSONResponse:
        refusal = service_error(error)
        return JSONResponse(refusal.body(), refusal.status)

    @app.get("/v1/line")
    async def state() -> dict[str, Any]:
        return line_state(out, shifts, datetime.now())

    @app.get("/v1/line/latest.png")
    async def latest() -> Response:
        return _picture(out / LATEST)

    @app.get("/v1/line/overlays/{path:path}")
    async def overlay(path: str) -> Response:
        return _picture(output_path(out / OVERLAYS, path, ""))

    @app.post("/v1/line/reviews")
    async def review(decided: Decided) -> dict[str, int]:
        return {"stored": add_reviews(out, [Review(decided.path, decided.decision, decided.note)])}

    return app


def _journal(out: Path) -> Journal:
    if not (out / JOURNAL).is_file():
        raise ResultsError(f"{out}: no watch writes there; start clipspect watch … --out {out.name} first")
    return Journal(out)


def _shown(
    image: Mapping[str, Any], reviews: Mapping[str, Review], out: Path, method: str, *, several: bool
) -> dict[str, Any]:
    review = reviews.get(image["path"])
    overlay = output_path(out / OVERLAYS, image["path"], method_suffix(method, several=several) + ".png")
    return {
        **image,
        "place": place_of(image["verdict"]),
        "overlay": overlay.relative_to(out / OVERLAYS).as_posix() if overlay.is_file() else None,
        "decision": None if review is None else review.decision,
        "note": "" if review is None else review.note,
    }


def _picture(path: Path) -> Response:
    if not path.is_file():
        raise ServiceError(404, "not_found", "no such picture")
    return FileResponse(path, media_type="image/png", headers={"cache-control": "no-store"})
