"""One run at a time per output: a lock that says who holds it, and that a dead holder does not keep.

A run that is stopped on another machine for so long that its lock is taken may go on later. It does no harm: the rows
of blocks lie in files that it holds open. Where the next run goes on with the same work, the manifest makes it write
the very same bytes there; where that begins anew, it has put other files in their place. The final file gets its name
only after a look whether the lock is still held, from a temporary name that the next holder has removed before.
"""

import os
from pathlib import Path
from types import TracebackType
from typing import Self

from nenya.storage.lockfile import LockFile
from nenya.storage.mounts import is_flocked as is_held


class OutputLock(LockFile):
    """Holds an output for this process; see `nenya.storage.lockfile`.

    Args:
        path: the lock file; its folder is made if it is missing.
        output: what is locked, for messages.
    """

    def __enter__(self) -> Self:
        """Take the lock.

        Raises:
            OutputError: Another process holds it, or the folder cannot be made.
        """
        self.take()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class Companions:
    """The processes that work on one output, each of which holds a lock on a file of the folder as long as it lives.

    A process counts as gone when its file was seen locked and is so no longer. Where flock does not reach, on some
    file systems of several machines, no file is ever seen locked, and nobody counts as gone.

    Args:
        folder: the partial folder.
        own: name of this process's file.
    """

    def __init__(self, folder: Path, own: str) -> None:
        self.folder, self.own = folder, own
        self._seen: set[str] = set()

    def sees(self, count: int) -> bool:
        """Return whether locks reach so many other processes, so that none of them can go unnoticed."""
        return sum(name.startswith("journal-") for name in self._seen) >= count

    def lost(self) -> bool:
        """Return whether a process that was there is gone."""
        try:
            names = {name for name in os.listdir(self.folder) if name == "lock" or name.startswith("journal-")}
        except FileNotFoundError:
            return bool(self._seen)
        held = {name for name in names - {self.own} if is_held(self.folder / name)}
        self._seen |= held
        return self._seen != held
