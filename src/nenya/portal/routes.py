"""Routes of the portal beside downloads and uploads: the page, its files and its websocket."""

import asyncio
import contextlib
import functools
import hashlib
import logging
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import bokeh
from bokeh.core.serialization import DeserializationError
from bokeh.embed.util import RenderItem
from bokeh.server.session import ServerSession
from bokeh.util.token import get_session_id
from panel.io.resources import DIST_DIR, LOCAL_DIST, patch_model_css
from panel.io.server import DocHandler, WSHandler
from panel.io.state import set_curdoc
from tornado.routing import URLSpec
from tornado.web import RequestHandler

from nenya.portal import pages
from nenya.portal.fair import Purse
from nenya.portal.gate import PAGE, SOCKET
from nenya.portal.jobs import FAILED
from nenya.portal.protocol import MOST_BYTES, MOST_PARTS, Foreign, allowed

log = logging.getLogger(__name__)

_BOKEH, _PANEL = Path(bokeh.__file__).parent / "server/static", Path(DIST_DIR)
_SCRIPTS = (
    *(f"page/{n}.js" for n in ("longitudes", "pointer", "layout", "access", "touch", "time", "page")),
    "static/js/bokeh.min.js", "static/js/bokeh-widgets.min.js",
    "static/js/bokeh-tables.min.js", "static/extensions/panel/panel.min.js",
)  # fmt: skip
_STYLES = (
    "bundled/theme/dark",
    "bundled/theme/default",
    "bundled/theme/native",
    *(f"css/{n}" for n in ("button", "listpanel", "loading", "select")),
)
FILES: dict[str, Path] = {
    "/favicon.ico": _PANEL / "images/favicon.ico",
    **{
        f"/{name}": pages.FOLDER / name.removeprefix("page/")
        for name in ("page/page.css", *_SCRIPTS)
        if "page/" in name
    },
    **{f"/static/js/{n}.min.js": _BOKEH / f"js/{n}.min.js" for n in ("bokeh", "bokeh-widgets", "bokeh-tables")},
    "/static/extensions/panel/panel.min.js": _PANEL / "panel.min.js",
    **{f"/static/extensions/panel/{name}.css": _PANEL / f"{name}.css" for name in _STYLES},
}
"""Files of the page by path; nothing else of Bokeh's and Panel's folders is served."""
_KINDS = {".js": "text/javascript", ".css": "text/css", ".ico": "image/x-icon"}
MOST_PAGES = 120
"""Open pages at most; each takes some megabytes."""
MOST_EACH = 40
"""Open pages per address at most; a class may share one address."""
_MOST_WAITING, _WAITING_EACH = 60, 20  # pages waiting to open, in total and per address
_AT_ONCE, _LATELY = 8, 60.0  # pages that may open without a pause within some seconds
_BUSY = "Many pages of this portal are being opened: try again in a minute."
_MOST_PULLS = 10  # requests of the complete document per connection
_MOST_SOCKETS = 4  # connections per page: a lost connection is noticed late


@functools.cache
def _version() -> str:
    """Return a value that changes with the files."""
    content = (f"{path}{path.stat().st_size}{path.stat().st_mtime_ns}" for path in FILES.values())
    return hashlib.sha256("".join(content).encode()).hexdigest()[:16]


class Files(RequestHandler):
    """Serves the files of the page."""

    def get(self) -> None:
        """Serve the file."""
        path = FILES[self.request.path]
        self.set_header("Content-Type", f"{_KINDS[path.suffix]}; charset=utf-8")
        self.set_header("Cache-Control", "max-age=604800" if self.get_query_argument("v", "") else "no-cache")
        self.finish(path.read_bytes())


@dataclass
class _Line:
    """The pages of one address that wait to open, and when its last ones opened."""

    waiting: int = 0
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    opened: deque[float] = field(default_factory=lambda: deque(maxlen=_AT_ONCE))

    def is_recent(self) -> bool:
        """Return whether a page opened lately."""
        return bool(self.opened) and time.monotonic() - self.opened[-1] < _LATELY


