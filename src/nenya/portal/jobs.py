"""Work of a session beside its page: the newest of a kind counts, all can be watched and ended."""

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from nenya.errors import NenyaError
from nenya.portal.dataset import Cancelled
from nenya.portal.fair import FairPool

log = logging.getLogger(__name__)

_BETWEEN = 0.3  # seconds between two reports of progress
_LONGEST = {"quick": 20.0, "slow": 60.0}  # seconds of a thread that one piece of work may take
STOPPED = "stopped"
FAILED = "Something went wrong here; the server's log says what. The rest of the page works on."


class TooLong(NenyaError):
    """Work that took longer than the portal lets it."""


class Ticket:
    """One piece of work: whether it is still wanted, and how far it is.

    Args:
        report: is told the share that is done, from 0 to 1, some times a second.
    """

    def __init__(self, report: Callable[[float], None]) -> None:
        self._cancelled = threading.Event()
        self._report, self._last = report, time.monotonic()
        self._until = float("inf")

    def begin(self, seconds: float) -> None:
        """Let the work end at its first tick after some seconds from now."""
        self._until = time.monotonic() + seconds

    def cancel(self) -> None:
        """Let the work end at its next tick."""
        self._cancelled.set()

    @property
    def cancelled(self) -> bool:
        """Whether nobody waits for it any more."""
        return self._cancelled.is_set()

    def tick(self, share: float) -> None:
        """Report progress.

        Raises:
            Cancelled: The work is not wanted any more.
            TooLong: It took longer than it may.
        """
        if self.cancelled:
            raise Cancelled
        if time.monotonic() > self._until:
            raise TooLong(
                "this took too long and was stopped: choose fewer rows, or try again when fewer people are here"
            )
        if time.monotonic() - self._last > _BETWEEN:
            self._last = time.monotonic()
            self._report(share)


@dataclass(frozen=True)
class Pools:
    """Threads that all sessions share: what takes long does not stand in the way of what is quick.

    Attributes:
        quick: for selections, figures and cutouts.
        slow: for searches and the encoding of images, one after the other, as each of them takes all processors.
        files: for what is downloaded, piece by piece.
    """

    quick: FairPool = field(default_factory=lambda: FairPool(4, 2, "portal"))
    slow: FairPool = field(default_factory=lambda: FairPool(1, 1, "search"))
    files: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(2, thread_name_prefix="download"))

    def shutdown(self) -> None:
        """Begin nothing any more, and wait for what is under way."""
        for pool in (self.quick, self.slow, self.files):
            pool.shutdown(cancel_futures=True)


@dataclass
class _Job:
    ticket: Ticket
    title: str
    ended: Callable[[str], None]


class Jobs:
    """The work of one session.

    Args:
        pools: threads that all sessions share.
        call: has a function called by the page's own thread.
        say: shows a sentence to the user; empty when all is done.
    """

    def __init__(
        self, pools: Pools, call: Callable[[Callable[[], None]], None], say: Callable[[str, bool], None]
    ) -> None:
        self._pools, self.call, self._say = pools, call, say
        self._open: dict[str, _Job] = {}

    def open(self, kind: str, title: str = "", ended: Callable[[str], None] = lambda _: None) -> Ticket:
        """Announce work that is done elsewhere; older work of its kind is given up.

        Args:
            kind: of the work.
            title: what is said while it goes on; empty for nothing.
            ended: is told what is said in the end where there is no result: it was stopped, or failed.
        """
        self.cancel(kind)
        ticket = Ticket(lambda share: self.call(lambda: self._progress(kind, ticket, share)))
        self._open[kind] = _Job(ticket, title, ended)
        if title:
            self._say(f"{title} ...", True)
        return ticket

    def start(
        self,
        kind: str,
        work: Callable[[Ticket], Any],
        done: Callable[[Any], None],
        *,
        title: str = "",
        slow: bool = False,
        ended: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Do work in a thread; older work of its kind is given up.

        Args:
            kind: of the work.
            work: is given its ticket, and returns a result.
            done: is given the result, by the page's own thread, unless the work was cancelled.
            title: as of `open`.
            slow: do it among what takes long.
            ended: as of `open`.
        """
        ticket = self.open(kind, title, ended)

        def run() -> None:
            ticket.begin(_LONGEST["slow" if slow else "quick"])
            try:
                ticket.tick(0)
                result = work(ticket)
            except Cancelled:
                return
            except NenyaError as error:
                log.warning("portal: %s", error)
                self.call(lambda text=str(error): self.close(kind, ticket, text))  # type: ignore[misc]
            except Exception:
                log.exception("portal: %s", kind)
                self.call(lambda: self.close(kind, ticket, FAILED))
            else:
                self.call(lambda: self._finish(kind, ticket, result, done))

        pool = self._pools.slow if slow else self._pools.quick
        pool.submit_for(self, lambda: not ticket.cancelled, run)

    def cancel(self, kind: str = "") -> None:
        """Give up the work of a kind, or all."""
        for name in [kind] if kind else list(self._open):
            if name in self._open:
                job = self._open.pop(name)
                job.ticket.cancel()
                job.ended(STOPPED)

    @property
    def busy(self) -> bool:
        """Whether something is going on."""
        return bool(self._open)

    def close(self, kind: str, ticket: Ticket, text: str = "") -> None:
        """End work without a result, and say why; or work of `open` that is done."""
        job = self._open.get(kind)
        if job is not None and job.ticket is ticket:
            del self._open[kind]
            if text:
                job.ended(text)
        if not ticket.cancelled and (text or not self._open):
            self._say(text, False)

    def _progress(self, kind: str, ticket: Ticket, share: float) -> None:
        job = self._open.get(kind)
        if job is not None and job.ticket is ticket and job.title:
            self._say(f"{job.title} ... {share:.0%}", True)

    def _finish(self, kind: str, ticket: Ticket, result: Any, done: Callable[[Any], None]) -> None:
        if not ticket.cancelled:
            self.close(kind, ticket)
            try:
                done(result)
            except Exception:
                log.exception("portal: %s", kind)
                self._say(FAILED, False)
