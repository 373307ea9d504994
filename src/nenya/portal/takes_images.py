"""The handler of uploads: permission is checked before any bytes are kept."""

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

from nenya.errors import NenyaError
from nenya.portal import words
from nenya.portal.holding import Portal
from nenya.portal.intake import BODY_SECONDS, BUSY, Arrival, from_here
from nenya.portal.jail import Stopped
from nenya.portal.jobs import STOPPED, Ticket
from nenya.portal.session import Session
from nenya.portal.upload import Upload
from nenya.storage.texts import shown

log = logging.getLogger(__name__)


_GRACE, _SLOWEST = 10.0, 50_000  # seconds of grace, then the smallest rate in bytes per second


_OVER = 2**21  # bytes beyond the limit, read and dropped so that the browser receives the response


_TOO_SLOW = "The upload was too slow: send a smaller file, or use a faster connection."


_NO_JAIL = (
    "Uploads are accepted from the portal's own machine only, as its system has no sandbox; the operator "
    "of the portal can allow others by upload=any."
)


_LOCAL_ONLY = "Uploads are accepted from the portal's own machine only (it was started with upload=local)."


_NONE = "The portal was started with upload=none: it accepts no images."


_NO_WEIGHTS = "The portal was started without ckpt=: it cannot encode new images."


@stream_request_body
class TakesImages(RequestHandler):
    """Accepts one image; permission is checked before any bytes are kept."""

    portal: "Portal"

    def initialize(self) -> None:
        """Initialize the state of the upload."""
        self._arrival: Arrival | None = None
        self._working = False
        self._session: Session | None = None
        self._refusal: tuple[int, str] | None = None
        self._body, self._dropped, self._limit = bytearray(), 0, self.portal.limit_mb * 10**6
        self._stop = threading.Event()
        self._told: Callable[[str, bool], None] | None = None
        self._watch: PeriodicCallback | None = None

    def check_xsrf_cookie(self) -> None:
        """Not used: the session's key takes its place."""

    async def prepare(self) -> None:
        """Refuse strangers at once, and users after dropping their data, so that their browser gets the response."""
        key = self.get_query_argument("key", "")
        self._session = self.portal.sessions.get(key)
        if not self.portal.door.lets_in(self.request):
            return self._answer(403, "Log in first.")
        if self._session is None:
            return self._answer(404, "This page is no longer open: reload it.")
        if self.request.method != "POST":
            return self._answer(405, "Images must be sent by POST.")
        size = self._declared()
        if size is not None and size > self._limit + _OVER:
            return self._answer(413, self._too_large())
        self._refusal = await self._why_not() or ((413, self._too_large()) if (size or 0) > self._limit else None)
        if self._refusal is None:
            arrival = Arrival(key, lambda: self._drop(503, BUSY))
            self._refusal = self.portal.intake.enter(arrival)
            self._arrival = arrival if self._refusal is None else None
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
        return f"The file is too large (limit {self.portal.limit_mb} MB): save one image of it alone."

    async def _why_not(self) -> tuple[int, str] | None:
        """Return the reason for refusing any image now; empty if there is none."""
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
        """End an upload that is too slow."""
        passed = asyncio.get_running_loop().time() - began - _GRACE
        if passed > 0 and len(self._body) + self._dropped < passed * _SLOWEST:
            self._answer(408, _TOO_SLOW)  # the connection ends, as the body is incomplete

    def data_received(self, chunk: bytes) -> None:
        """Keep a piece of the image, up to the limit."""
        if self._refusal is None and len(self._body) + len(chunk) > self._limit:
            self._drop(413, self._too_large())
        if self._refusal is None and self._arrival is not None:
            self._body += chunk
            self.portal.intake.grow(self._arrival, len(chunk))  # which may drop it
        else:
            self._dropped += len(chunk)

    def _drop(self, status: int, text: str) -> None:
        """Refuse the image while it is sent; the rest is dropped too, so that the browser receives the response."""
        self._refusal, self._dropped = (status, text), self._dropped + len(self._body)
        self._leave()

    async def post(self) -> None:
        """Read, check and encode the image, and show it in its session."""
        self._end_watch()
        if self._refusal is not None or self._session is None:
            return self._answer(*self._refusal or (404, ""))
        if self._arrival is None or not self.portal.intake.complete(self._arrival):
            return self._answer(503, BUSY)
        self._working = True
        try:
            text, taken = await self._take(self._session)
        finally:
            self._leave()
        self.set_header("Content-Type", "application/json")
        self.finish(
            json.dumps({"message": text, "taken": taken})
        )  # 200 in both cases, as browsers log other codes as errors
        return None

    async def _take(self, session: "Session") -> tuple[str, bool]:
        """Return the message on the image, and whether it was accepted."""
        name, row = self.get_query_argument("name", "")[-200:], self.get_query_argument("row", "0")
        scale = [self.get_query_argument(end, "") for end in ("low", "high")]
        jail, encoder, dataset = self.portal.jail, self.portal.encoder, session.dataset
        loop, body, self._body = asyncio.get_running_loop(), self._body, bytearray()
        masked = encoder is not None and encoder.masked
        reading = functools.partial(jail.read, name, body, row, scale, self._stop, masked=masked)
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
        """Stop waiting when the connection is closed."""
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
        if self._arrival is not None:
            self.portal.intake.leave(self._arrival)
            self._arrival = None

    def _answer(self, status: int, text: str) -> None:
        self._end_watch()
        if not self._working:
            self._leave()
        if not self._finished:
            self.set_status(status)
            self.set_header("Content-Type", "application/json")
            self.finish(json.dumps({"message": text}))
