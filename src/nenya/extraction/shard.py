"""This worker's share of a list of files, where several independent workers have the same list."""

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from nenya.data.files import is_several
from nenya.errors import OptionError

T = TypeVar("T")

_ARRAY = "SLURM_ARRAY_TASK_ID"
_INDEXED_JOB = "JOB_COMPLETION_INDEX"
_COMPLETIONS = "JOB_COMPLETIONS"


def find_shard(shard: str | None, data: Any, env: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """Return the number of this worker, from 0, and how many there are.

    Args:
        shard: 'i/n', or None: taken from a SLURM job array or an indexed Kubernetes Job, unless `data` names one
            file only, which then is this worker's own.
        data: the `data` option.
        env: the environment.

    Raises:
        OptionError: It is no shard, or the environment says only half of it.
    """
    if shard is not None:
        match = re.fullmatch(r"\s*(\d+)\s*/\s*(\d+)\s*", shard)
        number, count = (int(match[1]), int(match[2])) if match else (0, 0)
        if number >= count:
            raise OptionError(f"shard={shard}: wanted is i/n with i from 0 to n-1, such as shard=0/4")
        return number, count
    if not is_several(data):
        return 0, 1
    if _ARRAY in env:
        first, step = int(env.get("SLURM_ARRAY_TASK_MIN", "0")), int(env.get("SLURM_ARRAY_TASK_STEP", "1"))
        count = int(env.get("SLURM_ARRAY_TASK_COUNT", "1"))
        number = (int(env[_ARRAY]) - first) // step
        if number >= count:
            raise OptionError(f"{_ARRAY}={env[_ARRAY]} of an array of {count}: give a regular array, or shard=i/n")
        return number, count
    if _INDEXED_JOB in env:
        if _COMPLETIONS not in env:
            raise OptionError(
                f"{_INDEXED_JOB} is set and {_COMPLETIONS} is not: set it to the Job's completions, or give shard=i/n"
            )
        return int(env[_INDEXED_JOB]), int(env[_COMPLETIONS])
    return 0, 1


def share(items: Sequence[T], number: int, count: int) -> list[T]:
    """Return every n-th item of the sorted list from the i-th on: the same for whoever has the same list."""
    return sorted(items, key=str)[number::count]
