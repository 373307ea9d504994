"""Temperature differences of cutouts."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

DT40_SIDE = 40
"""Side in pixels of the central square whose difference is the column DT40 of a table."""


def central_dt(fields: NDArray[np.floating[Any]], side: int) -> NDArray[np.float64]:
    """Return T90 - T10 of the central square of fields.

    T90 and T10 are the 90th and 10th percentile, linearly interpolated, of the pixels from c - side // 2 to
    c + side // 2 - 1 in both directions, where c is half the side of the field.

    Args:
        fields: (..., H, W).
        side: pixels a side of the square; a smaller field is taken whole.

    Returns:
        (...), in the unit of the fields; NaN where the square has pixels that are not finite.
    """
    half, row, column = side // 2, fields.shape[-2] // 2, fields.shape[-1] // 2
    square = fields[..., max(row - half, 0) : row + half, max(column - half, 0) : column + half]
    low, high = np.percentile(square, (10, 90), axis=(-2, -1))
    return np.asarray(high - low, np.float64)
