"""Exact nearest rows: the same answer for a row alone or among others, in any order, on any number of threads.

Matrix products are fast, but their last bits depend on the batch size and the number of threads. So they only choose
candidates: all rows that could be among the k nearest, by a bound on the rounding of the product. The candidates are
ranked by their distance in float64, summed in a fixed order, ties by row number. Rows are in memory and the distance is
Euclidean; for cosines over files, pass by pass, see `nenya.latents.similarity`. The sums of both decide saved results,
here the places of a UMAP, so that neither can take over the other's.

Letters in shapes: N rows that are searched, n query rows, D their length, k neighbours.
"""

import threading
from typing import Any

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
Float64Array = NDArray[np.float64]
IntArray = NDArray[np.int64]

COMPILED = threading.Lock()
"""Held while compiled code runs on several threads: one of numba's threading layers aborts on concurrent calls."""

_TILE_BYTES = 2**26
_STRIDE = 64
_UNIT = 2.0**-24  # rounding unit of float32


@njit(cache=True)
def distance(x: FloatArray, y: FloatArray) -> float:
    """Return the squared distance, summed in float64 in four partial sums of fixed order."""
    s0 = s1 = s2 = s3 = 0.0
    whole = x.size // 4 * 4
    for d in range(0, whole, 4):
        d0 = np.float64(x[d]) - np.float64(y[d])
        d1 = np.float64(x[d + 1]) - np.float64(y[d + 1])
        d2 = np.float64(x[d + 2]) - np.float64(y[d + 2])
        d3 = np.float64(x[d + 3]) - np.float64(y[d + 3])
        s0 += d0 * d0
        s1 += d1 * d1
        s2 += d2 * d2
        s3 += d3 * d3
    for d in range(whole, x.size):
        d0 = np.float64(x[d]) - np.float64(y[d])
        s0 += d0 * d0
    return (s0 + s1) + (s2 + s3)


@njit(cache=True)
def insert(value: float, number: int, values: Any, numbers: IntArray) -> None:
    """Insert a pair into lists sorted by (value, number), dropping the last pair, unless it sorts after all."""
    at = values.size - 1
    if value > values[at] or (value == values[at] and number >= numbers[at]):
        return
    while at > 0 and (value < values[at - 1] or (value == values[at - 1] and number < numbers[at - 1])):
        values[at], numbers[at] = values[at - 1], numbers[at - 1]
        at -= 1
    values[at], numbers[at] = value, number


@njit(cache=True)
def _has_below(scores: FloatArray, norms: FloatArray, limit: np.float32) -> bool:
    """Return whether any score is at or below a limit; branch-free, so that it is vectorised."""
    found = np.int32(0)
    for j in range(scores.size):
        found |= np.int32(scores[j] + norms[j] <= limit)
    return bool(found != 0)


@njit(cache=True)
def _rank(
    scores: FloatArray,
    norms: FloatArray,
    numbers: IntArray,
    x: FloatArray,
    rows: FloatArray,
    margin: float,
    squares: Float64Array,
    found: IntArray,
) -> None:
    """Find the nearest of the rows `numbers`; `scores + norms` is their squared distance up to a constant.

    Args:
        scores: (m,) -2 x . y, of centred rows.
        norms: (m,) |y|^2.
        numbers: (m,) row numbers.
        x: (D,) the query row.
        rows: (N, D) all rows.
        margin: twice the largest error of a score.
        squares: (k,) output, the squared distances, rising.
        found: (k,) output, the row numbers.
    """
    least = np.full(squares.size, np.float32(np.inf), dtype=np.float32)
    places = np.full(squares.size, np.int64(-1))
    for start in range(0, scores.size, _STRIDE):
        stop = min(start + _STRIDE, scores.size)
        if _has_below(scores[start:stop], norms[start:stop], least[-1]):
            for j in range(start, stop):
                score = scores[j] + norms[j]
                if score < least[-1]:
                    insert(score, j, least, places)
    limit = np.nextafter(np.float32(least[-1] + margin), np.float32(np.inf))
    squares[:] = np.inf
    found[:] = np.iinfo(np.int64).max
    for start in range(0, scores.size, _STRIDE):
        stop = min(start + _STRIDE, scores.size)
        if _has_below(scores[start:stop], norms[start:stop], limit):
            for j in range(start, stop):
                if scores[j] + norms[j] <= limit:
                    insert(distance(x, rows[numbers[j]]), numbers[j], squares, found)


@njit(parallel=True, cache=True)
def _rank_all(
    scores: FloatArray,
    norms: FloatArray,
    numbers: IntArray,
    x: FloatArray,
    rows: FloatArray,
    margins: Float64Array,
    squares: Float64Array,
    found: IntArray,
) -> None:
    for r in prange(x.shape[0]):
        _rank(scores[r], norms, numbers, x[r], rows, margins[r], squares[r], found[r])


class Neighbours:
    """Rows that are all searched.

    Args:
        rows: (N, D) float32, finite.
    """

    def __init__(self, rows: FloatArray) -> None:
        self.rows = np.ascontiguousarray(rows, dtype=np.float32)
        self.centre: Float64Array = self.rows.mean(axis=0, dtype=np.float64)
        self.scaled, self.norms = np.empty_like(self.rows), np.empty(len(self.rows), np.float32)
        largest = 0.0
        for start in range(0, len(self.rows), 4096):
            centred = self.rows[start : start + 4096] - self.centre
            squares = (centred**2).sum(axis=1)
            self.scaled[start : start + 4096] = -2 * centred
            self.norms[start : start + 4096] = squares
            largest = max(largest, float(squares.max()))
        self.radius = float(np.sqrt(largest))
        self._numbers = np.arange(len(self.rows))

    def centred(self, x: FloatArray) -> tuple[FloatArray, Float64Array]:
        """Return rows minus the centre, (n, D) float32, and twice the largest error of their scores, (n,).

        With u the rounding unit, the error of a sum of D products is at most D u |x| |y| / (1 - D u) in any order
        (Higham 2002, Accuracy and Stability of Numerical Algorithms, eq. 3.5), plus the roundings of the rows, of the
        norms and of the last sum.
        """
        centred = x - self.centre
        lengths = np.sqrt((centred**2).sum(axis=1))
        terms = 2 * (x.shape[1] + 6) * lengths * self.radius + 4 * self.radius**2
        return centred.astype(np.float32), 2 * (1.02 * _UNIT * terms + 1e-37)

    def search(self, x: FloatArray, k: int) -> tuple[Float64Array, IntArray]:
        """Return the k nearest rows of each query.

        Args:
            x: (n, D) float32, finite.
            k: at most N.

        Returns:
            Distances, (n, k) float64, rising, and row numbers, (n, k); ties by row number.
        """
        squares, found = np.empty((len(x), k)), np.empty((len(x), k), np.int64)
        tile = max(16, _TILE_BYTES // (4 * len(self.rows)))
        for start in range(0, len(x), tile):
            part = slice(start, start + tile)
            centred, margins = self.centred(x[part])
            scores = centred @ self.scaled.T
            with COMPILED:
                _rank_all(
                    scores, self.norms, self._numbers, x[part], self.rows, margins, squares[part], found[part]
                )  # fmt: skip
        return np.sqrt(squares), found
