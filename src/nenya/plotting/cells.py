"""Cells of planes and maps, drawn by counts or means, and their colour bars."""

from typing import Any

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.ticker import MaxNLocator

from nenya.plotting.colours import colours_of, count_colours, ends_of, lightness
from nenya.plotting.globe import Globe, draw_globe
from nenya.plotting.paper import FloatArray, IntArray
from nenya.plotting.style import Style
from nenya.tables.grids import Grid

_MOST_STEPS = 2000  # largest count for which a colour bar shows 1, 2, 5 of each decade
_MOST_STEPS_NARROW = 100
_LIGHT = 92  # lightness above which a colour passes for paper


def draw_counts(axes: Any, grid: Grid, counts: IntArray, style: Style | None = None) -> Any:
    """Draw counts (R, C) by their logarithm, empty cells white, and return matplotlib's image."""
    style = style or Style()
    cmap, norm = count_colours(counts, cmap=style.cmap, limits=style.limits, log=style.log)
    return draw_plane(axes, grid, np.ma.masked_equal(counts, 0), cmap=cmap, norm=norm)


def count_bar(figure: Any, drawn: Any, axes: Any, label: str, *, across: bool = False, narrow: bool = False) -> Any:
    """Add the colour bar of counts drawn by `draw_counts`, in plain numbers: 1, 2, 5, 10 ..., or 1, 10, 100 ..."""
    counts = np.ma.masked_array(drawn.get_array())
    bar = figure.colorbar(
        drawn, ax=axes, label=label, shrink=0.85, extend=ends_of(counts.compressed(), drawn.norm), **_where(across)
    )
    low, top = drawn.norm.vmin, drawn.norm.vmax
    if not isinstance(drawn.norm, LogNorm):
        bar.locator = MaxNLocator(5, integer=True)
        bar.update_ticks()
        return bar
    steps = (1, 2, 5) if top < (_MOST_STEPS_NARROW if narrow else _MOST_STEPS) else (1,)
    powers = range(len(str(int(top))))
    marks = [step * 10**power for power in powers for step in steps if low <= step * 10**power <= top]
    bar.set_ticks(marks, labels=[f"{mark:,}" for mark in marks])
    bar.minorticks_off()
    return bar


def draw_means(axes: Any, grid: Grid, means: FloatArray, style: Style | None = None) -> Any:
    """Draw means (R, C), empty cells white; of both signs on a symmetric diverging scale; return matplotlib's image."""
    style = style or Style()
    cmap, norm = colours_of(means, cmap=style.cmap, limits=style.limits, log=style.log)
    if is_pale(cmap):
        axes.patch.set(hatch="/" * 6, edgecolor="0.85", linewidth=0)
    return draw_plane(axes, grid, np.ma.masked_invalid(means), cmap=cmap, norm=norm)


def mean_bar(figure: Any, drawn: Any, axes: Any, label: str, means: FloatArray, *, across: bool = False) -> Any:
    """Add the colour bar of means drawn by `draw_means`, with arrows where there are values beyond its ends."""
    extend = ends_of(means, drawn.norm)
    return figure.colorbar(drawn, ax=axes, label=label, extend=extend, shrink=0.85, **_where(across))


def draw_coastlines(axes: Any, *, short: bool = False) -> None:
    """Draw land and coasts on axes of longitude and latitude, and name the axes, `short` where there is little room."""
    draw_globe(axes, Globe(), short=short)


def draw_plane(axes: Any, grid: Grid, values: Any, **colours: Any) -> Any:
    """Draw values (R, C) of cells, masked ones not at all, and return matplotlib's image."""
    return axes.imshow(values, extent=grid.extent, origin="lower", aspect="auto", interpolation="nearest", **colours)


def _where(across: bool) -> dict[str, Any]:
    return {"location": "bottom", "aspect": 35, "pad": 0.03} if across else {}


def is_pale(cmap: Any) -> bool:
    """Return whether a colour map has colours that pass for paper, so that what has no data is hatched."""
    colours = np.asarray(cmap(np.linspace(0, 1, 64)), np.float64)[:, :3]
    return bool(lightness(colours).max() > _LIGHT)
