"""What the page draws, read from its pixels and from the texts on its canvases."""

import h5py
import numpy as np
import pytest
from portal_data import write_archive
from portal_page import DRAWN, Page, chromium, has_chromium, serve

pytestmark = has_chromium
KEPT, WITHOUT = 40, 290  # images of the 60 valid rows, and a row without
FEW = 150  # cutouts in view that are points: half of the table


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    from nenya.latents.files import Latents
    from nenya.portal.dataset import open_dataset

    table, latents, cutouts = write_archive(tmp_path_factory.mktemp("drawn"))
    with h5py.File(cutouts, "r+") as file:  # the last rows have no image
        images = file["valid"][:KEPT]
        del file["valid"]
        file["valid"] = images
    return open_dataset(table, Latents([latents]), str(cutouts))


@pytest.fixture(scope="module")
def shared(dataset, tmp_path_factory):
    from nenya.portal import points
    from nenya.portal.holding import Portal
    from nenya.portal.saved import SavedViews

    most, points.MOST_POINTS = points.MOST_POINTS, FEW
    portal = Portal(dataset, "a.parquet", saved=SavedViews(tmp_path_factory.mktemp("saved") / "a.views.json"))
    portal.url, stop = serve(portal)
    with chromium(tmp_path_factory.mktemp("chromium")) as browser:
        browser.add_init_script(DRAWN)
        page = Page(browser, portal)
        yield page
        page.check_quiet()
    stop()
    points.MOST_POINTS = most


@pytest.fixture
def page(shared):
    shared.act("reset")
    shared.idle()
    yield shared


def choose_colour(page, label, name):
    page.page.locator("[aria-label=UMAP] select").select_option(label=label)
    page.until(lambda: page.session.selection.view.colour == name)
    page.idle()
    page.synced()


def labels_of_the_bar(page, name):
    """Return value and place of each number beside the colour bar of a figure."""
    right = page.page.evaluate(
        "(name) => document.querySelector(`[aria-label='${name}'] .fill`).getBoundingClientRect().x", name
    )
    figure = {"UMAP": "umap", "Map": "map"}[name]
    edge = page.place(figure, page.session.planes[figure].extent[1], 0)[0]
    assert edge > right
    texts = [(text.replace("\N{MINUS SIGN}", "-"), x, y) for text, x, y in page.drawn(figure) if x > edge + 4]
    return [(float(text.replace(",", "")), x, y) for text, x, y in texts if text.lstrip("-")[0].isdigit()]


def test_the_drawn_colour_bar_belongs_to_the_colours(page):
    """Each number beside the bar stands at its own colour, whatever was shown before, zoomed or not."""
    titles = {"lat": "mean latitude (deg N)", "DT": "mean DT = T90 - T10 (K)", "count": "number of cutouts"}
    for column in ("lat", "DT", "count"):
        choose_colour(page, titles[column], column)
        for zoomed in (False, True) if column == "DT" else (False,):
            if zoomed:
                page.page.mouse.move(*page.place("umap", 0, 0))
                page.page.mouse.wheel(0, -300)
                page.until(lambda: page.session.planes["umap"].extent != page.session.planes["umap"].home)
                page.page.wait_for_timeout(200)
                page.idle()
                page.synced()
            page.page.mouse.move(640, 20)  # away from tooltips
            pixels = page.pixels()
            for name, figure in (("UMAP", "umap"), ("Map", "map")):
                colours, found = page.session.planes[figure].colours, labels_of_the_bar(page, name)
                low, high = colours.mapper.low, colours.mapper.high
                assert len(found) >= 2 and all(low - 0.01 <= value <= high + 0.01 for value, _, _ in found), found
                palette = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in colours.mapper.palette])
                for value, x, y in found:
                    share = (
                        (value - low) / (high - low) if column != "count" else np.log(value / low) / np.log(high / low)
                    )
                    wanted = palette[min(len(palette) - 1, int(share * len(palette)))]
                    beside = pixels[round(y) - 8 : round(y) + 8, round(x) - 20 : round(x) - 6]
                    assert np.abs(beside - wanted).max(axis=-1).min() < 12, (column, name, value)
        page.act("reset")
        page.idle()