class Rooms:
    """Counts open pages, in total and per address."""

    def __init__(self) -> None:
        self._of: dict[str, str] = {}
        self._turn = asyncio.Lock()
        self._lines: dict[str, _Line] = {}
        self._purses: dict[str, Purse] = {}

    def purse(self, address: str) -> Purse:
        """Return what an address may take of the server's own thread."""
        if address not in self._purses:
            self._purses = {other: purse for other, purse in self._purses.items() if not purse.empty}
        return self._purses.setdefault(address, Purse())

    @contextlib.asynccontextmanager
    async def turn(self, address: str) -> AsyncIterator[bool]:
        """Open pages one at a time, for each address in turn; yield False if too many wait.

        After a page, the next one of its address waits for as long as two took if it came meanwhile, or if many were
        opened lately, for the benefit of open pages and of other addresses.
        """
        line = self._lines.get(address, _Line())
        if line.waiting >= _WAITING_EACH or sum(one.waiting for one in self._lines.values()) >= _MOST_WAITING:
            yield False
            return
        self._lines[address] = line
        line.waiting += 1
        try:
            async with line.turn:
                async with self._turn:
                    begun = time.monotonic()
                    yield True
                    ended = time.monotonic()
                line.opened.append(ended)
                await asyncio.sleep(0)  # requests that came meanwhile get into the line
                many = len(line.opened) == _AT_ONCE and ended - line.opened[0] < _LATELY
                if many or line.waiting > 1:
                    await asyncio.sleep(min(2 * (ended - begun), 2.0))
        finally:
            line.waiting -= 1
            self._lines = {other: one for other, one in self._lines.items() if one.waiting or one.is_recent()}

    def trouble(self, context: Any, address: str) -> str:
        """Return a sentence on why no further page can be opened; empty if one can."""
        open_now = {session.id for session in context.sessions}
        self._of = {key: value for key, value in self._of.items() if key in open_now}
        mine = list(self._of.values()).count(address)
        if mine >= MOST_EACH:
            return f"{mine} pages of this portal are open from your address: close one, then try again in a minute."
        if len(open_now) >= MOST_PAGES:
            return f"{len(open_now)} pages of this portal are open, the largest number allowed: try again in a minute."
        return ""

    def enter(self, key: str, address: str) -> None:
        """Record an opened page."""
        self._of[key] = address


class Page(DocHandler):  # type: ignore[misc]
    """Opens a session and serves its page."""

    rooms: Rooms
    _gone = False

    def on_connection_close(self) -> None:
        """Note that nobody waits for the page any more."""
        super().on_connection_close()
        self._gone = True

    async def get(self) -> None:
        """Serve the page."""
        self.set_header("Cache-Control", "no-store")
        nonce, address = pages.make_nonce(), str(self.request.remote_ip)
        self.set_header("Content-Security-Policy", pages.policy(nonce))
        async with self.rooms.turn(address) as able:
            if self._gone:
                return
            trouble = self.rooms.trouble(self.application_context, address) if able else _BUSY
            if not trouble:
                session = await self.get_session()
                self.rooms.enter(session.id, address)
                self._send(session, nonce)
                return
        log.warning("portal: refused a page to %s: %s", address, trouble)
        self.set_status(503)
        self.finish(pages.render("notice.html", nonce=nonce, trouble=trouble, form=False))

    def _send(self, session: ServerSession, nonce: str) -> None:
        document = session.document
        with set_curdoc(document):
            for root in document.roots:
                patch_model_css(root, dist_url=LOCAL_DIST)
        item = RenderItem(token=session.token, roots=document.roots, use_for_title=False)
        values = dict(document.template_variables["nenya"])
        settings = {key: values[key] for key in ("dark", "images", "key", "limit_mb")}
        self.finish(
            pages.render(
                "page.html",
                **values,
                roots={root.name: root.elementid for root in item.roots},
                ids={root.name: root.id for root in item.roots},
                settings={**settings, "item": item.to_json()},
                scripts=_SCRIPTS,
                version=_version(),
                nonce=nonce,
            )
        )


