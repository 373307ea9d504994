"""Files on disk: hashes, and writing so that a file is either complete or absent.

The names of temporary files and folders identify their process. When one is created in a folder, those of dead
processes are removed from this folder. Those of a process that may live are never touched. A process of this boot and
process namespace is identified by its number and start time. One of an earlier boot is dead if the disk is local.
Nothing is known about processes on another machine or in another container; their files are removed when nothing was
written to them for a week.
"""

import errno
import hashlib
import io
import os
import re
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from hashlib import sha256
from os import scandir
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nenya.errors import NenyaError, OutputError
from nenya.storage.flock import is_local
from nenya.storage.process import Life, current, life_of_mark, restarted_since

if TYPE_CHECKING:
    import h5py

_BLOCK = 2**22  # bytes
_waiting: ContextVar[list[tuple[Path, Path]] | None] = ContextVar("files that appear together", default=None)

_WEEK = 7 * 86400.0  # seconds
_LONGEST = 255  # bytes of a file's name
_FOR_MARK = 70  # bytes of it beside the name of the final file
_MARK = r"(?P<mark>\d+-\w+-[0-9a-f]{8}-[0-9a-f]{8})-[0-9a-f]{8}"
_FILE = re.compile(rf"\..+\.{_MARK}\.tmp", re.DOTALL)
_OLD_FILE = re.compile(r"\..+\.\d+-[0-9a-f]{8}\.tmp", re.DOTALL)  # of earlier versions, with the number alone
_FEW = 1000
_between_looks: dict[str, int] = {}  # folder -> temporaries that may be created there before it is scanned again
_lock = threading.Lock()


