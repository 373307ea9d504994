"""Scripts in every text of a table, in a real browser: on loading, hovering, colouring, drawing, when exported."""

import io
import re

import numpy as np
import pytest
from portal_page import FakeEncoder, Page, chromium, needs_chromium, serve
from test_portal_script import CATEGORY, MATH, NAME, NUMBER, RUN, SCRIPTS, hostile

from nenya.options.commands import PortalOptions

pytestmark = needs_chromium
_ = hostile  # a fixture of the other module

LURE = """() => { const made = [];
    const look = (root) => { for (const e of root.querySelectorAll("*")) {
        if (e.tagName === "IMG" && e.getAttribute("src") === "x") made.push(e.outerHTML);
        for (const a of e.attributes) if (a.name.startsWith("on")) made.push(e.outerHTML);
        if ((e.getAttribute("href") || "").startsWith("javascript:")) made.push(e.outerHTML);
        if (/^mjx|MathJax/.test(e.tagName)) made.push(e.tagName);
        if (e.shadowRoot) look(e.shadowRoot); } };
    look(document); return made; }"""


@pytest.fixture(scope="module")
def portal(hostile):
    from nenya.portal.holding import Portal

    portal = Portal(hostile, NAME, FakeEncoder(), limit_mb=1)
    portal.url, stop = serve(portal)
    yield portal
    stop()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("chromium")) as context:
        context.add_init_script("window.ran = 0; window.alert = () => { window.ran++; };")
        yield context


def check_quiet(page):
    """No script ran, none of the texts became an element, and the policy had nothing to forbid."""
    assert page.page.evaluate("window.ran") == 0
    assert page.page.evaluate(LURE) == []
    assert [text for text in page.complaints if "favicon" not in text] == []


def hover(page, name, x, y):
    page.page.mouse.move(*page.place(name, x, y))
    page.page.wait_for_timeout(300)
    page.page.mouse.move(*(v + 2 for v in page.place(name, x, y)))
    page.page.wait_for_timeout(300)


def test_no_script_of_a_file_runs(browser, portal, hostile):
    page = Page(browser, portal)
    check_quiet(page)
    assert page.page.locator("header small").text_content() == NAME
    facts = page.page.locator("table.facts").first.inner_text()
    assert any(script[:20] in facts for script in SCRIPTS)
    for tab in ("table", "stats", "filter", "upload", "download", "gallery"):
        page.page.locator(f"#tab_{tab}").click()
        page.idle()
        check_quiet(page)
    page.page.locator("#tab_table").click()
    page.idle()
    assert SCRIPTS[1] in page.page.locator("table.rows").first.inner_text()
    page.page.locator("#tab_gallery").click()
    place = [float(hostile.columns.values(name)[3]) for name in ("US0", "US1")]
    for colour in (NUMBER, MATH):
        label = f"mean {colour.replace('_', ' ')}"
        page.page.locator("[aria-label=UMAP] select").select_option(label=label)
        page.until(
            lambda label=label: page.session.planes["umap"].bar.title.replace("\N{WORD JOINER}", "") == label[5:]
        )
        page.idle()
        hover(page, "umap", *place)
        check_quiet(page)
    for name, x, y in (("gallery", 0.5, 2.5), ("near", 0.5, 1.5), ("primary", 0.5, 0.5), ("map", 10, 10)):
        hover(page, name, x, y)
        check_quiet(page)
    more = page.page.get_by_text("more histograms")
    if more.count():
        more.click()
        page.idle()
    top = page.session.histograms[NUMBER].source.data["whole"].max()
    page.drag(f"hist_{NUMBER}", (0.2, 0.3 * top), (0.7, 0.6 * top))
    assert any(NUMBER in chip for chip in page.chips)
    check_quiet(page)
    page.page.locator("#tab_filter").click()
    page.page.select_option("#range_column", label=NUMBER)
    page.page.fill("#range_low", "0.1")
    page.page.locator("#range_form button").click()
    page.idle()
    options = page.page.locator("#category option", has_text=SCRIPTS[3])
    page.page.select_option("#category", [options.first.get_attribute("value")])
    page.page.locator("#category_form button").click()
    page.idle()
    assert any(SCRIPTS[3] in chip for chip in page.chips) and any(NUMBER in chip for chip in page.chips)
    check_quiet(page)
    page.page.locator("#help").click()
    check_quiet(page)
    page.page.close()


def test_no_script_of_an_uploaded_files_name_runs(browser, portal, hostile):
    page = Page(browser, portal)
    stream = io.BytesIO()
    np.save(stream, hostile.cutouts.of(np.array([66]))[0].astype("f8") + 15)
    page.page.locator("#tab_upload").click()
    for name in (f"{SCRIPTS[0]}.npy", f"{SCRIPTS[3]}.npy", f"{SCRIPTS[0]}.exe"):
        name = name.replace("/", "")
        page.page.set_input_files("#upload_file", {"name": name, "mimeType": "", "buffer": stream.getvalue()})
        page.page.locator("#upload_form button").first.click()
        said = "expected a file ending in" if name.endswith("exe") else "shown under"
        page.page.locator("#upload_answer", has_text=said).wait_for()
        page.idle()
        check_quiet(page)
    page.page.close()


