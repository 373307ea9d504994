"""Number of samples in a szip stream: HDF5 returns uninitialised memory where a stream is truncated.

The stream is a sequence of blocks (CCSDS 121.0-B, "Lossless Data Compression"); their lengths are followed, and the
samples are not computed. A block that is longer than the samples themselves is an error: no encoder writes one, and the
decoder's fast paths rely on that.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_NEAREST_NEIGHBOUR = 32  # option: each scan line begins with an uncoded sample
_REST_OF_SEGMENT = 5  # code of zero blocks up to the end of the segment
_SEGMENT = 64  # blocks
_WINDOW = 2**19  # bytes unpacked together
_ENDS = "a compressed chunk is truncated or damaged"


@dataclass
class _Bits:
    """The bits of a stream, and the positions of its ones.

    Attributes:
        stream: the bytes.
        place: index of the next bit.
    """

    stream: bytes
    place: int = 0

    def __post_init__(self) -> None:
        self.end = 8 * len(self.stream)
        self._load(0)

    def _load(self, first: int) -> None:
        """Find the ones from a byte on."""
        bits = np.unpackbits(np.frombuffer(self.stream, np.uint8, min(_WINDOW, len(self.stream) - first), first))
        self.first, self.stop = 8 * first, 8 * first + len(bits)
        self.ones: NDArray[np.intp] = np.flatnonzero(bits)
        self.before = np.concatenate([[0], np.cumsum(bits, dtype=np.int32)])

    def take(self, count: int) -> int:
        """Return the value of the next bits, at most 8."""
        byte, self.place = self.place >> 3, self.place + count
        if self.place > self.end:
            raise ValueError(_ENDS)
        return int.from_bytes(self.stream[byte : byte + 2].ljust(2, b"\0"), "big") >> (16 - self.place + 8 * byte) & (
            (1 << count) - 1
        )

    def skip(self, count: int) -> None:
        """Skip bits."""
        self.place += count
        if self.place > self.end:
            raise ValueError(_ENDS)

    def skip_ones(self, count: int, most: int) -> int:
        """Skip this many ones and the zeros before them; return the number of zeros, within at most `most` bits."""
        start = self.place
        if not count:
            return 0
        if start + most > self.stop and self.stop < self.end:
            self._load(start >> 3)
        if start >= self.stop:
            raise ValueError(_ENDS)
        last = int(self.before[start - self.first]) + count - 1
        if last >= len(self.ones):
            raise ValueError(_ENDS)
        self.place = self.first + int(self.ones[last]) + 1
        if self.place - start > most:
            raise ValueError(_ENDS)
        return self.place - start - count


def check_szip(packed: bytes, values: tuple[int, ...], size: int) -> None:
    """Check that a chunk compressed by HDF5's szip filter is complete.

    Args:
        packed: as stored in the file: length unpacked, 4 bytes, and the stream.
        values: of the filter: options, pixels of a block, bits of a pixel, pixels of a scan line.
        size: bytes of the chunk unpacked.

    Raises:
        ValueError: It is not.
    """
    if len(values) < 4 or len(packed) < 4 or int.from_bytes(packed[:4], "little") != size:
        raise ValueError(f"a compressed chunk does not hold the expected {size} bytes")
    options, block, bits, line = values[:4]
    word = bits // 8 if bits in (32, 64) else 1
    bits = 8 if word > 1 else bits
    sample = 1 if bits <= 8 else 2 if bits <= 16 else 4
    if not 0 < bits <= 32 or not 0 < block <= 64 or block % 2 or not 0 < line <= 2**20 or size % (word * sample):
        raise ValueError("a compressed chunk has impossible parameters")
    padded, last = -(-line // block) * block, size // sample - 1
    wanted = last // line * padded + last % line + 1
    _follow(_Bits(bytes(packed[4:])), wanted, block, bits, padded, referenced=bool(options & _NEAREST_NEIGHBOUR))


def _follow(stream: _Bits, wanted: int, block: int, bits: int, line: int, *, referenced: bool) -> None:
    """Follow the blocks up to the requested number of samples.

    Args:
        stream: the bits.
        wanted: number of samples.
        block: samples of a block.
        bits: of a sample.
        line: samples of a scan line, complete blocks.
        referenced: whether the first sample of each line is stored uncoded.
    """
    code = 3 if bits <= 8 else 4 if bits <= 16 else 5
    most, done = block * bits, 0
    while done < wanted:
        first = referenced and done % line == 0
        kind = stream.take(code)
        start, blocks = stream.place, 1
        if kind == (1 << code) - 1:
            stream.skip(most)
        elif kind:
            stream.skip(bits * first)
            stream.skip_ones(block - first, most)
            stream.skip((kind - 1) * (block - first))
        else:
            pairs = stream.take(1)
            stream.skip(bits * first)
            if pairs:
                stream.skip_ones(block // 2, most)
            else:
                blocks = _zero_blocks(stream.skip_ones(1, max(most, 72)) + 1, done % line // block, line // block)
        if blocks == 1 and stream.place - start > most + 1 + bits * first + 8:
            raise ValueError(_ENDS)
        done += blocks * block


def _zero_blocks(told: int, place: int, blocks: int) -> int:
    """Return how many blocks of zeros a code stands for, at a place among the blocks of a line."""
    count = told - (told > _REST_OF_SEGMENT)
    if told == _REST_OF_SEGMENT:
        count = min(blocks - place, _SEGMENT - place % _SEGMENT)
    if count > blocks - place:
        raise ValueError("a compressed chunk has more zeros than fit into its line")
    return count
