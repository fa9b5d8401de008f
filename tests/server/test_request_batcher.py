"""Requests that wait are sent together, none waits without need, and a cancelled one does not affect the others."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar

import pytest

pytest.importorskip("pydantic", reason="the service's extra is not installed")

from clipspect.server.errors import ServiceError
from clipspect.server.request_batcher import RequestBatcher
from clipspect.server.requests import InspectRequest
from clipspect.server.responses import Answer

WHO: ContextVar[str] = ContextVar("who", default="nobody")


class Replicas:
    """Takes calls, and answers each when it is told to."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.seconds: list[float] = []
        self.context: list[str] = []
        self.cancelled: list[int] = []
        self._let_go: list[asyncio.Event] = []
        self.failing: dict[int, BaseException] = {}

    async def __call__(self, questions):
        number = len(self.calls)
        self.calls.append([question.request.object for question in questions])
        self.seconds += [question.seconds for question in questions]
        self.context.append(WHO.get())
        self._let_go.append(asyncio.Event())
        try:
            await self._let_go[number].wait()
        except asyncio.CancelledError:
            self.cancelled.append(number)
            raise
        if number in self.failing:
            raise self.failing[number]
        return [Answer(question.request.object, [], len(questions), 0.0) for question in questions]

    def let_go(self, number: int) -> None:
        self._let_go[number].set()


def request(name: str, images: int = 1) -> InspectRequest:
    return InspectRequest((b"photo",) * images, name, ("anoclip",), "tiny")


def asking(batcher: RequestBatcher, name: str, images: int = 1, seconds: float = 60) -> asyncio.Task:
    return asyncio.create_task(batcher.ask(request(name, images), frozenset(), seconds))


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def run(scenario) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20):
            await scenario

    asyncio.run(bounded())


def test_the_first_goes_at_once_and_those_that_wait_go_together_in_order():
    async def scenario() -> None:
        replicas = Replicas()
        batcher = RequestBatcher(replicas, calls=2, images=16)
        tasks = [asking(batcher, name) for name in "abcde"]
        await settle()
        assert replicas.calls == [["a"], ["b"]], "nobody waits while a call is free"
        replicas.let_go(0)
        await settle()
        assert replicas.calls[2:] == [["c", "d", "e"]], "those that waited share one call"
        replicas.let_go(2)
        replicas.let_go(1)
        answers = await asyncio.gather(*tasks)
        assert [answer.weights for answer in answers] == list("abcde"), "each has its own answer"
        assert len(replicas.calls) == 3

    run(scenario())


def test_a_call_is_bounded_by_images_and_a_long_request_travels_alone():
    async def scenario() -> None:
        replicas = Replicas()
        batcher = RequestBatcher(replicas, calls=1, images=4)
        tasks = [asking(batcher, "first")]
        await settle()
        tasks += [asking(batcher, name, count) for name, count in [("a", 3), ("b", 1), ("c", 9), ("d", 1)]]
        for number in range(4):
            await settle()
            replicas.let_go(number)
        await asyncio.gather(*tasks)
        assert replicas.calls == [["first"], ["a", "b"], ["c"], ["d"]]

    run(scenario())


def test_who_leaves_the_queue_is_never_sent_and_time_spent_waiting_counts():
    async def scenario() -> None:
        replicas = Replicas()
        batcher = RequestBatcher(replicas, calls=1, images=16)
        first, left, stays = (asking(batcher, name, seconds=5) for name in ("first", "left", "stays"))
        await settle()
        left.cancel()
        await asyncio.sleep(0.02)
        replicas.let_go(0)
        await settle()
        replicas.let_go(1)
        await asyncio.gather(first, stays)
        assert replicas.calls == [["first"], ["stays"]]
        assert replicas.seconds[1] <= 5 - 0.02
        assert left.cancelled()

    run(scenario())


def test_a_call_goes_on_until_the_last_of_its_requests_has_left():
    async def scenario() -> None:
        replicas = Replicas()
        batcher = RequestBatcher(replicas, calls=1, images=16)
        first = asking(batcher, "first")
        await settle()
        one, other = asking(batcher, "one"), asking(batcher, "other")
        replicas.let_go(0)
        await first
        await settle()
        assert replicas.calls[1] == ["one", "other"]
        one.cancel()
        await settle()
        assert replicas.cancelled == []
        other.cancel()
        await settle()
        assert replicas.cancelled == [1]
        after = asking(batcher, "after")
        await settle()
        replicas.let_go(2)
        assert (await after).weights == "after", "the call that was given up is free again"

    run(scenario())


def test_an_error_of_a_call_is_everybodys_in_it_and_nobody_elses():
    async def scenario() -> None:
        replicas = Replicas()
        replicas.failing = {1: ServiceError(503, "replica_lost", "gone"), 2: asyncio.CancelledError()}
        batcher = RequestBatcher(replicas, calls=1, images=2)
        tasks = [asking(batcher, name) for name in ("first", "a", "b", "c", "d", "e")]
        for number in range(4):
            await settle()
            replicas.let_go(number)
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert replicas.calls == [["first"], ["a", "b"], ["c", "d"], ["e"]]
        assert [answer.weights for answer in (found[0], found[5])] == ["first", "e"]
        for refused in found[1:5]:
            assert isinstance(refused, ServiceError)
            assert (refused.status, refused.code) == (503, "replica_lost")

    run(scenario())


def test_a_call_is_not_made_in_the_name_of_one_of_its_requests():
    """Ray cancels what a request has asked for when that request is cancelled; a call belongs to several."""

    async def scenario() -> None:
        replicas = Replicas()
        batcher = RequestBatcher(replicas, calls=1, images=16)

        async def client() -> Answer:
            WHO.set("client")
            return await batcher.ask(request("a"), frozenset(), 60)

        task = asyncio.create_task(client())
        await settle()
        replicas.let_go(0)
        await task
        assert replicas.context == ["nobody"]

    run(scenario())
