"""Divisions into training and validation: what is whole stays whole, and nothing near the other side is left."""

import numpy as np
import pandas as pd
import pytest

from nenya.defs import EARTH_KM
from nenya.errors import InputFileError, OptionError
from nenya.tables.granules import granules
from nenya.tables.near import Distance, Places
from nenya.tables.split import NONE, TRAIN, VALID, Units, leakage, split_rows, splits_of


def archive(rows=600, granule_count=40, seed=0) -> pd.DataFrame:
    """A table of cutouts in clumps around granules, also at the pole and across the dateline."""
    rng = np.random.default_rng(seed)
    lat, lon = rng.uniform(-88, 88, granule_count), rng.uniform(-180, 180, granule_count)
    lat[:2], lon[1:4] = (89.5, -89.5), (179.9, -179.9, 179.5)
    day = rng.integers(0, 400, granule_count)
    own = rng.integers(0, granule_count, rows)
    table = pd.DataFrame({"pp_file": "a_preproc.h5", "pp_type": 1, "pp_idx": np.arange(rows)})
    table["lat"] = np.clip(lat[own] + rng.normal(0, 1, rows), -90, 90)
    table["lon"] = (lon[own] + rng.normal(0, 1, rows) + 180) % 360 - 180
    table["datetime"] = pd.Timestamp("2012-01-01") + pd.to_timedelta(day[own], "D")
    table["granule"] = [f"g{number}.nc" for number in own]
    table["sensor"] = np.array(["VIIRS", "MODIS", "LLC"])[own % 3]
    return table


def near_by_brute_force(table, rows, others, km=None, days=None):
    """Return which rows have one of the others near, comparing all pairs by the haversine."""
    lat, lon = np.radians(table["lat"].to_numpy()), np.radians(table["lon"].to_numpy())
    half = np.sin((lat[rows][:, None] - lat[others]) / 2) ** 2
    half += np.cos(lat[rows])[:, None] * np.cos(lat[others]) * np.sin((lon[rows][:, None] - lon[others]) / 2) ** 2
    close = np.ones(half.shape, bool)
    if km is not None:
        close &= 2 * EARTH_KM * np.arcsin(np.sqrt(np.minimum(half, 1))) <= km
    if days is not None:
        times = table["datetime"].to_numpy("datetime64[us]")
        close &= np.abs(times[rows][:, None] - times[others]) <= np.timedelta64(int(days * 86_400_000_000), "us")
    return close.any(axis=1)


BUFFERS = [(150, None), (None, 3), (400, 20), (3000, 2), (25_000, 5), (90, 1000)]


@pytest.mark.parametrize(("km", "days"), BUFFERS)
def test_nearness_is_that_of_all_pairs(km, days):
    table = archive()
    table["datetime"] += pd.to_timedelta(np.random.default_rng(5).integers(0, 86_400, len(table)), "s")
    rows, others = np.arange(0, 400), np.arange(400, 600)
    expected = near_by_brute_force(table, rows, others, km, days)
    assert (Places(table, Distance(km, days)).near(rows, others) == expected).all()
    assert expected.any() or km == 90


@pytest.mark.parametrize("by", ["granule", "time", "place", "sensor"])
@pytest.mark.parametrize(("km", "days"), [(300, 30), (500, None), (None, 2)])
def test_no_row_to_train_on_is_within_the_buffer(by, km, days):
    table = archive()
    split = split_rows(table, Units(by, days=60, km=2000), seed=3, buffer=Distance(km, days))
    train, valid = np.flatnonzero(split == TRAIN), np.flatnonzero(split == VALID)
    assert len(train) and len(valid)
    assert not near_by_brute_force(table, train, valid, km, days).any()
    left = np.flatnonzero(split == NONE)
    assert near_by_brute_force(table, left, valid, km, days).all(), "no more is left out than the buffer"


@pytest.mark.parametrize("by", ["granule", "time", "place", "sensor"])
def test_the_order_of_rows_changes_nothing_and_the_seed_does(by):
    table = archive()
    units, buffer = Units(by, days=20, km=800), Distance(100, 5)
    split = split_rows(table, units, seed=3, buffer=buffer)
    order = np.random.default_rng(1).permutation(len(table))
    assert (split_rows(table.iloc[order], units, seed=3, buffer=buffer) == split[order]).all()
    assert any((split_rows(table, units, seed=seed, buffer=buffer) != split).any() for seed in range(4, 9))


@pytest.mark.parametrize("by", ["granule", "time"])
@pytest.mark.parametrize("named", [True, False])
def test_granules_are_never_divided(by, named):
    table = archive().drop(columns=[] if named else ["granule"])
    table["filename"] = archive()["granule"]
    seconds = np.random.default_rng(2).integers(0, 600, len(table))  # a swath has a time for each pixel
    table["datetime"] += pd.to_timedelta(seconds, "s")
    own = granules(table)
    for seed in range(5):
        split = split_rows(table, Units(by, days=0.002), seed=seed)
        assert all(len(set(split[own == one])) == 1 for one in np.unique(own))


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("by", ["granule", "place"])
def test_the_fraction_is_as_near_as_the_units_allow(fraction, by):
    table = archive(2000, 100)
    largest = table["granule"].value_counts().max() if by == "granule" else 60
    for seed in range(10):
        found = (split_rows(table, Units(by, km=500), valid_fraction=fraction, seed=seed) == VALID).sum()
        assert abs(found - fraction * 2000) <= largest


