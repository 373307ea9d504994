"""Progress over rows: a bar on a terminal, occasional log lines elsewhere."""

import logging
import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from nenya.storage.texts import printed

log = logging.getLogger(__name__)

_SECONDS_BETWEEN_LINES = 30.0


class RowProgress:
    """Counts completed rows and shows the remaining time.

    Args:
        name: label of the work.
        total: number of rows.
        before: number of rows completed earlier, excluded from the estimate of speed.
        visible: whether anything is shown.
    """

    def __init__(self, name: str, total: int, *, before: int = 0, visible: bool = True) -> None:
        self.name, self.total, self.before, self.visible = name, total, before, visible
        self.done, self.start = before, time.monotonic()
        self._said = self.start
        self._bar: Progress | None = None

    def __enter__(self) -> Self:
        if self.visible and sys.stderr.isatty():
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

    def advance(self, rows: int) -> None:
        """Count rows as done."""
        rows = min(rows, self.total - self.done) if self.total else rows
        self.done += rows
        now = time.monotonic()
        if self._bar is not None:
            self._bar.advance(self._bar.task_ids[0], rows)
        elif self.visible and now - self._said > _SECONDS_BETWEEN_LINES:
            self._said = now
            left = (self.total - self.done) * (now - self.start) / (self.done - self.before)
            log.info("%s: %d of %d rows, about %.0f s left", self.name, self.done, self.total, left)

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
