"""Many cells by k-means in two levels: a row is compared with the coarse centres, then with those of its coarse cell.

With cells of a given size their number grows with the rows, and one level would compare every row with every centre.

Letters: N rows, D the length of a latent, C cells in about the square root of C coarse cells, n rows of a sample.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nenya.errors import InputFileError
from nenya.latents.nearest import as_unit

Float32Array = NDArray[np.float32]
IntArray = NDArray[np.int64]

_BLOCK_ROWS = 16384
_RUN_ROWS = 32  # consecutive rows of the sample, which are read at once
_SAMPLES, _MOST_SAMPLES = 20, 500_000  # rows of the sample for each centre, and of all


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
        label = np.full(len(rows), -1, np.int64)
        known = np.flatnonzero(np.isfinite(rows[:, 0]))
        own = _nearest(rows[known], self.coarse)
        order = np.argsort(own, kind="stable")
        ends = np.searchsorted(own[order], np.arange(len(self.coarse) + 1))
        for cell in np.flatnonzero(np.diff(ends)):
            some = known[order[ends[cell] : ends[cell + 1]]]
            first, last = self.starts[cell : cell + 2]
            label[some] = first + _nearest(rows[some], self.centres[first:last])
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
    from sklearn.cluster import MiniBatchKMeans

    rng = np.random.default_rng(seed)
    rows = _sample(latents, min(_SAMPLES * count, _MOST_SAMPLES), rng)
    if len(rows) < count:
        raise InputFileError(f"expected at least {count} latents with a direction in a sample, got {len(rows)}")
    state, many = int(rng.integers(2**31)), max(1, round(count**0.5))
    coarse = MiniBatchKMeans(many, n_init=3, batch_size=4096, random_state=state).fit(rows)
    sizes = np.bincount(coarse.labels_, minlength=many)
    shares = _shares(sizes, count)
    centres = np.empty((count, rows.shape[1]), np.float32)
    starts = np.concatenate([[0], np.cumsum(shares)])
    for cell in range(many):
        own = rows[coarse.labels_ == cell]
        if shares[cell]:
            fitted = MiniBatchKMeans(int(shares[cell]), n_init=1, batch_size=2048, max_iter=20, random_state=state)
            centres[starts[cell] : starts[cell + 1]] = fitted.fit(own).cluster_centers_
    used = np.flatnonzero(shares)
    coarse_centres = coarse.cluster_centers_[used].astype(np.float32)
    turn = np.linalg.eigh((rows.T @ rows).astype(np.float64))[1][:, ::-1].astype(np.float32)
    return FineCells(coarse_centres, centres, np.concatenate([[0], np.cumsum(shares[used])]), turn)


def _sample(latents: Any, count: int, rng: np.random.Generator) -> Float32Array:
    """Return about `count` rows at unit length, in runs of consecutive ones; all, if there are not more."""
    firsts = np.arange(0, len(latents), _RUN_ROWS)
    chosen = np.sort(rng.permutation(len(firsts))[: -(-count // _RUN_ROWS)])
    found = [as_unit(np.asarray(latents[int(first) : int(first) + _RUN_ROWS])) for first in firsts[chosen]]
    rows = np.concatenate(found)
    return np.asarray(rows[np.isfinite(rows[:, 0])], np.float32)


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


def _nearest(rows: Float32Array, centres: Float32Array) -> IntArray:
    """Return the nearest centre of each row, (N,), the first in a tie."""
    half = (centres.astype(np.float64) ** 2).sum(axis=1).astype(np.float32) / 2
    found: IntArray = (half - rows @ centres.T).argmin(axis=1)
    return found


def assign_all(latents: Any, cells: FineCells) -> IntArray:
    """Return the cell of each of N latents, (N,), -1 for those without a direction."""
    found = [
        cells.assign(as_unit(np.asarray(latents[start : start + _BLOCK_ROWS])))
        for start in range(0, len(latents), _BLOCK_ROWS)
    ]
    return np.concatenate([np.empty(0, np.int64), *found])
