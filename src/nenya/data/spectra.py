"""Power spectra of cutouts, averaged over directions, and their slopes.

Each cutout loses its mean and a plane (a linear trend along each axis), is multiplied by a Hann window in both
directions and transformed; |FFT|^2 is averaged over the waves within each of S / 2 equal bins from k = 0 to the largest
|k|, the corners of the plane included. beta is the slope of log P against log wavelength at the bins' centres over a
band, so P ~ wavelength^beta; alpha = -beta is the slope against log wavenumber. P is a density per area of the plane of
wavenumbers: a spectrum along a line is less steep by one.

This is the published recipe, for comparison with its figures. Two effects make its spectra steeper than the field: long
waves dominate the mean of a wide bin, and the window leaks. `PERIODIC` avoids both.

Letters: N cutouts, n of them at once, S pixels a side, B bins.
"""

import functools
import logging
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft  # type: ignore[import-untyped, unused-ignore]  # scipy ships no types

from nenya.data.cutouts import CutoutFile
from nenya.data.masks import read_clear
from nenya.errors import InputFileError, OptionError

log = logging.getLogger(__name__)

Float64Array = NDArray[np.float64]


@dataclass(frozen=True)
class Recipe:
    """How a spectrum is computed.

    Attributes:
        detrend: trend removed in addition to the mean: "plane", "lines" (a line from each column and then from
            each row: it takes power from the long waves and bends even white noise), or "none".
        window: "hann" in both directions, or "none".
        average: over the waves of a bin, "mean" of P at the centre of the bin, or "log": mean of log P at the mean of
            log k, in which the width of the bins does not bend a power law.
        band: smallest and largest wavelength in pixels over which the slope is fitted.
    """

    detrend: str = "plane"
    window: str = "hann"
    average: str = "mean"
    band: tuple[float, float] = (4.0, 40.0)


PERIODIC = Recipe(detrend="none", window="none", average="log")
"""For periodic fields; it returns their exponent without bias."""


@dataclass(frozen=True)
class Slope:
    """A fitted power law.

    Attributes:
        beta: exponent of the wavelength, P ~ wavelength^beta.
        error: standard error of beta from the scatter of the bins about the line.
        bins: number of bins that were fitted.
    """

    beta: float
    error: float
    bins: int

    @property
    def alpha(self) -> float:
        """Exponent of the wavenumber."""
        return -self.beta


