"""Meaning of the conditions that people type: truth of comparisons, named regions, seasons and months, ranges.

Letters in shapes: N rows of the table.
"""

import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nenya.defs import DT_INTERVALS, REGIONS, SEASONS
from nenya.errors import OptionError
from nenya.storage.texts import shown
from nenya.tables.tags import COLUMN as TAG
from nenya.tables.tags import asked_tag, tags_in

BoolArray = NDArray[np.bool_]
Test = Callable[["Rows"], "Truth"]


class Rows(Protocol):
    """The rows of a table, as conditions read them."""

    count: int
    names: Sequence[str]

    def find(self, name: str) -> str:
        """Return the column of a name in any case; '' if there is none."""
        ...

    def kind(self, name: str) -> str:
        """Return `number`, `date` or `text`."""
        ...

    def numbers(self, name: str) -> NDArray[Any]:
        """Return a column of numbers, (N,)."""
        ...

    def moments(self) -> NDArray[np.datetime64]:
        """Return the dates, (N,) datetime64[s]."""
        ...

    def texts(self, name: str) -> tuple[NDArray[np.integer], Any]:
        """Return the number of each row's string, (N,), -1 for none, and the strings as an Arrow array."""
        ...


@dataclass(frozen=True)
class Truth:
    """Rows for which a condition is true, and those for which it is false; with a missing value it is neither.

    Attributes:
        true: (N,) bool.
        false: (N,) bool.
    """

    true: BoolArray
    false: BoolArray


def every(one: Truth, other: Truth) -> Truth:
    """Return where both hold."""
    return Truth(one.true & other.true, one.false | other.false)


def either(one: Truth, other: Truth) -> Truth:
    """Return where one or both hold."""
    return Truth(one.true | other.true, one.false & other.false)


def without(one: Truth, other: Truth) -> Truth:
    """Return where the first holds and the second does not, be it false or unknown."""
    return Truth(one.true & ~other.true, one.false | other.true)


def negated(of: Truth) -> Truth:
    """Return where it is false."""
    return Truth(of.false, of.true)


def any_of(truths: Sequence[Truth]) -> Truth:
    """Return where at least one holds."""
    found = truths[0]
    for truth in truths[1:]:
        found = either(found, truth)
    return found


_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    **{"=": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
}


def _missing(value: Any) -> Any:
    found = np.asarray(value)
    if found.dtype.kind == "M":
        return np.isnat(found)
    return np.isnan(found) if found.dtype.kind == "f" else np.zeros(found.shape, bool)


def _told(true: Any, unknown: Any, rows: Rows) -> Truth:
    true, unknown = (np.broadcast_to(np.asarray(values, bool), rows.count) for values in (true, unknown))
    return Truth(true & ~unknown, ~true & ~unknown)


def compared(left: Callable[[Rows], Any], sign: str, right: Callable[[Rows], Any]) -> Test:
    """Return a comparison of numbers or dates."""

    def of(rows: Rows) -> Truth:
        one, other = left(rows), right(rows)
        with np.errstate(invalid="ignore"):
            return _told(_COMPARE[sign](one, other), _missing(one) | _missing(other), rows)

    return of


def text_compared(column: str, sign: str, text: str) -> Test:
    """Return a comparison of a text column with a string, by its distinct values; of tags, whether it is among them.

    Raises:
        OptionError: The string is no tag.
    """
    if column == TAG and sign in ("=", "!="):
        word = asked_tag(text)
        return _by_text(column, lambda values: [(word in tags_in(str(v))) == (sign == "=") for v in values.to_pylist()])
    return _by_text(column, lambda values: [v is not None and _COMPARE[sign](str(v), text) for v in values.to_pylist()])


def is_like(column: str, pattern: str, *, any_case: bool) -> Test:
    """Return whether strings have a pattern, in which % stands for any text and _ for one character."""
    import pyarrow.compute as pc

    return _by_text(column, lambda values: pc.match_like(values, pattern, ignore_case=any_case).to_pylist())


def _by_text(column: str, test: Callable[[Any], list[Any]]) -> Test:
    def of(rows: Rows) -> Truth:
        codes, values = rows.texts(column)
        fits = np.array([*map(bool, test(values)), False])
        return _told(fits[codes], codes < 0, rows)

    return of


def is_missing(column: str) -> Test:
    """Return whether a value is missing."""

    def of(rows: Rows) -> Truth:
        kind = rows.kind(column)
        if kind == "text":
            found: Any = rows.texts(column)[0] < 0
        else:
            found = _missing(rows.moments() if kind == "date" else rows.numbers(column))
        return _told(found, False, rows)

    return of


