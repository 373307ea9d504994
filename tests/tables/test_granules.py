"""A granule is one time of one file, in new tables and in old ones."""

import numpy as np
import pandas as pd
import pytest

from nenya.tables.granules import granule_name, granules


def same(table):
    """Return which rows share a granule with which, (N, N)."""
    codes = granules(table)
    return (codes[:, None] == codes) & (codes >= 0)


def model(months=54, cutouts=4):
    """A table of one file with many times, at the same positions."""
    times = np.repeat(pd.date_range("2010-01-16", periods=months, freq="MS"), cutouts)
    place = np.tile(np.arange(cutouts), months)
    return pd.DataFrame({"filename": "model.nc", "datetime": times, "row": place, "col": 0, "face": -1})


def test_each_time_of_a_file_is_a_granule_of_its_own():
    table = model()
    assert len(set(granules(table))) == 54
    assert (same(table) == (table.datetime.to_numpy()[:, None] == table.datetime.to_numpy())).all()
    some = table.sample(frac=0.7, random_state=1)  # neither order nor number matters
    assert (same(some) == (some.datetime.to_numpy()[:, None] == some.datetime.to_numpy())).all()


def test_short_time_steps_are_told_apart_by_positions():
    table = model(6).assign(datetime=lambda t: np.repeat(pd.date_range("2010-01-01", periods=6, freq="5min"), 4))
    assert len(set(granules(table))) == 6
    assert len(set(granules(table.drop(columns=["row", "col"])))) == 1, "without positions this may be one swath"


def test_a_swath_whose_pixels_have_times_of_their_own_is_one_granule():
    seconds = pd.to_timedelta(np.linspace(0, 300, 40), unit="s")
    swath = pd.DataFrame({"filename": "l2p.nc", "datetime": pd.Timestamp("2010-01-01") + seconds})
    swath = swath.assign(row=np.arange(40) * 16, col=np.arange(40) % 3)
    other = swath.assign(filename="next.nc")
    codes = granules(pd.concat([swath, other]))
    assert len(set(codes[:40])) == len(set(codes[40:])) == 1 and codes[0] != codes[40]


def test_the_column_counts_where_it_is_and_file_and_time_elsewhere():
    table = model(3, 2)
    table["granule"] = ["a", "a", "b", "b", None, None]
    codes = granules(table)
    assert codes[0] == codes[1] != codes[2] == codes[3] and codes[4] == codes[5] and len(set(codes)) == 3
    table["granule"] = ["a", "b", "a", "b", "a", "b"]
    assert len(set(granules(table))) == 2


def test_unknown_granules():
    table = pd.DataFrame({"filename": ["a", None, None, "a"], "datetime": ["2010-01-01", "2010-01-01", None, "x"]})
    codes = granules(table)
    assert codes[1] == codes[2] == -1 and codes[0] >= 0 and codes[3] >= 0
    assert list(granules(table[["filename"]])) == [0, -1, -1, 0]
    dates = granules(table[["datetime"]])
    assert dates[0] == dates[1] >= 0 and dates[2] == dates[3] == -1
    assert granules(pd.DataFrame({"lat": [1.0]})) is None
    assert len(granules(table.iloc[:0])) == 0


@pytest.mark.parametrize("kind", [str, "category"])
def test_any_type_of_column(kind):
    table = model(3).assign(filename=lambda t: t.filename.astype(kind), datetime=lambda t: t.datetime.astype(str))
    assert len(set(granules(table))) == 3


def test_the_name_holds_file_and_time():
    assert granule_name("a.nc", np.datetime64("2010-01-02T03:04:05.6")) == "a.nc 2010-01-02T03:04:05"
