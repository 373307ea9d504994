"""Figures of the UMAP plane and of the globe: number of cutouts in a cell, and means of a metric over them."""

import os
from typing import Any

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from nenya.errors import InputFileError
from nenya.plotting.paper import (
    COLOURS,
    COUNTS,
    VALUES,
    FloatArray,
    IntArray,
    Limits,
    central_limits,
    save_figure,
)
from nenya.tables.grids import Grid, coastlines, globe, wrap_longitude
from nenya.tables.quantities import label_of

Path = str | os.PathLike[str]

_MOST_STEPS = 2000  # largest count for which a colour bar shows 1, 2, 5 of each decade


def umap_density(
    coordinates: FloatArray,
    path: Path | None = None,
    *,
    cells: int = 200,
    limits: Limits | None = None,
    title: str = "",
    labels: tuple[str, str] = ("US0", "US1"),
    background: FloatArray | None = None,
) -> Figure:
    """Draw the number of cutouts in each cell of a UMAP, in logarithmic colours.

    Args:
        coordinates: (N, 2); rows that are not finite are left out.
        path: output file, if any; its suffix sets the format (.png, .pdf, .svg).
        cells: cells along each coordinate.
        limits: ((x0, x1), (y0, y1)) to be drawn; by default the central 99 % of each coordinate.
        title: title of the figure.
        labels: names of the two coordinates.
        background: (M, 2) of all cutouts, including these: their cells are grey, and set the limits.

    Raises:
        InputFileError: Coordinates of another shape, or without finite rows.
        OptionError: Unknown suffix of the output file.
    """
    grid = _plane(coordinates if background is None else background, limits, cells)
    counts = grid.counts(coordinates[:, 0], coordinates[:, 1])

    def draw(axes: Any, grid: Grid, counts: IntArray) -> Any:
        if background is not None:
            grey = np.ma.masked_equal(grid.counts(background[:, 0], background[:, 1]) > 0, False)
            axes.imshow(
                grey,
                extent=grid.extent,
                origin="lower",
                aspect="auto",
                interpolation="nearest",
                cmap="Greys",
                vmin=0,
                vmax=5,
            )
        return draw_counts(axes, grid, counts)

    return _plane_figure(grid, draw, counts, "cutouts in a cell", title, labels, path)


def umap_metric(
    coordinates: FloatArray,
    values: FloatArray,
    path: Path | None = None,
    *,
    name: str = "",
    least: int = 5,
    cells: int = 120,
    limits: Limits | None = None,
    title: str = "",
    labels: tuple[str, str] = ("US0", "US1"),
) -> Figure:
    """Draw the mean of a metric over each cell of a UMAP.

    Args:
        coordinates: (N, 2); rows that are not finite are left out.
        values: (N,); those that are not finite are left out.
        path: output file, if any; its suffix sets the format (.png, .pdf, .svg).
        name: of the metric, such as "DT"; the unit of a known column is added.
        least: cells with fewer cutouts stay empty.
        cells: cells along each coordinate.
        limits: ((x0, x1), (y0, y1)) to be drawn; by default the central 99 % of each coordinate.
        title: title of the figure.
        labels: names of the two coordinates.

    Raises:
        InputFileError: Arrays of different lengths, or no finite coordinates.
        OptionError: Unknown suffix of the output file.
    """
    _same_length(coordinates, values)
    grid = _plane(coordinates, limits, cells)
    means = _some_cell(grid.means(coordinates[:, 0], coordinates[:, 1], values, least), least)
    return _plane_figure(grid, draw_means, means, f"mean of {label_of(name)}", title, labels, path)


def map_density(
    lon: FloatArray, lat: FloatArray, path: Path | None = None, *, degrees: float = 2.0, title: str = ""
) -> Figure:
    """Draw the number of cutouts in each cell of the globe, in logarithmic colours, with coastlines.

    Args:
        lon: (N,) degrees east, of -180..180 or 0..360.
        lat: (N,) degrees north.
        path: output file, if any; its suffix sets the format (.png, .pdf, .svg).
        degrees: side of a cell.
        title: title of the figure.

    Raises:
        InputFileError: Arrays of different lengths.
        OptionError: Unknown suffix of the output file.
    """
    _same_length(lon, lat)
    grid = globe(degrees)
    return _map_figure(grid, draw_counts, grid.counts(wrap_longitude(lon), lat), "cutouts in a cell", title, path)


def map_metric(
    lon: FloatArray,
    lat: FloatArray,
    values: FloatArray,
    path: Path | None = None,
    *,
    name: str = "",
    least: int = 1,
    degrees: float = 2.0,
    title: str = "",
) -> Figure:
    """Draw the mean of a metric over each cell of the globe, with coastlines.

    Args:
        lon: (N,) degrees east, of -180..180 or 0..360.
        lat: (N,) degrees north.
        values: (N,); those that are not finite are left out.
        path: output file, if any; its suffix sets the format (.png, .pdf, .svg).
        name: of the metric, such as "DT"; the unit of a known column is added.
        least: cells with fewer cutouts stay empty.
        degrees: side of a cell.
        title: title of the figure.

    Raises:
        InputFileError: Arrays of different lengths.
        OptionError: Unknown suffix of the output file.
    """
    _same_length(lon, lat)
    _same_length(lon, values)
    grid = globe(degrees)
    means = _some_cell(grid.means(wrap_longitude(lon), lat, values, least), least)
    return _map_figure(grid, draw_means, means, f"mean of {label_of(name)}", title, path)


