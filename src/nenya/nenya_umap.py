"""UMAPs of latents: fitting one on a part of a table, finding that of a model, grids, and regions."""

import logging
import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nenya.defs import REGIONS, dt_bin
from nenya.errors import InputFileError, OptionError, OptionFileError
from nenya.io import Params, read_table, under_outdir
from nenya.latents.embed import DEBUG_ROWS, Fit, embed_table, projector_place
from nenya.latents.files import Latents, open_latents
from nenya.options.declare import suggest
from nenya.storage.paths import fetch, find_latents, is_s3, key_of, local_path
from nenya.storage.s3.service import join_url, store
from nenya.tables.key_columns import read_keys
from nenya.tables.names import latents_names
from nenya.tables.quantities import MASKED_AT_MOST, cut_table

if TYPE_CHECKING:
    import pandas as pd

    from nenya.latents.projector import Projector

log = logging.getLogger(__name__)

_PLACES = {  # model -> folder below $OS_SST, name of its tables
    "CF": ("MODIS_L2", "MODIS_SSL_cloud_free"),
    "v4": ("MODIS_L2", "MODIS_SSL_96clear_v4"),
    "v5": ("MODIS_L2", "MODIS_Nenya_96clear_v5"),
    "viirs_v1": ("VIIRS", "VIIRS_Nenya_98clear_v1"),
}


def DT_interval(inp: tuple[float, float] | None) -> tuple[float, float]:
    """Return the lowest and highest DT of a value of `nenya.defs.umap_DT`, K.

    Examples:
        >>> DT_interval((1.5, 0.25))
        (1.25, 1.75)
    """
    if inp is None:
        return 0.0, 1e12
    return (inp[0], inp[0] + 1e12) if inp[1] < 0 else (inp[0] - inp[1], inp[0] + inp[1])


def umap_subset(  # noqa: PLR0913  # the arguments that users know
    tbl: "pd.DataFrame | str | Path | None" = None,
    opt_path: str | Path | None = None,
    outfile: str | Path | None = None,
    DT_cut: str | None = None,
    alpha_cut: str | None = None,
    max_cloud_fraction: float | None = None,
    ntrain: int = 200_000,
    remove: bool = True,
    umap_savefile: str | Path | None = None,
    local: bool = True,
    CF: bool = False,
    debug: bool = False,
    train_umap: bool = True,
    DT_key: str = "DT40",
    *,
    modis_tbl: "pd.DataFrame | None" = None,
    latents: Any = None,
    n_neighbors: int = 15,
    min_dist: float = 0.1,
    metric: str = "euclidean",
    seed: int = 1234,
    approximate: bool = False,
    clobber: bool = True,
) -> "Projector":
    """Fit a UMAP on a part of a table, and write that part with the columns US0, US1.

    Args:
        tbl: the table, or its path.
        opt_path: option file (JSON) of the model, which locates its latents: `$OS_SST/<sensor>/Nenya/` or
            `<s3_outdir>/`, and below it `<latents_folder>/<name of pp_file>_latents.h5`, or the original's name
            (`_preproc` replaced by `_latents`). Not needed with `latents`.
        outfile: the output table; overwritten.
        DT_cut: name of an interval of `nenya.defs.DT_INTERVALS` to select rows, by the column `DT_key`.
        alpha_cut: name of an interval of `nenya.defs.SLOPE_INTERVALS`, by the column alpha or min_slope.
        max_cloud_fraction: largest share of masked pixels. A number of rows here is `ntrain`, which had this place.
        ntrain: largest number of rows for the fit.
        remove: remove the copies of latents fetched from S3.
        umap_savefile: the projector, `.h5`; default `<name of outfile>_UMAP.h5` beside it. The name of a pickle gets
            the suffix `.h5`.
        local: look for the latents below $OS_SST first.
        CF: ignored: the table defines the rows.
        debug: the first 2,000 rows only.
        train_umap: fit a UMAP; otherwise use that in `umap_savefile`.
        DT_key: column of temperature differences; without it DT40, DT, or T90 - T10.
        modis_tbl: the table, by its earlier name.
        latents: latents files in place of those of `opt_path`: a path, glob, list, s3://.
        n_neighbors: see `nenya.latents.projector.Projector.fit`.
        min_dist: see there.
        metric: see there.
        seed: of all random numbers.
        approximate: place rows by the approximate search.
        clobber: overwrite existing outputs.

    Returns:
        The projector.

    Raises:
        NenyaError: A file cannot be read or written, or an option is invalid.
    """
    if isinstance(max_cloud_fraction, int) and max_cloud_fraction > 1:  # the order without it
        if isinstance(ntrain, bool):
            remove = ntrain
        max_cloud_fraction, ntrain = None, max_cloud_fraction
    tbl = modis_tbl if tbl is None else tbl
    if tbl is None or outfile is None:
        raise OptionError("expected a table and outfile=, the path of the output table")
    table = tbl if not isinstance(tbl, str | Path) else read_table(tbl)
    table = _without_clouds(cut_table(table, DT_cut, alpha_cut, DT_key), max_cloud_fraction)
    if debug:
        table = table.iloc[:DEBUG_ROWS]
    out = local_path(str(outfile))
    saved = _projector_file(umap_savefile) if umap_savefile else projector_place(out)
    sources = find_latents(latents if latents is not None else _latents_of(table, opt_path, local=local))
    paths = fetch(sources, None)
    fit = Fit(ntrain, _neighbours(n_neighbors, min(ntrain, len(table))), min_dist, metric, seed)
    projector = embed_table(
        Latents(paths, places=sources), table, out, fit if train_umap else saved, saved,
        approximate=approximate, clobber=clobber,
    )  # fmt: skip
    for source, path in zip(sources, paths, strict=True):
        if remove and is_s3(source):
            path.unlink(missing_ok=True)
    return projector


