"""What the portal takes over the network, and how much of it at once: images of users, all else in small pieces."""

import asyncio
import functools
import ipaddress
import json
import logging
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tornado.ioloop import PeriodicCallback
from tornado.web import RequestHandler, stream_request_body

from nenya.data.damage import shown
from nenya.errors import NenyaError
from nenya.portal import words
from nenya.portal.guard import LOCAL
from nenya.portal.jail import Stopped
from nenya.portal.jobs import STOPPED, Ticket
from nenya.portal.upload import Upload

if TYPE_CHECKING:
    from nenya.portal.server import Portal
    from nenya.portal.session import Session

log = logging.getLogger(__name__)

_SMALL = 2**16  # bytes of a request's body, other than an image
_MESSAGE = 2**21  # bytes of a connection's buffer: a message of the page has up to 2**20
_IDLE, _BODY = 60, 30  # seconds
_MOST_CONNECTIONS, _OF_ONE = 500, 100
_GRACE, _SLOWEST = 10.0, 50_000  # seconds, and bytes per second from then on
_OVER = 2**21  # bytes beyond the limit, which are read and dropped so that the browser hears the answer
_PROXIED = ("Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Real-Ip", "Via")

_BUSY = "Other images are being read: send this one again in a moment."
_ONE_BY_ONE = "Your other images are being read: send this one when they are done."
_TOO_SLOW = "The image came too slowly: send a smaller file, or from a faster connection."
_NO_JAIL = (
    "Images are taken from the portal's own machine only, as its system cannot lock up what reads them; whoever runs "
    "the portal can allow others by upload=any."
)
_LOCAL_ONLY = "Images are taken from the portal's own machine only (it was started with upload=local)."
_NONE = "The portal was started with upload=none: it takes no images."
_NO_WEIGHTS = "The portal was started without ckpt=: it cannot look up new images."


def http_limits() -> dict[str, Any]:
    """Return what Tornado's server takes from anybody: little, and not for ever. `TakesImages` takes more."""
    return {
        "max_buffer_size": _MESSAGE,
        "max_body_size": _SMALL,
        "max_header_size": _SMALL,
        "idle_connection_timeout": _IDLE,
        "body_timeout": _BODY,
    }


def limit_connections(server: Any, most: int = _MOST_CONNECTIONS, of_one: int = _OF_ONE) -> None:
    """Close new connections to a Tornado server while there are too many.

    Args:
        server: its `HTTPServer`.
        most: connections in all.
        of_one: of one address; a proxy on this machine, which stands for all its users, may have all.
    """
    streams: dict[str, set[Any]] = {}
    serve = server.handle_stream

    def handle(stream: Any, address: tuple[Any, ...]) -> Any:
        host = str(address[0]) if address else ""
        for other in [host] if sum(map(len, streams.values())) < most else list(streams):
            streams[other] = {stream for stream in streams.get(other, ()) if not stream.closed()}
            if not streams[other]:
                del streams[other]
        here = len(streams.get(host, ()))
        if sum(map(len, streams.values())) >= most or (here >= of_one and not _is_local(host)):
            stream.close()
            return None
        streams.setdefault(host, set()).add(stream)
        return serve(stream, address)

    server.handle_stream = handle


