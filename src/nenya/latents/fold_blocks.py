"""Blocks of rows that folds of probes keep together: granules, times, places.

Letters: n rows.
"""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nenya.latents.nearest import days_of
from nenya.tables.blocks import blocks_of
from nenya.tables.granules import granules
from nenya.tables.near import coordinates

if TYPE_CHECKING:
    import pandas as pd

Float64Array = NDArray[np.float64]
IntArray = NDArray[np.int64]

BLOCK_DAYS, BLOCK_DEGREES = 30.0, 10.0
"""Blocks of time and of place."""


def blocks_for(table: "pd.DataFrame") -> dict[str, IntArray]:
    """Return kind of folds -> block of each row, (n,), for the kinds that the columns of the table allow.

    Blocks of time are 30 days, those of place 10 by 10 degrees. A row of unknown time or place is a block of its own.
    The kinds, in order of preference: granule, time, place, rows.

    Args:
        table: of n rows, with the usual names of its columns.
    """
    found: dict[str, IntArray] = {}
    if granules(table) is not None:
        found["granule"] = blocks_of(table)
    if "datetime" in table:
        found["time"] = _numbered(np.floor(days_of(table) / BLOCK_DAYS))
    if {"lat", "lon"} <= set(table):
        lat, lon = (np.floor(values / BLOCK_DEGREES) for values in coordinates(table))
        found["place"] = _numbered(1000 * lat + np.mod(lon, 360 / BLOCK_DEGREES))
    return {**found, "rows": np.arange(len(table))}


def _numbered(values: Float64Array) -> IntArray:
    """Return equal values as equal numbers, (n,); each NaN is a number of its own."""
    _, found = np.unique(values, return_inverse=True, equal_nan=False)
    return np.asarray(found, np.int64)
