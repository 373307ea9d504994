"""`nenya.view` in a real kernel: the frame of a cell in Chromium, its selection in the next cell, the end of both."""

import http.client
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from portal_data import write_archive
from portal_page import chromium, needs_chromium

jupyter_client = pytest.importorskip("jupyter_client", reason="jupyter_client is not installed")
pytest.importorskip("ipykernel", reason="ipykernel is not installed")
pytestmark = needs_chromium


class Kernel:
    """A kernel that runs cells one by one."""

    def __init__(self):
        self.manager, self.client = jupyter_client.manager.start_new_kernel(kernel_name="python3")

    def run(self, code):
        """Return the texts, the HTML and the streams of a cell; an error of it is an error here."""
        found = {"text/plain": "", "text/html": "", "stream": ""}

        def keep(message):
            content = message["content"]
            for kind in ("text/plain", "text/html"):
                found[kind] += content.get("data", {}).get(kind, "")
            found["stream"] += content.get("text", "")

        answer = self.client.execute_interactive(code, timeout=300, output_hook=keep)
        assert answer["content"]["status"] == "ok", answer["content"]
        return found

    def stop(self):
        self.client.stop_channels()
        self.manager.shutdown_kernel()


def notebook_page(text):
    """Serve a page that holds the output of a cell, as a notebook does, from another port; return address and end."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self):
            body = f"<!doctype html><title>notebook</title><h1>Cells</h1>{text}".encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://localhost:{server.server_port}/", server.shutdown


def test_a_cell_shows_the_page_and_the_next_one_has_the_selection(tmp_path):
    table, latents, cutouts = map(str, write_archive(tmp_path))
    kernel = Kernel()
    try:
        kernel.run("import nenya, pandas as pd")
        cell = kernel.run(f"v = nenya.view(pd.read_parquet({table!r}), {latents!r}, images={cutouts!r})\nv")
        assert cell["text/html"].startswith("<iframe ") and cell["text/plain"].startswith("nenya.view of 300 rows")
        assert cell["stream"] == ""
        assert kernel.run("len(v.selection), v.chosen is None")["text/plain"] == "(300, True)"
        address, stop = notebook_page(cell["text/html"])
        with chromium(tmp_path / "chromium") as browser:
            page, complaints = browser.new_page(), []
            page.set_default_timeout(120_000)
            page.on("console", lambda m: m.type in ("error", "warning") and complaints.append(m.text))
            page.goto(address)
            frame = page.frame_locator("iframe")
            frame.get_by_label("Conditions").fill("DT > 1")
            frame.get_by_role("button", name="Apply").click()
            frame.locator(".chip", has_text="DT > 1").wait_for()
            said = int(frame.locator("#count").get_attribute("data-selected"))
            assert kernel.run("len(v.selection), (v.selection['T90'] - v.selection['T10'] > 1).all()")[
                "text/plain"
            ].startswith(f"({said}, ")
            assert 0 < said < 300
            frame.get_by_role("button", name="Undo").click()
            frame.locator(".chip", has_text="DT > 1").wait_for(state="detached")
            assert kernel.run("v.selection is v.table")["text/plain"] == "True"
            frame.get_by_text("Dark").first.click()
            assert [text for text in complaints if "favicon" not in text and "autofocusing" not in text] == []
            kernel.run("v.close()")
            frame.get_by_text("The connection to the portal is lost").wait_for()
        stop()
        port = int(re.search(r"127\.0\.0\.1:(\d+)/", cell["text/html"])[1])
        with pytest.raises(OSError):
            http.client.HTTPConnection("127.0.0.1", port, timeout=5).connect()
        other = kernel.run(f"w = nenya.view({table!r})\nw.url")["text/plain"]
        port = int(re.search(r":(\d+)/", other)[1])
        http.client.HTTPConnection("127.0.0.1", port, timeout=60).connect()
    finally:
        kernel.stop()
    with pytest.raises(OSError):  # the kernel has ended, and the server with it
        http.client.HTTPConnection("127.0.0.1", port, timeout=5).connect()
