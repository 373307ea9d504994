"""Matched pairs of two sets against random pairs: the right pattern at the right place, or only the right climate.

Letters in shapes: n pairs, D dimensions of a latent.
"""

import numpy as np

from nenya.latents.block_null import Float64Array, IntArray, p_value
from nenya.latents.difference import Estimate, wilson

_TILE = 512
_Z = 1.959963984540054  # of a 95 % interval


def compare_pairs(
    first: Float64Array, second: Float64Array, blocks: IntArray, *, permutations: int = 999, seed: int = 0
) -> dict[str, Estimate]:
    """Compare the distance of matched rows with that of a row and the partners of rows of other blocks.

    Under the null, the sum of a block's deviations is as likely positive as negative: p-values are from random signs of
    complete blocks.

    Args:
        first: (n, D), rows of a.
        second: (n, D), their partners in b.
        blocks: (n,) the block of each pair.
        permutations: number of random signs.
        seed: of the signs.

    Returns:
        distance: mean distance of a pair; random_distance: that of random pairs; closer: the share of random pairs that
        are farther apart than the matched one (0.5: no better than chance). Empty if no pair has rows of other blocks.
    """
    _, blocks = np.unique(blocks, return_inverse=True)
    own = np.sqrt(((first - second) ** 2).sum(axis=1))
    random, closer = np.full(len(own), np.nan), np.full(len(own), np.nan)
    squares = (second**2).sum(axis=1)
    for start in range(0, len(own), _TILE):
        some = slice(start, start + _TILE)
        tile = squares - 2 * first[some] @ second.T + (first[some] ** 2).sum(axis=1)[:, None]
        tile = np.sqrt(np.maximum(tile, 0))
        other = blocks[some, None] != blocks
        count = np.maximum(other.sum(axis=1), 1)
        mine = own[some, None]
        random[some] = np.where(other.any(axis=1), (tile * other).sum(axis=1) / count, np.nan)
        closer[some] = (((tile > mine) + 0.5 * (tile == mine)) * other).sum(axis=1) / count
    good = np.isfinite(random)
    if not good.any():
        return {}
    own, random, closer, blocks = own[good], random[good], closer[good], blocks[good]
    rng = np.random.default_rng([seed, len(own)])
    signs = rng.choice((-1.0, 1.0), (permutations, int(blocks.max()) + 1))
    share, nearer = float(closer.mean()), random - own
    error = _error(closer, blocks)
    count = share * (1 - share) / error**2 if error > 0 else float(len(np.unique(blocks)))
    return {
        "distance": _mean(own, blocks, _p(nearer, blocks, signs, seed), float(random.mean())),
        "random_distance": _mean(random, blocks, float("nan"), float("nan")),
        "closer": Estimate(share, *wilson(share, count), _p(closer - 0.5, blocks, signs, seed), 0.5),
    }


def _error(values: Float64Array, blocks: IntArray) -> float:
    return float(np.sqrt((np.bincount(blocks, values - values.mean()) ** 2).sum())) / len(values)


def _mean(values: Float64Array, blocks: IntArray, p: float, expected: float) -> Estimate:
    mean, reach = float(values.mean()), _Z * _error(values, blocks)
    return Estimate(mean, max(0.0, mean - reach), mean + reach, p, expected)


def _p(values: Float64Array, blocks: IntArray, signs: Float64Array, seed: int) -> float:
    sums = np.bincount(blocks, values, minlength=signs.shape[1])
    return p_value(np.concatenate([[sums.sum()], signs @ sums]), seed)