def ask(page, text, mode="and"):
    page.page.select_option("#combine", mode)
    page.page.fill("#ask", text)
    page.page.locator("#ask").press("Enter")


def shown_rows(page, count):
    page.page.locator(f"#count[data-selected='{count}']").wait_for()
    page.idle()
    return page.selected


def test_the_standard_question_is_one_line_and_selections_add_up_and_take_away(page, dataset):
    lat, lon, month, dt = (dataset.columns.values(name) for name in ("lat", "lon", "month", "DT"))
    winter = np.where(lat >= 0, np.isin(month, (12, 1, 2)), np.isin(month, (6, 7, 8)))
    west = (lon >= -140) & (lon <= -90) & (np.abs(lat) <= 30) & winter & (dt > 0.5)
    ask(page, "lon=[-140,-90], lat -30 to 30, winter, DT > 0.5")
    assert west.any() and shown_rows(page, west.sum())
    assert page.chips == ["lon=[-140,-90], lat -30 to 30, winter, DT > 0.5"]
    cold = np.isin(month, (12, 1, 2))
    ask(page, "month 12 to 2", "or")
    assert shown_rows(page, (west | cold).sum()) and " or month 12 to 2" in page.chips[0]
    ask(page, "region = 'here'", "not")
    here = np.array(dataset.columns.table.column("region").to_pylist()) == "here"
    assert shown_rows(page, ((west | cold) & ~here).sum()) and page.chips[1] == "not region = 'here'"
    ask(page, "DT >> 2; drop table")
    page.page.locator("#status", has_text="expected a condition such as").wait_for()
    assert page.selected == ((west | cold) & ~here).sum()  # as before
    page.page.select_option("#combine", "and")
    page.act("reset")
    page.act('range:["month", 11, 2]')
    assert shown_rows(page, np.isin(month, (11, 12, 1, 2)).sum()) and page.chips == ["month: 11 to 2"]


def test_classes_have_colours_of_their_own_and_a_legend_with_counts(page, dataset):
    choices = page.page.locator("[aria-label=UMAP] select option").all_inner_texts()
    assert {"month", "year", "region"} <= set(choices) and not {"mean month", "mean year"} & set(choices)
    choose_colour(page, "region", "region")
    region = np.array(dataset.columns.table.column("region").to_pylist())
    found = page.page.locator(".classes button").all_inner_texts()
    assert [text.split() for text in found] == [[name, str((region == name).sum())] for name in ("here", "there")]
    assert page.session.planes["umap"].bar is None and not labels_of_the_bar(page, "UMAP")
    marks = page.page.locator(".classes i").evaluate_all("(all) => all.map((e) => getComputedStyle(e).backgroundColor)")
    colours = [tuple(map(int, mark[4:-1].split(","))) for mark in marks]
    page.page.mouse.move(640, 20)
    for row in range(12):  # a cell of each row is in the colour of its class
        lon, lat = (float(dataset.columns.values(name)[row]) for name in ("lon", "lat"))
        x, y = page.place("map", lon, lat)
        around = page.pixels()[round(y) - 4 : round(y) + 5, round(x) - 4 : round(x) + 5].reshape(-1, 3)
        assert (np.abs(around - colours[["here", "there"].index(region[row])]).max(axis=1) < 12).any(), row
    assert {text for text, _, _ in page.drawn("umap")} & {"here", "there"}
    page.page.locator(".classes button").first.click()
    assert shown_rows(page, (region == "here").sum()) and page.chips == ["region: here"]
    choose_colour(page, "number of cutouts", "count")
    assert not page.page.locator(".classes").count()


