"""Curves: power spectra and losses."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nenya.errors import InputFileError
from nenya.plotting.paper import TRAIN_COLOUR, VALID_COLOUR, FloatArray, save_figure, tidy


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
        path: output file; its suffix sets the format (.png, .pdf, .svg).
        band: smallest and largest wavelength in pixels over which the slopes were fitted.
        pixel_km: pixel size, for an axis in km; default an axis in pixels.
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
    tidy(axes)
    axes.legend(frameon=False)
    save_figure(figure, path)


def read_losses(path: str | os.PathLike[str]) -> dict[str, npt.NDArray[np.float64]]:
    """Read a table of losses: a CSV file whose first line names the columns.

    Returns:
        Each column, (number of epochs,) float64; NaN if the file has no value.

    Raises:
        InputFileError: the file is missing or is not such a table.
    """
    try:
        table: npt.NDArray[Any] = np.genfromtxt(
            path, delimiter=",", names=True, dtype=np.float64, ndmin=1, encoding="utf-8"
        )
    except (OSError, ValueError) as error:
        raise InputFileError(f"{path}: cannot be read as a table of losses ({' '.join(str(error).split())})") from error
    return {name: table[name] for name in table.dtype.names or ()}


def learning_curve(
    losses: str | os.PathLike[str] | Mapping[str, Any],
    path: str | os.PathLike[str],
    *,
    title: str = "",
) -> None:
    """Draw training and validation loss against the epoch.

    Args:
        losses: columns `epoch`, `loss_train` and, if there was validation, `loss_valid`, each (number of
            epochs,); or the path of a CSV file of these columns. Values that are missing or NaN are skipped.
        path: output file; its suffix sets the format (.png, .pdf, .svg).
        title: title of the figure.

    Raises:
        InputFileError: a column is missing or has another length, or the file cannot be read.
    """
    table = losses if isinstance(losses, Mapping) else read_losses(losses)
    if not {"epoch", "loss_train"} <= set(table):
        raise InputFileError(f"expected losses with the columns epoch and loss_train, got {sorted(table)}")
    epoch = np.asarray(table["epoch"], dtype=np.float64)
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    curves = (("loss_train", "training", TRAIN_COLOUR), ("loss_valid", "validation", VALID_COLOUR))
    for column, name, colour in curves:
        if column not in table:
            continue
        loss = np.asarray(table[column], dtype=np.float64)
        if loss.shape != epoch.shape:
            raise InputFileError(f"expected {column} of the shape of epoch, {epoch.shape}, got {loss.shape}")
        known = np.isfinite(loss)
        marker = "o" if known.sum() <= 40 else None
        axes.plot(epoch[known], loss[known], color=colour, label=name, marker=marker, markersize=3.5, linewidth=1.4)
    axes.set(xlabel="epoch", ylabel="contrastive loss", title=title)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    tidy(axes)
    axes.legend(frameon=False)
    save_figure(figure, path)


def variance_spectrum(
    variance: FloatArray, path: str | os.PathLike[str], *, marks: Mapping[str, int], title: str = ""
) -> None:
    """Draw the variance along each principal component, and the variance left after the first components.

    Args:
        variance: (D,), falling.
        path: output file; its suffix sets the format (.png, .pdf, .svg).
        marks: name -> number of components, drawn as lines, such as N95.
        title: title of the figure.
    """
    share = np.asarray(variance, dtype=np.float64) / (float(variance.sum()) or 1.0)
    left = np.clip(1 - np.cumsum(share), 0, None)
    number = np.arange(1, len(share) + 1)
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot(title=title)
    curves = (("component", share, TRAIN_COLOUR), ("remaining after the component", left, VALID_COLOUR))
    for label, values, colour in curves:
        axes.plot(number[values > 0], values[values > 0], color=colour, label=label, linewidth=1.4)
    if (share > 0).any():
        axes.set_yscale("log")
    for i, (name, count) in enumerate(marks.items()):
        axes.axvline(count, color="0.6", linewidth=0.8, linestyle="--")
        axes.annotate(f"{name} = {count}", (count, 0.97 - 0.08 * i), xycoords=("data", "axes fraction"), fontsize=8)
    axes.set(xlabel="principal component", ylabel="fraction of the variance")
    tidy(axes)
    axes.legend(frameon=False, fontsize=8)
    save_figure(figure, path)
