"""File locks of the operating system: only this module calls flock.

A lock lasts until its file is closed or its process ends, in whatever way.
"""

import fcntl
from typing import IO, Any


def flock(file: int | IO[Any], *, shared: bool = False, wait: bool = False) -> bool:
    """Lock an open file or folder.

    Args:
        file: a descriptor, or an open file.
        shared: whether others may hold shared locks at the same time.
        wait: whether to wait for whoever holds it.

    Returns:
        Whether it was locked; False if it is locked through another open file.

    Raises:
        OSError: The file system has no locks.
    """
    how = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    try:
        fcntl.flock(file, how)
    except BlockingIOError:
        return False
    return True
