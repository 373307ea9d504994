"""Fast filling of the masked pixels of single cutouts.

Letters: n cutouts, H rows and W columns of pixels.
"""

import numpy as np
from numpy.typing import NDArray

from nenya.data.inpaint import inpaint_field
from nenya.data.pixels import Spread


def fill_cutouts(images: NDArray[np.float32], holes: NDArray[np.bool_], spread: Spread = map) -> None:
    """Fill the masked pixels of cutouts in place, each by the smoothest surface through its own clear pixels.

    Args:
        images: (n, H, W), NaN where masked.
        holes: (n, H, W), True where masked.
        spread: `map`, or that of `nenya.runtime.process.Threads`.

    A cutout without a clear pixel, or with an infinite one, stays as it is.
    """
    any_hole = holes.any(axis=(1, 2)) & ~holes.all(axis=(1, 2))

    def fill(i: int) -> None:
        images[i] = inpaint_field(images[i], holes[i])

    for _ in spread(fill, np.flatnonzero(any_hole).tolist()):
        pass
