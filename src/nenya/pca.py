"""Principal components of latents: one pass over blocks, in float64."""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nenya.errors import InputFileError, OptionError

log = logging.getLogger(__name__)

Float64Array = npt.NDArray[np.float64]

BLOCK_ROWS = 16384


@dataclass(frozen=True)
class PCA:
    """Principal components of N latents of D numbers.

    Attributes:
        mean: (D,) float64.
        components: (M, D) float64, orthonormal rows by falling variance; in each row the number of largest
            magnitude is positive.
        explained_variance: (M,) float64, variance along each component, with N - 1 in the denominator.
        total_variance: sum of the variances of all D columns.
        n_rows: rows that were used.
        n_left_out: rows that were left out because they hold NaN or infinity.
    """

    mean: Float64Array
    components: Float64Array
    explained_variance: Float64Array
    total_variance: float
    n_rows: int
    n_left_out: int

    @property
    def explained_variance_ratio(self) -> Float64Array:
        """Share of the total variance along each component: (M,) float64; zeros where nothing varies."""
        return self.explained_variance / (self.total_variance or 1.0)

    def transform(self, latents: npt.NDArray[np.floating]) -> Float64Array:
        """Return the coordinates of latents, (N, D), along the components: (N, M) float64.

        Raises:
            InputFileError: rows of another length than the fitted ones.
        """
        array = np.asarray(latents, dtype=np.float64)
        _check_block(array, self.mean.size)
        return (array - self.mean) @ self.components.T


def _check_block(block: Float64Array, width: int | None) -> None:
    """Raise InputFileError unless the block is (N, D) with D equal to `width`, where that is known."""
    if block.ndim != 2 or (width is not None and block.shape[1] != width):
        raise InputFileError(f"latents of shape {block.shape}: wanted (N, {'D' if width is None else width})")


def _blocks(latents: Any) -> Iterator[Float64Array]:
    """Yield (n, D) float64 blocks of an array, an HDF5 data set, or an iterable of blocks."""
    whole = getattr(latents, "ndim", None) == 2
    starts = range(0, len(latents) if whole else 0, BLOCK_ROWS)
    width = None
    for block in (latents[start : start + BLOCK_ROWS] for start in starts) if whole else latents:
        array = np.asarray(block, dtype=np.float64)
        _check_block(array, width)
        width = array.shape[1]
        yield array


def _moments(latents: Any) -> tuple[Float64Array, Float64Array, Float64Array, int, int]:
    """Sum the finite rows and their products, shifted by the first block's mean.

    Returns:
        The shift (D,), the sum (D,) and the sum of outer products (D, D) of the shifted rows, all float64;
        the number of rows summed and of rows left out.
    """
    shift = total = products = np.zeros(0)
    n_rows = n_left_out = 0
    for block in _blocks(latents):
        finite = block[np.isfinite(block).all(axis=1)]
        n_left_out += len(block) - len(finite)
        if not len(finite):
            continue
        if not n_rows:
            shift = finite.mean(axis=0)
            total, products = np.zeros_like(shift), np.zeros((shift.size, shift.size))
        shifted = finite - shift
        total += shifted.sum(axis=0)
        products += shifted.T @ shifted
        n_rows += len(finite)
    return shift, total, products, n_rows, n_left_out


def fit_pca(
    latents: npt.NDArray[np.floating] | Iterable[npt.NDArray[np.floating]],
    n_components: int | None = None,
) -> PCA:
    """Fit principal components in one pass; memory does not grow with the number of rows.

    The covariance is summed in float64 of rows shifted by the first block's mean, since sums of squares of
    unshifted rows lose the small variances (Chan, Golub and LeVeque 1983, The American Statistician 37, 242).

    Args:
        latents: (N, D) array or HDF5 data set, or an iterable of (n, D) blocks. Rows with NaN or infinity are
            left out.
        n_components: number M of components kept; by default min(N, D).

    Raises:
        InputFileError: blocks of different widths, or fewer than two finite rows.
        OptionError: `n_components` outside 1 .. min(N, D).
    """
    shift, total, products, n_rows, n_left_out = _moments(latents)
    if n_rows < 2:
        raise InputFileError(f"{n_rows} finite latents ({n_left_out} left out): wanted at least 2")
    if n_left_out:
        log.warning("%d of %d latents hold NaN or infinity and were left out", n_left_out, n_rows + n_left_out)
    most = min(n_rows, shift.size)
    kept = most if n_components is None else n_components
    if not 1 <= kept <= most:
        raise OptionError(f"n_components={kept}: wanted 1 to {most} for {n_rows} latents of {shift.size} numbers")
    covariance = (products - np.outer(total, total) / n_rows) / (n_rows - 1)
    variance, vectors = np.linalg.eigh(covariance)
    components = vectors.T[::-1][:kept]
    largest = np.take_along_axis(components, np.abs(components).argmax(axis=1)[:, None], axis=1)
    return PCA(
        mean=shift + total / n_rows,
        components=np.ascontiguousarray(components * np.where(largest < 0, -1.0, 1.0)),
        explained_variance=np.maximum(variance[::-1][:kept], 0.0),
        total_variance=float(np.trace(covariance)),
        n_rows=n_rows,
        n_left_out=n_left_out,
    )
