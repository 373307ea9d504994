"""The layout of a UMAP: its curve, and the position of a new row among fitted ones; each row independently."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from nenya.errors import OptionError

FloatArray = NDArray[np.float32]
Float64Array = NDArray[np.float64]
IntArray = NDArray[np.int64]

METRICS = ("euclidean", "cosine")

_LEAST = 1e-300  # squared distance in the layout that counts as zero
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_LANES, _DEPTH = 32, 128  # rows side by side, and steps prepared for each
_AT_ONCE = 8


@dataclass(frozen=True)
class Parameters:
    """Parameters of a layout, and of placing rows in it.

    Attributes:
        a: of the curve 1 / (1 + a d^2b) in the layout.
        b: of the same curve.
        n_neighbors: number of training rows by which a row is placed.
        min_dist: smallest distance of points in the layout.
        spread: scale of the layout.
        metric: `euclidean` or `cosine`.
        n_epochs: passes for placing a row, as in umap-learn for up to 10,000 rows at once.
        learning_rate: of the fit; a row is placed with a quarter of it.
        negative_sample_rate: repulsions for each attraction.
        repulsion_strength: their weight.
        seed: of all random numbers.
    """

    a: float
    b: float
    n_neighbors: int = 15
    min_dist: float = 0.1
    spread: float = 1.0
    metric: str = "euclidean"
    n_epochs: int = 100
    learning_rate: float = 1.0
    negative_sample_rate: int = 5
    repulsion_strength: float = 1.0
    seed: int = 1234

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise OptionError(f"metric={self.metric}: expected one of {', '.join(METRICS)}")
        if self.n_neighbors < 2 or self.n_epochs < 1 or self.negative_sample_rate < 0:
            raise OptionError(
                "expected n_neighbors of at least 2, n_epochs of at least 1 and negative_sample_rate of at least 0, "
                f"got {self.n_neighbors}, {self.n_epochs} and {self.negative_sample_rate}"
            )


@njit(cache=True)
def _bandwidth(distances: NDArray[np.float64], k: int) -> float:
    """Return sigma with sum exp(-d / sigma) = log2 k over all neighbours but the nearest, by UMAP's bisection, rho = 0.

    McInnes, Healy & Melville 2018 (arXiv:1802.03426), algorithm 3; umap-learn's `smooth_knn_dist`.
    """
    target = np.log2(np.float64(k))
    low, high, sigma = 0.0, np.inf, 1.0
    for _ in range(64):
        total = 0.0
        for j in range(1, distances.size):
            total += math.exp(-distances[j] / sigma)
        if abs(total - target) < 1e-5:
            break
        if total > target:
            high = sigma
            sigma = (low + high) / 2
        else:
            low = sigma
            sigma = sigma * 2 if high == np.inf else (low + high) / 2
    return float(max(sigma, 1e-3 * distances.sum() / distances.size, 1e-300))


@njit(cache=True, error_model="numpy", inline="always")
def _mixed(value: np.uint64) -> np.uint64:
    """Return 64 random bits of a number (Steele, Lea & Flood 2014, SplitMix64)."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


@njit(cache=True, error_model="numpy", inline="always")
def _clip(value: float) -> float:
    return min(max(value, -4.0), 4.0)


@njit(cache=True, error_model="numpy", inline="always")
def _log2(x: float) -> float:
    """Return log2 of a normal x > 0 to about 1e-9, from sums and products alone: no library's rounding enters.

    x = m 2^e with m from sqrt(1/2) to sqrt(2); ln m = 2 artanh(s) with s = (m - 1) / (m + 1). Integers below 2^52
    become float64 in the low bits of 2^52, as AVX2 has no such conversion.
    """
    bits = np.float64(x).view(np.uint64)
    exponent = np.uint64((bits >> np.uint64(52)) | np.uint64(0x4330000000000000)).view(np.float64) - (2.0**52 + 1023.0)
    m = np.uint64((bits & np.uint64(0xFFFFFFFFFFFFF)) | np.uint64(1023 << 52)).view(np.float64)
    large = m > 1.4142135623730951
    m = m * 0.5 if large else m
    exponent = exponent + 1.0 if large else exponent
    s = (m - 1.0) / (m + 1.0)
    t = s * s
    series = 1.0 + t * (1 / 3 + t * (1 / 5 + t * (1 / 7 + t * (1 / 9 + t * (1 / 11)))))
    found: float = exponent + 2.8853900817779268 * s * series
    return found


