"""Compiled parts of the search in lists: integers, grouping, the best scores, and distances.

Every value depends on one query alone: sums have a fixed order, and nothing is shared between rows. The functions run
on one thread each and let others run.

Letters: n queries, p lists of each, P dimensions, m candidates, k neighbours.
"""

import math
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from nenya.latents.neighbours import insert

FloatArray = NDArray[np.float32]
Float64Array = NDArray[np.float64]
IntArray = NDArray[np.int64]

STRIDE = 64
"""Rows of a list are compared by so many; lists are filled up to a multiple of it."""

_TOGETHER = 8  # rows whose distances are summed at the same time
_LANES = 4 * _TOGETHER
_LINE = 16  # float32 values in a line of the cache
_NONE = 0x7F800000  # the key of an infinite score


@njit(cache=True, nogil=True, error_model="numpy")
def to_integers(rows: Float64Array, length: float, out: Any, units: Float64Array) -> None:
    """Scale rows to a length and round them.

    Args:
        rows: (n, P) float64.
        length: the length.
        out: (n, P) output, integers; rows of length 0, or that are not finite, become 0.
        units: (n,) output: `out` times it is about `rows`.
    """
    for r in range(rows.shape[0]):
        total = 0.0
        for d in range(rows.shape[1]):
            total += rows[r, d] * rows[r, d]
        known = 0 < total < np.inf
        scale = length / math.sqrt(total) if known else 0.0
        units[r] = math.sqrt(total) / length if known else 0.0
        for d in range(rows.shape[1]):
            out[r, d] = np.rint(rows[r, d] * scale) if known else 0.0


@njit(cache=True, nogil=True, error_model="numpy")
def group(lists: IntArray, starts: IntArray, members: IntArray) -> None:
    """Sort queries by the lists that they search.

    Args:
        lists: (n, p), -1 for none.
        starts: (L + 1,) output: bounds of each list in `members`.
        members: (n p,) output: the queries.
    """
    starts[:] = 0
    for r in range(lists.shape[0]):
        for j in range(lists.shape[1]):
            if lists[r, j] >= 0:
                starts[lists[r, j] + 1] += 1
    for i in range(starts.size - 1):
        starts[i + 1] += starts[i]
    place = starts[:-1].copy()
    for r in range(lists.shape[0]):
        for j in range(lists.shape[1]):
            i = lists[r, j]
            if i >= 0:
                members[place[i]] = r
                place[i] += 1


@njit(cache=True, nogil=True, error_model="numpy")
def keep_best(  # compiled code takes arrays, not objects
    product: FloatArray,
    halves: FloatArray,
    units: FloatArray,
    unit: np.float32,
    asked: IntArray,
    numbers: IntArray,
    best: IntArray,
    worst: IntArray,
) -> None:
    """Merge the rows of a list into the nearest so far of the queries that search it.

    A key is 2^32 times the score |y|^2 / 2 - x . y, as an integer of the same order, plus the number of the row. So no
    two are equal, and which are kept does not depend on the order in which they come.

    Args:
        product: (q, n) integers x . y; n is a multiple of STRIDE.
        halves: (n,) |y|^2 / 2 of the rows, infinite for those that fill up the list.
        units: (N,) units of all queries.
        unit: of the rows.
        asked: (q,) which queries these are.
        numbers: (n,) of the rows, below 2^31.
        best: (N, m) keys, in no order, changed in place.
        worst: (N,) their largest, changed in place.
    """
    keys = np.empty(STRIDE, np.int32)
    for q in range(asked.size):
        r = asked[q]
        factor = np.float32(units[r] * unit)
        largest = worst[r]
        limit = np.int32(largest >> 32)
        for start in range(0, halves.size, STRIDE):
            least = np.int32(0x7FFFFFFF)
            for j in range(STRIDE):
                bits = np.float32(halves[start + j] - factor * product[q, start + j]).view(np.int32)
                key = np.int32(bits ^ np.int32(np.int32(bits >> 31) & np.int32(0x7FFFFFFF)))
                keys[j] = key
                least = key if key < least else least
            if least > limit:
                continue
            for j in range(STRIDE):
                whole = (np.int64(keys[j]) << 32) | numbers[start + j]
                if whole < largest and keys[j] < _NONE:
                    new = np.int64(-(2**63))
                    for i in range(best.shape[1]):
                        value = best[r, i]
                        value = whole if value == largest else value
                        best[r, i] = value
                        new = max(new, value)
                    largest = new
            limit = np.int32(largest >> 32)
        worst[r] = largest