def sha256_file(path: Path, cancelled: threading.Event | None = None) -> str:
    """Return the SHA-256 of a file's bytes as 64 hexadecimal digits, read in blocks.

    Args:
        path: the file.
        cancelled: once set, the function returns early with an empty string.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            if cancelled is not None and cancelled.is_set():
                return ""
            digest.update(block)
    return digest.hexdigest()


def check_output(path: Path, clobber: bool) -> None:
    """Check that an output can be written, before the work is done; nothing is created.

    Args:
        path: the output.
        clobber: whether an existing file may be overwritten.

    Raises:
        OutputError: It exists, is a folder, or its folder cannot be created or written.
    """
    hint = "choose another path with out="
    sweep(path.parent)
    if os.path.isdir(path):  # False, where Path.is_dir raises for a folder that may not be read
        raise OutputError(f"{path} is a folder, expected the name of a file: {hint}")
    if os.path.exists(path) and not clobber:
        raise OutputError(f"{path} exists (clobber=true overwrites it, out= names another path)")
    folder = check_folder(path.parent, path)
    if not os.access(folder, os.W_OK | os.X_OK) or os.statvfs(folder).f_flag & os.ST_RDONLY:
        raise OutputError(f"{path}: the folder {folder} is not writable; {hint}")


def check_folder(folder: Path, output: Path | None = None) -> Path:
    """Check that no file has the name of a folder that an output needs; nothing is created.

    Args:
        folder: the folder, which may be missing.
        output: file in it, for messages.

    Returns:
        The folder, or the nearest of its parents that exists.

    Raises:
        OutputError: One of them is a file.
    """
    wanted = output or folder
    while not os.path.exists(folder) and folder != folder.parent:
        folder = folder.parent
    if not os.path.isdir(folder):
        said = f"{wanted}: " if wanted != folder else ""
        raise OutputError(f"{said}{folder} is a file, expected a folder: choose another path with out=")
    return folder


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary name in the folder of `path`; on success rename the file written there to `path`.

    The bytes are on the disk before the name is: a reader finds the old file or the new one, never a part of
    it, even after a loss of power. On an error the temporary file is removed and `path` is unchanged. Temporary files
    of killed processes in the folder are removed first.

    Args:
        path: The final name; its folder is created if missing.

    Yields:
        The temporary name, not yet existing, to be written and closed within the block.

    Raises:
        OutputError: The folder cannot be created, the file cannot be renamed, or the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write {path}: its folder cannot be created ({error.strerror})") from error
    temporary = temporary_name(path)
    try:
        yield temporary
        try:
            if (waiting := _waiting.get()) is None:
                move_synced(temporary, path)
            else:
                sync(temporary)
                waiting.append((temporary, path))
        except NenyaError:
            raise
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror}") from error
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            reason = os.strerror(error.errno)
            raise OutputError(f"cannot write {path}: {reason}; free some space, or choose another folder") from error
        raise


@contextmanager
def together() -> Iterator[None]:
    """Let the files that `atomic_path` writes in this thread within the block appear at its end, all of them or none.

    They are there under their temporary names until then. A file that is overwritten may be new after an error.

    Raises:
        OutputError: One cannot be renamed.
    """
    files: list[tuple[Path, Path]] = []
    before = _waiting.set(files)
    made: list[Path] = []
    try:
        yield
        for temporary, path in files:
            new = not os.path.lexists(path)
            try:
                move_synced(temporary, path)
            except OSError as error:
                raise OutputError(f"cannot write {path}: {error.strerror}") from error
            made += [path] if new else []
    except BaseException:
        for path in (*made, *(temporary for temporary, _ in files)):
            path.unlink(missing_ok=True)
        raise
    finally:
        _waiting.reset(before)


def remove_half(first: Path, second: Path) -> None:
    """Remove the second of two outputs that belong together, if it exists alone because their process was killed.

    This is the case if the first one exists under the temporary name of a dead process. Call this before anything else
    scans the folder, which removes such files.
    """
    if second.exists() and not first.exists() and has_abandoned(first):
        second.unlink(missing_ok=True)


def move_synced(temporary: Path, path: Path) -> None:
    """Rename a finished file within its file system; its bytes are on the disk before the name is.

    If the name cannot be brought to the disk, a new file is removed again.
    """
    sync(temporary)
    new = not os.path.lexists(path)
    os.replace(temporary, path)
    try:
        sync(path.parent)
    except OSError:
        if new:
            path.unlink(missing_ok=True)
        raise


class _Patient(io.FileIO):
    """A file that keeps its first error, and from then on accepts all data and writes none."""

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
    """Yield a new HDF5 file, and raise the first error of the disk when it is closed.

    On a full disk, the HDF5 library itself reports hundreds of errors and keeps the file open.

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
    """Return the bytes on disk of all files below a folder; 0 if it does not exist."""
    return sum(512 * path.lstat().st_blocks for path in folder.rglob("*") if path.is_file())


