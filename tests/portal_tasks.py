"""What people want of the portal, done in Chromium with what a person sees: texts, roles, names and pixels.

Each task knows the answer from the table, and looks for it on the page. Nothing here names an element by its id or
class, or looks into the page's models.
"""

import hashlib
import io
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from conftest import QUICK
from PIL import Image
from portal_data import SIDE, latents_of

from nenya.defs import REGIONS
from nenya.io import write_table
from nenya.portal.quick import CLEAR
from nenya.tables.key_columns import read_keys
from nenya.tables.keys import Packed
from nenya.tables.tag_file import TagFile

WIDE, NARROW = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
COUNT = re.compile(r"^\s*[\d,]+ of [\d,]+ cutouts")
ROWS = 1500
COLLEAGUES = "calm"
"""A tag that somebody has given before."""


def write_world(folder: Path) -> dict[str, Path]:
    """Write an archive of regions, seasons, clusters, clouds, rarity and a tag, and an own image; return the paths."""
    import h5py

    rng = np.random.default_rng(11)
    images = rng.normal(size=(ROWS, SIDE, SIDE)).cumsum(1).cumsum(2)
    images = ((images - images.mean((1, 2), keepdims=True)) / 20).astype(np.float32)
    latents = latents_of(images)
    paths = {name: folder / end for name, end in (("images", "w_preproc.h5"), ("latents", "w_preproc_latents.h5"))}
    valid = np.arange(ROWS) % 5 == 0
    for name, values in (("images", images[:, None]), ("latents", latents)):
        with h5py.File(paths[name], "w") as file:
            file["train"], file["valid"] = values[~valid], values[valid]
    lat, lon = rng.uniform(-60, 60, ROWS), rng.uniform(-180, 180, ROWS)
    for start, name in ((0, "gulfstream"), (400, "med")):
        some, box = slice(start, start + 250), REGIONS[name]
        lat[some], lon[some] = rng.uniform(*box.lat, 250), rng.uniform(*box.lon, 250)
    day = rng.integers(0, 1461, ROWS)
    frame = pd.DataFrame({
        "lat": lat, "lon": lon, "datetime": np.datetime64("2010-01-01", "ns") + day.astype("timedelta64[D]"),
        "T10": 12 + rng.normal(size=ROWS), "clear_fraction": rng.beta(20, 1, ROWS), "rarity": rng.gamma(4, 0.05, ROWS),
        "cluster": np.argmax(latents[:, :6], axis=1), "filename": [f"granule {i // 3}" for i in rng.permutation(ROWS)],
        "US0": latents[:, 1] * 10, "US1": latents[:, 2] * 10,
        "pp_file": "w_preproc.h5", "pp_type": np.where(valid, 0, 1),
        "pp_idx": np.where(valid, np.cumsum(valid), np.cumsum(~valid)) - 1,
    })  # fmt: skip
    frame["T90"] = frame["T10"] + rng.gamma(2, 0.6, ROWS)
    frame["DT"] = frame["T90"] - frame["T10"]
    paths["table"], paths["own"] = folder / "w.parquet", folder / "mine.npy"
    write_table(frame, paths["table"])
    paths["tags"] = paths["table"].with_suffix(".tags.json")
    keys = read_keys(frame)
    TagFile(paths["tags"]).change(keys, Packed(keys), np.arange(400, 430), COLLEAGUES, on=True)
    np.save(paths["own"], images[42] + 15 + rng.normal(0, 0.01, (SIDE, SIDE)))
    return paths


def open_world(paths: dict[str, Path]) -> Any:
    """Return a portal of the archive that encodes images, saves views and tags."""
    from portal_page import FakeEncoder

    from nenya.latents.files import Latents
    from nenya.portal.dataset import open_dataset
    from nenya.portal.holding import Portal
    from nenya.portal.saved import SavedViews
    from nenya.portal.tag_book import open_tags

    dataset = open_dataset(paths["table"], Latents([paths["latents"]]), str(paths["images"]))
    dataset.tags, _ = open_tags(dataset.columns, paths["tags"], asked=True, writable=True)
    saved = SavedViews(paths["table"].with_suffix(".views.json"))
    return Portal(dataset, "w.parquet", FakeEncoder(), saved=saved)


