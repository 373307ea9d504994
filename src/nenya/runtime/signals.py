"""Signals that end a run so that the same command resumes it, or that end a server."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Self

from nenya.errors import Interrupted

_INTERRUPTED = "interrupted; no incomplete output remains: run the same command again to resume"


class Termination:
    """Turns the first SIGTERM, SIGUSR1 (a cluster's warning) or SIGINT into `Interrupted` in the main thread.

    Later signals do not disturb the clean-up, except SIGINT, with which a user insists. In other threads this has no
    effect. Afterwards the previous handlers are restored.
    """

    def __init__(self) -> None:
        self.came = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._stop) or signal.SIG_DFL
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raise `Interrupted` if a signal came; needed because an exception raised in a finaliser is lost."""
        if self.came:
            raise Interrupted(_INTERRUPTED)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        before, self.came = self.came, True
        if not before:
            raise Interrupted(_INTERRUPTED)
        if number == signal.SIGINT:
            raise KeyboardInterrupt


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
