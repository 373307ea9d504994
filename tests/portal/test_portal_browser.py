import io
import json

import numpy as np
import pandas as pd
import pytest
from portal_data import SIDE, write_archive
from portal_page import FakeEncoder, Page, chromium, needs_chromium, serve, wait

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    from nenya.latents.files import Latents
    from nenya.portal.dataset import open_dataset

    table, latents, cutouts = write_archive(tmp_path_factory.mktemp("portal"))
    return open_dataset(table, Latents([latents]), str(cutouts))


@pytest.fixture(scope="module")
def portal(dataset):
    from nenya.portal.holding import Portal

    portal = Portal(dataset, "a.parquet", FakeEncoder(), limit_mb=1)
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
    shared.act("reset")
    shared.idle()
    yield shared


def rows_in(dataset, plane, x, y):
    from nenya.portal.state import make_box

    return int(make_box(plane, x, y).mask(dataset.columns).sum())


def test_the_first_view_shows_everything_and_a_primary_image(page, dataset):
    assert page.selected == dataset.columns.rows and page.chips == []
    for name in ("umap", "map", "gallery", "primary", "near", "hist_DT", "hist_month"):
        assert page.place(name, 0, 0)
    assert page.page.locator("table.facts, .facts p").first.inner_text().strip()
    assert len(page.session.near_rows) >= 6


def test_boxes_brushes_and_categories_intersect_and_undo_takes_them_back(page, dataset):
    page.drag("umap", (-3, -3), (4, 5))
    first = page.selected
    assert len(page.chips) == 1 and page.chips[0].startswith("UMAP: US0 -")
    assert abs(first - rows_in(dataset, "umap", (-3, 4), (-3, 5))) <= 3  # a pixel is no number
    page.drag("map", (-100, -40), (120, 50))
    second = page.selected
    assert len(page.chips) == 2 and 0 < second < first
    page.drag("hist_month", (2.6, 0.02), (8.4, 0.03))
    third = page.selected
    assert len(page.chips) == 3 and 0 < third < second and page.chips[2] == "month: 3 to 8"
    assert third == page.session.mask.sum()
    page.page.keyboard.press("u")
    page.idle()
    assert page.selected == second and len(page.chips) == 2
    page.page.locator(".chip").first.click()
    page.idle()
    assert len(page.chips) == 1 and page.chips[0].startswith("map: ")
    page.page.locator("[data-action=reset]").click()
    page.idle()
    assert page.selected == dataset.columns.rows and page.chips == []


@pytest.mark.parametrize(
    ("plane", "corners"),
    [("umap", [(-3, -4), (4, -3), (5, 3), (0, 5), (-4, 2)]), ("map", [(-150, -50), (20, -60), (160, 30), (-60, 55)])],
)
def test_a_lasso_that_the_mouse_draws_selects_what_is_inside(page, dataset, plane, corners):
    from matplotlib.path import Path as Polygon

    from nenya.portal.state import PLANES

    section = page.page.locator(f"[aria-label={'UMAP' if plane == 'umap' else 'Map'}]")
    section.locator("[title='select with a lasso']").click()
    places, mouse = [page.place(plane, *corner) for corner in corners], page.page.mouse
    mouse.move(*places[0])
    mouse.down()
    for place in [*places[1:], places[0]]:
        mouse.move(*place, steps=6)
    mouse.up()
    page.until(lambda: page.session.selection.view.filters)
    page.idle()
    section.locator("[title='select a box']").click()
    points = np.column_stack([dataset.columns.values(name) for name in PLANES[plane]])
    inside = Polygon([*corners, corners[0]], closed=True).contains_points(points).sum()
    assert page.chips[0].startswith(f"{'UMAP' if plane == 'umap' else 'map'} lasso of ")
    assert 0 < page.selected < dataset.columns.rows and abs(page.selected - inside) <= 4  # pixels are no numbers
    assert len(page.session.planes[plane].outline.data["xs"][0]) > len(corners)


def test_the_mouse_draws_a_range_over_a_histogram(page, dataset):
    dt = dataset.columns.values("DT")
    top = page.session.histograms["DT"].source.data["whole"].max()
    page.drag("hist_DT", (0.8, 0.3 * top), (1.9, 0.6 * top))
    (found,) = page.session.selection.view.filters
    assert found.low == pytest.approx(0.8, abs=0.05) and found.high == pytest.approx(1.9, abs=0.05)
    assert page.selected == ((dt >= found.low) & (dt <= found.high)).sum()
    annotation = page.session.histograms["DT"].range
    assert annotation.visible and annotation.left == found.low


