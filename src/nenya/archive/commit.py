"""The one step in which an archive changes: `archive.json` is replaced if it still is what was read.

On a disk, comparing and renaming are two steps. No other process comes in between, as both happen under a lock of the
folder. Where there are no locks, or a machine that slept for long goes on between them, the rename fails: the temporary
file that it renames was removed by whoever took the archive over, before that one read the manifest. One that is made
after that moment is never renamed, as its maker finds first that it holds the archive no longer.
"""

import contextlib
import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from nenya.errors import OutputError
from nenya.storage.disk import sync
from nenya.storage.lock import lost
from nenya.storage.s3.replace import replace_if_same
from nenya.storage.temporaries import remove, sweep, temporary_name

_PATIENCE = 20.0  # seconds in which another's comparing and renaming is over
_MOMENT = 0.02


def fingerprint(data: bytes) -> str:
    """Return a hash of a manifest's bytes, empty where there is none."""
    return hashlib.sha256(data).hexdigest() if data else ""


def replace_file(path: Path, data: bytes, before: str, check: Callable[[], None], place: str) -> None:
    """Replace a manifest on a disk; readers find the old one or the new one.

    Args:
        path: the manifest.
        data: what it is to be.
        before: `fingerprint` of what was read.
        check: raises if the archive is held no longer.
        place: the archive, for messages.

    Raises:
        LockLostError: The archive was taken over.
        OutputError: It was changed meanwhile, or cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_name(path)
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            with _alone(path.parent, place):
                check()
                if fingerprint(path.read_bytes() if path.is_file() else b"") != before:
                    raise changed(place)
                try:
                    os.replace(temporary, path)
                except FileNotFoundError:
                    raise lost(place) from None
            sync(path.parent)
        finally:
            remove(temporary)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error


def replace_object(url: str, data: bytes, before: str, check: Callable[[], None], place: str, safe: bool) -> str:
    """Replace a manifest on S3.

    Args:
        url: of the manifest.
        data: what it is to be.
        before: the ETag of what was read, empty for none.
        check: raises if the archive is held no longer.
        place: the archive, for messages.
        safe: whether the service compares, so that nobody comes between looking and writing.

    Returns:
        The new ETag.

    Raises:
        LockLostError: The archive was taken over.
        OutputError: It was changed meanwhile.
        StorageError: The service does not take it.
    """
    check()
    return replace_if_same(url, data, before, changed(place), safe=safe)


def changed(place: str) -> OutputError:
    """Return the error for an archive that is not what was read."""
    return OutputError(f"{place} was changed by another update meanwhile: give the same command again")


def revoke(root: Path, manifest: str, *, all_of_them: bool) -> None:
    """Remove the temporaries of an archive, so that nobody who held it before can publish anything from them.

    Args:
        root: the archive.
        manifest: name of the manifest.
        all_of_them: also those of processes of which nothing is known.
    """
    for path in root.glob(f".{manifest}.*.tmp"):
        remove(path)
    for folder, inner, _ in os.walk(root):
        inner[:] = [name for name in inner if name != "index"]  # LanceDB's own
        sweep(Path(folder), of_others=all_of_them)


@contextlib.contextmanager
def _alone(folder: Path, place: str) -> Iterator[None]:
    """Let one process in at a time, as far as the file system can."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        end = time.monotonic() + _PATIENCE
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    raise OutputError(f"{place}: another update is at this moment changing it: try again") from None
                time.sleep(_MOMENT)
            except OSError:  # no locks, or none of folders
                break
        yield
    finally:
        os.close(descriptor)
