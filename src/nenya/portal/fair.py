"""A fair thread pool: the session with the least recent use goes first, and none may occupy all threads."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

_FORGOTTEN = 10.0  # half-life of recorded use, seconds


@dataclass
class _Owner:
    running: int = 0
    used: float = 0.0
    at: float = 0.0

    def now(self) -> float:
        """Return its recent use of threads, seconds."""
        return float(self.used * 0.5 ** ((time.monotonic() - self.at) / _FORGOTTEN))


@dataclass(frozen=True)
class _Waiting:
    owner: Any
    wanted: Callable[[], bool]
    run: Callable[[], None]


class FairPool(ThreadPoolExecutor):
    """A thread pool with a queue in which sessions take turns.

    Args:
        threads: number of threads.
        each: largest number of threads per owner at a time.
        name: of the threads.
    """

    def __init__(self, threads: int, each: int, name: str) -> None:
        super().__init__(threads, thread_name_prefix=name)
        self._each, self._turn = each, threading.Lock()
        self._waiting: list[_Waiting] = []
        self._owners: WeakKeyDictionary[Any, _Owner] = WeakKeyDictionary()

    def submit_for(self, owner: Any, wanted: Callable[[], bool], run: Callable[[], None]) -> None:
        """Queue work until its owner's turn.

        Args:
            owner: of the work.
            wanted: returns whether the work is still needed; it is skipped otherwise.
            run: the work, which must not raise.

        Raises:
            RuntimeError: The pool is shut down.
        """
        with self._turn:
            self._waiting = [item for item in self._waiting if item.wanted()]
            self._waiting.append(_Waiting(owner, wanted, run))
        self.submit(self._next)

    def _next(self) -> None:
        with self._turn:
            item = self._taken()
        if item is None:
            return
        owner, begun = self._owners[item.owner], time.monotonic()
        try:
            item.run()
        finally:
            with self._turn:
                owner.used, owner.at = owner.now() + time.monotonic() - begun, time.monotonic()
                owner.running -= 1
                more = bool(self._waiting)
            if more:
                with suppress(RuntimeError):  # shut down since
                    self.submit(self._next)

    def _taken(self) -> _Waiting | None:
        """Take the oldest work of the owner with the least use."""
        self._waiting = [item for item in self._waiting if item.wanted()]
        able = [item for item in self._waiting if self._owner(item.owner).running < self._each]
        if not able:
            return None
        used = {id(item.owner): self._owner(item.owner).now() for item in able}
        item = min(able, key=lambda one: used[id(one.owner)])  # first in, first out among equals
        self._waiting.remove(item)
        self._owner(item.owner).running += 1
        return item

    def _owner(self, key: Any) -> _Owner:
        return self._owners.setdefault(key, _Owner())
