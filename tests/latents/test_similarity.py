"""Exact search by cosine, and conditions on rows."""

import h5py
import numpy as np
import pandas as pd
import pytest

from nenya.defs import DT_INTERVALS, REGIONS, SEASONS
from nenya.errors import InputFileError, OptionError
from nenya.latents import similarity
from nenya.latents.files import Latents
from nenya.latents.similarity import closest, direction
from nenya.tables.conditions import Conditions, rows_where


@pytest.fixture(scope="module")
def latents():
    """Rows of several lengths in clusters, with repeated, cloudy and empty ones."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((20, 24))[rng.integers(0, 20, 3000)] + 0.2 * rng.standard_normal((3000, 24))
    rows = (rows * rng.uniform(0.5, 2, (3000, 1))).astype(np.float32)
    rows[500:700] = rows[100]
    rows[1000:1010] = np.nan
    rows[1010, 3] = np.inf
    rows[1011] = 0
    return rows


def slow(latents, query, k, allowed=None):
    """All cosines in float64, rows of equal cosine by their number."""
    rows, query = latents.astype(np.float64), np.asarray(query, np.float64)
    query = query / np.linalg.norm(query)
    with np.errstate(invalid="ignore", divide="ignore"):
        near = (rows * query).sum(axis=1) / np.sqrt((rows * rows).sum(axis=1))
    near[~np.isfinite(near) | (False if allowed is None else ~allowed)] = -9
    order = np.lexsort((np.arange(len(rows)), -near))[:k]
    return order[near[order] > -9], near[order][near[order] > -9]


@pytest.mark.parametrize("settings", [{}, {"block_rows": 7, "threads": 1}, {"block_rows": 100, "threads": 3}])
def test_exact_is_brute_force_in_float64(latents, settings):
    queries = latents[[100, 3, 2999, 650]] + np.float32(0)
    found = closest(latents, queries, 12, **settings)
    for i, query in enumerate(queries):
        rows, near = slow(latents, query, 12)
        np.testing.assert_array_equal(found.rows[i], rows)
        np.testing.assert_allclose(found.cosine[i], near, rtol=0, atol=1e-15)
    assert list(found.rows[0]) == [100, *range(500, 511)]  # 201 equal rows: by their number


def test_files_are_searched_as_arrays_are(latents, tmp_path):
    with h5py.File(tmp_path / "a_latents.h5", "w") as file:
        file["train"], file["valid"] = latents[:1700], latents[1700:]
    with h5py.File(tmp_path / "b_latents.h5", "w") as file:
        file.create_dataset("valid", data=latents[:50], chunks=(7, 24), compression="gzip")
    files = Latents([tmp_path / "a_latents.h5", tmp_path / "b_latents.h5"])
    both, wanted = closest(files, latents[:5], 30), closest(np.concatenate([latents, latents[:50]]), latents[:5], 30)
    np.testing.assert_array_equal(both.rows, wanted.rows)
    np.testing.assert_array_equal(both.cosine, wanted.cosine)
    files.release()
    np.testing.assert_array_equal(closest(files, latents[:5], 30).rows, wanted.rows)


@pytest.mark.parametrize("share", [0.001, 0.05, 0.7])
def test_only_what_is_allowed_is_found(latents, share):
    allowed = np.random.default_rng(1).random(len(latents)) < share
    found = closest(latents, latents[7], 20, allowed=allowed)
    rows, near = slow(latents, latents[7], 20, allowed)
    np.testing.assert_array_equal(found.rows[0, : len(rows)], rows)
    np.testing.assert_allclose(found.cosine[0, : len(rows)], near, rtol=0, atol=1e-15)
    assert (found.rows[0, len(rows) :] == -1).all() and np.isnan(found.cosine[0, len(rows) :]).all()


def test_a_collapsed_model_is_searched_exactly(monkeypatch):
    """All latents lie within the rounding of float32: the first pass tells nothing apart."""
    rng = np.random.default_rng(2)
    rows = (np.ones((2000, 24)) + 1e-6 * rng.standard_normal((2000, 24))).astype(np.float32)
    careful = []
    kept = similarity._careful_pass
    monkeypatch.setattr(similarity, "_careful_pass", lambda *given: careful.append(1) or kept(*given))
    found = closest(rows, rows[3], 10, block_rows=50)
    np.testing.assert_array_equal(found.rows[0], slow(rows, rows[3], 10)[0])
    assert careful


def test_many_queries_at_once(latents):
    found = closest(latents, latents[:150], 3)
    assert found.rows.shape == (150, 3)
    np.testing.assert_array_equal(found.rows[140], closest(latents, latents[140], 3).rows[0])


def test_what_cannot_be_searched(latents):
    with pytest.raises(InputFileError, match="finite and not zero"):
        closest(latents, latents[1000])
    with pytest.raises(InputFileError, match="expected a query of 24 dimensions as in the latents, got 5"):
        closest(latents, np.ones(5))
    with pytest.raises(OptionError, match="k=0"):
        closest(latents, latents[0], 0)
    with pytest.raises(OptionError, match="no GPU"):
        closest(latents, latents[0], device="cuda")


def test_directions_of_examples():
    x, y = np.eye(2)
    np.testing.assert_allclose(direction(np.stack([3 * x, y])), np.array([1, 1]) / np.sqrt(2))
    np.testing.assert_allclose(direction(x, y[None]), np.array([1, -0.5]) / np.hypot(1, 0.5))
    with pytest.raises(InputFileError, match="cancel out"):
        direction(np.stack([x, -x]))
    with pytest.raises(InputFileError, match="example 2 of 2 has no latent"):
        direction(np.stack([x, x * np.nan]))


@pytest.fixture(scope="module")
def table():
    rng, n = np.random.default_rng(3), 4000
    dates = pd.Timestamp("2010-01-01") + pd.to_timedelta(rng.integers(0, 3 * 365 * 24, n), unit="h")
    table = pd.DataFrame(
        {
            "lat": rng.uniform(-90, 90, n),
            "lon": np.where(rng.random(n) < 0.5, rng.uniform(-180, 180, n), rng.uniform(0, 360, n)),
            "datetime": dates,
            "clear_fraction": rng.uniform(0.9, 1, n),
            "DT": rng.exponential(1, n),
            "sensor": rng.choice(["MODIS", "O'VIIRS"], n),
            "UID": rng.integers(0, 2**60, n),
            "row": rng.integers(0, 2000, n),
        }
    )
    table.loc[::97, ["lon", "DT"]] = np.nan
    table.loc[::89, "datetime"] = pd.NaT
    return table


def east(table):
    return table["lon"] % 360


CASES = {
    "region": (Conditions(region=["gulfstream"]), lambda t: t.lat.between(40, 50) & east(t).between(290, 320)),
    "two regions": (
        Conditions(region=["med", "eqindian"]),
        lambda t: (t.lat.between(30, 45) & east(t).between(0, 20)) | (t.lat.between(-5, 5) & east(t).between(60, 90)),
    ),
    "north": (Conditions(region=["north"]), lambda t: t.lat.between(0, 90) & t.lon.notna()),
    "dateline": (Conditions(lon=[170, -165]), lambda t: east(t).between(170, 195)),
    "dateline by 360": (Conditions(lon=[170, 195], lat=[-10, 10]),
                        lambda t: east(t).between(170, 195) & t.lat.between(-10, 10)),
    "all around": (Conditions(lon=[0, 360]), lambda t: t.lon.notna()),
    "dates": (Conditions(dates=["2010-03-05", "2011-02-01"]),
              lambda t: (t.datetime >= "2010-03-05") & (t.datetime < "2011-02-02")),
    "moments": (Conditions(dates=["2010-03-05T06:00", "2010-03-09T12:00"]),
                lambda t: t.datetime.between("2010-03-05 06:00", "2010-03-09 12:00")),
    "seasons": (Conditions(season=["DJF", "JJA"]), lambda t: t.datetime.dt.month.isin([12, 1, 2, 6, 7, 8])),
    "DT": (Conditions(DT="DT1"), lambda t: (t.DT >= 0.5) & (t.DT < 1.0)),
    "DT and above": (Conditions(DT="DT5"), lambda t: t.DT >= 4),
    "DT range": (Conditions(DT=[0.2, 0.4]), lambda t: t.DT.between(0.2, 0.4)),
    "clear": (Conditions(clear=[0.95, 1]), lambda t: t.clear_fraction.between(0.95, 1)),
    "sensor": (Conditions(sensor=["O'VIIRS"]), lambda t: t.sensor == "O'VIIRS"),
    "own": (Conditions(where="row < 100 or lat > 80", season=["SON"]),
            lambda t: ((t.row < 100) | (t.lat > 80)) & t.datetime.dt.month.isin([9, 10, 11])),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_conditions_are_those_of_pandas(table, name):
    conditions, wanted = CASES[name]
    found = rows_where(table, conditions.sql(list(table.columns)))
    np.testing.assert_array_equal(found, wanted(table).to_numpy())
    assert found.any()


def test_every_region_and_interval_is_one(table):
    for name, region in REGIONS.items():
        found = rows_where(table, Conditions(region=[name]).sql(list(table.columns)))
        west, last = region.lon
        inside = table.lat.between(*region.lat) & table.lon.notna()
        if last - west < 360:
            inside &= (east(table) - west) % 360 <= last - west
        np.testing.assert_array_equal(found, inside.to_numpy(), err_msg=name)
    for name, interval in DT_INTERVALS.items():
        sql = Conditions(DT=name).sql(list(table.columns))
        inside = [value in interval for value in table.DT] if sql else np.ones(len(table), bool)
        np.testing.assert_array_equal(rows_where(table, sql or "true"), inside, err_msg=name)
    assert sorted(month for months in SEASONS.values() for month in months) == list(range(1, 13))


@pytest.mark.parametrize(
    ("conditions", "said"),
    [
        (Conditions(region=["med' OR '1'='1"]), "unknown region; possible: coastalcali"),
        (Conditions(season=["winter"]), "unknown season; possible: DJF"),
        (Conditions(DT="DT3"), "unknown DT"),
        (Conditions(DT=[2, 1]), "expected the smaller number first"),
        (Conditions(lon=[1, float("nan")]), "expected two numbers"),
        (Conditions(dates=["soon", "later"]), "got soon"),
        (Conditions(dates=["2012-01-01", "2012-06-31"]), "got 2012-06-31"),
        (Conditions(dates="2012-01-01"), "expected two dates"),
        (Conditions(where="datetime between '2012-01-01' and '2012-02-30'"), "got 2012-02-30"),
        (Conditions(dates=["2012-01-01", "2011-01-01"]), "expected the earlier date first"),
        (Conditions(where="lat > 1) OR (1 = 1"), "one condition"),
        (Conditions(where="lat > 1; DROP TABLE rows"), "one condition"),
        (Conditions(where="(lat > 1"), "not closed"),
        (Conditions(lat=[-100, 10]), "lat=.-100,10.: expected two numbers from -90 to 90 degrees north"),
        (Conditions(lon=[-400, 10]), "from -360 to 360 degrees east"),
        (Conditions(lon=[-180, 190]), "at most 360 degrees"),
        (Conditions(clear=[0.5, 95]), "clear=.0.5,95.: expected two numbers from 0 to 1"),
    ],
)
def test_conditions_that_are_none(table, conditions, said):
    with pytest.raises(OptionError, match=said):
        conditions.sql(list(table.columns))


def test_sql_that_is_wrong_gives_one_line(table):
    with pytest.raises(OptionError, match="column DT or lat, which does not exist") as caught:
        Conditions(DT="DT1", lat=[0, 1]).sql(["lon"])
    bare = ["pp_file", "pp_type", "pp_idx"]
    with pytest.raises(OptionError, match=r"column DT,.*no table.*table="):
        Conditions(DT="DT1").sql(bare)
    with pytest.raises(OptionError, match=r"have no table.*table="):
        rows_where(table[[]].assign(**dict.fromkeys(bare, 1)), "DT > 1")
    with pytest.raises(OptionError, match=r"possible: coastalcali.*where=.region = 'agulhas'"):
        Conditions(region=["agulhas"]).sql([*bare, "region"])
    for bad in ("nonsense > 1", "lat >> ", "lat = 'abc'", "lat"):
        with pytest.raises(
            OptionError, match=r"column nonsense does not exist: where=.*the columns are|expected SQL such as"
        ) as caught:
            rows_where(table, Conditions(where=bad).sql(list(table.columns)))
        assert "\n" not in str(caught.value) and ".rs" not in str(caught.value)
    assert Conditions().sql([]) is None
