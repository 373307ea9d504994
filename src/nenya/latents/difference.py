"""How far apart two sets are, and how far each covers the other: values, intervals, and p-values under a block null.

Letters in shapes: n rows of the pool, P permutations.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import numpy as np

from nenya.latents.block_null import (
    Float64Array,
    Pool,
    Side,
    balanced,
    null_labels,
    p_value,
    pool_of,
    possible_exchanges,
    sampled,
)
from nenya.latents.coverage import PoolNeighbours, coverage_errors, coverages
from nenya.latents.energy import (
    UnitSums,
    distance_tiles,
    energies,
    energy_error,
    energy_interval,
    kinds_of_blocks,
)
from nenya.latents.two_sample import Classifier

MEASURES = ("energy", "auc", "coverage_of_a", "coverage_of_b", "density", "density_around_a", "density_around_b")
"""Energy distance; area under the ROC curve of a classifier; coverage and density; see `compare_sides`."""

FEWEST_EXCHANGES = 20
"""Ways to exchange blocks below which no p-value is given: the smallest one would be above 0.05."""

_Z = 1.959963984540054  # of a 95 % interval


@dataclass(frozen=True)
class Estimate:
    """A measure of two sets.

    Attributes:
        value: of the sets.
        low: lower end of its 95 % interval.
        high: upper end.
        p: p-value against the null that blocks may change sides.
        expected: mean under that null.
    """

    value: float
    low: float
    high: float
    p: float
    expected: float

    def values(self) -> dict[str, float | None]:
        """Return the numbers as JSON has them: NaN as None."""
        return {name: None if not np.isfinite(value) else float(value) for name, value in asdict(self).items()}


NOTHING = Estimate(*[float("nan")] * 5)


def compare_sides(
    a: Side,
    b: Side,
    *,
    k: int = 5,
    permutations: int = 999,
    sample: int = 5_000,
    seed: int = 0,
    done: Callable[[int], object] = lambda _: None,
) -> dict[str, Estimate]:
    """Compare two sets of rows.

    energy is the energy distance as scipy has it, sqrt(2 E|x - y| - E|x - x'| - E|y - y'|); auc that of a classifier
    with folds that keep blocks together; coverage_of_a the share of a that b covers; density_around_a the density of b
    around rows of a; density the mean of both densities. Large energy and auc, small coverage, and small or large
    density are against the null.

    Values and intervals are of all rows of the samples, p-values of `balanced` ones.

    Args:
        a: the one set.
        b: the other set.
        k: neighbours that make a ball of coverage and density.
        permutations: number P of exchanges of blocks.
        sample: rows of a set above which a sample of so many is taken; the intervals then include its error.
        seed: of the permutations, features, and ranks of equal statistics.
        done: called with the number of pairs of rows that are done, of n * n.

    Returns:
        Measure of `MEASURES` -> estimate; NaN where a set is too small, coverage and density also where a row has fewer
        than k others of its set in other blocks.
    """
    a, b = sampled(a, sample), sampled(b, sample)
    if min(len(a), len(b)) < 2:
        return dict.fromkeys(MEASURES, NOTHING)
    pool = pool_of(a, b)
    fair = balanced(pool)
    alike = fair is pool
    observed = _measure(pool, permutations if alike else 0, k, seed, done)
    null = observed if alike else _measure(fair, permutations, k, seed, lambda _: None)
    tested = possible_exchanges(fair) >= FEWEST_EXCHANGES
    return {name: _estimate(name, observed[name], null[name].statistics, seed, tested) for name in MEASURES}


_AGAINST = {"energy": "greater", "auc": "greater", "coverage_of_a": "less", "coverage_of_b": "less"}


@dataclass(frozen=True)
class _Measured:
    """A measure of a pool: its value, standard error or interval, and the statistic for all labels, (P + 1,)."""

    value: float
    ends: Callable[[Float64Array], tuple[float, float]]  # of the statistics under the null
    statistics: Float64Array


def _measure(pool: Pool, permutations: int, k: int, seed: int, done: Callable[[int], object]) -> dict[str, _Measured]:
    sums, neighbours = UnitSums(pool), PoolNeighbours(pool, k)
    for start, tile in distance_tiles(pool.values):
        sums.add(start, tile)
        neighbours.add(start, tile)
        done(tile.size)
    labels = null_labels(pool, permutations, seed)
    squares = energies(sums.sums, np.bincount(pool.unit), labels)
    square, error = float(squares[0]), energy_error(sums.sums, pool)
    del sums
    classifier = Classifier(pool, seed)
    areas = classifier.areas(labels)
    reach = _Z * classifier.error()
    ends = max(0.0, float(areas[0]) - reach), min(1.0, float(areas[0]) + reach)
    covered = coverages(neighbours, pool.unit, labels)
    root = np.sqrt(np.maximum(squares, 0))
    return {
        "energy": _Measured(float(root[0]), lambda null: energy_interval(square, null**2, error), root),
        "auc": _Measured(float(areas[0]), lambda _: ends, areas),
        **_covered(pool, neighbours, [covered.of_first, covered.of_second]),
        **_densities(pool, neighbours, [covered.around_first, covered.around_second]),
    }


def _estimate(name: str, observed: _Measured, null: Float64Array, seed: int, tested: bool) -> Estimate:
    rest = null[1:][np.isfinite(null[1:])]
    expected = float(rest.mean()) if len(rest) else float("nan")
    if not np.isfinite(observed.value):
        return replace(NOTHING, expected=expected)
    p = p_value(null, seed, side=_AGAINST.get(name, "both")) if len(rest) and tested else float("nan")
    low, high = observed.ends(rest)
    return Estimate(observed.value, float(low), float(high), p, expected)


def _covered(pool: Pool, neighbours: PoolNeighbours, found: list[Float64Array]) -> dict[str, _Measured]:
    """Return the coverage of each set, with Wilson's interval for an effective number of independent rows.

    The effective number is that with the variance of draws of blocks; see `coverage_errors`.
    """
    kinds = kinds_of_blocks(pool)
    fewest = float(min((kinds & bit > 0).sum() for bit in (1, 2)))  # blocks of a set
    errors = coverage_errors(neighbours, pool, kinds)
    names = ("coverage_of_b", "coverage_of_a") if pool.swapped else ("coverage_of_a", "coverage_of_b")
    result = {}
    for name, own, error, values in zip(names, (pool.first, ~pool.first), errors, found, strict=True):
        if not np.isfinite(neighbours.within[own]).all():  # a ball without an end covers everything
            values = np.full_like(values, np.nan)
        share, variance = float(values[0]), error**2
        inner = (share * len(kinds) + 1) / (len(kinds) + 2)  # not 0 or 1, where the variance of a share is 0
        count = min(inner * (1 - inner) / variance, len(pool)) if variance > 0 else fewest
        result[name] = _fixed(share, wilson(share, count), values)
    return result


def _fixed(value: float, ends: tuple[float, float], statistics: Float64Array) -> _Measured:
    return _Measured(value, lambda _: ends, statistics)


def wilson(share: float, count: float) -> tuple[float, float]:
    """Return the 95 % interval of a share of `count` independent rows (Wilson 1927, JASA 22, 209).

    Examples:
        >>> low, high = wilson(0.5, 100)
        >>> round(low, 3), round(high, 3)
        (0.404, 0.596)
    """
    centre = (share + _Z**2 / (2 * count)) / (1 + _Z**2 / count)
    reach = _Z / (1 + _Z**2 / count) * np.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2))
    return max(0.0, min(share, float(centre - reach))), min(1.0, max(share, float(centre + reach)))


def _densities(pool: Pool, neighbours: PoolNeighbours, found: list[Float64Array]) -> dict[str, _Measured]:
    """Return the density around each set, and their mean."""
    names = ["density_around_b", "density_around_a"] if pool.swapped else ["density_around_a", "density_around_b"]
    kinds = kinds_of_blocks(pool)
    widen = _of_few(min(int((kinds & bit > 0).sum()) for bit in (1, 2)))
    result, influences, exact = {}, [], []
    for name, own, values in zip(names, (pool.first, ~pool.first), found, strict=True):
        n, m, k = int(own.sum()), int((~own).sum()), neighbours.k
        within = np.where(own, neighbours.within, 0.0)
        value = float(within[own].sum() / (k * m)) if np.isfinite(within).all() else float("nan")
        share = value * k / n
        rows = np.where(own, (within / m - share) / n, (neighbours.balls / n - share) / m) * n / k
        influences.append(np.bincount(pool.block, rows).astype(np.float64))
        exact.append(value)
        result[name] = _density(values, value, widen * influences[-1])
    result["density"] = _density((found[0] + found[1]) / 2, sum(exact) / 2, widen * (influences[0] + influences[1]) / 2)
    return result


def _of_few(blocks: int) -> float:
    """Return how much wider the interval of a mean of so many blocks is than that of very many: Student's t."""
    from scipy.stats import t

    return float(t.ppf(0.975, blocks - 1) / _Z * np.sqrt(blocks / (blocks - 1))) if blocks > 1 else float("nan")


def _density(values: Float64Array, value: float, influence: Float64Array) -> _Measured:
    reach = _Z * float(np.sqrt((influence**2).sum()))
    return _fixed(value, (float(np.maximum(0.0, value - reach)), value + reach), values)
