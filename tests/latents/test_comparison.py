"""Laws of the comparison of two sets: slow references, a null of whole blocks, and no influence of order."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import energy_distance, kstest
from sklearn.metrics import roc_auc_score

from nenya.errors import InputFileError
from nenya.latents import density_ratio, energy
from nenya.latents.block_null import balanced, false_discovery_rates, null_labels, p_value, pool_of, side
from nenya.latents.density_ratio import density_ratios, reference
from nenya.latents.difference import MEASURES, compare_sides
from nenya.latents.matched_pairs import compare_pairs
from nenya.latents.two_sample import Classifier


def rows(count: int, dim: int = 6, seed: int = 0, shift: float = 0.0) -> np.ndarray:
    found = np.random.default_rng(seed).standard_normal((count, dim))
    found[:, 0] += shift
    return found


def distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.sqrt(((x[:, None] - y) ** 2).sum(axis=-1))


def test_the_energy_distance_is_that_of_scipy():
    x, y = rows(70, 1, 1)[:, 0], rows(90, 1, 2, 0.4)[:, 0]
    found = compare_sides(side(x), side(y), permutations=19)["energy"]
    assert found.value == pytest.approx(energy_distance(x, y), rel=1e-9)


def test_the_energy_distance_is_its_definition_in_many_dimensions_and_for_near_copies():
    x, y = rows(40, 9, 1), rows(50, 9, 2, 0.4)
    x[20:] = x[:20] + 1e-9
    found = compare_sides(side(x), side(y), permutations=19)["energy"]
    square = 2 * distances(x, y).mean() - distances(x, x).mean() - distances(y, y).mean()
    assert found.value == pytest.approx(np.sqrt(square), rel=1e-9)
    assert found.low <= found.value <= found.high


def test_the_error_of_the_energy_is_that_of_leaving_out_one_block():
    blocks = np.random.default_rng(0).integers(0, 8, 60)  # of which some have rows of both sets
    x, y = rows(60, 3, 1), rows(50, 3, 2)
    pool = pool_of(side(x, blocks), side(y, blocks[:50] + 4))
    sums = energy.UnitSums(pool)
    for start, tile in energy.distance_tiles(pool.values):
        sums.add(start, tile)
    left, group = [], []
    for block in np.unique(pool.block):
        own = pool.block != block
        a, b = pool.values[own & pool.first], pool.values[own & ~pool.first]
        left.append(2 * distances(a, b).mean() - distances(a, a).mean() - distances(b, b).mean())
        group.append(pool.first[~own].any() + 2 * (~pool.first[~own]).any())
    expected = energy.jackknife_error(np.array(left), np.array(group))
    assert energy.energy_error(sums.sums, pool) == pytest.approx(expected, rel=1e-9)


def naeem(real: np.ndarray, fake: np.ndarray, k: int) -> tuple[float, float]:
    """Coverage and density as Naeem and others (2020) define them."""
    radii = np.sort(distances(real, real), axis=1)[:, k]
    inside = distances(real, fake) < radii[:, None]
    return inside.any(axis=1).mean(), inside.sum() / (k * len(fake))


@pytest.mark.parametrize("k", [1, 5])
def test_coverage_and_density_are_the_published_ones(k):
    x, y = rows(80, 3, 1), rows(60, 3, 2, 1.5)
    found = compare_sides(side(x), side(y), permutations=19, k=k)
    assert (found["coverage_of_a"].value, found["density_around_a"].value) == pytest.approx(naeem(x, y, k))
    assert (found["coverage_of_b"].value, found["density_around_b"].value) == pytest.approx(naeem(y, x, k))
    assert found["density"].value == pytest.approx((naeem(x, y, k)[1] + naeem(y, x, k)[1]) / 2)


def test_copies_within_a_block_are_no_neighbours():
    x, y = rows(50, 3, 1), rows(50, 3, 2)
    copied = [side(np.repeat(v, 9, axis=0), np.repeat(np.arange(50) + s, 9)) for v, s in ((x, 0), (y, 50))]
    plain = [side(np.repeat(v, 9, axis=0)) for v in (x, y)]
    apart = compare_sides(*copied, permutations=19)["coverage_of_a"]
    assert apart.value > 0.3 and abs(apart.value - apart.expected) < 0.15
    assert naeem(plain[0].values, plain[1].values, 5)[0] == 0


def test_the_area_is_that_of_each_fold_and_folds_keep_blocks():
    x, y = rows(150, 4, 1), rows(100, 4, 2, 1.0)
    blocks = np.random.default_rng(1).integers(0, 30, 250)
    pool = pool_of(side(x, blocks[:150]), side(y, blocks[150:]))
    classifier = Classifier(pool)
    assert pd.DataFrame({"b": pool.block, "f": classifier.folds}).groupby("b")["f"].nunique().max() == 1
    labels = null_labels(pool, 3)
    for own, area in zip(labels, classifier.areas(labels), strict=True):
        sums = np.zeros(2)
        for held, scores in classifier.scores(own[None]):
            first = own[pool.unit[held]]
            pairs = first.sum() * (~first).sum()
            sums += pairs * np.array([roc_auc_score(first, scores[0]), 1])
        assert area == pytest.approx(sums[0] / sums[1], abs=1e-9)
    assert classifier.areas(labels)[0] > 0.65


def two_halves(seed: int, copies: int, *, ignore: bool = False) -> list:
    """Two halves of one set, by granule, each with near-copies of one pattern."""
    rng = np.random.default_rng(seed)
    granule = np.repeat(np.arange(20), copies)
    values = np.repeat(rng.standard_normal((20, 4)), copies, axis=0)
    values += 0.01 * (copies > 1) * rng.standard_normal(values.shape)
    of_a = np.isin(granule, rng.permutation(20)[:10])
    blocks = np.arange(len(granule)) if ignore else granule
    return [side(values[own], blocks[own]) for own in (of_a, ~of_a)]


def p_values(seeds: int, copies: int, *, ignore: bool = False) -> dict[str, list[float]]:
    found = [
        compare_sides(*two_halves(seed, copies, ignore=ignore), permutations=39, k=3, seed=seed)
        for seed in range(seeds)
    ]
    return {name: [one[name].p for one in found] for name in MEASURES}


@pytest.mark.parametrize("copies", [1, 20])
def test_p_values_of_two_halves_are_uniform(copies):
    for name, p in p_values(40, copies).items():
        assert kstest(np.array(p) - 1 / 80, "uniform").pvalue > 0.01 / len(MEASURES), name


def test_a_null_that_ignores_granules_fails():
    for name, p in p_values(12, 20, ignore=True).items():
        if name in ("energy", "auc", "coverage_of_a", "coverage_of_b"):
            assert np.mean(np.array(p) <= 0.05) > 0.5, name


@pytest.mark.slow
@pytest.mark.parametrize("copies", [1, 20])
def test_p_values_of_two_halves_are_uniform_over_200_seeds(copies):
    for name, p in p_values(200, copies).items():
        assert kstest(np.array(p) - 1 / 80, "uniform").pvalue > 0.01, name
    ignoring = p_values(200, 20, ignore=True)
    assert all(kstest(p, "uniform").pvalue < 1e-6 for p in ignoring.values())


def test_order_of_rows_and_of_sets_and_size_of_tiles_change_nothing(monkeypatch):
    blocks = np.random.default_rng(0).integers(0, 30, 200)
    a, b = side(rows(120, 5, 1), blocks[:120]), side(rows(80, 5, 2, 0.5), blocks[120:])
    first = compare_sides(a, b, permutations=39, sample=70)
    rng = np.random.default_rng(3)
    again = compare_sides(a.rows(rng.permutation(120)), b.rows(rng.permutation(80)), permutations=39, sample=70)
    assert again == first
    turned = compare_sides(b, a, permutations=39, sample=70)
    swap = {"coverage_of_a": "coverage_of_b", "density_around_a": "density_around_b"}
    swap |= {value: key for key, value in swap.items()}
    assert {swap.get(name, name): value for name, value in turned.items()} == first
    monkeypatch.setattr(energy, "TILE", 17)
    for name, found in compare_sides(a, b, permutations=39, sample=70).items():
        assert vars(found) == pytest.approx(vars(first[name]), rel=1e-9, abs=1e-9)


def test_a_shift_and_a_change_of_spread_are_found():
    wide = rows(200, 6, 2) * 1.6
    for other in (rows(200, 6, 2, 0.8), wide):
        found = compare_sides(side(rows(200, 6, 1)), side(other), permutations=99)
        assert found["auc"].p == found["energy"].p == 0.01
        assert found["auc"].low > 0.5
    a = rows(200, 3, 1)
    a[:60] += 4  # which b lacks
    found = compare_sides(side(a), side(rows(200, 3, 2)), permutations=99)
    assert found["coverage_of_a"].p == 0.01 and found["coverage_of_b"].p > 0.05
    assert found["coverage_of_a"].high < found["coverage_of_a"].expected


def test_the_null_keeps_the_numbers_of_blocks_and_exchanges_halves():
    x = side(rows(60, 2, 1), np.arange(60) // 3)  # 20 blocks, of which 5 are shared
    y = side(rows(45, 2, 2), 15 + np.arange(45) // 3)
    pool = pool_of(x, y)
    first, block = pool.units()
    labels = null_labels(pool, 200)
    both = np.bincount(block)[block] == 2
    assert both.sum() == 10 and (labels[0] == first).all()
    assert set(labels[:, ~both].sum(axis=1)) == {first[~both].sum()}
    halves = labels[:, both].reshape(201, 5, 2)
    assert (halves.sum(axis=2) == 1).all() and 0.4 < halves[1:, :, 0].mean() < 0.6
    assert balanced(pool) is pool


def test_too_few_blocks_have_no_p_value_and_equal_sets_are_no_distance_apart():
    few = [side(rows(60, 3, n, 4.0 * n), n * 10 + np.arange(60) // 20) for n in (0, 1)]  # three blocks each
    found = compare_sides(*few, permutations=39)
    assert np.isnan(found["energy"].p) and found["auc"].value > 0.95 and np.isfinite(found["energy"].high)
    one = side(rows(60, 3), np.arange(60) // 5)
    same = compare_sides(one, one, permutations=39)
    assert same["energy"].value == pytest.approx(0, abs=1e-6) and same["energy"].p > 0.02
    alone = [side(rows(60, 3, n, 4.0 * n), np.full(60, n)) for n in (0, 1)]
    assert all(np.isnan(estimate.p) for estimate in compare_sides(*alone, permutations=39).values())


def test_blocks_of_unequal_size_are_cut_for_the_p_values():
    x, y = side(rows(40, 2, 1), np.arange(40) // 2), side(rows(400, 2, 2), 100 + np.arange(400) // 20)
    cut = balanced(pool_of(x, y))
    assert np.bincount(cut.unit).max() == 2 and len(cut) == 80
    mixed = balanced(pool_of(side(rows(30, 2, 1), np.arange(30) // 3), side(rows(10, 2, 2), np.arange(10))))
    assert set(np.bincount(mixed.unit)) == {1}


def test_equal_statistics_have_uniform_ranks():
    found = [p_value(np.zeros(200), seed) for seed in range(400)]
    assert kstest(found, "uniform").pvalue > 0.01
    assert p_value(np.array([5.0, *range(4)])) == 0.2 and p_value(np.array([-1.0, *range(4)]), side="less") == 0.2
    assert np.isnan(p_value(np.array([np.nan, 1, 2])))


def test_false_discovery_rates_are_those_of_benjamini_and_hochberg():
    p = np.array([0.01, np.nan, 0.04, 0.03, 0.5])
    assert false_discovery_rates(p) == pytest.approx([0.04, np.nan, 0.16 / 3, 0.16 / 3, 0.5], nan_ok=True)


def test_sets_that_do_not_fit_are_refused():
    with pytest.raises(InputFileError, match="expected two sets of equal dimensions, got 3 and 4"):
        compare_sides(side(rows(9, 3)), side(rows(9, 4)))
    with pytest.raises(InputFileError, match=r"expected values of shape"):
        side(np.zeros((2, 2, 2)))
    assert np.isnan(compare_sides(side(rows(1)), side(rows(9)))["energy"].value)
    assert len(side(np.array([1.0, np.nan, np.inf]))) == 1


def test_the_density_ratio_names_what_the_other_set_lacks(monkeypatch):
    a, b = rows(300, 4, 1), rows(300, 4, 2)
    a[:40] += 6  # of which b has none
    one, other = side(a, np.arange(300) // 3), side(b, 200 + np.arange(300) // 3)
    pool = pool_of(one, other)
    blocks = np.concatenate([one.blocks, other.blocks])[pool.source]
    sample = reference(pool, blocks)
    found = density_ratios(a, one.blocks, True, sample)
    assert set(np.argsort(-found)[:36]) <= set(range(40))
    assert np.median(found[40:]) == pytest.approx(1, abs=0.3)
    order = np.random.default_rng(0).permutation(300)
    assert (density_ratios(a[order], one.blocks[order], True, sample) == found[order]).all()
    monkeypatch.setattr(density_ratio, "_BLOCK", 64)
    assert density_ratios(a, one.blocks, True, sample) == pytest.approx(found, rel=1e-9)
    turned = pool_of(other, one)
    again = reference(turned, np.concatenate([other.blocks, one.blocks])[turned.source])
    assert (density_ratios(a, one.blocks, False, again) == found).all()
    assert np.isnan(density_ratios(np.full((1, 4), np.nan), np.array([7]), True, sample)).all()


def test_the_density_ratio_is_a_slow_count():
    a, b = rows(50, 3, 1), rows(60, 3, 2, 0.5)
    pool = pool_of(side(a, np.arange(50)), side(b, np.arange(60) + 50))
    sample = reference(pool, pool.source)
    found = density_ratios(a, np.arange(50), True, sample, k=7)
    for row in range(50):
        away = np.concatenate([distances(a[row : row + 1], a)[0], distances(a[row : row + 1], b)[0]])
        away[row] = np.inf
        own = (np.argsort(away)[:7] < 50).sum()
        assert found[row] == pytest.approx((own + 0.5) / 49 / ((7 - own + 0.5) / 60))


def test_matched_pairs_are_closer_than_random_ones_only_if_they_match():
    x, blocks = rows(120, 5, 1), np.arange(120) // 4
    true = compare_pairs(x, x + 0.5 * rows(120, 5, 2), blocks, permutations=99)
    none = compare_pairs(x, rows(120, 5, 2), blocks, permutations=99)
    assert true["closer"].value > 0.9 and true["closer"].p == 0.01 and true["distance"].value < 2
    assert none["closer"].p > 0.05 and none["closer"].low < 0.5 < none["closer"].high
    away = distances(x, rows(120, 5, 2))
    other = blocks[:, None] != blocks
    assert none["random_distance"].value == pytest.approx((away * other).sum(axis=1).mean() / 116)
    assert compare_pairs(x[:4], x[:4], blocks[:4]) == {}
