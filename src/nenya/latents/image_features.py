"""Features of images that take no training: principal components, power spectrum, DT and moments.

Letters: n images, H and W pixels of one, M components.
"""

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from nenya.data.spectra import radial_power
from nenya.latents.probes import Features
from nenya.tables.quantities import central_dt

Float64Array = NDArray[np.float64]
Images = NDArray[np.float32]

SPECTRUM, MOMENTS = "log power spectrum", "DT and moments"
"""Names of features."""

_ROWS = 512  # read at once
_FITTED, _BYTES = 5000, 2**28  # images that the components are fitted to, at most
_LEAST = 1e-12  # smallest value whose logarithm is taken


def image_features(
    read: Callable[[NDArray[np.int64]], Images], count: int, lengths: Iterable[int], *, dt_crop: int = 40, seed: int = 0
) -> dict[str, Features]:
    """Return features of images: name -> (n, d); rows with pixels that are not finite are NaN.

    They are: as many principal components of the pixels as a latent has numbers, and the squares of these; the
    logarithm of the power in rings of wavenumber; and T90 - T10, deviation, their logarithms and that of the mean
    square of the gradient, mean, skewness and kurtosis.

    Args:
        read: returns images (m, H, W) by their numbers.
        count: number n of images.
        lengths: numbers M of components.
        dt_crop: side in pixels of the square for DT.
        seed: of the decomposition.
    """
    axes = {length: _components(read, count, length, seed) for length in sorted(set(lengths))}
    parts: dict[str, list[Float64Array]] = {}
    for start in range(0, count, _ROWS):
        images = np.asarray(read(np.arange(start, min(count, start + _ROWS))), np.float64)
        flat = images.reshape(len(images), -1)
        for mean, rows in axes.values():
            made = (flat - mean) @ rows.T
            parts.setdefault(f"image PCA, {len(rows)}", []).append(made)
            parts.setdefault(f"image PCA, {len(rows)} squared", []).append(made**2)
        if images.shape[1] == images.shape[2]:
            parts.setdefault(SPECTRUM, []).append(np.log(np.maximum(radial_power(images), _LEAST**2)))
        parts.setdefault(MOMENTS, []).append(_moments(images, dt_crop))
    found = {name: np.concatenate(own) for name, own in parts.items()}
    return {name: Features(standardised(own) if name == MOMENTS else own, own) for name, own in found.items()}


def standardised(features: Float64Array) -> Float64Array:
    """Return features (n, d) with mean 0 and deviation 1 over the finite rows."""
    good = features[np.isfinite(features).all(axis=1)]
    spread = good.std(axis=0)
    return np.asarray((features - good.mean(axis=0)) / np.where(spread > 0, spread, 1), np.float64)


def _components(
    read: Callable[[NDArray[np.int64]], Images], count: int, length: int, seed: int
) -> tuple[Float64Array, Float64Array]:
    """Return mean (H W,) and principal components (M, H W) of the first images, in random order of the rows."""
    from sklearn.decomposition import PCA

    pixels = read(np.arange(1))[0].size
    most = max(2, min(count, _FITTED, _BYTES // (4 * pixels)))
    parts = [read(np.arange(start, min(most, start + _ROWS))) for start in range(0, most, _ROWS)]
    flat = np.concatenate([images.reshape(len(images), -1) for images in parts])
    flat = flat[np.isfinite(flat).all(axis=1)]
    if len(flat) < 2:
        return np.zeros(pixels), np.full((1, pixels), np.nan)
    pca = PCA(min(length, *flat.shape), svd_solver="randomized", random_state=seed).fit(flat)
    return np.asarray(pca.mean_, np.float64), np.asarray(pca.components_, np.float64)


def _moments(images: Float64Array, dt_crop: int) -> Float64Array:
    """Return DT, deviation, the logarithms of both and of the gradient, mean, skewness and kurtosis: (n, 8)."""
    mean = images.mean(axis=(1, 2))
    rest = images - mean[:, None, None]
    spread = rest.std(axis=(1, 2))
    unit = rest / np.where(spread > 0, spread, 1)[:, None, None]
    slopes = (np.diff(images, axis=1) ** 2).mean(axis=(1, 2)) + (np.diff(images, axis=2) ** 2).mean(axis=(1, 2))
    higher = ((unit**power).mean(axis=(1, 2)) for power in (3, 4))
    sizes = np.stack([central_dt(images, dt_crop), spread, slopes])
    return np.stack([*sizes[:2], *np.log(np.maximum(sizes, _LEAST)), mean, *higher], axis=1)
