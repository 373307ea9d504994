"""`nenya repack`: rewrites cutout files with chunks of complete cutouts, which read fast in any order.

Letters: N cutouts in a partition, n of them in a chunk, H rows and W columns of pixels.
"""

import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from nenya.data.cutout_axes import reordered
from nenya.data.cutouts import CutoutFile, CutoutReader, inspect_cutouts, partition_names
from nenya.data.filters import pack_gzip
from nenya.data.hdf5 import Hdf5File
from nenya.data.hdf5_links import damage_named
from nenya.data.partition import Partition
from nenya.data.pixels import Floats
from nenya.errors import InputFileError, Interrupted, NenyaError, OptionError, OutputError
from nenya.options.commands import RepackOptions
from nenya.runtime.process import RowProgress, Threads
from nenya.runtime.signals import Termination
from nenya.storage.disk import atomic_path, check_output, check_room, write_hdf5
from nenya.storage.paths import HDF5_SUFFIXES, find_sources, is_s3, is_several, local_path

log = logging.getLogger(__name__)

_SUFFIX = "_repacked.h5"
_CHUNK = 2**20  # bytes
_BLOCK = 2**25  # bytes read at once, unless a chunk of the source is larger
_MOST_BLOCK = 2**28
_LEVEL = 1  # of deflate: on cutouts, higher levels save less than 1 % and take longer
_SECONDS = 0.5  # of each measurement of speed
_BATCH = 8  # random cutouts per read in the measurement
_CLEARLY = 1.5  # factor between speeds that is not chance
_SAMPLES = 3  # chunks compressed for comparison


@dataclass(frozen=True)
class Rates:
    """Reading speeds of a partition in cutouts per second: in order, and in random batches of 8."""

    slabs: float
    batches: float


def run(options: RepackOptions) -> int:
    """Repack the files of `options.data`.

    Args:
        options: of `scripts/repack.py`.

    Returns:
        0 if all files are done, 1 if some of several failed.

    Raises:
        NenyaError: No file is found, or the only file cannot be repacked.
    """
    entries = [options.data] if isinstance(options.data, str | Path) else list(options.data or [])
    for entry in (*entries, options.out or ""):
        if is_s3(str(entry)):
            raise OptionError(f"{entry}: expected a local file, as repack reads no S3 objects: copy them first")
    sources = [Path(source) for source in find_sources(options.data)]
    if is_several(options.data):
        sources = [source for source in sources if not source.name.endswith(_SUFFIX)]
    failed = 0
    with Termination():
        for source, output in zip(sources, _places(sources, options.out), strict=True):
            try:
                log.info("%s", repack_file(source, output, options))
            except NenyaError as error:
                if len(sources) == 1 or isinstance(error, Interrupted):
                    raise
                failed += 1
                log.error("failed   %s", error)
    if len(sources) > 1:
        log.info("%d files: %d done, %d failed", len(sources), len(sources) - failed, failed)
    return 1 if failed else 0


def _places(sources: Sequence[Path], out: str | None) -> list[Path]:
    """Return the output of each source.

    Raises:
        OptionError: Two files would have one output, or an output is a source.
    """
    one = bool(out) and str(out).endswith(HDF5_SUFFIXES)
    if one and len(sources) > 1:
        raise OptionError(f"out={out} is one file, but data= names {len(sources)} files: give a folder")
    folder = local_path(out) if out else None
    places = [folder if one and folder else (folder or s.parent) / f"{s.stem}{_SUFFIX}" for s in sources]
    for i, place in enumerate(places):
        if place in places[:i]:
            first = sources[places.index(place)]
            raise OptionError(f"{first} and {sources[i]} would both be written to {place}: repack them separately")
        if place.resolve() in [source.resolve() for source in sources]:
            raise OptionError(f"{place} is itself a source: give another file or a folder by out=")
    return places


