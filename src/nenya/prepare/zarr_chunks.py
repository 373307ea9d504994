"""The unpacked size of a compressed chunk of a Zarr store, found without unpacking more than it should.

The codecs of Zarr unpack whatever a stream holds: a few kilobytes may fill all memory.
"""

import bz2
import gzip
import io
import lzma
import math
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any

import numpy as np

from nenya.errors import InputFileError

_PACKING = {"zlib", "gzip", "bz2", "lzma", "blosc", "zstd", "lz4"}
_SAME_SIZE = {"bytes", "transpose", "endian", "shuffle", "crc32c", "", *_PACKING}
_SLACK = 4096  # bytes allowed beyond those of the values
_FILTERED = 8  # factor on the bytes of the values that a chunk may take between two codecs
_ZSTD_BLOCK = 2**17  # largest number of bytes in a block of Zstandard
_PIECE = 2**20
_BLOSC_HEAD = 16  # bytes
_PLACE = 16  # bytes of the place of a chunk in a shard: its first byte and its number of bytes
_NO_CHUNK = 2**64 - 1


@dataclass(frozen=True)
class Packing:
    """The compression of the chunks of an array.

    Attributes:
        codec: name of the last compressing codec, None if there is none.
        most: largest number of bytes of an unpacked chunk; None without compression.
        tail: bytes of a checksum after the compressed ones.
        shards: of an array with chunks inside chunks, None for others.
    """

    codec: str | None
    most: int | None
    tail: int = 0
    shards: "Shards | None" = None


@dataclass(frozen=True)
class Shards:
    """The chunks within a chunk.

    Attributes:
        count: their number.
        index_bytes: of the index of their places.
        index_first: whether the index is at the start, not at the end.
        inner: their compression.
    """

    count: int
    index_bytes: int
    index_first: bool
    inner: Packing


def packing_of(values: dict[str, Any], where: str) -> Packing | None:
    """Return the compression of an array, None for metadata of another kind.

    Args:
        values: its metadata, of version 2 or 3, checked.
        where: its place, for errors.

    Raises:
        InputFileError: Its chunks are compressed twice, or hold chunks in an unusual way.
    """
    grid = values.get("chunk_grid")
    inner = grid.get("configuration") if isinstance(grid, dict) else None
    shape = inner.get("chunk_shape") if isinstance(inner, dict) else values.get("chunks")
    if not isinstance(shape, list):
        return None
    codecs = [*(values.get("codecs") or values.get("filters") or ()), values.get("compressor")]
    if any(isinstance(codec, dict) and {"id", "name"} <= codec.keys() for codec in codecs):
        raise InputFileError(f"{where}: expected codecs of one name, got id and name; write the store again")
    names = list(map(_name, codecs))
    if "sharding_indexed" in names:
        return Packing(None, None, shards=_shards_of(values, shape, where))
    place = next((number for number, name in enumerate(names) if name in _PACKING), None)
    if place is None:
        return Packing(None, None)
    behind = [name for name in names[place + 1 :] if name]
    if behind not in ([], ["crc32c"]):
        raise InputFileError(
            f"{where}: expected one compressing codec, got {names[place]} followed by {', '.join(behind)}: write the "
            "store again with one"
        )
    most = math.prod(shape) * _itemsize(values.get("dtype", values.get("data_type")))
    return Packing(names[place], most * (1 if {*names} <= _SAME_SIZE else _FILTERED) + _SLACK, 4 * len(behind))


def _shards_of(values: dict[str, Any], shape: list[int], where: str) -> Shards:
    """Return the chunks within the chunks (shape) of an array.

    Raises:
        InputFileError: They are not described as usual; others could not be checked.
    """
    codecs: list[Any] = values.get("codecs") or []
    inner = codecs[0].get("configuration") if len(codecs) == 1 and isinstance(codecs[0], dict) else None
    inner = inner if isinstance(inner, dict) else {}
    sides, location = inner.get("chunk_shape"), inner.get("index_location", "end")
    index = inner.get("index_codecs") or [{}]
    order = index[0].get("configuration") if isinstance(index[0], dict) else None
    names = list(map(_name, index))
    packed = list(map(_name, inner.get("codecs") or ()))
    if (
        not isinstance(sides, list)
        or len(sides) != len(shape)
        or not all(type(n) is int and n > 0 and side % n == 0 for n, side in zip(sides, shape, strict=True))
        or names not in (["bytes"], ["bytes", "crc32c"])
        or order != {"endian": "little"}
        or location not in ("start", "end")
        or not packed
        or "sharding_indexed" in packed
    ):
        raise InputFileError(
            f"{where}: expected shards with one level of chunks and an index of bytes and crc32c, got others; write "
            "the store again without shards"
        )
    packing = packing_of({"chunks": sides, "codecs": inner["codecs"], "data_type": values.get("data_type")}, where)
    assert packing is not None
    count = math.prod(shape) // math.prod(sides)
    return Shards(count, _PLACE * count + 4 * (len(names) - 1), location == "start", packing)


def _name(codec: Any) -> str:
    name = codec.get("id") or codec.get("name") if isinstance(codec, dict) else codec
    return str(name or "").removeprefix("numcodecs.")


