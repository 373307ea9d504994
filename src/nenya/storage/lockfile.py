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

import contextlib
import fcntl
import json
import logging
import os
import secrets
import stat
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nenya.errors import LockLostError, OutputError
from nenya.storage.mounts import is_flocked, is_local, locks_work
from nenya.storage.process import Life, current, from_values, life
from nenya.storage.temporaries import remove, temporary_name

log = logging.getLogger(__name__)

HEARTBEAT = 10.0
"""Seconds between signs of life."""

SILENT = 120.0
"""Seconds without a sign of life after which a holder of which nothing else is known counts as gone."""

_LOOK = 0.5  # seconds between looks at a holder of which nothing else is known
_MOMENT = 0.05  # seconds that taking a lock may take another
_ATTEMPTS = 60
_MOST = 2**16  # bytes
_DIGITS = 18  # of a number
_LENGTH = 640  # bytes: a sign of life is one write that keeps the length


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


class LockFile:
    """Holds what a file stands for, for this process.

    Args:
        path: the lock file; its folder is made if it is missing.
        output: what is locked, for messages.

    Attributes:
        fence: number of this holder, larger than those of all before it; 0 while it is not held.
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
                f"{self.path.parent}: cannot be written ({error.strerror}); choose another place"
            ) from error
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Give it back; one that is another's by now stays as it is."""
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
        """Return whether it is held: not before it was taken, nor after another process has taken it over."""
        return bool(self.token) and read_lock(self.path).said.get("token") == self.token

    def check(self) -> None:
        """Check that it is still held, before something is published.

        Raises:
            LockLostError: It is not.
        """
        if not self.holds():
            raise lost(self.output, read_lock(self.path).who if self.path.exists() else "")

    def _try(self) -> bool:
        """Take the lock if it is free; False if something came in between."""
        self._made_folder = self._made_folder or not self.path.parent.exists()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            held = read_lock(self.path)
            newest = max(self._claims(), default=0)
            if newest > held.fence:  # another is taking it, or was killed while it did
                claim = self._claim_path(newest)
                if not self._is_over(claim, read_lock(claim)):
                    return False
            if not self._is_over(self.path, held):
                return False
            return self._claim(held, max(held.fence, newest) + 1)
        except FileNotFoundError:  # the folder went away meanwhile
            return False

    def _is_over(self, path: Path, found: Found) -> bool:
        """Return whether a holder is gone, or one that is taking the lock; False where it is to be looked at again.

        Raises:
            OutputError: The holder lives.
        """
        state = judge(path, found)
        if state is Life.ALIVE:
            if path == self.path and not found.said.get("free"):
                raise self._held(found)
            time.sleep(_MOMENT)  # it is just being taken, or given back
        return state is Life.GONE or (state is Life.UNKNOWN and self._is_silent(path, found))

    def _claims(self) -> set[int]:
        """Return the numbers that others are taking the lock with, or did when they were killed."""
        start = f"{self.path.name}."
        with os.scandir(self.path.parent) as entries:
            texts = [entry.name[len(start) :] for entry in entries if entry.name.startswith(start)]
        return {int(text) for text in texts if text.isascii() and text.isdecimal() and len(text) < _DIGITS}

    def _claim_path(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}")

    def _is_silent(self, path: Path, found: Found) -> bool:
        """Watch a holder of which nothing is known; False if the file is another's or free by now.

        Raises:
            OutputError: It lives.
        """
        log.info("%s: watching for up to %.0f s whether %s lives", self.output, SILENT, found.who)
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
        """Make the file of a number, then the lock file; False if another was first.

        Args:
            held: what the lock file said when its holder was found to be gone.
            number: the next one.
        """
        self.token, self.fence = secrets.token_hex(16), number
        claim, made = self._claim_path(number), False
        if not _make_exclusively(claim, self._text({})):
            self.token, self.fence = "", 0
            return False
        try:
            if read_lock(self.path).state == held.state and max(self._claims(), default=0) == number:
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
        """Put this process's own lock file in the place of the one before."""
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
            f"{self.output} is being written by {found.who}: wait for it; one that is gone is noticed at once here, "
            f"on another machine after {SILENT:.0f} s of silence"
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
        """Remove the folder that was made for the lock, if nothing came into it."""
        with contextlib.suppress(OSError):
            ours = self._made_folder and self._descriptor is not None and self._is_named()
            if ours and os.listdir(self.path.parent) == [self.path.name]:
                self.path.unlink()
                self.path.parent.rmdir()

    def _is_named(self) -> bool:
        return self._descriptor is not None and os.path.samestat(os.fstat(self._descriptor), self.path.lstat())


def lost(output: str, who: str = "") -> LockLostError:
    """Return the error for a holder that was taken for gone."""
    by = f" by {who}" if who and "?" not in who else ""
    return LockLostError(
        f"{output}: this process was silent for so long that its lock was taken over{by}; nothing is lost: the same "
        "command does what is left"
    )


def _make_exclusively(path: Path, data: bytes) -> bool:
    """Make a file with its content at once; False if there is one of that name."""
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
