"""Maps in projections: cells, land, coasts and points at the edges; and categories over maps and the UMAP."""

import itertools

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PolyCollection, QuadMesh
from matplotlib.path import Path

from nenya.errors import InputFileError, OptionError
from nenya.plotting import Style, map_categories, map_density, map_metric, umap_categories
from nenya.plotting.globe import Globe, coast_points, globe_for
from nenya.plotting.style import PROJECTIONS
from nenya.tables.categories import MOST, categories_of
from nenya.tables.grids import Grid

ROUND = [name for name in PROJECTIONS if name != "plain"]
CENTRES = (0.0, 180.0, -77.5)
DRY = {"Australia": (134, -25), "Chad": (18, 15), "Brazil": (-52, -10), "Chukotka": (-178, 66.8), "Siberia": (100, 60)}
WET = {"Pacific": (-150, 10), "Atlantic": (-30, 30), "Indian": (80, -20), "date line": (179.9, 30), "Caspian": (51, 42)}


def globe_of(projection, central=0.0):
    return Globe(projection, central, 0.0)


@pytest.mark.parametrize("central", [-77.5])
@pytest.mark.parametrize("projection", [name for name in ROUND if name != "robinson"])
def test_cells_of_equal_area_on_the_globe_have_equal_area_on_paper(projection, central):
    globe = globe_of(projection, central)
    grid = globe.grid(10.0)
    lon, lat = np.linspace(*grid.x, 8 * grid.columns + 1), np.linspace(*grid.y, 8 * grid.rows + 1)
    x, y = globe.place(*np.meshgrid(lon, lat))
    p, q = (
        np.stack([x[1:, 1:] - x[:-1, :-1], y[1:, 1:] - y[:-1, :-1]]),
        np.stack([x[1:, :-1] - x[:-1, 1:], y[1:, :-1] - y[:-1, 1:]]),
    )
    area = np.abs(p[0] * q[1] - p[1] * q[0]) / 2
    on_globe = np.diff(np.sin(np.radians(lat)))[:, None] * np.radians(np.diff(lon))
    bands = [cells.sum(axis=1).reshape(-1, 8).sum(axis=1) for cells in (area, on_globe)]  # of 10 degrees
    np.testing.assert_allclose(*bands, rtol=0.01)


@pytest.mark.parametrize(
    ("projection", "central"),
    [*zip(PROJECTIONS, itertools.cycle(CENTRES)), ("equal_earth", 0.0), ("plain", 180.0), ("south", 180.0)],
)
def test_land_is_land_and_coasts_do_not_cross_the_map(projection, central):
    figure = map_density(
        np.array([0.0, 0.0]),
        np.array([50.0, -50]),
        degrees=10.0,
        style=Style(projection=projection, central_longitude=central),
    )
    axes = figure.axes[0]
    globe = globe_for(projection, central, np.array([50.0, -50]))
    land, lakes = [c for c in axes.collections if isinstance(c, PolyCollection) and not isinstance(c, QuadMesh)]
    south, north = globe.latitudes

    def within(shapes, lon, lat):
        place = np.array(globe.place(globe.wrap(np.array([lon])), np.array([lat]))).T
        return sum(bool(Path(path.vertices).contains_points(place)[0]) for path in shapes.get_paths())

    for name, (lon, lat) in (DRY | WET).items():
        if south < lat < north:
            dry = within(land, lon, lat) - within(lakes, lon, lat)
            assert dry == (name in DRY), name
    coast = coast_points(globe)
    low, high = globe.on_paper(globe.frame()).min(axis=0), globe.on_paper(globe.frame()).max(axis=0)
    step = np.abs(np.diff(coast, axis=0)) / (high - low)
    assert np.nanmax(step) < 0.12 and np.isfinite(coast).all(axis=1).sum() > 600
    assert (coast[np.isfinite(coast).all(axis=1)] >= low - 1e-6 * (high - low)).all()


@pytest.mark.parametrize(
    ("projection", "central"), [("plain", 0.0), ("plain", -77.5), ("equal_earth", 180.0), ("hammer", 0.0)]
)
def test_points_at_the_date_line_and_the_poles_are_counted_once(projection, central):
    lon = np.array([180, -180, 179.999, -179.999, 360, 0, 540, 12, 13, 102.5, -77.5, np.nan])
    lat = np.array([0, 0, 0, 0, 5, 5, 0, 90, -90, 0, 0, 0.0])
    figure = map_density(lon, lat, degrees=10.0, style=Style(projection=projection, central_longitude=central))
    axes = figure.axes[0]
    drawn = axes.images[0] if axes.images else next(c for c in axes.collections if isinstance(c, QuadMesh))
    repeat = 1 if axes.images else np.prod(drawn.get_array().shape) / (18 * 36)
    assert np.ma.sum(drawn.get_array()) == 11 * repeat
    grid = globe_of(projection, central).grid(10.0)
    wrapped = globe_of(projection, central).wrap(lon)
    assert np.nanmin(wrapped) >= central - 180 and np.nanmax(wrapped) < central + 180
    assert (grid.cells(wrapped, lat) >= 0).sum() == 11


