"""Shares over time: counts as counted one by one, and intervals that hold what they promise."""

import numpy as np
import pytest

from nenya.tables.comparison import wilson
from nenya.tables.over_time import share_within, shares_over_time, units_of

NONE = np.iinfo(np.int16).min


def rows_with_granules(seed=0, count=3000, granules=200):
    rng = np.random.default_rng(seed)
    granule = rng.integers(0, granules, count)
    months = rng.integers(480, 516, granules)[granule].astype(np.int16)
    months[rng.random(count) < 0.02] = NONE
    granule[rng.random(count) < 0.02] = -1
    return months, granule, rng.random(count) < 0.3


@pytest.mark.parametrize("step", [1, 3, 12])
def test_counts_are_those_of_each_time(step):
    months, granule, chosen = rows_with_granules()
    units = units_of(months, NONE, granule)
    found = shares_over_time(units, units.selected(chosen), step)
    by_rows = shares_over_time(units, units.selected(np.flatnonzero(chosen)), step)
    np.testing.assert_array_equal(found.selected, by_rows.selected)
    assert found.start[0] % step == 0 and (np.diff(found.start) == step).all()
    for k, start in enumerate(found.start):
        inside = (months >= start) & (months < start + step)
        named = inside & (granule >= 0)
        pairs = set(zip(months[named].tolist(), granule[named].tolist(), strict=True))
        assert found.whole[k] == inside.sum() and found.selected[k] == (inside & chosen).sum()
        assert found.granules[k] == len(pairs) + (inside & (granule < 0)).sum()
        one = share_within(units, units.selected(chosen), int(start), int(start) + step - 1)
        assert (one.selected[0], one.whole[0], one.granules[0]) == (
            found.selected[k],
            found.whole[k],
            found.granules[k],
        )
        np.testing.assert_allclose([one.low[0], one.high[0]], [found.low[k], found.high[k]])
    assert found.whole.sum() == (months != NONE).sum()
    everything = shares_over_time(units, units.selected(None), step)
    np.testing.assert_array_equal(everything.selected, everything.whole)


def test_times_without_rows_have_no_share_and_no_date_gives_no_times():
    months = np.array([480, 480, 483], np.int16)
    units = units_of(months, NONE, None)
    found = shares_over_time(units, units.selected(np.array([True, False, True])), 1)
    assert found.whole.tolist() == [2, 0, 0, 1] and np.isnan(found.share[1:3]).all() and np.isnan(found.low[1:3]).all()
    empty = units_of(np.full(3, NONE, np.int16), NONE, None)
    assert len(shares_over_time(empty, empty.selected(None), 1).share) == 0
    assert np.isnan(share_within(units, units.selected(None), 481, 482).share[0])


def test_the_interval_covers_where_that_of_independent_rows_does_not():
    """Granules differ (beta-binomial): 95 % must hold for draws of granules, with many and with few of them."""
    rng, times, truth = np.random.default_rng(1), 1500, 0.2
    for granules, least in ((40, 0.935), (6, 0.935)):
        of_time = np.repeat(np.arange(times), granules)
        sizes = rng.integers(10, 60, len(of_time))
        hits = rng.binomial(sizes, rng.beta(1, 4, len(of_time)))
        months = np.repeat(of_time, sizes).astype(np.int16)
        granule = np.repeat(np.arange(len(of_time)), sizes)
        within = np.arange(len(granule)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        units = units_of(months, NONE, granule)
        found = shares_over_time(units, units.selected(within < np.repeat(hits, sizes)), 1)
        assert np.mean((found.low <= truth) & (truth <= found.high)) >= least
        low, high = wilson(found.share, found.whole)
        assert np.mean((low <= truth) & (truth <= high)) < 0.6
        assert (found.low <= found.share).all() and (found.share <= found.high).all()


def test_rows_that_are_their_own_granules_have_nearly_wilsons_interval():
    rng = np.random.default_rng(2)
    units = units_of(np.full(4000, 480, np.int16), NONE, None)
    found = shares_over_time(units, units.selected(rng.random(4000) < 0.1), 1)
    low, high = wilson(found.share, 4000)
    assert found.low[0] == pytest.approx(low[0], rel=0.01) and found.high[0] == pytest.approx(high[0], rel=0.01)
    none = shares_over_time(units, units.selected(np.zeros(4000, bool)), 1)
    assert none.low[0] == 0 and none.high[0] == pytest.approx(wilson(np.zeros(1), 4000.0)[1][0], rel=0.01)
    single = units_of(np.full(50, 480, np.int16), NONE, np.zeros(50, np.int64))
    one = shares_over_time(single, single.selected(np.arange(50) < 25), 1)
    assert one.low[0] < 0.15 and one.high[0] > 0.85, "one granule says little, however many rows it has"
