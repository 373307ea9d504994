import numpy as np
import pandas as pd
import pytest

from nenya.defs import DT_INTERVALS, REGIONS
from nenya.errors import InputFileError, OptionError
from nenya.tables.strata import cells_of, check_strata, strata


def test_cells_are_those_of_healpix_in_ring_order():
    # as astropy-healpix 2.0.1 gives them
    lon, lat = np.array([0.0, 10, 200, -70, 359.9, 50]), np.array([90.0, 5, -89, 41.8, -41.9, 3])
    assert cells_of(lon, lat, 4).tolist() == [0, 88, 190, 36, 167, 90]
    assert cells_of(lon + 360, lat, 4).tolist() == cells_of(lon - 720, lat, 4).tolist() == [0, 88, 190, 36, 167, 90]
    assert (
        cells_of(np.array([-1e-20, 360.0]), np.array([5.0, 5.0]), 4).tolist()
        == cells_of(*np.array([[0.0], [5]]), 4).tolist() * 2
    )
    bad = np.array([np.nan, 0, 0, np.inf, 0]), np.array([0, np.nan, 95, 0, -np.inf])
    assert cells_of(*bad, 4).tolist() == [-1] * 5
    assert cells_of(np.empty(0), np.empty(0), 4).shape == (0,)


@pytest.mark.parametrize("side", [1, 2, 4, 16])
def test_cells_are_of_equal_area_and_hold_their_centres(side):
    rng = np.random.default_rng(0)
    lon, lat = rng.uniform(-180, 180, 120_000), np.degrees(np.arcsin(rng.uniform(-1, 1, 120_000)))
    counts = np.bincount(cells_of(lon, lat, side), minlength=12 * side**2)
    assert len(counts) == 12 * side**2
    mean = 120_000 / len(counts)
    assert ((counts - mean) ** 2).sum() / mean < len(counts) + 5 * np.sqrt(2 * len(counts))
    found = list(strata(pd.DataFrame({"lon": lon, "lat": lat}), ["cell"], side))
    assert [one.name for one in found] == [str(number) for number in np.flatnonzero(counts)]
    centres = np.array([(one.lon, one.lat) for one in found])
    assert cells_of(*centres.T, side).tolist() == [int(one.name) for one in found]


def test_the_centres_of_the_largest_cells_are_known():
    """Gorski and others (2005), equations 4 and 8: sines of the latitude 2/3, 0 and -2/3, four cells a ring."""
    at = np.arange(12)
    lon = np.concatenate([np.arange(45, 360, 90), np.arange(0, 360, 90), np.arange(45, 360, 90)])
    lat = np.degrees(np.arcsin(np.repeat([2 / 3, 0, -2 / 3], 4)))
    found = list(strata(pd.DataFrame({"lon": lon, "lat": lat}), ["cell"], 1))
    assert [int(one.name) for one in found] == at.tolist()
    assert [(one.lon, one.lat) for one in found] == [
        (pytest.approx((a + 180) % 360 - 180), pytest.approx(b)) for a, b in zip(lon, lat, strict=True)
    ]


@pytest.fixture
def table() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "longitude": rng.uniform(0, 360, 500),
            "lat": rng.uniform(-90, 90, 500),
            "datetime": pd.Timestamp("2012-01-01") + pd.to_timedelta(rng.integers(0, 366, 500), unit="D"),
            "T90": rng.uniform(2, 6, 500),
            "T10": 1.5,
            "sensor": rng.choice(["VIIRS", "MODIS"], 500),
        }
    )


def test_strata_are_the_rows_of_their_definition(table):
    found = {one.label: one.rows for one in strata(table, ["region", "season", "DT", "cell", "sensor"], 1)}
    lon = (table["longitude"] + 180) % 360 - 180
    box = REGIONS["eqpacific"]
    inside = lon.between(*box.lon) & table["lat"].between(*box.lat)
    assert (found["region=eqpacific"] == inside).all() and "region=global" not in found
    assert (found["season=DJF"] == table["datetime"].dt.month.isin([12, 1, 2])).all()
    interval = DT_INTERVALS["DT2"]
    assert (found["DT=DT2"] == (table["T90"] - 1.5).between(interval.low, interval.high, inclusive="left")).all()
    assert (found["sensor=MODIS"] == (table["sensor"] == "MODIS")).all()
    cells = [rows for label, rows in found.items() if label.startswith("cell=")]
    assert (np.sum(cells, axis=0) == 1).all() and len(cells) == 12


@pytest.mark.parametrize(
    ("by", "drop", "error", "said"),
    [
        (["seasons"], [], OptionError, "did you mean season"),
        (["T90"], [], OptionError, "expected at most 60"),
        (["season", "season"], [], OptionError, "expected each name once"),
        (["cell"], ["lat"], InputFileError, "needs a column lat"),
        (["DT"], ["T90"], InputFileError, "needs a column DT"),
        (["season"], ["datetime"], InputFileError, "needs a column datetime"),
    ],
)
def test_strata_that_cannot_be_are_refused(table, by, drop, error, said):
    with pytest.raises(error, match=said):
        check_strata(table.drop(columns=drop), by)
