"""Temporary files and folders whose names identify their process, so that those of killed processes are removed.

Creating one in a folder removes those there whose process is dead. Those of a process that may live are never touched.
A process of this boot and process namespace is identified by its number and start time. One of an earlier boot is dead
if the disk is local. Of processes on another machine or in another container nothing is known; their files are removed
when nothing was written to them for a week.
"""

import re
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from os import scandir
from pathlib import Path

from nenya.errors import OutputError
from nenya.storage.mounts import is_local
from nenya.storage.process import Life, current, life_of_mark, restarted_since

_WEEK = 7 * 86400.0  # seconds
_LONGEST = 255  # bytes of a file's name
_FOR_MARK = 70  # bytes of it beside the name of the final file
_MARK = r"(?P<mark>\d+-\w+-[0-9a-f]{8}-[0-9a-f]{8})-[0-9a-f]{8}"
_FILE = re.compile(rf"\..+\.{_MARK}\.tmp", re.DOTALL)
_OLD_FILE = re.compile(r"\..+\.\d+-[0-9a-f]{8}\.tmp", re.DOTALL)  # of earlier versions, with the number alone
_FEW = 1000
_between_looks: dict[str, int] = {}  # folder -> temporaries that may be created there before it is scanned again
_lock = threading.Lock()


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
