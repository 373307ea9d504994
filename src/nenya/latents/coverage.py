"""Coverage and density of two sets (Naeem and others 2020, ICML), for rows in blocks.

A row of the first set is covered if a row of the second lies within the ball that reaches to its k-th nearest neighbour
in its own set. The density is the mean number of balls that a row of the second set lies in, over k. Rows of the same
block are no neighbours: near-copies within a granule would make the balls too small. With one row a block this is the
published definition.

The ball of a row has a row of the other set within if and only if one of its k nearest neighbours among both sets is of
the other one, so that the neighbours of the pool serve all permutations.

Letters in shapes: n rows of the pool, U units, P permutations, T neighbours.
"""

from dataclasses import dataclass

import numpy as np

from nenya.latents.block_null import BoolArray, Float64Array, IntArray, Pool

_LISTED = 8  # times k neighbours are kept for the density of permutations
_LABELS = 16  # permutations at once
_DRAWS = 60  # of blocks for the errors of coverage
_LEFT_OUT = 1 / 3  # of the blocks in a draw


class PoolNeighbours:
    """Neighbours of other blocks of each row of a pool, collected tile by tile.

    Args:
        pool: the two sets.
        k: neighbours that make a ball.

    Attributes:
        nearest: (n, T) int64, the closest first, -1 where there are no more.
        within: (n,) rows of the other set within the ball, NaN where the own set has fewer than k rows elsewhere.
        balls: (n,) balls of the other set that hold the row.
    """

    def __init__(self, pool: Pool, k: int) -> None:
        self._pool, self.k = pool, k
        listed = min(_LISTED * k, len(pool) - 1)
        self.nearest = np.full((len(pool), listed), -1, np.int64)
        self.within = np.full(len(pool), np.nan)
        self.balls = np.zeros(len(pool))

    def add(self, start: int, tile: Float64Array) -> None:
        """Add the distances of the rows from `start` on to all rows, (m, n)."""
        pool, rows, listed = self._pool, slice(start, start + len(tile)), self.nearest.shape[1]
        away = np.where(pool.block[rows, None] == pool.block, np.inf, tile)
        if listed:
            near = np.sort(np.argpartition(away, listed - 1, axis=1)[:, :listed], axis=1)
            order = np.argsort(np.take_along_axis(away, near, 1), axis=1, kind="stable")
            near = np.take_along_axis(near, order, 1)
            self.nearest[rows] = np.where(np.isfinite(np.take_along_axis(away, near, 1)), near, -1)
        own = pool.first[rows, None] == pool.first
        inner = np.where(own, away, np.inf)
        if self.k <= inner.shape[1]:
            radius = np.partition(inner, self.k - 1, axis=1)[:, self.k - 1]
            inside = (away < radius[:, None]) & ~own & np.isfinite(radius)[:, None]
            self.within[rows] = np.where(np.isfinite(radius), inside.sum(axis=1), np.nan)
            self.balls += inside.sum(axis=0)


@dataclass(frozen=True)
class Coverages:
    """Coverage and density for several labels; arrays are (P,).

    Attributes:
        of_first: share of the first set that the second covers.
        of_second: share of the second set that the first covers.
        around_first: density of the second set around rows of the first, with balls of a limited number of neighbours.
        around_second: density of the first set around rows of the second, likewise.
    """

    of_first: Float64Array
    of_second: Float64Array
    around_first: Float64Array
    around_second: Float64Array


def coverages(found: PoolNeighbours, unit: IntArray, labels: BoolArray) -> Coverages:
    """Return coverage and density for labels of units, (P, U)."""
    parts = [_some(found, labels[i : i + _LABELS][:, unit]) for i in range(0, len(labels), _LABELS)]
    return Coverages(*np.concatenate(parts, axis=1))


def _some(found: PoolNeighbours, first: BoolArray) -> Float64Array:
    """Return the four measures, (4, p), for labels of rows, (p, n)."""
    k, near = found.k, found.nearest
    sets = np.concatenate([first.astype(np.int8), np.full((len(first), 1), -1, np.int8)], axis=1)  # -1: none
    n, m = first.sum(axis=1), (~first).sum(axis=1)
    covered = np.zeros(first.shape, bool)
    held = np.zeros(first.shape, np.int16)  # rows of the own set so far
    within = np.zeros(first.shape, np.int32)
    for place in range(near.shape[1]):
        other = sets[:, near[:, place]]
        strange = (other >= 0) & (other != sets[:, :-1])
        if place < k:
            covered |= strange
        within += strange & (held < k)
        held += other == sets[:, :-1]
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = [(covered & first).sum(axis=1) / n, (covered & ~first).sum(axis=1) / m]
        around = [(within * first).sum(axis=1) / (k * m), (within * ~first).sum(axis=1) / (k * n)]
    return np.stack([*shares, *around])


def covered_rows(found: PoolNeighbours, pool: Pool) -> BoolArray:
    """Return which rows are covered by the other set, (n,)."""
    near = found.nearest[:, : found.k]
    hit: BoolArray = ((near >= 0) & (pool.first[near] != pool.first[:, None])).any(axis=1)
    return hit


def coverage_errors(found: PoolNeighbours, pool: Pool, kinds: IntArray, seed: int = 0) -> tuple[float, float]:
    """Return the standard errors of the coverage of the first and of the second set.

    A share of the blocks is left out at random, many times (the delete-d jackknife of Shao and Wu 1989, which suits
    nearest neighbours; leaving out one block at a time gives errors that are too large).

    Args:
        found: neighbours.
        pool: the two sets.
        kinds: (K,) the sets that have rows in a block; the same share of each kind is left out.
        seed: of the draws.

    Returns:
        The errors; NaN where a set has fewer than two blocks.
    """
    rng = np.random.default_rng([seed, len(kinds)])
    sides, own = (pool.first, ~pool.first), [int((kinds & bit > 0).sum()) for bit in (1, 2)]
    if min(own) < 2:
        return float("nan"), float("nan")
    shares = np.empty((_DRAWS, 2))
    for draw in range(_DRAWS):
        kept = np.ones(len(kinds), bool)
        for kind in np.unique(kinds):
            blocks = np.flatnonzero(kinds == kind)
            kept[rng.permutation(blocks)[: round(len(blocks) * _LEFT_OUT)]] = False
        hit = covered_among(found, pool, kept)
        shares[draw] = [hit[side & kept[pool.block]].mean() for side in sides]
    first, second = np.sqrt((1 - _LEFT_OUT) / _LEFT_OUT) * shares.std(axis=0)
    return float(first), float(second)


def covered_among(found: PoolNeighbours, pool: Pool, kept: BoolArray) -> BoolArray:
    """Return which rows the other set covers if there are only some blocks, (K,) bool: (n,)."""
    near = found.nearest
    there = (near >= 0) & kept[pool.block[near]]
    strange = pool.first[near] != pool.first[:, None]
    closer = np.cumsum(there & ~strange, axis=1, dtype=np.int16)  # rows of the own set up to here
    hit: BoolArray = (there & strange & (closer < found.k)).any(axis=1)
    return hit
