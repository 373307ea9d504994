"""The figure of the statistics of a selection."""

import textwrap
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import LogLocator, NullFormatter

from nenya.plotting.cells import count_bar, draw_coastlines, draw_counts, draw_means, mean_bar
from nenya.plotting.globe import map_key
from nenya.plotting.paper import TRAIN_COLOUR, Places, save_figure, tidy
from nenya.plotting.style import Style, styled
from nenya.tables.quantities import label_of
from nenya.tables.statistics import SelectionStatistics

if TYPE_CHECKING:
    import pandas as pd


@styled
def draw_statistics(
    statistics: SelectionStatistics,
    path: Places | None = None,
    *,
    title: str = "",
    least: int = 5,
    style: Style | None = None,
) -> Figure:
    """Draw positions and dates of a selection, and its differences from the complete table.

    Maps show the number of selected rows in a cell, and their share of all rows there: counts over effort.

    Args:
        statistics: of `nenya.tables.statistics.selection_statistics`.
        path: output file, if any, or several; the suffix sets the format (.png, .pdf, .svg).
        title: description of the selection.
        least: smallest number of rows in a cell; the share is not drawn in cells with fewer.
        style: size, fonts, colours of counts.

    Raises:
        OptionError: Unknown suffix of the output file.
        OutputError: It cannot be written.
    """
    style = style or Style()
    shown = list(statistics.histograms.items())[:4]
    parts: list[tuple[float, Callable[[Any], None]]] = []  # for which the table has columns: height, drawing function
    if len(statistics.regions):
        parts.append((1.15, lambda part: _places(part, statistics, style, least)))
    if len(statistics.regions) or len(statistics.seasons):
        parts.append((1.1, lambda part: _compared(part, statistics)))
    if shown:
        parts.append((1.0, lambda part: _histograms(part, statistics)))
    heights = [height for height, _ in parts]
    figure = Figure(
        figsize=style.figsize(12.0, 0.75 + 3.0 * sum(heights)), layout=ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.08)
    )
    percent = 100 * statistics.selected / max(1, statistics.whole)
    count = f"{statistics.selected:,} of {statistics.whole:,} cutouts ({percent:.2g} %)"
    figure.suptitle("\n".join([*textwrap.wrap(title, 110)[:3], count]))
    if parts:
        subfigures = figure.subfigures(len(parts), 1, height_ratios=heights, squeeze=False)[:, 0]
        for part, (_, draw) in zip(subfigures, parts, strict=True):
            draw(part)
    if path is not None:
        save_figure(figure, path, style=style)
    return figure


def _places(part: Any, statistics: SelectionStatistics, style: Style, least: int) -> None:
    """Draw the number of selected rows in each cell, and their share of all rows of the cell."""
    counts, shares = part.subplots(1, 2)
    drawn = draw_counts(counts, statistics.grid, statistics.map_selected, style)
    draw_coastlines(counts, short=style.size is not None)
    where: Any = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0.2}
    counts.legend(handles=map_key(), ncols=2, frameon=False, handlelength=1.2, **where)
    count_bar(part, drawn, counts, "selected cutouts in a cell", across=True)
    enough = int(min(least, max(1, statistics.map_whole.max(initial=1))))
    share = np.where(
        statistics.map_whole >= enough, statistics.map_selected / np.maximum(statistics.map_whole, 1), np.nan
    )
    finite = share[np.isfinite(share)]
    top = 100 * float(np.quantile(finite, 0.98)) if finite.size else 0.0
    scale = Style(cmap=style.cmap, limits=(0.0, top or 1.0))
    drawn = draw_means(shares, statistics.grid, 100 * share, scale)
    draw_coastlines(shares, short=style.size is not None)
    label = f"selected share of the cutouts in a cell (%), {enough} or more"
    mean_bar(part, drawn, shares, label, 100 * share, across=True)
    shares.set_ylabel("")


def _compared(part: Any, statistics: SelectionStatistics) -> None:
    """Draw the shares of regions, seasons, months and years."""
    regions, dates = bool(len(statistics.regions)), bool(len(statistics.seasons))
    widths = [1.4] * regions + [0.9, 1.0, 1.1] * dates
    panels = list(part.subplots(1, len(widths), width_ratios=widths, squeeze=False)[0])
    if regions:
        _regions(panels.pop(0), statistics.regions)
    for axes, name in zip(panels, ("season", "month", "year"), strict=False):
        _shares(axes, getattr(statistics, f"{name}s"), name)


def _histograms(part: Any, statistics: SelectionStatistics) -> None:
    shown = list(statistics.histograms.items())[:4]
    for axes, (name, table) in zip(part.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        _histogram(axes, table, name)


def _regions(axes: Any, table: "pd.DataFrame") -> None:
    """Draw each region's share over that of all rows, with its interval, on a logarithmic axis."""
    shown = table[table["ratio"] > 0]
    place = np.arange(len(shown))[::-1]
    ratio = shown["ratio"].to_numpy()
    spread = np.clip([ratio - shown["ratio_low"].to_numpy(), shown["ratio_high"].to_numpy() - ratio], 0, None)
    axes.errorbar(ratio, place, xerr=spread, fmt="o", color=TRAIN_COLOUR, markersize=4, capsize=2)
    axes.axvline(1, color="0.5", linewidth=1)
    axes.set_xscale("log")
    axes.set_yticks(place, list(shown["name"]))
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("share in the selection / in all cutouts")
    axes.set_title("regions, with 95 % intervals", fontsize="medium")
    tidy(axes)


def _shares(axes: Any, table: "pd.DataFrame", name: str) -> None:
    """Draw the shares of the selection as bars and those of all cutouts as ticks."""
    place = np.arange(len(table))
    axes.bar(place, 100 * table["share_selected"], width=0.75, color=TRAIN_COLOUR, label="selection")
    axes.hlines(100 * table["share_whole"], place - 0.375, place + 0.375, color="0.15", linewidth=1.6, label="all")
    step = 1 if name == "season" else -(-len(table) // 4) or 1
    axes.set_xticks(place[::step], list(table["name"])[::step], fontsize="x-small")
    axes.set(xlabel=name, ylabel="share (%)")
    tidy(axes)
    if name == "season":
        legend = axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0)
        legend.set_in_layout(False)  # it may reach over the next axes


def _histogram(axes: Any, table: "pd.DataFrame", name: str) -> None:
    """Draw the shares of the bins in the selection and in all cutouts; the outermost as wide as the others."""
    edges = np.append(table["low"].to_numpy(), table["high"].to_numpy()[-1:])
    least, greatest, width = edges[0], edges[-1], edges[2] - edges[1]
    edges[0], edges[-1] = edges[1] - width, edges[-2] + width
    axes.stairs(100 * table["share_selected"], edges, fill=True, color=TRAIN_COLOUR, label="selection")
    axes.stairs(100 * table["share_whole"], edges, color="0.15", linewidth=1.4, label="all")
    axes.set(xlabel=label_of(name), ylabel="share in a bin (%)")
    axes.set_title(f"outermost bins: from {least:.3g}, to {greatest:.3g}", fontsize="small", color="0.4")
    tidy(axes)
