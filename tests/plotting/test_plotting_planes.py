"""Figures of planes, maps, strips and eigen-images: what they show, their words, their files; and `nenya figures`."""

import numpy as np
import pandas as pd
import pytest
from conftest import red_noise, write_cutouts
from matplotlib.colors import LogNorm
from PIL import Image

from nenya.data.table_images import TableImages
from nenya.errors import InputFileError, OptionError
from nenya.plotting.cutouts import closest_strip, eigen_images, eigen_sheet, gallery, nearest_to_centres
from nenya.plotting.paper import UMAP_LABELS, central_limits
from nenya.plotting.planes import map_density, map_metric, umap_density, umap_metric
from nenya.tables.grids import Grid, globe


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def image_of(figure, axes=0):
    return figure.axes[axes].images[0]


def words(figure):
    said = []
    for axes in figure.axes:
        said += [axes.get_xlabel(), axes.get_ylabel(), axes.get_title()]
    return said


def test_a_umap_shows_every_cutout_once(rng):
    points = rng.standard_normal((3000, 2))
    points[7] = np.nan
    figure = umap_density(points, cells=30, limits=((-9, 9), (-9, 9)), title="all")
    shown = image_of(figure)
    assert shown.get_array().sum() == 2999
    assert isinstance(shown.norm, LogNorm) and shown.get_cmap().name == "cividis"
    assert {"UMAP 1", "UMAP 2", "all", "cutouts in a cell"} <= set(words(figure))
    x, y = np.argwhere(~np.ma.getmaskarray(shown.get_array()))[0][::-1]
    assert shown.get_array()[y, x] == (np.floor((points + 9) / 18 * 30) == [x, y]).all(axis=1).sum()


