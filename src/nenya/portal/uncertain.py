"""What the portal shows of the known error of masked cutouts: error bars, uncertain places, a first filter."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from bokeh.models import ColumnDataSource, Ellipse, LinearColorMapper
from bokeh.models import Image as ImageGlyph
from numpy.typing import NDArray

from nenya.errors import OptionError
from nenya.latents.order import LOW, intervals, sure
from nenya.latents.spread import SPREAD
from nenya.portal.pictures import Extent
from nenya.portal.state import Filter, View, make_range
from nenya.portal.theme import Theme, add_glyph, image_source

if TYPE_CHECKING:
    from nenya.portal.columns import Columns
    from nenya.portal.views import Plane

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.integer]

PALE = 0.1
"""Spread of a place that is as pale as it gets, as a fraction of the UMAP's width."""

_STEPS, _PALEST = 8, 0.8


class Uncertain:
    """Error bars and pale places on the UMAP; nothing for a table without `umap_spread`, or without a UMAP.

    The error bar of a cutout is a circle around its place: the root mean square distance of the places that it may have
    without its mask. Places are paler, the larger the mean error bar of their cutouts.

    Args:
        plane: the UMAP, if the page has it.
        columns: of the table.
        theme: colours.

    Attributes:
        known: whether anything is shown.
        widest: error bar of a place that is as pale as it gets.
        bar: error bar of the primary cutout.
        bars: those of its neighbours.
        veil: the pale places.
    """

    def __init__(self, plane: "Plane | None", columns: "Columns", theme: Theme) -> None:
        self.columns = columns
        self.known = plane is not None and SPREAD in columns and columns.is_number(SPREAD)
        empty: dict[str, Any] = {"x": [], "y": [], "size": []}
        self.widest = 1.0
        self.bar, self.bars, self.veil = ColumnDataSource(empty), ColumnDataSource(empty), image_source()
        if plane is None or not self.known:
            return
        shades = [f"{theme.paper}{round(255 * _PALEST * step / _STEPS):02x}" for step in range(_STEPS + 1)]
        left, right = plane.home[:2]
        self.widest = PALE * (right - left)
        colours = LinearColorMapper(shades, low=0, high=self.widest, nan_color="rgba(0,0,0,0)")
        drawn = [add_glyph(plane.plot, self.veil, ImageGlyph(color_mapper=colours))]
        for source, width, dash in ((self.bars, 1.5, "dotted"), (self.bar, 2.5, "dashed")):
            for wide, pattern, colour in ((width + 2, "solid", theme.paper), (width, dash, theme.mark)):  # a halo first
                line = {"line_width": wide, "line_dash": pattern, "line_color": colour}
                circle = Ellipse(width="size", height="size", fill_color=None, **line)
                drawn.append(add_glyph(plane.plot, source, circle))
        others = [one for one in plane.plot.renderers if one not in drawn]
        behind = max(others.index(cell) for cell in plane.colours.cells) + 1
        plane.plot.renderers = [*others[:behind], *drawn, *others[behind:]]

    def show_row(self, row: int | None) -> None:
        """Draw the error bar of the primary cutout; None removes it."""
        self._circles(self.bar, np.empty(0, np.int64) if row is None else np.array([row]))

    def show_near(self, rows: IntArray) -> None:
        """Draw the error bars of neighbours."""
        self._circles(self.bars, rows)

    def view(self, plane: str, view: View) -> View | None:
        """Return the view with the mean error bar of each cell as its raster; None if no place is pale."""
        return replace(view, colour=SPREAD) if self.known and plane == "umap" and view.colour != SPREAD else None

    def paleness(self, plane: str, rows: IntArray | None) -> FloatArray | None:
        """Return how pale each of some cutouts is, (n,) from 0 to 1, as places are; None where nothing is known."""
        if not self.known or plane != "umap" or rows is None:
            return None
        spread = np.nan_to_num(self.columns.values(SPREAD)[rows]) / self.widest
        return np.asarray(_PALEST * np.minimum(spread, 1), np.float32)

    def pale(self, spread: FloatArray | None, extent: Extent) -> None:
        """Make places pale.

        Args:
            spread: (rows, columns) mean error bar in each cell, NaN in empty ones; None for none.
            extent: of all cells.
        """
        left, right, low, high = extent
        shown = np.full((1, 1), np.nan, np.float32) if spread is None else spread
        self.veil.data = {"image": [shown], "x": [left], "y": [low], "dw": [right - left], "dh": [high - low]}

    def _circles(self, source: ColumnDataSource, rows: IntArray) -> None:
        if not self.known:
            return
        x, y, spread = (self.columns.values(name)[rows] for name in ("US0", "US1", SPREAD))
        wide = np.isfinite(x) & np.isfinite(y) & (spread > 0)
        source.data = {"x": x[wide].tolist(), "y": y[wide].tolist(), "size": (2 * spread[wide]).tolist()}


def order_note(columns: "Columns", rows: IntArray, cosine: NDArray[np.float64], row: int | None) -> str:
    """Return a clause on neighbours in uncertain order; "" if the order is certain, or nothing is known of it.

    Args:
        columns: of the table.
        rows: (n,), the neighbours.
        cosine: (n,), of their latents and the primary one.
        row: the primary cutout; None for a new image: nothing is known of it.
    """
    if row is None or LOW not in columns or not columns.is_number(LOW):
        return ""
    low = columns.values(LOW)
    unsure = int((~sure(*intervals(cosine, low[rows].astype(np.float64), float(low[row])))).sum())
    return f"; the order of {unsure} of them is not sure, as cutouts are masked" if unsure else ""


def first_filters(columns: "Columns", least: float | None, *, latents: bool) -> tuple[Filter, ...]:
    """Return the filter of `least_cosine=`, with which pages begin; none without it.

    Args:
        columns: of the table.
        least: the option.
        latents: whether there are latents, to which it applies anyway.

    Raises:
        OptionError: It has no effect, or leaves no row.
    """
    if least is None:
        return ()
    if LOW not in columns or not columns.is_number(LOW):
        if latents:
            return ()
        raise OptionError(
            f"least_cosine={least:g}: the table has no column {LOW}, which nenya embed writes for latents with a "
            "calibration; leave least_cosine out"
        )
    found = make_range(LOW, least, 1.0)
    if not found.mask(columns).any():
        raise OptionError(f"least_cosine={least:g} leaves none of {columns.rows} rows: give a smaller one")
    return (found,)
