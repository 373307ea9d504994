"""Opening HDF5 files for reading: links are checked on opening, and each chunk before HDF5 reads it.

`open_hdf5` returns an h5py file with one difference: before values are read, it is checked that they fit into memory,
are stored where they may be, and that their chunks are complete.
"""

import io
import itertools
import math
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import h5py
import numpy as np
from numpy.typing import NDArray

from nenya.data.chunk_check import Filter, check_chunk, check_filters, filters_of
from nenya.data.chunk_table import check_places, stored_size
from nenya.data.hdf5_heap import Attributes, Heaps, stated_bytes
from nenya.data.hdf5_links import (
    ALLOW,
    COPY,
    Bounds,
    Links,
    candidates,
    check_links,
    check_storage,
    damage_named,
    one_line,
)
from nenya.errors import InputFileError, MissingFileError
from nenya.storage.flock import NO_LOCKS, hdf5_locking
from nenya.storage.process import check_memory
from nenya.storage.small_files import is_regular
from nenya.storage.texts import shown

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_MOST_SOURCES = 8  # nested virtual data sets
_MOST_MISSING = 1_000_000  # chunks that are looked for
_MOST_SPARE = 2**26  # bytes of a chunk beyond the size of the data
_MOST_CHUNK = 2**32 - 1  # bytes unpacked


@dataclass
class _Chunks:
    """Chunks of a data set, by their first element: those listed in the file, and those found complete."""

    filters: list[Filter]
    listed: frozenset[tuple[int, ...]]
    whole: set[tuple[int, ...]] = field(default_factory=set)


@dataclass
class Guard:
    """State shared by an open file, its groups and its data sets.

    Attributes:
        bounds: where data may be stored.
        chunks: of data sets (file, address) that were read.
        heaps: of their variable-length values.
    """

    bounds: Bounds
    chunks: dict[tuple[int, int], _Chunks] = field(default_factory=dict)
    heaps: Heaps = field(default_factory=Heaps)


class _Guarded:
    """A file or group whose items are guarded too."""

    guard: Guard

    def __getitem__(self, name: Any) -> Any:
        return _guarded(super().__getitem__(name), self.guard)  # type: ignore[misc]  # of h5py's class

    def get(self, name: Any, default: Any = None, **more: Any) -> Any:
        """As h5py's."""
        found = super().get(name, default, **more)  # type: ignore[misc]
        return _guarded(found, self.guard)

    @property
    def file(self) -> Any:
        """The file of an item, guarded too."""
        return _guarded(File(h5py.h5i.get_file_id(self.id)), self.guard)  # type: ignore[attr-defined]

    @property
    def attrs(self) -> Attributes:
        """The attributes, bounded."""
        return Attributes(self, self.guard.heaps, self.guard.bounds.name)


class File(_Guarded, h5py.File):  # type: ignore[misc]  # h5py has no types
    """An h5py file."""


class Group(_Guarded, h5py.Group):  # type: ignore[misc]
    """An h5py group."""


