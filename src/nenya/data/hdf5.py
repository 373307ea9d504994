"""HDF5 files of users: opening, following links, and finding and unpacking the bytes of a data set.

Two tasks are not left to the HDF5 library. It follows links, which may lead anywhere on the machine: `Hdf5File.find`
follows them step by step and refuses those that lead out of the file's folder. And it unpacks chunks without comparing
their length with the declared one, so that a damaged chunk reads beyond its buffer or uses all memory, and missing
chunks read as a fill value: so `Hdf5File.pixels` takes only the positions of the bytes from the library, checks them,
and `nenya` reads and unpacks the bytes itself.

Letters: N cutouts in a data set, n of them read at once, H rows and W columns of pixels.
"""

import itertools
import math
import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from nenya.data.chunk_check import PLAIN, check_filters, filters_of
from nenya.data.chunk_table import chunk_table, fill_value, stored_size
from nenya.data.filters import GZIP, LZF, SHUFFLE, undo_filters
from nenya.data.hdf5_links import COPY, Bounds, candidates, damage_named
from nenya.data.hdf5_open import Guard, open_hdf5
from nenya.data.pixels import (
    ChunkedPixels,
    FlatPixels,
    HeaderPixels,
    LibraryPixels,
    Pixels,
    VirtualPixels,
    read_exactly,
)
from nenya.errors import InputFileError
from nenya.storage.small_files import is_regular
from nenya.storage.texts import shown

_MOST_LINKS = 16  # to one data set; as many as HDF5 itself follows
_MOST_PARTS = 256  # groups in one name
_MOST_DEPTH = 8  # of virtual data sets made of virtual data sets
_MOST_SIBLINGS = 100
_MOST_SOURCES = 100_000
_MOST_CHUNK = 2**32  # bytes unpacked
_MOST_SPARE = 2**28  # bytes of a chunk beyond what the data need


