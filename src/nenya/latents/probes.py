"""Probes: how well a column is predicted from features, for rows of blocks that the prediction has not seen.

Two probes: the mean of the k nearest rows, and ridge regression. Rows of one block (granule, time, place) are in one
fold. Under the null hypothesis the values of complete blocks are exchanged between blocks.

Letters: n rows, T targets, P permutations, C classes.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nenya.latents.scores import drawn_auc, drawn_rows, fold_auc, mean_of_known

Float64Array = NDArray[np.float64]
IntArray = NDArray[np.int64]

FOLDS = 5
"""Folds of a probe."""

_RIDGE = 1e-2  # of the variance of a feature


@dataclass(frozen=True)
class Features:
    """What a column is predicted from.

    Attributes:
        near: (n, d) float64, in which the nearest rows are found by Euclidean distance.
        linear: (n, M) float64, of variance about one, for the ridge regression.
    """

    near: Float64Array
    linear: Float64Array

    def take(self, rows: IntArray) -> "Features":
        """Return the features of some rows."""
        return Features(self.near[rows], self.linear[rows])


@dataclass(frozen=True)
class Target:
    """A column as numbers to be predicted.

    Attributes:
        values: (n, C) float64: 0 and 1 for each class, or numbers.
        classes: whether they are classes, which are scored by AUC; numbers are by R2.
    """

    values: Float64Array
    classes: bool


@dataclass(frozen=True)
class Score:
    """How well a column is predicted.

    Attributes:
        value: AUC (0.5: not at all, 1: fully) or R2 (0: not at all, 1: fully), of the better probe.
        low: lower end of its 95 % interval, by a bootstrap over blocks.
        high: its upper end.
        p: probability of such a value under the null hypothesis.
        knn: value of the nearest neighbours.
        linear: value of the ridge regression.
        shuffled: mean value with the shuffled column.
    """

    value: float
    low: float
    high: float
    p: float
    knn: float
    linear: float
    shuffled: float


class Probe:
    """Features and folds, fitted to any number of targets.

    Args:
        features: of n rows.
        fold: (n,) int64, the fold of each row.
        k: nearest rows.
    """

    def __init__(self, features: Features, fold: IntArray, k: int = 10) -> None:
        from scipy.sparse import csr_array

        self.fold, count = fold, len(fold)
        self.names = np.unique(fold)
        near, self._ridge = np.empty((count, k), np.int64), []
        wide = np.column_stack([np.ones(count), features.linear])
        for name in self.names:
            test, train = np.flatnonzero(fold == name), np.flatnonzero(fold != name)
            near[test] = train[nearest_rows(features.near[test], features.near[train], k)]
            gram = wide[train].T @ wide[train]
            penalty = _RIDGE * len(train) * np.eye(len(gram))
            penalty[0, 0] = 0.0
            self._ridge.append((test, train, wide[test], np.linalg.solve(gram + penalty, wide[train].T)))
        weights = np.full(near.size, 1 / k)
        self._mean = csr_array((weights, (np.repeat(np.arange(count), k), near.ravel())), (count, count))

    def predict(self, values: Float64Array) -> tuple[Float64Array, Float64Array]:
        """Return the predictions of both probes for targets (n, T), each (n, T)."""
        linear = np.empty_like(values)
        for test, train, own, solved in self._ridge:
            linear[test] = own @ (solved @ values[train])
        return np.asarray(self._mean @ values, np.float64), linear

    def means(self, values: Float64Array) -> Float64Array:
        """Return the mean of the training rows for each row, (n, T): the prediction without features."""
        found = np.empty_like(values)
        for test, train, _, _ in self._ridge:
            found[test] = values[train].mean(axis=0)
        return found


def nearest_rows(queries: Float64Array, rows: Float64Array, k: int) -> IntArray:
    """Return the positions of the k nearest rows of each query, (n, k)."""
    half = (rows**2).sum(axis=1) / 2
    found = np.empty((len(queries), k), np.int64)
    for start in range(0, len(queries), 1024):
        scores = half - queries[start : start + 1024] @ rows.T
        found[start : start + 1024] = np.argpartition(scores, k - 1, axis=1)[:, :k]
    return found


def exchanges(blocks: IntArray, count: int, rng: np.random.Generator) -> IntArray:
    """Return orders of rows, (count, n), to read a column under the null hypothesis: blocks change places.

    Rows are read block by block, the blocks in random order, so that rows of one block stay together; with blocks of
    equal size each takes the place of another one.
    """
    order = np.argsort(blocks, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(blocks[order])) + 1)
    found = np.empty((count, len(blocks)), np.int64)
    for i in range(count):
        found[i, order] = np.concatenate([parts[j] for j in rng.permutation(len(parts))])
    return found


def score(
    probe: Probe, target: Target, blocks: IntArray, *, permutations: int = 199, seed: int = 0, null: bool = True
) -> Score | None:
    """Return how well a target is predicted; None if no class occurs in two folds, or all values are equal.

    Args:
        probe: of n rows.
        target: of the same rows.
        blocks: (n,) int64, blocks that are exchanged and drawn together.
        permutations: number P of permutations, and of draws of the bootstrap.
        seed: of both.
        null: whether p and `shuffled` are computed.
    """
    rng = np.random.default_rng(seed)
    values = _scores_of(probe, target.values, target.classes)
    if not np.isfinite(values).all():
        return None
    draws = drawn_rows(blocks, permutations, rng)
    best = int(np.argmax(values))
    spread = _drawn_scores(probe, target, best, draws)
    low, high = np.nanquantile(spread, (0.025, 0.975)) if np.isfinite(spread).any() else (np.nan, np.nan)
    p = shuffled = float("nan")
    if null:
        nulls = _null_scores(probe, target, exchanges(blocks, permutations, rng))
        p, shuffled = p_value(values.max(), nulls), float(np.nanmean(nulls))
    value = float(values.max())
    return Score(
        value, min(float(low), value), max(float(high), value), p, float(values[0]), float(values[1]), shuffled
    )


def p_value(value: float, nulls: Float64Array) -> float:
    """Return the probability of a value as large under the null hypothesis.

    Beyond all permutations it is taken from a normal distribution with their mean and deviation.
    """
    nulls = nulls[np.isfinite(nulls)]
    reached = int((nulls >= value - 1e-12).sum())
    least = 1 / (len(nulls) + 1)
    if reached or len(nulls) < 19 or nulls.std() == 0:
        return (reached + 1) * least
    from scipy.stats import norm

    return float(min(least, max(norm.sf((value - nulls.mean()) / nulls.std(ddof=1)), 1e-12)))


def false_discovery(p: Float64Array) -> Float64Array:
    """Return p-values adjusted for their number (Benjamini and Hochberg 1995), (m,); NaN stays NaN."""
    from scipy.stats import false_discovery_control

    found = np.full(len(p), np.nan)
    known = np.isfinite(p)
    if known.any():
        found[known] = false_discovery_control(p[known])
    return found


def _scores_of(probe: Probe, values: Float64Array, classes: bool) -> Float64Array:
    """Return the value of each probe, (2,)."""
    made = probe.predict(values)
    if classes:
        return np.array([fold_auc(probe.fold, one[:, None], values[:, None])[0] for one in made])
    total = ((values - probe.means(values)) ** 2).sum()
    return np.array([1 - ((values - one) ** 2).sum() / total if total > 0 else np.nan for one in made])


def _null_scores(probe: Probe, target: Target, orders: IntArray) -> Float64Array:
    """Return the value of the better probe for each order of the rows, (P,)."""
    found, width = np.empty(len(orders)), target.values.shape[1]
    size = max(1, 400 // width)  # permutations at once
    for start in range(0, len(orders), size):
        part = orders[start : start + size]
        values = target.values[part].transpose(1, 0, 2)  # (n, P, C)
        flat = values.reshape(len(values), -1)
        made = [one.reshape(values.shape) for one in probe.predict(flat)]
        if target.classes:
            both = np.array([fold_auc(probe.fold, one, values) for one in made])
        else:
            total = ((flat - probe.means(flat)) ** 2).reshape(values.shape).sum(axis=(0, 2))
            both = np.array([1 - ((values - one) ** 2).sum(axis=(0, 2)) / total for one in made])
        found[start : start + size] = both.max(axis=0)
    return found


def _drawn_scores(probe: Probe, target: Target, which: int, draws: Float64Array) -> Float64Array:
    """Return the values of one probe where rows count as often as they are drawn, (P,)."""
    values, made = target.values, probe.predict(target.values)[which]
    if not target.classes:
        error = ((values - made) ** 2).sum(axis=1)
        total = ((values - probe.means(values)) ** 2).sum(axis=1)
        return np.asarray(1 - (draws @ error) / np.maximum(draws @ total, 1e-300), np.float64)
    each = [drawn_auc(probe.fold, made[:, c], values[:, c], draws) for c in range(values.shape[1])]
    return mean_of_known(np.stack(each))


def as_target(
    column: Any, *, ranks: bool = True, most: int = 12, least: int = 20
) -> tuple[Target, NDArray[np.bool_]] | str:
    """Return a column as a target and which of its rows are known, or why it cannot be one.

    Args:
        column: a `pandas.Series` of n values. Texts, truth values, up to 24 different integers and up to ten different
            numbers are classes; of other numbers:
        ranks: whether they become their ranks, from 0 to 1, so that a few large ones do not decide.
        most: largest number of classes; the rows of further ones count as none of them.
        least: rows that a class must have.
    """
    import pandas as pd

    column, numbers = _values_of(column)
    known = column.notna().to_numpy(bool, copy=True)
    if numbers is not None:
        known &= np.isfinite(numbers)
    different = column[known].nunique()
    if different < 2:
        return "one value" if different else "no value"
    if numbers is not None:
        own = numbers[known]
        if different > (2 * most if (own == np.trunc(own)).all() else 10):
            if not ranks:
                return Target(own[:, None], False), known
            places = pd.Series(own).rank().to_numpy(np.float64)
            return Target((places[:, None] - 0.5) / len(places), False), known
    counts = column[known].value_counts()
    if different > 2 * most and counts.iloc[0] < known.sum() / 10:
        return f"{different} different values, expected numbers or at most {2 * most} categories"
    names = counts.index[counts.to_numpy() >= least][:most]
    if not len(names) or counts.iloc[0] > known.sum() - least:
        return f"fewer than {least} rows of a second value"
    if different == 2:
        names = names[-1:]
    values = column[known].to_numpy()
    return Target(np.stack([(values == name).astype(np.float64) for name in names], axis=1), True), known


def _values_of(column: Any) -> tuple[Any, Float64Array | None]:
    """Return a column with values that can be counted, and its numbers (n,); None if it has no numbers."""
    import pandas as pd

    if column.dtype == object:  # lists, say, cannot be counted
        numbers = pd.to_numeric(column, errors="coerce") if _of_numbers(column) else None
        column = column.where(column.isna(), column.astype(str)) if numbers is None else numbers
    if pd.api.types.is_bool_dtype(column) or not pd.api.types.is_numeric_dtype(column):
        return column, None
    if column.dtype.kind == "c":
        column = column.abs()
    return column, column.to_numpy(np.float64, na_value=np.nan)


def _of_numbers(column: Any) -> bool:
    """Return whether the known values of a column of objects are numbers: decimals, say, or integers beside None."""
    from numbers import Number

    some = column.dropna()
    return len(some) > 0 and all(isinstance(value, Number) and not isinstance(value, bool) for value in some)
