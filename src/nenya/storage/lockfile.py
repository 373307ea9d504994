"""A lock file that says who holds it, and with a number that grows with each holder.

Whether a holder lives is never told by a clock that two machines, or one before and after a step of its clock, read:

- Within one start of a system and one namespace of processes, a holder lives as long as its process does, also while
  that is stopped; see `nenya.storage.process`.
- On a disk of this machine alone whose locks were tried and work, flock tells it of all other processes.
- Elsewhere the holder counts its beats in the file, and whoever wants the lock watches that number, by a clock of its
  own that only goes forwards: a holder whose number stands still for `SILENT` seconds counts as gone.

The last may be wrong, as of a machine that slept. So a lock is taken in steps that exclude each other on any file
system: whoever wants number N + 1 makes the file of that name, which only one can, and then puts its own lock file in
the place of the old one. A holder that was taken for gone writes on into a file that has no name any more, and finds
with `check`, before each thing that it publishes, that the lock is not its own.
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


@dataclass(frozen=True)
class Found:
    """What lies at a lock's name.

    Attributes:
        said: what it says; nothing for a file that says nothing.
        state: tells one state of the file from another.
        there: whether there is a file.
    """

    said: dict[str, Any]
    state: tuple[Any, ...] = ()
    there: bool = False

    @property
    def fence(self) -> int:
        """The number of its holder; 0 where it says none."""
        fence = self.said.get("fence", 0)
        return fence if isinstance(fence, int) and 0 <= fence < 2**62 else 0

    @property
    def who(self) -> str:
        """Its holder in words."""
        return f"process {_word(self.said, 'pid')} on {_word(self.said, 'host')} since {_word(self.said, 'since')}"


def _word(said: dict[str, Any], key: str) -> str:
    return "".join(letter for letter in str(said.get(key, "?"))[:80] if letter.isprintable())


def read_lock(path: Path) -> Found:
    """Return what lies at a lock's name; what is no small file of JSON says nothing."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError:  # a link leads to no lock; what may not be read may be anybody's
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
    """Return whether the holder of a lock lives, as far as that can be told without waiting."""
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
    except OSError:  # it cannot be tried in a folder of which one only reads
        return True


def holder_of(path: Path) -> Found | None:
    """Return who holds a lock, or may hold it; None for nobody."""
    found = read_lock(path)
    return found if judge(path, found) is not Life.GONE else None