def between(values: Callable[[Rows], Any], low: float, high: float, column: str) -> Test:
    """Return a range with both ends; months over the year's end and longitudes over the dateline go around.

    Raises:
        OptionError: The range of another column is empty.
    """
    if column == "lon":
        return lambda rows: _around(values(rows), low, high, rows)
    if low > high and column != "month":
        raise OptionError(f"the range from {low:g} to {high:g} is empty")

    def of(rows: Rows) -> Truth:
        found = values(rows)
        above, below = compared(lambda _: found, ">=", lambda _: low), compared(lambda _: found, "<=", lambda _: high)
        return (every if low <= high else either)(above(rows), below(rows))

    return of


def _around(lon: Any, west: float, east: float, rows: Rows) -> Truth:
    width = east - west if east >= west else (east - west) % 360
    with np.errstate(invalid="ignore"):
        return _told((np.mod(lon - west, 360) <= width) | (width >= 360), _missing(lon), rows)


def dated(values: Callable[[Rows], Any], first: str, last: str, *, whole_days: bool) -> Test:
    """Return dates between two, both included.

    Args:
        values: the dates.
        first: as `moment` reads it.
        last: likewise.
        whole_days: whether all of the last day (month, year) belongs to the range, if no time of day was given.

    Raises:
        OptionError: The first is later than the last, or one is not a date.
    """
    low, high = moment(first), moment(last)
    if low > high:
        raise OptionError(f"expected the earlier date first, got {shown(first, 40)} and {shown(last, 40)}")
    unit: Any = {4: "Y", 7: "M", 10: "D"}.get(len(last.strip())) if whole_days else None
    if unit:
        high = (high.astype(f"datetime64[{unit}]") + 1).astype("datetime64[s]")

    def of(rows: Rows) -> Truth:
        found = values(rows)
        return _told((found >= low) & (found < high if unit else found <= high), _missing(found), rows)

    return of


def moment(text: str) -> np.datetime64:
    """Return a date such as 2012-12-31, 2012-12-31T06:00, 2012-12 or 2012.

    Raises:
        OptionError: It is not a date.
    """
    try:
        if not re.fullmatch(r"\d{4}(-\d\d(-\d\d([T ]\d\d:\d\d(:\d\d)?)?)?)?", text.strip()):
            raise ValueError
        return np.datetime64(text.strip().replace(" ", "T"), "s")
    except ValueError:
        raise OptionError(f"expected a date year-month-day, such as 2012-12-31, got {shown(text, 40)}") from None


def calculate(sign: str, left: Any, right: Any) -> Any:
    """Return a sum, a difference, a product or a ratio in float64; a division by 0 is missing."""
    one, other = np.asarray(left, np.float64), np.asarray(right, np.float64)
    with np.errstate(all="ignore"):
        if sign == "/":
            return np.where(other == 0, np.nan, one / np.where(other == 0, 1.0, other))
        return {"+": np.add, "-": np.subtract, "*": np.multiply}[sign](one, other)


def _safely(function: Any) -> Callable[[Any], Any]:
    def of(value: Any) -> Any:
        with np.errstate(all="ignore"):
            return function(np.asarray(value, np.float64))

    return of


FUNCTIONS = {
    name: _safely(function)
    for name, function in {
        **{"abs": np.abs, "sqrt": np.sqrt, "exp": np.exp, "ln": np.log, "log10": np.log10, "log2": np.log2},
        **{"floor": np.floor, "ceil": np.ceil, "round": np.round, "sin": np.sin, "cos": np.cos, "radians": np.radians},
    }.items()
}
"""Functions of one number, by name."""

_MOST_NAMES = 1000  # strings of a column region that are compared with a name
NAMED = ("region", "season")
"""Words that stand before a name: `region=gulfstream`."""
_ALSO = {
    **{"mediterranean": "med", "mediterraneansea": "med", "bayofbengal": "baybengal", "california": "coastalcali"},
    **{"coastalcalifornia": "coastalcali", "equatorialpacific": "eqpacific", "equatorialindian": "eqindian"},
}
_LOCAL = {"winter": ("DJF", "JJA"), "spring": ("MAM", "SON"), "summer": ("JJA", "DJF"), "autumn": ("SON", "MAM")}
_LOCAL["fall"] = _LOCAL["autumn"]
_MONTHS = (
    *("january", "february", "march", "april", "may", "june", "july", "august", "september", "october"),
    *("november", "december"),
)


