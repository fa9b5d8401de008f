"""HTTP routes of the service: read, check and answer requests. A :class:`Backend` does the scoring."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Protocol, TypeVar, get_origin

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.params import Security
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi.security import HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from clipspect import __version__
from clipspect.errors import ClipspectError
from clipspect.server.decision_log import DecisionLog
from clipspect.server.docs_page import add_docs_page
from clipspect.server.errors import ServiceError, service_error
from clipspect.server.middleware import CLIENT, Metrics, Middleware
from clipspect.server.product_routes import ProductBackend, add_product_routes
from clipspect.server.requests import InspectRequest, Kept
from clipspect.server.responses import Answer
from clipspect.server.schemas import (
    DetectRequest,
    DetectResponse,
    ErrorResponse,
    Health,
    ModelsResponse,
    ReferencesRequest,
    ReferencesResponse,
)
from clipspect.server.settings import ServiceSettings

Wanted = TypeVar("Wanted", bound=BaseModel)
"""Schema of a request with ``images`` and, except for ReferencesRequest, ``references``."""
_FIELDS, _FIELD_BYTES = 64, 4096
"""Maximum number of plain fields in a multipart request, and maximum bytes of one field."""


class Backend(ProductBackend, Protocol):
    """Scoring backend: Ray replicas, or an engine in this process. Each call may raise ServiceError."""

    def detect(self, request: InspectRequest, include: frozenset[str], seconds: float) -> Awaitable[Answer]:
        """Score the images of a request within ``seconds``."""

    def keep_references(self, request: InspectRequest) -> Awaitable[Kept]:
        """Keep references."""

    def catalogue(self) -> Awaitable[dict[str, Any]]:
        """Return models and methods. Available as soon as the models are loaded."""


def create_app(backend: Backend, settings: ServiceSettings) -> FastAPI:
    """Return the service as an ASGI application. Raises UsageError for an unusable API key."""
    app = FastAPI(
        title="clipspect",
        version=__version__,
        summary="Zero-shot visual inspection with CLIP.",
        docs_url=None,  # FastAPI's page loads scripts of other hosts; ours has them beside it
        redoc_url=None,
        responses={
            status: {"model": ErrorResponse, "description": words} for status, words in _REFUSALS.items()
        },
    )
    # for the schema only: Middleware checks the key before routing
    keyed = [Security(HTTPBearer(auto_error=False))] if settings.api_keys() else []
    metrics, decisions = Metrics(), DecisionLog(settings.decision_log)
    _handle_errors(app)

    @app.post(
        "/v1/detect",
        response_model=DetectResponse,
        openapi_extra=_body(DetectRequest),
        dependencies=keyed,
        tags=["inspection"],
    )
    async def detect(request: Request) -> Any:
        """Score images. Return the anomaly score and regions of each, and on request the overlay and anomaly map."""
        wanted = await read_request(request, DetectRequest, settings)
        inspection = wanted.to_request(settings.models[0])
        found = await backend.detect(inspection, frozenset(wanted.include), settings.time_limit)
        if found.refusal is not None:
            raise found.refusal
        errors = [result["error"] for result in found.results if result["error"] is not None]
        if len(errors) == len(found.results):
            raise ServiceError(422, "unreadable_image", errors[0], _details(found.results))
        first = found.results[0]
        metrics.count(found.results)
        metrics.batched.observe(found.batched)
        await asyncio.to_thread(decisions.write, found.results, request.scope.get(CLIENT, ""))
        names: Sequence[str | None] = wanted.names or [None] * len(found.results)
        return {
            "object": inspection.object or first["object"],
            "method": first["method"],
            "model": inspection.model or first["model"],
            "weights": found.weights,
            "results": [{**one, "name": name} for one, name in zip(found.results, names, strict=True)],
            "batched": found.batched,
            "seconds": found.seconds,
        }

    @app.post(
        "/v1/references",
        response_model=ReferencesResponse,
        openapi_extra=_body(ReferencesRequest),
        dependencies=keyed,
        tags=["inspection"],
    )
    async def references(request: Request) -> Any:
        """Encode reference images once and store them. Detect requests refer to them by the returned id."""
        wanted = await read_request(request, ReferencesRequest, settings)
        return await backend.keep_references(wanted.to_request(settings.models[0]))

    @app.get("/v1/models", response_model=ModelsResponse, dependencies=keyed, tags=["inspection"])
    async def models() -> Any:
        """Return the available models, methods and limits."""
        return {**await _soon(backend.catalogue()), "limits": asdict(settings.limits)}

    @app.get("/healthz", response_model=Health, tags=["operation"])
    async def healthz() -> Any:
        """Report that this process is alive."""
        return {"status": "ok"}

    @app.get("/readyz", response_model=Health, tags=["operation"])
    async def readyz() -> Any:
        """Report whether the models are loaded and images can be scored."""
        await _soon(backend.catalogue())
        return {"status": "ready"}

    @app.get("/metrics", response_class=PlainTextResponse, dependencies=keyed, tags=["operation"])
    async def prometheus() -> PlainTextResponse:
        """Return counters and timings in Prometheus format."""
        return PlainTextResponse(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    add_product_routes(app, backend, keyed)
    add_docs_page(app)
    paths = frozenset(route.path for route in app.routes if hasattr(route, "path"))
    app.add_middleware(Middleware, settings=settings, metrics=metrics, paths=paths)
    return app


_REFUSALS = {
    401: "The API key is missing or wrong.",
    404: "No such route, or unknown reference id.",
    413: "The request exceeds a limit on bytes, pixels or images.",
    415: "Unsupported type of request body or file.",
    422: "Invalid request; details name the fields.",
    429: "Too many requests are waiting; retry after Retry-After seconds.",
    503: "Not ready, time limit exceeded, or replica lost; retry after Retry-After seconds.",
}
READY_S = 2.0
"""Time limit for a replica's answer to a readiness probe."""


