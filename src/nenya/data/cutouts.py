"""Cutout files: their content, and reading them in blocks.

Letters: N cutouts in a partition, n of them read at once, H rows and W columns of pixels (H = W).

Many cutout files are gzip-compressed with h5py's automatic chunks, which span about a thousand cutouts but
only 4 x 4 pixels: one cutout then touches hundreds of chunks and unpacks 20-300 MB. So such a file is never
read cutout by cutout: blocks follow the chunks (`plan_blocks`), and training unpacks once
(`nenya.data.unpack`).
"""

import contextlib
import hashlib
import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import numpy as np
from numpy.typing import NDArray

from nenya.data.hdf5 import Hdf5File
from nenya.data.hdf5_links import one_line
from nenya.data.hdf5_open import list_datasets
from nenya.data.partition import (
    Partition,
    check_companion,
    chunk_cache,
    describe_partition,
    find_mask,
    find_partitions,
)
from nenya.data.pixels import Floats, Pixels, Spread, check_order
from nenya.errors import InputFileError, NenyaError
from nenya.options.sections import Options
from nenya.storage.texts import shown

PARTITIONS = ("train", "valid")

_PIECE_BYTES = 2**25  # of float32 cutouts yielded at once; their float64 and complex copies need ten times as much


@dataclass(frozen=True)
class CutoutFile:
    """A cutout file that passed every check.

    Attributes:
        path: The file.
        size: Its size in bytes.
        partitions: The requested partitions that it holds, in the order of the request.
        allow_external: Whether links may lead out of its folder.
    """

    path: Path
    size: int
    partitions: dict[str, Partition]
    allow_external: bool = False

    def reader(self, partition: str) -> "CutoutReader":
        """Return a reader of one of its partitions, which detects later changes."""
        reader = CutoutReader(self.path, partition, allow_external=self.allow_external)
        reader._info = self.partitions.get(partition)
        return reader


def inspect_cutouts(
    path: str | os.PathLike[str], partitions: Sequence[str] = PARTITIONS, *, allow_external: bool = False
) -> CutoutFile:
    """Check a cutout file and describe its partitions, without reading a pixel.

    Every link to a partition, its labels and its metadata is followed, and the position of their bytes is looked up:
    missing data are detected now, not after hours.

    Args:
        path: The file.
        partitions: Name or names of data sets to look for; missing ones are skipped.
        allow_external: Whether links, virtual data sets and external storage may lead out of the file's folder.

    Raises:
        InputFileError: The file does not exist or is not HDF5, holds none of the partitions, or one of them does not
            hold square one-channel cutouts of a floating-point type, cannot be unpacked here, is damaged, or lies
            outside the file's folder and that is not allowed.
    """
    path, partitions = Path(path), (partitions,) if isinstance(partitions, str) else partitions
    with Hdf5File(path, allow_external=allow_external) as file:
        try:
            found = find_partitions(file, partitions)
        except InputFileError:
            if _is_latents(file):
                raise InputFileError(
                    f"{path}: expected a cutout file, got a latents file: give the cutout file of these latents"
                ) from None
            raise
        if not found:
            raise InputFileError(
                f"{path}: expected a data set named {' or '.join(partitions)}; the file holds "
                f"{list_datasets(file.file)}. "
                "Name the data sets to use with loader.train_key and loader.valid_key, from Python with partitions="
            )
    return CutoutFile(path=path, size=path.stat().st_size, partitions=found, allow_external=allow_external)


