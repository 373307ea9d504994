"""The writer of latents: rows go to a raw file of their own, and the HDF5 file appears only when it is whole."""

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor

from nenya.errors import OutputError
from nenya.storage import atomic_path

log = logging.getLogger(__name__)

_ASSEMBLY_ROWS = 16384
_HDF5_OVERHEAD = 2**16  # bytes of an HDF5 file beside its latents: attributes, structure


@dataclass
class LatentsTarget:
    """What is to be written.

    Attributes:
        path: the latents file.
        rows: partition -> number of rows N.
        dim: length D of a latent.
        attributes: provenance; called once, when all rows are there.
    """

    path: Path
    rows: dict[str, int]
    dim: int
    attributes: Callable[[], Mapping[str, Any]] = field(default=dict)

    @property
    def partial(self) -> Path:
        """Folder of the rows that are done, until the file is whole."""
        return self.path.with_name(self.path.name + ".partial")

    def raw(self, partition: str) -> Path:
        """Raw little-endian float32 file (N, D) of a partition."""
        return self.partial / f"{partition.replace('/', '%2F')}.f32"

    @property
    def reserve(self) -> Path:
        """A file that holds the room of the assembled file, so that a full disk shows before the work."""
        return self.partial / "reserve"

    @property
    def nbytes(self) -> int:
        """Bytes of all latents."""
        return 4 * self.dim * sum(self.rows.values())


class LatentsWriter(BasePredictionWriter):
    """Writes each block's latents at their rows, from any number of processes, and assembles the file at the end.

    Args:
        target: what is to be written.
    """

    def __init__(self, target: LatentsTarget) -> None:
        super().__init__("batch")
        self.target = target
        self.counts = {name: 0 for name in target.rows}
        self.nonfinite = {name: 0 for name in target.rows}
        self._files: dict[str, int] = {}

    def setup(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", stage: str) -> None:
        """Make the raw files; every process opens them when they are there."""
        if trainer.is_global_zero:
            shutil.rmtree(self.target.partial, ignore_errors=True)
            with self._guard():
                self._make_raw()
        trainer.strategy.barrier("raw files")
        with self._guard():
            for name in self.target.rows:
                self._files[name] = os.open(self.target.raw(name), os.O_RDWR)

    def _make_raw(self) -> None:
        self.target.partial.mkdir(parents=True)
        sizes = {self.target.raw(name): 4 * self.target.dim * rows for name, rows in self.target.rows.items()}
        for path, size in {**sizes, self.target.reserve: self.target.nbytes + _HDF5_OVERHEAD}.items():
            with path.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, size)

    @contextmanager
    def _guard(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            shutil.rmtree(self.target.partial, ignore_errors=True)
            raise OutputError(f"{self.target.path}: cannot write ({error.strerror}); nothing is left behind") from error

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
        """Write the latents (n, D) of one block at the block's rows."""
        partition = batch["partition"]
        rows = np.ascontiguousarray(prediction.numpy(), dtype="<f4")
        if rows.shape != (len(batch["images"]), self.target.dim):
            raise OutputError(
                f"latents of shape {rows.shape} came, ({len(batch['images'])}, {self.target.dim}) were wanted"
            )
        offset = 4 * self.target.dim * batch["start"]
        data = memoryview(rows.tobytes())
        with self._guard():
            while data:
                done = os.pwrite(self._files[partition], data, offset)
                data, offset = data[done:], offset + done
        self.counts[partition] += len(rows)
        self.nonfinite[partition] += int(np.isnan(rows).any(axis=1).sum())

    def teardown(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", stage: str) -> None:
        """When every row of every process is there, assemble the file and remove the partial folder."""
        self._close()
        self._sum_over_processes(trainer)
        missing = {name: rows - self.counts[name] for name, rows in self.target.rows.items()}
        if any(missing.values()):
            raise OutputError(f"{self.target.path}: rows are missing ({missing}), so the file was not written")
        if trainer.is_global_zero:
            with self._guard():
                self._assemble()
        trainer.strategy.barrier("assembled")

    def _sum_over_processes(self, trainer: "pl.Trainer") -> None:
        names = list(self.target.rows)
        mine = torch.tensor([[self.counts[n], self.nonfinite[n]] for n in names], device=trainer.strategy.root_device)
        total = trainer.strategy.reduce(mine, reduce_op="sum")
        for name, (rows, bad) in zip(names, total.tolist(), strict=True):
            self.counts[name], self.nonfinite[name] = int(rows), int(bad)

    def _assemble(self) -> None:
        """Copy the raw files into an HDF5 file under a temporary name, read it back, and rename it."""
        target = self.target
        attributes = {**target.attributes(), "nonfinite_rows": json.dumps(self.nonfinite)}
        target.reserve.unlink()
        with atomic_path(target.path) as temporary:
            with h5py.File(temporary, "w") as h5:
                for name, rows in target.rows.items():
                    dataset = h5.create_dataset(name, (rows, target.dim), "<f4")
                    with target.raw(name).open("rb") as raw:
                        for start in range(0, rows, _ASSEMBLY_ROWS):
                            part = np.fromfile(raw, "<f4", min(_ASSEMBLY_ROWS, rows - start) * target.dim)
                            dataset[start : start + _ASSEMBLY_ROWS] = part.reshape(-1, target.dim)
                h5.attrs.update(attributes)
            with h5py.File(temporary) as h5:
                shapes = {name: h5[name].shape for name in target.rows}
            if shapes != {name: (rows, target.dim) for name, rows in target.rows.items()}:
                raise OutputError(f"{target.path}: read back with shapes {shapes}; the disk may be failing")
        shutil.rmtree(target.partial, ignore_errors=True)

    def on_exception(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", exception: BaseException) -> None:
        """Leave nothing half-written behind."""
        self._close()
        if trainer.is_global_zero:
            shutil.rmtree(self.target.partial, ignore_errors=True)

    def _close(self) -> None:
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files.clear()
