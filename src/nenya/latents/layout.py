"""The layout of a UMAP: its curve, and the position of a new row among fitted ones; each row independently."""

import math

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]


_LEAST = 1e-300  # squared distance in the layout that counts as zero


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


@njit(cache=True)
def _mixed(value: np.uint64) -> np.uint64:
    """Return 64 random bits of a number (Steele, Lea & Flood 2014, SplitMix64)."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


@njit(cache=True)
def _clip(value: float) -> float:
    return min(max(value, -4.0), 4.0)


@njit(cache=True)
def _power(x: float, b: float) -> float:
    """Return x^b of a normal x > 0 to a relative 1e-8, from sums and products alone: no library's rounding enters.

    x = m 2^e with m from sqrt(1/2) to sqrt(2); ln m = 2 artanh(s) with s = (m - 1) / (m + 1).
    """
    bits = np.float64(x).view(np.int64)
    exponent = (bits >> 52) - 1023
    m = np.int64((bits & 0xFFFFFFFFFFFFF) | (1023 << 52)).view(np.float64)
    if m > 1.4142135623730951:
        m *= 0.5
        exponent += 1
    s = (m - 1.0) / (m + 1.0)
    t = s * s
    series = 1.0 + t * (1 / 3 + t * (1 / 5 + t * (1 / 7 + t * (1 / 9 + t * (1 / 11)))))
    y = b * (exponent + 2.8853900817779268 * s * series)
    whole = np.floor(y + 0.5)
    f = (y - whole) * 0.6931471805599453
    e = 1.0 + f * (1.0 + f * (1 / 2 + f * (1 / 6 + f * (1 / 24 + f * (1 / 120 + f * (1 / 720 + f * (1 / 5040)))))))
    whole = min(max(whole, -1000.0), 1000.0)
    return float(e * np.int64((np.int64(whole) + 1023) << 52).view(np.float64))


@njit(cache=True)
def _place(  # noqa: PLR0913  # compiled code takes arrays, not objects
    distances: NDArray[np.float64],
    near: NDArray[np.int64],
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
    """Place one row: UMAP's attraction and repulsion, for this row alone.

    The negative samples of an edge in an epoch depend only on the seed, the edge's training row and the epoch, so that
    a small change of the latents does not change all later steps.
    """
    a, b = curve
    sigma = _bandwidth(distances, k)
    weights = np.exp(-distances / sigma)
    total = weights.sum()
    x = y = 0.0
    for j in range(near.size):
        x += weights[j] / total * layout[near[j], 0]
        y += weights[j] / total * layout[near[j], 1]
    largest = weights.max()
    periods = np.full(near.size, np.inf)
    for j in range(near.size):
        if weights[j] >= largest / epochs:
            periods[j] = largest / weights[j]
    due = periods.copy()
    negative = periods / max(rate, 1)
    negative_due = negative.copy()
    count = np.uint64(layout.shape[0])
    for epoch in range(epochs):
        step = alpha * (1.0 - epoch / epochs)
        for j in range(near.size):
            if due[j] > epoch:
                continue
            dx, dy = x - layout[near[j], 0], y - layout[near[j], 1]
            square = dx * dx + dy * dy
            if square > _LEAST:
                power = _power(square, b)
                pull = -2.0 * a * b * power / square / (a * power + 1.0)
                x += step * _clip(pull * dx)
                y += step * _clip(pull * dy)
            due[j] += periods[j]
            if rate == 0:
                continue
            repulsions = int((epoch - negative_due[j]) / negative[j])
            state = _mixed(np.uint64(seed) + np.uint64(0x9E3779B97F4A7C15) * np.uint64(near[j] + 1)) + np.uint64(epoch)
            for _ in range(repulsions):
                state += np.uint64(0x9E3779B97F4A7C15)
                other = np.int64(((_mixed(state) >> np.uint64(32)) * count) >> np.uint64(32))
                dx, dy = x - layout[other, 0], y - layout[other, 1]
                square = dx * dx + dy * dy
                if square > _LEAST:
                    push = 2.0 * gamma * b / ((0.001 + square) * (a * _power(square, b) + 1.0))
                    x += step * _clip(push * dx)
                    y += step * _clip(push * dy)
            negative_due[j] += repulsions * negative[j]
    out[0], out[1] = x, y


@njit(parallel=True, cache=True)
def place_all(  # noqa: PLR0913  # compiled code takes arrays, not objects
    distances: NDArray[np.float64],
    near: NDArray[np.int64],
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
    """Place rows independently into `out` (R, 2); the other arguments are those of `_place`, one per row."""
    for r in prange(near.shape[0]):
        _place(distances[r], near[r], layout, curve, k, epochs, alpha, rate, gamma, seed, out[r])


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


def find_curve(min_dist: float, spread: float = 1.0) -> tuple[float, float]:
    """Return a and b of the curve 1 / (1 + a d^2b) that is close to 1 up to `min_dist` and decays beyond.

    McInnes, Healy & Melville 2018 (arXiv:1802.03426), definition 11, fitted as umap-learn does.
    """
    from scipy.optimize import curve_fit

    d = np.linspace(0, spread * 3, 300)
    wanted = np.where(d < min_dist, 1.0, np.exp(-(d - min_dist) / spread))
    (a, b), _ = curve_fit(lambda d, a, b: 1 / (1 + a * d ** (2 * b)), d, wanted)
    return float(a), float(b)
