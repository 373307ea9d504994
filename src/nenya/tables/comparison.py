"""Selected rows compared with all: fractions and their ratio, by region, season, month and year; a trend.

Letters: N rows, n classes of rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nenya.defs import REGIONS, SEASONS

if TYPE_CHECKING:
    import pandas as pd

FloatArray = NDArray[np.floating]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

NO_DATE = np.iinfo(np.int64).min
"""The month of a row without a date."""
NORMAL = 1.959963984540054
"""Half the width of a 95 % interval of a normal distribution, in standard deviations."""
_BLOCK = 2**18


def compare(selected: Any, whole: Any, all_selected: float, all_whole: float) -> dict[str, Any]:
    """Return counts, fractions, and their ratio with its 95 % interval (Wilson 1927).

    Args:
        selected: selected rows of each class, (n,).
        whole: all rows of each class, (n,).
        all_selected: selected rows that could be of a class.
        all_whole: all rows that could be.

    Returns:
        selected, whole (n,) int64; share_selected, share_whole, ratio, ratio_low, ratio_high (n,) float64, NaN where
        the divisor is 0.
    """
    selected, whole = np.asarray(selected, np.int64), np.asarray(whole, np.int64)
    with np.errstate(divide="ignore", invalid="ignore"):
        n = np.float64(all_selected)
        share, of_whole = selected / n, whole / np.float64(all_whole)
        low, high = wilson(share, n)
        ends = {"ratio": share / of_whole, "ratio_low": low / of_whole, "ratio_high": high / of_whole}
    ends = {name: np.where(whole > 0, value, np.nan) for name, value in ends.items()}
    return {"selected": selected, "whole": whole, "share_selected": share, "share_whole": of_whole, **ends}


def wilson(share: Any, count: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the ends of the 95 % interval of shares of independent rows (Wilson 1927, JASA 22, 209).

    Args:
        share: (n,).
        count: number of rows of each, (n,) or one for all; not necessarily whole.
    """
    z = NORMAL
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return np.maximum(middle - half, 0), np.minimum(middle + half, 1)


def comparison(names: Sequence[Any], selected: Any, whole: Any, of: tuple[int, int], **more: Any) -> "pd.DataFrame":
    """Return a comparison as a table, with the name of each class and further columns."""
    import pandas as pd

    return pd.DataFrame({"name": [str(name) for name in names], **more, **compare(selected, whole, *of)})


def compare_regions(lon: FloatArray, lat: FloatArray, mask: BoolArray) -> "pd.DataFrame":
    """Compare selected rows with all by `nenya.defs.REGIONS`.

    Args:
        lon: (N,), degrees east from -180 up to 180; NaN if unknown.
        lat: (N,), degrees north.
        mask: (N,), the selected rows.

    Returns:
        A table as of `nenya.tables.statistics.SelectionStatistics`.
    """
    selected, whole = (np.zeros(len(REGIONS), np.int64) for _ in range(2))
    of = np.zeros(2, np.int64)
    for start in range(0, len(lon), _BLOCK):
        part = slice(start, start + _BLOCK)
        x, y, chosen = lon[part], lat[part], mask[part]
        known = np.isfinite(x) & np.isfinite(y)
        of += np.count_nonzero(known & chosen), np.count_nonzero(known)
        for i, region in enumerate(REGIONS.values()):
            inside = known & (x >= region.lon[0]) & (x < region.lon[1]) & (y >= region.lat[0]) & (y < region.lat[1])
            whole[i] += np.count_nonzero(inside)
            selected[i] += np.count_nonzero(inside & chosen)
    return comparison(list(REGIONS), selected, whole, (int(of[0]), int(of[1])))


def compare_dates(months: IntArray, mask: BoolArray) -> tuple["pd.DataFrame", "pd.DataFrame", "pd.DataFrame"]:
    """Compare selected rows with all by season, month and year.

    Args:
        months: (N,) int64, counted from January 1970; `NO_DATE` if unknown.
        mask: (N,), the selected rows.

    Returns:
        Tables as of `nenya.tables.statistics.SelectionStatistics`: seasons, months, years; empty if no date is
        known.
    """
    known = months != NO_DATE
    number = months[known]
    if not len(number):
        empty = comparison([], np.zeros(0), np.zeros(0), (0, 0))
        return empty, empty, empty
    first = int(number.min()) // 12 * 12
    span = (int(number.max()) // 12 + 1) * 12 - first
    whole = np.bincount(number - first, minlength=span).reshape(-1, 12)
    selected = np.bincount(number[mask[known]] - first, minlength=span).reshape(-1, 12)
    of = (int(selected.sum()), int(whole.sum()))
    seasonal = [[counts[:, np.array(m) - 1].sum() for m in SEASONS.values()] for counts in (selected, whole)]
    years = range(1970 + first // 12, 1970 + first // 12 + len(whole))
    return (
        comparison(list(SEASONS), seasonal[0], seasonal[1], of),
        comparison(range(1, 13), selected.sum(axis=0), whole.sum(axis=0), of),
        comparison(years, selected.sum(axis=1), whole.sum(axis=1), of),
    )


@dataclass(frozen=True)
class Trend:
    """A straight line fitted to the selected fraction of each year's rows.

    Attributes:
        slope: change of the fraction per year.
        error: standard error of the slope; at least the counting error.
        years: number of years fitted.
    """

    slope: float
    error: float
    years: int


def trend(years: "pd.DataFrame") -> Trend | None:
    """Fit a line to the selected fraction of each year's rows; None for fewer than three years with rows.

    Years are weighted by their number of rows. The error is the binomial one, widened by the scatter about the line if
    that is larger (Bevington & Robinson 2003, Data Reduction and Error Analysis, chapter 6).

    Args:
        years: of `nenya.tables.statistics.SelectionStatistics`.
    """
    known = years[years["whole"] > 0]
    if len(known) < 3:
        return None
    year = known["name"].to_numpy().astype(np.float64)
    n, chosen = known["whole"].to_numpy(np.float64), known["selected"].to_numpy(np.float64)
    share, mean = chosen / n, chosen.sum() / n.sum()
    away = year - np.average(year, weights=n)
    spread = (n * away**2).sum()
    slope = float((n * away * share).sum() / spread)
    residual = share - mean - slope * away
    scatter = (n * residual**2).sum() / (len(known) - 2)
    return Trend(slope, float(np.sqrt(max(mean * (1 - mean), scatter) / spread)), len(known))
