"""Storage of the pixels of a data set, and reading them.

Letters: N cutouts in a data set, n of them read at once, H rows and W columns of pixels.
"""

import errno
import itertools
import math
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nenya.data.filters import undo_filters

Floats = NDArray[np.floating[Any]]
_Job = tuple[Floats, int, int, int, int]  # of `ChunkedPixels._place`
Spread = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]  # `map`, or that of a pool of threads
_KEPT = 2**28  # bytes of unpacked cutouts kept for the next read, if a read uses a part of a chunk
_PIECE = 2**23  # bytes read at once if they are to be converted


class Pixels(Protocol):
    """The pixels of a data set, in any storage."""

    def read_into(self, out: Floats, start: int, spread: Spread = map) -> None:
        """Read the cutouts from `start` on into `out` (n, H, W), float32 or the stored type.

        Raises:
            OSError: They cannot be read.
            ValueError: They cannot be unpacked.
        """


@dataclass
class FlatPixels:
    """Bytes in the order of the pixels, in one file or in several.

    Attributes:
        segments: of each part its file, first byte and number of bytes.
        kind: the stored type.
        items: pixels of a cutout.
        raw: returns the descriptor of an open file.
    """

    segments: list[tuple[Path, int, int]]
    kind: np.dtype[Any]
    items: int
    raw: Callable[[Path], int]

    def read_into(self, out: Floats, start: int, spread: Spread = map) -> None:
        """See `Pixels`."""
        if self.kind == out.dtype and out.flags.c_contiguous:  # limited by memory speed: threads would not help
            self._fill(out.reshape(-1).data.cast("B"), start * self.items * self.kind.itemsize)
            return
        step = max(1, _PIECE // (self.items * self.kind.itemsize))
        pieces = ((out[first : first + step], start + first) for first in range(0, len(out), step))
        for _ in spread(self._convert, pieces):
            pass

    def _convert(self, piece: tuple[Floats, int]) -> None:
        """Read the cutouts of a piece: target and first row."""
        out, start = piece
        stored = np.empty(out.shape, self.kind)
        self._fill(stored.reshape(-1).view(np.uint8).data, start * self.items * self.kind.itemsize)
        convert(out, stored)

    def _fill(self, view: memoryview, offset: int) -> None:
        """Read bytes from `offset` of the data on."""
        for path, first, size in self.segments:
            length = min(len(view), size - offset)
            if length > 0:
                read_exactly(self.raw(path), view[:length], first + offset)
                view, offset = view[length:], 0
            else:
                offset -= size
        if len(view):
            raise OSError(errno.EIO, "the data are truncated")


@dataclass
class HeaderPixels:
    """A small data set stored in the file's header."""

    stored: NDArray[Any]

    def read_into(self, out: Floats, start: int, spread: Spread = map) -> None:
        """See `Pixels`."""
        convert(out, self.stored[start : start + len(out)].reshape(out.shape))


@dataclass
class LibraryPixels:
    """Chunks compressed with a filter that only the HDF5 library has."""

    dataset: Any

    def read_into(self, out: Floats, start: int, spread: Spread = map) -> None:
        """See `Pixels`."""
        step, *pixels = self.dataset.chunks
        rows = range(start // step * step, start + len(out), step)
        steps = (range(0, size, chunk) for size, chunk in zip(self.dataset.shape[1:], pixels, strict=True))
        for corner in itertools.product(rows, *steps):
            if self.dataset.id.get_chunk_info_by_coord(corner).byte_offset is None:  # HDF5 would return fill values
                raise OSError(errno.EIO, f"the chunk at {corner} is not found")
        convert(out, self.dataset[start : start + len(out)].reshape(out.shape))


@dataclass
class VirtualPixels:
    """Rows of several data sets, one after the other: of each (first row, end, first row in the source, source)."""

    parts: list[tuple[int, int, int, Pixels]]

    def read_into(self, out: Floats, start: int, spread: Spread = map) -> None:
        """See `Pixels`."""
        for low, high, first, source in self.parts:
            begin, end = max(low, start), min(high, start + len(out))
            if begin < end:
                source.read_into(out[begin - start : end - start], first + begin - low, spread)


@dataclass
class ChunkedPixels:
    """Chunks, compressed or not.

    Attributes:
        path: the file.
        shape: (N, 1, H, W) or (N, H, W).
        chunks: shape of a chunk.
        kind: the stored type.
        codes: HDF5's numbers of the filters, in the order of writing.
        table: (chunks, 3) int64, in the order of the grid: first byte (-1: never written), bytes, skipped filters.
        fill: value of chunks that were never written.
        raw: returns the descriptor of an open file.
    """

    path: Path
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    kind: np.dtype[Any]
    codes: tuple[int, ...]
    table: NDArray[np.int64]
    fill: float
    raw: Callable[[Path], int]
    _kept: dict[int, Floats] = field(default_factory=dict, init=False)

    def read_into(self, out: Floats, start: int, spread: Spread = map) -> None:
        """See `Pixels`; if requested rows share a chunk with others, these are kept for the next read."""
        step, rows, stop = self.chunks[0], self.shape[0], start + len(out)
        jobs: list[_Job] = []
        parts, unpacked = [], dict(self._kept)
        for first in range(start // step * step, stop, step):
            low, high, end = max(first, start), min(first + step, stop), min(first + step, rows)
            target = out[low - start : high - start]
            if high - low == end - first or 4 * (end - first) * math.prod(self.shape[1:]) > _KEPT:
                jobs += self._row_jobs(target, first, low - first)
                continue
            if first not in unpacked or unpacked[first].dtype != out.dtype:
                unpacked[first] = np.empty((end - first, *self.shape[-2:]), out.dtype)
                jobs += self._row_jobs(unpacked[first], first, 0)
            parts.append((target, unpacked[first][low - first : high - first]))
            last = first
        for _ in spread(self._place, jobs):
            pass
        for target, kept in parts:
            target[...] = kept
        if parts:
            self._kept = {last: unpacked[last]}

    def _row_jobs(self, target: Floats, first: int, skip: int) -> Iterator[_Job]:
        """Yield the jobs for one row of the grid, skipping `skip` cutouts from its first one, `first`."""
        (*_, height, width), (step, *_, tall, wide) = self.shape, self.chunks
        across = -(-width // wide)
        count = -(-height // tall) * across
        for index in range(count):
            yield target, first // step * count + index, skip, index // across * tall, index % across * wide

    def _place(self, job: _Job) -> None:
        """Unpack a chunk to its position: target, index of the chunk, skipped cutouts, its corner (y, x)."""
        target, number, skip, y, x = job
        part = target[:, y : y + self.chunks[-2], x : x + self.chunks[-1]]
        chunk = self._chunk(number)
        if chunk is None:
            part[...] = self.fill
        else:
            convert(part, chunk[skip : skip + len(part), : part.shape[1], : part.shape[2]])

    def _chunk(self, number: int) -> NDArray[Any] | None:
        """Return a chunk (n, h, w), None if it was never written."""
        offset, size, mask = map(int, self.table[number])
        if offset < 0:
            return None
        packed = os.pread(self.raw(self.path), size, offset)
        if len(packed) < size:
            raise OSError(errno.EIO, "the file is truncated")
        raw = undo_filters(packed, self.codes, mask, math.prod(self.chunks) * self.kind.itemsize, self.kind.itemsize)
        chunk = np.frombuffer(raw, self.kind).reshape(self.chunks)
        return chunk[:, 0] if chunk.ndim == 4 else chunk


def read_exactly(number: int, view: memoryview, offset: int) -> None:
    """Read bytes of an open file into a buffer.

    Raises:
        OSError: The file is too short.
    """
    while len(view):
        count = os.preadv(number, [view], offset)
        if not count:
            raise OSError(errno.EIO, "the file is truncated")
        view, offset = view[count:], offset + count


def check_order(pixels: "Pixels", first: Floats, start: int) -> None:
    """Check that pixels are not plausible only in the other byte order, which one damaged bit of the file can change.

    Args:
        pixels: the pixels from which `first` was read.
        first: a cutout (H, W).
        start: its row.

    Raises:
        ValueError: They are.
    """

    def sensible(values: Floats) -> float:
        sizes = np.abs(values, dtype=np.float64)
        return float(((sizes > 1e-6) & (sizes < 1e6)).mean())

    if isinstance(pixels, FlatPixels | ChunkedPixels) and sensible(first) < 0.5:
        other = np.empty((1, *first.shape), np.float32)
        swapped: Pixels = replace(pixels, kind=pixels.kind.newbyteorder())
        swapped.read_into(other, start)
        if sensible(other) > 0.9:
            raise ValueError("the pixels are plausible only in the other byte order")


def convert(out: Floats, stored: NDArray[Any]) -> None:
    """Copy pixels of any floating-point type; values beyond float32 become infinite."""
    size = out.itemsize
    if stored.dtype == out.dtype and stored.shape == out.shape and out.strides[-1] == stored.strides[-1] == size:
        run = f"V{size * out.shape[-1]}"  # rows of pixels as single items: copied twice as fast
        out.view(run)[...] = stored.view(run)
    else:
        with np.errstate(over="ignore"):
            out[...] = stored
