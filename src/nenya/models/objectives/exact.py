"""Losses in float32 at least, whatever the precision of the network; and the checks that they share."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def exactly(*tensors: Tensor) -> Iterator[list[Tensor]]:
    """Give tensors in float32 (float64 ones as they are), and switch autocast off."""
    with torch.autocast(tensors[0].device.type, enabled=False):
        yield [tensor if tensor.dtype == torch.float64 else tensor.float() for tensor in tensors]


def two_batches(first: Tensor, second: Tensor, *, least: int = 1) -> None:
    """Check that two views are of the same shape (B, D), with at least so many rows.

    Raises:
        ValueError: They are not.
    """
    if first.ndim != 2 or first.shape != second.shape:  # (B, D)
        raise ValueError(
            f"expected two views of the same shape (B, D), got {tuple(first.shape)} and {tuple(second.shape)}"
        )
    if len(first) < least:
        raise ValueError(f"expected at least {least} images, for statistics of the batch, got {len(first)}")