def empty_keys(rows: int, count: int) -> tuple[IntArray, IntArray]:
    """Return `best` and `worst` of `keep_best` before anything is kept."""
    keys = (np.int64(_NONE) << 32) + np.arange(count)
    return np.tile(keys, (rows, 1)), np.full(rows, keys[-1])


def numbers_of(keys: IntArray) -> IntArray:
    """Return the numbers of the rows in keys, -1 for none."""
    return np.where(keys >> 32 < _NONE, keys & 0xFFFFFFFF, -1)


@njit(cache=True, error_model="numpy")
def _gather(
    rows: FloatArray,
    candidates: IntArray,
    r: int,
    start: int,
    near: FloatArray,
    numbers: IntArray,
    touched: FloatArray,
) -> int:
    """Copy rows side by side, four dimensions of each; return how many there are.

    A value of each of their cache lines is read first, since the rows lie anywhere in memory: all are then on their way
    at the same time.
    """
    count, total = 0, np.float32(0)
    for j in range(start, min(start + _TOGETHER, candidates.shape[1])):
        if candidates[r, j] >= 0:
            numbers[count] = candidates[r, j]
            count += 1
    for c in range(count):
        for d in range(0, rows.shape[1], _LINE):
            total += rows[numbers[c], d]
    touched[0] = total  # that the reading is not left out
    for c in range(count):
        for f in range(near.shape[0]):
            one, two = rows[numbers[c], 4 * f], rows[numbers[c], 4 * f + 1]
            three, four = rows[numbers[c], 4 * f + 2], rows[numbers[c], 4 * f + 3]
            near[f, 4 * c], near[f, 4 * c + 1], near[f, 4 * c + 2], near[f, 4 * c + 3] = one, two, three, four
    return count


@njit(cache=True, nogil=True, error_model="numpy")
def rank(x: FloatArray, rows: FloatArray, candidates: IntArray, squares: Float64Array, found: IntArray) -> None:
    """Find the nearest of the candidates of each query by their distance in float64, ties by number.

    The distance is `nenya.latents.neighbours.distance`, bit for bit, of several rows at a time.

    Args:
        x: (n, D) queries.
        rows: (N, D) all rows.
        candidates: (n, m) row numbers, -1 for none.
        squares: (n, k) output: squared distances, rising; infinite where there are fewer candidates.
        found: (n, k) output: row numbers.
    """
    squares[:] = np.inf
    found[:] = np.iinfo(np.int64).max
    fours, whole = x.shape[1] // 4, x.shape[1] // 4 * 4
    asked, near = np.zeros((fours, _LANES)), np.zeros((fours, _LANES), np.float32)
    sums, numbers, touched = np.empty(_LANES), np.empty(_TOGETHER, np.int64), np.zeros(1, np.float32)
    for r in range(x.shape[0]):
        for f in range(fours):
            for i in range(_LANES):
                asked[f, i] = x[r, 4 * f + i % 4]
        for start in range(0, candidates.shape[1], _TOGETHER):
            count = _gather(rows, candidates, r, start, near, numbers, touched)
            sums[:] = 0.0
            for f in range(fours):
                for i in range(_LANES):
                    difference = asked[f, i] - np.float64(near[f, i])
                    sums[i] += difference * difference
            for j in range(count):
                s = 4 * j
                for d in range(whole, x.shape[1]):
                    difference = np.float64(x[r, d]) - np.float64(rows[numbers[j], d])
                    sums[s] += difference * difference
                total = (sums[s] + sums[s + 1]) + (sums[s + 2] + sums[s + 3])
                insert(total, numbers[j], squares[r], found[r])