class CutoutReader:
    """Reads cutouts of one partition as float32.

    Construction does not access the disk: the file opens at the first use, once per process, also after a fork or
    in another process to which the reader was pickled.

    Args:
        path: The cutout file.
        partition: Name of the data set.
        allow_external: As of `inspect_cutouts`.
    """

    def __init__(self, path: str | os.PathLike[str], partition: str, *, allow_external: bool = False) -> None:
        self.path = Path(path)
        self.partition = partition
        self.allow_external = allow_external
        self._info: Partition | None = None
        self._file: Hdf5File | None = None
        self._dataset: Any = None
        self._pixels: Pixels | None = None
        self._mask: Pixels | None = None
        self._sensible = False
        self._pid: int | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_file": None, "_dataset": None, "_pixels": None, "_mask": None, "_pid": None}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        return self.info.rows

    @property
    def info(self) -> Partition:
        """The description of the partition, read from the file at the first use."""
        if self._info is None:
            file = inspect_cutouts(self.path, (self.partition,), allow_external=self.allow_external)
            self._info = file.partitions[self.partition]
        return self._info

    def close(self) -> None:
        """Close the file; the next read opens it again."""
        if self._file is not None and self._pid == os.getpid():
            self._file.close()
        self._file, self._dataset, self._pixels, self._mask, self._pid = None, None, None, None, None

    def read(self, start: int, stop: int, spread: Spread = map) -> NDArray[np.float32]:
        """Read the cutouts start, ..., stop - 1.

        Args:
            start: First row.
            stop: Row after the last one.
            spread: As of `read_into`.

        Returns:
            A new C-contiguous array (n, 1, H, W), float32.

        Raises:
            InputFileError: The file is damaged within these rows.
        """
        info = self.info
        if not 0 <= start <= stop <= info.rows:
            raise IndexError(f"expected rows from 0 to {info.rows}, got {start} to {stop}")
        block = np.empty((stop - start, 1, info.height, info.width), np.float32)
        self.read_into(block.reshape(len(block), info.height, info.width), start, spread)
        return block

    def read_into(self, out: Floats, start: int, spread: Spread = map) -> None:
        """Read as many cutouts as `out` (n, H, W) holds, from row `start` on, into it.

        Args:
            out: (n, H, W), float32, or of the stored type: then bit for bit.
            start: First row.
            spread: How the chunks are processed: `map`, or that of `nenya.runtime.process.Threads`.

        Raises:
            InputFileError: The file is damaged within these rows.
        """
        if not len(out):
            return
        pixels = self._open()
        try:
            pixels.read_into(out, start, spread)
            if not self._sensible:
                check_order(pixels, out[0], start)
                self._sensible = True
        except NenyaError:
            raise
        except (OSError, ValueError, RuntimeError, KeyError, MemoryError) as error:
            raise self.damaged(start, start + len(out), error) from error

    def read_rows(self, rows: NDArray[np.integer[Any]] | Sequence[int], spread: Spread = map) -> NDArray[np.float32]:
        """Read single cutouts; each compressed chunk is unpacked once.

        Args:
            rows: Row numbers, strictly increasing.
            spread: As of `read_into`.

        Returns:
            A new C-contiguous array (n, 1, H, W), float32.

        Raises:
            InputFileError: The file is damaged within these rows.
        """
        wanted = np.asarray(rows, dtype=np.int64)
        block = np.empty((len(wanted), 1, self.info.height, self.info.width), np.float32)
        for low, high, first, last in self._runs(wanted):
            block[low:high] = self.read(first, last + 1, spread)[wanted[low:high] - first]
        return block

    def _runs(self, wanted: NDArray[np.int64]) -> Iterator[tuple[int, int, int, int]]:
        """Yield positions [low, high) of row numbers that are read at once, and their first and last row."""
        info = self.info
        if len(wanted) and (wanted[0] < 0 or wanted[-1] >= info.rows or (np.diff(wanted) <= 0).any()):
            raise IndexError(f"expected strictly increasing row numbers from 0 to {info.rows - 1}")
        if not len(wanted):
            return
        runs = wanted - np.arange(len(wanted)) if info.block_rows == 1 else wanted // info.block_rows
        edges = [0, *(np.flatnonzero(np.diff(runs)) + 1).tolist(), len(wanted)]
        for low, high in itertools.pairwise(edges):
            yield low, high, int(wanted[low]), int(wanted[high - 1])

    def read_mask(self, start: int, stop: int, spread: Spread = map) -> NDArray[np.bool_] | None:
        """Read the masks of the cutouts start, ..., stop - 1.

        Args:
            start: First row.
            stop: Row after the last one.
            spread: As of `read_into`.

        Returns:
            (n, H, W), True where masked; None if the partition has no data set `<partition>_mask`.

        Raises:
            InputFileError: It is damaged within these rows, or holds other values than 0 and 1.
        """
        self._open()
        if self._mask is None:
            return None
        info = self.info
        found = np.empty((stop - start, info.height, info.width), np.uint8)
        if not len(found):
            return found.view(bool)
        try:
            self._mask.read_into(cast("Any", found), start, spread)
        except NenyaError:
            raise
        except (OSError, ValueError, RuntimeError, KeyError, MemoryError) as error:
            raise self.damaged(start, stop, error, f"{self.partition}_mask") from error
        if found.max() > 1:
            row = int((found > 1).any(axis=(1, 2)).argmax())
            raise InputFileError(
                f"{self.path}: row {start + row} of '{shown(self.partition)}_mask' holds {int(found[row].max())}, "
                "expected 1 at masked pixels and 0 elsewhere; write the mask again"
            )
        return found.view(bool)

    def read_mask_rows(self, rows: NDArray[np.int64], spread: Spread = map) -> NDArray[np.bool_] | None:
        """Read the masks (n, H, W) of single cutouts, of strictly increasing row numbers; see `read_mask`."""
        if not self.info.has_mask:
            return None
        found = np.empty((len(rows), self.info.height, self.info.width), bool)
        for low, high, first, last in self._runs(rows):
            mask = self.read_mask(first, last + 1, spread)
            assert mask is not None
            found[low:high] = mask[rows[low:high] - first]
        return found

    def dataset(self) -> Any:
        """Return this process's open h5py data set; pixels are read by `read`, which checks them."""
        self._open()
        return self._dataset

    def companion(self, suffix: str, rows: NDArray[np.integer[Any]] | None = None) -> NDArray[Any] | None:
        """Read the data set `<partition>_<suffix>`, such as labels or metadata, checked like the partition.

        Args:
            suffix: `labels`, `metadata`.
            rows: Row numbers, strictly increasing; None for all.

        Returns:
            (n, ...): numbers, records, or strings as `str`; None if the file has no such data set.

        Raises:
            InputFileError: It leads out of the file's folder, is not a data set, is incomplete or cannot be
                read.
        """
        self._open()
        assert self._file is not None
        name = f"{self.partition}_{suffix}"
        dataset = check_companion(self._file, name)
        if dataset is None:
            return None
        return self._file.values(dataset, f"{self.path}: '{shown(name)}'", () if rows is None else rows)

    def _open(self) -> Pixels:
        """Open the file in this process."""
        if self._file is not None and self._pid != os.getpid():  # inherited through a fork: HDF5 would share its state
            self._file.close()
            self._file = None
        if self._file is None or self._pixels is None:
            size, slots = chunk_cache(self.info)
            self._file = Hdf5File(self.path, allow_external=self.allow_external, rdcc_nbytes=size, rdcc_nslots=slots)
            self._pid, self._dataset = os.getpid(), self._file.find(self.partition)
            info, self._pixels = describe_partition(self._file, self.partition, self._dataset)
            info, self._mask = find_mask(self._file, info)
            if info != self.info:
                raise InputFileError(
                    f"{self.path}: '{self.partition}' changed while it was read; run the command again"
                )
        return self._pixels

    def damaged(self, start: int, stop: int, error: BaseException, name: str | None = None) -> InputFileError:
        """Return the error for rows start, ..., stop - 1 of the partition or its mask that cannot be read."""
        return InputFileError(
            f"{self.path}: rows {start} to {stop - 1} of '{name or self.partition}' cannot be read "
            f"({one_line(error)}); the file is damaged: copy or create it again"
        )


