"""Scratch space of a batch: its bytes, and the folder that holds it."""

import contextlib
import fcntl
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

from nenya.errors import Interrupted, OutputError
from nenya.options.sections import Options
from nenya.storage.mounts import locks_work
from nenya.storage.paths import COPY_PREFIX
from nenya.storage.process import Life
from nenya.storage.temporaries import is_marked, life_of, sweep

BATCH_PREFIX = "batch-"
LATENTS_FOLDER = "latents"
_DAY = 86400.0  # seconds
SHARE_OF_FREE = 0.8
_OLD = 3600.0  # seconds; a folder gets its name within moments
LOOK_SECONDS = 0.5  # seconds between looks for a signal


class Scratch:
    """Bytes of scratch space, taken and given back by several threads.

    Args:
        limit: the most that is taken at a time.
        check: called now and then by whoever waits; raises to stop.

    Attributes:
        kept: bytes that unfinished work of other batches has taken for good.
    """

    def __init__(self, limit: int, check: Callable[[], None] = lambda: None) -> None:
        self.limit, self.check, self.kept, self.used, self.peak = limit, check, 0, 0, 0
        self._changed = threading.Condition()
        self._cancelled = False

    def take(self, nbytes: int, what: str, held: int = 0) -> None:
        """Wait until so many bytes are free, and take them.

        Args:
            nbytes: how many.
            what: for whom, for the message.
            held: bytes that the same file has taken before.

        Raises:
            OutputError: The limit is too low for that file alone.
            Interrupted: The batch was stopped.
        """
        if nbytes + held + self.kept > self.limit:
            kept = f", of which unfinished work of other runs keeps {self.kept / 1e6:.1f} MB" if self.kept else ""
            raise OutputError(
                f"{what} needs {(nbytes + held) / 1e6:.1f} MB of scratch space (cutouts, twice the latents) and "
                f"{self.limit / 1e6:.1f} MB are allowed{kept}: raise loader.cache_limit, or set loader.cache_dir to a "
                "larger disk"
            )
        with self._changed:
            while not self._changed.wait_for(lambda: self._cancelled or self.used + nbytes <= self.limit, LOOK_SECONDS):
                self.check()
            if self._cancelled:
                raise Interrupted("interrupted")
            self.used += nbytes
            self.peak = max(self.peak, self.used)

    def give(self, nbytes: int) -> None:
        """Give bytes back."""
        with self._changed:
            self.used -= nbytes
            self._changed.notify_all()

    def cancel(self) -> None:
        """Wake up whoever waits, with `Interrupted`."""
        with self._changed:
            self._cancelled = True
            self._changed.notify_all()


def make_locked(folder: Path) -> IO[bytes]:
    """Make a folder whose lock this process holds as long as it lives."""
    new = folder.with_name(f"new-{folder.name}")  # it gets its name when it is locked
    try:
        new.mkdir(parents=True)
        lock = (new / "lock").open("wb")
        with contextlib.suppress(OSError):  # a file system without locks: the folder's name says whose it is
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        new.rename(folder)
    except OSError as error:
        raise OutputError(f"{folder}: cannot make the folder ({error.strerror}); set loader.cache_dir") from error
    return lock


def remove_if_empty(options: Options, scratch_dir: Path) -> None:
    """Remove folders that were made for temporary copies and hold nothing; not one that the user named."""
    made = [] if options.loader.cache_dir else [scratch_dir, scratch_dir.parent]
    for folder in (scratch_dir / LATENTS_FOLDER, *made):
        with contextlib.suppress(OSError):  # it is not there, or something is in it
            folder.rmdir()


def remove_abandoned(scratch_dir: Path) -> None:
    """Remove the folders of processes that are gone; of one from an earlier version, one without a lock after a day."""
    for prefix in (COPY_PREFIX, BATCH_PREFIX, f"new-{BATCH_PREFIX}"):
        sweep(scratch_dir, prefix)
    for folder in scratch_dir.glob(f"{COPY_PREFIX}*"):
        with contextlib.suppress(OSError):
            if time.time() - folder.stat().st_mtime > _DAY and not is_marked(folder, COPY_PREFIX):
                shutil.rmtree(folder, ignore_errors=True)
    for folder in scratch_dir.glob(f"{BATCH_PREFIX}*"):
        try:
            if life_of(folder, BATCH_PREFIX) is Life.ALIVE or not locks_work(scratch_dir):
                continue
            with (folder / "lock").open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        except FileNotFoundError:  # killed while it removed the folder, which had a lock from its first moment
            shutil.rmtree(folder, ignore_errors=True)
        except OSError:  # at work, or not ours
            continue
    for folder in scratch_dir.glob(f"new-{BATCH_PREFIX}*"):
        with contextlib.suppress(OSError):
            if time.time() - folder.stat().st_mtime > _OLD and not is_marked(folder, f"new-{BATCH_PREFIX}"):
                shutil.rmtree(folder, ignore_errors=True)
