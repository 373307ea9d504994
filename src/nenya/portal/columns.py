"""Columns of a table for the portal: values, which can be drawn, and histogram bins."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nenya.errors import InputFileError, NenyaError
from nenya.io import read_table
from nenya.storage.table_files import check_arrow, check_table
from nenya.storage.texts import first_words
from nenya.tables.classes import Classes, classes_of_numbers, classes_of_tags, classes_of_texts
from nenya.tables.comparison import NO_DATE
from nenya.tables.granules import GRANULE, SOURCES, granules
from nenya.tables.key_columns import COLUMNS
from nenya.tables.over_time import Units, units_of
from nenya.tables.place_and_time import other_names
from nenya.tables.quantities import DIFFERENCE, TERMS, dt_name, quantity_of
from nenya.tables.tags import COLUMN as TAG
from nenya.tables.tags import tags_in

FloatArray = NDArray[np.float32]

BINS = 48
"""Bins of a histogram; the code `BINS` marks missing values."""

NO_MONTH = np.iinfo(np.int16).min
"""The month of a row without a date."""
_MOST_YEARS = 2500  # from 1970, which int16 holds as months

_FIRST = ("DT", "slope", "alpha", "zonal_slope", "LL", "month", "year", "lat", "clear_fraction", "mean_temperature")
_KEYS = (*COLUMNS, "row", "col", "UID", "field_size", "lon", "US0", "US1", "index")
_BLOCK = 2**17  # rows that are binned at once
_LOOKED_AT = 200_000  # rows by which a scale is chosen
_WIDE = 300  # ratio of large values to small ones, without a unit, above which they are told apart by their logarithms
_MOST_CATEGORIES = 64
_DICTIONARY_SHARE = 0.5  # strings with more distinct values are not encoded as a dictionary


@dataclass(frozen=True)
class Binned:
    """A column binned for its histogram.

    Attributes:
        name: of the column.
        edges: (BINS + 1,) float64, rising.
        codes: (N,) uint8, bin of each row; values outside the edges in the outermost bins, BINS if missing.
        counts: (BINS,) int64, of all rows.
        whole: whether the values are integers, such as months.
        log: whether the bins are even on a logarithmic axis.
    """

    name: str
    edges: NDArray[np.float64]
    codes: NDArray[np.uint8]
    counts: NDArray[np.int64]
    whole: bool
    log: bool = False


def read_arrow(path: Path) -> Any:
    """Read a table as Arrow, with repeated strings as dictionaries.

    Args:
        path: .parquet, .csv or .feather.

    Returns:
        A `pyarrow.Table` with one chunk per column.

    Raises:
        InputFileError: It is missing, damaged, of another kind, or has no rows.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if path.suffix == ".parquet" and path.is_file():
        try:
            check_table(path)
            names = [field.name for field in pq.read_schema(path) if pa.types.is_string(field.type)]
            table = pq.read_table(path, read_dictionary=names, pre_buffer=False)
        except NenyaError:
            raise
        except (pa.ArrowException, OSError, ValueError) as error:
            first = first_words(error)
            raise InputFileError(f"{path}: cannot be read as a table ({first}); copy or write it again") from error
    else:
        table = pa.Table.from_pandas(read_table(path), preserve_index=False)
    if not table.num_rows:
        raise InputFileError(f"{path}: expected a table with rows, got an empty one")
    table = check_arrow(table, path)
    return compact(table)


def compact(table: Any) -> Any:
    """Return a table with one chunk per column and repeated strings as dictionaries."""
    for position, field in enumerate(table.schema):
        column = _compact(table.column(position))
        table = table.set_column(position, field.name, column)
    return table.replace_schema_metadata(None)


def _compact(column: Any) -> Any:
    """Return a column in one chunk; strings as a dictionary if that is smaller."""
    import pyarrow as pa

    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        column = column.dictionary_encode()
    elif pa.types.is_dictionary(kind) and column.num_chunks > 1:  # the strings of all may be more than int8 numbers
        column = column.cast(pa.dictionary(pa.int32(), kind.value_type, kind.ordered))
    column = column.unify_dictionaries()
    array = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    if pa.types.is_dictionary(array.type) and len(array.dictionary) > _DICTIONARY_SHARE * len(array):
        array = array.dictionary_decode()
    return array


