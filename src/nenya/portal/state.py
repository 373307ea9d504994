"""The selection of a session: intersecting filters with undo, and their encoding in a link."""

import base64
import json
import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nenya.errors import NenyaError, OptionError
from nenya.portal.columns import Columns
from nenya.portal.polygon import inside
from nenya.portal.question import Question, check_question, make_question
from nenya.portal.sets import MOST_ROWS, Either, Rows, Without
from nenya.portal.spans import PACE, Months, make_months, make_pace

BoolArray = NDArray[np.bool_]

PLANES = {"umap": ("US0", "US1"), "map": ("lon", "lat")}
MOST_TEXT = 20_000
"""Characters of the text of a view, at most."""
MOST_EXAMPLES = 40
"""Positive and negative examples of a search, at most."""
_MOST_POINTS = 400  # corners of a lasso, at most
_MOST_UNPACKED = 200_000  # bytes
_MOST_FILTERS = 40
_DEEP = 4  # selections within each other, at most
_MOST_CHOSEN = 64  # strings of one column, at most
_FARTHEST = {"map": (540.0, 100.0)}  # degrees; the map can be moved once around, and slightly beyond the poles
_FARTHEST_ZOOM = 1e6
_LONGEST = 30.0  # largest length of a lasso, in sides of its bounding box; a simple outline needs about four
_FAR = 100.0  # largest distance from the centre of a UMAP, in its widths


@dataclass(frozen=True)
class Box:
    """Rows within a rectangle of the UMAP or the map.

    Attributes:
        plane: `umap` or `map`.
        x: left and right limit; on the map degrees east, where the right one may exceed 180 (the dateline).
        y: lower and upper limit.
    """

    plane: str
    x: tuple[float, float]
    y: tuple[float, float]

    @property
    def slot(self) -> str:
        """The view it belongs to; a new filter of the view replaces it."""
        return self.plane

    def mask(self, columns: Columns, _tick: Callable[[], None] = lambda: None) -> BoolArray:
        """Return which rows pass: (N,) bool."""
        x, y = (columns.values(name) for name in PLANES[self.plane])
        inside = (y >= self.y[0]) & (y <= self.y[1])
        if self.plane == "map":
            width = self.x[1] - self.x[0]
            if width < 360:
                inside &= np.mod(x - np.float32(self.x[0]), np.float32(360)) <= width
            return inside
        inside &= (x >= self.x[0]) & (x <= self.x[1])
        return inside


@dataclass(frozen=True)
class Lasso:
    """Rows within a polygon of the UMAP or the map.

    Attributes:
        plane: `umap` or `map`.
        points: its corners (x, y); on the map x may exceed +-180 (the dateline).
    """

    plane: str
    points: tuple[tuple[float, float], ...]

    @property
    def slot(self) -> str:
        """The view it belongs to; a new filter of the view replaces it."""
        return self.plane

    def mask(self, columns: Columns, tick: Callable[[], None] = lambda: None) -> BoolArray:
        """Return which rows pass: (N,) bool; `tick` is called regularly, and an exception from it ends the work."""
        x, y = (columns.values(name) for name in PLANES[self.plane])
        corners = np.asarray(self.points, np.float64)
        if self.plane == "umap":
            return inside(x, y, corners, tick)
        found = np.zeros(len(x), bool)
        for turn in range(
            math.floor((corners[:, 0].min() + 180) / 360), math.ceil((corners[:, 0].max() - 180) / 360) + 1
        ):
            found |= inside(x, y, corners - [360.0 * turn, 0.0], tick)
        return found


@dataclass(frozen=True)
class Range:
    """Rows with a value from `low` to `high`, both included.

    Attributes:
        column: its name.
        low: in its unit.
        high: in its unit; less than `low` for months over the year's end.
    """

    column: str
    low: float
    high: float

    @property
    def slot(self) -> str:
        """The view it belongs to; a new filter of the view replaces it."""
        return f"column {self.column}"

    def mask(self, columns: Columns, _tick: Callable[[], None] = lambda: None) -> BoolArray:
        """Return which rows pass: (N,) bool."""
        values = columns.values(self.column)
        above, below = values >= np.float32(self.low), values <= np.float32(self.high)
        return np.asarray(above & below if self.low <= self.high else above | below)


