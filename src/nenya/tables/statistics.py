"""Statistics of selected cutouts compared with all: regions, positions, dates, temperature difference, slope.

Letters: N rows of the table.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nenya.errors import InputFileError
from nenya.tables.comparison import NO_DATE, compare, compare_dates, compare_regions, comparison
from nenya.tables.grids import Grid, globe, wrap_longitude
from nenya.tables.place_and_time import dates_of, usual_names
from nenya.tables.quantities import Float64Array, metric, numbers_of

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

METRICS = ("DT", "alpha")
BINS = 60
_BLOCK = 2**18
_LOOKED_AT = 200_000  # rows from which the ends of a histogram are estimated


@dataclass(frozen=True)
class SelectionStatistics:
    """A selection compared with the complete table.

    The tables have the columns name, selected, whole (counts), share_selected, share_whole, ratio (the first over the
    second), ratio_low and ratio_high (95 %, of the selection's share by Wilson 1927, JASA 22, 209). A share is the
    fraction of the rows with a finite position, date or value. A table is empty if its columns are missing.

    Attributes:
        selected: number of selected rows.
        whole: number of rows N.
        regions: a row for each of `nenya.defs.REGIONS`, which overlap; western and southern borders are included.
        seasons: DJF, MAM, JJA, SON.
        months: 1 to 12.
        years: from the first to the last one.
        histograms: metric -> table with, in addition, the edges low and high of each bin; the outermost bins reach to
            the smallest and the largest value.
        grid: cells of the maps.
        map_selected: selected rows in each cell, (R, C) int64.
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
        """Return all in one table: columns statistic, name, low, high, lon, lat, selected, whole, shares, ratios.

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
    """Compare selected rows of a table with all rows.

    Args:
        table: lon and lat in degrees (of -180..180 or 0..360), datetime, DT (or T90 and T10) in K, alpha ...; missing
            columns are skipped.
        chosen: (N,) bool, or numbers of the rows.
        metrics: columns for histograms.
        degrees: side of the map cells.

    Raises:
        InputFileError: `chosen` does not fit the table.
    """
    mask, table = _mask(chosen, len(table)), usual_names(table)
    grid = globe(degrees)
    none = np.zeros((grid.rows, grid.columns), np.int64)
    regions, maps = comparison([], np.zeros(0), np.zeros(0), (0, 0)), (none, none)
    if "lon" in table and "lat" in table:
        lon, lat = np.asarray(wrap_longitude(numbers_of(table["lon"])), np.float64), numbers_of(table["lat"])
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


def _mask(chosen: Any, rows: int) -> BoolArray:
    """Return selected rows as (rows,) bool."""
    chosen = np.asarray(chosen)
    mask: BoolArray
    if chosen.dtype == bool and chosen.shape == (rows,):
        mask = chosen
        return mask
    if chosen.ndim == 1 and (chosen.dtype.kind in "iu" or not chosen.size):
        if chosen.size and (chosen.min() < 0 or chosen.max() >= rows):
            raise InputFileError(f"expected row numbers from 0 to {rows - 1}, got {chosen.min()} to {chosen.max()}")
        mask = np.zeros(rows, bool)
        mask[chosen.astype(np.int64)] = True
        return mask
    raise InputFileError(f"expected rows as bool ({rows},) or row numbers, got {chosen.dtype} of shape {chosen.shape}")


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
    if column is None:
        return np.full(rows, NO_DATE)
    months: IntArray = (
        dates_of(column).to_numpy().astype("datetime64[M]").astype(np.int64)
    )  # a missing date becomes the smallest int64
    return months


def _histogram(values: Float64Array, mask: BoolArray) -> "pd.DataFrame":
    """Count finite values in equal bins between about their 0.1th and 99.9th percentile; others go to the end bins."""
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