class Columns:
    """Columns of a table, read once and shared; derived arrays are computed at first use and kept.

    Args:
        table: a `pyarrow.Table`, see `read_arrow`.

    Attributes:
        table: the table.
        rows: number of rows N.
        missing: views that cannot be shown -> columns that they lack.
        version: rises with each change of the tags; what was computed before is out of date.
        tagged: whether the column of tags is that of the portal, which changes while it runs.
    """

    def __init__(self, table: Any) -> None:
        import pyarrow as pa

        for name, other in other_names(table.column_names).items():
            if (
                name != "datetime"
                or not pa.types.is_primitive(kind := table.schema.field(other).type)
                or pa.types.is_temporal(kind)
            ):
                table = table.append_column(name, table.column(other))
        self.table = table
        self.rows: int = table.num_rows
        self.names: list[str] = list(table.column_names)
        self._floats: dict[str, FloatArray] = {}
        self._binned: dict[str, Binned] = {}
        self._scales: dict[str, str] = {}
        self._classes: dict[str, Classes | None] = {}
        self.version, self.tagged = 0, False
        self._derive()
        self.missing = {
            view: lacking
            for view, wanted in (("UMAP", ("US0", "US1")), ("map", ("lat", "lon")), ("seasons", ("datetime",)))
            if (lacking := [name for name in wanted if name not in self.names])
        }

    def __contains__(self, name: object) -> bool:
        return name in self.names or name in self._floats

    def set_tags(self, codes: NDArray[np.int32], labels: tuple[str, ...]) -> None:
        """Set the column of tags.

        Args:
            codes: (N,), the number of each row's combination of tags, -1 for none.
            labels: the combinations.
        """
        import pyarrow as pa

        indices = pa.array(np.maximum(codes, 0), pa.int32(), mask=codes < 0)
        column = pa.chunked_array([pa.DictionaryArray.from_arrays(indices, pa.array(labels, pa.string()))])
        place = self.table.column_names.index(TAG) if TAG in self.table.column_names else None
        self._classes[TAG] = classes_of_tags(codes, labels)
        if place is None:
            self.table, self.names = self.table.append_column(TAG, column), [*self.names, TAG]
        else:
            self.table = self.table.set_column(place, TAG, column)
        self.version, self.tagged = self.version + 1, True

    def _derive(self) -> None:
        """Add DT, month and year if the table has their sources, and wrap longitudes to [-180, 180)."""
        if dt_name([name for name in self.names if name == "DT" or self.is_number(name)]) == DIFFERENCE:
            high, low = TERMS
            self._floats["DT"] = self.values(high) - self.values(low)
        if "lon" in self.names and self.is_number("lon"):
            lon = self._raw("lon").astype(np.float64)
            self._floats["lon"] = (np.mod(lon + 180, 360) - 180).astype(np.float32)
        if "datetime" in self.names:
            self._date()

    def _date(self) -> None:
        """Derive month and year from the dates, if valid."""
        import pyarrow as pa

        try:
            stamps = self.moments().astype("datetime64[M]")
        except (pa.ArrowException, ValueError):
            return
        known = ~np.isnat(stamps)
        number = stamps.astype(np.int64)
        self._floats["year"] = np.where(known, 1970 + number // 12, np.nan).astype(np.float32)
        self._floats["month"] = np.where(known, number % 12 + 1, np.nan).astype(np.float32)

    def moments(self) -> NDArray[np.datetime64]:
        """Return the column datetime, (N,) datetime64[s]; of strings, the days."""
        import pyarrow as pa

        column = self.table.column("datetime")
        if not self.is_text("datetime"):
            return np.asarray(column.cast(pa.timestamp("s"), safe=False).to_numpy(), "datetime64[s]")
        texts = column.cast(pa.string()).to_numpy(zero_copy_only=False)
        return np.array([str(text)[:10] for text in texts], dtype="datetime64[D]").astype("datetime64[s]")

    def exact(self, name: str) -> NDArray[Any]:
        """Return a column of numbers, (N,), as the table holds it; derived ones and longitudes as `values`."""
        made = name in self._floats and (name not in self.names or name in ("lon", "month", "year"))
        return self.values(name) if made else self._raw(name)

    def coded(self, name: str) -> tuple[NDArray[np.integer], Any]:
        """Return the number of each row's string, (N,), -1 for none, and the distinct strings as an Arrow array."""
        array = self.table.column(name).chunk(0)
        if not hasattr(array, "dictionary"):
            array = array.dictionary_encode()
        return np.asarray(array.indices.fill_null(-1).to_numpy(zero_copy_only=False)), array.dictionary

    @property
    def months(self) -> NDArray[np.int64]:
        """The month of each row, (N,) int64, for `nenya.tables.comparison.compare_dates`."""
        numbers = self.month_numbers
        return np.where(numbers == NO_MONTH, NO_DATE, numbers.astype(np.int64))

    @cached_property
    def month_numbers(self) -> NDArray[np.int16]:
        """The month of each row, counted from January 1970, (N,) int16; `NO_MONTH` if unknown."""
        months = np.full(self.rows, NO_MONTH, np.int16)
        if "month" in self and "year" in self:
            month, year = self.values("month"), self.values("year")
            known = np.isfinite(month) & (np.abs(year - 1970) < _MOST_YEARS)
            months[known] = (12 * (year[known] - 1970) + month[known] - 1).astype(np.int16)
        return months

    @cached_property
    def dates(self) -> tuple[int, int] | None:
        """The first and the last month of a row, counted from January 1970; None without dates."""
        known = self.month_numbers[self.month_numbers != NO_MONTH]
        return (int(known.min()), int(known.max())) if len(known) else None

    @cached_property
    def units(self) -> Units:
        """The rows grouped by granule and month."""
        return units_of(self.month_numbers, NO_MONTH, self.granules)

    def is_text(self, name: str) -> bool:
        """Return whether a column of the table holds strings."""
        import pyarrow.types as kinds

        kind = self.table.schema.field(name).type
        return bool(kinds.is_string(kind) or kinds.is_large_string(kind) or kinds.is_dictionary(kind))

    def is_number(self, name: str) -> bool:
        """Return whether a column holds numbers or booleans."""
        import pyarrow.types as kinds

        if name in self._floats:
            return True
        kind = self.table.schema.field(name).type
        return bool(kinds.is_floating(kind) or kinds.is_integer(kind) or kinds.is_boolean(kind))

    def _is_boolean(self, name: str) -> bool:
        import pyarrow.types as kinds

        return name in self.names and bool(kinds.is_boolean(self.table.schema.field(name).type))

    def _raw(self, name: str) -> NDArray[Any]:
        import pyarrow as pa

        column = self.table.column(name)
        if self._is_boolean(name):
            column = column.cast(pa.uint8())
        return np.asarray(column.to_numpy())

    def values(self, name: str) -> FloatArray:
        """Return a column of numbers, (N,) float32; NaN where missing.

        Raises:
            KeyError: There is no such numeric column.
        """
        if name not in self._floats:
            if name not in self.names or not self.is_number(name):
                raise KeyError(name)
            self._floats[name] = self._raw(name).astype(np.float32, copy=False)
        return self._floats[name]

    def metrics(self) -> list[str]:
        """Return the columns for histograms and means: numeric, not keys, not constant."""
        every = [*self.names, *(name for name in self._floats if name not in self.names)]
        found = [n for n in every if n not in _KEYS and not n.startswith(("pp_", "ulmo_pp_")) and self.is_number(n)]
        found = [name for name in found if self._varies(name)]
        rank = {name: i for i, name in enumerate(_FIRST)}
        return sorted(found, key=lambda name: (rank.get(name, len(rank)), every.index(name)))

    def _varies(self, name: str) -> bool:
        values = self.values(name)
        with np.errstate(invalid="ignore"):
            low, high = np.fmin.reduce(values), np.fmax.reduce(values)
        return bool(np.isfinite(low) and np.isfinite(high) and low < high)

    def categories(self) -> dict[str, list[str]]:
        """Return the string columns with few distinct values, and these values."""
        found = {}
        for name in self.names:
            if self.is_text(name) and not (name == TAG and self.tagged):
                array = self.table.column(name).chunk(0)
                if hasattr(array, "dictionary") and 2 <= len(array.dictionary) <= _MOST_CATEGORIES:
                    found[name] = sorted(str(value) for value in array.dictionary.to_pylist() if value is not None)
        return found

    def may_hold(self, name: str, values: tuple[str, ...]) -> bool:
        """Return whether a column of few strings has all the given ones; a tag may be given at any time.

        Raises:
            KeyError: There is no such column.
        """
        return (name == TAG and self.tagged) or set(values) <= set(self.categories()[name])

    def classes(self, name: str) -> Classes | None:
        """Return the classes of a column that holds a few integers or strings; None for other columns."""
        if name not in self._classes:
            found = None
            if name in self and self.is_number(name):
                found = classes_of_numbers(name, self.values(name))
                if found is not None and self._is_boolean(name):
                    found = replace(found, truth=True)
            elif name in self.names and self.is_text(name) and hasattr(self.table.column(name).chunk(0), "dictionary"):
                codes, texts = self.coded(name)
                found = classes_of_texts(name, codes, texts.to_pylist())
            self._classes[name] = found
        return self._classes[name]

    def class_names(self) -> list[str]:
        """Return the columns of classes, those of numbers first."""
        own = [TAG] if self.tagged else []
        return [*own, *(name for name in (*self.metrics(), *self.categories()) if self.classes(name) is not None)]

    def has_value(self, name: str, values: tuple[str, ...]) -> NDArray[np.bool_]:
        """Return which rows have one of the given strings in a column: (N,) bool; of tags, one of them or all."""
        array = self.table.column(name).chunk(0)
        texts = [[str(v), *(tags_in(str(v)) if name == TAG else ())] for v in array.dictionary.to_pylist()]
        wanted = np.array([not {*values}.isdisjoint(text) for text in texts] + [False])
        codes = array.indices.fill_null(len(wanted) - 1).to_numpy(zero_copy_only=False)
        return np.asarray(wanted[codes])

    def binned(self, name: str) -> Binned:
        """Return a column binned for its histogram, which spans all but half a percent at either end."""
        if name not in self._binned:
            self._binned[name] = _bin(name, self.values(name))
        return self._binned[name]

    def scale(self, name: str) -> str:
        """Return how the values of a column are best told apart: `linear`, `log` or `ratio`; see `Quantity.scale`."""
        if name not in self._scales:
            wanted, values = quantity_of(name).scale, self.values(name)
            some = values[:: max(1, self.rows // _LOOKED_AT)]
            some = some[np.isfinite(some)]
            if not len(some) or not np.fmin.reduce(values) > 0:
                wanted = "linear"  # there is no logarithm of 0
            elif wanted == "linear" and not quantity_of(name).unit:
                low, high = np.quantile(some, (0.02, 0.98))
                wanted = "log" if high > _WIDE * low else "linear"
            self._scales[name] = wanted
        return self._scales[name]

    def charted(self, name: str) -> Binned:
        """Return a column binned for its histogram, evenly on the axis that suits it."""
        if self.scale(name) == "linear":
            return self.binned(name)
        key = f"{name} by its logarithm"
        if key not in self._binned:
            found = _bin(name, np.log10(self.values(name)))
            self._binned[key] = replace(found, edges=10**found.edges, log=True)
        return self._binned[key]

    def same_granule(self, row: int) -> NDArray[np.bool_]:
        """Return which rows are of the same granule, a time of a file, as one; (N,) bool."""
        same = np.zeros(self.rows, bool)
        same[row] = True
        codes = self.granules
        return same if codes is None else same | ((codes == codes[row]) & (codes >= 0))

    @cached_property
    def granules(self) -> NDArray[np.int64] | None:
        """Number of the granule of each row, (N,); None if the table does not say."""
        names = [name for name in (GRANULE, *SOURCES) if name in self.names]
        if GRANULE in names and not self.table.column(GRANULE).null_count:
            names = [GRANULE]
        return granules(self.table.select(names).to_pandas()) if names else None

    def row(self, number: int) -> dict[str, Any]:
        """Return one row with all columns."""
        values = {name: self.table.column(name)[number].as_py() for name in self.names}
        for name in ("DT", "month", "year"):
            if name in self._floats and name not in values:
                values[name] = float(self._floats[name][number])
        return values

    def take(self, rows: NDArray[np.integer]) -> Any:
        """Return the given rows as a `pyarrow.Table`."""
        return self.table.take(rows)


def _bin(name: str, values: FloatArray) -> Binned:
    finite = np.isfinite(values)
    known = values if finite.all() else values[finite]
    whole = bool(len(known) and (known[: 10**5] == np.round(known[: 10**5])).all() and (known == np.round(known)).all())
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    if whole and high - low < BINS:
        edges = low - 0.5 + np.arange(BINS + 1, dtype=np.float64)
    else:
        step = max(1, len(known) // 200_000)
        if len(known) > 1000:
            inner = np.quantile(known[::step], (0.005, 0.995))
            low, high = (float(inner[0]), float(inner[1])) if inner[0] < inner[1] else (low, high)
        edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
    scale = BINS / (edges[-1] - edges[0])
    codes, counts = np.empty(len(values), np.uint8), np.zeros(BINS, np.int64)
    for start in range(0, len(values), _BLOCK):
        part = slice(start, start + _BLOCK)
        with np.errstate(invalid="ignore", over="ignore"):
            place = np.clip((values[part] - np.float32(edges[0])) * np.float32(scale), 0, BINS - 1)
        codes[part] = np.where(finite[part], place, BINS)
        counts += np.bincount(codes[part], minlength=BINS + 1)[:BINS]
    return Binned(name, edges.astype(np.float64), codes, counts, whole)