@dataclass
class Person:
    """Someone before the page: who reads it, presses, types and draws, and whose actions are counted.

    Attributes:
        page: of Playwright.
        url: of the portal.
        paths: of the archive.
        touch: whether the screen is one of touch.
        clicks: clicks, taps, strokes drawn and keys that act; a menu takes two.
        typed: texts typed.
        noted: what is needed after the task.
    """

    page: Any
    url: str
    paths: dict[str, Path]
    touch: bool
    clicks: int = 0
    typed: int = 0
    noted: dict[str, Any] = field(default_factory=dict)
    _table: Any = field(default=None, repr=False)

    @property
    def table(self) -> pd.DataFrame:
        """The table, which knows the answers."""
        if self._table is None:
            self._table = pd.read_parquet(self.paths["table"])
            self._table["month"] = self._table["datetime"].dt.month
        return self._table

    def open(self, address: str = "") -> None:
        self.page.goto(address or self.url)
        self.page.get_by_text(COUNT).first.wait_for()
        self.until(lambda: self.region("Primary image").get_by_text("DT").first.is_visible())
        self.settle()

    def until(self, condition: Callable[[], Any], seconds: float = 300) -> Any:
        """Wait for something to be seen; an error of looking is not seeing."""
        end = time.monotonic() + seconds
        while True:
            try:
                if found := condition():
                    return found
            except Exception:
                if time.monotonic() > end:
                    raise
            assert time.monotonic() < end, "waited in vain"
            self.page.wait_for_timeout(50)

    def settle(self) -> None:
        """Wait until the page looks the same twice: what it draws is drawn."""
        before = b""
        for _ in range(60):
            now = self.page.screenshot()
            if now == before:
                return
            before = now
            self.page.wait_for_timeout(120)

    def region(self, name: str) -> Any:
        return self.page.get_by_role("region", name=name, exact=True)

    def press(self, what: Any) -> None:
        what.scroll_into_view_if_needed()
        what.tap() if self.touch else what.click()
        self.clicks += 1

    def button(self, name: str, within: Any = None) -> None:
        self.press((within or self.page).get_by_role("button", name=name).first)

    def tab(self, name: str) -> None:
        self.press(self.page.get_by_role("tab", name=name))

    def type(self, label: str, text: str) -> None:
        box = self.page.get_by_label(label, exact=True).first
        self.press(box)
        box.fill(text)
        self.typed += 1

    def key(self, key: str) -> None:
        self.page.keyboard.press(key)
        self.clicks += 1

    def choose(self, label: str, option: Any) -> None:
        menu = self.page.get_by_role("combobox", name=re.compile(f"^{label}")).first
        menu.scroll_into_view_if_needed()
        names = menu.locator("option").all_inner_texts()
        menu.select_option(label=next(name for name in names if re.search(option, name)))
        self.clicks += 2

    def ask(self, condition: str) -> None:
        self.type("Conditions", condition)
        self.key("Enter")

    @property
    def count(self) -> int:
        return int(self.page.get_by_text(COUNT).first.inner_text().split(" of ")[0].replace(",", ""))

    def sees_count(self, expected: int) -> None:
        self.until(lambda: self.count == expected)

    def filters(self) -> list[str]:
        """The filters that are listed, each a button that removes it."""
        return [b.inner_text() for b in self.page.get_by_title("remove this filter", exact=True).all()]

    def figure(self, name: str) -> dict[str, float]:
        """Bring a figure into view, and return where it is."""
        found = self.page.get_by_role("application", name=re.compile(name)).first
        found.scroll_into_view_if_needed()
        self.page.wait_for_timeout(150)
        return dict(found.bounding_box())

    def at(self, name: str, fx: float, fy: float) -> tuple[float, float]:
        box = self.figure(name)
        return box["x"] + fx * box["width"], box["y"] + fy * box["height"]

    def stroke(self, places: list[tuple[float, float]]) -> None:
        """Draw with the mouse, or with a finger."""
        self.clicks += 1
        if not self.touch:
            mouse = self.page.mouse
            mouse.move(*places[0])
            mouse.down()
            for place in places[1:]:
                mouse.move(*place, steps=4)
            mouse.up()
            return
        session = self.page.context.new_cdp_session(self.page)
        steps = [("touchStart", places[:1]), *(("touchMove", [place]) for place in places[1:]), ("touchEnd", [])]
        for kind, points in steps:
            session.send(
                "Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y} for x, y in points]}
            )
        session.detach()

    def finger_selects(self) -> None:
        """On a touch screen, a finger moves the page unless it is told to select."""
        if self.touch:
            self.button("Finger selects")

    def click_at(self, place: tuple[float, float]) -> None:
        self.page.touchscreen.tap(*place) if self.touch else self.page.mouse.click(*place)
        self.clicks += 1

    def first_cutout(self, column: int = 0) -> None:
        """Choose a cutout of the first line of the gallery, as it is seen there."""
        box = self.figure("cutouts of the selection")
        self.settle()
        picture = self.pixels(box)
        known = np.abs(picture - picture[2, 2]).max(axis=2) > 30
        top = int(np.flatnonzero(known.any(axis=1))[0])
        left = int(np.flatnonzero(known[top : top + 8].any(axis=0))[0])
        self.click_at((box["x"] + left + 12 + 60 * column, box["y"] + top + 12))

    def pixels(self, box: dict[str, float]) -> np.ndarray:
        with Image.open(io.BytesIO(self.page.screenshot(clip=box))) as image:
            return np.asarray(image.convert("RGB")).astype(int)

    def read(self, region: str) -> str:
        """Return all that stands in a region, in figures' frames too."""
        return str(self.region(region).aria_snapshot())

    def facts(self) -> str:
        return self.read("Primary image")

    def shown_row(self) -> int:
        return int(re.search(r"row ([\d,]+) of the table", self.facts())[1].replace(",", ""))

    def download(self, name: str) -> Path:
        link = self.page.get_by_role("link", name=name, exact=True).locator("visible=true").first
        link.scroll_into_view_if_needed()
        with self.page.expect_download() as found:
            self.press(link)
        return Path(found.value.path())


