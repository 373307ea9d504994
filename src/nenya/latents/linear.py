"""Linear probes: ridge and logistic regression, with penalties that are chosen within the training rows.

Letters: n rows, d features, T targets, K classes, G groups.
"""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float64Array = NDArray[np.float64]
IntArray = NDArray[np.int64]

PENALTIES = np.logspace(-3, 6, 28)
"""Penalties of the ridge regression on features of variance one, as scikit-learn's `alpha`."""

STRENGTHS = np.logspace(-4, 1, 6)
"""Inverse penalties of the logistic regression, as scikit-learn's `C`."""

_CONSTANT = 1e-12  # of the variance of a feature over all rows: less is rounding
_STEPS = 300
_WIDE = 512  # features from which a penalty is chosen by one group of the training rows, not by each


@dataclass(frozen=True)
class Folds:
    """Rows in groups. Some groups are predicted from all others.

    Attributes:
        group: (n,) int64, the group of each row; a group is predicted as a whole.
        judged: groups that are predicted; of train and valid only the one of valid.
        blocks: (n,) int64, what is drawn as a whole for intervals and shuffled as a whole.
        by: what rows of one group share: `granule`, `time` ...
    """

    group: IntArray
    judged: tuple[int, ...]
    blocks: IntArray
    by: str

    def take(self, rows: IntArray) -> "Folds":
        """Return the folds of some rows."""
        return Folds(self.group[rows], self.judged, self.blocks[rows], self.by)

    @property
    def judged_rows(self) -> IntArray:
        """The numbers of the rows that are predicted."""
        return np.flatnonzero(np.isin(self.group, self.judged))

    def splits(self) -> list[tuple[IntArray, IntArray]]:
        """Return the rows that are predicted and those that they are predicted from, of each judged group."""
        return [(np.flatnonzero(self.group == one), np.flatnonzero(self.group != one)) for one in self.judged]


def ridge_predictions(features: Float64Array, values: Float64Array, folds: Folds) -> Float64Array:
    """Return the predictions of a ridge regression for each judged group, (n, T), NaN for other rows.

    Features are standardised by the training rows. The penalty of each target is the one with the smallest error when
    each group of the training rows is predicted from the others.

    Args:
        features: (n, d).
        values: (n, T).
        folds: of the n rows; at least three groups.
    """
    features = _scaled(features)
    rows = {int(name): np.flatnonzero(folds.group == name) for name in np.unique(folds.group)}
    sums = {name: _Sums.of(features[own], values[own]) for name, own in rows.items()}
    found = np.full(values.shape, np.nan)
    for name in folds.judged:
        train = [other for other in rows if other != name]
        errors = np.zeros((len(PENALTIES), values.shape[1]))
        for held in train if features.shape[1] <= _WIDE else train[:1]:
            fit = _Sums.added(sums[other] for other in train if other != held).fit()
            own = features[rows[held]]
            for number, penalty in enumerate(PENALTIES):
                made = fit.predict(own, np.full(values.shape[1], penalty))
                errors[number] += ((made - values[rows[held]]) ** 2).sum(axis=0)
        best = PENALTIES[errors.argmin(axis=0)]
        found[rows[name]] = _Sums.added(sums[other] for other in train).fit().predict(features[rows[name]], best)
    return found


def logistic_predictions(
    features: Float64Array, labels: IntArray, folds: Folds, others: list[IntArray] | None = None
) -> list[Float64Array]:
    """Return the probabilities of classes by a logistic regression, (n, K) for each labelling, NaN for other rows.

    Classes weigh the same, however many rows they have. Features are standardised by the training rows. The penalty
    is the one with the largest likelihood of one group of the training rows, predicted from the others.

    Args:
        features: (n, d).
        labels: (n,) int64, 0 to K - 1.
        folds: of the n rows; at least three groups.
        others: further labellings, (n,) each, such as shuffled ones, which take the penalty of the first.
    """
    width = int(labels.max()) + 1
    every = [labels, *(others or [])]
    found = [np.full((len(labels), width), np.nan) for _ in every]
    for test, train in folds.splits():
        groups = np.unique(folds.group[train])
        held = folds.group[train] == groups[int(np.searchsorted(groups, folds.group[test[0]])) % len(groups)]
        strength = _strength(features[train], labels[train], held)
        for own, made in zip(every, found, strict=True):
            made[test] = _logistic(features[train], own[train], features[test], [strength], width)[0]
    return found


