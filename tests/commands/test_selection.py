"""Conditions on tables, grids and coastlines, and the statistics of a selection against a slow count."""

import re
import time

import numpy as np
import pandas as pd
import pytest
from matplotlib.path import Path as Ring
from PIL import Image

from nenya.commands.statistics import rows_of
from nenya.defs import REGIONS, SEASONS
from nenya.errors import InputFileError, OptionError
from nenya.io import read_table
from nenya.plotting.statistics import draw_statistics
from nenya.tables.comparison import compare, trend
from nenya.tables.conditions import rows_where
from nenya.tables.grids import Grid, coastlines, wrap_longitude
from nenya.tables.statistics import BINS, selection_statistics

N = 4000


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(3)
    seconds = rng.integers(1_100_000_000, 1_400_000_000, N).astype("datetime64[s]").astype("datetime64[ns]")
    found = pd.DataFrame(
        {
            "lon": rng.uniform(-180, 180, N),
            "lat": rng.uniform(-60, 60, N),
            "datetime": seconds,
            "DT": rng.exponential(1.5, N),
            "alpha": rng.normal(-3, 0.4, N),
            "US0": rng.normal(0, 2, N),
            "US1": rng.normal(1, 2, N),
            "cluster": rng.integers(-1, 5, N),
            "region": rng.choice(["north", "o'brien", "south"], N),
            "good": rng.random(N) < 0.5,
            "UID": np.arange(N) + 2**60,
            "pp_file": rng.choice(["s3://b/x_preproc.h5", "y_preproc.h5"], N),
            "pp_type": rng.integers(0, 2, N),
            "pp_idx": np.arange(N),
        }
    )
    found.loc[::50, ["lon", "DT"]] = np.nan
    found.loc[::70, "datetime"] = pd.NaT
    return found


# Conditions


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("DT > 2 and lat < 0", lambda t: (t.DT > 2) & (t.lat < 0)),
        ("DT > 2 or not lat < 0 and good", lambda t: (t.DT > 2) | (~(t.lat < 0) & t.good)),
        ("cluster IN (1, 3)", lambda t: t.cluster.isin([1, 3])),
        ("region = 'o''brien'", lambda t: t.region == "o'brien"),
        ("US0 > US1", lambda t: t.US0 > t.US1),
        ("DT IS NULL", lambda t: t.DT.isna()),
        (f"UID = {2**60 + 17}", lambda t: t.UID == 2**60 + 17),
        ("datetime >= '2010-01-01'", lambda t: t.datetime >= pd.Timestamp("2010-01-01")),
        ("datetime < timestamp '2010-01-01T12:00:00'", lambda t: t.datetime < pd.Timestamp("2010-01-01T12:00")),
        (
            "lat > 0 AND datetime BETWEEN '2010-01-01' AND '2011-01-01'",
            lambda t: (t.lat > 0) & t.datetime.between("2010-01-01", "2011-01-01"),
        ),
    ],
)
def test_conditions_equal_pandas(table, condition, expected):
    found = rows_where(table, condition)
    assert found.dtype == bool
    np.testing.assert_array_equal(found, expected(table).to_numpy(bool))
    assert 0 < found.sum() < N


