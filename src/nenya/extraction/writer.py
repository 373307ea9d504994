"""The writer of latents: blocks go to the raw files and a journal, and the HDF5 file appears when it is whole."""

import contextlib
import fcntl
import logging
import os
import queue
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor

from nenya.data.blocks import Block
from nenya.errors import Interrupted, OutputError
from nenya.extraction.journal import BlockStore, journal_line
from nenya.extraction.lock import Companions

log = logging.getLogger(__name__)

_WAITING = 8  # blocks that may wait for the disk
_SECONDS_BETWEEN_LOOKS = 1.0


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
            self.journal = f"journal-{name}-{secrets.token_hex(4)}"
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND
            self._journal = os.open(store.partial / self.journal, flags, 0o666)
            _lock(self._journal)
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

    def flush(self) -> None:
        """Wait until all blocks are safe; no more may come.

        Raises:
            OutputError: A block could not be written.
        """
        if self._thread.is_alive():
            self._waiting.put(None)
            self._thread.join()
        self._check()

    def close(self) -> None:
        """Wait until all blocks are safe, and close the files.

        Raises:
            OutputError: A block could not be written.
        """
        with contextlib.suppress(OutputError):
            self.flush()
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


def _lock(descriptor: int) -> None:
    """Hold a lock as long as this process lives, by which the others see that it does."""
    with contextlib.suppress(OSError):  # a file system without locks
        fcntl.flock(descriptor, fcntl.LOCK_EX)


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
        self._companions: Companions | None = None
        self._looked = 0.0
        self._threads_before = 0

    def setup(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", stage: str) -> None:
        """Open the files; compute with the agreed number of threads."""
        self._threads_before = torch.get_num_threads()
        if self.threads and self.threads != self._threads_before:
            torch.set_num_threads(self.threads)
        self._writer = BlockWriter(self.store, str(trainer.global_rank))
        self._companions = Companions(self.store.partial, self._writer.journal) if trainer.world_size > 1 else None

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
        self._look_for_companions()

    def _look_for_companions(self) -> None:
        """Stop when another process is gone: its share would be missing in the end."""
        now = time.monotonic()
        if self._companions is not None and now > self._looked + _SECONDS_BETWEEN_LOOKS:
            self._looked = now
            if self._companions.lost():
                raise self._lost()

    def _lost(self) -> Interrupted:
        return Interrupted(f"{self.store.path}: another process of this run is gone")

    def _wait_for_all(self, trainer: "pl.Trainer", name: str) -> None:
        """Wait until every process is here.

        Raises:
            Interrupted: One never will be.
        """
        try:
            trainer.strategy.barrier(name)
        except RuntimeError as error:  # what torch raises when a connection ends
            raise self._lost() from error

    def teardown(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", stage: str) -> None:
        """When every block of every process is safe, assemble the file."""
        if self._writer is not None:
            self._writer.flush()
        self._wait_for_all(trainer, "rows")
        self._close()  # only now, as a closed journal looks like that of a process that is gone
        if trainer.is_global_zero:
            self.nonfinite = self.store.assemble(self.blocks, self.attributes())
            with contextlib.suppress(Interrupted):  # the file is there, whoever is gone
                self._wait_for_all(trainer, "assembled")
        else:
            self._wait_for_all(trainer, "assembled")

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
