"""Positions of cutouts on a field: on a grid, or around given places; clear fractions by integral images.

Letters: H rows and W columns of a field, n cutouts on it.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nenya.options.commands import PrepareOptions
from nenya.prepare.geometry import Field, to_degrees, to_vectors

EARTH_RADIUS = 6371.0088
"""Mean radius in km (IUGG)."""

_MOST_SIDE = 2**20  # pixels, more than any field has
_COARSE = 16  # spacing in pixels of the first, coarse search
_SAMPLES = 8  # rows and columns of a cutout at which a first look tells whether it is constant
_NEAR = 4  # coarse pixels; the fine search looks around each of them


@dataclass(frozen=True)
class Windows:
    """Cutouts of a field, before their pixels are read.

    Attributes:
        row: (n,) first rows.
        col: (n,) first columns; on a field that wraps around the globe a cutout may extend past the last column.
        height: (n,) rows.
        width: (n,) columns.
        clear: (n,) share of clear pixels, 0 to 1.
        request: (n,) numbers of the places at their centres, -1 on a grid.
        km: (n,) distance in km of the place from the pixel, NaN on a grid.
    """

    row: NDArray[np.intp]
    col: NDArray[np.intp]
    height: NDArray[np.intp]
    width: NDArray[np.intp]
    clear: NDArray[np.float64]
    request: NDArray[np.intp]
    km: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.row)

    def take(self, chosen: NDArray[np.bool_] | NDArray[np.intp] | slice) -> "Windows":
        """Return a selection."""
        return Windows(*(getattr(self, name)[chosen] for name in self.__dataclass_fields__))


def integral(mask: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Return the integral image (H + 1, W + 1) of a mask (H, W): the number of true pixels above and left of each."""
    table = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1), dtype=np.int32)
    np.cumsum(mask, axis=0, dtype=np.int32, out=table[1:, 1:])
    np.cumsum(table[1:, 1:], axis=1, out=table[1:, 1:])
    return table


def clear_share(table: NDArray[np.int32], windows: Windows) -> NDArray[np.float64]:
    """Return the share of true pixels (n,) of windows, by an integral image."""
    top, left = windows.row, windows.col
    bottom, right = top + windows.height, left + windows.width
    count = table[bottom, right] - table[top, right] - table[bottom, left] + table[top, left]
    return np.asarray(count / (windows.height * windows.width), dtype=np.float64)


def constant(values: NDArray[np.float32], windows: Windows) -> NDArray[np.bool_]:
    """Return which windows (n,) of a field (H, W) have one value at all of their finite pixels, which says nothing."""
    part = np.arange(_SAMPLES)
    rows = windows.row[:, None] + (windows.height[:, None] - 1) * part // (_SAMPLES - 1)
    cols = windows.col[:, None] + (windows.width[:, None] - 1) * part // (_SAMPLES - 1)
    some = values[rows[:, :, None], cols[:, None, :]]
    found: NDArray[np.bool_] = ~(np.fmin.reduce(some, axis=(1, 2)) < np.fmax.reduce(some, axis=(1, 2)))
    for i in np.flatnonzero(found):
        top, left = windows.row[i], windows.col[i]
        pixels = values[top : top + windows.height[i], left : left + windows.width[i]]
        pixels = pixels[np.isfinite(pixels)]
        found[i] = not len(pixels) or pixels.min() == pixels.max()
    return found


def usable_columns(width: int, options: PrepareOptions) -> tuple[int, int]:
    """Return the first usable column, and the one after the last: near nadir, the middle of a swath."""
    if options.nadir_offset is None:
        return 0, width
    middle = width // 2
    return max(0, middle - options.nadir_offset), min(width, middle + options.nadir_offset)