def test_both_sides_are_drawn_alike():
    """Large granules are not rather on one side."""
    table = archive(600, 30)
    counts = np.mean([split_rows(table, Units("granule"), valid_fraction=0.5, seed=s) == VALID for s in range(200)], 0)
    assert 0.35 < counts.min() and counts.max() < 0.65


def test_values_of_a_column_are_chosen_or_drawn():
    table = archive()
    split = split_rows(table, Units("sensor", valid=("VIIRS",)))
    assert ((split == VALID) == (table["sensor"] == "VIIRS")).all()
    table["year"] = table["datetime"].dt.year
    assert ((split_rows(table, Units("year", valid=(2013,))) == VALID) == (table["year"] == 2013)).all()


def test_leakage_is_that_of_all_pairs():
    table = archive()
    split = np.random.default_rng(0).choice([TRAIN, VALID, NONE], len(table)).astype(np.int8)
    train, valid = np.flatnonzero(split == TRAIN), np.flatnonzero(split == VALID)
    found = leakage(table, split, Distance(200, 10))
    own = table["granule"].to_numpy()
    assert found.same_granule == np.mean([own[row] in set(own[train]) for row in valid])
    assert found.near == near_by_brute_force(table, valid, train, 200, 10).mean()
    after = leakage(table, split_rows(table, Units(), buffer=Distance(200, 10)), Distance(200, 10))
    assert after.same_granule == after.near == 0
    bare = leakage(table[["pp_file", "pp_type", "pp_idx"]], split, Distance(200, 10))
    assert (bare.same_granule, bare.near, bare.train) == (None, None, len(train))


def test_rows_of_unknown_place_time_or_granule_are_left_out():
    table = archive()
    table.loc[:9, "lat"], table.loc[10:14, "datetime"] = np.nan, pd.NaT
    split = split_rows(table, Units("granule"), buffer=Distance(100, 1))
    assert (split[:15] == NONE).all()
    assert (split_rows(table, Units("granule"))[:15] != NONE).all(), "a granule needs neither"
    assert (split_rows(table, Units("place"))[:10] == NONE).all()
    table.loc[20:24, "sensor"] = None
    assert (split_rows(table, Units("sensor"))[20:25] == NONE).all()


@pytest.mark.parametrize(
    ("change", "units", "buffer", "said"),
    [
        ({"granule": "one"}, Units("granule"), None, "expected at least two granules, got one.*by=place"),
        ({}, Units("time", days=1e6), None, "two blocks of 1e.06 days, got one"),
        ({}, Units("depth"), None, "by=depth: expected granule, time, place or a column of the table"),
        ({}, Units("senso"), None, "by=senso; did you mean sensor\\?: expected granule"),
        ({}, Units("sensor", valid=("AMSR",)), None, "valid=AMSR: expected values of the column sensor, such as LLC"),
        ({}, Units("sensor", valid=("LLC", "MODIS", "VIIRS")), None, "rows on both sides"),
        ({}, Units("granule", valid=("x",)), None, "valid=x: expected values of the column granule"),
        ({}, Units("time", valid=("x",)), None, "by=time is none"),
        ({}, Units("granule"), Distance(30_000, None), "a buffer of 30000 km leaves no row to train on"),
        ({"pp_idx": 7}, Units("granule"), None, "599 rows repeat the cutout of an earlier row"),
        ({"lat": 95.0}, Units("place"), None, "expected lat from -90 to 90 degrees, got 95"),
        ({"lat": "north"}, Units("place"), None, "expected numbers in the column lat"),
        ({"datetime": 5.0}, Units("time"), None, "expected dates"),
    ],
)
def test_what_cannot_be_divided_is_refused(change, units, buffer, said):
    with pytest.raises((OptionError, InputFileError), match=said):
        split_rows(archive().assign(**change), units, buffer=buffer)


@pytest.mark.parametrize("name", ["lat", "datetime", "pp_idx"])
def test_a_missing_column_is_named(name):
    with pytest.raises(InputFileError, match=name):
        split_rows(archive().drop(columns=name), Units("place" if name == "lat" else "time"))


def test_the_column_split_is_words():
    table = pd.DataFrame({"split": ["train", "Valid", None, "none"]})
    assert list(splits_of(table)) == [TRAIN, VALID, NONE, NONE]
    with pytest.raises(InputFileError, match="expected train, valid or none in the column split, got test"):
        splits_of(pd.DataFrame({"split": ["train", "test"]}))
    with pytest.raises(InputFileError, match="expected the column split"):
        splits_of(pd.DataFrame({"spilt": ["train"]}))
