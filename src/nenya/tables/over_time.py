"""The share of selected rows in each month, quarter or year, with intervals that know granules.

Letters in shapes: N rows, U units (the rows of one granule in one month), T times.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nenya.tables.comparison import NORMAL, wilson

IntArray = NDArray[np.int64]
Float64Array = NDArray[np.float64]


@dataclass(frozen=True)
class Units:
    """Rows grouped by granule and month.

    Attributes:
        of_row: (N,) int32, the unit of each row; -1 without a date.
        month: (U,) int64, rising, counted from January 1970.
        rows: (U,) int64, rows of each.
    """

    of_row: NDArray[np.int32]
    month: IntArray
    rows: IntArray

    def selected(self, rows: NDArray[np.integer] | NDArray[np.bool_] | None) -> IntArray:
        """Return the selected rows of each unit, (U,).

        Args:
            rows: their numbers, or a mask (N,); None for all.
        """
        if rows is None:
            return self.rows
        units = self.of_row[rows]
        return np.bincount(units[units >= 0], minlength=len(self.rows)).astype(np.int64)


def units_of(months: NDArray[np.integer], no_month: int, granules: IntArray | None) -> Units:
    """Group rows by granule and month.

    Args:
        months: (N,), counted from January 1970.
        no_month: the month of a row without a date.
        granules: (N,), as of `nenya.tables.granules.granules`; a row of none (-1) is a unit of its own, as every row is
            for None.
    """
    known = np.flatnonzero(months != no_month)
    month = months[known].astype(np.int64)
    granule = known if granules is None else granules[known]
    alone = granule < 0
    granule = np.where(alone, granule.max(initial=-1) + 1 + np.arange(len(known)), granule)
    first = int(month.min(initial=0))
    key = (month - first) * (int(granule.max(initial=0)) + 1) + granule
    keys, of_known = np.unique(key, return_inverse=True)
    of_row = np.full(len(months), -1, np.int32)
    of_row[known] = of_known
    unit_month = keys // (int(granule.max(initial=0)) + 1) + first
    return Units(of_row, unit_month, np.bincount(of_known, minlength=len(keys)).astype(np.int64))


@dataclass(frozen=True)
class Shares:
    """The share of selected rows at T times.

    Attributes:
        start: (T,) int64, first month of each time, counted from January 1970.
        selected: (T,) int64, selected rows.
        whole: (T,) int64, all rows.
        granules: (T,) int64, of all rows.
        share: (T,), NaN without rows.
        low: (T,), lower end of its 95 % interval.
        high: (T,), upper end.
    """

    start: IntArray
    selected: IntArray
    whole: IntArray
    granules: IntArray
    share: Float64Array
    low: Float64Array
    high: Float64Array


def shares_over_time(units: Units, selected: IntArray, step: int) -> Shares:
    """Return the share of selected rows in each month, quarter, year ... from the first to the last date.

    Rows of a granule are not independent. So the interval is that of Wilson (1927, JASA 22, 209) for as many rows as
    would have the variance of leaving out one granule at a time, fewer for few granules (Korn and Graubard 1998, Survey
    Methodology 24, 193). With G granules the variance is (G / (G - 1))^2 times that of the jackknife, which is too
    small for few of them. Where the granules do not differ (a share of 0 or 1), each counts as one row.

    Args:
        units: of all rows.
        selected: (U,), as of `Units.selected`.
        step: months of each time; times begin at multiples of it, such as in January.
    """
    if not len(units.month):
        nothing, none = np.zeros(0, np.int64), np.zeros(0)
        return Shares(nothing, nothing, nothing, nothing, none, none, none)
    place = units.month // step
    first = int(place[0])
    return _shares(units, selected, place - first, (first + np.arange(int(place[-1]) - first + 1)) * step)


def share_within(units: Units, selected: IntArray, first: int, last: int) -> Shares:
    """Return the share of selected rows from one month to another, both included: one time; see `shares_over_time`."""
    inside = slice(*np.searchsorted(units.month, (first, last + 1)).tolist())
    some = Units(units.of_row, units.month[inside], units.rows[inside])
    return _shares(some, selected[inside], np.zeros(len(some.month), np.int64), np.array([first]))


def _shares(units: Units, selected: IntArray, place: IntArray, start: IntArray) -> Shares:
    count = len(start)
    whole, chosen = (_sums(place, values, count) for values in (units.rows, selected))
    granules = np.bincount(place, minlength=count).astype(np.int64)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = chosen / whole
        away = ((selected - share[place] * units.rows) / (1 - units.rows / whole[place])) ** 2
        variance = granules / (granules - 1) * _sums(place, away, count) / whole**2
        low, high = wilson(share, effective_rows(share, variance, whole, granules))
    low, high = np.minimum(low, share), np.maximum(high, share)
    return Shares(start, chosen.astype(np.int64), whole.astype(np.int64), granules, share, low, high)


def _sums(place: IntArray, values: NDArray[np.number], count: int) -> Float64Array:
    return np.asarray(np.bincount(place, weights=values, minlength=count), np.float64)


def effective_rows(share: Float64Array, variance: Float64Array, rows: Float64Array, granules: IntArray) -> Float64Array:
    """Return the effective number of rows: a share of so many independent rows has the variance of one over granules.

    Args:
        share: (T,), of the rows.
        variance: (T,), of the share, over granules.
        rows: (T,), their number.
        granules: (T,), their number.

    Returns:
        (T,), at most the number of rows; of a single granule 1.
    """
    from scipy.stats import t

    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.where(variance > 0, np.minimum(share * (1 - share) / variance, rows), granules)
        few = (NORMAL / t.ppf(0.975, np.maximum(granules - 1, 1))) ** 2
    single = np.minimum(granules, 1).astype(np.float64)
    return np.where(granules > 1, np.maximum(found * few, 1.0), single)
