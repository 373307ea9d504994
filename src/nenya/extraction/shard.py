"""This worker's share of a list of files, for several independent workers with the same list."""

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from nenya.errors import OptionError
from nenya.runtime.shards import parse_share
from nenya.storage.paths import is_several

log = logging.getLogger(__name__)

T = TypeVar("T")

_ARRAY = "SLURM_ARRAY_TASK_ID"
_INDEXED_JOB = "JOB_COMPLETION_INDEX"
_COMPLETIONS = "JOB_COMPLETIONS"


def find_shard(shard: str | None, data: Any, env: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """Return the number of this worker, from 0, and how many there are.

    Args:
        shard: 'i/n', or None: taken from a SLURM job array or an indexed Kubernetes Job, unless `data` names a single
            file, which this worker then extracts.
        data: the `data` option.
        env: the environment.

    Raises:
        OptionError: The shard is malformed, or the environment is incomplete.
    """
    if (found := parse_share(shard, merge=False)) is not None:
        return found.number, found.count
    if not is_several(data):
        return 0, 1
    if _ARRAY in env:
        first, step = _whole(env, "SLURM_ARRAY_TASK_MIN", "0"), max(1, _whole(env, "SLURM_ARRAY_TASK_STEP", "1"))
        count = _whole(env, "SLURM_ARRAY_TASK_COUNT", "1")
        number = (_whole(env, _ARRAY) - first) // step
        if count == 1:
            log.warning(
                "an array of one task extracts all files; shard=i/n extracts the share of one task of a larger array"
            )
        if not 0 <= number < count:
            raise OptionError(
                f"{_ARRAY}={env[_ARRAY]} in an array of {count}: use an array with a constant step, or give shard=i/n"
            )
        return number, count
    if _INDEXED_JOB in env:
        if _COMPLETIONS not in env:
            raise OptionError(
                f"{_INDEXED_JOB} is set but {_COMPLETIONS} is not: set it to the Job's completions, or give shard=i/n"
            )
        number, count = _whole(env, _INDEXED_JOB), _whole(env, _COMPLETIONS)
        if not 0 <= number < count:
            raise OptionError(
                f"{_INDEXED_JOB}={number} and {_COMPLETIONS}={count}: set both as in the Job, or give shard=i/n"
            )
        return number, count
    return 0, 1


def _whole(env: Mapping[str, str], name: str, default: str = "") -> int:
    text = env.get(name, default)
    try:
        return int(text)
    except ValueError:
        raise OptionError(
            f"{name}={text} in the environment: expected an integer; correct it, or give shard=i/n"
        ) from None


def share(items: Sequence[T], number: int, count: int) -> list[T]:
    """Return every `count`-th item of the sorted list from item `number` on."""
    return sorted(items, key=str)[number::count]
