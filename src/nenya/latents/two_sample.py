"""A classifier of two sets: how well unseen rows tell their set, with folds that keep blocks together.

The classifier is a ridge regression on principal components and random Fourier features (Rahimi and Recht 2007), so
that shifts and changes of shape are both seen, and so that all permutations share one factorisation for each fold.

Letters in shapes: n rows of the pool, F features, U units, P permutations.
"""

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.stats import rankdata

from nenya.latents.block_null import BoolArray, Float64Array, IntArray, Pool
from nenya.latents.energy import distance_tiles, jackknife_error, kinds_of_blocks
from nenya.tables.blocks import block_folds

FOLDS = 5
_COMPONENTS = 64
_WAVES = 128  # random Fourier features
_RIDGE = 0.05  # of the mean variance of the features
_LABELS = 256  # permutations at once
_GROUPS = 20  # of blocks that are left out together, of each kind


def features_of(values: Float64Array, seed: int = 0) -> Float64Array:
    """Return features of rows, (n, F) float64, which know nothing of the sets.

    Args:
        values: (n, D).
        seed: of the random waves.
    """
    centred = values - values.mean(axis=0)
    spread = np.sqrt((centred**2).sum(axis=1).mean())
    if not spread > 0:
        return np.zeros((len(values), 1))
    centred /= spread
    if centred.shape[1] > _COMPONENTS:
        _, axes = np.linalg.eigh(centred.T @ centred)
        centred = centred @ axes[:, : -_COMPONENTS - 1 : -1]
    rng = np.random.default_rng([seed, centred.shape[1]])
    step = max(1, len(centred) // 500)
    some = np.concatenate([tile.ravel() for _, tile in distance_tiles(centred[::step])])
    width = float(np.median(some[some > 0])) if (some > 0).any() else 1.0
    directions = rng.standard_normal((centred.shape[1], _WAVES)) / width
    waves = np.cos(centred @ directions + rng.uniform(0, 2 * np.pi, _WAVES))
    return np.concatenate([centred * np.sqrt(centred.shape[1]), waves - waves.mean(axis=0)], axis=1)


class Classifier:
    """Ridge regressions of one pool, one for each fold, for any labels.

    Args:
        pool: the two sets.
        seed: of the features.
    """

    def __init__(self, pool: Pool, seed: int = 0) -> None:
        self._pool = pool
        self.folds: IntArray = block_folds(pool.block, FOLDS, pool.marks)
        features = self._features = features_of(pool.values, seed)
        self._fits = []
        for fold in np.unique(self.folds):
            held = self.folds == fold
            seen = features[~held] - features[~held].mean(axis=0)
            if not len(seen):
                continue
            gram = seen.T @ seen
            gram[np.diag_indices_from(gram)] += _RIDGE * max(float(np.trace(gram)) / len(gram), 1e-12)
            self._fits.append((held, cho_solve(cho_factor(gram), seen.T), features[held]))

    def scores(self, labels: BoolArray) -> list[tuple[BoolArray, Float64Array]]:
        """Return for each fold its rows, (n,) bool, and scores of them, (P, rows): larger ones are of the first set.

        Args:
            labels: (P, U) bool, units of the first set.
        """
        found = []
        for held, weights, features in self._fits:
            seen = labels[:, self._pool.unit[~held]].astype(np.float64)
            seen -= seen.mean(axis=1, keepdims=True)
            found.append((held, (seen @ weights.T) @ features.T))
        return found

    def areas(self, labels: BoolArray) -> Float64Array:
        """Return the area under the ROC curve for labels (P, U): (P,), NaN where no fold has rows of both sets.

        Rows are ranked within their fold; the areas of the folds are weighted by their pairs.
        """
        return np.concatenate(
            [self._areas(labels[start : start + _LABELS]) for start in range(0, len(labels), _LABELS)]
        )

    def _areas(self, labels: BoolArray) -> Float64Array:
        above, pairs = np.zeros(len(labels)), np.zeros(len(labels))
        for held, scores in self.scores(labels):
            first = labels[:, self._pool.unit[held]]
            n = first.sum(axis=1)
            ranks = (rankdata(_rounded(scores), axis=1) * first).sum(axis=1)
            above += ranks - n * (n + 1) / 2
            pairs += n * (first.shape[1] - n)
        with np.errstate(invalid="ignore"):
            return np.asarray(above / pairs)

    def error(self) -> float:
        """Return the standard error of the observed area, of training and of rows judged.

        It is that of a jackknife that leaves out groups of complete blocks, of each kind (of the first set, of the
        second, of both) at most 20, and fits the regressions again.
        """
        kinds = kinds_of_blocks(self._pool)
        own = np.empty_like(kinds)
        for kind in np.unique(kinds):  # blocks are in random order
            own[kinds == kind] = _GROUPS * kind + np.arange(int((kinds == kind).sum())) % _GROUPS
        numbers, group = np.unique(own, return_inverse=True)
        if len(numbers) < 3:
            return float("nan")
        rows = group[self._pool.block]
        above, pairs = np.zeros(len(numbers)), np.zeros(len(numbers))
        for fold in np.unique(self.folds):
            held = self.folds == fold
            weights = self._weights_without(held, rows, len(numbers))
            score, first, group_of = _rounded(self._features[held] @ weights), self._pool.first[held], rows[held]
            for left in range(len(numbers)):
                stays = group_of != left
                mine, n = first[stays], int(first[stays].sum())
                above[left] += float(rankdata(score[stays, left])[mine].sum()) - n * (n + 1) / 2
                pairs[left] += n * (len(mine) - n)
        with np.errstate(invalid="ignore"):
            return jackknife_error(above / pairs, numbers // _GROUPS)

    def _weights_without(self, held: BoolArray, rows: IntArray, count: int) -> Float64Array:
        """Return the weights of the regression on rows of other folds, without each group of rows in turn, (F, count).

        Args:
            held: (n,) rows of the fold.
            rows: (n,) the group of each row.
            count: number of groups.
        """
        seen, label, group = self._features[~held], self._pool.first[~held].astype(np.float64), rows[~held]
        gram, sums = seen.T @ seen, np.column_stack([seen.sum(axis=0), seen.T @ label])
        found = np.zeros((seen.shape[1], count))
        for left in range(count):
            gone = group == left
            n = len(seen) - int(gone.sum())
            if not n:
                continue
            mean, product = ((sums - np.column_stack([seen[gone].sum(axis=0), seen[gone].T @ label[gone]])) / n).T
            spread = (gram - seen[gone].T @ seen[gone]) / n - np.outer(mean, mean)
            spread[np.diag_indices_from(spread)] += _RIDGE * max(float(np.trace(spread)) / len(spread), 1e-12 / n)
            share = float(label[~gone].mean())
            found[:, left] = cho_solve(cho_factor(spread), product - mean * share)
        return found


def _rounded(scores: Float64Array) -> Float64Array:
    """Return scores that are equal for equal rows, whatever the order of their sums."""
    return np.round(scores, 12)
