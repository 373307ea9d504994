"""Scores of predictions of rows that a probe has not seen: R2, balanced accuracy and AUC, with intervals by blocks.

Letters: n rows, T targets, P permutations or draws, C classes or numbers of a target, B blocks.
"""

import numpy as np
from numpy.typing import NDArray

Float64Array = NDArray[np.float64]
IntArray = NDArray[np.int64]

DRAWS = 1999
"""Draws of the bootstrap of `r2_with_interval` and `accuracy_with_interval`."""

_AT_ONCE = 200  # draws, so that memory does not grow with their number


def fold_auc(fold: IntArray, made: Float64Array, values: Float64Array) -> Float64Array:
    """Return the AUC within folds, mean over classes, of predictions (n, P, C): (P,); NaN if no class can be told.

    Args:
        fold: (n,) the fold of each row.
        made: (n, P, C) predictions.
        values: (n, P, C) 0 and 1.
    """
    from scipy.stats import rankdata

    wins, pairs = np.zeros(made.shape[1:]), np.zeros(made.shape[1:])
    total, names = values.sum(axis=0), np.unique(fold)
    for name in names:
        rows = fold == name
        ranks = rankdata(made[rows], axis=0)
        own = values[rows]
        positive = own.sum(axis=0)
        taught = (total > positive) | (len(names) == 1)  # the class occurs in other folds
        wins += np.where(taught, (ranks * own).sum(axis=0) - positive * (positive + 1) / 2, 0)
        pairs += np.where(taught, positive * (len(own) - positive), 0)
    each = np.where(pairs > 0, wins / np.maximum(pairs, 1), np.nan)
    return mean_of_known(each.T)


def drawn_auc(fold: IntArray, made: Float64Array, positive: Float64Array, draws: Float64Array) -> Float64Array:
    """Return the AUC within folds of one class, (n,), for rows of weights (P, n): (P,)."""
    wins, pairs = np.zeros(len(draws)), np.zeros(len(draws))
    for name in np.unique(fold):
        rows = np.flatnonzero(fold == name)
        if positive.sum() == positive[rows].sum():
            continue
        rows = rows[np.argsort(made[rows], kind="stable")]
        starts = np.flatnonzero(np.diff(made[rows], prepend=-np.inf))
        yes = np.add.reduceat(draws[:, rows] * positive[rows], starts, axis=1)
        no = np.add.reduceat(draws[:, rows] * (1 - positive[rows]), starts, axis=1)
        wins += (yes * (np.cumsum(no, axis=1) - no / 2)).sum(axis=1)
        pairs += yes.sum(axis=1) * no.sum(axis=1)
    return np.asarray(np.where(pairs > 0, wins / np.maximum(pairs, 1e-300), np.nan), np.float64)


def mean_of_known(values: Float64Array) -> Float64Array:
    """Return the mean of the finite values along the first axis, NaN where there are none."""
    known = np.isfinite(values)
    return np.where(
        known.any(axis=0), np.where(known, values, 0).sum(axis=0) / np.maximum(known.sum(axis=0), 1), np.nan
    )


def drawn_rows(blocks: IntArray, count: int, rng: np.random.Generator) -> Float64Array:
    """Return how often each row is drawn, (count, n), if blocks are drawn with replacement."""
    _, own = np.unique(blocks, return_inverse=True)
    return np.asarray(_drawn_blocks(int(own.max()) + 1, count, rng)[:, own], np.float64)


def r2(values: Float64Array, made: Float64Array) -> float:
    """Return R2 of predictions (n, C): 1 - the squared errors over the squared differences from the mean."""
    total = ((values - values.mean(axis=0)) ** 2).sum()
    return float(1 - ((values - made) ** 2).sum() / total) if total > 0 else float("nan")


def r2_with_interval(
    values: Float64Array, made: Float64Array, blocks: IntArray, rng: np.random.Generator
) -> tuple[float, float, float]:
    """Return R2 and the ends of its 95 % interval, by a bootstrap of complete blocks.

    Args:
        values: (n, C) what was predicted.
        made: (n, C) predictions.
        blocks: (n,) blocks that are drawn together.
        rng: of the draws.
    """
    centred = values - values.mean(axis=0)
    columns = [np.ones(len(values)), ((values - made) ** 2).sum(axis=1), (centred**2).sum(axis=1), *centred.T]
    count, sums = _sums(blocks, np.stack(columns, axis=1))
    drawn = _drawn_sums(count, sums, rng)
    total = drawn[:, 2] - (drawn[:, 3:] ** 2).sum(axis=1) / np.maximum(drawn[:, 0], 1)
    spread = np.where(total > 0, 1 - drawn[:, 1] / np.maximum(total, 1e-300), np.nan)
    return r2(values, made), *interval(spread, count)


def accuracy(labels: IntArray, made: IntArray) -> float:
    """Return the balanced accuracy of predictions (n,): the mean over the classes of the share of correct rows."""
    return float(np.mean([(made[labels == name] == name).mean() for name in np.unique(labels)]))


def accuracy_with_interval(
    labels: IntArray, made: IntArray, blocks: IntArray, rng: np.random.Generator
) -> tuple[float, float, float]:
    """Return the balanced accuracy and the ends of its 95 % interval, by a bootstrap of complete blocks.

    Args:
        labels: (n,) from 0 up.
        made: (n,) predictions.
        blocks: (n,) blocks that are drawn together.
        rng: of the draws.
    """
    own = np.eye(int(labels.max()) + 1)[labels]
    right = own * (labels == made)[:, None]
    count, sums = _sums(blocks, np.hstack([own, right]))
    all_of, told = np.split(_drawn_sums(count, sums, rng), 2, axis=1)
    spread = mean_of_known(np.where(all_of > 0, told / np.maximum(all_of, 1), np.nan).T)
    return accuracy(labels, made), *interval(spread, count)


def interval(spread: Float64Array, blocks: int) -> tuple[float, float]:
    """Return the ends of the 95 % interval of a bootstrap over a number of blocks.

    With few blocks the quantiles lie further out (the expanded percentile interval of Hesterberg 2015, section 5.2),
    as plain ones cover too little.
    """
    from scipy.stats import norm, t

    if blocks < 2 or not np.isfinite(spread).any():
        return float("nan"), float("nan")
    tail = norm.cdf(-np.sqrt(blocks / (blocks - 1)) * t.ppf(0.975, blocks - 1))
    low, high = np.nanquantile(spread, (tail, 1 - tail))
    return float(low), float(high)


def _sums(blocks: IntArray, columns: Float64Array) -> tuple[int, Float64Array]:
    """Return the number of blocks, and the sums of columns (n, m) in each, (B, m)."""
    _, own = np.unique(blocks, return_inverse=True)
    count = int(own.max()) + 1
    return count, np.stack([np.bincount(own, column, count) for column in columns.T], axis=1)


def _drawn_sums(count: int, sums: Float64Array, rng: np.random.Generator) -> Float64Array:
    """Return the sums (B, m) of blocks in each draw, (DRAWS, m)."""
    parts = [_drawn_blocks(count, min(_AT_ONCE, DRAWS - start), rng) @ sums for start in range(0, DRAWS, _AT_ONCE)]
    return np.concatenate(parts)


def _drawn_blocks(count: int, draws: int, rng: np.random.Generator) -> IntArray:
    """Return how often each of a number of blocks is drawn with replacement, (draws, count)."""
    return rng.multinomial(count, np.full(count, 1 / count), size=draws)
