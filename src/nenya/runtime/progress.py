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
        unit: what is counted.
    """

    def __init__(self, name: str, total: int, *, before: int = 0, visible: bool = True, unit: str = "rows") -> None:
        self.name, self.total, self.before, self.visible, self.unit = name, total, before, visible, unit
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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