def repack_file(source: Path, output: Path, options: RepackOptions) -> str:
    """Rewrite a cutout file with chunks of complete cutouts.

    Everything else is copied unchanged; the pixels keep their type and every bit. The result gets its name
    once it was read back and found equal.

    Args:
        source: the cutout file.
        output: where it goes.
        options: of `scripts/repack.py`.

    Returns:
        A line on the change in size and speed.

    Raises:
        InputFileError: The source cannot be read, or changed meanwhile.
        OptionError: The output would read slower.
        OutputError: The output exists, the disk is full, or the output differs from the source when read back.
    """
    check_output(output, options.clobber)
    if options.axes is not None:
        external, names = options.loader.allow_external, partition_names(options)
        with reordered(source, output.parent, options.axes, names, external=external) as place:
            return repack_file(place, output, replace(options, axes=None, force=True))  # asked for, whatever its speed
    file = inspect_cutouts(source, partition_names(options), allow_external=options.loader.allow_external)
    parts = [source, *(Path(path) for info in file.partitions.values() for path in info.sources)]
    state = _state(parts)
    check_room(output.parent, file.size + sum(map(_stored_bytes, file.partitions.values())), "the repacked file")
    before = _rates(file)
    rows = sum(info.rows for info in file.partitions.values())
    try:
        with atomic_path(output) as temporary, Threads() as threads:
            with RowProgress(f"repack {source.name}", 2 * rows) as progress:
                with write_hdf5(temporary) as target:
                    sums, said = _write(file, target, options.codec, threads, progress.advance)
                written = _read_back(temporary, output, sums, threads, progress.advance)
            if _state(parts) != state:
                raise InputFileError(f"{source}: changed while it was repacked; run the command again")
            after = _rates(written)
            if slower := _slower(before, after):
                if not options.force:
                    raise OptionError(f"{source}: {slower}, so it is not repacked: force=true repacks it nevertheless")
                log.warning("%s: %s", output, slower)
    except NenyaError:
        raise
    except OSError as error:
        raise OutputError(f"{output}: cannot be written ({error.strerror or error})") from error
    return (
        f"{output}: {rows} cutouts, {_size(output.stat().st_size)} (before {_size(file.size)}), {said}; "
        f"read in order at {after.slabs:,.0f} cutouts/s (before {before.slabs:,.0f}), "
        f"in random batches at {after.batches:,.0f} (before {before.batches:,.0f})"
    )


def _slower(before: Rates, after: Rates) -> str:
    """Say that a repacked file reads clearly slower in some order, and clearly faster in none; otherwise nothing."""
    gains = after.slabs / max(before.slabs, 1e-9), after.batches / max(before.batches, 1e-9)
    if min(gains) * _CLEARLY > 1 or max(gains) > _CLEARLY:
        return ""
    return (
        f"the repacked file reads {after.slabs:,.0f} cutouts/s in order and {after.batches:,.0f} in random batches, "
        f"slower than the source ({before.slabs:,.0f} and {before.batches:,.0f})"
    )


def _state(paths: Sequence[Path]) -> list[tuple[int, int]]:
    """Return size and modification time (ns) of files."""
    return [(status.st_size, status.st_mtime_ns) for status in (path.stat() for path in paths)]


def _size(number: int) -> str:
    return f"{number / 1e9:.2f} GB" if number >= 1e9 else f"{number / 1e6:.1f} MB"


def _stored_bytes(info: Partition) -> int:
    return info.nbytes // 4 * np.dtype(info.dtype).itemsize


