"""Many cells by k-means in two levels: a row is compared with the coarse centres, then with those of the nearest few.

With cells of a given size their number grows with the rows, and one level would compare every row with every centre.

Letters: N rows, D the length of a latent, C cells in about the square root of C coarse cells, n rows of a sample.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nenya.errors import InputFileError
from nenya.latents.nearest import as_unit
from nenya.runtime.blas import in_order

Float32Array = NDArray[np.float32]
IntArray = NDArray[np.int64]

_BLOCK_ROWS = 16384
_RUN_ROWS = 32  # consecutive rows of the sample, which are read at once
_COARSE = 4  # nearest coarse cells in whose cells the nearest one is searched
_ROUNDS = 10  # of k-means in a coarse cell
_SAMPLES, _MOST_SAMPLES = 30, 1_000_000  # rows of the sample for each centre, and of all


@dataclass(frozen=True)
class FineCells:
    """Centres of cells; those of a coarse cell are consecutive.

    Attributes:
        coarse: (B, D) float32.
        centres: (C, D) float32.
        starts: (B + 1,) int64, first cell of each coarse cell.
        turn: (D, D) float32, orthogonal: the first numbers of rows @ turn hold most of their length.
    """

    coarse: Float32Array
    centres: Float32Array
    starts: IntArray
    turn: Float32Array

    def assign(self, rows: Float32Array) -> IntArray:
        """Return the cell of each row, (N,), of (N, D) rows at unit length; -1 for NaN."""
        label, least = np.full(len(rows), -1, np.int64), np.full(len(rows), np.inf, np.float32)
        known = np.flatnonzero(np.isfinite(rows[:, 0]))
        near = _some_nearest(rows[known], self.coarse)
        order = np.argsort(near, axis=None, kind="stable")
        ends = np.searchsorted(near.ravel()[order], np.arange(len(self.coarse) + 1))
        for cell in np.flatnonzero(np.diff(ends)):
            some = known[order[ends[cell] : ends[cell + 1]] // near.shape[1]]
            first, last = self.starts[cell : cell + 2]
            distance = _half_distances(rows[some], self.centres[first:last])
            best = distance.argmin(axis=1)
            distance = distance[np.arange(len(some)), best]
            closer = distance < least[some]  # of equal ones, the first cell
            least[some[closer]], label[some[closer]] = distance[closer], first + best[closer]
        return label


def fit_fine_cells(latents: Any, count: int, seed: int) -> FineCells:
    """Fit cells to a sample of latents.

    Args:
        latents: (N, D).
        count: number of cells C.
        seed: of the sample and the starts.

    Raises:
        InputFileError: The sample has too few rows with a direction.
    """
    from sklearn.cluster import KMeans, MiniBatchKMeans
    from threadpoolctl import threadpool_limits

    rng = np.random.default_rng(seed)
    rows = _sample(latents, min(_SAMPLES * count, _MOST_SAMPLES), rng)
    if len(rows) < count:
        raise InputFileError(f"expected at least {count} latents with a direction in a sample, got {len(rows)}")
    state, many = int(rng.integers(2**31)), max(1, round(count**0.5))
    with threadpool_limits(1):  # threads wait for each other longer than they compute
        coarse = MiniBatchKMeans(many, n_init=3, batch_size=4096, random_state=state).fit(rows)
    sizes = np.bincount(coarse.labels_, minlength=many)
    shares = _shares(sizes, count)
    centres = np.empty((count, rows.shape[1]), np.float32)
    starts = np.concatenate([[0], np.cumsum(shares)])
    used = np.flatnonzero(shares)

    def fit(cell: int) -> Float32Array:
        with threadpool_limits(1):  # a limit of OpenMP holds for one thread
            found = KMeans(int(shares[cell]), n_init=1, max_iter=_ROUNDS, random_state=state)
            return np.asarray(found.fit(rows[coarse.labels_ == cell]).cluster_centers_, np.float32)

    for cell, found in zip(used, in_order(fit, used.tolist()), strict=True):
        centres[starts[cell] : starts[cell + 1]] = found
    coarse_centres = coarse.cluster_centers_[used].astype(np.float32)
    turn = np.linalg.eigh((rows.T @ rows).astype(np.float64))[1][:, ::-1].astype(np.float32)
    return FineCells(coarse_centres, centres, np.concatenate([[0], np.cumsum(shares[used])]), turn)


def _sample(latents: Any, count: int, rng: np.random.Generator) -> Float32Array:
    """Return about `count` rows at unit length, in runs of consecutive ones; all, if there are not more."""
    firsts = np.arange(0, len(latents), _RUN_ROWS)
    chosen = np.sort(rng.permutation(len(firsts))[: -(-count // _RUN_ROWS)])
    found, filled = np.empty((_RUN_ROWS * len(chosen), latents.shape[1]), np.float32), 0
    for first in firsts[chosen]:
        rows = as_unit(np.asarray(latents[int(first) : int(first) + _RUN_ROWS]))
        known = np.isfinite(rows[:, 0])
        found[filled : filled + known.sum()] = rows[known]
        filled += int(known.sum())
    return found[:filled]


def _shares(sizes: IntArray, count: int) -> IntArray:
    """Return a number of cells for each coarse cell, (B,), in proportion to its rows; C in all."""
    wanted = sizes / sizes.sum() * count
    shares: IntArray = np.minimum(np.maximum(np.floor(wanted), sizes > 0), sizes).astype(np.int64)
    while (left := count - int(shares.sum())) != 0:
        able = np.flatnonzero(shares < sizes) if left > 0 else np.flatnonzero(shares > 1)
        step = 1 if left > 0 else -1
        most = able[np.argsort(-step * (wanted - shares)[able], kind="stable")[: abs(left)]]
        shares[most] += step
    return np.asarray(shares, np.int64)


def _half_distances(rows: Float32Array, centres: Float32Array) -> Float32Array:
    """Return half the squared distances of rows (n, D) to centres (C, D), less a number of each row: (n, C)."""
    half = (centres.astype(np.float64) ** 2).sum(axis=1).astype(np.float32) / 2
    return np.asarray(half - rows @ centres.T, np.float32)


def _some_nearest(rows: Float32Array, centres: Float32Array) -> IntArray:
    """Return a few nearest centres of each row, (N, few), in no order."""
    few = min(_COARSE, len(centres))
    found: IntArray = np.argpartition(_half_distances(rows, centres), few - 1, axis=1)[:, :few]
    return found


def assign_all(latents: Any, cells: FineCells) -> IntArray:
    """Return the cell of each of N latents, (N,), -1 for those without a direction."""
    blocks = (np.asarray(latents[start : start + _BLOCK_ROWS]) for start in range(0, len(latents), _BLOCK_ROWS))
    found = in_order(lambda block: cells.assign(as_unit(block)), blocks)
    return np.concatenate([np.empty(0, np.int64), *found])