def umap_latents(
    latents_files: Sequence[str | Path] | str | Path,
    debug: bool = False,
    train_umap: bool = True,
    ntrain: int = 200_000,
    umap_savefile: str | Path | None = None,
    keys: str | Sequence[str] = "valid",
    *,
    seed: int = 1234,
) -> tuple["Projector", NDArray[np.float32]]:
    """Fit a UMAP on latents, and place them all.

    Args:
        latents_files: latents files.
        debug: the first 2,000 rows of each only.
        train_umap: fit a UMAP and write it to `umap_savefile`, if given; otherwise use that file.
        ntrain: largest number of rows for the fit.
        umap_savefile: the projector, `.h5`.
        keys: the partition of each file, or one for all.
        seed: of the sample and the fit.

    Returns:
        The projector, and the coordinates (N, 2) of all rows, one file after the other; NaN for a latent of NaN.

    Raises:
        OptionError: No `umap_savefile` to use, or another number of keys than files.
        InputFileError: A file cannot be read.
    """
    from nenya.latents.projector import Projector

    files = [latents_files] if isinstance(latents_files, str | Path) else list(latents_files)
    names = [keys] * len(files) if isinstance(keys, str) else list(keys)
    if len(names) != len(files) or not files:
        raise OptionError(f"expected a key for each latents file, got {len(names)} for {len(files)}")
    if not train_umap and umap_savefile is None:
        raise OptionError("expected umap_savefile=, the projector to use, with train_umap=False")
    most = DEBUG_ROWS if debug else None
    rows = [np.asarray(open_latents(f, partitions=(key,))[:most]) for f, key in zip(files, names, strict=True)]
    latents = np.concatenate(rows)
    if not train_umap:
        projector = Projector.load(_projector_file(umap_savefile or ""))
    else:
        good = np.flatnonzero(np.isfinite(latents).all(axis=1))
        sample = np.sort(np.random.default_rng(seed).permutation(good)[:ntrain])
        projector = Projector.fit(latents[sample], n_neighbors=_neighbours(15, len(sample)), seed=seed)
        if umap_savefile is not None:
            projector.save(_projector_file(umap_savefile))
    return projector, projector.transform(latents)


def _neighbours(wanted: int, rows: int) -> int:
    """Return the number of neighbours for a fit of so many rows: fewer than rows, as umap-learn has it."""
    most = max(2, rows - 1)
    if wanted > most:
        log.warning("n_neighbors=%d is reduced to %d, for %d rows", wanted, most, rows)
    return min(wanted, most)


