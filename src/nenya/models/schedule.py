"""The learning rate: a warm-up by steps, then a cosine or steps by epochs. Pure functions."""

import math
from dataclasses import dataclass

from nenya.errors import OptionError


@dataclass(frozen=True)
class Schedule:
    """Learning rate of each epoch, counted from 1, and of each step within it, counted from 0.

    Without warm-up, epoch e of E has::

        cosine:  eta_min + (learning_rate - eta_min) (1 + cos(pi e / E)) / 2,
                 eta_min = learning_rate * lr_decay_rate**3
        steps:   learning_rate * lr_decay_rate**(number of lr_decay_epochs below e)

    With `warm`, the steps of the first `warm_epochs` epochs rise linearly from `warmup_from` to `warmup_to`.

    Attributes:
        learning_rate: The highest rate.
        epochs: Length of the complete training, E.
        cosine: Cosine instead of steps.
        warm: Warm up first.
        lr_decay_rate: Factor of a step; its cube bounds the cosine from below.
        lr_decay_epochs: Epochs after which the rate steps down.
        warm_epochs: Length of the warm-up.
        warmup_from: Rate of the very first step.

    Raises:
        OptionError: A value outside its range.
    """

    learning_rate: float
    epochs: int
    cosine: bool
    warm: bool
    lr_decay_rate: float = 0.1
    lr_decay_epochs: tuple[int, ...] = (700, 800, 900)
    warm_epochs: int = 10
    warmup_from: float = 0.01

    def __post_init__(self) -> None:
        object.__setattr__(self, "lr_decay_epochs", tuple(self.lr_decay_epochs))
        for name, valid, wanted in (
            ("learning_rate", 0 < self.learning_rate < math.inf, "above 0"),
            ("epochs", self.epochs >= 1, "at least 1"),
            ("lr_decay_rate", 0 < self.lr_decay_rate <= 1, "above 0 and at most 1"),
            ("lr_decay_epochs", all(epoch >= 1 for epoch in self.lr_decay_epochs), "at least 1 each"),
            ("warm_epochs", self.warm_epochs >= 1, "at least 1"),
            ("warmup_from", 0 <= self.warmup_from < math.inf, "at least 0"),
        ):
            if not valid:
                raise OptionError(f"optim.{name}={getattr(self, name)}: expected {wanted}")

    @property
    def warmup_to(self) -> float:
        """Rate at which the warm-up ends: the cosine's at `warm_epochs`, so that no jump follows.

        A training no longer than the warm-up has no cosine to join, and warms up to `learning_rate`.
        """
        if self.cosine and self.epochs > self.warm_epochs:
            return self.at_epoch(self.warm_epochs)
        return self.learning_rate

    def at_epoch(self, epoch: int) -> float:
        """Return the rate of an epoch, counted from 1, disregarding the warm-up."""
        if self.cosine:
            lowest = self.learning_rate * self.lr_decay_rate**3
            return lowest + (self.learning_rate - lowest) * (1 + math.cos(math.pi * epoch / self.epochs)) / 2
        return self.learning_rate * self.lr_decay_rate ** sum(epoch > decay for decay in self.lr_decay_epochs)

    def at_step(self, epoch: int, step: int, steps_per_epoch: int) -> float:
        """Return the rate in force at a step.

        Args:
            epoch: Counted from 1.
            step: Counted from 0 within the epoch.
            steps_per_epoch: Steps in an epoch.
        """
        if not self.warm or epoch > self.warm_epochs:
            return self.at_epoch(epoch)
        done = (step + (epoch - 1) * steps_per_epoch) / (self.warm_epochs * steps_per_epoch)
        return self.warmup_from + done * (self.warmup_to - self.warmup_from)
