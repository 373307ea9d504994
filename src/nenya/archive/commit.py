"""The commit of an archive: `archive.json` is replaced if it is unchanged since it was read.

On a disk, comparing and renaming are two steps. No other process intervenes, as both happen under a lock of the
folder. Without locks, or when a suspended machine wakes between the steps, the rename fails: the temporary
file that it renames was removed by the process that took over, before that process read the manifest. A temporary
file made after that moment is never renamed, as its process first finds that it no longer holds the archive.
"""

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from nenya.errors import NenyaError, OutputError
from nenya.storage.disk import remove, sweep, sync, temporary_name
from nenya.storage.flock import flock
from nenya.storage.lock import lost
from nenya.storage.s3.replace import replace_if_same

_PATIENCE = 20.0  # seconds within which another process finishes comparing and renaming
_MOMENT = 0.02


def fingerprint(data: bytes) -> str:
    """Return a hash of a manifest's bytes, empty if there is none."""
    return hashlib.sha256(data).hexdigest() if data else ""


def replace_file(path: Path, data: bytes, before: str, check: Callable[[], None], place: str) -> None:
    """Replace a manifest on a disk; readers see either the old or the new one.

    Args:
        path: the manifest.
        data: its new content.
        before: `fingerprint` of the content that was read.
        check: raises if this process no longer holds the archive.
        place: the archive, for messages.

    Raises:
        LockLostError: Another process took the archive over.
        OutputError: It was changed since, or cannot be written.
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
    except NenyaError:
        raise
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error


def replace_object(url: str, data: bytes, before: str, check: Callable[[], None], place: str, safe: bool) -> str:
    """Replace a manifest on S3.

    Args:
        url: of the manifest.
        data: its new content.
        before: the ETag that was read, empty for none.
        check: raises if this process no longer holds the archive.
        place: the archive, for messages.
        safe: whether the service supports conditional writes, so that no process intervenes.

    Returns:
        The new ETag.

    Raises:
        LockLostError: Another process took the archive over.
        OutputError: It was changed since.
        StorageError: The service refuses it.
    """
    check()
    return replace_if_same(url, data, before, changed(place), safe=safe)


def changed(place: str) -> OutputError:
    """Return the error for an archive that changed since it was read."""
    return OutputError(f"{place} was changed by another update: run the same command again")


def revoke(root: Path, manifest: str, *, all_of_them: bool) -> None:
    """Remove the temporary files of an archive, so that no earlier holder can publish them.

    Args:
        root: the archive.
        manifest: name of the manifest.
        all_of_them: whether to remove those of unknown processes too.
    """
    for path in root.glob(f".{manifest}.*.tmp"):
        remove(path)
    for folder, inner, _ in os.walk(root):
        inner[:] = [name for name in inner if name != "index"]  # written by LanceDB
        sweep(Path(folder), of_others=all_of_them)


@contextlib.contextmanager
def _alone(folder: Path, place: str) -> Iterator[None]:
    """Admit one process at a time, as far as the file system supports locks."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        end = time.monotonic() + _PATIENCE
        while not _locked(descriptor):
            if time.monotonic() > end:
                raise OutputError(f"{place}: another update is changing it: run the command again")
            time.sleep(_MOMENT)
        yield
    finally:
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    try:
        return flock(descriptor)
    except OSError:  # no locks, or none on folders
        return True
