"""Check of the metadata of a Zarr store: only codecs and types that compute, none that runs code or unpickles.

Zarr finds codecs among those of all installed packages, and some of these load pickles. So the metadata of every array,
coordinates included, is checked here before a codec is created from it.
"""

import json
import math
import re
from collections.abc import Iterator
from typing import Any

from nenya.errors import InputFileError
from nenya.storage.process import check_memory
from nenya.storage.texts import shown

MARKS = ("zarr.json", ".zgroup", ".zmetadata")
"""Metadata files by which a Zarr store is known."""

_NAMES = (".zarray", ".zmetadata", "zarr.json")
_CODECS = {
    *("zlib", "gzip", "blosc", "zstd", "lz4", "bz2", "lzma", "shuffle", "delta", "fixedscaleoffset", "quantize"),
    *("bitround", "packbits", "crc32", "crc32c", "adler32", "fletcher32", "bytes", "transpose", "endian"),
    "sharding_indexed",
}
_TYPE = re.compile(r"[<>|=]?[biufcmMSUV?]\d*(\[\d*[a-zA-Z]+\])?")
_TYPES = re.compile(r"bool|u?int(8|16|32|64)|float(16|32|64)|complex(64|128)|r\d+")
_TYPES_BY_NAME = {
    *("numpy.datetime64", "numpy.timedelta64", "fixed_length_utf32", "fixed_length_ascii", "null_terminated_bytes"),
    *("raw_bytes", "structured", "struct"),
}
_PARTS = {  # other parts that packages may register, with those of Zarr itself
    "chunk_grid": {"regular", "rectangular", "rectilinear"},
    "chunk_key_encoding": {"default", "v2"},
}
_MOST_DEPTH = 16
_MOST_ELEMENT = 4096  # bytes
_MOST_FILL = 4096  # characters, or numbers


def is_metadata(key: str) -> bool:
    """Return whether a key of a store holds metadata that names codecs."""
    return key.rpartition("/")[2] in _NAMES


def check_metadata(content: bytes, where: str) -> Any:
    """Check a metadata file of a Zarr store of version 2 or 3, with those consolidated in it.

    Args:
        content: the file's bytes.
        where: its place, for errors.

    Returns:
        The content.

    Raises:
        InputFileError: It is not JSON, or names a forbidden codec or type.
    """
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputFileError(f"{where}: expected metadata of a Zarr store, got damaged JSON; fetch it again") from error
    _check_node(values, where, 0)
    return values


