"""The time of the portal in Chromium: play, slider, keyboard, and what it does when it cannot keep up."""

import numpy as np
import pytest
from portal_data import write_archive
from portal_page import Page, chromium, needs_chromium, serve

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def portal(tmp_path_factory):
    from nenya.latents.files import Latents
    from nenya.portal.dataset import open_dataset
    from nenya.portal.holding import Portal

    table, latents, cutouts = write_archive(tmp_path_factory.mktemp("time"))
    portal = Portal(open_dataset(table, Latents([latents]), str(cutouts)), "a")
    portal.url, stop = serve(portal)
    yield portal
    stop()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("chromium")) as context:
        yield context


@pytest.fixture(scope="module")
def shared(browser, portal):
    page = Page(browser, portal)
    yield page
    page.check_quiet()


@pytest.fixture
def page(shared):
    if shared.page.locator("#s_time").is_hidden():
        shared.page.keyboard.press("t")
    shared.page.locator("#time_off").evaluate("(e) => e.click()")
    shared.act("reset")
    shared.idle()
    yield shared


def text(page, name):
    return page.page.locator(f"#time_{name}").inner_text()


def months(page):
    return next(((f.first, f.last) for f in page.session.selection.view.filters if f.slot == "time"), None)


def test_play_shows_month_after_month_and_pause_keeps_one(page, portal):
    columns = portal.dataset.columns
    page.page.locator("#time_play").press("Space")  # it has the focus
    assert page.page.locator("#time_play").get_attribute("aria-pressed") == "true"
    seen = set()
    page.until(lambda: seen.add(months(page)) or len(seen - {None}) >= 4)
    page.page.keyboard.press(".")
    page.until(lambda: not page.session.playing)
    page.idle()
    page.synced()
    first, last = months(page)
    inside = (columns.month_numbers >= first) & (columns.month_numbers <= last)
    assert page.selected == inside.sum() > 0 and first == last
    assert text(page, "now") in page.chips[0] and page.page.locator("#time_at").input_value() == str(first)
    assert page.page.locator("#time_at").get_attribute("aria-valuetext").startswith(text(page, "now"))
    assert set(page.session.gallery_rows.tolist()) <= set(np.flatnonzero(inside).tolist())
    x = page.session.planes["umap"].points.source.data["x"]
    np.testing.assert_allclose(np.sort(x), np.sort(columns.values("US0")[inside]))
    wanted = page.page.url
    page.page.keyboard.press("u")
    page.until(lambda: months(page) is None)
    page.idle()
    assert page.selected == columns.rows and text(page, "now") == "all times"
    page.page.keyboard.press("y")
    page.until(lambda: months(page) == (first, last))
    page.idle()
    assert page.page.url == wanted


def test_links_bring_the_time_back(page, browser, portal):
    page.page.select_option("#time_window", "3")
    page.page.select_option("#time_step", "3")
    page.page.locator("#time_at").focus()
    before = int(page.page.locator("#time_at").input_value())
    for _ in range(3):
        page.page.keyboard.press("ArrowRight")
    page.until(lambda: months(page) is not None and not page.session.playing)
    page.idle()
    shown = months(page)
    assert shown == (before + 3, before + 5)
    other = Page(browser, portal, page.page.url[len(portal.url) :])
    other.page.locator("#s_time").wait_for()
    other.until(lambda: text(other, "now") == text(page, "now"))
    assert months(other) == shown and other.selected == page.selected
    assert other.page.locator("#time_window").input_value() == "3"
    assert other.page.locator("#time_step").input_value() == "3"
    other.check_quiet()


def test_steps_that_come_too_early_are_skipped_and_counted(page):
    page.page.select_option("#time_window", "1")
    page.page.select_option("#time_step", "1")
    page.page.select_option("#time_speed", "8")
    asked, slow = [], page.session.selection.play
    page.session.selection.play = lambda item: asked.append(item.first) or slow(item)
    finish, page.session._work_ended = page.session._work_ended, lambda: None  # nothing is ever drawn
    page.session.jobs.ended = page.session._work_ended
    page.page.locator("#time_play").click()
    page.until(lambda: "of" in text(page, "said") and int(text(page, "said").split()[0]) >= 10)
    assert len(asked) == 1, "a step waits for the one before"
    page.session.jobs.ended = page.session._work_ended = finish
    page.session.jobs.call(finish)
    page.until(lambda: len(asked) >= 2)
    assert asked[1] - asked[0] > 5, "the time did not stand still"
    page.page.keyboard.press("Escape")
    page.until(lambda: not page.session.playing)
    del page.session._work_ended
    page.session.jobs.ended = page.session._work_ended
    page.session.selection.play = slow
    assert "skipped" in text(page, "said")


