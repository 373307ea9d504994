"""Figures by the calls of users' scripts: learning curves, nearest cutouts, galleries, spectra."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from nenya.data.cutouts import CutoutReader
from nenya.data.hdf5_links import damage_named
from nenya.data.hdf5_open import open_hdf5
from nenya.data.masks import InputReader
from nenya.errors import InputFileError, OptionError
from nenya.io import load_main_table
from nenya.plotting.paper import central_limits, reach_of, save_figure, tidy
from nenya.storage.paths import expand
from nenya.tables.quantities import quantity_of

log = logging.getLogger(__name__)

_MOST_CELLS = 10_000


def learn_curve(
    valid_losses_file: str | Path,
    train_losses_file: str | Path,
    ax: Any = None,
    ylog: bool = False,
    outfile: str | Path | None = "fig_learn_curve.png",
) -> Any:
    """Draw the losses of a training against the epoch.

    Args:
        valid_losses_file: `*_losses_valid.h5`.
        train_losses_file: `*_losses_train.h5`; see `nenya.io.losses_filenames`, which returns this one first.
        ax: axes to draw on; by default a figure of its own.
        ylog: logarithmic losses.
        outfile: the figure; None for none.

    Returns:
        The axes.

    Raises:
        InputFileError: A file is missing or has no losses.
        OutputError: The figure cannot be written.
    """
    figure = Figure(figsize=(8, 6), layout="constrained") if ax is None else ax.figure
    axes = figure.add_subplot() if ax is None else ax
    for path, part, label in ((valid_losses_file, "valid", "validation"), (train_losses_file, "train", "training")):
        loss = _losses(Path(path), part)
        axes.plot(np.arange(len(loss)) + 1, loss, label=label, linewidth=2)
    axes.set(xlabel="Epoch", ylabel="Loss", yscale="log" if ylog else "linear")
    axes.legend()
    tidy(axes)
    if outfile is not None:
        save_figure(figure, outfile)
    return axes


def _losses(path: Path, part: str) -> NDArray[np.float64]:
    with open_hdf5(path) as file, damage_named(str(path)):
        if f"loss_{part}" not in file:
            raise InputFileError(f"{path}: expected losses of a training, a data set loss_{part}")
        return np.asarray(file[f"loss_{part}"][()], np.float64)


def closest_latents(
    images: Sequence[ArrayLike],
    indices: Any,
    similarities: Any = None,
    output_png: str | os.PathLike[str] = "closest_latents.png",
) -> None:
    """Draw a cutout and others beside it, on one scale.

    Args:
        images: (H, W) or (1, H, W) each, the first one being the query.
        indices: their rows. Earlier scripts gave the similarities here.
        similarities: cosines of the others; one of the query may stand before them.
        output_png: the figure.

    Raises:
        InputFileError: No image, or images of other shapes.
        OutputError: The figure cannot be written.
    """
    rows = None if similarities is None else list(indices)
    cosines = np.asarray(indices if similarities is None else similarities, np.float64)
    pixels = [np.asarray(image, np.float64).reshape(np.shape(image)[-2:]) for image in images]
    if not pixels:
        raise InputFileError("expected images, got none")
    cosines = cosines[1:] if len(cosines) == len(pixels) and similarities is None else cosines
    reach = [float(np.nanmin(pixels)), float(np.nanmax(pixels))]
    figure = Figure(figsize=(2.2 * len(pixels), 2.6), layout="constrained")
    for number, image in enumerate(pixels):
        place = "" if rows is None else f" {rows[number]}"
        title = f"query{place}" if not number else f"row{place}\ncosine {cosines[number - 1]:.3f}"
        axes = figure.add_subplot(1, len(pixels), number + 1, title=title, xticks=[], yticks=[])
        axes.imshow(image, origin="lower", cmap="viridis", vmin=reach[0], vmax=reach[1])
    save_figure(figure, output_png)


def umap_gallery(  # noqa: PLR0913  # the arguments that users know
    table_file: str | Path,
    image_file: str | Path,
    umap_keys: Sequence[str] = ("US0", "US1"),
    img_key: str = "valid",
    img_idx_key: str = "index",
    xmnx: tuple[float, float] | None = None,
    ymnx: tuple[float, float] | None = None,
    dxv: float = 0.5,
    dyv: float = 0.25,
    in_vmnx: tuple[float, float] | None = None,
    scl_inset: tuple[float, float] = (0.9, 0.9),
    cbar_lbl: str = "Field",
    outfile: str | Path = "fig_umap_gallery.png",
    cmap: str = "jet",
    min_pts: int | None = None,
    seed: int | None = None,
    **_without_effect: Any,
) -> None:
    """Draw a cutout at random in each cell of a UMAP that has enough of them.

    Args:
        table_file: the table with the coordinates.
        image_file: the cutout file.
        umap_keys: names of the coordinates.
        img_key: partition of the cutouts.
        img_idx_key: column with their rows; `index` for the index of the table.
        xmnx: range of the first coordinate.
        ymnx: range of the second.
        dxv: width of a cell.
        dyv: height of a cell.
        in_vmnx: range of the colours; by default one symmetric range for all.
        scl_inset: share of the cell that its cutout fills.
        cbar_lbl: label of the colour bar.
        outfile: the figure.
        cmap: colours.
        min_pts: smallest number of rows of a cell; default 10.
        seed: of the choice.
        _without_effect: annotate, use_std_lbls, cut_to_inner, skip_incidence, debug.

    Raises:
        InputFileError: A file cannot be read, lacks a column, or no cell has enough rows.
        OptionError: A cell without size, or too many cells.
    """
    table = load_main_table(table_file, verbose=False)
    missing = [key for key in umap_keys if key not in table]
    if missing:
        raise InputFileError(f"{table_file}: no column {', '.join(missing)}: nenya embed writes US0 and US1")
    places = np.stack([table[key].to_numpy(np.float64, na_value=np.nan) for key in umap_keys], axis=1)
    numbers = table[img_idx_key] if img_idx_key in table else table.index.to_series()
    limits = central_limits(places, 1.0)
    ends = np.array([xmnx or limits[0], ymnx or limits[1]], np.float64)
    cell = np.array([dxv, dyv], np.float64)
    if not (cell > 0).all() or np.ceil(np.ptp(ends, axis=1) / cell).prod() > _MOST_CELLS:
        raise OptionError(f"dxv={dxv}, dyv={dyv}: expected cells above 0, and at most {_MOST_CELLS:,} of them")
    chosen = _one_of_each_cell(places, ends, cell, 10 if min_pts is None else min_pts, seed)
    reader = CutoutReader(Path(expand(str(image_file))), img_key)
    rows = numbers.iloc[chosen].to_numpy(np.int64)
    if rows.min() < 0 or rows.max() >= len(reader):
        raise InputFileError(f"{image_file} has {len(reader)} cutouts in '{img_key}', expected row {rows.max()} too")
    unique, back = np.unique(rows, return_inverse=True)
    images = InputReader(reader, "holes").read_rows(unique)[back, 0]
    reach = reach_of(images)
    low, high = in_vmnx or (-reach, reach)
    figure = Figure(figsize=(10, 8), layout="constrained")
    axes = figure.add_subplot(xlabel=quantity_of(umap_keys[0]).title, ylabel=quantity_of(umap_keys[1]).title)
    for image, corner in zip(images, ends[:, 0] + cell * np.floor((places[chosen] - ends[:, 0]) / cell), strict=True):
        right, top = corner + cell * scl_inset
        extent = (corner[0], right, corner[1], top)
        drawn = axes.imshow(image, extent=extent, origin="lower", cmap=cmap, vmin=low, vmax=high, aspect="auto")
    axes.set(xlim=ends[0], ylim=ends[1])
    figure.colorbar(drawn, ax=axes, label=cbar_lbl, shrink=0.5)
    save_figure(figure, outfile)


def _one_of_each_cell(
    places: NDArray[np.float64], ends: NDArray[np.float64], cell: NDArray[np.float64], least: int, seed: int | None
) -> NDArray[np.int64]:
    """Return a row of each cell with enough rows, chosen at random."""
    inside = np.flatnonzero(((places >= ends[:, 0]) & (places <= ends[:, 1])).all(axis=1))
    order = np.random.default_rng(seed).permutation(inside)
    cells = np.floor((places[order] - ends[:, 0]) / cell)
    _, first, counts = np.unique(cells, axis=0, return_index=True, return_counts=True)
    if not (counts >= least).any():
        raise InputFileError(f"expected a cell with at least {least} cutouts: lower min_pts=, or use larger cells")
    return order[first[counts >= least]]


def plot_spectrum(
    k: ArrayLike,
    power: ArrayLike,
    wavelength: ArrayLike | None = None,
    ax: Any = None,
    plot_wavelength: bool = True,
    reference_slopes: bool = True,
    show: bool = False,
    title: str | None = None,
    outfile: str | Path | None = None,
) -> Any:
    """Draw a power spectrum.

    Args:
        k: (B,) cycles per km.
        power: (B,).
        wavelength: ignored: it is 1 / k.
        ax: axes to draw on; by default a figure of its own.
        plot_wavelength: show wavelengths at the top.
        reference_slopes: draw k^-5/3, k^-2 and k^-3 through the spectrum.
        show: ignored: give `outfile`.
        title: of the figure.
        outfile: the figure; None for none.

    Returns:
        The axes.

    Raises:
        OutputError: The figure cannot be written.
    """
    x, y = np.asarray(k, np.float64), np.asarray(power, np.float64)
    figure = Figure(figsize=(8, 6), layout="constrained") if ax is None else ax.figure
    axes = figure.add_subplot() if ax is None else ax
    axes.loglog(x, y, "k-", linewidth=2, label="power spectrum")
    if reference_slopes:
        for slope, name, place in ((-5 / 3, "$k^{-5/3}$", 2), (-2, "$k^{-2}$", 1), (-3, "$k^{-3}$", 2)):
            middle = place * len(x) // 3
            axes.loglog(x, y[middle] * (x / x[middle]) ** slope, "--", alpha=0.6, label=name)
    axes.set(xlabel="wavenumber (cycles/km)", ylabel="power", title=title or "")
    axes.legend()
    if plot_wavelength:
        top = axes.secondary_xaxis("top", functions=(_inverse, _inverse))
        top.set_xlabel("wavelength (km)")
    if outfile is not None:
        save_figure(figure, outfile)
    return axes


def _inverse(values: Any) -> Any:
    with np.errstate(divide="ignore"):
        return 1 / np.asarray(values, np.float64)


def plot_from_file(
    pk_file: str | Path, outfile: str | Path | None = None, show: bool = True, title: str | None = None
) -> Any:
    """Draw a spectrum that was saved as an `.npz` file with wavenumber and power; see `plot_spectrum`.

    Raises:
        InputFileError: The file cannot be read, or has no spectrum.
    """
    from nenya.storage.arrays import read_arrays

    arrays = read_arrays(Path(pk_file))
    if not {"wavenumber", "power"} <= set(arrays):
        raise InputFileError(f"{pk_file}: expected arrays wavenumber and power, got {', '.join(arrays)}")
    return plot_spectrum(arrays["wavenumber"], arrays["power"], title=title, outfile=outfile)
