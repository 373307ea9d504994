"""Laws of the comparison of two sets: slow references, a null of whole blocks, and no influence of order."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import chisquare, energy_distance, kstest
from sklearn.linear_model import Ridge
from sklearn.metrics import roc_auc_score

from nenya.errors import InputFileError
from nenya.latents import density_ratio, energy
from nenya.latents.block_null import balanced, false_discovery_rates, null_labels, p_value, pool_of, side
from nenya.latents.comparison import Compared
from nenya.latents.comparison_words import words
from nenya.latents.coverage import PoolNeighbours, covered_among, covered_rows
from nenya.latents.density_ratio import density_ratios, reference
from nenya.latents.difference import MEASURES, Estimate, compare_sides
from nenya.latents.matched_pairs import compare_pairs
from nenya.latents.two_sample import Classifier, features_of


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


def test_coverage_is_unknown_where_a_set_has_too_few_neighbours_in_other_blocks():
    first, second = side(rows(40), np.zeros(40, int)), side(rows(40, seed=1), np.arange(40) // 4 + 10)
    found = compare_sides(first, second, k=5, permutations=19)
    assert np.isnan([found["coverage_of_a"].value, found["coverage_of_a"].expected, found["density"].value]).all()
    assert 0.5 < found["coverage_of_b"].value <= 1
    found = compare_sides(second, side(rows(45, seed=2), np.arange(45) // 5 + 50), k=41, permutations=19)
    assert np.isnan([found[name].value for name in ("coverage_of_a", "coverage_of_b", "density")]).all()
    assert np.isfinite(found["energy"].value)


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


def granules_of(rng: np.random.Generator, kind: str) -> np.ndarray:
    """The granule of each row: of 1, 5 or 20 rows, or of very unequal ones."""
    if kind == "unequal":
        return np.repeat(np.arange(30), rng.geometric(0.2, 30))
    return np.repeat(np.arange(20), {"rows": 1, "copies": 20}.get(kind, 5))


def two_halves(seed: int, kind: str, *, ignore: bool = False) -> list:
    """Two halves of one set, by granule: `copies` are near-copies of one pattern, `quantity` is one rounded number."""
    rng = np.random.default_rng(seed)
    granule = granules_of(rng, kind)
    count = granule.max() + 1
    dim = 1 if kind == "quantity" else 4
    patterns = rng.standard_t(2, (count, dim)) if kind == "heavy tails" else rng.standard_normal((count, dim))
    values = patterns[granule]
    if kind != "rows":
        values = values + (0.01 if kind == "copies" else 1.0) * rng.standard_normal(values.shape)
    if kind == "quantity":
        values = np.round(values, 1)
    blocks = np.arange(len(granule)) if ignore else granule
    of_a = np.isin(granule, rng.permutation(count)[: count // 2])
    if kind == "days":  # a day has rows of both sets, of other patterns
        of_a = np.arange(len(granule)) % 5 < 2
        values[of_a] += rng.standard_normal((count, dim))[granule[of_a]]
        values[~of_a] += rng.standard_normal((count, dim))[granule[~of_a]]
    return [side(values[own], blocks[own]) for own in (of_a, ~of_a)]


def p_values(seeds: int, kind: str, *, ignore: bool = False, first: int = 0) -> dict[str, list[float]]:
    found = [
        compare_sides(*two_halves(seed, kind, ignore=ignore), permutations=39, k=3, seed=seed)
        for seed in range(first, first + seeds)
    ]
    return {name: [one[name].p for one in found] for name in MEASURES}


@pytest.mark.parametrize("kind", ["rows", "copies"])
def test_p_values_of_two_halves_are_uniform(kind):
    for name, p in p_values(40, kind).items():
        assert kstest(np.array(p) - 1 / 80, "uniform").pvalue > 0.01 / len(MEASURES), name


def test_a_null_that_ignores_granules_fails():
    for name, p in p_values(12, "copies", ignore=True).items():
        if name in ("energy", "auc", "coverage_of_a", "coverage_of_b"):
            assert np.mean(np.array(p) <= 0.05) > 0.5, name


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["rows", "copies", "unequal", "quantity", "heavy tails", "days"])
def test_p_values_of_two_halves_are_uniform_over_200_seeds(kind):
    for name, p in p_values(200, kind, first=1000).items():
        assert kstest(np.array(p) - 1 / 80, "uniform").pvalue > 0.01 / len(MEASURES), name


@pytest.mark.slow
def test_p_values_that_ignore_granules_are_not_uniform_over_200_seeds():
    assert all(kstest(p, "uniform").pvalue < 1e-6 for p in p_values(200, "copies", ignore=True).values())


def inside(draws: int, shift: float, copies: int, dim: int = 3) -> dict[str, float]:
    """The share of draws of two sets whose interval holds the truth: the energy distance, or the mean of all draws."""
    found: dict[str, list] = {name: [] for name in MEASURES}
    for draw in range(draws):
        rng = np.random.default_rng([draw, dim])
        both = []
        for number in range(2):
            own = np.repeat(np.arange(25), copies)
            values = 0.7 * rng.standard_normal((25, dim))[own] + 0.7 * rng.standard_normal((len(own), dim))
            values[:, 0] += shift * number
            both.append(side(values, 100 * number + own))
        for name, one in compare_sides(*both, permutations=19, seed=draw).items():
            found[name].append((one.value, one.low, one.high))
    x, y, again, other = (0.98**0.5 * rows(2000, dim, n, shift * (n in (2, 4)) / 0.98**0.5) for n in (1, 2, 3, 4))
    square = 2 * distances(x, y).mean() - distances(x, again).mean() - distances(y, other).mean()
    truth = {name: np.mean(values, axis=0)[0] for name, values in found.items()}
    truth["energy"] = np.sqrt(max(square, 0)) if shift else 0.0
    return {name: np.mean([low <= truth[name] <= high for _, low, high in found[name]]) for name in MEASURES}


def test_intervals_hold_the_truth():
    assert {name: share for name, share in inside(20, 1.0, 4).items() if share < 0.8} == {}


@pytest.mark.slow
@pytest.mark.parametrize(("shift", "copies"), [(0.0, 1), (0.0, 5), (0.7, 5), (2.0, 5)])
def test_intervals_hold_the_truth_in_95_of_100_draws(shift, copies):
    assert {name: share for name, share in inside(200, shift, copies).items() if share < 0.9} == {}


def test_the_coverage_among_some_blocks_is_that_of_their_rows():
    blocks = np.random.default_rng(0).integers(0, 12, 110)  # of which some have rows of both sets
    a, b = side(rows(60, 3, 1), blocks[:60]), side(rows(50, 3, 2, 0.8), 6 + blocks[60:])

    def neighbours(one, other):
        pool = pool_of(one, other)
        found = PoolNeighbours(pool, 3)
        for start, tile in energy.distance_tiles(pool.values):
            found.add(start, tile)
        return found, pool

    found, pool = neighbours(a, b)
    assert (covered_among(found, pool, np.ones(pool.block.max() + 1, bool)) == covered_rows(found, pool)).all()
    for seed in range(5):
        kept = np.random.default_rng(seed).random(pool.block.max() + 1) < 0.7
        own = kept[pool.block]
        hit = covered_among(found, pool, kept)
        rest = np.sort(pool.source[own])
        less, fewer = neighbours(a.rows(rest[rest < 60]), b.rows(rest[rest >= 60] - 60))
        expected = covered_rows(less, fewer)
        of_a = pool.first != pool.swapped
        assert hit[own & of_a].mean() == pytest.approx(expected[fewer.first != fewer.swapped].mean())
        assert hit[own & ~of_a].mean() == pytest.approx(expected[fewer.first == fewer.swapped].mean())


def test_the_weights_without_a_group_are_those_of_a_fit_to_the_other_rows():
    pool = pool_of(side(rows(40, 3, 1)), side(rows(50, 3, 2, 0.8)))
    classifier = Classifier(pool)
    held, group = classifier.folds == 0, np.random.default_rng(0).integers(0, 4, 90)
    found = classifier._weights_without(held, group, 4)
    features = features_of(pool.values)
    for left in range(4):
        seen = features[~held & (group != left)]
        centred, label = seen - seen.mean(axis=0), pool.first[~held & (group != left)].astype(float)
        gram = centred.T @ centred
        fit = Ridge(0.05 * np.trace(gram) / len(gram)).fit(seen, label)
        assert found[:, left] == pytest.approx(fit.coef_, rel=1e-6, abs=1e-9)
    assert 0.02 < classifier.error() < 0.15


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
    ranks = np.random.default_rng(0).standard_normal((4000, 20))
    for values in (ranks, 0 * ranks):
        found = [p_value(own, seed, side="both") for seed, own in enumerate(values)]
        assert chisquare(np.bincount(np.rint(20 * np.array(found)).astype(int), minlength=21)[1:]).pvalue > 0.001
    assert p_value(np.array([99.0, *range(999)]), side="both") > p_value(np.array([5e3, *range(999)]), side="both")
    assert p_value(np.array([-1.0, *range(999)]), side="both") <= 0.002
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


def test_the_density_ratio_names_the_class_that_was_taken_out():
    """Six overlapping classes in granules of mixed ones; b has all but one."""
    right = 0
    for seed in range(10):
        rng = np.random.default_rng(seed)
        centres = rng.standard_normal((6, 16))
        kinds = rng.integers(0, 6, (2, 600))
        values = [centres[own] + 0.6 * rng.standard_normal((600, 16)) for own in kinds]
        a, b = side(values[0], np.arange(600) // 4), side(values[1], 1000 + np.arange(600) // 4)
        b = b.rows(kinds[1] != 2)
        pool = pool_of(a, b)
        sample = reference(pool, np.concatenate([a.blocks, b.blocks])[pool.source])
        named = np.argsort(-density_ratios(a.values, a.blocks, True, sample))[:50]
        right += (kinds[0][named] == 2).sum()
    assert right >= 0.9 * 500


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


@pytest.mark.parametrize(
    ("low", "p", "start"),
    [
        (0.45, 0.5, "No difference between x and y is seen: AUC 0.85"),
        (0.80, 0.5, "Whether x and y differ is uncertain: the interval of the AUC is above chance, but blocks that"),
        (0.80, 0.01, "x and y differ: a classifier separates unseen latents of the two with AUC 0.85"),
    ],
)
def test_an_interval_and_a_p_value_that_disagree_are_not_called_no_difference(low, p, start):
    rows = {"blocks_of_a": 160, "blocks_of_b": 9} | {
        f"{what}_of_{own}": 9 for what in ("rows", "compared") for own in "ab"
    }
    measures = {name: Estimate(0.85, low, 0.9, p, 0.5) for name in MEASURES}
    assert words(Compared(rows, measures, {}, {}), [], ("x", "y"))[0].startswith(start)