def focused(page):
    """Return what has the focus: its text, or the label of a form's field; and whether that is to be seen."""
    return page.page.evaluate(
        """() => { let e = document.activeElement;
            while (e && e.shadowRoot && e.shadowRoot.activeElement) e = e.shadowRoot.activeElement;
            return [e.tagName, e.id, (e.textContent || "").trim().split(" ")[0], getComputedStyle(e).outlineStyle]; }"""
    )


def test_the_keyboard_reaches_everything_and_its_keys_work(page, dataset):
    page.page.locator("h1").click()  # the order begins there
    order = []
    for _ in range(120):
        page.page.keyboard.press("Tab")
        order.append(focused(page))
        if order[-1][1] == "tab_against":
            break
    texts = [text for tag, _, text, _ in order if tag == "BUTTON"]
    assert texts[:7] == ["Undo", "Redo", "Reset", "Copy", "Time", "Dark", "Help"]
    tabs = [name for _, name, _, _ in order if name.startswith("tab_")]
    names = ("gallery", "table", "stats", "filter", "upload", "download", "tags", "against")
    assert tabs == [f"tab_{name}" for name in names]
    assert all(outline not in ("none", "") for tag, _, _, outline in order if tag == "BUTTON")
    page.page.keyboard.press("ArrowRight")  # the last tab goes on to the first
    assert focused(page)[1] == "tab_gallery" and page.page.locator("#panel_gallery").is_visible()
    page.page.keyboard.press("ArrowRight")
    page.page.locator(".table tbody tr").first.wait_for()
    page.page.keyboard.press("1")
    page.page.keyboard.press("?")
    assert page.page.locator("#helpbox").is_visible()
    page.act('range:["DT", 0, 1]')
    page.idle()
    page.page.keyboard.press("u")  # belongs to the open dialog
    page.page.keyboard.press("Escape")
    assert not page.page.locator("#helpbox").is_visible() and len(page.chips) == 1
    page.page.keyboard.press("u")
    page.idle()
    assert page.chips == []
    page.act('range:["DT", 0, 1]')
    page.act('range:["month", 1, 5]')
    page.idle()
    page.page.keyboard.press("r")
    page.idle()
    assert page.chips == [] and page.selected == dataset.columns.rows
    page.page.keyboard.press("n")
    page.idle()
    near = int(page.session.near_rows[0])
    page.page.keyboard.press("s")
    page.idle()
    assert page.session.selection.view.row == near
    page.page.locator("input[type=checkbox]").first.click()
    page.idle()
    page.page.keyboard.press("n")  # nobody types into a box to tick
    page.idle()
    assert page.session.selection.view.row != near
    page.page.locator("input[type=checkbox]").first.click()
    page.idle()
    page.page.locator("#tab_filter").click()
    page.page.locator("#range_low").focus()
    page.page.keyboard.type("1")
    page.page.keyboard.press("u")  # a letter in a field is no command
    assert page.page.locator("#panel_filter").is_visible()
    page.page.fill("#range_low", "")
    page.page.locator("#tab_gallery").click()


def test_a_new_user_is_told_where_to_start_and_finds_similar_cutouts(page):
    hint = page.page.get_by_text("Start here:")
    assert hint.is_visible() and "most similar cutouts appear" in page.page.locator(".start").inner_text()
    page.click("gallery", 2.5, page.session.gallery.rows - 0.5)
    assert page.session.selection.view.row == page.session.gallery_rows[2]
    assert "closest by cosine" in page.page.locator(".note").first.inner_text()
    page.drag("umap", (-3, -3), (4, 5))
    assert hint.count() == 0


