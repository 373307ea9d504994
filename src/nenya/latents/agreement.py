"""Agreement of several trainings of one recipe on the same cutouts: what of the latents holds over seeds.

Letters in shapes: N cutouts, R runs, n cutouts of a sample, k neighbours.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nenya.errors import InputFileError
from nenya.latents.clusters import unit_rows
from nenya.latents.files import Latents
from nenya.latents.kept_answers import KeptAnswers
from nenya.tables.blocks import marks_of

if TYPE_CHECKING:
    import pandas as pd

Float64Array = NDArray[np.float64]
IntArray = NDArray[np.int64]

_READ = 4_096  # rows whose neighbours are searched at once
_PAIRS = 20_000  # of cutouts, for distances


@dataclass(frozen=True)
class Agreement:
    """Agreement of R runs.

    Attributes:
        pairs: the numbers of two runs, and their agreement: `neighbours`, the mean share of the k nearest cutouts that
            are the same; `clusters`, the adjusted Rand index of k-means clusters (Hubert and Arabie 1985); `distances`,
            Spearman's correlation of the distances of pairs of cutouts.
        expected: of unrelated latents.
        stability: (N,) float64, the share of the nearest cutouts that are the same, mean over pairs of runs; NaN where
            a latent is not finite.
        sample: number n of cutouts among which neighbours are searched.
    """

    pairs: list[tuple[int, int, dict[str, float]]]
    expected: dict[str, float]
    stability: Float64Array
    sample: int

    def measures(self) -> dict[str, dict[str, float]]:
        """Return measure -> value, the mean over pairs of runs, low and high, the ends of their range, and expected."""
        found = {}
        for name, expected in self.expected.items():
            values = [values[name] for _, _, values in self.pairs]
            found[name] = {
                "value": float(np.mean(values)), "low": min(values), "high": max(values), "expected": expected,
            }  # fmt: skip
        return found


def aligned_rows(runs: Sequence[Latents]) -> list[IntArray]:
    """Return for each run the numbers of its latents of the first run's cutouts: R arrays (N,).

    Raises:
        InputFileError: There are fewer than two runs, two have the same weights, or they are of different cutouts.
    """
    if len(runs) < 2:
        raise InputFileError("seeds= needs the latents of at least two trainings: seeds=[run1,run2]")
    weights: dict[str, Any] = {}
    for run in runs:
        path, own = run.parts[0].path, run.provenance.get("checkpoint_sha256")
        if own and own in weights:
            raise InputFileError(
                f"{path} and {weights[own]} were made with the same weights ({own[:12]}), expected several trainings: "
                "give the latents of each training once"
            )
        weights[own or str(path)] = path
    keys = runs[0].keys()
    found = []
    for run in runs:
        rows = _joined(run, keys)
        if (rows < 0).any() or len(run) != len(keys):
            raise InputFileError(
                f"{run.parts[0].path} has {int((rows >= 0).sum())} of the {len(keys)} cutouts of "
                f"{runs[0].parts[0].path}: extract the same cutout files with each training"
            )
        found.append(rows)
    return found


def _joined(run: Latents, keys: "pd.DataFrame") -> IntArray:
    """Return the numbers of a run's latents of some cutouts, -1 for none."""
    try:
        return run.join(keys).number
    except InputFileError:  # it has none of them
        return np.full(len(keys), -1, np.int64)


