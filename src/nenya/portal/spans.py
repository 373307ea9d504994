"""Months as a filter of the portal, and how fast they move."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nenya.portal.columns import Columns

SLOT = "time"
STEPS = (1, 3, 12)
"""Months by which the time moves: a month, a season, a year."""
SPEEDS = (1, 2, 4, 8)
"""Steps a second."""
PACE = (1, 2)
"""Step and speed of a new page."""
_FARTHEST = 30_000  # months from January 1970
_NAMES = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


@dataclass(frozen=True)
class Months:
    """Rows of some months.

    Attributes:
        first: month, counted from January 1970.
        last: month, included.
    """

    first: int
    last: int

    @property
    def slot(self) -> str:
        """The place of the filter; other months replace it."""
        return SLOT

    @property
    def count(self) -> int:
        """Number of months."""
        return self.last - self.first + 1

    def mask(self, columns: Columns, _tick: Callable[[], None] = lambda: None) -> NDArray[np.bool_]:
        """Return which rows pass: (N,) bool."""
        month = columns.month_numbers
        return np.asarray((month >= np.int16(self.first)) & (month <= np.int16(self.last)))


def make_months(first: Any, last: Any) -> Months:
    """Return a filter by months.

    Raises:
        ValueError: They are no numbers of months, or in the wrong order.
    """
    if any(type(month) is not int or abs(month) > _FARTHEST for month in (first, last)) or first > last:
        raise ValueError("months")
    return Months(first, last)


def make_pace(given: Any) -> tuple[int, int]:
    """Return step and speed from untrusted values.

    Raises:
        ValueError: They are not of `STEPS` and `SPEEDS`.
    """
    step, speed = given
    if type(step) is not int or type(speed) is not int or step not in STEPS or speed not in SPEEDS:
        raise ValueError("a pace")
    return step, speed


def months_of(filters: tuple[Any, ...]) -> Months | None:
    """Return the months among filters; None if they do not limit the time."""
    return next((item for item in filters if isinstance(item, Months)), None)


def without_months(filters: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the filters that do not limit the time by months."""
    return tuple(item for item in filters if not isinstance(item, Months))


def month_name(month: int) -> str:
    """Return the name of a month, counted from January 1970: `Mar 2012`."""
    return f"{_NAMES[month % 12]} {1970 + month // 12}"


def span_name(first: int, last: int) -> str:
    """Return the name of some months: `2012`, `2012 to 2014`, `Mar 2012`, `Mar 2012 to May 2012`."""
    if first % 12 == 0 and last % 12 == 11:
        years = [str(1970 + month // 12) for month in (first, last)]
        return years[0] if years[0] == years[1] else " to ".join(years)
    return month_name(first) if first == last else f"{month_name(first)} to {month_name(last)}"
