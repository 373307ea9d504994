"""The loss of DINO and its centre, pure.

Letters in shapes: B images, V views of each, K prototypes.
"""

import torch
from torch import Tensor

from nenya.models.objectives.exact import exactly


def dino_loss(
    student: Tensor, teacher: Tensor, centre: Tensor, *, student_temp: float = 0.1, teacher_temp: float = 0.04
) -> Tensor:
    """Cross-entropy of the student's distribution over prototypes against the centred, sharpened one of the teacher.

    Caron et al. 2021 (arXiv:2104.14294), eq. 1 and 3 and algorithm 1, averaged over images and over all pairs of two
    different views. It has no gradient with respect to the teacher. Computed in float32 at least, under autocast too.

    Args:
        student: (B, V, K) floating point logits of the student.
        teacher: (B, V, K) logits of the teacher.
        centre: (K,) subtracted from the teacher's logits.
        student_temp: Temperature that divides the student's logits.
        teacher_temp: Temperature that divides the teacher's centred logits.

    Returns:
        Scalar, float32 (float64 for float64 logits).

    Raises:
        ValueError: The shapes differ, there are no images, or there is one view only.
    """
    if student.ndim != 3 or student.shape != teacher.shape or centre.shape != student.shape[2:]:
        raise ValueError(
            f"expected logits of the same shape (B, V, K) and a centre (K,), got {tuple(student.shape)}, "
            f"{tuple(teacher.shape)} and {tuple(centre.shape)}"
        )
    count, views, _ = student.shape
    if not count or views < 2:  # a view is compared with another one
        raise ValueError(f"expected at least one image and two views, got {count} and {views}")
    with exactly(student, teacher.detach(), centre) as (asked, given, middle):
        wanted = ((given - middle) / teacher_temp).softmax(dim=-1)
        found = (asked / student_temp).log_softmax(dim=-1)
        entropies = -torch.einsum("btk,bsk->ts", wanted, found)
        return (entropies.sum() - torch.diagonal(entropies).sum()) / (views * (views - 1) * count)


def moved_centre(centre: Tensor, teacher: Tensor, momentum: float = 0.9) -> Tensor:
    """Return the centre after a batch: the moving average of the teacher's logits (eq. 4).

    Args:
        centre: (K,) float32.
        teacher: (B, V, K) logits of the teacher, of all processes.
        momentum: Weight of the centre so far.

    Examples:
        >>> import torch
        >>> moved_centre(torch.zeros(2), torch.ones(8, 2), momentum=0.5).tolist()
        [0.5, 0.5]
    """
    with exactly(teacher) as (given,):
        return momentum * centre + (1 - momentum) * given.flatten(0, -2).mean(dim=0).to(centre.dtype)
