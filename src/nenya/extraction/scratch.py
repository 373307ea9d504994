"""Scratch space of a batch: its bytes, and the folder that holds it."""

import contextlib
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

from nenya.errors import Interrupted, OutputError
from nenya.options.sections import Options
from nenya.storage.disk import is_marked, life_of, sweep
from nenya.storage.flock import flock, locks_work, open_lock
from nenya.storage.paths import COPY_PREFIX
from nenya.storage.process import Life

BATCH_PREFIX = "batch-"
LATENTS_FOLDER = "latents"
_DAY = 86400.0  # seconds
SHARE_OF_FREE = 0.8
_OLD = 3600.0  # seconds; a new folder gets its final name long before
LOOK_SECONDS = 0.5  # seconds between checks for a signal


class Scratch:
    """A budget of scratch space in bytes, shared by several threads.

    Args:
        limit: the most that may be taken at a time.
        check: called regularly by waiting threads; raises to stop.

    Attributes:
        kept: bytes that unfinished work of other batches occupies.
    """

    def __init__(self, limit: int, check: Callable[[], None] = lambda: None) -> None:
        self.limit, self.check, self.kept, self.used, self.peak = limit, check, 0, 0, 0
        self._changed = threading.Condition()
        self._cancelled = False

    def take(self, nbytes: int, what: str, held: int = 0) -> None:
        """Wait until so many bytes are free, and take them.

        Args:
            nbytes: number of bytes.
            what: the file, for the message.
            held: bytes that the same file has already taken.

        Raises:
            OutputError: The limit is too low for this file alone.
            Interrupted: The batch was stopped.
        """
        if nbytes + held + self.kept > self.limit:
            kept = f", and unfinished work of other runs occupies {self.kept / 1e6:.1f} MB of them" if self.kept else ""
            raise OutputError(
                f"{what} needs {(nbytes + held) / 1e6:.1f} MB of scratch space (cutouts, twice the latents), but only "
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
        """Wake up waiting threads with `Interrupted`."""
        with self._changed:
            self._cancelled = True
            self._changed.notify_all()


def make_locked(folder: Path) -> IO[bytes]:
    """Make a folder, and hold its lock for the lifetime of this process."""
    new = folder.with_name(f"new-{folder.name}")  # renamed once it is locked
    try:
        new.mkdir(parents=True)
        lock = (new / "lock").open("wb")
        with contextlib.suppress(OSError):  # without file locks the folder's name identifies its process
            flock(lock)
        new.rename(folder)
    except OSError as error:
        raise OutputError(f"{folder}: cannot make the folder ({error.strerror}); set loader.cache_dir") from error
    return lock


def remove_if_empty(options: Options, scratch_dir: Path) -> None:
    """Remove empty folders of temporary copies, but not one that the user named."""
    made = [] if options.loader.cache_dir else [scratch_dir, scratch_dir.parent]
    for folder in (scratch_dir / LATENTS_FOLDER, *made):
        with contextlib.suppress(OSError):  # missing, or not empty
            folder.rmdir()


def remove_abandoned(scratch_dir: Path) -> None:
    """Remove the folders of ended processes; those of earlier versions, which have no lock, after a day."""
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
            with open_lock(folder / "lock") as lock:
                if flock(lock):
                    shutil.rmtree(folder, ignore_errors=True)
        except FileNotFoundError:  # killed while removing the folder, which always has a lock
            shutil.rmtree(folder, ignore_errors=True)
        except (OSError, OutputError):  # in use, or not ours
            continue
    for folder in scratch_dir.glob(f"new-{BATCH_PREFIX}*"):
        with contextlib.suppress(OSError):
            if time.time() - folder.stat().st_mtime > _OLD and not is_marked(folder, f"new-{BATCH_PREFIX}"):
                shutil.rmtree(folder, ignore_errors=True)