def _itemsize(kind: Any) -> int:
    """Return the bytes of a value, more than enough for those of an unusual type."""
    if isinstance(kind, str) and re.fullmatch(r"r\d{1,9}", kind):
        return -(-int(kind[1:]) // 8)
    try:
        return np.dtype([tuple(f) for f in kind] if isinstance(kind, list) else kind).itemsize
    except (TypeError, ValueError):
        return 1024


def check_packed(content: bytes, packing: Packing, where: str) -> None:
    """Check that a chunk unpacks to no more bytes than its values take.

    Raises:
        InputFileError: It unpacks to more, or is damaged.
    """
    if packing.shards is not None:
        _check_shard(content, packing.shards, where)
    if packing.codec is None or packing.most is None:
        return
    body = content[: len(content) - packing.tail]
    try:
        size = _SIZES[packing.codec](body, packing.most)
    except (OSError, EOFError, ValueError, IndexError, zlib.error, lzma.LZMAError) as error:
        raise InputFileError(f"{where}: damaged chunk ({packing.codec}: {error}); fetch the store again") from error
    if size > packing.most:
        raise InputFileError(
            f"{where}: a chunk of {len(content)} bytes unpacks to more than the {packing.most} bytes of its values: "
            "it is damaged, or made to fill all memory"
        )


def _check_shard(content: bytes, shards: Shards, where: str) -> None:
    """Check each chunk within a chunk.

    Raises:
        InputFileError: See `check_packed`.
    """
    advice = "it is truncated or damaged: fetch the store again"
    if len(content) < shards.index_bytes:
        raise InputFileError(f"{where}: a shard of {len(content)} bytes, fewer than those of its index; {advice}")
    start = 0 if shards.index_first else len(content) - shards.index_bytes
    places = np.frombuffer(content, dtype="<u8", count=2 * shards.count, offset=start).reshape(-1, 2)
    longest = len(content) if shards.inner.most is None else 2 * shards.inner.most
    for number in np.flatnonzero((places != _NO_CHUNK).any(axis=1)):
        first, length = map(int, places[number])
        if first + length > len(content) or not 0 < length <= longest:
            raise InputFileError(f"{where}: chunk {number} lies outside its shard, or is too long; {advice}")
        if shards.inner.codec is not None:
            check_packed(content[first : first + length], shards.inner, f"{where}, chunk {number}")


def _zlib(content: bytes, most: int) -> int:
    """Return the unpacked bytes of a zlib stream, or a number above `most`."""
    machine, size = zlib.decompressobj(), 0
    while content and size <= most:
        size += len(machine.decompress(content, _PIECE))
        content = machine.unconsumed_tail
    return size


def _streamed(open_stream: Callable[[IO[bytes]], Any]) -> Callable[[bytes, int], int]:
    """Return a function for the unpacked bytes of concatenated streams, or a number above `most`."""

    def size_of(content: bytes, most: int) -> int:
        size = 0
        with open_stream(io.BytesIO(content)) as stream:
            while size <= most and (piece := stream.read(_PIECE)):
                size += len(piece)
        return size

    return size_of


def _lzma(content: bytes, most: int) -> int:
    """See `_zlib`; a stream without a header, which only its settings can describe, is refused."""
    if content[:6] != b"\xfd7zXZ\x00" and content[:1] != b"]":
        raise ValueError("a stream without a header")
    return _streamed(lzma.LZMAFile)(content, most)


def _blosc(content: bytes, most: int) -> int:
    """Return the bytes that a Blosc chunk says it holds; the library reads as many packed ones as it says, unasked."""
    if len(content) < _BLOSC_HEAD or int.from_bytes(content[12:16], "little") != len(content):
        raise EOFError(f"its {len(content)} bytes are not those that it says it has")
    return int.from_bytes(content[4:8], "little")


def _lz4(content: bytes, most: int) -> int:
    return int.from_bytes(content[:4], "little")


def _zstd(content: bytes, most: int) -> int:
    """Return an upper bound of the bytes in Zstandard frames, from their headers (RFC 8878, 3.1.1)."""
    place, size = 0, 0
    while place < len(content):
        if content[place : place + 4] != b"\x28\xb5\x2f\xfd":
            raise ValueError("not a Zstandard frame")
        head = content[place + 4]
        single, width = head >> 5 & 1, (head >> 5 & 1, 2, 4, 8)[head >> 6]
        start = place + 5 + (not single) + (0, 1, 2, 4)[head & 3]
        told = int.from_bytes(content[start : start + width], "little") + 256 * (width == 2)
        place, found = _zstd_blocks(content, start + width)
        place += 4 * (head >> 2 & 1)
        size += told if width else max(0, found - _ZSTD_BLOCK) // _FILTERED  # blocks may have any smaller size
        if size > most:
            break
    return size


def _zstd_blocks(content: bytes, place: int) -> tuple[int, int]:
    """Return the end of the blocks of a frame, and an upper bound of their bytes."""
    size, last = 0, False
    while not last:
        if place + 3 > len(content):
            raise EOFError("it ends early")
        head = int.from_bytes(content[place : place + 3], "little")
        last, kind, length = bool(head & 1), head >> 1 & 3, head >> 3
        size += _ZSTD_BLOCK if kind == 2 else length
        place += 3 + (1 if kind == 1 else length)
    return place, size


_SIZES: dict[str, Callable[[bytes, int], int]] = {
    "zlib": _zlib,
    "gzip": _streamed(lambda raw: gzip.GzipFile(fileobj=raw)),
    "bz2": _streamed(bz2.BZ2File),
    "lzma": _lzma,
    "blosc": _blosc,
    "lz4": _lz4,
    "zstd": _zstd,
}
