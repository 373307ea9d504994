"""Time in the portal: months as a filter, links and steps that keep them, steps that wait for the one before."""

import base64
import json
import queue
import time
import zlib

import numpy as np
import pyarrow as pa
import pytest
from portal_data import write_archive

pytest.importorskip("panel", reason="the portal's packages are not installed: nenya[portal]")

from nenya.errors import OptionError
from nenya.latents.files import Latents
from nenya.portal.columns import Columns, compact
from nenya.portal.dataset import open_dataset
from nenya.portal.history import Selection
from nenya.portal.jobs import Pools
from nenya.portal.masks import Masks
from nenya.portal.session import Session
from nenya.portal.spans import Months, make_months, make_pace, month_name, span_name
from nenya.portal.state import View, make_range, read_view
from nenya.portal.theme import Theme
from nenya.portal.time_chart import TimeChart, milliseconds, month_at, share_text
from nenya.portal.views import Plane
from nenya.portal.words import filter_text


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    table, latents, cutouts = write_archive(tmp_path_factory.mktemp("time"))
    return open_dataset(table, Latents([latents]), str(cutouts))


@pytest.fixture
def session(dataset):
    """A session whose page runs in the test's thread, what it told the page of the time, and what makes it go on."""
    pools, calls, told = Pools(), queue.Queue(), []
    made = Session(dataset, pools, calls.put, Theme())
    made.show_time = lambda text: told.append(json.loads(text))
    made.open_chart = lambda: setattr(made, "time_chart", TimeChart(*made.dates, Theme()))
    made.changed = made.tell_time  # as of a page

    def until(condition):
        end = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < end, made.texts
            calls.get(timeout=60)()

    made.refresh()
    until(lambda: not made.jobs.busy)
    yield made, told, until
    made.close()
    pools.shutdown()


def month_of(dataset):
    stamps = np.array(dataset.columns.table.column("datetime").to_pylist(), "datetime64[M]")
    return stamps.astype(int)


def test_months_select_their_rows_and_links_keep_them(dataset):
    columns, months = dataset.columns, month_of(dataset)
    assert np.array_equal(columns.month_numbers, months) and columns.dates == (months.min(), months.max())
    first = int(months.min()) + 5
    item = make_months(first, first + 2)
    assert np.array_equal(Masks(columns).of(item), (months >= first) & (months <= first + 2))
    view = View((make_range("DT", 0, 2), item), pace=(12, 4))
    assert read_view(view.to_text(), columns) == view
    assert filter_text(make_months(12 * 42 + 2, 12 * 42 + 4)) == "time: Mar 2012 to May 2012"
    assert [span_name(504, 515), span_name(504, 539), span_name(504, 504)] == ["2012", "2012 to 2014", "Jan 2012"]
    assert month_name(-1) == "Dec 1969"


@pytest.mark.parametrize(
    "given",
    [{"first": 5, "last": 3}, {"first": "a", "last": 3}, {"first": 1.5, "last": 3}, {"first": 0, "last": 10**9}, {}],
)
def test_links_with_impossible_months_are_refused(dataset, given):
    values = {"f": [["months", given]], "r": None, "c": "count", "s": "shared"}
    text = base64.urlsafe_b64encode(zlib.compress(json.dumps(values).encode())).decode().rstrip("=")
    with pytest.raises(OptionError, match="the view in this link"):
        read_view(text, dataset.columns)
    for pace in ((2, 2), (1, 100), (True, 2), (1.0, 2)):
        with pytest.raises(ValueError, match="a pace"):
            make_pace(pace)


def test_a_table_without_dates_has_no_time():
    columns = Columns(compact(pa.table({"DT": [1.0, 2.0, np.nan]})))
    assert columns.dates is None
    with pytest.raises(OptionError, match="the view in this link"):
        read_view(View((Months(1, 2),)).to_text(), columns)


def test_playing_is_one_step_and_unions_leave_the_time_alone():
    selection = Selection()
    selection.add(make_range("DT", 0, 1))
    for first in range(480, 500):
        selection.play(Months(first, first + 2))
    assert selection.step == 2 and selection.view.filters == (make_range("DT", 0, 1), Months(499, 501))
    selection.rest()
    selection.play(Months(480, 482))
    assert selection.step == 3, "a play after a rest is a step of its own"
    selection.add(make_range("DT", 2, 3), "or")
    union, months = selection.view.filters
    assert months == Months(480, 482) and filter_text(union) == "DT: 0 to 1 K or DT: 2 to 3 K"
    selection.add(make_range("lat", 2, 3), "not")
    assert selection.view.filters[-1] == months and len(selection.view.filters) == 3
    for _ in range(4):
        selection.undo()
    assert selection.view.filters == (make_range("DT", 0, 1),)


