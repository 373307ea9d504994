"""What other commands write, in the portal: scales of colours and histograms, orders by name, and the quick buttons."""

import numpy as np
import pyarrow as pa
import pytest

pytest.importorskip("panel", reason="the portal's packages are not installed: nenya[portal]")

from bokeh.models import ColumnDataSource
from bokeh.plotting import figure

from nenya.errors import InputFileError
from nenya.plotting.colours import colour_map
from nenya.portal.bars import CellColours
from nenya.portal.categories import colour_choices
from nenya.portal.columns import BINS, Columns, compact
from nenya.portal.dataset import Dataset
from nenya.portal.jobs import Ticket
from nenya.portal.points import Near, Points
from nenya.portal.quick import CLEAR, orders_of, quick_actions, rarest_order, without_cloudy
from nenya.portal.state import View
from nenya.portal.theme import Theme
from nenya.portal.work import ordered_rows, rasters
from nenya.tables.quantities import Quantity, quantity_of

ROWS = 2000


def dataset_of(**more):
    rng = np.random.default_rng(4)
    values = {name: rng.normal(size=ROWS) for name in ("DT", "US0", "US1")}
    return Dataset(Columns(compact(pa.table({**values, **more}))))


@pytest.fixture(scope="module")
def dataset():
    rng = np.random.default_rng(5)
    rarity = rng.gamma(2, 0.05, ROWS)
    rarity[:20] = np.nan
    return dataset_of(
        rarity=rarity,
        density_ratio=np.exp(rng.normal(size=ROWS)),
        clear_fraction=rng.beta(9, 1, ROWS),
        wide=np.exp(4 * rng.normal(size=ROWS)),
        umap_spread=np.where(rng.random(ROWS) < 0.5, 0, rng.gamma(2, 0.5, ROWS)),
    )


def test_scales_fit_the_values(dataset):
    columns = dataset.columns
    scales = {name: columns.scale(name) for name in columns.metrics()}
    assert scales == {
        "DT": "linear",
        "rarity": "log",
        "density_ratio": "ratio",
        "clear_fraction": "linear",
        "wide": "log",
        "umap_spread": "linear",  # there is no logarithm of 0
    }
    assert dataset_of(rarity=np.append(np.zeros(1), np.ones(ROWS - 1))).columns.scale("rarity") == "linear"
    assert quantity_of("anything") == Quantity("anything")


def test_histograms_have_even_bins_on_the_axis_that_fits(dataset):
    columns, values = dataset.columns, dataset.columns.values("wide")
    log, even = columns.charted("wide"), columns.binned("wide")
    np.testing.assert_allclose(np.diff(np.log10(log.edges)), np.log10(log.edges[1] / log.edges[0]), rtol=1e-6)
    np.testing.assert_allclose(np.diff(even.edges), even.edges[1] - even.edges[0], rtol=1e-6)
    assert log.log and not even.log and columns.charted("DT") is columns.binned("DT")
    inner = (values > log.edges[5] * 1.0001) & (values < log.edges[6] * 0.9999)
    assert inner.any() and set(log.codes[inner].tolist()) == {5}
    assert log.counts.max() < 0.2 * ROWS < even.counts.max(), "the bulk is in one bin of a linear axis"
    assert (columns.charted("rarity").codes[:20] == BINS).all()