def _projector_file(name: str | Path) -> Path:
    """Return the path of a projector: the name of a pickle gets the suffix `.h5`."""
    path = local_path(str(name))
    if path.suffix in (".pkl", ".pickle"):
        log.info("%s: projectors are HDF5 files, so it is %s", path, path.with_suffix(".h5").name)
        return path.with_suffix(".h5")
    return path


def _without_clouds(table: "pd.DataFrame", most: float | None) -> "pd.DataFrame":
    """Return the rows with at most a share of masked pixels."""
    if most is None:
        return table
    if "clear_fraction" not in table:
        raise InputFileError("max_cloud_fraction: expected a column clear_fraction in the table")
    masked = table["clear_fraction"].to_numpy(np.float64, na_value=np.nan)
    if np.nanmax(masked, initial=0) > MASKED_AT_MOST:  # the share of clear pixels, as nenya prepare writes it
        masked = 1 - masked
    return table[masked < most]


def _latents_of(table: "pd.DataFrame", opt_path: str | Path | None, *, local: bool = True) -> list[str]:
    """Return the locations of the latents of a table's cutout files, by the options of their model."""
    names = read_keys(table).names
    if opt_path is None or names is None:
        raise OptionError("expected latents=, or opt_path and a column pp_file, to locate the latents")
    opt = Params(opt_path)
    return [_latents_place(opt, key, local=local) for key in sorted(set(map(key_of, names)))]


def _latents_place(opt: Params, key: str, *, local: bool) -> str:
    """Return the location of the latents of a cutout file, by our name or by the original's.

    Raises:
        InputFileError: There are files of both names.
    """
    folders = [_below_os_sst(opt)] if local and os.environ.get("OS_SST") and opt.sensor else []
    if opt.s3_outdir or not folders:
        folders.append(under_outdir(opt, opt.latents_folder))
    for folder in folders:
        places = [join_url(folder, name) if is_s3(folder) else str(Path(folder, name)) for name in latents_names(key)]
        there = [p for p in places if (store().head(p) is not None if is_s3(p) else Path(p).is_file())]
        if len(there) > 1:
            raise InputFileError(f"{there[0]} and {there[1]} may both be the latents of {key}: choose with latents=")
        if there:
            return there[0]
    return places[0]


def _below_os_sst(opt: Params) -> str:
    """Return the folder of the latents of a model in the users' archive."""
    sensor = "MODIS_L2" if opt.sensor == "MODIS" and not local_path("$OS_SST/MODIS").is_dir() else opt.sensor
    return str(local_path(f"$OS_SST/{sensor}/Nenya/{opt.latents_folder}"))


def places(model_name: str, DT: float | None = None) -> tuple[Path, Path]:
    """Return the locations of the projector and the table of a model.

    Args:
        model_name: name of a model version that has UMAPs.
        DT: T90 - T10 in K of the image, which selects the UMAP.

    Raises:
        OptionError: The model has no UMAPs, DT is outside all bins, or $OS_SST is not set.
    """
    if model_name == "LLC":
        folder = local_path("$OS_SST/LLC/Nenya")
        return folder / "UMAP" / "ssl_LLC_v1_umap.h5", folder / "Tables" / "ssl_LLC_v1.parquet"
    if model_name not in _PLACES:
        known = [*_PLACES, "LLC"]
        raise OptionFileError(
            f"model {model_name} has no UMAPs{suggest(model_name, known)}: expected one of {', '.join(known)}; read "
            "your own UMAP by nenya.latents.projector.Projector.load(file); its method transform places latents of "
            "get_latents"
        )
    if DT is None:
        raise OptionError(f"model {model_name} has one UMAP per interval of temperature difference: give DT= in K")
    try:
        name = f"{_PLACES[model_name][1]}_{dt_bin(float(DT))}"
    except ValueError as error:
        raise OptionError(str(error)) from error
    folder = local_path(f"$OS_SST/{_PLACES[model_name][0]}/Nenya")
    return folder / "UMAP" / f"{name}_UMAP.h5", folder / "Tables" / f"{name}.parquet"


