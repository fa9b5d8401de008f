"""Reading ahead keeps the order, bounds what is in flight and stops cleanly."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from clipspect.data.prefetch import prefetch
from clipspect.errors import ImageError


def reading_threads() -> int:
    return sum(thread.name.startswith("clipspect-read") for thread in threading.enumerate())


def test_results_come_in_order_whichever_thread_is_first():
    def slow_when_even(number: int) -> int:
        time.sleep(0.003 if number % 2 == 0 else 0)
        return number * number

    pairs = list(prefetch(range(30), slow_when_even, workers=4, ahead=8))
    assert pairs == [(number, number * number) for number in range(30)]
    assert reading_threads() == 0


def test_no_more_than_ahead_items_are_pulled_before_their_turn():
    pulled = []

    def source() -> Iterator[int]:
        for number in range(1000):  # far more than may ever be in memory
            pulled.append(number)
            yield number

    for item, _ in prefetch(source(), str, workers=2, ahead=5):
        assert len(pulled) <= item + 5
        if item == 50:
            break
    assert len(pulled) <= 56


def test_an_image_that_fails_takes_its_own_place():
    def load(number: int) -> int:
        if number == 2:
            raise ImageError("two", "is damaged")
        return number

    results = [result for _, result in prefetch(range(5), load, workers=2, ahead=3)]
    assert [r for r in results if isinstance(r, int)] == [0, 1, 3, 4]
    assert isinstance(results[2], ImageError)


def test_any_other_exception_reaches_the_consumer_and_ends_the_threads():
    def load(number: int) -> int:
        return 10 // (3 - number)

    stream = prefetch(range(10), load, workers=2, ahead=4)
    assert [next(stream)[0] for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ZeroDivisionError):
        next(stream)
    assert reading_threads() == 0


def test_an_exception_of_the_source_comes_after_what_was_pulled_before_it():
    def source() -> Iterator[int]:
        yield from range(3)
        raise OSError("the camera is gone")

    stream = prefetch(source(), str, workers=2, ahead=8)
    assert [next(stream)[0] for _ in range(3)] == [0, 1, 2]
    with pytest.raises(OSError, match="camera"):
        next(stream)


@pytest.mark.parametrize("how", ["close", "interrupt"])
def test_stopping_early_ends_the_threads(how):
    stream = prefetch(range(1000), str, workers=3, ahead=6)
    next(stream)
    if how == "close":
        stream.close()
    else:
        with pytest.raises(KeyboardInterrupt):
            stream.throw(KeyboardInterrupt)
    assert reading_threads() == 0


def test_nothing_is_held_after_it_was_given_out():
    alive = [0]
    most = [0]
    lock = threading.Lock()

    class Picture:
        def __init__(self) -> None:
            with lock:
                alive[0] += 1
                most[0] = max(most[0], alive[0])

        def __del__(self) -> None:
            with lock:
                alive[0] -= 1

    for _, picture in prefetch(range(200), lambda _: Picture(), workers=2, ahead=4):
        del picture
    assert most[0] <= 6
