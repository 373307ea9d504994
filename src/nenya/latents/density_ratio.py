"""The local density ratio of two sets at each of their rows: which patterns one has and the other lacks.

Letters in shapes: N rows, R rows of the reference sample, D dimensions.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nenya.latents.block_null import Float64Array, IntArray, Pool
from nenya.latents.clusters import unit_rows
from nenya.latents.kept_answers import KeptAnswers

NEIGHBOURS = 20
_BLOCK = 512  # rows whose distances to the sample are held at once
_READ = 16_384


@dataclass(frozen=True)
class Reference:
    """Rows of both sets to which others are compared.

    Attributes:
        pool: the rows; the first set is a unless it is swapped.
        codes: (K,) the caller's number of each block of the pool, rising.
        order: (n,) the place in `codes` of the block of each row of the pool.
        counts: (2, K) rows of a and of b in each block.
    """

    pool: Pool
    codes: IntArray
    order: IntArray
    counts: IntArray

    @property
    def of_a(self) -> NDArray[np.bool_]:
        """Which rows are of a, (n,)."""
        found: NDArray[np.bool_] = self.pool.first != self.pool.swapped
        return found


def reference(pool: Pool, blocks: IntArray) -> Reference:
    """Return the reference sample.

    Args:
        pool: of both sets.
        blocks: (n,) the caller's number of the block of each row of the pool.
    """
    codes, order = np.unique(blocks, return_inverse=True)
    of_a = pool.first != pool.swapped
    counts = np.stack([np.bincount(order[some], minlength=len(codes)) for some in (of_a, ~of_a)])
    return Reference(pool, codes, order.astype(np.int64), counts)


def density_ratios(
    values: Float64Array, blocks: IntArray, own_a: bool, sample: Reference, k: int = NEIGHBOURS
) -> Float64Array:
    """Return how many times denser a row's own set is around it than the other one, (N,) float64.

    Of the k nearest rows of the sample that are not of its own block, those of its own set are compared with those of
    the other, each over the number of such rows in the sample: (own + 1/2) / n_own over (other + 1/2) / n_other. Rows
    as far away as the k-th count in part.

    Args:
        values: (N, D) rows of one set, float64.
        blocks: (N,) the block of each, as in the sample.
        own_a: whether they are of a.
        sample: rows of both sets.
        k: number of neighbours.

    Returns:
        (N,); NaN where a row is not finite, or has no rows of other blocks in one of the sets.
    """
    points, is_a = sample.pool.values, sample.of_a
    squares = (points**2).sum(axis=1)
    found = np.full(len(values), np.nan)
    place = np.minimum(np.searchsorted(sample.codes, blocks), len(sample.codes) - 1)
    place = np.where(sample.codes[place] == blocks, place, -1)
    kept, totals = min(k, len(points)), np.array([is_a.sum(), (~is_a).sum()])
    for start in range(0, len(values), _BLOCK):
        some = slice(start, start + _BLOCK)
        rows = np.zeros((_BLOCK, values.shape[1]))  # of one shape, so that a row's sums are the same everywhere
        rows[: len(values[some])] = values[some]
        near = (squares - 2 * rows @ points.T)[: len(values[some])] + (values[some] ** 2).sum(axis=1)[:, None]
        near = np.round(near, 10)
        near[place[some, None] == sample.order] = np.inf
        of_block = np.where(place[some] >= 0, sample.counts[:, place[some]], 0)
        density = (_counts(near, is_a, kept) + 0.5) / np.maximum(totals[:, None] - of_block, 1)
        ratio = density[0] / density[1] if own_a else density[1] / density[0]
        known = (totals[:, None] > of_block).all(axis=0) & np.isfinite(values[some]).all(axis=1)
        found[some] = np.where(known, ratio, np.nan)
    return found


def _counts(near: Float64Array, is_a: NDArray[np.bool_], k: int) -> Float64Array:
    """Return how many of the k nearest rows are of a and of b, (2, m), of squared distances (m, n), inf for none."""
    limit = np.partition(near, k - 1, axis=1)[:, k - 1 : k]
    limit = np.where(np.isfinite(limit), limit, np.finfo(float).max)  # fewer rows than k: all count
    closer, equal = near < limit, near == limit
    part = (k - closer.sum(axis=1)) / np.maximum(equal.sum(axis=1), 1)
    return np.stack([(closer & own).sum(axis=1) + part * (equal & own).sum(axis=1) for own in (is_a, ~is_a)])


def ratios_of(  # what one pass over the rows needs
    latents: Any,
    rows: IntArray,
    blocks: IntArray,
    own_a: bool,
    sample: Reference,
    done: Callable[[int], object],
    kept: KeptAnswers,
) -> Float64Array:
    """Return `density_ratios` of the rows of latents, read block by block: (len(rows),) float64.

    Args:
        latents: see `nenya.latents.files.Latents`.
        rows: their numbers.
        blocks: (len(rows),).
        own_a: whether they are of a.
        sample: rows of both sets.
        done: called with the number of rows done.
        kept: answers of an interrupted run, which are taken; those found here are added.
    """
    found = np.full(len(rows), np.nan)
    for some in _pieces(len(rows)):
        name = f"ratios-{'a' if own_a else 'b'}-{some.start:012d}"
        if not kept.take_numbers(name, found[some]):
            found[some] = density_ratios(unit_rows(latents.take(rows[some])), blocks[some], own_a, sample)
            kept.keep_numbers(name, found[some])
        done(len(rows[some]))
    return found


def _pieces(rows: int) -> Iterator[slice]:
    for start in range(0, rows, _READ):
        yield slice(start, start + _READ)
