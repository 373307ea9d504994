"""Statistics of a selection compared with all rows, for the page: regions, seasons, years, trend, medians."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from nenya.portal.columns import Columns
from nenya.portal.state import BoolArray
from nenya.tables.comparison import Trend, compare_dates, compare_regions, trend
from nenya.tables.quantities import title_of

if TYPE_CHECKING:
    import pandas as pd

_NO_PLACES = ("global", "north")
_LOOKED_AT = 200_000  # rows of a median, at most


@dataclass(frozen=True)
class Summary:
    """Comparison of a selection with all rows.

    Attributes:
        comparisons: by region, season and year, as the tables of `nenya.tables.statistics.SelectionStatistics`,
            without those whose columns the table lacks.
        trend: of its share of each year's rows; None for fewer than three years.
        elsewhere: selected rows and all rows that have a position outside all regions.
        medians: title of a metric, its median in the selection and in all rows.
    """

    comparisons: dict[str, "pd.DataFrame"]
    trend: Trend | None
    elsewhere: tuple[int, int]
    medians: list[tuple[str, float, float]]


def summarise(columns: Columns, mask: BoolArray | None, tick: Callable[[float], None] = lambda _: None) -> Summary:
    """Compare a selection with all rows.

    Args:
        columns: of the table.
        mask: (N,), the selection; None for all rows.
        tick: called with the fraction done.
    """
    chosen = np.ones(columns.rows, bool) if mask is None else mask
    found: dict[str, pd.DataFrame] = {}
    elsewhere = (0, 0)
    if "lat" in columns and "lon" in columns:
        regions = compare_regions(columns.values("lon"), columns.values("lat"), chosen)
        found["region"] = boxes = regions[~regions["name"].isin(_NO_PLACES)]
        every = regions[regions["name"] == "global"].iloc[0]
        elsewhere = (int(every["selected"] - boxes["selected"].sum()), int(every["whole"] - boxes["whole"].sum()))
    tick(0.4)
    seasons, _, years = compare_dates(columns.months, chosen)
    found |= {"season": seasons, "year": years}
    tick(0.6)
    found = {name: table for name, table in found.items() if len(table)}
    return Summary(found, trend(years), elsewhere, medians(columns, mask))


def medians(columns: Columns, mask: BoolArray | None) -> list[tuple[str, float, float]]:
    """Return the median of each metric in the selection and in all rows, of at most 200,000 evenly spaced rows each."""
    chosen = np.arange(columns.rows) if mask is None else np.flatnonzero(mask)
    inside = chosen[:: max(1, len(chosen) // _LOOKED_AT)]
    result = []
    for name in columns.metrics():
        values = columns.values(name)
        parts = values[inside], values[:: max(1, len(values) // _LOOKED_AT)]
        mine, whole = (float(np.nanmedian(v)) if np.isfinite(v).any() else float("nan") for v in parts)
        result.append((title_of(name), mine, whole))
    return result