def test_filters_by_number_and_by_name(page, dataset):
    page.page.locator("#tab_filter").click()
    page.page.select_option("#range_column", "DT")
    page.page.fill("#range_low", "0.5")
    page.page.fill("#range_high", "1.5")
    page.page.locator("#range_form button").click()
    page.idle()
    dt = dataset.columns.values("DT")
    assert page.selected == ((dt >= 0.5) & (dt <= 1.5)).sum()
    page.page.fill("#range_high", "")
    page.page.locator("#range_form button").click()
    page.idle()
    assert page.selected == (dt >= 0.5).sum()
    page.page.fill("#range_low", "3")
    page.page.fill("#range_high", "1")
    page.page.locator("#range_form button").click()
    page.page.get_by_text("the range from 3 to 1 is empty").wait_for()
    assert page.selected == (dt >= 0.5).sum()
    page.page.select_option("#range_column", "lon")
    page.page.fill("#range_low", "170")
    page.page.fill("#range_high", "-100")
    page.page.locator("#range_form button").click()
    page.idle()
    lon = dataset.columns.values("lon")
    assert page.selected == ((dt >= 0.5) & ((lon >= 170) | (lon <= -100))).sum()
    assert "map: 90°S to 90°N, 170°E to 100°W" in page.chips
    page.act("reset")
    page.act('range:["DT", 0.5, 1.5]')
    page.idle()
    page.page.select_option("#category", "here")
    page.page.locator("#category_form button").click()
    page.idle()
    here = np.array(dataset.columns.table.column("region").to_pylist()) == "here"
    assert page.selected == ((dt >= 0.5) & (dt <= 1.5) & here).sum()
    page.page.locator("#tab_gallery").click()


