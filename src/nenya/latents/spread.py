"""Error bars of masked cutouts on a UMAP: the spread of places that a cutout may have without its mask.

Latents of the clear cutout are drawn around that of the masked one. The cosine of the angle has the calibrated
distribution. The directions are those of errors that were measured for masked cutouts.

Letters in shapes: n rows, S latents drawn for each, M directions, D the length of a latent.
"""

import zlib
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from nenya.latents.projector import Projector

FloatArray = NDArray[np.float32]
Float64Array = NDArray[np.float64]

SPREAD = "umap_spread"
"""Column of the error bars, in units of the layout."""

DRAWS = 8
_QUANTILE = 1.6448536269514722  # of the normal distribution, 95 %
_SMALLEST = 1e-13
_BLOCK = 2048  # rows at a time


def umap_spread(
    projector: "Projector",
    latents: FloatArray,
    places: FloatArray,
    cosine: FloatArray,
    low: FloatArray,
    directions: FloatArray | None = None,
    *,
    approximate: bool = False,
) -> FloatArray:
    """Return the root mean square distance of the places of drawn latents from a row's own place, (n,).

    It is 0 for clear cutouts and NaN where the cosine, or the place, is unknown. A row's value does not depend on the
    other rows.

    Args:
        projector: the UMAP.
        latents: (n, D).
        places: (n, 2), of `projector`.
        cosine: (n,), medians.
        low: (n,), 5 % quantiles.
        directions: (M, D), of a calibration; default towards the latents on which the UMAP was fitted.
        approximate: as of `Projector.transform`.
    """
    found = np.where(np.isnan(low) | np.isnan(places).any(axis=1), np.float32(np.nan), np.float32(0))
    some = np.flatnonzero((low < 1) & (found == 0))
    for start in range(0, len(some), _BLOCK):
        rows = some[start : start + _BLOCK]
        drawn = drawn_latents(latents[rows], cosine[rows], low[rows], directions, projector.latents)
        at = projector.transform(drawn.reshape(-1, drawn.shape[-1]), approximate=approximate)
        away = at.reshape(len(rows), DRAWS, 2).astype(np.float64) - places[rows, None]
        found[rows] = np.sqrt((away**2).sum(axis=-1).mean(axis=1))
    return found


def drawn_latents(
    latents: FloatArray, cosine: FloatArray, low: FloatArray, directions: FloatArray | None, others: FloatArray
) -> FloatArray:
    """Return latents that masked rows may have without their masks, (n, S, D).

    Args:
        latents: (n, D), finite.
        cosine: (n,), medians.
        low: (n,), 5 % quantiles.
        directions: (M, D); None: towards the rows of `others`.
        others: (N, D).
    """
    out = np.empty((len(latents), DRAWS, latents.shape[1]), np.float32)
    for i, row in enumerate(latents):
        rng = np.random.default_rng(zlib.crc32(np.ascontiguousarray(row).tobytes()))
        length = float(np.linalg.norm(row))
        own = row.astype(np.float64) / length
        middle, far = (np.log(max(_SMALLEST, 1 - float(value))) for value in (cosine[i], low[i]))
        distance = np.exp(middle + (far - middle) / _QUANTILE * rng.standard_normal(DRAWS))
        near = 1 - np.minimum(distance, 2.0)
        if directions is not None and len(directions):
            towards = directions[rng.integers(0, len(directions), DRAWS)].astype(np.float64)
        else:
            towards = others[rng.integers(0, len(others), DRAWS)].astype(np.float64) - row
        towards -= (towards @ own)[:, None] * own
        towards /= np.maximum(np.linalg.norm(towards, axis=1, keepdims=True), 1e-30)
        out[i] = length * (near[:, None] * own + np.sqrt(1 - near**2)[:, None] * towards)
    return out