def state_of(page):
    """Return what is seen of the view: rows, colour, order, tab, options, place of the image, and the UMAP's extent."""
    page.idle()
    page.synced()
    select = [
        page.page.locator(f"{part} select").first.input_value() for part in ("[aria-label=UMAP]", "#panel_gallery")
    ]
    tab = page.page.locator("[data-tab][aria-selected=true]").get_attribute("data-tab")
    boxes = [e.is_checked() for e in page.page.locator("[aria-label='Similar cutouts'] input[type=checkbox]").all()]
    (left, _), (right, _) = page.place("umap", 0, 0), page.place("umap", 1, 0)
    return (page.selected, select, tab, boxes, page.session.selection.view.row), right - left


def same(one, other):
    """Whether two states are one; the width of a bar's numbers may differ."""
    return one[0] == other[0] and abs(np.log(one[1] / other[1])) < 0.15


def test_few_cutouts_are_points_with_a_card_and_marks_in_all_panels(page, dataset):
    columns, plane = dataset.columns, page.session.planes["umap"]
    assert not len(plane.points.source.data["x"])  # 300 are too many here
    ask(page, "lat > 20")
    lat = columns.values("lat")
    assert shown_rows(page, (lat > 20).sum()) <= FEW
    page.page.mouse.move(640, 20)
    page.synced()
    assert (
        sorted(plane.points.source.data["row"])
        == np.flatnonzero((lat > 20) & (columns.values("US0") == columns.values("US0"))).tolist()
    )
    row, pixels = int(page.session.gallery_rows[0]), page.pixels()
    chosen = [int(page.session.theme.chosen[i : i + 2], 16) for i in (1, 3, 5)]
    places = [
        page.place("umap", float(columns.values("US0")[r]), float(columns.values("US1")[r]))
        for r in page.session.gallery_rows[1:7]
    ]
    for x, y in places:  # discs, not specks
        assert (
            np.abs(pixels[round(y) - 4 : round(y) + 5, round(x) - 4 : round(x) + 5] - chosen).max(axis=2) < 12
        ).sum() >= 12
    assert not labels_of_the_bar(page, "UMAP")  # a bar of counts would say nothing
    page.page.mouse.move(places[0][0] - 2, places[0][1])
    page.page.mouse.move(*places[0])
    card = page.page.locator("#card")
    card.wait_for()
    said = page.page.locator("#card p").last.inner_text()
    shown = int(said.split()[1].replace(",", ""))
    assert (
        np.hypot(
            *(
                np.array(page.place("umap", float(columns.values("US0")[shown]), float(columns.values("US1")[shown])))
                - places[0]
            )
        )
        < 8
    )
    assert page.page.locator("#card img").evaluate("(e) => e.complete && e.naturalWidth >= 64")
    assert f"DT {float(columns.values('DT')[shown]):.4g} K" in said
    page.synced()
    x, y = page.place("map", *(float(columns.values(name)[shown]) for name in ("lon", "lat")))
    around = page.pixels()[round(y) - 9 : round(y) + 10, round(x) - 9 : round(x) + 10]
    ink = [int(page.session.theme.ink[i : i + 2], 16) for i in (1, 3, 5)]
    assert (np.abs(around - ink).max(axis=2) < 40).sum() > 20  # a ring around it on the map too
    page.page.mouse.move(640, 20)
    page.until(lambda: not page.session.planes["map"].points.pointed.data["x"])
    assert not card.is_visible()
    page.page.mouse.move(*page.place("gallery", 0.5, page.session.gallery.rows - 0.5))
    page.until(lambda: page.session.planes["map"].points.pointed.data["x"] == [float(columns.values("lon")[row])])
    page.page.mouse.move(640, 20)


