"""The parts of a training loop that users write themselves: meters, learning rates, optimizer, checkpoint."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nenya.io import as_options
from nenya.models.checkpoint import save_pth
from nenya.models.schedule import Schedule
from nenya.options.flat import flat_view, warm_up
from nenya.options.sections import Options


class TwoCropTransform:
    """Applies a random transformation twice.

    Args:
        transform: of one image.
    """

    def __init__(self, transform: Callable[[Any], Any]) -> None:
        self.transform = transform

    def __call__(self, x: Any) -> list[Any]:
        """Return two views of an image."""
        return [self.transform(x), self.transform(x)]


class AverageMeter:
    """The last value, sum, count and mean of a series."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all values."""
        self.val, self.avg, self.sum, self.count = 0.0, 0.0, 0.0, 0

    def update(self, val: float, n: int = 1) -> None:
        """Take in a value that counts `n` times."""
        self.val, self.sum, self.count = val, self.sum + val * n, self.count + n
        self.avg = self.sum / self.count if self.count else 0.0


def _schedule(opt: Any) -> Schedule:
    options = as_options(Options, opt)
    o = options.optim
    return Schedule(
        learning_rate=o.learning_rate,
        epochs=options.trainer.max_epochs,
        cosine=o.cosine,
        warm=warm_up(options),
        lr_decay_rate=o.lr_decay_rate,
        lr_decay_epochs=tuple(o.lr_decay_epochs),
    )


def adjust_learning_rate(args: Any, optimizer: torch.optim.Optimizer, epoch: int) -> None:
    """Set the learning rate of an epoch, counted from 1; see `nenya.models.schedule`.

    Args:
        args: options.
        optimizer: changed in place.
        epoch: counted from 1.
    """
    for group in optimizer.param_groups:
        group["lr"] = _schedule(args).at_epoch(epoch)


def warmup_learning_rate(
    args: Any, epoch: int, batch_id: int, total_batches: int, optimizer: torch.optim.Optimizer
) -> None:
    """Set the learning rate of a step of the warm-up; later steps keep the epoch's.

    Args:
        args: options.
        epoch: counted from 1.
        batch_id: step within the epoch, counted from 0.
        total_batches: steps of an epoch.
        optimizer: changed in place.
    """
    schedule = _schedule(args)
    if schedule.warm and epoch <= schedule.warm_epochs:
        for group in optimizer.param_groups:
            group["lr"] = schedule.at_step(epoch, batch_id, total_batches)


def set_optimizer(opt: Any, model: nn.Module) -> torch.optim.Optimizer:
    """Return SGD with the rate, momentum and weight decay of the options."""
    o = as_options(Options, opt).optim
    return torch.optim.SGD(model.parameters(), lr=o.learning_rate, momentum=o.momentum, weight_decay=o.weight_decay)


def save_model(model: nn.Module, optimizer: torch.optim.Optimizer, opt: Any, epoch: int, save_file: str | Path) -> None:
    """Write a checkpoint: model, optimizer, epoch, and the options as a plain dictionary.

    Args:
        model: the network.
        optimizer: its optimizer.
        opt: options.
        epoch: epochs done.
        save_file: the file; its folder is made.

    Raises:
        OutputError: It cannot be written.
    """
    options = flat_view(as_options(Options, opt))
    save_pth(save_file, model, options=options, epoch=epoch, optimizer_state=optimizer.state_dict())


def accuracy(output: Tensor, target: Tensor, topk: Sequence[int] = (1,)) -> list[Tensor]:
    """Return the percentage of rows (B, classes) whose target (B,) is among the k largest scores, for each k."""
    best = output.topk(max(topk), dim=1).indices
    hits = best == target[:, None]
    return [hits[:, :k].any(dim=1).float().mean(dim=0, keepdim=True) * 100.0 for k in topk]
