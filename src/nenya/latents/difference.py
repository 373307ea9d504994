"""How far apart two sets are, and how far each covers the other: values, intervals, and p-values under a block null.

Letters in shapes: n rows of the pool, P permutations.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from nenya.latents.block_null import Float64Array, Pool, Side, null_labels, p_value, pool_of, sampled
from nenya.latents.coverage import PoolNeighbours, coverages, covered_rows
from nenya.latents.energy import UnitSums, distance_tiles, energies, energy_error, energy_interval
from nenya.latents.two_sample import Classifier

MEASURES = ("energy", "auc", "coverage_of_a", "coverage_of_b", "density", "density_around_a", "density_around_b")
"""Energy distance; area under the ROC curve of a classifier; coverage and density; see `compare_sides`."""

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

    Args:
        a: the one set.
        b: the other set.
        k: neighbours that make a ball of coverage and density.
        permutations: number P of exchanges of blocks.
        sample: rows of a set above which a sample of so many is taken; the intervals then include its error.
        seed: of the permutations, features, and ranks of equal statistics.
        done: called with the number of rows that are done, of n.

    Returns:
        Measure of `MEASURES` -> estimate; NaN where a set is too small.
    """
    a, b = sampled(a, sample), sampled(b, sample)
    if min(len(a), len(b)) < 2:
        return dict.fromkeys(MEASURES, NOTHING)
    pool = pool_of(a, b)
    sums, neighbours = UnitSums(pool), PoolNeighbours(pool, k)
    for start, tile in distance_tiles(pool.values):
        sums.add(start, tile)
        neighbours.add(start, tile)
        done(len(tile))
    labels = null_labels(pool, permutations, seed)
    squares = energies(sums.sums, np.bincount(pool.unit), labels)
    bias = float(np.nanmean(squares[1:])) if permutations else 0.0
    ends = energy_interval(float(squares[0]), bias, energy_error(sums.sums, pool))
    energy = np.sqrt(np.maximum(squares, 0))
    del sums
    classifier = Classifier(pool, seed)
    areas = classifier.areas(labels)
    reach = _Z * classifier.error()
    covered = coverages(neighbours, pool.unit, labels)
    found = {
        "energy": _estimate(energy, ends, seed, "greater"),
        "auc": _estimate(areas, (max(0.0, areas[0] - reach), min(1.0, areas[0] + reach)), seed, "greater"),
        **_covered(pool, neighbours, [covered.of_first, covered.of_second], seed),
        **_densities(pool, neighbours, [covered.around_first, covered.around_second], seed),
    }
    return {name: found[name] for name in MEASURES}


def _estimate(
    found: Float64Array, ends: tuple[float, float], seed: int, against: str, value: float | None = None
) -> Estimate:
    rest = found[1:][np.isfinite(found[1:])]
    expected = float(rest.mean()) if len(rest) else float("nan")
    p = p_value(found, seed, side=against) if len(rest) else float("nan")
    return Estimate(float(found[0] if value is None else value), float(ends[0]), float(ends[1]), p, expected)


def _covered(pool: Pool, neighbours: PoolNeighbours, found: list[Float64Array], seed: int) -> dict[str, Estimate]:
    """Return the coverage of each set, with Wilson's interval for an effective number of independent rows."""
    hit = covered_rows(neighbours, pool)
    names = ("coverage_of_b", "coverage_of_a") if pool.swapped else ("coverage_of_a", "coverage_of_b")
    result = {}
    for name, own, values in zip(names, (pool.first, ~pool.first), found, strict=True):
        share = float(values[0])
        blocks = np.bincount(pool.block[own], hit[own] - share)
        variance = float((blocks**2).sum()) / own.sum() ** 2
        count = share * (1 - share) / variance if variance > 0 else float(len(np.unique(pool.block[own])))
        result[name] = _estimate(values, wilson(share, count), seed, "less")
    return result


def wilson(share: float, count: float) -> tuple[float, float]:
    """Return the 95 % interval of a share of `count` independent rows (Wilson 1927, JASA 22, 209)."""
    centre = (share + _Z**2 / (2 * count)) / (1 + _Z**2 / count)
    reach = _Z / (1 + _Z**2 / count) * np.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2))
    return max(0.0, min(share, float(centre - reach))), min(1.0, max(share, float(centre + reach)))


def _densities(pool: Pool, neighbours: PoolNeighbours, found: list[Float64Array], seed: int) -> dict[str, Estimate]:
    """Return the density around each set, and their mean."""
    names = ["density_around_b", "density_around_a"] if pool.swapped else ["density_around_a", "density_around_b"]
    result, influences, exact = {}, [], []
    for name, own, values in zip(names, (pool.first, ~pool.first), found, strict=True):
        n, m, k = int(own.sum()), int((~own).sum()), neighbours.k
        within = np.where(own, neighbours.within, 0.0)
        value = float(within[own].sum() / (k * m)) if np.isfinite(within).all() else float("nan")
        share = value * k / n
        rows = np.where(own, (within / m - share) / n, (neighbours.balls / n - share) / m) * n / k
        influences.append(np.bincount(pool.block, rows).astype(np.float64))
        exact.append(value)
        result[name] = _density(values, value, influences[-1], seed)
    result["density"] = _density((found[0] + found[1]) / 2, sum(exact) / 2, (influences[0] + influences[1]) / 2, seed)
    return result


def _density(values: Float64Array, value: float, influence: Float64Array, seed: int) -> Estimate:
    reach = _Z * float(np.sqrt((influence**2).sum()))
    return _estimate(values, (max(0.0, value - reach), value + reach), seed, "both", value)


def as_json(found: Mapping[str, Estimate]) -> dict[str, Any]:
    """Return estimates as JSON values."""
    return {name: estimate.values() for name, estimate in found.items()}
