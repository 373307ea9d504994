"""Figures: galleries of cutouts in the plane of two coordinates, contact sheets, spectra and learning curves."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nenya.errors import InputFileError, OptionError
from nenya.storage import atomic_path

FloatArray = npt.NDArray[np.floating]
IntArray = npt.NDArray[np.int64]
Limits = tuple[tuple[float, float], tuple[float, float]]

DPI = 200
GAP = 2  # pixels of background between two cutouts
COLOURS = "RdYlBu_r"
TRAIN_COLOUR, VALID_COLOUR = "#4477aa", "#cc3311"  # told apart by colour-blind readers too


def central_limits(coordinates: FloatArray, share: float = 0.99) -> Limits:
    """Return the range of each coordinate that holds the central `share` of the points, and 5 % on each side.

    Args:
        coordinates: (N, 2); rows that are not finite are ignored.
        share: share of the points within the range of each coordinate.

    Raises:
        InputFileError: another shape, or no finite row.
    """
    if coordinates.ndim != 2 or coordinates.shape[1] != 2:
        raise InputFileError(f"coordinates of shape {coordinates.shape}: wanted (N, 2)")
    finite = coordinates[np.isfinite(coordinates).all(axis=1)].astype(np.float64)
    if not len(finite):
        raise InputFileError(f"none of {len(coordinates)} coordinates is finite: nothing to draw")
    low, high = np.quantile(finite, [(1 - share) / 2, (1 + share) / 2], axis=0)
    margin = np.where(high > low, 0.05 * (high - low), 0.5)
    low, high = low - margin, high + margin
    return (float(low[0]), float(high[0])), (float(low[1]), float(high[1]))


def nearest_to_centres(coordinates: FloatArray, cells: int, limits: Limits) -> IntArray:
    """Return for each cell of the plane the point in it that is nearest to its centre.

    Distances are measured in cells, so that both coordinates count alike; of equal ones the first row wins.

    Args:
        coordinates: (N, 2); rows that are not finite or lie outside the limits are ignored.
        cells: cells along each coordinate.
        limits: ((x0, x1), (y0, y1)), the plane that is divided.

    Returns:
        (cells, cells) int64: row number of the point, or -1 in an empty cell; the first index goes with y.
    """
    low, high = np.array(limits, dtype=np.float64).T
    place = (np.asarray(coordinates, dtype=np.float64) - low) / (high - low) * cells
    inside = np.flatnonzero((np.isfinite(place) & (place >= 0) & (place <= cells)).all(axis=1))
    cell = np.minimum(place[inside].astype(np.int64), cells - 1)
    distance = ((place[inside] - cell - 0.5) ** 2).sum(axis=1)
    flat = cell[:, 1] * cells + cell[:, 0]
    order = np.lexsort((inside, distance, flat))
    occupied, first = np.unique(flat[order], return_index=True)
    picks: IntArray = np.full(cells * cells, -1, dtype=np.int64)
    picks[occupied] = inside[order[first]]
    return picks.reshape(cells, cells)


def mosaic(images: FloatArray, picks: IntArray, *, own_scale: bool = False) -> FloatArray:
    """Return one image in which the picked images stand at the places of their cells.

    Args:
        images: (N, H, W) or (N, 1, H, W).
        picks: (R, C) row numbers, -1 for an empty cell.
        own_scale: divide each image by its own greatest magnitude.

    Returns:
        (R * (H + GAP), C * (W + GAP)) float32, NaN where there is no image; first row of cells first.
    """
    height, width = images.shape[-2:]
    rows, columns = picks.shape
    board = np.full((rows, height + GAP, columns, width + GAP), np.nan, np.float32)
    half = GAP // 2
    for row, column in np.argwhere(picks >= 0):
        image = np.asarray(images[picks[row, column]], dtype=np.float32).reshape(height, width)
        if own_scale:
            image = image / (np.nanmax(np.abs(image), initial=0.0) or 1.0)
        board[row, half : half + height, column, half : half + width] = image
    return board.reshape(rows * (height + GAP), columns * (width + GAP))


def gallery(
    images: FloatArray,
    coordinates: FloatArray,
    path: str | os.PathLike[str],
    *,
    cells: int = 12,
    title: str = "",
    labels: tuple[str, str] = ("latent PC 1", "latent PC 2"),
    scale: Literal["shared", "own"] = "shared",
    limits: Limits | None = None,
) -> None:
    """Draw cutouts at their places in the plane of two coordinates.

    The plane is divided into cells; each cell that is not empty shows the cutout nearest to its centre, the
    first row of its pixels at the bottom.

    Args:
        images: (N, H, W) or (N, 1, H, W), SSTa in K.
        coordinates: (N, 2), for example the first two principal components of the latents.
        path: the picture; its suffix says the format (.png, .pdf, .svg).
        cells: cells along each coordinate.
        title: title of the figure.
        labels: names of the two coordinates, such as "latent PC 1 (34 % of variance)".
        scale: "shared": one symmetric range for all cutouts, in K; "own": each cutout divided by its greatest
            magnitude.
        limits: ((x0, x1), (y0, y1)) to be drawn; by default the central 99 % of each coordinate.

    Raises:
        InputFileError: images and coordinates that do not fit together.
        OptionError: `cells` < 1.
    """
    if images.ndim not in (3, 4) or len(images) != len(coordinates):
        raise InputFileError(f"images {images.shape}, coordinates {coordinates.shape}: wanted (N, H, W) and (N, 2)")
    if cells < 1:
        raise OptionError(f"cells={cells}: wanted at least 1")
    limits = limits or central_limits(coordinates)
    board = mosaic(images, nearest_to_centres(coordinates, cells, limits), own_scale=scale == "own")
    shown = np.abs(board[np.isfinite(board)])
    reach = 1.0 if scale == "own" else (float(np.quantile(shown, 0.99)) if shown.size else 0.0) or 1.0
    figure = Figure(figsize=(8.6, 7.6), layout="constrained")
    axes = figure.add_subplot(xlabel=labels[0], ylabel=labels[1], title=title)
    label = "SSTa (K)" if scale == "shared" else "SSTa / greatest magnitude of the cutout"
    drawn = _draw_board(axes, board, limits, reach)
    figure.colorbar(drawn, ax=axes, label=label, extend="both" if scale == "shared" else "neither", shrink=0.85)
    _save(figure, path)


def _draw_board(axes: Any, board: FloatArray, limits: Limits, reach: float) -> Any:
    """Draw a mosaic within its limits, colours from -reach to reach, and return matplotlib's image."""
    axes.set_facecolor("0.94")
    axes.set_box_aspect(1)
    return axes.imshow(
        board,
        cmap=COLOURS,
        vmin=-reach,
        vmax=reach,
        extent=(*limits[0], *limits[1]),
        origin="lower",
        aspect="auto",
        interpolation="nearest",
    )


