"""Freed memory that a process keeps."""

import platform
import subprocess
import sys

import pytest

CODE = """
import resource, sys
import numpy as np
from nenya.runtime.allocator import keep_freed_memory
kept = sys.argv[1] == "kept" and keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(2**23)  # 64 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(kept, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="for glibc only")
def test_freed_blocks_are_kept_where_asked():
    found = {}
    for way in ("usual", "kept"):
        said = subprocess.check_output([sys.executable, "-c", CODE, way], text=True).split()
        found[way] = said[0], int(said[1])
    assert found["usual"][0] == "False" and found["kept"][0] == "True"
    assert found["kept"][1] < found["usual"][1] / 5, found


def test_another_c_library_is_left_alone(monkeypatch):
    from nenya.runtime import allocator

    def missing(name):
        raise OSError(name)

    monkeypatch.setattr(allocator.ctypes, "CDLL", missing)
    assert allocator.keep_freed_memory.__wrapped__() is False
