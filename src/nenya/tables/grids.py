"""Counts of points in cells of a plane or of the globe, and coastlines.

Letters: N points, R rows and C columns of cells.
"""

import functools
import itertools
from dataclasses import dataclass
from importlib.resources import as_file, files

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.floating]
Float64Array = NDArray[np.float64]
IntArray = NDArray[np.int64]

_BLOCK = 2**18  # points at once, so that they fit into the CPU cache


@dataclass(frozen=True)
class Grid:
    """Equal cells between two values of x and two of y.

    A point on an inner edge belongs to the cell above or right of it, one on the outer edge to the last cell.

    Attributes:
        x: left and right end.
        y: lower and upper end.
        columns: cells C along x.
        rows: cells R along y.
    """

    x: tuple[float, float]
    y: tuple[float, float]
    columns: int
    rows: int

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """Left, right, lower and upper end, as matplotlib's `imshow` takes them."""
        return (*self.x, *self.y)

    @property
    def centres(self) -> tuple[Float64Array, Float64Array]:
        """Centres of the columns, (C,), and of the rows, (R,)."""
        x, y = (
            low + (np.arange(count) + 0.5) * (high - low) / count
            for (low, high), count in ((self.x, self.columns), (self.y, self.rows))
        )
        return x, y

    def cells(self, x: FloatArray, y: FloatArray) -> IntArray:
        """Return the index of each point's cell, row * C + column: (N,) int64, -1 outside or where one is NaN."""
        column, row = _places(x, self.x, self.columns), _places(y, self.y, self.rows)
        found: IntArray = np.where((column >= 0) & (row >= 0), row * self.columns + column, -1)
        return found

    def counts(self, x: FloatArray, y: FloatArray) -> IntArray:
        """Count the points (N,) of each cell: (R, C) int64."""
        return self.sums(x, y, None)[0]

    def sums(self, x: FloatArray, y: FloatArray, values: FloatArray | None) -> tuple[IntArray, Float64Array]:
        """Count the points of each cell and sum their values; points without a finite value are skipped.

        Args:
            x: (N,).
            y: (N,).
            values: (N,), or None for zeros.

        Returns:
            Counts (R, C) int64 and sums (R, C) float64.
        """
        cells = self.rows * self.columns
        counts, sums = np.zeros(cells, np.int64), np.zeros(cells)
        for start in range(0, len(x), _BLOCK):
            part = slice(start, start + _BLOCK)
            cell = self.cells(x[part], y[part])
            inside = cell >= 0
            if values is not None:
                value = np.asarray(values[part], np.float64)
                inside &= np.isfinite(value)
                sums += np.bincount(cell[inside], weights=value[inside], minlength=cells)
            counts += np.bincount(cell[inside], minlength=cells)
        return counts.reshape(self.rows, self.columns), sums.reshape(self.rows, self.columns)

    def means(self, x: FloatArray, y: FloatArray, values: FloatArray, least: int = 1) -> Float64Array:
        """Average finite values over the points of each cell: (R, C) float64, NaN with fewer than `least` of them."""
        counts, sums = self.sums(x, y, values)
        averaged: Float64Array = np.where(counts >= max(least, 1), sums / np.maximum(counts, 1), np.nan)
        return averaged


def globe(degrees: float = 2.0) -> Grid:
    """Return cells of the globe, of about this many degrees of longitude and latitude.

    Examples:
        >>> grid = globe(30.0)
        >>> type(grid).__name__
        'Grid'
    """
    return Grid((-180.0, 180.0), (-90.0, 90.0), round(360 / degrees), round(180 / degrees))


def wrap_longitude(lon: FloatArray) -> FloatArray:
    """Return longitudes in degrees, (N,), as -180 up to, but not including, 180.

    Examples:
        >>> import numpy as np
        >>> wrap_longitude(np.array([190.0, -190.0, 0.0])).tolist()
        [-170.0, 170.0, 0.0]
    """
    lon = np.asarray(lon)
    if len(lon) and (np.nanmin(lon, initial=0) < -180 or np.nanmax(lon, initial=0) >= 180):
        return (lon + 180) % 360 - 180
    return lon


def _places(values: FloatArray, ends: tuple[float, float], count: int) -> IntArray:
    low, high = ends
    values = np.asarray(values, np.float64)
    with np.errstate(invalid="ignore"):
        place = np.floor((values - low) * (count / (high - low)))
        place = np.where(values == high, count - 1, place)
        place = np.where((values >= low) & (values < high), np.clip(place, 0, count - 1), place)
        inside = (place >= 0) & (place < count)
    found: IntArray = np.where(inside, place, -1).astype(np.int64)
    return found


@functools.cache
def coastlines() -> list[NDArray[np.float32]]:
    """Return the rings of land: each (n, 2) float32, longitude and latitude in degrees, the first point last again.

    Land polygons of Natural Earth (public domain) at 1:110 million; see `data_files/README.md`. A ring within
    another one is a lake (the Caspian Sea). Rings are cut at the antimeridian, and Antarctica ends at -90.
    """
    with as_file(files("nenya") / "data_files" / "coastlines.npz") as path, np.load(path, allow_pickle=False) as stored:
        points, starts = stored["points"], stored["starts"]
    return [points[start:stop] for start, stop in itertools.pairwise(starts)]