def agreement(
    runs: Sequence[Latents],
    rows: Sequence[IntArray],
    *,
    k: int = 10,
    clusters: int = 20,
    sample: int = 5_000,
    seed: int = 0,
    done: Callable[[int], object] = lambda _: None,
    kept: KeptAnswers | None = None,
) -> Agreement:
    """Compare runs.

    Args:
        runs: their latents.
        rows: of `aligned_rows`.
        k: neighbours.
        clusters: number of k-means clusters.
        sample: cutouts for the search of neighbours, for clusters and for distances.
        seed: of the sample, clusters and pairs.
        done: called with the number of cutouts done.
        kept: answers of an interrupted run with the same arguments, which are taken; those found here are added.

    Raises:
        InputFileError: Fewer than k + 2 cutouts have finite latents in all runs.
    """
    some = np.argsort(marks_of(runs[0].keys(), seed), kind="stable")[:sample]
    points = [unit_rows(run.take(own[some])) for run, own in zip(runs, rows, strict=True)]
    good = np.logical_and.reduce([np.isfinite(p[:, 0]) for p in points])
    some, points = some[good], [p[good] for p in points]
    if len(some) < k + 2:
        raise InputFileError(f"expected at least {k + 2} cutouts with finite latents in all runs, got {len(some)}")
    couples = list(combinations(range(len(runs)), 2))
    shares = _shared(runs, rows, some, points, k, couples, done, kept or KeptAnswers())
    labels = [_clusters(p, min(clusters, len(some) - 1), seed) for p in points]
    apart = _distances(points, seed)
    pairs = [
        (i, j, {"neighbours": float(np.nanmean(share)), **_alike(labels, apart, i, j)})
        for (i, j), share in zip(couples, shares, strict=True)
    ]
    expected = {"neighbours": k / (len(some) - 1), "clusters": 0.0, "distances": 0.0}
    return Agreement(pairs, expected, shares.mean(axis=0), len(some))


def _alike(labels: Sequence[IntArray], apart: Sequence[Float64Array], i: int, j: int) -> dict[str, float]:
    from scipy.stats import spearmanr
    from sklearn.metrics import adjusted_rand_score

    return {
        "clusters": float(adjusted_rand_score(labels[i], labels[j])),
        "distances": float(spearmanr(apart[i], apart[j]).statistic),
    }


def _shared(  # the arguments of one pass over all runs
    runs: Sequence[Latents],
    rows: Sequence[IntArray],
    some: IntArray,
    points: Sequence[Float64Array],
    k: int,
    couples: Sequence[tuple[int, int]],
    done: Callable[[int], object],
    kept: KeptAnswers,
) -> Float64Array:
    """Return the share of the k nearest cutouts that two runs have in common, (number of couples, N)."""
    found = np.full((len(couples), len(rows[0])), np.nan)
    for start in range(0, len(rows[0]), _READ):
        block = np.arange(start, min(start + _READ, len(rows[0])))
        shares = np.full((len(couples), len(block)), np.nan)
        if kept.take_numbers(f"shares-{start:012d}", shares):
            found[:, block] = shares
            done(len(block))
            continue
        near = []
        for run, own, sample in zip(runs, rows, points, strict=True):
            cosine = unit_rows(run.take(own[block])) @ sample.T
            cosine[block[:, None] == some] = -np.inf
            finite = np.isfinite(cosine).any(axis=1, keepdims=True)
            near.append(np.where(finite, np.argpartition(-cosine, k - 1, axis=1)[:, :k], -1))
        for couple, (i, j) in enumerate(couples):
            both: IntArray = np.sort(np.concatenate([near[i], near[j]], axis=1), axis=1)
            same = np.count_nonzero(both[:, 1:] == both[:, :-1], axis=1) / k
            known = (near[i][:, 0] >= 0) & (near[j][:, 0] >= 0)
            shares[couple] = np.where(known, same, np.nan)
        found[:, block] = shares
        kept.keep_numbers(f"shares-{start:012d}", shares)
        done(len(block))
    return found


def _clusters(points: Float64Array, count: int, seed: int) -> IntArray:
    from sklearn.cluster import KMeans

    return np.asarray(KMeans(count, n_init=3, random_state=seed).fit_predict(points), np.int64)


def _distances(points: Sequence[Float64Array], seed: int) -> list[Float64Array]:
    rng, count = np.random.default_rng(seed), len(points[0])
    one = rng.integers(count, size=_PAIRS)
    other = (one + rng.integers(1, count, size=_PAIRS)) % count
    return [np.sqrt(((p[one] - p[other]) ** 2).sum(axis=1)) for p in points]
