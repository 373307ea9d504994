"""Fair shares of the server's threads.

In the pool, the session with the least recent use goes first, and none may occupy all threads. In the server's own
thread, each address pays back what it takes.
"""

import asyncio
import threading
import time
import types
from collections.abc import Callable, Coroutine, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

_FORGOTTEN = 10.0  # half-life of recorded use, seconds
_BURST, _SHARE = 0.25, 0.5  # seconds of the server's own thread at once, then seconds per second
T = TypeVar("T")


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


class Purse:
    """The time that one address may take of the server's own thread: `_BURST` seconds, then `_SHARE` per second.

    All connections of the address share it.
    """

    def __init__(self) -> None:
        self._owed, self._at, self._turn = 0.0, time.monotonic(), asyncio.Lock()

    async def ready(self) -> None:
        """Wait for a turn among the connections of the address, and until its debt is paid back."""
        async with self._turn:
            await asyncio.sleep(0)  # others are served between two messages of one address
            while (over := self._now() - _BURST) > 0:
                await asyncio.sleep(over / _SHARE)

    def _now(self) -> float:
        now = time.monotonic()
        self._owed, self._at = max(0.0, self._owed - _SHARE * (now - self._at)), now
        return self._owed

    @property
    def empty(self) -> bool:
        """Whether nothing is owed, so that it can be forgotten."""
        return self._now() == 0.0 and not self._turn.locked()

    @types.coroutine
    def pay_for(self, work: Coroutine[Any, Any, T]) -> Generator[Any, Any, T]:
        """Await work and charge the time that its own steps take, not what it waits for."""
        step: Callable[[Any], Any] = work.send
        given: Any = None
        while True:
            begun = time.thread_time()  # of a processor: others on the machine are not charged to the address
            try:
                waited = step(given)
            except StopIteration as done:
                return done.value  # type: ignore[no-any-return]
            finally:
                self._owed = self._now() + time.thread_time() - begun
            try:
                given, step = (yield waited), work.send
            except BaseException as error:  # such as a cancellation, which is the work's
                given, step = error, work.throw
