import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb

from nenya.errors import InputFileError
from nenya.io import write_table
from nenya.plotting import map_classes, umap_classes
from nenya.plotting.classes import colours_of
from nenya.tables.classes import classes_of_column


@pytest.fixture
def table():
    rng = np.random.default_rng(0)
    cluster = rng.integers(0, 3, 600)
    place = np.array([[0.0, 0.0], [6.0, 0.0], [0.0, 6.0]])[cluster] + rng.normal(size=(600, 2))
    return pd.DataFrame(
        {
            "US0": place[:, 0],
            "US1": place[:, 1],
            "lon": rng.uniform(-180, 180, 600),
            "lat": rng.uniform(-60, 60, 600),
            "cluster": cluster,
            "region": np.array(["$a$", "b", "c"])[cluster],
            "DT": rng.gamma(2, 1, 600),
        }
    )


def test_classes_have_colours_that_differ():
    for kind in ("names", "cycle", "order"):
        for count in (2, 8, 12, 24):
            found = colours_of(kind, count)
            assert len(set(found)) == count and all(len(to_rgb(colour)) == 3 for colour in found)
    assert len(colours_of("names", 64)) == 64


def test_each_class_is_drawn_in_its_colour_named_and_counted(table):
    classes = classes_of_column(table["region"])
    figure = umap_classes(table[["US0", "US1"]].to_numpy(), classes, cells=12)
    (axes,) = figure.axes  # no colour bar
    (image,) = axes.images
    shown = np.ma.getdata(image.get_array())[~np.ma.getmaskarray(image.get_array())]
    assert set(shown.tolist()) == {0, 1, 2}
    assert [text.get_text() for text in axes.texts] and {text.get_text() for text in axes.texts} <= {"$a$", "b", "c"}
    (legend,) = figure.legends
    counts = table["region"].value_counts()
    assert [text.get_text() for text in legend.get_texts()] == [f"{name}: {counts[name]}" for name in ("$a$", "b", "c")]
    colours = [to_rgb(patch.get_facecolor()) for patch in legend.get_patches()]
    assert colours == [to_rgb(colour) for colour in image.cmap.colors]


def test_lengths_must_fit(table):
    classes = classes_of_column(table["cluster"])
    with pytest.raises(InputFileError, match="one class for each of 599 cutouts, got 600"):
        map_classes(table["lon"].to_numpy()[1:], table["lat"].to_numpy()[1:], classes)


@pytest.mark.parametrize(("kind", "metric"), [("metric", "cluster"), ("metric", "region"), ("map", "region")])
def test_figures_of_classes_are_no_means(tmp_path, table, kind, metric, monkeypatch):
    from nenya import plotting
    from nenya.commands.figures import run
    from nenya.options.commands import FiguresOptions

    write_table(table, tmp_path / "a.parquet")
    drawn = []
    for name in ("umap_classes", "map_classes", "umap_metric", "map_metric"):
        made = getattr(plotting, name)
        monkeypatch.setattr(plotting, name, lambda *a, made=made, name=name, **k: drawn.append(name) or made(*a, **k))
    options = FiguresOptions(table=str(tmp_path / "a.parquet"), kind=kind, metric=metric, out=str(tmp_path / "a.png"))
    assert run(options) == 0 and (tmp_path / "a.png").stat().st_size > 5000
    assert drawn == ["map_classes" if kind == "map" else "umap_classes"]
