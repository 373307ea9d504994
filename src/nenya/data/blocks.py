"""The cutouts of a file in its own order, block by block, for extraction."""

import itertools
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from nenya.data.cutouts import CutoutFile, plan_blocks
from nenya.data.masks import InputReader, Measure
from nenya.errors import InputFileError
from nenya.runtime.lightning import pl
from nenya.runtime.process import Threads, cores
from nenya.runtime.trainer import count_read
from nenya.storage.process import available_memory

_BLOCK_BYTES = 2**28
_AHEAD = 2  # blocks read ahead, of these more than one only
_AHEAD_BYTES = 2**28  # up to so many bytes

_Read = tuple[NDArray[np.float32], NDArray[np.float32] | None, float]


def as_it_is(batch: dict[str, Any]) -> dict[str, Any]:
    """Return a complete batch unchanged (a loader's collate function)."""
    return batch


@dataclass(frozen=True)
class Block:
    """Rows of one partition that are read, encoded and written together.

    Attributes:
        number: index of the block in the file, over all partitions.
        partition: `train` or `valid`.
        rows: range of rows.
        picked: rows to read among these, increasing; None for all.
    """

    number: int
    partition: str
    rows: range
    picked: NDArray[np.int64] | None = field(default=None, compare=False)

    def __len__(self) -> int:
        return len(self.rows if self.picked is None else self.picked)