@njit(cache=True, error_model="numpy", inline="always")
def _exp2(y: float) -> float:
    """Return 2^y to a relative 1e-8, from sums and products alone, for y from -1000 to 1000."""
    whole = np.floor(y + 0.5)
    f = (y - whole) * 0.6931471805599453
    e = 1.0 + f * (1.0 + f * (1 / 2 + f * (1 / 6 + f * (1 / 24 + f * (1 / 120 + f * (1 / 720 + f * (1 / 5040)))))))
    whole = min(max(whole, -1000.0), 1000.0)
    bits = np.float64(whole + 1.5 * 2.0**52).view(np.uint64)  # its low bits are those of the integer
    power: float = e * np.uint64((bits + np.uint64(1023)) << np.uint64(52)).view(np.float64)
    return power


@njit(cache=True, error_model="numpy")
def _begin(
    distances: Float64Array,
    near: IntArray,
    layout: FloatArray,
    k: int,
    epochs: int,
    periods: Float64Array,
    starts: Float64Array,
) -> Float64Array:
    """Compute the weighted mean, `starts` (2, R), and the epochs between attractions, `periods` (R, k).

    Returns:
        Attractions in an epoch, (R,).
    """
    work = np.zeros(near.shape[0])
    for r in range(near.shape[0]):
        sigma = _bandwidth(distances[r], k)
        weights = np.exp(-distances[r] / sigma)
        total, largest = weights.sum(), weights.max()
        x = y = 0.0
        for j in range(near.shape[1]):
            x += weights[j] / total * layout[near[r, j], 0]
            y += weights[j] / total * layout[near[r, j], 1]
            periods[r, j] = largest / weights[j] if weights[j] >= largest / epochs else np.inf
            work[r] += 1 / periods[r, j]
        starts[0, r], starts[1, r] = x, y
    return work


@njit(cache=True, error_model="numpy")
def _schedule(  # noqa: PLR0913  # compiled code takes arrays, not objects
    rows: IntArray,
    near: IntArray,
    periods: Float64Array,
    epochs: int,
    alpha: float,
    rate: int,
    seeds: Any,
    due: Float64Array,
    negative: Float64Array,
    negative_due: Float64Array,
    state: IntArray,
    codes: Any,
    steps: Float64Array,
) -> None:
    """Write the next steps of each lane: target and step of an attraction, random bits and -step of a repulsion.

    At the end, steps are 0. The negative samples of an edge in an epoch depend only on the seed, the edge's training
    row and the epoch, so that a small change of the latents does not change all later steps.
    """
    for lane in range(rows.size):
        row = rows[lane]
        epoch, j, left, code = state[lane, 0], state[lane, 1], state[lane, 2], np.uint64(state[lane, 3])
        step, n = alpha * (1.0 - epoch / epochs), 0
        while n < _DEPTH and epoch < epochs:
            if left == 0 and due[lane, j] <= epoch:
                codes[lane, n] = np.uint64(near[row, j])
                steps[lane, n] = step
                n += 1
                due[lane, j] += periods[row, j]
                if rate != 0:
                    left = np.int64((epoch - negative_due[lane, j]) / negative[lane, j])
                    negative_due[lane, j] += left * negative[lane, j]
                    code = seeds[lane, j] + np.uint64(epoch)
            while left > 0 and n < _DEPTH:
                for i in range(_AT_ONCE):  # what is too much is written over
                    codes[lane, n + i] = code + _GOLDEN * np.uint64(i + 1)
                for i in range(_AT_ONCE):
                    steps[lane, n + i] = -step
                many = min(left, _DEPTH - n, _AT_ONCE)
                code += _GOLDEN * np.uint64(many)
                n += many
                left -= many
            if left <= 0:
                left = 0
                j += 1
                if j == near.shape[1]:
                    j = 0
                    epoch += 1
                    step = alpha * (1.0 - epoch / epochs)
        for i in range(n, _DEPTH):
            codes[lane, i] = 0
            steps[lane, i] = 0.0
        state[lane, 0], state[lane, 1], state[lane, 2], state[lane, 3] = epoch, j, left, np.int64(code)


