"""Single cutouts as points of the UMAP and the map, where few are in view, and the card of the one pointed at."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from bokeh.models import ColumnDataSource, HoverTool, Scatter
from numpy.typing import NDArray

from nenya.portal import pictures, words
from nenya.portal.dataset import Dataset
from nenya.portal.pages import part
from nenya.portal.pictures import Extent
from nenya.portal.png import coloured
from nenya.portal.state import PLANES, Filter
from nenya.portal.theme import Theme, add_glyph

MOST_POINTS = 3000
"""Cutouts in view that are drawn one by one; more are counted in cells."""
_SIZES = (5.0, 11.0)  # pixels of the screen, for many and for few points
_THUMBNAIL = 128  # pixels of the screen, about

_BLOCK = 2**17  # rows that are compared at once

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class Near:
    """The selected cutouts within an extent.

    Attributes:
        x: (n,), within the extent also where longitudes go around.
        y: (n,).
        rows: (n,), of the table.
        values: (n,), of the colours: a metric, or codes of classes; NaN where missing; empty for counts.
    """

    x: FloatArray
    y: FloatArray
    rows: NDArray[np.int64]
    values: FloatArray


def points_in(
    dataset: Dataset, plane: str, extent: Extent, filters: tuple[Filter, ...], colour: str, picked: NDArray[Any] | None
) -> Near | None:
    """Return the selected cutouts within an extent; None if there are too many for points.

    Args:
        dataset: with the cutouts.
        plane: `umap` or `map`.
        extent: of the plane.
        filters: of the selection.
        colour: a metric, a column of classes, or `count`.
        picked: the selected rows: their numbers, or a mask (N,); None for all.
    """
    columns = dataset.columns

    def make() -> Near | None:
        x, y = (columns.values(axis) for axis in PLANES[plane])
        rows = _within(x, y, extent, picked, around=plane == "map")
        if rows is None:
            return None
        values: FloatArray = np.empty(0, np.float32)
        if colour != "count":
            classes = columns.classes(colour)
            of_rows = columns.values(colour)[rows] if classes is None else classes.codes[rows].astype(np.float32)
            values = np.where(of_rows < 0, np.nan, of_rows).astype(np.float32) if classes is not None else of_rows
        across = _from_left(x[rows], extent) if plane == "map" else x[rows]
        return Near(across, y[rows], rows, values)

    return dataset.shared.get(("points", plane, extent, filters, colour), make)


def _within(
    x: FloatArray, y: FloatArray, extent: Extent, picked: NDArray[Any] | None, *, around: bool
) -> NDArray[np.int64] | None:
    """Return the picked rows within an extent, rising if `picked` is; None as soon as they are too many for points."""
    left, right, low, high = extent
    numbers = None if picked is None or picked.dtype == bool else picked
    found, count = [np.empty(0, np.int64)], 0
    for start in range(0, len(x) if numbers is None else len(numbers), _BLOCK):
        part: Any = slice(start, start + _BLOCK) if numbers is None else numbers[start : start + _BLOCK]
        across, up = _from_left(x[part], extent) if around else x[part], y[part]
        inside = (across >= left) & (across <= right) & (up >= low) & (up <= high)
        if numbers is None and picked is not None:
            inside &= picked[part]
        own = np.flatnonzero(inside)
        found.append(own + start if numbers is None else part[own].astype(np.int64))
        count += len(own)
        if count > MOST_POINTS:
            return None
    return np.concatenate(found)


def _from_left(lon: FloatArray, extent: Extent) -> FloatArray:
    """Return longitudes in the 360 degrees from the left limit on."""
    return np.asarray(np.mod(lon - np.float32(extent[0]), np.float32(360)) + np.float32(extent[0]), np.float32)


class Points:
    """The points of a plane, and the mark of the cutout that is pointed at in any panel.

    Args:
        plot: the figure.
        name: of the plane.
        theme: colours.
    """

    def __init__(self, plot: Any, name: str, theme: Theme) -> None:
        self.theme = theme
        self.source = ColumnDataSource({"x": [], "y": [], "row": [], "colour": [], "alpha": []}, name=f"points {name}")
        self.glyph = Scatter(
            size=_SIZES[0], fill_color="colour", fill_alpha="alpha", line_color=theme.paper, line_width=0.5
        )
        cells = add_glyph(plot, self.source, self.glyph)
        plot.add_tools(HoverTool(renderers=[cells], tooltips=None, visible=False))  # it tells the page's script
        self.pointed = ColumnDataSource({"x": [], "y": []})
        for width, colour in ((5, theme.paper), (2.5, theme.ink)):
            ring = Scatter(marker="circle", size=16, line_width=width, line_color=colour, fill_color=None)
            add_glyph(plot, self.pointed, ring)

    def show(
        self,
        near: Near | None,
        palette: Sequence[str],
        ends: tuple[float, float],
        *,
        log: bool = False,
        pale: FloatArray | None = None,
    ) -> None:
        """Show points, or none.

        Args:
            near: the points.
            palette: colours of their values from the first end to the second.
            ends: values of the first and the last colour.
            log: whether the colours go by the logarithm.
            pale: (n,), how pale each point is, from 0 to 1; None for none.
        """
        if near is None:
            if len(self.source.data["x"]):
                self.source.data = {"x": [], "y": [], "row": [], "colour": [], "alpha": []}
            return
        colours = np.full(len(near.rows), self.theme.chosen, object)
        if len(near.values):
            values, (low, high) = near.values, ends
            if log:
                with np.errstate(divide="ignore", invalid="ignore"):
                    values, low, high = np.log(values), np.log(low), np.log(high)
            share = (values - low) / (high - low)
            known = np.isfinite(share)
            place = np.clip(np.nan_to_num(share) * len(palette), 0, len(palette) - 1).astype(int)
            colours = np.where(known, np.asarray(palette, object)[place], self.theme.rest)
        size = float(np.clip(_SIZES[1] * (40 / max(1, len(near.rows))) ** 0.25, *_SIZES))
        if self.glyph.size != size:
            self.glyph.size = size
        order = np.argsort(np.where(colours == self.theme.rest, 0, 1), kind="stable")
        self.source.data = {
            "x": near.x[order],
            "y": near.y[order],
            "row": near.rows[order].astype(np.int32),
            "colour": colours[order].tolist(),
            "alpha": (np.ones(len(order)) if pale is None else 1 - pale[order]).astype(np.float32),
        }

    def point_at(self, x: float | None, y: float | None) -> None:
        """Mark the cutout that is pointed at; None for none."""
        known = x is not None and y is not None and np.isfinite(x) and np.isfinite(y)
        self.pointed.data = {"x": [x], "y": [y]} if known else {"x": [], "y": []}


def card(dataset: Dataset, row: int) -> str:
    """Return the thumbnail of a cutout, if there is one, and the facts on it."""
    values = dataset.columns.row(row)
    picture, missing = "", dataset.cutouts is not None
    if dataset.cutouts is not None:
        image = dataset.cutouts.of(np.array([row]))[0]
        if image is not None:
            step = max(1, len(image) // _THUMBNAIL)
            shown = image[::-step, ::step]
            zoom = max(1, _THUMBNAIL // len(shown))
            png = coloured(np.asarray(shown, np.float32), pictures.colour_range([image]), zoom)
            picture, missing = f"data:image/png;base64,{base64.b64encode(png).decode()}", False
    return part("card", picture=picture, missing=missing, row=f"{row:,}", lines=words.card_lines(values))
