"""This process: whether it is the main one, and the version of its code."""

import os
import subprocess
from pathlib import Path

import nenya


def is_main_process() -> bool:
    """Return whether this process is the main one: the first of those that a launcher started."""
    env = os.environ
    if "RANK" in env:
        return int(env["RANK"]) == 0
    # Before SLURM's variable, which an interactive shell passes to all processes that Lightning starts.
    if "LOCAL_RANK" in env:
        return int(env["LOCAL_RANK"]) == int(env.get("NODE_RANK", "0")) == 0
    rank = int(env.get("SLURM_PROCID", "0")) if srun_tasks() > 1 else 0
    return rank == int(env.get("NODE_RANK", "0")) == 0


def srun_tasks() -> int:
    """Return the number of processes that srun started together with this one; 1 if srun did not start it.

    In the shell of salloc, in a batch script and in a notebook there are variables of SLURM too.
    """
    env = os.environ
    if not {"SLURM_STEP_ID", "SLURM_STEPID"} & set(env) or "SLURM_PROCID" not in env:
        return 1
    return int(env.get("SLURM_STEP_NUM_TASKS") or env.get("SLURM_NTASKS") or 1)


def git_commit() -> str:
    """Return the commit of the code that runs, with '+' if it is modified; empty for an installed package."""
    here = Path(nenya.__file__).resolve().parent
    try:
        top = subprocess.run(
            ["git", "rev-parse", "--show-toplevel"], cwd=here, capture_output=True, text=True, check=True
        ).stdout.strip()
        if Path(top) != here.parents[1]:
            return ""
        commit = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"],
            cwd=here,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return commit.stdout.strip()