def test_a_polar_map_reaches_as_far_as_its_points_and_says_what_it_leaves_out(tmp_path, nenya_cli):
    assert globe_for("north", 0, np.array([34.0, 70, -80])).latitudes == (30, 90)
    assert globe_for("south", 0, np.array([34.0, -71, -80])).latitudes == (-90, -60)
    with pytest.raises(InputFileError, match="none of 2 rows lies north of the equator"):
        globe_for("north", 0, np.array([-3.0, 0]))
    rng = np.random.default_rng(0)
    pd.DataFrame({"lon": rng.uniform(-180, 180, 50), "lat": np.repeat([60.0, -10], 25)}).to_parquet(
        tmp_path / "t.parquet"
    )
    code, said = nenya_cli("figures", ["table=t.parquet", "kind=map", "projection=north", "out=a.svg"])
    assert code == 0 and "projection=north leaves out 25 of 50 rows" in said
    assert "<!-- 25 of 50 cutouts -->" in (tmp_path / "a.svg").read_text()


def test_what_has_no_data_is_hatched_where_colours_are_pale():
    lon, lat = np.array([0.0, 90, -90]), np.array([0.0, 0, 0])
    for values, hatched in ((np.array([1.0, 2, 3]), False), (np.array([-1.0, 0, 1]), True)):
        figure = map_metric(lon, lat, values, degrees=10.0)
        sea = next(patch for patch in figure.axes[0].patches if patch.get_zorder() == -2)
        assert bool(sea.get_hatch()) is hatched
        land, none = figure.legends[0].get_patches()
        assert bool(none.get_hatch()) is hatched and land.get_facecolor() != none.get_facecolor()
        assert [text.get_text() for text in figure.legends[0].get_texts()] == ["land", "no data"]
    halo = figure.axes[0].lines[0].get_path_effects()
    assert len(halo) == 2, "a light line on both sides of the coast"


# Categories


def table_of(**columns):
    return pd.DataFrame(columns)


@pytest.mark.parametrize(
    ("column", "labels"),
    [
        ([2, 0, 2, 5], ["0", "2", "5"]),
        ([2.0, np.nan, 2, 5], ["2", "5"]),
        (["b", None, "a", "a"], ["a", "b"]),
        ([True, False, True, True], ["False", "True"]),
        (pd.Categorical(["x", "y", "x", None]), ["x", "y"]),
        (pd.array([1, None, 3, 1], "Int64"), ["1", "3"]),
        ([0.5, 1, 2, 3], None),
        ([1.0, 2, 3, 3], None),
        (pd.date_range("2012", periods=4), None),
    ],
)
def test_categories_are_what_has_no_mean(column, labels):
    found = categories_of(table_of(a=column), "a")
    assert (found.labels if found else None) == (tuple(labels) if labels else None)
    if found:
        texts = pd.Series(column).dropna()
        assert found.counts.sum() == len(texts) == (found.codes >= 0).sum()


def test_numbers_stay_numbers_and_labels_stay_labels():
    many = np.arange(100)
    assert categories_of(table_of(year=many), "year") is None
    assert categories_of(table_of(DT=many % 3), "DT") is None, "it has a unit"
    assert categories_of(table_of(a=many % 3), "a", wanted=False) is None
    assert len(categories_of(table_of(a=many % 25 + 0.5), "a", wanted=True).labels) == MOST
    found = categories_of(table_of(cluster=np.repeat(many, many)), "cluster")
    assert len(found.labels) == MOST and found.labels[-1] == f"{99 - MOST + 1} others" and found.rest == MOST - 1
    assert found.labels[:2] == ("81", "82") and found.counts.sum() == many.sum()
    with pytest.raises(InputFileError, match="250 different values"):
        categories_of(table_of(a=[f"{i}" for i in range(250)]), "a")
    with pytest.raises(InputFileError, match="no value in 3 rows"):
        categories_of(table_of(a=[None, None, None]), "a")


