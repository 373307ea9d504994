"""`nenya figures`: draws figures of a table and its cutouts."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nenya.archive.folder import Opened, open_chosen
from nenya.data.cutouts import inspect_cutouts
from nenya.data.masks import read_clear
from nenya.errors import InputFileError, OptionError
from nenya.io import read_table
from nenya.latents.components import fit_pca
from nenya.options.commands import FiguresOptions
from nenya.storage.disk import check_output
from nenya.storage.paths import fetch, find_sources, local_path
from nenya.tables.classes import Classes, classes_of_column
from nenya.tables.conditions import rows_where
from nenya.tables.grids import Grid, globe, wrap_longitude
from nenya.tables.place_and_time import usual_names
from nenya.tables.quantities import columns_of

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

_SUFFIXES = (".png", ".pdf", ".svg")
_FOLDER = "outputs/figures"
_COORDINATES = ("US0", "US1")
_LEAST = 5  # smallest number of cutouts in a cell whose mean is shown
_MOST_CELLS = 120  # along a coordinate, where there are enough rows
_DEGREES = (2.0, 3.0, 5.0, 10.0)  # sides of a map's cells
_MOST_PIXELS = 64 * 64  # of a cutout whose eigen-images are taken: the covariance of these is 134 MB


def run(options: FiguresOptions) -> int:
    """Draw one figure.

    Args:
        options: of `scripts/figures.py`.

    Returns:
        0.

    Raises:
        NenyaError: An option is not possible, a file cannot be read, or the figure cannot be written.
    """
    path = local_path(options.out or f"{_FOLDER}/{options.kind}.png")
    if path.suffix.lower() not in _SUFFIXES:
        if path.suffix and not path.is_dir():
            raise OptionError(f"out={path}: expected a folder or a picture ({', '.join(_SUFFIXES)})")
        path = path / f"{options.kind}.png"
    check_output(path, options.clobber)
    opened = open_chosen(options) if options.kind != "eigen" or options.archive_dir else None
    if opened is not None and not options.images and options.kind in ("gallery", "eigen"):
        options.images = [str(place) for place in opened.paths("cutouts")]
    if options.kind == "eigen":
        _eigen(path, options)
    else:
        table, whole = _table(options, opened)
        if options.kind == "umap":
            _umap(path, table, options, whole)
        else:
            {"metric": _metric, "map": _map, "gallery": _gallery}[options.kind](path, table, options)
    log.info("%s", path)
    return 0


def _table(options: FiguresOptions, opened: Opened | None) -> tuple["pd.DataFrame", "pd.DataFrame"]:
    """Return the rows to draw, and the complete table."""
    whole = usual_names(opened.table() if opened else read_table(local_path(options.table or "")))
    table = whole[rows_where(whole, options.where)].reset_index(drop=True) if options.where else whole
    if not len(table):
        raise OptionError(f"{options.table or options.archive_dir}: where= selects no row; widen it")
    return table, whole


def _umap(path: Path, table: "pd.DataFrame", options: FiguresOptions, whole: "pd.DataFrame") -> None:
    from nenya.plotting import umap_density

    every = columns_of(whole, *_COORDINATES) if options.where else None
    title = f"{len(table):,} cutouts" if every is None else f"{len(table):,} of {len(whole):,} cutouts (grey)"
    umap_density(
        columns_of(table, *_COORDINATES),
        path,
        cells=options.cells or 200,
        title=_title(options, title),
        background=every,
    )


def _metric(path: Path, table: "pd.DataFrame", options: FiguresOptions) -> None:
    from nenya.plotting import umap_classes, umap_metric
    from nenya.plotting.paper import central_limits

    if not options.metric:
        raise OptionError("expected metric=, the column to average over cells, such as metric=DT")
    if (classes := _classes(table, options.metric)) is not None:
        umap_classes(
            columns_of(table, *_COORDINATES),
            classes,
            path,
            cells=options.cells or _side_in_cells(len(table), 1),
            title=_title(options, f"{len(table):,} cutouts: the commonest of each cell"),
        )
        return
    values = columns_of(table, *_COORDINATES, options.metric)
    limits = central_limits(values[:, :2])
    cells = options.cells or _side_in_cells(len(table), options.least or _LEAST)
    counts = Grid(*limits, cells, cells).sums(*values.T)[0]
    least = options.least or _least_of(counts)
    umap_metric(
        values[:, :2],
        values[:, 2],
        path,
        name=options.metric,
        least=least,
        cells=cells,
        limits=limits,
        title=_title(options, _counted(counts, least, len(table))),
    )


def _classes(table: "pd.DataFrame", name: str) -> Classes | None:
    """Return the classes of a column, if it holds a few integers or strings: their mean would say nothing."""
    return classes_of_column(table[name]) if name in table else None


def _side_in_cells(rows: int, least: int) -> int:
    """Return the number of cells along a coordinate for which a typical cell has more than `least` rows."""
    return int(np.clip(np.sqrt(rows / (2 * least)), 4, _MOST_CELLS))


def _least_of(counts: NDArray[np.int64]) -> int:
    """Return the smallest number of cutouts in a mean: as given, else 5, or fewer where no cell has as many."""
    return int(np.clip(counts.max(initial=0), 1, _LEAST))


def _counted(counts: NDArray[np.int64], least: int, rows: int) -> str:
    shown = int(counts[counts >= least].sum())
    return f"{shown:,} of {rows:,} cutouts, in cells with at least {least}"


def _map(path: Path, table: "pd.DataFrame", options: FiguresOptions) -> None:
    from nenya.plotting import map_classes, map_density, map_metric

    title = _title(options, f"{len(table):,} cutouts")
    if not options.metric:
        lon, lat = columns_of(table, "lon", "lat").T
        map_density(lon, lat, path, degrees=options.degrees or _DEGREES[0], title=title)
        return
    if (classes := _classes(table, options.metric)) is not None:
        lon, lat = columns_of(table, "lon", "lat").T
        title = _title(options, f"{len(table):,} cutouts: the commonest of each cell")
        map_classes(lon, lat, classes, path, degrees=options.degrees or _DEGREES[0], title=title)
        return
    lon, lat, values = columns_of(table, "lon", "lat", options.metric).T
    for degrees in (options.degrees,) if options.degrees else _DEGREES:
        counts = globe(degrees).sums(wrap_longitude(lon), lat, values)[0]
        if counts.any() and np.median(counts[counts > 0]) >= (options.least or _LEAST):
            break  # else the largest cells
    least = options.least or _least_of(counts)
    title = _title(options, _counted(counts, least, len(table)))
    map_metric(lon, lat, values, path, name=options.metric, least=least, degrees=degrees, title=title)


def _gallery(path: Path, table: "pd.DataFrame", options: FiguresOptions) -> None:
    from nenya.data.table_images import TableImages
    from nenya.plotting import gallery, nearest_to_centres
    from nenya.plotting.paper import central_limits

    if not options.images:
        raise OptionError("expected images=, the cutout files of the table")
    coordinates = columns_of(table, *_COORDINATES)
    limits, cells = central_limits(coordinates), options.cells or 12
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
        path,
        cells=cells,
        title=title,
        labels=_COORDINATES,
        scale=scale,
        limits=limits,
    )


def _eigen(path: Path, options: FiguresOptions) -> None:
    """Draw the principal components of the pixels of all cutouts; cutouts with NaN are left out."""
    from nenya.plotting import eigen_images

    if not options.images:
        raise OptionError("expected images=, the cutout files")
    loader = options.loader
    names = (loader.train_key, loader.valid_key)
    paths = fetch(find_sources(options.images), loader.cache_dir)
    files = [inspect_cutouts(p, names, allow_external=loader.allow_external) for p in paths]
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
        path,
        title=_title(options, f"eigen-images of {pca.n_rows:,} cutouts, fractions of the variance"),
    )


def _title(options: FiguresOptions, default: str) -> str:
    if options.title is not None:
        return options.title
    return f"{default}: {options.where}" if options.where else default
