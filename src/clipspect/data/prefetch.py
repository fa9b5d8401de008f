"""Prefetching in threads: the next images are decoded while the current ones are scored."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from clipspect.errors import ClipspectError

T = TypeVar("T")
R = TypeVar("R")


def prefetch(
    items: Iterable[T], load: Callable[[T], R], *, workers: int, ahead: int
) -> Iterator[tuple[T, R | ClipspectError]]:
    """Yield pairs of item and ``load(item)`` in the order of ``items``, loaded in ``workers`` threads.

    At most ``ahead`` items are pulled and not yet yielded, so memory is bounded for any length of ``items``. A
    ClipspectError of ``load`` replaces its result. Any other exception is raised at its item's turn, and one from
    ``items`` itself after everything pulled before it. Closing the iterator cancels pending loads.
    """
    pending: deque[tuple[T, Future[R]]] = deque()
    source = iter(items)
    failure: BaseException | None = None
    exhausted = False
    pool = ThreadPoolExecutor(workers, thread_name_prefix="clipspect-read")
    try:
        while True:
            while not exhausted and len(pending) < ahead:
                try:
                    item = next(source)
                except StopIteration:
                    exhausted = True
                except Exception as error:
                    failure, exhausted = error, True
                else:
                    pending.append((item, pool.submit(load, item)))
            if not pending:
                break
            item, future = pending.popleft()
            try:
                result: R | ClipspectError = future.result()
            except ClipspectError as error:
                result = error
            del future  # release the result while the consumer works
            yield item, result
            del result
        if failure is not None:
            raise failure
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
