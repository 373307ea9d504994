"""Training under clouds: a network learns from clear views first, and then guides itself through clouds.

The first epochs follow the plain recipe. Then a copy of the network, the guide, is kept as it is and sees each cutout
without clouds, while the network sees it twice, under two clouds, and learns to give the latent of the guide: the same
direction, and as similar to those of the other cutouts. The guide holds what the latents of clear cutouts mean. An
epoch with it takes about 1.4 times as long.

Letters in shapes: B cutouts, V views of each, D length of a latent.
"""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from nenya.errors import CheckpointError
from nenya.models.backbones.make import FIRST_LAYERS
from nenya.models.checkpoint import Checkpoint
from nenya.models.resnet import ContrastiveNet
from nenya.models.schedule import Schedule
from nenya.options.sections import Options

TEMPERATURE = 0.1
"""By which similarities are divided."""
DIRECTION, SIMILARITY = 5.0, 10.0
"""Weights of the parts of the loss."""

GUIDED_RATE = 0.4
"""Highest learning rate with a guide, relative to `optim.learning_rate`."""


def guided_loss(latents: Tensor, clear: Tensor) -> Tensor:
    """Return how far latents under clouds are from those of the clear cutouts.

    The sum of `DIRECTION` (1 - cosine) and, so that neighbours stay neighbours, `SIMILARITY` times the Kullback-Leibler
    divergence of the similarities to all clear cutouts from those that the clear latent has (relational distillation,
    Fang 2021, arXiv:2101.04731).

    Args:
        latents: (B, V, D) floating point, of length 1 along D.
        clear: (B, V, D) of the guide for the views without clouds; their mean is what a cutout's latent should be.

    Returns:
        Scalar, float32 (float64 for float64 latents); 0 for an empty batch.
    """
    batch, views, _ = latents.shape
    if not batch or not views:
        return latents.sum().float() * 0
    with torch.autocast(latents.device.type, enabled=False):
        exact = latents if latents.dtype == torch.float64 else latents.float()
        seen, wanted = exact.flatten(0, 1), functional.normalize(clear.to(exact.dtype).mean(dim=1), dim=1)
        cosine = seen @ wanted.T
        own = torch.arange(batch, device=seen.device).repeat_interleave(views)
        direction = 1 - cosine.gather(1, own[:, None]).mean()
        among = (wanted @ wanted.T / TEMPERATURE).log_softmax(1)[own]
        similarity = functional.kl_div(
            (cosine / TEMPERATURE).log_softmax(1), among, reduction="batchmean", log_target=True
        )
        return DIRECTION * direction + SIMILARITY * similarity


class Guide:
    """The network before the training with clouds. Checkpoints hold it beside the network, not as a part of it."""

    def __init__(self) -> None:
        self.net: ContrastiveNet | None = None

    def take(self, net: ContrastiveNet) -> None:
        """Copy a network, unless there is a guide already, as after a resume."""
        if self.net is None:
            self.net = copy.deepcopy(net).requires_grad_(False).eval()

    @torch.no_grad()
    def latents(self, images: Tensor) -> Tensor:
        """Return the latents (B, V, D) of clear cutouts (B, V, C, H, W)."""
        assert self.net is not None
        found: Tensor = self.net.to(images.device)(images.flatten(0, 1))
        return found.reshape(*images.shape[:2], -1)

    def state(self) -> dict[str, Tensor] | None:
        """Return its tensors, for a checkpoint."""
        return None if self.net is None else dict(self.net.state_dict())

    def restore(self, state: Mapping[str, Any] | None, net: ContrastiveNet, *, needed: bool) -> None:
        """Take the tensors of a checkpoint.

        Args:
            state: the tensors, None if there were none.
            net: a network of the same architecture, on its device.
            needed: whether the training is past the epoch in which there must be a guide.

        Raises:
            CheckpointError: There is none where it is needed.
        """
        if state is None:
            if needed:
                raise CheckpointError(
                    "the checkpoint is from an epoch with clouds and lacks the guide: resume from last.ckpt of "
                    "the run, or from an epoch before augment.clouds_from"
                )
            return
        self.net = None
        self.take(net)
        assert self.net is not None
        self.net.load_state_dict(dict(state))


@dataclass(frozen=True)
class TwoSchedules:
    """Learning rates of the epochs without clouds, and then of those with a guide, from a lower rate; cosines by steps.

    Attributes:
        before: of the epochs without clouds; its own rates hold with a warm-up or without a cosine.
        first: number of these epochs.
        rate: the first with a guide.
        epochs: their number.
    """

    before: Schedule
    first: int
    rate: float
    epochs: int

    def at_step(self, epoch: int, step: int, steps_per_epoch: int) -> float:
        """Return the rate in force at a step; see `Schedule.at_step`."""
        done = epoch - 1 + step / steps_per_epoch
        if epoch > self.first:
            return self.rate * _cosine((done - self.first) / self.epochs)
        if self.before.warm or not self.before.cosine:
            return self.before.at_step(epoch, step, steps_per_epoch)
        return self.before.learning_rate * _cosine(done / self.first)


def _cosine(done: float) -> float:
    return (1 + math.cos(math.pi * min(done, 1.0))) / 2


def with_clouds(schedule: Schedule, options: Options, first: int) -> Schedule | TwoSchedules:
    """Return the learning rates of a training, which start again after `first` epochs if there is a guide then."""
    if not (options.augment.clouds and options.loss.clear_weight):
        return schedule
    before = replace(schedule, epochs=max(first, 1))
    return TwoSchedules(before, first, GUIDED_RATE * schedule.learning_rate, max(schedule.epochs - first, 1))


def with_mask_channel(checkpoint: Checkpoint) -> Checkpoint:
    """Return the weights of a network that sees images for one that sees masks too, and at first ignores them."""
    name = next((name for name in FIRST_LAYERS if name in checkpoint.state_dict), "")
    first = checkpoint.state_dict.get(name)
    if first is None or first.ndim != 4 or first.shape[1] not in (1, 3):  # channels of an image
        return checkpoint
    image = first.sum(dim=1, keepdim=True)
    return replace(
        checkpoint, state_dict={**checkpoint.state_dict, name: torch.cat([image, torch.zeros_like(image)], dim=1)}
    )
