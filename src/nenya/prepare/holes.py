"""Cutouts that keep their masked pixels (`inpaint=none`): the steps of `nenya.prepare.steps` with NaN.

Each cutout is filled as at reading (`nenya.data.fill`) and taken through the steps; then its masked pixels are NaN
again. A pixel made of several is masked if at least half of them are. Means and percentiles are those of clear pixels.

Letters: n cutouts of h rows and w columns.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from nenya.data.fill import fill_cutouts
from nenya.options.commands import PrepareOptions
from nenya.prepare.steps import downscale, finish, resize, statistics
from nenya.tables.quantities import central_dt

Images = NDArray[np.float32]
_HALF = 0.5 - 1e-6


def statistics_of_clear(images: Images) -> dict[str, NDArray[np.float64]]:
    """Return Tmin, Tmax, T10 and T90 (n,) of the clear pixels of cutouts (n, h, w), each with one at least."""
    found = statistics(images)
    for i in np.flatnonzero(np.isnan(images).any(axis=(1, 2))):
        clear = images[i][np.isfinite(images[i])]
        for name, column in statistics(clear[None, None]).items():
            found[name][i] = column[0]
    return found


def finish_with_holes(
    images: Images, options: PrepareOptions, seeds: list[tuple[int, int]]
) -> tuple[Images, NDArray[np.float64]]:
    """Apply the steps after the statistics, as `finish`; a cutout without a masked pixel is the same bit for bit.

    Args:
        images: (n, h, w), NaN where masked.
        options: the recipe.
        seeds: of the noise of each.

    Returns:
        The cutouts (n, side, side) float32, NaN where masked, and the means (n,) of their clear pixels before removal,
        NaN without one.
    """
    holes = np.isnan(images)
    some = holes.any(axis=(1, 2))
    filled = images.copy()
    fill_cutouts(filled, holes)
    done, means = finish(filled, options, seeds)
    if not some.any():
        return done, means
    part = filled[some]
    moved, _ = finish(part, replace(options, demean=False), [seeds[i] for i in np.flatnonzero(some)])
    masks = _moved(holes[some], options)
    moved[masks] = np.nan
    counts = (~masks).sum(axis=(1, 2))
    with np.errstate(invalid="ignore", divide="ignore"):
        own = np.where(masks, 0, moved).sum(axis=(1, 2), dtype=np.float64) / counts
    done[some] = (moved - own[:, None, None]).astype(np.float32) if options.demean else moved
    means[some] = own
    return done, means


def impossible(images: Images, options: PrepareOptions, possible: tuple[float, float]) -> NDArray[np.bool_]:
    """Mark cutouts (n,) in which filled pixels would make a kept pixel impossible.

    Filled pixels are masked again, so they matter only to steps that mix pixels.

    Args:
        images: (n, h, w), NaN where masked.
        options: the recipe.
        possible: smallest and largest possible value.
    """
    found = np.zeros(len(images), bool)
    if options.fixed_km is None and options.median is None and options.downscale is None:
        return found
    holes = np.isnan(images)
    filled = images.copy()
    fill_cutouts(filled, holes)
    wild = np.flatnonzero(((filled < possible[0]) | (filled > possible[1])).any(axis=(1, 2)))
    if len(wild):
        moved, _ = finish(filled[wild], replace(options, demean=False, noise=0.0), [])
        beyond = (moved < possible[0]) | (moved > possible[1])
        found[wild] = (beyond & ~_moved(holes[wild], options)).any(axis=(1, 2))
    return found


def _moved(holes: NDArray[np.bool_], options: PrepareOptions) -> NDArray[np.bool_]:
    """Return masks (n, h, w) as those of the finished cutouts."""
    shares = holes.astype(np.float32)
    if options.fixed_km is not None:
        shares = (resize(shares, options.field_size) > _HALF).astype(np.float32)
    if options.downscale is not None:
        shares = downscale(shares, (options.downscale[0], options.downscale[1]))
    return np.asarray(shares > _HALF)


def central_dt_of_clear(images: Images, side: int) -> NDArray[np.float64]:
    """Return T90 - T10 (n,) of the clear pixels of the central square of cutouts, NaN without one."""
    found = central_dt(images, side)
    half, row, column = side // 2, images.shape[1] // 2, images.shape[2] // 2
    squares = images[:, max(row - half, 0) : row + half, max(column - half, 0) : column + half]
    for i in np.flatnonzero(np.isnan(squares).any(axis=(1, 2)) & ~np.isnan(squares).all(axis=(1, 2))):
        low, high = np.percentile(squares[i][np.isfinite(squares[i])], (10, 90))
        found[i] = high - low
    return found
