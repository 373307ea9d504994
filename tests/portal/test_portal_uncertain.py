"""The portal on masked cutouts: error bars on the UMAP, pale places, a first filter by the known error."""

import queue
import time

import numpy as np
import pytest
from portal_data import write_archive

from nenya.errors import OptionError
from nenya.io import read_table, write_table
from nenya.latents.files import open_latents
from nenya.portal.dataset import open_dataset
from nenya.portal.jobs import Pools
from nenya.portal.session import Session
from nenya.portal.state import View, make_range
from nenya.portal.theme import Theme
from nenya.portal.uncertain import PALE, first_filters, order_note

MASKED = 100


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """The first 100 rows are masked, row 3 by a mask of an unknown error."""
    table, latents, _ = write_archive(tmp_path_factory.mktemp("masked"))
    frame = read_table(table)
    masked = np.arange(len(frame)) < MASKED
    rng = np.random.default_rng(1)
    low = np.where(masked, rng.uniform(0.5, 0.99, len(frame)), 1)
    frame["clear"], frame["cosine_low"] = np.where(masked, 0.8, 1), low
    frame["umap_spread"] = np.where(masked, 2 * (1 - low), 0)
    frame.loc[3, ["cosine_low", "umap_spread"]] = np.nan
    write_table(frame.astype({"cosine_low": "f4", "umap_spread": "f4"}), table)
    return table, latents


@pytest.fixture
def opened(archive):
    return open_dataset(archive[0], open_latents([archive[1]]), None)


@pytest.fixture
def session(opened):
    """A session whose page runs in the test's thread, with what makes it go on."""
    pools, calls = Pools(), queue.Queue()
    made = Session(opened, pools, calls.put, Theme(), View(opened.first))

    def until(condition):
        end = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < end, made.texts
            calls.get(timeout=60)()

    yield made, until
    made.close()
    pools.shutdown()


def test_the_chosen_cutout_and_its_neighbours_have_error_bars(session, opened):
    page, until = session
    columns = opened.columns
    bar, bars = page.uncertain.bar, page.uncertain.bars
    page.near_filtered = False
    page.show_row(5)
    until(lambda: "closest" in page.texts["near_note"])
    spread = float(columns.values("umap_spread")[5])
    assert bar.data["x"] == [float(columns.values("US0")[5])] and bar.data["size"] == [2 * spread]
    found = page.found.rows[:20]
    wanted = columns.values("umap_spread")[found]
    assert bars.data["size"] == (2 * wanted[wanted > 0]).tolist() and len(bars.data["size"]) > 0
    assert "the order of" in page.texts["near_note"]
    for row in (3, 200):
        page.show_row(row)
        assert bar.data["x"] == [], "of an unknown error, or clear"
    assert "spread on the UMAP" in page.texts["facts"]


def test_places_of_large_error_bars_are_pale(session, opened):
    page, until = session
    plane, veil = page.planes["umap"], page.uncertain.veil
    page.refresh()
    until(lambda: np.isfinite(veil.data["image"][0]).any() and np.isfinite(plane.front.data["image"][0]).any())
    shown = veil.data["image"][0]
    assert shown.shape == plane.front.data["image"][0].shape and np.nanmax(shown) > 0 == np.nanmin(shown)
    colours = next(one.glyph.color_mapper for one in plane.plot.renderers if one.data_source is veil)
    assert colours.high == pytest.approx(PALE * (plane.home[1] - plane.home[0]), rel=1e-6)
    order = [one.data_source for one in plane.plot.renderers]
    assert order.index(plane.front) < order.index(veil) < order.index(plane.outline) < order.index(plane.mark)
    page.set_colour("umap_spread")
    until(lambda: np.isnan(veil.data["image"][0]).all())


def test_least_cosine_is_a_filter_that_can_be_removed(archive):
    dataset = open_dataset(archive[0], None, None)
    dataset.first = first_filters(dataset.columns, 0.9, latents=False)
    assert dataset.first == (make_range("cosine_low", 0.9, 1.0),)
    chosen = dataset.first_rows()
    low = dataset.columns.values("cosine_low")
    assert chosen.tolist() == np.flatnonzero(low >= 0.9).tolist() and 200 < len(chosen) < 290


def test_least_cosine_without_effect_is_refused(opened, archive, tmp_path):
    assert first_filters(opened.columns, None, latents=False) == ()
    with pytest.raises(OptionError, match="leaves none of 300 rows"):
        first_filters(open_without(archive, tmp_path, clear=False).columns, 0.999, latents=False)
    plain = open_without(archive, tmp_path, columns=["cosine_low", "umap_spread", "clear"])
    assert first_filters(plain.columns, 0.9, latents=True) == ()
    with pytest.raises(OptionError, match="no column cosine_low"):
        first_filters(plain.columns, 0.9, latents=False)


def open_without(archive, folder, columns=(), *, clear=True):
    frame = read_table(archive[0]).drop(columns=list(columns))
    if not clear:
        frame["cosine_low"] = np.float32(0.5)
    write_table(frame, folder / "b.parquet")
    return open_dataset(folder / "b.parquet", None, None)


def test_a_table_without_the_columns_is_shown_as_ever(archive, tmp_path):
    plain = open_without(archive, tmp_path, columns=["cosine_low", "umap_spread", "clear"])
    assert order_note(plain.columns, np.arange(3), np.array([0.9, 0.8, 0.7]), 5) == ""
    assert not plain.first and len(plain.first_rows()) == 300


def test_an_exported_page_has_the_rows_of_least_cosine(archive, nenya_cli, tmp_path):
    code, said = nenya_cli("portal", [f"table={archive[0]}", "least_cosine=0.9", f"export={tmp_path / 'page'}"])
    assert code == 0, said
    rows = int((read_table(archive[0])["cosine_low"] >= 0.9).sum())
    assert f"{rows} cutouts</b>" in (tmp_path / "page" / "index.html").read_text()
    code, said = nenya_cli("portal", [f"table={archive[0]}", "least_cosine=1", f"export={tmp_path / 'other'}"])
    assert code == 0, said
