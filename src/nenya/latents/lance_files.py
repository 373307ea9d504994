"""Files of LanceDB's table that an index may not have: those that lead to data elsewhere.

A manifest of Lance may name other places, folders or addresses of any service, as the bases of its data files
("shallow clones"); LanceDB then reads those. An index of nenya has all of its data in its own folder.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from nenya.errors import InputFileError, NenyaError
from nenya.storage.names import read_bytes
from nenya.storage.small_files import check_regular
from nenya.storage.texts import shown

_MAGIC = b"LANC"
_BASES = 18  # field of Lance's Manifest
_TAIL = 16  # bytes: position of the manifest, version, magic
_CHECKED: set[tuple[str, int, int, int]] = set()
"""Manifests found good by this process: path, inode, bytes and time. An index of many versions has many."""

_VARINT, _EIGHT, _TEXT, _FOUR = 0, 1, 2, 5  # wire types of Protocol Buffers


def check_manifests(table: Path) -> None:
    """Check that a table has its data in its folder: regular files, no links, and no versions that name other places.

    Args:
        table: the folder of LanceDB's table.

    Raises:
        InputFileError: One is a link or a pipe, names another place, or is damaged.
    """
    for path in (table, *table.rglob("*")):
        if path.is_symlink():
            raise InputFileError(
                f"{path} is a link to {shown(path.readlink())}: links in an index are refused; copy the file itself"
            )
        if path.exists() and not path.is_dir():
            check_regular(path, "a part of an index")
    for path in sorted((table / "_versions").rglob("*")):
        if not path.is_dir() and path.name.endswith(".manifest"):
            state = path.stat()
            stamp = str(path), state.st_ino, state.st_size, state.st_mtime_ns
            if stamp not in _CHECKED:
                _check(path)
                _CHECKED.add(stamp)


def _check(path: Path) -> None:
    try:
        data = read_bytes(path)
    except NenyaError:
        raise
    except OSError as error:
        raise InputFileError(f"{path}: cannot be read ({error.strerror}); rebuild the index") from error
    if len(data) < _TAIL or data[-4:] != _MAGIC:
        _damaged(path)
    (place,) = struct.unpack("<q", data[-_TAIL:-8])
    if not 0 <= place <= len(data) - _TAIL - 4:
        _damaged(path)
    (size,) = struct.unpack_from("<I", data, place)
    if size > len(data) - _TAIL - place - 4:
        _damaged(path)
    if _BASES in _fields(path, data[place + 4 : place + 4 + size]):
        raise InputFileError(
            f"{path}: this index has data in another place, which is not read: rebuild it with nenya index clobber=true"
        )


def _fields(path: Path, data: bytes) -> Iterator[int]:
    """Yield the numbers of the fields of a message."""
    place = 0
    while place < len(data):
        tag, place = _varint(path, data, place)
        kind = tag & 7
        if kind == _VARINT:
            _, place = _varint(path, data, place)
        elif kind == _TEXT:
            size, place = _varint(path, data, place)
            place += size
        elif kind in (_EIGHT, _FOUR):
            place += 8 if kind == _EIGHT else 4
        else:
            _damaged(path)
        if place > len(data):
            _damaged(path)
        yield tag >> 3


def _varint(path: Path, data: bytes, place: int) -> tuple[int, int]:
    """Return an integer and the place behind it."""
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(data):
            break
        byte = data[place]
        value, place = value | (byte & 127) << shift, place + 1
        if byte < 128:
            return value, place
    _damaged(path)


def _damaged(path: Path) -> NoReturn:
    raise InputFileError(f"{path}: damaged; rebuild the index with nenya index clobber=true")
