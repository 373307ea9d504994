"""Statistics of chosen cutouts against all of them: regions, places, seasons, years, temperature difference, slope.

Letters: N rows of the table.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nenya.archive.folder import open_chosen
from nenya.commands.output import say
from nenya.errors import InputFileError, OptionError
from nenya.io import TABLE_SUFFIXES, read_table, write_table
from nenya.options.commands import StatisticsOptions
from nenya.storage.disk import check_output
from nenya.storage.paths import local_path
from nenya.storage.table_integers import comparable
from nenya.tables import keys
from nenya.tables.comparison import NO_DATE, compare, compare_dates, compare_regions, comparison, trend
from nenya.tables.conditions import rows_where
from nenya.tables.grids import Grid, globe, wrap_longitude
from nenya.tables.key_columns import has_keys, read_keys
from nenya.tables.quantities import dt_of

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

Float64Array = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

METRICS = ("DT", "alpha")
BINS = 60
_BLOCK = 2**18
_LOOKED_AT = 200_000  # rows that the ends of a histogram are taken from
_FOLDER = "outputs/statistics"
_MADE_BY = {"nenya embed": ("US0", "US1"), "nenya clusters": ("cluster",)}


@dataclass(frozen=True)
class SelectionStatistics:
    """A selection beside the whole table.

    The tables have the columns name, selected, whole (counts), share_selected, share_whole, ratio (the first share over
    the second), ratio_low and ratio_high (95 %, of the selection's share by Wilson 1927, JASA 22, 209). A share is that
    of the rows with a finite position, date or value. A table whose columns are missing is empty.

    Attributes:
        selected: number of chosen rows.
        whole: number of rows N.
        regions: a row for each of `nenya.defs.REGIONS`, which overlap; western and southern borders belong to one.
        seasons: DJF, MAM, JJA, SON.
        months: 1 to 12.
        years: from the first to the last one.
        histograms: metric -> table with, besides, the edges low and high of each bin; the outermost bins reach to the
            least and the greatest value.
        grid: cells of the maps.
        map_selected: chosen rows in each cell, (R, C) int64.
        map_whole: all rows in each cell, (R, C) int64.
    """

    selected: int
    whole: int
    regions: "pd.DataFrame"
    seasons: "pd.DataFrame"
    months: "pd.DataFrame"
    years: "pd.DataFrame"
    histograms: dict[str, "pd.DataFrame"]
    grid: Grid
    map_selected: IntArray
    map_whole: IntArray

    def table(self) -> "pd.DataFrame":
        """Return all of it in one table: columns statistic, name, low, high, lon, lat, selected, whole, shares, ratios.

        Maps have a row for each cell that is not empty, with its centre as lon and lat.
        """
        import pandas as pd

        rows, columns = np.nonzero(self.map_whole)
        lon, lat = self.grid.centres
        places = compare(
            self.map_selected[rows, columns],
            self.map_whole[rows, columns],
            self.map_selected.sum(),
            self.map_whole.sum(),
        )
        maps = pd.DataFrame({"name": "", "lon": lon[columns], "lat": lat[rows], **places})
        parts = {
            "region": self.regions,
            "season": self.seasons,
            "month": self.months,
            "year": self.years,
            **self.histograms,
            "map": maps,
        }
        whole = [part.assign(statistic=name) for name, part in parts.items() if len(part)]
        first = ["statistic", "name", "low", "high", "lon", "lat"]
        if not whole:
            return pd.DataFrame(columns=[*first, *compare(np.zeros(0), np.zeros(0), 0, 0)])
        joined = pd.concat(whole, ignore_index=True)
        for name in first:
            if name not in joined:
                joined[name] = np.nan
        return joined[[*first, *(name for name in joined if name not in first)]]


def selection_statistics(
    table: "pd.DataFrame", chosen: Any, *, metrics: Sequence[str] = METRICS, degrees: float = 2.0
) -> SelectionStatistics:
    """Compare chosen rows of a table with all of them.

    Args:
        table: lon and lat in degrees (of -180..180 or 0..360), datetime, DT (or T90 and T10) in K, alpha ...; what is
            missing is left out.
        chosen: (N,) bool, or numbers of the rows.
        metrics: columns that get a histogram.
        degrees: side of the maps' cells.

    Raises:
        InputFileError: `chosen` does not fit the table.
    """
    mask = _mask(chosen, len(table))
    grid = globe(degrees)
    none = np.zeros((grid.rows, grid.columns), np.int64)
    regions, maps = comparison([], np.zeros(0), np.zeros(0), (0, 0)), (none, none)
    if "lon" in table and "lat" in table:
        lon, lat = np.asarray(wrap_longitude(_numbers(table["lon"])), np.float64), _numbers(table["lat"])
        regions, maps = compare_regions(lon, lat, mask), _maps(grid, lon, lat, mask)
    dates = _months(table["datetime"] if "datetime" in table else None, len(table))
    seasons, months, years = compare_dates(dates, mask)
    histograms = {}
    for name in metrics:
        values = metric(table, name)
        if values is not None:
            histograms[name] = _histogram(values, mask)
    return SelectionStatistics(
        int(mask.sum()), len(table), regions, seasons, months, years, histograms, grid, maps[0], maps[1]
    )


def metric(table: "pd.DataFrame", name: str) -> Float64Array | None:
    """Return a column of numbers, (N,) float64; DT is T90 - T10 where it has no column; None where there is none."""
    if name in table:
        return _numbers(table[name])
    if name == "DT" and (difference := dt_of(table)) is not None:
        return _numbers(difference)
    return None


def columns_of(table: "pd.DataFrame", *names: str) -> Float64Array:
    """Return columns of numbers, (N, number of names) float64; DT is T90 - T10 where it has no column.

    Raises:
        InputFileError: One is missing or holds no numbers.
    """
    found = [metric(table, name) for name in names]
    missing = [name for name, values in zip(names, found, strict=True) if values is None]
    if missing:
        hint = next((f": {made} writes it" for made, made_names in _MADE_BY.items() if missing[0] in made_names), "")
        raise InputFileError(
            f"the table has no column {' or '.join(missing)} (it has {', '.join(map(str, table.columns))}){hint}"
        )
    return np.stack([values for values in found if values is not None], axis=1)


def _mask(chosen: Any, rows: int) -> BoolArray:
    """Return chosen rows as (rows,) bool."""
    chosen = np.asarray(chosen)
    mask: BoolArray
    if chosen.dtype == bool and chosen.shape == (rows,):
        mask = chosen
        return mask
    if chosen.ndim == 1 and (chosen.dtype.kind in "iu" or not chosen.size):
        if chosen.size and (chosen.min() < 0 or chosen.max() >= rows):
            raise InputFileError(f"rows {chosen.min()} to {chosen.max()} are chosen, the table has {rows}")
        mask = np.zeros(rows, bool)
        mask[chosen.astype(np.int64)] = True
        return mask
    raise InputFileError(
        f"chosen rows of type {chosen.dtype} and shape {chosen.shape}: wanted bool ({rows},) or numbers"
    )


def _numbers(column: "pd.Series[Any]") -> Float64Array:
    import pandas as pd

    if pd.api.types.is_bool_dtype(column) or not pd.api.types.is_numeric_dtype(column):
        raise InputFileError(f"the column {column.name} holds no numbers ({column.dtype})")
    values: Float64Array = column.to_numpy(np.float64, na_value=np.nan)
    return values


def _maps(grid: Grid, lon: Float64Array, lat: Float64Array, mask: BoolArray) -> tuple[IntArray, IntArray]:
    cells = grid.rows * grid.columns
    both = np.zeros(2 * cells, np.int64)
    for start in range(0, len(lon), _BLOCK):
        part = slice(start, start + _BLOCK)
        cell = grid.cells(lon[part], lat[part])
        key = (cell + cells * mask[part])[cell >= 0]
        both += np.bincount(key, minlength=2 * cells)
    rest, chosen = both.reshape(2, grid.rows, grid.columns)
    return chosen, rest + chosen


def _months(column: "pd.Series[Any] | None", rows: int) -> IntArray:
    """Return the months of dates, as `compare_dates` takes them."""
    import pandas as pd

    if column is None:
        return np.full(rows, NO_DATE)
    if getattr(column.dtype, "kind", "") != "M":
        if pd.api.types.is_numeric_dtype(column):
            raise InputFileError(f"the column datetime holds {column.dtype}, wanted are dates such as 2012-03-01T12:00")
        column = pd.to_datetime(column, errors="coerce", utc=True, format="ISO8601")
    if getattr(column.dtype, "tz", None) is not None:
        column = column.dt.tz_convert("UTC").dt.tz_localize(None)
    months: IntArray = column.to_numpy().astype("datetime64[M]").astype(np.int64)  # no date: the smallest number
    return months


def _histogram(values: Float64Array, mask: BoolArray) -> "pd.DataFrame":
    """Count finite values in equal bins between about their 0.1th and 99.9th percentile, the ends outside."""
    looked_at = values[:: max(1, len(values) // _LOOKED_AT)]
    looked_at = looked_at[np.isfinite(looked_at)]
    if not looked_at.size:
        looked_at = values[np.isfinite(values)]
    low, high = np.quantile(looked_at, [0.001, 0.999]) if looked_at.size else (0.0, 1.0)
    low, high = (low, high) if high > low else (low - 0.5, high + 0.5)
    edges = np.linspace(low, high, BINS + 1)
    both = np.zeros(2 * BINS, np.int64)
    for start in range(0, len(values), _BLOCK):
        part = values[start : start + _BLOCK]
        finite = np.isfinite(part)
        edges[0], edges[-1] = part[finite].min(initial=edges[0]), part[finite].max(initial=edges[-1])
        place = np.clip((part[finite] - low) * (BINS / (high - low)), 0, BINS - 1).astype(np.int64)
        both += np.bincount(place + BINS * mask[start : start + _BLOCK][finite], minlength=2 * BINS)
    rest, selected = both.reshape(2, BINS)
    whole = rest + selected
    of = (int(selected.sum()), int(whole.sum()))
    return comparison([""] * BINS, selected, whole, of, low=edges[:-1], high=edges[1:])


def chosen_rows(table: "pd.DataFrame", options: StatisticsOptions) -> BoolArray:
    """Return the rows that the options choose, (N,) bool: those that fulfil all that is given.

    Raises:
        NenyaError: Nothing is given, a condition does not parse, or a table cannot be read or joined.
    """
    chosen = np.ones(len(table), bool)
    given = 0
    if options.where is not None:
        chosen &= rows_where(table, options.where)
        given += 1
    if options.box is not None:
        x0, x1, y0, y1 = (float(v) for v in options.box)
        u, v = columns_of(table, "US0", "US1").T
        chosen &= (u >= x0) & (u <= x1) & (v >= y0) & (v <= y1)
        given += 1
    if options.cluster is not None:
        chosen &= columns_of(table, "cluster")[:, 0] == options.cluster
        given += 1
    if options.rows is not None:
        chosen &= rows_of(table, read_table(local_path(options.rows)))
        given += 1
    if not given:
        raise OptionError(
            "nothing is selected: give where='DT > 2', box=[x0,x1,y0,y1], cluster=3 or rows=found.parquet"
        )
    return chosen


def rows_of(table: "pd.DataFrame", found: "pd.DataFrame") -> BoolArray:
    """Say which rows of a table are in another one, such as a search's result: (N,) bool.

    Rows are joined by UID where both tables have one in each row that is theirs alone, else by pp_file, pp_type and
    pp_idx. What is not found is said.

    Raises:
        InputFileError: The tables share neither, or no row of the other one is in this one.
    """
    table, found = table.reset_index(drop=True), found.reset_index(drop=True)
    if _by_uid(table, found):
        own, other = comparable(table["UID"], found["UID"])
        chosen, there = np.zeros(len(table), bool), np.zeros(len(found), bool)
        chosen[own.index[own.isin(other)]] = True
        there[other.index[other.isin(own)]] = True
    else:
        chosen, there = keys.rows_of(read_keys(table), read_keys(found))
    if not there.any():
        raise InputFileError(
            f"none of the {len(found)} rows that are asked for is in the table: give rows of this table"
        )
    if not there.all():
        log.warning("found %d of %d rows (%d are not in the table)", there.sum(), len(found), (~there).sum())
    return chosen


def _by_uid(table: "pd.DataFrame", found: "pd.DataFrame") -> bool:
    """Say whether UID joins two tables, not pp_file, pp_type and pp_idx."""
    have = ["UID" in one for one in (table, found)]
    keyed = [has_keys(one) for one in (table, found)]
    if not all(have) and not all(keyed):
        lacking = found if not (have[1] or keyed[1]) else table
        raise InputFileError(
            f"expected the columns UID, or pp_file, pp_type and pp_idx, in the table and in rows=, got "
            f"{', '.join(map(str, lacking.columns))}"
        )
    if not all(have) or not all(keyed):
        return all(have)
    ids = table["UID"], found["UID"]
    return bool(ids[1].notna().all() and ids[0].is_unique and not any(column.dtype.kind == "f" for column in ids))


def run(options: StatisticsOptions) -> int:
    """Write the statistics of a selection, a table and a figure.

    Args:
        options: of `scripts/selection_statistics.py`.

    Returns:
        0.

    Raises:
        NenyaError: An option is not possible, the table cannot be read, or a result cannot be written.
    """
    from nenya.plotting.statistics import draw_statistics

    options.table = options.table or (options.data if isinstance(options.data, str) else None)
    opened = open_chosen(options)
    source = Path(opened.name if opened else local_path(options.table or ""))
    out = local_path(options.out or f"{_FOLDER}/{source.stem}_statistics.parquet")
    if out.suffix not in TABLE_SUFFIXES:
        if out.suffix and not out.is_dir():
            raise OptionError(f"out={out}: wanted is a folder or a table ({', '.join(TABLE_SUFFIXES)})")
        out = out / f"{source.stem}_statistics.parquet"
    picture = out.with_suffix(options.picture)
    for path in (out, picture):
        check_output(path, options.clobber)
    table = opened.table() if opened else read_table(source)
    chosen = chosen_rows(table, options)
    if not chosen.any():
        raise OptionError(f"no row of {len(table)} is selected: widen where=, box=, cluster= or rows=")
    found = selection_statistics(table, chosen, metrics=tuple(options.metrics), degrees=options.degrees)
    for what, part in (("lon and lat: no regions, no map", found.regions), ("datetime: no seasons", found.seasons)):
        if not len(part):
            log.warning("%s: no column of %s", source, what)
    words = [options.where, options.box and f"UMAP box {list(options.box)}", options.rows]
    words.append(None if options.cluster is None else f"cluster {options.cluster}")
    title = ", ".join(str(word) for word in words if word)
    write_table(found.table(), out)
    draw_statistics(found, picture, title=title)
    say(f"{found.selected} of {found.whole} rows ({100 * found.selected / found.whole:.2f} %): {title}")
    for row in found.regions[found.regions["whole"] > 0].itertuples():
        within = f"{row.ratio:.2f} ({row.ratio_low:.2f} to {row.ratio_high:.2f})"
        say(f"  {row.name:14s} {row.selected:9d}  {within} times the whole's share")
    if line := trend(found.years):
        points = f"{100 * line.slope:+.3g} +- {100 * line.error:.2g}"
        say(f"  share of each year's rows: {points} percentage points a year")
    log.info("%s\n%s", out, picture)
    return 0
