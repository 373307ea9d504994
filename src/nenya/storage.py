"""Files on disk: hashes, and writing so that a file is either absent or whole."""

import hashlib
import os
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nenya.errors import OutputError

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


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary name in the folder of `path`; on success move what was written there to `path`.

    The bytes are on the disk before the name is: a reader finds the old file, or the new one, never a part
    of it, also after a loss of power. On an error the temporary file is removed and `path` is as before.

    Args:
        path: The final name; its folder is made if it is missing.

    Yields:
        The temporary name, not yet existing, to be written and closed within the block.

    Raises:
        OutputError: The folder cannot be made, or the file cannot be moved to its name.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder {path.parent}: {error.strerror}") from error
    try:
        yield temporary
        try:
            move_synced(temporary, path)
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror}") from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def move_synced(temporary: Path, path: Path) -> None:
    """Rename a finished file within its file system; its bytes are on the disk before the name is."""
    _sync(temporary)
    os.replace(temporary, path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    """Wait until a file's bytes, or a folder's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
