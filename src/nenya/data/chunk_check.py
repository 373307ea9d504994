"""Check that a chunk is complete before HDF5 unpacks it.

HDF5 does not compare the length of a filter's output with that of the chunk: missing bytes are then whatever was in
memory. So each chunk is unpacked here first, or, if only HDF5 can unpack it, its length is read from its stream.
"""

from collections.abc import Callable, Sequence
from typing import Any

import h5py

from nenya.data.filters import FLETCHER32, GZIP, LZF, SHUFFLE, SZIP, inflate, undo_filters, without_checksum
from nenya.data.szip import check_szip
from nenya.errors import InputFileError
from nenya.storage.texts import shown

Filter = tuple[int, tuple[int, ...]]
"""HDF5's filter number and its parameters."""

PLAIN = {GZIP, SHUFFLE, FLETCHER32, LZF}
SCALEOFFSET = h5py.h5z.FILTER_SCALEOFFSET
_BLOSC, _LZ4, _BITSHUFFLE, _ZSTD = 32001, 32004, 32008, 32015
_FIRST_PLUGIN = 256  # filters from this number on are plugins of HDF5
_NAMES = {
    GZIP: "gzip",
    LZF: "lzf",
    SZIP: "szip",
    SHUFFLE: "shuffle",
    FLETCHER32: "fletcher32",
    SCALEOFFSET: "scaleoffset",
    h5py.h5z.FILTER_NBIT: "nbit",
}
_SLACK = 4096  # bytes of headers that a filter may add to the data
_SCALEOFFSET_HEAD = 21  # bytes
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


def filters_of(creation: Any) -> list[Filter]:
    """Return the filters of a data set in the order of writing."""
    found = (creation.get_filter(number) for number in range(creation.get_nfilters()))
    return [(int(code), tuple(values)) for code, _, values, _ in found]


def check_filters(filters: Sequence[Filter], where: str) -> None:
    """Check that missing bytes in the chunks of a data set would be detected.

    Raises:
        InputFileError: They are compressed with an unsupported filter.
    """
    unknown = [code for code, _ in filters if code not in PLAIN and code not in _KNOWN]
    if unknown:
        name = {h5py.h5z.FILTER_NBIT: "nbit, which is unsafe for damaged chunks"}.get(
            unknown[0], f"filter {unknown[0]}"
        )
        raise InputFileError(
            f"{where} is compressed with {name}; expected gzip, lzf, szip, scaleoffset, blosc, lz4, zstd or "
            "bitshuffle: "
            "repack the file with gzip (h5repack -f GZIP=4)"
        )


def filter_names(creation: Any, where: str) -> tuple[str, ...]:
    """Return the names of a data set's filters in the order of writing, after checking that all are available.

    Args:
        creation: its properties.
        where: file and name, for errors.

    Raises:
        InputFileError: A filter is not installed or not allowed; plugins of the latter are not loaded.
    """
    filters = [creation.get_filter(number) for number in range(creation.get_nfilters())]
    names = tuple(_NAMES.get(code, f"filter {code}") for code, *_ in filters)
    missing = [
        f"{name} ({shown(text.decode('utf-8', 'replace'))})"
        for name, (code, _, _, text) in zip(names, filters, strict=True)
        if not (code < _FIRST_PLUGIN or code in PLAIN or code in _KNOWN) or not h5py.h5z.filter_avail(code)
    ]
    if missing:
        raise InputFileError(
            f"{where} is compressed with {', '.join(missing)}, which this HDF5 library cannot unpack; "
            "repack the file with gzip, or install the plugin (pip install hdf5plugin)"
        )
    return names


def check_chunk(packed: bytes, filters: Sequence[Filter], mask: int, size: int, itemsize: int) -> None:
    """Check that a chunk unpacks to its declared size.

    Args:
        packed: as stored in the file.
        filters: in the order of writing, each allowed by `check_filters`.
        mask: bit i set: filter i was skipped for this chunk.
        size: bytes of the chunk unpacked.
        itemsize: bytes of a value in the file.

    Raises:
        ValueError: It is damaged, or does not unpack to that size.
    """
    used = [one for number, one in enumerate(filters) if not mask >> number & 1]
    place = next((i for i in reversed(range(len(used))) if used[i][0] not in PLAIN), None)
    if place is None:
        width = next((values[0] for code, values in used if code == SHUFFLE and values and values[0] > 0), itemsize)
        undo_filters(packed, [code for code, _ in used], 0, size, width)
        return
    code, values = used[place]
    inner = [code for code, _ in used[:place]]
    if any(other not in (SHUFFLE, FLETCHER32) for other in inner) or (FLETCHER32 in inner and code != SZIP):
        raise ValueError("a chunk has incompatible filters")
    length = size + 4 * inner.count(FLETCHER32)
    data: Any = packed
    for other, _ in reversed(used[place + 1 :]):
        if other == GZIP:
            data = inflate(data, length + length // 8 + _SLACK, exact=False)
        elif other == FLETCHER32:
            data = without_checksum(data)
        else:
            raise ValueError("a chunk has incompatible filters")
    _KNOWN[code](bytes(data), values, length)


def _short(length: int) -> ValueError:
    return ValueError(f"a compressed chunk does not hold the expected {length} bytes")


def _check_scaleoffset(data: bytes, values: tuple[int, ...], length: int) -> None:
    """Check a chunk of HDF5's scale-offset filter: bits of a value (4 bytes), an offset, and the values' bits."""
    count, size = values[2:5:2] if len(values) > 4 else (0, 0)
    bits = int.from_bytes(data[:4], "little")
    if not size or count * size != length or bits > 8 * size:
        raise _short(length)
    if len(data) < _SCALEOFFSET_HEAD + -(-count * bits // 8) * (bits > 0):
        raise _short(length)


def _check_blosc(data: bytes, values: tuple[int, ...], length: int) -> None:
    """Check the head of a Blosc chunk: four bytes, then bytes unpacked, of a block, and packed."""
    if int.from_bytes(data[4:8], "little") != length or int.from_bytes(data[12:16], "little") != len(data):
        raise _short(length)


def _check_lz4(data: bytes, values: tuple[int, ...], length: int) -> None:
    if len(data) < 12 or int.from_bytes(data[:8], "big") != length:
        raise _short(length)


def _check_bitshuffle(data: bytes, values: tuple[int, ...], length: int) -> None:
    """Check a bitshuffle chunk, which is compressed in addition if its fifth parameter is not 0."""
    packed = len(values) > 4 and values[4]
    if (int.from_bytes(data[:8], "big") if packed else len(data)) != length:
        raise _short(length)


def _check_zstd(data: bytes, values: tuple[int, ...], length: int) -> None:
    """Check the head of a Zstandard frame (RFC 8878, 3.1.1)."""
    if data[:4] != _ZSTD_MAGIC or len(data) < 6:
        raise _short(length)
    kind, single = data[4] >> 6, data[4] >> 5 & 1
    place = 5 + (not single) + (0, 1, 2, 4)[data[4] & 3]
    width = (1 if single else 0, 2, 4, 8)[kind]
    if not width or int.from_bytes(data[place : place + width], "little") + 256 * (width == 2) != length:
        raise _short(length)


_KNOWN: dict[int, Callable[[bytes, tuple[int, ...], int], None]] = {
    SZIP: check_szip,
    SCALEOFFSET: _check_scaleoffset,
    _BLOSC: _check_blosc,
    _LZ4: _check_lz4,
    _BITSHUFFLE: _check_bitshuffle,
    _ZSTD: _check_zstd,
}
