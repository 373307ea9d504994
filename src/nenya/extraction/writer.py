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
from lightning.fabric.strategies.launchers.subprocess_script import _ChildProcessObserver
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor

from nenya.data.blocks import Block
from nenya.errors import Interrupted, OutputError
from nenya.extraction.journal import BlockStore, journal_line
from nenya.runtime.ledger import ledger_of
from nenya.storage.lock import Companions

log = logging.getLogger(__name__)

_WAITING = 8  # blocks that may wait for the disk
_SECONDS_BETWEEN_LOOKS = 1.0
_GRACE = 10.0  # seconds in which the loop should notice that another process is gone


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
            with self.store.guard():
                os.fsync(self._journal)  # by which the processes of other machines see it
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
    """Hold a lock as long as this process lives, by which the others see that it does."""
    with contextlib.suppress(OSError):  # a file system without locks
        fcntl.flock(descriptor, fcntl.LOCK_EX)


def _write_all(descriptor: int, data: bytes, offset: int) -> None:
    left = memoryview(data)
    while left:
        count = os.pwrite(descriptor, left, offset)
        left, offset = left[count:], offset + count


class _Watch:
    """Looks in a thread whether the other processes of a run live; without one it is over.

    The loop looks at `lost` after each block. Where it does not come to that, as it waits for a device or in a
    collective call for ever, the thread says why and ends the process: what is finished is safe.

    Args:
        companions: the other processes.
        what: to say.
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
                    log.error("%s; what is finished is kept: the same command goes on from there", self.what)
                    os._exit(Interrupted.exit_code)
                return

    def stop(self) -> None:
        """Look no longer."""
        self._stop.set()
        self._thread.join()
        if not self.lost.is_set():
            self._observe_again()


class _NobodyEnds:
    """Stands for the processes that Lightning's launcher observes."""

    returncode = None

    def poll(self) -> None:
        """Return that it has not ended."""


def _stay_launchers_hand() -> Callable[[], None]:
    """Keep Lightning's launcher from killing this process, without a word, when another is gone.

    Returns:
        A function that lets it observe again.
    """
    observers = [thread for thread in threading.enumerate() if isinstance(thread, _ChildProcessObserver)]
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
        self._watch: _Watch | None = None
        self._threads_before = 0

    def setup(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", stage: str) -> None:
        """Open the files; compute with the agreed number of threads."""
        self._threads_before = torch.get_num_threads()
        if self.threads and self.threads != self._threads_before:
            torch.set_num_threads(self.threads)
        self._writer = BlockWriter(self.store, str(trainer.global_rank))
        if trainer.world_size > 1:
            companions = Companions(self.store.partial, self._writer.journal)
            self._wait_for_all(trainer, "begun")
            companions.lost()  # sees all of them, as nobody goes on before everybody has looked
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
        """Hand the latents (n, D) of one block to the disk."""
        rows = np.ascontiguousarray(prediction.numpy(), dtype="<f4")
        if rows.shape != (len(batch["images"]), self.store.dim):
            raise OutputError(
                f"latents of shape {rows.shape} came, ({len(batch['images'])}, {self.store.dim}) were wanted"
            )
        assert self._writer is not None
        self._writer.put(batch["partition"], batch["start"], batch["number"], rows)
        if self._watch is not None and self._watch.lost.is_set():
            raise Interrupted(self._lost_line)

    @property
    def _lost_line(self) -> str:
        return f"{self.store.path}: another process of this run is gone"

    def _wait_for_all(self, trainer: "pl.Trainer", name: str) -> None:
        """Wait until every process is here.

        Raises:
            Interrupted: One never will be.
        """
        try:
            trainer.strategy.barrier(name)
        except RuntimeError as error:  # what torch raises when a connection ends
            if self._watch is not None:
                self._watch.lost.set()
            raise Interrupted(self._lost_line) from error

    def _wait_for_rows(self, trainer: "pl.Trainer", watch: _Watch) -> None:
        """Wait until the blocks of all processes are safe; a slow one may take longer than torch lets a barrier wait.

        Where locks do not reach all of them, the barrier alone has to tell that one is gone, and nobody waits here.

        Raises:
            Interrupted: A process is gone, or a signal came.
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
        writer, self._writer, watch, self._watch = self._writer, None, self._watch, None
        if watch is not None:
            watch.stop()
        torch.set_num_threads(self._threads_before or torch.get_num_threads())
        if writer is not None:
            writer.close()
