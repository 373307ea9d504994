"""File locks of the operating system, and properties of a folder's file system: local or not, with locks or without.

Only this module calls flock; `nenya.storage.lock` holds outputs. A lock lasts until its file is closed or its process
ends, in whatever way.
"""

import errno
import fcntl
import logging
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from nenya.errors import OutputError
from nenya.storage.process import current

log = logging.getLogger(__name__)

NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)
"""Errors of a file system without locks."""

_OWN = {"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "tmpfs", "ramfs", "zfs", "bcachefs", "overlay"}


def flock(file: int | IO[Any], *, shared: bool = False, wait: bool = False) -> bool:
    """Lock an open file or folder.

    Args:
        file: a descriptor, or an open file.
        shared: whether others may hold shared locks at the same time.
        wait: whether to wait for whoever holds it.

    Returns:
        Whether it was locked; False if it is locked through another open file.

    Raises:
        OSError: The file system has no locks.
    """
    how = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    try:
        fcntl.flock(file, how)
    except BlockingIOError:
        return False
    return True


def is_local(folder: Path) -> bool:
    """Return whether a folder is surely on a local disk of this machine; False if unknown."""
    try:
        return _kinds().get(os.stat(folder).st_dev, "") in _OWN
    except OSError:
        return False


def _kinds() -> dict[int, str]:
    """Return device number -> type of its file system."""
    found: dict[int, str] = {}
    with suppress(OSError, ValueError):
        for line in Path("/proc/self/mountinfo").read_text(errors="replace").splitlines():
            before, _, after = line.partition(" - ")
            major, _, minor = before.split()[2].partition(":")
            found[os.makedev(int(major), int(minor))] = after.split()[0]
    return found


def locks_work(folder: Path) -> bool:
    """Return whether flock works in a folder: it is tested on a temporary file, and logged if it does not work.

    Raises:
        OSError: The folder cannot be written.
    """
    device = os.stat(folder).st_dev
    if device not in _tried:
        _tried[device] = _find_out(folder)
    return _tried[device]


_tried: dict[int, bool] = {}  # device -> whether its locks work


def _find_out(folder: Path) -> bool:
    why = try_locks(folder)
    if why:
        log.warning(
            "%s: file locks do not work on this file system (%s); lock files alone say who is at work, and a "
            "process on another machine counts as dead when its file has not changed for minutes", folder, why,
        )  # fmt: skip
    return not why


def try_locks(folder: Path) -> str:
    """Return why flock does not work in a folder; an empty string if it does.

    Raises:
        OSError: The folder cannot be written.
    """
    path = folder / f".lock.{current().mark}-{secrets.token_hex(4)}.tmp"
    first = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        second = os.open(path, os.O_RDWR)
        try:
            flock(first)
            return "two processes obtain the same lock" if flock(second) else ""
        except OSError as error:
            return error.strerror or str(error)
        finally:
            os.close(second)
    finally:
        os.close(first)
        with suppress(OSError):
            os.unlink(path)


def hdf5_locking(path: Path) -> str | bool:
    """Return the `locking` argument of h5py for a file: off where the file system has no locks."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return "best-effort"
    try:
        flock(descriptor, shared=True)
    except OSError as error:
        return False if error.errno in NO_LOCKS else "best-effort"
    finally:
        os.close(descriptor)
    return "best-effort"


@contextmanager
def open_lock(path: Path, flags: int = os.O_RDONLY) -> Iterator[int]:
    """Yield the descriptor of a lock file, opened without following a link or waiting for a pipe.

    Raises:
        OSError: It cannot be opened.
        OutputError: It is not a regular file.
    """
    try:
        descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
            raise OutputError(f"{path} is not a file, as the lock of a folder is: remove it") from error
        raise
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OutputError(f"{path} is not a file, as the lock of a folder is: remove it")
        yield descriptor
    finally:
        os.close(descriptor)


def is_flocked(path: Path) -> bool:
    """Return whether a file is locked through another open file, as far as flock tells."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError:  # it is gone
        return False
    try:
        return not flock(descriptor, shared=True)
    except OSError:  # there are no locks
        return False
    finally:
        os.close(descriptor)