@njit(cache=True, error_model="numpy")
def _choose(codes: Any, steps: Float64Array, count: np.uint64) -> None:
    """Replace the random bits of repulsions by training rows; vectorised."""
    for lane in range(_LANES):
        for n in range(_DEPTH):
            code = codes[lane, n]
            other = ((_mixed(code) >> np.uint64(32)) * (count & np.uint64(0xFFFFFFFF))) >> np.uint64(32)
            codes[lane, n] = code if steps[lane, n] > 0 else other


@njit(cache=True, error_model="numpy")
def _look_up(codes: Any, steps: Float64Array, pairs: Any, targets: Any, turned: Float64Array) -> None:
    """Look up the coordinates of targets, (depth, lanes), two float32 in each 64 bits, and turn steps the same way."""
    for n in range(_DEPTH):
        for lane in range(_LANES):
            targets[n, lane] = pairs[codes[lane, n]]
            turned[n, lane] = steps[lane, n]


@njit(cache=True, error_model="numpy")
def _step(work: Float64Array, targets: Any, steps: Float64Array, a: float, b: float, gamma: float) -> None:
    """Apply steps to all lanes; vectorised over lanes, without branches.

    A step is a long chain of dependent operations, so it is done in parts: in each, a processor computes many lanes at
    the same time.

    Args:
        work: (6 lanes,) the coordinates x and y of all lanes, changed in place; the rest is for values between parts.
        targets: (depth, lanes) coordinates as of `_look_up`.
        steps: (depth, lanes).
        a: of the curve.
        b: of the curve.
        gamma: weight of repulsions.
    """
    for n in range(_DEPTH):
        for lane in range(_LANES):
            pair = targets[n, lane]
            dx = work[lane] - np.uint32(pair & np.uint64(0xFFFFFFFF)).view(np.float32)
            dy = work[_LANES + lane] - np.uint32(pair >> np.uint64(32)).view(np.float32)
            work[2 * _LANES + lane] = dx
            work[3 * _LANES + lane] = dy
            work[4 * _LANES + lane] = dx * dx + dy * dy
        for lane in range(_LANES):
            work[5 * _LANES + lane] = b * _log2(work[4 * _LANES + lane])
        for lane in range(_LANES):
            work[5 * _LANES + lane] = _exp2(work[5 * _LANES + lane])
        for lane in range(_LANES):
            x, y, dx, dy = work[lane], work[_LANES + lane], work[2 * _LANES + lane], work[3 * _LANES + lane]
            square, power, step = work[4 * _LANES + lane], work[5 * _LANES + lane], steps[n, lane]
            curve = a * power + 1.0
            pulls = step > 0
            force = (-2.0 * a * b * power / square if pulls else 2.0 * gamma * b) / (
                curve if pulls else (0.001 + square) * curve
            )
            moves = square > _LEAST and step != 0
            work[lane] = x + abs(step) * _clip(force * dx) if moves else x
            work[_LANES + lane] = y + abs(step) * _clip(force * dy) if moves else y


