"""The loss of Barlow Twins, pure.

Letters in shapes: B images, D length of an embedding.
"""

import torch
from torch import Tensor

from nenya.models.objectives.exact import exactly, two_batches

_EPSILON = 1e-5  # of the authors' BatchNorm


def barlow_twins_loss(first: Tensor, second: Tensor, *, redundancy: float = 0.005) -> Tensor:
    """Distance of the views' cross-correlation matrix from the identity.

    Zbontar, Jing, Misra, LeCun and Deny 2021 (arXiv:2103.03230), eq. 1: with each dimension of each view at mean 0 and
    standard deviation 1 over the batch (divisor B, 1e-5 added to the variance), and C = z^T z' / B::

        sum over i of (1 - C_ii)^2 + redundancy * sum over i != j of C_ij^2

    Computed in float32 at least, under autocast too.

    Args:
        first: (B, D) floating point, embeddings of one view of each image, not normalised; B at least 2.
        second: (B, D), of the other view.
        redundancy: Weight of the elements off the diagonal, lambda.

    Returns:
        Scalar, float32 (float64 for float64 embeddings).

    Raises:
        ValueError: The embeddings have different shapes, or fewer than two rows.

    Examples:
        >>> import torch
        >>> views = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
        >>> bool(barlow_twins_loss(views, views) < barlow_twins_loss(views, views.flip(0)))
        True
    """
    two_batches(first, second, least=2)
    with exactly(first, second) as views:
        one, other = (_standardised(view) for view in views)
        correlation = one.T @ other / len(one)
        diagonal, squares = torch.diagonal(correlation), correlation.square()
        return (1 - diagonal).square().sum() + redundancy * (squares.sum() - torch.diagonal(squares).sum())


def _standardised(embeddings: Tensor) -> Tensor:
    """Return embeddings with mean 0 and standard deviation 1 over the batch in each dimension."""
    centred = embeddings - embeddings.mean(dim=0)
    return centred / (centred.square().mean(dim=0) + _EPSILON).sqrt()
