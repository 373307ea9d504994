"""Strata of a table: regions, seasons, intervals of DT, cells of equal area, or the values of a column.

Letters in shapes: N rows of a table.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import healpix  # type: ignore[import-untyped, unused-ignore]  # it ships no types
import numpy as np
from numpy.typing import NDArray

from nenya.defs import DT_BINS, DT_INTERVALS, REGIONS, SEASONS
from nenya.errors import InputFileError, OptionError
from nenya.options.declare import suggest
from nenya.tables.grids import wrap_longitude
from nenya.tables.near import coordinates
from nenya.tables.place_and_time import dates_of, usual_names
from nenya.tables.quantities import dt_of, numbers_of

if TYPE_CHECKING:
    import pandas as pd

KINDS = ("region", "season", "DT", "cell")
"""Strata that are not simply the values of a column."""

_MOST_VALUES = 60
_HELD = ("global",)  # regions that are no strata
Float64Array = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class Stratum:
    """A part of a table.

    Attributes:
        by: `region`, `season`, `DT`, `cell` or a column.
        name: of the region, season, interval or value; the number of the cell in HEALPix's ring order.
        rows: (N,) bool.
        lon: longitude of the centre of a cell, degrees east; None of others.
        lat: latitude of the centre of a cell, degrees north.
    """

    by: str
    name: str
    rows: NDArray[np.bool_]
    lon: float | None = None
    lat: float | None = None

    @property
    def label(self) -> str:
        """The kind and the name: `region=med`."""
        return f"{self.by}={self.name}"


def check_strata(table: "pd.DataFrame", by: Sequence[str]) -> None:
    """Check that a table can be divided.

    Raises:
        OptionError: A stratum is neither one of `KINDS` nor a column, a name is given twice, or the column has too many
            values.
        InputFileError: The table lacks a column.
    """
    table = usual_names(table)
    if len(set(by)) < len(by):
        raise OptionError(f"by=[{','.join(by)}]: expected each name once")
    for name in by:
        missing = [column for column in _needs(name) if column not in table]
        if name == "DT" and dt_of(table, true=True) is None:
            missing = ["DT, or T90 and T10,"]
        if missing and not (name == "region" and name in table):
            raise InputFileError(f"by={name} needs a column {' and '.join(missing)} in the tables")
        if name in KINDS:
            continue
        if name not in table:
            meant = suggest(name, [*KINDS, *map(str, table.columns)])
            raise OptionError(f"by={name}{meant}: expected {', '.join(KINDS)} or a column of the tables")
        if (count := table[name].nunique()) > _MOST_VALUES:
            raise OptionError(
                f"by={name}: the column has {count} values, expected at most {_MOST_VALUES}: give a column of classes"
            )


def strata(table: "pd.DataFrame", by: Sequence[str], side: int = 4) -> Iterator[Stratum]:
    """Yield the strata of a table that have rows; those of one kind may overlap (regions).

    Args:
        table: with the columns that `by` needs; see `check_strata`.
        by: kinds of strata.
        side: HEALPix's number of cells along an edge of its base cells; there are 12 * side**2 cells.
    """
    table = usual_names(table)
    for kind in by:
        for found in _of_kind(table, kind, side):
            if found.rows.any():
                yield found


def cells_of(lon: Float64Array, lat: Float64Array, side: int) -> IntArray:
    """Return HEALPix's cell of each point in ring order (Gorski and others 2005, ApJ 622, 759).

    Args:
        lon: (N,) degrees east.
        lat: (N,) degrees north.
        side: cells along an edge of the twelve base cells: 12 * side**2 cells in all.

    Returns:
        (N,) int64, -1 where a coordinate is not finite or no latitude.
    """
    known = np.isfinite(lon) & np.isfinite(lat) & (np.abs(lat) <= 90)
    found = np.full(len(known), -1, np.int64)
    # The library crashes on NaN, and errs on longitudes below -360.
    found[known] = healpix.ang2pix(side, np.mod(lon[known], 360.0), lat[known], lonlat=True)
    return found


def _needs(name: str) -> tuple[str, ...]:
    return {"region": ("lon", "lat"), "cell": ("lon", "lat"), "season": ("datetime",)}.get(name, ())


def _of_kind(table: "pd.DataFrame", kind: str, side: int) -> Iterator[Stratum]:
    if kind == "region" and {"lon", "lat"} <= set(table):
        lon, lat = _places(table)
        for name, box in REGIONS.items():
            if name not in _HELD:
                inside = (lon >= box.lon[0]) & (lon <= box.lon[1]) & (lat >= box.lat[0]) & (lat <= box.lat[1])
                yield Stratum(kind, name, inside)
    elif kind == "cell":
        cells = cells_of(*_places(table), side)
        numbers = np.unique(cells[cells >= 0])
        for number, lon, lat in zip(numbers, *healpix.pix2ang(side, numbers, lonlat=True), strict=True):
            yield Stratum(kind, str(number), cells == number, float((lon + 180) % 360 - 180), float(lat))
    elif kind == "season":
        months = dates_of(table["datetime"]).dt.month.to_numpy(np.float64, na_value=np.nan)
        for name, own in SEASONS.items():
            yield Stratum(kind, name, np.isin(months, own))
    elif kind == "DT":
        difference = dt_of(table, true=True)
        assert difference is not None, "check_strata"
        values = numbers_of(difference)
        for name in DT_BINS:
            interval = DT_INTERVALS[name]
            yield Stratum(kind, name, (values >= interval.low) & (values < interval.high))
    else:
        for value in sorted(table[kind].dropna().unique(), key=str):
            yield Stratum(kind, str(value), (table[kind] == value).to_numpy(bool, na_value=False))


def _places(table: "pd.DataFrame") -> tuple[Float64Array, Float64Array]:
    lat, lon = coordinates(table)
    return np.asarray(wrap_longitude(lon), np.float64), lat
