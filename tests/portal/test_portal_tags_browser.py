"""Tags by what a person sees and does in Chromium: 30 are tagged, and are there after a reload and for others."""

import json

import pytest
from portal_data import write_archive
from portal_page import DRAWN, Page, chromium, needs_chromium, serve

from nenya.io import read_table

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tags")
    return folder, write_archive(folder)


def make_portal(archive, *, tags):
    from nenya.commands.portal import _tag
    from nenya.latents.files import Latents
    from nenya.options.commands import PortalOptions
    from nenya.portal.dataset import open_dataset
    from nenya.portal.holding import Portal

    _, (table, latents, cutouts) = archive
    dataset = open_dataset(table, Latents([latents]), str(cutouts))
    _tag(dataset, PortalOptions(table=str(table), tags=tags))
    portal = Portal(dataset, "a.parquet")
    portal.url, stop = serve(portal)
    return portal, stop


@pytest.fixture(scope="module")
def portal(archive):
    portal, stop = make_portal(archive, tags=True)
    yield portal
    stop()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("chromium")) as context:
        context.add_init_script(DRAWN)
        yield context


@pytest.fixture
def page(browser, portal, archive):
    (archive[0] / "a.tags.json").unlink(missing_ok=True)
    portal.dataset.tags.look()
    found = Page(browser, portal)
    yield found
    found.check_quiet()


def ask(page, text):
    page.page.fill("#ask", text)
    page.page.press("#ask", "Enter")
    page.until(lambda: text in page.chips)
    page.idle()


def give(page, word, button="Tag the selection"):
    page.page.locator("h1").click()  # away from the box of conditions
    page.page.keyboard.press("g")
    page.page.fill("#tag_word", word)
    page.page.get_by_role("button", name=button, exact=True).click()
    page.until(lambda: word[:9] in page.page.locator("#panel_tags table").inner_text())
    page.idle()


def listed(page):
    """Return what the list of tags shows: tag, cutouts, selected."""
    page.page.locator("#tab_tags").click()
    page.until(lambda: page.page.locator("#panel_tags table, #panel_tags p").count())
    page.idle()
    rows = page.page.locator("#panel_tags tbody tr").all()
    return [tuple(row.locator("td").nth(n).inner_text() for n in range(3)) for row in rows]


def drawn(page):
    """Return the texts that are drawn on the gallery."""
    page.page.locator("#tab_gallery").click()
    page.idle()
    page.synced()
    return [text for text, _, _ in page.drawn("gallery")]


def test_thirty_are_tagged_and_still_there_after_a_reload(page, portal, archive):
    ask(page, "pp_type = 1, pp_idx < 30")
    assert page.selected == 30 and "front" not in drawn(page)
    give(page, "front")
    assert listed(page) == [("front", "30", "30")]
    assert "front given to 30 cutouts" in page.page.locator("#panel_tags p").first.inner_text()
    page.page.locator(".chip").click()
    page.idle()
    assert listed(page) == [("front", "30", "30")]
    other = Page(page.page.context, portal)  # a new page reads the file as a reload does
    assert listed(other) == [("front", "30", "30")]
    other.page.get_by_role("button", name="front", exact=True).click()
    other.until(lambda: other.chips == ["tag: front"])
    other.idle()
    shown = drawn(other)
    assert other.selected == 30 and shown.count("front") == len(other.session.gallery_rows) > 5
    ask(other, "tag = front and DT > 1")
    assert 0 < other.selected < 30
    other.check_quiet()
    with open(archive[0] / "a.tags.json") as file:
        assert json.load(file)["tags"]["front"]["s3://bucket/a_preproc.h5"]["train"] == list(range(30))


def test_a_reload_of_the_page_keeps_tags_selection_and_colour(page):
    ask(page, "pp_type = 1, pp_idx < 30")
    give(page, "front")
    page.page.locator("#s_umap select").first.select_option("tag")
    page.idle()
    assert page.page.locator(".classes").inner_text().replace("\n", " ").startswith("tag")
    page.page.reload()
    page.page.locator("#count").wait_for()
    page.until(lambda: page.page.locator("#count").get_attribute("data-selected") == "30")
    page.until(lambda: "front 30" in page.page.locator(".classes").inner_text().replace("\n", " "))


