"""The page without a server in Chromium, opened from its file: what is drawn, listed, tagged, linked and downloaded."""

import io
import json
import re

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from portal_data import write_archive
from portal_page import PATIENCE, chromium, needs_chromium
from test_portal_access import axe_of_tests

from nenya.defs import REGIONS
from nenya.options.commands import PortalOptions

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    from nenya.latents.files import Latents
    from nenya.portal.dataset import open_dataset

    table, latents, cutouts = write_archive(tmp_path_factory.mktemp("static"))
    return open_dataset(table, Latents([latents]), str(cutouts))


@pytest.fixture(scope="module")
def place(dataset, tmp_path_factory):
    from nenya.portal.export import write_page

    return write_page(dataset, tmp_path_factory.mktemp("page") / "page", "a", PortalOptions()).as_uri()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("chromium")) as context:
        yield context


class Static:
    """An exported page, with what it asked for and complained of."""

    def __init__(self, browser, address):
        self.page, self.requests, self.complaints = browser.new_page(), [], []
        self.page.set_default_timeout(PATIENCE)
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda m: m.type in ("error", "warning") and self.complaints.append(m.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.open(address)

    def open(self, address):
        self.page.goto(address)
        self.page.locator("html[data-ready=true]").wait_for()
        self.settle()

    def settle(self):
        """Wait until the canvases are laid out and drawn."""
        for _ in range(2):
            self.page.evaluate("new Promise((done) => requestAnimationFrame(() => setTimeout(done, 30)))")

    @property
    def said(self):
        return self.page.locator("#said").inner_text()

    @property
    def selected(self):
        return int(re.match(r"[\d,]+", self.said)[0].replace(",", ""))

    def canvas(self, name):
        return self.page.get_by_role("application", name=re.compile(name)).bounding_box()

    def drag(self, name, start, end):
        """Draw from one place of a canvas to another, as fractions of its size."""
        box, mouse = self.canvas(name), self.page.mouse
        at = [(box["x"] + fx * box["width"], box["y"] + fy * box["height"]) for fx, fy in (start, end)]
        mouse.move(*at[0])
        mouse.down()
        mouse.move(*at[1], steps=4)
        mouse.up()
        self.settle()

    def pixels(self, box=None):
        with Image.open(io.BytesIO(self.page.screenshot(clip=box))) as image:
            return np.asarray(image.convert("RGB")).astype(int)

    def near(self, colour, box=None):
        """Return how many pixels are nearly of a colour."""
        return int((np.abs(self.pixels(box) - colour).max(axis=2) < 12).sum())

    def picks(self, group):
        return self.page.get_by_role("group", name=group).get_by_role("button")

    def rows(self, group):
        return [int(re.match(r"row ([\d,]+)", label)[1].replace(",", "")) for label in self.labels(group)]

    def labels(self, group):
        return [self.picks(group).nth(k).get_attribute("aria-label") for k in range(self.picks(group).count())]

    def download(self, name):
        with self.page.expect_download() as found:
            self.page.get_by_role("button", name=name, exact=True).click()
        return found.value

    def close(self):
        assert {url.split(":")[0] for url in self.requests} <= {"file", "data", "blob"} and self.complaints == []
        self.page.close()


@pytest.fixture
def page(browser, place):
    found = Static(browser, place)
    found.page.evaluate("localStorage.clear()")
    found.page.reload()
    found.page.locator("html[data-ready=true]").wait_for()
    found.settle()
    yield found
    found.close()


MARK, ACCENT = (209, 52, 15), (47, 109, 181)


def test_boxes_ranges_and_clicks_select_and_go_back(page, dataset):
    assert page.said == "300 cutouts" and page.near(MARK) < 50
    page.drag("UMAP of", (0.3, 0.2), (0.8, 0.7))
    first = page.selected
    assert 0 < first < 300 and page.near(MARK, page.canvas("UMAP of")) > 300
    shown = page.near(MARK)
    for name in ("UMAP of", "map of"):  # a click beside all points changes nothing
        box = page.canvas(name)
        page.page.mouse.click(box["x"] + box["width"] - 12, box["y"] + 12)
        page.settle()
        assert page.selected == first and page.near(MARK) > 0.9 * shown
    box = page.page.get_by_role("img", name="histogram of month").bounding_box()
    page.page.mouse.move(box["x"] + 8 + (box["width"] - 16) * 2.1 / 12, box["y"] + 20)
    page.page.mouse.down()
    page.page.mouse.move(box["x"] + 8 + (box["width"] - 16) * 7.9 / 12, box["y"] + 30, steps=4)
    page.page.mouse.up()
    page.settle()
    assert 0 < page.selected < first and page.page.get_by_text("month: 3 to 8").count() == 1
    page.page.get_by_role("button", name="Undo").click()
    page.page.get_by_text("month: 3 to 8").wait_for(state="detached")
    assert page.selected == first
    page.page.go_forward()
    page.page.get_by_text("month: 3 to 8").wait_for()
    page.page.get_by_role("button", name="Reset").click()
    assert page.said == "300 cutouts"


def test_typed_ranges_regions_and_seasons_are_those_of_the_table(page, dataset):
    columns = dataset.columns
    page.page.get_by_label("Filter").select_option(label="latitude (deg N)")
    page.page.get_by_label("to", exact=True).fill("-30")
    page.page.get_by_role("button", name="Add").click()
    south = columns.values("lat") <= -30
    assert page.selected == south.sum()
    page.page.get_by_label("Region or season").select_option(label="DJF")
    winter = south & np.isin(columns.values("month"), (12, 1, 2))
    assert page.selected == winter.sum() > 0
    page.page.get_by_role("button", name="Reset").click()
    lat, lon, counts = columns.values("lat"), columns.values("lon"), []
    for name in ("gulfstream", "med", "eqpacific", "south_atlantic"):
        page.page.get_by_label("Region or season").select_option(label=name)
        box = REGIONS[name]
        inside = (lat >= box.lat[0]) & (lat <= box.lat[1]) & (lon >= box.lon[0]) & (lon <= box.lon[1])
        counts.append(page.selected)
        assert counts[-1] == inside.sum()
    assert max(counts) > 0
    page.page.get_by_label("from", exact=True).fill("3")
    page.page.get_by_label("to", exact=True).fill("1")
    page.page.get_by_role("button", name="Add").click()
    assert page.page.get_by_text("is empty: from must be below to").is_visible()


def test_look_alikes_are_the_closest_latents(page, dataset):
    page.page.get_by_label("other granules").uncheck()
    page.picks("cutouts of the selection").nth(2).click()
    row = page.rows("cutouts of the selection")[2]
    assert page.page.get_by_role("row", name=re.compile(f"^row {row}$")).count() == 1
    latents = dataset.latents.take(np.maximum(dataset.latent_of, 0))
    cosine = np.nan_to_num(latents @ latents[row], nan=-2)
    cosine[row] = -2
    best = np.argsort(-cosine)[:24]
    found = page.rows("similar cutouts")
    assert len(found) == 24 and len(set(found) & set(best.tolist())) >= 23  # eight bits may swap the last ones
    said = [float(label.split("cosine ")[1]) for label in page.labels("similar cutouts")]
    np.testing.assert_allclose(said, cosine[found], atol=0.006)
    page.page.get_by_label("other granules").check()
    assert not {other for other in page.rows("similar cutouts") if other // 5 == row // 5}
    page.page.get_by_role("button", name="Select", exact=True).click()
    assert page.selected == 60 and page.page.get_by_text(f"60 similar to row {row}").count() == 1
    table = pd.read_csv(page.download("CSV").path())
    assert len(table) == 60 and table["cosine"].is_monotonic_decreasing
    np.testing.assert_allclose(table["cosine"], cosine[table["row"]], atol=0.006)


def test_the_mouse_shows_a_thumbnail_and_facts(page, dataset):
    page.page.get_by_label("Filter").select_option(label="DT = T90 - T10 (K)")
    page.page.get_by_label("from", exact=True).fill("3")
    page.page.get_by_role("button", name="Add").click()
    page.page.get_by_label("colour", exact=True).select_option(label="region")
    page.settle()
    (row, *_) = np.flatnonzero(dataset.columns.values("DT") >= 3)
    box, (x0, x1, y0, y1) = page.canvas("map of"), (-180, 180, -80, 80)
    inner = (box["width"] - 52, box["height"] - 42)
    scale = max((x1 - x0) / inner[0], (y1 - y0) / inner[1])
    lon, lat = dataset.columns.values("lon")[row], dataset.columns.values("lat")[row]
    page.page.mouse.move(
        float(box["x"] + 44 + inner[0] / 2 + lon / scale), float(box["y"] + 8 + inner[1] / 2 - lat / scale)
    )
    card = page.page.locator("#card")
    card.wait_for()
    assert f"row {row}\n" in card.inner_text() and f"DT {dataset.columns.values('DT')[row]:.2f} K" in card.inner_text()
    thumb = page.pixels(card.locator(".thumb").bounding_box())
    image = dataset.cutouts.of(np.array([row]))[0][::-1]
    warm = thumb[..., 0] - thumb[..., 2]  # red minus blue
    blocks = warm.reshape(16, 8, 16, 8).mean(axis=(1, 3))
    assert np.corrcoef(blocks.ravel(), np.clip(image, -0.7, 0.7).ravel())[0, 1] > 0.8
    page.page.mouse.move(5, 5)
    card.wait_for(state="hidden")


def test_colours_are_those_of_the_chosen_column(page, dataset):
    box = page.canvas("map of")
    page.page.get_by_label("colour", exact=True).select_option(label="region")
    page.settle()
    swatches = page.page.locator("#legend button i")
    counts = [int(re.search(r"\((\d+)\)", text)[1]) for text in page.page.locator("#legend button").all_inner_texts()]
    region = np.array(dataset.columns.table.column("region").to_pylist())
    assert counts == [(region == name).sum() for name in ("here", "there")]
    for k in range(2):
        rgb = [
            int(v) for v in re.findall(r"\d+", swatches.nth(k).evaluate("(e) => getComputedStyle(e).backgroundColor"))
        ]
        assert page.near(rgb[:3], box) > 400
    page.page.locator("#legend button", has_text="there").click()
    assert page.selected == counts[1] and page.near(rgb[:3], page.canvas("map of")) > 400
    page.page.get_by_label("colour", exact=True).select_option(label="DT = T90 - T10 (K)")
    page.settle()
    ends = [float(text) for text in page.page.locator("#legend span").all_inner_texts()[:2]]
    values = dataset.columns.values("DT")[region == "there"]
    np.testing.assert_allclose(ends, np.quantile(values, (0.02, 0.98)), rtol=0.1)


def test_tags_stay_and_are_what_nenya_reads(page, dataset, tmp_path):
    page.page.get_by_label("Region or season").select_option(label="JJA")
    count = page.selected
    page.page.get_by_label("Tag", exact=True).fill("  <b>front</b>  é ")
    page.page.get_by_role("button", name="Tag the selection").click()
    assert page.page.get_by_text(f"Tagged {count} cutouts: <b>front</b> é.").is_visible()
    page.page.get_by_role("button", name="Reset").click()
    page.picks("cutouts of the selection").first.click()
    page.page.get_by_label("Tag", exact=True).fill("mine")
    page.page.get_by_role("button", name="Tag the cutout").click()
    (mine,) = [page.rows("cutouts of the selection")[0]]
    page.page.reload()
    page.page.locator("html[data-ready=true]").wait_for()
    assert page.page.locator("#tags button").all_inner_texts() == [f"<b>front</b> é ({count})", "mine (1)"]
    page.page.locator("#tags button").first.click()
    assert page.selected == count
    path = page.download("Download tags").path()
    found = json.loads(path.read_text())
    marks = [
        (word, file, part, idx)
        for word, files in found["tags"].items()
        for file, parts in files.items()
        for part, rows in parts.items()
        for idx in rows
    ]
    assert found["nenya_tags"] == 1 and len(marks) == count + 1
    columns = dataset.columns
    inside = np.flatnonzero(np.isin(columns.values("month"), (6, 7, 8)))
    name = lambda row: ("train", row) if row < 240 else ("valid", row - 240)  # noqa: E731
    assert {mark[2:] for mark in marks if mark[0] != "mine"} == {name(row) for row in inside.tolist()}
    assert ("mine", "s3://bucket/a_preproc.h5", *name(mine)) in marks
    rows = pd.read_csv(page.download("Download rows").path())
    assert len(rows) == count and set(rows["tag"]) <= {"<b>front</b> é", "<b>front</b> é, mine"}
    for word in (",", "=1+1", "x" * 41):
        page.page.get_by_label("Tag", exact=True).fill(word)
        page.page.get_by_role("button", name="Tag the selection").click()
        assert page.page.locator("#news.bad").count() == 1
    page.page.evaluate("localStorage.clear()")
    page.page.reload()
    page.page.locator("html[data-ready=true]").wait_for()
    assert page.page.locator("#tags button").count() == 0
    page.page.get_by_label("Read tags").set_input_files({"name": "t.json", "mimeType": "", "buffer": path.read_bytes()})
    page.page.get_by_text(f"Read {count + 1} tags.").wait_for()
    page.page.get_by_label("Read tags").set_input_files({"name": "t.csv", "mimeType": "", "buffer": b"a,b\n1,2\n"})
    page.page.get_by_text("Expected a file of tags").wait_for()
    page.page.get_by_label("Tag", exact=True).fill("all")
    page.page.get_by_role("button", name="Tag the selection").click()
    page.page.get_by_text("all (").wait_for()
    page.page.get_by_role("button", name="Undo").click()
    page.page.get_by_text("all (").wait_for(state="detached")


_READ = """([names, file, words]) => {
  const n = names.length, rows = names.map((_, i) => i), made = {};
  const data = {given: {id: "of a test"}, n, rows, placeOf: new Map(rows.map((i) => [i, i])),
    keys: {names, file: rows, type: rows.map(() => 1), idx: rows.map(() => 5)}};
  const tags = nenyaTags(data, () => {});
  words.forEach((word) => tags.add(word, [0]));
  try { made.found = Object.fromEntries(tags.read(JSON.stringify({nenya_tags: 1, tags: file})).found); }
  catch (error) { made.said = error.message; }
  made.json = tags.toJson();
  localStorage.removeItem("nenya_tags_of a test");
  return made;
}"""


def test_tags_of_files_of_one_name_stay_apart(page):
    names = ["2010/a.h5", "2011/a.h5", "2012/b.h5"]
    marks = {"f": {name: {"train": [5]} for name in names}, "g": {"a.h5": {"train": [5]}, "b.h5": {"train": [5]}}}
    found = page.page.evaluate(_READ, [names, marks, []])["found"]
    assert found == {"f": [0, 1, 2], "g": [2]}, "a.h5 alone may be either"


def test_tags_have_any_name_and_are_no_more_than_nenya_reads(page):
    found = page.page.evaluate(_READ, [["constructor"], {"one": {"constructor": {"train": [5]}}}, ["__proto__"]])
    assert '"__proto__":{"constructor":{"train":[5]}}' in found["json"] and found["found"] == {"one": [0]}
    many = {f"t{k}": {"a.h5": {"train": [5]}} for k in range(60)}
    said = page.page.evaluate(_READ, [["a.h5"], many, [f"u{k}" for k in range(60)]])["said"]
    assert "more than 100 tags" in said


_MANY = """() => {
  const n = 250001, rows = new Int32Array(n).map((_, i) => i), names = ["a.h5"];
  const data = {given: {id: "of a test"}, n, rows, placeOf: new Map(Array.from(rows, (i) => [i, i])),
    keys: {names, file: new Uint8Array(n), type: new Uint8Array(n), idx: rows}};
  const tags = nenyaTags(data, () => {}), said = [], all = Array.from(rows), most = all.slice(1);
  const attempt = (work) => { try { work(); } catch (error) { said.push(error.message); } };
  const file = (word, items) => JSON.stringify({nenya_tags: 1, tags: {[word]: {"a.h5": {valid: items}}}});
  tags.add("one", all);
  attempt(() => tags.add("two", all));
  const kept = [...tags.tags.keys()].join();
  attempt(() => tags.read(file("two", all)));
  attempt(() => tags.read(file("one", all)));
  attempt(() => tags.add("two", most.slice(1)));
  attempt(() => tags.read(file("two", most)));
  localStorage.removeItem("nenya_tags_of a test");
  return {said, kept, marks: [...tags.tags.values()].map((rows) => rows.size)};
}"""


def test_no_more_cutouts_are_tagged_than_nenya_reads(page):
    found = page.page.evaluate(_MANY)
    wanted = [f"got {count}: select fewer, or remove a tag first." for count in ("500,002", "500,002", "500,001")]
    assert found["said"] == [f"Expected at most 500,000 tagged cutouts, {text}" for text in wanted]
    assert found["kept"] == "one" and found["marks"] == [250_001, 249_999]


def test_downloaded_rows_have_one_column_of_tags(browser, tmp_path):
    from nenya.latents.files import Latents
    from nenya.portal.dataset import open_dataset
    from nenya.portal.export import write_page
    from nenya.portal.tag_book import open_tags

    table, latents, cutouts = write_archive(tmp_path)
    dataset = open_dataset(table, Latents([latents]), str(cutouts))
    dataset.tags, _ = open_tags(dataset.columns, tmp_path / "a.tags.json", asked=True, writable=True)
    dataset.tags.change(np.array([3, 5]), "front", on=True)
    dataset.tags.change(np.array([5]), "eddy", on=True)
    opened = Static(browser, write_page(dataset, tmp_path / "page", "a", PortalOptions()).as_uri())
    opened.page.get_by_label("Tag", exact=True).fill("mine")
    opened.page.get_by_role("button", name="Tag the selection").click()
    rows = pd.read_csv(opened.download("Download rows").path(), index_col="row")
    opened.close()
    assert [name for name in rows if name.startswith("tag")] == ["tag"]
    assert rows["tag"][[3, 4, 5]].tolist() == ["front, mine", "mine", "eddy, front, mine"]


def test_the_read_tags_are_those_of_nenya_itself(page, dataset, tmp_path):
    tags = pytest.importorskip("nenya.tables.tags", reason="tags of the portal are not there")
    page.page.get_by_label("Tag", exact=True).fill("some")
    page.page.get_by_role("button", name="Tag the selection").click()
    (tmp_path / "t.json").write_bytes(page.download("Download tags").path().read_bytes())
    found = tags.read_tags(tmp_path / "t.json")
    assert found.words == ("some",) and len(found) == 300


def test_a_link_is_the_view_and_a_foreign_one_is_refused(page, browser, place):
    page.drag("map of", (0.2, 0.3), (0.7, 0.8))
    page.page.get_by_label("colour", exact=True).select_option(label="month")
    page.page.get_by_label("order").select_option(label="DT (K), largest first")
    page.picks("cutouts of the selection").nth(1).click()
    box = page.canvas("map of")
    page.page.mouse.move(box["x"] + 100, box["y"] + 80)
    page.page.mouse.wheel(0, -300)
    page.page.wait_for_timeout(500)  # the address follows a zoom once it rests
    link, state = page.page.url, (page.said, page.rows("cutouts of the selection"), page.rows("similar cutouts"))
    assert "#" in link and "<" not in link
    other = Static(browser, link)
    assert (other.said, other.rows("cutouts of the selection"), other.rows("similar cutouts")) == state
    assert other.page.get_by_label("colour", exact=True).input_value() == "month"
    assert np.mean(np.abs(other.pixels(other.canvas("map of")) - page.pixels(box)).max(axis=2) > 40) < 0.01
    ranged = '{"f":[{"k":"range","n":"<img src=x>","v":[0,1]}]}'
    for text in ("%7Bx", ranged, '{"r":99999}', '{"f":[{"k":"box"}]}', '{"c":"__proto__"}'):
        other.page.goto("about:blank")
        other.open(place + "#" + text)
        assert other.page.get_by_text("does not fit this page: the complete page is shown").is_visible()
        assert other.said == "300 cutouts"
    other.close()


def test_dark_narrow_and_by_touch(page, place):
    bright = page.pixels()[2, 2].sum()
    page.page.get_by_role("button", name="Dark").click()
    page.settle()
    assert page.pixels()[2, 2].sum() < 200 < bright
    for width, height in ((390, 844), (800, 1100), (1920, 1080)):
        page.page.set_viewport_size({"width": width, "height": height})
        page.settle()
        assert page.page.evaluate("document.documentElement.scrollWidth") <= width
        for name in ("UMAP of", "map of"):
            assert page.canvas(name)["width"] > min(330, width / 4) and page.canvas(name)["height"] > 180
    page.page.set_viewport_size({"width": 1280, "height": 800})


def test_a_finger_scrolls_taps_and_draws(browser, place):
    """On a touch screen the page scrolls over a figure, a tap chooses, and Box draws."""
    context = browser.browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    page = Static(context, place)
    canvas = page.page.get_by_role("application", name=re.compile("UMAP of"))
    assert canvas.evaluate("(e) => getComputedStyle(e).touchAction") == "pan-y"
    box = page.canvas("UMAP of")
    page.page.touchscreen.tap(box["x"] + 44 + (box["width"] - 52) / 2, box["y"] + box["height"] / 2 - 13)
    page.settle()
    assert page.page.get_by_role("row", name=re.compile("^row ")).count() == 1 and page.selected == 300
    page.page.get_by_role("toolbar", name="tools of the UMAP").get_by_role("button", name="Box").tap()
    assert canvas.evaluate("(e) => getComputedStyle(e).touchAction") == "none"
    box = page.canvas("UMAP of")
    places = [(box["x"] + f * box["width"], box["y"] + f * box["height"]) for f in (0.3, 0.5, 0.7)]
    session = context.new_cdp_session(page.page)
    steps = (("touchStart", places[:1]), ("touchMove", places[1:2]), ("touchMove", places[2:]), ("touchEnd", []))
    for kind, points in steps:
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y} for x, y in points]})
    page.page.get_by_text("UMAP: a box").wait_for()
    assert 0 < page.selected < 300
    page.close()
    context.close()


