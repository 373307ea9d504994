"""The handler that takes visitors' images: who may send one is decided before its bytes are kept."""

import asyncio
import functools
import json
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tornado.ioloop import PeriodicCallback
from tornado.web import RequestHandler, stream_request_body

from nenya.data.damage import shown
from nenya.errors import NenyaError
from nenya.portal import words
from nenya.portal.holding import Portal
from nenya.portal.intake import BODY_SECONDS, from_here
from nenya.portal.jail import Stopped
from nenya.portal.jobs import STOPPED, Ticket
from nenya.portal.session import Session
from nenya.portal.upload import Upload

log = logging.getLogger(__name__)


_GRACE, _SLOWEST = 10.0, 50_000  # seconds, and bytes per second from then on


_OVER = 2**21  # bytes beyond the limit, which are read and dropped so that the browser hears the answer


_TOO_SLOW = "The image came too slowly: send a smaller file, or from a faster connection."


_NO_JAIL = (
    "Images are taken from the portal's own machine only, as its system cannot lock up what reads them; whoever runs "
    "the portal can allow others by upload=any."
)


_LOCAL_ONLY = "Images are taken from the portal's own machine only (it was started with upload=local)."


_NONE = "The portal was started with upload=none: it takes no images."


_NO_WEIGHTS = "The portal was started without ckpt=: it cannot look up new images."


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
        connection.set_body_timeout(BODY_SECONDS + (self._limit + _OVER) / _SLOWEST)
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
        jail, encoder, dataset = self.portal.jail, self.portal.encoder, session.dataset
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
            return encoder.encode(called, given, dataset, ticket.tick)

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
