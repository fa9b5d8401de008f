"""Ray Serve deployments: replicas that hold the models, and a gateway that batches requests.

`clipspect serve` reads requests in its own process and calls :func:`replicas`. On a cluster, :func:`build` deploys a
gateway behind Ray's proxies that reads the requests; Ray's config file names it as the application builder.

"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from ray import serve
from ray.exceptions import ObjectLostError, RayActorError, RayError, WorkerCrashedError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from clipspect.errors import ClipspectError
from clipspect.server.app import create_app
from clipspect.server.engine import make_engine, store_profiles
from clipspect.server.errors import ServiceError, internal_error, service_error
from clipspect.server.local import answer
from clipspect.server.middleware import log, log_requests
from clipspect.server.product_store import ProductInfo
from clipspect.server.request_batcher import RequestBatcher
from clipspect.server.requests import InspectRequest, Kept
from clipspect.server.responses import Answer, Question
from clipspect.server.settings import SCORING_CALLS, ServiceSettings, read_settings

SPARE = 64
"""Extra requests that the gateway accepts, so that probes and refusals get through."""


@serve.deployment(name="inspector")
class Inspector:
    """Ray Serve replica that holds the models and scores the requests of one call together."""

    def __init__(self, settings: ServiceSettings) -> None:
        """Load every model. The replica is ready when this returns."""
        self._engine = make_engine(settings)
        self._engine.load()

    async def detect(self, questions: Sequence[Question]) -> list[Answer]:
        """Score the requests of one call of the gateway together."""
        return await answer(self._engine, questions)

    async def keep_references(self, request: InspectRequest) -> Kept | ServiceError:
        """Store references in the folder that all replicas share."""
        kept: Kept | ServiceError = await self._tried(self._engine.keep_references, request)
        return kept

    async def keep_product(self, name: str, data: bytes) -> ProductInfo | ServiceError:
        """Store a product in the folder that all replicas share."""
        kept: ProductInfo | ServiceError = await self._tried(self._engine.keep_product, name, data)
        return kept

    async def products(self) -> list[ProductInfo]:
        """List the products."""
        return await asyncio.to_thread(self._engine.list_products)

    async def drop_product(self, name: str) -> ServiceError | None:
        """Delete a product."""
        refusal: ServiceError | None = await self._tried(self._engine.products.delete, name)
        return refusal

    @staticmethod
    async def _tried(function: Any, *arguments: Any) -> Any:
        """Return the result, or the error as a value, as Ray would wrap an exception."""
        try:
            return await asyncio.to_thread(function, *arguments)
        except ClipspectError as error:
            return service_error(error)

    async def catalogue(self) -> dict[str, Any]:
        """Models and methods."""
        return await asyncio.to_thread(self._engine.catalogue)


class RayBackend:
    """Backend that calls Ray replicas. Ray's exceptions become retryable service errors."""

    def __init__(self, inspector: DeploymentHandle[Any], settings: ServiceSettings) -> None:
        """Set up the backend. ``inspector`` is the handle of the replicas."""
        self._inspector = inspector
        self._batcher = RequestBatcher(
            lambda questions: self._ask("detect", questions),
            calls=SCORING_CALLS * settings.replicas,
            images=settings.batch,
        )

    async def detect(self, request: InspectRequest, include: frozenset[str], seconds: float) -> Answer:
        """Score a request, together with others that wait."""
        return await self._batcher.ask(request, include, seconds)

    async def keep_references(self, request: InspectRequest) -> Kept:
        """Store references."""
        kept: Kept = await self._checked("keep_references", request)
        return kept

    async def keep_product(self, name: str, data: bytes) -> ProductInfo:
        """Store a product."""
        info: ProductInfo = await self._checked("keep_product", name, data)
        return info

    async def products(self) -> list[ProductInfo]:
        """List the products."""
        found: list[ProductInfo] = await self._ask("products")
        return found

    async def drop_product(self, name: str) -> None:
        """Delete a product."""
        await self._checked("drop_product", name)

    async def _checked(self, method: str, *arguments: Any) -> Any:
        """Call a replica and raise the error that it returns."""
        found = await self._ask(method, *arguments)
        if isinstance(found, ServiceError):
            raise found
        return found

    async def catalogue(self) -> dict[str, Any]:
        """Models and methods."""
        found: dict[str, Any] = await self._ask("catalogue")
        return found

    async def _ask(self, method: str, *arguments: Any) -> Any:
        call = getattr(self._inspector, method).remote(*arguments)
        try:
            return await call
        except asyncio.CancelledError:
            call.cancel()  # cancel explicitly: the replica would keep scoring
            raise
        except BackPressureError:
            raise ServiceError(
                429, "too_many_requests", "too many requests are waiting; retry later"
            ) from None
        except (RayActorError, WorkerCrashedError, ObjectLostError, DeploymentUnavailableError):
            raise ServiceError(
                503, "replica_lost", "the replica that handled this request was lost"
            ) from None
        except RayError as error:
            log.error("%s failed: %s", method, error)
            raise internal_error() from None


@serve.deployment(name="gateway")
@serve.ingress()
class Gateway:
    """Gateway of a cluster: reads all requests from outside."""

    def __init__(self, settings: ServiceSettings, inspector: DeploymentHandle[Any]) -> None:
        """Build the application without loading a model. Logs go to standard error, which Ray collects."""
        log_requests()
        self._settings, self._inspector = settings, inspector

    def __serve_build_asgi_app__(self) -> Any:
        """Return the ASGI application that Ray Serve runs."""
        return create_app(RayBackend(self._inspector, self._settings), self._settings)


def replicas(settings: ServiceSettings) -> serve.Application:
    """Return the Ray Serve application of the replicas without a gateway."""
    application: serve.Application = Inspector.options(  # type: ignore[attr-defined]
        num_replicas=settings.replicas,
        max_ongoing_requests=settings.ongoing,
        max_queued_requests=settings.admitted,  # the middleware refuses requests first, with 429
        ray_actor_options={"num_cpus": settings.cpus, "num_gpus": settings.gpus},
        health_check_period_s=2,
        graceful_shutdown_timeout_s=5,
    ).bind(settings)
    return application


def build(args: ServiceSettings | dict[str, Any]) -> serve.Application:
    """Return the application: a gateway in front of replicas. A config file passes the settings as plain values.

    Profiles are stored here, once for each deployment: a replica that restarts must not undo changes of clients.
    """
    settings = args if isinstance(args, ServiceSettings) else read_settings(args)
    store_profiles(settings)
    gateway: serve.Application = Gateway.options(  # type: ignore[attr-defined]
        max_ongoing_requests=settings.admitted + SPARE, ray_actor_options={"num_cpus": 0}
    ).bind(settings, replicas(settings))
    return gateway
