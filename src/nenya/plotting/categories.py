"""Figures of categories, such as clusters or months: their colours, a legend with counts, and their names in place."""

from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.colors import BoundaryNorm, ListedColormap, to_hex, to_rgb
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke

from nenya.plotting.colours import CATEGORIES, REST, VALUES, colour_map
from nenya.tables.categories import CYCLIC, ORDERED, Categories
from nenya.tables.classes import Classes
from nenya.tables.grids import Grid

FloatArray = npt.NDArray[np.floating]

_CYCLE = "twilight"  # both its ends have the same colour
_ENDS = (0.05, 0.95)  # of a sequential map: neither black nor white
_OWN = 0.5  # share of the rows of a category in cells where it is the most frequent one
_LONGEST = 24  # characters of a name in a picture


def colours_for(categories: Categories, cmap: str | None = None) -> list[Any]:
    """Return a colour for each category: in the order of a colour map where they have an order, else far apart."""
    count = len(categories.labels) - (categories.rest >= 0)
    if cmap is not None or (categories.name in ORDERED and categories.name not in CYCLIC):
        found = list(colour_map(cmap or VALUES)(np.linspace(*_ENDS, max(count, 1))))[:count]
    elif categories.name in CYCLIC:
        cycle = CYCLIC[categories.name]
        values = [v if isinstance(v, int) else i for i, v in enumerate(categories.values[:count])]
        found = [matplotlib.colormaps[_CYCLE](0.08 + (v % cycle) / cycle) for v in values]
    else:
        found = list(CATEGORIES[:count])
    return [to_rgb(colour) for colour in (*found, *([REST] if categories.rest >= 0 else []))]


def class_colours(classes: Classes) -> list[str]:
    """Return a colour for each of some classes, as `#rrggbb`: those of `colours_for`, again from the first one on.

    Rows that belong to no cluster are grey.
    """
    count = len(classes.values)
    if classes.kind == "cycle":
        cycle = CYCLIC[classes.name]
        found: list[Any] = [matplotlib.colormaps[_CYCLE](0.08 + (int(v) % cycle) / cycle) for v in classes.values]
    elif classes.kind == "order":
        found = list(colour_map(VALUES)(np.linspace(*_ENDS, count)))
    else:
        kept = [code for code in range(count) if code != classes.noise]
        of_kept = {code: CATEGORIES[k % len(CATEGORIES)] for k, code in enumerate(kept)}
        found = [of_kept.get(code, REST) for code in range(count)]
    return [to_hex(colour) for colour in found]


def category_colours(categories: Categories, cmap: str | None = None) -> tuple[ListedColormap, BoundaryNorm]:
    """Return the colours of categories, and how their numbers become colours."""
    colours = colours_for(categories, cmap)
    return ListedColormap(colours), BoundaryNorm(np.arange(len(colours) + 1) - 0.5, len(colours))


def category_key(categories: Categories, colours: ListedColormap) -> list[Patch]:
    """Return the entries of a legend: name and number of rows of each category that has some."""
    rgb = np.asarray(colours.colors)  # type: ignore[attr-defined, unused-ignore]
    return [
        Patch(facecolor=tuple(rgb[k]), edgecolor="0.3", linewidth=0.3, label=f"{_short(label)} ({count:,})")
        for k, (label, count) in enumerate(zip(categories.labels, categories.counts, strict=True))
        if count
    ]


def write_names(axes: Any, categories: Categories, grid: Grid, shown: FloatArray, x: FloatArray, y: FloatArray) -> None:
    """Write the name of each category at the median of its rows, if most of them lie in cells of its colour."""
    cells = grid.cells(x, y)
    for k, label in enumerate(categories.labels):
        rows = (categories.codes == k) & (cells >= 0)
        if k == categories.rest or not rows.any() or np.mean(shown.ravel()[cells[rows]] == k) <= _OWN:
            continue
        axes.text(
            float(np.median(x[rows])), float(np.median(y[rows])), _short(label), ha="center", va="center",
            fontsize="small", fontweight="bold", color="0.1", clip_on=True,
            path_effects=[withStroke(linewidth=2.0, foreground="white")],
        )  # fmt: skip


def _short(label: str) -> str:
    return label if len(label) <= _LONGEST else label[: _LONGEST - 1] + "\N{HORIZONTAL ELLIPSIS}"