def draw_counts(axes: Any, grid: Grid, counts: IntArray) -> Any:
    """Draw counts (R, C) by their logarithm, empty cells white, and return matplotlib's image."""
    shown = np.ma.masked_equal(counts, 0)
    norm = LogNorm(1, max(2, int(counts.max(initial=0))))
    return axes.imshow(
        shown, extent=grid.extent, origin="lower", aspect="auto", interpolation="nearest", cmap=COUNTS, norm=norm
    )


def count_bar(figure: Any, drawn: Any, axes: Any, label: str) -> Any:
    """Add the colour bar of counts drawn by `draw_counts`, in plain numbers: 1, 2, 5, 10 ..., or 1, 10, 100 ..."""
    top = drawn.norm.vmax
    steps = (1, 2, 5) if top < _MOST_STEPS else (1,)
    marks = [step * 10**power for power in range(len(str(int(top)))) for step in steps if step * 10**power <= top]
    bar = figure.colorbar(drawn, ax=axes, label=label, shrink=0.85)
    bar.set_ticks(marks, labels=[f"{mark:,}" for mark in marks])
    bar.minorticks_off()
    return bar


def draw_means(axes: Any, grid: Grid, means: FloatArray) -> Any:
    """Draw means (R, C), empty cells white; of both signs on a symmetric diverging scale; return matplotlib's image."""
    finite = means[np.isfinite(means)]
    low, high = (float(v) for v in np.quantile(finite, [0.01, 0.99])) if finite.size else (0.0, 1.0)
    both = low < 0 < high
    if both:
        low, high = -max(-low, high), max(-low, high)
    return axes.imshow(
        np.ma.masked_invalid(means),
        extent=grid.extent,
        origin="lower",
        aspect="auto",
        interpolation="nearest",
        cmap=COLOURS if both else VALUES,
        vmin=low,
        vmax=high if high > low else low + 1,
    )


def draw_coastlines(axes: Any) -> None:
    """Draw the coasts of the globe, without the cuts at the antimeridian, and name the axes of a map."""
    lines: list[FloatArray] = []
    for ring in coastlines():
        cut = (np.abs(ring[:-1, 0]) >= 180) & (np.abs(ring[1:, 0]) >= 180)
        cut |= (ring[:-1, 1] <= -90) | (ring[1:, 1] <= -90)
        lines += [np.insert(ring.astype(np.float64), np.flatnonzero(cut) + 1, np.nan, axis=0), np.full((1, 2), np.nan)]
    line = np.concatenate(lines)
    axes.plot(line[:, 0], line[:, 1], color="0.35", linewidth=0.5)
    axes.set(xlim=(-180, 180), ylim=(-90, 90), xticks=range(-180, 181, 60), yticks=range(-90, 91, 30))
    axes.set(xlabel="longitude (degrees east)", ylabel="latitude (degrees north)", aspect="equal")


def _plane(coordinates: FloatArray, limits: Limits | None, cells: int) -> Grid:
    limits = limits or central_limits(coordinates)
    return Grid(*limits, cells, cells)


def _same_length(first: FloatArray, second: FloatArray) -> None:
    if len(first) != len(second):
        raise InputFileError(f"expected one value for each of {len(first)} cutouts, got {len(second)}")


def _some_cell(means: FloatArray, least: int) -> FloatArray:
    if not np.isfinite(means).any():
        raise InputFileError(
            f"expected a cell with at least {least} values, got none: lower least=, or use larger cells"
        )
    return means


def _plane_figure(
    grid: Grid, draw: Any, values: Any, label: str, title: str, labels: tuple[str, str], path: Path | None
) -> Figure:
    figure = Figure(figsize=(7.2, 6.0), layout="constrained")
    axes = figure.add_subplot(title=title, xlabel=labels[0], ylabel=labels[1])
    axes.set_box_aspect(1)
    _finish(figure, axes, draw(axes, grid, values), label, path)
    return figure


def _map_figure(grid: Grid, draw: Any, values: Any, label: str, title: str, path: Path | None) -> Figure:
    figure = Figure(figsize=(9.0, 4.6), layout="constrained")
    axes = figure.add_subplot(title=title)
    drawn = draw(axes, grid, values)
    draw_coastlines(axes)
    _finish(figure, axes, drawn, label, path)
    return figure


def _finish(figure: Figure, axes: Any, drawn: Any, label: str, path: Path | None) -> None:
    if isinstance(drawn.norm, LogNorm):
        count_bar(figure, drawn, axes, label)
    else:
        figure.colorbar(drawn, ax=axes, label=label, extend="both", shrink=0.85)
    if path is not None:
        save_figure(figure, path)
