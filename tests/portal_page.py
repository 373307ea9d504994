"""A page of the portal in the system's Chromium, for tests: what it shows, asked for, and complained of."""

import asyncio
import contextlib
import io
import shutil
import threading
import time

import numpy as np
import pytest
from PIL import Image
from portal_data import SIDE, latents_of

pytest.importorskip("panel", reason="the portal's packages are not installed: nenya[portal]")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
has_chromium = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")
needs_chromium = [pytest.mark.slow, has_chromium]
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
PATIENCE = 300_000
"""Milliseconds after which a page fails that does not answer: it only ends what hangs, also on a busy machine."""


# Remembers the texts on each canvas, with their places on it: a canvas that is cleared has none.
DRAWN = """(() => { const of = CanvasRenderingContext2D.prototype, fill = of.fillText, clear = of.clearRect;
    of.fillText = function (text, x, y, ...rest) {
        const m = this.getTransform(), scale = this.canvas.width / this.canvas.clientWidth || 1;
        (this.canvas.drawn ||= []).push([text, (m.a * x + m.c * y + m.e) / scale, (m.b * x + m.d * y + m.f) / scale]);
        return fill.call(this, text, x, y, ...rest); };
    of.clearRect = function (x, y, w, h) {
        if (w >= this.canvas.clientWidth && h >= this.canvas.clientHeight) this.canvas.drawn = [];
        return clear.call(this, x, y, w, h); }; })()"""
FIND = """(name) => { const find = (views) => { for (const view of views) {
        if (view.model.name === name && view.frame) return view;
        const inner = find(view.child_views || []); if (inner) return inner; } };
    return find(Bokeh.index.roots); }"""


class FakeEncoder:
    """Makes latents as the archive's were made, without a network."""

    masked = False

    def encode(self, name, given, archive, tick):
        from nenya.analyze_image import resized
        from nenya.portal.upload import Upload

        image = resized(given.image, SIDE)
        return Upload(name, image, latents_of(image[None])[0], side=len(given.image), source=given.source)


def serve(portal, address="127.0.0.1"):
    """Serve from a thread; return the address and a function that ends it."""
    from nenya.portal.server import make_server

    ready, box = threading.Event(), {}

    def work():
        asyncio.set_event_loop(asyncio.new_event_loop())
        server = make_server(portal, address, 0, [])
        server.start()
        box.update(server=server, loop=server.io_loop)
        ready.set()
        server.io_loop.start()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    assert ready.wait(300)

    def stop():
        box["loop"].add_callback(box["loop"].stop)
        thread.join(10)

    return f"http://127.0.0.1:{box['server'].port}/", stop


@contextlib.contextmanager
def chromium(folder, **settings):
    """Run Chromium with its profile in a folder, and settings of Playwright; yields its context."""
    with sync_api.sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            str(folder),
            executable_path=CHROMIUM,
            args=list(FLAGS),
            **{"viewport": {"width": 1280, "height": 800}, **settings},
            accept_downloads=True,
        )
        context.set_default_timeout(PATIENCE)
        yield context
        context.close()


def wait(page, expression, seconds=300):
    """Wait for an expression to hold on a page, whose policy forbids to evaluate it there again and again."""
    end = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < end, expression
        page.wait_for_timeout(50)


