"""The identity of a process, whether it still lives, without relying on clocks, and the memory that it may use.

Within one boot of a system and one process namespace, the process number and the start time counted by the kernel
identify a process uniquely. On another machine, in another container or after a reboot, nothing is known.
"""

import enum
import functools
import hashlib
import os
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nenya.errors import InputFileError

_STATE, _START = 0, 19  # fields 3 and 22 of /proc/PID/stat, counted from behind the name

_FREE = 2**28  # bytes that are read without a check
_MOST_PACKED = 1100  # bytes that one byte of a file unpacks to, at most, by gzip


class Life(enum.Enum):
    """What is known of a process."""

    ALIVE = "alive"
    GONE = "gone"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Identity:
    """A process.

    Attributes:
        boot: identifies one boot of one system; empty if unknown.
        space: identifies a process namespace in it.
        pid: the number there.
        start: start time as the kernel counts it; empty if unknown.
        host: name of the machine, for messages.
    """

    boot: str
    space: str
    pid: int
    start: str
    host: str

    @property
    def mark(self) -> str:
        """A short text for file names, which `parse_mark` reads."""
        return f"{self.pid}-{self.start or 'x'}-{_short(self.boot)}-{_short(self.space)}"

    def values(self) -> dict[str, Any]:
        """Return it as plain values, which `from_values` reads."""
        return asdict(self)


def current() -> Identity:
    """Return the identity of this process."""
    return _current(os.getpid(), socket.gethostname())


@functools.lru_cache(maxsize=4)  # a fork changes the number, and the host name of a laptop may change
def _current(pid: int, host: str) -> Identity:
    return Identity(_boot(), _space(), pid, _stat("self" if _has_proc() else str(pid))[1], host)


def from_values(values: Mapping[str, Any]) -> Identity | None:
    """Return the identity that was written as `values`; None if they are invalid."""
    try:
        texts = {key: str(values[key]) for key in ("boot", "space", "start", "host")}
        return Identity(pid=int(values["pid"]), **texts)
    except (KeyError, TypeError, ValueError, OverflowError):  # also of infinity, which JSON has
        return None


def life(identity: Identity) -> Life:
    """Return whether a process lives: a stopped one does, a zombie does not."""
    own = current()
    if not own.boot or (identity.boot, identity.space) != (own.boot, own.space):
        return Life.UNKNOWN
    return _life(identity.pid, identity.start)


def life_of_mark(mark: str) -> Life:
    """Return whether the process with this `Identity.mark`, taken from a file name, lives."""
    pid, start, boot, space = mark.split("-")
    own = current()
    if not own.boot or (boot, space) != (_short(own.boot), _short(own.space)):
        return Life.UNKNOWN
    return _life(int(pid), "" if start == "x" else start)


def restarted_since(mark: str) -> bool:
    """Return whether a mark is from another boot than the present one, of this machine or another."""
    own = current()
    return bool(own.boot) and mark.split("-")[2] != _short(own.boot)


def _life(pid: int, start: str) -> Life:
    if pid <= 0:
        return Life.UNKNOWN
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return Life.GONE
    except OSError:  # of another user
        pass
    state, began = _stat(str(pid))
    if (state in ("Z", "X") and not _has_threads(pid)) or (start and began and began != start):
        return Life.GONE
    return Life.ALIVE


@functools.cache
def _has_proc() -> bool:
    return os.path.exists("/proc/self/stat")


def _stat(pid: str) -> tuple[str, str]:
    """Return state and start of a process; empty if unavailable, or if /proc belongs to another namespace."""
    try:
        if pid != "self" and os.readlink("/proc/self") != str(os.getpid()):
            return "", ""
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return fields[_STATE].decode(), fields[_START].decode()
    except (OSError, IndexError):
        pass
    if _has_proc():
        return "", ""
    said = _ask("ps", "-o", "stat=,lstart=", "-p", pid).split(maxsplit=1)
    return (said[0][:1], hashlib.sha256(said[1].encode()).hexdigest()[:12]) if len(said) == 2 else ("", "")


def _has_threads(pid: int) -> bool:
    """Return whether other threads of a process run after its main thread has ended."""
    try:
        return len(os.listdir(f"/proc/{pid}/task")) > 1
    except OSError:
        return False


@functools.cache
def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return _ask("sysctl", "-n", "kern.bootsessionuuid")


def _space() -> str:
    """Return the namespaces of process numbers and of the kernel's clock; empty if there are none."""
    found = []
    for name in ("pid", "time"):
        try:
            found.append(os.readlink(f"/proc/self/ns/{name}"))
        except OSError:
            continue
    return " ".join(found)


def _ask(*command: str) -> str:
    """Return the output of a system command, for systems without /proc; empty if it fails."""
    env = {**os.environ, "LC_ALL": "C", "TZ": "UTC"}
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, env=env, check=False).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def available_memory() -> int:
    """Return the bytes of memory available to this process, also within its control group."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = ((group / f"memory.{name}").read_text().strip() for name in ("max", "current"))
        return free if limit == "max" else max(0, min(free, int(limit) - int(used)))
    except (OSError, ValueError):
        return free


def check_memory(nbytes: int, where: str, *, copies: int = 1, file_bytes: int | None = None) -> None:
    """Check that values to be read at once fit into memory, before any is allocated.

    Args:
        nbytes: of the values.
        where: file and name, for errors.
        copies: how many copies are needed at a time.
        file_bytes: size of the file, where that limits its content.

    Raises:
        InputFileError: They do not fit, or a file of this size cannot contain so many.
    """
    if nbytes * copies <= _FREE:
        return
    if file_bytes is not None and nbytes > _MOST_PACKED * max(file_bytes, 2**16):
        raise InputFileError(
            f"{where} declares {nbytes / 1e9:.2f} GB in a file of {file_bytes / 1e6:.2f} MB; the file is "
            "incomplete: create it again"
        )
    free = available_memory()
    if nbytes * copies > free // 2:
        raise InputFileError(
            f"{where} declares {nbytes / 1e9:.2f} GB to be read at once, which needs {nbytes * copies / 1e9:.2f} GB; "
            f"expected at most half of the free memory, {free / 2e9:.2f} GB: split the data into smaller parts"
        )