@pytest.mark.slow
def test_similar_cutouts_have_pages_become_a_selection_and_a_file_and_take_examples(page, dataset):
    import pandas as pd

    page.act("row:100")
    page.idle()
    first, most = page.session.near_rows.tolist(), page.session.near.most
    assert "60 closest" in page.page.locator(".near_note .note").inner_text() and len(first) == most < 60
    seen = [*first]
    while page.page.locator("[data-action='near:1']").is_enabled():
        page.page.locator("[data-action='near:1']").click()
        start = len(seen)
        page.until(lambda start=start: page.session.near_rows[0] == page.session.found.rows[start])
        page.idle()
        page.synced()
        seen += page.session.near_rows.tolist()
    assert seen == page.session.found.rows.tolist() and len(set(seen)) == 60
    with page.page.expect_download() as waiting:
        page.page.locator("#get_similar").click()
    file = pd.read_csv(waiting.value.path())
    assert file["similar_row"].tolist() == seen and (np.diff(file["similar_cosine"]) <= 0).all()
    page.page.locator("[data-action='select:near']").click()
    assert shown_rows(page, 60) and page.chips[0] == "60 similar to row 100 of the table"
    page.act("reset")
    shown_rows(page, dataset.columns.rows)
    page.act("row:100")
    page.idle()
    page.page.keyboard.press("+")
    page.act("row:20")
    page.page.keyboard.press("-")
    page.page.locator(".near_note .example", has_text="row 20").wait_for()
    page.idle()
    vectors = dataset.latents[0 : len(dataset.latents)].astype(np.float64)
    query = vectors[100] - 0.5 * vectors[20]
    cosine = vectors @ query
    cosine[np.isin(np.arange(len(vectors)) // 5, (20, 4)) | np.isnan(cosine)] = -9
    assert page.session.near_rows.tolist() == np.argsort(-cosine, kind="stable")[: len(page.session.near_rows)].tolist()
    page.page.locator(".near_note .example", has_text="row 20").click()
    page.until(lambda: page.session.selection.view.examples == ((100,), ()))
    page.act("like:")
    page.until(lambda: page.session.selection.view.examples == ((), ()))
    page.page.keyboard.press("u")
    page.until(lambda: page.session.selection.view.examples == ((100,), ()))
    page.act("like:")


def scales(page, name):
    """Return the pixels of a unit of x and of y."""
    (x0, y0), (x1, y1) = page.place(name, 0, 0), page.place(name, 10, 10)
    return (x1 - x0) / 10, (y0 - y1) / 10


def frame_of(page, name):
    plot = page.session.planes[name].plot
    return plot.inner_width, plot.inner_height


def settled(page):
    page.page.wait_for_timeout(400)
    page.idle()
    page.synced()


@pytest.mark.slow
@pytest.mark.parametrize("size", [(1280, 800), (800, 1100), (390, 844)])
def test_the_page_fits_its_screen_with_equal_scales(page, size):
    """Nothing is wider than the screen, nothing covers anything else, and a unit of x is as long as one of y."""
    page.page.set_viewport_size({"width": size[0], "height": size[1]})
    settled(page)
    wide = page.page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert wide[0] <= wide[1]
    boxes = [section.bounding_box() for section in page.page.locator("main > section").all()]
    for k, one in enumerate(boxes):
        assert one["width"] >= min(380, 0.9 * size[0]) - 20 and one["height"] > 250
        for other in boxes[k + 1 :]:
            apart = [
                one[axis] + one[length] <= other[axis] + 1 or other[axis] + other[length] <= one[axis] + 1
                for axis, length in (("x", "width"), ("y", "height"))
            ]
            assert any(apart)
    for name in ("umap", "map"):
        across, up = scales(page, name)
        assert across == pytest.approx(up, rel=0.03), name
        assert frame_of(page, name)[0] > 200
    if size[0] == 1280:
        assert frame_of(page, "umap")[0] >= 280 and frame_of(page, "umap")[1] >= 260
    meta = page.page.locator("meta[name=viewport]").get_attribute("content")
    assert "width=device-width" in meta
    page.page.set_viewport_size({"width": 1280, "height": 800})
    settled(page)


@pytest.mark.slow
def test_a_dark_page_is_opened_once_and_all_its_figures_are_dark(page, dataset):
    before, sessions = page.pixels(), len(page.portal.sessions)
    visitor = page.page.context.new_page()
    visitor.emulate_media(color_scheme="dark")
    visitor.goto(page.portal.url)
    visitor.locator("#count").wait_for()
    page.until(lambda: len(page.portal.sessions) == sessions + 1)
    session = [*page.portal.sessions.values()][-1]
    page.until(lambda: session.theme.dark)
    assert len(page.portal.sessions) == sessions + 1  # not opened twice
    visitor.close()
    page.page.keyboard.press("d")
    page.until(lambda: page.session.theme.dark)
    settled(page)
    dark = page.pixels()
    assert (before.min(axis=2) > 230).mean() > 0.5 and (dark.min(axis=2) > 230).mean() < 0.02
    page.page.keyboard.press("d")
    page.until(lambda: not page.session.theme.dark)
    settled(page)
    assert (np.abs(page.pixels() - before).max(axis=2) > 60).mean() < 0.03


@pytest.mark.slow
def test_rows_without_an_image_say_so_and_an_example_is_no_choice(page, dataset):
    from nenya.portal.state import View

    page.act("row:3")
    page.idle()
    page.session.jobs.call(lambda: page.session.go_to(View()))  # as undo does, back to the first view
    page.page.locator("#heading b", has_text="Example").wait_for()
    page.idle()
    assert not page.session.planes["umap"].mark.data["x"]
    page.act(f"row:{WITHOUT}")
    page.idle()
    page.synced()
    assert page.page.locator("#heading b").inner_text() == "Image"
    assert "no image in the files" in [text for text, _, _ in page.drawn("primary")]
    page.act('range:["T10", -99, 99]')
    page.idle()
    ask(page, f"pp_type = 0, pp_idx >= {KEPT - 2}")
    shown_rows(page, 62 - KEPT)
    page.synced()
    assert [text for text, _, _ in page.drawn("gallery")].count("no image") >= min(4, page.session.gallery.most - 2)
    assert page.page.get_by_text("have no image in the given files").is_visible()
    tall, page_rows = page.session.gallery.plot.inner_height, page.session.gallery_rows.tolist()
    page.act("reset")
    settled(page)
    assert page.session.gallery.plot.inner_height == pytest.approx(tall, abs=12)  # a note takes no room
    assert page_rows and page.session.gallery_rows.tolist() != page_rows


@pytest.mark.slow
def test_menus_show_whole_words_and_a_range_moves_with_the_mouse(page, dataset):
    for part in ("[aria-label=UMAP]", "#panel_gallery"):
        for menu in page.page.locator(f"{part} select").all():
            cut = menu.evaluate(
                """(e) => { const c = document.createElement("canvas").getContext("2d"), s = getComputedStyle(e);
                    c.font = s.font;
                    const room = e.clientWidth - parseFloat(s.paddingLeft) - 20;
                    return [...e.options].map((o) => o.text).filter((text) => c.measureText(text).width > room); }"""
            )
            assert cut == []
    assert {"5 %", "0 %"} & {text for text, _, _ in page.drawn("hist_DT")}  # an axis of shares
    page.drag("hist_month", (2.6, 0.02), (5.4, 0.03))
    assert page.chips == ["month: 3 to 5"]
    (x0, y0), (x1, _) = page.place("hist_month", 4, 0.03), page.place("hist_month", 8, 0.03)
    mouse = page.page.mouse
    mouse.move(x0, y0)
    mouse.down()
    mouse.move(x1, y0, steps=5)
    mouse.up()
    page.until(lambda: page.chips == ["month: 7 to 9"])


@pytest.mark.slow
def test_panels_are_enlarged_and_their_borders_move(page):
    before = frame_of(page, "umap")
    page.page.locator("#s_umap h2").dblclick(position={"x": 20, "y": 12})
    settled(page)
    large = frame_of(page, "umap")
    assert (
        large[0] > 900
        and large[1] > 550
        and scales(page, "umap")[0] == pytest.approx(scales(page, "umap")[1], rel=0.03)
    )
    page.page.keyboard.press("Escape")
    settled(page)
    assert frame_of(page, "umap") == before
    page.page.mouse.move(*page.place("map", 0, 0))
    page.page.keyboard.press("m")
    settled(page)
    assert (
        frame_of(page, "map")[0] > 900 and page.page.locator("#s_map .enlarge").get_attribute("aria-pressed") == "true"
    )
    page.page.locator("#s_map .enlarge").click()
    settled(page)
    bar = page.page.locator("[role=separator]").first
    box = bar.bounding_box()
    page.page.mouse.move(box["x"] + 3, box["y"] + 100)
    page.page.mouse.down()
    page.page.mouse.move(box["x"] + 123, box["y"] + 100, steps=4)
    page.page.mouse.up()
    settled(page)
    assert frame_of(page, "umap")[0] == pytest.approx(before[0] + 120, abs=12)
    bar.focus()
    for _ in range(5):
        page.page.keyboard.press("ArrowLeft")
    settled(page)
    assert frame_of(page, "umap")[0] == pytest.approx(before[0] - 7, abs=20)


@pytest.mark.slow
def test_one_history_of_views_for_undo_redo_back_links_and_names(page):
    """Each change is a step back and forth, by keys and by the browser; a link and a name restore all of it."""
    states, begun = [state_of(page)], page.session.selection.step

    def step(change):
        change()
        states.append(state_of(page))
        assert len(states) == page.session.selection.step + 1 - begun

    step(lambda: page.act("row:42"))
    step(lambda: choose_colour(page, "mean latitude (deg N)", "lat"))
    step(lambda: page.page.locator("#panel_gallery select").first.select_option(label="table order"))
    step(
        lambda: (
            page.page.mouse.move(*page.place("umap", 0, 0)),
            page.page.mouse.wheel(0, -300),
            page.page.wait_for_timeout(300),
        )
    )
    step(lambda: ask(page, "lat > 0"))
    step(lambda: page.page.locator("[aria-label='Similar cutouts'] input").first.uncheck())
    step(lambda: page.page.locator("#tab_stats").click())
    last, link = states[-1], page.page.url
    page.page.keyboard.press("v")
    page.page.fill("#save_name", "<b>north</b>")
    page.page.keyboard.press("Enter")
    page.page.locator(".saved button", has_text="<b>north</b>").wait_for()
    page.page.keyboard.press("Escape")
    for wanted in states[-2:-5:-1]:
        page.page.keyboard.press("u")
        assert same(state_of(page), wanted)
    for wanted in states[-5::-1]:
        page.page.evaluate("history.back()")
        page.page.wait_for_timeout(100)
        assert same(state_of(page), wanted)
    assert page.page.url.startswith(page.portal.url)  # Back has not left the page
    page.page.evaluate("history.forward()")
    page.page.wait_for_timeout(100)
    assert same(state_of(page), states[1])
    page.page.keyboard.press("y")
    assert same(state_of(page), states[2])
    page.page.keyboard.press("v")
    page.page.locator(".saved button", has_text="<b>north</b>").click()
    page.page.keyboard.press("Escape")
    assert same(state_of(page), last)
    page.act("reset")
    page.idle()
    page.synced()
    page.page.goto(link)
    page.page.locator("#count").wait_for()
    page.session = next(s for s in reversed(page.portal.sessions.values()))
    page.until(lambda: page.page.evaluate("Bokeh.documents.length > 0 && Bokeh.documents[0].is_idle"))
    assert same(state_of(page), last)
