"""Shares of rows among the nearest neighbours: of the same granule, near-duplicates, and of train for rows of valid.

Letters: N latents of length D, k neighbours.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nenya.latents.nearest import Identity, as_unit
from nenya.latents.probes import p_value
from nenya.latents.rarity import known_rows, nearest_among, take_rows

IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


def neighbour_shares(
    latents: Any,
    identity: Identity,
    valid: BoolArray | None,
    *,
    k: int = 10,
    duplicate: float = 0.999,
    sample: int = 2000,
    permutations: int = 199,
    seed: int = 0,
    visible: bool = True,
) -> dict[str, Any]:
    """Return shares of rows among the nearest neighbours of a sample, searched among all latents.

    Args:
        latents: (N, D).
        identity: of the N rows; here also rows of the same granule are neighbours.
        valid: (N,) whether a row is in the validation set; None if unknown.
        k: neighbours.
        duplicate: cosine from which two latents are near-duplicates.
        sample: rows whose neighbours are searched.
        permutations: of the granules, for p-values.
        seed: of the sample and the permutations.
        visible: whether progress is shown.

    Returns:
        `same_granule` (share of neighbours of the same granule, `chance`, `p`), `duplicates` (share of rows with a
        near-duplicate, in any and in another granule, and the median cosine of random pairs), and with a validation
        set `split`: three shares of its rows, with chance: the granule is in train, a near-duplicate is in train, the
        nearest row is in train. None where unknown.
    """
    good, rng = known_rows(latents), np.random.default_rng([seed, 7])
    rows = np.sort(rng.choice(good, min(sample, len(good)), replace=False))
    own = Identity(identity.number, np.full(len(identity.number), -1, np.int64))
    most = min(k, len(good) - 1)
    cosine, near = nearest_among(latents, good, rows, own, most, name="neighbours", visible=visible)
    granule, kept = identity.granule, near >= 0
    twin = kept & (np.nan_to_num(cosine, nan=-1) >= duplicate)
    pairs = as_unit(take_rows(latents, rng.permutation(rows))).astype(np.float64)
    typical = np.einsum("ij,ij->i", pairs, as_unit(take_rows(latents, rows)).astype(np.float64))
    found: dict[str, Any] = {
        "rows": len(rows),
        "k": most,
        "cosine_of_duplicates": duplicate,
        "median_cosine_of_random_pairs": float(np.median(typical)),
        "duplicates": {"any": float(twin.any(axis=1).mean())},
    }
    if (granule[rows] >= 0).any():
        found["same_granule"] = _same_granule(granule, good, rows, near, permutations, rng)
        other = granule[near] != granule[rows][:, None]
        found["duplicates"]["other_granule"] = float((twin & other).any(axis=1).mean())
    if valid is not None and valid[good].any() and not valid[good].all():
        found["split"] = _split(valid, granule, good, rows, near, twin)
    return found


def _same_granule(
    granule: IntArray, good: IntArray, rows: IntArray, near: IntArray, permutations: int, rng: np.random.Generator
) -> dict[str, float]:
    """Return the share of neighbours of the same granule, by chance, and the p-value of permuted granules."""
    known = granule[rows] >= 0

    def share(codes: IntArray) -> float:
        own = codes[rows[known]][:, None]
        return float(((codes[near[known]] == own) & (near[known] >= 0)).sum() / max(1, (near[known] >= 0).sum()))

    value, nulls = share(granule), np.empty(permutations)
    for i in range(permutations):
        codes = granule.copy()
        codes[good] = rng.permutation(granule[good])
        nulls[i] = share(codes)
    return {
        "value": value,
        "chance": float(nulls.mean()),
        "chance_low": float(np.quantile(nulls, 0.025)),
        "chance_high": float(np.quantile(nulls, 0.975)),
        "p": p_value(value, nulls),
    }


def _split(
    valid: BoolArray, granule: IntArray, good: IntArray, rows: IntArray, near: IntArray, twin: BoolArray
) -> dict[str, float | int | None]:
    """Return how much of the validation set is in the training set."""
    own = rows[valid[rows]]
    inside, twins = near[valid[rows]], twin[valid[rows]]
    of_train = (inside >= 0) & ~valid[inside]
    train = granule[good[~valid[good]]]
    known = granule[own] >= 0
    return {
        "valid_rows": len(own),
        "granule_in_train": float(np.isin(granule[own[known]], train[train >= 0]).mean()) if known.any() else None,
        "duplicate_in_train": float((twins & of_train).any(axis=1).mean()) if len(own) else None,
        "nearest_in_train": float(of_train[:, 0].mean()) if len(own) else None,
        "nearest_in_train_by_chance": float((~valid[good]).sum() / max(1, len(good) - 1)),
    }
