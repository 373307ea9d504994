"""Which order of search results is sure, where masked cutouts have latents of a known error.

A latent lies within an angle of that of the clear cutout, which is exceeded by 5 % of the cutouts. So the cosine of the
clear cutouts lies in an interval around that of the latents: their angle, less or more the angles of both.
"""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pandas as pd

Float64Array = NDArray[np.float64]

LOW = "cosine_low"
LEAST, MOST, SURE = "cosine_least", "cosine_most", "order_sure"
"""Columns of search results: the interval of the cosine, and whether it overlaps with that of no other result."""


def intervals(cosine: Float64Array, low: Float64Array, query_low: float = 1.0) -> tuple[Float64Array, Float64Array]:
    """Return the least and the largest cosine of the clear cutouts, (n,) each.

    Args:
        cosine: (n,), of query and results.
        low: (n,), `cosine_low` of the results; NaN, where it is unknown, gives -1 to 1.
        query_low: of the query; NaN if unknown.
    """
    around = np.arccos(np.clip(np.nan_to_num(low, nan=-1.0), -1, 1)) + np.arccos(np.clip(_known(query_low), -1, 1))
    angle = np.arccos(np.clip(cosine, -1, 1))
    exact = around == 0
    least = np.where(exact, cosine, np.cos(np.minimum(angle + around, np.pi)))
    most = np.where(exact, cosine, np.cos(np.maximum(angle - around, 0)))
    return least, most


def _known(value: float) -> float:
    return -1.0 if np.isnan(value) else value


def sure(least: Float64Array, most: Float64Array) -> NDArray[np.bool_]:
    """Return for each of n results whether its interval overlaps with no other one, (n,) bool; exact ones never do."""
    overlap = (least[:, None] <= most) & (least <= most[:, None])
    exact = least == most
    overlap = np.asarray(overlap & ~(exact[:, None] & exact[None]))
    np.fill_diagonal(overlap, False)
    return np.asarray(~overlap.any(axis=1))


def with_order(found: "pd.DataFrame", query_low: float = 1.0) -> "pd.DataFrame":
    """Return search results with the interval of each cosine; as they are, if they do not know their `cosine_low`.

    Args:
        found: with columns cosine, the similarity, and `cosine_low`.
        query_low: of the examples.
    """
    if LOW not in found or not len(found):
        return found
    cosine, low = (found[name].to_numpy(np.float64) for name in ("cosine", LOW))
    least, most = intervals(cosine, low, query_low)
    place = list(found.columns).index("cosine") + 1
    for number, (name, values) in enumerate(((LEAST, least), (MOST, most), (SURE, sure(least, most)))):
        found.insert(place + number, name, values)
    return found


def order_line(found: "pd.DataFrame") -> str:
    """Return a sentence on results in uncertain order; "" if the order is certain, or nothing is known of it."""
    if SURE not in found or found[SURE].all():
        return ""
    ranks = found.loc[~found[SURE], "rank"].tolist()
    shown = ", ".join(map(str, ranks[:12])) + (" ..." if len(ranks) > 12 else "")
    return (
        f"the order of {len(ranks)} of {len(found)} results is not sure (rank {shown}): these cutouts, or the "
        "examples, are masked, and the intervals of their cosines overlap"
    )