class Hdf5File:
    """A file open for reading, with the other files that its links lead to.

    Args:
        path: the file.
        allow_external: whether links, virtual data sets and external storage may lead out of its folder.
        settings: further arguments of `h5py.File`.

    Raises:
        InputFileError: As `open_hdf5` does.
    """

    def __init__(self, path: Path, *, allow_external: bool = False, **settings: Any) -> None:
        self.path, self.allow_external = path, allow_external
        self.guard = Guard(Bounds(path, "any" if allow_external else "folder"))
        self.file = open_hdf5(path, guard=self.guard, **settings)
        self._files: dict[Path, Any] = {}
        self._raw: dict[Path, int] = {}
        self._used: set[Path] = set()  # for the data set of the last `find`

    def __bool__(self) -> bool:
        return bool(self.file)

    def __enter__(self) -> "Hdf5File":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file and all others."""
        for file in (*self._files.values(), self.file):
            file.close()
        for number in self._raw.values():
            os.close(number)
        self._files, self._raw = {}, {}

    def find(self, name: str) -> Any:
        """Return the object of a name in the file, None if the name does not exist.

        Raises:
            InputFileError: A link leads out of the file's folder, nowhere, or in a circle; or the file is
                damaged.
        """
        self._used.clear()
        with damage_named(f"{self.path}: '{shown(name)}'"):
            return self._walk(self.file["/"], self.path, name, [0])

    def pixels(self, dataset: Any, where: str, depth: int = 0) -> "Pixels":
        """Find the bytes of a data set (N, 1, H, W) or (N, H, W) of a floating-point type, or of a mask.

        Args:
            dataset: of `find`.
            where: file and name, for errors.
            depth: of virtual data sets around this one.

        Raises:
            InputFileError: Some were never written or are not in the file, or lie outside its folder.
        """
        creation, path = dataset.id.get_create_plist(), Path(dataset.file.filename)
        layout, nbytes = creation.get_layout(), math.prod(dataset.shape) * dataset.dtype.itemsize
        if layout == h5py.h5d.VIRTUAL:
            return self._virtual(dataset, where, depth)
        if layout == h5py.h5d.CHUNKED:
            return self._chunked(dataset, where, path)
        if layout == h5py.h5d.COMPACT:
            if dataset.id.get_storage_size() != nbytes:
                raise InputFileError(f"{where} declares {nbytes} bytes and has another number; {COPY}")
            return HeaderPixels(dataset[()])
        if creation.get_external_count():
            segments = self._external(creation, where, path, nbytes)
        else:
            offset, size = dataset.id.get_offset(), dataset.id.get_storage_size()
            if offset is None:
                raise InputFileError(f"{where} declares {dataset.shape[0]} cutouts, but none was written to the file")
            if size != nbytes or offset + nbytes > path.stat().st_size:
                raise InputFileError(f"{where} declares {nbytes} bytes that are not all in the file; {COPY}")
            segments = [(path, int(offset), nbytes)]
            self._check_apart(dataset, where, np.array([[offset, nbytes]]))
            self.raw(path)
        return FlatPixels(segments, dataset.dtype, math.prod(dataset.shape[1:]), self.raw)

    def check_written(self, dataset: Any, where: str) -> None:
        """Check a data set of any type that is read through HDF5: labels, metadata.

        Raises:
            InputFileError: A part of it was never written, or lies outside the file's folder.
        """
        with damage_named(where):
            creation, path = dataset.id.get_create_plist(), Path(dataset.file.filename)
            if dataset.shape is None or 0 in dataset.shape:
                return
            if creation.get_layout() == h5py.h5d.VIRTUAL:
                for number in range(min(creation.get_virtual_count(), _MOST_SOURCES)):
                    file, name = creation.get_virtual_filename(number), creation.get_virtual_dsetname(number)
                    self.check_written(self._source(path, file, name, where), where)
            elif creation.get_layout() == h5py.h5d.CHUNKED:
                self._check_chunks(dataset, where, path)
            elif creation.get_external_count():
                self._external(creation, where, path, math.prod(dataset.shape) * dataset.dtype.itemsize)
            elif not dataset.id.get_storage_size():
                raise InputFileError(f"{where} declares {dataset.shape} values, but none was written to the file")

    def raw(self, path: Path) -> int:
        """Return the descriptor of a file opened for reading bytes."""
        self._used.add(path)
        if path not in self._raw:
            self._raw[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        return self._raw[path]

    def others(self) -> tuple[Path, ...]:
        """Return the further files that the data set of the last `find` needs."""
        return tuple(sorted(self._used - {self.path}))

    # Links

    def _walk(self, group: Any, holder: Path, name: str, hops: list[int]) -> Any:
        item, parts = group.file["/"] if name.startswith("/") else group, name.split("/")
        if len(parts) > _MOST_PARTS:
            raise InputFileError(f"{self.path}: '{shown(name)}' has {len(parts)} levels of groups; {COPY}")
        for part in parts:
            if part in ("", "."):
                continue
            key = part.encode("utf-8", "surrogateescape")
            if not isinstance(item, h5py.Group):
                return None
            if not item.id.links.exists(key):
                if key in itertools.islice(iter(item.id), 10**5):  # listed, but not found by lookup
                    raise InputFileError(
                        f"{self.path}: '{shown(part)}' cannot be found in a damaged list of names; {COPY}"
                    )
                return None
            item = self._step(item, holder, part, hops)
            holder = Path(item.file.filename)
        return item

    def _step(self, group: Any, holder: Path, part: str, hops: list[int]) -> Any:
        """Follow one link."""
        key = part.encode("utf-8", "surrogateescape")
        kind, where = group.id.links.get_info(key).type, f"{self.path}: '{shown(part)}'"
        if kind == h5py.h5l.TYPE_HARD:
            return group[part]
        hops[0] += 1
        if hops[0] > _MOST_LINKS:
            raise InputFileError(f"{where} is a link through more than {_MOST_LINKS} others, or in a circle")
        if kind not in (h5py.h5l.TYPE_SOFT, h5py.h5l.TYPE_EXTERNAL):
            raise InputFileError(f"{where} is a link of unknown type ({kind}): refused")
        value = group.id.links.get_val(key)
        if kind == h5py.h5l.TYPE_SOFT:
            target = value.decode("utf-8", "surrogateescape")
            found = self._walk(group, holder, target, hops)
            said = f"'{shown(target)}'"
        else:
            file, target = os.fsdecode(value[0]), value[1].decode("utf-8", "surrogateescape")
            place = self._place(holder, file, "HDF5_EXT_PREFIX", f"{where} is a link")
            found = self._walk(self._open(place)["/"], place, target, hops)
            said = f"'{shown(target)}' in {shown(place)}"
        if found is None:
            raise InputFileError(
                f"{where} is a link to {said}, which does not exist; copy the data into the file itself"
            )
        return found

    def _open(self, path: Path) -> Any:
        if path == self.path:
            return self.file
        self._used.add(path)
        if path not in self._files:
            self._files[path] = open_hdf5(path, guard=self.guard)
        return self._files[path]

    def _place(self, holder: Path, name: str, variable: str, what: str) -> Path:
        """Return the file that a name in another file refers to: the first existing one where HDF5 looks.

        Raises:
            InputFileError: It does not exist, or lies outside the folder and that is not allowed.
        """
        place = next((path for path in candidates(holder, name, variable) if is_regular(path)), None)
        if place is None:
            raise InputFileError(f"{self.path}: {_tail(what)} to the file {shown(name)}, which does not exist")
        self.guard.bounds.check([place], _tail(what))
        return self.path if place.resolve() == self.path.resolve() else place

    # Storage

    def _external(self, creation: Any, where: str, path: Path, nbytes: int) -> list[tuple[Path, int, int]]:
        """Return the segments of other files that contain the bytes of a data set."""
        segments, total = [], 0
        for number in range(creation.get_external_count()):
            name, offset, size = creation.get_external(number)
            what = f"{where} has its data by a reference"
            place = self._place(path, os.fsdecode(name), "HDF5_EXTFILE_PREFIX", what)
            size = min(int(size), nbytes - total)
            if offset < 0 or offset + size > place.stat().st_size:
                raise InputFileError(f"{where} has its data in {shown(place)}, which is too short; copy it again")
            segments.append((place, int(offset), size))
            total += size
            self.raw(place)
        if total < nbytes:
            raise InputFileError(f"{where} declares {nbytes} bytes and only {total} are in its external files")
        return segments

    def _source(self, path: Path, file: Any, name: Any, where: str) -> Any:
        """Return a source of a virtual data set."""
        file, name = (text.decode() if isinstance(text, bytes) else text for text in (file, name))
        place = (
            path if file == "." else self._place(path, file, "HDF5_VDS_PREFIX", f"{where} is virtual, with a source")
        )
        found = self._walk(self._open(place)["/"], place, name, [0])
        if not isinstance(found, h5py.Dataset):
            raise InputFileError(
                f"{where} is virtual and its source '{shown(name)}' in {shown(place)} does not exist: its cutouts are "
                "missing"
            )
        return found

    def _virtual(self, dataset: Any, where: str, depth: int) -> "Pixels":
        creation, path, (rows, *pixels) = dataset.id.get_create_plist(), Path(dataset.file.filename), dataset.shape
        count = creation.get_virtual_count()
        if depth >= _MOST_DEPTH or count > _MOST_SOURCES:
            raise InputFileError(f"{where} is virtual with {count} sources at depth {depth}: repack it into one file")
        parts = []
        for number in range(count):
            file, name = creation.get_virtual_filename(number), creation.get_virtual_dsetname(number)
            source = self._source(path, file, name, where)
            low, high = _row_range(creation.get_virtual_vspace(number), dataset.shape, where)
            first, last = _row_range(creation.get_virtual_srcspace(number), source.shape, where)
            if source.dtype != dataset.dtype or [n for n in source.shape[1:] if n > 1] != [n for n in pixels if n > 1]:
                raise InputFileError(
                    f"{where} is virtual and its source '{shown(name)}' is {source.shape} {source.dtype}, of another "
                    "type or cutout size: repack it into one file"
                )
            if source.dtype.kind not in "ub":  # of a mask
                check_float(source, f"{where}, source '{shown(name)}'")
            if high - low != last - first or not 0 <= low < high <= rows or not 0 <= first < last <= source.shape[0]:
                raise InputFileError(f"{where} is virtual and its sources have other rows than it declares; {COPY}")
            parts.append((low, high, first, self.pixels(source, where, depth + 1)))
        parts.sort(key=lambda part: part[0])
        ends = [0, *(part[1] for part in parts)]
        if [part[0] for part in parts] != ends[:-1] or ends[-1] != rows:
            raise InputFileError(
                f"{where} is virtual and its sources do not cover each of its {rows} cutouts once; {COPY}"
            )
        return VirtualPixels(parts)

    def _chunked(self, dataset: Any, where: str, path: Path) -> "Pixels":
        creation, chunks, kind = dataset.id.get_create_plist(), dataset.chunks, dataset.dtype
        size, data = math.prod(chunks) * kind.itemsize, math.prod(dataset.shape) * kind.itemsize
        if size > _MOST_CHUNK or size > 4 * data + _MOST_SPARE:
            raise InputFileError(
                f"{where} has chunks of {chunks}, {size / 1e9:.1f} GB each: repack the file with smaller ones"
            )
        filters = [creation.get_filter(number) for number in range(creation.get_nfilters())]
        codes, values = [code for code, *_ in filters], {code: values for code, _, values, _ in filters}
        check_filters(filters_of(creation), where)
        if sum(code in (GZIP, LZF) for code in codes) > 1 or values.get(SHUFFLE, (kind.itemsize,)) != (kind.itemsize,):
            raise InputFileError(f"{where} has incompatible filters {codes}; {COPY}")
        self.raw(path)
        fill = fill_value(creation, kind)
        table = chunk_table(dataset, where, path.stat().st_size, codes, fill, size)
        self._check_apart(dataset, where, table[table[:, 0] >= 0])
        if len(table) and dataset.shape[0] % chunks[0] and dataset.maxshape != dataset.shape:
            self._check_end(dataset, where, codes, table)
        if not {*codes} <= PLAIN:
            return LibraryPixels(dataset)
        return ChunkedPixels(path, dataset.shape, chunks, kind, tuple(codes), table, fill, self.raw)

    def _check_chunks(self, dataset: Any, where: str, path: Path) -> None:
        """Check that all chunks of a small data set of any type exist and unpack, which HDF5 itself does not check."""
        for _ in self._unpacked(dataset, where, path):
            pass

    def _unpacked(self, dataset: Any, where: str, path: Path) -> Iterator[tuple[int, Any]]:
        """Yield index and bytes of all chunks of a small data set."""
        creation, itemsize = dataset.id.get_create_plist(), stored_size(dataset.id.get_type())
        size = math.prod(dataset.chunks) * itemsize
        codes = [creation.get_filter(number)[0] for number in range(creation.get_nfilters())]
        check_filters(filters_of(creation), where)
        if size > _MOST_SPARE:
            raise InputFileError(f"{where} has chunks of {size} bytes: repack the file with smaller ones")
        table = chunk_table(dataset, where, path.stat().st_size, codes, 0.0, size)
        if {*codes} <= PLAIN:
            for number, (offset, length, mask) in enumerate(table.tolist()):
                packed = os.pread(self.raw(path), length, offset)
                yield number, undo_filters(packed, codes, mask, size, itemsize)

    def values(self, dataset: Any, where: str, rows: Any = ()) -> NDArray[Any]:
        """Read values of any type except lists: numbers, records, strings (as `str`).

        Args:
            dataset: of `find`.
            where: file and name, for errors.
            rows: index; default all.

        Raises:
            InputFileError: The values cannot be read.
        """
        with damage_named(where):
            self.check_written(dataset, where)
            text = h5py.check_string_dtype(dataset.dtype)
            if text is not None and text.length is None:
                found: NDArray[Any] = self._texts(dataset, where)[rows]
            elif dataset.dtype.hasobject:
                raise InputFileError(f"{where} has the type {shown(dataset.dtype)}; expected numbers or strings")
            else:
                found = (dataset if text is None else dataset.asstr())[rows]
            return found

    def _texts(self, dataset: Any, where: str) -> NDArray[Any]:
        """Read variable-length strings, which are stored in heaps; on damaged ones HDF5 may never return."""
        path, shape, itemsize = Path(dataset.file.filename), dataset.shape, stored_size(dataset.id.get_type())
        layout, stored = dataset.id.get_create_plist().get_layout(), np.zeros(shape, f"V{itemsize}")
        if layout == h5py.h5d.CHUNKED:
            grid = [range(0, size, chunk) for size, chunk in zip(shape, dataset.chunks, strict=True)]
            corners = list(itertools.product(*grid))
            for number, raw in self._unpacked(dataset, where, path):
                box = tuple(slice(a, a + chunk) for a, chunk in zip(corners[number], dataset.chunks, strict=True))
                chunk = np.frombuffer(raw, stored.dtype).reshape(dataset.chunks)
                stored[box] = chunk[tuple(map(slice, stored[box].shape))]
        elif layout == h5py.h5d.CONTIGUOUS and dataset.id.get_offset() is not None:
            if dataset.id.get_offset() + stored.nbytes > path.stat().st_size:
                raise InputFileError(f"{where} declares more strings than are in the file; {COPY}")
            read_exactly(self.raw(path), stored.reshape(-1).view(np.uint8).data, dataset.id.get_offset())
        elif stored.size:
            raise InputFileError(
                f"{where} has strings in virtual or header storage: store them contiguously or in chunks"
            )
        texts, heaps = np.full(stored.shape, "", object), {}
        known: dict[tuple[int, int], str] = {}  # a text that many elements name is kept once
        for place, item in zip(np.ndindex(stored.shape), stored.reshape(-1), strict=True):
            length, address, index = struct.unpack("<IQI", item.tobytes())
            if length:
                if address not in heaps:
                    heaps[address] = self._heap(path, address + dataset.file.userblock_size)
                text = heaps[address][index]
                if len(text) != length:
                    raise ValueError("a string has another length than declared")
                texts[place] = known.get((address, index)) or known.setdefault((address, index), text.decode())
        return texts

    def _heap(self, path: Path, offset: int) -> dict[int, bytes]:
        """Return the strings of a global heap collection (HDF5 File Format Specification, III.E)."""
        number, end = self.raw(path), path.stat().st_size
        signature, size = struct.unpack("<8sQ", os.pread(number, 16, offset) if offset < end else b"")
        if signature[:5] != b"GCOL\x01" or not 16 <= size <= end - offset:
            raise ValueError("a heap of strings is missing")
        data, place, found = os.pread(number, size, offset), 16, {}
        while place + 16 <= size:
            index, length = struct.unpack_from("<H6xQ", data, place)
            if index == 0:  # the rest is free
                break
            if length > size - place - 16:
                raise ValueError("a string extends beyond its heap")
            found[index] = data[place + 16 : place + 16 + length]
            place += 16 + -(-length // 8) * 8
        return found

    def _check_apart(self, dataset: Any, where: str, places: NDArray[np.int64]) -> None:
        """Check that the bytes of a data set do not overlap those of another object in its group.

        Args:
            dataset: an h5py data set.
            where: file and name, for errors.
            places: (parts, 2 or more): first byte, number of bytes.
        """
        places = places[np.argsort(places[:, 0])]
        group = dataset.parent.id
        for key in itertools.islice(iter(group), _MOST_SIBLINGS):
            if group.links.get_info(key).type != h5py.h5l.TYPE_HARD:
                continue
            other = h5py.h5o.open(group, key)
            spans = [(h5py.h5o.get_info(other).addr + dataset.file.userblock_size, 1)]
            if isinstance(other, h5py.h5d.DatasetID) and other != dataset.id:
                if other.get_create_plist().get_layout() == h5py.h5d.CONTIGUOUS and other.get_offset() is not None:
                    spans.append((other.get_offset(), other.get_storage_size()))
            for first, size in spans:
                before = int(np.searchsorted(places[:, 0], first + size)) - 1
                if size and before >= 0 and places[before, 0] + places[before, 1] > first:
                    raise InputFileError(f"{where} overlaps '{shown(key.decode('utf-8', 'replace'))}'; {COPY}")

    def _check_end(self, dataset: Any, where: str, codes: Sequence[int], table: NDArray[np.int64]) -> None:
        """Check that the last chunks hold no data after the last cutout, which would mean that cutouts are missing.

        HDF5 keeps the fill value there, even when a data set is shrunk.
        """
        chunks, creation = dataset.chunks, dataset.id.get_create_plist()
        if not {*codes} <= PLAIN or creation.get_fill_time() == h5py.h5d.FILL_TIME_NEVER:
            return
        last = table.reshape(-(-dataset.shape[0] // chunks[0]), -1, 3)[-1]
        fill, size = fill_value(creation, dataset.dtype), dataset.dtype.itemsize
        for offset, length, mask in last[last[:, 0] >= 0].tolist():
            packed = os.pread(self.raw(Path(dataset.file.filename)), length, offset)
            raw = undo_filters(packed, codes, mask, math.prod(chunks) * size, size)
            rest = np.frombuffer(raw, dataset.dtype).reshape(chunks)[dataset.shape[0] % chunks[0] :]
            if not ((rest == fill) | (rest == 0) | (np.isnan(rest) & math.isnan(fill))).all():
                raise InputFileError(f"{where} declares {dataset.shape[0]} rows, and its last chunks hold more; {COPY}")


def check_float(dataset: Any, where: str) -> None:
    """Check that a data set has one of the three usual floating-point types.

    Raises:
        InputFileError: It has another type.
    """
    kind = dataset.dtype
    wanted = "expected a floating-point type (SSTa in K): convert the data to float32"
    if kind.kind != "f":
        raise InputFileError(f"{where} has the type {shown(kind)}; {wanted}")
    usual = [getattr(h5py.h5t, f"IEEE_F{bits}{order}") for bits in (16, 32, 64) for order in ("LE", "BE")]
    if not any(dataset.id.get_type().equal(other) for other in usual):
        raise InputFileError(f"{where} has a floating-point type that is not float16, float32 or float64; {wanted}")


def _row_range(space: Any, shape: tuple[int, ...], where: str) -> tuple[int, int]:
    """Return the rows [first, end) of a selection of complete cutouts."""
    if space.get_select_type() == h5py.h5s.SEL_ALL:
        return 0, int(shape[0])
    low, high = space.get_select_bounds()
    first, end = int(low[0]), int(high[0]) + 1
    box = (end - first) * math.prod(shape[1:])
    if any(low[1:]) or [n + 1 for n in high[1:]] != [*shape[1:]] or space.get_select_npoints() != box:
        raise InputFileError(
            f"{where} is virtual with sources that are not runs of complete cutouts: repack it into one file"
        )
    return first, end


def _tail(what: str) -> str:
    """Return a message without the path at its start."""
    return what.partition(": ")[2] or what
