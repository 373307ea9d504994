"""Attributes and variable-length values of HDF5 files, bounded before they are read.

Variable-length values, such as most texts, lie in heaps, and an element is the address of one. Nothing prevents a file
from giving the same address many times: a megabyte then reads as many gigabytes. HDF5 does not say beforehand how much
it will allocate: it is added up where the addresses can be read, and bounded by the longest one in the file elsewhere.
"""

import math
import mmap
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from nenya.data.chunk_check import PLAIN, filters_of
from nenya.data.chunk_table import stored_size
from nenya.data.filters import undo_filters
from nenya.data.hdf5_links import damage_named
from nenya.errors import InputFileError
from nenya.storage.process import check_memory
from nenya.storage.small_files import is_regular
from nenya.storage.texts import shown

_HEAP = b"GCOL\x01\0\0\0"
_SPARE = 2**26  # bytes of attributes in any file
_MOST_LIST = 2**29  # bytes of variable-length values that are read at once from any file
_TIMES = 4  # the size of a file that its attributes may have, each counted once
_MOST_NAMES = 100_000


@dataclass
class Heaps:
    """The variable-length values of a file, and how much of it was read.

    Attributes:
        longest: file name -> bytes of its longest variable-length value.
        read: (file, object, attribute) -> bytes of its value.
    """

    longest: dict[str, int] = field(default_factory=dict)
    read: dict[tuple[int, int, str], int] = field(default_factory=dict)

    def check(
        self,
        kind: Any,
        count: int,
        file: Any,
        where: str,
        stated: Callable[[], int | None] = lambda: None,
        *,
        virtual: bool = False,
    ) -> None:
        """Check that variable-length values fit into memory.

        Args:
            kind: HDF5's type of one value.
            count: of the values.
            file: identifier of the file that they are in.
            where: file and name, for errors.
            stated: returns how many bytes they have, None if only their longest can be found out.
            virtual: whether they lie in other data sets.

        Raises:
            InputFileError: They may not fit, are lists of lists, or lie elsewhere.
        """
        count *= _lists(kind, where)
        if count and virtual:
            raise InputFileError(f"{where} has texts or lists of another data set; copy them into it")
        if count > 1:  # a single one has at most the size of the file
            size = int(file.get_filesize())
            most = max(_MOST_LIST, _TIMES * size)
            if count * size <= most:
                return check_memory(count * size, where)
            nbytes = stated()
            nbytes = count * self._longest_of(file, size) if nbytes is None else nbytes
            check_memory(nbytes, where)
            if nbytes > most:
                raise InputFileError(
                    f"{where} has {count} texts or lists of together up to {nbytes / 1e6:.0f} MB in a file of "
                    f"{size / 1e6:.2f} MB, more than is read at once: shorten them, or take the file without them"
                )
        return None

    def count(self, key: tuple[int, int, str], nbytes: int, file: Any, where: str) -> None:
        """Count the bytes of an attribute; honest ones are together not larger than their file.

        Raises:
            InputFileError: They are much larger.
        """
        self.read[key] = nbytes
        size = int(file.get_filesize())
        if sum(self.read.values()) > max(_SPARE, _TIMES * size):
            raise InputFileError(
                f"{where}: the attributes of a file of {size / 1e6:.2f} MB have more than {_TIMES} times its size; "
                "the file is damaged: create it again"
            )

    def _longest_of(self, file: Any, size: int) -> int:
        """Return the bytes of the longest variable-length value of a file, its size if that cannot be found out."""
        name = os.fsdecode(h5py.h5f.get_name(file))
        if name not in self.longest:
            self.longest[name] = _longest(Path(name)) if is_regular(Path(name)) else size
        return self.longest[name]


