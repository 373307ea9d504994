"""Typed conditions: the same rows as pandas and as the database finds, whatever the spelling; bounded; never code."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from nenya.defs import REGIONS
from nenya.errors import OptionError
from nenya.portal.columns import Columns, compact
from nenya.portal.question import ColumnRows
from nenya.tables.conditions import Conditions, rows_where
from nenya.tables.question import MOST_LETTERS, rows_asked

ROWS = 3000


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(11)
    stamps = np.datetime64("2010-01-01T00:00") + rng.integers(0, 4 * 365 * 24, ROWS).astype("timedelta64[h]")
    frame = pd.DataFrame(
        {
            "lat": rng.uniform(-80, 80, ROWS),
            "lon": rng.uniform(-180, 180, ROWS),
            "datetime": stamps.astype("datetime64[ns]"),
            "DT": rng.gamma(2, 0.8, ROWS),
            "clear_fraction": rng.uniform(0.5, 1, ROWS),
            "T90": rng.normal(20, 3, ROWS),
            "T10": rng.normal(17, 3, ROWS),
            "cluster": rng.integers(0, 5, ROWS),
            "UID": rng.integers(2**60, 2**61, ROWS),
            "region": rng.choice(["north_pacific", "it's", "a_b"], ROWS),
        }
    )
    frame.loc[:40, "lat"] = frame.loc[:40, "lon"] = -55.0
    frame.loc[:40, "lat"] = 45.0  # so that the Gulf Stream has rows
    frame.loc[50:90, "DT"] = np.nan
    return frame


@pytest.fixture(scope="module")
def rows(table):
    return ColumnRows(Columns(compact(pa.Table.from_pandas(table, preserve_index=False))))


def box(table, name):
    region = REGIONS[name]
    return table.lat.between(*region.lat) & table.lon.between(*region.lon)


def winter(table):
    month = table.datetime.dt.month
    return ((table.lat >= 0) & month.isin((12, 1, 2))) | ((table.lat < 0) & month.isin((6, 7, 8)))


ASKED = {
    "Gulf Stream, winter, DT > 2": lambda t: box(t, "gulfstream") & winter(t) & (t.DT > 2),
    "gulfstream AND season = DJF": lambda t: box(t, "gulfstream") & t.datetime.dt.month.isin((12, 1, 2)),
    "region=gulfstream or region = 'med'": lambda t: box(t, "gulfstream") | box(t, "med"),
    "region in (gulf stream, med)": lambda t: box(t, "gulfstream") | box(t, "med"),
    "season=[DJF,JJA] and not region=eqpacific": lambda t: (
        t.datetime.dt.month.isin((12, 1, 2, 6, 7, 8)) & ~box(t, "eqpacific")
    ),
    "Equatorial Pacific union Bay of Bengal": lambda t: box(t, "eqpacific") | box(t, "baybengal"),
    "lat > 30 except Mediterranean": lambda t: (t.lat > 30) & ~box(t, "med"),
    "lat < -30 but not (summer)": lambda t: (t.lat < -30) & ~t.datetime.dt.month.isin((12, 1, 2)),
    "region = 'north_pacific'": lambda t: t.region == "north_pacific",
    "region != 'it''s'": lambda t: t.region != "it's",
    "North Pacific, month 12 to 2": lambda t: (t.region == "north_pacific") & t.datetime.dt.month.isin((12, 1, 2)),
    "region like 'north%'": lambda t: t.region == "north_pacific",
    "month=[12,2]": lambda t: t.datetime.dt.month.isin((12, 1, 2)),
    "month between 11 and 1": lambda t: t.datetime.dt.month.isin((11, 12, 1)),
    "month=[3,5]": lambda t: t.datetime.dt.month.isin((3, 4, 5)),
    "month in (1, 7)": lambda t: t.datetime.dt.month.isin((1, 7)),
    "January or aug": lambda t: t.datetime.dt.month.isin((1, 8)),
    "dates=[2012-01-01,2012-12-31]": lambda t: t.datetime.dt.year == 2012,
    "dates=[2011,2012]": lambda t: t.datetime.dt.year.isin((2011, 2012)),
    "2012-01-01 to 2012-01-31": lambda t: (t.datetime.dt.year == 2012) & (t.datetime.dt.month == 1),
    "datetime >= '2012-03-01' and datetime < 2012-04-01": lambda t: (
        (t.datetime >= "2012-03-01") & (t.datetime < "2012-04-01")
    ),
    "datetime between '2012-03-01' and '2012-04-01 06:00'": lambda t: t.datetime.between(
        "2012-03-01", "2012-04-01T06:00"
    ),
    "date_part('month', datetime) = 3": lambda t: t.datetime.dt.month == 3,
    "year = 2011": lambda t: t.datetime.dt.year == 2011,
    "lon=[170,-170]": lambda t: (t.lon >= 170) | (t.lon <= -170),
    "lon=[300,340], lat 30 to 50": lambda t: t.lon.between(-60, -20) & t.lat.between(30, 50),
    "lat -30 to -10.5": lambda t: t.lat.between(-30, -10.5),
    "DT=[1,2]": lambda t: t.DT.between(1, 2),
    "DT=DT1": lambda t: (t.DT >= 0.5) & (t.DT < 1),
    "not DT > 2": lambda t: t.DT <= 2,  # an unknown DT is neither
    "DT is null": lambda t: t.DT.isna(),
    "T90 - T10 > 2 and abs(lat) > 30": lambda t: (t.T90 - t.T10 > 2) & (t.lat.abs() > 30),
    "(T90 - T10) / 2 >= 1.5": lambda t: (t.T90 - t.T10) / 2 >= 1.5,
    "clear=[0.9,1]": lambda t: t.clear_fraction >= 0.9,
    "CLUSTER in (1,3) and `clear_fraction`<.8": lambda t: t.cluster.isin((1, 3)) & (t.clear_fraction < 0.8),
    '"cluster" <> 2': lambda t: t.cluster != 2,
    "((lat > 10))": lambda t: t.lat > 10,
}


@pytest.mark.parametrize("text", ASKED)
def test_a_condition_finds_the_rows_that_it_means(rows, table, text):
    wanted = ASKED[text](table).to_numpy()
    found = rows_asked(text, rows)
    assert 0 < wanted.sum() < ROWS
    assert np.array_equal(found, wanted), (found.sum(), wanted.sum())


def test_a_long_integer_is_compared_exactly(rows, table):
    assert np.flatnonzero(rows_asked(f"UID = {table.UID[7]}", rows)).tolist() == [7]


@pytest.mark.parametrize(
    "sql",
    [
        "lat > 30 AND DT > 1",
        "NOT (DT > 1 OR lat < 0)",
        "region IN ('a_b', 'it''s') AND cluster BETWEEN 1 AND 3",
        "datetime < '2011-06-01' OR abs(lon) < 20",
        "region LIKE '%\\_b' AND NOT cluster = 2",
        "date_part('month', datetime) IN (12, 1, 2) AND DT * 2 - 1 > T90 / 10",
    ],
)
def test_conditions_of_a_search_mean_the_same(rows, table, sql):
    pytest.importorskip("lancedb")
    assert np.array_equal(rows_asked(sql, rows), rows_where(table, sql))


def test_names_of_a_search_mean_the_same(rows, table):
    pytest.importorskip("lancedb")
    asked = Conditions(region=["gulfstream", "med"], season=["DJF"], lon=[170, -20], DT=[0.1, 9], clear=[0.6, 1])
    text = "region=[gulfstream,med] and season=DJF and lon=[170,-20] and DT=[0.1,9] and clear=[0.6,1]"
    wanted = rows_where(table, asked.sql(list(table.columns)))
    assert wanted.any() and np.array_equal(rows_asked(text, rows), wanted)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "a value is missing"),
        ("lat", "lat alone is not a condition"),
        ("lat >", "missing at the end"),
        ("lat > 30 DT < 2", "DT is unexpected"),
        ("latt > 3", "did you mean lat"),
        ("golf stream", "golf is no column, region, season or month"),
        ("season = monsoon", "monsoon is no season; possible: DJF"),
        ("region = 'atlantis'", "atlantis is no region; possible: coastalcali"),
        ("DT = [3,1]", "the range from 3 to 1 is empty"),
        ("dates=[2013-01-01,2012-01-01]", "the earlier date first"),
        ("datetime > '2012-02-31'", "expected a date"),
        ("lat > 'x'", "cannot be compared"),
        ("region > 3", "region needs = or IN"),
        ("(lat > 3", "\\) is missing at the end"),
        ("lat > 3; DROP TABLE rows", "cannot be read|unexpected|no column"),
        ("lpad('x', 1000000000) = 'y'", "the function lpad is not allowed"),
        ("__import__('os').system('true')", "cannot be read|is not allowed"),
        ("lat > 3 -- comment", "cannot be read|no column|unexpected|is missing"),
        ("lat > (SELECT 1)", "no column|unexpected"),
        ("'a' = 'a'", "compared with a 'string' only|cannot"),
        ("lat > 1 /* x */", "unexpected|cannot|missing"),
        ("lat > \x00", "cannot be read"),
        ("(" * 40 + "lat > 1" + ")" * 40, "parentheses within each other"),
        ("abs(" * 40 + "lat" + ")" * 40 + " > 1", "parentheses within each other"),
        ("lat > 1 and " * 200 + "lat > 1", "at most 1000 characters"),
        ("1<1," * 240, "at most 300 words"),
        ("x" * (MOST_LETTERS + 1), "at most 1000 characters"),
    ],
)
def test_what_is_no_condition_is_one_line(rows, text, said):
    with pytest.raises(OptionError, match=said) as found:
        rows_asked(text, rows)
    assert "\n" not in str(found.value) and len(str(found.value)) < 700


def test_what_a_table_lacks_is_said():
    bare = ColumnRows(Columns(compact(pa.table({"DT": [1.0, 2.0, None]}))))
    for text, said in (("winter", "month or lat"), ("gulf stream", "lat or lon"), ("DJF", "a column month")):
        with pytest.raises(OptionError, match=said):
            rows_asked(text, bare)
    nested = ColumnRows(Columns(compact(pa.table({"a": [[1], [2]], "when": pa.array([1, 2], pa.timestamp("s"))}))))
    for text in ("a = 1", "a is null", "when > '2010-01-01'", "a in ('x')"):
        with pytest.raises(OptionError, match="neither numbers nor dates nor strings"):
            rows_asked(text, nested)
    assert rows_asked("DT < 2", bare).tolist() == [True, False, False]


def test_random_texts_are_conditions_or_one_line(rows):
    rng = np.random.default_rng(2)
    words = [*"()[],=<>-+*/'", "and", "or", "not", "in", "between", "to", "lat", "DT", "region", "12", "2012-01-01"]
    words += ["DJF", "is", "null", "like", "'x'", "abs", "datetime", "gulf", "stream", "0.5", "season", "date_part"]
    good = 0
    for _ in range(3000):
        text = " ".join(rng.choice(words, rng.integers(1, 9)))
        try:
            good += rows_asked(text, rows).shape == (ROWS,)
        except OptionError as error:
            assert "\n" not in str(error)
    assert good > 0
