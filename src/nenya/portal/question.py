"""Conditions typed by a visitor as a filter of the portal, evaluated on its columns."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nenya.defs import REGIONS, SEASONS
from nenya.portal.columns import Columns
from nenya.tables.question import parse, rows_asked

_DERIVED = ("DT", "month", "year")


class ColumnRows:
    """The columns of the portal, as conditions read them (`nenya.tables.asked.Rows`).

    Args:
        columns: of the table.
        tick: called before each column is read; an exception from it ends the work.
    """

    def __init__(self, columns: Columns, tick: Callable[[], None] = lambda: None) -> None:
        self._columns, self._tick = columns, tick
        self.count = columns.rows
        self.names: Sequence[str] = [*columns.names, *(n for n in _DERIVED if n in columns and n not in columns.names)]

    def find(self, name: str) -> str:
        """Return the column of a name in any case; '' if there is none."""
        if name in self.names:
            return name
        found = [column for column in self.names if column.lower() == name.lower()]
        return found[0] if name and len(found) == 1 else ""

    def kind(self, name: str) -> str:
        """Return `number`, `date`, `text` or `other`."""
        if name == "datetime" and "month" in self._columns:
            return "date"
        if self._columns.is_number(name):
            return "number"
        return "text" if self._columns.is_text(name) else "other"

    def numbers(self, name: str) -> NDArray[Any]:
        """Return a column of numbers, (N,), with the precision of the table."""
        self._tick()
        return self._columns.exact(name)

    def moments(self) -> NDArray[np.datetime64]:
        """Return the dates, (N,) datetime64[s]."""
        self._tick()
        return self._columns.moments()

    def texts(self, name: str) -> tuple[NDArray[np.integer], Any]:
        """Return the number of each row's string, (N,), -1 for none, and the strings as an Arrow array."""
        self._tick()
        return self._columns.coded(name)


@dataclass(frozen=True)
class Question:
    """Rows that fulfil a typed condition.

    Attributes:
        text: the condition.
    """

    text: str

    @property
    def slot(self) -> str:
        """The place of the filter; a new condition replaces it."""
        return "question"

    def mask(self, columns: Columns, tick: Callable[[], None] = lambda: None) -> NDArray[np.bool_]:
        """Return which rows pass: (N,) bool."""
        return rows_asked(self.text, ColumnRows(columns, tick))


def make_question(text: Any) -> Question:
    """Return the filter of a typed condition.

    Raises:
        ValueError: It is not a text.
    """
    if not isinstance(text, str) or not text.strip():
        raise ValueError("a condition")
    return Question(" ".join(text.split()))


def condition_words(columns: Columns) -> list[str]:
    """Return conditions to choose from while typing: regions, seasons, and ranges of the columns."""
    words = []
    if "lat" in columns and "lon" in columns:
        words += [f"region={name}" for name in REGIONS if name not in ("global", "north")]
    if "month" in columns:
        words += [*(f"season={name}" for name in SEASONS), *(["winter", "summer"] if "lat" in columns else [])]
        words += ["month 12 to 2", "dates=[2012-01-01,2012-12-31]"]
    return [*words, *(f"{name} > " for name in columns.metrics()[:20])]


def check_question(question: Question, columns: Columns) -> None:
    """Check a condition against the columns of a table.

    Raises:
        OptionError: It is not a condition, too long, or names what does not exist.
    """
    parse(question.text, ColumnRows(columns))
