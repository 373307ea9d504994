"""The loss of MoCo, SimCLR with a queue, and the queue's turn, pure.

Letters in shapes: B images, D length of a feature, Q keys in the queue.
"""

import torch
from torch import Tensor
from torch.nn import functional

from nenya.errors import OptionError
from nenya.models.objectives.exact import exactly, two_batches


def moco_loss(queries: Tensor, keys: Tensor, queue: Tensor, *, temperature: float = 0.07) -> Tensor:
    """Cross-entropy of each query's own key against the keys of earlier batches.

    He et al. 2020 (arXiv:1911.05722), eq. 1: the negatives are the queue alone, not the other images of the batch, so
    that a small batch has many. It has no gradient with respect to keys and queue. Computed in float32 at least, under
    autocast too.

    Args:
        queries: (B, D) floating point features of the network for one view of each image, of length 1.
        keys: (B, D) features of the teacher for the other view, of length 1.
        queue: (Q, D) keys of earlier batches, of length 1.
        temperature: Divides the cosines.

    Returns:
        Scalar, float32 (float64 for float64 queries).

    Raises:
        ValueError: The shapes differ, or there are no rows.
        OptionError: The temperature is not above 0.

    Examples:
        >>> import torch
        >>> keys, queue = torch.eye(4)[:2], torch.eye(4)[2:]
        >>> round(moco_loss(keys, keys, queue).item(), 4)  # each query equals its key, the queue is at right angles
        0.0
    """
    two_batches(queries, keys)
    if queue.ndim != 2 or queue.shape[1] != queries.shape[1]:  # (Q, D)
        raise ValueError(f"expected a queue of shape (Q, {queries.shape[1]}), got {tuple(queue.shape)}")
    if not temperature > 0:
        raise OptionError(f"expected a temperature above 0, got {temperature}")
    with exactly(queries, keys.detach(), queue.detach()) as (asked, own, others):
        positive = (asked * own).sum(dim=1, keepdim=True)
        logits = torch.cat([positive, asked @ others.T], dim=1) / temperature
        return functional.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))


def turned(queue: Tensor, first: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Replace the oldest keys of a queue by those of a batch.

    Args:
        queue: (Q, D).
        first: The place of the oldest key, a scalar on the device of the queue, which a step need not wait for.
        keys: (B, D), B at most Q.

    Returns:
        The new queue (Q, D), and the place of its oldest key.

    Examples:
        >>> import torch
        >>> queue, first = turned(torch.zeros(4, 1), 3, torch.ones(2, 1))
        >>> queue[:, 0].tolist(), first
        ([1.0, 0.0, 0.0, 1.0], 1)
    """
    places = (first + torch.arange(len(keys), device=queue.device)) % len(queue)
    return queue.index_copy(0, places, keys.to(queue.dtype)), (first + len(keys)) % len(queue)