def contact_sheet(
    images: FloatArray, path: str | os.PathLike[str], *, columns: int = 8, title: str = "", unit: str = "K"
) -> None:
    """Draw cutouts side by side, row by row, on one colour scale, the first row of pixels at the bottom; NaN is grey.

    Args:
        images: (N, H, W) or (N, 1, H, W).
        path: the picture; its suffix says the format (.png, .pdf, .svg).
        columns: cutouts in a row.
        title: title of the figure.
        unit: of the pixels.

    Raises:
        InputFileError: another shape, or no cutout.
        OptionError: `columns` < 1.
    """
    if images.ndim not in (3, 4) or not len(images):
        raise InputFileError(f"images {images.shape}: wanted is (N, H, W) with at least one")
    if columns < 1:
        raise OptionError(f"columns={columns}: wanted at least 1")
    across = min(columns, len(images))
    rows = -(-len(images) // across)
    picks = np.full(rows * across, -1, np.int64)
    picks[: len(images)] = np.arange(len(images))
    board = mosaic(images, picks.reshape(rows, across)[::-1])
    values = board[np.isfinite(board)]
    low, high = (float(v) for v in np.quantile(values, [0.01, 0.99])) if values.size else (0.0, 0.0)
    if low < 0 < high:
        low, high = -max(-low, high), max(-low, high)
    figure = Figure(figsize=(1.05 * across + 1.6, 1.05 * rows + 0.8), layout="constrained")
    axes = figure.add_subplot(title=title, xticks=[], yticks=[])
    axes.set_facecolor("0.8")
    drawn = axes.imshow(
        board, cmap=COLOURS, vmin=low, vmax=high if high > low else low + 1, origin="lower", interpolation="nearest"
    )
    figure.colorbar(drawn, ax=axes, label=unit, extend="both", shrink=0.85)
    _save(figure, path)


def power_spectra(
    spectra: Mapping[str, tuple[FloatArray, FloatArray, float, float]],
    path: str | os.PathLike[str],
    *,
    band: tuple[float, float],
    pixel_km: float | None = None,
    title: str = "",
) -> None:
    """Draw power spectra with the power laws fitted to them.

    Args:
        spectra: name -> wavelength in pixels (B,), power (B,), slope beta and its error, P ~ wavelength^beta.
        path: the picture; its suffix says the format (.png, .pdf, .svg).
        band: least and greatest wavelength in pixels that the slopes were fitted over.
        pixel_km: size of a pixel, for an axis in km; in pixels without it.
        title: title of the figure.
    """
    scale = pixel_km or 1.0
    figure = Figure(figsize=(6.4, 4.6), layout="constrained")
    axes = figure.add_subplot(title=title)
    axes.axvspan(band[0] * scale, band[1] * scale, color="0.95", zorder=0)
    for i, (name, (wavelength, power, beta, error)) in enumerate(spectra.items()):
        colour = (TRAIN_COLOUR, VALID_COLOUR, "#228833", "#aa3377")[i % 4]
        label = f"{name}: $\\beta$ = {beta:.2f} $\\pm$ {error:.2f}"
        axes.loglog(wavelength * scale, power, color=colour, label=label, marker="o", markersize=3, linewidth=1.2)
        inside = (wavelength >= band[0]) & (wavelength <= band[1])
        offset = np.mean(np.log(power[inside]) - beta * np.log(wavelength[inside]))
        line = np.exp(offset) * wavelength[inside] ** beta
        axes.plot(wavelength[inside] * scale, line, color=colour, linestyle="--", linewidth=1)
    axes.invert_xaxis()
    axes.set(xlabel="wavelength (km)" if pixel_km else "wavelength (pixels)", ylabel="power")
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    _save(figure, path)


def read_losses(path: str | os.PathLike[str]) -> dict[str, npt.NDArray[np.float64]]:
    """Read a table of losses: a CSV file whose first line names the columns.

    Returns:
        Each column, (number of epochs,) float64; NaN where the file has no value.

    Raises:
        InputFileError: the file is missing or is no such table.
    """
    try:
        table: npt.NDArray[Any] = np.genfromtxt(
            path, delimiter=",", names=True, dtype=np.float64, ndmin=1, encoding="utf-8"
        )
    except (OSError, ValueError) as error:
        raise InputFileError(f"{path}: no table of losses: {' '.join(str(error).split())}") from error
    return {name: table[name] for name in table.dtype.names or ()}


def learning_curve(
    losses: str | os.PathLike[str] | Mapping[str, Any],
    path: str | os.PathLike[str],
    *,
    title: str = "",
) -> None:
    """Draw training and validation loss against the epoch.

    Args:
        losses: columns `epoch`, `loss_train` and, where there was validation, `loss_valid`, each (number of
            epochs,); or the path of a CSV file of these columns. Values that are missing or NaN are skipped.
        path: the picture; its suffix says the format (.png, .pdf, .svg).
        title: title of the figure.

    Raises:
        InputFileError: a column is missing or has another length, or the file cannot be read.
    """
    table = losses if isinstance(losses, Mapping) else read_losses(losses)
    if missing := {"epoch", "loss_train"} - set(table):
        raise InputFileError(f"losses with columns {sorted(table)}: {sorted(missing)} missing")
    epoch = np.asarray(table["epoch"], dtype=np.float64)
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    curves = (("loss_train", "training", TRAIN_COLOUR), ("loss_valid", "validation", VALID_COLOUR))
    for column, name, colour in curves:
        if column not in table:
            continue
        loss = np.asarray(table[column], dtype=np.float64)
        if loss.shape != epoch.shape:
            raise InputFileError(f"{column} has shape {loss.shape}, epoch {epoch.shape}: wanted the same")
        known = np.isfinite(loss)
        marker = "o" if known.sum() <= 40 else None
        axes.plot(epoch[known], loss[known], color=colour, label=name, marker=marker, markersize=3.5, linewidth=1.4)
    axes.set(xlabel="epoch", ylabel="contrastive loss", title=title)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    _save(figure, path)


def _save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure in the format of the path's suffix, without touching matplotlib's global state.

    Raises:
        OptionError: a suffix that cannot be drawn.
    """
    target = Path(path)
    canvas = FigureCanvasAgg(figure)
    known = canvas.get_supported_filetypes()
    suffix = target.suffix.lstrip(".").lower()
    if suffix not in known:
        raise OptionError(f"{target}: no picture format {suffix!r}: wanted one of {', '.join(sorted(known))}")
    with atomic_path(target) as temporary:
        figure.savefig(temporary, format=suffix, dpi=DPI)


def eigen_sheet(images: FloatArray, rows: list[str], columns: list[str], path: str | os.PathLike[str]) -> None:
    """Draw a table of cutouts on one symmetric colour scale; the first row of pixels is at the bottom of each.

    Args:
        images: (R, C, H, W) in K; NaN where there is none.
        rows: R names.
        columns: C names.
        path: the picture; its suffix says the format (.png, .pdf, .svg).
    """
    down, across, height, width = images.shape
    board = mosaic(images.reshape(-1, height, width), np.arange(down * across).reshape(down, across)[::-1])
    known = np.abs(board[np.isfinite(board)])
    reach = (float(np.quantile(known, 0.99)) if known.size else 0.0) or 1.0
    figure = Figure(figsize=(1.1 * across + 1.8, 1.1 * down + 0.6), layout="constrained")
    axes = figure.add_subplot()
    limits = ((0.0, float(across)), (0.0, float(down)))
    drawn = _draw_board(axes, board, limits, reach)
    axes.set_box_aspect(down / across)
    axes.set_xticks(np.arange(across) + 0.5, columns, fontsize=8)
    axes.set_yticks(np.arange(down)[::-1] + 0.5, rows, fontsize=8)
    axes.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    axes.spines[:].set_visible(False)
    figure.colorbar(drawn, ax=axes, label="SSTa (K)", extend="both", shrink=0.6)
    _save(figure, path)


def variance_spectrum(
    variance: FloatArray, path: str | os.PathLike[str], *, marks: Mapping[str, int], title: str = ""
) -> None:
    """Draw the variance along each principal component and what is left after the first ones.

    Args:
        variance: (D,), falling.
        path: the picture; its suffix says the format (.png, .pdf, .svg).
        marks: name -> number of components, drawn as lines, such as N95.
        title: title of the figure.
    """
    share = np.asarray(variance, dtype=np.float64) / (float(variance.sum()) or 1.0)
    left = np.clip(1 - np.cumsum(share), 0, None)
    number = np.arange(1, len(share) + 1)
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot(title=title)
    curves = (("share of the component", share, TRAIN_COLOUR), ("left after so many", left, VALID_COLOUR))
    for label, values, colour in curves:
        axes.plot(number[values > 0], values[values > 0], color=colour, label=label, linewidth=1.4)
    if (share > 0).any():
        axes.set_yscale("log")
    for i, (name, count) in enumerate(marks.items()):
        axes.axvline(count, color="0.6", linewidth=0.8, linestyle="--")
        axes.annotate(f"{name} = {count}", (count, 0.97 - 0.08 * i), xycoords=("data", "axes fraction"), fontsize=8)
    axes.set(xlabel="principal component", ylabel="share of the variance")
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    _save(figure, path)
