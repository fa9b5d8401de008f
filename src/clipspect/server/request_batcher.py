"""Batching of requests between gateway and replicas: one call carries several waiting requests."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from dataclasses import dataclass, field
from time import monotonic

from clipspect.server.errors import ServiceError
from clipspect.server.requests import InspectRequest
from clipspect.server.responses import Answer, Question

Send = Callable[[Sequence[Question]], Awaitable[Sequence[Answer]]]


@dataclass(eq=False)
class _Waiting:
    """Request in the queue or in a call."""

    request: InspectRequest
    include: frozenset[str]
    until: float
    answer: asyncio.Future[Answer] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class RequestBatcher:
    """Request batcher with a bounded number of concurrent calls. A request is sent at once if a call is free."""

    def __init__(self, send: Send, *, calls: int, images: int) -> None:
        """Set up the batcher.

        Args:
            send: makes one call and returns one answer per question, in order. If it raises, every request of the
                call gets that exception.
            calls: maximum number of concurrent calls.
            images: maximum number of images of one call. A single request with more images is sent alone, so that
                little work is lost when its client disconnects.
        """
        self._send, self._most_calls, self._max_images = send, calls, images
        self._waiting: list[_Waiting] = []
        self._calls: dict[asyncio.Task[None], list[_Waiting]] = {}

    async def ask(self, request: InspectRequest, include: frozenset[str], seconds: float) -> Answer:
        """Return the answer to one request with a time limit of ``seconds``. Raises what ``send`` raises.

        Cancelling removes the request from the queue. A call is cancelled when all of its requests are cancelled.
        """
        own = _Waiting(request, include, monotonic() + seconds)
        self._waiting.append(own)
        self._begin_calls()
        try:
            return await own.answer
        finally:
            if own.answer.cancelled():
                self._leave(own)

    def _begin_calls(self) -> None:
        while self._waiting and len(self._calls) < self._most_calls:
            batch = self._take()
            # separate context: the call serves several requests and outlives the first one
            call = asyncio.get_running_loop().create_task(self._call(batch), context=Context())
            self._calls[call] = batch
            call.add_done_callback(self._end_call)

    def _take(self) -> list[_Waiting]:
        count, images = 0, 0
        for waiting in self._waiting:
            images += len(waiting.request.images)
            if count and images > self._max_images:
                break
            count += 1
        batch, self._waiting = self._waiting[:count], self._waiting[count:]
        return batch

    async def _call(self, batch: Sequence[_Waiting]) -> None:
        now = monotonic()
        try:
            answers = await self._send([Question(w.request, w.include, w.until - now) for w in batch])
            for waiting, answer in zip(batch, answers, strict=True):
                if not waiting.answer.done():
                    waiting.answer.set_result(answer)
        except Exception as error:
            for waiting in batch:
                if not waiting.answer.done():
                    waiting.answer.set_exception(error)

    def _end_call(self, call: asyncio.Task[None]) -> None:
        for waiting in self._calls.pop(call):
            if not waiting.answer.done():  # the call was cancelled from outside
                waiting.answer.set_exception(_lost())
        self._begin_calls()

    def _leave(self, own: _Waiting) -> None:
        if own in self._waiting:
            self._waiting.remove(own)
        for call, batch in self._calls.items():
            if own in batch and all(waiting.answer.done() for waiting in batch):
                call.cancel()


def _lost() -> ServiceError:
    return ServiceError(503, "replica_lost", "the call that carried this request was cancelled")
