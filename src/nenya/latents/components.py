"""Principal components of latents, streamed."""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nenya.errors import InputFileError, OptionError
from nenya.latents.metrics import effective_rank
from nenya.runtime.blas import in_order

log = logging.getLogger(__name__)


Float64Array = npt.NDArray[np.float64]


BLOCK_ROWS = 16384


@dataclass(frozen=True)
class PCA:
    """Principal components of N latents of D dimensions.

    Attributes:
        mean: (D,) float64.
        components: (M, D) float64, orthonormal rows by falling variance; in each row the value of largest
            magnitude is positive.
        explained_variance: (M,) float64, variance along each component, with N - 1 in the denominator.
        total_variance: sum of the variances of all D columns.
        n_rows: number of rows used.
        n_left_out: number of rows left out because they hold NaN or infinity.
        spectrum: (min(N, D),) float64, the variances along all components, including those not kept.
        uncentred: (min(N, D),) float64, singular values of the latents without removing the mean.
    """

    mean: Float64Array
    components: Float64Array
    explained_variance: Float64Array
    total_variance: float
    n_rows: int
    n_left_out: int
    spectrum: Float64Array
    uncentred: Float64Array

    @property
    def explained_variance_ratio(self) -> Float64Array:
        """Share of the total variance along each component: (M,) float64; zeros without variance."""
        return self.explained_variance / (self.total_variance or 1.0)

    @property
    def participation_ratio(self) -> float:
        """(sum of variances)^2 / (sum of their squares): 1 for one direction, D for equal ones; 0 without variance."""
        largest = float(self.spectrum.max(initial=0.0))
        share = self.spectrum / (largest or 1.0)
        return float(share.sum() ** 2 / ((share**2).sum() or 1.0))

    @property
    def rankme(self) -> float:
        """RankMe of the latents, see `nenya.latents.metrics.rankme`; it counts the mean as a direction."""
        return effective_rank(self.uncentred)

    def modes_for(self, share: float) -> int:
        """Return how many components reach a share of the variance: N95 for 0.95, N99 for 0.99; 0 without variance."""
        total = np.cumsum(self.spectrum)
        return int(np.searchsorted(total, share * total[-1]) + 1) if total.size and total[-1] > 0 else 0

    def transform(self, latents: npt.NDArray[np.floating]) -> Float64Array:
        """Return the coordinates of latents, (N, D), along the components: (N, M) float64.

        Raises:
            InputFileError: The latents have another number of dimensions than the fitted ones.
        """
        array = np.asarray(latents, dtype=np.float64)
        _check_block(array, self.mean.size)
        return (array - self.mean) @ self.components.T


def _check_block(block: npt.NDArray[np.floating], width: int | None) -> None:
    """Raise InputFileError unless the block is (N, D) with D equal to `width`, if given."""
    if block.ndim != 2 or (width is not None and block.shape[1] != width):
        raise InputFileError(f"expected latents of shape (N, {'D' if width is None else width}), got {block.shape}")


def _blocks(latents: Any) -> Iterator[npt.NDArray[np.floating]]:
    """Yield (n, D) blocks of an array, an HDF5 data set, or an iterable of blocks."""
    whole = getattr(latents, "ndim", None) == 2
    starts = range(0, len(latents) if whole else 0, BLOCK_ROWS)
    width = None
    for block in (latents[start : start + BLOCK_ROWS] for start in starts) if whole else latents:
        array = np.asarray(block)
        _check_block(array, width)
        width = array.shape[1]
        yield array


