"""Work of sessions in threads: selection, rasters, sheets of cutouts, searches; results are shared by sessions.

Letters: N rows of the table.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nenya.latents.similarity import closest, direction
from nenya.portal import pictures, words
from nenya.portal.dataset import Dataset
from nenya.portal.jobs import Ticket
from nenya.portal.pictures import Extent
from nenya.portal.points import Near, points_in
from nenya.portal.state import PLANES, BoolArray, Filter, View
from nenya.portal.summary import summarise

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.integer]
Filters = tuple[Filter, ...]

ORDERS = ("random", "table order")
_CELLS = {"umap": (320, 320), "map": (360, 240)}
_NEAREST = 60
_NEAR_CLICK = 0.03  # as a fraction of the shown width
_SHUFFLED = 5000  # rows that come first, in random order
_FEW = 8  # a selection of less than one in so many rows is given by its row numbers


@dataclass(frozen=True)
class Selected:
    """The rows that pass the filters.

    Attributes:
        mask: (N,); None for all.
        ordered: their indices, in the order of the gallery and the table.
        counts: of the histograms by column, (BINS,) int64 each.
    """

    mask: BoolArray | None
    ordered: IntArray
    counts: dict[str, NDArray[np.int64]]


@dataclass(frozen=True)
class Similar:
    """Rows in order of similarity of their latents, closest first.

    Attributes:
        rows: (n,) of the table.
        cosine: (n,).
    """

    rows: IntArray
    cosine: NDArray[np.float64]


def picked(dataset: Dataset, filters: Filters, ticket: Ticket) -> IntArray | BoolArray | None:
    """Return what picks the rows that pass the filters out of a column: few rows by their numbers, else a mask (N,).

    Months are few rows of many, so that work on them takes as long as in a small table; None for all rows.
    """
    if not filters:
        return None

    def make() -> IntArray | BoolArray | None:
        mask = dataset.masks.all_of(filters, lambda: ticket.tick(0.1))
        few = mask is not None and np.count_nonzero(mask) < len(mask) // _FEW
        return np.flatnonzero(mask) if few and mask is not None else mask

    return dataset.shared.get(("picked", filters), make)


def select(
    dataset: Dataset, filters: Filters, order: tuple[str, bool], charts: Sequence[str], ticket: Ticket
) -> Selected:
    """Find the rows that pass the filters, in an order of `ordered_rows`, and count them for histograms."""

    def make() -> Selected:
        mask = dataset.masks.all_of(filters, lambda: ticket.tick(0.1))
        ticket.tick(0.3)
        rows = picked(dataset, filters, ticket)
        counts = {name: pictures.histogram(dataset.columns.charted(name), rows) for name in charts}
        ticket.tick(0.6)
        return Selected(mask, ordered_rows(dataset, mask, *order), counts)

    return dataset.shared.get(("select", filters, order, tuple(charts)), make)


def ordered_rows(dataset: Dataset, mask: BoolArray | None, order: str, descending: bool) -> IntArray:
    """Return the selected rows in the order of the gallery and the table, int32.

    Args:
        dataset: of the rows.
        mask: (N,), the selection; None for all.
        order: `random` (always the same), `table order`, or a metric: missing values come last.
        descending: whether the largest value comes first.
    """
    rows = (np.arange(dataset.columns.rows) if mask is None else np.flatnonzero(mask)).astype(np.int32)
    if order == "random":
        first = rows[np.random.default_rng(len(rows)).choice(len(rows), min(len(rows), _SHUFFLED), replace=False)]
        left = np.zeros(dataset.columns.rows, bool)
        left[rows] = True
        left[first] = False
        return np.concatenate([first, np.flatnonzero(left).astype(np.int32)])
    if order == "table order":
        return rows
    values = dataset.columns.values(order)[rows]
    return np.asarray(rows[np.argsort(-values if descending else values, kind="stable")])


def cells_for(rows: int, plane: str) -> tuple[int, int]:
    """Return the number of cells of a raster: fewer for few rows, so that each is visible."""
    wide, tall = _CELLS[plane]
    share = min(1.0, max(0.3, np.sqrt(rows / 200_000)))
    return int(wide * share), int(tall * share)


def rasters(
    dataset: Dataset, plane: str, extent: Extent, view: View, ticket: Ticket
) -> tuple[FloatArray | None, FloatArray]:
    """Return counts of all rows (None without filters), and counts, means or commonest classes of the selected ones."""
    filters, colour, columns = view.filters, view.colour, dataset.columns
    x, y = (columns.values(column) for column in PLANES[plane])
    around = 360.0 if plane == "map" else None
    shape = cells_for(columns.rows, plane)

    def of(which: Filters, name: str) -> FloatArray:
        def make() -> FloatArray:
            values = columns.values(name) if name != "count" and columns.classes(name) is None else None
            mask = picked(dataset, which, ticket)
            some = mask is not None and mask.dtype != bool
            places = None if some else places_of(dataset, plane, extent)
            if name != "count" and (classes := columns.classes(name)) is not None:
                return pictures.class_raster(
                    x, y, extent, shape, classes, mask=mask, around=around, places=places_of(dataset, plane, extent)
                )
            ratio = values is not None and columns.scale(name) == "ratio"  # the mean of 2 and 1/2 is 1
            values = np.log(values) if values is not None and ratio else values
            found = pictures.raster(x, y, extent, shape, mask=mask, values=values, around=around, places=places)
            return np.exp(found) if ratio else found

        return dataset.shared.get(("raster", plane, extent, which, name), make)

    whole = of((), "count") if filters else None
    ticket.tick(0.5)
    return whole, of(filters, colour)


def places_of(dataset: Dataset, plane: str, extent: Extent) -> pictures.Places:
    """Return the cell of each row in the raster of a plane, (N,) int32, which selections share."""
    x, y = (dataset.columns.values(column) for column in PLANES[plane])
    shape, around = cells_for(len(x), plane), 360.0 if plane == "map" else None
    return dataset.shared.get(("cells", plane, extent), lambda: pictures.cells_of(x, y, extent, shape, around))


def plane_of(
    dataset: Dataset, plane: str, extent: Extent, view: View, ticket: Ticket
) -> tuple[FloatArray | None, FloatArray, Near | None]:
    """Return the rasters of a plane, and the selected rows one by one if few are in view."""
    whole, chosen = rasters(dataset, plane, extent, view, ticket)
    rows = picked(dataset, view.filters, ticket)
    return whole, chosen, points_in(dataset, plane, extent, view.filters, view.colour, rows)


def nearest_to(
    dataset: Dataset, plane: str, place: tuple[float, float], extent: Extent, filters: Filters, anywhere: bool = False
) -> int | None:
    """Return the selected row closest to a position in the UMAP or the map; None if none is near, or anywhere."""
    left, right, low, high = extent
    mask = dataset.masks.all_of(filters)
    across, up = (dataset.columns.values(name) for name in PLANES[plane])
    away = np.abs(across - np.float32(place[0]))
    if plane == "map":
        away = np.abs(np.mod(across - np.float32(place[0]) + 180, 360) - 180)
    distance = (away / (right - left)) ** 2 + ((up - np.float32(place[1])) / (high - low)) ** 2
    if mask is not None:
        distance = np.where(mask, distance, np.inf)
    best = int(np.nanargmin(distance)) if np.isfinite(distance).any() else None
    return best if best is not None and (anywhere or distance[best] < _NEAR_CLICK**2) else None


def draw_sheet(
    dataset: Dataset, rows: IntArray, shape: tuple[int, int], own: bool, ticket: Ticket
) -> tuple[FloatArray, tuple[float, float] | None, list[str], list[bool]]:
    """Return the sheet of rows' cutouts, their colour range (None if each has its own), captions, and which exist."""

    def make() -> tuple[FloatArray, tuple[float, float] | None, list[str], list[bool]]:
        images: list[FloatArray | None] = [None] * len(rows)
        if dataset.cutouts is not None:
            images = dataset.cutouts.of(rows, ticket.tick)
        picture = pictures.sheet(images, *shape, own_scale=own)
        captions = [words.caption(row) for row in dataset.columns.take(rows).to_pylist()]
        there = [image is not None for image in images]
        return picture, None if own else pictures.colour_range(images), captions, there

    return dataset.shared.get(("sheet", tuple(rows.tolist()), shape, own), make)


