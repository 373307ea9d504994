"""The calibration of latents of masked cutouts: how far they lie from those of the clear cutouts.

The distance 1 - cosine between the latents of a cutout with and without a mask is modelled by the share and the shape
of the mask, and the contrast and the roughness of what it leaves. Quantiles of its logarithm are lines in these and in
their products, fitted by quantile regression (Koenker and Bassett 1978) with a penalty on slopes; for masks of the mean
shape they rise with the share. Two halves of the cutouts fit the other terms for each other, and the term of the share
is fitted to what is left of both, so that the stated fraction of unseen ones lies beyond the line at any share
(conformal prediction under shifts, Gibbs, Cherian and Candes 2023, in a cross-fitted form).

Letters in shapes: n pairs of a clear and a masked cutout, K knots, D the length of a latent, M directions.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nenya.data.mask_shapes import SHAPE_NAMES
from nenya.errors import InputFileError

Float64Array = NDArray[np.float64]
FloatArray = NDArray[np.float32]

MISSED = 0.05
"""Fraction of masked cutouts whose cosine is below the low one."""

DIRECTIONS = 256
"""Largest number M of directions that are kept."""

LEAST_CUTOUTS = 60
"""Smallest number of clear cutouts for a calibration."""

SLOPES = {4: 8, 5: 25}
"""Number of shapes beside the share -> terms of a line: the shapes, their products with each other and with the share.

Calibrations made before `roughness` was a shape have four, and few of the products.
"""

_FIT = 0.45  # share of the cutouts in each part that fits; the others check
_KNOTS = 6
_BINS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
_LEAST_PAIRS = 20
_PAIRS_OF_PRODUCTS = 200  # in each half; fewer tell only the shapes themselves
_PENALTY = 0.5  # in standard deviations of the sum that the sign of a term's slope hangs on
_MIDDLE = -1.5  # logarithm of a share, 22 %
_SMALLEST = 1e-13  # distance of equal latents, by rounding
_FARTHEST = 3.0  # standard deviations of a shape from the mean that a line tells apart
_MARGIN = 0.05  # by which a logarithm may exceed what was calibrated


@dataclass(frozen=True)
class Line:
    """A quantile of the logarithm of the distance.

    Attributes:
        at_knots: (K,), its values at the knots of the share, rising.
        slopes: (25,), of the other terms; (8,) of an earlier calibration.
    """

    at_knots: Float64Array
    slopes: Float64Array


@dataclass(frozen=True)
class Calibration:
    """A fitted calibration.

    Attributes:
        knots: (K,), logarithms of the share.
        centre: (5,), means of the other shapes; (4,) of an earlier calibration, without the last one.
        scale: (5,), their standard deviations.
        least: (6,), smallest logarithms of the shapes that were calibrated.
        most: (6,), largest ones.
        median: of the distance.
        high: its quantile of 95 %.
        directions: (M, D), unit vectors, from latents of masked cutouts towards those of the clear ones.
        about: what it was made of, plain values.
    """

    knots: Float64Array
    centre: Float64Array
    scale: Float64Array
    least: Float64Array
    most: Float64Array
    median: Line
    high: Line
    directions: FloatArray
    about: Mapping[str, Any]

    def cosines(self, shapes: Float64Array) -> tuple[FloatArray, FloatArray]:
        """Return the median and the 5 % quantile of the cosine, (n,) each.

        Both are NaN for masks beyond those calibrated: of a larger share, hole, depth or edge.

        Args:
            shapes: (n, 6), of `mask_shapes`.
        """
        within = (shapes[:, :4] <= self.most[:4] + _MARGIN).all(axis=1)
        middle = np.minimum(np.exp(self._line(self.median, shapes)), 2.0)
        far = np.clip(np.exp(self._line(self.high, shapes)), middle, 2.0)
        cosine, low = (_downwards(np.where(within, 1 - distance, np.nan)) for distance in (middle, far))
        return cosine, low

    def lines(self) -> list[str]:
        """Return what was found, as lines of text."""
        about = self.about
        found = [
            f"masked {row['from']:.0%} to {row['to']:.0%}: median cosine {row['cosine']:.4f}, "
            f"5 % below {row['low']:.4f} ({row['pairs']} pairs)"
            for row in about.get("table", ())
        ]
        return [
            *found,
            f"{about.get('unseen_below', np.nan):.1%} of {about.get('unseen', 0)} unseen pairs are below cosine_low, "
            f"expected {MISSED:.0%}",
        ]

    def _line(self, line: Line, shapes: Float64Array) -> Float64Array:
        known = shapes[:, : len(self.least)]
        terms = _terms(np.clip(known, self.least, self.most), self.centre, self.scale)
        return np.interp(shapes[:, 0], self.knots, line.at_knots) + terms @ line.slopes


def divide(cutouts: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return the part of each cutout, (cutouts,): 0 and 1 fit, each what the other is compared with, and 2 checks."""
    ends = np.array([_FIT, 2 * _FIT]) * cutouts
    found: NDArray[np.int64] = np.searchsorted(ends, rng.permutation(cutouts), side="right")
    return found


