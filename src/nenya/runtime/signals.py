"""Signals that end a run so that the same command resumes it, or that end a server: only here are handlers set."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Self

from nenya.errors import Interrupted

_STOPPING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)  # SIGUSR1 is a cluster's warning
_INTERRUPTED = "interrupted; no incomplete output remains: run the same command again to resume"


class Handlers:
    """Sets one handler for SIGTERM, SIGUSR1 and SIGINT.

    Ignored signals, as SIGINT in a background job, stay ignored. In other threads than the main one this has no effect.

    Args:
        handler: called with the number of the signal in the main thread.
    """

    def __init__(self, handler: Callable[[int], None]) -> None:
        self._before: dict[int, Any] = {}

        def handle(number: int, frame: FrameType | None) -> None:
            handler(number)

        if threading.current_thread() is threading.main_thread():
            for number in _STOPPING:
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, handle) or signal.SIG_DFL

    def restore(self) -> None:
        """Restore the previous handlers."""
        while self._before:
            signal.signal(*self._before.popitem())


class Termination:
    """Turns the first SIGTERM, SIGUSR1 (a cluster's warning) or SIGINT into `Interrupted` in the main thread.

    Later signals do not disturb the clean-up, except SIGINT, with which a user insists. In other threads this has no
    effect. Afterwards the previous handlers are restored.
    """

    def __init__(self) -> None:
        self.came = False
        self._handlers: Handlers | None = None

    def __enter__(self) -> Self:
        self._handlers = Handlers(self._stop)
        return self

    def __exit__(self, *_: object) -> None:
        if self._handlers is not None:
            self._handlers.restore()

    def check(self) -> None:
        """Raise `Interrupted` if a signal was received; needed because an exception raised in a finaliser is lost."""
        if self.came:
            raise Interrupted(_INTERRUPTED)

    def _stop(self, number: int) -> None:
        before, self.came = self.came, True
        if not before:
            raise Interrupted(_INTERRUPTED)
        if number == signal.SIGINT:
            raise KeyboardInterrupt


@contextmanager
def interrupted_between(message: str) -> Iterator[Callable[[], None]]:
    """Record SIGTERM, SIGUSR1 (a cluster's warning) and SIGINT; the previous handlers are restored afterwards.

    Yields a function that raises `Interrupted` after a signal. It is called between pieces of work, because a library
    may mistake an error raised during its work for its own. A second signal does not wait.
    """
    received: list[int] = []

    def stop(number: int) -> None:
        received.append(number)
        if len(received) > 1:
            raise Interrupted(message)

    def check() -> None:
        if received:
            raise Interrupted(message)

    handlers = Handlers(stop)
    try:
        yield check
    finally:
        handlers.restore()


def ignore_interrupts() -> None:
    """Leave Ctrl-C to the parent process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def on_interrupt(function: Callable[[], object] | None = None) -> Iterator[None]:
    """Call a function on SIGINT within the block; afterwards the handler is as before, whoever changed it meanwhile.

    Other threads than the main one have no handlers, and this has no effect in them.

    Args:
        function: called by the signal's handler; None leaves the handler, and only restores it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    if function is not None:
        signal.signal(signal.SIGINT, lambda *_: function())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