def within(table: pd.DataFrame, name: str) -> pd.Series:
    box = REGIONS[name]
    return table["lat"].between(*box.lat) & table["lon"].between(*box.lon)


def standard_question(p: Person) -> None:
    p.ask("Gulf Stream, winter, DT > 2")
    t = p.table
    p.sees_count(int((within(t, "gulfstream") & t["month"].isin([12, 1, 2]) & (t["DT"] > 2)).sum()))


def look_alikes_of_mine(p: Person) -> None:
    p.ask("winter, lat < -30")
    t = p.table
    p.sees_count(int(((t["lat"] < -30) & t["month"].isin([6, 7, 8])).sum()))
    upload_image(p)
    near = p.region("Similar cutouts")
    p.until(lambda: near.get_by_text("within the filters").first.is_visible())
    p.button("List", near)
    rows = p.until(lambda: near.get_by_role("row").all()[1:])
    found = [int(row.get_by_role("cell").first.inner_text().replace(",", "")) for row in rows]
    some = t.iloc[found]
    assert len(found) >= 10 and (some["lat"] < -30).all() and some["month"].isin([6, 7, 8]).all()


def upload_image(p: Person) -> None:
    p.tab("New image")
    p.page.get_by_label("Drop an image here").set_input_files(str(p.paths["own"]))
    p.clicks += 2  # the button and the file
    p.button("Find similar cutouts")
    p.until(lambda: p.page.get_by_text("mine.npy is shown under New image").first.is_visible())
    p.until(lambda: "not in the archive" in p.facts())
    p.until(lambda: "closest by cosine" in p.read("Similar cutouts"))


def nearest_of_mine(p: Person) -> None:
    upload_image(p)
    near = p.region("Similar cutouts")
    p.button("List", near)
    first = p.until(lambda: near.get_by_role("row").all()[1:])[0]
    assert first.get_by_role("cell").first.inner_text() == "42"  # the image is cutout 42 with noise
    assert re.search(r"\bDT\b", p.facts())


