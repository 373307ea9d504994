"""Locks of an output: one writer at a time (`OutputLock`), and which of its fellow processes live (`Companions`).

Whether flock works on a file system is found out by `nenya.storage.flock`. Whether a holder lives is never decided by
clocks that may differ between machines or be set:

- Within one boot of a system and one process namespace, a holder lives as long as its process, also while that is
  stopped; see `nenya.storage.process`.
- On a local disk, if its locks were tested and work, flock tells it for all other processes.
- Elsewhere the holder counts its heartbeats in the file, and a process that wants the lock watches that number by its
  own monotonic clock: a holder counts as dead if its number does not change for `SILENT` seconds.

The last may be wrong, for example after a machine slept. So a lock is taken in steps that exclude each other on any
file system: a process that wants number N + 1 creates the file of that name, which only one can, and then replaces the
old lock file by its own. A holder that was wrongly taken for dead then writes to a file without a name, and learns from
`check`, before it publishes anything, that it lost the lock.

A run that is suspended on another machine for so long that its lock is taken over may continue later. It does no harm:
it writes to files that it holds open. If the next run resumes the same work, the manifest makes it write the same bytes
to them; if it starts from scratch, it has replaced them. The final file is renamed only after a check that the lock is
still held, from a temporary name that the next holder has removed.
"""

import contextlib
import json
import logging
import os
import secrets
import stat
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from nenya.errors import LockLostError, NenyaError, OutputError
from nenya.storage.disk import check_folder, remove, temporary_name
from nenya.storage.flock import flock, is_flocked, is_local, locks_work, open_lock
from nenya.storage.process import Life, current, from_values, life

log = logging.getLogger(__name__)

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
    """Return whether the holder of a lock lives, if that is known without waiting."""
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
        held = {name for name in names - {self.own} if is_flocked(self.folder / name)}
        self._seen |= held
        return self._seen != held


HEARTBEAT = 10.0
"""Seconds between heartbeats."""


SILENT = 120.0
"""Seconds without a heartbeat after which a holder counts as dead, if nothing else is known about it."""


_LOOK = 0.5  # seconds between checks of a holder, if nothing else is known about it


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
        self._made: list[Path] = []
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
        check_folder(self.path.parent)
        try:
            for _ in range(_ATTEMPTS):
                if self._try():
                    break
            else:
                raise self._held(read_lock(self.path))
        except NenyaError:
            raise
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
        self._made = self._made or [folder for folder in self.path.parents if not folder.exists()]
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
        """Watch an unknown holder; False if the file has a new holder or is free.

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
                flock(descriptor)
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
        else:
            self._remove_folders()

    def _remove_if_alone(self) -> None:
        """Remove the folder created for the lock, if nothing else was written to it."""
        with contextlib.suppress(OSError):
            ours = self._made and self._descriptor is not None and self._is_named()
            if ours and os.listdir(self.path.parent) == [self.path.name]:
                self.path.unlink()
                self._remove_folders()

    def _remove_folders(self) -> None:
        """Remove the folders created for the lock, as far as they are empty."""
        with contextlib.suppress(OSError):
            for folder in self._made:
                folder.rmdir()

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
            if not flock(file):
                log.info("%s is locked: waiting for another process", path)
                flock(file, wait=True)
        except OSError:
            alone = False
        yield alone
