"""Callbacks of a training run: learning curves, and a last checkpoint that survives a stop."""

import csv
import logging
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nenya.errors import Interrupted, OutputError
from nenya.models.checkpoint import write_torch
from nenya.models.contrastive import ContrastiveModule
from nenya.runtime.lightning import Callback, Checkpoint, TorchCheckpointIO, pl
from nenya.runtime.signals import Handlers
from nenya.runtime.trainer import ledger_of
from nenya.storage.disk import atomic_path, write_hdf5

log = logging.getLogger(__name__)

_CURVES = ("loss", "loss_step", "loss_avg")
_FIGURES = ("learning_rate", "samples_per_second", "feature_std", "rankme", "uniformity")
_CHECK_EVERY = 20
_STOP = 2


class LearningCurve(Callback):
    """Keeps the losses of every step and epoch, through resumes, and writes them at each epoch's end.

    Files: `<name>.csv` with a row an epoch, `<name>_losses_train.h5` and `<name>_losses_valid.h5` with `loss_*`
    (one value an epoch), `loss_step_*` (a batch) and `loss_avg_*` (running mean of the epoch at each batch).

    Args:
        folder: `learning_curve/` of the run.
        name: the model's derived name.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self.curves: dict[str, list[float]] = {f"{c}_{p}": [] for c in _CURVES for p in ("train", "valid")}
        self.epochs: list[dict[str, float]] = []
        self._steps: dict[str, list[tuple[torch.Tensor, int]]] = {"train": [], "valid": []}
        self._samples, self._seconds, self._clock = 0, 0.0, 0.0
        self._stages: dict[str, float] = {}

    def state_dict(self) -> dict[str, Any]:
        """Return all records, including those of the running epoch, as plain types."""
        running = [(float(loss), rows) for loss, rows in self._steps["train"]]
        return {"curves": self.curves, "epochs": self.epochs, "running": running}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume from the records."""
        self.curves, self.epochs = dict(state_dict["curves"]), list(state_dict["epochs"])
        self._steps["train"] = [(torch.tensor(loss), rows) for loss, rows in state_dict["running"]]

    def on_train_batch_start(
        self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", batch: Any, batch_idx: int
    ) -> None:
        """Start the clock of the batch, unless it has run since the last one."""
        self._clock = self._clock or time.monotonic()

    def on_train_batch_end(
        self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Record the loss; check regularly that it is finite."""
        assert isinstance(pl_module, ContrastiveModule)
        loss = outputs["loss"].detach()
        self._steps["train"].append((loss, batch["total"]))
        if loss.device.type == "cpu" or batch_idx % _CHECK_EVERY == 0:
            pl_module.check_finite(loss, trainer.current_epoch + 1)
        now = time.monotonic()
        self._samples, self._seconds = self._samples + batch["total"], self._seconds + now - self._clock
        self._clock = now
        rate = self._samples / max(self._seconds, 1e-9)
        pl_module.log("train/samples_per_second", rate, batch_size=1)

    def on_validation_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Check the losses before a checkpoint is written after the validation; stop the clock."""
        self.check(trainer, pl_module)
        self._clock = 0.0

    def on_validation_batch_end(
        self,
        trainer: "pl.Trainer",
        pl_module: "pl.LightningModule",
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Record the loss."""
        self._steps["valid"].append((outputs.detach(), batch["total"]))

    def on_train_epoch_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Close the epoch and write the files."""
        self.check(trainer, pl_module)
        row: dict[str, float] = {"epoch": trainer.current_epoch + 1}
        # Values in callback_metrics may be from the last validated epoch.
        sources = ["train", "valid"] if self._steps["valid"] else ["train"]
        for partition, steps in self._steps.items():
            if steps:
                row[f"loss_{partition}"] = self._close(partition, steps)
        pl_module.log("train/epoch_loss", row["loss_train"], batch_size=1)
        shown = trainer.callback_metrics
        row |= {f: float(shown[f"{s}/{f}"]) for f in _FIGURES for s in sources if f"{s}/{f}" in shown}
        self.epochs.append(row)
        self._samples, self._seconds, self._clock = 0, 0.0, 0.0
        if trainer.logger is not None:
            metrics = {f"epoch/{key}": value for key, value in row.items()} | self._ledger(trainer)
            trainer.logger.log_metrics(metrics, trainer.global_step)
        if trainer.is_global_zero:
            self._write()
            log.info("%s", _line(row, trainer.max_epochs))

    def _ledger(self, trainer: "pl.Trainer") -> dict[str, float]:
        """Return the seconds of each stage since the last epoch's end."""
        before, self._stages = self._stages, ledger_of(trainer).seconds()
        return {f"ledger/{stage}": seconds - before.get(stage, 0.0) for stage, seconds in self._stages.items()}

    def check(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Raise NenyaError if a loss of the running epoch is not finite, before anything is saved."""
        assert isinstance(pl_module, ContrastiveModule)
        losses = [float(loss) for steps in self._steps.values() for loss, _ in steps]
        pl_module.check_finite(torch.tensor(losses), trainer.current_epoch + 1)

    def _close(self, partition: str, steps: list[tuple[torch.Tensor, int]]) -> float:
        """Move an epoch's steps to the curves; return the mean loss of its samples."""
        losses = np.array([float(loss) for loss, _ in steps])
        rows = np.array([rows for _, rows in steps])
        running = np.cumsum(losses * rows) / np.cumsum(rows)
        steps.clear()
        self.curves[f"loss_{partition}"].append(float(running[-1]))
        self.curves[f"loss_step_{partition}"].extend(losses.tolist())
        self.curves[f"loss_avg_{partition}"].extend(running.tolist())
        return float(running[-1])

    def _write(self) -> None:
        columns = ["epoch", "loss_train", "loss_valid", *_FIGURES]
        with (
            atomic_path(self.folder / f"{self.name}.csv") as temporary,
            temporary.open("w", newline="") as file,
        ):
            table = csv.DictWriter(file, columns)
            table.writeheader()
            table.writerows(self.epochs)
        for partition in ("train", "valid"):
            if not self.curves[f"loss_{partition}"]:
                continue
            with atomic_path(self.folder / f"{self.name}_losses_{partition}.h5") as temporary:
                with write_hdf5(temporary) as h5:
                    for curve in _CURVES:
                        h5[f"{curve}_{partition}"] = np.array(self.curves[f"{curve}_{partition}"])


def _line(row: dict[str, float], epochs: int | None) -> str:
    names = {"loss_train": "train loss", "loss_valid": "valid loss", "learning_rate": "learning rate"}
    parts = [f"{label} {row[key]:.4g}" for key, label in names.items() if key in row]
    parts += [f"rankme {row['rankme']:.1f}"] if "rankme" in row else []
    parts += [f"{row['samples_per_second']:.0f} samples/s"] if "samples_per_second" in row else []
    return f"epoch {row['epoch']:.0f}/{epochs}: " + ", ".join(parts)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints so that the previous one stays until the new one is complete.

    Lightning's own class writes below `/tmp` and moves the file, which is a copy between file systems: a full disk or
    a kill in the middle leaves neither.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint.

        Raises:
            OutputError: It cannot be written; the previous checkpoint is kept.
        """
        path = Path(path)
        try:
            write_torch(checkpoint, path)
        except OutputError as error:
            kept = path.with_name("last.ckpt").exists()
            resume = f", then resume={path.parents[1]} continues from the previous checkpoint" if kept else ""
            then = f"free some space{resume}"
            raise OutputError(f"{error}: {then}") from error


def remove_unfinished(folder: Path) -> None:
    """Remove checkpoints that a killed process was writing."""
    for path in folder.glob(".*.ckpt.*.tmp"):
        path.unlink(missing_ok=True)


class LastCheckpoint(Checkpoint):
    """Writes `last.ckpt`: every few epochs and minutes, at the end, and when a signal asks to stop.

    On SIGTERM, SIGUSR1 (a cluster's warning) or SIGINT it saves after the running batch, or after the epoch if only
    the validation is left, and ends the run, which can be resumed. Lightning calls it after all callbacks that are not
    checkpoints.

    Args:
        path: the file to save.
        every: epochs between checkpoints.
        minutes: the time between checkpoints within an epoch, by the first process's clock.
        curve: the losses, which must be finite when saving.
    """

    def __init__(self, path: Path, every: int, minutes: float, curve: LearningCurve) -> None:
        self.path, self.every, self.minutes, self.curve = path, every, minutes, curve
        self.signal: int | None = None
        self._saved = time.monotonic()
        self._handlers: Handlers | None = None

    def on_train_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Take over the signals after Lightning: its own handler ends the run without saving anything."""
        self._handlers = Handlers(self._note)
        self._saved = time.monotonic()
        if trainer.received_sigterm:
            self.signal = signal.SIGTERM

    def _note(self, number: int) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number
        log.warning("%s: stopping once the state is saved", signal.Signals(number).name)

    def _asked(self, trainer: "pl.Trainer") -> int:
        """Return the action of all processes: 0 continue, 1 save, 2 save and stop."""
        due = trainer.is_global_zero and time.monotonic() - self._saved >= 60 * self.minutes
        mine = 2 if self.signal is not None else int(due)
        if trainer.world_size == 1:
            return mine
        level = torch.tensor(float(mine), device=trainer.strategy.root_device)
        return int(trainer.strategy.reduce(level, reduce_op="max"))

    def on_train_batch_end(
        self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if due, and stop on request, unless the epoch ends here anyway."""
        if batch_idx + 1 < trainer.num_training_batches and (asked := self._asked(trainer)):
            self._save(trainer, pl_module)
            if asked == _STOP:
                self._stop(trainer)

    def on_train_epoch_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Save if due; stop on request, unless the training ends here anyway."""
        epoch = trainer.current_epoch + 1
        final, asked = epoch >= (trainer.max_epochs or 0), self._asked(trainer) == _STOP
        if final or asked or epoch % self.every == 0:
            self._save(trainer, pl_module)
        if asked and not final:
            self._stop(trainer)

    def _save(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        self.curve.check(trainer, pl_module)
        trainer.save_checkpoint(self.path)
        self._saved = time.monotonic()

    def _stop(self, trainer: "pl.Trainer") -> None:
        raise Interrupted(
            f"stopped in epoch {trainer.current_epoch + 1}; the state is in {self.path}: "
            f"resume={self.path.parents[1]} continues the run"
        )

    def teardown(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", stage: str) -> None:
        """Restore the signal handlers."""
        if self._handlers is not None:
            self._handlers.restore()

    def on_exception(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", exception: BaseException) -> None:
        """Restore the signal handlers."""
        self.teardown(trainer, pl_module, "fit")
