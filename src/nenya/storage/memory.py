"""Available memory, and whether the data that a file declares fit into it."""

import os
from pathlib import Path

from nenya.errors import InputFileError

_FREE = 2**28  # bytes that are read without a check
_MOST_PACKED = 1100  # bytes that one byte of a file unpacks to, at most, by gzip


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
