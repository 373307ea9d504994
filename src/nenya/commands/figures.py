"""`nenya figures`: draws figures of a table and its cutouts."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nenya.archive.folder import Opened, open_chosen
from nenya.commands.pictures import picture_paths, style_of
from nenya.data.cutouts import inspect_cutouts
from nenya.data.masks import read_clear
from nenya.errors import InputFileError, OptionError
from nenya.io import read_table
from nenya.latents.components import fit_pca
from nenya.options.commands import FiguresOptions
from nenya.plotting.globe import globe_for
from nenya.plotting.style import Style
from nenya.storage.disk import check_output, together
from nenya.storage.paths import fetch, find_sources, local_path
from nenya.storage.texts import lines_of
from nenya.tables.categories import Categories, categories_of
from nenya.tables.conditions import rows_where
from nenya.tables.grids import Grid
from nenya.tables.place_and_time import usual_names
from nenya.tables.quantities import columns_of
from nenya.tables.tags import place_of_tags, with_tags

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

_FOLDER = "outputs/figures"
_COORDINATES = ("US0", "US1")
_LEAST = 5  # smallest number of cutouts for which the mean of a cell is shown
_MOST_CELLS = 120  # along a coordinate, where there are enough rows
_DEGREES = (2.0, 3.0, 5.0, 10.0)  # sides of a map's cells
_MOST_PIXELS = 64 * 64  # of a cutout for eigen-images: the covariance of so many pixels is 134 MB


def run(options: FiguresOptions) -> int:
    """Draw one figure.

    Args:
        options: of `scripts/figures.py`.

    Returns:
        0.

    Raises:
        NenyaError: An option is not possible, a file cannot be read, or the figure cannot be written.
    """
    paths = picture_paths(options.out, options, options.kind, _FOLDER)
    for path in paths:
        check_output(path, options.clobber)
    style = style_of(options)
    opened = open_chosen(options) if options.kind != "eigen" or options.archive_dir else None
    if opened is not None and not options.images and options.kind in ("gallery", "eigen"):
        options.images = [str(place) for place in opened.paths("cutouts")]
    with together():
        if options.kind == "eigen":
            _eigen(paths, options, style)
        else:
            table, whole = _table(options, opened)
            if options.kind == "umap":
                _umap(paths, table, options, style, whole)
            else:
                {"metric": _metric, "map": _map, "gallery": _gallery}[options.kind](paths, table, options, style)
    log.info("%s", lines_of(paths))
    return 0


def _table(options: FiguresOptions, opened: Opened | None) -> tuple["pd.DataFrame", "pd.DataFrame"]:
    """Return the rows to draw, and the complete table."""
    place = place_of_tags(options.tags, options.table, options.archive_dir)
    whole = usual_names(with_tags(opened.table() if opened else read_table(local_path(options.table or "")), place))
    table = whole[rows_where(whole, options.where)].reset_index(drop=True) if options.where else whole
    if not len(table):
        raise OptionError(f"{options.table or options.archive_dir}: where= selects no row; widen it")
    return table, whole


def _umap(
    paths: list[Path], table: "pd.DataFrame", options: FiguresOptions, style: Style, whole: "pd.DataFrame"
) -> None:
    from nenya.plotting import umap_density

    every = columns_of(whole, *_COORDINATES) if options.where else None
    title = f"{len(table):,} cutouts" if every is None else f"{len(table):,} of {len(whole):,} cutouts (grey)"
    umap_density(
        columns_of(table, *_COORDINATES),
        paths,
        cells=options.cells or 200,
        limits=_box(options),
        title=_title(options, title),
        background=every,
        style=style,
    )


def _box(options: FiguresOptions) -> Any:
    """Return the part of the UMAP that the options name, as limits of both coordinates."""
    box = options.box
    return None if box is None else ((float(box[0]), float(box[1])), (float(box[2]), float(box[3])))


def _metric(paths: list[Path], table: "pd.DataFrame", options: FiguresOptions, style: Style) -> None:
    from nenya.plotting import umap_categories, umap_metric
    from nenya.plotting.paper import Limits, central_limits

    if not options.metric:
        raise OptionError("expected metric=, the column to average over cells, such as metric=DT")
    groups = _categories(table, options)
    points = columns_of(table, *_COORDINATES)
    values = columns_of(table, options.metric)[:, 0] if groups is None else _known(groups)
    limits: Limits = _box(options) or central_limits(points)
    cells = options.cells or _side_in_cells(len(table), options.least or _LEAST)
    counts = Grid(*limits, cells, cells).sums(points[:, 0], points[:, 1], values)[0]
    least = options.least or (_least_of(counts) if groups is None else 1)
    title = _title(options, _counted(counts, least, len(table), options.metric if groups else ""))
    if groups is not None:
        umap_categories(points, groups, paths, least=least, cells=cells, limits=limits, title=title, style=style)
        return
    umap_metric(
        points,
        values,
        paths,
        name=options.metric,
        least=least,
        cells=cells,
        limits=limits,
        title=title,
        style=style,
    )


def _categories(table: "pd.DataFrame", options: FiguresOptions) -> Categories | None:
    """Return the categories in the column of the options; None if it has numbers."""
    found = categories_of(table, str(options.metric), wanted=options.categories, names=options.names)
    if found is None and options.names:
        raise OptionError(f"names=: has an effect only with categories, but {options.metric} has numbers")
    for name, value in (("limits", options.limits), ("log", options.log)):
        if found is not None and value is not None:
            raise OptionError(
                f"{name}={value}: has no effect on the categories of {options.metric}; leave it out, or give "
                "categories=false for means of numbers"
            )
    return found


def _known(groups: Categories) -> NDArray[np.float64]:
    """Return 0 for rows with a category, NaN for the others: (N,)."""
    return np.where(groups.codes >= 0, 0.0, np.nan)


def _side_in_cells(rows: int, least: int) -> int:
    """Return the number of cells along a coordinate for which a typical cell has more than `least` rows."""
    return int(np.clip(np.sqrt(rows / (2 * least)), 4, _MOST_CELLS))


def _least_of(counts: NDArray[np.int64]) -> int:
    """Return the smallest number of cutouts in a mean: as given, else 5, or fewer where no cell has as many."""
    return int(np.clip(counts.max(initial=0), 1, _LEAST))


def _counted(counts: NDArray[np.int64], least: int, rows: int, categories: str = "") -> str:
    shown = int(counts[counts >= least].sum())
    if categories and least <= 1:
        return f"most frequent {categories} in a cell, {shown:,} of {rows:,} cutouts"
    return f"{shown:,} of {rows:,} cutouts, in cells with at least {least}"


def _map(paths: list[Path], table: "pd.DataFrame", options: FiguresOptions, style: Style) -> None:
    from nenya.plotting import map_categories, map_density, map_metric

    lon, lat = columns_of(table, "lon", "lat").T
    hidden = _beyond(lat, style)
    if not options.metric:
        title = _title(options, f"{len(table) - hidden:,}{f' of {len(table):,}' if hidden else ''} cutouts")
        map_density(lon, lat, paths, degrees=options.degrees or _DEGREES[0], title=title, style=style)
        return
    groups = _categories(table, options)
    values = columns_of(table, options.metric)[:, 0] if groups is None else _known(groups)
    on_map = globe_for(style.projection, style.central_longitude, lat)
    for degrees in (options.degrees,) if options.degrees else _DEGREES:
        counts = on_map.grid(degrees).sums(on_map.wrap(lon), lat, values)[0]
        if counts.any() and np.median(counts[counts > 0]) >= (options.least or _LEAST):
            break  # else the largest cells
    least = options.least or (_least_of(counts) if groups is None else 1)
    title = _title(options, _counted(counts, least, len(table), options.metric if groups else ""))
    if groups is not None:
        map_categories(lon, lat, groups, paths, least=least, degrees=degrees, title=title, style=style)
        return
    map_metric(lon, lat, values, paths, name=options.metric, least=least, degrees=degrees, title=title, style=style)


def _beyond(lat: NDArray[np.float64], style: Style) -> int:
    """Return the number of rows that a map around a pole leaves out; they are logged."""
    south, north = globe_for(style.projection, style.central_longitude, lat).latitudes
    hidden = int(((lat < south) | (lat > north)).sum())
    if hidden:
        log.warning("projection=%s leaves out %d of %d rows, beyond its rim", style.projection, hidden, len(lat))
    return hidden


def _gallery(paths: list[Path], table: "pd.DataFrame", options: FiguresOptions, style: Style) -> None:
    from nenya.data.table_images import TableImages
    from nenya.plotting import gallery, nearest_to_centres
    from nenya.plotting.paper import UMAP_LABELS, central_limits

    if not options.images:
        raise OptionError("expected images=, the cutout files of the table")
    coordinates = columns_of(table, *_COORDINATES)
    limits, cells = _box(options) or central_limits(coordinates), options.cells or 12
    images = TableImages(options.images, table, options.loader)
    if images.note:
        log.warning("%s", images.note)
    coordinates[~images.known] = np.nan
    picks = nearest_to_centres(coordinates, cells, limits)
    picks = picks[picks >= 0]
    if not len(picks):
        raise InputFileError(
            "no cutout of images= has coordinates within the plane; check that images= are the cutouts of the table"
        )
    scale: Any = options.scale
    title = _title(options, f"{len(picks)} of {len(table):,} cutouts")
    title = title if options.title is not None else images.titled(title)
    gallery(
        images.read(picks),
        coordinates[picks],
        paths,
        cells=cells,
        title=title,
        labels=UMAP_LABELS,
        scale=scale,
        limits=limits,
        pixel_km=options.pixel_km,
        style=style,
    )


def _eigen(paths: list[Path], options: FiguresOptions, style: Style) -> None:
    """Draw the principal components of the pixels of all cutouts; cutouts with NaN are left out."""
    from nenya.plotting import eigen_images

    if not options.images:
        raise OptionError("expected images=, the cutout files")
    loader = options.loader
    names = (loader.train_key, loader.valid_key)
    sources = fetch(find_sources(options.images), loader.cache_dir)
    files = [inspect_cutouts(p, names, allow_external=loader.allow_external) for p in sources]
    sizes = {(part.height, part.width) for file in files for part in file.partitions.values()}
    if len(sizes) > 1 or max(h * w for h, w in sizes) > _MOST_PIXELS:
        raise InputFileError(f"expected cutouts of one size, at most {_MOST_PIXELS} pixels, got {sorted(sizes)} pixels")

    def blocks() -> Iterator[NDArray[np.float32]]:
        for file in files:
            for name in file.partitions:
                for block in read_clear(file, name):
                    yield block.reshape(len(block), -1)

    pca = fit_pca(blocks())
    most = min(options.components, len(pca.components))
    eigen_images(
        pca.components[:most],
        pca.explained_variance_ratio[:most],
        paths,
        title=_title(options, f"eigen-images of {pca.n_rows:,} cutouts, fractions of the variance"),
        style=style,
    )


def _title(options: FiguresOptions, default: str) -> str:
    if options.title is not None:
        return options.title
    return f"{default}: {options.where}" if options.where else default
