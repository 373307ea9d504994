"""Files on disk: hashes, and writing so that a file is either absent or whole."""

import errno
import hashlib
import io
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nenya.errors import OutputError
from nenya.storage.temporaries import has_abandoned, sweep, temporary_name

if TYPE_CHECKING:
    import h5py

_BLOCK = 2**22  # bytes


def sha256_file(path: Path, cancelled: threading.Event | None = None) -> str:
    """Return the SHA-256 of a file's bytes as 64 hexadecimal digits, read in blocks.

    Args:
        path: the file.
        cancelled: makes it end early, with an empty text.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            if cancelled is not None and cancelled.is_set():
                return ""
            digest.update(block)
    return digest.hexdigest()


def check_output(path: Path, clobber: bool) -> None:
    """Check that a result can be written, before the work is done; nothing is made.

    Args:
        path: the result.
        clobber: whether a file that is there may be replaced.

    Raises:
        OutputError: It exists, is a folder, or its folder cannot be made or written.
    """
    hint = "choose another place with out="
    sweep(path.parent)
    if os.path.isdir(path):  # False, where Path.is_dir raises for a folder that may not be read
        raise OutputError(f"{path} is a folder, a file is to be written there: {hint}")
    if os.path.exists(path) and not clobber:
        raise OutputError(f"{path} exists already: clobber=true replaces it, out= names another place")
    folder = path.parent
    while not os.path.exists(folder) and folder != folder.parent:
        folder = folder.parent
    if not os.path.isdir(folder):
        raise OutputError(f"{path}: {folder} is a file, no folder: {hint}")
    if not os.access(folder, os.W_OK | os.X_OK) or os.statvfs(folder).f_flag & os.ST_RDONLY:
        raise OutputError(f"{path}: the folder {folder} is not writable; {hint}")


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary name in the folder of `path`; on success move what was written there to `path`.

    The bytes are on the disk before the name is: a reader finds the old file, or the new one, never a part
    of it, also after a loss of power. On an error the temporary file is removed and `path` is as before; what killed
    processes have left in the folder goes first.

    Args:
        path: The final name; its folder is made if it is missing.

    Yields:
        The temporary name, not yet existing, to be written and closed within the block.

    Raises:
        OutputError: The folder cannot be made, the file cannot be moved to its name, or the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write {path}: its folder cannot be made ({error.strerror})") from error
    temporary = temporary_name(path)
    try:
        yield temporary
        try:
            move_synced(temporary, path)
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror}") from error
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            reason = os.strerror(error.errno)
            raise OutputError(f"cannot write {path}: {reason}; free some room, or choose another place") from error
        raise


def remove_half(first: Path, second: Path) -> None:
    """Remove the second of two results that appear together, if it is there alone as their process was killed.

    That is so when the first one lies there under the temporary name of a process that is gone. To be called before
    anything else looks into the folder, which removes that.
    """
    if second.exists() and not first.exists() and has_abandoned(first):
        second.unlink(missing_ok=True)


def move_synced(temporary: Path, path: Path) -> None:
    """Rename a finished file within its file system; its bytes are on the disk before the name is."""
    sync(temporary)
    os.replace(temporary, path)
    sync(path.parent)


class _Patient(io.FileIO):
    """A file that keeps its first error, and from then on takes everything and writes nothing."""

    error: OSError | None = None

    def write(self, data: Any) -> int:
        """Write all of the bytes."""
        left = memoryview(data).cast("B")
        try:
            while left and self.error is None:
                left = left[super().write(left) :]
        except OSError as error:
            self.error = error
        return int(memoryview(data).nbytes)

    def truncate(self, size: int | None = None) -> int:
        """Set the length."""
        try:
            return super().truncate(size) if self.error is None else (size or 0)
        except OSError as error:
            self.error = error
            return size or 0


@contextmanager
def write_hdf5(path: Path) -> Iterator["h5py.File"]:
    """Give a new HDF5 file, and raise what went wrong with the disk when it is closed.

    HDF5's library, left alone with a full disk, says so hundreds of times and keeps the file open.

    Raises:
        OSError: The file cannot be written.
    """
    import h5py

    with _Patient(path, "w+") as raw:
        with h5py.File(raw, "w") as file:
            yield file
        if raw.error is not None:
            raise raw.error


def folder_bytes(folder: Path) -> int:
    """Return the bytes that the files below a folder take on the disk; 0 if there is none."""
    return sum(512 * path.lstat().st_blocks for path in folder.rglob("*") if path.is_file())


def sync(path: Path) -> None:
    """Wait until a file's bytes, or a folder's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_room(folder: Path, needed: int, what: str) -> None:
    """Make a folder, and check that it takes a file of the needed size.

    Args:
        folder: where the file will be.
        needed: bytes.
        what: the result that needs them, for the message.

    Raises:
        OutputError: The folder cannot be made or written, or has too little room.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot make the folder ({error.strerror}); choose another with out=") from error
    if not os.access(folder, os.W_OK | os.X_OK) or os.statvfs(folder).f_flag & os.ST_RDONLY:
        raise OutputError(f"{folder}: the folder is not writable; choose another with out=")
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OutputError(
            f"{folder}: {what} needs {needed / 1e6:.1f} MB and {free / 1e6:.1f} MB are free; "
            "make room or choose another folder with out="
        )
