"""Energy distance of two sets, exact on a pool, with all its permutations from one matrix of sums.

Letters in shapes: n rows of the pool, U units, K blocks, P permutations.
"""

from collections.abc import Iterator

import numpy as np

from nenya.latents.block_null import BoolArray, Float64Array, IntArray, Pool

TILE = 256  # rows whose distances to all others are held at once
_LABELS = 128  # permutations at once
_Z = 1.959963984540054  # of a 95 % interval


def distance_tiles(values: Float64Array) -> Iterator[tuple[int, Float64Array]]:
    """Yield the first row and the Euclidean distances, (m, n) float64, of consecutive rows to all rows."""
    values = values - values.mean(axis=0)
    squares = (values**2).sum(axis=1)
    for start in range(0, len(values), TILE):
        some = slice(start, start + TILE)
        if values.shape[1] == 1:
            yield start, np.abs(values[some] - values[:, 0])
            continue
        tile = values[some] @ values.T
        tile *= -2
        tile += squares
        tile += squares[some, None]
        near = tile < 1e-6 * squares.max(initial=0)  # where rounding counts: near-copies
        rows, columns = np.nonzero(near)
        tile[rows, columns] = ((values[start + rows] - values[columns]) ** 2).sum(axis=1)
        yield start, np.sqrt(tile)


class UnitSums:
    """Sums of distances between units, (U, U), collected tile by tile."""

    def __init__(self, pool: Pool) -> None:
        self._starts, self._unit = pool.starts, pool.unit
        self.sums = np.zeros((len(self._starts), len(self._starts)))

    def add(self, start: int, tile: Float64Array) -> None:
        """Add the distances of the rows from `start` on to all rows, (m, n)."""
        by_unit = np.add.reduceat(tile, self._starts, axis=1)
        units = self._unit[start : start + len(tile)]
        edges = np.flatnonzero(np.diff(units, prepend=-1))
        self.sums[units[edges]] += np.add.reduceat(by_unit, edges, axis=0)


def energies(sums: Float64Array, sizes: IntArray, labels: BoolArray) -> Float64Array:
    """Return squared energy distances 2 E|x - y| - E|x - x'| - E|y - y'| (Szekely and Rizzo 2013), V-statistics.

    Args:
        sums: (U, U) sums of distances between units.
        sizes: (U,) rows of each unit.
        labels: (P, U) bool, units of the first set.

    Returns:
        (P,), NaN where a set is empty.
    """
    rows = sums.sum(axis=1)
    found = np.empty(len(labels))
    for start in range(0, len(labels), _LABELS):
        z = labels[start : start + _LABELS].astype(np.float64)
        n, m = z @ sizes, (1 - z) @ sizes
        xx, x = ((z @ sums) * z).sum(axis=1), z @ rows
        with np.errstate(invalid="ignore", divide="ignore"):
            found[start : start + _LABELS] = 2 * (x - xx) / (n * m) - xx / n**2 - (rows.sum() - 2 * x + xx) / m**2
    return found


def energy_error(sums: Float64Array, pool: Pool) -> float:
    """Return the standard error of the squared energy distance from leaving out one block at a time.

    Blocks of the first set, of the second and of both are separate groups of the jackknife.
    """
    first, block = pool.units()
    sizes, count = np.bincount(pool.unit), int(block.max()) + 1
    own = np.full((2, count), -1)
    own[0, block[first]], own[1, block[~first]] = np.flatnonzero(first), np.flatnonzero(~first)
    z = first.astype(np.float64)
    to_first, to_second = sums @ z, sums @ (1 - z)
    to = np.stack([to_first, to_second, sizes.astype(np.float64), np.diag(sums)])
    to = np.concatenate([to, np.zeros((4, 1))], axis=1)  # of an absent unit
    (xx_1, xy_1, n_1, own_1), (xy_2, yy_2, n_2, own_2) = to[:, own[0]], to[:, own[1]]
    across = np.where((own >= 0).all(axis=0), sums[own[0], own[1]], 0.0)
    xx, yy = z @ to_first - 2 * xx_1 + own_1, (1 - z) @ to_second - 2 * yy_2 + own_2
    xy = z @ to_second - xy_1 - xy_2 + across
    n, m = sizes[first].sum() - n_1, sizes[~first].sum() - n_2
    with np.errstate(invalid="ignore", divide="ignore"):
        left = 2 * xy / (n * m) - xx / n**2 - yy / m**2
    return jackknife_error(left, kinds_of_blocks(pool))


def jackknife_error(left: Float64Array, group: IntArray) -> float:
    """Return the jackknife standard error: each estimate lacks one block, and blocks are of several groups.

    Args:
        left: (K,) the estimates.
        group: (K,) the group of the block that is left out; one of a single block joins the largest group.

    Returns:
        The error; NaN if no group has two blocks.
    """
    numbers, counts = np.unique(group, return_counts=True)
    if counts.max() < 2 or not np.isfinite(left).all():
        return float("nan")
    largest = numbers[counts.argmax()]
    joined = np.where(np.isin(group, numbers[counts < 2]), largest, group)
    parts = [left[joined == number] for number in np.unique(joined)]
    return float(np.sqrt(sum((len(some) - 1) / len(some) * ((some - some.mean()) ** 2).sum() for some in parts)))


def kinds_of_blocks(pool: Pool) -> IntArray:
    """Return whether each block has rows of the first set (1), of the second (2) or of both (3): (K,)."""
    first, block = pool.units()
    found = np.zeros(int(block.max()) + 1, np.int64)
    found[block[first]] += 1
    found[block[~first]] += 2
    return found


def energy_interval(square: float, null: Float64Array, error: float) -> tuple[float, float]:
    """Return a 95 % interval of the energy distance.

    Args:
        square: the squared energy distance, a V-statistic, which is too large by about its mean under the null.
        null: squared energy distances under the null; may be empty. Their spread is that part of the error which a
            jackknife does not see.
        error: its standard error by the jackknife.
    """
    bias = float(null.mean()) if len(null) else 0.0
    error = float(np.hypot(error, null.std() if len(null) else 0.0))
    low, high = square - max(bias, 0.0) - _Z * error, square + _Z * error
    return float(np.sqrt(max(low, 0.0))), float(np.sqrt(max(high, 0.0)))
