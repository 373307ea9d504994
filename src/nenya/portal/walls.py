"""The sandbox of a process that reads untrusted files: no files, network or processes, bounded memory and time.

The process enters the sandbox itself, after its imports and before the first byte from outside, and cannot
leave it. Landlock and seccomp cover the same accesses, so that a gap in one of them does no harm. Both are
called by number: the kernel's interface is stable, and libseccomp is not needed.

Sources: `landlock(7)`, `seccomp(2)`, `prctl(2)`, `setrlimit(2)`; numbers of Linux's `asm/unistd.h`.
"""

import contextlib
import ctypes
import errno
import os
import platform
import resource
import signal
import socket
import struct
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

_NO_NEW_PRIVS, _PARENT_DEATH, _SECCOMP, _FILTER = 38, 1, 22, 2  # prctl
_LANDLOCK_CREATE, _LANDLOCK_RESTRICT = 444, 446  # the same on all machines
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06  # instructions of the BPF filter
_KILL, _ALLOW, _REFUSE = 0x80000000, 0x7FFF0000, 0x00050000 | errno.EPERM
_MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
# System calls for computing, and for reading and writing open pipes: (x86-64, arm64). Others are refused.
_CALLS = {
    **{"read": (0, 63), "write": (1, 64), "readv": (19, 65), "writev": (20, 66), "pread64": (17, 67)},
    **{"close": (3, 57), "fstat": (5, 80), "lseek": (8, 62)},
    **{"mmap": (9, 222), "mprotect": (10, 226), "munmap": (11, 215), "mremap": (25, 216), "madvise": (28, 233)},
    **{"brk": (12, 214), "futex": (202, 98), "rseq": (334, 293), "sched_yield": (24, 124)},
    **{"rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "sigaltstack": (131, 132)},
    **{"restart_syscall": (219, 128), "getpid": (39, 172), "gettid": (186, 178), "getrusage": (98, 165)},
    **{"clock_gettime": (228, 113), "clock_getres": (229, 114), "gettimeofday": (96, 169), "getrandom": (318, 278)},
    **{"exit": (60, 93), "exit_group": (231, 94)},
}


def live_no_longer_than_parent() -> None:
    """Have the kernel end this process with the thread that started it, where supported."""
    if sys.platform == "linux":
        _library().prctl(_PARENT_DEATH, signal.SIGKILL, 0, 0, 0)


def close_doors(memory: int, seconds: int, *, walls: bool = True) -> dict[str, bool]:
    """Give up access to files, network and processes, and limit memory and time.

    Args:
        memory: bytes that may be allocated in addition to the present ones.
        seconds: of processor time from now on.
        walls: False sets the limits only.

    Returns:
        The accesses that were tested and found closed: `files`, `network`.
    """
    with contextlib.suppress(OSError):
        folder = tempfile.mkdtemp(prefix="nenya-jail-")
        os.chdir(folder)
        Path(folder).rmdir()  # stays empty: nothing can be created in a removed folder
    os.nice(10)  # lower priority than the pages of users
    with contextlib.suppress(OSError):  # preferred victim of the out-of-memory killer
        Path("/proc/self/oom_score_adj").write_text("1000")
    taken = _memory()
    walls = (
        walls and sys.platform == "linux" and len(os.listdir("/proc/self/task")) == 1
    )  # the sandbox applies to one thread
    if walls:
        _library().prctl(_NO_NEW_PRIVS, 1, 0, 0, 0)
        _landlock()
    _set_limits(taken + memory, seconds)
    if walls:
        _seccomp()
    return {"files": _refused(lambda: os.open("/", os.O_RDONLY)), "network": _refused(lambda: socket.socket().close())}


def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(None)
    library.prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
    library.syscall.argtypes, library.syscall.restype = [ctypes.c_long] * 4, ctypes.c_long
    return library


def _memory() -> int:
    """Return the size in bytes of the address space; a large value if unknown."""
    with contextlib.suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    return 2**30


def _set_limits(memory: int, seconds: int) -> None:
    """Limit memory, time, files and processes; limits that the system lacks are skipped."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    wanted = {
        "RLIMIT_AS": memory,
        "RLIMIT_CPU": int(used.ru_utime + used.ru_stime) + 1 + seconds,
        "RLIMIT_FSIZE": 0,
        "RLIMIT_CORE": 0,
        "RLIMIT_NPROC": 0,
        "RLIMIT_NOFILE": 3,
    }
    for name, most in wanted.items():
        with contextlib.suppress(OSError, ValueError, AttributeError):
            resource.setrlimit(getattr(resource, name), (most, most))


def _landlock() -> None:
    """Restrict every right on files and TCP that this kernel's Landlock knows, and allow none."""
    call = _library().syscall
    known = call(_LANDLOCK_CREATE, 0, 0, 1)
    if known < 1:
        return
    rights = 13 + (known >= 2) + (known >= 3) + (known >= 5)  # the first rights, then refer, truncate, device ioctl
    handled = (1 << rights) - 1, 0b11 if known >= 4 else 0, 0b11 if known >= 6 else 0  # TCP; abstract sockets, signals
    asked = ctypes.create_string_buffer(struct.pack("<QQQ", *handled), 24)
    ruleset = call(_LANDLOCK_CREATE, ctypes.addressof(asked), len(asked), 0)
    if ruleset >= 0:
        call(_LANDLOCK_RESTRICT, ruleset, 0, 0)
        os.close(ruleset)


def _seccomp() -> None:
    """Allow the system calls of `_CALLS`, and refuse all others with EPERM."""
    machine = platform.machine()
    if machine not in _MACHINES or struct.calcsize("P") != 8:
        return
    numbers = [pair[machine == "aarch64"] for pair in _CALLS.values()]
    steps = [(_LOAD, 0, 0, 4), (_JUMP_IF_EQUAL, 1, 0, _MACHINES[machine]), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, 0)]
    steps += [(_JUMP_IF_EQUAL, len(numbers) - place, 0, number) for place, number in enumerate(numbers)]
    steps += [(_RETURN, 0, 0, _REFUSE), (_RETURN, 0, 0, _ALLOW)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(steps), ctypes.addressof(code)), 16)
    _library().prctl(_SECCOMP, _FILTER, ctypes.addressof(program), 0, 0)


def _refused(way: Callable[[], object]) -> bool:
    """Return whether an access is closed by the sandbox, rather than by the limit of open files."""
    try:
        way()
    except OSError as error:
        return error.errno in (errno.EPERM, errno.EACCES)
    return False
