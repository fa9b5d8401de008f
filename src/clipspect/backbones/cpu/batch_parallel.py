"""Lanes: a batch shared out among the processor's cores, each share in a thread that computes by itself.

torch's own way is all threads on one product after the other. Each product then ends with its slowest thread, and with
images decoded on the same cores there always is a slow one. Shares of a batch meet only at its end.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, Protocol, TypeVar

import torch

Part = TypeVar("Part", bound="Sliceable")
R = TypeVar("R")


class Sliceable(Protocol):
    """A batch of anything: a list, a tensor."""

    def __len__(self) -> int:
        """How many."""
        ...

    def __getitem__(self, index: slice, /) -> Any:
        """Some of them."""
        ...


class _Here(threading.local):
    inside = False


_here = _Here()
_CPU = torch.device("cpu")
_starting = threading.Lock()


def parallel_map(work: Callable[[Part], R], batch: Part, device: torch.device = _CPU) -> list[R]:
    """``work`` on consecutive shares of a batch, as many at once as torch has threads; results in order.

    A batch of one, another device than the processor, a single thread, and work that is in a lane already are done in
    place. Gradient and inference mode belong to a thread: ``work`` sets its own.
    """
    threads = torch.get_num_threads()
    lanes = min(threads, len(batch))
    if lanes < 2 or device.type != "cpu" or _here.inside:
        return [work(batch)]
    edges = [len(batch) * lane // lanes for lane in range(lanes + 1)]
    shares: Sequence[Part] = [batch[edges[i] : edges[i + 1]] for i in range(lanes)]
    with _starting:
        pool = _pool(lanes, threads)
    return list(pool.map(work, shares))


@cache
def _pool(lanes: int, threads: int) -> ThreadPoolExecutor:
    """Threads that share ``threads`` of torch's own among them; kept, because each start costs."""
    started = threading.Barrier(lanes + 1)

    def begin() -> None:
        torch.get_num_threads()  # torch sets a new thread's number at the first question: ask before setting it
        torch.set_num_threads(max(threads // lanes, 1))
        _here.inside = True
        started.wait()

    pool = ThreadPoolExecutor(lanes, "clipspect-lane", begin)
    for _ in range(lanes):
        pool.submit(lambda: None)
    started.wait()
    torch.set_num_threads(threads)  # what threads that start later than these find
    return pool


if hasattr(os, "register_at_fork"):  # a forked process has none of its parent's threads
    os.register_at_fork(after_in_child=_pool.cache_clear)
