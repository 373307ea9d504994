"""Conditions on rows of a table as SQL, in the dialect of LanceDB: one meaning with or without an index."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nenya.defs import DT_INTERVALS, REGIONS, SEASONS
from nenya.errors import InputFileError, OptionError
from nenya.options.declare import suggest
from nenya.options.extras import need
from nenya.tables.key_columns import KEYS
from nenya.tables.quantities import dt_of
from nenya.tables.where import check_condition

if TYPE_CHECKING:
    import pandas as pd

ROW = "archive_row"
"""Column with the number of a row among all latents."""


@dataclass(frozen=True)
class Conditions:
    """What a row must fulfil to be found; all of them.

    Attributes:
        region: names of `nenya.defs.REGIONS`; any of them.
        lon: western and eastern end, degrees east, both included, in -180..180 or 0..360; a western end greater than
            the eastern one is a box across the dateline.
        lat: southern and northern end, degrees north, both included.
        dates: first and last day, both included, or moments.
        season: names of `nenya.defs.SEASONS`; any of them.
        DT: a name of `nenya.defs.DT_INTERVALS`, or least and greatest T90 - T10, K.
        clear: least and greatest clear_fraction, both included.
        sensor: values of the column sensor; any of them.
        where: SQL of one's own.
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
        """Return all conditions as one of SQL; None where there are none.

        Args:
            columns: of the table.

        Raises:
            OptionError: A name is unknown, a range is none, or the table lacks a column that is needed.
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
                f"there is no column {' or '.join(missing)}, which the conditions need: {_no_column(columns)}"
            )
        return " AND ".join(f"({term})" for term in wanted) or None


def text(value: str) -> str:
    """Return a text as SQL takes it, whatever is in it."""
    return "'" + str(value).replace("'", "''") + "'"


def rows_where(table: "pd.DataFrame", sql: str) -> NDArray[np.bool_]:
    """Return which rows of a table fulfil a condition: (len(table),). DT is T90 - T10 where it has no column.

    Raises:
        OptionError: It is no SQL, or names a column that is not there; or LanceDB is not installed.
    """
    need("search", f"a condition ({sql})")
    check_condition(sql)
    import lancedb
    import pyarrow as pa

    sql = _with_moments(sql)
    whole = f"({sql})"  # else the database takes no notice of what follows a condition
    if "DT" not in table and (difference := dt_of(table)) is not None:
        table = table.assign(DT=difference)
    named = [name for name in table.columns if re.search(rf"\b{re.escape(str(name))}\b", sql, re.I)]
    columns = {str(name): as_arrow(table[name]) for name in named}
    columns[ROW] = pa.array(np.arange(len(table)))
    found: NDArray[np.bool_] = np.zeros(len(table), bool)
    if not len(table):
        return found
    made = lancedb.connect("memory://").create_table("rows", pa.table(columns))
    with sql_errors(sql, [str(name) for name in table.columns]):
        rows = made.search().where(whole).select([ROW]).limit(len(table)).to_arrow()
    found[rows[ROW].to_numpy()] = True
    return found


def as_arrow(column: "pd.Series") -> Any:
    """Return a column as arrow: numbers and truths as they are, moments in microseconds, all else as text."""
    import pandas as pd
    import pyarrow as pa

    if column.name == "datetime":
        try:
            column = pd.to_datetime(column, format="ISO8601" if column.dtype.kind not in "mM" else None, utc=False)
        except (ValueError, TypeError) as error:
            raise InputFileError(f"the table's column datetime holds no dates: {str(error).splitlines()[0]}") from error
    if column.dtype.kind == "M" or isinstance(column.dtype, pd.DatetimeTZDtype):
        moments = column.dt.tz_convert("UTC").dt.tz_localize(None) if column.dt.tz is not None else column
        return pa.array(moments.to_numpy("datetime64[us]"), pa.timestamp("us"))
    kinds = {"i": pa.int64(), "u": pa.int64(), "f": pa.float64(), "b": pa.bool_()}
    if column.dtype.kind == "u" and column.dtype.itemsize == 8:  # beyond 2^63 too
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
            if name not in self.columns:  # which some databases take for a text
                raise OptionError(self._unknown(name))

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        # A panic of the database is of a class of its own, that has no name to be imported by.
        if isinstance(error, ValueError | RuntimeError | OSError) or "Panic" in type(error).__name__:
            said = re.sub(r", /[^ ]*\.rs:\d+:\d+", "", " ".join(str(error).split()))
            if unknown := re.search(r"No field named (.*?)\. Valid fields", said):
                raise OptionError(self._unknown(unknown[1].strip('"`'))) from error
            for pattern, words in _SAID:
                said = re.sub(pattern, words, said)
            raise OptionError(
                f'{said.strip(" .")}: where={self.sql}; wanted is SQL such as "lat > 30 AND DT > 1"'
            ) from error

    def _unknown(self, name: str) -> str:
        quotes = "; a text stands in 'single quotes'" if f'"{name}"' in self.sql else ""
        meant = suggest(name, list(self.columns))
        return f"there is no column {name}: where={self.sql}{quotes}{meant}; {_no_column(self.columns)}"


_SAID = (  # what the database says, and how it is said here
    (r"^Invalid input, |^lance error: |Did you mean .*", ""),
    (r"Error parsing statement: .*\(sql parser error: (.*)\)", r"\1"),
    (r"(Error during planning|Error parsing function|Query Execution error|Execution error|Schema error): ", ""),
    (r"Error resolving filter expression .*: Invalid user input: ", ""),
    (r"Expected: (.*), found: (EOF|\)).*", r"at the end \1 is missing"),
    (r"Expected: \), found: (\S+).*", r"\1 does not belong there"),
    (r"Expected: (.*), found: (\S+).*", r"\1 is missing before \2"),
    (r"Received literal Utf8\(.(.*).\) and could not .*", r"the text '\1' is compared with a column of numbers"),
    (r"Received literal \w+\((.*)\) and could not .*'Utf8'", r"the number \1 is compared with a column of texts"),
    (r"Invalid function '(.*)'", r"there is no function \1"),
    (r"The filter .* does not return a boolean", "it is no condition, which is true or false"),
)


def _no_column(columns: Sequence[str]) -> str:
    """Return what columns there are, or that a table is to be given."""
    if set(columns) <= set(KEYS):
        return (
            "the latents came without a table of their cutouts; give it by table=cutouts.parquet (to nenya index, "
            "where an index is searched)"
        )
    return f"the columns are {', '.join(columns)}"


def _any(terms: Any) -> str:
    found = list(terms)
    return found[0] if len(found) == 1 else " OR ".join(f"({term})" for term in found)


def _known(what: str, name: str, known: Any) -> str:
    if name not in known:
        raise OptionError(f"{what}={name}: there is no such {what}; known are {', '.join(known)}")
    return name


def _region(name: str, columns: Sequence[str]) -> str:
    if name not in REGIONS and "region" in columns:
        raise OptionError(
            f"region={name}: there is no such region; known are {', '.join(REGIONS)}. Those of the table's own column "
            f"region are asked for by where=\"region = '{name}'\""
        )
    return _known("region", name, REGIONS)


def _known_season(name: str) -> str:
    return str(SEASONS[_known("season", name, SEASONS)])


def _range(name: str, values: Sequence[float]) -> tuple[float, float]:
    try:
        low, high = (float(value) for value in values)
    except (TypeError, ValueError):
        raise OptionError(f"{name}={values}: wanted are two numbers, [least, greatest]") from None
    if np.isnan([low, high]).any():
        raise OptionError(f"{name}={values}: wanted are two numbers, [least, greatest]")
    return low, high


def _within(ends: tuple[float, float], low: float, high: float, name: str, unit: str = "") -> tuple[float, float]:
    """Return the ends of a range, which must lie within limits."""
    if not all(low <= end <= high for end in ends):
        said = f"{name}=[{ends[0]:g},{ends[1]:g}]"
        raise OptionError(f"{said}: wanted are two numbers from {low:g} to {high:g}{unit and ' '}{unit}")
    return ends


def _between(column: str, name: str, values: Sequence[float] | None) -> str:
    if values is None:
        return ""
    low, high = _range(name, values)
    if low > high:
        raise OptionError(f"{name}={list(values)}: the least comes first")
    return f"`{column}` >= {low!r} AND `{column}` <= {high!r}"


def _possible_box(lon: Sequence[float] | None, lat: Sequence[float] | None) -> str:
    """Return the condition of a user's box; regions, which have ends beyond the globe, are not checked."""
    if lat is not None:
        _within(_range("lat", lat), -90, 90, "lat", "degrees north")
    if lon is not None:
        west, east = _within(_range("lon", lon), -360, 360, "lon", "degrees east")
        if abs(east - west) > 360:
            raise OptionError(f"lon=[{west:g},{east:g}]: wanted are at most 360 degrees, [west, east]")
    return _box(lon, lat)


