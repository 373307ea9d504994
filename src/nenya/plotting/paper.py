"""Shared parts of all figures: colours, labels, limits, and writing that leaves matplotlib's settings as they were."""

import io
import os
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties

from nenya.errors import InputFileError, NenyaError, OptionError, OutputError
from nenya.plotting.style import Style
from nenya.storage.disk import atomic_path

FloatArray = npt.NDArray[np.floating]
IntArray = npt.NDArray[np.int64]
Limits = tuple[tuple[float, float], tuple[float, float]]

Place = str | os.PathLike[str]
Places = Place | Sequence[Place]

UMAP_LABELS = ("UMAP 1", "UMAP 2")
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


def wrapped(title: str, figure: Figure) -> str:
    """Return a title in lines that fit into a figure's width."""
    letter = 0.56 * FontProperties(size=matplotlib.rcParams["axes.titlesize"]).get_size()
    letters = max(12, int(72 * float(figure.get_figwidth()) / letter))
    return "\n".join(part for line in title.splitlines() for part in textwrap.wrap(line, letters) or [""])


def reach_of(values: FloatArray) -> float:
    """Return the end of a symmetric colour scale: the 99th percentile of the finite magnitudes, else 1."""
    finite = np.abs(values[np.isfinite(values)])
    return (float(np.quantile(finite, 0.99)) if finite.size else 0.0) or 1.0


_METADATA: dict[str, dict[str, Any]] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}  # same figure, same file


def save_figure(figure: Figure, path: Places, *, style: Style | None = None) -> None:
    """Write a figure in the format of the path's suffix; letters in .pdf are of TrueType fonts.

    Args:
        figure: of matplotlib.
        path: the output file, or several of them, of different formats.
        style: only its `dpi` is used.

    Raises:
        OptionError: unknown suffix of an output file.
        OutputError: it cannot be written.
    """
    targets = [Path(path)] if isinstance(path, str | os.PathLike) else [Path(one) for one in path]
    known = FigureCanvasAgg(figure).get_supported_filetypes()
    for target in targets:
        if _suffix(target) not in known:
            raise OptionError(
                f"{target}: unknown format {_suffix(target)!r}; expected one of {', '.join(sorted(known))}"
            )
    style = style or Style()
    with style.applied():  # all formats are there before the first file is written
        drawn = [_bytes_of(figure, _suffix(target), style.dpi) for target in targets]
    for target, content in zip(targets, drawn, strict=True):
        try:
            with atomic_path(target) as temporary:
                temporary.write_bytes(content)
        except NenyaError:
            raise
        except OSError as error:
            raise OutputError(f"cannot write {target}: {error.strerror or error}") from error


def _suffix(path: Path) -> str:
    return path.suffix.lstrip(".").lower()


def _bytes_of(figure: Figure, suffix: str, dpi: float) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=suffix, dpi=dpi, metadata=_METADATA.get(suffix))
    return buffer.getvalue()
