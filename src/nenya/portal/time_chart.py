"""The chart of time: the share of the selection in each month or year with its interval, and the months shown."""

from typing import Any

import numpy as np
from bokeh.models import (
    BasicTicker,
    BoxAnnotation,
    BoxSelectTool,
    ColumnDataSource,
    HoverTool,
    NumeralTickFormatter,
    Quad,
    Range1d,
    Segment,
    TapTool,
)
from bokeh.plotting import figure
from numpy.typing import NDArray

from nenya.portal.spans import Months, span_name
from nenya.portal.theme import Theme, add_glyph, paint
from nenya.tables.over_time import Shares

_ROOM = 1.1  # height of the chart, in heights of what it shows
_CUT = 0.9  # of the intervals that lie within the chart: those of single granules reach from 0 to 1


def percent(share: float) -> str:
    """Return a share in per cent, with two digits at least."""
    return f"{100 * share:.0f}" if share >= 0.1 else f"{100 * share:.2g}"


def share_text(shares: Shares, number: int = 0) -> str:
    """Return a share in words: `12 % (95 %: 8.1 to 17 %) of 1,180 cutouts in 23 granules`."""
    whole, granules = int(shares.whole[number]), int(shares.granules[number])
    if not whole:
        return "no cutouts"
    of = f"{whole:,} cutout{'s' if whole > 1 else ''} in {granules:,} granule{'s' if granules > 1 else ''}"
    if int(shares.selected[number]) == whole:
        return of
    share, low, high = (percent(float(values[number])) for values in (shares.share, shares.low, shares.high))
    return f"{share} % (95 %: {low} to {high} %) of {of}"


class TimeChart:
    """The share of the selection over time, or the number of cutouts where all are selected.

    Args:
        first: month of the first row, counted from January 1970.
        last: month of the last one.
        theme: colours.

    Attributes:
        plot: the Bokeh figure.
        window: the months shown.
    """

    def __init__(self, first: int, last: int, theme: Theme) -> None:
        self.first, self.last = first, last
        self.plot = plot = figure(
            name="timeline",
            height=92,
            sizing_mode="stretch_width",
            x_axis_type="datetime",
            x_range=Range1d(milliseconds(first), milliseconds(last + 1)),
            y_range=Range1d(0, 1),
            tools=[],
            toolbar_location=None,
        )
        plot.yaxis.ticker = BasicTicker(desired_num_ticks=3, num_minor_ticks=0)
        plot.yaxis.formatter = NumeralTickFormatter(format="0,0.[00]")
        box = BoxSelectTool(dimensions="width", description="choose months")
        plot.add_tools(box, TapTool())
        plot.toolbar.active_drag = box
        self.source = ColumnDataSource({name: [] for name in ("left", "right", "share", "low", "high", "text")})
        band = Quad(left="left", right="right", bottom="low", top="high", fill_color=theme.chosen, line_color=None)
        band.fill_alpha = 0.35
        bands = add_glyph(plot, self.source, band)
        line = Segment(x0="left", x1="right", y0="share", y1="share", line_color=theme.chosen, line_width=2)
        add_glyph(plot, self.source, line)
        plot.add_tools(HoverTool(renderers=[bands], tooltips="@text", attachment="vertical", mode="vline"))
        self.window = BoxAnnotation(
            left=0, right=1, fill_color=theme.mark, fill_alpha=0.12, line_color=theme.mark, visible=False,
            editable=True, movable="x", resizable="x", name="months shown",
        )  # fmt: skip
        plot.add_layout(self.window)
        paint(plot, theme)
        plot.xaxis.axis_label, plot.xgrid.visible = None, False
        self.is_setting = False

    def show(self, shares: Shares, step: int) -> None:
        """Show the share of the selection at each time.

        Args:
            shares: of `nenya.tables.over_time.shares_over_time`.
            step: months of each time.
        """
        known = np.flatnonzero(shares.whole)
        some = Shares(*(getattr(shares, name)[known] for name in Shares.__dataclass_fields__))
        all_of_them = bool((some.selected == some.whole).all())
        if all_of_them:
            share = some.whole.astype(np.float64)
            low, high, tallest = np.zeros(len(known)), share, float(share.max(initial=1))
        else:
            share, low, high = 100 * some.share, 100 * some.low, 100 * some.high
            tallest = max(float(share.max(initial=0)), float(np.quantile(high, _CUT)))
        ends = [
            f"{span_name(int(start), int(start) + step - 1)}: {share_text(some, k)}"
            for k, start in enumerate(some.start)
        ]
        self.source.data = {
            "left": milliseconds(some.start),
            "right": milliseconds(some.start + step),
            "share": share,
            "low": low,
            "high": high,
            "text": ends,
        }
        self.plot.y_range.end = (_ROOM * tallest) or 1.0
        self.plot.yaxis.axis_label = "cutouts" if all_of_them else "selected (%)"

    def show_window(self, months: Months | None) -> None:
        """Show which months the page shows; None for all."""
        self.window.visible = months is not None
        if months is not None:
            self.is_setting = True
            self.window.update(left=milliseconds(months.first), right=milliseconds(months.last + 1))
            self.is_setting = False

    def months_at(self, left: float, right: float) -> tuple[int, int]:
        """Return the first and last month of a part of the chart, in its own numbers; at least one month."""
        ends = sorted(month_at(value) for value in (left, right))
        first = min(max(round(ends[0]), self.first), self.last)
        return first, min(max(round(ends[1]) - 1, first), self.last)


def milliseconds(months: NDArray[np.int64] | int) -> Any:
    """Return the start of months, counted from January 1970, in milliseconds, as charts have dates."""
    stamps = np.asarray(months, np.int64).astype("datetime64[M]").astype("datetime64[ms]").astype(np.float64)
    return stamps if stamps.ndim else float(stamps)


def month_at(value: float) -> float:
    """Return the month of a date in milliseconds, with its fraction."""
    month = int(np.datetime64(int(np.clip(value, -9e13, 9e13)), "ms").astype("datetime64[M]").astype(np.int64))
    start, end = milliseconds(month), milliseconds(month + 1)
    return float(month + (value - start) / (end - start))
