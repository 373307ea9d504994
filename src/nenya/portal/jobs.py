"""Background work of a session, with progress and cancellation; newer work replaces older work of its kind."""

import logging
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from nenya.errors import NenyaError
from nenya.portal.dataset import Cancelled
from nenya.portal.fair import FairPool

log = logging.getLogger(__name__)

_BETWEEN = 0.3  # seconds between progress reports
_LONGEST = {"quick": 20.0, "slow": 60.0, "long": 300.0}  # time limit of one piece of work, seconds
STOPPED = "stopped"
FAILED = "An internal error occurred (see the server's log). The rest of the page still works."


class TooLong(NenyaError):
    """Work exceeded its time limit."""


class Ticket:
    """One piece of work: cancellation and progress.

    Args:
        report: called with the fraction done, 0 to 1, a few times per second.
    """

    def __init__(self, report: Callable[[float], None]) -> None:
        self._cancelled = threading.Event()
        self._report, self._last = report, time.monotonic()
        self._until = float("inf")

    def begin(self, seconds: float) -> None:
        """End the work at its first tick after the given seconds."""
        self._until = time.monotonic() + seconds

    def cancel(self) -> None:
        """End the work at its next tick."""
        self._cancelled.set()

    @property
    def cancelled(self) -> bool:
        """Whether the work was cancelled."""
        return self._cancelled.is_set()

    def tick(self, share: float) -> None:
        """Report progress.

        Raises:
            Cancelled: The work was cancelled.
            TooLong: It exceeded its time limit.
        """
        if self.cancelled:
            raise Cancelled
        if time.monotonic() > self._until:
            raise TooLong(
                "this took too long and was stopped: select fewer rows, or try again when the portal is less busy"
            )
        if time.monotonic() - self._last > _BETWEEN:
            self._last = time.monotonic()
            self._report(share)


@dataclass(frozen=True)
class Pools:
    """Thread pools shared by all sessions: slow work does not delay quick work.

    Attributes:
        quick: for selections, figures and cutouts.
        slow: for searches and encoding of images, one at a time, as each uses all processors.
        long: for comparisons, one at a time, which searches do not wait for.
        files: for downloads, in pieces.
    """

    quick: FairPool = field(default_factory=lambda: FairPool(4, 2, "portal"))
    slow: FairPool = field(default_factory=lambda: FairPool(1, 1, "search"))
    long: FairPool = field(default_factory=lambda: FairPool(1, 1, "compare"))
    files: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(2, thread_name_prefix="download"))

    def shutdown(self) -> None:
        """Start no further work, and wait for running work."""
        for pool in (self.quick, self.slow, self.long, self.files):
            pool.shutdown(cancel_futures=True)


@dataclass
class _Job:
    ticket: Ticket
    title: str
    ended: Callable[[str], None]


class Jobs:
    """The work of one session.

    Args:
        pools: threads shared by all sessions.
        call: runs a function in the page's own thread.
        say: shows a sentence to the user; an empty one when all work is done.

    Attributes:
        ended: called in the page's own thread when a piece of work has ended, with what it has begun.
    """

    def __init__(
        self, pools: Pools, call: Callable[[Callable[[], None]], None], say: Callable[[str, bool], None]
    ) -> None:
        self._pools, self.call, self._say = pools, call, say
        self._open: dict[str, _Job] = {}
        self.ended: Callable[[], None] = lambda: None

    def open(self, kind: str, title: str = "", ended: Callable[[str], None] = lambda _: None) -> Ticket:
        """Announce work done elsewhere; older work of its kind is cancelled.

        Args:
            kind: of the work.
            title: status text while it runs; empty for none.
            ended: called with the final message if there is no result.
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
        long: bool = False,
        ended: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Run work in a thread; older work of its kind is cancelled.

        Args:
            kind: of the work.
            work: called with its ticket; returns a result.
            done: called with the result in the page's own thread, unless the work was cancelled.
            title: as in `open`.
            slow: whether to run it in the pool of slow work.
            long: whether to run it in the pool of long work.
            ended: as in `open`.
        """
        ticket = self.open(kind, title, ended)

        def run() -> None:
            ticket.begin(_LONGEST["long" if long else "slow" if slow else "quick"])
            try:
                ticket.tick(0)
                result = work(ticket)
            except Cancelled:
                return
            except NenyaError as error:
                log.warning("portal: %s", error)
                self.call(lambda text=str(error): self._fail(kind, ticket, text))  # type: ignore[misc]
            except Exception:
                log.exception("portal: %s", kind)
                self.call(lambda: self._fail(kind, ticket, FAILED))
            else:
                self.call(lambda: self._finish(kind, ticket, result, done))

        pool = self._pools.long if long else self._pools.slow if slow else self._pools.quick
        pool.submit_for(self, lambda: not ticket.cancelled, run)

    def cancel(self, kind: str = "") -> None:
        """Cancel the work of a kind, or all work."""
        for name in [kind] if kind else list(self._open):
            if name in self._open:
                job = self._open.pop(name)
                job.ticket.cancel()
                job.ended(STOPPED)

    @property
    def busy(self) -> bool:
        """Whether any work is running."""
        return bool(self._open)

    def runs(self, kinds: Iterable[str]) -> bool:
        """Return whether work of any of some kinds is running."""
        return any(kind in self._open for kind in kinds)

    def close(self, kind: str, ticket: Ticket, text: str = "") -> None:
        """End work without a result and show the reason, or end finished work of `open`."""
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
        self.ended()

    def _fail(self, kind: str, ticket: Ticket, text: str) -> None:
        self.close(kind, ticket, text)
        self.ended()
