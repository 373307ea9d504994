"""What a folder's file system can do: whether it is of this machine alone, and whether its locks lock."""

import errno
import fcntl
import logging
import os
import secrets
from contextlib import suppress
from pathlib import Path

from nenya.storage.process import current

log = logging.getLogger(__name__)

NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)
"""What a file system says that has no locks."""

_OWN = {"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "tmpfs", "ramfs", "zfs", "bcachefs", "overlay"}


def is_local(folder: Path) -> bool:
    """Return whether a folder is surely on a disk that no other machine uses; False where that is unknown."""
    try:
        return _kinds().get(os.stat(folder).st_dev, "") in _OWN
    except OSError:
        return False


def _kinds() -> dict[int, str]:
    """Return device number -> kind of its file system."""
    found: dict[int, str] = {}
    with suppress(OSError, ValueError):
        for line in Path("/proc/self/mountinfo").read_text(errors="replace").splitlines():
            before, _, after = line.partition(" - ")
            major, _, minor = before.split()[2].partition(":")
            found[os.makedev(int(major), int(minor))] = after.split()[0]
    return found


def locks_work(folder: Path) -> bool:
    """Return whether flock locks in a folder: it is tried on a file of its own, and where it does not, that is said.

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
            "%s: the file system has no locks that work (%s); who is at work is told by lock files alone, and a "
            "process of another machine counts as gone when its file does not change for minutes", folder, why,
        )  # fmt: skip
    return not why


def try_locks(folder: Path) -> str:
    """Return why flock does not lock in a folder; nothing where it does.

    Raises:
        OSError: The folder cannot be written.
    """
    path = folder / f".lock.{current().mark}-{secrets.token_hex(4)}.tmp"
    first = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        second = os.open(path, os.O_RDWR)
        try:
            fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return ""
        except OSError as error:
            return error.strerror or str(error)
        finally:
            os.close(second)
        return "two processes get the same lock"
    finally:
        os.close(first)
        with suppress(OSError):
            os.unlink(path)


def hdf5_locking(path: Path) -> str | bool:
    """Return what to tell HDF5 about locks of a file: not to ask for any where the file system has none."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return "best-effort"
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in NO_LOCKS else "best-effort"
    finally:
        os.close(descriptor)
    return "best-effort"


def is_flocked(path: Path) -> bool:
    """Return whether another open file holds a lock on a file, as far as flock tells."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError:  # it is gone
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # there are no locks
        return False
    finally:
        os.close(descriptor)
    return False
