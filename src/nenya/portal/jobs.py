"""Work of a session beside its page: the newest of a kind counts, all can be watched and ended."""

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from nenya.errors import NenyaError
from nenya.portal.archive import Cancelled

log = logging.getLogger(__name__)

_BETWEEN = 0.3  # seconds between two reports of progress
FAILED = "Something went wrong here; the server's log says what. The rest of the page works on."


class Ticket:
    """One piece of work: whether it is still wanted, and how far it is.

    Args:
        report: is told the share that is done, from 0 to 1, some times a second.
    """

    def __init__(self, report: Callable[[float], None]) -> None:
        self._cancelled = threading.Event()
        self._report, self._last = report, time.monotonic()

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
        """
        if self.cancelled:
            raise Cancelled
        if time.monotonic() - self._last > _BETWEEN:
            self._last = time.monotonic()
            self._report(share)


class Jobs:
    """The work of one session.

    Args:
        pool: threads that all sessions share.
        call: has a function called by the page's own thread.
        say: shows a sentence to the user; empty when all is done.
    """

    def __init__(
        self, pool: ThreadPoolExecutor, call: Callable[[Callable[[], None]], None], say: Callable[[str, bool], None]
    ) -> None:
        self._pool, self.call, self._say = pool, call, say
        self._open: dict[str, Ticket] = {}

    def start(
        self,
        kind: str,
        work: Callable[[Ticket], Any],
        done: Callable[[Any], None],
        *,
        title: str = "",
    ) -> None:
        """Do work in a thread; older work of its kind is given up.

        Args:
            kind: of the work.
            work: is given its ticket, and returns a result.
            done: is given the result, by the page's own thread, unless the work was cancelled.
            title: what is said while it goes on; empty for nothing.
        """
        self.cancel(kind)
        ticket = Ticket(lambda share: self.call(lambda: self._progress(kind, ticket, f"{title} ... {share:.0%}")))
        self._open[kind] = ticket
        if title:
            self._say(f"{title} ...", True)

        def run() -> None:
            try:
                ticket.tick(0)
                result = work(ticket)
            except Cancelled:
                return
            except NenyaError as error:
                log.warning("portal: %s", error)
                self.call(lambda text=str(error): self._end(kind, ticket, text))  # type: ignore[misc]
            except Exception:
                log.exception("portal: %s", kind)
                self.call(lambda: self._end(kind, ticket, FAILED))
            else:
                self.call(lambda: self._finish(kind, ticket, result, done))

        self._pool.submit(run)

    def cancel(self, kind: str = "") -> None:
        """Give up the work of a kind, or all."""
        for name in [kind] if kind else list(self._open):
            if name in self._open:
                self._open.pop(name).cancel()

    @property
    def busy(self) -> bool:
        """Whether something is going on."""
        return bool(self._open)

    def _progress(self, kind: str, ticket: Ticket, text: str) -> None:
        if self._open.get(kind) is ticket:
            self._say(text, True)

    def _finish(self, kind: str, ticket: Ticket, result: Any, done: Callable[[Any], None]) -> None:
        if not ticket.cancelled:
            self._end(kind, ticket, "")
            try:
                done(result)
            except Exception:
                log.exception("portal: %s", kind)
                self._say(FAILED, False)

    def _end(self, kind: str, ticket: Ticket, text: str) -> None:
        if self._open.get(kind) is ticket:
            del self._open[kind]
        if not ticket.cancelled and (text or not self._open):
            self._say(text, False)
