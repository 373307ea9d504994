"""Similar cutouts of a static page: latents of eight bits to search in the browser, or neighbours found beforehand.

Letters: n rows of the page, D dimensions, K neighbours.
"""

import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nenya.portal.dataset import Dataset
from nenya.portal.static_rows import encoded

log = logging.getLogger(__name__)

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]

MOST_SEARCHED = 50_000
"""Up to so many rows a page holds latents; with more rows it holds the closest rows of each instead."""
LISTED = 24
"""Neighbours of each row, where these are found beforehand."""
_BLOCK = 1024  # rows searched at a time, at most
_PAIRS = 2**26  # of rows at a time, at most, so that memory (12 bytes a pair, or a little more) does not grow with n


def to_int8(latents: FloatArray) -> NDArray[np.int8]:
    """Return latents in eight bits, (n, D): each divided by its largest component; zeros for a row without latent.

    The cosine of two of them is that of the latents up to about 0.001.

    Args:
        latents: (n, D); rows that are not finite have none.
    """
    known = np.isfinite(latents).min(axis=1, keepdims=True)
    clean = np.where(known, latents, 0)
    largest = np.abs(clean).max(axis=1, keepdims=True)
    return np.round(clean * (127 / np.where(largest > 0, largest, 1))).astype(np.int8)


def closest(latents: FloatArray, count: int = LISTED) -> tuple[NDArray[np.int32], FloatArray]:
    """Return the rows of the largest cosine with each row, the closest first, and these cosines: (n, K) both.

    Args:
        latents: (n, D); rows that are not finite are nobody's neighbour, and have none.
        count: neighbours K, at most.

    Returns:
        Row numbers, -1 for none, and cosines, 0 for none.
    """
    n = len(latents)
    known: NDArray[np.bool_] = np.isfinite(latents).min(axis=1)
    length = np.linalg.norm(np.where(known[:, None], latents, 0), axis=1, keepdims=True)
    unit = np.where(known[:, None] & (length > 0), latents / np.where(length > 0, length, 1), 0).astype(np.float32)
    k = max(0, min(count, n - 1))
    rows, cosines = np.full((n, k), -1, np.int32), np.zeros((n, k), np.float32)
    block = max(1, min(_BLOCK, _PAIRS // max(1, n)))
    for start in range(0, n if k else 0, block):
        if start and start // block % 500 == 0:
            log.info("similar cutouts: %d %% found", 100 * start // n)
        stop = min(n, start + block)
        found = unit[start:stop] @ unit.T
        found[:, ~known] = -np.inf
        found[np.arange(stop - start), np.arange(start, stop)] = -np.inf
        best = np.argpartition(found, n - k, axis=1)[:, n - k :]
        values = np.take_along_axis(found, best, axis=1)
        order = np.argsort(-values, axis=1, kind="stable")
        best, values = np.take_along_axis(best, order, axis=1), np.take_along_axis(values, order, axis=1)
        there = np.isfinite(values) & known[start:stop, None]
        rows[start:stop] = np.where(there, best, -1)
        cosines[start:stop] = np.where(there, values, 0)
    return rows, cosines


def bytes_of(dataset: Dataset, count: int) -> int:
    """Return the bytes, before base64, that the similar cutouts of some rows take in a page."""
    if dataset.latents is None:
        return 0
    return count * (dataset.latents.shape[1] if count <= MOST_SEARCHED else LISTED * 6)


def near_of(dataset: Dataset, rows: IntArray) -> dict[str, Any] | None:
    """Return what a page needs to find similar cutouts among its rows, for JSON; None without latents.

    Args:
        dataset: the data.
        rows: (n,), of the table.
    """
    if dataset.latents is None:
        return None
    number = dataset.latent_of[rows]
    latents = np.full((len(rows), dataset.latents.shape[1]), np.nan, np.float32)
    latents[number >= 0] = dataset.latents.take(number[number >= 0])
    if len(rows) <= MOST_SEARCHED:
        return {"kind": "search", "dim": latents.shape[1], "latents": encoded(to_int8(latents))}
    log.info("finding the %d closest of each of %s rows for the page", LISTED, f"{len(rows):,}")
    neighbours, cosines = closest(latents)
    return {
        "kind": "list",
        "count": neighbours.shape[1],
        "rows": encoded(neighbours),
        "cosines": encoded(np.round(cosines * 32767).astype(np.int16)),
    }