@dataclass(frozen=True)
class Category:
    """Rows with one of several strings.

    Attributes:
        column: its name.
        values: the strings.
    """

    column: str
    values: tuple[str, ...]

    @property
    def slot(self) -> str:
        """The view it belongs to; a new filter of the view replaces it."""
        return f"column {self.column}"

    def mask(self, columns: Columns, _tick: Callable[[], None] = lambda: None) -> BoolArray:
        """Return which rows pass: (N,) bool."""
        return columns.has_value(self.column, self.values)


Filter = Box | Lasso | Range | Category | Question | Rows | Months | Either | Without
_KINDS: dict[str, type[Filter]] = {
    **{"box": Box, "lasso": Lasso, "range": Range, "category": Category, "question": Question, "rows": Rows},
    **{"months": Months, "either": Either, "without": Without},
}


@dataclass(frozen=True)
class View:
    """The state that a link restores.

    Attributes:
        filters: in order of creation, one per view or column.
        row: of the primary image; None if none was chosen.
        colour: the metric whose mean the UMAP shows, or `count`.
        scale: of the gallery, `shared` or `own`.
        order: of the gallery and the table, see `nenya.portal.work.ordered_rows`.
        descending: whether the largest value comes first.
        tab: that is open; empty for the first one.
        near: whether similar cutouts are those within the filters, and those of other granules only.
        examples: rows that similar cutouts are like, and rows that they are unlike.
        zoom: (plane, (left, right, lower, upper end)) of each plane that is not shown completely.
        pace: months of a step of the time, and steps a second.
        held: filters of the selections A and B that are held for comparison; None for one that is not.
    """

    filters: tuple[Filter, ...] = ()
    row: int | None = None
    colour: str = "count"
    scale: str = "shared"
    order: str = "random"
    descending: bool = False
    tab: str = ""
    near: tuple[bool, bool] = (True, True)
    examples: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
    zoom: tuple[tuple[str, tuple[float, float, float, float]], ...] = ()
    pace: tuple[int, int] = PACE
    held: tuple[tuple[Filter, ...] | None, tuple[Filter, ...] | None] = (None, None)

    def extent(self, plane: str) -> tuple[float, float, float, float] | None:
        """Return the extent of a plane; None for its full one."""
        return dict(self.zoom).get(plane)

    def to_text(self) -> str:
        """Return the view encoded by letters, digits, - and _, for a link."""
        values: dict[str, Any] = {
            "f": [_encoded(item) for item in self.filters],
            "r": self.row,
            "c": self.colour,
            "s": self.scale,
        }
        more = {
            "o": [self.order, self.descending],
            "t": self.tab,
            "n": list(self.near),
            "e": [list(rows) for rows in self.examples],
            "z": {plane: list(extent) for plane, extent in self.zoom},
            "m": list(self.pace),
            "h": [None if held is None else [_encoded(item) for item in held] for held in self.held],
        }
        values |= {key: value for key, value in more.items() if value != _PLAIN[key]}
        packed = zlib.compress(json.dumps(values, separators=(",", ":")).encode(), 9)
        return base64.urlsafe_b64encode(packed).decode().rstrip("=")


def read_view(text: str, columns: Columns) -> View:
    """Return the view encoded in a link.

    Args:
        text: of `View.to_text`, from a browser: untrusted.
        columns: of the table, which must have the columns named in the text.

    Raises:
        OptionError: The text is invalid, or of another table.
    """
    try:
        if len(text) > MOST_TEXT:
            raise ValueError("too long")
        packed = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        unpacker = zlib.decompressobj()
        values = json.loads(unpacker.decompress(packed, _MOST_UNPACKED))
        filters = _filters(values["f"])
        row, colour, scale = values["r"], str(values["c"]), str(values["s"])
        if row is not None and (type(row) is not int or not 0 <= row < columns.rows):
            raise ValueError(f"row {row}")
        for item in filters:
            check_filter(item, columns)
        if (colour != "count" and colour not in [*columns.metrics(), *columns.class_names()]) or scale not in (
            "shared",
            "own",
        ):
            raise ValueError(colour)
        options = replace(_options(values, columns), held=_held(values.get("h", _PLAIN["h"]), columns))
    except NenyaError:
        raise
    except (ValueError, KeyError, TypeError, ArithmeticError, IndexError, zlib.error, RecursionError) as error:
        raise OptionError(
            "the view in this link is incomplete or of another table; the complete table is shown"
        ) from error
    return replace(options, filters=filters, row=row, colour=colour, scale=scale)