def sync(path: Path) -> None:
    """Wait until a file's bytes, or a folder's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_room(folder: Path, needed: int, what: str) -> None:
    """Create a folder, and check that the disk has space for a file of the needed size.

    Args:
        folder: where the file will be.
        needed: bytes.
        what: the output that needs them, for the message.

    Raises:
        OutputError: The folder cannot be created or written, or the disk has too little space.
    """
    check_folder(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot make the folder ({error.strerror}); choose another with out=") from error
    if not os.access(folder, os.W_OK | os.X_OK) or os.statvfs(folder).f_flag & os.ST_RDONLY:
        raise OutputError(f"{folder}: the folder is not writable; choose another with out=")
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OutputError(
            f"{folder}: {what} needs {needed / 1e6:.1f} MB, {free / 1e6:.1f} MB are free; "
            "make room or choose another folder with out="
        )


def own_mark() -> str:
    """Return a string for temporary names: the mark of this process and a random number."""
    return f"{current().mark}-{secrets.token_hex(4)}"


def temporary_name(path: Path) -> Path:
    """Return a temporary name for `path` in the same folder, where those of killed processes are removed."""
    sweep_sometimes(path.parent)
    return path.with_name(f"{_beginning(path.name)}{own_mark()}.tmp")


def _beginning(name: str) -> str:
    """Return the start of the temporary names of a file; long ones are truncated."""
    if len(name.encode()) > _LONGEST - _FOR_MARK:
        first = name.encode()[: _LONGEST - _FOR_MARK - 10].decode(errors="ignore")
        name = f"{first}~{sha256(name.encode()).hexdigest()[:8]}"
    return f".{name}."


def has_abandoned(path: Path) -> bool:
    """Return whether a dead process left a temporary file for `path`."""
    start = _beginning(path.name)
    try:
        names = [entry.name for entry in scandir(path.parent) if entry.name.startswith(start)]
    except OSError:
        return False
    found = [(name, _FILE.fullmatch(name)) for name in names]
    return any(match is not None and is_over(path.with_name(name), match["mark"]) for name, match in found)


@contextmanager
def temporary_folder(prefix: str, parent: Path | None = None) -> Iterator[Path]:
    """Yield a new folder that is removed at the end, or, if its process dies, when the next one is created beside it.

    Args:
        prefix: of its name.
        parent: its parent; default the system's folder for temporary files.

    Raises:
        OutputError: It cannot be created.
    """
    parent = parent or Path(tempfile.gettempdir())
    sweep(parent, prefix)
    folder = parent / f"{prefix}{own_mark()}"
    try:
        folder.mkdir(mode=0o700)
    except OSError as error:
        raise OutputError(
            f"{parent}: cannot be written ({error.strerror}); set loader.cache_dir, or TMPDIR for the system's folder"
        ) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sweep(folder: Path, prefix: str | None = None, *, of_others: bool = False) -> None:
    """Remove the temporaries of dead processes from a folder, not from its subfolders.

    Args:
        folder: the folder; it may be missing.
        prefix: remove folders of `temporary_folder` with this prefix, instead of files of `temporary_name`.
        of_others: also remove those of processes of unknown state.
    """
    pattern = _FILE if prefix is None else re.compile(re.escape(prefix) + _MARK)
    count = 0
    try:
        with scandir(folder) as entries:
            for entry in entries:
                count += 1
                found = pattern.fullmatch(entry.name)
                old = found is None and prefix is None and _OLD_FILE.fullmatch(entry.name)
                if found:
                    over = is_over(Path(entry.path), found["mark"])
                    over = over or (of_others and life_of_mark(found["mark"]) is Life.UNKNOWN)
                else:
                    over = bool(old) and _is_old(Path(entry.path))
                if over:
                    remove(Path(entry.path))
    except OSError:
        return
    with _lock:
        _between_looks[str(folder)] = 0 if count < _FEW else count // 10


def sweep_sometimes(folder: Path) -> None:
    """Like `sweep`, but not every time in a folder of many files, as scanning it takes long."""
    with _lock:
        left = _between_looks.get(str(folder), 0)
        if left:
            _between_looks[str(folder)] = left - 1
            return
    sweep(folder)


def life_of(folder: Path, prefix: str) -> Life:
    """Return whether the process lives that created a folder of `temporary_folder` or one named alike."""
    found = re.fullmatch(re.escape(prefix) + _MARK, folder.name)
    return life_of_mark(found["mark"]) if found else Life.UNKNOWN


def is_marked(folder: Path, prefix: str) -> bool:
    """Return whether a folder's name identifies the process that created it."""
    return re.fullmatch(re.escape(prefix) + _MARK, folder.name) is not None


def is_over(path: Path, mark: str) -> bool:
    """Return whether the process with that mark, which created a file or folder, is dead."""
    state = life_of_mark(mark)
    if state is Life.UNKNOWN:
        return (restarted_since(mark) and is_local(path.parent)) or _is_old(path)
    return state is Life.GONE


def remove(path: Path) -> None:
    """Remove a file, or a folder with its content, as far as possible; links are not followed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _is_old(path: Path) -> bool:
    """Return whether nothing was written for a week."""
    try:
        return time.time() - path.lstat().st_mtime > _WEEK
    except OSError:
        return False
