"""Compiled search of the best scores of each query among rows that are not too close to be its neighbours.

Each function uses the thread that calls it: several may run at once.

Letters: Q queries, n rows of a tile, m candidates of each query.
"""

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

_STRIDE = 64


@njit(cache=True)
def _has_above(scores: Any, limit: Any) -> bool:
    """Return whether any score is above a limit; branch-free, so that it is vectorised."""
    found = np.int32(0)
    for j in range(scores.size):
        found |= np.int32(scores[j] > limit)
    return bool(found != 0)


@njit(cache=True)
def _insert(score: Any, number: int, best: Any, found: Any) -> None:
    """Insert a score into falling ones, dropping the last one, behind those that are equal."""
    at = best.size - 1
    while at > 0 and score > best[at - 1]:
        best[at], found[at] = best[at - 1], found[at - 1]
        at -= 1
    best[at], found[at] = score, number


@njit(cache=True)
def _is_near(i: int, j: int, places: Any, times: Any, limits: Any) -> bool:
    """Return whether a query is near a row in place and time; without a known place and time it is near none."""
    if not (places[0].size or times[0].size):
        return False
    near = True
    if places[0].size:
        one, other = places[0][i], places[1][j]
        near = one[0] * other[0] + one[1] * other[1] + one[2] * other[2] >= limits[0]
    if near and times[0].size:
        near = abs(times[0][i] - times[1][j]) <= limits[1]
    return near


@njit(nogil=True, cache=True)
def merge_best(  # compiled code takes arrays, not objects
    best: NDArray[np.float32],
    found: NDArray[np.int64],
    scores: NDArray[np.float32],
    start: int,
    numbers: Any,
    granules: Any,
    places: Any,
    times: Any,
    limits: Any,
) -> None:
    """Merge the scores of a tile into the best so far, in place.

    Args:
        best: (Q, m) falling.
        found: (Q, m) their rows.
        scores: (Q, n) of the rows from `start`.
        start: first row of the tile.
        numbers: (Q,) and (n,) of queries and rows: equal ones are left out.
        granules: (Q,) and (n,): equal ones from 0 are left out.
        places: (Q, 3) and (n, 3) unit vectors, or (0, 3) twice where places are ignored.
        times: (Q,) and (n,) days, or (0,) twice.
        limits: least cosine of near places, largest difference of near times.
    """
    for i in range(scores.shape[0]):
        for first in range(0, scores.shape[1], _STRIDE):
            last = min(first + _STRIDE, scores.shape[1])
            if not _has_above(scores[i, first:last], best[i, -1]):
                continue
            for j in range(first, last):
                if not scores[i, j] > best[i, -1] or numbers[0][i] == numbers[1][j]:
                    continue
                if granules[0][i] >= 0 and granules[0][i] == granules[1][j]:
                    continue
                if not _is_near(i, j, places, times, limits):
                    _insert(scores[i, j], start + j, best[i], found[i])


@njit(nogil=True, cache=True)
def cosines_of(
    queries: NDArray[np.float32],
    rows: NDArray[np.float32],
    found: NDArray[np.int64],
    out: NDArray[np.float64],
) -> None:
    """Write the cosine of each query with its candidates.

    Args:
        queries: (Q, D).
        rows: (R, D).
        found: (Q, m) rows, -1 for none.
        out: (Q, m), NaN before; changed where there is a row.
    """
    for i in range(found.shape[0]):
        own = 0.0
        for d in range(queries.shape[1]):
            own += np.float64(queries[i, d]) * np.float64(queries[i, d])
        for j in range(found.shape[1]):
            if found[i, j] >= 0:
                both, other = 0.0, 0.0
                for d in range(queries.shape[1]):
                    value = np.float64(rows[found[i, j], d])
                    both += np.float64(queries[i, d]) * value
                    other += value * value
                out[i, j] = both / np.sqrt(own * other)
