"""One run at a time per output: a lock that says who holds it, and that a dead holder does not keep."""

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from nenya.errors import OutputError

HEARTBEAT = 15.0
"""Seconds between signs of life."""

SILENT = 120.0
"""Seconds of silence after which a holder on another machine, where flock may not reach, counts as gone."""

DEAD = 900.0
"""Seconds of silence after which a lock that flock still reports as held is taken over: its machine is gone."""

_ATTEMPTS = 20


class OutputLock:
    """Holds an output for this process.

    Args:
        path: the lock file; its folder is made if it is missing.
        output: what is locked, for messages.
    """

    def __init__(self, path: Path, output: str) -> None:
        self.path, self.output = path, output
        self._file: IO[bytes] | None = None
        self._made_folder = False
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        """Take the lock.

        Raises:
            OutputError: Another process holds it, or the folder cannot be made.
        """
        try:
            for _ in range(_ATTEMPTS):
                if self._take():
                    break
            else:
                raise self._held()
        except OSError as error:
            raise OutputError(
                f"{self.path.parent}: cannot be written ({error.strerror}); choose another place"
            ) from error
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        if self._file is not None:
            with contextlib.suppress(OSError):  # so that nobody on another machine waits for our silence
                self._file.truncate(0)
            self._remove_if_alone()
            self._file.close()

    def _remove_if_alone(self) -> None:
        """Remove the folder that was made for the lock, if nothing came into it."""
        with contextlib.suppress(OSError):
            ours = self._made_folder and self._file is not None and self._is(self._file)
            if ours and os.listdir(self.path.parent) == [self.path.name]:
                self.path.unlink()
                self.path.parent.rmdir()

    def _take(self) -> bool:
        """Try to take the lock; False if the file went away meanwhile."""
        self._made_folder = self._made_folder or not self.path.parent.exists()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = self.path.open("a+b")
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            if self._silence() < DEAD:
                raise self._held() from None
            self.path.unlink(missing_ok=True)
            return False
        if not self._is(file):
            file.close()
            return False
        holder = _read(self.path)
        if holder.get("host", socket.gethostname()) != socket.gethostname() and self._silence() < SILENT:
            file.close()
            raise self._held()
        file.truncate(0)
        file.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "since": time.ctime()}).encode())
        file.flush()
        self._file = file
        return True

    def _is(self, file: IO[bytes]) -> bool:
        """Return whether an open file is still the one of that name."""
        try:
            return os.path.samestat(os.fstat(file.fileno()), self.path.stat())
        except FileNotFoundError:
            return False

    def _silence(self) -> float:
        try:
            return time.time() - self.path.stat().st_mtime
        except FileNotFoundError:
            return 0.0

    def _held(self) -> OutputError:
        holder = _read(self.path)
        who = f"process {holder.get('pid', '?')} on {holder.get('host', '?')} since {holder.get('since', '?')}"
        return OutputError(
            f"{self.output} is being written by {who} (last sign of life {self._silence():.0f} s ago): wait for it; "
            f"one that is gone is noticed at once here, on another machine after {SILENT:.0f} s of silence"
        )

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT):
            if self._file is not None:
                os.utime(self._file.fileno())


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


def is_held(path: Path) -> bool:
    """Return whether another process holds a lock on a file."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # it is gone
        return False
    return False


def _read(path: Path) -> dict[str, str]:
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}