def find_similar(
    dataset: Dataset, query: FloatArray | None, row: int | None, filters: Filters, apart: bool, ticket: Ticket
) -> Similar | None:
    """Return the rows with latents closest to that of a row, or to a given latent; None for a row without a latent.

    Args:
        dataset: with latents.
        query: (D,); None for the latent of `row`.
        row: of the table, itself left out.
        filters: conditions on the rows.
        apart: whether to leave out the complete granule of `row`.
        ticket: of the work.
    """
    latents, columns = dataset.latents, dataset.columns
    assert latents is not None
    if query is not None:
        return _closest(dataset, query, filters, None, ticket)
    assert row is not None
    place = dataset.latent_of[row]
    own = latents.take([place])[0] if place >= 0 else np.full(1, np.nan, np.float32)
    if not np.isfinite(own).all():
        return None

    def make() -> Similar:
        without = columns.same_granule(row) if apart else np.arange(columns.rows) == row
        return _closest(dataset, own, filters, without, ticket)

    return dataset.shared.get(("similar", row, filters, apart), make)


def find_by_examples(
    dataset: Dataset, like: tuple[int, ...], unlike: tuple[int, ...], filters: Filters, apart: bool, ticket: Ticket
) -> Similar:
    """Return the rows that are most like positive examples and least like negative ones, without the examples.

    Args:
        dataset: with latents.
        like: rows of the table.
        unlike: rows of the table.
        filters: conditions on the rows.
        apart: whether to leave out the complete granules of the examples.
        ticket: of the work.

    Raises:
        InputFileError: An example has no latent, or they cancel out.
    """
    latents, columns = dataset.latents, dataset.columns
    assert latents is not None
    known = latents

    def make() -> Similar:
        vectors = [known.take(dataset.latent_of[list(rows)]) if rows else None for rows in (like, unlike)]
        assert vectors[0] is not None
        without = np.zeros(columns.rows, bool)
        without[[*like, *unlike]] = True
        for row in (*like, *unlike) if apart else ():
            without |= columns.same_granule(row)
        query = direction(vectors[0], vectors[1]).astype(np.float32)
        return _closest(dataset, query, filters, without, ticket)

    return dataset.shared.get(("examples", like, unlike, filters, apart), make)


def _closest(
    dataset: Dataset, query: FloatArray, filters: Filters, without: BoolArray | None, ticket: Ticket
) -> Similar:
    allowed = dataset.allowed(dataset.masks.all_of(filters, lambda: ticket.tick(0.0)), without)
    assert dataset.latents is not None
    found = closest(dataset.latents, query, _NEAREST, allowed=allowed, tick=ticket.tick)
    count = int((found.rows[0] >= 0).sum())
    return Similar(dataset.row_of[found.rows[0, :count]], found.cosine[0, :count])


def statistics(dataset: Dataset, filters: Filters, tick: Callable[[float], None]) -> str:
    """Return the comparison of the selection with all rows, for the page."""

    def make() -> str:
        mask = dataset.masks.all_of(filters, lambda: tick(0.0))
        return words.statistics(summarise(dataset.columns, mask, tick), mask is None)

    return dataset.shared.get(("statistics", filters), make)
