"""Matrix products on one thread each, where threads of nenya share the work."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from nenya.runtime.process import cores

_ONE_AT_A_TIME = threading.Lock()
_MOST, _MOST_IN_ORDER = 64, 8
_LEAST_ROWS, _MOST_ROWS = 256, 8192

T = TypeVar("T")
R = TypeVar("R")


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Let each matrix product compute on the thread that calls it.

    The limit applies to the process, so only one piece of work at a time may set it; others wait.
    """
    from threadpoolctl import threadpool_limits

    with _ONE_AT_A_TIME, threadpool_limits(1, "blas"):
        yield


def on_all_cores(work: Callable[[T], None], items: Iterable[T]) -> None:
    """Do work on several items, each on a thread of its own, as many at a time as there are cores.

    The calling thread works on a single item, and its matrix products use all cores.
    """
    jobs = list(items)
    if min(len(jobs), cores()) < 2:
        for job in jobs:
            work(job)
        return
    with one_thread_each(), ThreadPoolExecutor(min(len(jobs), cores(), _MOST), "nenya") as pool:
        for future in [pool.submit(work, job) for job in jobs]:
            future.result()


def parts(count: int, most: int = _MOST_ROWS) -> list[slice]:
    """Return slices of rows for `on_all_cores`, of at most `most` rows each; as many as cores if there are few rows."""
    size = min(most, max(_LEAST_ROWS, -(-count // cores())))
    return [slice(start, start + size) for start in range(0, count, size)]


def in_order(
    work: Callable[[T], R], items: Iterable[T], threads: int | None = None, name: str = "nenya"
) -> Iterator[R]:
    """Yield the results of work on items, in their order, with few in progress at a time.

    Args:
        work: computes on a thread of its own; with one thread, on the calling one.
        items: drawn by the calling thread.
        threads: number of threads; default: one per core, at most eight.
        name: of the threads.
    """
    threads = min(cores(), _MOST_IN_ORDER) if threads is None else threads
    if threads < 2:
        yield from map(work, items)
        return
    with one_thread_each(), ThreadPoolExecutor(threads, name) as pool:
        ahead: deque[Any] = deque()
        try:
            for item in items:
                ahead.append(pool.submit(work, item))
                if len(ahead) > 2 * threads:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()