def _box(lon: Sequence[float] | None, lat: Sequence[float] | None) -> str:
    terms = []
    if lon is not None:
        west, east = _range("lon", lon)
        east = east + 360 if east < west else east
        if east < west:
            raise OptionError(f"lon={list(lon)}: wanted is [west, east] in degrees from -180 to 360")
        around = [f"(`lon` >= {west + turn!r} AND `lon` <= {east + turn!r})" for turn in (-360.0, 0.0, 360.0)]
        # A box all around leaves out no longitude, not even between its turns.
        terms.append(f"({' OR '.join(around)})" if east - west < 360 else "`lon` IS NOT NULL")
    if lat is not None:
        terms.append(_between("lat", "lat", lat))
    return " AND ".join(terms)


def _dates(dates: Sequence[str] | None) -> str:
    if dates is None:
        return ""
    import pandas as pd

    if isinstance(dates, str) or len(dates) != 2:
        raise OptionError(f"dates={dates}: wanted are two dates, such as [2012-01-01,2012-12-31]")
    first, last = (_moment(str(date), f"dates=[{dates[0]},{dates[1]}]") for date in dates)
    if first > last:
        raise OptionError(f"dates=[{dates[0]},{dates[1]}]: the first one comes first")
    day = last == last.normalize() and ":" not in str(dates[1])
    before, end = ("<", last + pd.Timedelta(days=1)) if day else ("<=", last)
    return f"`datetime` >= timestamp '{first.isoformat()}' AND `datetime` {before} timestamp '{end.isoformat()}'"