def cut_blocks(
    file: CutoutFile,
    block_size: int,
    limits: dict[str, int] | None = None,
    wanted: NDArray[np.int64] | None = None,
) -> list[Block]:
    """Cut the partitions of a file into blocks; the cuts do not depend on the number of processes.

    Args:
        file: the cutout file.
        block_size: rows of a block, if the chunks allow it.
        limits: partition -> rows to stop after.
        wanted: row numbers to read; repeated rows are read once, in the order of the file. None for all rows.
    """
    if wanted is not None:
        wanted, limits = np.unique(wanted), None
    blocks: list[Block] = []
    for name, info in file.partitions.items():
        rows = min(info.rows, (limits or {}).get(name, info.rows))
        for cut in plan_blocks(rows, info.block_rows, block_size, max(1, _BLOCK_BYTES // info.row_bytes)):
            picked = None if wanted is None else wanted[slice(*np.searchsorted(wanted, (cut.start, cut.stop)))]
            if picked is None or len(picked):
                blocks.append(Block(len(blocks), name, cut, picked))
    return blocks


class BlockRows(Dataset[dict[str, Any]]):
    """Reads blocks; without loader processes, the next ones are read while the present one is encoded.

    Args:
        file: the cutout file.
        order: the blocks in the order of the requests.
        ahead: whether to read ahead, in a thread.
        threads: number of threads that unpack the chunks of a block; None: one per core.
        masked: what the network sees of masked pixels, `preprocess.masked`.
        measure: function of cutouts (n, H, W) and their masks; its result is in a batch as `columns`.
    """

    def __init__(
        self,
        file: CutoutFile,
        order: Sequence[Block],
        *,
        ahead: bool,
        threads: int | None = None,
        masked: str = "nan",
        measure: Measure | None = None,
    ) -> None:
        self.measure = measure
        self.file, self.order, self.ahead, self.masked = file, list(order), ahead, masked
        self._threads = Threads(threads)
        self._room: int | None = None
        self._places = {block.number: i for i, block in enumerate(self.order)}
        self._readers: dict[str, InputReader] = {}
        self._pool: ThreadPoolExecutor | None = None
        self._pending: dict[int, Future[_Read]] = {}

    def __len__(self) -> int:
        return sum(map(len, self.order))

    def __getitems__(self, block: Block) -> dict[str, Any]:
        """Return one block: images (n, C, H, W), its partition and first row; or the error raised by reading it."""
        if self.ahead:
            waiting = self._submit(block)
            for following in self._following(block):
                self._submit(following)
            images, columns, seconds = waiting.result()
            self._pending.pop(block.number)
        else:
            try:
                images, columns, seconds = self._read(block)
            except InputFileError as error:  # a worker process would wrap an exception raised here in its traceback
                return {"error": error}
        return {
            "images": torch.from_numpy(images),
            "partition": block.partition,
            "start": block.rows.start,
            "number": block.number,
            "read_seconds": seconds,
            **({} if columns is None else {"columns": torch.from_numpy(columns)}),
        }

    def _following(self, block: Block) -> list[Block]:
        """Return the blocks to read ahead: the next one, and more if they need little memory."""
        if self._room is None:
            self._room = min(_AHEAD_BYTES, available_memory() // 8)
        place = self._places[block.number] + 1
        following = self.order[place : place + _AHEAD]
        sizes = itertools.accumulate(len(b) * self.file.partitions[b.partition].row_bytes for b in following)
        return [
            b for number, (b, size) in enumerate(zip(following, sizes, strict=True)) if not number or size <= self._room
        ]

    def _submit(self, block: Block) -> "Future[_Read]":
        self._pool = self._pool or ThreadPoolExecutor(1, "read-ahead")
        if block.number not in self._pending:
            self._pending[block.number] = self._pool.submit(self._read, block)
        return self._pending[block.number]

    def _read(self, block: Block) -> _Read:
        """Return the images (n, C, H, W) of a block, their columns, and the seconds that reading them took."""
        start = time.monotonic()
        if block.partition not in self._readers:
            self._readers[block.partition] = InputReader(self.file.reader(block.partition), self.masked)
        reader = self._readers[block.partition]
        images, columns = reader.measured(block.rows, block.picked, self.measure, self._threads.spread)
        return images, columns, time.monotonic() - start

    def close(self) -> None:
        """Wait for the threads and close the file."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        self._threads.close()
        for reader in self._readers.values():
            reader.reader.close()
        self._pool, self._pending = None, {}
        self._readers.clear()


class BlockSampler:
    """Yields the blocks of one process, each a batch; Lightning does not accept a plain list here."""

    def __init__(self, blocks: Sequence[Block]) -> None:
        self.blocks = list(blocks)

    def __len__(self) -> int:
        return len(self.blocks)

    def __iter__(self) -> Iterator[Block]:
        return iter(self.blocks)


class BlocksDataModule(pl.LightningDataModule):
    """The cutouts of one file in order, block by block: process r of w takes every w-th block from the r-th on.

    Args:
        file: the cutout file.
        blocks: all blocks of the file, or the remaining ones.
        num_workers: loader processes; with 0 a thread reads ahead.
        masked: what the network sees of masked pixels, `preprocess.masked`.
        measure: as of `BlockRows`.
    """

    def __init__(
        self,
        file: CutoutFile,
        blocks: Sequence[Block],
        num_workers: int = 0,
        masked: str = "nan",
        measure: Measure | None = None,
    ) -> None:
        super().__init__()
        self.masked, self.measure = masked, measure
        self.file, self.blocks, self.num_workers = file, list(blocks), num_workers
        self.allow_zero_length_dataloader_with_multiple_devices = True
        self._data: BlockRows | None = None

    def predict_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Return the loader of this process's blocks."""
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        mine = self.blocks[rank::world]
        processes = max(1, self.num_workers) * (self.trainer.num_devices if self.trainer else 1)
        threads = None if processes == 1 else max(1, cores() // processes)
        how: dict[str, Any] = {"threads": threads, "masked": self.masked, "measure": self.measure}
        self._data = BlockRows(self.file, mine, ahead=self.num_workers == 0, **how)
        return DataLoader(
            self._data,
            batch_sampler=BlockSampler(mine),  # type: ignore[arg-type]  # any iterable of blocks will do
            collate_fn=as_it_is,  # type: ignore[arg-type]  # a batch is one item, not a list
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
        )

    def on_before_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Raise the error of reading a block; count the time of reading."""
        if "error" in batch:
            raise batch["error"]
        count_read(self.trainer, batch, beside=True)
        return batch

    def on_exception(self, exception: BaseException) -> None:
        """Close the file after an error."""
        self.teardown("predict")

    def teardown(self, stage: str) -> None:
        """Close the file."""
        if self._data is not None:
            self._data.close()
            self._data = None