def _strength(features: Float64Array, labels: IntArray, held: NDArray[np.bool_]) -> float:
    """Return the inverse penalty under which held rows are most likely, classes weighing the same."""
    if len(np.unique(labels[~held])) < 2:
        return float(STRENGTHS[0])
    made = _logistic(features[~held], labels[~held], features[held], list(STRENGTHS), int(labels.max()) + 1)
    own = labels[held]
    weight = 1 / np.bincount(own)[own]
    likely = [(weight * np.log(np.maximum(one[np.arange(len(own)), own], 1e-6))).sum() for one in made]
    return float(STRENGTHS[int(np.argmax(likely))])


def _logistic(
    features: Float64Array, labels: IntArray, queries: Float64Array, strengths: list[float], width: int
) -> list[Float64Array]:
    """Return the probabilities (m, K) of queries for each inverse penalty, which do not fall."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    classes = np.unique(labels)
    if len(classes) == 1:
        return [np.eye(width)[np.full(len(queries), classes[0])] for _ in strengths]
    scaler = StandardScaler().fit(features)
    own, asked = scaler.transform(features), scaler.transform(queries)
    model = LogisticRegression(class_weight="balanced", max_iter=_STEPS, tol=1e-4, warm_start=True)
    found = []
    for strength in strengths:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # close enough for a probe
            model.set_params(C=strength).fit(own, labels)
        made = np.zeros((len(queries), width))
        made[:, classes] = model.predict_proba(asked)
        found.append(made)
    return found


def _scaled(features: Float64Array) -> Float64Array:
    """Return features (n, d) of mean 0 and deviation 1 over all rows, so that sums of squares lose no digits."""
    spread = features.std(axis=0)
    return np.asarray((features - features.mean(axis=0)) / np.where(spread > 0, spread, 1), np.float64)


@dataclass(frozen=True)
class _Sums:
    """Sums over rows of features, targets, and their products: those of several groups add up."""

    rows: int
    features: Float64Array  # (d,)
    values: Float64Array  # (T,)
    squares: Float64Array  # (d, d)
    products: Float64Array  # (d, T)

    @staticmethod
    def of(features: Float64Array, values: Float64Array) -> "_Sums":
        """Return the sums of rows (n, d) and (n, T)."""
        return _Sums(
            len(features), features.sum(axis=0), values.sum(axis=0), features.T @ features, features.T @ values
        )

    @staticmethod
    def added(parts: "Iterable[_Sums]") -> "_Sums":
        """Return the sums of several groups together."""
        columns = zip(*(vars(part).values() for part in parts), strict=True)
        return _Sums(*(sum(column[1:], start=column[0]) for column in columns))

    def fit(self) -> "_Fit":
        """Return the regression, for any penalty."""
        mean, level = self.features / self.rows, self.values / self.rows
        squares = self.squares - self.rows * np.outer(mean, mean)
        spread = np.sqrt(np.maximum(np.diag(squares) / self.rows, 0))
        spread = np.where(spread**2 > _CONSTANT, spread, 1)
        products = (self.products - self.rows * np.outer(mean, level)) / spread[:, None]
        lengths, axes = np.linalg.eigh(squares / np.outer(spread, spread))
        return _Fit(mean, level, axes / spread[:, None], np.maximum(lengths, 0), axes.T @ products)


@dataclass(frozen=True)
class _Fit:
    """A ridge regression along the principal axes of its features."""

    mean: Float64Array  # (d,)
    level: Float64Array  # (T,)
    axes: Float64Array  # (d, d)
    lengths: Float64Array  # (d,)
    products: Float64Array  # (d, T)

    def predict(self, features: Float64Array, penalties: Float64Array) -> Float64Array:
        """Return the predictions (m, T) for features (m, d), with a penalty of each target, (T,)."""
        weights = self.axes @ (self.products / (self.lengths[:, None] + penalties))
        return self.level + (features - self.mean) @ weights
