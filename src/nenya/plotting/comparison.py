"""Figures of two sets of latents: where on the UMAP and on the globe they differ."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from nenya.plotting.cells import draw_coastlines
from nenya.plotting.colours import ANOMALIES, colour_map
from nenya.plotting.paper import UMAP_LABELS, central_limits, save_figure, tidy
from nenya.tables.grids import Grid, globe
from nenya.tables.strata import cells_of

if TYPE_CHECKING:
    import pandas as pd

FloatArray = NDArray[np.floating]

_FEWEST_CELLS, _CELLS = 6, 60  # along each coordinate of the UMAP, for few and for many rows
_LEAST = 5  # rows of a cell of the UMAP
_LEVEL = 0.05  # of false discovery rates
_REACH = 2.0  # powers of two at the ends of the colour scale


def draw_umap_difference(coordinates: FloatArray, of_a: NDArray[np.bool_], path: Path, names: tuple[str, str]) -> None:
    """Draw where on a UMAP each of two sets is denser, as the ratio of its shares of rows.

    Args:
        coordinates: (N, 2) US0 and US1.
        of_a: (N,), rows of a.
        path: output file; its suffix sets the format.
        names: of a and b.
    """
    known = np.isfinite(coordinates).all(axis=1)
    points, of_a = coordinates[known], of_a[known]
    limits = central_limits(points)
    cells = int(np.clip(np.sqrt(len(points) / (2 * _LEAST)), _FEWEST_CELLS, _CELLS))
    grid = Grid(*limits, cells, cells)
    counts = [grid.counts(*points[some].T) for some in (of_a, ~of_a)]
    n, m = (max(1, int(some.sum())) for some in (of_a, ~of_a))
    ratio = np.log2((counts[0] + 0.5) / n / ((counts[1] + 0.5) / m))
    shown = np.ma.masked_where(counts[0] + counts[1] < _LEAST, ratio)
    figure = Figure(figsize=(7.2, 6.0), layout="constrained")
    axes = figure.add_subplot(title=f"UMAP: {names[0]} (red) and {names[1]} (blue)", xlabel=UMAP_LABELS[0])
    axes.set_ylabel(UMAP_LABELS[1])
    axes.set_box_aspect(1)
    drawn = axes.imshow(
        shown, extent=grid.extent, origin="lower", aspect="auto", interpolation="nearest", cmap=colour_map(ANOMALIES),
        vmin=-_REACH, vmax=_REACH,
    )  # fmt: skip
    _ratio_bar(figure, drawn, axes, names)
    tidy(axes)
    save_figure(figure, path)


def _ratio_bar(figure: Figure, drawn: object, axes: object, names: tuple[str, str]) -> None:
    label = f"share of {names[0]} over share of {names[1]}"
    bar = figure.colorbar(drawn, ax=axes, label=label, extend="both", shrink=0.85)  # type: ignore[arg-type]
    bar.set_ticks([-2, -1, 0, 1, 2], labels=["1/4", "1/2", "1", "2", "4"])


def draw_globe(cells: "pd.DataFrame", side: int, path: Path) -> None:
    """Draw the classifier's AUC in cells of equal area; cells that differ at a false discovery rate of 5 % are dotted.

    Args:
        cells: with name (the number in ring order), lon and lat of the centre, value, and q, its false discovery rate.
        side: of HEALPix.
        path: output file.
    """
    figure = Figure(figsize=(9.0, 4.6), layout="constrained")
    axes = figure.add_subplot(title="How far apart the two sets are: AUC of the classifier in cells of equal area")
    lon, lat = np.meshgrid(*globe(0.5).centres)
    values = np.full(12 * side**2, np.nan)
    numbers = cells["name"].to_numpy(str).astype(np.int64)
    values[numbers] = cells["value"]
    shown = values[cells_of(lon.ravel(), lat.ravel(), side)].reshape(lon.shape)
    drawn = axes.imshow(
        np.ma.masked_invalid(shown), extent=globe().extent, origin="lower", aspect="auto", interpolation="nearest",
        cmap="viridis", vmin=0.5, vmax=1.0,
    )  # fmt: skip
    apart = cells[cells["q"] <= _LEVEL]
    axes.plot(apart["lon"], apart["lat"], "o", color="white", markeredgecolor="k", markersize=5)
    draw_coastlines(axes)
    figure.colorbar(drawn, ax=axes, label="AUC (0.5: the same)", shrink=0.85)
    save_figure(figure, path)


def draw_strata(rows: "pd.DataFrame", path: Path) -> None:
    """Draw the AUC of each stratum with its interval, of latents and of quantities alone.

    Args:
        rows: with label, measured (latents or a quantity), value, low, high.
        path: output file.
    """
    labels = list(dict.fromkeys(rows["label"]))[::-1]
    kinds = list(dict.fromkeys(rows["measured"]))
    figure = Figure(figsize=(9.0, 1.4 + 0.32 * len(labels)), layout="constrained")
    axes = figure.add_subplot(xlabel="AUC of the classifier (0.5: the same)", title="All rows and strata")
    for number, kind in enumerate(kinds):
        part = rows[rows["measured"] == kind]
        place = np.array([labels.index(label) for label in part["label"]]) - 0.2 * (number - (len(kinds) - 1) / 2)
        reach = np.stack([part["value"] - part["low"], part["high"] - part["value"]])
        axes.errorbar(part["value"], place, xerr=np.maximum(reach, 0), fmt="o", markersize=4, label=kind)
    axes.axvline(0.5, color="0.6", linewidth=0.8)
    axes.set_yticks(range(len(labels)), labels=labels)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    tidy(axes)
    save_figure(figure, path)
