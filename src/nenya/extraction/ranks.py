"""Several processes on one batch: the first process announces to the others what to extract.

The announcements are files, because the processes share a file system for the latents anyway.
"""

import contextlib
import hashlib
import json
import os
import socket
import time
from pathlib import Path
from typing import Any, Self

from nenya.errors import InputFileError, Interrupted, OutputError
from nenya.runtime.process import from_environment, srun_tasks
from nenya.storage.disk import atomic_path, life_of
from nenya.storage.flock import flock, open_lock
from nenya.storage.names import Json, read_json
from nenya.storage.process import Life

_VARIABLE = "NENYA_BATCH"  # set for the processes that Lightning starts
_SECONDS_BETWEEN_LOOKS = 0.1
_PATIENCE = 1800.0  # seconds until the first process should have made its first announcement
_SECONDS_FOR_OTHERS = 60.0  # within which all processes of a run have started
_STARTED = time.time()


def _pointer(scratch_dir: Path) -> Path:
    """Return the file that names the batch's folder to processes started beside this one."""
    meeting = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}:{os.environ.get('SLURM_JOB_ID')}"
    return scratch_dir / f"session-{hashlib.sha256(meeting.encode()).hexdigest()[:12]}"


class Leader:
    """Tells the other processes what to extract.

    Args:
        folder: of the batch.

    Attributes:
        told: number of the last file announced.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.told = folder, -1

    def __enter__(self) -> Self:
        os.environ[_VARIABLE] = str(self.folder.absolute())
        _remove_dead_pointers(self.folder.parent)
        if "RANK" in os.environ or "SLURM_PROCID" in os.environ:
            # Written in the batch's own folder first, which is removed if this process is killed.
            _write(self.folder / "pointer", str(self.folder.absolute()))
            os.replace(self.folder / "pointer", _pointer(self.folder.parent))
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        os.environ.pop(_VARIABLE, None)
        if kind is None:
            self._wait_for_followers()
        _pointer(self.folder.parent).unlink(missing_ok=True)

    def _wait_for_followers(self) -> None:
        """Wait until each process started beside this one has found the folder, before it is removed."""
        count = from_environment("WORLD_SIZE", srun_tasks()) - 1
        deadline = time.monotonic() + _SECONDS_FOR_OTHERS
        while "RANK" in os.environ or "SLURM_PROCID" in os.environ:
            if len(list(self.folder.glob("met-*"))) >= count or time.monotonic() > deadline:
                return
            time.sleep(_SECONDS_BETWEEN_LOOKS)

    def tell(self, number: int, paths: list[Path | str] | None) -> None:
        """Announce a file by its number: its path, its output and its source; None: nothing to do."""
        self.told = number
        _write(self.folder / f"told-{number}", None if paths is None else [str(path) for path in paths])

    def end(self) -> None:
        """Announce the end of the batch."""
        _write(self.folder / "told-end", None)


class Follower:
    """Receives the announcements of the first process.

    Args:
        scratch_dir: the folder of temporary copies, which all processes share.
    """

    def __init__(self, scratch_dir: Path) -> None:
        self.scratch_dir = scratch_dir
        self.folder: Path | None = None

    def hear(self, number: int) -> list[str] | None:
        """Wait until the first process has said what to do with the file of this number.

        Returns:
            Local cutout file, latents file and source; None if there is nothing to do.

        Raises:
            Interrupted: The first process has ended.
            EOFError: The batch has ended.
        """
        while True:
            folder = self._find()
            if folder is not None:
                if (folder / f"told-{number}").exists():
                    told = _read(folder / f"told-{number}")
                    return None if told.value is None else [item.text() for item in told.items()]
                if not folder.exists() or (folder / "told-end").exists():
                    raise EOFError
                if _is_free(folder / "lock"):
                    raise Interrupted("the first process of the batch has ended; run the same command again")
            elif time.time() > _STARTED + _PATIENCE:
                raise Interrupted("the first process of the batch does not start; run the same command again")
            time.sleep(_SECONDS_BETWEEN_LOOKS)

    def _find(self) -> Path | None:
        if self.folder is None:
            named = os.environ.get(_VARIABLE)
            self.folder = Path(named) if named else _follow_pointer(_pointer(self.scratch_dir))
            if self.folder is not None:
                with contextlib.suppress(OSError):  # the batch has ended already
                    (self.folder / f"met-{socket.gethostname()}-{os.getpid()}").touch()
        return self.folder


def _follow_pointer(pointer: Path) -> Path | None:
    """Return the folder that a pointer names, if it belongs to this run and not to an earlier killed one."""
    try:
        fresh, folder = pointer.stat().st_mtime > _STARTED, Path(_read(pointer).text())
    except (OSError, InputFileError):
        return None
    return folder if fresh or ((folder / "lock").exists() and not _is_free(folder / "lock")) else None


def _remove_dead_pointers(scratch_dir: Path) -> None:
    """Remove pointers left by killed processes to folders that no longer exist."""
    for pointer in scratch_dir.glob("session-*"):
        with contextlib.suppress(OSError, InputFileError):
            if not Path(_read(pointer).text()).exists():
                pointer.unlink()


def _is_free(lock: Path) -> bool:
    """Return whether nobody holds the lock of a batch's folder."""
    state = life_of(lock.parent, "batch-")
    if state is not Life.UNKNOWN:
        return state is Life.GONE
    try:
        with open_lock(lock) as file:
            return flock(file, shared=True)
    except (OSError, OutputError):  # removed in the meantime, or none
        return False


def _write(path: Path, value: Any) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value))


def _read(path: Path) -> Json:
    return read_json(path, "run the same command again")
