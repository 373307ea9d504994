"""Rows in lists around centroids; a query is compared with those of the nearest lists only: faster, not exact.

The answer for a row does not depend on the rows beside it, the batch size, the threads or the machine. Candidates are
chosen by matrix products of integers: each product of two of length below 2^12 stays below 2^24, so that float32
holds it, and every partial sum, without rounding, in any order of summation. The candidates are then ranked by their
distance in float64, as in the exact search.

Rows are compared along their first principal components. What is left of two rows beyond these is nearly orthogonal,
so that only its length enters, through |y|^2.

Letters in shapes: N rows that are searched, n query rows, D their length, P components, k neighbours, L lists.
"""

import logging
import math

import numpy as np

from nenya.latents.lists_kernel import STRIDE, empty_keys, group, keep_best, numbers_of, rank, to_integers
from nenya.latents.neighbours import Float64Array, FloatArray, IntArray, Neighbours
from nenya.storage.texts import counted

log = logging.getLogger(__name__)

RECALL = 0.995
"""Share of the nearest rows that `fit_lists` wants to find, of a sample."""

_ROWS_IN_A_LIST, _MOST_LISTS = 224, 4096
_WIDTHS = 64, 128  # numbers of components that are tried
_FITTED_ROWS, _ROUNDS = 64, 6  # rows for each centroid, and iterations, of k-means
_SAMPLE = 512
_FINE = 2.0**20  # length of rows and of components as integers, before and after the change of basis
_BLOCK = 8192
_COARSE = 512
_FIRST = 2
_LEAST_CANDIDATES = 32
_LONGEST = 1e30  # that no product overflows