@njit(cache=True, error_model="numpy", nogil=True)
def place_rows(  # noqa: PLR0913  # compiled code takes arrays, not objects
    distances: Float64Array,
    near: IntArray,
    layout: FloatArray,
    curve: tuple[float, float],
    k: int,
    epochs: int,
    alpha: float,
    rate: int,
    gamma: float,
    seed: int,
    out: FloatArray,
) -> None:
    """Place rows: UMAP's attraction and repulsion, for each row alone.

    Several rows take their steps side by side, each its own in its own order, so that a row's coordinates do not depend
    on the others. It runs on one thread and lets others run.

    Args:
        distances: (R, k) of the nearest training rows.
        near: (R, k) their numbers.
        layout: (N, 2) of the training rows, contiguous.
        curve: a and b of the layout.
        k: number of neighbours for the bandwidth.
        epochs: number of passes.
        alpha: length of the first steps.
        rate: repulsions for each attraction.
        gamma: weight of repulsions.
        seed: of the random numbers.
        out: (R, 2) output.
    """
    rows, width = near.shape
    periods, starts = np.empty((rows, width)), np.empty((2, rows))
    order = np.argsort(_begin(distances, near, layout, k, epochs, periods, starts))  # rows side by side end together
    pairs = layout.view(np.uint64).ravel()
    work, state = np.zeros(6 * _LANES), np.zeros((_LANES, 4), np.int64)
    due, negative, negative_due = np.empty((_LANES, width)), np.empty((_LANES, width)), np.empty((_LANES, width))
    seeds = np.empty((_LANES, width), np.uint64)
    codes, steps = np.zeros((_LANES, _DEPTH + _AT_ONCE), np.uint64), np.zeros((_LANES, _DEPTH + _AT_ONCE))
    targets, turned = np.zeros((_DEPTH, _LANES), np.uint64), np.zeros((_DEPTH, _LANES))
    for first in range(0, rows, _LANES):
        own = order[first : first + _LANES]
        lanes = own.size
        state[:] = 0
        for lane in range(_LANES):
            r = order[min(first + lane, rows - 1)]
            work[lane], work[_LANES + lane] = starts[0, r], starts[1, r]
            for j in range(width):
                due[lane, j], negative[lane, j] = periods[r, j], periods[r, j] / max(rate, 1)
                negative_due[lane, j] = negative[lane, j]
                seeds[lane, j] = _mixed(np.uint64(seed) + _GOLDEN * np.uint64(near[r, j] + 1))
        while state[:lanes, 0].min() < epochs:
            _schedule(own, near, periods, epochs, alpha, rate, seeds, due, negative, negative_due, state, codes, steps)
            _choose(codes, steps, np.uint64(layout.shape[0]))
            _look_up(codes, steps, pairs, targets, turned)
            _step(work, targets, turned, curve[0], curve[1], gamma)
        for lane in range(lanes):
            out[own[lane], 0], out[own[lane], 1] = work[lane], work[_LANES + lane]
        steps[:] = 0.0


@njit(cache=True)
def to_unit(rows: FloatArray) -> None:
    """Scale rows to unit length in place; zero rows stay zero."""
    for r in range(rows.shape[0]):
        total = 0.0
        for d in range(rows.shape[1]):
            total += np.float64(rows[r, d]) * np.float64(rows[r, d])
        if total > 0:
            for d in range(rows.shape[1]):
                rows[r, d] = np.float32(rows[r, d] / math.sqrt(total))


def scaled(rows: FloatArray, metric: str) -> FloatArray:
    """Return contiguous rows (n, D); for the cosine of unit length, as its distances are found as Euclidean ones."""
    rows = np.ascontiguousarray(rows)
    if metric == "cosine":
        rows = rows.copy()
        to_unit(rows)
    return rows


def as_metric(distances: Float64Array, metric: str) -> Float64Array:
    """Return the distances of a metric from the Euclidean ones of `scaled` rows."""
    return distances**2 / 2 if metric == "cosine" else distances


def find_curve(min_dist: float, spread: float = 1.0) -> tuple[float, float]:
    """Return a and b of the curve 1 / (1 + a d^2b) that is close to 1 up to `min_dist` and decays beyond.

    McInnes, Healy & Melville 2018 (arXiv:1802.03426), definition 11, fitted as umap-learn does.
    """
    from scipy.optimize import curve_fit

    d = np.linspace(0, spread * 3, 300)
    wanted = np.where(d < min_dist, 1.0, np.exp(-(d - min_dist) / spread))
    (a, b), _ = curve_fit(lambda d, a, b: 1 / (1 + a * d ** (2 * b)), d, wanted)
    return float(a), float(b)
