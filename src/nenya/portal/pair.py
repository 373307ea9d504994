"""Two selections, A and B, against each other: their rows, colours of cells, points, histograms and statistics.

Letters: N rows of the table.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nenya.portal import pictures
from nenya.portal.dataset import Dataset
from nenya.portal.jobs import Ticket
from nenya.portal.pictures import Extent
from nenya.portal.points import MOST_POINTS, Near
from nenya.portal.state import PLANES, BoolArray, Filter, View
from nenya.portal.summary import Summary, summarise
from nenya.portal.work import cells_for, ordered_rows, places_of
from nenya.tables.classes import Classes

Filters = tuple[Filter, ...]
FloatArray = NDArray[np.float32]
IntArray = NDArray[np.integer]

COLOURS = ("#e07b16", "#3b82d0", "#8d8799")
"""Of A, of B, and of where both are: told apart in both themes, and with any colour vision."""
NAMES = ("A", "B", "both")
_MORE = 2.0  # times as dense as the other, for its size, is a set in a cell of its colour


@dataclass(frozen=True)
class Pair:
    """Two selections.

    Attributes:
        a: filters of A.
        b: filters of B.
    """

    a: Filters
    b: Filters

    def masks(self, dataset: Dataset, ticket: Ticket) -> tuple[BoolArray, BoolArray]:
        """Return which rows are in A, and which in B: (N,) bool each."""
        found = []
        for share, filters in ((0.1, self.a), (0.2, self.b)):
            mask = dataset.masks.all_of(filters, lambda share=share: ticket.tick(share))  # type: ignore[misc]
            found.append(np.ones(dataset.columns.rows, bool) if mask is None else mask)
        return found[0], found[1]


def pair_of(view: View) -> Pair | None:
    """Return the two selections of a view: one that is not held is the present one; None if there are no two."""
    a, b = view.held
    if a is None and b is None:
        return None
    found = Pair(view.filters if a is None else a, view.filters if b is None else b)
    return found if found.a != found.b else None


@dataclass(frozen=True)
class Sizes:
    """Numbers of rows.

    Attributes:
        a: of A.
        b: of B.
        both: of both.
        counts: of histograms by column: (BINS,) int64 of A and of B.
    """

    a: int
    b: int
    both: int
    counts: dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]]


def sizes(dataset: Dataset, pair: Pair, charts: tuple[str, ...], ticket: Ticket) -> Sizes:
    """Count the rows of two selections, and those in the bins of histograms."""

    def make() -> Sizes:
        a, b = pair.masks(dataset, ticket)
        binned = [dataset.columns.binned(name) for name in charts]
        counts = {one.name: (pictures.histogram(one, a), pictures.histogram(one, b)) for one in binned}
        return Sizes(int(a.sum()), int(b.sum()), int((a & b).sum()), counts)

    return dataset.shared.get(("pair sizes", pair, charts), make)


def codes_of(a: BoolArray, b: BoolArray) -> Classes:
    """Return the set of each row as a class: 0 for A, 1 for B, 2 for both, -1 for none."""
    codes = np.where(a & b, 2, np.where(a, 0, np.where(b, 1, -1))).astype(np.int16)
    return Classes("pair", NAMES, codes)


def plane_of(
    dataset: Dataset, plane: str, extent: Extent, pair: Pair, ticket: Ticket
) -> tuple[FloatArray, FloatArray, Near | None]:
    """Return counts of all rows, which set is the denser one in each cell, and the rows one by one if they are few.

    The densities are shares of each set. A cell is of A's colour (0) if A is at least twice as dense there as B, of B's
    (1) likewise, else of that of both (2); NaN where there is neither.
    """
    columns = dataset.columns
    x, y = (columns.values(column) for column in PLANES[plane])
    around = 360.0 if plane == "map" else None
    shape = cells_for(columns.rows, plane)

    def count(filters: Filters) -> FloatArray:
        mask = dataset.masks.all_of(filters, lambda: ticket.tick(0.3))
        places = places_of(dataset, plane, extent)
        return pictures.raster(x, y, extent, shape, mask=mask, around=around, places=places)

    def make() -> FloatArray:
        a, b = pair.masks(dataset, ticket)
        parts = [np.nan_to_num(count(filters)) for filters in (pair.a, pair.b)]
        shares = [part / max(1, int(mask.sum())) for part, mask in zip(parts, (a, b), strict=True)]
        there = (parts[0] > 0) | (parts[1] > 0)
        denser = np.where(shares[0] >= _MORE * shares[1], 0.0, np.where(shares[1] >= _MORE * shares[0], 1.0, 2.0))
        return np.where(there, denser, np.nan).astype(np.float32)

    whole = dataset.shared.get(("raster", plane, extent, (), "count"), lambda: count(()))
    chosen = dataset.shared.get(("pair raster", plane, extent, pair), make)
    return whole, chosen, _points(dataset, plane, extent, pair, ticket)


def _points(dataset: Dataset, plane: str, extent: Extent, pair: Pair, ticket: Ticket) -> Near | None:
    """Return the rows of both sets within an extent, with their set as value; None if there are too many."""
    columns = dataset.columns
    left, right, low, high = extent
    x, y = (columns.values(axis) for axis in PLANES[plane])
    if plane == "map":
        x = np.mod(x - np.float32(left), np.float32(360)) + np.float32(left)
    a, b = pair.masks(dataset, ticket)
    rows = np.flatnonzero((x >= left) & (x <= right) & (y >= low) & (y <= high) & (a | b))
    if len(rows) > MOST_POINTS:
        return None
    return Near(x[rows], y[rows], rows, codes_of(a, b).codes[rows].astype(np.float32))


def gallery_rows(
    dataset: Dataset, pair: Pair, order: tuple[str, bool], page: int, most: int, ticket: Ticket
) -> tuple[IntArray, list[int], int]:
    """Return the rows of a page of the gallery, first those of A, then those of B, and the set of each.

    Args:
        dataset: of the rows.
        pair: the two selections.
        order: of `ordered_rows`.
        page: its number; the last one there is, if it is larger.
        most: cutouts of a page.
        ticket: of the work.

    Returns:
        Rows (n,), 0 for A or 1 for B of each, and the number of the page.
    """

    def make() -> tuple[IntArray, IntArray]:
        a, b = (ordered_rows(dataset, mask, *order) for mask in pair.masks(dataset, ticket))
        return a, b

    both = dataset.shared.get(("pair rows", pair, order), make)
    half = max(1, most // 2)
    page = min(page, max(0, (max(map(len, both)) - 1) // half))
    parts = [rows[page * half : (page + 1) * half] for rows in both]
    return np.concatenate(parts), [k for k, rows in enumerate(parts) for _ in range(len(rows))], page


def summaries(dataset: Dataset, pair: Pair, ticket: Ticket) -> tuple[Summary, Summary]:
    """Return the comparisons of A and of B with all rows."""

    def make() -> tuple[Summary, Summary]:
        a, b = pair.masks(dataset, ticket)
        return (
            summarise(dataset.columns, a, lambda share: ticket.tick(0.5 * share)),
            summarise(dataset.columns, b, lambda share: ticket.tick(0.5 + 0.5 * share)),
        )

    return dataset.shared.get(("pair statistics", pair), make)