class Dataset(h5py.Dataset):  # type: ignore[misc]
    """An h5py data set whose values are checked before they are read."""

    __module__ = h5py.Dataset.__module__  # h5netcdf uses it to identify the library of a data set
    guard: Guard
    file = _Guarded.file
    attrs = _Guarded.attrs

    @property
    def dims(self) -> Any:
        """As h5py's; they are an attribute that HDF5 reads."""
        if "DIMENSION_LIST" in self.attrs:
            self.attrs.check("DIMENSION_LIST")
        return super().dims

    def __getitem__(self, args: Any, *more: Any, **settings: Any) -> Any:
        self.check(args)
        return super().__getitem__(args, *more, **settings)

    def read_direct(self, dest: Any, source_sel: Any = None, dest_sel: Any = None) -> None:
        """As h5py's."""
        self.check(... if source_sel is None else source_sel)
        super().read_direct(dest, source_sel, dest_sel)

    def check(self, args: Any = ..., depth: int = 0) -> None:
        """Check the values that an index selects.

        Args:
            args: the index.
            depth: of virtual data sets around this one.

        Raises:
            InputFileError: They do not fit into memory, are stored out of bounds, or their chunks are damaged.
        """
        where = f"{self.guard.bounds.name}: '{shown((self.name or '').lstrip('/'))}'"
        with damage_named(where):
            if self.shape is None:
                return
            box = _box(self.shape, args)
            nbytes = math.prod(len(part) for part in box) * self.dtype.itemsize
            creation, own = self.id.get_create_plist(), h5py.h5i.get_file_id(self.id)
            layout = creation.get_layout()
            if depth == 0:
                outside = layout == h5py.h5d.VIRTUAL or creation.get_external_count()
                check_memory(nbytes, where, file_bytes=None if outside else _bytes_of(own))
            count, virtual = nbytes // self.dtype.itemsize, layout == h5py.h5d.VIRTUAL
            self.guard.heaps.check(self.id.get_type(), count, own, where, lambda: stated_bytes(self), virtual=virtual)
            if layout == h5py.h5d.CHUNKED:
                self._check_chunks(box, where)
                return
            self._check_outside(creation, where, depth)
            inside, stored = (
                layout != h5py.h5d.VIRTUAL and not creation.get_external_count(),
                self.id.get_storage_size(),
            )
            if inside and stored and stored < math.prod(self.shape) * stored_size(self.id.get_type()):
                raise InputFileError(f"{where} declares more bytes than the {stored} stored; {COPY}")

    def _check_outside(self, creation: Any, where: str, depth: int) -> None:
        """Check the other files that contain the values."""
        holder, count = Path(os.fsdecode(self.file.filename)), creation.get_external_count()
        check_storage(creation, holder, where.partition(": '")[2].rstrip("'"), self.guard.bounds)
        there = 0
        for name, offset, size in map(creation.get_external, range(count)):
            tried = candidates(holder, os.fsdecode(name), "HDF5_EXTFILE_PREFIX")
            place = next((place for place in tried if is_regular(place)), None)
            if place is None:
                raise InputFileError(
                    f"{where} has its data in the file {shown(os.fsdecode(name))}, which does not exist"
                )
            there += max(0, min(int(size), place.stat().st_size - int(offset)))
        if count and there < math.prod(self.shape) * stored_size(self.id.get_type()):
            raise InputFileError(f"{where} has only {there} bytes of its data in other files; copy them again")
        if creation.get_layout() != h5py.h5d.VIRTUAL:
            return
        if depth >= _MOST_SOURCES:
            raise InputFileError(f"{where} is virtual, with {depth} levels of virtual sources: repack it")
        names = {
            (creation.get_virtual_filename(n), creation.get_virtual_dsetname(n))
            for n in range(creation.get_virtual_count())
        }
        for file, name in sorted(map(_as_texts, names)):
            self._check_source(holder, file, name, where, depth)

    def _check_source(self, holder: Path, file: str, name: str, where: str, depth: int) -> None:
        """Check a source of this virtual data set."""
        if file == ".":
            source = self.file.get(name)
            if not isinstance(source, Dataset):
                raise InputFileError(f"{where} is virtual and its source '{shown(name)}' does not exist")
            source.check(depth=depth + 1)
            return
        places = [place for place in candidates(holder, file, "HDF5_VDS_PREFIX") if is_regular(place)]
        if not places:
            raise InputFileError(f"{where} is virtual, with a source in the file {shown(file)}, which does not exist")
        for place in dict.fromkeys(place.resolve() for place in places):
            with open_hdf5(place, guard=Guard(self.guard.bounds)) as other:
                source = other.get(name)
                if not isinstance(source, Dataset):
                    raise InputFileError(f"{where} is virtual and its source '{shown(name)}' does not exist")
                source.check(depth=depth + 1)

    def _check_chunks(self, box: Sequence[range], where: str) -> None:
        """Check the chunks that contain a part of the data set, each once."""
        info = h5py.h5o.get_info(self.id)
        key = (int(info.fileno), int(info.addr))
        known = self.guard.chunks.get(key) or self._find_chunks(where)
        self.guard.chunks[key] = known
        if not known.filters:
            return
        grid = [range(part.start // c * c, part.stop, c) for part, c in zip(box, self.chunks, strict=True)]
        if math.prod(map(len, grid)) > _MOST_MISSING + 10 * len(known.listed):
            raise InputFileError(f"{where} has {len(known.listed)} chunks of the {math.prod(map(len, grid))} declared")
        itemsize = stored_size(self.id.get_type())
        size = math.prod(self.chunks) * itemsize
        for corner in itertools.product(*grid):
            if corner in known.whole:
                continue
            try:  # looked up as HDF5 does when it reads; a damaged list may disagree
                mask, packed = self.id.read_direct_chunk(corner)
            except (OSError, RuntimeError, ValueError):
                if corner in known.listed:
                    raise
            else:
                check_chunk(packed, known.filters, mask, size, itemsize)
            known.whole.add(corner)

    def _find_chunks(self, where: str) -> _Chunks:
        """Find the positions of the chunks, and check that they are possible."""
        filters = filters_of(self.id.get_create_plist())
        check_filters(filters, where)
        size, found = math.prod(self.chunks) * stored_size(self.id.get_type()), []
        if size > _MOST_CHUNK or size > 4 * math.prod(self.shape) * self.dtype.itemsize + _MOST_SPARE:
            raise InputFileError(f"{where} has chunks of {self.chunks}, {size / 1e9:.1f} GB each: repack the file")
        self.id.chunk_iter(lambda chunk: found.append(chunk))
        places = [(c.byte_offset, c.size, c.filter_mask) for c in found if c.byte_offset not in (None, 2**64 - 1)]
        if any(not 0 <= value < 2**62 for place in places for value in place):
            raise InputFileError(f"{where} has chunks outside the file; {COPY}")
        loose = sum(
            1 << i for i, (code, values) in enumerate(filters) if code == h5py.h5z.FILTER_SHUFFLE and not values
        )
        end = _bytes_of(h5py.h5i.get_file_id(self.id))
        table = np.array(places, np.int64).reshape(-1, 3)
        check_places(where, table, end, [code for code, _ in filters], size, loose)
        check_memory(size, where, copies=3)
        there = (c.chunk_offset for c in found if c.byte_offset not in (None, 2**64 - 1))
        return _Chunks(filters, frozenset(tuple(map(int, corner)) for corner in there))


def open_hdf5(
    path: Path | io.BytesIO,
    *,
    links: Links = "folder",
    advice: str = ALLOW,
    guard: Guard | None = None,
    **settings: Any,
) -> Any:
    """Open an HDF5 file for reading.

    Args:
        path: the file, or its bytes.
        links: where its links may lead, and its data be stored.
        advice: what to do about a file with such links; `COPY_IN` if no option allows them.
        guard: that of a file linking to this one, which was checked with it; or of a file with links that are
            followed step by step.
        settings: further arguments of `h5py.File`.

    Returns:
        An h5py file; its data sets are checked as they are read.

    Raises:
        InputFileError: It cannot be opened: it does not exist, is a folder, is not HDF5, is truncated; or its links
            are not allowed.
    """
    name = "this file"
    if isinstance(path, Path):
        name = str(path)
        settings = {"locking": hdf5_locking(path), **settings}
        _check_kind(path)
    try:
        file = File(path, "r", **settings)
    except Exception as error:  # HDF5 raises various exceptions for a damaged file
        raise InputFileError(f"{name}: {_why_closed(path, error)}") from error
    file.guard = guard or Guard(Bounds(path if isinstance(path, Path) else None, links, advice))
    try:
        if guard is None and links != "any":
            check_links(file, file.guard.bounds)
    except BaseException:
        file.close()
        raise
    return file


def map_floats(file: Any, name: str, raw: IO[bytes]) -> NDArray[np.float32] | None:
    """Memory-map a data set of float32, None if that is not possible.

    Only contiguous, uncompressed data in the file itself and in this machine's byte order are mapped, and only from the
    file that is open: its name may refer to another one by now.

    Args:
        file: of `open_hdf5`.
        name: of the data set.
        raw: the same file, opened separately: a map of HDF5's own would keep its lock.

    Returns:
        A copy-on-write map, as torch does not accept read-only arrays.
    """
    dataset = file[name]
    creation, own = dataset.id.get_create_plist(), h5py.h5o.get_info(file.id).fileno
    offset, nbytes = dataset.id.get_offset(), 4 * math.prod(dataset.shape)
    within = h5py.h5o.get_info(dataset.id).fileno == own and creation.get_layout() == h5py.h5d.CONTIGUOUS
    if not within or creation.get_external_count() or creation.get_nfilters() or offset is None or not nbytes:
        return None
    native = dataset.dtype == np.dtype("<f4") and dataset.dtype.isnative
    if not native or not dataset.id.get_type().equal(h5py.h5t.IEEE_F32LE) or dataset.id.get_storage_size() != nbytes:
        return None
    opened, other = os.fstat(file.id.get_vfd_handle()), os.fstat(raw.fileno())
    if (opened.st_dev, opened.st_ino) != (other.st_dev, other.st_ino) or offset + nbytes > other.st_size:
        return None
    return np.memmap(raw, "<f4", "c", offset, dataset.shape)


def list_datasets(file: Any, most: int = 12) -> str:
    """Return the names and shapes of the data sets of an open file, at most `most`; no link is followed."""
    found: list[str] = []
    groups, left = [("", file)], 1000
    while groups and left:
        prefix, group = groups.pop(0)
        with suppress(Exception):  # damaged parts are skipped: this is part of another message
            for key in itertools.islice(group.id, left):
                left -= 1
                name = prefix + key.decode("utf-8", "replace")
                if group.id.links.get_info(key).type != h5py.h5l.TYPE_HARD:
                    continue
                item = group[key]
                if isinstance(item, h5py.Dataset):
                    found.append(f"{shown(name)} {item.shape}")
                elif isinstance(item, h5py.Group):
                    groups.append((f"{name}/", item))
    more = f" and {len(found) - most} more" if len(found) > most else ""
    return (", ".join(found[:most]) + more) or "no data sets"


def _guarded(item: Any, guard: Guard) -> Any:
    """Return an h5py item as a guarded one."""
    if isinstance(item, h5py.Dataset) and not isinstance(item, Dataset):
        item = Dataset(item.id, readonly=True)
    elif isinstance(item, h5py.Group) and not isinstance(item, _Guarded):
        item = Group(item.id)
    if isinstance(item, Dataset | _Guarded):
        item.guard = guard
    return item


def _as_texts(pair: tuple[Any, Any]) -> tuple[str, str]:
    file, name = (os.fsdecode(text) for text in pair)
    return file, name


def _bytes_of(file: Any) -> int:
    """Return the bytes of an open file, with its user block."""
    return int(file.get_filesize()) + int(file.get_create_plist().get_userblock())


def _box(shape: tuple[int, ...], args: Any) -> list[range]:
    """Return, for each axis, the range that contains an h5py index."""
    parts = [part for part in (args if isinstance(args, tuple) else (args,)) if not isinstance(part, str)]
    whole = [range(size) for size in shape]
    if any(isinstance(part, h5py.h5r.Reference | h5py.MultiBlockSlice) or np.ndim(part) > 1 for part in parts):
        return whole
    place = next((i for i, part in enumerate(parts) if part is Ellipsis), len(parts))
    tail = parts[place + 1 :]
    parts = [*parts[:place], *[slice(None)] * (len(shape) - place - len(tail)), *tail]
    if len(parts) != len(shape):
        return whole  # h5py raises the error
    return [_part(size, part) for size, part in zip(shape, parts, strict=True)]


def _part(size: int, part: Any) -> range:
    """Return the range of an axis that contains one part of an index."""
    if isinstance(part, slice):
        return range(*part.indices(size))
    numbers = np.asarray(part)
    numbers = np.flatnonzero(numbers) if numbers.dtype == bool else numbers.reshape(-1)
    if not len(numbers):
        return range(0)
    low, high = int(numbers.min()), int(numbers.max())
    return range(0, size) if low < 0 and len(numbers) > 1 else range(low % size, high % size + 1) if size else range(0)


def _check_kind(path: Path) -> None:
    if path.is_dir():
        raise InputFileError(f"{path}: expected an HDF5 file of cutouts or latents, got a folder: name a file in it")
    if not path.exists():
        raise MissingFileError(f"{path}: no such file; check the path")
    if not is_regular(path):
        raise InputFileError(
            f"{path}: expected an HDF5 file of cutouts or latents, got something other than a regular file; check the "
            "path"
        )


def _why_closed(path: Path | io.BytesIO, error: BaseException) -> str:
    """Return why an existing file cannot be opened."""
    try:
        if isinstance(path, Path):
            with path.open("rb") as file:
                head = file.read(len(_SIGNATURE))
        else:
            head = path.getvalue()[: len(_SIGNATURE)]
    except OSError as refused:
        return f"cannot be read ({refused.strerror}); check its permissions"
    if not head:
        return "the file is empty; copy or create it again"
    if head != _SIGNATURE:
        return f"not an HDF5 file: expected an HDF5 file of cutouts or latents, got a file that begins with {head!r}"
    if isinstance(error, OSError) and (error.errno in NO_LOCKS or isinstance(error, BlockingIOError)):
        return (
            f"cannot be locked ({os.strerror(error.errno or 0)}): wait for the program that writes it; if the file "
            "system has no locks, set HDF5_USE_FILE_LOCKING=FALSE"
        )
    return f"the HDF5 file is truncated or damaged ({one_line(error)}); copy or create it again"
