"""The service on Ray Serve: replicas that hold the models and batch, and who reads the requests for them.

`clipspect serve` reads requests in its own process and asks :func:`replicas`. On a cluster a gateway reads them, behind
Ray's proxies: ``build`` is the application's builder for Ray's config file.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from time import perf_counter
from typing import Any

from ray import serve
from ray.exceptions import ObjectLostError, RayActorError, RayError, WorkerCrashedError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from clipspect.detection import Detection
from clipspect.errors import ClipspectError
from clipspect.server.app import create_app
from clipspect.server.engine import Engine, InspectRequest, Kept, PendingRequest
from clipspect.server.errors import ServiceError, internal_error, service_error
from clipspect.server.middleware import log, log_requests
from clipspect.server.request_batcher import RequestBatcher
from clipspect.server.responses import Answer, Question, describe
from clipspect.server.settings import ServiceSettings

Found = tuple[list[Detection] | ClipspectError, int, float]
"""What an inquiry got, how many were scored together, and in how many seconds."""
MANY = 1024
"""Batches of Ray's that may wait at once: more than there are requests."""
SPARE = 64
"""Requests beside those admitted that the gateway takes, so that probes and refusals get through."""


@serve.deployment(name="inspector")
class Inspector:
    """A replica: the models, and the batches of requests that are scored together."""

    def __init__(self, settings: ServiceSettings) -> None:
        """Load every model; the replica is ready when that is done."""
        self._engine = Engine(settings.models, references=settings.references, **settings.load_options)
        self._engine.load()
        self._most = settings.batch
        self._turn = asyncio.Lock()
        self._waiting: list[tuple[PendingRequest, asyncio.Future[Found]]] = []
        self._together.set_max_batch_size(settings.batch)  # type: ignore[attr-defined]
        self._together.set_batch_wait_timeout_s(settings.batch_wait_ms / 1000)  # type: ignore[attr-defined]

    async def detect(self, questions: Sequence[Question]) -> list[Answer]:
        """Score inquiries beside others that arrive at the same time."""
        return await asyncio.gather(*map(self._detect, questions))

    async def _detect(self, question: Question) -> Answer:
        ticket = PendingRequest(question.inquiry, question.seconds)
        try:
            found, batched, spent = await self._together(ticket)
            if isinstance(found, ClipspectError):
                return Answer("", [], batched, spent, service_error(found))
            started = perf_counter()
            results = await asyncio.to_thread(describe, found, question.include)
            return Answer(found[0].weights, results, batched, spent + perf_counter() - started)
        except Exception:
            log.exception("an inquiry failed")  # its companions in the call have answers of their own
            return Answer("", [], 1, 0.0, internal_error())
        finally:
            ticket.give_up()  # cancelled: nobody scores what nobody waits for

    async def keep_references(self, inquiry: InspectRequest) -> Kept | ServiceError:
        """Keep references; every replica reads them from the same folder."""
        try:
            return await asyncio.to_thread(self._engine.keep_references, inquiry)
        except ClipspectError as error:
            return service_error(error)

    async def catalogue(self) -> dict[str, Any]:
        """Models and methods."""
        return await asyncio.to_thread(self._engine.catalogue)

    @serve.batch(max_concurrent_batches=MANY)
    async def _together(self, tickets: Sequence[PendingRequest]) -> list[Found]:
        """Ray closes a batch when its time is over, though the models are busy with the one before; what has come
        in the meantime is scored with it.
        """
        own = [(ticket, asyncio.get_running_loop().create_future()) for ticket in tickets]
        self._waiting += own
        async with (
            self._turn
        ):  # as many turns as batches, so the own tickets' turn has come by the end of this one
            batch = self._waiting[: self._most]
            del self._waiting[: self._most]
            await self._score(batch)
        return [await answer for _, answer in own]

    async def _score(self, batch: Sequence[tuple[PendingRequest, asyncio.Future[Found]]]) -> None:
        if not batch:
            return
        started = perf_counter()
        answers: Sequence[list[Detection] | ClipspectError]
        try:
            answers = await asyncio.to_thread(self._engine.answer, [ticket for ticket, _ in batch])
        except Exception:
            log.exception("%d inquiries failed", len(batch))
            answers = [internal_error()] * len(batch)
        for (_, answer), found in zip(batch, answers, strict=True):
            answer.set_result((found, len(batch), perf_counter() - started))


class RayBackend:
    """The replicas, as the routes see them. What Ray raises becomes a refusal a client may try again after."""

    def __init__(self, inspector: DeploymentHandle[Any], settings: ServiceSettings) -> None:
        """``inspector`` is the handle of the replicas."""
        self._inspector = inspector
        # two calls for each replica: one whose requests are being scored, and one that is ready when they are
        self._handover = RequestBatcher(
            lambda questions: self._ask("detect", questions),
            calls=2 * settings.replicas,
            images=settings.batch,
        )

    async def detect(self, inquiry: InspectRequest, include: frozenset[str], seconds: float) -> Answer:
        """Score an inquiry."""
        return await self._handover.ask(inquiry, include, seconds)

    async def keep_references(self, inquiry: InspectRequest) -> Kept:
        """Keep references."""
        kept: Kept | ServiceError = await self._ask("keep_references", inquiry)
        if isinstance(kept, ServiceError):
            raise kept
        return kept

    async def catalogue(self) -> dict[str, Any]:
        """Models and methods."""
        found: dict[str, Any] = await self._ask("catalogue")
        return found

    async def _ask(self, method: str, *arguments: Any) -> Any:
        call = getattr(self._inspector, method).remote(*arguments)
        try:
            return await call
        except asyncio.CancelledError:
            call.cancel()  # no longer waiting does not yet stop the replica
            raise
        except BackPressureError:
            raise ServiceError(429, "too_many_requests", "too many requests are waiting already") from None
        except (RayActorError, WorkerCrashedError, ObjectLostError, DeploymentUnavailableError):
            raise ServiceError(503, "replica_lost", "the replica that had this request is gone") from None
        except RayError as error:
            log.error("%s failed: %s", method, error)
            raise internal_error() from None


@serve.deployment(name="gateway")
@serve.ingress()
class Gateway:
    """The one place of a cluster where requests from outside are read."""

    def __init__(self, settings: ServiceSettings, inspector: DeploymentHandle[Any]) -> None:
        """Nothing is loaded here. The log goes to standard error, which Ray collects."""
        log_requests()
        self._settings, self._inspector = settings, inspector

    def __serve_build_asgi_app__(self) -> Any:
        """The service as Ray Serve runs it."""
        return create_app(RayBackend(self._inspector, self._settings), self._settings)


def replicas(settings: ServiceSettings) -> serve.Application:
    """The replicas alone, for whoever reads requests elsewhere."""
    application: serve.Application = Inspector.options(  # type: ignore[attr-defined]
        num_replicas=settings.replicas,
        max_ongoing_requests=settings.ongoing,
        max_queued_requests=settings.queue,
        ray_actor_options={"num_cpus": settings.cpus, "num_gpus": settings.gpus},
        health_check_period_s=2,
        graceful_shutdown_timeout_s=5,
    ).bind(settings)
    return application


def build(args: ServiceSettings | dict[str, Any]) -> serve.Application:
    """The application: a gateway in front of replicas. From a config file the settings come as plain values."""
    settings = ServiceSettings.model_validate(args)
    gateway: serve.Application = Gateway.options(  # type: ignore[attr-defined]
        max_ongoing_requests=settings.admitted + SPARE, ray_actor_options={"num_cpus": 0}
    ).bind(settings, replicas(settings))
    return gateway
