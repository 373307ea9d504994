"""Locks of an output: one writer at a time (`OutputLock`), and which of its fellow processes live (`Companions`).

The content of a lock file, and whether its holder lives, is read by `nenya.storage.lockfile`; whether flock
works on a file system is found out by `nenya.storage.mounts`.

A run that is suspended on another machine for so long that its lock is taken over may continue later. It does no harm:
it writes to files that it holds open. If the next run resumes the same work, the manifest makes it write the same bytes
to them; if it starts from scratch, it has replaced them. The final file is renamed only after a check that the lock is
still held, from a temporary name that the next holder has removed.
"""

import contextlib
import fcntl
import json
import logging
import os
import secrets
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from nenya.errors import LockLostError, OutputError
from nenya.storage.lockfile import MOST_FENCE, Found, judge, read_lock
from nenya.storage.mounts import is_flocked as is_held
from nenya.storage.mounts import is_local, locks_work, open_lock
from nenya.storage.process import Life, current
from nenya.storage.temporaries import remove, temporary_name

log = logging.getLogger(__name__)


class Companions:
    """The processes that work on one output; each holds a lock on its own file in the folder while it lives.

    A process counts as dead when its file was seen locked and no longer is. Where flock does not work, on some network
    file systems, no file is ever seen locked, and no process counts as dead.

    Args:
        folder: the partial folder.
        own: name of this process's file.
    """

    def __init__(self, folder: Path, own: str) -> None:
        self.folder, self.own = folder, own
        self._seen: set[str] = set()

    def sees(self, count: int) -> bool:
        """Return whether the locks of this many other processes are seen, so that none can die unnoticed."""
        return sum(name.startswith("journal-") for name in self._seen) >= count

    def lost(self) -> bool:
        """Return whether a process seen before is dead."""
        try:
            names = {name for name in os.listdir(self.folder) if name == "lock" or name.startswith("journal-")}
        except FileNotFoundError:
            return bool(self._seen)
        held = {name for name in names - {self.own} if is_held(self.folder / name)}
        self._seen |= held
        return self._seen != held


HEARTBEAT = 10.0
"""Seconds between heartbeats."""


SILENT = 120.0
"""Seconds without a heartbeat after which a holder of which nothing else is known counts as dead."""


_LOOK = 0.5  # seconds between checks of a holder of which nothing else is known


_MOMENT = 0.05  # seconds that taking a lock may take another


_ATTEMPTS = 60


_DIGITS = 18  # of a number


_LENGTH = 640  # bytes: a heartbeat is one write that keeps the length


