"""Accessibility: no serious finding of axe-core, names of all that can be operated, figures by keyboard."""

import importlib.util
from pathlib import Path

import pytest
from portal_data import write_archive
from portal_page import Page, chromium, needs_chromium, serve

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    from nenya.latents.files import Latents
    from nenya.portal.dataset import open_dataset
    from nenya.portal.holding import Portal
    from nenya.portal.saved import SavedViews

    folder = tmp_path_factory.mktemp("access")
    table, latents, cutouts = write_archive(folder)
    portal = Portal(
        open_dataset(table, Latents([latents]), str(cutouts)), "a", saved=SavedViews(folder / "a.views.json")
    )
    portal.url, stop = serve(portal)
    with chromium(tmp_path_factory.mktemp("chromium")) as browser:
        page = Page(browser, portal)
        yield page
        page.check_quiet()
    stop()


def axe_of_tests():
    """Return the text of axe-core, which a package of the tests brings along; nothing is downloaded."""
    found = importlib.util.find_spec("axe_playwright_python")
    if found is None or found.origin is None:
        pytest.skip("axe-playwright-python is not installed")
    return (Path(found.origin).parent / "axe.min.js").read_text()


@pytest.mark.parametrize("dark", [False, True])
def test_axe_has_no_serious_finding(page, dark):
    page.page.evaluate(f"document.documentElement.dataset.dark = '{str(dark).lower()}'")
    page.page.evaluate(axe_of_tests())
    if page.page.locator("#s_time").is_hidden():
        page.page.keyboard.press("t")
    page.act("row:12")
    page.act('range:["DT", 0, 3]')
    page.idle()
    page.synced()
    for tab in ("gallery", "table", "stats", "filter", "upload", "download"):
        page.page.locator(f"#tab_{tab}").click()
        page.idle()
        page.synced()
        found = page.page.evaluate(
            "axe.run({resultTypes: ['violations']}).then((r) => r.violations.filter((v) => "
            "['serious', 'critical'].includes(v.impact)).map((v) => [v.id, v.nodes.map((n) => n.html.slice(0, 200))]))"
        )
        assert found == [], tab
    page.act("reset")


def test_everything_that_can_be_operated_has_a_name(page):
    """As Chromium's accessibility tree tells it to a screen reader."""
    page.page.locator("#tab_gallery").click()
    page.idle()
    page.synced()
    tree = page.page.context.new_cdp_session(page.page).send("Accessibility.getFullAXTree")["nodes"]
    wanted = {
        "button",
        "combobox",
        "checkbox",
        "slider",
        "searchbox",
        "textbox",
        "tab",
        "link",
        "application",
        "splitter",
    }
    operated = [
        (node["role"]["value"], node.get("name", {}).get("value", ""))
        for node in tree
        if not node.get("ignored") and node.get("role", {}).get("value") in wanted
    ]
    names = {name for _, name in operated}
    assert [role for role, name in operated if not name.strip()] == []
    assert {"colours of UMAP and map", "order of the gallery", "lowest temperature of the colours, K"} <= names
    assert any(name.startswith("UMAP of the cutouts") for name in names)


def test_figures_follow_the_keyboard(page):
    figure, plane = page.page.locator("[data-figure=umap]"), page.session.planes["umap"]
    before = plane.extent
    figure.focus()
    for key, test in (
        ("+", lambda now: now[1] - now[0] < before[1] - before[0]),
        ("ArrowRight", lambda now: now[0] > before[0]),
    ):
        page.page.keyboard.press(key)
        page.until(lambda test=test: test(plane.extent))
    page.page.keyboard.press("Enter")
    page.until(lambda: page.session.selection.view.row is not None)
    page.idle()
    left, right, low, high = plane.extent
    columns, row = page.session.dataset.columns, page.session.selection.view.row
    away = [
        ((columns.values("US0") - (left + right) / 2) / (right - left)) ** 2,
        ((columns.values("US1") - (low + high) / 2) / (high - low)) ** 2,
    ]
    assert (away[0] + away[1])[row] == pytest.approx(
        (away[0] + away[1])[columns.values("US0") == columns.values("US0")].min()
    )
    page.page.locator("[data-figure=gallery]").focus()
    page.page.keyboard.press("ArrowRight")
    page.until(lambda: page.session.selection.view.row in page.session.gallery_rows[:2])
    page.act("reset")
    page.idle()
