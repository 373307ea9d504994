"""Numbers on latents: do they fill their space, or have they collapsed?

Letters in shapes: N latents of length D. Arrays or torch tensors of any float type are taken, on any device;
the sums are in float64. Rows with a value that is not finite (cutouts with missing pixels) are left out.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

_BLOCK_ROWS = 1024


def feature_std(features: Any) -> float:
    """Return the mean over dimensions of the standard deviation of the latents scaled to length 1.

    Near 1 / sqrt(D) for latents spread evenly over the sphere, 0 when all are equal (Chen & He 2021, fig. 2).

    Args:
        features: (N, D) floating point.
    """
    return float(_unit(_rows(features)).std(axis=0).mean())


def uniformity(features: Any, t: float = 2.0) -> float:
    """Return log mean exp(-t |x - y|^2) over the pairs of different latents, scaled to length 1.

    Wang & Isola 2020 (arXiv:2005.10242), eq. of L_uniform: 0 when all are equal, down to about -2 t.

    Args:
        features: (N, D) floating point, N >= 2 (else NaN). Time grows with N^2, memory with N.
        t: Width of the Gaussian.
    """
    rows = _unit(_rows(features))
    count = len(rows)
    if count < 2:
        return float("nan")
    total = 0.0
    for start in range(0, count, _BLOCK_ROWS):
        cosines = rows[start : start + _BLOCK_ROWS] @ rows.T
        kernel = np.exp(-2 * t * np.clip(1 - cosines, 0, None))
        own = np.arange(len(kernel))
        kernel[own, start + own] = 0
        total += float(kernel.sum())
    return float(np.log(total / (count * (count - 1))))


def rankme(features: Any) -> float:
    """Return RankMe, the effective number of dimensions: between 1 and min(N, D).

    Garrido et al. 2023 (arXiv:2210.02885), eq. 2: exp of the entropy of the singular values over their sum.
    They are uncentred, so a common offset counts as a dimension; 0 log 0 is 0.

    Args:
        features: (N, D) floating point.
    """
    return effective_rank(np.linalg.svd(_rows(features), compute_uv=False))


def effective_rank(singular: NDArray[np.float64]) -> float:
    """Return exp of the entropy of singular values over their sum; 0 where all are 0.

    Args:
        singular: (D,), none negative.
    """
    total = float(singular.sum())
    if total == 0:
        return 0.0
    share = singular[singular > 0] / total
    return float(np.exp(-(share * np.log(share)).sum()))


def _rows(features: Any) -> NDArray[np.float64]:
    """Return the finite rows as (N, D) float64."""
    if hasattr(features, "detach"):
        features = features.detach().double().cpu().numpy()
    rows = np.asarray(features, dtype=np.float64)
    if rows.ndim != 2:
        raise ValueError(f"latents of shape {rows.shape} came, (N, D) is wanted")
    finite: NDArray[np.float64] = rows[np.isfinite(rows).all(axis=1)]
    return finite


def _unit(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scale rows to length 1; rows of zeros stay."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    scaled: NDArray[np.float64] = rows / np.where(lengths > 0, lengths, 1)
    return scaled
