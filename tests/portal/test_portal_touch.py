"""A finger on the page: it moves the page, and selects only where a tool is chosen."""

import pytest
from portal_data import write_archive
from portal_page import Page, chromium, needs_chromium, serve

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    from nenya.latents.files import Latents
    from nenya.portal.dataset import open_dataset
    from nenya.portal.holding import Portal

    table, latents, cutouts = write_archive(tmp_path_factory.mktemp("touch"))
    portal = Portal(open_dataset(table, Latents([latents]), str(cutouts)), "a")
    portal.url, stop = serve(portal)
    with chromium(
        tmp_path_factory.mktemp("chromium"), viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True
    ) as browser:
        page = Page(browser, portal)
        yield page
        page.check_quiet()
    stop()


def swipe(page, name, way):
    """Move one finger over the middle of a figure, by (x, y) pixels, as a person does."""
    page.page.locator(f"[data-figure={name}]").scroll_into_view_if_needed()
    page.page.wait_for_timeout(300)
    box = page.page.locator(f"[data-figure={name}]").bounding_box()
    x, y = box["x"] + box["width"] / 2 - way[0] / 2, box["y"] + box["height"] / 2 - way[1] / 2
    client, steps = page.page.context.new_cdp_session(page.page), 12
    for step in range(steps + 1):
        at = [{"x": x + way[0] * step / steps, "y": y + way[1] * step / steps}]
        client.send("Input.dispatchTouchEvent", {"type": "touchMove" if step else "touchStart", "touchPoints": at})
        page.page.wait_for_timeout(20)
    client.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    page.page.wait_for_timeout(300)


def test_one_finger_moves_the_page_unless_selecting_is_chosen(page):
    assert page.page.evaluate("matchMedia('(pointer: coarse)').matches")
    for name in ("umap", "map"):
        before = page.page.evaluate("scrollY")
        swipe(page, name, (30, -160))
        page.idle()
        assert page.page.evaluate("scrollY") > before + 80 and page.chips == []
    page.page.locator("#touch").scroll_into_view_if_needed()
    page.page.locator("#touch").tap()
    assert page.page.locator("#touch").get_attribute("aria-pressed") == "true"
    swipe(page, "umap", (120, -120))
    page.until(lambda: page.session.selection.view.filters)
    page.idle()
    assert len(page.chips) == 1 and page.chips[0].startswith("UMAP: ")
    page.act("reset")
    page.page.locator("#touch").tap()
    page.idle()
    swipe(page, "umap", (30, -160))
    page.idle()
    assert page.chips == []
