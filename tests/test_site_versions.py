"""The menu of the site's versions: what it lists, where it leads, and what stays without it."""

import functools
import http.server
import json
import re
import sys
import threading
from pathlib import Path

import jinja2
import pytest
from portal_page import chromium, has_chromium

DOCS = Path(__file__).resolve().parents[1] / "docs"
sys.path.append(str(DOCS))

import make_site  # noqa: E402  # docs/make_site.py


def write_version(folder: Path, version: str, pages: tuple[str, ...]) -> None:
    """Write pages that have nothing but a heading and the menu, from the site's own template."""
    template = jinja2.Environment(autoescape=True).from_string((DOCS / "_templates" / "versions.html").read_text())
    for name in pages:
        page = folder / version / f"{name}.html"
        page.parent.mkdir(parents=True, exist_ok=True)
        up = "../" * name.count("/")
        menu = template.render(
            versions_page=True, version=version, pagename=name, pathto=lambda path, _, up=up: up + path
        )
        page.write_text(f'<!doctype html><html lang="en"><body><h1>{name} of {version}</h1>{menu}</body></html>')


@pytest.fixture
def folder(tmp_path):
    write_version(tmp_path, "0.9.0", ("index",))
    write_version(tmp_path, "1.10.0", ("index", "howto/gpu"))
    write_version(tmp_path, "1.9.1", ("index", "howto/gpu"))
    return tmp_path


def test_versions_are_listed_the_newest_first(folder):
    make_site.list_versions(folder)
    listed = re.findall(r'href="([^"]+)/index.html"', (folder / "index.html").read_text())
    assert listed == ["1.10.0", "1.9.1", "0.9.0"]
    assert json.loads((folder / "versions.json").read_text()) == [
        {"version": name, "url": f"{name}/"} for name in listed
    ]


@pytest.fixture
def address(folder):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.fixture
def page(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("chromium")) as context:
        context.set_default_timeout(120_000)
        yield context.new_page()


@pytest.mark.slow
@has_chromium
def test_the_menu_leads_to_the_same_page_of_another_version(folder, address, page):
    make_site.list_versions(folder)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{address}1.9.1/howto/gpu.html")
    menu = page.get_by_label("Version", exact=True)
    menu.wait_for()
    assert menu.locator("option").all_inner_texts() == ["1.10.0", "1.9.1", "0.9.0"]
    assert menu.locator("option:checked").inner_text() == "1.9.1"
    assert page.get_by_role("link", name="Other versions").is_hidden()
    menu.select_option(label="1.10.0")
    page.wait_for_url(f"{address}1.10.0/howto/gpu.html")
    page.get_by_label("Version", exact=True).select_option(label="0.9.0")  # has no such page
    page.wait_for_url(f"{address}0.9.0/index.html")
    assert [url for url in asked if not url.startswith(address)] == []


@pytest.mark.slow
@has_chromium
def test_one_version_has_no_menu_and_without_a_server_the_link_stays(folder, address, page):
    make_site.list_versions(folder)
    page.goto((folder / "1.9.1" / "howto" / "gpu.html").as_uri())
    page.get_by_role("link", name="Other versions").click()
    page.get_by_role("link", name="1.10.0").click()
    assert page.locator("h1").inner_text() == "index of 1.10.0"
    (folder / "versions.json").write_text(json.dumps([{"version": "1.9.1", "url": "1.9.1/"}]))
    with page.expect_response(f"{address}versions.json"):
        page.goto(f"{address}1.9.1/index.html")
    page.locator("nav.versions").wait_for(state="hidden")