def test_a_step_is_told_when_it_is_drawn_and_slow_parts_wait_for_the_rest(session, dataset):
    page, told, until = session
    first, last = dataset.columns.dates
    page.show_row(20)
    until(lambda: not page.jobs.busy)
    searched, step = page.found, page.selection.step
    del told[:]
    for frame in (1, 2, 3):
        page.act(f"time:move {first + frame} {first + frame + 2} {frame}")
        assert page.playing
        until(lambda frame=frame: told and told[-1]["drawn"] == frame)
        rows = (month_of(dataset) >= first + frame) & (month_of(dataset) <= first + frame + 2)
        assert np.array_equal(np.sort(page.ordered), np.flatnonzero(rows)) and page.found is searched
        assert set(page.gallery_rows.tolist()) <= set(np.flatnonzero(rows).tolist())
    assert page.selection.step == step + 1
    page.act("time:stop")
    until(lambda: not page.jobs.busy and page.found is not searched)
    assert not page.playing and set(page.found.rows.tolist()) <= set(page.ordered.tolist())
    assert told[-1]["months"] == [first + 3, first + 5]
    page.undo()
    until(lambda: not page.jobs.busy)
    assert told[-1]["months"] is None and len(page.ordered) == dataset.columns.rows
    page.act(f"time:move {last} {last + 40} 4")
    assert page.selection.view.filters == (Months(last - 40, last),), "as many months, within the table"
    for wrong in ("move 9 1 5", "move a b c", "move 1", "move 1 2 3 4 5", "pace 5 5", "", "pace 1 2 3 x"):
        before = page.selection.view
        try:
            page.act(f"time:{wrong}")
        except ValueError:
            pass  # the page ignores it, as any action that no script sends
        assert page.selection.view == before


def test_the_chart_has_the_shares_of_the_selection(session, dataset):
    page, told, until = session
    page.act("time:open")
    until(lambda: not page.jobs.busy)
    chart, months = page.time_chart, month_of(dataset)
    assert chart.plot.yaxis.axis_label == "cutouts"
    assert sum(chart.source.data["share"]) == len(months)
    page.add_range("DT", 1.0, None)
    until(lambda: not page.jobs.busy)
    assert chart.plot.yaxis.axis_label == "selected (%)"
    dt = dataset.columns.values("DT") >= 1
    data = {name: np.asarray(values) for name, values in chart.source.data.items()}
    known = np.unique(months)
    np.testing.assert_array_equal(data["left"], milliseconds(known))
    np.testing.assert_allclose(data["share"], [100 * dt[months == month].mean() for month in known])
    assert (data["low"] <= data["share"]).all() and (data["share"] <= data["high"]).all()
    page.choose_months(int(known[3]), int(known[3]) + 11)
    until(lambda: not page.jobs.busy)
    inside = (months >= known[3]) & (months <= known[3] + 11)
    assert told[-1]["share"].startswith(f"{100 * dt[inside].mean():.0f} % (95 %: ")
    assert told[-1]["share"].endswith(f" of {inside.sum()} cutouts in {len(set(np.flatnonzero(inside) // 5))} granules")
    assert (chart.window.left, chart.window.right) == (milliseconds(int(known[3])), milliseconds(int(known[3]) + 12))
    page.act("time:pace 12 4")
    until(lambda: not page.jobs.busy)
    years = np.unique(months // 12)
    np.testing.assert_array_equal(chart.source.data["left"], milliseconds(years * 12))
    assert chart.source.data["text"][0].startswith(f"{1970 + years[0]}: ")
    chart.window.update(left=milliseconds(int(known[5])) + 4e8, right=milliseconds(int(known[5]) + 2) - 4e8)
    page.slide_months(chart)
    assert page.selection.view.filters[-1] == Months(int(known[5]), int(known[5]) + 1), "whole months"


def test_places_of_the_chart_are_months():
    chart = TimeChart(480, 520, Theme())
    for month in (-3, 480, 507):
        assert month_at(milliseconds(month)) == month
    assert chart.months_at(milliseconds(500) + 1e9, milliseconds(502) + 1e8) == (500, 501)
    assert chart.months_at(-1e30, 1e30) == (480, 520)


def test_shares_in_words():
    from nenya.tables.over_time import share_within, units_of

    units = units_of(np.array([480] * 4 + [482], np.int16), -1, np.array([0, 0, 1, 1, 2]))
    some = units.selected(np.array([0, 2]))
    assert share_text(share_within(units, some, 481, 481)) == "no cutouts"
    assert share_text(share_within(units, some, 480, 480)).endswith("of 4 cutouts in 2 granules")
    assert share_text(share_within(units, units.selected(None), 482, 482)) == "1 cutout in 1 granule"


def test_while_time_passes_colours_compare_and_the_background_is_sent_once():
    plane, sent = Plane("umap", (-1.0, 1.0, -1.0, 1.0), Theme()), []
    plane.back.on_change("data", lambda _attr, _old, new: sent.append(new["image"][0]))
    whole, chosen = np.full((4, 4), 100, np.float32), np.full((4, 4), np.nan, np.float32)
    for most, held, wanted in ((50, False, 50), (20, True, 50), (80, True, 80), (20, False, 20)):
        chosen[0, 0], plane.colours.held = most, held
        plane.show(whole, chosen, plane.home, "")
        assert plane.colours.mapper.high == wanted
    assert len(sent) == 1 and plane.front.data["count"][0].sum() == 20
    plane.show(whole, chosen, (-1.0, 1.0, -1.0, 0.5), "")
    plane.show(None, chosen, (-1.0, 1.0, -1.0, 0.5), "")
    assert len(sent) == 3 and np.isnan(sent[-1]).all()
    for low, held, wanted in ((1.0, False, 1.0), (2.0, True, 1.0), (0.5, True, 0.5)):
        plane.colours.held = held
        plane.colours.by_means(low, 4.0, "DT")
        assert (plane.colours.mapper.low, plane.colours.mapper.high) == (wanted, 4.0)