def test_enter_tags_the_image_and_with_shift_the_selection(page):
    page.act("row:5")
    ask(page, "pp_type = 1, pp_idx < 30")
    for key, word, count in (("Enter", "one", "1"), ("Shift+Enter", "all", "30")):
        page.page.locator("h1").click()
        page.page.keyboard.press("g")  # marks the word that was used last, so that the next one replaces it
        page.page.keyboard.type(word)
        page.page.keyboard.press(key)
        page.until(lambda word=word, count=count: (word, count) in [line[:2] for line in listed(page)])


def test_two_people_tag_at_once_and_undo_takes_only_ones_own(page, portal):
    other = Page(page.page.context, portal)
    ask(page, "lat > 20")
    ask(other, "lat < -20")
    north, south = page.selected, other.selected
    give(page, "cold")
    give(other, "cold")
    give(other, "south")
    both = f"{north + south:,}"
    assert listed(other) == [("cold", both, str(south)), ("south", str(south), str(south))]
    assert listed(page) == [("cold", both, str(north)), ("south", str(south), "0")]
    page.page.locator("h1").click()
    page.page.keyboard.press("u")
    page.page.keyboard.press("u")
    page.until(lambda: portal.dataset.tags.counts_in(None)["cold"] == south)
    assert listed(page)[0] == ("cold", str(south), "0") and listed(other)[0] == ("cold", str(south), str(south))
    other.check_quiet()


def test_an_image_is_tagged_by_a_click_and_its_facts_say_so(page):
    page.click("gallery", 0.5, page.session.gallery.rows - 0.5)
    give(page, "eddy", "Tag the image")
    assert "eddy" in page.page.locator("#s_image table").first.inner_text()
    assert "eddy" in drawn(page)
    listed(page)
    page.page.get_by_role("button", name="image", exact=True).click()
    page.until(lambda: page.session.dataset.tags.counts_in(None) == {})
    page.idle()
    assert "eddy" not in page.page.locator("#s_image table").first.inner_text()


def test_a_script_in_a_tag_is_text(page):
    word = "<img src=x onerror=alert('hi')>"
    page.page.on("dialog", lambda dialog: pytest.fail("a tag was run"))
    ask(page, "pp_type = 1, pp_idx < 3")
    give(page, word)
    assert listed(page) == [(word, "3", "3")]
    page.page.get_by_role("button", name=word, exact=True).click()
    page.until(lambda: page.chips[-1] == f"tag: {word}")
    page.page.get_by_role("button", name="+ selection").click()
    page.page.locator("#s_umap select").first.select_option("tag")
    page.idle()
    assert word in page.page.locator(".classes").inner_text()
    assert page.page.locator("img[src=x]").count() == 0
    assert not any("x" == url.rsplit("/", 1)[-1] for url in page.requests)


def test_without_permission_tags_are_seen_and_not_given(browser, archive):
    folder, (table, _, _) = archive
    import numpy as np

    from nenya.tables.key_columns import read_keys
    from nenya.tables.keys import Packed
    from nenya.tables.tag_file import TagFile

    keys = read_keys(read_table(table))
    (folder / "a.tags.json").unlink(missing_ok=True)
    TagFile(folder / "a.tags.json").change(keys, Packed(keys), np.arange(5), "front", on=True)
    portal, stop = make_portal(archive, tags=None)
    page = Page(browser, portal)
    assert listed(page) == [("front", "5", "5")]
    assert (
        page.page.locator("#tag_form").count() == 0 and page.page.get_by_role("button", name="+ selection").count() == 0
    )
    page.act('tag:["front", "selection", true]')
    page.page.locator("#status").get_by_text("tagging is off").wait_for()
    assert listed(page) == [("front", "5", "5")]
    page.check_quiet()
    stop()
