"""Statistics of a selection against the whole: regions, seasons, years."""

from dataclasses import dataclass

import numpy as np

from nenya.defs import REGIONS, SEASONS
from nenya.portal.columns import Columns, title_of
from nenya.portal.state import BoolArray

_NO_PLACES = ("global", "north")


@dataclass(frozen=True)
class Line:
    """One line of a comparison.

    Attributes:
        name: of the region, season or year.
        selected: rows of the selection there.
        total: rows of the whole there.
        ratio: share of the selection there, over the share of the whole: above 1 is more than by chance.
    """

    name: str
    selected: int
    total: int
    ratio: float


def compare(columns: Columns, mask: BoolArray | None) -> dict[str, list[Line]]:
    """Count a selection and the whole by region, season and year.

    Args:
        columns: of the table.
        mask: (N,), the selection; None for all rows.

    Returns:
        Lines by the name of the comparison; those that the table has no columns for are left out.
    """
    mask = np.ones(columns.rows, bool) if mask is None else mask
    share = max(1, int(mask.sum())) / columns.rows

    def line(name: str, inside: BoolArray) -> Line:
        selected, total = int(np.count_nonzero(inside & mask)), int(np.count_nonzero(inside))
        return Line(name, selected, total, selected / total / share if total else float("nan"))

    found: dict[str, list[Line]] = {}
    if "lat" in columns and "lon" in columns:
        lat, lon = columns.values("lat"), columns.values("lon")
        found["region"] = [
            line(name, (lon >= r.lon[0]) & (lon < r.lon[1]) & (lat >= r.lat[0]) & (lat < r.lat[1]))
            for name, r in REGIONS.items()
            if name not in _NO_PLACES
        ]
    if "month" in columns:
        month = columns.values("month")
        found["season"] = [line(name, np.isin(month, which)) for name, which in SEASONS.items()]
        year = columns.values("year")
        known = year[np.isfinite(year)]
        found["year"] = [line(str(int(y)), year == y) for y in np.unique(known)] if len(known) else []
    return {name: lines for name, lines in found.items() if lines}


def trend(lines: list[Line], whole: int) -> str:
    """Say how the selection's share of each year's rows changes with the years: slope and its standard error."""
    years = [line for line in lines if line.total * 100 > whole / max(1, len(lines))]
    if len(years) < 3:
        return "trend: fewer than three years"
    x = np.array([float(line.name) for line in years])
    y = np.array([100 * line.selected / line.total for line in years])
    design = np.column_stack([x - x.mean(), np.ones(len(x))])
    (slope, _), residual, *_ = np.linalg.lstsq(design, y, rcond=None)
    error = float(np.sqrt(residual[0] / (len(x) - 2) / (design[:, 0] ** 2).sum())) if len(residual) else 0.0
    return f"trend of its share of all rows: {slope:+.3g} +- {error:.2g} percentage points a year"


def medians(columns: Columns, mask: BoolArray | None, most: int = 200_000) -> list[tuple[str, float, float]]:
    """Return the median of each metric in the selection and in the whole, of at most `most` rows spread over each."""
    chosen = np.arange(columns.rows) if mask is None else np.flatnonzero(mask)
    inside = chosen[:: max(1, len(chosen) // most)]
    result = []
    for name in columns.metrics():
        values = columns.values(name)
        parts = values[inside], values[:: max(1, len(values) // most)]
        mine, whole = (float(np.nanmedian(v)) if np.isfinite(v).any() else float("nan") for v in parts)
        result.append((title_of(name), mine, whole))
    return result