class OutputLock:
    """Holds an output for this process; a context manager.

    Args:
        path: the lock file; its folder is created if missing.
        output: what is locked, for messages.

    Attributes:
        fence: number of this holder, larger than those of all earlier ones; 0 while it is not held.
        token: names this holder; empty while it is not held.
    """

    def __init__(self, path: Path, output: str) -> None:
        self.path, self.output = path, output
        self.fence, self.token = 0, ""
        self.taken_over = False
        self._made_folder = False
        self._descriptor: int | None = None
        self._since = time.ctime()
        self._beats = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self.take()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def take(self) -> None:
        """Take the lock.

        Raises:
            OutputError: Another process holds it, or the folder cannot be written.
        """
        try:
            for _ in range(_ATTEMPTS):
                if self._try():
                    break
            else:
                raise self._held(read_lock(self.path))
        except OSError as error:
            self._leave_nothing()
            raise OutputError(
                f"{self.path.parent}: cannot be written ({error.strerror}); choose another folder"
            ) from error
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Release the lock; one that another process has taken over is left as it is."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        if self._descriptor is None:
            return
        with contextlib.suppress(OSError):
            self._write({"free": True})
        self._remove_if_alone()
        os.close(self._descriptor)
        self._descriptor, self.token, self.fence = None, "", 0

    def holds(self) -> bool:
        """Return whether it is held: neither before it was taken, nor after another process took it over."""
        return bool(self.token) and read_lock(self.path).said.get("token") == self.token

    def check(self) -> None:
        """Check that it is still held, before something is published.

        Raises:
            LockLostError: It is not.
        """
        if not self.holds():
            raise lost(self.output, read_lock(self.path).who if self.path.exists() else "")

    def _try(self) -> bool:
        """Take the lock if it is free; False if another process interfered."""
        self._made_folder = self._made_folder or not self.path.parent.exists()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            held = read_lock(self.path)
            newest = max(self._claims(), default=0)
            if newest > held.fence:  # another process is taking it, or was killed while doing so
                claim = self._claim_path(newest)
                if not self._is_over(claim, read_lock(claim)):
                    return False
            if not self._is_over(self.path, held):
                return False
            return self._claim(held, max(held.fence, newest) + 1)
        except FileNotFoundError:  # the folder was removed meanwhile
            return False

    def _is_over(self, path: Path, found: Found) -> bool:
        """Return whether a holder, or a process taking the lock, is dead; False if this must be checked again.

        Raises:
            OutputError: The holder lives.
        """
        state = judge(path, found)
        if state is Life.ALIVE:
            if path == self.path and not found.said.get("free"):
                raise self._held(found)
            time.sleep(_MOMENT)  # it is being taken or released
        return state is Life.GONE or (state is Life.UNKNOWN and self._is_silent(path, found))

    def _claims(self) -> set[int]:
        """Return the numbers of processes that are taking the lock, or were killed while doing so."""
        start = f"{self.path.name}."
        with os.scandir(self.path.parent) as entries:
            texts = [entry.name[len(start) :] for entry in entries if entry.name.startswith(start)]
        numbers = {int(text) for text in texts if text.isascii() and text.isdecimal() and len(text) < _DIGITS}
        return {number for number in numbers if number <= MOST_FENCE}

    def _claim_path(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}")

    def _is_silent(self, path: Path, found: Found) -> bool:
        """Watch a holder of which nothing is known; False if the file has a new holder or is free.

        Raises:
            OutputError: It lives.
        """
        log.info("%s: waiting up to %.0f s for a heartbeat of %s", self.output, SILENT, found.who)
        end = time.monotonic() + SILENT
        while time.monotonic() < end:
            time.sleep(min(_LOOK, SILENT / 4))
            now = read_lock(path)
            if now.state != found.state:
                if now.said.get("token") == found.said.get("token") and not now.said.get("free"):
                    raise self._held(now)
                return False
        return True

    def _claim(self, held: Found, number: int) -> bool:
        """Create the file of a number, then the lock file; False if another process was first.

        Args:
            held: content of the lock file when its holder was found dead.
            number: the next one.
        """
        self.token, self.fence = secrets.token_hex(16), number
        claim, made = self._claim_path(number), False
        if not _make_exclusively(claim, self._text({})):
            self.token, self.fence = "", 0
            return False
        try:
            if read_lock(self.path).state == held.state and max(self._claims(), default=number) <= number:
                self._install()
                made, self.taken_over = True, bool(held.said) and not held.said.get("free")
        finally:
            if not made:
                self.token, self.fence = "", 0
            remove(claim)
        for other in self._claims() if made else ():
            if other <= number:
                remove(self._claim_path(other))
        return made

    def _install(self) -> None:
        """Replace the previous lock file by this process's own."""
        temporary = temporary_name(self.path)
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            if locks_work(self.path.parent):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._descriptor = descriptor
            self._write({})
            os.replace(temporary, self.path)
        except BaseException:
            self._descriptor = None
            os.close(descriptor)
            remove(temporary)
            raise

    def _text(self, more: dict[str, Any]) -> bytes:
        said: dict[str, Any] = {"fence": self.fence, **more}
        if not more:
            said |= {"token": self.token, "beat": self._beats, "since": self._since, **current().values()}
        return json.dumps(said).encode().ljust(_LENGTH) + b"\n"

    def _write(self, more: dict[str, Any]) -> None:
        assert self._descriptor is not None
        os.pwrite(self._descriptor, self._text(more), 0)

    def _held(self, found: Found) -> OutputError:
        return OutputError(
            f"{self.output} is being written by {found.who}: wait for it to finish; a dead process is noticed at "
            f"once on this machine, after {SILENT:.0f} s on another"
        )

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT):
            self._beats += 1
            with contextlib.suppress(OSError):
                self._write({})
                if self._descriptor is not None and not is_local(self.path.parent):
                    os.fsync(self._descriptor)  # so that other machines see it

    def _leave_nothing(self) -> None:
        """Remove what was made for a lock that could not be taken."""
        if self._descriptor is not None:
            self._remove_if_alone()
            os.close(self._descriptor)
            self._descriptor = None
        elif self._made_folder:
            with contextlib.suppress(OSError):
                self.path.parent.rmdir()

    def _remove_if_alone(self) -> None:
        """Remove the folder created for the lock, if nothing else was written to it."""
        with contextlib.suppress(OSError):
            ours = self._made_folder and self._descriptor is not None and self._is_named()
            if ours and os.listdir(self.path.parent) == [self.path.name]:
                self.path.unlink()
                self.path.parent.rmdir()

    def _is_named(self) -> bool:
        return self._descriptor is not None and os.path.samestat(os.fstat(self._descriptor), self.path.lstat())


def lost(output: str, who: str = "") -> LockLostError:
    """Return the error for a holder that was taken for dead."""
    by = f" by {who}" if who and "?" not in who else ""
    return LockLostError(
        f"{output}: this process was silent so long that its lock was taken over{by}; no work is lost: run the same "
        "command again to resume"
    )


def _make_exclusively(path: Path, data: bytes) -> bool:
    """Create a file together with its content; False if the name exists."""
    temporary = temporary_name(path)
    try:
        temporary.write_bytes(data)
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except FileNotFoundError:
            raise
        except OSError:  # a file system without hard links
            try:
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            except FileExistsError:
                return False
            os.write(descriptor, data)
            os.close(descriptor)
        return True
    finally:
        remove(temporary)


@contextlib.contextmanager
def one_at_a_time(path: Path) -> Iterator[bool]:
    """Let one process at a time into the block; yields False where the file system has no locks.

    The lock is released when its process ends, in whatever way; the empty file remains, since removing it would race.

    Raises:
        OutputError: At the path is a link, a pipe or anything else but a file.
    """
    with open_lock(path, os.O_RDWR | os.O_CREAT) as file:
        alone = True
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("%s is locked: waiting for another process", path)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            alone = False
        yield alone
