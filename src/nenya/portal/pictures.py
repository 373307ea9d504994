"""Arrays for figures: densities, means in cells, sheets of cutouts."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nenya.portal.columns import BINS, Binned
from nenya.portal.state import BoolArray
from nenya.tables.classes import Classes, commonest

FloatArray = NDArray[np.float32]
Picked = BoolArray | NDArray[np.integer]
"""Some of N rows: a mask (N,), or their numbers."""
Extent = tuple[float, float, float, float]
"""Left, right, lower and upper limit."""


def raster(
    x: FloatArray,
    y: FloatArray,
    extent: Extent,
    cells: tuple[int, int],
    *,
    mask: Picked | None = None,
    values: FloatArray | None = None,
    around: float | None = None,
) -> FloatArray:
    """Count points in cells, or average their values.

    Args:
        x: (N,).
        y: (N,).
        extent: of all cells.
        cells: number in x and y.
        mask: points to include: (N,) bool, or their numbers.
        values: (N,); NaN is ignored.
        around: period of x, such as 360 degrees.

    Returns:
        (rows, columns) float32, lowest row first; NaN in empty cells.
    """
    if mask is not None:
        x, y = x[mask], y[mask]
        values = values[mask] if values is not None else None
    wide, tall = cells
    place = cells_of(x, y, extent, cells, around)
    inside = place >= 0
    if values is not None:
        inside &= np.isfinite(values)
    place = place[inside]
    count = np.bincount(place, minlength=wide * tall)
    with np.errstate(invalid="ignore", divide="ignore"):
        if values is None:
            cell = np.where(count, count, np.nan)
        else:
            cell = np.bincount(place, weights=values[inside], minlength=wide * tall) / count
    return cell.reshape(tall, wide).astype(np.float32)


def cells_of(
    x: FloatArray, y: FloatArray, extent: Extent, cells: tuple[int, int], around: float | None = None
) -> NDArray[np.int32]:
    """Return the cell of each point, line * columns + column, -1 outside: (N,) int32; arguments as of `raster`."""
    left, right, low, high = extent
    wide, tall = cells
    with np.errstate(invalid="ignore", over="ignore"):
        across = np.mod(x - np.float32(left), np.float32(around)) if around else x - np.float32(left)
        column = np.floor(across * np.float32(wide / (right - left)))
        line = np.floor((y - np.float32(low)) * np.float32(tall / (high - low)))
        inside = (column >= 0) & (column < wide) & (line >= 0) & (line < tall)
        place = np.full(len(x), -1, np.int32)
        place[inside] = line[inside].astype(np.int32) * np.int32(wide) + column[inside].astype(np.int32)
    return place


def class_raster(
    x: FloatArray,
    y: FloatArray,
    extent: Extent,
    cells: tuple[int, int],
    classes: Classes,
    *,
    mask: Picked | None = None,
    around: float | None = None,
) -> FloatArray:
    """Return the commonest class of each cell, (rows, columns) float32, NaN where empty; arguments as of `raster`."""
    codes = classes.codes
    if mask is not None:
        x, y, codes = x[mask], y[mask], codes[mask]
    found = commonest(cells_of(x, y, extent, cells, around), codes, cells[0] * cells[1], len(classes.values))
    return np.where(found < 0, np.nan, found).reshape(cells[1], cells[0]).astype(np.float32)


def histogram(binned: Binned, mask: Picked | None) -> NDArray[np.int64]:
    """Count the selected rows in the bins of a column: (BINS,) int64."""
    if mask is None:
        return binned.counts
    return np.bincount(binned.codes[mask], minlength=BINS + 1)[:BINS]


def extent_of(x: FloatArray, y: FloatArray) -> Extent:
    """Return the limits of points with a margin; of many points, the outermost 0.02 % are ignored."""
    ends: list[float] = []
    for values in (x, y):
        known = values[np.isfinite(values)]
        step = max(1, len(known) // 200_000)
        low, high = np.quantile(known[::step], (2e-4, 1 - 2e-4)) if len(known) > 10**4 else (0.0, 1.0)
        if 0 < len(known) <= 10**4:
            low, high = known.min(), known.max()
        room = 0.04 * (high - low) or 1.0
        ends += [float(low - room), float(high + room)]
    return (ends[0], ends[1], ends[2], ends[3])


def sheet(images: Sequence[FloatArray | None], columns: int, rows: int, *, own_scale: bool) -> FloatArray:
    """Arrange cutouts in lines, from the upper left.

    Args:
        images: (H, W) each; None leaves a gap.
        columns: cutouts per line.
        rows: lines.
        own_scale: scale each by itself, between its 1st and 99th percentile: from -1 to 1 about 0 if the cutouts have
            both signs, else from 0 to 1.

    Returns:
        (rows * S, columns * S) float32 with S = H + 2, top line first; NaN between cutouts. Cutouts of another
        size than the first are resampled to its size. The first line of a cutout is its lowest, as on a map.
    """
    side = next((len(image) for image in images if image is not None), 8)
    step = side + 2
    about_zero = own_scale and colour_range(images)[0] < 0 < colour_range(images)[1]
    out = np.full((rows * step, columns * step), np.nan, np.float32)
    for number, image in enumerate(images[: rows * columns]):
        if image is None:
            continue
        tile = image
        if len(tile) != side:
            pick = np.arange(side) * len(tile) // side
            tile = tile[np.ix_(pick, pick)]
        if own_scale and np.isfinite(tile).any():
            low, high = np.nanpercentile(tile, (1, 99))
            if about_zero:
                tile = np.clip(tile / (max(-low, high) or 1), -1, 1)
            else:
                tile = np.clip((tile - low) / (high - low if high > low else 1), 0, 1)
        top, left = number // columns * step + 1, number % columns * step + 1
        out[top : top + side, left : left + side] = tile[::-1]
    return out


def own_range(picture: FloatArray) -> tuple[float, float]:
    """Return the colour range of a sheet whose cutouts are scaled each by itself."""
    return (-1.0, 1.0) if (picture < 0).any() else (0.0, 1.0)


def colour_range(images: Sequence[FloatArray | None]) -> tuple[float, float]:
    """Return a shared colour range, in K: symmetric about 0 if the values have both signs, else their range."""
    known = [image[np.isfinite(image)] for image in images if image is not None]
    values = np.concatenate(known) if known else np.empty(0)
    if not len(values):
        return (-1.0, 1.0)
    low, high = (float(v) for v in np.percentile(values, (1, 99)))
    if low < 0 < high:
        low, high = -max(-low, high), max(-low, high)
    return (low, high) if high > low else (low - 0.5, high + 0.5)
