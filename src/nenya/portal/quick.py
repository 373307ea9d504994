"""Orders by name and filters in one click: the rarest first, the clearest, without the cloudy ones."""

import numpy as np

from nenya.errors import InputFileError
from nenya.portal.columns import Columns
from nenya.portal.dataset import Dataset
from nenya.portal.state import Range, make_range
from nenya.tables.quantities import MASKED_AT_MOST, title_of

CLEAR = 0.95
"""Share of clear pixels below which a cutout is cloudy."""

_RAREST = (("rarity", True), ("rarity_percentile", True), ("latent_LL", False), ("LL", False))
"""Columns of rarity, the best one first, and whether a large value is rare."""
_SHARES = ("clear_fraction", "clear")


def rarest_order(columns: Columns) -> tuple[str, bool] | None:
    """Return the order in which the rarest cutouts come first: a column, and whether high values do."""
    metrics = columns.metrics()
    return next(((name, high) for name, high in _RAREST if name in metrics), None)


def clear_column(columns: Columns) -> tuple[str, bool] | None:
    """Return the column of clear shares, and whether it holds the masked ones, as in tables of the first nenya."""
    name = next((name for name in _SHARES if name in columns.metrics()), None)
    if name is None:
        return None
    return name, name == "clear_fraction" and float(np.fmax.reduce(columns.values(name))) <= MASKED_AT_MOST


def orders_of(columns: Columns) -> dict[str, tuple[str, bool]]:
    """Return the orders of the gallery and the table by title: a metric, and whether high values come first."""
    named: dict[tuple[str, bool], str] = {}
    if (rarest := rarest_order(columns)) is not None:
        named[rarest] = "rarest first"
    if (clear := clear_column(columns)) is not None:
        named[clear[0], not clear[1]] = "clearest first"
    if "density_ratio" in columns.metrics():
        named["density_ratio", True] = "rarest in the other set first"
    found = {title: order for order, title in named.items()}
    for name in columns.metrics():
        for order, where in (((name, True), "high"), ((name, False), "low")):
            if order not in named:
                found[f"{title_of(name)}, {where} first"] = order
    return found


def without_cloudy(columns: Columns) -> Range:
    """Return the filter of the clear cutouts.

    Raises:
        InputFileError: The table does not say which ones are clear, or none or all are.
    """
    found = clear_column(columns)
    if found is None:
        raise InputFileError("the table has no column clear_fraction, so that it is unknown which cutouts are cloudy")
    name, masked = found
    values = columns.values(name)
    item = (
        make_range(name, 0.0, 1 - CLEAR) if masked else make_range(name, CLEAR, max(1.0, float(np.fmax.reduce(values))))
    )
    chosen = item.mask(columns)
    if not chosen.any():
        best = 1 - float(np.fmin.reduce(values)) if masked else float(np.fmax.reduce(values))
        raise InputFileError(
            f"no cutout is at least {CLEAR:.0%} clear; the clearest is {best:.1%}: set a range instead"
        )
    if chosen.all():
        raise InputFileError(f"all cutouts are at least {CLEAR:.0%} clear: there is nothing to hide")
    return item


def quick_actions(dataset: Dataset) -> list[tuple[str, str, str]]:
    """Return action, label and explanation of each button for what the table knows."""
    columns, found = dataset.columns, []
    if (rarest := rarest_order(columns)) is not None:
        found.append(("quick:rarest", "Rarest first", f"order by {title_of(rarest[0])}"))
    if clear_column(columns) is not None:
        found.append(("quick:clear", "Hide cloudy", f"only cutouts that are at least {CLEAR:.0%} clear"))
    return found