class _Bins:
    """The waves of a real transform (S, S // 2 + 1), flat, sorted into the bins of |k|.

    Args:
        size: pixels S along each side.
        average: of the recipe.
    """

    def __init__(self, size: int, average: str) -> None:
        self.size, self.log = size, average == "log"
        half = size // 2
        rows = np.rint(np.fft.fftfreq(size) * size).astype(np.int64)[:, None]
        square = (rows**2 + np.arange(half + 1) ** 2).reshape(-1)
        # Bins are sqrt(2) waves wide, since the largest |k| is sqrt(2) half; integer arithmetic keeps the edges exact.
        bins = np.minimum([math.isqrt(int(number) // 2) for number in square], half - 1)
        weight = np.full((size, half + 1), 2.0)  # each represents two waves of the full plane
        weight[:, [0, half] if size % 2 == 0 else [0]] = 1
        self.weight = weight.reshape(-1)
        if self.log:
            self.weight[0] = 0  # log P is not finite at k = 0
        self.order = np.argsort(bins, kind="stable")
        self.starts = np.searchsorted(bins[self.order], np.arange(half))
        self.weight_sum = np.bincount(bins, weights=self.weight)
        self.centres: Float64Array = (np.arange(half) + 0.5) * np.sqrt(2) / size
        if self.log:
            logs = np.log(np.sqrt(np.maximum(square, 1)) / size)
            self.centres = np.exp(np.bincount(bins, weights=self.weight * logs) / self.weight_sum)

    def average(self, power: Float64Array) -> Float64Array:
        """Average power (n, S, S // 2 + 1) over the waves of each bin: (n, B)."""
        flat = power.reshape(len(power), -1)
        if self.log:
            with np.errstate(divide="ignore"):
                flat = np.log(flat)
            flat[:, 0] = 0
        total: Float64Array = np.add.reduceat((flat * self.weight)[:, self.order], self.starts, axis=1)
        total /= self.weight_sum
        return np.exp(total) if self.log else total


@functools.lru_cache(maxsize=8)
def _bins(size: int, average: str) -> _Bins:
    return _Bins(size, average)


def wavenumbers(size: int, average: str = "mean") -> Float64Array:
    """Return the centres of the bins for images of S pixels: (B,) cycles per pixel, B = S // 2.

    Examples:
        >>> wavenumbers(64).shape
        (32,)
    """
    return _bins(size, average).centres


def power(images: NDArray[np.floating[Any]], recipe: Recipe | None = None) -> Float64Array:
    """Return the power of each wave of each image.

    Args:
        images: (n, S, S) or (n, 1, S, S).
        recipe: how the spectrum is computed.

    Returns:
        |FFT|^2, (n, S, S // 2 + 1) float64, in squared units of the image; NaN for an image with non-finite
        pixels.

    Raises:
        InputFileError: Another shape, or fewer than 8 pixels along a side.
    """
    recipe = recipe or Recipe()
    fields = _fields(images)
    fields = _without_trend(fields - fields.mean(axis=(1, 2), keepdims=True), recipe.detrend)
    if recipe.window == "hann":
        taper = np.hanning(fields.shape[-1])
        fields = fields * (taper[:, None] * taper)
    waves = fft.rfft2(fields)
    found: Float64Array = waves.real**2 + waves.imag**2
    return found


def radial_power(images: NDArray[np.floating[Any]], recipe: Recipe | None = None) -> Float64Array:
    """Return the power of each image in each bin of |k|: (n, B) float64; see `power` and `wavenumbers`.

    Examples:
        >>> import numpy as np
        >>> images = np.random.default_rng(0).standard_normal((3, 64, 64))
        >>> radial_power(images).shape
        (3, 32)
    """
    recipe = recipe or Recipe()
    found = power(images, recipe)
    return _bins(found.shape[1], recipe.average).average(found)


def _fields(images: NDArray[np.floating[Any]]) -> Float64Array:
    """Return images as (n, S, S) float64."""
    array = np.asarray(images, dtype=np.float64)
    if array.ndim == 4 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 3 or array.shape[1] != array.shape[2] or array.shape[2] < 8:
        raise InputFileError(
            f"expected images (N, S, S) or (N, 1, S, S) with S of at least 8 pixels, got {np.shape(images)}"
        )
    return array


def _without_trend(fields: Float64Array, detrend: str) -> Float64Array:
    """Remove lines or a plane from fields (n, S, S) whose means are zero."""
    if detrend == "none":
        return fields
    x = np.arange(fields.shape[-1]) - (fields.shape[-1] - 1) / 2
    x /= np.sqrt((x**2).sum())
    if detrend == "plane":
        across = np.ones(len(x)) / np.sqrt(len(x))
        for first, second in ((x, across), (across, x)):
            amount = np.einsum("nyx,y,x->n", fields, first, second, optimize=True)
            fields = fields - amount[:, None, None] * np.outer(first, second)
        return fields
    for axis in (1, 2):
        moved = np.moveaxis(fields, axis, 2)
        moved = moved - moved.mean(axis=2, keepdims=True)
        moved = moved - (moved @ x)[..., None] * x
        fields = np.moveaxis(moved, 2, axis)
    return fields


def fit_slopes(radial: Float64Array, size: int, recipe: Recipe | None = None) -> tuple[Float64Array, Float64Array, int]:
    """Fit log P against log wavelength by least squares over the bins that lie in the band.

    Args:
        radial: (n, B), of `radial_power`.
        size: pixels S along each side of the images.
        recipe: with which they were computed.

    Returns:
        beta and its standard error, (n,) each, NaN if a power is zero or not finite; and the number of bins.

    Raises:
        OptionError: Fewer than three bins lie in the band.

    Examples:
        >>> import numpy as np
        >>> from nenya.prepare.synthetic import power_law
        >>> images = power_law(20, 64, np.random.default_rng(0), slope=2)
        >>> slopes, errors, bins = fit_slopes(radial_power(images), 64)
        >>> slopes.shape, bool(1.8 < slopes.mean() < 2.4)
        ((20,), True)
    """
    recipe = recipe or Recipe()
    band, centres = recipe.band, wavenumbers(size, recipe.average)
    chosen = (1 / centres >= band[0]) & (1 / centres <= band[1])
    count = int(chosen.sum())
    if count < 3:
        raise OptionError(
            f"band={list(band)} pixels holds {count} of the bins of a {size}-pixel cutout; expected at least 3"
        )
    x = np.log(1 / centres[chosen])
    x -= x.mean()
    with np.errstate(divide="ignore", invalid="ignore"):
        y = np.log(radial[:, chosen])
    y[~np.isfinite(y).all(axis=1)] = np.nan
    y -= y.mean(axis=1, keepdims=True)
    spread = (x**2).sum()
    beta: Float64Array = y @ x / spread
    residual = ((y - beta[:, None] * x) ** 2).sum(axis=1)
    return beta, np.sqrt(residual / (count - 2) / spread), count


def density_factor(size: int, recipe: Recipe | None = None) -> float:
    """Return what makes power a spectral density over the plane of wavenumbers, in squared units of the image pixel^2.

    Its integral over the plane, in (cycles per pixel)^2, is the variance of the field before the window.

    Args:
        size: pixels S along each side of the images.
        recipe: with which the power was computed.
    """
    window = np.hanning(size) if (recipe or Recipe()).window == "hann" else np.ones(size)
    return float(1 / (size**2 * (window**2).mean() ** 2))


class _Spread:
    """Counts of spectra in narrow bins of log power, for quantiles of any number of them.

    Args:
        bins: B.
    """

    def __init__(self, bins: int) -> None:
        self.counts = np.zeros((bins, _CELLS), np.int64)

    def add(self, radial: Float64Array) -> None:
        """Add spectra (n, B)."""
        with np.errstate(divide="ignore"):
            cell = np.clip((np.log10(radial) + _DECADES) * _PER_DECADE, 0, _CELLS - 1).astype(np.int64)
        cell += np.arange(len(self.counts)) * _CELLS
        self.counts += np.bincount(cell.ravel(), minlength=self.counts.size).reshape(self.counts.shape)

    def quantile(self, share: float) -> Float64Array:
        """Return the power below which a share of the spectra lies, to 1 %: (B,)."""
        running = self.counts.cumsum(axis=1)
        cell = (running < share * running[:, -1:]).sum(axis=1)
        return np.asarray(10 ** ((np.minimum(cell, _CELLS - 1) + 0.5) / _PER_DECADE - _DECADES))


_DECADES, _PER_DECADE = 30, 100  # of power: from 1e-30 to 1e30
_CELLS = 2 * _DECADES * _PER_DECADE


@dataclass
class MeanSpectrum:
    """The average of spectra, added in blocks.

    Attributes:
        size: pixels S along each side of the images.
        recipe: how they are computed.
        rows: number of images added.
        left_out: number of images with non-finite pixels.
    """

    size: int
    recipe: Recipe = field(default_factory=Recipe)
    rows: int = 0
    left_out: int = 0
    _total: Float64Array = field(default_factory=lambda: np.zeros(0), repr=False)
    _spread: _Spread | None = field(default=None, repr=False)

    def add(self, images: NDArray[np.floating[Any]]) -> Float64Array:
        """Add images (n, S, S) or (n, 1, S, S); returns their own spectra (n, B), NaN for skipped ones."""
        found = power(images, self.recipe)
        good = np.isfinite(found).all(axis=(1, 2))
        total = found[good].sum(axis=0)
        self._total = total + self._total if self._total.size else total
        self.rows += int(good.sum())
        self.left_out += int((~good).sum())
        own = _bins(self.size, self.recipe.average).average(found)
        self._spread = self._spread or _Spread(own.shape[1])
        self._spread.add(own[good])
        return own

    def quantile(self, share: float) -> Float64Array:
        """Return the power below which a share of the images' own spectra lies, to 1 %: (B,); NaN without any."""
        if self._spread is None or not self.rows:
            return np.full(self.size // 2, np.nan)
        return self._spread.quantile(share)

    @property
    def wavelength(self) -> Float64Array:
        """Wavelengths of the bins (B,), in pixels, the longest first."""
        return 1 / wavenumbers(self.size, self.recipe.average)

    @property
    def power(self) -> Float64Array:
        """The average over the images, then over the waves of each bin: (B,).

        Raises:
            InputFileError: No image was added.
        """
        if not self.rows:
            raise InputFileError(
                f"expected cutouts without NaN, but all {self.left_out} have some: no spectrum can be computed"
            )
        averaged: Float64Array = _bins(self.size, self.recipe.average).average(self._total[None] / self.rows)[0]
        return averaged

    @property
    def slope(self) -> Slope:
        """The power law of the average."""
        beta, error, count = fit_slopes(self.power[None], self.size, self.recipe)
        return Slope(float(beta[0]), float(error[0]), count)


def file_spectrum(
    file: CutoutFile, partition: str, recipe: Recipe | None = None
) -> tuple[MeanSpectrum, Float64Array, Float64Array]:
    """Compute the spectra of a partition.

    Args:
        file: of `inspect_cutouts`.
        partition: its name.
        recipe: how the spectrum is computed.

    Returns:
        The average, and for each cutout its alpha = -beta and the standard error of it, (N,) each; NaN for a cutout
        with non-finite or constant pixels.
    """
    mean = MeanSpectrum(file.partitions[partition].width, recipe or Recipe())
    slopes, errors = [], []
    for block in read_clear(file, partition):
        beta, error, _ = fit_slopes(mean.add(block), mean.size, mean.recipe)
        slopes.append(-beta)
        errors.append(error)
    return mean, np.concatenate(slopes), np.concatenate(errors)
