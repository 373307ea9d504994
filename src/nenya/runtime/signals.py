"""Signals that end a run so that the same command resumes it."""

import signal
import threading
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
