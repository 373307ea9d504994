"""Curves: power spectra and losses."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from nenya.errors import InputFileError
from nenya.plotting.paper import TRAIN_COLOUR, VALID_COLOUR, FloatArray, Places, save_figure, tidy, wrapped
from nenya.plotting.style import Style, styled

_ABOVE = 2.0  # times the spectra, at least, is where power laws to compare with lie
_DASHES = ((1, 1), (4, 1, 1, 1), (6, 2), (2, 2))


@styled
def power_spectra(
    spectra: Mapping[str, tuple[FloatArray, FloatArray, float, float]],
    path: Places,
    *,
    band: tuple[float, float],
    pixel_km: float | None = None,
    title: str = "",
    unit: str | None = None,
    spread: Mapping[str, tuple[FloatArray, FloatArray]] | None = None,
    reference_slopes: Sequence[float] = (),
    style: Style | None = None,
) -> None:
    """Draw power spectra with the power laws fitted to them, over wavelength and wavenumber.

    Args:
        spectra: name -> wavelength in pixels (B,), power (B,), slope beta and its error, P ~ wavelength^beta.
        path: output file, or several; the suffix sets the format (.png, .pdf, .svg).
        band: smallest and largest wavelength in pixels over which the slopes were fitted.
        pixel_km: pixel size, for axes in km; default axes in pixels.
        title: title of the figure.
        unit: of the field, if the power is a spectral density in its square pixel^2; it is drawn in km^2 with
            `pixel_km`. None: the power has no unit.
        spread: name -> lower and upper end of a shaded band, (B,) each, in units of the power.
        reference_slopes: exponents of the wavenumber of power laws to compare with, such as -2.
        style: size and fonts.
    """
    style = style or Style()
    scale = pixel_km or 1.0
    length = "km" if pixel_km else "pixel"
    area = scale**2 if unit is not None else 1.0
    figure = Figure(figsize=style.figsize(6.4, 4.6), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(wrapped(title, figure))
    axes.axvspan(band[0] * scale, band[1] * scale, color="0.95", zorder=0)
    for i, (name, (wavelength, power, beta, error)) in enumerate(spectra.items()):
        colour = (TRAIN_COLOUR, VALID_COLOUR, "#228833", "#aa3377")[i % 4]
        label = f"{name}: $\\beta$ = {beta:.2f} $\\pm$ {error:.2f}"
        x, y = wavelength * scale, power * area
        axes.loglog(x, y, color=colour, label=label, marker="os^D"[i % 4], markersize=3, linewidth=1.2)
        if spread and name in spread:
            low, high = (np.asarray(end, np.float64) * area for end in spread[name])
            axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        inside = (wavelength >= band[0]) & (wavelength <= band[1])
        offset = np.mean(np.log(y[inside]) - beta * np.log(x[inside]))
        axes.plot(x[inside], np.exp(offset) * x[inside] ** beta, color=colour, linestyle="--", linewidth=1)
    _references(axes, spectra, band, (scale, area), reference_slopes)
    axes.invert_xaxis()
    power_of = "power" if unit is None else f"power spectral density ({_squared(unit)} {length}$^2$)"
    axes.set(xlabel=f"wavelength ({length if pixel_km else 'pixels'})", ylabel=power_of)
    _log_ticks(axes, f"wavenumber (cycles/{length})")
    axes.legend(frameon=False)
    save_figure(figure, path, style=style)


def _squared(unit: str) -> str:
    return f"({unit})$^2$" if " " in unit or "/" in unit else f"{unit}$^2$"


def _references(
    axes: Any,
    spectra: Mapping[str, tuple[FloatArray, FloatArray, float, float]],
    band: tuple[float, float],
    scales: tuple[float, float],
    slopes: Sequence[float],
) -> None:
    """Draw power laws of the wavenumber, each so high that it lies above the spectra all over the band."""
    wavelength = np.geomspace(*band, 50)
    tops = [np.interp(np.log(wavelength), np.log(x[::-1]), np.log(y[::-1])) for x, y, _, _ in spectra.values()]
    top = np.max(tops, axis=0)
    for number, slope in enumerate(slopes):
        line = -slope * np.log(wavelength)
        power = _ABOVE * np.exp(line + np.max(top - line))
        dashes = _DASHES[number % len(_DASHES)]
        axes.plot(wavelength * scales[0], power * scales[1], color="0.35", linewidth=0.9, dashes=dashes)
        end, side, away = ((-1, "right", -2), (0, "left", 2))[number % 2]  # names that do not meet
        axes.annotate(
            f"$k^{{{slope:g}}}$", (wavelength[end] * scales[0], power[end] * scales[1]), (away, 0),
            textcoords="offset points", ha=side, va="center", fontsize="small", color="0.25",
        )  # fmt: skip


def _log_ticks(axes: Any, top_label: str) -> None:
    """Mark 1, 2, 5 of each decade of wavelength in plain numbers, 2 to 9 by small ticks, and wavenumbers at the top."""
    tidy(axes)
    axes.spines["top"].set_visible(True)
    top = axes.secondary_xaxis("top", functions=(_inverse, _inverse))
    top.set_xlabel(top_label)
    for axis in (axes.xaxis, top.xaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))
    for axis in (axes.xaxis, axes.yaxis, top.xaxis):
        axis.set_minor_locator(LogLocator(subs=range(2, 10), numticks=99))
        axis.set_minor_formatter(NullFormatter())


def _inverse(values: Any) -> Any:
    with np.errstate(divide="ignore"):
        return 1 / np.asarray(values, np.float64)


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


@styled
def learning_curve(
    losses: str | os.PathLike[str] | Mapping[str, Any],
    path: Places,
    *,
    title: str = "",
    style: Style | None = None,
) -> None:
    """Draw training and validation loss against the epoch.

    Args:
        losses: columns `epoch`, `loss_train` and, if there was validation, `loss_valid`, each (number of
            epochs,); or the path of a CSV file of these columns. Values that are missing or NaN are skipped.
        path: output file, or several; the suffix sets the format (.png, .pdf, .svg).
        title: title of the figure.
        style: size and fonts.

    Raises:
        InputFileError: a column is missing or has another length, or the file cannot be read.
    """
    table = losses if isinstance(losses, Mapping) else read_losses(losses)
    if not {"epoch", "loss_train"} <= set(table):
        raise InputFileError(f"expected losses with the columns epoch and loss_train, got {sorted(table)}")
    epoch = np.asarray(table["epoch"], dtype=np.float64)
    style = style or Style()
    figure = Figure(figsize=style.figsize(6.4, 4.2), layout="constrained")
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
    save_figure(figure, path, style=style)


@styled
def variance_spectrum(
    variance: FloatArray, path: Places, *, marks: Mapping[str, int], title: str = "", style: Style | None = None
) -> None:
    """Draw the variance along each principal component, and the variance left after the first components.

    Args:
        variance: (D,), falling.
        path: output file, or several; the suffix sets the format (.png, .pdf, .svg).
        marks: name -> number of components, drawn as lines, such as N95.
        title: title of the figure.
        style: size and fonts.
    """
    share = np.asarray(variance, dtype=np.float64) / (float(variance.sum()) or 1.0)
    left = np.clip(1 - np.cumsum(share), 0, None)
    number = np.arange(1, len(share) + 1)
    style = style or Style()
    figure = Figure(figsize=style.figsize(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot(title=title)
    curves = (("component", share, TRAIN_COLOUR), ("remaining after the component", left, VALID_COLOUR))
    for label, values, colour in curves:
        axes.plot(number[values > 0], values[values > 0], color=colour, label=label, linewidth=1.4)
    if (share > 0).any():
        axes.set_yscale("log")
    for i, (name, count) in enumerate(marks.items()):
        axes.axvline(count, color="0.6", linewidth=0.8, linestyle="--")
        axes.annotate(
            f"{name} = {count}", (count, 0.97 - 0.08 * i), xycoords=("data", "axes fraction"), fontsize="small"
        )
    axes.set(xlabel="principal component", ylabel="fraction of the variance")
    tidy(axes)
    axes.legend(frameon=False)
    save_figure(figure, path, style=style)
