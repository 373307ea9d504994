"""The figure of the statistics of a selection."""

import os
import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import LogLocator, NullFormatter

from nenya.plotting.cells import count_bar, draw_coastlines, draw_counts
from nenya.plotting.paper import TRAIN_COLOUR, save_figure, tidy
from nenya.tables.quantities import label_of
from nenya.tables.statistics import SelectionStatistics

if TYPE_CHECKING:
    import pandas as pd


def draw_statistics(
    statistics: SelectionStatistics, path: str | os.PathLike[str] | None = None, *, title: str = ""
) -> Figure:
    """Draw positions and dates of a selection, and its differences from the whole table.

    Args:
        statistics: of `nenya.tables.statistics.selection_statistics`.
        path: output file, if any; its suffix sets the format (.png, .pdf, .svg).
        title: description of the selection.

    Raises:
        OptionError: Unknown suffix of the output file.
        OutputError: It cannot be written.
    """
    shown = list(statistics.histograms.items())[:4]
    drawn = [  # parts for which the table has columns: height and drawing function
        (height, draw)
        for height, draw, there in (
            (1.25, _places, len(statistics.regions)),
            (1.0, _dates, len(statistics.seasons)),
            (1.0, _histograms, len(shown)),
        )
        if there
    ]
    heights = [height for height, _ in drawn]
    figure = Figure(figsize=(12.0, 0.75 + 3.0 * sum(heights)), layout=ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.08))
    percent = 100 * statistics.selected / max(1, statistics.whole)
    count = f"{statistics.selected:,} of {statistics.whole:,} cutouts ({percent:.2g} %)"
    figure.suptitle("\n".join([*textwrap.wrap(title, 110)[:3], count]))
    if drawn:
        parts = figure.subfigures(len(drawn), 1, height_ratios=heights, squeeze=False)[:, 0]
        for part, (_, draw) in zip(parts, drawn, strict=True):
            draw(part, statistics)
    if path is not None:
        save_figure(figure, path)
    return figure


def _places(part: Any, statistics: SelectionStatistics) -> None:
    places, regions = part.subplots(1, 2, width_ratios=(2.4, 1))
    drawn = draw_counts(places, statistics.grid, statistics.map_selected)
    draw_coastlines(places)
    count_bar(part, drawn, places, "selected cutouts in a cell")
    _regions(regions, statistics.regions)


def _dates(part: Any, statistics: SelectionStatistics) -> None:
    for axes, name in zip(part.subplots(1, 3), ("season", "month", "year"), strict=True):
        _shares(axes, getattr(statistics, f"{name}s"), name)


def _histograms(part: Any, statistics: SelectionStatistics) -> None:
    shown = list(statistics.histograms.items())[:4]
    for axes, (name, table) in zip(part.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        _histogram(axes, table, name)


def _regions(axes: Any, table: "pd.DataFrame") -> None:
    """Draw each region's share over that of the whole, with its interval, on a logarithmic axis."""
    shown = table[table["ratio"] > 0]
    place = np.arange(len(shown))[::-1]
    ratio = shown["ratio"].to_numpy()
    spread = np.clip([ratio - shown["ratio_low"].to_numpy(), shown["ratio_high"].to_numpy() - ratio], 0, None)
    axes.errorbar(ratio, place, xerr=spread, fmt="o", color=TRAIN_COLOUR, markersize=4, capsize=2)
    axes.axvline(1, color="0.5", linewidth=1)
    axes.set_xscale("log")
    axes.set_yticks(place, list(shown["name"]))
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("share in the selection / in all cutouts")
    axes.set_title("regions, with 95 % intervals", fontsize=10)
    tidy(axes)


def _shares(axes: Any, table: "pd.DataFrame", name: str) -> None:
    """Draw the shares of the selection as bars and those of all cutouts as ticks."""
    place = np.arange(len(table))
    axes.bar(place, 100 * table["share_selected"], width=0.75, color=TRAIN_COLOUR, label="selection")
    axes.plot(place, 100 * table["share_whole"], "_", color="0.15", markersize=12, markeredgewidth=2, label="all")
    step = 1 if name == "month" else -(-len(table) // 7) or 1
    axes.set_xticks(place[::step], list(table["name"])[::step])
    axes.set(xlabel=name, ylabel="share (%)")
    tidy(axes)
    if name == "season":
        axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0)


def _histogram(axes: Any, table: "pd.DataFrame", name: str) -> None:
    """Draw the shares of the bins in the selection and in all cutouts; the outermost as wide as the others."""
    edges = np.append(table["low"].to_numpy(), table["high"].to_numpy()[-1:])
    least, greatest, width = edges[0], edges[-1], edges[2] - edges[1]
    edges[0], edges[-1] = edges[1] - width, edges[-2] + width
    axes.stairs(100 * table["share_selected"], edges, fill=True, color=TRAIN_COLOUR, label="selection")
    axes.stairs(100 * table["share_whole"], edges, color="0.15", linewidth=1.4, label="all")
    axes.set(xlabel=label_of(name), ylabel="share in a bin (%)")
    axes.set_title(f"outermost bins: from {least:.3g}, to {greatest:.3g}", fontsize=8, color="0.4")
    tidy(axes)
