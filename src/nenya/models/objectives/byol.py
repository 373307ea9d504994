"""The loss of BYOL, pure.

Letters in shapes: B images, D length of a projection.
"""

from torch import Tensor
from torch.nn import functional

from nenya.models.objectives.exact import exactly, two_batches


def byol_loss(predicted: Tensor, targets: Tensor) -> Tensor:
    """Squared distance of normalised predictions from normalised projections of the teacher.

    Grill et al. 2020 (arXiv:2006.07733), eq. 2, averaged over the images: 2 - 2 cos(q, z'). It has no gradient with
    respect to the targets. The objective adds both directions, view 1 to 2 and view 2 to 1. Computed in float32 at
    least, under autocast too.

    Args:
        predicted: (B, D) floating point, the predictor's output q for one view of each image.
        targets: (B, D), the teacher's projections z' of the other view.

    Returns:
        Scalar from 0 to 4, float32 (float64 for float64 predictions).

    Raises:
        ValueError: They have different shapes, or no rows.

    Examples:
        >>> import torch
        >>> views = torch.eye(4)
        >>> byol_loss(views, views).item(), byol_loss(views, -views).item()
        (0.0, 4.0)
    """
    two_batches(predicted, targets)
    with exactly(predicted, targets.detach()) as (asked, wanted):
        return (functional.normalize(asked, dim=1) - functional.normalize(wanted, dim=1)).square().sum(dim=1).mean()
