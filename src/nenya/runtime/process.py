"""This process: whether it is the main one, the version of its code, its cores, and the progress that it shows."""

import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import nenya
from nenya.errors import OptionError
from nenya.storage.texts import printed

if TYPE_CHECKING:
    from rich.progress import Progress

log = logging.getLogger(__name__)

_MOST = 8
_SHARES = 4  # shares of the jobs per thread, so that a slow one does not delay all
_SECONDS_BETWEEN_LINES = 30.0


def is_main_process() -> bool:
    """Return whether this process is the main one: the first of those that a launcher started."""
    if "RANK" in os.environ:
        return from_environment("RANK", 0) == 0
    # Before SLURM's variable, which an interactive shell passes to all processes that Lightning starts.
    if "LOCAL_RANK" in os.environ:
        return from_environment("LOCAL_RANK", 0) == from_environment("NODE_RANK", 0) == 0
    rank = from_environment("SLURM_PROCID", 0) if srun_tasks() > 1 else 0
    return rank == from_environment("NODE_RANK", 0) == 0


def from_environment(name: str, default: int) -> int:
    """Return the number in a variable of the environment, the default if it is not set or empty.

    Raises:
        OptionError: It is no number, or a negative one.
    """
    text = os.environ.get(name, "").strip()
    if text and not (text.isascii() and text.isdecimal()):
        raise OptionError(f"{name}={text} in the environment: expected a number of at least 0; correct or unset it")
    return int(text or default)


def srun_tasks() -> int:
    """Return the number of processes that srun started together with this one; 1 if srun did not start it.

    In the shell of salloc, in a batch script and in a notebook there are variables of SLURM too.
    """
    env = os.environ
    if not {"SLURM_STEP_ID", "SLURM_STEPID"} & set(env) or "SLURM_PROCID" not in env:
        return 1
    return from_environment("SLURM_STEP_NUM_TASKS", from_environment("SLURM_NTASKS", 1))


def git_commit() -> str:
    """Return the commit of the code that runs, with '+' if it is modified; empty for an installed package."""
    here = Path(nenya.__file__).resolve().parent
    try:
        top = subprocess.run(
            ["git", "rev-parse", "--show-toplevel"], cwd=here, capture_output=True, text=True, check=True
        ).stdout.strip()
        if Path(top) != here.parents[1]:
            return ""
        commit = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"],
            cwd=here,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return commit.stdout.strip()


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Threads:
    """Runs jobs on several cores.

    Args:
        count: number of threads; with 1, the calling thread does everything. None: one per core, at most 8.
    """

    def __init__(self, count: int | None = None) -> None:
        self.count = min(_MOST, cores()) if count is None else count
        self._pool: ThreadPoolExecutor | None = None

    def __enter__(self) -> "Threads":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def spread(self, work: Callable[[Any], Any], jobs: Iterable[Any]) -> Iterable[Any]:
        """Run the jobs, adjacent ones in one thread, as their bytes are adjacent too; all have ended when it returns.

        Returns:
            The results, in the order of the jobs.
        """
        every = list(jobs)
        if self.count < 2 or len(every) < 2:
            return list(map(work, every))
        self._pool = self._pool or ThreadPoolExecutor(self.count, "read")
        size = -(-len(every) // (_SHARES * self.count))
        shares = [every[start : start + size] for start in range(0, len(every), size)]
        futures = [self._pool.submit(lambda share: [work(job) for job in share], share) for share in shares]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            for future in futures:
                future.cancel()
            wait(futures)
        for future in futures:
            if not future.cancelled() and future.exception() is not None:
                raise future.exception()  # type: ignore[misc]  # it is not None
        return [result for future in futures for result in future.result()]

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None


class RowProgress:
    """Counts completed rows and shows the remaining time.

    Args:
        name: label of the work.
        total: number of rows.
        before: number of rows completed earlier, excluded from the estimate of speed.
        visible: whether anything is shown.
        unit: what is counted.
    """

    def __init__(self, name: str, total: int, *, before: int = 0, visible: bool = True, unit: str = "rows") -> None:
        self.name, self.total, self.before, self.visible, self.unit = name, total, before, visible, unit
        self.done, self.start = before, time.monotonic()
        self._said = self.start
        self._bar: Progress | None = None  # of rich, loaded only for a terminal

    def __enter__(self) -> Self:
        if self.visible and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._bar.add_task(printed(self.name), total=self.total, completed=self.before)
            self._bar.start()
        return self

    def rename(self, name: str) -> None:
        """Change the label."""
        self.name = name
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], description=printed(name))

    def advance(self, rows: int) -> None:
        """Count rows as done."""
        rows = min(rows, self.total - self.done) if self.total else rows
        self.done += rows
        now = time.monotonic()
        if self._bar is not None:
            self._bar.advance(self._bar.task_ids[0], rows)
        elif self.visible and now - self._said > _SECONDS_BETWEEN_LINES:
            self._said = now
            left = (self.total - self.done) * (now - self.start) / max(1, self.done - self.before)
            log.info("%s: %d of %d %s, about %.0f s left", self.name, self.done, self.total, self.unit, left)

    def expect(self, total: int) -> None:
        """Change the number of rows, where it becomes known during the work."""
        self.total = max(total, self.done)
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], total=self.total)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
