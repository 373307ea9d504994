"""Shards of a command: several workers do a share of its pieces each, and `shard=merge` writes the result.

The pieces are numbered the same way for every worker, so nothing has to be agreed on: worker i of n does the pieces
i, i + n, i + 2n ... Whatever it finished is kept in a folder that all workers see, each answer complete or absent.
"""

import logging
import re
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from nenya.errors import OptionError, OutputError
from nenya.options.extras import need
from nenya.storage.s3.access import s3_access

log = logging.getLogger(__name__)

MERGE = "merge"

_ANSWER_SECONDS = 10  # within which a scheduler answers
_NAMED = 8  # missing shards named in a message


@dataclass(frozen=True)
class Share:
    """The share of a worker.

    Attributes:
        number: of the worker, from 0.
        count: number of workers; 0 for the merge, which does no piece.
    """

    number: int
    count: int

    @property
    def merges(self) -> bool:
        """Whether this is the merge of all shares."""
        return self.count == 0

    def __str__(self) -> str:
        return MERGE if self.merges else f"{self.number}/{self.count}"

    def owns(self, piece: int) -> bool:
        """Return whether a piece is this worker's."""
        return not self.merges and piece % self.count == self.number


def parse_share(shard: str | None, *, merge: bool = True) -> Share | None:
    """Return the share that `shard=` states, None if it states none.

    Args:
        shard: i/n with i from 0 to n-1, or `merge`.
        merge: whether the command has a merge.

    Raises:
        OptionError: It is malformed.
    """
    if shard is None:
        return None
    if merge and shard.strip() == MERGE:
        return Share(0, 0)
    match = re.fullmatch(r"\s*(\d{1,6})\s*/\s*(\d{1,6})\s*", shard)
    number, count = (int(match[1]), int(match[2])) if match else (0, 0)
    if number >= count:
        more = f", or shard={MERGE}" if merge else ""
        raise OptionError(f"shard={shard}: expected i/n with i from 0 to n-1, such as shard=0/4{more}")
    return Share(number, count)


def missing_shards(output: str, missing: Collection[int], total: int, count: int) -> OutputError:
    """Return the error of a merge that lacks pieces; it names the shards that must make them.

    Args:
        output: of the command.
        missing: numbers of the missing pieces.
        total: number of all pieces; 0 if it is not known yet.
        count: number of workers that the pieces were shared among; 0 if no worker has begun.
    """
    if not count:
        return OutputError(
            f"{output}: no shard of this work was begun with these files and options: run shard=0/n to shard=n-1/n "
            f"first, with the same options, then shard={MERGE}"
        )
    names = [f"{number}/{count}" for number in sorted({piece % count for piece in missing})]
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    pieces = f" ({len(missing)} of {total} pieces are missing)" if total else ""
    return OutputError(
        f"{output}: {'shard' if len(names) == 1 else 'shards'} {', '.join(names[:_NAMED])}{more} not complete{pieces}: "
        f"run shard={names[0]} again, then shard={MERGE}"
    )


@contextmanager
def dask_client(address: str) -> Iterator[Any]:
    """Yield the client of a Dask cluster; its workers must see the files and the output folder.

    Raises:
        OptionError: Dask is not installed, or the scheduler does not answer.
    """
    need("dask", f"dask={address}")
    from distributed import Client

    try:
        client = Client(address, timeout=_ANSWER_SECONDS)
    except (OSError, ValueError, TimeoutError) as error:
        raise OptionError(
            f"dask={address}: no scheduler answers at this address ({(str(error).splitlines() or ['no reason'])[0]})"
        ) from error
    with client:
        yield client


def over_dask(run: Callable[[Any], int], options: Any) -> int:
    """Run a command on a Dask cluster: a share on each worker, then the merge in this process.

    If a worker dies, another one gets its share and continues from the kept answers.

    Args:
        run: of the command.
        options: of the command, with `dask` and without `shard`.

    Returns:
        The exit code of the merge.

    Raises:
        OptionError: `shard=` is given too, or there is no cluster, or it has no worker.
        OutputError: A share was lost with its worker several times.
        NenyaError: Of a share.
    """
    if options.shard is not None:
        raise OptionError(f"dask={options.dask} and shard={options.shard}: give one; Dask shares the work itself")
    with dask_client(options.dask) as client:
        from distributed import KilledWorker

        count = len(client.nthreads())
        if not count:
            raise OptionError(f"dask={options.dask}: the cluster has no worker; start some: dask worker {options.dask}")
        log.info("%d shards on the %d workers of %s", count, count, options.dask)
        shares = [replace(options, dask=None, shard=f"{number}/{count}") for number in range(count)]
        futures = [client.submit(_run_share, run, share, pure=False) for share in shares]
        try:
            client.gather(futures)
        except KilledWorker as error:
            raise OutputError(
                "a shard was lost with its worker several times, perhaps because memory ran out; run the same command "
                "to resume"
            ) from error
        finally:
            client.cancel(futures)
    return run(replace(options, dask=None, shard=MERGE))


def _run_share(run: Callable[[Any], int], options: Any) -> int:
    """Run a share in a worker, with the access to S3 that the command has."""
    storage = options.storage
    with s3_access(storage.anonymous, storage.requester_pays, storage.one_writer):
        return run(options)
