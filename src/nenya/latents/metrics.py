"""Metrics of latents: do they fill their space, or have they collapsed?

Letters in shapes: N latents of length D. Arrays or torch tensors of any float type and device are accepted;
the sums are in float64. Rows with non-finite values (cutouts with missing pixels) are left out.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

_BLOCK_ROWS = 1024
_ROUNDING = 1e-6  # relative; of float32, and of constants with which something was calculated
_SMALLEST = 1e-12


def feature_std(features: Any) -> float:
    """Return the mean over dimensions of the standard deviation of the latents scaled to unit length.

    Near 1 / sqrt(D) for latents spread evenly over the sphere, 0 when all are equal (Chen & He 2021, fig. 2).

    Args:
        features: (N, D) floating point.

    Examples:
        >>> import numpy as np
        >>> feature_std(np.eye(4)) > feature_std(np.ones((4, 4)))
        True
    """
    return float(_unit(_rows(features)).std(axis=0).mean())


def uniformity(features: Any, t: float = 2.0) -> float:
    """Return log mean exp(-t |x - y|^2) over the pairs of different latents, scaled to unit length.

    Wang & Isola 2020 (arXiv:2005.10242), eq. of L_uniform: 0 when all are equal, down to about -2 t.

    Args:
        features: (N, D) floating point, N >= 2 (else NaN). Time grows with N^2, memory with N.
        t: Width of the Gaussian.

    Examples:
        >>> import numpy as np
        >>> round(uniformity(np.eye(4)), 3)  # all pairs have the squared distance 2
        -4.0
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

    Examples:
        >>> import numpy as np
        >>> round(rankme(np.eye(4)), 2)
        4.0
    """
    return effective_rank(np.linalg.svd(_rows(features), compute_uv=False))


def effective_rank(singular: NDArray[np.floating]) -> float:
    """Return exp of the entropy of singular values over their sum; 0 where all are 0.

    Args:
        singular: (D,), none negative.

    Examples:
        >>> import numpy as np
        >>> round(effective_rank(np.array([1.0, 1.0, 0.0])), 2)
        2.0
    """
    total = float(singular.sum())
    if total == 0:
        return 0.0
    share = singular[singular > 0] / total
    return float(np.exp(-(share * np.log(share)).sum()))


def alignment(features: Any, others: Any, alpha: float = 2.0) -> float:
    """Return the mean of |x - y|^alpha over pairs of latents scaled to unit length.

    Wang & Isola 2020 (arXiv:2005.10242), eq. of L_align: 0 if both rows of each pair are equal, at most 2^alpha.

    Args:
        features: (N, D) floating point.
        others: (N, D), the partner of each row. Pairs with non-finite values are left out; NaN if none is left.
        alpha: Power of the distance.

    Examples:
        >>> import numpy as np
        >>> alignment(np.eye(3), np.eye(3))
        0.0
    """
    x, y = _pairs(features, others)
    return float((np.linalg.norm(x - y, axis=1) ** alpha).mean()) if len(x) else float("nan")


def mean_cosine(features: Any, others: Any) -> float:
    """Return the mean cosine of pairs of latents: 1 for parallel pairs. Arguments as for `alignment`.

    Examples:
        >>> import numpy as np
        >>> mean_cosine(np.eye(3), 2 * np.eye(3))
        1.0
    """
    x, y = _pairs(features, others)
    return float((x * y).sum(axis=1).mean()) if len(x) else float("nan")


def nearest_rows(features: Any, k: int) -> NDArray[np.int64]:
    """Return for each latent the k nearest others by Euclidean distance: (N, k), the nearest first, ties by row number.

    Time grows with N^2, memory with N.

    Args:
        features: (N, D), all finite, taken as float32.
        k: 1 to N - 1.

    Raises:
        ValueError: `k` is out of range.

    Examples:
        >>> import numpy as np
        >>> nearest_rows(np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]), 1)[:2].tolist()
        [[1], [0]]
    """
    from nenya.latents.neighbours import Neighbours

    rows = np.asarray(features, dtype=np.float32)
    if not 1 <= k < len(rows):
        raise ValueError(f"k={k}: expected 1 to {len(rows) - 1} neighbours for {len(rows)} latents")
    found = Neighbours(rows).search(rows, k + 1)[1]
    own = found == np.arange(len(rows))[:, None]
    own[~own.any(axis=1), k] = True  # more than k equal rows come before it
    others: NDArray[np.int64] = found[~own].reshape(len(rows), k)
    return others


def neighbour_agreement(
    neighbours: NDArray[np.integer], values: Any, period: float | None = None
) -> tuple[float, float]:
    """Return the agreement of neighbours in a quantity, and its standard error.

    1 - a / b, where a is the mean |v_i - v_j| over rows i and their neighbours j, and b that over all pairs of
    different rows: 1 if neighbours have the same value, 0 if they agree no better than random pairs, negative if
    worse.

    Args:
        neighbours: (N, k) row numbers, of `nearest_rows`.
        values: (N,) the quantity of each row; NaN if unknown: such rows and neighbours are left out.
        period: of a circular quantity, such as 1 for the fraction of the year: differences take the shorter way.

    Returns:
        The agreement and its standard error, which treats rows as independent. NaN if values differ by rounding only.
    """
    known = np.asarray(values, dtype=np.float64)
    near = _difference(known[:, None] - known[neighbours], period)
    counted = np.isfinite(near)
    rows = counted.any(axis=1)
    finite = known[np.isfinite(known)]
    count = len(finite)
    total = sum(
        float(_difference(finite[start : start + _BLOCK_ROWS, None] - finite, period).sum())
        for start in range(0, count, _BLOCK_ROWS)
    )
    if not rows.any() or same_values(finite):
        return float("nan"), float("nan")
    random = total / (count * (count - 1))
    each = np.where(counted, near, 0)[rows].sum(axis=1) / counted[rows].sum(axis=1)
    return float(1 - each.mean() / random), float(each.std() / random / np.sqrt(len(each)))


def same_values(values: NDArray[np.float64]) -> bool:
    """Return whether values (N,) are equal, apart from rounding; there may be none."""
    return not len(values) or float(np.ptp(values)) <= _ROUNDING * max(float(np.abs(values).max()), _SMALLEST)


def _difference(difference: NDArray[np.float64], period: float | None) -> NDArray[np.float64]:
    size = np.abs(difference)
    if period is None:
        return size
    size %= period
    shorter: NDArray[np.float64] = np.minimum(size, period - size)
    return shorter


def _pairs(features: Any, others: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the finite pairs, each row scaled to unit length."""
    x, y = _array(features), _array(others)
    if x.shape != y.shape:
        raise ValueError(f"expected pairs of latents of equal shape, got {x.shape} and {y.shape}")
    finite = np.isfinite(x).all(axis=1) & np.isfinite(y).all(axis=1)
    return _unit(x[finite]), _unit(y[finite])


def _array(features: Any) -> NDArray[np.float64]:
    """Return latents as (N, D) float64."""
    if hasattr(features, "detach"):
        features = features.detach().double().cpu().numpy()
    rows = np.asarray(features, dtype=np.float64)
    if rows.ndim != 2:
        raise ValueError(f"expected latents of shape (N, D), got {rows.shape}")
    return rows


def _rows(features: Any) -> NDArray[np.float64]:
    """Return the finite rows as (N, D) float64."""
    rows = _array(features)
    finite: NDArray[np.float64] = rows[np.isfinite(rows).all(axis=1)]
    return finite


def _unit(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scale rows to unit length; zero rows stay zero."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    scaled: NDArray[np.float64] = rows / np.where(lengths > 0, lengths, 1)
    return scaled
