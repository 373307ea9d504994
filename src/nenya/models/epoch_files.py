"""`ckpt_epoch_<n>.pth`: the files that the first nenya kept of a training, and resuming from one of them."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import torch

from nenya.data.hdf5_links import damage_named
from nenya.data.hdf5_open import open_hdf5
from nenya.errors import CheckpointError, MissingCheckpointError, OptionError
from nenya.models.checkpoint import load_checkpoint, register_params_stubs, save_pth, write_torch
from nenya.models.contrastive import ContrastiveModule
from nenya.models.objectives.methods import described
from nenya.options.flat import flat_name, flat_view
from nenya.options.sections import Options
from nenya.runtime.lightning import Callback, lightning, pl

if TYPE_CHECKING:
    from collections.abc import Mapping

NAME = "ckpt_epoch_{}.pth"


class EpochFiles(Callback):
    """Writes `ckpt_epoch_<n>.pth` after every so many epochs: weights, optimizer, options, epoch.

    Args:
        folder: of the run.
        every: epochs between files.
    """

    def __init__(self, folder: Path, every: int) -> None:
        self.folder, self.every = folder, every

    def on_train_epoch_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Write the file of this epoch if it is due."""
        assert isinstance(pl_module, ContrastiveModule)
        epoch = trainer.current_epoch + 1
        if trainer.is_global_zero and epoch % self.every == 0:
            save_pth(
                self.folder / NAME.format(epoch),
                pl_module.extracted,
                options={**flat_view(pl_module.options), **described(pl_module.options)},
                epoch=epoch,
                optimizer_state=trainer.optimizers[0].state_dict(),
            )


def resume_point(options: Options, folder: Path, epoch: int, rows: int) -> Path:
    """Make `checkpoints/last.ckpt` of `ckpt_epoch_<epoch>.pth`, ours or the first nenya's, so that a run resumes there.

    Args:
        options: of the run.
        folder: of the run; the losses until then are taken from its learning curves, where they are.
        epoch: counted from 1.
        rows: training cutouts, which decide how many steps an epoch has.

    Raises:
        OptionError: The training is at its end with this epoch, or its objective has parts that the file lacks.
        CheckpointError: There is no such file, or it cannot be used.
    """
    path = folder / NAME.format(epoch)
    if options.loss.ssl_method not in ("SimCLR", "SupCon"):
        raise OptionError(
            f"load_epoch={epoch}: {path.name} holds the network without the other parts of {options.loss.ssl_method}: "
            "leave load_epoch out to resume from checkpoints/last.ckpt"
        )
    if not 1 <= epoch < options.trainer.max_epochs:
        raise OptionError(f"load_epoch={epoch}: expected 1 to {options.trainer.max_epochs - 1}, before the last epoch")
    if not path.is_file():
        raise MissingCheckpointError(f"load_epoch={epoch}: {path} does not exist; give the epoch of an existing file")
    found = load_checkpoint(path)
    steps = epoch * math.ceil(rows / options.loader.batch_size_train)
    content = {
        "epoch": epoch - 1,
        "global_step": steps,
        "pytorch-lightning_version": lightning.__version__,
        "state_dict": {f"net.{name}": tensor for name, tensor in found.state_dict.items()},
        "loops": {"fit_loop": _loop(epoch, steps)},
        "callbacks": {"LearningCurve": _curves(folder, flat_name(options), epoch)},
        "optimizer_states": [_optimizer(path)],
        "lr_schedulers": [],
        "opt": flat_view(options),
    }
    last = folder / "checkpoints" / "last.ckpt"
    last.parent.mkdir(parents=True, exist_ok=True)
    write_torch(content, last)
    return last


def _optimizer(path: Path) -> "Mapping[str, Any]":
    """Return the state of the optimizer in a checkpoint that `load_checkpoint` has read."""
    register_params_stubs()
    state = torch.load(path, map_location="cpu", weights_only=True).get("optimizer")
    if not isinstance(state, dict) or not {"state", "param_groups"} <= set(state):
        raise CheckpointError(f"{path}: has no optimizer, so a training cannot resume there: use init_from={path}")
    return state


def _loop(epoch: int, steps: int) -> dict[str, Any]:
    """Return Lightning's counters at the end of an epoch."""
    done = steps // epoch

    def counted(total: int, current: int, *names: str) -> dict[str, Any]:
        return {"total": dict.fromkeys(names, total), "current": dict.fromkeys(names, current)}

    batches = ("ready", "completed", "started", "processed")
    epochs = counted(epoch, epoch, *batches)
    for part in epochs.values():
        part["completed"] = epoch - 1  # as at the moment when Lightning saves
    return {
        "state_dict": {},
        "epoch_loop.state_dict": {"_batches_that_stepped": steps},
        "epoch_loop.batch_progress": {**counted(steps, done, *batches), "is_last_batch": True},
        "epoch_loop.scheduler_progress": counted(0, 0, "ready", "completed"),
        "epoch_loop.automatic_optimization.state_dict": {},
        "epoch_loop.automatic_optimization.optim_progress": {
            "optimizer": {
                "step": counted(steps, done, "ready", "completed"),
                "zero_grad": counted(steps, done, "ready", "completed", "started"),
            }
        },
        "epoch_loop.manual_optimization.state_dict": {},
        "epoch_loop.manual_optimization.optim_step_progress": counted(0, 0, "ready", "completed"),
        "epoch_loop.val_loop.state_dict": {},
        "epoch_loop.val_loop.batch_progress": {**counted(0, 0, *batches), "is_last_batch": True},
        "epoch_progress": epochs,
    }


def _curves(folder: Path, name: str, epoch: int) -> dict[str, Any]:
    """Return the losses until an epoch, by the learning curves of the run."""
    curves: dict[str, list[float]] = {
        f"{curve}_{part}": [] for curve in ("loss", "loss_step", "loss_avg") for part in ("train", "valid")
    }
    for part in ("train", "valid"):
        path = folder / "learning_curve" / f"{name}_losses_{part}.h5"
        if not path.is_file():
            continue
        with open_hdf5(path) as file, damage_named(str(path)):
            whole = len(file[f"loss_{part}"])
            kept = min(epoch, whole)
            for key in (key for key in curves if key.endswith(part)):
                data = file.get(key)
                if isinstance(data, h5py.Dataset):
                    curves[key] = [float(value) for value in data[: len(data) * kept // max(whole, 1)]]
    rows = [{"epoch": float(i + 1), "loss_train": loss} for i, loss in enumerate(curves["loss_train"])]
    if len(curves["loss_valid"]) == len(rows):
        rows = [{**row, "loss_valid": loss} for row, loss in zip(rows, curves["loss_valid"], strict=True)]
    return {"curves": curves, "epochs": rows, "running": []}
