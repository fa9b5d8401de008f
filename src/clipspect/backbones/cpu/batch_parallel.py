"""Parallelism over images: worker threads each process a share of a batch.

PyTorch parallelizes each matmul, so each matmul ends with its slowest thread. If images are decoded on the same cores,
one thread is always slow. This module parallelizes over images, so threads synchronize only at the end of a batch.

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
    """Batch of any kind, such as a list or a tensor."""

    def __len__(self) -> int:
        """Return the number of items."""
        ...

    def __getitem__(self, index: slice, /) -> Any:
        """Return a part of the batch."""
        ...


class _Here(threading.local):
    inside = False


_here = _Here()
_CPU = torch.device("cpu")
_starting = threading.Lock()


def parallel_map(work: Callable[[Part], R], batch: Part, device: torch.device = _CPU) -> list[R]:
    """Apply ``work`` to consecutive shares of a batch in parallel; return the results in order.

    There is one share per PyTorch thread. ``work`` runs in the calling thread for a batch of one, for a device other
    than the CPU, with a single thread, and for nested calls. Gradient and inference mode are per thread: ``work`` sets
    its own.
    """
    threads = torch.get_num_threads()
    workers = min(threads, len(batch))
    if workers < 2 or device.type != "cpu" or _here.inside:
        return [work(batch)]
    edges = [len(batch) * worker // workers for worker in range(workers + 1)]
    shares: Sequence[Part] = [batch[edges[i] : edges[i + 1]] for i in range(workers)]
    with _starting:
        pool = _pool(workers, threads)
    return list(pool.map(work, shares))


@cache
def _pool(workers: int, threads: int) -> ThreadPoolExecutor:
    """Return a cached pool of threads that divide ``threads`` PyTorch threads among them. Starting threads is slow."""
    started = threading.Barrier(workers + 1)

    def begin() -> None:
        torch.get_num_threads()  # PyTorch initializes a new thread's count on the first query: query before setting it
        torch.set_num_threads(max(threads // workers, 1))
        _here.inside = True
        started.wait()

    pool = ThreadPoolExecutor(workers, "clipspect-worker", begin)
    for _ in range(workers):
        pool.submit(lambda: None)
    started.wait()
    torch.set_num_threads(threads)  # default of threads that start later
    return pool


if hasattr(os, "register_at_fork"):  # a forked process does not inherit its parent's threads
    os.register_at_fork(after_in_child=_pool.cache_clear)
