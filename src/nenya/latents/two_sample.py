"""A classifier of two sets: how well unseen rows tell their set, with folds that keep blocks together.

The classifier is a ridge regression on principal components and random Fourier features (Rahimi and Recht 2007), so
that shifts and changes of shape are both seen, and so that all permutations share one factorisation for each fold.

Letters in shapes: n rows of the pool, F features, U units, P permutations.
"""

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.stats import rankdata

from nenya.latents.block_null import BoolArray, Float64Array, IntArray, Pool
from nenya.latents.energy import distance_tiles
from nenya.tables.blocks import block_folds

FOLDS = 5
_COMPONENTS = 64
_WAVES = 128  # random Fourier features
_RIDGE = 0.05  # of the mean variance of the features
_LABELS = 256  # permutations at once


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
        features = features_of(pool.values, seed)
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
        """Return the standard error of the observed area, for rows in blocks (Obuchowski 1997, Biometrics 53, 567)."""
        labels = self._pool.units()[0][None]
        area = float(self.areas(labels)[0])
        influence, pairs = np.zeros(len(self._pool)), 0
        for held, found in self.scores(labels):
            first, score = self._pool.first[held], _rounded(found)[0]
            n, m = int(first.sum()), int((~first).sum())
            if not n or not m:
                continue
            ranks = rankdata(score)
            below = np.empty(len(score))  # rows of the other set with a smaller score
            below[first] = ranks[first] - rankdata(score[first])
            below[~first] = n - (ranks[~first] - rankdata(score[~first]))
            influence[held] = below - np.where(first, m, n) * area
            pairs += n * m
        if not pairs:
            return float("nan")
        return float(np.sqrt((np.bincount(self._pool.block, influence / pairs) ** 2).sum()))


def _rounded(scores: Float64Array) -> Float64Array:
    """Return scores of which those of equal rows are equal, whatever the order of their sums."""
    return np.round(scores, 12)
