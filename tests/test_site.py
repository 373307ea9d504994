"""The site as `make docs` builds it: links, requests, search, dark colours, print, and what axe-core finds."""

import functools
import http.server
import re
import subprocess
import sys
import threading
from dataclasses import fields, is_dataclass
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from portal_page import chromium, has_chromium

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
sys.path.append(str(DOCS))

import make_pictures  # noqa: E402  # docs/make_pictures.py
import make_report  # noqa: E402  # docs/make_report.py
import make_site  # noqa: E402  # docs/make_site.py
from pages import reader_environment  # noqa: E402  # docs/pages.py

from nenya.commands.compose import command_names, options_of  # noqa: E402

pytestmark = pytest.mark.slow

LOOKED_AT = ("index", "cutouts", "study", "science", "reference/commands", "reference/files", "paper_figure", "search")
IGNORED = {
    # Rules of axe-core -> why the site does not follow them.
}


class Parts(HTMLParser):
    """What a page links to, loads and can be linked to."""

    def __init__(self, page: Path):
        super().__init__()
        self.links, self.loads, self.names = [], [], set()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.names |= {found[key] for key in ("id", "name") if found.get(key)}
        if tag == "a" and found.get("href"):
            self.links.append(found["href"])
        elif found.get("src"):
            self.loads.append(found["src"])
        elif tag == "link" and found.get("href"):
            self.loads.append(found["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    make_pictures.main()
    make_report.main()
    folder = tmp_path_factory.mktemp("site") / "1.0.0"
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", DOCS, folder]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**reader_environment(), "NENYA_VERSIONS": "1"}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (folder.parent / "0.9.0").mkdir()
    (folder.parent / "0.9.0" / "index.html").write_text("<!doctype html><title>0.9.0</title>")
    make_site.list_versions(folder.parent)
    return folder


@pytest.fixture(scope="module")
def parts(site) -> dict[Path, Parts]:
    return {page: Parts(page) for page in site.rglob("*.html")}


@pytest.fixture(scope="module")
def address(site):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site.parent)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/{site.name}/"
    server.shutdown()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("chromium")) as context:
        yield context


def test_it_has_the_classes_the_commands_and_the_options(site):
    models = re.sub(r"<[^>]+>", "", (site / "reference/api/models.html").read_text())
    assert "class nenya.models.resnet.ContrastiveNet(" in models
    commands = re.sub(r"<[^>]+>", "", (site / "reference/commands.html").read_text())
    options = [f.name for command in command_names() for f in fields(options_of(command)) if not is_dataclass(f.type)]
    assert [name for name in (*command_names(), *options, "loader.batch_size_valid") if name not in commands] == []
    study = re.sub(r"<[^>]+>", "", (site / "study.html").read_text())
    assert "study data" not in study
    assert "those of real granules" in study or "generated fields in the same form" in study


def test_links_and_anchors_lead_somewhere(site, parts):
    wrong = []
    for page, found in parts.items():
        for link in [*found.links, *found.loads]:
            path, _, anchor = link.partition("#")
            if re.match(r"[a-z]+:|//", path):
                continue
            target = page if not path else (page.parent / unquote(path.partition("?")[0])).resolve()
            if not target.exists():
                wrong.append(f"{page.relative_to(site)}: {link}")
            elif anchor and target.suffix == ".html" and unquote(anchor) not in parts[target].names:
                wrong.append(f"{page.relative_to(site)}: {link}")
    assert not wrong, "\n".join(wrong[:20])


def test_a_page_loads_nothing_from_elsewhere(site, parts):
    outside = [
        (page.name, load) for page, found in parts.items() for load in found.loads if re.match(r"\w+://|//", load)
    ]
    assert outside == []
    for style in site.rglob("*.css"):
        assert not re.findall(r"(?:url\(|@import)\s*['\"]?(?:https?:)?//", style.read_text()), style


@has_chromium
def test_requests_search_colours_and_print(address, browser):
    page = browser.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{address}search.html?q=umap")
    page.wait_for_selector("ul.search li a")
    assert page.locator("ul.search li a").count() > 3
    page.goto(f"{address}index.html")
    page.get_by_label("Version", exact=True).wait_for()
    background = "getComputedStyle(document.body).backgroundColor"
    page.emulate_media(color_scheme="light")
    light = page.evaluate(background)
    page.emulate_media(color_scheme="dark")
    assert page.evaluate(background) != light
    page.emulate_media(color_scheme="light", media="print")
    assert page.locator(".sidebar-drawer").first.is_hidden() and page.locator("h1").first.is_visible()
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth + 1")
    origin = address.removesuffix("1.0.0/")
    assert [url for url in asked if not url.startswith((origin, "data:"))] == []
    page.close()


@has_chromium
def test_no_page_is_wider_than_a_phone(address, browser):
    page = browser.new_page()
    page.set_viewport_size({"width": 390, "height": 844})
    wide = []
    for name in LOOKED_AT:
        page.goto(f"{address}{name}.html")
        page.wait_for_load_state("load")
        width = page.evaluate("document.documentElement.scrollWidth")
        if width > 391:
            wide.append(f"{name}: {width} pixels")
    page.close()
    assert not wide, wide


@has_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_core_finds_nothing(address, browser, scheme):
    from axe_playwright_python.sync_playwright import Axe

    page = browser.new_page()
    page.emulate_media(color_scheme=scheme)
    found = []
    for name in LOOKED_AT:
        page.goto(f"{address}{name}.html")
        page.wait_for_load_state("load")
        for violation in Axe().run(page).response["violations"]:
            if violation["id"] not in IGNORED:
                nodes = [node["html"][:150] for node in violation["nodes"][:3]]
                found.append(f"{name}: {violation['id']}: {violation['help']}: {nodes}")
    page.close()
    assert not found, "\n".join(found)