def test_conditions_on_other_kinds_of_columns(table):
    other = table.assign(
        region=table.region.astype("category"),
        datetime=table.datetime.dt.tz_localize("UTC").dt.tz_convert("Asia/Tokyo"),
        cluster=table.cluster.astype("Int64").mask(table.cluster == 2),
    )
    for condition in ("region = 'north'", "region IN ('north', 'south')", "datetime < '2010-01-01'"):
        np.testing.assert_array_equal(rows_where(other, condition), rows_where(table, condition))
    np.testing.assert_array_equal(rows_where(other, "cluster >= 1"), (table.cluster >= 1) & (table.cluster != 2))


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        (
            "datetim > 2",
            "column datetim does not exist: where=datetim > 2; did you mean datetime?; the columns are lon, ",
        ),
        ('region = "north"', "strings need 'single quotes'"),
        ("DT >", "at the end an expression is missing: where=DT >; expected SQL such as"),
        ("DT > 2 andd lat < 0", "andd is unexpected"),  # not taken for the name of a condition DT > 2
        ("DT > 2; lat < 0", "; is unexpected"),
        ("__import__('os')", "function __import__ is not allowed"),
        ("lat.__class__ = 1", "expected SQL such as"),
        ("DT > 'a'", "the string 'a' is compared with a numeric column"),
        ("DT", "it is not a condition"),
    ],
)
def test_what_is_no_condition_is_refused_in_one_line(table, condition, said):
    with pytest.raises(OptionError, match=re.escape(said)) as caught:
        rows_where(table, condition)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 250
    assert ("columns are" in str(caught.value)) == ("does not exist" in str(caught.value))


# Grids and coastlines


