"""The steps from a window of a field to a cutout, each on a stack of windows.

Letters: n cutouts of h rows and w columns.
"""

import functools
from collections.abc import Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from nenya.errors import OptionError
from nenya.options.commands import PrepareOptions

_MOST_KM = 20015.0


def output_size(options: PrepareOptions) -> int:
    """Return the side in pixels of the finished cutouts.

    Raises:
        OptionError: `field_size` is not a multiple of `downscale`, cutouts would not be square, or the side in km or
            the median filter is too large.
    """
    if options.fixed_km is not None and not options.fixed_km <= _MOST_KM:
        raise OptionError(f"fixed_km={options.fixed_km:g}: expected at most {_MOST_KM:g} km, half way round the globe")
    if options.median is not None and max(options.median) > options.field_size:
        raise OptionError(
            f"median={list(options.median)}: expected at most field_size={options.field_size} rows and columns"
        )
    if options.downscale is None:
        return options.field_size
    rows, cols = options.downscale
    if rows != cols:
        raise OptionError(f"downscale=[{rows},{cols}]: expected two equal factors, as cutouts are square")
    if options.field_size % rows:
        raise OptionError(f"field_size={options.field_size}: expected a multiple of downscale={rows}")
    return options.field_size // int(rows)


def statistics(images: NDArray[np.float32]) -> dict[str, NDArray[np.float64]]:
    """Return Tmin, Tmax, T10 and T90 (n,) of cutouts (n, h, w): extremes, and percentiles with linear interpolation."""
    flat = images.reshape(len(images), -1)
    low, high = np.percentile(flat, [10, 90], axis=1)
    kinds = {"Tmin": flat.min(axis=1), "Tmax": flat.max(axis=1), "T10": low, "T90": high}
    return {name: values.astype(np.float64) for name, values in kinds.items()}


@functools.lru_cache(maxsize=4096)
def _weights(size: int, wanted: int) -> NDArray[np.float64]:
    """Return weights (wanted, size) of a resampling: linear, and a weighted average over pixels when shrinking.

    Their sums and centroids are exact, so that planes stay planes.
    """
    scale = size / wanted
    pixels = np.arange(size)
    places = np.clip((np.arange(wanted) + 0.5) * scale - 0.5, 0, size - 1)[:, None]
    weights = np.clip(1 - np.abs(places - pixels) / max(scale, 1.0), 0, None)
    weights /= weights.sum(axis=1, keepdims=True)
    centre = (weights * pixels).sum(axis=1, keepdims=True)
    spread = (weights * (pixels - centre) ** 2).sum(axis=1, keepdims=True)
    tilt = np.divide(places - centre, spread, out=np.zeros_like(centre), where=spread > 1e-9)
    return np.asarray(weights * (1 + tilt * (pixels - centre)))


def resize(images: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """Return cutouts (n, h, w) as (n, side, side): linear, with a triangular filter where they shrink."""
    down, across = _weights(images.shape[1], side), _weights(images.shape[2], side)
    return np.asarray(down @ images.astype(np.float64) @ across.T, dtype=np.float32)


def add_noise(images: NDArray[np.float32], sigma: float, seeds: Sequence[tuple[int, ...]]) -> NDArray[np.float32]:
    """Add white noise to cutouts (n, h, w), each from its own seed and so independent of the other cutouts."""
    noisy = images.copy()
    for image, seed in zip(noisy, seeds, strict=True):
        image += np.float32(sigma) * np.random.default_rng(seed).standard_normal(image.shape, dtype=np.float32)
    return noisy


def median(images: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """Return cutouts (n, h, w) after a median filter of `size` rows and columns; edges are mirrored.

    A pixel that is NaN stays NaN. Beside it the median is that of the other pixels in the window.
    """
    if not np.isnan(images).any():
        return _median(images, size)
    lost = np.isnan(images)
    filled = np.where(lost, np.float32(0), images)
    found = _median(filled, size)
    before = [(n // 2, n - 1 - n // 2) for n in size]
    windows = sliding_window_view(np.pad(images, [(0, 0), *before], mode="symmetric"), size, axis=(1, 2))
    near = np.isnan(windows).any(axis=(3, 4)) & ~lost
    found[near] = np.nanmedian(windows[near], axis=(1, 2))
    found[lost] = np.nan
    return found


def _median(images: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """Return the median filter of cutouts without NaN."""
    if sorted(size) == [1, 3]:  # the published filter, without sorting
        axis = 1 if size[0] == 3 else 2
        wide = np.pad(images, [(0, 0), *((1, 1) if a == axis else (0, 0) for a in (1, 2))], mode="symmetric")
        a, b, c = (wide.take(range(i, i + images.shape[axis]), axis=axis) for i in range(3))
        return np.maximum(np.minimum(a, b), np.minimum(np.maximum(a, b), c))
    from scipy.ndimage import median_filter

    return np.asarray(median_filter(images, size=(1, *size)))


def downscale(images: NDArray[np.float32], factors: tuple[int, int]) -> NDArray[np.float32]:
    """Return cutouts (n, h, w) as (n, h / rows, w / columns), each pixel the mean of its block."""
    n, height, width = images.shape
    rows, cols = factors
    blocks = images.reshape(n, height // rows, rows, width // cols, cols)
    return np.asarray(blocks.mean(axis=(2, 4), dtype=np.float64), dtype=np.float32)


def finish(
    images: NDArray[np.float32], options: PrepareOptions, seeds: list[tuple[int, int]]
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Apply the steps after the statistics: size in km, noise, median, downscaling, mean.

    Args:
        images: (n, h, w) without NaN.
        options: the recipe.
        seeds: of the noise of each.

    Returns:
        The cutouts (n, side, side) float32, and their means (n,) before removal.
    """
    if options.fixed_km is not None:
        images = resize(images, options.field_size)
    if options.noise:
        images = add_noise(images, options.noise, seeds)
    if options.median is not None:
        images = median(images, (options.median[0], options.median[1]))
    if options.downscale is not None:
        images = downscale(images, (options.downscale[0], options.downscale[1]))
    means = images.mean(axis=(1, 2), dtype=np.float64)
    if options.demean:
        images = (images - means[:, None, None]).astype(np.float32)
    return images, means