def test_a_metric_is_averaged_where_there_are_enough(rng):
    points, values = rng.uniform(0, 3, (2000, 2)), rng.exponential(1, 2000)
    values[3] = np.nan
    figure = umap_metric(points, values, name="DT", cells=3, limits=((0, 3), (0, 3)), least=230)
    frame = pd.DataFrame({"x": points[:, 0] // 1, "y": points[:, 1] // 1, "v": values}).dropna()
    expected = frame.groupby(["y", "x"]).v.agg(["mean", "size"])
    shown = image_of(figure).get_array()
    assert shown.mask.ravel().tolist() == (expected["size"] < 230).tolist()
    np.testing.assert_allclose(shown.compressed(), expected["mean"][expected["size"] >= 230])
    assert "mean of DT (K)" in words(figure) and image_of(figure).get_cmap().name == "viridis"


def test_a_map_has_coasts_units_and_one_globe(rng):
    lon, lat = rng.uniform(0, 360, 5000), rng.uniform(-90, 90, 5000)
    figure = map_density(lon, lat, degrees=5.0)
    assert image_of(figure).get_array().shape == (36, 72) and image_of(figure).get_array().sum() == 5000
    assert {"longitude (degrees east)", "latitude (degrees north)"} <= set(words(figure))
    (coast,) = figure.axes[0].lines
    x, y = coast.get_data()
    assert len(x) > 5000
    steps = np.abs(np.diff(x))
    drawn = np.isfinite(steps)
    assert not (steps[drawn] > 90).any(), "a coast goes across the map"
    assert (y[1:][drawn] > -90).all() and not (np.abs(x[1:]) + np.abs(x[:-1]) >= 360)[drawn].any()
    anomaly = map_metric(lon, lat, np.sin(np.radians(lon)), name="mean_temperature")
    shown = image_of(anomaly)
    assert shown.get_clim()[0] == -shown.get_clim()[1] and shown.get_cmap().name == "balance"
    assert "mean temperature (\N{DEGREE SIGN}C)" in words(anomaly)


def test_a_strip_shows_the_query_first_on_one_scale(rng):
    images = rng.standard_normal((9, 1, 8, 8)) * np.arange(1, 10)[:, None, None, None]
    images[2, 0, 0, 0] = np.nan
    labels = [f"place {i}" for i in range(9)]
    figure = closest_strip(images[0], images, np.arange(9) / 8, labels=labels, columns=5, title="a cutout")
    np.testing.assert_array_equal(image_of(figure).get_array(), images[0, 0].astype(np.float32))
    np.testing.assert_array_equal(image_of(figure, 4).get_array().data, images[3, 0].astype(np.float32))
    limits = {axes.images[0].get_clim() for axes in figure.axes[:10]}
    assert len(limits) == 1
    low, high = limits.pop()
    assert low == -high < 0
    assert {"query", "0.125", "place 1", "SSTa (K)"} <= set(words(figure))
    assert figure.axes[2].get_xlabel() == "place 1" and figure.axes[0].get_xlabel() == ""


def test_rows_of_a_sheet_have_their_own_scales_and_whole_names(tmp_path, rng):
    images = rng.standard_normal((3, 2, 8, 8)) * np.array([0.01, 1, 30])[:, None, None, None]
    names = ["+1 (32.2 %)", "-1 (32.2 %)", "a name that is much longer (9.3 %)"]
    figure = eigen_sheet(images, names, ["nearest 1", "made for it"], tmp_path / "sheet.png")
    figure.draw_without_rendering()
    rows = [axes for axes in figure.axes if axes.images]
    for axes, field, name in zip(rows, images, names, strict=True):
        assert axes.images[0].get_clim()[1] == pytest.approx(np.quantile(np.abs(field.astype(np.float32)), 0.99))
        (label,) = axes.get_yticklabels()
        assert label.get_text() == name and label.get_window_extent().x0 >= 0  # within the figure
    assert [axes.get_ylabel() for axes in figure.axes].count("SSTa (K)") == 3


@pytest.mark.parametrize(
    ("top", "marks"), [(2, ["1", "2"]), (60, ["1", "2", "5", "10", "20", "50"]),
                       (30_000, ["1", "10", "100", "1,000", "10,000"])],
)  # fmt: skip
def test_counts_are_marked_by_plain_numbers(top, marks):
    points = np.concatenate([np.zeros((top, 2)), np.ones((1, 2))])
    figure = umap_density(points, cells=5, limits=((-1, 2), (-1, 2)))
    figure.draw_without_rendering()
    assert [label.get_text() for label in figure.axes[1].get_yticklabels()] == marks
    assert not figure.axes[1].get_yticks(minor=True).size


def test_eigen_images_say_their_shares(rng):
    components = np.linalg.qr(rng.standard_normal((16, 16)))[0][:3]
    figure = eigen_images(components, [0.5, 0.25, 0.0625])
    np.testing.assert_allclose(image_of(figure, 1).get_array(), components[1].reshape(4, 4), rtol=1e-6)
    assert {"1: 50 %", "2: 25 %", "3: 6.2 %"} <= set(words(figure))


@pytest.mark.parametrize(("suffix", "magic"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")])
def test_every_figure_in_every_format(tmp_path, rng, suffix, magic):
    points, values, images = rng.standard_normal((60, 2)), rng.random(60), rng.standard_normal((5, 6, 6))
    draws = {
        "density": lambda path: umap_density(points, path),
        "metric": lambda path: umap_metric(points, values, path, least=1),
        "map": lambda path: map_density(90 * values, 80 * values, path),
        "mean": lambda path: map_metric(90 * values, 80 * values, values, path),
        "strip": lambda path: closest_strip(images[0], images[1:], np.arange(4), path),
        "eigen": lambda path: eigen_images(images, np.ones(5), path),
    }
    if suffix != ".png":
        draws = {name: draws[name] for name in ("mean", "eigen")}
    for name, draw in draws.items():
        path = tmp_path / f"{name}{suffix}"
        draw(path)
        assert path.read_bytes().startswith(magic) and path.stat().st_size > 4000
        if suffix == ".png":
            with Image.open(path) as picture:
                assert min(picture.size) > 250 and picture.convert("RGB").getcolors(30) is None
    assert len(list(tmp_path.iterdir())) == len(draws)


def test_what_does_not_fit_is_refused(tmp_path, rng):
    points, images = rng.random((4, 2)), rng.random((4, 6, 6))
    with pytest.raises(InputFileError, match="each of 4 cutouts, got 3"):
        umap_metric(points, np.ones(3))
    with pytest.raises(InputFileError, match="got none in 4 rows"):
        umap_density(points * np.nan)
    with pytest.raises(InputFileError, match="n values"):
        closest_strip(images[0], images, np.ones(3))
    with pytest.raises(InputFileError, match="eigen-images"):
        eigen_images(images, [1.0])
    with pytest.raises(OptionError, match="columns=0"):
        closest_strip(images[0], images, np.ones(4), columns=0)
    with pytest.raises(OptionError, match="unknown format"):
        umap_density(points, tmp_path / "x.bmpx")
    assert not list(tmp_path.iterdir())


# Tables with cutouts


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """Two cutout files and their table, whose last rows are of a file that is not there."""
    folder, rng = tmp_path_factory.mktemp("archive"), np.random.default_rng(0)
    for i, name in enumerate(("a", "b")):
        write_cutouts(folder / f"{name}_preproc.h5", train=red_noise(30, 16, i), valid=red_noise(10, 16, i + 5))
    keys = [(f"s3://x/{n}_preproc.h5", t, i) for n in "abc" for t, rows in ((1, 30), (0, 10)) for i in range(rows)]
    table = pd.DataFrame(keys, columns=["pp_file", "pp_type", "pp_idx"])
    for name in ("US0", "US1", "DT"):
        table[name] = rng.random(len(table))
    table["lon"], table["lat"] = rng.uniform(-180, 180, len(table)), rng.uniform(-60, 60, len(table))
    table = table.sample(frac=1, random_state=1).reset_index(drop=True)
    table.to_parquet(folder / "t.parquet")
    return folder, table


def test_images_come_by_the_rows_of_a_table(archive):
    from nenya.options.sections import LoaderOptions

    folder, table = archive
    images = TableImages(f"{folder}/*_preproc.h5", table, LoaderOptions())
    np.testing.assert_array_equal(images.known, ~table.pp_file.str.contains("/c_"))
    rows = np.flatnonzero(images.known)[[5, 60, 3, 3, 20]]
    for row, image in zip(rows, images.read(rows), strict=True):
        file, kind, index = table.loc[row, ["pp_file", "pp_type", "pp_idx"]]
        seed = "ab".index(file[7]) + (0 if kind else 5)
        np.testing.assert_array_equal(image, red_noise(30 if kind else 10, 16, seed)[index])
    with pytest.raises(InputFileError, match="is not in a_preproc"):
        images.read(np.flatnonzero(~images.known)[:1])
    with pytest.raises(InputFileError, match="pp_idx"):
        TableImages(f"{folder}/*_preproc.h5", table[["US0"]], LoaderOptions())


def test_a_gallery_of_a_table_is_that_of_its_arrays(archive, tmp_path, nenya_cli):
    from nenya.options.sections import LoaderOptions

    folder, table = archive
    args = ["kind=gallery", f"table={folder / 't.parquet'}", f"images={folder}/*_preproc.h5", "cells=5", "title=t"]
    code, said = nenya_cli("figures", [*args, "out=g.png"])
    assert code == 0, said
    coordinates = table[["US0", "US1"]].to_numpy(copy=True)
    limits = central_limits(coordinates)
    images = TableImages(f"{folder}/*_preproc.h5", table, LoaderOptions())
    rows = np.flatnonzero(images.known)
    gallery(images.read(rows), coordinates[rows], "h.png", cells=5, title="t", labels=UMAP_LABELS, limits=limits)
    assert (nearest_to_centres(coordinates[rows], 5, limits) >= 0).sum() > 15
    with Image.open("g.png") as one, Image.open("h.png") as other:
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


@pytest.mark.parametrize(
    "args",
    [
        ["kind=umap", "out=x.svg"],
        ["kind=metric", "metric=DT", "least=1", "cells=8", "out=x.svg"],
        ["kind=map", "metric=DT", "least=1", "where=DT > 0.2 and lat < 40", "out=x.svg"],
        ["kind=eigen", "components=4", "out=x.svg"],
    ],
)
def test_the_command_draws(archive, tmp_path, nenya_cli, args):
    folder, _ = archive
    common = [f"table={folder / 't.parquet'}", f"images={folder}/*_preproc.h5"]
    code, said = nenya_cli("figures", [*common, *args])
    assert code == 0, said
    made = tmp_path / args[-1].removeprefix("out=")
    assert made.stat().st_size > 5000
    code, said = nenya_cli("figures", [*common, *args])
    assert code == 2 and "clobber=true" in said


def test_some_cutouts_are_drawn_on_the_grey_map_of_all():
    points = np.random.default_rng(0).normal(size=(3000, 2))
    some = points[(points > 0).all(axis=1)]
    figure = umap_density(some, cells=20, background=points)
    grey, counts = figure.axes[0].get_images()
    limits = central_limits(points)
    assert 0.6 < grey.to_rgba(grey.get_array()).max(axis=(0, 1))[0] and grey.cmap(grey.norm(1.0))[0] < 0.9
    assert grey.get_extent() == counts.get_extent() == [*limits[0], *limits[1]]
    grid = Grid(*limits, 20, 20)
    np.testing.assert_array_equal(~np.ma.getmaskarray(grey.get_array()), grid.counts(*points.T) > 0)
    np.testing.assert_array_equal(counts.get_array().filled(0), grid.counts(*some.T))


@pytest.mark.parametrize("rows", [3, 60, 2000, 30_000])
def test_cells_are_as_large_as_the_rows_ask_for(tmp_path, nenya_cli, monkeypatch, rows):
    drawn = []
    for name in ("umap_metric", "map_metric"):
        monkeypatch.setattr(f"nenya.plotting.{name}", lambda *args, **settings: drawn.append((args, settings)))
    rng = np.random.default_rng(0)
    u, v, lon, lat = rng.normal(size=(2, rows)).tolist() + rng.uniform(-60, 60, (2, rows)).tolist()
    pd.DataFrame({"US0": u, "US1": v, "lon": lon, "lat": lat, "DT": 1.0}).to_parquet("t.parquet")
    for kind in ("metric", "map"):
        code, said = nenya_cli("figures", ["table=t.parquet", f"kind={kind}", "metric=DT"])
        assert code == 0, said
    (_, metric), (_, globe_) = drawn
    counts = Grid(*metric["limits"], metric["cells"], metric["cells"]).counts(np.array(u), np.array(v))
    on_globe = globe(globe_["degrees"]).counts(np.array(lon), np.array(lat))
    for found, settings in ((counts, metric), (on_globe, globe_)):
        least = settings["least"]
        assert 1 <= least <= 5 and (found >= least).any()
        shown = found[found >= least].sum()
        assert settings["title"] == f"{shown:,} of {rows:,} cutouts, in cells with at least {least}"
        if rows >= 2000:
            assert least == 5 and shown > 0.6 * rows
    assert metric["cells"] > 50 if rows == 30_000 else metric["cells"] < 20


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["kind=metric"], "expected metric="),
        (["kind=metric", "metric=Dt"], "no column Dt"),
        (["kind=gallery"], "expected images="),
        (["kind=umap", "where=DT > 9"], "selects no row"),
        (["kind=umap", "where=eval('1')"], "expected SQL"),
        (["kind=pie"], "kind=pie"),
        (["kind=map", "metric=DT", "least=100000"], "at least 100000 values"),
        (["kind=metric", "metric=DT", "least=100000"], "at least 100000 values"),
        (["out=umap.jpg"], "expected a folder or a picture"),
    ],
)
def test_the_command_refuses_in_one_line(archive, nenya_cli, args, says):
    folder, _ = archive
    code, said = nenya_cli("figures", [f"table={folder / 't.parquet'}", *args])
    assert code == 2 and says in said and len(said.splitlines()) == 1
