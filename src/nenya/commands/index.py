"""`nenya index`: creates and extends a LanceDB index of latents and their table."""

import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from nenya.errors import InputFileError, OutputError
from nenya.io import read_table
from nenya.latents.examples import numbered
from nenya.latents.files import Latents, open_latents
from nenya.latents.index import ABOUT, read_about
from nenya.latents.index_build import add_files, build_index, recall_line, remove_index
from nenya.latents.index_s3 import fetch_index, keep, publish, shards_folder, state_of, work_copy
from nenya.latents.index_shards import IndexShards
from nenya.latents.kept_answers import SHARDS
from nenya.options.commands import IndexOptions
from nenya.options.extras import need
from nenya.runtime.shards import MERGE, Share, over_dask, parse_share
from nenya.storage.lock import OutputLock
from nenya.storage.paths import is_s3, local_path
from nenya.storage.s3.replace import check_conditions
from nenya.storage.small_files import refuse_links

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

DEFAULT = "outputs/archive.index"


def run(options: IndexOptions) -> int:
    """Add latents files to the index `options.out`; create it if it does not exist.

    Args:
        options: of `scripts/index.py`.

    Returns:
        0.

    Raises:
        NenyaError: The files cannot share an index, or it cannot be written.
    """
    need("search", "nenya index")
    share = parse_share(options.shard)
    if options.dask:
        return over_dask(run, options)
    place = options.out or DEFAULT
    if share is not None and not share.merges:
        _prepare(place, options, share)
        return 0
    if not is_s3(place):
        if options.add:
            read_about(local_path(place))
        update(local_path(place), options)
        return 0
    cache = options.loader.cache_dir
    safe, before = check_conditions(place), state_of(place)
    if options.add and fetch_index(place, cache) is None:
        raise InputFileError(f"{place}: no index of nenya; leave out `add` to create one")
    work = work_copy(place, cache, fresh=options.clobber)
    base = (work / ABOUT).read_bytes() if work.name != "work-new" and (work / ABOUT).is_file() else b""
    update(work, options)
    if (work / ABOUT).read_bytes() == base:
        log.info("%s: no new files", place)
    else:
        try:
            keep(work, publish(work, place, before, safe=safe))
        except OutputError:
            shutil.rmtree(work, ignore_errors=True)  # the next run starts from what the other one published
            raise
    return 0


def update(folder: Path, options: IndexOptions) -> None:
    """Add the files of `options.data` to a local index, and bring its vector index up to date.

    Raises:
        NenyaError: As of `run`.
    """
    with OutputLock(refuse_links(folder, below=True) / "lock", str(folder)) as lock:
        latents, table = _inputs(options)
        lock.check()
        shards = None
        if options.shard is not None:
            shards = _shards(options.out or DEFAULT, latents, options, parse_share(options.shard))
            shards.check()
        if options.clobber and (folder / ABOUT).exists():  # now that the new one can be made
            remove_index(folder)
        added = add_files(folder, latents, table, shards)
        del table  # which is large, before the training of the vector index
        build_index(folder, kind=options.kind, index_from=options.index_from, seed=options.seed)
        about = read_about(folder)
        rows = sum(source["rows"] - source.get("left_out", 0) for source in about["sources"])
        log.info("%s: %d rows, %d of them new; %s", folder, rows, added, recall_line(about))
        if shards is not None:
            shards.kept.remove()


def _inputs(options: IndexOptions) -> "tuple[Latents, pd.DataFrame | None]":
    """Return the latents, and their table if there is one."""
    latents = open_latents(options.data, options.loader.cache_dir, allow_external=options.loader.allow_external)
    if not options.table:
        log.info("no table=: searches will have conditions on file name, partition and row only")
        return latents, None
    table = read_table(local_path(options.table))
    return latents, numbered(table.assign(sensor=options.of_sensor) if options.of_sensor else table)


def _shards(place: str, latents: Latents, options: IndexOptions, share: Share | None) -> IndexShards:
    """Return the prepared rows of an index: beside it, for one on S3 in `loader.cache_dir`."""
    assert share is not None
    if is_s3(place):
        folder = shards_folder(place, options.loader.cache_dir)
    else:
        path = local_path(place)
        folder = path.with_name(path.name + SHARDS)
    return IndexShards(folder, latents, local_path(options.table) if options.table else None, options.of_sensor, share)


def _prepare(place: str, options: IndexOptions, share: Share) -> None:
    """Prepare the rows of one shard."""
    latents, table = _inputs(options)
    shards = _shards(place, latents, options, share)
    with shards.kept.working(place):
        shards.prepare(table)
    log.info("%s: shard %s is complete; when all are, shard=%s makes the index", place, share, MERGE)
