"""The count of fields for the progress bar; the total is known file by file."""

from nenya.runtime.process import RowProgress


class FieldCount:
    """Counts the fields of several tasks; those of files not yet opened are estimated from the others.

    Args:
        tasks: number of tasks.
        progress: shows the count.
    """

    def __init__(self, tasks: int, progress: RowProgress) -> None:
        self._tasks, self._progress = tasks, progress
        self._done: dict[int, int] = {}
        self._totals: dict[int, int] = {}

    @property
    def total(self) -> int:
        """Fields of all tasks, as far as known."""
        known = sum(self._totals.values())
        each = max(1.0, known / len(self._totals)) if self._totals else 1.0
        return known + round(each * (self._tasks - len(self._totals)))

    def report(self, task: int, done: int, total: int) -> None:
        """Count the fields of a task that are done, of its total."""
        self._totals[task] = total
        self._progress.expect(self.total)
        self._progress.advance(max(0, done - self._done.get(task, 0)))
        self._done[task] = max(done, self._done.get(task, 0))

    def end(self, task: int) -> None:
        """Count a task as done, also if it failed."""
        total = max(self._totals.get(task, 0), self._done.get(task, 0)) or 1
        self.report(task, total, total)