def load(model_name: str, DT: float | None = None, use_s3: bool = False) -> tuple["Projector", str]:
    """Return the projector of a model and the path of its table.

    Args:
        model_name: name of a model version: CF, v4, v5, viirs_v1 or LLC.
        DT: T90 - T10 in K of the image; not needed for LLC.
        use_s3: not possible: the projectors are files below $OS_SST.

    Raises:
        OptionError: See `places`; `use_s3` is true.
        InputFileError: There is no projector, or only the pickle of the original nenya, which is never read.
    """
    from nenya.latents.projector import Projector

    if use_s3:
        raise OptionFileError("use_s3=True: projectors are read below $OS_SST only; copy them there")
    path, table = places(model_name, DT)
    old = path.with_suffix(".pkl")
    if not path.exists():
        cut = "" if model_name == "LLC" else f" DT_cut={dt_bin(float(DT or 0))}"
        what = (
            f"{old} is a pickle of the original nenya, which is not read because it can run code"
            if old.exists()
            else ""
        )
        raise InputFileError(
            f"{what or f'{path}: no such projector'}; fit it: nenya embed data=..._latents.h5 table=...{cut} "
            f"out={table} umap_savefile={path}"
            + (
                " clobber=true, because the existing table has the coordinates of the old UMAP"
                if table.exists()
                else ""
            )
        )
    return Projector.load(path), str(table)


def grid_umap(
    U0: ArrayLike, U1: ArrayLike, nxy: int = 16, percent: Any = (0.05, 99.95), verbose: bool = False
) -> dict[str, Any]:
    """Return a grid of equal cells over a UMAP: nxy x nxy between percentiles, and a margin of one cell all around.

    Args:
        U0: (N,) first coordinate; non-finite values are left out.
        U1: (N,) second coordinate.
        nxy: cells along each axis between the percentiles.
        percent: percentiles of the coordinates.
        verbose: log it.

    Returns:
        `xmin`, `xmax`, `ymin`, `ymax`, with the margins; `dxv`, `dyv`, the sides of a cell, and both as `dxdy`;
        `xval`, `yval`, the nxy + 3 edges.

    Raises:
        OptionError: nxy is less than 1.
        InputFileError: No row has finite coordinates, or all are equal.

    Examples:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> grid = grid_umap(rng.random(500), rng.random(500), nxy=8)
        >>> len(grid["xval"])  # 8 + 3 edges
        11
    """
    if nxy < 1:
        raise OptionError(f"nxy={nxy}: expected at least 1")
    x, y = np.asarray(U0, dtype=np.float64), np.asarray(U1, dtype=np.float64)
    finite = np.isfinite(x) & np.isfinite(y)
    if not finite.any():
        raise InputFileError("expected UMAP coordinates, got no finite row; run nenya embed")
    (xmin, xmax), (ymin, ymax) = (np.percentile(values[finite], list(percent)) for values in (x, y))
    dxv, dyv = float(xmax - xmin) / nxy, float(ymax - ymin) / nxy
    if not (dxv > 0 and dyv > 0):
        raise InputFileError("expected UMAP coordinates that differ, got the same for nearly all rows")
    if verbose:
        log.info("UMAP from %g to %g and from %g to %g in cells of %g x %g", xmin, xmax, ymin, ymax, dxv, dyv)
    ends = {"xmin": xmin - dxv, "xmax": xmax + dxv, "ymin": ymin - dyv, "ymax": ymax + dyv}
    grid: dict[str, Any] = {name: float(value) for name, value in ends.items()}
    edges = {f"{axis}val": np.linspace(grid[f"{axis}min"], grid[f"{axis}max"], nxy + 3) for axis in "xy"}
    return {**grid, **edges, "dxv": dxv, "dyv": dyv, "dxdy": (dxv, dyv)}


def _on_grid(tbl: "pd.DataFrame", nxy: int, umap_keys: Any) -> tuple["pd.DataFrame", dict[str, Any], NDArray[np.int64]]:
    """Return the rows within the grid, the grid, and the cell of each row, (n, 2)."""
    missing = [key for key in umap_keys if key not in tbl]
    if missing:
        raise InputFileError(f"the table has no column {', '.join(missing)}: run nenya embed to add US0 and US1")
    values = np.stack([np.asarray(tbl[key], dtype=np.float64) for key in umap_keys], axis=1)
    grid = grid_umap(values[:, 0], values[:, 1], nxy)
    low, high = (np.array([grid[f"x{end}"], grid[f"y{end}"]]) for end in ("min", "max"))
    inside = np.all((values > low) & (values < high), axis=1)
    if "LL" in tbl:
        inside &= np.isfinite(tbl["LL"].to_numpy(np.float64, na_value=np.nan))
    found = values[inside]
    cells = np.stack([np.searchsorted(grid[edges], found[:, i], "right") for i, edges in enumerate(("xval", "yval"))])
    return tbl[inside], grid, np.clip(cells.T - 1, 0, nxy + 1)


