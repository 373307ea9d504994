"""The teacher of BYOL, DINO and MoCo: a copy of the network whose weights follow it slowly."""

import copy
import math
from typing import TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


def copy_of(net: M) -> M:
    """Return a copy of a network, with the same weights, that has no gradients."""
    return copy.deepcopy(net).requires_grad_(requires_grad=False)


def rising(momentum: float, done: float) -> float:
    """Return the momentum of the teacher after a share of the training, from `momentum` to 1 by a cosine.

    Grill et al. 2020 (arXiv:2006.07733), section 3.2: 1 - (1 - momentum) (cos(pi k / K) + 1) / 2.

    Args:
        momentum: At the beginning.
        done: Steps done over all steps, k / K; beyond 1 counts as 1.
    """
    return 1 - (1 - momentum) * (math.cos(math.pi * min(done, 1.0)) + 1) / 2


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Move the teacher's weights towards the student's: momentum * teacher + (1 - momentum) * student.

    The statistics of its batch norms are its own, by its own forward passes.

    Args:
        teacher: Of `copy_of(student)`; changed in place.
        student: The network that is trained.
        momentum: Share of the teacher that stays.
    """
    for slow, fast in zip(teacher.parameters(), student.parameters(), strict=True):
        slow.lerp_(fast.detach().to(slow.dtype), 1 - momentum)