def test_counts_sum_to_the_points_and_means_equal_pandas():
    rng = np.random.default_rng(0)
    x, y, v = rng.uniform(-2, 2, (3, 5000))
    x[:4], v[10] = [-2, 2, np.nan, 3], np.nan
    grid = Grid((-2, 2), (-2, 2), 7, 5)
    assert grid.counts(x, y).sum() == len(x) - 2
    frame = pd.DataFrame({"c": np.minimum((x + 2) / 4 * 7, 6) // 1, "r": np.minimum((y + 2) / 4 * 5, 4) // 1, "v": v})
    frame = frame[(x >= -2) & (x <= 2)].dropna()
    expected = frame.groupby(["r", "c"]).v.agg(["mean", "size"])
    wanted = np.full((5, 7), np.nan)
    for (row, column), (mean, size) in expected.iterrows():
        if size >= 140:
            wanted[int(row), int(column)] = mean
    assert 0 < np.isnan(wanted).sum() < 35
    np.testing.assert_allclose(grid.means(x, y, v, least=140), wanted)


def test_longitudes_wrap():
    np.testing.assert_allclose(wrap_longitude(np.array([0, 190, 359, -181, 180])), [0, -170, -1, 179, -180])


def on_land(lon, lat):
    """Return which points lie within an odd number of rings."""
    points = np.stack([lon, lat], axis=1)
    inside = np.zeros(len(points), bool)
    for ring in coastlines():
        inside ^= Ring(ring.astype(float)).contains_points(points)
    return inside


def test_land_and_sea_lie_where_they_are():
    land = {
        "Chad": (18, 15),
        "Kansas": (-98, 38),
        "Alice Springs": (134, -24),
        "pole": (0, -89),
        "Chukotka": (-176, 67),
    }
    sea = {"Atlantic": (-30, 0), "Pacific": (-150, 30), "Caspian": (51, 42), "date line": (179.9, 0), "north": (0, 89)}
    assert on_land(*np.array(list(land.values())).T.astype(float)).tolist() == [True] * 5
    assert on_land(*np.array(list(sea.values())).T.astype(float)).tolist() == [False] * 5
    rings = coastlines()
    points = np.concatenate(rings)
    assert len(rings) > 100 and (np.abs(points) <= [180, 90]).all()
    assert all((ring[0] == ring[-1]).all() and len(ring) >= 4 for ring in rings)
    rng = np.random.default_rng(1)
    lon, lat = rng.uniform(-180, 180, 20000), np.degrees(np.arcsin(rng.uniform(-1, 1, 20000)))
    assert on_land(lon, lat).mean() == pytest.approx(0.29, abs=0.01)  # of the Earth's surface


# Statistics


def test_regions_equal_a_slow_count(table):
    chosen = rows_where(table, "DT > 2")
    found = selection_statistics(table, chosen).regions.set_index("name")
    known = table[table.lon.notna()]
    for name, region in REGIONS.items():
        inside = known.lon.ge(region.lon[0]) & known.lon.lt(region.lon[1])
        inside &= known.lat.ge(region.lat[0]) & known.lat.lt(region.lat[1])
        assert found.loc[name, "whole"] == inside.sum()
        assert found.loc[name, "selected"] == (inside & chosen[known.index]).sum()
    assert found.loc["global", "whole"] == len(known)


def test_longitudes_of_either_convention_are_one_place(table):
    other = table.assign(lon=table.lon % 360)
    chosen = np.arange(0, N, 3)
    one, two = (selection_statistics(t, chosen) for t in (table, other))
    pd.testing.assert_frame_equal(one.regions, two.regions)
    np.testing.assert_array_equal(one.map_whole, two.map_whole)


def test_the_whole_table_has_ratio_one(table):
    found = selection_statistics(table, np.ones(N, bool)).table()
    counted = found[found["whole"] > 0]
    assert (counted["selected"] == counted["whole"]).all()
    np.testing.assert_allclose(counted["ratio"], 1)
    assert (counted["ratio_low"] <= 1).all() and (counted["ratio_high"] >= 1 - 1e-12).all()
    assert set(found["statistic"]) == {"region", "season", "month", "year", "DT", "alpha", "map"}


def test_counts_sum_to_what_is_known(table):
    chosen = rows_where(table, "cluster = 1")
    found = selection_statistics(table, chosen, degrees=5.0)
    dated, placed = table.datetime.notna(), table.lon.notna()
    for part in (found.seasons, found.months, found.years):
        assert part["selected"].sum() == (dated & chosen).sum() and part["whole"].sum() == dated.sum()
    assert found.map_whole.shape == (36, 72)
    assert found.map_whole.sum() == placed.sum() and found.map_selected.sum() == (placed & chosen).sum()
    dt = found.histograms["DT"]
    assert len(dt) == BINS and dt["whole"].sum() == table.DT.notna().sum()
    assert dt["share_selected"].sum() == pytest.approx(1)
    edges = [*dt["low"], dt["high"].iloc[-1]]  # no bin holds what lies outside its edges
    assert (
        edges[0] == table.DT.min() and edges[-1] == table.DT.max() and edges[-1] - edges[-2] > 3 * (edges[2] - edges[1])
    )
    for part, rows in (("whole", table), ("selected", table[chosen])):
        assert dt[part].tolist() == np.histogram(rows.DT.dropna(), edges)[0].tolist()
    month = table.datetime[dated & chosen].dt.month.value_counts()
    assert found.months.set_index("name")["selected"].to_dict() == {str(m): month.get(m, 0) for m in range(1, 13)}


def test_seasons_and_years_at_their_borders():
    dates = ["2009-12-31T23:59:59", "2010-01-01", "2010-02-28T23:59", "2010-03-01", "2012-02-29", "2012-12-01", None]
    table = pd.DataFrame({"datetime": dates})
    found = selection_statistics(table, np.ones(7, bool))
    assert found.seasons["whole"].tolist() == [5, 1, 0, 0]
    assert found.years.set_index("name")["whole"].to_dict() == {"2009": 1, "2010": 3, "2011": 0, "2012": 2}
    old = selection_statistics(pd.DataFrame({"datetime": pd.to_datetime(["1969-12-31", "1970-01-01"])}), [0])
    assert old.years["whole"].tolist() == [1, 1] and old.years["selected"].tolist() == [1, 0]
    assert sum(SEASONS.values(), ()) == (12, *range(1, 12))


def test_the_interval_holds_the_true_ratio_as_often_as_it_says():
    rng = np.random.default_rng(0)
    draws = rng.binomial(200, 0.07, 4000)
    found = compare(draws, np.full(4000, 140), 200, 1000)
    covers = (found["ratio_low"] <= 0.5) & (found["ratio_high"] >= 0.5)
    assert covers.mean() == pytest.approx(0.95, abs=0.02)


def test_tables_without_columns_and_selections_that_do_not_fit(table):
    bare = selection_statistics(table[["UID"]], [3, 5])
    assert bare.selected == 2 and bare.table().empty and not bare.histograms
    assert not selection_statistics(table, []).regions["selected"].any()
    from_ends = selection_statistics(pd.DataFrame({"T90": [3.0, 2], "T10": [1.0, 1]}), [0]).histograms["DT"]
    assert from_ends["selected"].tolist()[-1] == 1
    for chosen in ([N], [-1], np.ones(N - 1, bool), np.zeros(N), [[0]]):
        with pytest.raises(InputFileError, match=r"row numbers|shape|booleans|mask"):
            selection_statistics(table, chosen)
    with pytest.raises(InputFileError, match="numbers in the column lon"):
        selection_statistics(table.assign(lon="x"), [0])
    with pytest.raises(InputFileError, match="in the column datetime"):
        selection_statistics(table.assign(datetime=20100101), [0])


def test_rows_of_another_table(table):
    part = table.iloc[[7, 900, 33]]
    for columns in (["UID"], ["pp_file", "pp_type", "pp_idx"]):
        assert np.flatnonzero(rows_of(table, part[columns])).tolist() == [7, 33, 900]
    stems = part.assign(pp_file=part.pp_file.str.replace("s3://b/", "/elsewhere/"))
    assert rows_of(table, stems[["pp_file", "pp_type", "pp_idx"]]).sum() == 3
    with pytest.raises(InputFileError, match=r"expected the columns UID, or pp_file.*, got lat"):
        rows_of(table, part[["lat"]])


def test_the_command(table, tmp_path, nenya_cli):
    table.to_parquet(tmp_path / "t.parquet")
    where = "DT > 2 and region = 'o''brien'"
    code, said = nenya_cli("statistics", ["table=t.parquet", f"where={where}", "box=[-1,2,-1,4]", "out=s.csv"])
    assert code == 0, said
    chosen = (table.DT > 2) & (table.region == "o'brien") & table.US0.between(-1, 2) & table.US1.between(-1, 4)
    found = read_table(tmp_path / "s.csv")
    whole = found[(found.statistic == "region") & (found.name == "global")]
    assert whole["selected"].item() == (chosen & table.lon.notna()).sum()
    with Image.open(tmp_path / "s.png") as picture:
        assert min(picture.size) > 1500
    bare = table[["UID"]].assign(T10=1.0, T90=1 + table.DT)
    bare.to_parquet(tmp_path / "bare.parquet")
    code, said = nenya_cli("statistics", ["table=bare.parquet", "where=DT > 2", "out=bare.csv"])
    assert code == 0 and f"{(table.DT > 2).sum()} of {N} rows" in said
    assert "no column of lon and lat" in said and "no column of datetime" in said
    with Image.open(tmp_path / "bare.png") as small, Image.open(tmp_path / "s.png") as whole:
        assert small.size[1] < 0.5 * whole.size[1] and small.size[0] == whole.size[0]  # nothing but the histogram
    axes = draw_statistics(selection_statistics(bare, [0])).get_axes()
    assert [a.get_xlabel() for a in axes] == ["DT (K)"] and "outermost bins" in axes[0].get_title()
    for args, says in (
        (["table=t.parquet", "where=DT>2", "out=s.csv"], "clobber=true"),
        (["table=t.parquet", "where=DT>2", "out=s.xyz"], "expected a folder or a table (.parquet, .csv, .feather)"),
        (["table=t.parquet"], "expected a selection"),
        (["table=t.parquet", "where=DT > 1e9"], "select none of 4000"),
        (["table=t.parquet", "box=[1,0,0,1]"], "four numbers"),
        (["table=t.parquet", "where=open('x')"], "expected SQL"),
        (["where=DT>2"], "expected table="),
        (["table=bare.parquet", "box=[0,1,0,1]"], "no column US0 or US1"),
        (["table=bare.parquet", "cluster=1"], "nenya clusters writes it"),
    ):
        code, said = nenya_cli("statistics", args)
        assert code == 2 and says in said and len(said.splitlines()) == 1


def test_maps_show_counts_and_counts_over_effort(table, tmp_path, nenya_cli):
    chosen = (table.DT > 2).to_numpy()
    found = selection_statistics(table, chosen, degrees=10.0)
    figure = draw_statistics(found, least=3)
    counts, shares = [axes for axes in figure.get_axes() if axes.images]
    np.testing.assert_array_equal(counts.images[0].get_array().filled(0), found.map_selected)
    drawn = shares.images[0].get_array()
    np.testing.assert_array_equal(np.ma.getmaskarray(drawn), found.map_whole < 3)
    many = found.map_whole >= 3
    np.testing.assert_allclose(drawn.data[many], 100 * found.map_selected[many] / found.map_whole[many])
    assert shares.images[0].get_clim()[0] == 0
    said = [axes.get_xlabel() for axes in figure.get_axes()]
    assert "selected share of the cutouts in a cell (%), 3 or more" in said and "selected cutouts in a cell" in said
    table.to_parquet(tmp_path / "t.parquet")
    given = ["table=t.parquet", "where=DT > 2", "out=s.csv"]
    code, said = nenya_cli("statistics", [*given, "format=[pdf,svg]", "size=double", "dpi=72"])
    assert code == 0 and {path.suffix for path in tmp_path.glob("s.*")} == {".csv", ".pdf", ".svg"}
    code, said = nenya_cli("statistics", [*given, "font=Nosuch", "clobber=true"])
    assert code == 2 and "font=Nosuch" in said and len(said.splitlines()) == 1


@pytest.mark.slow
def test_five_million_rows_take_seconds():
    rng = np.random.default_rng(0)
    rows = 5_000_000
    seconds = rng.integers(10**9, 14 * 10**8, rows).astype("datetime64[s]").astype("datetime64[ns]")
    table = pd.DataFrame({name: rng.uniform(-80, 80, rows) for name in ("lon", "lat", "DT", "alpha")})
    table["datetime"] = seconds
    chosen = rng.random(rows) < 0.1
    start = time.process_time()
    found = selection_statistics(table, chosen)
    assert time.process_time() - start < 60  # of about 1
    assert found.map_selected.sum() == chosen.sum()


def test_a_trend_is_the_weighted_line_with_an_error_of_counting_or_scatter():
    rng = np.random.default_rng(4)
    whole = rng.integers(50, 5000, 12)
    years = pd.DataFrame({"name": [str(2000 + i) for i in range(12)], "whole": whole})
    exact = trend(years.assign(selected=whole * (0.2 + 0.01 * np.arange(12))))
    assert exact.slope == pytest.approx(0.01) and exact.years == 12
    chosen = rng.binomial(whole, 0.3)
    found = trend(years.assign(selected=chosen))
    x, y = np.arange(12.0), chosen / whole
    slope, cov = np.polyfit(x, y, 1, w=np.sqrt(whole), cov=True)
    assert found.slope == pytest.approx(slope[0])
    p = chosen.sum() / whole.sum()
    counting = np.sqrt(p * (1 - p) / (whole * (x - np.average(x, weights=whole)) ** 2).sum())
    assert found.error == pytest.approx(max(np.sqrt(cov[0, 0]), counting), rel=1e-6)
    assert trend(years.assign(selected=chosen)[:2]) is None
    spread = [trend(years.assign(selected=rng.binomial(whole, 0.3))) for _ in range(300)]
    pull = np.array([line.slope / line.error for line in spread])
    assert 0.7 < pull.std() < 1.1  # errors are those that slopes have
