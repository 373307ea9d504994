"""Filters made of others: unions and differences of selections, and rows chosen one by one."""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nenya.portal.columns import Columns
from nenya.portal.spans import SLOT

BoolArray = NDArray[np.bool_]
Tick = Callable[[], None]

MOST_ROWS = 1000
"""Rows chosen one by one, at most."""
MODES = ("and", "or", "not")
"""What a new filter does: narrows the selection, adds to it, or takes away from it."""


class Part(Protocol):
    """A filter."""

    @property
    def slot(self) -> str:
        """The view it belongs to."""
        ...

    def mask(self, columns: Columns, tick: Tick = ...) -> BoolArray:
        """Return which rows pass."""
        ...


@dataclass(frozen=True)
class Rows:
    """Rows chosen one by one, such as look-alikes.

    Attributes:
        rows: of the table, rising.
        title: what they are.
    """

    rows: tuple[int, ...]
    title: str

    @property
    def slot(self) -> str:
        """The place of the filter; new rows replace it."""
        return "rows"

    def mask(self, columns: Columns, _tick: Tick = lambda: None) -> BoolArray:
        """Return which rows pass: (N,) bool."""
        found = np.zeros(columns.rows, bool)
        found[list(self.rows)] = True
        return found


@dataclass(frozen=True)
class Either:
    """Rows that pass all filters of at least one branch.

    Attributes:
        branches: the filters of each.
    """

    branches: tuple[tuple[Any, ...], ...]

    @property
    def slot(self) -> str:
        """The place of the filter."""
        return f"either {_mark(self)}"

    def mask(self, columns: Columns, tick: Tick = lambda: None) -> BoolArray:
        """Return which rows pass: (N,) bool."""
        found = np.zeros(columns.rows, bool)
        for branch in self.branches:
            found |= all_of(branch, columns, tick)
        return found


@dataclass(frozen=True)
class Without:
    """Rows that do not pass all of some filters.

    Attributes:
        filters: their rows are taken away.
    """

    filters: tuple[Any, ...]

    @property
    def slot(self) -> str:
        """The place of the filter."""
        return f"without {_mark(self)}"

    def mask(self, columns: Columns, tick: Tick = lambda: None) -> BoolArray:
        """Return which rows pass: (N,) bool."""
        return ~all_of(self.filters, columns, tick)


def _mark(item: Any) -> str:
    return f"{zlib.crc32(repr(item).encode()):08x}"


def all_of(filters: tuple[Part, ...], columns: Columns, tick: Tick) -> BoolArray:
    """Return which rows pass all filters: (N,) bool."""
    found = np.ones(columns.rows, bool)
    for item in filters:
        tick()
        found &= item.mask(columns, tick)
    return found


def combined(filters: tuple[Any, ...], item: Any, mode: str) -> tuple[Any, ...]:
    """Return filters with a new one.

    Args:
        filters: the present ones; all rows pass where there are none.
        item: the new one.
        mode: of `MODES`; `and` replaces the filter of the same slot. The months shown stay what they are.
    """
    time = tuple(other for other in filters if other.slot == SLOT)
    filters = tuple(other for other in filters if other.slot != SLOT)
    if mode == "not":
        return (*filters, Without((item,)), *time)
    if mode == "or" and filters:
        if len(filters) == 1 and isinstance(filters[0], Either):
            return (Either((*filters[0].branches, (item,))), *time)
        return (Either((filters, (item,))), *time)
    return (*(other for other in filters if other.slot != item.slot), item, *time)