class Attributes(h5py.AttributeManager):  # type: ignore[misc]  # h5py has no types
    """The attributes of an object, bounded; any error of HDF5 is one line that names the attribute.

    Args:
        parent: the object.
        heaps: of its file.
        place: the file, for errors.
    """

    def __init__(self, parent: Any, heaps: Heaps, place: str) -> None:
        super().__init__(parent)
        self._heaps, self._place = heaps, place

    def __contains__(self, name: Any) -> bool:
        with damage_named(self._where(name)):
            return bool(super().__contains__(name))

    def __iter__(self) -> Iterator[str]:
        with damage_named(self._place):
            if len(self) > _MOST_NAMES:
                raise InputFileError(f"{self._place}: an object with {len(self)} attributes: damaged")
            return iter(list(super().__iter__()))

    def __getitem__(self, name: Any) -> Any:
        if name not in self:
            raise KeyError(name)
        where = self._where(name)
        with damage_named(where):
            file = self.check(name)
            value = super().__getitem__(name)
            info = h5py.h5o.get_info(self._id)
            self._heaps.count((int(info.fileno), int(info.addr), str(name)), _bytes_of(value), file, where)
            return value

    def one(self, name: str, default: Any = None) -> Any:
        """Return an attribute that has one value; a text as `str`.

        Raises:
            InputFileError: It is a list, or has no value.
        """
        if name not in self:
            return default
        value = self[name]
        if isinstance(value, h5py.Empty) or np.ndim(value):
            what = "empty" if isinstance(value, h5py.Empty) or not np.size(value) else "a list"
            raise InputFileError(f"{self._where(name)} is {what}; expected one value: the file is damaged")
        return value.decode(errors="replace") if isinstance(value, bytes) else value

    def check(self, name: str) -> Any:
        """Check that an attribute's value fits into memory; return the identifier of its file.

        Raises:
            InputFileError: It may not, or it is damaged.
        """
        where = self._where(name)
        with damage_named(where):
            attribute, file = self.get_id(name), h5py.h5i.get_file_id(self._id)
            count = math.prod(attribute.shape or ())
            kind = attribute.get_type()
            if (nbytes := count * kind.get_size()) > _SPARE:
                check_memory(nbytes, where, file_bytes=int(file.get_filesize()))
            self._heaps.check(kind, count, file, where)
        return file

    def _where(self, name: Any) -> str:
        return f"{self._place}: attribute '{shown(name, 80)}'"


def _lists(kind: Any, where: str) -> int:
    """Return how many variable-length parts one value of a type has."""
    if isinstance(kind, h5py.h5t.TypeStringID):
        return int(kind.is_variable_str())
    if isinstance(kind, h5py.h5t.TypeVlenID):
        if _lists(kind.get_super(), where):
            raise InputFileError(f"{where} has values that are lists of lists; expected numbers or texts")
        return 1
    if isinstance(kind, h5py.h5t.TypeArrayID):
        return int(math.prod(kind.get_array_dims())) * _lists(kind.get_super(), where)
    if isinstance(kind, h5py.h5t.TypeCompoundID):
        return sum(_lists(kind.get_member_type(number), where) for number in range(kind.get_nmembers()))
    return 0


def stated_bytes(dataset: Any) -> int | None:
    """Return how many bytes the texts or lists of a data set state, without reading them; None if that is not known."""
    creation, kind = dataset.id.get_create_plist(), dataset.id.get_type()
    layout, text = creation.get_layout(), isinstance(kind, h5py.h5t.TypeStringID)
    filled = creation.fill_value_defined() == h5py.h5d.FILL_VALUE_USER_DEFINED
    if filled or not (text or isinstance(kind, h5py.h5t.TypeVlenID)):
        return None
    each: int = 1 if text else stored_size(kind.get_super())
    if layout == h5py.h5d.CHUNKED:
        codes, size = [code for code, _ in filters_of(creation)], stored_size(kind) * math.prod(dataset.chunks)
        if not {*codes} <= PLAIN or size > _MOST_LIST:
            return None
        total, corners = 0, []
        dataset.id.chunk_iter(lambda chunk: corners.append(chunk.chunk_offset))
        for corner in corners:
            mask, packed = dataset.id.read_direct_chunk(corner)
            total += _lengths(undo_filters(packed, codes, mask, size, stored_size(kind)))
        return each * total
    offset, nbytes = dataset.id.get_offset(), math.prod(dataset.shape) * stored_size(kind)
    path = Path(dataset.file.filename)
    if layout != h5py.h5d.CONTIGUOUS or creation.get_external_count() or offset is None or not is_regular(path):
        return None
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return each * _lengths(data[offset : offset + nbytes])


def _lengths(data: bytes) -> int:
    """Return the sum of the lengths of variable-length values, each of 16 bytes that begin with its length."""
    return int(np.frombuffer(data, "<u4")[::4].sum(dtype=np.int64))


def _longest(path: Path) -> int:
    """Return the bytes of the longest object in the global heaps of a file (HDF5 File Format Specification, III.E)."""
    found = place = 0
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        while 0 <= (place := data.find(_HEAP, place)) <= len(data) - 16:
            end = min(place + struct.unpack_from("<Q", data, place + 8)[0], len(data))
            place += 16
            item = place
            while item + 16 <= end:
                index, length = struct.unpack_from("<H6xQ", data, item)
                if length > end - item - (16 if index else 0):  # this is no heap
                    break
                found = max(found, length if index else 0)
                item += 16 + -(-length // 8) * 8 if index else max(length, 16)  # 0 is free space with its head
    return found


def _bytes_of(value: Any) -> int:
    """Return the bytes of an attribute's value."""
    if isinstance(value, np.ndarray) and value.dtype.hasobject:
        return sum(map(_bytes_of, value.ravel())) if value.dtype == object else int(value.nbytes)
    return int(getattr(value, "nbytes", 0)) or (len(value) if isinstance(value, str | bytes) else 0)