def fit(
    shapes: Float64Array,
    clear: FloatArray,
    masked: FloatArray,
    part: NDArray[np.int64],
    rng: np.random.Generator,
    about: Mapping[str, Any] | None = None,
) -> Calibration:
    """Fit a calibration.

    Args:
        shapes: (n, 6), of `mask_shapes`.
        clear: (n, D), latents of the clear cutouts.
        masked: (n, D), latents of the same cutouts under the masks.
        part: (n,), of `divide`.
        rng: source of chance.
        about: plain values to keep; it gets the result of the check.

    Raises:
        InputFileError: The fit fails.
    """
    distance = distances(clear, masked)
    known = np.isfinite(distance) & np.isfinite(shapes).all(axis=1)
    shapes, distance, part, clear, masked = shapes[known], distance[known], part[known], clear[known], masked[known]
    fitted, unseen = (part == 0, part == 1), part == 2
    if min(fitted[0].sum(), fitted[1].sum()) < _LEAST_PAIRS:
        raise InputFileError(
            f"expected at least {_LEAST_PAIRS} pairs with latents in each half, got {fitted[0].sum()} and "
            f"{fitted[1].sum()} ({int((~known).sum())} of {len(known)} pairs have none): give more cutouts"
        )
    logarithm = np.log(np.maximum(distance, _SMALLEST))
    centre, scale = shapes[~unseen, 1:].mean(axis=0), np.maximum(shapes[~unseen, 1:].std(axis=0), 1e-9)
    knots = np.unique(np.quantile(shapes[:, 0], np.linspace(0, 1, _KNOTS)))
    if len(knots) == 1:
        knots = knots[0] + np.array([-1e-3, 1e-3])
    rises, terms = _rises(shapes[:, 0], knots), _terms(shapes, centre, scale)
    if min(fitted[0].sum(), fitted[1].sum()) < _PAIRS_OF_PRODUCTS:
        terms[:, len(centre) :] = 0
    units = np.maximum(terms[~unseen].std(axis=0), 1e-9)
    lines = []
    for quantile in (0.5, 1 - MISSED):
        rest, slopes = logarithm.copy(), np.zeros(terms.shape[1])
        for own, other in (fitted, fitted[::-1]):
            penalty = _PENALTY * np.sqrt(own.sum() * quantile * (1 - quantile))
            columns = np.hstack([rises, terms / units])[own]
            found = _fit_line(columns, logarithm[own], quantile, len(knots), penalty)[len(knots) :] / units
            rest[other] -= terms[other] @ found
            slopes += found / 2
        steps = _fit_line(rises[~unseen], rest[~unseen], quantile, len(knots))
        lines.append(Line(np.cumsum(steps), slopes))
    least, most = shapes.min(axis=0), shapes.max(axis=0)
    median, high = lines
    made = Calibration(knots, centre, scale, least, most, median, high, _directions(clear, masked, rng), {})
    below = 1 - distance < made.cosines(shapes)[1]
    missed = float(below[unseen].mean()) if unseen.any() else 0.0
    values = {"pairs": len(part), "unseen": int(unseen.sum()), "unseen_below": missed}
    table = _table(np.exp(shapes[:, 0]), 1 - distance, below, unseen)
    return replace(made, about={**(about or {}), **values, "table": table})