def grid_windows(field: Field, options: PrepareOptions) -> Windows:
    """Return all cutouts of the recipe's grid that lie in a field, with unknown clear share (NaN).

    On a field that wraps around the globe the grid continues across the seam with the same spacing.
    """
    height, width = field.shape
    first, last = usable_columns(width, options)
    size = options.field_size
    if options.fixed_km is not None:
        size = _typical_size(field, options.fixed_km)
    step = min(options.step or max(1, size // options.sub_grid_step), _MOST_SIDE)
    around = field.wraps and (first, last) == (0, width)
    rows = np.arange(0, height - (size if options.fixed_km is None else 2) + 1, step, dtype=np.intp)
    most = width - max(step, 1) if around else last - (size if options.fixed_km is None else 2)
    cols = np.arange(first, most + 1, step, dtype=np.intp)
    row, col = (axis.ravel() for axis in np.meshgrid(rows, cols, indexing="ij"))
    windows = _sized(field, options, row, col, size)
    return windows.take(_inside(windows, height, last, width if around else None))


def windows_at(
    field: Field,
    places: NDArray[np.float64],
    numbers: NDArray[np.intp],
    options: PrepareOptions,
) -> tuple[Windows, NDArray[np.intp]]:
    """Return the cutouts around given places that lie in the field, and the numbers of the places near a pixel.

    Args:
        field: the field to cut.
        places: (n, 2) latitude and longitude in degrees.
        numbers: (n,) of the places.
        options: size, and the largest distance of a place from the nearest pixel.
    """
    row, col, km = nearest_pixels(field, places)
    near = km <= options.max_km
    row, col, km, numbers = row[near], col[near], km[near], numbers[near]
    windows = _sized(field, options, row, col, options.field_size)
    height, width = field.shape
    first, last = usable_columns(width, options)
    top, left = row - windows.height // 2, col - windows.width // 2
    around = field.wraps and (first, last) == (0, width)
    if around:
        left = left % width
    moved = Windows(top, left, windows.height, windows.width, windows.clear, numbers, km)
    inside = _inside(moved, height, last, width if around else None) & (top >= 0) & (left >= first)
    return moved.take(inside), numbers


def _sized(field: Field, options: PrepareOptions, row: NDArray[np.intp], col: NDArray[np.intp], size: int) -> Windows:
    """Return windows of the recipe's size in pixels, or in km by the pixel size at their first pixel."""
    n = len(row)
    height = width = np.full(n, size, dtype=np.intp)
    if options.fixed_km is not None:
        tall, wide = pixel_km(field, row, col)
        with np.errstate(invalid="ignore", divide="ignore"):
            sides = np.stack([options.fixed_km / tall, options.fixed_km / wide])
        sides = np.where(np.isfinite(sides), np.minimum(sides, _MOST_SIDE), 0)
        height, width = np.rint(sides).astype(np.intp)
    return Windows(row, col, height, width, np.full(n, np.nan), np.full(n, -1, dtype=np.intp), np.full(n, np.nan))


def _inside(windows: Windows, height: int, last: int, around: int | None) -> NDArray[np.bool_]:
    """Return which windows lie in a field of `height` rows; its columns end at `last` or wrap around the globe."""
    good = (windows.height > 1) & (windows.width > 1) & (windows.row + windows.height <= height)
    if around is None:
        return good & (windows.col + windows.width <= last)
    return good & (windows.width <= around)


def _typical_size(field: Field, km: float) -> int:
    """Return the side in pixels of a length in km, from the median pixel size of a field."""
    height, width = field.shape
    rows, cols = (np.linspace(0, n - 2, min(n - 1, 16)).astype(np.intp) for n in (height, width))
    row, col = (axis.ravel() for axis in np.meshgrid(rows, cols, indexing="ij"))
    sizes = pixel_km(field, row, col)[0]
    sizes = sizes[np.isfinite(sizes) & (sizes > 0)]
    with np.errstate(over="ignore"):
        return max(2, round(min(km / np.median(sizes), _MOST_SIDE))) if len(sizes) else 2


def pixel_km(
    field: Field, row: NDArray[np.intp], col: NDArray[np.intp]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return height and width in km (n,) of pixels: the distances to the next row and column."""
    height, width = field.shape
    up = np.minimum(row, height - 2)
    across = col if field.wraps else np.minimum(col, width - 2)
    here = field.unit_vectors(up, col)
    tall = arc_km(here, field.unit_vectors(up + 1, col))
    wide = arc_km(field.unit_vectors(row, across), field.unit_vectors(row, across + 1))
    return tall, wide


def arc_km(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return great-circle distances in km between unit vectors (..., 3)."""
    chord = np.linalg.norm(one - other, axis=-1)
    return np.asarray(2 * EARTH_RADIUS * np.arcsin(np.minimum(chord / 2, 1)))


def centres(field: Field, windows: Windows) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return latitude and longitude (n,) in degrees of the centres of cutouts, NaN where the field has no coordinates.

    The centre of a cutout of even side lies between four pixels, in the direction of the sum of their unit vectors, so
    the dateline and the poles need no special treatment.
    """
    total = np.zeros((len(windows), 3))
    for down in (0, 1):
        for right in (0, 1):
            row = windows.row + (windows.height - 1 + down) // 2
            col = windows.col + (windows.width - 1 + right) // 2
            total += field.unit_vectors(row, col)
    return to_degrees(total)


def footprint_km(field: Field, windows: Windows) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return height and width in km (n,) of cutouts, along their middle column and row."""
    middle_row, middle_col = windows.row + windows.height // 2, windows.col + windows.width // 2
    sides = []
    for axis, count in ((0, windows.height), (1, windows.width)):
        longest = int(count.max(initial=2))
        along = np.minimum(np.arange(longest), (count - 1)[:, None])  # (n, longest)
        if axis == 0:
            points = field.unit_vectors(windows.row[:, None] + along, np.broadcast_to(middle_col[:, None], along.shape))
        else:
            points = field.unit_vectors(np.broadcast_to(middle_row[:, None], along.shape), windows.col[:, None] + along)
        length = np.nansum(arc_km(points[:, 1:], points[:, :-1]), axis=1)
        sides.append(length * count / (count - 1))
    return sides[0], sides[1]


def nearest_pixels(
    field: Field, places: NDArray[np.float64]
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float64]]:
    """Return row, column and distance in km (n,) of the pixels nearest to places.

    A coarse search over some pixels is followed by a fine one around the nearest of them.

    Args:
        field: with coordinates in rows and columns.
        places: (n, 2) latitude and longitude in degrees.
    """
    from scipy.spatial import cKDTree

    height, width = field.shape
    targets = to_vectors(places[:, 0], places[:, 1])
    rows, cols = (np.arange(min(_COARSE // 2, n // 2), n, _COARSE, dtype=np.intp) for n in (height, width))
    row, col = (axis.ravel() for axis in np.meshgrid(rows, cols, indexing="ij"))
    points = field.unit_vectors(row, col)
    known = np.isfinite(points).all(axis=1)
    row, col, points = row[known], col[known], points[known]
    best = np.full(len(places), np.inf)
    found_row, found_col = (np.zeros(len(places), dtype=np.intp) for _ in range(2))
    if not len(points) or not len(places):
        return found_row, found_col, best
    near = min(_NEAR, len(points))
    _, coarse = cKDTree(points).query(targets, k=near)
    around = np.arange(-_COARSE, _COARSE + 1)
    for candidate in np.asarray(coarse).reshape(len(places), near).T:
        r = np.clip(row[candidate][:, None, None] + around[:, None], 0, height - 1)
        c = col[candidate][:, None, None] + around[None, :]
        c = c % width if field.wraps else np.clip(c, 0, width - 1)
        r, c = np.broadcast_arrays(r, c)
        with np.errstate(invalid="ignore"):
            chord = np.linalg.norm(field.unit_vectors(r, c) - targets[:, None, None], axis=-1)
        flat = np.where(np.isfinite(chord), chord, np.inf).reshape(len(places), -1)
        nearest = flat.argmin(axis=1)
        which = np.arange(len(places))
        better = flat[which, nearest] < best
        best = np.where(better, flat[which, nearest], best)
        found_row = np.where(better, r.reshape(len(places), -1)[which, nearest], found_row)
        found_col = np.where(better, c.reshape(len(places), -1)[which, nearest], found_col)
    return found_row, found_col, 2 * EARTH_RADIUS * np.arcsin(np.minimum(best / 2, 1))
