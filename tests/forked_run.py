"""Commands as processes that are forked from one that has imported nenya: a line of JSON in, a line of JSON out.

A request is {folder, command, args, env, log}; the answer is the exit code. It is a program of its own so that a
library can be preloaded.
"""

import json
import os
import sys

import h5py  # noqa: F401  # so that each process need not
import matplotlib.figure  # noqa: F401
import pandas  # noqa: F401
import pyarrow.parquet  # noqa: F401
import scipy.stats  # noqa: F401
import torch  # noqa: F401
import xarray  # noqa: F401

from nenya.cli import run_command


def run(request: dict) -> int:
    """Run a command in a process of its own; returns its exit code."""
    if pid := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    code = 99
    try:
        os.chdir(request["folder"])
        said = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(said, 1)
        os.dup2(said, 2)
        os.environ.update(request["env"])
        code = run_command(request["command"], request["args"])
        sys.stdout.flush()
    finally:
        os._exit(code)


if __name__ == "__main__":
    for line in sys.stdin:
        sys.stdout.write(f"{run(json.loads(line))}\n")
        sys.stdout.flush()