def _table(
    share: Float64Array, cosine: Float64Array, below: NDArray[np.bool_], unseen: NDArray[np.bool_]
) -> list[dict[str, float]]:
    """Return what was found in bins of the share."""
    rows = []
    for low, high in itertools.pairwise(_BINS):
        own = (share > low) & (share <= high)
        if own.any():
            median, least = np.quantile(cosine[own], [0.5, MISSED])
            found = {"from": low, "to": high, "pairs": int(own.sum()), "cosine": float(median), "low": float(least)}
            seen = own & unseen
            rows.append({**found, "unseen": int(seen.sum()), "below": float(below[seen].mean()) if seen.any() else 0.0})
    return rows


def distances(one: FloatArray, other: FloatArray) -> Float64Array:
    """Return 1 - cosine of latents (n, D), (n,), precise for small distances."""
    a, b = (rows.astype(np.float64) for rows in (one, other))
    with np.errstate(invalid="ignore", divide="ignore"):
        a, b = a / np.linalg.norm(a, axis=1, keepdims=True), b / np.linalg.norm(b, axis=1, keepdims=True)
    found: Float64Array = ((a - b) ** 2).sum(axis=1) / 2
    return found


def _terms(shapes: Float64Array, centre: Float64Array, scale: Float64Array) -> Float64Array:
    """Return the terms of a line beside the share, (n, p), p = `SLOPES`."""
    others, share = (shapes[:, 1:] - centre) / scale, shapes[:, :1] - _MIDDLE
    if len(centre) < len(SHAPE_NAMES) - 1:
        return np.hstack([others, others[:, -1:] ** 2, others[:, :3] * share])
    others = np.clip(others, -_FARTHEST, _FARTHEST)
    pairs = itertools.combinations_with_replacement(range(others.shape[1]), 2)
    products = [others[:, i] * others[:, j] for i, j in pairs]
    return np.hstack([others, np.stack(products, axis=1), others * share])


def _rises(share: Float64Array, knots: Float64Array) -> Float64Array:
    """Return the share's part of a line, (n, K): 1, then what has risen between each two knots, 0 to 1."""
    rises = [np.clip((share - low) / (high - low), 0, 1) for low, high in itertools.pairwise(knots)]
    return np.stack([np.ones(len(share)), *rises], axis=1)


def _fit_line(
    columns: Float64Array, values: Float64Array, quantile: float, rising: int, penalty: float = 0.0
) -> Float64Array:
    """Return the coefficients (p,) of a quantile regression; those of columns 1 to `rising` - 1 are not negative.

    Those of later columns cost `penalty` times their absolute value (Belloni and Chernozhukov 2011,
    doi:10.1214/10-AOS827). It is solved in its dual form, which has as many conditions as coefficients: maximise
    values @ a under columns.T @ a = 0, or at most `penalty` in absolute value, and a from quantile - 1 to quantile.
    """
    first, rises, others = columns[:, :1], columns[:, 1:rising], columns[:, rising:]
    from scipy.optimize import linprog

    solved = linprog(
        -values,
        A_ub=np.hstack([rises, others, -others]).T,
        b_ub=np.repeat([0.0, penalty], [rising - 1, 2 * others.shape[1]]),
        A_eq=first.T,
        b_eq=np.zeros(1),
        bounds=(quantile - 1, quantile),
        method="highs",
    )
    if solved.x is None:
        raise InputFileError(f"the calibration cannot be fitted ({solved.message}): give more cutouts or masks")
    steps, up, down = np.split(-solved.ineqlin.marginals, [rising - 1, rising - 1 + others.shape[1]])
    return np.concatenate([-solved.eqlin.marginals, np.maximum(steps, 0), up - down])


def _directions(clear: FloatArray, masked: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Return unit vectors (M, D), at right angles to latents of masked cutouts, towards those of the clear ones."""
    some = np.sort(rng.permutation(len(clear))[:DIRECTIONS])
    a, b = (rows[some].astype(np.float64) for rows in (masked, clear))
    a, b = a / np.linalg.norm(a, axis=1, keepdims=True), b / np.linalg.norm(b, axis=1, keepdims=True)
    across = b - (a * b).sum(axis=1, keepdims=True) * a
    length = np.linalg.norm(across, axis=1)
    kept = length > 0
    return np.asarray(across[kept] / length[kept, None], dtype=np.float32)


def _downwards(values: Float64Array) -> FloatArray:
    """Return float32 that are never above the values."""
    rounded = values.astype(np.float32)
    return np.asarray(np.where(rounded > values, np.nextafter(rounded, np.float32(-2)), rounded), dtype=np.float32)