def test_the_policy_stops_a_script_that_is_put_into_the_page(browser, portal):
    """Were a text to become an element after all, nothing of it would run, and nothing would be sent elsewhere."""
    page = Page(browser, portal)
    for script in SCRIPTS:
        page.page.evaluate(
            """(text) => { const box = document.createElement("div"); box.innerHTML = text; document.body.append(box);
                const frame = document.createElement("iframe"); frame.srcdoc = text; document.body.append(frame); }""",
            script,
        )
    page.page.evaluate(
        """(run) => {
            const add = (tag, values) => {
                const e = Object.assign(document.createElement(tag), values); document.body.append(e); return e; };
            add("script", {textContent: run});
            add("script", {src: "data:text/javascript," + run});
            add("script", {src: URL.createObjectURL(new Blob([run], {type: "text/javascript"}))});
            add("script", {src: "http://127.0.0.1:9/x.js"});
            add("script", {src: "download?key=x&what=rows.csv"});
            add("a", {href: "javascript:" + run, textContent: "x", id: "lure"}).click();
            add("base", {href: "http://127.0.0.1:9/"});
            add("object", {data: "data:text/html,<script>" + run + "</scr" + "ipt>"});
            add("img", {src: "http://127.0.0.1:9/leak.png"});
            add("form", {action: "http://127.0.0.1:9/", method: "post"}).submit();
            setTimeout(() => {  // outside of what the test's own tool may do
                try { new Function(run)(); } catch (error) { window.refused = error.name; }
                try { setTimeout(run, 0); } catch (error) { }
            }, 10);
            fetch("http://127.0.0.1:9/leak").catch(() => { });
        }""",
        RUN,
    )
    page.page.wait_for_timeout(1500)
    assert page.page.evaluate("window.ran") == 0 and page.page.evaluate("window.refused") == "EvalError"
    assert page.page.url.startswith(portal.url) and page.page.evaluate("document.baseURI").startswith(portal.url)
    refused = [text for text in page.complaints if "Content Security Policy" in text or "policy" in text.lower()]
    assert len(refused) >= len(SCRIPTS) // 2
    page.page.close()


def test_no_script_runs_in_the_exported_page(browser, hostile, tmp_path):
    from nenya.portal.export import write_page

    place = write_page(hostile, tmp_path / "page", NAME, PortalOptions(sample=200))
    page, complaints, requests = browser.new_page(), [], []
    page.on("console", lambda m: m.type in ("error", "warning") and complaints.append(m.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(place.as_uri())
    page.locator("html[data-ready=true]").wait_for()
    assert page.locator("h1").inner_text() == f"Nenya: {NAME}"
    columns = page.get_by_label("colour", exact=True)
    for column in (NUMBER, MATH, "cluster", CATEGORY):
        columns.select_option(label=column)
        page.get_by_label("Filter").select_option(label=NUMBER)
    page.get_by_label("from", exact=True).fill("0.2")
    page.get_by_role("button", name="Add").click()
    assert page.locator(".chip").inner_text().startswith(NUMBER)
    page.locator("#legend button").first.click()
    page.locator("#gallery button").first.click()
    assert any(script in page.locator("table.facts").inner_text() for script in SCRIPTS)
    page.get_by_label("Tag", exact=True).fill(SCRIPTS[1][:40])
    page.get_by_role("button", name="Tag the cutout").click()
    page.locator("#gallery button").last.hover()
    for name in ("UMAP of", "map of"):
        box = page.get_by_role("application", name=re.compile(name)).bounding_box()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        page.wait_for_timeout(100)
    link = page.url
    page.goto("about:blank")
    page.goto(link)
    page.locator(".chip").first.wait_for()
    assert page.locator("#tags button").inner_text() == f"{SCRIPTS[1][:40]} (1)"
    assert page.evaluate("window.ran") == 0 and page.evaluate(LURE) == [] and complaints == []
    assert {url.split(":")[0] for url in requests} <= {"file", "data", "blob"}
    page.evaluate(
        "(text) => { const d = document.createElement('div'); d.innerHTML = text; document.body.append(d); }",
        SCRIPTS[0],
    )
    page.evaluate(
        "(run) => { const s = document.createElement('script'); s.textContent = run; document.body.append(s); }", RUN
    )
    page.wait_for_timeout(500)
    assert page.evaluate("window.ran") == 0 and any("Content Security Policy" in text for text in complaints)
    page.close()