def test_colours_of_ratios_have_1_in_the_middle_and_their_mean_is_geometric(dataset):
    columns = dataset.columns
    _, ratio = rasters(dataset, "umap", (-9, 9, -9, 9), View(colour="density_ratio"), Ticket(lambda _: None))
    values = columns.values("density_ratio")
    x, y = (columns.values(name) for name in ("US0", "US1"))
    wide, tall = ratio.shape[1], ratio.shape[0]
    row, column = tall // 2, wide // 2
    inside = (np.floor((x + 9) / 18 * wide) == column) & (np.floor((y + 9) / 18 * tall) == row)
    assert inside.sum() > 3 and ratio[row, column] == pytest.approx(np.exp(np.log(values[inside]).mean()), rel=1e-5)
    colours = CellColours(figure(), ColumnDataSource({"image": []}), Theme())
    colours.by_means(0.2, 3.0, "density ratio", "ratio")
    assert colours.is_log and colours.mapper.low * colours.mapper.high == pytest.approx(1) and colours.mapper.high == 5
    neutral = [int(colours.mapper.palette[128][i : i + 2], 16) for i in (1, 3, 5)]
    assert neutral == pytest.approx(255 * np.array(colour_map("balance")(128)[:3]), abs=1)
    colours.by_means(0.01, 3.0, "rarity", "log")
    assert colours.is_log and (colours.mapper.low, colours.mapper.high) == (0.01, 3.0)
    colours.by_means(1.0, 3.0, "rarity", "log")
    assert not colours.is_log, "a range without marks is linear"
    assert "geometric mean of density ratio = its own set over the other one" in colour_choices(dataset)


def test_points_have_the_colours_of_cells_and_uncertain_ones_are_pale():
    points = Points(figure(), "umap", Theme())
    near = Near(*(np.arange(4, dtype=np.float32) for _ in range(2)), np.arange(4), np.array([0.1, 1.01, 10, np.nan]))
    palette = [f"#{k:06x}" for k in range(100)]
    points.show(near, palette, (0.1, 10.0), log=True, pale=np.array([0, 0.8, 0, 0], np.float32))
    shown = dict(zip(*(points.source.data[name] for name in ("row", "colour")), strict=True))
    assert [shown[0], shown[1], shown[2]] == [palette[0], palette[50], palette[99]]
    alpha = dict(zip(*(points.source.data[name] for name in ("row", "alpha")), strict=True))
    assert [round(float(alpha[row]), 3) for row in range(4)] == [1, 0.2, 1, 1]


def test_orders_have_names_and_the_rarest_come_first(dataset):
    orders = orders_of(dataset.columns)
    assert list(orders)[:3] == ["rarest first", "clearest first", "rarest in the other set first"]
    assert orders["rarest first"] == ("rarity", True) and orders["clearest first"] == ("clear_fraction", True)
    assert len(set(orders.values())) == len(orders) == 2 * len(dataset.columns.metrics())
    first = ordered_rows(dataset, None, *orders["rarest first"])
    rarity = dataset.columns.values("rarity")
    assert rarity[first[0]] == np.nanmax(rarity) and np.isnan(rarity[first[-20:]]).all()
    assert rarest_order(dataset_of(LL=np.arange(ROWS)).columns) == ("LL", False), "a small likelihood is rare"
    assert rarest_order(dataset_of().columns) is None and quick_actions(dataset_of()) == []
    assert [label for _, label, _ in quick_actions(dataset)] == ["Rarest first", "Hide cloudy"]


def test_the_cloudy_are_hidden_whichever_way_the_table_counts():
    clear = np.linspace(0.5, 1, ROWS)
    assert without_cloudy(dataset_of(clear_fraction=clear).columns).mask(
        dataset_of(clear_fraction=clear).columns
    ).sum() == np.sum(clear.astype(np.float32) >= np.float32(CLEAR))
    masked = dataset_of(clear_fraction=1 - clear).columns  # a table of the first nenya
    item = without_cloudy(masked)
    assert (item.low, item.high) == (0.0, pytest.approx(0.05)) and 0 < item.mask(masked).sum() < ROWS
    assert orders_of(masked)["clearest first"] == ("clear_fraction", False)
    for values, said in (
        (np.linspace(0.6, 0.8, ROWS), "no cutout is at least 95% clear.* the clearest is 80.0%"),
        (np.linspace(0.96, 1, ROWS), "nothing to hide"),
    ):
        with pytest.raises(InputFileError, match=said):
            without_cloudy(dataset_of(clear_fraction=values).columns)
    with pytest.raises(InputFileError, match="no column clear_fraction"):
        without_cloudy(dataset_of().columns)
