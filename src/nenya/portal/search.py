"""The cutouts closest to one in the space of the latents: a direct search, which can be watched and ended."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nenya.latents import Latents

_BLOCK = 32768  # rows


@dataclass(frozen=True)
class Neighbours:
    """The closest latents, closest first.

    Attributes:
        rows: (k,) int64, of the latents.
        cosine: (k,) float64.
    """

    rows: NDArray[np.int64]
    cosine: NDArray[np.float64]


def closest(
    latents: Latents,
    query: NDArray[np.floating],
    k: int,
    allowed: NDArray[np.bool_],
    tick: Callable[[float], None] = lambda _: None,
) -> Neighbours:
    """Return the k latents of largest cosine to a query; of equal ones, the first.

    Args:
        latents: (N, D).
        query: (D,), not 0.
        k: how many, fewer where fewer are allowed.
        allowed: (N,), which rows may be returned. Rows of NaN never are.
        tick: is called with the share that is done; what it raises ends the search.
    """
    unit = np.asarray(query, np.float64) / np.linalg.norm(np.asarray(query, np.float64))
    single = unit.astype(np.float32)
    rows, cosine = np.empty(0, np.int64), np.empty(0, np.float32)
    for start in range(0, len(latents), _BLOCK):
        tick(start / len(latents))
        mine = allowed[start : start + _BLOCK]
        if not mine.any():
            continue
        block = latents[start : start + _BLOCK]
        with np.errstate(invalid="ignore", divide="ignore"):
            score = (block @ single) / np.sqrt(np.einsum("nd,nd->n", block, block))
        score[~mine | ~np.isfinite(score)] = -2
        keep = np.argpartition(-score, min(4 * k, len(score) - 1))[: 4 * k]
        keep = keep[score[keep] > -2]
        rows, cosine = np.concatenate([rows, start + keep]), np.concatenate([cosine, score[keep]])
        if len(rows) > 32 * k:
            best = np.argsort(-cosine, kind="stable")[: 4 * k]
            rows, cosine = rows[best], cosine[best]
    rows = np.sort(rows[np.argsort(-cosine, kind="stable")[: 4 * k]])
    exact = latents.take(rows).astype(np.float64)
    exact_cosine = (exact @ unit) / np.maximum(np.linalg.norm(exact, axis=1), 1e-300)
    best = np.argsort(-exact_cosine, kind="stable")[:k]
    return Neighbours(rows[best], exact_cosine[best])
