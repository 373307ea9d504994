"""Conditions on rows of a table as SQL, in LanceDB's dialect: the same meaning with or without an index."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nenya.defs import DT_INTERVALS, REGIONS, SEASONS
from nenya.errors import NenyaError, OptionError
from nenya.options.declare import suggest
from nenya.options.extras import need
from nenya.runtime.lean import import_lancedb
from nenya.tables.key_columns import KEYS
from nenya.tables.place_and_time import dates_of, usual_names
from nenya.tables.quantities import with_dt
from nenya.tables.tag_conditions import Has, tag_terms
from nenya.tables.tags import COLUMN as TAG
from nenya.tables.tags import tags_in
from nenya.tables.where import check_condition

if TYPE_CHECKING:
    import pandas as pd

ROW = "archive_row"
"""Column with the number of a row among all latents."""


@dataclass(frozen=True)
class Conditions:
    """Conditions that a row must fulfil, all of them.

    Attributes:
        region: names of `nenya.defs.REGIONS`; any of them.
        lon: western and eastern end, degrees east, both included, in -180..180 or 0..360; a western end greater than
            the eastern one is a box across the dateline.
        lat: southern and northern end, degrees north, both included.
        dates: first and last day, both included, or moments.
        season: names of `nenya.defs.SEASONS`; any of them.
        DT: a name of `nenya.defs.DT_INTERVALS`, or smallest and largest T90 - T10, K.
        clear: smallest and largest clear_fraction, inclusive.
        sensor: values of the column sensor; any of them.
        where: the user's own SQL.
    """

    region: Sequence[str] = ()
    lon: Sequence[float] | None = None
    lat: Sequence[float] | None = None
    dates: Sequence[str] | None = None
    season: Sequence[str] = ()
    DT: str | Sequence[float] | None = None
    clear: Sequence[float] | None = None
    sensor: Sequence[str] = ()
    where: str | None = None

    def sql(self, columns: Sequence[str]) -> str | None:
        """Return all conditions as one SQL expression; None if there are none.

        Args:
            columns: of the table.

        Raises:
            OptionError: A name is unknown, a range is invalid, or the table lacks a required column.
        """
        terms = [
            _any(_box(REGIONS[_region(name, columns)].lon, REGIONS[name].lat) for name in self.region),
            _possible_box(self.lon, self.lat),
            _dates(self.dates),
            _any(f"date_part('month', `datetime`) IN {_known_season(name)}" for name in self.season),
            _temperatures(self.DT),
            _between("clear_fraction", "clear", self.clear and _within(_range("clear", self.clear), 0, 1, "clear")),
            f"`sensor` IN ({', '.join(map(text, self.sensor))})" if self.sensor else "",
            _own(self.where),
        ]
        wanted = [term for term in terms if term]
        own = wanted[:-1] if self.where else wanted
        missing = sorted({name for term in own for name in re.findall(r"`(\w+)`", term)} - set(columns))
        if missing:
            raise OptionError(
                f"the conditions need a column {' or '.join(missing)}, which does not exist; {_no_column(columns)}"
            )
        return " AND ".join(f"({term})" for term in wanted) or None


def text(value: str) -> str:
    """Return a string quoted for SQL, whatever its content."""
    return "'" + str(value).replace("'", "''") + "'"


def rows_where(table: "pd.DataFrame", sql: str) -> NDArray[np.bool_]:
    """Return which rows of a table fulfil a condition: (len(table),). DT is T90 - T10 if there is no such column.

    Raises:
        OptionError: It is not SQL, or names a column that does not exist; or LanceDB is not installed.

    Examples:
        >>> import pandas as pd
        >>> rows_where(pd.DataFrame({"lat": [10.0, 40.0], "DT": [3.0, 1.0]}), "DT > 2 AND lat < 30").tolist()
        [True, False]
    """
    need("search", f"a condition ({sql})")
    check_condition(sql)
    import_lancedb()
    import lancedb
    import pyarrow as pa

    sql, table = _with_moments(sql), usual_names(table)
    whole = f"({sql})"  # otherwise the database ignores what follows a condition
    table = with_dt(table)
    named = [name for name in table.columns if re.search(rf"\b{re.escape(str(name))}\b", sql, re.I)]
    columns = {str(name): as_arrow(table[name]) for name in named}
    columns[ROW] = pa.array(np.arange(len(table)))
    if TAG in columns and pa.types.is_string(columns[TAG].type):
        whole = tag_terms(whole, _own_tags(columns))
    found: NDArray[np.bool_] = np.zeros(len(table), bool)
    if not len(table):
        return found
    made = lancedb.connect("memory://").create_table("rows", pa.table(columns))
    with sql_errors(sql, [str(name) for name in table.columns]):
        rows = made.search().where(whole).select([ROW]).limit(len(table)).to_arrow()
    found[rows[ROW].to_numpy()] = True
    return found


def _own_tags(columns: dict[str, Any]) -> Has:
    """Return a function that adds a column for tags, true for rows that have one of them, and returns its SQL."""
    import pyarrow as pa

    texts = columns[TAG].dictionary_encode()
    codes = texts.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    labels = [tags_in(str(value)) for value in texts.dictionary.to_pylist()]

    def has(words: list[str], positive: bool) -> str:
        if not words:
            return f"`{TAG}` IS {'NOT ' if positive else ''}NULL"
        name = f"{TAG} {len(columns)}"
        fits = np.array([*(not {*words}.isdisjoint(label) for label in labels), False])
        columns[name] = pa.array(fits[codes], mask=codes < 0)
        return f"{'' if positive else 'NOT '}`{name}`"

    return has


def as_arrow(column: "pd.Series") -> Any:
    """Return a column as an Arrow array: numbers and bool unchanged, datetimes in microseconds, all else as strings."""
    import pandas as pd
    import pyarrow as pa

    if column.name == "datetime" or column.dtype.kind == "M" or isinstance(column.dtype, pd.DatetimeTZDtype):
        return pa.array(dates_of(column, check=False).to_numpy("datetime64[us]"), pa.timestamp("us"))
    kinds = {"i": pa.int64(), "u": pa.int64(), "f": pa.float64(), "b": pa.bool_()}
    if column.dtype.name.lower().startswith("uint64"):  # beyond 2^63 too
        return pa.array(column, pa.uint64(), from_pandas=True)
    if column.dtype.kind in kinds:
        return pa.array(column, kinds[column.dtype.kind], from_pandas=True)
    if isinstance(column.dtype, pd.CategoricalDtype | pd.StringDtype):
        found = pa.array(column, from_pandas=True)
        values_of = found.type.value_type if pa.types.is_dictionary(found.type) else found.type
        if pa.types.is_string(values_of) or pa.types.is_large_string(values_of):
            return found.cast(pa.string())
        column = column.astype(object)
    values = [None if missing else str(value) for value, missing in zip(column, column.isna(), strict=True)]
    return pa.array(values, pa.string())


class sql_errors:
    """Turn what the database says of a condition into one line.

    Args:
        sql: the condition.
        columns: that there are.
    """

    def __init__(self, sql: str, columns: Sequence[str]) -> None:
        self.sql, self.columns = sql, columns

    def __enter__(self) -> None:
        check_condition(self.sql)
        for name in re.findall('"([^"]*)"', re.sub("'[^']*'", "''", self.sql)):
            if name not in self.columns:  # which some databases read as a string
                raise OptionError(self._unknown(name))

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        # A panic of the database has a class of its own, which cannot be imported.
        if isinstance(error, NenyaError):
            return
        if isinstance(error, ValueError | RuntimeError | OSError) or "Panic" in type(error).__name__:
            said = re.sub(r", /[^ ]*\.rs:\d+:\d+", "", " ".join(str(error).split()))
            if unknown := re.search(r"No field named (.*?)\. Valid fields", said):
                raise OptionError(self._unknown(unknown[1].strip('"`'))) from error
            for pattern, words in _SAID:
                said = re.sub(pattern, words, said)
            raise OptionError(
                f'{said.strip(" .")}: where={self.sql}; expected SQL such as "lat > 30 AND DT > 1"'
            ) from error

    def _unknown(self, name: str) -> str:
        quotes = "; strings need 'single quotes'" if f'"{name}"' in self.sql else ""
        meant = suggest(name, list(self.columns))
        return f"column {name} does not exist: where={self.sql}{quotes}{meant}; {_no_column(self.columns)}"


_SAID = (  # message of the database -> message of nenya
    (r"^Invalid input, |^lance error: |Did you mean .*", ""),
    (r"Error parsing statement: .*\(sql parser error: (.*)\)", r"\1"),
    (r"(Error during planning|Error parsing function|Query Execution error|Execution error|Schema error): ", ""),
    (r"Error resolving filter expression .*: Invalid user input: ", ""),
    (r"Expected: (.*), found: (EOF|\)).*", r"at the end \1 is missing"),
    (r"Expected: \), found: (\S+).*", r"\1 is unexpected"),
    (r"Expected: (.*), found: (\S+).*", r"\1 is missing before \2"),
    (r"Received literal Utf8\(.(.*).\) and could not .*", r"the string '\1' is compared with a numeric column"),
    (r"Received literal \w+\((.*)\) and could not .*'Utf8'", r"the number \1 is compared with a column of strings"),
    (r"Invalid function '(.*)'", r"the function \1 does not exist"),
    (r"The filter .* does not return a boolean", "it is not a condition, which must be true or false"),
)


def _no_column(columns: Sequence[str]) -> str:
    """Return the list of columns, or that a table must be given."""
    if set(columns) <= set(KEYS):
        return (
            "the latents have no table of their cutouts; give it with table=cutouts.parquet (to nenya index, "
            "if an index is searched)"
        )
    return f"the columns are {', '.join(columns)}"


def _any(terms: Any) -> str:
    found = list(terms)
    return found[0] if len(found) == 1 else " OR ".join(f"({term})" for term in found)


def _known(what: str, name: str, known: Any) -> str:
    if name not in known:
        raise OptionError(f"{what}={name}: unknown {what}; possible: {', '.join(known)}")
    return name


def _region(name: str, columns: Sequence[str]) -> str:
    if name not in REGIONS and "region" in columns:
        raise OptionError(
            f"region={name}: unknown region; possible: {', '.join(REGIONS)}. For the table's own column region "
            f"use where=\"region = '{name}'\""
        )
    return _known("region", name, REGIONS)


def _known_season(name: str) -> str:
    return str(SEASONS[_known("season", name, SEASONS)])


def _range(name: str, values: Sequence[float]) -> tuple[float, float]:
    try:
        low, high = (float(value) for value in values)
    except (TypeError, ValueError):
        raise OptionError(f"{name}={values}: expected two numbers, [min, max]") from None
    if np.isnan([low, high]).any():
        raise OptionError(f"{name}={values}: expected two numbers, [min, max]")
    return low, high


def _within(ends: tuple[float, float], low: float, high: float, name: str, unit: str = "") -> tuple[float, float]:
    """Return the ends of a range after checking that they lie within limits."""
    if not all(low <= end <= high for end in ends):
        said = f"{name}=[{ends[0]:g},{ends[1]:g}]"
        raise OptionError(f"{said}: expected two numbers from {low:g} to {high:g}{unit and ' '}{unit}")
    return ends


def _between(column: str, name: str, values: Sequence[float] | None) -> str:
    if values is None:
        return ""
    low, high = _range(name, values)
    if low > high:
        raise OptionError(f"{name}={list(values)}: expected the smaller number first")
    return f"`{column}` >= {low!r} AND `{column}` <= {high!r}"


def _possible_box(lon: Sequence[float] | None, lat: Sequence[float] | None) -> str:
    """Return the condition of a user's box. Regions are not checked, as their ends may lie beyond the globe."""
    if lat is not None:
        _within(_range("lat", lat), -90, 90, "lat", "degrees north")
    if lon is not None:
        west, east = _within(_range("lon", lon), -360, 360, "lon", "degrees east")
        if abs(east - west) > 360:
            raise OptionError(f"lon=[{west:g},{east:g}]: expected at most 360 degrees, [west, east]")
    return _box(lon, lat)