def _is_local(address: str) -> bool:
    """Say whether an address is this machine's own, by which it reaches itself only."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    return bool((getattr(found, "ipv4_mapped", None) or found).is_loopback)


def from_here(request: Any) -> bool:
    """Say whether a request comes from this machine itself, and not by way of a proxy on it."""
    names = [urlsplit(f"//{request.host}").hostname]
    if origin := request.headers.get("Origin"):
        names.append(urlsplit(origin).hostname)
    peer = request.connection.context.address
    return (
        isinstance(peer, tuple)
        and _is_local(str(peer[0]))
        and all(name in LOCAL for name in names)
        and not any(name in request.headers for name in _PROXIED)
    )


class Intake:
    """Counts the images that are on their way: each of them takes memory.

    Args:
        most: in all.
        of_one: of one session.
    """

    def __init__(self, most: int = 4, of_one: int = 2) -> None:
        self._most, self._of_one = most, of_one
        self._open: Counter[str] = Counter()

    def enter(self, key: str) -> tuple[int, str] | None:
        """Count one of a session, or return the status and the sentence of a refusal."""
        if self._open[key] >= self._of_one:
            return 429, _ONE_BY_ONE
        if self._open.total() >= self._most:
            return 503, _BUSY
        self._open[key] += 1
        return None

    def leave(self, key: str) -> None:
        """Count one no more."""
        self._open[key] -= 1
        self._open += Counter()  # without those at zero


@stream_request_body
class TakesImages(RequestHandler):
    """Takes one image: who may send it is decided before its bytes are kept."""

    portal: "Portal"

    def initialize(self) -> None:
        """Nothing has come yet."""
        self._key, self._inside, self._working = "", False, False
        self._session: Session | None = None
        self._refusal: tuple[int, str] | None = None
        self._body, self._dropped, self._limit = bytearray(), 0, self.portal.limit_mb * 10**6
        self._stop = threading.Event()
        self._told: Callable[[str, bool], None] | None = None
        self._watch: PeriodicCallback | None = None

    def check_xsrf_cookie(self) -> None:
        """The session's key stands for it."""

    async def prepare(self) -> None:
        """Refuse strangers at once, and users after what they send was dropped, so that their browser hears why."""
        self._key = self.get_query_argument("key", "")
        self._session = self.portal.sessions.get(self._key)
        if not self.portal.door.lets_in(self.request):
            return self._answer(403, "Log in first.")
        if self._session is None:
            return self._answer(404, "This page is not open any more: load it again.")
        if self.request.method != "POST":
            return self._answer(405, "Images are sent by POST.")
        size = self._declared()
        if size is not None and size > self._limit + _OVER:
            return self._answer(413, self._too_large())
        self._refusal = await self._why_not() or ((413, self._too_large()) if (size or 0) > self._limit else None)
        if self._refusal is None:
            self._refusal = self.portal.intake.enter(self._key)
            self._inside = self._refusal is None
        connection: Any = self.request.connection
        connection.set_max_body_size(self._limit + _OVER)
        connection.set_body_timeout(_BODY + (self._limit + _OVER) / _SLOWEST)
        loop = asyncio.get_running_loop()
        self._watch = PeriodicCallback(functools.partial(self._check_pace, loop.time()), 1000)
        self._watch.start()
        return None

    def _declared(self) -> int | None:
        text = self.request.headers.get("Content-Length", "")
        return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None

    def _too_large(self) -> str:
        return f"At most {self.portal.limit_mb} MB are taken: cut one image out of the file."

    async def _why_not(self) -> tuple[int, str] | None:
        """Return why this image is not taken, whatever it is."""
        if self.portal.encoder is None:
            return 409, _NO_WEIGHTS
        if self.portal.upload == "none":
            return 403, _NONE
        if self.portal.upload == "any" or from_here(self.request):
            return None
        if self.portal.upload == "local":
            return 403, _LOCAL_ONLY
        jail = self.portal.jail
        try:
            closed = await asyncio.get_running_loop().run_in_executor(None, lambda: jail.closed)
        except NenyaError as error:
            return 503, str(error)
        return None if closed else (403, _NO_JAIL)

    def _check_pace(self, began: float) -> None:
        """End what comes too slowly."""
        passed = asyncio.get_running_loop().time() - began - _GRACE
        if passed > 0 and len(self._body) + self._dropped < passed * _SLOWEST:
            self._answer(408, _TOO_SLOW)  # and the connection ends, as the body is not all there

    def data_received(self, chunk: bytes) -> None:
        """Keep a piece of the image, up to the limit."""
        if self._refusal is None and len(self._body) + len(chunk) > self._limit:
            self._refusal, self._dropped = (413, self._too_large()), len(self._body)
            self._body = bytearray()
        if self._refusal is None:
            self._body += chunk
        else:
            self._dropped += len(chunk)

    async def post(self) -> None:
        """Read, check and encode the image, and show it in its session."""
        self._end_watch()
        if self._refusal is not None or self._session is None:
            return self._answer(*self._refusal or (404, ""))
        self._working = True
        try:
            text, taken = await self._take(self._session)
        finally:
            self._leave()
        self.set_header("Content-Type", "application/json")
        self.finish(json.dumps({"message": text, "taken": taken}))  # 200 in both cases: browsers log others as errors
        return None

    async def _take(self, session: "Session") -> tuple[str, bool]:
        """Return what is said of the image, and whether it was taken."""
        name, row = self.get_query_argument("name", "")[-200:], self.get_query_argument("row", "0")
        scale = [self.get_query_argument(end, "") for end in ("low", "high")]
        jail, encoder, archive = self.portal.jail, self.portal.encoder, session.archive
        loop, body, self._body = asyncio.get_running_loop(), self._body, bytearray()
        reading = functools.partial(jail.read, name, body, row, scale, self._stop)
        try:
            given = await loop.run_in_executor(jail.threads, reading)
        except Stopped:
            return STOPPED, False
        except NenyaError as error:
            log.warning("portal: %s", error)
            return words.upload_refused(str(error), session.shown_name), False
        del body, reading
        answer: asyncio.Future[tuple[str, bool]] = loop.create_future()

        def told(text: str, taken: bool) -> None:
            if not answer.done():
                answer.set_result((text, taken))

        self._told, called = told, shown(Path(name).name)

        def encode(ticket: Ticket) -> Upload:
            assert encoder is not None
            return encoder.encode(called, given, archive, ticket.tick)

        session.jobs.call(lambda: session.take_upload(called, encode, told))
        return await answer

    def on_connection_close(self) -> None:
        """Wait no longer for what nobody is told."""
        super().on_connection_close()
        self._stop.set()
        if self._told is not None:
            self._told(STOPPED, False)
        self._end_watch()
        if not self._working:
            self._leave()

    def _end_watch(self) -> None:
        if self._watch is not None:
            self._watch.stop()

    def _leave(self) -> None:
        self._body = bytearray()
        if self._inside:
            self._inside = False
            self.portal.intake.leave(self._key)

    def _answer(self, status: int, text: str) -> None:
        self._end_watch()
        if not self._working:
            self._leave()
        if not self._finished:
            self.set_status(status)
            self.set_header("Content-Type", "application/json")
            self.finish(json.dumps({"message": text}))
