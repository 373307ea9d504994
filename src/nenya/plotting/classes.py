"""Figures of classes, such as clusters, regions or months: the commonest class of each cell, with counts."""

import os
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import ListedColormap, to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from nenya.errors import InputFileError
from nenya.plotting.paper import FloatArray, Limits, central_limits, save_figure
from nenya.plotting.planes import draw_coastlines
from nenya.tables.classes import Classes, apart, centres, commonest
from nenya.tables.grids import Grid, globe, wrap_longitude
from nenya.tables.quantities import quantity_of

Path = str | os.PathLike[str]

_FEW = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#7f7f7f")
"""Distinguishable for colour-blind readers (Okabe and Ito, 2008)."""
_LONGEST = 24  # characters of a label


def colours_of(kind: str, count: int) -> list[str]:
    """Return a colour for each of some classes, as `#rrggbb`.

    Args:
        kind: of `nenya.tables.classes.Classes`: `cycle`, `order` or `names`.
        count: number of classes.
    """
    if kind == "cycle":
        return [_softer(colormaps["hsv"](k / count)) for k in range(count)]
    if kind == "order":
        return [to_hex(colormaps["viridis"](k / max(1, count - 1))) for k in range(count)]
    if count <= len(_FEW):
        return list(_FEW[:count])
    many = [to_hex(colormaps[name](k)) for name in ("tab20", "tab20b", "tab20c") for k in range(20)]
    return [many[k % len(many)] for k in range(count)]


def _softer(colour: tuple[float, float, float, float]) -> str:
    red, green, blue = (0.15 + 0.7 * part for part in colour[:3])
    return to_hex((red, green, blue))


def umap_classes(
    coordinates: FloatArray,
    classes: Classes,
    path: Path | None = None,
    *,
    cells: int = 200,
    limits: Limits | None = None,
    title: str = "",
    labels: tuple[str, str] = ("US0", "US1"),
) -> Figure:
    """Draw the commonest class in each cell of a UMAP, the classes' names at their medians, and their counts.

    Args:
        coordinates: (N, 2); rows that are not finite are left out.
        classes: of the N rows.
        path: output file, if any; its suffix sets the format (.png, .pdf, .svg).
        cells: cells along each coordinate.
        limits: ((x0, x1), (y0, y1)) to be drawn; by default the central 99 % of each coordinate.
        title: title of the figure.
        labels: names of the two coordinates.

    Raises:
        InputFileError: Arrays of different lengths, or no finite coordinates.
        OptionError: Unknown suffix of the output file.
    """
    _check_length(coordinates, classes)
    grid = Grid(*(limits or central_limits(coordinates)), cells, cells)
    figure = Figure(figsize=(8.4, 6.0), layout="constrained")
    axes = figure.add_subplot(title=title, xlabel=labels[0], ylabel=labels[1])
    axes.set_box_aspect(1)
    x, y = coordinates[:, 0], coordinates[:, 1]
    _draw(axes, grid, x, y, classes)
    across, up = centres(x, y, classes)
    for code in apart(across, up, classes.counts(), grid.extent) if classes.kind == "names" else ():
        box = {"boxstyle": "round,pad=0.15", "facecolor": "white", "alpha": 0.8, "linewidth": 0}
        text = axes.text(across[code], up[code], _short(classes.labels[code]), ha="center", va="center", fontsize=8)
        text.set(bbox=box, parse_math=False)
    _finish(figure, axes, classes, path)
    return figure


def map_classes(
    lon: FloatArray,
    lat: FloatArray,
    classes: Classes,
    path: Path | None = None,
    *,
    degrees: float = 2.0,
    title: str = "",
) -> Figure:
    """Draw the commonest class in each cell of the globe, with coastlines and counts.

    Args:
        lon: (N,) degrees east, of -180..180 or 0..360.
        lat: (N,) degrees north.
        classes: of the N rows.
        path: output file, if any; its suffix sets the format (.png, .pdf, .svg).
        degrees: side of a cell.
        title: title of the figure.

    Raises:
        InputFileError: Arrays of different lengths.
        OptionError: Unknown suffix of the output file.
    """
    _check_length(lon, classes)
    figure = Figure(figsize=(9.6, 4.6), layout="constrained")
    axes = figure.add_subplot(title=title)
    _draw(axes, globe(degrees), wrap_longitude(lon), lat, classes)
    draw_coastlines(axes)
    _finish(figure, axes, classes, path)
    return figure


def _check_length(values: FloatArray, classes: Classes) -> None:
    if len(values) != len(classes.codes):
        raise InputFileError(f"expected one class for each of {len(values)} cutouts, got {len(classes.codes)}")


def _draw(axes: Any, grid: Grid, x: FloatArray, y: FloatArray, classes: Classes) -> None:
    count = len(classes.values)
    found = commonest(grid.cells(x, y), classes.codes, grid.rows * grid.columns, count)
    shown = np.ma.masked_less(found.reshape(grid.rows, grid.columns), 0)
    axes.imshow(
        shown,
        extent=grid.extent,
        origin="lower",
        aspect="auto",
        interpolation="nearest",
        cmap=ListedColormap(colours_of(classes.kind, count)),
        vmin=-0.5,
        vmax=count - 0.5,
    )


def _finish(figure: Figure, axes: Any, classes: Classes, path: Path | None) -> None:
    counts = classes.counts()
    missing = int((classes.codes < 0).sum())
    handles = [
        Patch(color=colour, label=f"{_short(name)}: {number:,}")
        for colour, name, number in zip(
            colours_of(classes.kind, len(counts)), classes.labels, counts.tolist(), strict=True
        )
    ]
    legend = figure.legend(
        handles=handles,
        title=f"{quantity_of(classes.name).title}: cutouts" + (f"\n({missing:,} without)" if missing else ""),
        loc="outside right center",
        ncols=1 + len(handles) // 25,
        fontsize=7,
        title_fontsize=8,
        frameon=False,
    )
    for text in (*legend.get_texts(), legend.get_title()):
        text.set_parse_math(False)
    if path is not None:
        save_figure(figure, path)


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
