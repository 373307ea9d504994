"""Near-duplicates among latents, left out, and a balance over patterns: which cutouts to train on.

Two cutouts are near-duplicates if the cosine of their latents is above a limit. Rows are looked at in a fixed order;
one is left out if a row kept before is its near-duplicate. So no two kept rows are near-duplicates, each row left out
has a kept one, and doing it again leaves out nothing more (greedy maximal independent set).

Up to a number of rows all pairs are compared. Above it, only those that share a bucket in one of several tables of
hashes (Datar and others 2004, SCG '04, 253). `recall_at` gives the chance of a common hash.

Letters in shapes: N rows, D the length of a latent.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nenya.errors import OptionError
from nenya.latents.clusters import assign_kmeans, fit_kmeans, unit_rows
from nenya.latents.kept_answers import KeptAnswers
from nenya.latents.nearest import identity_of_rows
from nenya.latents.rarity import nearest_among

log = logging.getLogger(__name__)

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
Tick = Callable[[int], None]  # rows done since the last call

EXACT_TO = 100_000
"""Numbers of rows up to which all pairs are compared."""

_BLOCK = 1024  # rows compared at once
_KEPT = 2**14  # kept rows that they are compared with at once
_UNIT = 2.0**-24  # rounding unit of float32
_TABLES = 12
_FUNCTIONS = 11  # hash functions that a table combines
_WIDTH = 8.0  # of a bucket, in distances at the limit
_KEPT_ROWS = 2**14  # rows after which the state is kept
_AGAIN = 8  # rounds that check a row again after its near-duplicate was left out


@dataclass(frozen=True)
class Pruned:
    """Near-duplicates among N rows.

    Attributes:
        kept: (N,) bool, rows that are kept.
        like: (N,) int64, for a row left out the kept row that it is a near-duplicate of; -1 for others.
        recall: chance that a pair at the very limit was compared; 1 if all pairs were.
    """

    kept: BoolArray
    like: IntArray
    recall: float


def prune(
    rows: FloatArray,
    cosine: float,
    *,
    seed: int = 0,
    exact_to: int = EXACT_TO,
    first: int = 0,
    tick: Tick | None = None,
    kept: KeptAnswers | None = None,
) -> Pruned:
    """Leave out near-duplicates, in the order of the rows.

    Args:
        rows: (N, D) of unit length, finite, see `nenya.latents.clusters.unit_rows`; earlier rows are rather kept.
        cosine: limit; a pair with a larger one is near-duplicate.
        seed: of the hashes.
        exact_to: largest N for which all pairs are compared.
        first: so many rows at the beginning are kept in any case.
        tick: called with the number of rows done, of N.
        kept: state of an interrupted run with the same arguments, which is taken; it is kept now and then.

    Raises:
        OptionError: The limit is not between 0 and 1.
    """
    if not 0 < cosine < 1:
        raise OptionError(f"cosine={cosine}: expected a number above 0 and below 1")
    rows = np.ascontiguousarray(rows, np.float32)
    if len(rows) <= exact_to:
        like = _greedy(rows, cosine, first, tick, kept)
        return Pruned(like < 0, like, 1.0)
    like = _by_hashes(rows, cosine, first, seed, tick, kept or KeptAnswers())
    return Pruned(like < 0, like, recall_at(cosine, cosine))


def balance(labels: IntArray, keep: int | None = None) -> BoolArray:
    """Choose rows so that all strata are as equally large as their sizes allow; earlier rows are chosen first.

    Args:
        labels: (N,) stratum of each row, -1 for rows in none, which are not chosen.
        keep: number of rows to choose; None: no stratum has more than the median size.

    Returns:
        (N,) bool: of each stratum its first rows, at most as many as the common limit; where `keep` leaves a rest, the
        largest strata have one more.

    Raises:
        OptionError: There are fewer rows than `keep`.

    Examples:
        >>> import numpy as np
        >>> balance(np.array([0, 0, 0, 1]), keep=2).tolist()
        [True, False, False, True]
    """
    sizes = np.bincount(labels[labels >= 0])
    present = sizes[sizes > 0]
    if keep is not None and keep > present.sum():
        raise OptionError(f"keep={keep}: expected at most {present.sum()}, the number of cutouts left")
    limits = np.minimum(sizes, int(np.median(present)) if len(present) else 0) if keep is None else _fill(sizes, keep)
    order = np.argsort(labels, kind="stable")
    starts = np.searchsorted(labels[order], labels[order], "left")
    chosen = np.zeros(len(labels), bool)
    chosen[order] = (labels[order] >= 0) & (np.arange(len(labels)) - starts < limits[np.maximum(labels[order], 0)])
    return chosen


def strata(rows: FloatArray, k: int, *, seed: int = 0) -> IntArray:
    """Divide rows, (N, D), into k patterns by k-means: (N,) int64.

    Raises:
        OptionError: k is above the number of rows.
    """
    return assign_kmeans(rows, fit_kmeans(rows, k, seed=seed))


def nearest_cosines(
    latents: Any, train: IntArray, valid: IntArray, *, sample: int = 2000, seed: int = 0
) -> NDArray[np.float64]:
    """Return the cosine of rows to validate on with their nearest row to train on.

    Args:
        latents: `nenya.latents.files.Latents`, or an array (N, D).
        train: numbers of the rows to train on.
        valid: numbers of the rows to validate on, rising.
        sample: largest number of them, drawn.
        seed: of the draw.

    Returns:
        (n,) float64, n <= sample; rows without a latent are not among them.
    """
    if len(valid) > sample:
        valid = np.sort(np.random.default_rng(seed).choice(valid, sample, replace=False))
    if not len(train) or not len(valid):
        return np.empty(0)
    cosine, _ = nearest_among(latents, train, valid, identity_of_rows(len(latents)), 1, name="nearest rows to train on")
    found: NDArray[np.float64] = cosine[:, 0]
    return found[np.isfinite(found)]


def recall_at(cosine: float, limit: float) -> float:
    """Return the chance that the hashes for a limit bring a pair of this cosine together.

    Datar and others (2004), the chance that a projection on a Gaussian direction falls into one bucket.
    """
    width = _WIDTH * math.sqrt(2 - 2 * limit)
    ratio = width / max(math.sqrt(max(2 - 2 * cosine, 0.0)), 1e-12)
    tail = math.erfc(ratio / math.sqrt(2))  # 2 Phi(-ratio)
    one = 1 - tail - math.sqrt(2 / math.pi) / ratio * (1 - math.exp(-(ratio**2) / 2))
    return 1 - (1 - one**_FUNCTIONS) ** _TABLES


def _fill(sizes: IntArray, keep: int) -> IntArray:
    """Return how many rows each stratum gives, as equal as possible, `keep` in all."""
    order = np.argsort(sizes, kind="stable")
    limits, left = np.zeros_like(sizes), keep
    for place, stratum in enumerate(order):  # the smallest first; what it lacks the others give
        limits[stratum] = min(sizes[stratum], left // (len(order) - place))
        left -= int(limits[stratum])
    return limits


def _greedy(
    rows: FloatArray, cosine: float, first: int = 0, tick: Tick | None = None, state: KeptAnswers | None = None
) -> IntArray:
    """Return for each row the kept row that it is a near-duplicate of, -1 if it is kept itself: (N,)."""
    like, done = _taken(state, len(rows))
    kept = np.empty_like(rows)
    numbers = np.empty(len(rows), np.int64)
    known = np.flatnonzero(like[:done] < 0)
    count = len(known)
    kept[:count], numbers[:count] = rows[known], known
    if tick and done:
        tick(done)
    for start in range(done, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK]
        own = like[start : start + len(block)]
        free = max(0, min(first - start, len(block)))  # rows kept in any case
        for low in range(0, count, _KEPT):
            open_rows = free + np.flatnonzero(own[free:] < 0)
            some = slice(low, min(low + _KEPT, count))
            own[open_rows] = _first_above(block[open_rows], kept[some], numbers[some], cosine)
        if (own[free:] < 0).any():
            pairs = _above(block[free:], block, cosine)
            for i in free + np.flatnonzero(np.tril(pairs, free - 1).any(axis=1) & (own[free:] < 0)):
                before = np.flatnonzero(pairs[i - free, :i] & (own[:i] < 0))
                own[i] = start + before[0] if len(before) else -1
        new = np.flatnonzero(own < 0)
        kept[count : count + len(new)], numbers[count : count + len(new)] = block[new], start + new
        count += len(new)
        if tick:
            tick(len(block))
        done = start + len(block)
        if state and done // _KEPT_ROWS > start // _KEPT_ROWS:
            state.keep_numbers("pairs", np.concatenate([[done], like]).astype(np.float64))
    return like


def _taken(state: KeptAnswers | None, count: int) -> tuple[IntArray, int]:
    """Return what an interrupted `_greedy` found, (count,), and the number of rows that it had done."""
    values = np.empty(count + 1)
    if state is None or not state.take_numbers("pairs", values):
        return np.full(count, -1, np.int64), 0
    log.info("resuming: %d of %d rows are compared already", values[0], count)
    return values[1:].astype(np.int64), int(values[0])


def _first_above(rows: FloatArray, kept: FloatArray, numbers: IntArray, cosine: float) -> IntArray:
    """Return the number of the first kept row above the limit for each row, -1 if there is none: (n,)."""
    above = _above(rows, kept, cosine)
    return np.where(above.any(axis=1), numbers[above.argmax(axis=1)], -1)


def _above(rows: FloatArray, others: FloatArray, cosine: float) -> BoolArray:
    """Return which pairs have a cosine above the limit, (n, m), as in float64: close ones are computed again."""
    products = rows @ others.T
    error = 1.02 * (rows.shape[1] + 2) * _UNIT
    above = np.asarray(products > cosine - error)
    if above.any():
        unsure = np.argwhere(above & (products <= cosine + error))
        for start in range(0, len(unsure), _BLOCK):
            i, j = unsure[start : start + _BLOCK].T
            above[i, j] = _exact(rows[i], others[j]) > cosine
    return above


def _exact(rows: FloatArray, others: FloatArray) -> NDArray[np.float64]:
    """Return the cosine of each row, (n, D), with its other, (n, D), in float64: (n,)."""
    return np.asarray(np.einsum("ij,ij->i", rows.astype(np.float64), others.astype(np.float64)))


def _by_hashes(
    rows: FloatArray, cosine: float, first: int, seed: int, tick: Tick | None, state: KeptAnswers
) -> IntArray:
    """Return what `_greedy` does, comparing only rows that share a bucket in one of the tables."""
    values = np.concatenate([[0, 0], np.full(len(rows), -1), np.arange(len(rows)) < first]).astype(np.float64)
    if state.take_numbers("hashes", values):
        log.info("resuming: %d of %d tables of hashes are compared already", values[1], _TABLES)
    turn, table = (int(value) for value in values[:2])  # the next
    like, settled = values[2 : len(rows) + 2].astype(np.int64), values[len(rows) + 2 :] > 0  # kept, compared already
    if tick and (turn or table):
        tick(len(rows) if turn else len(rows) * table // _TABLES)
    while turn < _AGAIN:
        while table < _TABLES:
            _in_table(rows, like, settled, cosine, [seed, table])
            if tick and not turn:
                tick(len(rows) * (table + 1) // _TABLES - len(rows) * table // _TABLES)
            table += 1
            state.keep_numbers("hashes", np.concatenate([[turn, table], like, settled]).astype(np.float64))
        lost = _orphans(rows, like, cosine)
        if not len(lost):
            break
        settled, turn, table = like < 0, turn + 1, 0
        like[lost] = -1
    return like


def _in_table(rows: FloatArray, like: IntArray, settled: BoolArray, cosine: float, key: list[int]) -> None:
    """Leave out near-duplicates among rows that share a bucket of a table; changes `like`."""
    open_rows = np.flatnonzero(like < 0)
    codes = _codes(rows, open_rows, cosine, key)
    if settled.any():
        asked = np.isin(codes, codes[~settled[open_rows]])
        open_rows, codes = open_rows[asked], codes[asked]
    for bucket in _buckets(codes):
        members = open_rows[bucket]
        fixed = settled[members]
        members = np.concatenate([members[fixed], members[~fixed]])
        found = _greedy(rows[members], cosine, int(fixed.sum()))
        like[members] = np.where(found >= 0, members[found], -1)


def _orphans(rows: FloatArray, like: IntArray, cosine: float) -> IntArray:
    """Point rows left out at kept rows; return those that are no near-duplicate of theirs."""
    out = np.flatnonzero(like >= 0)
    while len(moving := out[like[like[out]] >= 0]):
        like[moving] = like[like[moving]]
    lost = []
    for start in range(0, len(out), _BLOCK):
        part = out[start : start + _BLOCK]
        lost.append(part[_exact(rows[part], rows[like[part]]) <= cosine])
    return np.concatenate([*lost, np.empty(0, np.int64)])


def _codes(rows: FloatArray, which: IntArray, cosine: float, key: list[int]) -> NDArray[np.int64]:
    """Return the bucket of some rows in one table, (n,) int64: hashes of several projections, in steps of a width."""
    rng = np.random.default_rng(key)
    directions = rng.standard_normal((rows.shape[1], _FUNCTIONS))
    width = _WIDTH * math.sqrt(2 - 2 * cosine)
    shifts = rng.uniform(0, width, _FUNCTIONS)
    mixers = rng.integers(1, 2**62, _FUNCTIONS) | 1
    codes = np.empty(len(which), np.int64)
    for start in range(0, len(which), 2**14):
        part = slice(start, start + 2**14)
        steps = np.floor((rows[which[part]].astype(np.float64) @ directions + shifts) / width).astype(np.int64)
        codes[part] = (steps * mixers).sum(axis=1)  # wraps around
    return codes


def _buckets(codes: NDArray[np.int64]) -> list[IntArray]:
    """Return the places of equal codes, rising, where there are at least two."""
    order = np.argsort(codes, kind="stable")
    edges = np.flatnonzero(np.diff(codes[order])) + 1
    return [part for part in np.split(order, edges) if len(part) > 1]


def canonical_rows(latents: Any, rows: IntArray) -> tuple[FloatArray, BoolArray]:
    """Return some latents scaled to unit length, (n, D) float32 without those that have none, and which have one, (n,).

    Args:
        latents: `nenya.latents.files.Latents`.
        rows: (n,) their numbers, -1 for none.
    """
    found, has, count = np.empty((len(rows), latents.shape[1]), np.float32), np.zeros(len(rows), bool), 0
    for start in range(0, len(rows), 2**14):
        some = rows[start : start + 2**14]
        values = unit_rows(latents.take(np.maximum(some, 0))).astype(np.float32)
        good = (some >= 0) & np.isfinite(values).all(axis=1) & (values != 0).any(axis=1)
        found[count : count + int(good.sum())] = values[good]
        has[start : start + len(some)] = good
        count += int(good.sum())
    return found[:count], has


def rows_left(rows: FloatArray, kept: BoolArray) -> FloatArray:
    """Return the kept ones of some rows, (N, D), moved to the front of the same memory."""
    count = 0
    for start in range(0, len(rows), 2**14):
        some = rows[start : start + 2**14][kept[start : start + 2**14]]
        rows[count : count + len(some)] = some
        count += len(some)
    return rows[:count]