_PLAIN: dict[str, Any] = {
    "o": ["random", False], "t": "", "n": [True, True], "e": [[], []], "z": {}, "m": list(PACE), "h": [None, None],
}  # fmt: skip
TABS = ("gallery", "table", "stats", "filter", "upload", "download", "tags", "against")


def _options(values: Mapping[str, Any], columns: Columns) -> View:
    """Build the options of a view from untrusted values; older links have none."""
    plain = {key: values.get(key, _PLAIN[key]) for key in ("o", "t", "n", "e", "z", "m")}
    (order, descending), tab, near, examples, zoom, pace = plain.values()
    if order not in ("random", "table order", *columns.metrics()) or tab not in ("", *TABS):
        raise ValueError(order)
    if not isinstance(zoom, dict) or len(near) != 2 or any(type(value) is not bool for value in (descending, *near)):
        raise ValueError("options")
    extents = [(str(plane), _extent(plane, ends)) for plane, ends in sorted(zoom.items())]
    like, unlike = ([*rows] for rows in examples)
    if len(like) + len(unlike) > MOST_EXAMPLES or any(
        type(r) is not int or not 0 <= r < columns.rows for r in like + unlike
    ):
        raise ValueError("examples")
    near, examples = (near[0], near[1]), (tuple(like), tuple(unlike))
    shown = View(order=order, descending=descending, tab=tab, near=near, examples=examples, zoom=tuple(extents))
    return replace(shown, pace=make_pace(pace))


def _held(given: Any, columns: Columns) -> tuple[tuple[Filter, ...] | None, tuple[Filter, ...] | None]:
    """Build the held selections from untrusted values."""
    found = [None if held is None else _filters(held) for held in given]
    for item in (item for held in found for item in held or ()):
        check_filter(item, columns)
    first, second = found
    return first, second


def _extent(plane: str, ends: Any) -> tuple[float, float, float, float]:
    """Build an extent from untrusted values."""
    left, right, low, high = map(_number, ends)
    if plane not in PLANES or not left < right or not low < high or max(map(abs, ends)) > _FARTHEST_ZOOM:
        raise ValueError("an extent")
    return left, right, low, high


def _filters(given: Any, deep: int = 0) -> tuple[Filter, ...]:
    """Build filters from untrusted values."""
    if not isinstance(given, list) or len(given) > _MOST_FILTERS:
        raise ValueError("filters")
    filters = tuple(_filter(kind, values, deep) for kind, values in given)
    if len({item.slot for item in filters}) < len(filters):
        raise ValueError("two filters of one view")
    return filters


def _encoded(item: Filter) -> list[Any]:
    """Return a filter as lists and dictionaries, for a link."""
    name = next(name for name, kind in _KINDS.items() if kind is type(item))
    if isinstance(item, Either):
        return [name, {"branches": [[_encoded(part) for part in branch] for branch in item.branches]}]
    if isinstance(item, Without):
        return [name, {"filters": [_encoded(part) for part in item.filters]}]
    return [name, asdict(item)]


def _filter(kind: str, given: Mapping[str, Any], deep: int = 0) -> Filter:
    """Build a filter from untrusted values."""
    if kind in ("either", "without"):
        branches = given["branches"] if kind == "either" else [given["filters"]]
        if deep >= _DEEP or not isinstance(branches, list) or not 0 < len(branches) <= _MOST_FILTERS:
            raise ValueError("selections within each other")
        found = tuple(_filters(branch, deep + 1) for branch in branches)
        return Either(found) if kind == "either" else Without(found[0])
    if kind == "question":
        return make_question(given["text"])
    if kind == "rows":
        return make_rows(given["rows"], given["title"])
    if kind == "months":
        return make_months(given["first"], given["last"])
    if kind == "box":
        (x0, x1), (y0, y1) = given["x"], given["y"]
        return make_box(str(given["plane"]), (x0, x1), (y0, y1))
    if kind == "lasso":
        return make_lasso(str(given["plane"]), [(x, y) for x, y in given["points"]])
    if kind == "range":
        return make_range(str(given["column"]), given["low"], given["high"])
    if kind == "category":
        return make_category(str(given["column"]), given["values"])
    raise ValueError(kind)