def test_axe_has_no_serious_finding(page):
    page.picks("cutouts of the selection").first.click()
    page.page.get_by_label("Tag", exact=True).fill("seen")
    page.page.get_by_role("button", name="Tag the cutout").click()
    page.page.get_by_label("colour", exact=True).select_option(label="month")
    for theme in ("Light", "Dark"):
        if theme == "Dark":
            page.page.get_by_role("button", name="Dark").click()
        page.page.evaluate(axe_of_tests()) if not page.page.evaluate("'axe' in window") else None
        found = page.page.evaluate(
            "axe.run({resultTypes: ['violations']}).then((r) => r.violations.filter((v) => "
            "['serious', 'critical'].includes(v.impact)).map((v) => [v.id, v.nodes.map((n) => n.html.slice(0, 200))]))"
        )
        assert found == [], theme


def test_lists_of_neighbours_serve_where_latents_are_too_many(browser, dataset, tmp_path, monkeypatch):
    from nenya.portal import static_near
    from nenya.portal.export import write_page

    monkeypatch.setattr(static_near, "MOST_SEARCHED", 100)
    page = Static(browser, write_page(dataset, tmp_path / "page", "a", PortalOptions(sample=300)).as_uri())
    page.page.get_by_label("other granules").uncheck()
    page.picks("cutouts of the selection").nth(3).click()
    row = page.rows("cutouts of the selection")[3]
    latents = dataset.latents.take(np.maximum(dataset.latent_of, 0))
    cosine = np.nan_to_num(latents @ latents[row], nan=-2)
    cosine[row] = -2
    assert page.rows("similar cutouts") == np.argsort(-cosine, kind="stable")[:24].tolist()
    page.close()
