"""A batch through the network in parts: the gradient of a loss of the complete batch in the memory of one part.

The features of all parts are computed first, the loss is that of all of them, and backwards each part is computed again
(GradCache: Gao, Zhang, Han and Callan 2021, arXiv:2101.06983). So losses of pairs and of statistics over the batch are
exact too, where adding up the gradients of small batches would be another loss. Batch norms see the statistics of each
part; a network without them has the gradient of the complete batch.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def in_parts(forward: Callable[[Tensor], Tensor], net: nn.Module, images: Tensor, size: int) -> Tensor:
    """Return the features of images, computed `size` images at a time, forwards and again backwards.

    Args:
        forward: images (n, C, H, W) -> features (n, D), without random numbers.
        net: the network of `forward`; the running statistics of its batch norms change once only.
        images: (N, C, H, W).
        size: images of a part; the last one may have fewer.

    Returns:
        (N, D) features, with gradients.
    """
    contexts = partial(_contexts, net)
    parts = [
        checkpoint(forward, part, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)
        for part in torch.split(images, size)
    ]
    return torch.cat(parts)


def _contexts(net: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Return the contexts of the first computation and of the second."""
    return nullcontext(), _with_kept_statistics(net)


@contextmanager
def _with_kept_statistics(net: nn.Module) -> Iterator[None]:
    """Let batch norms normalise as in training, and keep their running statistics."""
    norms = [module for module in net.modules() if isinstance(module, _BATCH_NORMS)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
        norm.num_batches_tracked = None if norm.num_batches_tracked is None else norm.num_batches_tracked.clone()
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