class Socket(WSHandler):  # type: ignore[misc]
    """The page's websocket: accepts what `nenya.portal.protocol` allows, and slows busy clients."""

    rooms: Rooms
    _bytes = _parts = _pulls = 0

    def check_origin(self, origin: str) -> bool:
        """The guard has checked it before."""
        return True

    def open(self, *args: Any, **kwargs: Any) -> None:
        """Accept a connection with a token issued by the server."""
        try:
            super().open(*args, **kwargs)
        except Exception as error:  # an untrusted token may raise anything in Bokeh's reader
            log.warning("portal: refused a connection to %s: %.100s", self.request.remote_ip, error)
            self.close(1008, "not a token of this server")

    async def _async_open(self, token: str) -> None:
        key, address = get_session_id(token), str(self.request.remote_ip)
        if key not in {session.id for session in self.application_context.sessions}:
            if self.rooms.trouble(self.application_context, address):
                self.close(1013, "too many pages are open")
                return
            self.rooms.enter(key, address)
        if any(s.id == key and s.connection_count >= _MOST_SOCKETS for s in self.application_context.sessions):
            self.close(1013, "this page is open elsewhere")
            return
        await super()._async_open(token)

    async def on_message(self, fragment: str | bytes) -> None:
        """Read a piece of a message, and handle complete ones, in turn with other connections of the address."""
        purse = self.rooms.purse(str(self.request.remote_ip))
        await purse.ready()
        try:
            await purse.pay_for(self._take(fragment))
        except Exception as error:  # untrusted bytes may raise anything in Bokeh's reader
            log.warning("portal: closed a connection: %s: %.100s", type(error).__name__, error)
            self.close(1008, "not a message of this page")

    async def _take(self, fragment: str | bytes) -> None:
        if self.receiver is None or self.connection is None:
            raise Foreign("a message before the connection was opened")
        self._bytes, self._parts = self._bytes + len(fragment), self._parts + 1
        if self._bytes > MOST_BYTES or self._parts > MOST_PARTS:
            raise Foreign("a message that is too large")
        message = await self.receiver.consume(fragment)
        if message is None:
            return
        self._bytes = self._parts = 0
        if message.msgtype == "PULL-DOC-REQ":
            self._pulls += 1
            if self._pulls > _MOST_PULLS:
                raise Foreign("the page was requested too often")
            work = await ServerSession.pull(message, self.connection)
        elif message.msgtype == "PATCH-DOC":
            models = self.connection.session.document.models
            sizes = {buffer.id: len(buffer.data) for buffer in message.buffers}
            message.content = {"events": allowed(message.content, models.get_by_id, sizes)}
            work = await self._patched(message)
        else:
            raise Foreign(f"a message of kind {message.msgtype}")
        if work is not None:
            await self.send_message(work)

    async def _patched(self, message: Any) -> Any:
        """Apply a change to the page; an error there is the server's, and the connection stays open."""
        try:
            return await ServerSession.patch(message, self.connection)
        except DeserializationError as error:
            raise Foreign(f"a change that cannot be read: {error}") from None
        except Exception:
            log.exception("portal: error in a change of the page")
            return self.connection.error(message, FAILED)


def rules(application: Any, handlers: dict[str, Any]) -> list[URLSpec]:
    """Return all routes of the server, in place of those of Bokeh and Panel.

    Args:
        application: of Bokeh.
        handlers: of other addresses, by path.
    """
    rooms = Rooms()
    context = {"application_context": application.applications["/"], "bokeh_websocket_path": SOCKET}
    named = {PAGE: type("page", (Page,), {"rooms": rooms}), SOCKET: type("socket", (Socket,), {"rooms": rooms})}
    return [
        *(URLSpec(_exactly(path), kind, dict(context)) for path, kind in named.items()),
        *(URLSpec(_exactly(path), kind) for path, kind in handlers.items()),
        *(URLSpec(_exactly(path), Files) for path in FILES),
    ]


def _exactly(path: str) -> str:
    return path.replace(".", r"\.") + "$"