def test_a_click_in_the_gallery_shows_that_cutout_and_those_like_it(page, dataset):
    page.click("gallery", 1.5, page.session.gallery.rows - 0.5)
    row = int(page.session.gallery_rows[1])
    assert page.session.selection.view.row == row
    shown = page.session.primary.source.data["image"][0]
    assert np.array_equal(shown, dataset.cutouts.of(np.array([row]))[0])
    text = page.page.locator("table.facts, .facts p").first.inner_text()
    assert f"<granule {row // 5}>" in text  # escaped, not a tag
    near = page.session.near_rows
    latents = dataset.latents[0 : len(dataset.latents)].astype(np.float64)
    cosine = latents @ latents[row]
    cosine[(np.arange(len(cosine)) // 5 == row // 5) | np.isnan(cosine)] = -2
    assert near.tolist() == np.argsort(-cosine, kind="stable")[: len(near)].tolist()
    mark = page.session.planes["umap"].mark.data
    assert mark["x"][0] == pytest.approx(float(dataset.columns.values("US0")[row]))
    page.click("near", 0.5, page.session.near.rows - 0.5)
    assert page.session.selection.view.row == near[0]


def test_neighbours_with_and_without_filters_and_granules(page, dataset):
    page.act("row:100")
    page.act('range:["DT", 0, 0.8]')
    page.idle()
    dt = dataset.columns.values("DT")
    assert len(page.session.near_rows) and (dt[page.session.near_rows] <= 0.8).all()
    assert not (page.session.near_rows // 5 == 20).any()
    page.page.locator("[aria-label='Similar cutouts'] input").nth(0).uncheck()
    page.page.locator("[aria-label='Similar cutouts'] input").nth(1).uncheck()
    page.idle()
    assert (dt[page.session.near_rows] > 0.8).any()
    page.page.locator("[aria-label='Similar cutouts'] input").nth(0).check()
    page.page.locator("[aria-label='Similar cutouts'] input").nth(1).check()
    page.idle()


def test_an_empty_selection_has_no_neighbours_and_says_so(page):
    page.act('range:["DT", 90, 99]')
    page.idle()
    page.page.get_by_text("There is no other cutout with a latent within the filters.").wait_for()
    assert page.selected == 0


def test_a_row_without_a_latent_says_so(page):
    page.act("row:7")
    page.idle()
    assert "no latent" in page.page.locator(".note").inner_text()
    page.until(lambda: not page.session.near.facts.data["text"])  # nor are those of another cutout shown
    assert not len(page.session.near_rows) and not len(page.session.planes["umap"].near.data["x"])


def test_similar_cutouts_are_a_list_too_and_the_keyboard_opens_its_rows(page, dataset):
    page.act("row:100")
    page.idle()
    page.page.locator("#near_as_list").click()
    lines = page.page.locator("#near_rows tbody tr")
    lines.first.wait_for()
    row = int(page.session.near_rows[0])
    cells = lines.first.locator("td").all_inner_texts()
    assert cells[0] == str(row) and cells[1][-1] in "EW" and cells[2].startswith("20") and float(cells[-1]) <= 1
    assert lines.count() == 60 and not page.page.locator("#near_pictures").is_visible()
    lines.first.focus()
    page.page.keyboard.press("Enter")
    page.idle()
    assert page.session.selection.view.row == row and lines.first.locator("td").first.inner_text() != str(row)
    page.page.locator("#near_as_list").click()
    assert page.page.locator("#near_pictures").is_visible() and not lines.first.is_visible()


def test_a_click_in_the_umap_and_on_the_map_shows_the_nearest_selected_cutout(page, dataset):
    columns = dataset.columns
    for plane, row, names in (("umap", 30, ("US0", "US1")), ("map", 31, ("lon", "lat"))):
        page.click(plane, *(float(columns.values(name)[row]) for name in names))
        assert page.session.selection.view.row == row


def test_who_hesitates_with_the_button_down_draws_and_clicks_all_the_same(page, dataset):
    (x0, y0), (x1, y1), mouse = page.place("umap", -3, -3), page.place("umap", 4, 5), page.page.mouse
    mouse.move(x0, y0)
    mouse.down()
    page.page.wait_for_timeout(1500)
    mouse.move((x0 + x1) / 2, (y0 + y1) / 2, steps=3)
    mouse.move(x1, y1, steps=3)
    mouse.up()
    page.until(lambda: page.session.selection.view.filters, 60)
    page.idle()
    assert abs(page.selected - rows_in(dataset, "umap", (-3, 4), (-3, 5))) <= 3
    row, columns = 40, dataset.columns
    page.act("reset")
    page.idle()
    assert page.session.selection.view.row != row
    mouse.move(*page.place("map", *(float(columns.values(name)[row]) for name in ("lon", "lat"))))
    mouse.down()
    page.page.wait_for_timeout(1500)
    mouse.up()
    page.until(lambda: page.session.selection.view.row == row, 60)


def test_keys_step_through_the_gallery(page):
    page.page.keyboard.press("n")
    page.idle()
    first = page.session.selection.view.row
    page.page.keyboard.press("n")
    page.idle()
    rows = page.session.gallery_rows.tolist()
    assert rows.index(page.session.selection.view.row) == rows.index(first) + 1
    page.page.keyboard.press("p")
    page.idle()
    assert page.session.selection.view.row == first


def test_the_table_pages_and_a_click_shows_its_row(page):
    page.page.keyboard.press("2")
    page.page.locator(".table tbody tr").first.wait_for()
    assert page.page.locator(".table tbody tr").count() == 50
    page.page.locator("[data-action='page:1']").click()
    page.idle()
    assert "rows 51 to 100" in page.page.locator(".table p").inner_text()
    line = page.page.locator(".table tbody tr").nth(3)
    row = int(line.get_attribute("data-action").split(":")[1])
    line.focus()
    page.page.keyboard.press("Enter")
    page.idle()
    assert page.session.selection.view.row == row
    page.page.keyboard.press("1")


def test_a_first_visit_is_as_dark_as_the_system(browser, portal):
    visitor = browser.new_page()
    ground = "getComputedStyle(document.body).backgroundColor"
    for system, query, theme, colour in (
        ("dark", "", "dark", "rgb(13, 17, 23)"),
        ("dark", "?theme=light", "light", "rgb(238, 241, 244)"),
        ("light", "", None, "rgb(238, 241, 244)"),
    ):
        visitor.emulate_media(color_scheme=system)
        visitor.goto(portal.url + query)
        wait(visitor, f"{ground} === '{colour}'")
        visitor.locator("#count").wait_for()
        assert (f"theme={theme}" in visitor.url) if theme else "theme" not in visitor.url
    visitor.close()


def test_the_gallery_is_as_wide_with_a_colour_bar_as_without(page):
    wide = page.session.gallery.plot.inner_width
    page.session.jobs.call(lambda: page.session.set_scale("own"))
    page.until(lambda: not page.session.gallery.bar.visible)
    page.idle()
    assert page.session.gallery.plot.inner_width == wide
    page.session.jobs.call(lambda: page.session.set_scale("shared"))
    page.until(lambda: page.session.gallery.bar.visible)
    page.idle()
    assert page.session.gallery.plot.inner_width == wide
    assert page.session.gallery.notes.data["note"] == []  # an empty text would be a dot in the dark


def test_the_words_of_a_tick_box_tick_it(page):
    for place, words in enumerate(("within the filters", "from other granules only")):
        for wanted in (False, True):
            page.page.get_by_text(words, exact=True).click()
            page.until(lambda place=place, wanted=wanted: page.session.selection.view.near[place] is wanted)
    page.idle()


def test_a_histogram_says_how_tall_its_bars_are(page):
    label = page.session.histograms["month"].plot.xaxis
    page.act('range:["month", 7, 7]')
    page.idle()
    assert label[0].axis_label == "month; bars up to 100 %"
    page.act("reset")
    page.idle()
    shares = page.session.histograms["month"].source.data["whole"]
    assert label[0].axis_label == f"month; bars up to {100 * max(shares):.0f} %" and 0.1 <= max(shares) < 0.2


def test_statistics_follow_the_selection(page, dataset):
    page.act('range:["month", 6, 8]')
    page.idle()
    page.page.locator("#tab_stats").click()
    page.page.locator(".stat-season").wait_for()
    cells = page.page.locator(".stat-season tbody tr").all_inner_texts()
    assert cells[2].split()[:2] == ["JJA", str(page.selected)]
    assert cells[0].split()[1] == "0"
    said = page.page.locator(".stats").locator("xpath=..").inner_text()
    assert "Times chance is the share of selected rows" in said and "of all rows are in none of them" in said
    page.page.locator("#tab_gallery").click()


def test_downloads_hold_the_selected_rows_and_the_gallery(page, dataset):
    from PIL import Image

    page.act('range:["DT", 1, 9]')
    page.idle()
    page.page.locator("#tab_download").click()
    frame = dataset.columns.table.to_pandas()
    wanted = frame[(dataset.columns.values("DT") >= 1)].reset_index(drop=True)
    for kind, read in (("parquet", pd.read_parquet), ("csv", pd.read_csv)):
        with page.page.expect_download() as waiting:
            page.page.locator(f"#get_{kind}").click()
        found = read(waiting.value.path())
        assert found["pp_idx"].tolist() == wanted["pp_idx"].tolist()
        assert np.allclose(found["lat"], wanted["lat"]) and found["filename"].tolist() == wanted["filename"].tolist()
        assert found["filename"].dtype != "category" and (pd.to_datetime(found["datetime"]) == wanted["datetime"]).all()
    with page.page.expect_download() as waiting:
        page.page.locator("#get_png").click()
    from nenya.portal.png import coloured

    gallery = page.session.gallery
    span = (gallery.mapper.low, gallery.mapper.high)
    with Image.open(waiting.value.path()) as image:
        wide, tall = 2 * (SIDE + 2) * gallery.columns, 2 * (SIDE + 2) * gallery.rows
        assert image.size[0] > wide + 50 and image.size[1] > tall + 16  # a bar beside it, a caption below
        pixels = np.asarray(image.convert("RGB")).astype(int)
    with Image.open(io.BytesIO(coloured(page.session.gallery_picture, span))) as plain:
        wanted = np.asarray(plain)
    known = wanted[..., 3] > 0
    assert known.mean() > 0.5 and np.abs(pixels[:tall, :wide] - wanted[..., :3])[known].max() <= 12
    assert (pixels[:tall, wide:].min(axis=2) < 200).any() and (pixels[tall:].min(axis=2) < 100).any()
    page.page.locator("#tab_gallery").click()


def test_the_address_restores_the_view(page, browser, portal):
    page.drag("umap", (-2, -4), (5, 4))
    page.act("row:42")
    page.idle()
    query = page.page.url.split("/")[-1]
    other = Page(browser, portal, query + "&theme=dark")
    assert other.selected == page.selected and other.chips == page.chips
    assert other.session.selection.view == page.session.selection.view
    assert other.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(13, 17, 23)"
    other.act("reset")
    other.until(lambda: other.selected == portal.dataset.columns.rows)
    assert other.selected > page.selected and len(page.chips) == 1  # sessions do not see each other
    other.check_quiet()


def test_a_broken_link_is_one_sentence_and_the_whole_table(browser, portal, dataset):
    other = Page(browser, portal, "?view=AAAA")
    assert other.selected == dataset.columns.rows
    other.check_quiet()


def test_a_new_image_finds_its_twin(page, dataset):
    image = dataset.cutouts.of(np.array([66]))[0]
    stream = io.BytesIO()
    np.save(stream, np.kron(image, np.ones((2, 2))).astype("f8") + 15)
    page.page.locator("#tab_upload").click()
    page.page.set_input_files("#upload_file", {"name": "x.npy", "mimeType": "", "buffer": stream.getvalue()})
    page.page.locator("#upload_form button").first.click()
    page.page.locator("#upload_answer", has_text="shown under New image").wait_for()
    page.idle()
    assert page.session.near_rows[0] == 66
    answer = page.page.locator("#upload_answer").inner_text()
    assert f"averaged from {2 * SIDE} x {2 * SIDE} pixels to" in answer and "looked for" not in answer
    facts = page.page.locator("table.facts").first.inner_text()
    dt = np.subtract(*np.percentile(image.astype("f8"), (90, 10)))
    assert f"{dt:.4g}" in facts and f"{image.min() + 15:.5g}" in facts and "x.npy" in facts
    assert page.page.locator("#heading b").inner_text() == "New image"
    assert "anomaly" not in page.page.locator("#heading .hint").inner_text()
    assert len(page.session.planes["umap"].mark.data["x"]) == 1
    page.act("row:3")
    page.idle()
    assert page.page.locator("#heading b").inner_text() == "Image"


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("x.pkl", b"cos\nsystem\n(S'true'\ntR.", "expected a file ending in"),
        ("x.npy", b"\x93NUMPY but damaged", "cannot be read"),
        ("x.npy", b"0" * 1_100_000, "limit 1 MB"),
    ],
)
def test_bad_uploads_are_refused_in_a_sentence(page, name, data, words):
    page.page.locator("#tab_upload").click()
    page.page.set_input_files("#upload_file", {"name": name, "mimeType": "", "buffer": data})
    page.page.locator("#upload_form button").first.click()
    answer = page.page.locator("#upload_answer.bad", has_text=words)
    answer.wait_for()
    assert answer.inner_text().startswith("Refused: ") and "still shown" in answer.inner_text().lower()
    assert page.page.locator("#heading b").inner_text() == "Image"
    if len(data) < 1_000_000:
        address = f"{page.portal.url}upload?key={page.session.key}&name={name}"
        found = page.page.request.post(address, data=data).json()
        assert found["taken"] is False and f"row {page.session.selection.view.row} of the table" in found["message"]
    page.page.locator("#tab_gallery").click()


def test_escape_stops_only_what_goes_on(page):
    page.page.keyboard.press("n")
    page.idle()
    before = page.page.locator("#status").inner_html()
    page.page.keyboard.press("Escape")
    page.act("tab:gallery")  # after it
    assert page.page.locator("#status").inner_html() == before and "stopped" not in page.session.texts["status"]


def test_a_sheet_is_drawn_anew_where_its_size_became_known_meanwhile(page):
    page.page.locator("#tab_gallery").click()
    page.idle()
    sheet, most = page.session.gallery, page.session.gallery.most

    def late():
        page.session.sheet_page = 0
        page.session.draw_gallery()
        sheet.columns += 1  # as if the browser had said it now, with nobody told

    page.session.jobs.call(late)
    page.until(lambda: len(page.session.gallery_rows) == most + sheet.rows)
    page.session.jobs.call(lambda: sheet.fit() and page.session.draw_gallery())
    page.until(lambda: len(page.session.gallery_rows) == most)
    page.idle()


def test_colours_orders_and_scales(page, dataset):
    page.page.locator("[aria-label=UMAP] select").select_option(label="mean DT = T90 - T10 (K)")
    page.idle()
    page.until(lambda: page.session.planes["map"].bar.title.startswith("DT"))
    page.idle()
    assert page.session.planes["umap"].bar.title.startswith("DT")
    shown = page.session.planes["map"].front.data["image"][0]
    dt = dataset.columns.values("DT")
    assert dt.min() <= np.nanmin(shown) and np.nanmax(shown) <= dt.max()
    page.act("reset")
    page.page.locator("#panel_gallery select").nth(0).select_option(label="DT = T90 - T10 (K), high first")
    page.idle()
    assert page.session.gallery_rows[0] == np.argmax(dt)
    page.page.locator("#panel_gallery select").nth(1).select_option(label="own colour scales")
    page.idle()
    assert page.session.gallery.mapper.high == 1.0
    page.page.locator("#panel_gallery select").nth(1).select_option(label="shared colour scale")
    page.idle()


def test_zoom_draws_anew(page):
    before, place = page.session.planes["umap"].front.data["dw"][0], page.place("umap", 3, 3)
    page.page.mouse.move(*page.place("umap", 0, 0))
    page.page.mouse.wheel(0, -400)
    page.idle()
    page.until(lambda: page.session.planes["umap"].front.data["dw"][0] < before * 0.95)
    page.page.keyboard.press("r")
    page.until(lambda: page.session.planes["umap"].front.data["dw"][0] == before)
    page.idle()
    assert page.session.planes["umap"].is_whole
    assert page.place("umap", 3, 3) == pytest.approx(place)  # in the browser, too


def test_a_table_without_columns_loses_only_those_views(browser, tmp_path):
    from nenya.portal.dataset import open_dataset
    from nenya.portal.holding import Portal

    table = tmp_path / "bare.csv"
    pd.DataFrame({"DT": np.linspace(0, 3, 50), "lat": np.arange(50.0), "lon": np.arange(50.0)}).to_csv(
        table, index=False
    )
    portal = Portal(open_dataset(table, None, None), "bare.csv")
    portal.url, stop = serve(portal)
    try:
        page = Page(browser, portal)
        assert page.page.locator(".table tbody tr").count() == 50
        page.page.locator("#tab_gallery").click()
        text = page.page.locator("main").inner_text()
        assert "No UMAP: the table has no columns US0 and US1" in text and "No gallery" in text
        page.drag("map", (10, 10), (30, 30))
        assert abs(page.selected - 21) <= 1
        page.check_quiet()
    finally:
        stop()


def test_a_table_of_names_alone_says_what_is_not_there(browser, tmp_path):
    from nenya.portal.dataset import open_dataset
    from nenya.portal.holding import Portal

    pd.DataFrame({"UID": np.arange(30)}).to_csv(tmp_path / "bare.csv", index=False)
    portal = Portal(open_dataset(tmp_path / "bare.csv", None, None), "bare.csv")
    portal.url, stop = serve(portal)
    try:
        page = Page(browser, portal)
        text = page.page.locator("#page").inner_text()
        assert "No histograms: the table has no numeric column that varies" in text
        assert page.page.get_by_text("click a row of the table: it is shown at the upper right").count() == 1
        page.page.evaluate("dispatchEvent(new Event('nenya:lost'))")
        page.page.evaluate("document.getElementById('news').textContent = 'The archive has changed. '.repeat(6)")
        assert page.page.locator("#filterbar").bounding_box()["height"] < 100
        assert page.page.get_by_text("Start here:").bounding_box()["width"] > 60
        page.check_quiet()
    finally:
        stop()


def test_another_address_needs_the_token(browser, dataset):
    from nenya.errors import OptionError
    from nenya.portal.holding import Portal
    from nenya.portal.server import make_server

    with pytest.raises(OptionError, match="token"):
        make_server(Portal(dataset, "a"), "0.0.0.0", 0, [])
    portal = Portal(dataset, "a", token="secret-of-the-test")
    portal.url, stop = serve(portal)
    try:
        page = browser.new_page()
        page.goto(portal.url)
        assert page.locator("input[name=token]").count() == 1 and not portal.sessions
        page.fill("input[name=token]", "wrong")
        page.keyboard.press("Enter")
        page.get_by_text("Wrong token").wait_for()
        answer = page.request.get(portal.url + "download?key=x&what=rows.csv")
        assert answer.status == 403 and json.loads(answer.text())["message"] == "Log in first."
        page.goto(portal.url + "login?token=secret-of-the-test")
        page.locator("#count").wait_for(timeout=300_000)
        assert len(portal.sessions) == 1
        page.close()
    finally:
        stop()


def test_downloads_want_a_known_session_and_a_known_name(page, portal):
    key = page.session.key
    for query, status in (("key=none&what=rows.csv", 404), (f"key={key}&what=../../etc/passwd", 404)):
        assert page.page.request.get(f"{portal.url}download?{query}").status == status