def _chunk_rows(info: Partition) -> int:
    """Return the number n of cutouts in a chunk of about 1 MB."""
    return min(info.rows, max(1, _CHUNK // (_stored_bytes(info) // info.rows)))


def _blocks(reader: CutoutReader, step: int, threads: Threads) -> Iterator[tuple[int, Floats]]:
    """Yield first row and pixels (n, H, W), as stored, of blocks of complete chunks of `step` cutouts.

    A chunk of the source that two blocks share is unpacked once, if its cutouts take at most 256 MB.
    """
    info = reader.info
    row = _stored_bytes(info) // info.rows
    wanted = _BLOCK if info.block_rows * info.row_bytes <= _MOST_BLOCK else _MOST_BLOCK
    length = max(1, wanted // (row * step)) * step
    for start in range(0, info.rows, length):
        block = np.empty((min(length, info.rows - start), info.height, info.width), info.dtype)
        reader.read_into(block, start, threads.spread)
        yield start, block


def _read_back(
    temporary: Path, output: Path, sums: dict[str, str], threads: Threads, advance: Callable[[int], None]
) -> CutoutFile:
    """Check the pixels of the new file against SHA-256 hashes, and describe the file."""
    try:
        written = inspect_cutouts(temporary, tuple(sums))
        wrong = [name for name, expected in sums.items() if _checksum(written, name, threads, advance) != expected]
    except InputFileError as error:
        raise OutputError(f"{output}: the output cannot be read back: check the disk") from error
    if wrong:
        raise OutputError(f"{output}: '{wrong[0]}' differs from the source after writing: check disk and memory")
    return written


def _checksum(file: CutoutFile, name: str, threads: Threads, advance: Callable[[int], None]) -> str:
    digest = hashlib.sha256()
    with file.reader(name) as reader:
        for _, block in _blocks(reader, _chunk_rows(reader.info), threads):
            digest.update(block.reshape(-1).view(np.uint8).data)
            advance(len(block))
    return digest.hexdigest()


# Writing


def _write(
    file: CutoutFile, target: Any, codec: str, threads: Threads, advance: Callable[[int], None]
) -> tuple[dict[str, str], str]:
    """Write the file; return the SHA-256 of the pixels of each partition, and a description."""
    sums, said = {}, ""
    with Hdf5File(file.path, allow_external=file.allow_external) as source:
        copy = _Copy(source, target)
        for name in file.partitions:
            dataset = source.find(name)
            with file.reader(name) as reader:
                sums[name], said = _write_partition(reader, dataset, target, codec, threads, advance)
            copy.note(dataset, name)
        copy.run()
    return sums, said


def _write_partition(
    reader: CutoutReader, dataset: Any, target: Any, codec: str, threads: Threads, advance: Callable[[int], None]
) -> tuple[str, str]:
    info, step = reader.info, _chunk_rows(reader.info)
    chunk = (step, *info.shape[1:])
    kind = np.dtype(info.dtype)
    layout: dict[str, Any] = {}
    if codec != "none":
        layout = {"chunks": chunk, "maxshape": dataset.maxshape, "compression": codec}
        layout["shuffle"] = _shuffle_helps(reader, step, codec)
        if codec == "gzip":
            layout["compression_opts"] = _LEVEL
    elif dataset.maxshape != dataset.shape:
        layout = {"chunks": chunk, "maxshape": dataset.maxshape}
    made = target.create_dataset(info.name, info.shape, kind, fillvalue=dataset.fillvalue, **layout)
    digest = hashlib.sha256()

    def pack(rows: Floats) -> bytes:
        whole = np.zeros((step, *rows.shape[1:]), kind)
        whole[: len(rows)] = rows
        return pack_gzip(whole, _LEVEL, shuffle=layout["shuffle"])

    for start, block in _blocks(reader, step, threads):
        digest.update(block.reshape(-1).view(np.uint8).data)
        if codec == "gzip":
            chunks = [block[first : first + step] for first in range(0, len(block), step)]
            for number, packed in enumerate(threads.spread(pack, chunks)):
                made.id.write_direct_chunk((start + number * step, *(0,) * (made.ndim - 1)), packed)
        else:
            made[start : start + len(block)] = block.reshape(-1, *info.shape[1:])
        advance(len(block))
    how = {"none": "not compressed", "lzf": "lzf", "gzip": f"gzip {_LEVEL}"}[codec]
    how += " with shuffle" if layout.get("shuffle") else ""
    return digest.hexdigest(), f"chunks of {step} cutouts, {how}" if layout else how


def _shuffle_helps(reader: CutoutReader, step: int, codec: str) -> bool:
    """Decide by a sample whether shuffled bytes take less space, and then also unpack faster.

    This holds for values of full precision, not for those quantized to a sensor's digits.
    """
    info = reader.info
    sample = np.empty((step, info.height, info.width), info.dtype)
    sizes = {False: 0, True: 0}
    for start in sorted({(info.rows - step) * i // max(1, _SAMPLES - 1) for i in range(_SAMPLES)}):
        reader.read_into(sample, start)
        for shuffle in sizes:
            sizes[shuffle] += _packed_size(sample, codec, shuffle=shuffle)
    return sizes[True] < sizes[False]


def _packed_size(sample: NDArray[Any], codec: str, *, shuffle: bool) -> int:
    if codec == "gzip":
        return len(pack_gzip(sample, _LEVEL, shuffle=shuffle))
    with h5py.File("sample", "w", driver="core", backing_store=False) as file:
        made = file.create_dataset("a", data=sample, chunks=sample.shape, compression=codec, shuffle=shuffle)
        return int(made.id.get_storage_size())


class _Copy:
    """Copies everything of a file but the pixels of the partitions.

    Args:
        source: the file.
        target: an h5py file.
    """

    def __init__(self, source: Hdf5File, target: Any) -> None:
        self.source, self.target = source, target
        self._known: dict[tuple[int, int], str] = {}  # object -> its first name
        self._partitions: set[str] = set()

    def note(self, dataset: Any, name: str) -> None:
        """Copy the attributes of a partition that the target has; its other names become links to it."""
        where = f"{self.source.path}: '{name}'"
        with damage_named(where):
            _copy_attributes(dataset, self.target[name], where)
        self._partitions.add(name.strip("/"))
        self._known.setdefault(self._key(dataset), name)

    def run(self) -> None:
        """Copy groups, data sets, links and attributes."""
        self._group(self.source.file["/"], "")

    def _group(self, group: Any, path: str) -> None:
        where = f"{self.source.path}: '{path or '/'}'"
        with damage_named(where):
            self._known[self._key(group)] = path or "/"
            _copy_attributes(group, self.target.require_group(path or "/"), where)
            for key in group.id:
                name = f"{path}/{key.decode('utf-8', 'surrogateescape')}".strip("/")
                if name not in self._partitions:
                    self._item(group, key, name)

    def _item(self, group: Any, key: bytes, name: str) -> None:
        place, encoded = self.target.id, name.encode("utf-8", "surrogateescape")
        kind = group.id.links.get_info(key).type
        if kind == h5py.h5l.TYPE_SOFT:
            place.links.create_soft(encoded, group.id.links.get_val(key), lcpl=_intermediate())
            return
        if kind == h5py.h5l.TYPE_EXTERNAL:
            file, inner = group.id.links.get_val(key)
            place.links.create_external(encoded, file, inner, lcpl=_intermediate())
            log.warning("%s: the link '%s' to %s is kept unchanged", self.source.path, name, os.fsdecode(file))
            return
        item = group[key]
        known = self._known.setdefault(self._key(item), name)
        if known != name:
            self.target[name] = self.target[known]
        elif isinstance(item, h5py.Group):
            self._group(item, name)
        else:
            if isinstance(item, h5py.Dataset):
                self.source.check_written(item, f"{self.source.path}: '{name}'")
            h5py.h5o.copy(group.id, key, self.target.id, encoded, lcpl=_intermediate())

    def _key(self, item: Any) -> tuple[int, int]:
        info = h5py.h5o.get_info(item.id)
        return int(info.fileno), int(info.addr)


def _intermediate() -> Any:
    plist = h5py.h5p.create(h5py.h5p.LINK_CREATE)
    plist.set_create_intermediate_group(True)
    return plist


def _copy_attributes(source: Any, target: Any, where: str) -> None:
    for name in source.attrs:
        kind = source.attrs.get_id(name).dtype
        if kind.hasobject and h5py.check_string_dtype(kind) is None and h5py.check_vlen_dtype(kind) is None:
            log.warning("%s: the attribute '%s' refers to objects of the source file and is left out", where, name)
            continue
        value = source.attrs[name]
        if isinstance(value, h5py.Empty):
            target.attrs[name] = value
        else:
            target.attrs.create(name, value, shape=source.attrs.get_id(name).shape, dtype=kind)


# Measuring


def _rates(file: CutoutFile) -> Rates:
    """Measure briefly the reading speed of the largest partition, with its bytes in the page cache."""
    info = max(file.partitions.values(), key=lambda partition: partition.nbytes)
    rng = np.random.default_rng(0)
    count = min(info.rows, max(info.block_rows, 1024, _chunk_rows(info)))
    with file.reader(info.name) as reader, Threads() as threads:
        reader.read(0, min(info.rows, info.block_rows), threads.spread)

        def slab(number: int) -> int:
            start = number * count % max(1, info.rows // count * count)
            return len(reader.read(start, min(info.rows, start + count), threads.spread))

        def batch(_: int) -> int:
            rows = np.sort(rng.choice(info.rows, min(_BATCH, info.rows), replace=False))
            return len(reader.read_rows(rows, threads.spread))

        return Rates(_rate(slab), _rate(batch))


def _rate(work: Callable[[int], int]) -> float:
    start, done, number = time.perf_counter(), 0, 0
    while time.perf_counter() - start < _SECONDS:
        done, number = done + work(number), number + 1
    return done / (time.perf_counter() - start)
