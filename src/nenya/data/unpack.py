"""Complete partitions for random access: in memory, memory-mapped, or unpacked once into a cache.

Letters: N cutouts in a partition, H rows and W columns of pixels.
"""

import errno
import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from nenya.data.cutouts import CutoutReader, fingerprint, plan_blocks
from nenya.data.masks import checked_mask
from nenya.data.partition import Partition
from nenya.errors import NenyaError, OptionError, OutputError
from nenya.runtime.process import Threads
from nenya.storage.disk import atomic_path, sweep
from nenya.storage.lock import one_at_a_time
from nenya.storage.process import available_memory
from nenya.storage.texts import printed

Report = Callable[[int, int], None]  # cutouts done, cutouts in all

log = logging.getLogger(__name__)

_SLAB = 1024  # cutouts unpacked between two reports of progress, unless a chunk spans more


def load_partition(
    path: str | os.PathLike[str],
    partition: str,
    *,
    cache_dir: Path | None = None,
    memory_limit: int | None = None,
    progress: bool | Report = False,
    allow_external: bool = False,
    mask: bool = False,
) -> NDArray[np.float32]:
    """Return all cutouts of a partition for fast random access.

    The first possible of these: an array in memory; a memory map of the source, if the data are contiguous float32; a
    memory map of an unpacked copy in `cache_dir`, which is created once and reused until the source's fingerprint
    changes. Each process that loads into memory holds its own array; with a
    limit of 0, the processes of one machine share the pages of the map.

    Args:
        path: The cutout file.
        partition: Name of the data set.
        cache_dir: Folder for unpacked copies, created if missing; the last copy of each source and partition is
            kept. None: no copies.
        memory_limit: Bytes up to which a partition (4 N H W) is held in memory; None: half of the
            available memory.
        progress: True for a progress bar; or a function that is called with the numbers of completed and of
            all cutouts.
        allow_external: Whether links may lead out of the file's folder.
        mask: Whether pixels of the mask of the partition, if it has one, are NaN.

    Returns:
        (N, H, W) float32: a new array, or a read-only map.

    Raises:
        InputFileError: The file is not a valid cutout file, or is damaged.
        OptionError: The partition exceeds the memory limit and there is no `cache_dir`.
        OutputError: The cache cannot be written, or the disk has too little space.
    """
    with CutoutReader(path, partition, allow_external=allow_external) as reader:
        info, mask = reader.info, mask and reader.info.has_mask
        limit = available_memory() // 2 if memory_limit is None else memory_limit
        if info.nbytes <= limit:
            array = np.empty((info.rows, info.height, info.width), np.float32)
            with _reporting(progress, f"Reading {reader.path.name}") as report:
                unpack_into(array, reader, report, mask=mask)
            return array
        if info.mappable and not mask:
            shape = (info.rows, info.height, info.width)
            return np.memmap(reader.path, np.dtype("<f4"), "r", info.offset or 0, shape)
        if cache_dir is None:
            raise OptionError(
                f"'{partition}' of {reader.path} needs {info.nbytes / 1e9:.1f} GB and the memory limit is "
                f"{limit / 1e9:.1f} GB: name a folder for an unpacked copy with loader.cache_dir"
            )
        return _cached(reader, Path(cache_dir), progress, mask)


def unpack_into(out: NDArray[np.float32], reader: CutoutReader, report: Report, *, mask: bool = False) -> None:
    """Read a complete partition into an array, in slabs of complete chunks.

    Args:
        out: (N, H, W) float32, C-contiguous.
        reader: Of the partition.
        report: Called after every slab.
        mask: Whether the pixels of the mask become NaN; the partition has one.

    Raises:
        InputFileError: The file is damaged; the message names the rows.
    """
    info = reader.info
    with Threads() as threads:
        for rows in plan_blocks(info.rows, info.block_rows, _SLAB):
            reader.read_into(out[rows.start : rows.stop], rows.start, threads.spread)
            if mask:
                part = out[rows.start : rows.stop]
                part[checked_mask(reader, part, rows, threads.spread)] = np.nan
            report(rows.stop, info.rows)


def _cached(reader: CutoutReader, folder: Path, progress: bool | Report, mask: bool) -> NDArray[np.float32]:
    """Map the unpacked copy of a partition, created first if there is none of the same fingerprint."""
    source = hashlib.sha256(str(reader.path.resolve()).encode()).hexdigest()[:8]
    stem = f"{reader.path.stem}_{reader.partition}_{source}".replace("/", "_") + ("_masked" if mask else "")
    final = (
        folder / f"{stem}_{fingerprint(reader.path, reader.partition, allow_external=reader.allow_external)[:16]}.npy"
    )
    if not _is_complete(final, reader.info):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with one_at_a_time(folder / f"{stem}.lock") as alone:
                if not _is_complete(final, reader.info):
                    if alone:
                        _remove_old(folder, stem)
                    _unpack(reader, final, progress, mask)
        except NenyaError:
            raise
        except OSError as error:
            raise OutputError(
                f"{folder}: the unpacked copy of {reader.path} cannot be written ({error.strerror}); "
                "choose another folder with loader.cache_dir"
            ) from error
    array: NDArray[np.float32] = np.load(final, mmap_mode="r", allow_pickle=False)
    return array


def _is_complete(path: Path, info: Partition) -> bool:
    """Return whether a cached copy exists and is complete."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError):
        return False
    return bool(array.shape == (info.rows, info.height, info.width) and array.dtype == np.float32)


def _remove_old(folder: Path, stem: str) -> None:
    """Remove files of killed processes and copies of earlier states of the source."""
    sweep(folder)
    for path in folder.glob(f"{stem}_{'[0-9a-f]' * 16}.npy"):  # not the masked copies of the same source
        log.info("removing the outdated copy %s", path)
        path.unlink(missing_ok=True)


def _unpack(reader: CutoutReader, final: Path, progress: bool | Report, mask: bool) -> None:
    """Write the unpacked copy under a temporary name and rename it."""
    info = reader.info
    free = shutil.disk_usage(final.parent).free
    if free < info.nbytes + 2**20:
        raise _no_room(final.parent, info.nbytes, free)
    log.info("unpacking '%s' of %s once into %s", info.name, reader.path, final)
    with atomic_path(final) as temporary:
        shape = (info.rows, info.height, info.width)
        array = np.lib.format.open_memmap(temporary, "w+", np.dtype("<f4"), shape)
        with temporary.open("r+b") as file:
            try:  # a write to a map on a full disk kills the process: allocate all space first
                os.posix_fallocate(file.fileno(), 0, temporary.stat().st_size)
            except OSError as error:
                if error.errno == errno.ENOSPC:
                    raise _no_room(final.parent, info.nbytes, free) from error
        with _reporting(progress, f"Unpacking {reader.path.name}") as report:
            unpack_into(array, reader, report, mask=mask)
        array.flush()


def _no_room(folder: Path, needed: int, free: int) -> OutputError:
    return OutputError(
        f"{folder}: unpacking needs {needed / 1e9:.1f} GB and the disk has {free / 1e9:.1f} GB left: free "
        "some, or choose another folder with loader.cache_dir"
    )


@contextmanager
def _reporting(progress: bool | Report, title: str) -> Iterator[Report]:
    """Yield a function that takes the numbers of completed and of all cutouts."""
    if not isinstance(progress, bool):
        yield progress
    elif not progress:
        yield lambda done, total: None
    else:
        with Progress(console=Console(stderr=True)) as bar:
            task = bar.add_task(escape(printed(title)), total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
