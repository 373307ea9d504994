"""`nenya update`: new granules or cutout files into an archive."""

from dataclasses import replace

from nenya.options.commands import UpdateOptions


def run(options: UpdateOptions) -> int:
    """Do the work, or a share of it; see `nenya.archive.update.run` and `nenya.archive.shards`."""
    from nenya.archive import shards, update
    from nenya.runtime.shards import over_dask, parse_share

    share = parse_share(options.shard)
    if options.dask:
        return over_dask(run, replace(options, workers=1))  # a worker of Dask starts no processes
    if share is None:
        return update.run(options)
    return shards.merge(options) if share.merges else shards.run_share(options, share)
