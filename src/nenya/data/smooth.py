"""Compiled filling of the masked pixels of a cutout: the surface of `nenya.data.inpaint`, for a few hundred pixels.

The normal equations of the smallest Laplacian are solved by a Cholesky factorisation of their envelope: the unknown
pixels are numbered row by row, or column by column if that gives a smaller envelope, so a row of the factor is about as
long as two rows of the cutout have masked pixels. Each cutout is solved alone, in one thread, so its pixels do not
depend on the others.

Letters: n cutouts, H rows and W columns of pixels, m masked pixels of a cutout.
"""

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Numbers = NDArray[np.int64]

_MOST = 50_000_000  # multiply-adds; beyond, a sparse factorisation is faster


@njit(cache=True, nogil=True, fastmath={"reassoc", "contract", "nsz"})
def _dot(factor: Floats, one: int, other: int, length: int) -> float:
    """Return the product of two pieces of the factor."""
    total = 0.0
    for k in range(length):
        total += factor[one + k] * factor[other + k]
    return total


@njit(cache=True, nogil=True)
def _numbered(holes: NDArray[np.bool_], by_column: bool) -> NDArray[np.int32]:
    """Return the numbers (H, W) of the masked pixels, -1 elsewhere."""
    height, width = holes.shape
    number = np.full((height, width), -1, np.int32)
    count = 0
    for a in range(width if by_column else height):
        for b in range(height if by_column else width):
            y, x = (b, a) if by_column else (a, b)
            if holes[y, x]:
                number[y, x] = count
                count += 1
    return number


@njit(cache=True, nogil=True)
def _stencil(number: Any, y: int, x: int, places: Numbers, weights: Floats) -> int:
    """Collect the pixels and weights of the Laplacian at a pixel; return their count, 0 if none of them is masked."""
    height, width = number.shape
    count, some = 1, number[y, x] >= 0
    for dy, dx in ((-1, 0), (0, -1), (0, 1), (1, 0)):
        v, u = y + dy, x + dx
        if 0 <= v < height and 0 <= u < width:
            places[count] = v * width + u
            weights[count] = -1.0
            some |= number[v, u] >= 0
            count += 1
    places[0], weights[0] = y * width + x, count - 1.0
    return count if some else 0


@njit(cache=True, nogil=True)
def _envelope(number: Any, m: int) -> Numbers:
    """Return the column (m,) of the first entry of each row of the normal equations."""
    first = np.arange(m)
    flat = number.reshape(-1)
    places, weights = np.empty(5, np.int64), np.empty(5)
    for y in range(number.shape[0]):
        for x in range(number.shape[1]):
            count = _stencil(number, y, x, places, weights)
            least = m
            for a in range(count):
                i = flat[places[a]]
                if 0 <= i < least:
                    least = i
            for a in range(count):
                i = flat[places[a]]
                if i >= 0 and least < first[i]:
                    first[i] = least
    return first


@njit(cache=True, nogil=True)
def _cost(first: Numbers) -> float:
    total = 0.0
    for i in range(first.size):
        total += float(i - first[i]) ** 2
    return total


@njit(cache=True, nogil=True)
def _assemble(image: Any, number: Any, first: Numbers, starts: Numbers, matrix: Floats, right: Floats) -> None:
    """Add up the normal equations: the envelope of the matrix, with row i from `starts[i]` on, and the right side."""
    values, flat = image.reshape(-1), number.reshape(-1)
    places, weights = np.empty(5, np.int64), np.empty(5)
    for y in range(number.shape[0]):
        for x in range(number.shape[1]):
            count = _stencil(number, y, x, places, weights)
            known = 0.0
            for a in range(count):
                if flat[places[a]] < 0:
                    known += weights[a] * values[places[a]]
            for a in range(count):
                i = flat[places[a]]
                if i < 0:
                    continue
                right[i] -= weights[a] * known
                for b in range(count):
                    j = flat[places[b]]
                    if 0 <= j <= i:
                        matrix[starts[i] + j - first[i]] += weights[a] * weights[b]


@njit(cache=True, nogil=True)
def _solve(first: Numbers, starts: Numbers, factor: Floats, right: Floats) -> None:
    """Factorise the envelope in place, and replace the right side by the solution."""
    m = first.size
    for i in range(m):
        row, low = starts[i], first[i]
        for j in range(low, i):
            begin = max(low, first[j])
            inner = _dot(factor, row + begin - low, starts[j] + begin - first[j], j - begin)
            factor[row + j - low] = (factor[row + j - low] - inner) / factor[starts[j] + j - first[j]]
        diagonal = row + i - low
        factor[diagonal] = np.sqrt(factor[diagonal] - _dot(factor, row, row, i - low))
    for i in range(m):
        total = right[i]
        for k in range(first[i], i):
            total -= factor[starts[i] + k - first[i]] * right[k]
        right[i] = total / factor[starts[i] + i - first[i]]
    for i in range(m - 1, -1, -1):
        right[i] /= factor[starts[i] + i - first[i]]
        for k in range(first[i], i):
            right[k] -= factor[starts[i] + k - first[i]] * right[i]


@njit(cache=True, nogil=True)
def _fill(image: Any, holes: NDArray[np.bool_], most: float) -> bool:
    """Fill a cutout (H, W) in place; return False, and leave it, if that would take too long."""
    m = int(holes.sum())
    number = _numbered(holes, False)
    first = _envelope(number, m)
    across = _numbered(holes, True)
    other = _envelope(across, m)
    if _cost(other) < _cost(first):
        number, first = across, other
    if _cost(first) > most:
        return False
    starts = np.zeros(m + 1, np.int64)
    for i in range(m):
        starts[i + 1] = starts[i] + i - first[i] + 1
    matrix, right = np.zeros(starts[m]), np.zeros(m)
    _assemble(image, number, first, starts, matrix, right)
    _solve(first, starts, matrix, right)
    flat, values = number.reshape(-1), image.reshape(-1)
    for place in range(flat.size):
        if flat[place] >= 0:
            values[place] = right[flat[place]]
    return True


@njit(cache=True, nogil=True)
def _fill_all(images: Any, holes: NDArray[np.bool_], rows: Numbers, left: NDArray[np.bool_], most: float) -> None:
    for i in range(rows.size):
        left[i] = not _fill(images[rows[i]], holes[rows[i]], most)


def fill_small(images: NDArray[np.float32], holes: NDArray[np.bool_], rows: Numbers) -> Numbers:
    """Fill cutouts in place, each with the smoothest surface through its clear pixels.

    Args:
        images: (n, H, W), C-contiguous; the values of masked pixels are ignored.
        holes: (n, H, W), True where masked.
        rows: of the cutouts to fill; each has clear and masked pixels, and its clear ones are finite.

    Returns:
        The rows that were left: a sparse factorisation is faster there.
    """
    left = np.zeros(len(rows), bool)
    _fill_all(images, holes, rows, left, float(_MOST))
    return rows[left]


@njit(cache=True, nogil=True)
def fill_means(images: Any, holes: NDArray[np.bool_], rows: Numbers) -> None:
    """Set the masked pixels of cutouts, in place, to the mean of the clear ones; see `fill_small`."""
    for i in rows:
        total, count = 0.0, 0
        for y in range(images.shape[1]):
            for x in range(images.shape[2]):
                if not holes[i, y, x]:
                    total += images[i, y, x]
                    count += 1
        mean = np.float32(total / count)
        for y in range(images.shape[1]):
            for x in range(images.shape[2]):
                if holes[i, y, x]:
                    images[i, y, x] = mean