def _key(words: str) -> str:
    return re.sub(r"[\W_]", "", words).lower()


def _region_of(words: str) -> str:
    key = _key(words)
    return next((name for name in REGIONS if _key(name) == key), _ALSO.get(key, ""))


def named(what: str, name: str, quoted: bool, rows: Rows) -> Test:
    """Return whether rows lie in a region or season of a name: one of nenya's, or a string of the table's own column.

    Args:
        what: `region` or `season`.
        name: as typed.
        quoted: whether it is a 'string', which means the table's column first.
        rows: of the table.

    Raises:
        OptionError: There is no such region or season, or the table lacks the columns for it.
    """
    column = rows.find(what)
    own = rows.texts(column)[1][:_MOST_NAMES].to_pylist() if column and rows.kind(column) == "text" else []
    ours = _region(name, rows) if what == "region" else _season(name, rows)
    text = next((value for value in own if value == name), next((v for v in own if _key(str(v)) == _key(name)), None))
    if text is not None and (quoted or ours is None):
        return text_compared(column, "=", str(text))
    if ours is not None:
        return ours
    known = [*REGIONS] if what == "region" else [*SEASONS, *_LOCAL]
    beside = f"; in the column {column}: {', '.join(shown(v, 30) for v in own[:20])}" if own else ""
    raise OptionError(f"{shown(name, 40)} is no {what}; possible: {', '.join(known)}{beside}")


def phrase(words: str, rows: Rows) -> Test | None:
    """Return the condition of a name that stands alone: a region, a season, a month; None if it names none."""
    found = _region(words, rows) or _season(words, rows) or _month(words, rows)
    column = rows.find("region")
    if found is None and column and rows.kind(column) == "text":
        own = rows.texts(column)[1][:_MOST_NAMES].to_pylist()
        text = next((value for value in own if value is not None and _key(str(value)) == _key(words)), None)
        found = None if text is None else text_compared(column, "=", str(text))
    return found


def _needed(what: str, rows: Rows, *names: str) -> None:
    missing = [name for name in names if not rows.find(name)]
    if missing:
        raise OptionError(f"{what} needs a column {' or '.join(missing)}, which the table lacks")


def _region(words: str, rows: Rows) -> Test | None:
    name = _region_of(words)
    if not name:
        return None
    _needed(f"the region {name}", rows, "lat", "lon")
    region = REGIONS[name]
    lat = between(lambda rows: rows.numbers("lat"), float(region.lat[0]), float(region.lat[1]), "lat")
    lon = between(lambda rows: rows.numbers("lon"), float(region.lon[0]), float(region.lon[1]), "lon")
    return lambda rows: every(lat(rows), lon(rows))


def _in_months(months: Sequence[int]) -> Test:
    def of(rows: Rows) -> Truth:
        found = rows.numbers("month")
        return _told(np.isin(found, months), _missing(found), rows)

    return of


def _season(words: str, rows: Rows) -> Test | None:
    key = _key(words)
    if key.upper() in SEASONS:
        _needed(f"the season {key.upper()}", rows, "month")
        return _in_months(SEASONS[key.upper()])
    if key not in _LOCAL:
        return None
    _needed(f"{key}, which the hemispheres have at different times,", rows, "month", "lat")
    north, south = (_in_months(SEASONS[name]) for name in _LOCAL[key])

    def of(rows: Rows) -> Truth:
        lat = rows.numbers("lat")
        boreal, austral = north(rows), south(rows)
        unknown = _missing(lat) | ~(boreal.true | boreal.false)
        return _told(np.where(lat >= 0, boreal.true, austral.true), unknown, rows)

    return of


def _month(words: str, rows: Rows) -> Test | None:
    key = _key(words)
    found = [number for number, name in enumerate(_MONTHS, 1) if key in (name, name[:3])]
    if not found:
        return None
    _needed(f"the month {words}", rows, "month")
    return _in_months(found)


def interval(values: Callable[[Rows], Any], name: str) -> Test:
    """Return whether temperature differences lie in a named interval of `nenya.defs.DT_INTERVALS`.

    Raises:
        OptionError: There is no such interval.
    """
    if name not in DT_INTERVALS:
        raise OptionError(f"{shown(name, 40)} is no interval of DT; possible: {', '.join(DT_INTERVALS)}")
    ends = DT_INTERVALS[name]
    low = compared(values, ">=", lambda _: ends.low)
    high = compared(values, "<", lambda _: ends.high)
    return lambda rows: every(low(rows), high(rows))