def test_clusters_have_names_and_what_is_in_none_is_grey():
    frame = table_of(cluster=[0, 1, -1, 1], cluster_name=["calm", "fronts", None, "fronts"])
    found = categories_of(frame, "cluster")
    assert found.labels == ("0: calm", "1: fronts", "noise") and found.rest == 2
    assert categories_of(frame, "cluster", names={"1": "strong fronts"}).labels[1] == "1: strong fronts"
    assert categories_of(table_of(month=[1, 12]), "month").labels == ("Jan", "Dec")
    with pytest.raises(OptionError, match="names= of 7: the column cluster has no such value; it has"):
        categories_of(frame, "cluster", names={7: "x"})


def test_a_cell_has_the_colour_of_most_of_its_rows():
    rng = np.random.default_rng(1)
    x, y, label = rng.random(900), rng.random(900), rng.choice(["a", "b", "c"], 900, p=[0.5, 0.3, 0.2])
    x[:3] = np.nan
    found = categories_of(table_of(a=label), "a")
    grid = Grid((0, 1), (0, 1), 4, 5)
    shown = found.most_frequent(grid, x, y, least=45)
    frame = table_of(row=(y * 5) // 1, column=(x * 4) // 1, a=label).dropna()
    for row, column in itertools.product(range(5), range(4)):
        counts = frame[(frame.row == row) & (frame.column == column)].a.value_counts()
        if counts.sum() < 45:
            assert np.isnan(shown[row, column])
        else:
            assert counts["abc"[int(shown[row, column])]] == counts.max()
    figure = umap_categories(np.stack([x, y], axis=1), found, cells=4, limits=((0, 1), (0, 1)))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        f"{name} ({count:,})" for name, count in zip("abc", found.counts, strict=True)
    ]


def test_names_stand_among_their_rows_if_these_lie_together():
    rng = np.random.default_rng(2)
    label = np.repeat([0, 1, 2], 300)
    points = rng.normal(0, 0.3, (900, 2)) + np.array([[-3, 0], [3, 0], [0, 0]])[label]
    points[label == 2] = rng.uniform(-3, 3, (300, 2))
    points[-1] = np.nan
    found = categories_of(table_of(cluster=label), "cluster", names={0: "calm"})
    figure = umap_categories(points, found, cells=8)
    names = {text.get_text(): text.get_position() for text in figure.axes[0].texts}
    assert names["0: calm"] == pytest.approx((-3, 0), abs=0.1) and names["1"] == pytest.approx((3, 0), abs=0.1)
    shuffled = categories_of(table_of(cluster=rng.permutation(label)), "cluster")
    assert len(umap_categories(points, shuffled, cells=8).axes[0].texts) < 2


@pytest.mark.parametrize(("kind", "metric"), [("metric", "cluster"), ("map", "month"), ("map", "sensor")])
def test_the_command_counts_categories(tmp_path, nenya_cli, kind, metric):
    rng = np.random.default_rng(3)
    frame = table_of(US0=rng.normal(size=200), US1=rng.normal(size=200), lon=rng.uniform(-180, 180, 200))
    frame["lat"], frame["cluster"], frame["month"] = (
        rng.uniform(-80, 80, 200),
        rng.integers(0, 4, 200),
        rng.integers(1, 13, 200),
    )
    frame["sensor"] = rng.choice(["modis", "viirs"], 200)
    frame.to_parquet(tmp_path / "t.parquet")
    given = ["table=t.parquet", f"kind={kind}", f"metric={metric}", "out=a.svg"]
    code, said = nenya_cli("figures", given)
    assert code == 0, said
    text = (tmp_path / "a.svg").read_text()
    assert f"most frequent {metric} in a cell" in text and "mean of" not in text
    first = {"cluster": f"0 ({(frame.cluster == 0).sum()})", "month": f"Jan ({(frame.month == 1).sum()})",
             "sensor": f"modis ({(frame.sensor == 'modis').sum()})"}[metric]  # fmt: skip
    assert f"<!-- {first} -->" in text
    code, said = nenya_cli("figures", [*given, "clobber=true", "log=true"])
    assert code == 2 and "no effect on the categories" in said and len(said.splitlines()) == 1


def test_years_have_the_order_of_their_colours_and_months_end_where_they_begin():
    from nenya.plotting.categories import colours_for
    from nenya.plotting.colours import lightness

    years = categories_of(table_of(year=[2003, 2007, 2012, 2005]), "year")
    assert (np.diff(lightness(np.array(colours_for(years)))) > 5).all()
    months = np.array(colours_for(categories_of(table_of(month=np.arange(1, 13)), "month")))
    around = np.linalg.norm(np.roll(months, -1, axis=0) - months, axis=1)
    assert around[-1] < 1.5 * around[:-1].max()
    positions = np.array([[0.0, 0], [120, 10]])
    figure = map_categories(*positions.T, years.take([0, 1]), degrees=10.0)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["2003 (1)", "2007 (1)", "land", "no data"]