def _box(lon: Sequence[float] | None, lat: Sequence[float] | None) -> str:
    terms = []
    if lon is not None:
        west, east = _range("lon", lon)
        east = east + 360 if east < west else east
        if east < west:
            raise OptionError(f"lon={list(lon)}: expected [west, east] in degrees from -180 to 360")
        around = [f"(`lon` >= {west + turn!r} AND `lon` <= {east + turn!r})" for turn in (-360.0, 0.0, 360.0)]
        # A box around the complete globe excludes no longitude, not even between its turns.
        terms.append(f"({' OR '.join(around)})" if east - west < 360 else "`lon` IS NOT NULL")
    if lat is not None:
        terms.append(_between("lat", "lat", lat))
    return " AND ".join(terms)


def _dates(dates: Sequence[str] | None) -> str:
    if dates is None:
        return ""
    import pandas as pd

    if isinstance(dates, str) or len(dates) != 2:
        raise OptionError(f"dates={dates}: expected two dates, such as [2012-01-01,2012-12-31]")
    first, last = (_moment(str(date), f"dates=[{dates[0]},{dates[1]}]") for date in dates)
    if first > last:
        raise OptionError(f"dates=[{dates[0]},{dates[1]}]: expected the earlier date first")
    day = last == last.normalize() and ":" not in str(dates[1])
    before, end = ("<", last + pd.Timedelta(days=1)) if day else ("<=", last)
    return f"`datetime` >= timestamp '{first.isoformat()}' AND `datetime` {before} timestamp '{end.isoformat()}'"