async def _soon(asked: Awaitable[dict[str, Any]]) -> dict[str, Any]:
    try:
        return await asyncio.wait_for(asked, READY_S)
    except TimeoutError:
        raise ServiceError(
            503, "not_ready", "the models are not loaded yet, or all replicas are busy"
        ) from None


def _handle_errors(app: FastAPI) -> None:
    """Return every error in the same JSON format."""

    def say(refusal: ServiceError) -> JSONResponse:
        return JSONResponse(refusal.body(), refusal.status, refusal.headers)

    @app.exception_handler(ClipspectError)
    async def _own(_: Request, error: ClipspectError) -> JSONResponse:
        return say(service_error(error))

    @app.exception_handler(HTTPException)
    async def _routing(_: Request, error: HTTPException) -> JSONResponse:
        refusal = ServiceError(
            error.status_code, str(error.detail).lower().replace(" ", "_"), str(error.detail)
        )
        return JSONResponse(refusal.body(), refusal.status, {**(error.headers or {}), **refusal.headers})

    @app.exception_handler(RequestValidationError)
    async def _invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        return say(_wrong_fields(error.errors()))


async def read_request(request: Request, wanted: type[Wanted], settings: ServiceSettings) -> Wanted:
    """Parse a multipart or JSON request and check it against schema and limits. Raises ServiceError."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        if kind == "application/json":
            # parsing a large body in a thread keeps the event loop responsive
            read = await asyncio.to_thread(wanted.model_validate_json, await request.body())
        elif kind == "multipart/form-data":
            read = wanted.model_validate(await _form(request, wanted, settings))
        else:
            raise ServiceError(415, "unsupported_media_type", "send multipart/form-data or application/json")
    except ValidationError as error:
        raise _wrong_fields(error.errors(include_input=False, include_url=False)) from None
    what = "reference" if wanted is ReferencesRequest else "image"
    await asyncio.to_thread(settings.limits.check, getattr(read, "images"), what)  # noqa: B009
    await asyncio.to_thread(settings.limits.check, getattr(read, "references", ()), "reference")
    return read


async def _form(request: Request, wanted: type[BaseModel], settings: ServiceSettings) -> dict[str, Any]:
    """Return the fields of a multipart request. Content types sent by the client are ignored, and file
    names only come back with the results.
    """
    limits = settings.limits
    values: dict[str, Any] = {}
    most = limits.images + limits.references
    try:
        async with request.form(max_files=most, max_fields=_FIELDS, max_part_size=_FIELD_BYTES) as form:
            for name, value in form.multi_items():
                content = await value.read() if isinstance(value, UploadFile) else value
                if name == "images" and isinstance(value, UploadFile) and "names" in wanted.model_fields:
                    shown = "".join(c for c in value.filename or "" if c.isprintable())
                    values.setdefault("names", []).append(shown[-255:])
                if name in wanted.model_fields and get_origin(wanted.model_fields[name].annotation) is list:
                    values.setdefault(name, []).append(content)
                elif name in values or isinstance(content, bytes):
                    raise ServiceError(422, "invalid", f"the field {name!r} may be sent once, as plain text")
                else:
                    values[name] = content
        if "product" not in values:
            values.pop("names", None)
    except HTTPException as error:  # the parser raises status 400 for every error
        words = str(error.detail)
        if "exceeded" in words:
            remedy = "send images as files, with a file name"
            raise ServiceError(
                413, "too_large", f"a field has more than {_FIELD_BYTES:,} bytes; {remedy}"
            ) from None
        if "Too many" in words:
            raise ServiceError(413, "too_many", words) from None
        raise ServiceError(422, "malformed_form", words) from None
    return values


def _wrong_fields(errors: Any) -> ServiceError:
    details = [
        {"field": ".".join(map(str, error["loc"])) or "body", "message": error["msg"]}
        for error in errors[:20]
    ]
    first = details[0]
    return ServiceError(422, "invalid", f"{first['field']}: {first['message']}", details)


def _details(results: list[dict[str, Any]]) -> list[Mapping[str, Any]]:
    return [{"field": f"images.{result['index']}", "message": result["error"]} for result in results]


def _body(schema: type[BaseModel]) -> dict[str, Any]:
    """Return the OpenAPI request body for multipart and JSON, with examples."""
    json_schema = schema.model_json_schema()
    examples = json_schema.pop("examples")
    form_schema = _as_form(json_schema)
    return {
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": json_schema, "examples": {"json": {"value": examples[0]}}},
                "multipart/form-data": {"schema": form_schema},
            },
        }
    }


def _as_form(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema with files instead of base64 text."""
    properties = {}
    for name, value in schema["properties"].items():
        if value.get("items", {}).get("contentEncoding") == "base64":
            value = {**value, "items": {"type": "string", "format": "binary"}}
        properties[name] = value
    return {**schema, "properties": properties}
