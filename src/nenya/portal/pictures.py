"""Arrays for figures: densities, means in cells, sheets of cutouts."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nenya.portal.columns import BINS, Binned
from nenya.portal.state import BoolArray
from nenya.tables.classes import Classes, commonest

FloatArray = NDArray[np.float32]
Picked = BoolArray | NDArray[np.integer]
"""Some of N rows: a mask (N,), or their numbers."""
Places = NDArray[np.int32]
Extent = tuple[float, float, float, float]
"""Left, right, lower and upper limit."""

_BLOCK = 2**17  # rows that are counted at once


def raster(
    x: FloatArray,
    y: FloatArray,
    extent: Extent,
    cells: tuple[int, int],
    *,
    mask: Picked | None = None,
    values: FloatArray | None = None,
    around: float | None = None,
    places: Places | None = None,
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
        places: (N,) cells of the points as `cells_of` gives them, if they are known.

    Returns:
        (rows, columns) float32, lowest row first; NaN in empty cells.
    """
    wide, tall = cells
    count, total = np.zeros(wide * tall, np.int64), np.zeros(wide * tall)
    for part, chosen in _blocks(len(x), mask):
        place = _places(x, y, extent, cells, around, places, part, chosen)
        if values is None:
            count += np.bincount(place + 1, minlength=wide * tall + 1)[1:]
            continue
        own = values[part] if chosen is None else values[part][chosen]
        good = np.isfinite(own) & (place >= 0)
        place = place[good]
        count += np.bincount(place, minlength=wide * tall)
        total += np.bincount(place, weights=own[good], minlength=wide * tall)
    with np.errstate(invalid="ignore", divide="ignore"):
        cell = np.where(count, count, np.nan) if values is None else total / count
    return cell.reshape(tall, wide).astype(np.float32)


def _blocks(rows: int, mask: Picked | None) -> Iterator[tuple[Any, BoolArray | None]]:
    """Yield indices of some rows and which of them are picked (None: all), in parts that fit the processor's cache."""
    if mask is not None and mask.dtype != bool:
        for start in range(0, len(mask), _BLOCK):
            yield mask[start : start + _BLOCK], None
        return
    for start in range(0, rows, _BLOCK):
        part = slice(start, start + _BLOCK)
        yield part, None if mask is None else np.asarray(mask[part], bool)


def _places(  # of one block
    x: FloatArray, y: FloatArray, extent: Extent, cells: tuple[int, int], around: float | None,
    places: Places | None, part: Any, chosen: BoolArray | None,
) -> Places:  # fmt: skip
    """Return the cells of the rows that a part of `_blocks` picks."""
    if places is not None:
        known: Places = places[part]
        return known if chosen is None else known[chosen]
    own = (x[part], y[part]) if chosen is None else (x[part][chosen], y[part][chosen])
    return _cells(*own, extent, cells, around)


def cells_of(
    x: FloatArray, y: FloatArray, extent: Extent, cells: tuple[int, int], around: float | None = None
) -> Places:
    """Return the cell of each point, line * columns + column, -1 outside: (N,) int32; arguments as of `raster`."""
    place = np.empty(len(x), np.int32)
    for part, _ in _blocks(len(x), None):
        place[part] = _cells(x[part], y[part], extent, cells, around)
    return place


def _cells(x: FloatArray, y: FloatArray, extent: Extent, cells: tuple[int, int], around: float | None) -> Places:
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
    places: Places | None = None,
) -> FloatArray:
    """Return the commonest class of each cell, (rows, columns) float32, NaN where empty; arguments as of `raster`."""
    place, codes = cells_of(x, y, extent, cells, around) if places is None else places, classes.codes
    if mask is not None:
        place, codes = place[mask], codes[mask]
    found = commonest(place, codes, cells[0] * cells[1], len(classes.values))
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
