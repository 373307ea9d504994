"""Decompression of chunks of an HDF5 file, with a check of their length against the declared one."""

import ctypes
import functools
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any

import deflate
import h5py
import numpy as np
from numpy.typing import NDArray

GZIP, SHUFFLE, FLETCHER32, LZF, SZIP = (
    h5py.h5z.FILTER_DEFLATE,
    h5py.h5z.FILTER_SHUFFLE,
    h5py.h5z.FILTER_FLETCHER32,
    h5py.h5z.FILTER_LZF,
    h5py.h5z.FILTER_SZIP,
)
_MOST_LZF = 2**22  # bytes of a chunk that HDF5's LZF filter may read unchecked; its memory use may grow without limit
_lzf_lock = threading.Lock()


def undo_filters(packed: bytes, codes: Sequence[int], mask: int, size: int, itemsize: int) -> Any:
    """Unpack a chunk; memory use is bounded by about `size` bytes.

    Args:
        packed: as stored in the file.
        codes: HDF5's numbers of the filters, in the order of writing.
        mask: bit i set: filter i was skipped for this chunk.
        size: bytes of the chunk unpacked.
        itemsize: bytes of a pixel.

    Raises:
        ValueError: It is damaged, or does not unpack to that size.
    """
    used = [code for number, code in enumerate(codes) if not mask >> number & 1]
    data: Any = packed
    for place in reversed(range(len(used))):
        length = size + 4 * used[:place].count(FLETCHER32)
        if used[place] == GZIP:
            data = inflate(data, length)
        elif used[place] == LZF:
            data = _unpack_lzf(data, length)
        elif used[place] == FLETCHER32:
            data = without_checksum(data)
        else:
            data = _unshuffle(data, itemsize)
    if len(data) != size:
        raise ValueError(f"expected a chunk of {size} bytes, got {len(data)}")
    return data


def pack_gzip(chunk: NDArray[Any], level: int, *, shuffle: bool) -> bytes:
    """Compress a chunk as HDF5's filters do; the interpreter lock is released.

    Args:
        chunk: C-contiguous, of any type.
        level: of deflate.
        shuffle: whether the first bytes of all values come first, then the second ones, and so on.
    """
    raw = chunk.reshape(-1).view(np.uint8)
    if shuffle:
        raw = np.concatenate([raw[byte :: chunk.itemsize] for byte in range(chunk.itemsize)])
    return bytes(deflate.zlib_compress(raw, level))


def inflate(packed: Any, size: int, *, exact: bool = True) -> Any:
    """Unpack deflate to `size` bytes; the interpreter lock is released.

    Args:
        packed: the stream.
        size: of the buffer.
        exact: whether fewer bytes are an error.

    Raises:
        ValueError: The stream is damaged, or holds more bytes, or fewer.
    """
    wrong = f"a compressed chunk is damaged, or does not hold the expected {size} bytes"
    try:
        data = deflate.zlib_decompress(packed, size)
    except deflate.DeflateError as error:
        raise ValueError(wrong) from error
    if len(data) != size and exact:
        raise ValueError(wrong)
    return data


def _unpack_lzf(packed: Any, size: int) -> NDArray[np.uint8]:
    """Unpack LZF to exactly `size` bytes; the interpreter lock is released."""
    unpack = _lzf_function()
    if unpack is None:
        return unpack_lzf_by_hdf5(packed, size)
    data = np.zeros(size, np.uint8)
    stream = bytes(packed)
    if unpack(stream, len(stream), data.ctypes.data, size) != size:
        raise ValueError(f"a compressed chunk does not hold the expected {size} bytes")
    return data


@functools.cache
def _lzf_function() -> Callable[[bytes, int, int, int], int] | None:
    """Return the function (stream, its length, buffer, its length) -> bytes unpacked, from h5py's library.

    None if h5py is built without exporting it.
    """
    try:
        found = ctypes.CDLL(h5py.h5z.__file__).lzf_decompress
    except (OSError, AttributeError):
        return None
    found.restype = ctypes.c_uint
    found.argtypes = [ctypes.c_char_p, ctypes.c_uint, ctypes.c_void_p, ctypes.c_uint]
    sample, out = b"\x02abc\xe0\x00\x02", ctypes.create_string_buffer(12)
    good = found(sample, len(sample), ctypes.addressof(out), 12) == 12 and out.raw == b"abcabcabcabc"
    return found if good else None


def unpack_lzf_by_hdf5(packed: Any, size: int) -> NDArray[np.uint8]:
    """Unpack LZF through the HDF5 library, one chunk at a time; HDF5 fills missing bytes with uninitialised memory.

    So a marker is appended to the compressed bytes as a run of literals: it must appear directly after the chunk's
    own bytes.
    """
    if size > _MOST_LZF and lzf_length(packed) != size:
        raise ValueError(f"a compressed chunk does not hold the expected {size} bytes")
    mark = os.urandom(16)
    with _lzf_lock:
        dataset = _lzf_dataset(size + len(mark), os.getpid())
        dataset.id.write_direct_chunk((0,), bytes(packed) + bytes([len(mark) - 1]) + mark)
        data: NDArray[np.uint8] = dataset[()]
    if data[size:].tobytes() != mark:
        raise ValueError(f"a compressed chunk does not hold the expected {size} bytes")
    return data[:size]


@functools.lru_cache(maxsize=2)
def _lzf_dataset(size: int, _process: int) -> Any:
    """Return a data set in memory of one LZF chunk."""
    file = h5py.File(f"lzf-{os.urandom(8).hex()}", "w", driver="core", backing_store=False, rdcc_nbytes=0)
    return file.create_dataset("chunk", (size,), np.uint8, chunks=(size,), compression="lzf")


def lzf_length(packed: Any) -> int:
    """Return how many bytes an LZF stream unpacks to (runs of literal bytes, and copies of what came before)."""
    i, length = 0, 0
    while i < len(packed):
        control = packed[i]
        if control < 32:
            i, length = i + control + 2, length + control + 1
        elif control < 224:
            i, length = i + 2, length + (control >> 5) + 2
        else:
            length += 9 + (packed[i + 1] if i + 1 < len(packed) else 0)
            i += 3
    return length


def without_checksum(data: Any) -> Any:
    """Remove the Fletcher checksum after comparing it with the data (sums of 16-bit words modulo 65535)."""
    body, stored = memoryview(data)[:-4], int.from_bytes(memoryview(data)[-4:], "little")
    words = np.frombuffer(bytes(body) + b"\0" if len(body) % 2 else body, ">u2")
    first = second = 0
    for start in range(0, len(words), 65536):
        block = words[start : start + 65536].astype(np.uint64)
        second += len(block) * first + int((block * np.arange(len(block), 0, -1, dtype=np.uint64)).sum())
        first += int(block.sum())
    if len(data) < 4 or (first - (stored & 0xFFFF)) % 65535 or (second - (stored >> 16)) % 65535:
        raise ValueError("a chunk does not match its checksum")
    return body


def _unshuffle(data: Any, itemsize: int) -> Any:
    raw = np.frombuffer(data, np.uint8)
    if len(raw) % itemsize:
        raise ValueError(f"a chunk of {len(raw)} bytes cannot hold pixels of {itemsize}")
    planes, whole = raw.reshape(itemsize, -1), np.zeros_like(raw)
    for byte, plane in enumerate(planes):
        whole[byte::itemsize] = plane
    return whole
