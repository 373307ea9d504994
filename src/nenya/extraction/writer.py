"""The writer of latents: blocks go to the raw files and a journal, and the HDF5 file appears when it is whole."""

import logging
import os
import queue
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor

from nenya.data.blocks import Block
from nenya.errors import OutputError
from nenya.extraction.journal import BlockStore, journal_line

log = logging.getLogger(__name__)

_WAITING = 8  # blocks that may wait for the disk


class BlockWriter:
    """Writes blocks to the disk in a thread; a block is in the journal when its bytes are safe.

    Blocks that wait together share one fdatasync, so that the network does not wait for the disk.

    Args:
        store: the partial folder.
        name: of the journal; no two processes may have the same.
    """

    def __init__(self, store: BlockStore, name: str) -> None:
        self.store = store
        self._waiting: queue.Queue[tuple[str, int, bytes, bytes] | None] = queue.Queue(_WAITING)
        self._failure: OSError | None = None
        self._raw: dict[str, int] = {}
        with store.guard():
            for partition in store.rows:
                self._raw[partition] = os.open(store.raw(partition), os.O_RDWR)
            journal = store.partial / f"journal-{name}-{secrets.token_hex(4)}"
            self._journal = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o666)
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)
        self._thread.start()

    def put(self, partition: str, start: int, number: int, rows: np.ndarray) -> None:
        """Hand over a block.

        Args:
            partition: `train`, `valid`.
            start: its first row.
            number: of the block.
            rows: its latents (n, D), float32.

        Raises:
            OutputError: An earlier block could not be written.
        """
        self._check()
        data = rows.tobytes()
        line = journal_line(number, data, int(np.isnan(rows).any(axis=1).sum()))
        self._waiting.put((partition, 4 * self.store.dim * start, data, line))

    def close(self) -> None:
        """Wait until all blocks are safe, and close the files.

        Raises:
            OutputError: A block could not be written.
        """
        if self._thread.is_alive():
            self._waiting.put(None)
            self._thread.join()
        for descriptor in (*self._raw.values(), self._journal):
            os.close(descriptor)
        self._raw, self._journal = {}, -1
        self._check()

    def _check(self) -> None:
        if self._failure is not None:
            with self.store.guard():
                raise self._failure

    def _run(self) -> None:
        done = False
        while not done:
            items = [self._waiting.get()]
            while not self._waiting.empty():
                items.append(self._waiting.get())
            done = None in items
            blocks = [item for item in items if item is not None]
            if self._failure is None:
                try:
                    self._write(blocks)
                except OSError as error:
                    self._failure = error

    def _write(self, blocks: Sequence[tuple[str, int, bytes, bytes]]) -> None:
        for partition, offset, data, _ in blocks:
            _write_all(self._raw[partition], data, offset)
        for partition in {partition for partition, *_ in blocks}:
            os.fdatasync(self._raw[partition])
        lines = b"".join(line for *_, line in blocks)
        if lines and os.write(self._journal, lines) != len(lines):
            raise OSError(28, os.strerror(28))


def _write_all(descriptor: int, data: bytes, offset: int) -> None:
    left = memoryview(data)
    while left:
        count = os.pwrite(descriptor, left, offset)
        left, offset = left[count:], offset + count


class LatentsWriter(BasePredictionWriter):
    """Writes each block's latents at their rows, from any number of processes, and assembles the file at the end.

    Args:
        store: the partial folder, ready to be written to when the loop begins.
    """

    def __init__(self, store: BlockStore) -> None:
        super().__init__("batch")
        self.store = store
        self.blocks: Sequence[Block] = ()
        self.threads = 0
        self.attributes: Callable[[], Mapping[str, Any]] = dict
        self.nonfinite: dict[str, int] = {}
        self._writer: BlockWriter | None = None
        self._threads_before = 0

    def setup(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", stage: str) -> None:
        """Open the files; compute with the agreed number of threads."""
        self._threads_before = torch.get_num_threads()
        if self.threads and self.threads != self._threads_before:
            torch.set_num_threads(self.threads)
        self._writer = BlockWriter(self.store, str(trainer.global_rank))

    def write_on_batch_end(
        self,
        trainer: "pl.Trainer",
        pl_module: "pl.LightningModule",
        prediction: Tensor,
        batch_indices: Sequence[int] | None,
        batch: dict[str, Any],
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Hand the latents (n, D) of one block to the disk."""
        rows = np.ascontiguousarray(prediction.numpy(), dtype="<f4")
        if rows.shape != (len(batch["images"]), self.store.dim):
            raise OutputError(
                f"latents of shape {rows.shape} came, ({len(batch['images'])}, {self.store.dim}) were wanted"
            )
        assert self._writer is not None
        self._writer.put(batch["partition"], batch["start"], batch["number"], rows)

    def teardown(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", stage: str) -> None:
        """When every block of every process is safe, assemble the file."""
        self._close()
        trainer.strategy.barrier("rows")
        if trainer.is_global_zero:
            self.nonfinite = self.store.assemble(self.blocks, self.attributes())
        trainer.strategy.barrier("assembled")

    def on_exception(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", exception: BaseException) -> None:
        """Keep what is finished."""
        try:
            self._close()
        except OutputError as error:
            if not isinstance(exception, OutputError):  # which would be the same one
                log.error("%s", error)

    def _close(self) -> None:
        writer, self._writer = self._writer, None
        torch.set_num_threads(self._threads_before or torch.get_num_threads())
        if writer is not None:
            writer.close()
