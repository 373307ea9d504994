"""Options of commands that share their work among several workers."""

from dataclasses import dataclass

from nenya.options.declare import option
from nenya.options.sections import Options


@dataclass
class ShareOptions(Options):
    """Options of commands that take a share of their work."""

    shard: str | None = option(
        None,
        "i/n: the share of worker i, from 0, of n with the same command; then shard=merge writes the result (extract "
        "needs none, and there a SLURM array or an indexed Job sets i/n)",
    )


@dataclass
class DaskOptions(Options):
    """Options of commands that work on a cluster."""

    dask: str | None = option(None, "address of a Dask scheduler; its workers do the work: tcp://host:8786")


@dataclass
class ShardOptions(ShareOptions, DaskOptions):
    """Options of commands that take a share of their work, and share it on a cluster."""
