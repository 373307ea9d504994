"""The content of a lock file: its holder, the holder's number, and whether the holder lives.

The lock is taken and held by `nenya.storage.lock.OutputLock`.

Whether a holder lives is never decided by clocks that may differ between machines or be set:

- Within one boot of a system and one process namespace, a holder lives as long as its process, also while that is
  stopped; see `nenya.storage.process`.
- On a local disk whose locks were tested and work, flock tells it for all other processes.
- Elsewhere the holder counts its heartbeats in the file, and a process that wants the lock watches that number by its
  own monotonic clock: a holder whose number does not change for `SILENT` seconds counts as dead.

The last may be wrong, for example after a machine slept. So a lock is taken in steps that exclude each other on any
file system: a process that wants number N + 1 creates the file of that name, which only one can, and then replaces the
old lock file by its own. A holder that was wrongly taken for dead then writes to a file without a name, and learns from
`check`, before it publishes anything, that it lost the lock.
"""

import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nenya.storage.mounts import is_flocked, is_local, locks_work
from nenya.storage.process import Life, current, from_values, life

_MOST = 2**16  # bytes

MOST_FENCE = 10**15
"""Largest number of a holder; a file with a larger one, which nobody reaches, is not one of nenya's."""


@dataclass(frozen=True)
class Found:
    """What was found at the path of a lock.

    Attributes:
        said: its content; empty if that cannot be read.
        state: distinguishes one state of the file from another.
        there: whether the file exists.
    """

    said: dict[str, Any]
    state: tuple[Any, ...] = ()
    there: bool = False

    @property
    def fence(self) -> int:
        """The number of its holder; 0 if it has none."""
        fence = self.said.get("fence", 0)
        return fence if isinstance(fence, int) and 0 <= fence <= MOST_FENCE else 0

    @property
    def who(self) -> str:
        """Its holder in words."""
        return f"process {_word(self.said, 'pid')} on {_word(self.said, 'host')} since {_word(self.said, 'since')}"


def _word(said: dict[str, Any], key: str) -> str:
    return "".join(letter for letter in str(said.get(key, "?"))[:80] if letter.isprintable())


def read_lock(path: Path) -> Found:
    """Read the file at the path of a lock; anything but a small JSON file counts as empty."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError:  # a link is not a lock; an unreadable file may be held by anyone
        return Found({}, (os.path.islink(path),), os.path.lexists(path) and not os.path.islink(path))
    try:
        status = os.fstat(descriptor)
        data = os.read(descriptor, _MOST) if stat.S_ISREG(status.st_mode) else b""
    finally:
        os.close(descriptor)
    try:
        said = json.loads(data)
    except (ValueError, RecursionError):  # being written this moment, or damaged
        said = {}
    return Found(said if isinstance(said, dict) else {}, (status.st_ino, status.st_mtime_ns, data), True)


def judge(path: Path, found: Found) -> Life:
    """Return whether the holder of a lock lives, as far as that is known without waiting."""
    if not found.there:
        return Life.GONE
    works = _flock_tells(path.parent)
    flocked = works and is_flocked(path)
    if found.said.get("free") or found.state[-1:] == (b"",):
        return Life.ALIVE if flocked else Life.GONE
    if len(found.state) < 3:
        return Life.ALIVE
    identity = from_values(found.said)
    state = life(identity) if identity is not None else Life.UNKNOWN
    if state is not Life.UNKNOWN:
        return state
    of_ours = identity is not None or not found.said
    here = is_local(path.parent) if of_ours else found.said.get("host") == current().host
    if works and here:
        return Life.ALIVE if flocked else Life.GONE
    return Life.UNKNOWN


def _flock_tells(folder: Path) -> bool:
    try:
        return locks_work(folder)
    except OSError:  # it cannot be tested in a read-only folder
        return True


def holder_of(path: Path) -> Found | None:
    """Return who holds a lock, or may hold it; None if it is free."""
    found = read_lock(path)
    return found if judge(path, found) is not Life.GONE else None
