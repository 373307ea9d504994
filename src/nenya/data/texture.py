"""The texture of cutouts in twenty numbers, and its likelihood among all: stripes, cloud edges and noise are rare.

A network that was trained to ignore small perturbations maps cutouts with artefacts onto those with strong fronts.
Their pixels still differ in roughness, in the tails of their differences and in power along one direction.

Letters: n cutouts of H by W pixels, F numbers of each, N all cutouts.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import fft  # type: ignore[import-untyped, unused-ignore]  # scipy ships no types

from nenya.errors import InputFileError
from nenya.runtime.process import RowProgress

Float64Array = NDArray[np.float64]
IntArray = NDArray[np.int64]

LEAST_PIXELS = 8
"""Pixels along the shorter side that a texture needs."""

_RINGS = 5
_BLOCK_ROWS = 1024
_TINY = 1e-12  # K^2: below every noise, so that a constant cutout has a logarithm
_SAME = 1e-9  # standard deviation of a logarithm below which all are equal
_CLOSEST = 1 - 1e-9


class TextureError(InputFileError):
    """The cutouts do not tell which textures are rare."""


def texture_of(images: NDArray[np.floating]) -> Float64Array:
    """Return what describes the texture of images.

    Args:
        images: (n, H, W), in K; pixels without a value count as the mean of the others.

    Returns:
        (n, F) float64 logarithms, F = 20 (somewhat fewer of images far from square): the variances of the image, of its
        first and second differences and of the curvature of its mean row and mean column; the kurtosis of the first
        differences; the power in five rings of wavenumber, towards the rows and towards the columns. NaN for an image
        without any value.

    Raises:
        TextureError: Another shape, or fewer than 8 pixels along a side.
    """
    fields = _fields(images)
    known = np.isfinite(fields)
    count = known.sum(axis=(1, 2))
    mean = np.where(known, fields, 0).sum(axis=(1, 2)) / np.maximum(count, 1)
    fields = np.where(known, fields - mean[:, None, None], 0)
    first = [np.diff(fields, axis=axis) for axis in (1, 2)]
    second = [np.diff(first[0], axis=1), np.diff(first[1], axis=2), np.diff(first[0], axis=2)]
    lines = [np.diff(fields.mean(axis=axis), 2, axis=1) for axis in (1, 2)]
    variances = [part.reshape(len(fields), -1).var(axis=1) for part in (fields, *first, *second, *lines)]
    numbers = [*variances, *map(_kurtosis, first), *_power(fields)]
    found = np.log(np.stack(numbers, axis=1) + _TINY)
    found[count == 0] = np.nan
    return found


def _fields(images: NDArray[np.floating]) -> Float64Array:
    fields = np.asarray(images, np.float64)
    if fields.ndim != 3 or min(fields.shape[1:]) < LEAST_PIXELS:
        raise TextureError(
            f"expected images of shape (n, H, W) with at least {LEAST_PIXELS} pixels along a side, got {fields.shape}"
        )
    return fields


def _kurtosis(differences: Float64Array) -> Float64Array:
    squares = differences.reshape(len(differences), -1) ** 2
    found: Float64Array = (squares**2).mean(axis=1) / np.maximum(squares.mean(axis=1) ** 2, _TINY**2)
    return found


def _power(fields: Float64Array) -> list[Float64Array]:
    """Return the mean power of rings of wavenumber in two sectors, each (n,)."""
    waves = fft.fft2(fields)  # the full plane: rows and columns count alike
    power = waves.real**2 + waves.imag**2
    rows, columns = (np.abs(np.fft.fftfreq(size)) for size in fields.shape[1:])
    rows = rows[:, None]
    longest = min(fields.shape[1:])
    edges = np.geomspace(1 / longest, 0.5 + 0.5 / longest, _RINGS + 1)
    ring = np.searchsorted(edges, np.hypot(rows, columns) * (1 + 1e-9)) - 1
    sectors = (columns >= rows, rows >= columns)
    parts = ((ring == number) & sector for number in range(_RINGS) for sector in sectors)
    return [power[:, part].mean(axis=1) for part in parts if part.any()]


def read_textures(
    read: Callable[[IntArray], NDArray[np.floating]], rows: IntArray, total: int, *, visible: bool = True
) -> Float64Array:
    """Return the textures of the cutouts of some rows, read in blocks.

    Args:
        read: returns the cutouts of rows, (n, H, W).
        rows: (R,) that have a cutout, at least one.
        total: number N of rows.
        visible: whether progress is shown.

    Returns:
        (N, F) float64, NaN for other rows.
    """
    found = np.full((total, texture_of(read(rows[:1])).shape[1]), np.nan)
    with RowProgress("texture", len(rows), visible=visible) as progress:
        for start in range(0, len(rows), _BLOCK_ROWS):
            part = rows[start : start + _BLOCK_ROWS]
            found[part] = texture_of(read(part))
            progress.advance(len(part))
    return found


def texture_likelihood(textures: Float64Array) -> Float64Array:
    """Return the log-likelihood (nats) of each texture: the mean over numbers of what pairs of them say.

    A pairwise composite likelihood (Varin, Reid and Firth 2011, Statistica Sinica 21, 5) of Gaussians: the F numbers
    are correlated so closely that their joint likelihood is ruled by combinations without a meaning, and a mixture,
    which fits best, gives artefacts of one kind a place of their own.

    Args:
        textures: (N, F), NaN where unknown.

    Returns:
        (N,) float64, NaN where unknown.

    Raises:
        TextureError: There are too few cutouts, or all are equal.
    """
    known = np.isfinite(textures).all(axis=1)
    if known.sum() <= textures.shape[1]:
        raise TextureError(f"expected more than {textures.shape[1]} cutouts to find rare textures, got {known.sum()}")
    apart = textures[known] - textures[known].mean(axis=0)
    spread = apart.std(axis=0)
    varied = np.flatnonzero(spread > _SAME)
    if len(varied) < 2:
        raise TextureError("all cutouts of images= have the same texture: expected cutouts that differ")
    scaled = apart[:, varied] / spread[varied]
    r = np.clip(scaled.T @ scaled / len(scaled), -_CLOSEST, _CLOSEST)
    np.fill_diagonal(r, 0)
    alone = 1 / (1 - r**2)  # of a pair's inverse correlation matrix, its diagonal
    form = -r * alone
    np.fill_diagonal(form, alone.sum(axis=1) - 1)  # less the pair of a number with itself
    squares = ((scaled @ form) * scaled).sum(axis=1)
    pairs = len(varied) - 1
    level = np.log(2 * np.pi * spread[varied] ** 2).sum() - 0.5 * np.log(alone).sum() / pairs
    found = np.full(len(textures), np.nan)
    found[known] = -0.5 * (squares / pairs + level)
    return found