def plan_blocks(rows: int, chunk_rows: int | None, wanted_rows: int, max_rows: int | None = None) -> list[range]:
    """Divide a partition into blocks of rows to be read at once.

    The blocks depend only on the file and on the requested size, never on the number of processes, and end at chunk
    boundaries, so that no chunk is unpacked for two blocks.

    Args:
        rows: Number of cutouts N.
        chunk_rows: Cutouts that a chunk spans (`Partition.block_rows`), None for contiguous storage.
        wanted_rows: Size of a block if the chunks allow it; larger if a chunk spans more rows.
        max_rows: Largest number of rows in a block that memory allows; a larger chunk is unpacked several times.

    Returns:
        Ranges that cover 0, ..., N - 1 in order, all of one length except the last.
    """
    if rows < 0 or wanted_rows < 1:
        raise ValueError(f"cannot cut {rows} rows into blocks of {wanted_rows}")
    step, chunk = wanted_rows, chunk_rows or 1
    if max_rows is not None and chunk > max_rows:
        step = max(1, min(wanted_rows, max_rows))
    elif chunk > wanted_rows:
        step = chunk
    else:
        step = wanted_rows // chunk * chunk
    return [range(start, min(start + step, rows)) for start in range(0, rows, step)]


def read_blocks(file: CutoutFile, partition: str, most: int | None = None) -> Iterator[NDArray[np.float32]]:
    """Yield the cutouts of a partition in order, (n, 1, H, W) float32 at once; memory does not grow with the file.

    Args:
        file: from `inspect_cutouts`.
        partition: its name.
        most: rows to stop after.
    """
    info = file.partitions[partition]
    wanted = max(1, _PIECE_BYTES // info.row_bytes)
    with file.reader(partition) as reader:
        for cut in plan_blocks(min(info.rows, most or info.rows), info.block_rows, wanted, 8 * wanted):
            block = reader.read(cut.start, cut.stop)  # a chunk that spans many cutouts is read completely
            for start in range(0, len(block), wanted):
                yield block[start : start + wanted]


def fingerprint(path: str | os.PathLike[str], partition: str, *, allow_external: bool = False) -> str:
    """Return a fingerprint of a partition that cheaply detects changes.

    It is a sha256 over the file's size and time of change (ns), the data set's name, shape, type, chunks and
    filters, and 64 KiB from the start, the end and 16 evenly spaced positions of the file; and over size and time of
    further files that contain the data. Any usual rewrite, copy or `touch` changes it. An edit that keeps the size,
    resets the time and misses the sampled bytes is not detected: if that matters, hash the complete file.

    Returns:
        64 hexadecimal digits.

    Raises:
        InputFileError: As `inspect_cutouts` does.
    """
    path, piece, places = Path(path), 65536, 16
    info = inspect_cutouts(path, (partition,), allow_external=allow_external).partitions[partition]
    others = [(status.st_size, status.st_mtime_ns) for status in map(os.stat, info.sources)]
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        last = max(0, status.st_size - piece)
        digest = hashlib.sha256(repr((status.st_size, status.st_mtime_ns, info, others)).encode())
        for place in sorted({last * i // (places + 1) for i in range(places + 2)}):
            file.seek(place)
            digest.update(file.read(piece))
    return digest.hexdigest()


def nonfinite_rows(block: NDArray[np.floating[Any]]) -> NDArray[np.bool_]:
    """Mark the cutouts of a block (n, ...) that hold a NaN or an infinite pixel.

    Returns:
        (n,), bool.
    """
    mask: NDArray[np.bool_] = ~np.isfinite(block).all(axis=tuple(range(1, block.ndim)))
    return mask


def _is_latents(file: Hdf5File) -> bool:
    """Return whether a file that is not a valid cutout file is a latents file."""
    with contextlib.suppress(Exception):  # a damaged file may raise any exception
        return "checkpoint_sha256" in file.file.attrs
    return False


def partition_names(options: Options) -> tuple[str, ...]:
    """Return the names of the partitions to extract, if a file has them.

    They are `train` and `valid`, also for versions that trained and validated on one of them, or other data sets named
    by `loader.train_key` and `valid_key`.
    """
    keys = {options.loader.train_key, options.loader.valid_key}
    return tuple(sorted(keys)) if keys - set(PARTITIONS) else PARTITIONS