def arrays_of(values: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield path and metadata of each array in checked metadata.

    Args:
        values: of `check_metadata`.
        path: of its node.
    """
    yield path, values
    for held in (values.get("metadata"), (values.get("consolidated_metadata") or {}).get("metadata")):
        for name, inner in (held if isinstance(held, dict) else {}).items():
            if isinstance(inner, dict):
                yield from arrays_of(inner, f"{path}/{name.removesuffix('/.zarray')}".strip("/"))


def _check_node(values: Any, where: str, depth: int) -> None:
    if depth > _MOST_DEPTH or not isinstance(values, dict):
        raise InputFileError(f"{where}: expected metadata of a Zarr store, got other content; fetch it again")
    consolidated = values.get("consolidated_metadata")
    for inner in (consolidated, values.get("metadata")):
        if isinstance(inner, dict) and inner is consolidated:
            _check_node(inner, where, depth + 1)
        elif isinstance(inner, dict):
            for name, node in inner.items():
                if isinstance(node, dict):
                    _check_node(node, f"{where}: '{shown(name)}'", depth + 1)
    _check_array(values, where, depth)


def _check_array(values: dict[str, Any], where: str, depth: int) -> None:
    """Check codecs, types and sizes in the metadata of an array."""
    _check_codec(values.get("compressor"), where)
    for key in ("filters", "codecs", "storage_transformers"):
        _check_codecs(values.get(key), where, depth)
    for key, type_of in (("dtype", _is_plain), ("data_type", _is_plain_v3)):
        if key in values and not type_of(values[key], 0):
            raise InputFileError(
                f"{where}: expected a type of numbers, got {shown(values[key])} (objects or unknown): write the store "
                "without this variable"
            )
    for key, known in _PARTS.items():
        part = values.get(key)
        name = part.get("name") if isinstance(part, dict) else part
        if part is not None and name not in known:
            raise InputFileError(f"{where}: expected {key} to be one of {', '.join(sorted(known))}, got {shown(name)}")
    if not _is_value(values.get("fill_value")):
        raise InputFileError(f"{where}: expected a number as fill value, got {shown(values['fill_value'])}")
    _check_chunk(values, where)


def _check_codecs(codecs: Any, where: str, depth: int) -> None:
    """Check a list of codecs, including those within a sharding codec."""
    if codecs is None:
        return
    if not isinstance(codecs, list) or depth > _MOST_DEPTH:
        raise InputFileError(f"{where}: expected a list of codecs, got {shown(codecs)}")
    for codec in codecs:
        _check_codec(codec, where)
        inner = codec.get("configuration") if isinstance(codec, dict) else None
        for key in ("codecs", "index_codecs"):
            if isinstance(inner, dict):
                _check_codecs(inner.get(key), where, depth + 1)


def _check_codec(codec: Any, where: str) -> None:
    """Check that a codec is allowed, under each of its names."""
    if codec is None:
        return
    names = [codec]
    if isinstance(codec, dict):
        inner = codec.get("configuration")
        names = [codec[key] for key in ("id", "name") if key in codec] or [codec]
        names += [inner["id"]] if isinstance(inner, dict) and "id" in inner else []
    for name in names:
        if not isinstance(name, str) or name.removeprefix("numcodecs.") not in _CODECS:
            raise InputFileError(
                f"{where}: codec {shown(name)} is refused because it is unknown or may run code; expected blosc, zstd, "
                "gzip, zlib, lz4, bz2, lzma or a usual filter: write the store again with one of these"
            )
    if any(name.removeprefix("numcodecs.") == "shuffle" for name in names) and isinstance(codec, dict):
        inner = codec.get("configuration")
        for held in (codec, inner if isinstance(inner, dict) else {}):
            size = held.get("elementsize", 1)
            if type(size) is not int or not 1 <= size <= _MOST_ELEMENT:
                raise InputFileError(
                    f"{where}: expected elementsize of shuffle from 1 to {_MOST_ELEMENT}, got {shown(size)}; write the "
                    "store again"
                )


def _is_plain(kind: Any, depth: int) -> bool:
    """Return whether a type of version 2 is one of numbers, texts of a fixed length, or records of them."""
    if isinstance(kind, str):
        return _TYPE.fullmatch(kind) is not None
    records = isinstance(kind, list) and bool(kind) and depth < _MOST_DEPTH
    return records and all(isinstance(f, list) and len(f) in (2, 3) and _is_plain(f[1], depth + 1) for f in kind)


def _is_plain_v3(kind: Any, depth: int) -> bool:
    """Return whether a type of version 3 is one of numbers or of a fixed length."""
    if isinstance(kind, str):
        return _TYPES.fullmatch(kind) is not None or kind in _TYPES_BY_NAME
    if not isinstance(kind, dict) or depth >= _MOST_DEPTH:
        return False
    inner = kind.get("configuration")
    fields = inner.get("fields", []) if isinstance(inner, dict) else []
    if not isinstance(fields, list):
        return False
    kinds = [
        f[1] if isinstance(f, list) and len(f) == 2 else f.get("data_type") if isinstance(f, dict) else None
        for f in fields
    ]
    return kind.get("name") in _TYPES_BY_NAME and all(_is_plain_v3(inner, depth + 1) for inner in kinds)


def _is_value(value: Any) -> bool:
    """Return whether a fill value is a number, a short text for one, or a few numbers."""
    if isinstance(value, list):
        return len(value) <= _MOST_FILL and all(not isinstance(v, list | dict) and _is_value(v) for v in value)
    return (
        value is None or isinstance(value, bool | int | float) or (isinstance(value, str) and len(value) <= _MOST_FILL)
    )


def _check_chunk(values: dict[str, Any], where: str) -> None:
    """Check that a chunk fits into memory, at eight bytes per value."""
    grid = values.get("chunk_grid")
    inner = grid.get("configuration") if isinstance(grid, dict) else None
    shape = inner.get("chunk_shape") if isinstance(inner, dict) else values.get("chunks")
    if isinstance(shape, list):
        if not all(isinstance(n, int) and n >= 0 for n in shape):
            raise InputFileError(f"{where}: expected integers as the shape of chunks, got {shown(shape)}")
        check_memory(8 * math.prod(shape), where)
    whole = values.get("shape")
    if isinstance(whole, list) and len(whole) == 1 and isinstance(whole[0], int):  # coordinates are read at once
        check_memory(8 * whole[0], where)