class _Factor:
    """The triangular factor of the QR decomposition of [1, rows - shift], updated block by block.

    Each block has a factor, and each new factor of all is that of the old one stacked on the block's (Demmel, Grigori,
    Hoemmen and Langou 2012, SIAM J. Sci. Comput. 34, A206, section 2). The rows are never multiplied with each other,
    which would square their singular values and lose the small ones; nor is the mean subtracted from sums: the column
    of ones removes it.

    Attributes:
        shift: (D,) mean of the first rows.
        n_rows: number of finite rows.
        n_left_out: number of non-finite rows.
    """

    def __init__(self) -> None:
        self.shift: Float64Array = np.zeros(0)
        self.n_rows = self.n_left_out = 0
        self._factor: Float64Array = np.zeros((0, 0))
        self._waiting: list[Float64Array] = []

    def add_all(self, blocks: Iterable[npt.NDArray[np.floating]]) -> None:
        """Add blocks of rows (n, D), several at a time on threads of their own; the result is that of one thread."""
        for stacked in in_order(_factor_of, self._shifted(blocks), name="components"):
            self._waiting.append(stacked)
            # Stacking few rows on a large factor costs as much as stacking many.
            if sum(map(len, self._waiting)) >= 2 * (self.shift.size + 1):
                self._reduce()

    def _shifted(self, blocks: Iterable[npt.NDArray[np.floating]]) -> Iterator[Float64Array]:
        """Yield [1, rows - shift] of the finite rows of blocks, (n, D + 1)."""
        for block in blocks:
            finite = _finite(block)
            self.n_left_out += len(block) - len(finite)
            if not len(finite):
                continue
            if not self.n_rows:
                self.shift = finite.mean(axis=0, dtype=np.float64)
                self._factor = np.zeros((0, self.shift.size + 1))
            self.n_rows += len(finite)
            stacked = np.ones((len(finite), self.shift.size + 1))
            np.subtract(finite, self.shift, out=stacked[:, 1:])
            yield stacked

    def _reduce(self) -> None:
        self._factor = np.asarray(np.linalg.qr(np.concatenate([self._factor, *self._waiting]), mode="r"))
        self._waiting.clear()

    def result(self) -> tuple[Float64Array, Float64Array, Float64Array]:
        """Return the mean (D,), and R of the centred rows (D, D) and of the uncentred ones (D + 1, D).

        R^T R is the Gram matrix of the rows. With fewer rows than columns R is padded with zeros.
        """
        if self._waiting:
            self._reduce()
        width = self.shift.size
        full = np.zeros((width + 1, width + 1))
        full[: len(self._factor)] = self._factor
        plain = full[:, 1:].copy()
        plain[0] += full[0, 0] * self.shift
        return self.shift + full[0, 1:] / full[0, 0], full[1:, 1:], plain


def _factor_of(stacked: Float64Array) -> Float64Array:
    """Return the triangular factor of rows, or the rows if they are as few."""
    return stacked if len(stacked) <= stacked.shape[1] else np.asarray(np.linalg.qr(stacked, mode="r"))


def _finite(block: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """Return the rows without NaN and infinity; the sums of all rows tell quickly whether there are others."""
    with np.errstate(invalid="ignore", over="ignore"):
        if np.isfinite(block.sum(axis=1)).all():
            return block
    finite: npt.NDArray[np.floating] = block[np.isfinite(block).all(axis=1)]
    return finite


def fit_pca(
    latents: npt.NDArray[np.floating] | Iterable[npt.NDArray[np.floating]],
    n_components: int | None = None,
) -> PCA:
    """Fit principal components in one pass; memory does not grow with the number of rows.

    The singular values are accurate in float64 even over many decades. They come from the QR decomposition of the
    matrix. The covariance would give their squares.

    Args:
        latents: (N, D) array or HDF5 data set, or an iterable of (n, D) blocks. Rows with NaN or infinity are
            left out.
        n_components: number M of components kept; by default min(N, D).

    Raises:
        InputFileError: Blocks of different widths, or fewer than two finite rows.
        OptionError: `n_components` outside 1 .. min(N, D).
    """
    factor = _Factor()
    factor.add_all(_blocks(latents))
    n_rows, n_left_out, width = factor.n_rows, factor.n_left_out, factor.shift.size
    if n_rows < 2:
        raise InputFileError(f"expected at least 2 finite latents, got {n_rows} ({n_left_out} left out)")
    if n_left_out:
        log.warning("left out %d of %d latents that hold NaN or infinity", n_left_out, n_rows + n_left_out)
    most = min(n_rows, width)
    kept = most if n_components is None else n_components
    if not 1 <= kept <= most:
        raise OptionError(f"n_components={kept}: expected 1 to {most} for {n_rows} latents of {width} dimensions")
    mean, centred, plain = factor.result()
    _, singular, vectors = np.linalg.svd(centred)
    spectrum = singular**2 / (n_rows - 1)
    components = vectors[:kept]
    largest = np.take_along_axis(components, np.abs(components).argmax(axis=1)[:, None], axis=1)
    return PCA(
        mean=mean,
        components=np.ascontiguousarray(components * np.where(largest < 0, -1.0, 1.0)),
        explained_variance=spectrum[:kept],
        total_variance=float(spectrum.sum()),
        n_rows=n_rows,
        n_left_out=n_left_out,
        spectrum=spectrum[:most],
        uncentred=np.asarray(np.linalg.svd(plain, compute_uv=False)[:most], np.float64),
    )