def cutouts_on_umap_grid(
    tbl: "pd.DataFrame", nxy: int, umap_keys: Any = ("US0", "US1"), min_pts: int = 1, seed: int = 1234
) -> tuple["pd.DataFrame", list[Any], dict[str, Any]]:
    """Draw a row for each cell of a grid over a UMAP.

    Args:
        tbl: with the coordinates.
        nxy: cells along each axis, without the margins; see `grid_umap`.
        umap_keys: names of the coordinates.
        min_pts: smallest number of rows of a cell from which one is drawn.
        seed: of the draw.

    Returns:
        The rows within the grid (with a finite LL, where there is one); for each of the (nxy + 2) x (nxy + 2) cells, x
        outermost, the drawn row or None; the grid.

    Raises:
        InputFileError: The table has no such columns.
    """
    table, grid, cells = _on_grid(tbl, nxy, umap_keys)
    rng = np.random.default_rng(seed)
    side = nxy + 2
    flat = cells[:, 0] * side + cells[:, 1]
    order = np.argsort(flat, kind="stable")
    starts = np.searchsorted(flat[order], np.arange(side * side + 1))
    cutouts: list[Any] = []
    for first, last in pairwise(starts):
        draw = rng.random()  # one per cell, so that the rows of one cell do not affect others
        chosen = order[first + int(draw * (last - first))] if last - first >= max(min_pts, 1) else None
        cutouts.append(None if chosen is None else table.iloc[chosen])
    return table, cutouts, grid


def regional_analysis(
    geo_region: str, tbl: "pd.DataFrame", nxy: int, umap_keys: Any = ("US0", "US1"), min_counts: int = 200
) -> tuple[NDArray[np.float64], NDArray[np.float64], "pd.DataFrame", dict[str, Any], Any, Any]:
    """Compare the distributions of a region and of the entire ocean in a UMAP.

    Args:
        geo_region: a name of `nenya.defs.REGIONS`.
        tbl: with lat, lon (degrees) and the coordinates.
        nxy: cells along each axis, without the margins; see `grid_umap`.
        umap_keys: names of the coordinates.
        min_counts: cells with fewer rows of the entire ocean are set to 0.

    Returns:
        The shares of the rows of the entire ocean and of the region in each cell, (nxy + 2, nxy + 2), x first, each
        with sum 1 (0 without rows); the rows of the entire ocean within the grid (with a finite LL, where there is
        one); the grid; the edges of its cells, (nxy + 3,) each.

    Raises:
        OptionError: There is no such region.
        InputFileError: The table lacks a column.
    """
    if geo_region not in REGIONS:
        hint = suggest(geo_region, list(REGIONS))
        raise OptionError(f"no region {geo_region}{hint}: expected one of {', '.join(REGIONS)}")
    if "lat" not in tbl or "lon" not in tbl:
        raise InputFileError("expected a table with columns lat and lon")
    table, grid, cells = _on_grid(tbl, nxy, umap_keys)
    region = REGIONS[geo_region]
    lon, lat = (table[name].to_numpy(np.float64, na_value=np.nan) for name in ("lon", "lat"))
    lon = np.where(lon > 180, lon - 360, lon) if region.lon[0] > -999 else lon
    own = (lon > region.lon[0]) & (lon < region.lon[1]) & (lat > region.lat[0]) & (lat < region.lat[1])
    counts, counts_geo = (np.zeros((nxy + 2, nxy + 2)) for _ in range(2))
    np.add.at(counts, tuple(cells.T), 1)
    np.add.at(counts_geo, tuple(cells[own].T), 1)
    counts[counts < min_counts] = 0
    for values in (counts, counts_geo):
        values /= max(values.sum(), 1)
    return counts, counts_geo, table, grid, grid["xval"], grid["yval"]
