"""The progress of a training: a bar over all epochs, and a warning when the latents collapse."""

import logging
import math
from typing import Any

from nenya.runtime.lightning import Callback, pl
from nenya.runtime.process import RowProgress

log = logging.getLogger(__name__)

_FROM_EPOCH = 3  # latents of a new network lie close together
_COLLAPSED = 1.5  # RankMe, which is 1 if all latents are parallel


class TrainingBar(Callback):
    """Shows the epoch, counted from 1 as in the log, and the time left of all epochs."""

    def __init__(self) -> None:
        self._progress: RowProgress | None = None

    def on_train_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Begin, after the batches of a resumed run."""
        batches, epochs = trainer.num_training_batches, trainer.max_epochs
        if trainer.is_global_zero and epochs and math.isfinite(batches):
            total = int(batches) * epochs
            self._progress = RowProgress("training", total, before=min(trainer.global_step, total), unit="batches")
            self._progress.__enter__()

    def on_train_epoch_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Name the epoch."""
        if self._progress is not None:
            self._progress.rename(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}")

    def on_train_batch_end(
        self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count a batch."""
        if self._progress is not None:
            self._progress.advance(1)

    def teardown(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", stage: str) -> None:
        """Remove the bar."""
        if self._progress is not None:
            self._progress.__exit__(None, None, None)
            self._progress = None

    def on_exception(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", exception: BaseException) -> None:
        """Remove the bar."""
        self.teardown(trainer, pl_module, "fit")


class CollapseWarning(Callback):
    """Warns once if the latents of the validation lie along one direction after some epochs."""

    def __init__(self) -> None:
        self.said = False

    def on_validation_epoch_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Compare RankMe with its value for equal latents."""
        rank, epoch = trainer.callback_metrics.get("valid/rankme"), trainer.current_epoch + 1
        if rank is None or self.said or epoch < _FROM_EPOCH or float(rank) >= _COLLAPSED:
            return
        self.said = True
        log.warning(
            "RankMe is %.2f in epoch %d: the latents have collapsed to one direction, so all cutouts look alike to the "
            "network. Try a lower optim.learning_rate, a larger loader.batch_size_train, a higher loss.temp, or weaker "
            "views (a larger crop in augment.random_jitter), and check with nenya inspect that the cutouts differ",
            float(rank), epoch,
        )  # fmt: skip
