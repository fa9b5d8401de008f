"""Backend in this process, without Ray: one engine, one call at a time, requests batched while it is busy."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from time import perf_counter
from typing import Any

from clipspect.detection import Detection
from clipspect.errors import ClipspectError
from clipspect.server.engine import Engine
from clipspect.server.errors import internal_error, service_error
from clipspect.server.middleware import log
from clipspect.server.product_store import ProductInfo
from clipspect.server.request_batcher import RequestBatcher
from clipspect.server.requests import InspectRequest, Kept, PendingRequest
from clipspect.server.responses import Answer, Question, describe
from clipspect.server.settings import SCORING_CALLS, ServiceSettings


class LocalBackend:
    """Backend that scores in a thread of this process."""

    def __init__(self, engine: Engine, settings: ServiceSettings) -> None:
        """Set up the backend. Nothing is loaded yet."""
        self.engine = engine
        # as with Ray: the engine scores one call while the next one is read and the previous one drawn
        self._batcher = RequestBatcher(partial(answer, engine), calls=SCORING_CALLS, images=settings.batch)

    async def detect(self, request: InspectRequest, include: frozenset[str], seconds: float) -> Answer:
        """Score a request, together with others that wait."""
        return await self._batcher.ask(request, include, seconds)

    async def keep_references(self, request: InspectRequest) -> Kept:
        """Store references."""
        return await asyncio.to_thread(self.engine.keep_references, request)

    async def keep_product(self, name: str, data: bytes) -> ProductInfo:
        """Store a product."""
        return await asyncio.to_thread(self.engine.keep_product, name, data)

    async def products(self) -> list[ProductInfo]:
        """List the products."""
        return await asyncio.to_thread(self.engine.list_products)

    async def drop_product(self, name: str) -> None:
        """Delete a product."""
        await asyncio.to_thread(self.engine.products.delete, name)

    async def catalogue(self) -> dict[str, Any]:
        """Return models and methods."""
        return await asyncio.to_thread(self.engine.catalogue)


async def answer(engine: Engine, questions: Sequence[Question]) -> list[Answer]:
    """Score the requests of one call together in a thread; return one answer per request, in order.

    A failure is an answer with an error, never an exception. Cancelling stops the engine at the next detection.
    """
    pending = [PendingRequest(question.request, question.seconds) for question in questions]
    started = perf_counter()
    try:
        found = await asyncio.to_thread(engine.answer, pending)
        spent = perf_counter() - started
        return await asyncio.to_thread(
            lambda: [_describe(one, q, len(pending), spent) for one, q in zip(found, questions, strict=True)]
        )
    except Exception:
        log.exception("%d requests failed", len(pending))
        return [Answer("", [], len(pending), 0.0, internal_error())] * len(pending)
    finally:
        for one in pending:
            one.give_up()


def _describe(
    found: list[Detection] | ClipspectError, question: Question, batched: int, spent: float
) -> Answer:
    if isinstance(found, ClipspectError):
        return Answer("", [], batched, spent, service_error(found))
    started = perf_counter()
    try:
        results = describe(found, question.include)
    except Exception:
        log.exception("a request failed")  # the other requests of the call are answered
        return Answer("", [], batched, spent, internal_error())
    return Answer(found[0].weights, results, batched, spent + perf_counter() - started)