def _moment(date: str, where: str) -> "pd.Timestamp":
    """Return a date of ISO 8601; of a day that no month has it is said which date is meant."""
    import pandas as pd

    try:
        found = pd.Timestamp(date)
    except (TypeError, ValueError):
        found = pd.NaT
    if pd.isna(found):
        raise OptionError(f"{where}: there is no date {date}; wanted is year-month-day, such as 2012-12-31")
    return found.tz_convert(None) if found.tz is not None else found


def _temperatures(wanted: str | Sequence[float] | None) -> str:
    if not isinstance(wanted, str):
        return _between("DT", "DT", wanted)
    interval = DT_INTERVALS[_known("DT", wanted, DT_INTERVALS)]
    ends = [(">=", interval.low), ("<", interval.high)]
    return " AND ".join(f"`DT` {sign} {end!r}" for sign, end in ends if np.isfinite(end))


def _with_moments(sql: str) -> str:
    """Let dates that the column datetime is compared with stand as plain texts, which SQL does not take for moments."""
    date = r"(?:timestamp\s*)?('\d{4}-\d\d-\d\d[^']*')"
    sql = re.sub(rf"(\bdatetime\b`?\s*(?:[<>=!]+))\s*{date}", r"\1 timestamp \2", sql, flags=re.I)
    between = rf"(\bdatetime\b`?\s+(?:not\s+)?between)\s+{date}\s+and\s+{date}"
    sql = re.sub(between, r"\1 timestamp \2 and timestamp \3", sql, flags=re.I)
    for found in re.findall(r"\btimestamp '([^']*)'", sql):
        _moment(found, "where=")
    return sql


def _own(where: str | None) -> str:
    """Return a user's own condition, which must be one expression: no parenthesis closes what it did not open."""
    if not where:
        return ""
    check_condition(where)
    depth = 0
    for character in re.sub(r"'(?:[^']|'')*'|\"[^\"]*\"|`[^`]*`", "", where):
        depth += {"(": 1, ")": -1}.get(character, 0)
        if depth < 0 or character == ";":
            raise OptionError(f'where={where}: wanted is one condition, such as "lat > 30 AND DT > 1"')
    if depth:
        raise OptionError(f"where={where}: a parenthesis is not closed")
    return _with_moments(where)
