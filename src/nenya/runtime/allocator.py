"""Memory of large tensors: kept by the process, so that the system does not hand out its pages again for each layer."""

import ctypes
import functools

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
_LARGEST = 2**30  # bytes


@functools.cache
def keep_freed_memory() -> bool:
    """Let this process keep freed blocks of up to 1 GiB for its next ones, and return whether it does.

    By default glibc gives blocks above 32 MiB back to the system at once. The activations of a batch are larger: the
    pages of each layer's output were zeroed and mapped again, a tenth of the time of a forward pass. The highest use
    of memory stays the same; the process gives memory back later, at its end. Other C libraries are left as they are.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST)) and bool(mallopt(_TRIM_THRESHOLD, 2**31 - 1))