def check_filter(item: Filter, columns: Columns) -> None:
    """Check a filter against a table: its columns exist, and its positions are near those of the rows.

    Raises:
        KeyError: The table has no such columns.
        ValueError: A string is not in the column, or a position is far from all rows.
    """
    if isinstance(item, Either | Without):
        for part in (p for branch in (item.branches if isinstance(item, Either) else [item.filters]) for p in branch):
            check_filter(part, columns)
    elif isinstance(item, Question):
        check_question(item, columns)
    elif isinstance(item, Rows):
        if max(item.rows) >= columns.rows:
            raise ValueError("rows beyond the table")
    elif isinstance(item, Months):
        if columns.dates is None:
            raise KeyError("dates")
    elif isinstance(item, Category):
        if not columns.may_hold(item.column, item.values):
            raise ValueError(f"strings that are not in {item.column}")
    elif isinstance(item, Range):
        columns.values(item.column)
    else:
        _check_positions(item, columns)


def _check_positions(item: Box | Lasso, columns: Columns) -> None:
    for number, name in enumerate(PLANES[item.plane]):
        values = columns.values(name)
        if item.plane in _FARTHEST:  # checked when it was created
            continue
        ends = (item.x, item.y)[number] if isinstance(item, Box) else tuple(p[number] for p in item.points)
        known = np.isfinite(values)
        low, high = (float(values[known].min()), float(values[known].max())) if known.any() else (0.0, 1.0)
        if max(abs(end - (low + high) / 2) for end in ends) > _FAR * max(high - low, 1.0):
            raise ValueError(f"a position far from all rows in {name}")


def _number(value: Any) -> float:
    """Return a finite number with seven digits, the precision of links."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.number):
        raise ValueError("not a number")
    if not abs(float(value)) <= float(np.finfo(np.float32).max):  # also refuses NaN
        raise ValueError("a number beyond the range of columns")
    return float(f"{float(value):.7g}")


def _place(plane: str, x: Any, y: Any) -> tuple[float, float]:
    """Return a position in a plane, checked against its bounds."""
    place = _number(x), _number(y)
    if plane in _FARTHEST and any(abs(v) > most for v, most in zip(place, _FARTHEST[plane], strict=True)):
        raise ValueError("a position outside the map")
    return place


def make_category(column: str, values: Any) -> Category:
    """Return a filter by strings.

    Raises:
        ValueError: There are none, or too many.
    """
    if not isinstance(values, list | tuple) or not 0 < len(values) <= _MOST_CHOSEN:
        raise ValueError("strings of a column")
    return Category(column, tuple(dict.fromkeys(map(str, values))))


def make_rows(rows: Any, title: Any) -> Rows:
    """Return a filter by row numbers.

    Raises:
        ValueError: There are none, too many, or one is no row number.
    """
    if not isinstance(rows, list | tuple) or not 0 < len(rows) <= MOST_ROWS or not isinstance(title, str):
        raise ValueError("rows")
    if any(type(row) is not int or not 0 <= row < 2**31 for row in rows):
        raise ValueError("a row number")
    return Rows(tuple(sorted(set(rows))), title[:100])


def make_box(plane: str, x: tuple[float, float], y: tuple[float, float]) -> Box:
    """Return a box; limits in any order.

    Raises:
        ValueError: A number is not finite or beyond the map, or the plane is unknown.
    """
    if plane not in PLANES:
        raise ValueError(plane)
    (x0, y0), (x1, y1) = (_place(plane, *corner) for corner in zip(x, y, strict=True))
    (x0, x1), (y0, y1) = sorted((x0, x1)), sorted((y0, y1))
    return Box(plane, (x0, x1), (y0, y1))


def make_lasso(plane: str, points: list[tuple[float, float]]) -> Lasso:
    """Return a lasso, thinned to at most 400 corners.

    Raises:
        ValueError: There are fewer than three corners, the line is far longer than an outline, a number
            is not finite or beyond the map, or the plane is unknown.
    """
    if plane not in PLANES or len(points) < 3:
        raise ValueError(f"a lasso of {len(points)} corners")
    step = math.ceil(len(points) / _MOST_POINTS)
    corners = np.array([_place(plane, x, y) for x, y in points[::step]])
    sides = np.maximum(np.ptp(corners, axis=0), 1e-9)
    if np.abs((np.roll(corners, -1, axis=0) - corners) / sides).max(axis=1).sum() > _LONGEST:
        raise ValueError("a lasso that fills its bounding box")
    return Lasso(plane, tuple((float(x), float(y)) for x, y in corners))


def make_range(column: str, low: float, high: float) -> Range:
    """Return a range; limits in any order, but months from a later one to an earlier one go over the year's end.

    Raises:
        ValueError: A number is not finite.
    """
    ends = [_number(low), _number(high)]
    if column != "month":
        ends.sort()
    return Range(column, ends[0], ends[1])
