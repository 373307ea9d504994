"""Two selections by what a person sees and does in Chromium: A is held, B is made, every panel shows both."""

import threading
import time

import numpy as np
import pytest
from portal_data import write_archive
from portal_page import DRAWN, Page, chromium, needs_chromium, serve

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def portal(tmp_path_factory):
    from nenya.latents.files import Latents
    from nenya.portal.dataset import open_dataset
    from nenya.portal.holding import Portal

    table, latents, cutouts = write_archive(tmp_path_factory.mktemp("pair"))
    portal = Portal(open_dataset(table, Latents([latents]), str(cutouts)), "a.parquet")
    portal.url, stop = serve(portal)
    yield portal
    stop()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("chromium")) as context:
        context.add_init_script(DRAWN)
        yield context


def ask(page, text):
    page.page.fill("#ask", text)
    page.page.press("#ask", "Enter")
    page.until(lambda: text in page.chips)
    page.idle()
    page.page.locator("h1").click()  # away from the box of conditions


def near(pixels, colour, box):
    """Return how many pixels of a box of the screen have a colour."""
    x, y, wide, tall = (round(value) for value in (box["x"], box["y"], box["width"], box["height"]))
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return int((np.abs(pixels[y : y + tall, x : x + wide] - wanted).max(axis=2) < 12).sum())


def seen(page):
    """Return, for each panel, how many pixels of A's and of B's colour it has."""
    from nenya.portal.pair import COLOURS

    page.synced()
    pixels = page.pixels()
    boxes = {name: page.page.locator(f"#s_{name}").bounding_box() for name in ("umap", "map", "hist", "selection")}
    return {name: [near(pixels, colour, box) for colour in COLOURS[:2]] for name, box in boxes.items()}


def told(page):
    return " ".join(page.page.locator("#panel_against").get_by_role("table").first.inner_text().split())


def test_two_selections_are_seen_in_every_panel_and_a_link_restores_them(browser, portal):
    page = Page(browser, portal)
    lat = portal.dataset.columns.values("lat")
    before = seen(page)
    ask(page, "lat > 10")
    page.page.keyboard.press("a")
    page.until(lambda: page.page.locator("#tab_against").get_attribute("aria-selected") == "true")
    page.page.locator(".chip").click()
    page.idle()
    ask(page, "lat < -10")
    page.until(lambda: f"{(lat > 10).sum()} cutouts" in told(page) and f"{(lat < -10).sum()} cutouts" in told(page))
    words, legend = told(page), page.page.locator("#s_umap .classes").inner_text()
    assert "in A" in legend and str((lat > 10).sum()) in legend
    page.page.locator("#tab_gallery").click()
    page.idle()
    after = seen(page)
    for name, colours in after.items():
        assert all(now > was + 40 for now, was in zip(colours, before[name], strict=True)), (name, before, after)
    texts = [text for text, _, _ in page.drawn("gallery")]
    half = page.session.gallery.most // 2
    assert texts.count("A") == texts.count("B") == half > 2
    page.page.locator("#tab_stats").click()
    page.page.get_by_role("columnheader", name="A", exact=True).first.wait_for()

    url = page.page.url
    other = Page(browser, portal, url[url.index("?") :])
    other.page.locator("#tab_against").click()
    other.until(lambda: told(other) == words)
    other.page.get_by_role("button", name="Swap").click()
    other.until(lambda: told(other).startswith("A lat < -10 (the present selection)"))
    other.page.locator("h1").click()
    other.page.keyboard.press("u")
    other.until(lambda: told(other) == words)
    other.page.get_by_role("button", name="Drop").click()
    other.until(lambda: "nothing yet" in told(other))
    other.idle()
    other.page.locator("#tab_gallery").click()
    other.idle()
    assert seen(other)["map"][0] <= before["map"][0] + 5
    other.check_quiet()
    page.check_quiet()


def test_the_differences_are_searched_and_can_be_stopped(browser, portal, monkeypatch):
    from nenya.portal import pair_compare

    page = Page(browser, portal)
    ask(page, "lat > 10")
    page.page.keyboard.press("a")
    ask(page, "lat < -10")
    page.page.locator("#tab_against").click()
    page.page.locator("#compare_rows").select_option("500")
    page.page.fill("#compare_seed", "5")
    page.page.get_by_role("button", name="Compare A and B").click()
    page.page.locator("#panel_against .difference, #panel_against table").nth(1).wait_for()
    page.page.get_by_text("drawn with the seed 5").wait_for()
    text = page.page.locator("#panel_against .difference").inner_text()
    assert "AUC" in text and "p = " in text and "95 %" in text and "coverage of A by B" in text
    known, begun = page.session._difference, threading.Event()

    def endless(_sets, _settings, tick):
        while True:
            begun.set()
            tick(0.5)
            time.sleep(0.02)

    monkeypatch.setattr(pair_compare, "compare_whole", endless)
    page.page.fill("#compare_seed", "6")
    page.page.get_by_role("button", name="Compare A and B").click()
    page.until(begun.is_set)
    page.page.locator("#status").get_by_text("comparing A and B").wait_for()
    page.page.locator("h1").click()
    page.page.keyboard.press("Escape")
    page.page.locator("#status").get_by_text("stopped").wait_for()
    assert not page.session.jobs.busy and page.session._difference is known
    page.check_quiet()
