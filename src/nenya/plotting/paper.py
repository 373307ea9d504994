"""Shared parts of all figures: colours, labels, limits, and writing without matplotlib's global state."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nenya.errors import InputFileError, NenyaError, OptionError, OutputError
from nenya.storage.disk import atomic_path

FloatArray = npt.NDArray[np.floating]
IntArray = npt.NDArray[np.int64]
Limits = tuple[tuple[float, float], tuple[float, float]]

DPI = 200
COLOURS = "RdYlBu_r"  # of anomalies
COUNTS, VALUES = "cividis", "viridis"  # suitable for colour-blind readers
TRAIN_COLOUR, VALID_COLOUR = "#4477aa", "#cc3311"  # distinguishable for colour-blind readers


def central_limits(coordinates: FloatArray, share: float = 0.99) -> Limits:
    """Return the range of each coordinate with the central `share` of the points, plus 5 % on each side.

    Args:
        coordinates: (N, 2); rows that are not finite are ignored.
        share: fraction of the points within the range of each coordinate.

    Raises:
        InputFileError: another shape, or no finite row.
    """
    if coordinates.ndim != 2 or coordinates.shape[1] != 2:
        raise InputFileError(f"expected coordinates of shape (N, 2), got {coordinates.shape}")
    finite = coordinates[np.isfinite(coordinates).all(axis=1)].astype(np.float64)
    if not len(finite):
        raise InputFileError(f"expected finite coordinates, got none in {len(coordinates)} rows")
    low, high = np.quantile(finite, [(1 - share) / 2, (1 + share) / 2], axis=0)
    margin = np.where(high > low, 0.05 * (high - low), 0.5)
    low, high = low - margin, high + margin
    return (float(low[0]), float(high[0])), (float(low[1]), float(high[1]))


def tidy(axes: Any) -> None:
    """Draw a light grid behind the data, and remove the frame at the top and on the right."""
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def reach_of(values: FloatArray) -> float:
    """Return the end of a symmetric colour scale: the 99th percentile of the finite magnitudes, else 1."""
    finite = np.abs(values[np.isfinite(values)])
    return (float(np.quantile(finite, 0.99)) if finite.size else 0.0) or 1.0


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure in the format of the path's suffix, without touching matplotlib's global state.

    Raises:
        OptionError: unknown suffix of the output file.
        OutputError: it cannot be written.
    """
    target = Path(path)
    canvas = FigureCanvasAgg(figure)
    known = canvas.get_supported_filetypes()
    suffix = target.suffix.lstrip(".").lower()
    if suffix not in known:
        raise OptionError(f"{target}: unknown format {suffix!r}; expected one of {', '.join(sorted(known))}")
    try:
        with atomic_path(target) as temporary:
            figure.savefig(temporary, format=suffix, dpi=DPI)
    except NenyaError:
        raise
    except OSError as error:
        raise OutputError(f"cannot write {target}: {error.strerror or error}") from error
