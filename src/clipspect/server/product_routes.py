"""Routes of the service for products: profiles that the service keeps and requests name."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Any, Protocol

from fastapi import FastAPI, Request, Response

from clipspect.server.errors import ServiceError
from clipspect.server.product_store import ProductInfo
from clipspect.server.schemas import ProductOut, ProductsResponse

PROFILE_TYPE = "application/octet-stream"


class ProductBackend(Protocol):
    """What the routes need of a backend. Each call may raise ClipspectError."""

    def keep_product(self, name: str, data: bytes) -> Awaitable[ProductInfo]:
        """Store a profile under a name, after loading it once."""

    def products(self) -> Awaitable[list[ProductInfo]]:
        """List the products."""

    def drop_product(self, name: str) -> Awaitable[None]:
        """Delete a product."""


def add_product_routes(app: FastAPI, backend: ProductBackend, keyed: Sequence[Any]) -> None:
    """Add the routes to an application. ``keyed`` are the dependencies that tell the schema about the API key."""
    common: dict[str, Any] = {"dependencies": keyed, "tags": ["products"]}

    @app.put(
        "/v1/products/{name}",
        response_model=ProductOut,
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {PROFILE_TYPE: {"schema": {"type": "string", "format": "binary"}}},
            }
        },
        **common,
    )
    async def put(name: str, request: Request) -> Any:
        """Store a profile that `clipspect profile create` wrote. It is loaded once and refused if it does not fit."""
        kind = request.headers.get("content-type", PROFILE_TYPE).partition(";")[0].strip().lower()
        if kind != PROFILE_TYPE:
            raise ServiceError(415, "unsupported_media_type", f"send the profile's bytes as {PROFILE_TYPE}")
        return await backend.keep_product(name, await request.body())

    @app.get("/v1/products", response_model=ProductsResponse, **common)
    async def products() -> Any:
        """List the products."""
        return {"products": await backend.products()}

    @app.get("/v1/products/{name}", response_model=ProductOut, **common)
    async def product(name: str) -> Any:
        """Describe one product."""
        for found in await backend.products():
            if found["name"] == name:
                return found
        raise ServiceError(404, "unknown_product", "unknown product; see GET /v1/products")

    @app.delete("/v1/products/{name}", status_code=204, response_class=Response, **common)
    async def delete(name: str) -> Response:
        """Delete a product."""
        await backend.drop_product(name)
        return Response(status_code=204)
