"""HDF5 files that users hand over: opened, their links followed, and the bytes of a data set found and unpacked.

Two things the HDF5 library does by itself are not left to it here. It follows links, which may lead anywhere on
the machine: `Hdf5File.find` follows them step by step and refuses what leads out of the file's folder. And it
unpacks chunks without holding their length against the declared one, so that a damaged chunk reads beyond its
buffer or takes all memory, and chunks it does not find read as a fill value: so `Hdf5File.pixels` takes from the
library only where the bytes lie, checks that, and `nenya` reads and unpacks them itself.

Letters: N cutouts in a data set, n of them read at once, H rows and W columns of pixels.
"""

import itertools
import math
import os
import stat
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from nenya.data.filters import FLETCHER32, GZIP, LZF, NBIT, SHUFFLE, SZIP, undo_filters
from nenya.data.pixels import (
    ChunkedPixels,
    FlatPixels,
    HeaderPixels,
    LibraryPixels,
    Pixels,
    VirtualPixels,
    read_exactly,
)
from nenya.errors import InputFileError, NenyaError
from nenya.mounts import NO_LOCKS, hdf5_locking

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_COPY = "the file is damaged: copy or make it again"
_MOST_LINKS = 16  # on the way to one data set; as many as HDF5 itself follows
_MOST_PARTS = 256  # groups in one name
_MOST_DEPTH = 8  # of virtual data sets made of virtual data sets
_MOST_SIBLINGS = 100
_MOST_SOURCES = 100_000
_MOST_CHUNK = 2**32  # bytes unpacked
_MOST_SPARE = 2**28  # bytes of a chunk beyond what the data need
_LEAST_WRITTEN = 0.1  # of the chunks, where the file marks the missing ones as NaN


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
        self.file = open_hdf5(path, **settings)
        self._files: dict[Path, Any] = {}
        self._raw: dict[Path, int] = {}

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
        """Return what the file holds under a name, None if there is no such name.

        Raises:
            InputFileError: A link on the way leads out of the file's folder, nowhere, or in a circle; or the
                file is damaged.
        """
        with damage_named(f"{self.path}: '{shown(name)}'"):
            return self._walk(self.file["/"], self.path, name, [0])

    def pixels(self, dataset: Any, where: str, depth: int = 0) -> "Pixels":
        """Find the bytes of a data set (N, 1, H, W) or (N, H, W) of a floating-point type.

        Args:
            dataset: of `find`.
            where: file and name, for errors.
            depth: of virtual data sets around this one.

        Raises:
            InputFileError: Some were never written or are not in the file; or lie outside of its folder.
        """
        creation, path = dataset.id.get_create_plist(), Path(dataset.file.filename)
        layout, nbytes = creation.get_layout(), math.prod(dataset.shape) * dataset.dtype.itemsize
        if layout == h5py.h5d.VIRTUAL:
            return self._virtual(dataset, where, depth)
        if layout == h5py.h5d.CHUNKED:
            return self._chunked(dataset, where, path)
        if layout == h5py.h5d.COMPACT:
            if dataset.id.get_storage_size() != nbytes:
                raise InputFileError(f"{where} declares {nbytes} bytes and has others; {_COPY}")
            return HeaderPixels(dataset[()])
        if creation.get_external_count():
            segments = self._external(creation, where, path, nbytes)
        else:
            offset, size = dataset.id.get_offset(), dataset.id.get_storage_size()
            if offset is None:
                raise InputFileError(f"{where} declares {dataset.shape[0]} cutouts, but none was written to the file")
            if size != nbytes or offset + nbytes > path.stat().st_size:
                raise InputFileError(f"{where} declares {nbytes} bytes that are not all in the file; {_COPY}")
            segments = [(path, int(offset), nbytes)]
            self._check_apart(dataset, where, np.array([[offset, nbytes]]))
            self.raw(path)
        return FlatPixels(segments, dataset.dtype, math.prod(dataset.shape[1:]), self.raw)

    def check_written(self, dataset: Any, where: str) -> None:
        """Check a data set of any type that is read through HDF5: labels, metadata.

        Raises:
            InputFileError: A part of it was never written, or lies outside of the file's folder.
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
        """Return the number of a file opened for its bytes."""
        if path not in self._raw:
            self._raw[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        return self._raw[path]

    def others(self) -> tuple[Path, ...]:
        """Return the further files that were opened."""
        return tuple(sorted(path for path in {*self._files, *self._raw} if path != self.path))

    # Links

    def _walk(self, group: Any, holder: Path, name: str, hops: list[int]) -> Any:
        item, parts = group.file["/"] if name.startswith("/") else group, name.split("/")
        if len(parts) > _MOST_PARTS:
            raise InputFileError(f"{self.path}: '{shown(name)}' leads over {len(parts)} groups; {_COPY}")
        for part in parts:
            if part in ("", "."):
                continue
            key = part.encode("utf-8", "surrogateescape")
            if not isinstance(item, h5py.Group):
                return None
            if not item.id.links.exists(key):
                if key in itertools.islice(iter(item.id), 10**5):  # listed, and not found by searching
                    raise InputFileError(f"{self.path}: '{shown(part)}' is lost in a damaged list of names; {_COPY}")
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
            raise InputFileError(f"{where} is a link that leads over more than {_MOST_LINKS} others, or in a circle")
        value = group.id.links.get_val(key)
        if kind == h5py.h5l.TYPE_SOFT:
            target = value.decode("utf-8", "surrogateescape")
            found = self._walk(group, holder, target, hops)
            said = f"'{shown(target)}'"
        elif kind == h5py.h5l.TYPE_EXTERNAL:
            file, target = os.fsdecode(value[0]), value[1].decode("utf-8", "surrogateescape")
            place = self._place(holder, file, "HDF5_EXT_PREFIX", f"{where} is a link")
            found = self._walk(self._open(place)["/"], place, target, hops)
            said = f"'{shown(target)}' in {shown(place)}"
        else:
            raise InputFileError(f"{where} is a link of an unknown kind ({kind}); {_COPY}")
        if found is None:
            raise InputFileError(f"{where} is a link to {said}, which is not there; copy the data into the file itself")
        return found

    def _open(self, path: Path) -> Any:
        if path == self.path:
            return self.file
        if path not in self._files:
            self._files[path] = open_hdf5(path)
        return self._files[path]

    def _place(self, holder: Path, name: str, variable: str, what: str) -> Path:
        """Return the file that a name in another one means: the first that is there of where HDF5 looks.

        Raises:
            InputFileError: There is none, or it lies outside of the folder and that is not allowed.
        """
        folder, tried = Path(os.path.abspath(holder)).parent, [Path(name)] if os.path.isabs(name) else []
        relative = os.path.basename(name) if tried else name
        for prefix in filter(None, os.environ.get(variable, "").split(":")):
            tried.append(Path(prefix.replace("${ORIGIN}", str(folder)), relative))
        tried += [folder / relative, Path.cwd() / relative, holder.resolve().parent / relative]
        place = next((path for path in tried if _is_file(path)), None)
        if place is None:
            raise InputFileError(f"{self.path}: {_tail(what)} to the file {shown(name)}, which is not there")
        real = place.resolve()
        own = {self.path.resolve().parent, self.path.parent.resolve()}
        if not self.allow_external and not any(real.is_relative_to(folder) for folder in own):
            raise InputFileError(
                f"{self.path}: {_tail(what)} to {shown(real)}, out of the file's own folder: refused; "
                "loader.allow_external=true allows it, if you trust the file"
            )
        return self.path if real == self.path.resolve() else place

    # Storage

    def _external(self, creation: Any, where: str, path: Path, nbytes: int) -> list[tuple[Path, int, int]]:
        """Return the parts of other files that hold the bytes of a data set."""
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
                f"{where} is virtual and its source '{shown(name)}' in {shown(place)} is not there: its cutouts are "
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
                    f"{where} is virtual and its source '{shown(name)}' is {source.shape} {source.dtype}, not of its "
                    "type and cutout size: repack it into one file"
                )
            check_float(source, f"{where}, source '{shown(name)}'")
            if high - low != last - first or not 0 <= low < high <= rows or not 0 <= first < last <= source.shape[0]:
                raise InputFileError(f"{where} is virtual and its sources have other rows than it declares; {_COPY}")
            parts.append((low, high, first, self.pixels(source, where, depth + 1)))
        parts.sort(key=lambda part: part[0])
        ends = [0, *(part[1] for part in parts)]
        if [part[0] for part in parts] != ends[:-1] or ends[-1] != rows:
            raise InputFileError(
                f"{where} is virtual and its sources do not cover its {rows} cutouts each once; {_COPY}"
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
        if NBIT in codes:
            raise InputFileError(
                f"{where} is packed with nbit, which reads beyond damaged chunks: repack the file with gzip"
            )
        if sum(code in (GZIP, LZF) for code in codes) > 1 or values.get(SHUFFLE, (kind.itemsize,)) != (kind.itemsize,):
            raise InputFileError(f"{where} has filters {codes} that do not go together; {_COPY}")
        self.raw(path)
        fill = _fill_value(creation, kind)
        table = _chunk_table(dataset, where, path.stat().st_size, codes, fill, size)
        self._check_apart(dataset, where, table[table[:, 0] >= 0])
        if len(table) and dataset.shape[0] % chunks[0] and dataset.maxshape != dataset.shape:
            self._check_end(dataset, where, codes, table)
        if SZIP in codes:  # the packed bytes begin with the length that the library then takes
            heads = {os.pread(self.raw(path), 4, int(offset)) for offset, _, mask in table if offset >= 0 and not mask}
            if heads - {(size + 4 * n).to_bytes(4, "little") for n in range(codes.index(SZIP) + 1)}:
                raise InputFileError(f"{where} has chunks that do not unpack to their size; {_COPY}")
        if not {*codes} <= {GZIP, SHUFFLE, FLETCHER32, LZF}:
            return LibraryPixels(dataset)
        return ChunkedPixels(path, dataset.shape, chunks, kind, tuple(codes), table, fill, self.raw)

    def _check_chunks(self, dataset: Any, where: str, path: Path) -> None:
        """Check that all chunks of a small data set of any type are there and unpack, as HDF5 itself does not."""
        for _ in self._unpacked(dataset, where, path):
            pass

    def _unpacked(self, dataset: Any, where: str, path: Path) -> Iterator[tuple[int, Any]]:
        """Yield number and bytes of all chunks of a small data set."""
        creation, itemsize = dataset.id.get_create_plist(), _stored_size(dataset.id.get_type())
        size = math.prod(dataset.chunks) * itemsize
        codes = [creation.get_filter(number)[0] for number in range(creation.get_nfilters())]
        if size > _MOST_SPARE or NBIT in codes:
            raise InputFileError(
                f"{where} is packed with nbit or has chunks of {size} bytes: repack the file with gzip"
            )
        table = _chunk_table(dataset, where, path.stat().st_size, codes, 0.0, size)
        if {*codes} <= {GZIP, SHUFFLE, FLETCHER32, LZF}:
            for number, (offset, length, mask) in enumerate(table.tolist()):
                packed = os.pread(self.raw(path), length, offset)
                yield number, undo_filters(packed, codes, mask, size, itemsize)

    def values(self, dataset: Any, where: str, rows: Any = ()) -> NDArray[Any]:
        """Read values of any type but lists: numbers, records, texts (as `str`).

        Args:
            dataset: of `find`.
            where: file and name, for errors.
            rows: which ones; all without it.

        Raises:
            InputFileError: They cannot be read.
        """
        with damage_named(where):
            self.check_written(dataset, where)
            text = h5py.check_string_dtype(dataset.dtype)
            if text is not None and text.length is None:
                found: NDArray[Any] = self._texts(dataset, where)[rows]
            elif dataset.dtype.hasobject:
                raise InputFileError(f"{where} has the type {shown(dataset.dtype)}; wanted are numbers or texts")
            else:
                found = (dataset if text is None else dataset.asstr())[rows]
            return found

    def _texts(self, dataset: Any, where: str) -> NDArray[Any]:
        """Read texts of any length, which lie in heaps over which HDF5 may never end if they are damaged."""
        path, shape, itemsize = Path(dataset.file.filename), dataset.shape, _stored_size(dataset.id.get_type())
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
                raise InputFileError(f"{where} declares more texts than are in the file; {_COPY}")
            read_exactly(self.raw(path), stored.reshape(-1).view(np.uint8).data, dataset.id.get_offset())
        elif stored.size:
            raise InputFileError(f"{where} has texts that are virtual or in the header: store them as usual")
        texts, heaps = np.full(stored.shape, "", object), {}
        for place, item in zip(np.ndindex(stored.shape), stored.reshape(-1), strict=True):
            length, address, index = struct.unpack("<IQI", item.tobytes())
            if length:
                if address not in heaps:
                    heaps[address] = self._heap(path, address + dataset.file.userblock_size)
                text = heaps[address][index]
                if len(text) != length:
                    raise ValueError("a text has another length than its place")
                texts[place] = text.decode()
        return texts

    def _heap(self, path: Path, offset: int) -> dict[int, bytes]:
        """Return the texts of a global heap collection (HDF5 File Format Specification, III.E)."""
        number, end = self.raw(path), path.stat().st_size
        signature, size = struct.unpack("<8sQ", os.pread(number, 16, offset) if offset < end else b"")
        if signature[:5] != b"GCOL\x01" or not 16 <= size <= end - offset:
            raise ValueError("a heap of texts is not where it should be")
        data, place, found = os.pread(number, size, offset), 16, {}
        while place + 16 <= size:
            index, length = struct.unpack_from("<H6xQ", data, place)
            if index == 0:  # the rest is free
                break
            if length > size - place - 16:
                raise ValueError("a text leads out of its heap")
            found[index] = data[place + 16 : place + 16 + length]
            place += 16 + -(-length // 8) * 8
        return found

    def _check_apart(self, dataset: Any, where: str, places: NDArray[np.int64]) -> None:
        """Check that the bytes of a data set are not those of another object in its group.

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
                    raise InputFileError(f"{where} lies upon '{shown(key.decode('utf-8', 'replace'))}'; {_COPY}")

    def _check_end(self, dataset: Any, where: str, codes: Sequence[int], table: NDArray[np.int64]) -> None:
        """Check that the last chunks hold nothing behind the last cutout: then there were more of them.

        HDF5 keeps the fill value there, also when a data set is made smaller.
        """
        chunks, creation = dataset.chunks, dataset.id.get_create_plist()
        if not {*codes} <= {GZIP, SHUFFLE, FLETCHER32, LZF} or creation.get_fill_time() == h5py.h5d.FILL_TIME_NEVER:
            return
        last = table.reshape(-(-dataset.shape[0] // chunks[0]), -1, 3)[-1]
        fill, size = _fill_value(creation, dataset.dtype), dataset.dtype.itemsize
        for offset, length, mask in last[last[:, 0] >= 0].tolist():
            packed = os.pread(self.raw(Path(dataset.file.filename)), length, offset)
            raw = undo_filters(packed, codes, mask, math.prod(chunks) * size, size)
            rest = np.frombuffer(raw, dataset.dtype).reshape(chunks)[dataset.shape[0] % chunks[0] :]
            if not ((rest == fill) | (rest == 0) | (np.isnan(rest) & math.isnan(fill))).all():
                raise InputFileError(
                    f"{where} declares {dataset.shape[0]} rows, and its last chunks hold more; {_COPY}"
                )


def open_hdf5(path: Path, **settings: Any) -> Any:
    """Open an HDF5 file for reading.

    Args:
        path: The file.
        settings: Further arguments of `h5py.File`.

    Raises:
        InputFileError: If it does not open: it does not exist, is a folder, is not HDF5, is cut short.
    """
    if path.is_dir():
        raise InputFileError(f"{path}: this is a folder; wanted is an HDF5 file of cutouts: name a file in it")
    if not path.exists():
        raise InputFileError(f"{path}: no such file; check the path")
    if not _is_file(path):
        raise InputFileError(f"{path}: this is no ordinary file; wanted is an HDF5 file of cutouts")
    try:
        return h5py.File(path, "r", **{"locking": hdf5_locking(path), **settings})
    except Exception as error:  # on a damaged file HDF5 raises many a kind
        raise InputFileError(f"{path}: {_why_closed(path, error)}") from error


def list_datasets(file: Any, most: int = 12) -> str:
    """Name the data sets of an open file with their shapes, at most `most` of them; no link is followed."""
    found: list[str] = []
    groups, left = [("", file)], 1000
    while groups and left:
        prefix, group = groups.pop(0)
        with suppress(Exception):  # of what is damaged: this is the text of another error
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
    return (", ".join(found[:most]) + more) or "no data set at all"


def check_float(dataset: Any, where: str) -> None:
    """Check that a data set has one of the three usual floating-point types.

    Raises:
        InputFileError: It has not.
    """
    kind = dataset.dtype
    wanted = "wanted is a floating-point type (SSTa in K): convert the data to float32"
    if kind.kind != "f":
        raise InputFileError(f"{where} has the type {shown(kind)}; {wanted}")
    usual = [getattr(h5py.h5t, f"IEEE_F{bits}{order}") for bits in (16, 32, 64) for order in ("LE", "BE")]
    if not any(dataset.id.get_type().equal(other) for other in usual):
        raise InputFileError(f"{where} has a floating-point type that is not float16, float32 or float64; {wanted}")


@contextmanager
def damage_named(where: str) -> Iterator[None]:
    """Word whatever HDF5 and h5py raise over a damaged file in one line."""
    try:
        yield
    except NenyaError:
        raise
    except Exception as error:
        raise InputFileError(f"{where} cannot be read ({one_line(error)}); {_COPY}") from error


def one_line(error: BaseException) -> str:
    """Word an error in one line."""
    return shown(" ".join(str(error).split()), 300) or type(error).__name__


def shown(text: Any, most: int = 120) -> str:
    """Return a text from a file so that it can stand in a message: printable, and not long."""
    plain = "".join(c if c.isprintable() else "?" for c in str(text))
    return plain if len(plain) <= most else f"{plain[:most]}..."


def _chunk_table(dataset: Any, where: str, end: int, codes: Sequence[int], fill: float, size: int) -> NDArray[np.int64]:
    """Return where the chunks lie, (chunks, 3), as `ChunkedPixels` has it.

    Args:
        dataset: an h5py data set.
        where: file and name, for errors.
        end: bytes of the file.
        codes: filters.
        fill: value of what was never written; NaN where the missing cutouts are meant to be seen as such.
        size: bytes of a chunk unpacked.
    """
    chunks, shape = dataset.chunks, dataset.shape
    grid = [-(-size // chunk) for size, chunk in zip(shape, chunks, strict=True)]
    count, found = math.prod(grid), []

    def note(info: Any) -> int | None:
        found.append((*info.chunk_offset, info.byte_offset, info.size, info.filter_mask))
        return len(found) > count or None

    dataset.id.chunk_iter(note)
    undefined = 2**64 - 1
    found = [(*c[:-3], c[-3], c[-2], c[-1]) for c in found if c[-3] is not None and c[-3] != undefined]
    if len(found) > count:
        raise InputFileError(f"{where} has more chunks than the {count} that its shape {shape} takes; {_COPY}")
    if len(found) < count and not (math.isnan(fill) and len(found) >= _LEAST_WRITTEN * count):
        raise _not_written(where, shape[0], count, len(found))
    numbers = np.array(found, dtype=object).reshape(len(found), -1)
    if any(not 0 <= value < 2**62 for value in numbers.flat):
        raise InputFileError(f"{where} has chunks outside of the file; {_COPY}")
    numbers = numbers.astype(np.int64)
    corners, places = numbers[:, :-3], numbers[:, -3:]
    if (corners % chunks).any() or (corners >= shape).any():
        raise InputFileError(f"{where} has chunks that are not on the grid of its shape {shape}; {_COPY}")
    creation = dataset.id.get_create_plist()
    filters = [creation.get_filter(number) for number in range(creation.get_nfilters())]
    loose = sum(1 << i for i, (code, _, values, _) in enumerate(filters) if code == SHUFFLE and not values)
    _check_places(where, places, end, codes, size, loose)
    table = np.full((count, 3), -1, np.int64)
    index = np.ravel_multi_index(tuple((corners // chunks).T), tuple(grid))
    if len(np.unique(index)) != len(index):
        raise InputFileError(f"{where} has a chunk twice; {_COPY}")
    table[index] = places
    return table


def _check_places(where: str, places: NDArray[np.int64], end: int, codes: Sequence[int], size: int, loose: int) -> None:
    """Check that chunks lie within the file, apart from each other, and have a size that their filters can make.

    Args:
        where: file and name, for errors.
        places: (chunks, 3): first byte, bytes, filters left out.
        end: bytes of the file.
        codes: filters.
        size: bytes of a chunk unpacked.
        loose: filters that may be left out of a packed chunk, as bits: HDF5 does not shuffle texts of any length.
    """
    order = places[np.argsort(places[:, 0])]
    stops = order[:, 0] + order[:, 1]
    if (order[:, 1] <= 0).any() or (stops > end).any() or (stops[:-1] > order[1:, 0]).any():
        raise InputFileError(f"{where} has chunks outside of the file, or upon each other; {_COPY}")
    packing = sum(1 << i for i, code in enumerate(codes) if code != SHUFFLE and code != FLETCHER32)
    whole = size + 4 * sum(code == FLETCHER32 for code in codes)
    masks, sizes = places[:, 2], places[:, 1]
    left_out = ((masks & packing) == packing) & (packing > 0)
    sums = np.zeros(len(masks), np.int64)
    for i, code in enumerate(codes):
        sums += 4 * ((code == FLETCHER32) & ~(masks >> i) & 1)
    ratio = 1040 if GZIP in codes else 90 if LZF in codes else 2**31  # no stream of these formats unpacks to more
    packed = (sizes > whole + whole // 100 + 1024) | (sizes * ratio + 1024 < size)
    wrong = np.where(left_out | (packing == 0), sizes != size + sums, packed)
    wrong |= ~left_out & ((masks & ~loose) != 0)
    if wrong.any():
        raise InputFileError(f"{where} has chunks of a size that they cannot have; {_COPY}")


def _not_written(where: str, rows: int, chunks: int, found: int | None = None) -> InputFileError:
    some = "not all" if found is None else f"only {found}"
    return InputFileError(
        f"{where} declares {rows} rows, but {some} of their {chunks} chunks are in the file: the others were never "
        "written; make the file again"
    )


def _fill_value(creation: Any, kind: np.dtype[Any]) -> float:
    """Return the value of what was never written."""
    if creation.fill_value_defined() != h5py.h5d.FILL_VALUE_USER_DEFINED:
        return 0.0
    value = np.zeros((), kind)
    creation.get_fill_value(value)
    return float(value)


def _stored_size(kind: Any) -> int:
    """Return the bytes that a value takes in the file; in memory texts of any length are pointers."""
    if isinstance(kind, h5py.h5t.TypeVlenID) or (isinstance(kind, h5py.h5t.TypeStringID) and kind.is_variable_str()):
        return 16
    size = int(kind.get_size())
    if isinstance(kind, h5py.h5t.TypeCompoundID):
        members = [kind.get_member_type(number) for number in range(kind.get_nmembers())]
        return size + sum(_stored_size(member) - int(member.get_size()) for member in members)
    if isinstance(kind, h5py.h5t.TypeArrayID):
        base = kind.get_super()
        return size // int(base.get_size()) * _stored_size(base)
    return size


def _row_range(space: Any, shape: tuple[int, ...], where: str) -> tuple[int, int]:
    """Return the rows [first, end) of a selection of whole cutouts."""
    if space.get_select_type() == h5py.h5s.SEL_ALL:
        return 0, int(shape[0])
    low, high = space.get_select_bounds()
    first, end = int(low[0]), int(high[0]) + 1
    box = (end - first) * math.prod(shape[1:])
    if any(low[1:]) or [n + 1 for n in high[1:]] != [*shape[1:]] or space.get_select_npoints() != box:
        raise InputFileError(
            f"{where} is virtual with sources that are not runs of whole cutouts: repack it into one file"
        )
    return first, end


def _is_file(path: Path) -> bool:
    """Tell whether this is an ordinary file: to open another kind may never end."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (OSError, ValueError):
        return False


def _tail(what: str) -> str:
    """Return a text without the path that it begins with."""
    return what.partition(": ")[2] or what


def _why_closed(path: Path, error: BaseException) -> str:
    """Find out why a file that exists does not open."""
    try:
        with path.open("rb") as file:
            head = file.read(len(_SIGNATURE))
    except OSError as refused:
        return f"cannot be read ({refused.strerror}); check its permissions"
    if not head:
        return "the file is empty; copy or make it again"
    if head != _SIGNATURE:
        return f"not an HDF5 file (it begins with {head!r}); wanted is an HDF5 file of cutouts"
    if isinstance(error, OSError) and (error.errno in NO_LOCKS or isinstance(error, BlockingIOError)):
        return (
            f"cannot be locked ({os.strerror(error.errno or 0)}): wait for the program that writes it; where the file "
            "system has no locks, set HDF5_USE_FILE_LOCKING=FALSE"
        )
    return f"the HDF5 file is truncated or damaged ({one_line(error)}); copy or make it again"
