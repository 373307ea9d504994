"""The writer of latents: blocks go to the raw files and a journal; the HDF5 file appears when it is complete."""

import contextlib
import logging
import os
import queue
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nenya.data.blocks import Block
from nenya.errors import Interrupted, OutputError
from nenya.extraction.journal import BlockStore, journal_line
from nenya.runtime.lightning import BasePredictionWriter, ChildProcessObserver, pl
from nenya.runtime.trainer import ledger_of
from nenya.storage.flock import flock
from nenya.storage.lock import Companions

log = logging.getLogger(__name__)

_WAITING = 8  # blocks that may wait for the disk
_SECONDS_BETWEEN_LOOKS = 1.0
_GRACE = 10.0  # seconds in which the loop should notice that another process has ended


class BlockWriter:
    """Writes blocks to disk in a thread; a block enters the journal when its bytes are safe.

    Blocks that wait together share one fdatasync, so that the network does not wait for the disk.

    Args:
        store: the partial folder.
        name: of the journal, different for each process.
    """

    def __init__(self, store: BlockStore, name: str) -> None:
        self.store = store
        self._waiting: queue.Queue[tuple[str, int, bytes, bytes] | None] = queue.Queue(_WAITING)
        self._failure: OSError | None = None
        self._raw: dict[str, int] = {}
        self.seconds = 0.0
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
        """Queue a block.

        Args:
            partition: `train`, `valid`.
            start: its first row.
            number: of the block.
            rows: its latents with their columns (n, width), float32.

        Raises:
            OutputError: An earlier block could not be written.
        """
        self._check()
        data = rows.tobytes()
        line = journal_line(number, data, int(np.isnan(rows[:, : self.store.dim]).any(axis=1).sum()))
        self._waiting.put((partition, 4 * self.store.width * start, data, line))

    def flush(self) -> None:
        """Wait until all blocks are safe; the last call to accept blocks.

        Raises:
            OutputError: A block could not be written.
        """
        if self._thread.is_alive():
            self._waiting.put(None)
            self._thread.join()
            with self.store.guard():
                os.fsync(self._journal)  # makes the journal visible to processes on other machines
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
                start = time.monotonic()
                try:
                    self._write(blocks)
                except OSError as error:
                    self._failure = error
                self.seconds += time.monotonic() - start

    def _write(self, blocks: Sequence[tuple[str, int, bytes, bytes]]) -> None:
        for partition, offset, data, _ in blocks:
            _write_all(self._raw[partition], data, offset)
        for partition in {partition for partition, *_ in blocks}:
            os.fdatasync(self._raw[partition])
        lines = b"".join(line for *_, line in blocks)
        if lines and os.write(self._journal, lines) != len(lines):
            raise OSError(28, os.strerror(28))


def _lock(descriptor: int) -> None:
    """Hold a lock for the lifetime of this process, so that the others see it is alive."""
    with contextlib.suppress(OSError):  # a file system without locks
        flock(descriptor, wait=True)


def _write_all(descriptor: int, data: bytes, offset: int) -> None:
    left = memoryview(data)
    while left:
        count = os.pwrite(descriptor, left, offset)
        left, offset = left[count:], offset + count


class _Watch:
    """Watches in a thread whether the other processes of a run are alive; without one the run cannot finish.

    The loop checks `lost` after each block. If it cannot, because it waits for a device or in a collective call
    forever, the thread logs the reason and ends the process: finished blocks are safe.

    Args:
        companions: the other processes.
        what: the message.
    """

    def __init__(self, companions: Companions, what: str) -> None:
        self.companions, self.what = companions, what
        self.lost, self._stop = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="companions", daemon=True)
        self._observe_again = _stay_launchers_hand()
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(_SECONDS_BETWEEN_LOOKS):
            if self.companions.lost():
                self.lost.set()
                if not self._stop.wait(_GRACE):
                    log.error("%s; finished blocks are kept: the same command resumes there", self.what)
                    os._exit(Interrupted.exit_code)
                return

    def stop(self) -> None:
        """End the watch."""
        self._stop.set()
        self._thread.join()
        if not self.lost.is_set():
            self._observe_again()


class _NobodyEnds:
    """Stands in for the processes that Lightning's launcher observes."""

    returncode = None

    def poll(self) -> None:
        """Return None: the process has not ended."""


def _stay_launchers_hand() -> Callable[[], None]:
    """Keep Lightning's launcher from silently killing this process when another has ended.

    Returns:
        A function that restores the launcher's observation.
    """
    observers = [thread for thread in threading.enumerate() if isinstance(thread, ChildProcessObserver)]
    before = [thread._child_processes for thread in observers]

    def observe_again() -> None:
        for thread, processes in zip(observers, before, strict=True):
            thread._child_processes = processes

    for thread in observers:
        thread._child_processes = [_NobodyEnds()]  # type: ignore[list-item]
    return observe_again


