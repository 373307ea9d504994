"""Power spectra averaged over cutouts, by the calls of users' scripts; `nenya.data.spectra` fits and tests them.

Each cutout loses its mean and a line along each axis, is multiplied by a Hann window in both directions and
transformed; |FFT|^2 / (H W) is averaged over the cutouts, then over the waves within equal bins of |k| from 0 to the
largest. Letters in shapes: N cutouts of H x W pixels, B bins.
"""

import logging
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import fft, signal  # type: ignore[import-untyped, unused-ignore]  # scipy ships no types

from nenya.data.cutouts import CutoutReader
from nenya.data.masks import InputReader
from nenya.errors import InputFileError, OptionError
from nenya.storage.paths import expand

log = logging.getLogger(__name__)

Float64Array = NDArray[np.float64]
_BLOCK = 1024


def load_images(pp_file: str | Path, partition: str = "train") -> NDArray[np.float32]:
    """Return the cutouts of a partition, (N, H, W) float32, all in memory; NaN at masked pixels.

    Raises:
        InputFileError: The file cannot be read, or has no such partition.
    """
    reader = CutoutReader(Path(expand(str(pp_file))), partition)
    return InputReader(reader, "holes").read(0, len(reader))[:, 0]


def preprocess_image(image: ArrayLike, demean: bool = True, detrend: bool = False, window: bool = True) -> Float64Array:
    """Return an image (..., H, W) without mean and linear trends, under a Hann window.

    Args:
        image: one or more.
        demean: remove the mean.
        detrend: remove the line along each axis.
        window: multiply by the window.
    """
    values = np.asarray(image, np.float64)
    if demean:
        values = values - np.nanmean(values, axis=(-2, -1), keepdims=True)
    if detrend:
        values = signal.detrend(signal.detrend(values, axis=-2), axis=-1)
    if window:
        values = values * (np.hanning(values.shape[-2])[:, None] * np.hanning(values.shape[-1]))
    found: Float64Array = values
    return found


def compute_2d_spectrum(image: ArrayLike) -> Float64Array:
    """Return |FFT|^2 / (H W) of an image (..., H, W), with k = 0 in the middle."""
    values = np.asarray(image, np.float64)
    waves = np.fft.fftshift(fft.fft2(values), axes=(-2, -1))
    power: Float64Array = (waves.real**2 + waves.imag**2) / (values.shape[-2] * values.shape[-1])
    return power


def get_wavenumber_grids(ny: int, nx: int, dx: float) -> tuple[Float64Array, Float64Array, Float64Array]:
    """Return kx, ky and |k| of the waves of `compute_2d_spectrum`, (ny, nx) each, cycles per km.

    Args:
        ny: rows.
        nx: columns.
        dx: km per pixel.
    """
    kx, ky = np.meshgrid(*(np.fft.fftshift(np.fft.fftfreq(n)) / dx for n in (nx, ny)))
    return kx, ky, np.hypot(kx, ky)


def radial_average(
    power_2d: ArrayLike, k_radial: ArrayLike, nbins: int | None = None
) -> tuple[Float64Array, Float64Array]:
    """Average a spectrum over the waves within equal bins of |k|.

    Args:
        power_2d: (H, W).
        k_radial: (H, W), |k| of each wave.
        nbins: number of bins from 0 to the largest |k|; default W // 2. The largest |k| itself is left out.

    Returns:
        Centres of the bins and mean powers, of the bins that have a wave.
    """
    power, k = np.asarray(power_2d, np.float64), np.asarray(k_radial, np.float64)
    edges = np.linspace(0, k.max(), (nbins or power.shape[1] // 2) + 1)
    inside = k < edges[-1]
    counts, _ = np.histogram(k[inside], edges)
    sums, _ = np.histogram(k[inside], edges, weights=power[inside])
    centres, some = (edges[1:] + edges[:-1]) / 2, counts > 0
    return centres[some], sums[some] / counts[some]


def compute_ensemble_spectrum_batched(
    cutouts: ArrayLike,
    dx: float = 2.0,
    detrend: bool = True,
    window: bool = True,
    save_2d: bool = False,
    batch_size: int | None = None,
) -> Any:
    """Return the spectrum averaged over cutouts; those with missing pixels are left out, with a warning.

    Args:
        cutouts: (N, H, W) or (N, 1, H, W).
        dx: km per pixel.
        detrend: remove the line along each axis.
        window: multiply by a Hann window.
        save_2d: also return the average of all waves and their |k|.
        batch_size: cutouts at once; default 1024.

    Returns:
        k in cycles per km, power, and wavelength in km, (B,) each; with `save_2d` also (H, W) twice.

    Raises:
        InputFileError: Another shape, or no complete cutout.
        OptionError: `dx` is not above 0.
    """
    images = np.asarray(cutouts)
    if images.ndim == 4 and images.shape[1] == 1:
        images = images[:, 0]
    if images.ndim != 3:
        raise InputFileError(f"expected cutouts of shape (N, H, W) or (N, 1, H, W), got {images.shape}")
    if not dx > 0:
        raise OptionError(f"dx={dx}: expected km per pixel, above 0")
    size = batch_size or _BLOCK
    total, used = np.zeros(images.shape[1:]), 0
    for start in range(0, len(images), size):
        block = images[start : start + size]
        block = block[np.isfinite(block).all(axis=(1, 2))]
        total += compute_2d_spectrum(preprocess_image(block, detrend=detrend, window=window)).sum(axis=0)
        used += len(block)
    if not used:
        raise InputFileError(f"expected a cutout without missing pixels, got none of {len(images)}")
    if used < len(images):
        log.warning("%d of %d cutouts have missing pixels and are left out", len(images) - used, len(images))
    mean, radial = total / used, get_wavenumber_grids(images.shape[1], images.shape[2], dx)[2]
    k, power = radial_average(mean, radial)
    return (k, power, 1 / k, mean, radial) if save_2d else (k, power, 1 / k)


def compute_ensemble_spectrum_parallel(
    cutouts: ArrayLike,
    dx: float = 2.0,
    detrend: bool = True,
    window: bool = True,
    n_workers: int | None = None,
    batch_size: int | None = None,
) -> tuple[Float64Array, Float64Array, Float64Array]:
    """Return the spectrum averaged over cutouts; see `compute_ensemble_spectrum_batched`; `n_workers` has no effect."""
    found: tuple[Float64Array, Float64Array, Float64Array] = compute_ensemble_spectrum_batched(
        cutouts, dx, detrend, window, batch_size=batch_size
    )
    return found


def orig_compute_ensemble_spectrum_parallel(
    cutouts: ArrayLike,
    dx: float = 2.0,
    detrend: bool = True,
    window: bool = True,
    save_2d: bool = False,
    n_workers: int | None = None,
) -> Any:
    """Return the spectrum averaged over cutouts; see `compute_ensemble_spectrum_batched`; `n_workers` has no effect."""
    return compute_ensemble_spectrum_batched(cutouts, dx, detrend, window, save_2d)
