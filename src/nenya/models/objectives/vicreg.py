"""The loss of VICReg, pure.

Letters in shapes: B images, D length of an embedding.
"""

import torch
from torch import Tensor
from torch.nn import functional

from nenya.models.objectives.exact import exactly, two_batches


def vicreg_loss(
    first: Tensor,
    second: Tensor,
    *,
    invariance: float = 25.0,
    variance: float = 25.0,
    covariance: float = 1.0,
    least: float = 1.0,
    epsilon: float = 1e-4,
) -> Tensor:
    """Variance-invariance-covariance loss of two views.

    Bardes, Ponce and LeCun 2022 (arXiv:2105.04906), section 4.1, with the normalisations of the authors' code: the
    squared distance is averaged over images and dimensions, and the variance term over the views::

        invariance * mean (z - z')^2
        + variance * (v(z) + v(z')) / 2,    v = mean over dimensions of max(0, least - sqrt(Var + epsilon))
        + covariance * (c(z) + c(z')),      c = sum over i != j of Cov_ij^2 / D

    Variances and covariances have B - 1 as their divisor. Computed in float32 at least, under autocast too.

    Args:
        first: (B, D) floating point, embeddings of one view of each image, not normalised; B at least 2.
        second: (B, D), of the other view.
        invariance: Weight of the distance between the views.
        variance: Weight of the hinge on the standard deviation of each dimension.
        covariance: Weight of the squared covariances.
        least: Standard deviation below which a dimension is pushed apart.
        epsilon: Added to a variance before its root.

    Returns:
        Scalar, float32 (float64 for float64 embeddings).

    Raises:
        ValueError: The embeddings have different shapes, or fewer than two rows.

    Examples:
        >>> import torch
        >>> views = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
        >>> bool(vicreg_loss(views, views) < vicreg_loss(views, views.flip(0)))
        True
    """
    two_batches(first, second, least=2)
    with exactly(first, second) as (one, other):
        distance = functional.mse_loss(one, other)
        spread = sum(functional.relu(least - (z.var(dim=0) + epsilon).sqrt()).mean() for z in (one, other)) / 2
        return invariance * distance + variance * spread + covariance * (_redundancy(one) + _redundancy(other))


def _redundancy(embeddings: Tensor) -> Tensor:
    """Return the sum of the squared covariances of different dimensions, over D."""
    count, length = embeddings.shape
    centred = embeddings - embeddings.mean(dim=0)
    squares = (centred.T @ centred / (count - 1)).square()
    return (squares.sum() - torch.diagonal(squares).sum()) / length