def test_play_stops_at_the_end_and_when_the_page_is_hidden(page, portal):
    last = portal.dataset.columns.dates[1]
    page.page.select_option("#time_window", "12")
    page.page.select_option("#time_step", "12")
    page.page.select_option("#time_speed", "8")
    page.page.locator("#time_play").click()
    page.page.locator("#time_said", has_text="end of the table").wait_for()
    page.until(lambda: not page.session.playing)
    page.idle()
    assert months(page) == (last - 11, last)
    page.page.select_option("#time_step", "1")
    page.page.select_option("#time_speed", "1")
    page.page.locator("#time_play").click()
    page.until(lambda: page.session.playing)
    page.page.evaluate(
        "Object.defineProperty(document, 'hidden', {value: true, configurable: true});"
        "document.dispatchEvent(new Event('visibilitychange'))"
    )
    page.until(lambda: not page.session.playing)
    assert page.page.locator("#time_play").get_attribute("aria-pressed") == "false"
    page.page.evaluate("delete document.hidden")
    page.page.locator("#time_play").click()
    page.until(lambda: page.session.playing)
    page.page.keyboard.press("t")
    page.until(lambda: not page.session.playing)
    assert page.page.locator("#s_time").is_hidden()


def test_one_year_is_played_by_its_name(page, portal):
    page.page.select_option("#time_window", "24")
    page.page.select_option("#time_step", "1")
    page.page.select_option("#time_speed", "8")
    page.page.select_option("#time_year", "2011")
    january = 12 * 41
    page.until(lambda: months(page) == (january, january) and not page.session.playing)
    page.idle()
    assert page.chips == ["time: Jan 2011"] and page.page.locator("#time_window").input_value() == "1"
    page.page.locator("#time_play").click()
    seen = set()
    page.until(lambda: seen.add(months(page)) or text(page, "said").startswith("end of 2011"))
    page.until(lambda: not page.session.playing)
    page.idle()
    assert months(page) == (january + 11, january + 11) and text(page, "now") == "Dec 2011"
    assert {first // 12 for first, _ in seen} == {41}, "no other year is shown"
    page.page.locator("#time_at").press("Home")
    page.until(lambda: months(page) == (january, january) and not page.session.playing)
    page.page.select_option("#time_window", "24")  # does not fit into a year
    page.until(lambda: months(page) == (january, january + 23))
    assert page.page.locator("#time_year").input_value() == ""
    page.page.locator("#time_at").press("Home")
    page.until(lambda: months(page)[0] == portal.dataset.columns.dates[0])


def test_what_undo_brings_back_leaves_the_year(page):
    page.page.select_option("#time_window", "1")
    for year in ("2010", "2012"):
        page.page.select_option("#time_year", year)
        page.until(lambda year=year: text(page, "now") == f"Jan {year}" and not page.session.playing)
        page.idle()
    page.page.locator("#time_at").press("u")  # the slider leaves letters to the page
    page.until(lambda: text(page, "now") == "Jan 2010")
    assert page.page.locator("#time_year").input_value() == ""
    assert int(page.page.locator("#time_at").get_attribute("max")) > 12 * 42


def test_the_chart_selects_months_and_has_its_size_at_1280(page):
    chart = page.session.time_chart
    page.page.locator("#time_chart canvas").first.wait_for()
    page.idle()
    page.synced()
    left, right = (chart.plot.x_range.start + part * 1e9 for part in (20, 50))
    (x0, y0), (x1, _) = page.place("timeline", left, chart.plot.y_range.end / 2), page.place("timeline", right, 0)
    page.page.mouse.move(x0, y0)
    page.page.mouse.down()
    page.page.mouse.move((x0 + x1) / 2, y0, steps=4)
    page.page.mouse.move(x1, y0, steps=4)
    page.page.mouse.up()
    page.until(lambda: months(page) is not None)
    page.idle()
    assert months(page) == chart.months_at(left, right)
    tall = page.page.evaluate(
        "[document.querySelector('#s_time').getBoundingClientRect().height, document.documentElement.scrollHeight]"
    )
    assert tall[0] <= 140 and tall[1] <= 800, "no panel is pushed out of the page"
