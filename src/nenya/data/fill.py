"""Filling of the masked pixels of single cutouts, fast and each by itself.

Letters: n cutouts, H rows and W columns of pixels.
"""

import numpy as np
from numpy.typing import NDArray

from nenya.data.inpaint import inpaint_field
from nenya.data.pixels import Spread

_AT_ONCE = 16  # cutouts of one job


def fill_cutouts(
    images: NDArray[np.float32], holes: NDArray[np.bool_], spread: Spread = map, *, how: str = "fill"
) -> None:
    """Fill the masked pixels of cutouts in place, each from its own clear pixels alone.

    A cutout without a clear pixel, or with an infinite clear one, becomes NaN at its masked pixels.

    Args:
        images: (n, H, W), of any strides.
        holes: (n, H, W), True where masked; the values of these pixels are ignored.
        spread: `map`, or that of `nenya.runtime.process.Threads`.
        how: `fill`, the smoothest surface through the clear pixels, as of `nenya.data.inpaint`; or `mean`, their mean.
    """
    some = np.flatnonzero(holes.any(axis=(1, 2)))
    if not len(some):
        return
    from nenya.data.smooth import fill_means, fill_small  # compiled: loaded only where there is a mask

    def fill(rows: NDArray[np.int64]) -> None:
        part, mask = images[rows], holes[rows]
        good = np.flatnonzero((np.isfinite(part) | mask).all(axis=(1, 2)) & ~mask.all(axis=(1, 2)))
        if how == "mean":
            fill_means(part, mask, good)
        else:
            for i in fill_small(part, mask, good):
                part[i] = inpaint_field(np.where(mask[i], np.float32(np.nan), part[i]), mask[i])
        bad = np.setdiff1d(np.arange(len(rows)), good)
        part[bad] = np.where(mask[bad], np.float32(np.nan), part[bad])
        images[rows] = part

    for _ in spread(fill, [some[start : start + _AT_ONCE] for start in range(0, len(some), _AT_ONCE)]):
        pass