def _moment(date: str, where: str) -> "pd.Timestamp":
    """Return an ISO 8601 date; the error for an impossible day names the date."""
    import pandas as pd

    wrong = OptionError(f"{where}: expected a date year-month-day, such as 2012-12-31, got {date}")
    try:
        found = pd.Timestamp(date)
    except (TypeError, ValueError):
        raise wrong from None
    if pd.isna(found):
        raise wrong
    return found.tz_convert(None) if found.tz is not None else found


def _temperatures(wanted: str | Sequence[float] | None) -> str:
    if not isinstance(wanted, str):
        return _between("DT", "DT", wanted)
    interval = DT_INTERVALS[_known("DT", wanted, DT_INTERVALS)]
    ends = [(">=", interval.low), ("<", interval.high)]
    return " AND ".join(f"`DT` {sign} {end!r}" for sign, end in ends if np.isfinite(end))


def _with_moments(sql: str) -> str:
    """Convert plain date strings that are compared with the column datetime to SQL timestamps."""
    date = r"(?:timestamp\s*)?('\d{4}-\d\d-\d\d[^']*')"
    sql = re.sub(rf"(\bdatetime\b`?\s*(?:[<>=!]+))\s*{date}", r"\1 timestamp \2", sql, flags=re.I)
    between = rf"(\bdatetime\b`?\s+(?:not\s+)?between)\s+{date}\s+and\s+{date}"
    sql = re.sub(between, r"\1 timestamp \2 and timestamp \3", sql, flags=re.I)
    for found in re.findall(r"\btimestamp '([^']*)'", sql):
        _moment(found, "where=")
    return sql


def _own(where: str | None) -> str:
    """Return a user's own condition after checking that it is one expression with balanced parentheses."""
    if not where:
        return ""
    check_condition(where)
    depth = 0
    for character in re.sub(r"'(?:[^']|'')*'|\"[^\"]*\"|`[^`]*`", "", where):
        depth += {"(": 1, ")": -1}.get(character, 0)
        if depth < 0 or character == ";":
            raise OptionError(f'where={where}: expected one condition, such as "lat > 30 AND DT > 1"')
    if depth:
        raise OptionError(f"where={where}: a parenthesis is not closed")
    return _with_moments(where)