class Page:
    """A page of the portal, with all that it asked for and complained of."""

    def __init__(self, browser, portal, query=""):
        self.requests, self.complaints, self.portal = [], [], portal
        self.page = browser.new_page()
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("websocket", lambda socket: self.requests.append(socket.url))
        self.page.on("console", lambda m: m.type in ("error", "warning") and self.complaints.append(m.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        before = set(portal.sessions)
        self.page.goto(portal.url + query)
        self.page.locator("#count").wait_for()
        (key,) = set(portal.sessions) - before
        self.session = portal.sessions[key]
        self.until(lambda: self.page.evaluate("Bokeh.documents.length > 0 && Bokeh.documents[0].is_idle"))
        self.idle()

    def until(self, condition, seconds=300):
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "waited in vain"
            self.page.wait_for_timeout(50)

    def idle(self):
        self.page.wait_for_timeout(250)
        self.until(lambda: self.session.shown == self.session.selection.view.filters)
        self.until(lambda: not self.session.jobs.busy)
        self.until(lambda: self.selected == len(self.session.ordered))
        self.until(lambda: len(self.chips) == len(self.session.selection.view.filters))
        self.page.wait_for_timeout(100)

    def act(self, name):
        """Send an action, and wait until the server has it."""
        value = f"{time.monotonic()}|{name}"
        self.page.evaluate("text => Bokeh.documents[0].get_model_by_name('nenya_channel').value = text", value)
        document = next(iter(self.session.planes.values())).plot.document
        self.until(lambda: document.get_model_by_name("nenya_channel").value == value)

    @property
    def selected(self):
        return int(self.page.locator("#count").get_attribute("data-selected"))

    @property
    def chips(self):
        return [text.split(" ✕")[0] for text in self.page.locator(".chip").all_inner_texts()]

    def place(self, name, x, y):
        """Return where a place of a figure is on the screen."""
        return self.page.evaluate(
            """([name, x, y]) => {
                const find = (views) => { for (const view of views) {
                    if (view.model.name === name && view.frame) return view;
                    const inner = find(view.child_views || []); if (inner) return inner; } };
                const plot = find(Bokeh.index.roots), box = plot.el.getBoundingClientRect();
                return [box.x + plot.frame.x_scale.compute(x), box.y + plot.frame.y_scale.compute(y)];
            }""",
            [name, x, y],
        )

    def synced(self):
        """Wait until the browser has all that the server has sent so far, and has drawn it."""
        token = str(time.monotonic())
        document = next(iter(self.session.planes.values())).plot.document
        self.session.jobs.call(lambda: document.get_model_by_name("nenya_view").update(tags=[token]))
        self.until(lambda: self.page.evaluate("Bokeh.documents[0].get_model_by_name('nenya_view').tags[0]") == token)
        before, now = None, [self.drawn(name) for name in self.session.planes]
        while before != now:  # a figure is laid out in several steps
            self.page.wait_for_timeout(150)
            before, now = now, [self.drawn(name) for name in self.session.planes]

    def drawn(self, name):
        """Return the texts that are drawn in a figure, each with its place on the screen; see `DRAWN`."""
        return self.page.evaluate(
            f"""(name) => {{ const view = ({FIND})(name), box = view.el.getBoundingClientRect(), found = [];
                const look = (root) => {{ for (const e of root.querySelectorAll("*")) {{
                    for (const [text, x, y] of e.drawn || []) found.push([text, box.x + x, box.y + y]);
                    if (e.shadowRoot) look(e.shadowRoot); }} }};
                look(view.el.shadowRoot || view.el); return found; }}""",
            name,
        )

    def pixels(self):
        """Return what the page looks like, (H, W, 3) integers."""
        with Image.open(io.BytesIO(self.page.screenshot())) as image:
            return np.asarray(image.convert("RGB")).astype(int)

    def drag(self, name, start, end):
        (x0, y0), (x1, y1) = self.place(name, *start), self.place(name, *end)
        before, mouse = self.session.selection.view.filters, self.page.mouse
        mouse.move(x0, y0)
        mouse.down()
        mouse.move((x0 + x1) / 2, (y0 + y1) / 2, steps=3)
        mouse.move(x1, y1, steps=3)
        mouse.up()
        self.until(lambda: self.session.selection.view.filters != before)
        self.idle()

    def click(self, name, x, y):
        self.page.mouse.click(*self.place(name, x, y))
        self.page.wait_for_timeout(400)
        self.idle()

    def check_quiet(self):
        host = self.portal.url.split("//")[1]
        outside = [u for u in self.requests if host not in u and not u.startswith(("data:", "blob:"))]
        assert outside == [], outside
        complaints = [text for text in self.complaints if "favicon" not in text]
        assert complaints == [], complaints
        self.page.close()