class LatentsWriter(BasePredictionWriter):
    """Writes each block's latents at their rows, from any number of processes, and assembles the file at the end.

    Args:
        store: the partial folder, writable when the loop begins.
    """

    def __init__(self, store: BlockStore) -> None:
        super().__init__("batch")
        self.store = store
        self.blocks: Sequence[Block] = ()
        self.threads = 0
        self.attributes: Callable[[], Mapping[str, Any]] = dict
        self.nonfinite: dict[str, int] = {}
        self._writer: BlockWriter | None = None
        self._watch: _Watch | None = None
        self._threads_before = 0

    def setup(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", stage: str) -> None:
        """Open the files; set the agreed number of threads."""
        self._threads_before = torch.get_num_threads()
        if self.threads and self.threads != self._threads_before:
            torch.set_num_threads(self.threads)
        self._writer = BlockWriter(self.store, str(trainer.global_rank))
        if trainer.world_size > 1:
            companions = Companions(self.store.partial, self._writer.journal)
            self._wait_for_all(trainer, "begun")
            companions.lost()  # sees all of them, because each waits until all have looked
            self._wait_for_all(trainer, "seen")
            self._watch = _Watch(companions, self._lost_line)

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
        """Queue the latents (n, D) of one block, and their columns, for writing."""
        rows = np.ascontiguousarray(prediction.numpy(), dtype="<f4")
        if rows.shape != (len(batch["images"]), self.store.dim):
            raise OutputError(f"expected latents of shape ({len(batch['images'])}, {self.store.dim}), got {rows.shape}")
        if self.store.columns:
            rows = np.hstack([rows, batch["columns"].cpu().numpy().astype("<f4")])
        assert self._writer is not None
        self._writer.put(batch["partition"], batch["start"], batch["number"], rows)
        if self._watch is not None and self._watch.lost.is_set():
            raise Interrupted(self._lost_line)

    @property
    def _lost_line(self) -> str:
        return f"{self.store.path}: another process of this run has ended"

    def _wait_for_all(self, trainer: "pl.Trainer", name: str) -> None:
        """Wait until every process has reached this point.

        Raises:
            Interrupted: Another process has ended.
        """
        try:
            trainer.strategy.barrier(name)
        except RuntimeError as error:  # what torch raises when a connection ends
            if self._watch is not None:
                self._watch.lost.set()
            raise Interrupted(self._lost_line) from error

    def _wait_for_rows(self, trainer: "pl.Trainer", watch: _Watch) -> None:
        """Wait until the blocks of all processes are safe; a slow process may exceed the timeout of torch's barrier.

        If file locks do not reach all processes, only the barrier shows that one has ended, and this does not wait.

        Raises:
            Interrupted: A process has ended, or a signal was received.
        """
        if not watch.companions.sees(trainer.world_size - 1):
            return
        numbers = {block.number for block in self.blocks}
        while not numbers <= self.store.entries().keys():
            if watch.lost.wait(_SECONDS_BETWEEN_LOOKS / 4):
                raise Interrupted(self._lost_line)
            if trainer.received_sigterm:
                raise Interrupted("interrupted")

    def teardown(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", stage: str) -> None:
        """When every block of every process is safe, assemble the file."""
        if self._writer is not None:
            self._writer.flush()
            ledger_of(trainer).add("write", self._writer.seconds)
        if self._watch is not None:
            self._wait_for_rows(trainer, self._watch)
        self._wait_for_all(trainer, "rows")
        self._close()  # only now, because a closed journal looks like that of an ended process
        if trainer.is_global_zero:
            self.nonfinite = self.store.assemble(self.blocks, self.attributes())
            with contextlib.suppress(Interrupted):  # the file exists, whichever process has ended
                self._wait_for_all(trainer, "assembled")
        else:
            self._wait_for_all(trainer, "assembled")

    def on_exception(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", exception: BaseException) -> None:
        """Keep finished blocks."""
        try:
            self._close()
        except OutputError as error:
            if not isinstance(exception, OutputError):  # otherwise it is the same error
                log.error("%s", error)

    def _close(self) -> None:
        writer, self._writer, watch, self._watch = self._writer, None, self._watch, None
        if watch is not None:
            watch.stop()
        torch.set_num_threads(self._threads_before or torch.get_num_threads())
        if writer is not None:
            writer.close()