def tag_thirty(p: Person) -> None:
    t = p.table
    least = t.loc[within(t, "gulfstream"), "DT"].sort_values().iloc[-31:-29].mean()
    p.ask(f"Gulf Stream, DT > {least:.5f}")
    p.sees_count(30)
    p.tab("Tags")
    p.type("Tag", "front")
    p.button("Tag the selection")
    p.until(lambda: p.page.get_by_role("row", name=re.compile("front 30")).first.is_visible())
    p.button("Reset")
    p.open(p.page.url)  # which shows the same tab
    p.noted["file"] = p.until(lambda: re.search(r"Kept in (\S+\.json)", p.read("Selection")))[1]
    p.button("front")
    p.sees_count(30)
    p.tab("Download")
    rows = pd.read_csv(p.download("CSV"))
    assert len(rows) == 30 and set(rows["tag"]) == {"front"} and (rows["DT"] > least).all()
    p.noted["rows"] = t[within(t, "gulfstream") & (t["DT"] > least)]


def train_on_tags(p: Person) -> None:
    """Train SupCon on the file that the page names, one epoch of a tiny network in a process of its own."""
    file = p.paths["table"].parent / p.noted["file"]
    out = file.parent / f"supcon {'touch' if p.touch else 'mouse'}"
    given = [f"data={p.paths['images']}", f"tags={file}", f"out={out}", "loss.ssl_method=SupCon"]
    code = "import sys; from nenya.cli import main; sys.exit(main())"
    short = [*QUICK, "trainer.max_epochs=1", "augment.random_jitter=[10,5]"]
    done = subprocess.run(
        [sys.executable, "-c", code, "train", *short, *given], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    train = {COLLEAGUES: 24, "front": int((p.noted["rows"]["pp_type"] == 1).sum())}
    words = "; ".join(f"{word}: {count}" for word, count in train.items())
    assert f"training on {sum(train.values())} tagged cutouts ({words})" in done.stderr, done.stderr[-2000:]
    assert f"tags_sha256: {hashlib.sha256(file.read_bytes()).hexdigest()}" in (out / "config.yaml").read_text()
    losses = pd.read_csv(next((out / "learning_curve").glob("*.csv")))[["loss_train", "loss_valid"]]
    assert len(losses) == 1 and np.isfinite(losses.to_numpy()).all()


def compare_regions(p: Person) -> None:
    t = p.table
    p.ask("Gulf Stream")
    p.sees_count(int(within(t, "gulfstream").sum()))
    p.tab("A/B")
    p.button("Hold as A")
    p.ask("region=med")
    p.sees_count(int(within(t, "med").sum()))
    p.button("Compare A and B")
    p.until(lambda: "energy distance" in p.read("Selection"))


def play_2012(p: Person) -> None:
    p.button("Time")
    panel = p.region("Time")
    p.choose("of", "2012")
    p.until(lambda: "Jan 2012" in p.read("Time"))
    p.settle()
    the_map = p.page.get_by_role("application", name=re.compile("map of")).first
    seen, pictures = {"Jan 2012"}, {the_map.screenshot()}
    p.button("Play", panel)

    def look() -> bool:
        text = p.read("Time")
        seen.update(re.findall(r"\b[A-Z][a-z]{2} 20\d\d\b", text))
        pictures.add(the_map.screenshot())
        return "end of 2012" in text

    p.until(look)
    skipped = int((re.search(r"(\d+) of \d+ steps skipped", p.read("Time")) or [0, 0])[1])  # on a busy machine
    least = max(2, min(5, (12 - skipped) // 3))
    assert len(seen) >= least and len(pictures) >= least, f"the map does not follow ({skipped} steps are skipped)"
    assert "Dec 2012" in p.read("Time") and all(month.endswith(" 2012") for month in seen), seen


def rarest_without_clouds(p: Person) -> None:
    t = p.table
    p.button("Hide cloudy")
    clear = t["clear_fraction"] >= CLEAR
    p.sees_count(int(clear.sum()))
    p.button("Rarest first")
    p.settle()
    p.first_cutout()
    best = int(t["rarity"].where(clear).idxmax())
    p.until(lambda: p.shown_row() == best)


def send_a_view(p: Person) -> None:
    p.ask("Gulf Stream, DT > 1")
    t = p.table
    expected = int((within(t, "gulfstream") & (t["DT"] > 1)).sum())
    p.sees_count(expected)
    p.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    p.until(lambda: "view=" in p.page.url)
    p.button("Copy link")
    link = p.until(lambda: p.page.evaluate("navigator.clipboard.readText()"))  # what the colleague pastes
    colleague = Person(p.page.context.browser.new_context(viewport=WIDE).new_page(), p.url, p.paths, touch=False)
    try:
        colleague.open(link)
        colleague.sees_count(expected)
        assert colleague.filters() == p.filters()
    finally:
        colleague.page.context.close()


def undo_and_redo(p: Person) -> None:
    t = p.table
    p.ask("DT > 2")
    p.sees_count(int((t["DT"] > 2).sum()))
    p.ask("DT > 3")
    p.sees_count(int((t["DT"] > 3).sum()))
    p.button("Undo")
    p.sees_count(int((t["DT"] > 2).sum()))
    p.button("Undo")
    p.sees_count(ROWS)
    p.button("Redo")
    p.sees_count(int((t["DT"] > 2).sum()))


def by_keyboard(p: Person) -> None:
    """Without a mouse: a condition, then the cutout at the centre of the UMAP."""
    focus = """(() => { let e = document.activeElement;
        while (e && e.shadowRoot && e.shadowRoot.activeElement) e = e.shadowRoot.activeElement;
        return e.getAttribute("aria-label") || (e.labels && e.labels[0] || {}).innerText || ""; })()"""

    def tab_to(name: str) -> None:
        for _ in range(80):
            p.page.keyboard.press("Tab")
            if re.search(name, p.page.evaluate(focus)):
                return
        raise AssertionError(f"no way to {name} by Tab")

    tab_to("^Conditions")
    p.page.keyboard.type("DT > 1")
    p.typed += 1
    p.key("Enter")
    p.sees_count(int((p.table["DT"] > 1).sum()))
    tab_to("^UMAP of")
    for key in ("+", "ArrowLeft", "Enter"):
        p.key(key)
    row = p.until(lambda: p.shown_row() if "chosen" not in p.facts() else 0)
    assert p.table["DT"][row] > 1


def figure_for_a_paper(p: Person) -> None:
    p.ask("Gulf Stream, winter")
    p.tab("Download")
    path = p.download("PNG")
    with Image.open(path) as image:
        colours = np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)
        assert min(image.size) >= 100 and len(colours) > 50, (image.size, len(colours))


def colour_by_dt(p: Person) -> None:
    box = p.figure("UMAP of")
    before = p.pixels(box)
    p.choose("colours of UMAP and map", "DT")
    p.until(lambda: np.mean(np.abs(p.pixels(p.figure("UMAP of")) - before).max(axis=2) > 30) > 0.01)


def select_a_cluster(p: Person) -> None:
    p.choose("colours of UMAP and map", "^cluster")
    legend = p.page.get_by_role("group", name=re.compile("^cluster"))
    p.press(p.until(lambda: legend.get_by_role("button").all()[2]))
    p.sees_count(int((p.table["cluster"] == 2).sum()))


def box_on_the_map(p: Person) -> None:
    p.finger_selects()
    p.figure("map of")
    p.stroke([p.at("map of", 0.3, 0.3), p.at("map of", 0.5, 0.5), p.at("map of", 0.6, 0.6)])
    text = p.until(lambda: p.filters()[0])  # map: 20°S to 40°N, 50°W to 30°E
    ends = [(-1 if side in "SW" else 1) * float(v) for v, side in re.findall(r"(\d+(?:\.\d+)?)°([NSEW]?)", text)]
    (y0, y1), (x0, x1) = ends[:2], ends[2:4]
    t = p.table
    inside = t["lon"].between(min(x0, x1), max(x0, x1)) & t["lat"].between(min(y0, y1), max(y0, y1))
    p.until(lambda: abs(p.count - int(inside.sum())) <= 0.03 * ROWS)  # its ends are said in whole degrees
    assert 0 < p.count < ROWS


def lasso_in_the_umap(p: Person) -> None:
    p.figure("UMAP of")
    p.press(p.region("UMAP").get_by_title("select with a lasso"))
    corners = [(0.35, 0.3), (0.65, 0.3), (0.7, 0.5), (0.6, 0.7), (0.4, 0.65), (0.35, 0.3)]
    p.stroke([p.at("UMAP of", *corner) for corner in corners])
    p.until(lambda: any("lasso" in text for text in p.filters()))
    p.until(lambda: 0 < p.count < ROWS)


def look_at_a_point(p: Person) -> None:
    """Few cutouts are points: the mouse over one shows its picture; a finger chooses it."""
    p.ask("DT > 4.5")
    p.sees_count(int((p.table["DT"] > 4.5).sum()))
    p.settle()
    box = p.figure("map of")
    blue = np.abs(p.pixels(box) - (47, 109, 181)).max(axis=2) < 25
    y, x = (int(np.median(axis)) for axis in np.nonzero(blue))
    y, x = min(zip(*np.nonzero(blue), strict=True), key=lambda at: (at[0] - y) ** 2 + (at[1] - x) ** 2)
    place = (box["x"] + float(x), box["y"] + float(y) + 1)
    if p.touch:
        p.click_at(place)
        p.until(lambda: p.table["DT"][p.shown_row()] > 4.5)
    else:
        p.page.mouse.move(*place)
        p.until(lambda: p.page.get_by_alt_text(re.compile("cutout of row")).first.is_visible())


def range_over_a_histogram(p: Person) -> None:
    p.finger_selects()
    chart = p.region("Histograms").locator("canvas").first
    chart.scroll_into_view_if_needed()
    p.page.wait_for_timeout(200)
    box = chart.bounding_box()
    p.stroke([(box["x"] + f * box["width"], box["y"] + 0.4 * box["height"]) for f in (0.35, 0.5, 0.7)])
    text = p.until(lambda: p.filters()[0])
    low, high = (float(v) for v in re.findall(r"\d+(?:\.\d+)?", text.split(":")[1])[:2])
    p.until(lambda: abs(p.count - int(p.table["DT"].between(low, high).sum())) <= 0.03 * ROWS)  # said with two digits


def union(p: Person) -> None:
    t = p.table
    p.ask("Gulf Stream")
    p.sees_count(int(within(t, "gulfstream").sum()))
    p.choose("what a new filter does to the selection", "add")
    p.ask("region=med")
    p.sees_count(int((within(t, "gulfstream") | within(t, "med")).sum()))


def dates(p: Person) -> None:
    p.ask("2012-01-01 to 2012-06-30")
    day = p.table["datetime"]
    p.sees_count(int(((day >= "2012-01-01") & (day < "2012-07-01")).sum()))


def download_rows(p: Person) -> None:
    p.ask("DT > 3")
    expected = int((p.table["DT"] > 3).sum())
    p.sees_count(expected)
    p.tab("Download")
    rows = pd.read_csv(p.download("CSV"))
    assert len(rows) == expected and (rows["DT"] > 3).all()


def read_the_table(p: Person) -> None:
    p.tab("Table")
    panel = p.region("Selection")
    p.until(lambda: panel.get_by_text("rows 1 to").first.is_visible())
    p.button("next", panel)
    text = p.until(lambda: re.search(r"rows (\d+) to (\d+) of 1,500", p.read("Selection")))
    p.until(lambda: "rows 1 to" not in p.read("Selection"))
    row = panel.get_by_role("row").nth(1)
    p.press(row)
    p.until(lambda: p.shown_row() >= 10)
    assert text


def seasons_of_a_selection(p: Person) -> None:
    p.ask("Gulf Stream")
    p.tab("Statistics")
    count = int(within(p.table, "gulfstream").sum())
    p.until(lambda: re.search(rf'row "gulfstream {count}\b', p.read("Selection")))
    p.until(lambda: re.search(r'row "DJF \d', p.read("Selection")))


def more_and_less_like_this(p: Person) -> None:
    near = p.region("Similar cutouts")
    p.first_cutout()
    p.until(lambda: "closest by cosine" in p.read("Similar cutouts"))
    p.button("More like this", near)
    p.until(lambda: re.search(r"\+ row \d", p.read("Similar cutouts")))
    p.first_cutout(1)
    p.settle()
    p.button("Less", near)
    p.until(lambda: re.search(r"[\u2212-] row \d", p.read("Similar cutouts")))


def similar_become_the_selection(p: Person) -> None:
    near = p.region("Similar cutouts")
    p.first_cutout()
    found = p.until(lambda: re.search(r"(\d+) closest by cosine", p.read("Similar cutouts")))
    p.button("Select", near)
    p.sees_count(int(found[1]))


def keep_a_view(p: Person) -> None:
    t = p.table
    expected = int((within(t, "med") & (t["DT"] > 1)).sum())
    p.ask("region=med, DT > 1")
    p.sees_count(expected)
    p.button("Views")
    name = f"mine {'touch' if p.touch else 'mouse'}"
    p.type("This view as", name)
    p.button("Save")
    p.until(lambda: p.page.get_by_role("dialog").get_by_role("button", name=name, exact=True).is_visible())
    p.button("Close", p.page.get_by_role("dialog"))
    p.button("Reset")
    p.sees_count(ROWS)
    p.button("Views")
    p.press(p.page.get_by_role("dialog").get_by_role("button", name=name, exact=True))
    p.sees_count(expected)


@dataclass(frozen=True)
class Task:
    """Something that people want.

    Attributes:
        want: in their words.
        do: does it, and fails where it cannot be done.
        after: what is done with the answer outside of the page, in time that is not counted.
        touch: whether it can be wanted on a touch screen.
        quick: whether it belongs to the small set.
    """

    want: str
    do: Callable[[Person], None]
    touch: bool = True
    quick: bool = False
    after: Callable[[Person], None] | None = None


TASKS = (
    Task("the standard question: Gulf Stream, winter, DT > 2", standard_question, quick=True),
    Task("look-alikes of my image among winter cutouts south of 30 S", look_alikes_of_mine),
    Task("what is most like my image, and its DT", nearest_of_mine),
    Task("tag 30, reload, see them again, export them, train SupCon on them", tag_thirty, after=train_on_tags),
    Task("compare two regions", compare_regions),
    Task("play 2012", play_2012),
    Task("find the rarest and hide the cloudy", rarest_without_clouds),
    Task("send a view to a colleague", send_a_view),
    Task("take two steps back, and one on again", undo_and_redo),
    Task("everything by keyboard", by_keyboard, touch=False),
    Task("a picture of the gallery for a paper", figure_for_a_paper),
    Task("colour the UMAP by DT", colour_by_dt),
    Task("see the clusters, and select one", select_a_cluster),
    Task("a box on the map", box_on_the_map),
    Task("a lasso in the UMAP", lasso_in_the_umap),
    Task("what is this point?", look_at_a_point),
    Task("a range over a histogram", range_over_a_histogram),
    Task("Gulf Stream and Mediterranean together", union),
    Task("the first half of 2012", dates),
    Task("the selected rows as a file", download_rows),
    Task("read the table, and go to one of its rows", read_the_table),
    Task("in which seasons is my selection?", seasons_of_a_selection),
    Task("more like this, less like that", more_and_less_like_this),
    Task("work on with the similar ones", similar_become_the_selection),
    Task("keep a view, and come back to it", keep_a_view),
)


def do_task(task: Task, page: Any, url: str, paths: dict[str, Path], *, touch: bool) -> dict[str, Any]:
    """Do a task on a new page; return its seconds, clicks and typed texts. The page is closed."""
    person = Person(page, url, paths, touch=touch)
    try:
        person.open()
        start = time.monotonic()
        task.do(person)
        seconds = time.monotonic() - start
        if task.after is not None:
            task.after(person)
    except Exception as error:
        said = [text for one in page.get_by_role("status").all() if (text := one.inner_text().strip())]
        raise AssertionError(f"{error}; the page says: {said}") from error
    finally:
        page.close()
    return {"seconds": round(seconds, 1), "clicks": person.clicks, "typed": person.typed}
