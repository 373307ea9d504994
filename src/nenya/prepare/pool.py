"""Files shared among processes, on this machine or of a Dask cluster."""

import functools
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor
from concurrent.futures import wait as futures_wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait
from typing import Any

from nenya.errors import OutputError
from nenya.options.commands import PrepareOptions
from nenya.prepare.work import Outcome, Task, prepare_file
from nenya.runtime.shards import dask_client
from nenya.runtime.signals import ignore_interrupts

_PATIENCE = 0.5  # seconds between checks for a signal
_events: Any = None  # in a worker, the queue of its reports to the first process


def outcomes_of(
    tasks: list[Task], options: PrepareOptions, check: Callable[[], None], report: Callable[[int, int, int], None]
) -> Iterator[tuple[int, Outcome]]:
    """Yield the outcome of each task as it ends; report number of the task, fields done and their total meanwhile."""
    with _executor(len(tasks), options) as (pool, events):
        if pool is None:
            yield from ((n, prepare_file(task, check, functools.partial(report, n))) for n, task in enumerate(tasks))
            return
        futures = {pool.submit(_prepare_reported, n, task): n for n, task in enumerate(tasks)}
        try:
            left: set[Future[Outcome]] = set(futures)
            while left:
                done, left = futures_wait(left, timeout=_PATIENCE, return_when=FIRST_COMPLETED)
                while events is not None and not events.empty():
                    report(*events.get())
                check()
                yield from ((futures[future], future.result()) for future in done)
        except BrokenProcessPool as error:
            raise OutputError(
                "a process of the preparation was killed, perhaps because memory ran out: lower workers=, then run the "
                "same command to resume"
            ) from error


def _prepare_reported(number: int, task: Task) -> Outcome:
    """Prepare a file in another process, which reports to the first one."""
    events = _events
    return prepare_file(task, report=lambda *seen: None if events is None else events.put((number, *seen)))


@contextmanager
def _executor(tasks: int, options: PrepareOptions) -> Iterator[tuple[Executor | None, Any]]:
    """Yield an executor for tasks in other processes, None if one process suffices; and a queue of their reports."""
    workers = options.workers or min(len(os.sched_getaffinity(0)), tasks)
    if options.dask is not None:
        with dask_client(options.dask) as client:
            yield client.get_executor(pure=False), None
    elif min(workers, tasks) <= 1:
        yield None, None
    else:
        context = multiprocessing.get_context("spawn")
        events = context.SimpleQueue()
        before = set(multiprocessing.active_children())
        pool = ProcessPoolExecutor(
            min(workers, tasks), mp_context=context, initializer=_begin_worker, initargs=(events,)
        )
        try:
            yield pool, events
            pool.shutdown()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in set(multiprocessing.active_children()) - before:
                process.terminate()
            raise


def _begin_worker(events: Any) -> None:
    """Leave Ctrl-C to the parent process, and end with it."""
    global _events
    _events = events
    ignore_interrupts()
    parent = multiprocessing.parent_process()
    if parent is not None:
        sentinel = parent.sentinel

        def watch() -> None:
            wait([sentinel])
            os._exit(1)

        threading.Thread(target=watch, name="parent", daemon=True).start()