class Lists:
    """Rows in lists.

    Args:
        neighbours: the rows.
        centroids: (L, D) float32.
        probes: number of lists to search.
        components: (D, P) float32, orthonormal columns along which rows are compared; None: all D dimensions.

    Attributes:
        nearest: (N,) list of each row.
    """

    def __init__(
        self, neighbours: Neighbours, centroids: FloatArray, probes: int, components: FloatArray | None = None
    ) -> None:
        self.neighbours, self.centroids, self.components = neighbours, centroids, components
        self.probes = min(probes, len(centroids))
        self._basis = None if components is None else np.rint(components.astype(np.float64) * _FINE)
        width = neighbours.rows.shape[1] if components is None else components.shape[1]
        self._length = 2.0**12 - math.sqrt(width) / 2 - 1
        nearest = self.nearest = Neighbours(centroids).search(neighbours.rows, 1)[1][:, 0]
        order = np.argsort(nearest, kind="stable")
        lengths = np.bincount(nearest, minlength=len(centroids))
        places = np.concatenate([[0], lengths.cumsum()])
        self.starts = np.concatenate([[0], _filled_up(lengths).cumsum()])
        self.numbers = np.zeros(self.starts[-1], np.int64)
        self._integers = np.zeros((self.starts[-1], width), np.float32)
        self._halves = np.full(self.starts[-1], np.inf, np.float32)
        self._units = np.zeros(len(centroids), np.float32)
        for i in np.flatnonzero(lengths):
            members, own = order[places[i] : places[i + 1]], slice(self.starts[i], self.starts[i] + lengths[i])
            self.numbers[own] = members
            self._integers[own], self._halves[own], self._units[i] = self._together(neighbours.rows[members])
        self._middle = np.zeros((int(_filled_up(np.array(len(centroids)))), width), np.float32)
        self._middle_halves = np.full(len(self._middle), np.inf, np.float32)
        own = slice(len(centroids))
        self._middle[own], self._middle_halves[own], self._middle_unit = self._together(centroids)

    def _coordinates(self, rows: FloatArray) -> tuple[Float64Array, Float64Array]:
        """Return rows along the components, and half of their squared lengths.

        They are centred, and scaled so that the longest of the searched rows has length 1.
        """
        centred = (rows.astype(np.float64) - self.neighbours.centre) / (self.neighbours.radius or 1.0)
        whole, units = np.empty_like(centred), np.empty(len(rows))
        to_integers(centred, _FINE, whole, units)
        halves = (units * _FINE) ** 2 / 2
        if self._basis is None:
            return centred, halves
        return (whole @ self._basis) * (units / _FINE)[:, None], halves

    def _together(self, rows: FloatArray) -> tuple[FloatArray, FloatArray, np.float32]:
        """Return rows as integers with one unit, half of their squared lengths, and the unit."""
        values, halves = self._coordinates(rows)
        lengths = np.empty(len(rows))
        to_integers(values, 1.0, np.empty_like(values), lengths)
        unit = lengths.max(initial=0.0) / self._length
        whole = np.rint(values / unit) if unit > 0 else np.zeros_like(values)
        return whole.astype(np.float32), halves.astype(np.float32), np.float32(unit)

    def search(self, x: FloatArray, k: int) -> tuple[Float64Array, IntArray]:
        """Return the k nearest rows within the nearest lists; see `Neighbours.search`.

        If these lists hold fewer than k rows, all rows are searched.
        """
        squares, found = np.empty((len(x), k)), np.empty((len(x), k), np.int64)
        for start in range(0, len(x), _BLOCK):
            part = slice(start, start + _BLOCK)
            rank(x[part], self.neighbours.rows, self._candidates(x[part], k), squares[part], found[part])
        distances = np.sqrt(squares)
        few = ~np.isfinite(distances[:, -1])
        if few.any():
            distances[few], found[few] = self.neighbours.search(x[few], k)
        return distances, found

    def _candidates(self, x: FloatArray, k: int) -> IntArray:
        """Return row numbers that hold the nearest rows of each query with high probability, (n, m), -1 for none."""
        whole, scale = self._whole(x)
        lists = self._nearest_lists(whole, scale, self.probes)
        best, worst = empty_keys(len(x), max(_LEAST_CANDIDATES, 2 * k))
        for part in (lists[:, :_FIRST], lists[:, _FIRST:]):  # after the nearest lists, few rows of others are inserted
            bounds, members = np.empty(len(self.starts), np.int64), np.empty(part.size, np.int64)
            group(part, bounds, members)
            for i in np.flatnonzero(np.diff(bounds)):
                asked, own = members[bounds[i] : bounds[i + 1]], slice(self.starts[i], self.starts[i + 1])
                product = whole[asked] @ self._integers[own].T
                keep_best(product, self._halves[own], scale, self._units[i], asked, self.numbers[own], best, worst)
        return numbers_of(best)

    def _whole(self, x: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return queries as integers, (n, P), and their units, (n,)."""
        values, _ = self._coordinates(x)
        whole, units = np.empty(values.shape, np.float32), np.empty(len(x))
        to_integers(values, self._length, whole, units)
        return whole, np.minimum(units, _LONGEST).astype(np.float32)

    def _nearest_lists(self, whole: FloatArray, scale: FloatArray, count: int) -> IntArray:
        """Return the nearest lists of each query, (n, count), the nearest first."""
        best, worst = empty_keys(len(whole), count)
        numbers = np.arange(len(self._middle))
        for start in range(0, len(whole), _COARSE):
            asked = np.arange(start, min(start + _COARSE, len(whole)))
            product = whole[start : start + _COARSE] @ self._middle.T
            keep_best(product, self._middle_halves, scale, self._middle_unit, asked, numbers, best, worst)
        best.sort(axis=1)
        return numbers_of(best)

    def lists_needed(self, x: FloatArray, wanted: IntArray, share: float) -> int:
        """Return how many lists hold a share of the wanted rows of queries, (n, k)."""
        order = self._nearest_lists(*self._whole(x), len(self.centroids))
        place = np.argsort(order, axis=1)
        ranks = np.sort(np.take_along_axis(place, self.nearest[wanted], axis=1), axis=None)
        return int(ranks[min(len(ranks) - 1, math.ceil(share * len(ranks)) - 1)]) + 1


def _filled_up(lengths: IntArray) -> IntArray:
    """Return lengths of lists that are filled up to complete strides."""
    filled: IntArray = -(-lengths // STRIDE) * STRIDE
    return filled


def fit_lists(neighbours: Neighbours, k: int, seed: int) -> tuple[Lists, float]:
    """Divide rows into lists, and find how many of them, and how many components, reach `RECALL`.

    Args:
        neighbours: the rows.
        k: number of nearest rows.
        seed: of the sample on which it is measured, and of k-means.

    Returns:
        The lists, and the share of the k nearest other rows that they find for a sample of rows.
    """
    rng = np.random.default_rng(seed)
    rows = neighbours.rows
    count = min(_MOST_LISTS, max(1, len(rows) // _ROWS_IN_A_LIST))
    fitted = np.sort(rng.choice(len(rows), min(len(rows), _FITTED_ROWS * count), replace=False))
    centroids = find_centroids(rows[fitted], count, rng)
    chosen = np.sort(rng.choice(len(rows), min(len(rows), _SAMPLE), replace=False))
    x, k = rows[chosen], min(k + 1, len(rows))
    wanted = neighbours.search(x, k)[1]
    axes = find_components(rows[fitted] - neighbours.centre)
    for width in [*(width for width in _WIDTHS if 2 * width <= rows.shape[1]), None]:
        lists = Lists(neighbours, centroids, count, None if width is None else axes[:, :width].copy())
        lists.probes = lists.lists_needed(x, wanted, (1 + RECALL) / 2)
        found = lists.search(x, k)[1]
        recall = float(np.mean([_share(*rows) for rows in zip(found, wanted, chosen, strict=True)]))
        if recall >= RECALL:
            break
    log.info(
        "neighbours of new rows: searched in %d of %s with %s components; %.2f %% of the nearest "
        "rows of a sample found",
        lists.probes, counted(count, "list"), width or rows.shape[1], 100 * recall,
    )  # fmt: skip
    return lists, recall


def _share(found: IntArray, wanted: IntArray, own: int) -> float:
    """Return the share of the wanted rows, but the own one, that is found."""
    others = set(wanted.tolist()) - {own}
    return len(others & set(found.tolist())) / max(1, len(others))


def find_components(centred: Float64Array) -> FloatArray:
    """Return principal components, (D, D) float32, as columns, the largest first."""
    _, vectors = np.linalg.eigh(centred.T @ centred)
    return np.ascontiguousarray(vectors[:, ::-1], np.float32)


def find_centroids(rows: FloatArray, count: int, rng: np.random.Generator) -> FloatArray:
    """Return the centroids of k-means by Lloyd's algorithm, (count, D) float32.

    Args:
        rows: (n, D).
        count: L.
        rng: draws the initial rows.
    """
    centroids = rows[np.sort(rng.choice(len(rows), count, replace=False))]
    for _ in range(_ROUNDS):
        nearest = Neighbours(centroids).search(rows, 1)[1][:, 0]
        order = np.argsort(nearest, kind="stable")
        starts = np.searchsorted(nearest[order], np.arange(count + 1))
        for i in range(count):
            if starts[i] < starts[i + 1]:
                centroids[i] = rows[order[starts[i] : starts[i + 1]]].mean(axis=0, dtype=np.float64)
    return centroids
