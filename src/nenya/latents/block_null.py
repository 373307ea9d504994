"""Two sets as one pool of rows, and the null hypothesis that complete blocks may change sides.

Rows of one block (a granule, a day) are not independent, so complete blocks change sides. A block with rows of
one set only takes the place of another such block. A block with rows of both sets exchanges its two halves or not.

The pool depends on what the rows are, not on their order or on which set is called the first one: the same two sets in
another order give the same numbers. Letters in shapes: n rows of the pool, D dimensions, K blocks, U units (the rows of
one block and one set), P permutations.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nenya.errors import InputFileError
from nenya.tables.blocks import marks_of_values, order_of_blocks

_UNEQUAL = 1.25  # ratio of mean sizes of blocks above which they are cut

Float64Array = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
MarkArray = NDArray[np.uint64]


@dataclass(frozen=True)
class Side:
    """A set of rows.

    Attributes:
        values: (n, D) numbers.
        blocks: (n,) int64, the block of each row; equal numbers in two sets are one block.
        marks: (n,) uint64, random numbers that identify the rows; see `nenya.tables.blocks.marks_of`.
    """

    values: NDArray[np.floating]
    blocks: IntArray
    marks: MarkArray

    def __len__(self) -> int:
        return len(self.blocks)

    def rows(self, chosen: IntArray | BoolArray) -> "Side":
        """Return some of the rows."""
        return Side(self.values[chosen], self.blocks[chosen], self.marks[chosen])


def side(
    values: NDArray[np.floating], blocks: NDArray[np.integer] | None = None, marks: MarkArray | None = None
) -> Side:
    """Return a set of rows without those that are not finite.

    Args:
        values: (n, D), or (n,) of one quantity.
        blocks: (n,) integers; default each row is a block of its own.
        marks: (n,); default from the values.

    Raises:
        InputFileError: Values of another shape, or blocks or marks of another length.
    """
    rows = np.asarray(values)
    rows = rows[:, None] if rows.ndim == 1 else rows
    if rows.ndim != 2:
        raise InputFileError(f"expected values of shape (N, D) or (N,), got {rows.shape}")
    marks = marks_of_values(rows) if marks is None else marks
    if blocks is None:  # below those that blocks_of gives; of one set only
        blocks = -1 - (marks >> np.uint64(2)).astype(np.int64)
    if len(blocks) != len(rows) or len(marks) != len(rows):
        raise InputFileError(f"expected {len(rows)} blocks and marks, got {len(blocks)} and {len(marks)}")
    good = np.isfinite(rows).all(axis=1)
    return Side(rows[good], np.asarray(blocks, np.int64)[good], marks[good])


def sampled(rows: Side, most: int) -> Side:
    """Return at most `most` rows, those with the smallest marks: a sample without replacement, whatever the order."""
    if len(rows) <= most:
        return rows
    return rows.rows(np.sort(np.argsort(rows.marks, kind="stable")[:most]))


@dataclass(frozen=True)
class Pool:
    """Rows of two sets, sorted by block, set and mark.

    Attributes:
        values: (n, D) float64.
        first: (n,) bool, rows of the first set.
        block: (n,) int64, 0 to K - 1.
        unit: (n,) int64, 0 to U - 1, rising.
        marks: (n,) uint64.
        source: (n,) int64, the row among those of a, then of b.
        swapped: whether the first set is b.
    """

    values: Float64Array
    first: BoolArray
    block: IntArray
    unit: IntArray
    marks: MarkArray
    source: IntArray
    swapped: bool

    def __len__(self) -> int:
        return len(self.first)

    @property
    def starts(self) -> IntArray:
        """The first row of each unit, (U,)."""
        return np.flatnonzero(np.diff(self.unit, prepend=-1))

    def units(self) -> tuple[BoolArray, IntArray]:
        """Return whether a unit is of the first set, and its block: (U,) each."""
        return self.first[self.starts], self.block[self.starts]


def pool_of(a: Side, b: Side) -> Pool:
    """Return two sets as a pool.

    Raises:
        InputFileError: A set is empty, or they differ in dimensions.
    """
    if not len(a) or not len(b):
        raise InputFileError(f"expected rows in both sets, got {len(a)} of a and {len(b)} of b")
    if a.values.shape[1] != b.values.shape[1]:
        raise InputFileError(f"expected two sets of equal dimensions, got {a.values.shape[1]} and {b.values.shape[1]}")
    own = [marks_of_values(one.values) for one in (a, b)]
    swapped = _key(b, own[1], a) < _key(a, own[0], b)
    blocks = np.concatenate([a.blocks, b.blocks])
    marks, content = np.concatenate([a.marks, b.marks]), np.concatenate(own)
    first = np.concatenate([np.full(len(a), not swapped), np.full(len(b), swapped)])
    block = order_of_blocks(blocks, marks)
    order = np.lexsort((content, marks, ~first, block))
    values = np.concatenate([np.asarray(one.values, np.float64) for one in (a, b)])[order]
    first, block = first[order], block[order]
    unit = np.cumsum((np.diff(block, prepend=-1) != 0) | (np.diff(first.astype(np.int8), prepend=2) != 0)) - 1
    return Pool(values, first, block, unit.astype(np.int64), marks[order], order, swapped)


def _key(one: Side, content: MarkArray, other: Side) -> tuple[int, ...]:
    """Return what decides which set is the first one: fewer blocks of its own, then the least mark and content."""
    alone = int((~np.isin(np.unique(one.blocks), other.blocks)).sum())
    return alone, int(one.marks.min()), int(content.min()), int(content.max())


def balanced(pool: Pool) -> Pool:
    """Return the pool with blocks of such sizes that an exchange keeps the sizes of the sets, as p-values need it.

    Coverage and the energy distance of finite sets depend on the sizes of the sets. Where a block has rows of both
    sets, as many of each are kept. Where blocks of one set only are larger in one set than in the other by more than a
    quarter, on average, they are cut to the smaller mean. Rows with the smallest marks are kept.

    Returns:
        The pool itself where nothing is to be cut.
    """
    first, block = pool.units()
    sizes, both = np.bincount(pool.unit), np.bincount(block)[block] == 2
    most = sizes.copy()
    halves = np.flatnonzero(both).reshape(-1, 2)  # the two halves of a block stand side by side
    most[halves] = sizes[halves].min(axis=1)[:, None]
    means = [sizes[~both & own].mean() if (~both & own).any() else np.nan for own in (first, ~first)]
    if np.isfinite(means).all() and max(means) > _UNEQUAL * min(means):
        most[~both] = np.minimum(sizes[~both], int(np.ceil(min(means))))
    if (most == sizes).all():
        return pool
    order = np.lexsort((pool.marks, pool.unit))
    kept = np.empty(len(pool), bool)
    kept[order] = np.arange(len(pool)) - pool.starts[pool.unit[order]] < most[pool.unit[order]]
    return Pool(
        pool.values[kept], pool.first[kept], pool.block[kept], pool.unit[kept], pool.marks[kept], pool.source[kept],
        pool.swapped,
    )  # fmt: skip


def null_labels(pool: Pool, permutations: int, seed: int = 0) -> BoolArray:
    """Return which units are of the first set, (P + 1, U) bool: as observed in row 0, then with blocks exchanged.

    Args:
        pool: the two sets.
        permutations: number P.
        seed: of the exchange.
    """
    first, block = pool.units()
    both = np.bincount(block)[block] == 2
    rng = np.random.default_rng([seed, len(first)])
    found = np.tile(first, (permutations + 1, 1))
    alone = np.flatnonzero(~both)
    found[1:, alone] = rng.permuted(found[1:, alone], axis=1)
    halves = np.flatnonzero(both)
    flips = rng.random((permutations, len(halves) // 2)) < 0.5
    found[1:, halves] ^= np.repeat(flips, 2, axis=1)  # the two halves of a block stand side by side
    if 2 * first[alone].sum() == len(alone):  # the first set is that of the first row, as in what is observed
        found ^= ~found[:, :1]
    return found


def possible_exchanges(pool: Pool) -> float:
    """Return in how many different ways `null_labels` can divide the blocks, inf for very many."""
    from scipy.special import comb

    first, block = pool.units()
    both = np.bincount(block)[block] == 2
    alone = first[~both]
    ways = float(comb(len(alone), int(alone.sum()))) * 2.0 ** min(int(both.sum()) // 2, 500)
    return ways / 2 if 2 * alone.sum() == len(alone) else ways


def p_value(found: Float64Array, seed: int = 0, *, side: str = "greater") -> float:
    """Return the p-value of the first of P + 1 statistics among all, uniform on 1/(P + 1), ..., 1 under the null.

    Equal values are ranked at random (seeded), so that a statistic of few different values has uniform p-values too.

    Args:
        found: (P + 1,), the observed one first.
        seed: of the ranks of equal values.
        side: `greater`: large values are against the null; `less`: small ones; `both`: both, with the smaller rank of
            the two counted twice.

    Returns:
        The p-value; NaN if the observed statistic is not finite.

    Examples:
        >>> import numpy as np
        >>> p_value(np.array([9.0, *range(9)]))  # the first is the observed one, the others come from the null
        0.1
    """
    found = found[np.isfinite(found) | (np.arange(len(found)) == 0)]
    if not np.isfinite(found[0]):
        return float("nan")
    if side == "both":
        count = len(found)
        rank = round(p_value(found, seed) * count)
        coin = int(np.random.default_rng([seed, count, 2]).integers(2))  # or only every second value would occur
        return min(count, 2 * min(rank, count + 1 - rank) - coin) / count
    values = found if side == "greater" else -found
    close = 1e-9 * max(1e-300, float(np.abs(values).max()))
    above = int((values[1:] > values[0] + close).sum())
    equal = int((np.abs(values[1:] - values[0]) <= close).sum())
    rank = above + 1 + int(np.random.default_rng([seed, len(values)]).integers(equal + 1))
    return rank / len(values)


def false_discovery_rates(p: Float64Array) -> Float64Array:
    """Return the smallest false discovery rate at which each hypothesis is rejected (Benjamini and Hochberg 1995).

    Args:
        p: (m,) p-values; NaN are no hypotheses.

    Returns:
        (m,) rates q, NaN where p is.

    Examples:
        >>> import numpy as np
        >>> false_discovery_rates(np.array([0.01, 0.04, 0.5])).round(2).tolist()
        [0.03, 0.06, 0.5]
    """
    from scipy.stats import false_discovery_control

    found = np.full(len(p), np.nan)
    known = np.isfinite(p)
    if known.any():
        found[known] = false_discovery_control(p[known])
    return found
