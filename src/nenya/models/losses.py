"""The contrastive loss of SimCLR and SupCon, pure, and the gathering of its features over processes.

Letters in shapes: B images, V views of each, D length of a feature.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nenya.errors import OptionError

CONTRAST_MODES = ("all", "one")


def contrastive_loss(
    features: Tensor,
    labels: Tensor | None = None,
    *,
    temperature: float = 0.07,
    base_temperature: float = 0.07,
    contrast_mode: str = "all",
) -> Tensor:
    """Supervised contrastive loss; without labels, SimCLR's.

    Khosla et al. 2020 (arXiv:2004.11362), eq. 2, averaged over the anchors and multiplied by
    `temperature / base_temperature`. An anchor's positives are the other views of its own image and, with
    labels, all views of the images with the same label. An anchor without a positive contributes 0.
    Computed in float32 at least, under autocast too: logits reach 1 / temperature, beyond half precision.

    Args:
        features: (B, V, D) floating point, of length 1 along D.
        labels: (B,) classes of the images, or None: each image is its own class.
        temperature: Divides the cosines.
        base_temperature: Temperature at which the loss is not scaled.
        contrast_mode: 'all': every view is an anchor; 'one': the first view of each image only.

    Returns:
        Scalar, float32 (float64 for float64 features); 0 for an empty batch.

    Raises:
        ValueError: Features or labels have the wrong shape.
        OptionError: `contrast_mode` is unknown, or a temperature is not above 0.

    Examples:
        >>> import torch
        >>> twins = torch.eye(2)[:, None].expand(2, 2, 2)  # two cutouts, two views, two dimensions
        >>> round(contrastive_loss(twins).item(), 4)  # twins are equal, other cutouts at right angles
        0.0
    """
    _check(features, labels, temperature, base_temperature, contrast_mode)
    batch, views, _ = features.shape
    with torch.autocast(features.device.type, enabled=False):
        exact = features if features.dtype == torch.float64 else features.float()
        # View by view, because the first views are the anchors of mode 'one'.
        contrast = exact.transpose(0, 1).flatten(0, 1)
        anchors = contrast if contrast_mode == "all" else contrast[:batch]
        itself = torch.eye(len(anchors), len(contrast), dtype=torch.bool, device=features.device)
        classes = torch.arange(batch, device=features.device) if labels is None else labels
        same = classes.repeat(len(anchors) // max(batch, 1))[:, None] == classes.repeat(views)[None, :]
        positive = same & ~itself

        logits = anchors @ contrast.T / temperature
        log_prob = logits - logits.masked_fill(itself, -torch.inf).logsumexp(dim=1, keepdim=True)
        summed = torch.where(positive, log_prob, 0.0).sum(dim=1)
        mean_over_positives = summed / positive.sum(dim=1).clamp(min=1)
        return -(temperature / base_temperature) * mean_over_positives.sum() / max(len(anchors), 1)


def _check(
    features: Tensor, labels: Tensor | None, temperature: float, base_temperature: float, contrast_mode: str
) -> None:
    """Raise for arguments that `contrastive_loss` cannot use."""
    if features.ndim != 3:
        raise ValueError(f"expected features of shape (B, V, D), got {tuple(features.shape)}")
    if labels is not None and labels.shape != features.shape[:1]:
        raise ValueError(f"expected labels of shape ({len(features)},), one per image, got {tuple(labels.shape)}")
    if contrast_mode not in CONTRAST_MODES:
        raise OptionError(f"contrast_mode={contrast_mode!r}: expected one of {', '.join(CONTRAST_MODES)}")
    if not (temperature > 0 and base_temperature > 0):
        raise OptionError(f"expected temperatures above 0, got {temperature} and {base_temperature}")


def gather_views(features: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Join the features of all processes, so that each computes the loss of the complete batch.

    The gradient flows back to the process that a row came from, summed over the processes' losses. All of
    these are the same global loss L, so a process gets world_size * dL/d(its rows); the mean over processes
    that DistributedDataParallel takes of the parameters' gradients then is dL/d(parameters), exactly.
    A collective call: every process makes it, also one with no rows, and all with labels or all without.

    Args:
        features: (B, V, D) of this process; B may differ between processes and be 0.
        labels: (B,) integer classes of this process's images, or None.

    Returns:
        (sum of all B, V, D) features and (sum of all B,) labels, rank 0's rows first; the arguments
        themselves where there is one process only.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return features, labels
    own = torch.tensor([len(features)], device=features.device)
    counts = [torch.zeros_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, own)
    rows = [int(count) for count in counts]
    gathered: Tensor = _GatherRows.apply(features, rows)  # type: ignore[no-untyped-call]  # torch has no types here
    return gathered, None if labels is None else _gather_rows(labels, rows)


def _gather_rows(tensor: Tensor, rows: list[int]) -> Tensor:
    """Concatenate tensors of `rows[rank]` rows from all ranks."""
    # Padded, because all_gather needs equal sizes.
    padded = tensor.new_zeros((max(rows), *tensor.shape[1:]))
    padded[: len(tensor)] = tensor
    parts = [torch.empty_like(padded) for _ in rows]
    dist.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, rows, strict=True)])


class _GatherRows(torch.autograd.Function):
    """The concatenation over ranks, with its adjoint: the sum over ranks of the gradient of a rank's rows."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, rows: list[int]) -> Tensor:
        """Return all ranks' rows."""
        ctx.rows = rows
        return _gather_rows(features.detach(), rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Return the gradient of this rank's rows."""
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        rank = dist.get_rank()
        start = sum(ctx.rows[:rank])
        return total[start : start + ctx.rows[rank]], None
