"""Figures of the portal: UMAP, map, histograms."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from bokeh.models import (
    BasicTicker,
    BoxAnnotation,
    BoxSelectTool,
    ColumnDataSource,
    HoverTool,
    LassoSelectTool,
    LinearColorMapper,
    NumeralTickFormatter,
    PanTool,
    Patch,
    Patches,
    Quad,
    Range1d,
    ResetTool,
    Scatter,
    Step,
    TapTool,
    WheelZoomTool,
)
from bokeh.models import Image as ImageGlyph
from bokeh.plotting import figure
from numpy.typing import NDArray

from nenya.portal.bars import CellColours
from nenya.portal.columns import Binned
from nenya.portal.pictures import Extent
from nenya.portal.points import Near, Points
from nenya.portal.state import Box, Filter, Lasso, Range
from nenya.portal.theme import Theme, add_glyph, image_source, name_glyph, paint, plain, size_of
from nenya.tables.grids import coastlines
from nenya.tables.quantities import title_of

FloatArray = NDArray[np.float32]


def mean_of(title: str, scale: str = "linear") -> str:
    """Return what the mean of a quantity is called; the mean of a mean is called one once, that of ratios geometric."""
    if scale == "ratio":
        return f"geometric mean of {title}"
    return title if title.startswith("mean ") else f"mean {title}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.2g} %"


@dataclass
class Plane:
    """The UMAP or the map: density or mean in cells, the primary image, the selection's outline.

    Args:
        name: `umap` or `map`.
        home: the initial extent.
        theme: colours.

    Attributes:
        plot: the Bokeh figure.
    """

    name: str
    home: Extent
    theme: Theme
    plot: Any = field(init=False)

    def __post_init__(self) -> None:
        theme, is_map = self.theme, self.name == "map"
        left, right, low, high = self.home
        self.plot = plot = figure(
            name=self.name,
            x_range=Range1d(left, right, min_interval=(right - left) / 500),
            y_range=Range1d(low, high, min_interval=(high - low) / 500),
            x_axis_label=title_of("lon" if is_map else "US0"),
            y_axis_label=title_of("lat" if is_map else "US1"),
            sizing_mode="stretch_both",
            tools=[],
            min_width=120,
            min_height=120,
            output_backend="canvas",
        )
        box, wheel = BoxSelectTool(description="select a box"), WheelZoomTool(description="zoom")
        reset = ResetTool(description="full view")
        lasso = LassoSelectTool(description="select with a lasso", continuous=False)
        plot.add_tools(box, lasso, PanTool(description="move"), wheel, reset, TapTool(visible=False))
        plot.toolbar.active_drag, plot.toolbar.active_scroll = box, wheel
        self.back, self.front = image_source(), image_source()
        self.front.data["count"], self.front.data["what"] = self.front.data["image"], [""]
        self.grey = LinearColorMapper(theme.greys, low=0, high=1, nan_color="rgba(0,0,0,0)")
        if is_map:
            self._draw_land()
        add_glyph(plot, self.back, ImageGlyph(color_mapper=self.grey), level="underlay")
        self.colours = CellColours(plot, self.front, theme)
        self.hover = HoverTool(
            renderers=self.colours.cells, tooltips="cutouts here: @count", attachment="right", visible=False
        )
        plot.add_tools(self.hover)
        self._title, self._wanted = "", self.home
        self._back: tuple[FloatArray | None, dict[str, list[float]]] | None = None
        self.points = Points(plot, self.name, theme)
        self.outline = ColumnDataSource({"xs": [], "ys": []})
        add_glyph(
            plot, self.outline, Patches(fill_alpha=0.06, fill_color=theme.mark, line_color=theme.mark, line_width=2)
        )
        self.near = ColumnDataSource({"x": [], "y": []})
        self.mark = ColumnDataSource({"x": [], "y": []})
        for source, marker, size, widths in ((self.near, "circle", 9, (3, 1.5)), (self.mark, "cross", 20, (6, 3))):
            for width, colour in zip(widths, (theme.paper, theme.mark), strict=True):  # a halo, then the mark
                glyph = Scatter(marker=marker, size=size, line_width=width, line_color=colour, fill_color=None)
                add_glyph(plot, source, glyph)
        self.names = ColumnDataSource({"x": [], "y": [], "name": []})
        if not is_map:
            add_glyph(plot, self.names, name_glyph(theme))
        paint(plot, theme)

    def _draw_land(self) -> None:
        hole = np.full((1, 2), np.nan, np.float32)
        rings = [ring + np.array([turn, 0], np.float32) for turn in (-360, 0, 360) for ring in coastlines()]
        points = np.concatenate([part for ring in rings for part in (ring, hole)])
        source = ColumnDataSource({"x": points[:, 0], "y": points[:, 1]})
        add_glyph(self.plot, source, Patch(fill_color=self.theme.land, line_color=self.theme.rest), level="underlay")
        self.plot.yaxis.bounds = (-90, 90)
        self.plot.xaxis.name = "longitudes"  # set by a script of the page
        self.plot.x_range.bounds, self.plot.y_range.bounds = (-540, 540), (-360, 360)

    @property
    def extent(self) -> Extent:
        """The current extent."""
        x, y = self.plot.x_range, self.plot.y_range
        return (float(x.start), float(x.end), float(y.start), float(y.end))

    @property
    def is_whole(self) -> bool:
        """Whether the initial extent is shown."""
        return bool(np.allclose(self.extent, fitted(self.home, size_of(self.plot)), rtol=1e-6, atol=1e-9))

    def follow(self, theme: Theme) -> None:
        """Use the colours of another theme for what is drawn from now on."""
        self.theme = self.points.theme = self.colours.theme = theme

    def nudge(self, key: str) -> bool:
        """Move by a fifth of the figure (left, right, up, down), or zoom (in, out); return whether the key is known."""
        left, right, low, high = self.extent
        wide, tall = right - left, high - low
        across, up = {"left": (-0.2, 0.0), "right": (0.2, 0.0), "up": (0.0, 0.2), "down": (0.0, -0.2)}.get(key, (0, 0))
        size = {"in": -0.1, "out": 0.125}.get(key, 0.0)  # of each side
        if not (across or up or size):
            return False
        left, right = left + (across - size) * wide, right + (across + size) * wide
        low, high = low + (up - size) * tall, high + (up + size) * tall
        limit = 540.0 if self.name == "map" else np.inf
        if right - left > 2 * limit or right - left < (self.home[1] - self.home[0]) / 500:
            return True
        shift = max(-limit - left, 0.0) - max(right - limit, 0.0)
        self.show_extent((left + shift, right + shift, low, high))
        return True

    def note_extent(self) -> None:
        """Keep the current extent when the size of the figure changes, as the user has chosen it."""
        self._wanted = self.extent

    def show_extent(self, extent: Extent | None) -> None:
        """Show an extent; None for the initial one."""
        self._wanted = extent or self.home
        self.fit()

    def fit(self) -> bool:
        """Give both axes one scale, around the extent that is wanted; return whether that changes the ranges."""
        before = self.extent
        left, right, low, high = fitted(self._wanted, size_of(self.plot))
        self.plot.x_range.update(start=left, end=right)
        self.plot.y_range.update(start=low, end=high)
        return self.extent != before

    def show(
        self,
        whole: FloatArray | None,
        chosen: FloatArray,
        extent: Extent,
        title: str,
        classes: Sequence[str] = (),
        near: Near | None = None,
        scale: str = "linear",
        pale: FloatArray | None = None,
    ) -> None:
        """Show rasters of an extent.

        Args:
            whole: counts of all rows, in the background; None for none.
            chosen: counts of the selected rows, or means of a metric.
            extent: of both.
            title: the metric; empty for counts.
            classes: colours of classes; `chosen` holds their codes.
            near: the selected cutouts one by one, if they are few: then points are shown instead of cells.
            scale: of the metric, see `nenya.portal.columns.Columns.scale`.
            pale: how pale each of the cutouts is, from 0 to 1; None for none.
        """
        known = chosen[np.isfinite(chosen)]
        if classes:
            self.colours.by_categories(classes)
        elif title:
            low, high = np.percentile(known, (2, 98)) if len(known) else (0.0, 1.0)
            self.colours.by_means(float(low), float(high), title, scale)
        else:
            self.colours.by_counts(float(known.max()) if len(known) else 1.0)
        mapper = self.colours.mapper
        ends = (float(mapper.low), float(mapper.high))
        self.points.show(near, mapper.palette, ends, log=self.colours.is_log, pale=pale)
        self.colours.show_cells(visible=near is None)
        self._hover_over("" if classes else title)
        self.hover.renderers = [] if classes or near is not None else self.colours.cells
        left, right, bottom, top = extent
        place = {"x": [left], "y": [bottom], "dw": [right - left], "dh": [top - bottom]}
        self._show_back(whole, place)
        counted = np.nan_to_num(chosen) if not title and near is None else np.zeros((1, 1), np.float32)
        what = {"count": [counted], "what": [mean_of(title, scale)]}
        self.front.data = {"image": [chosen], **what, **place}

    def _show_back(self, whole: FloatArray | None, place: dict[str, list[float]]) -> None:
        """Show the counts of all rows behind those of the selection, unless the page has them already."""
        if self._back is not None and self._back[0] is whole and self._back[1] == place:
            return
        self._back = (whole, place)
        grey = np.full((1, 1), np.nan, np.float32) if whole is None else np.log10(whole)
        if whole is not None:
            self.grey.update(low=0.0, high=float(max(1.0, np.nanmax(grey))) if np.isfinite(grey).any() else 1.0)
        self.back.data = {"image": [grey], **place}

    @property
    def bar(self) -> Any:
        """The colour bar that is shown; None if there is none."""
        return self.colours.bar

    def _hover_over(self, title: str) -> None:
        """Set the tooltip, if it changes, as new models are slow."""
        if title == self._title:
            return
        self._title = title
        # The tooltip is HTML, in which Bokeh escapes data.
        self.hover.tooltips = "@what: @image{0.000}" if title else "cutouts here: @count"

    def name_at(self, x: Sequence[float], y: Sequence[float], names: Sequence[str]) -> None:
        """Write names at positions."""
        self.names.data = {"x": list(x), "y": list(y), "name": list(names)}

    def outline_of(self, filters: Sequence[Filter]) -> None:
        """Draw the outline of the active box or lasso."""
        xs, ys = [], []
        for item in filters:
            if isinstance(item, Box) and item.plane == self.name:
                (x0, x1), (y0, y1) = item.x, item.y
                xs.append([x0, x1, x1, x0])
                ys.append([y0, y0, y1, y1])
            elif isinstance(item, Lasso) and item.plane == self.name:
                xs.append([x for x, _ in item.points])
                ys.append([y for _, y in item.points])
        self.outline.data = {"xs": xs, "ys": ys}

    def mark_at(self, x: float | None, y: float | None) -> None:
        """Mark the position of the primary image; None removes the mark."""
        known = x is not None and y is not None and np.isfinite(x) and np.isfinite(y)
        self.mark.data = {"x": [x], "y": [y]} if known else {"x": [], "y": []}

    def mark_near(self, x: FloatArray, y: FloatArray) -> None:
        """Mark the positions of the neighbours."""
        self.near.data = {"x": x.tolist(), "y": y.tolist()}


def fitted(extent: Extent, size: tuple[int, int]) -> Extent:
    """Return the smallest extent around a given one that fills a figure at one scale.

    Args:
        extent: to be shown.
        size: width and height of the figure, pixels; 0 if unknown, which leaves the extent unchanged.
    """
    left, right, low, high = extent
    wide, tall = size
    if wide < 20 or tall < 20:
        return extent
    scale = max((right - left) / wide, (high - low) / tall)
    across, up = (scale * wide - (right - left)) / 2, (scale * tall - (high - low)) / 2
    return left - across, right + across, low - up, high + up


class Histogram:
    """A histogram of the selection in front of all rows, both as fractions of their totals.

    Args:
        binned: the column.
        theme: colours.

    Attributes:
        plot: the Bokeh figure.
    """

    def __init__(self, binned: Binned, theme: Theme) -> None:
        self.binned = binned
        edges = binned.edges
        last = int(np.flatnonzero(binned.counts)[-1]) + 1 if binned.counts.any() else len(edges) - 1
        self.used = last if binned.whole else len(edges) - 1
        ends = (float(edges[0]), float(edges[self.used]))
        self.plot = plot = figure(
            name=f"hist_{binned.name}",
            height=104,
            sizing_mode="stretch_width",
            x_range=Range1d(*ends),
            x_axis_type="log" if binned.log else "linear",
            x_axis_label=plain(title_of(binned.name)),
            tools=[],
            toolbar_location=None,
        )
        plot.yaxis.ticker = BasicTicker(desired_num_ticks=2, num_minor_ticks=0)
        plot.yaxis.formatter = NumeralTickFormatter(format="0.[0] %")
        plot.ygrid.visible = False
        box = BoxSelectTool(dimensions="width", description="select a range")
        plot.add_tools(box, TapTool())
        plot.toolbar.active_drag = box
        share = self._share(binned.counts)
        self.source = ColumnDataSource(
            {"left": edges[: self.used], "right": edges[1 : self.used + 1], "whole": share, "chosen": share}
        )
        for top, colour, alpha in (("whole", theme.rest, 1.0), ("chosen", theme.chosen, 0.75)):
            glyph = Quad(top=top, bottom=0, fill_color=colour, fill_alpha=alpha, line_color=None)
            add_glyph(plot, self.source, glyph)
        self.range = BoxAnnotation(
            left=ends[0], right=ends[1], fill_color=theme.mark, fill_alpha=0.08, line_color=theme.mark, visible=False,
            editable=True, movable="x", resizable="x", name=f"brush_{binned.name}",
        )  # fmt: skip
        plot.add_layout(self.range)
        paint(plot, theme)
        plot.y_range.start = 0
        self.pair: ColumnDataSource | None = None
        self.moved: tuple[float, float] | None = None
        self.is_setting = False
        self._say_tallest(share, share)

    def _say_tallest(self, *shares: NDArray[np.float64]) -> None:
        """State the height of the tallest bar in the label."""
        tallest = max((float(share.max(initial=0)) for share in shares), default=0.0)
        self.plot.xaxis.axis_label = f"{plain(title_of(self.binned.name))}; bars up to {_percent(tallest)}"

    def _share(self, counts: NDArray[np.int64]) -> NDArray[np.float64]:
        return np.asarray(counts[: self.used] / max(1, counts.sum()))

    def show(self, counts: NDArray[np.int64], filters: Sequence[Filter]) -> None:
        """Show the counts of the selection and the active range."""
        chosen = self._share(counts)
        self.source.data = {**self.source.data, "chosen": chosen}
        self._say_tallest(chosen, self.source.data["whole"])
        mine = next((f for f in filters if isinstance(f, Range) and f.column == self.binned.name), None)
        self.range.visible = mine is not None and mine.low <= mine.high
        if mine is not None and mine.low <= mine.high and (mine.low, mine.high) != self.moved:
            self.is_setting = True
            self.range.update(left=mine.low, right=mine.high)
            self.is_setting = False
        self.moved = None

    def show_pair(self, counts: Sequence[NDArray[np.int64]], colours: Sequence[str]) -> None:
        """Show two selections as lines in place of the present one; none removes them.

        Args:
            counts: of A and of B in the bins; empty for none.
            colours: of A and of B.
        """
        if self.pair is None and not len(counts):
            return
        edges = self.source.data["left"], self.source.data["right"]
        if self.pair is None:
            self.pair = ColumnDataSource({"x": [], "a": [], "b": []}, name=f"pair {self.binned.name}")
            for name, colour in zip("ab", colours, strict=False):
                add_glyph(self.plot, self.pair, Step(x="x", y=name, mode="after", line_color=colour, line_width=2))
        if not len(counts):
            self.pair.data = {"x": [], "a": [], "b": []}
            return
        shares = [self._share(one) for one in counts]
        ends = [np.concatenate([share, share[-1:]]) for share in shares]
        self.pair.data = {"x": np.concatenate([edges[0], edges[1][-1:]]), "a": ends[0], "b": ends[1]}
        self.source.data = {**self.source.data, "chosen": np.zeros_like(shares[0])}
        self._say_tallest(*shares, self.source.data["whole"])

    def ends(self, low: float, high: float, values: FloatArray) -> tuple[float, float]:
        """Return the range of values of a brush: integers for integer columns, and unlimited beyond the outer edges."""
        low, high = min(low, high), max(low, high)
        edges = self.binned.edges
        if self.binned.whole and self.used < len(edges):
            low, high = (
                (float(np.ceil(low)), float(np.floor(high))) if np.ceil(low) <= high else (round(low), round(low))
            )
        if low <= edges[0]:
            low = min(low, float(np.fmin.reduce(values)))
        if high >= edges[-1]:
            high = max(high, float(np.fmax.reduce(values)))
        return float(low), float(high)
