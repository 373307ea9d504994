"""Figures of the UMAP plane and of the globe: number of cutouts in a cell, means of a metric, categories over them."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from nenya.errors import InputFileError
from nenya.plotting.categories import category_colours, category_key, write_names
from nenya.plotting.cells import count_bar, draw_counts, draw_means, draw_plane, is_pale, mean_bar
from nenya.plotting.colours import colours_of, count_colours, some_finite
from nenya.plotting.globe import Globe, draw_cells, draw_globe, globe_for, map_key
from nenya.plotting.paper import (
    UMAP_LABELS,
    FloatArray,
    Limits,
    Places,
    central_limits,
    save_figure,
    wrapped,
)
from nenya.plotting.style import Style, check_limits, styled
from nenya.tables.categories import Categories
from nenya.tables.grids import Grid
from nenya.tables.quantities import mean_label

_PLANE, _MAP = (7.2, 6.0), (9.0, 4.6)  # inches
_WIDE, _TALL = (8.8, 6.0), (7.2, 7.6)  # of a plane with a legend beside and below it


@styled
def umap_density(
    coordinates: FloatArray,
    path: Places | None = None,
    *,
    cells: int = 200,
    limits: Limits | None = None,
    title: str = "",
    labels: tuple[str, str] = UMAP_LABELS,
    background: FloatArray | None = None,
    style: Style | None = None,
) -> Figure:
    """Draw the number of cutouts in each cell of a UMAP, in logarithmic colours.

    Args:
        coordinates: (N, 2); rows that are not finite are left out.
        path: output file, if any, or several; the suffix sets the format (.png, .pdf, .svg).
        cells: cells along each coordinate.
        limits: ((x0, x1), (y0, y1)) to be drawn; by default the central 99 % of each coordinate.
        title: title of the figure.
        labels: names of the two coordinates.
        background: (M, 2) of all cutouts, including these: their cells are grey, and set the limits.
        style: size, fonts, colours.

    Raises:
        InputFileError: Coordinates of another shape, or without finite rows.
        OptionError: Unknown suffix of the output file.
    """
    grid = _plane(coordinates if background is None else background, limits, cells)
    counts = grid.counts(coordinates[:, 0], coordinates[:, 1])

    style = style or Style()
    figure, axes = _plane_axes(style, title, labels)
    if background is not None:
        grey = np.ma.masked_equal(grid.counts(background[:, 0], background[:, 1]) > 0, False)
        draw_plane(axes, grid, grey, cmap="Greys", vmin=0, vmax=5)
    drawn = draw_counts(axes, grid, counts, style)
    count_bar(figure, drawn, axes, "cutouts in a cell", narrow=style.is_narrow(_PLANE[0]))
    return _done(figure, path, style)


@styled
def umap_metric(  # noqa: PLR0913  # each is a choice of its own
    coordinates: FloatArray,
    values: FloatArray,
    path: Places | None = None,
    *,
    name: str = "",
    least: int = 5,
    cells: int = 120,
    limits: Limits | None = None,
    title: str = "",
    labels: tuple[str, str] = UMAP_LABELS,
    style: Style | None = None,
) -> Figure:
    """Draw the mean of a metric over each cell of a UMAP.

    Args:
        coordinates: (N, 2); rows that are not finite are left out.
        values: (N,); those that are not finite are left out.
        path: output file, if any, or several; the suffix sets the format (.png, .pdf, .svg).
        name: of the metric, such as "DT"; the unit of a known column is added.
        least: cells with fewer cutouts stay empty.
        cells: cells along each coordinate.
        limits: ((x0, x1), (y0, y1)) to be drawn; by default the central 99 % of each coordinate.
        title: title of the figure.
        labels: names of the two coordinates.
        style: size, fonts, colours.

    Raises:
        InputFileError: Arrays of different lengths, no finite value, or no finite coordinates.
        OptionError: Unknown suffix of the output file.
    """
    _same_length(coordinates, values)
    some_finite(values, name)
    style = style or Style()
    grid = _plane(coordinates, limits, cells)
    means = _some_cell(grid.means(coordinates[:, 0], coordinates[:, 1], values, least), least)
    figure, axes = _plane_axes(style, title, labels)
    drawn = draw_means(axes, grid, means, style)
    mean_bar(figure, drawn, axes, mean_label(name), means)
    return _done(figure, path, style)


@styled
def umap_categories(
    coordinates: FloatArray,
    categories: Categories,
    path: Places | None = None,
    *,
    least: int = 1,
    cells: int = 120,
    limits: Limits | None = None,
    title: str = "",
    labels: tuple[str, str] = UMAP_LABELS,
    style: Style | None = None,
) -> Figure:
    """Draw the most frequent category in each cell of a UMAP, with a legend of their rows, and their names in place.

    Args:
        coordinates: (N, 2); rows that are not finite are left out.
        categories: of the N rows.
        path: output file, if any, or several; the suffix sets the format (.png, .pdf, .svg).
        least: cells with fewer cutouts stay empty.
        cells: cells along each coordinate.
        limits: ((x0, x1), (y0, y1)) to be drawn; by default the central 99 % of each coordinate.
        title: title of the figure.
        labels: names of the two coordinates.
        style: size, fonts, colours.

    Raises:
        InputFileError: Arrays of different lengths, or no finite coordinates.
        OptionError: Unknown suffix of the output file.
    """
    _same_length(coordinates, categories.codes)
    style = style or Style()
    grid = _plane(coordinates, limits, cells)
    x, y = coordinates[:, 0], coordinates[:, 1]
    shown = _some_cell(categories.most_frequent(grid, x, y, least), least)
    below = style.is_narrow(_PLANE[0])
    figure, axes = _plane_axes(style, title, labels, _TALL if below else _WIDE)
    colours, norm = category_colours(categories, style.cmap)
    draw_plane(axes, grid, np.ma.masked_invalid(shown), cmap=colours, norm=norm)
    write_names(axes, categories, grid, shown, x, y)
    _key(figure, category_key(categories, colours), categories.name, below=below)
    return _done(figure, path, style)


@styled
def map_density(
    lon: FloatArray,
    lat: FloatArray,
    path: Places | None = None,
    *,
    degrees: float = 2.0,
    title: str = "",
    style: Style | None = None,
) -> Figure:
    """Draw the number of cutouts in each cell of the globe, in logarithmic colours, with coastlines.

    Args:
        lon: (N,) degrees east, of -180..180 or 0..360.
        lat: (N,) degrees north.
        path: output file, if any, or several; the suffix sets the format (.png, .pdf, .svg).
        degrees: side of a cell.
        title: title of the figure.
        style: size, fonts, colours, projection.

    Raises:
        InputFileError: Arrays of different lengths, or no row on the map.
        OptionError: Unknown suffix of the output file.
    """
    style = style or Style()
    globe, grid, lon = _on_globe(lon, lat, degrees, style)
    figure, axes = _map_axes(style, globe, title)
    counts = grid.counts(lon, lat)
    cmap, norm = count_colours(counts, cmap=style.cmap, limits=style.limits, log=style.log)
    drawn = draw_cells(axes, globe, grid, np.ma.masked_equal(counts, 0), cmap, norm)
    draw_globe(axes, globe, hatched=is_pale(cmap), short=style.is_narrow(_MAP[0]))
    across = _is_across(style, globe)
    count_bar(figure, drawn, axes, "cutouts in a cell", across=across, narrow=style.is_narrow(_MAP[0]))
    _map_legend(figure, cmap)
    return _done(figure, path, style)


@styled
def map_metric(
    lon: FloatArray,
    lat: FloatArray,
    values: FloatArray,
    path: Places | None = None,
    *,
    name: str = "",
    least: int = 1,
    degrees: float = 2.0,
    title: str = "",
    style: Style | None = None,
) -> Figure:
    """Draw the mean of a metric over each cell of the globe, with coastlines.

    Args:
        lon: (N,) degrees east, of -180..180 or 0..360.
        lat: (N,) degrees north.
        values: (N,); those that are not finite are left out.
        path: output file, if any, or several; the suffix sets the format (.png, .pdf, .svg).
        name: of the metric, such as "DT"; the unit of a known column is added.
        least: cells with fewer cutouts stay empty.
        degrees: side of a cell.
        title: title of the figure.
        style: size, fonts, colours, projection.

    Raises:
        InputFileError: Arrays of different lengths, no finite value, or no row on the map.
        OptionError: Unknown suffix of the output file.
    """
    _same_length(lon, values)
    some_finite(values, name)
    style = style or Style()
    globe, grid, lon = _on_globe(lon, lat, degrees, style)
    means = _some_cell(grid.means(lon, lat, values, least), least)
    cmap, norm = colours_of(means, cmap=style.cmap, limits=style.limits, log=style.log)
    figure, axes = _map_axes(style, globe, title)
    drawn = draw_cells(axes, globe, grid, means, cmap, norm)
    draw_globe(axes, globe, hatched=is_pale(cmap), short=style.is_narrow(_MAP[0]))
    mean_bar(figure, drawn, axes, mean_label(name), means, across=_is_across(style, globe))
    _map_legend(figure, cmap)
    return _done(figure, path, style)


@styled
def map_categories(
    lon: FloatArray,
    lat: FloatArray,
    categories: Categories,
    path: Places | None = None,
    *,
    least: int = 1,
    degrees: float = 2.0,
    title: str = "",
    style: Style | None = None,
) -> Figure:
    """Draw the most frequent category in each cell of the globe, with coastlines and a legend of their rows.

    Args:
        lon: (N,) degrees east, of -180..180 or 0..360.
        lat: (N,) degrees north.
        categories: of the N rows.
        path: output file, if any, or several; the suffix sets the format (.png, .pdf, .svg).
        least: cells with fewer cutouts stay empty.
        degrees: side of a cell.
        title: title of the figure.
        style: size, fonts, colours, projection.

    Raises:
        InputFileError: Arrays of different lengths, or no row on the map.
        OptionError: Unknown suffix of the output file.
    """
    _same_length(lon, categories.codes)
    style = style or Style()
    globe, grid, lon = _on_globe(lon, lat, degrees, style)
    shown = _some_cell(categories.most_frequent(grid, lon, lat, least), least)
    colours, norm = category_colours(categories, style.cmap)
    figure, axes = _map_axes(style, globe, title)
    draw_cells(axes, globe, grid, shown, colours, norm)
    draw_globe(axes, globe, short=style.is_narrow(_MAP[0]))
    _key(figure, [*category_key(categories, colours), *map_key()], categories.name, below=True)
    return _done(figure, path, style)


def _is_across(style: Style, globe: Globe) -> bool:
    """Return whether the colour bar is below a map: where there is little width, and below the oval ones."""
    return style.is_narrow(_MAP[0]) or (globe.projection != "plain" and not globe.pole)


def _on_globe(lon: FloatArray, lat: FloatArray, degrees: float, style: Style) -> tuple[Globe, Grid, FloatArray]:
    """Return the map, its cells, and longitudes as it has them."""
    _same_length(lon, lat)
    if not (np.isfinite(lon) & np.isfinite(lat)).any():
        raise InputFileError(f"expected positions, got none that is finite in {len(lon):,} rows")
    globe = globe_for(style.projection, style.central_longitude, lat)
    return globe, globe.grid(degrees), globe.wrap(lon)


def _plane(coordinates: FloatArray, limits: Limits | None, cells: int) -> Grid:
    for name, ends in zip("xy", limits or (), strict=False):
        check_limits(ends, f"limits of {name}")
    return Grid(*(limits or central_limits(coordinates)), cells, cells)


def _same_length(first: FloatArray, second: Any) -> None:
    if len(first) != len(second):
        raise InputFileError(f"expected one value for each of {len(first)} cutouts, got {len(second)}")


def _some_cell(means: FloatArray, least: int) -> FloatArray:
    if not np.isfinite(means).any():
        raise InputFileError(
            f"expected a cell with at least {least} values, got none: lower least=, or use larger cells"
        )
    return means


def _plane_axes(
    style: Style, title: str, labels: tuple[str, str], size: tuple[float, float] = _PLANE
) -> tuple[Figure, Any]:
    figure = Figure(figsize=style.figsize(*size), layout="compressed")
    axes = figure.add_subplot(title=wrapped(title, figure), xlabel=labels[0], ylabel=labels[1])
    axes.set_box_aspect(1)
    return figure, axes


def _map_axes(style: Style, globe: Globe, title: str) -> tuple[Figure, Any]:
    width, height = _PLANE if globe.pole else _MAP
    if _is_across(style, globe) or style.size is not None:
        height *= 1.2 if _is_across(style, globe) else 1.08  # room for what is below, in letters of a page
    figure = Figure(figsize=style.figsize(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(wrapped(title, figure), pad=14 if globe.pole else None)
    return figure, axes


def _key(figure: Figure, entries: list[Any], title: str, *, below: bool) -> None:
    """Add a legend beside or below the axes."""
    where: dict[str, Any] = (
        {"loc": "outside lower center", "ncols": 3 if below else 1} if below else {"loc": "outside right upper"}
    )
    figure.legend(handles=entries, title=title, frameon=False, handlelength=1.2, **where)


def _map_legend(figure: Figure, cmap: Any) -> None:
    """Say what is land, and what has no data."""
    entries = map_key(hatched=is_pale(cmap))
    figure.legend(handles=entries, loc="outside lower center", ncols=2, frameon=False, handlelength=1.2)


def _done(figure: Figure, path: Places | None, style: Style) -> Figure:
    if path is not None:
        save_figure(figure, path, style=style)
    else:
        figure.draw_without_rendering()  # texts that are made as they are drawn belong to the style too
    return figure
