"""Types in which latents are published, and what each costs: the share of nearest neighbours that change.

Letters in shapes: N rows, D the length of a latent.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nenya.errors import OptionError
from nenya.latents.similarity import closest

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]

DTYPES = ("float32", "float16", "int8")
SCALE = "latent_scale"
"""Column of the numbers with which int8 latents are multiplied."""

_STEPS = 127  # of int8 on either side of 0
_LARGEST = float(np.finfo(np.float16).max)
_NEIGHBOURS = 10
_QUERIES = 256
_AMONG = 50_000  # rows
_VALUES = 2**26  # numbers in these rows
_BLOCK = 4096  # rows whose cosines are computed at once
_TIE = 1e-6  # of a cosine: the rounding of float32


@dataclass(frozen=True)
class Encoded:
    """Latents of some rows as they are stored.

    Attributes:
        values: (n, D) of the stored type.
        scale: (n,) float32, None unless they are int8: a latent is `scale * values`.
    """

    values: NDArray[Any]
    scale: FloatArray | None = None

    def decoded(self) -> FloatArray:
        """Return the latents, (n, D) float32."""
        found = self.values.astype(np.float32)
        return found if self.scale is None else found * self.scale[:, None]


def encode(latents: FloatArray, dtype: str) -> Encoded:
    """Return latents in one of `DTYPES`.

    int8 has one scale for each row, symmetric about 0: the row's largest absolute value is 127. It cancels out of a
    cosine, so int8 rows can be searched as they are.

    Args:
        latents: (n, D) float32, finite.
        dtype: of the result.

    Raises:
        OptionError: A value is too large for float16.
    """
    if dtype == "float32":
        return Encoded(latents)
    if dtype == "float16":
        largest = float(np.abs(latents).max(initial=0))
        if largest > _LARGEST:
            raise OptionError(
                f"dtype=float16: expected latents up to {_LARGEST:g}, got {largest:g}; use dtype=float32 or int8"
            )
        return Encoded(latents.astype(np.float16))
    scale = np.abs(latents).max(axis=1, initial=0).astype(np.float32) / np.float32(_STEPS)
    divisor = np.where(scale > 0, scale, np.float32(1))
    steps = np.clip(np.rint(latents / divisor[:, None]), -_STEPS, _STEPS)
    return Encoded(steps.astype(np.int8), scale)


def measure(latents: Any, rows: IntArray, dtype: str, seed: int) -> dict[str, Any]:
    """Measure how many nearest neighbours a type keeps, on a seeded sample of rows.

    Args:
        latents: with a shape (.., D) and `take(rows)` -> (n, D) float32.
        rows: (N,) numbers of the published rows.
        dtype: one of `DTYPES`.
        seed: of the sample.

    Returns:
        JSON values: `neighbours_lost`, the share of the ten rows of largest cosine to a row that are no longer among
        the ten (a row as close as the tenth counts as kept); of how many queries among how many rows; and
        `least_cosine`, the smallest cosine of a stored latent with the original. None where there are too few rows.
    """
    rng = np.random.default_rng(seed)
    most = min(_AMONG, _VALUES // latents.shape[1])
    among = np.sort(rng.choice(rows, most, replace=False)) if len(rows) > most else np.sort(rows)
    original = np.asarray(latents.take(among), np.float32)
    original = original[np.abs(original).max(axis=1, initial=0) > 0]
    count = min(_NEIGHBOURS, len(original) - 1)
    found = {"k": max(count, 0), "queries": 0, "among": len(original), "seed": seed}
    if count < 1:
        return {"neighbours_lost": None, "least_cosine": None, **found}
    stored = encode(original, dtype).decoded()
    asked = np.sort(rng.choice(len(original), min(_QUERIES, len(original)), replace=False))
    kept = 0
    near, far = (closest(values, values[asked], count + 1).rows for values in (original, stored))
    for query, truth, other in zip(asked, near, far, strict=True):
        truth, other = (rows_[(rows_ != query) & (rows_ >= 0)][:count] for rows_ in (truth, other))
        tenth = cosines(original[truth], original[[query]]).min()
        kept += int((cosines(original[other], original[[query]]) >= tenth - _TIE).sum())
    blocks = (slice(start, start + _BLOCK) for start in range(0, len(original), _BLOCK))
    least = min(float(cosines(original[block], stored[block]).min()) for block in blocks)
    lost = 1 - kept / (count * len(asked))
    return {"neighbours_lost": lost, "least_cosine": least, **found, "queries": len(asked)}


def cosines(one: FloatArray, other: FloatArray) -> NDArray[np.float64]:
    """Return the cosines of rows, computed in float64: (n,).

    Args:
        one: (n, D).
        other: (n, D), or (1, D) for all.
    """
    a, b = one.astype(np.float64), other.astype(np.float64)
    found: NDArray[np.float64] = (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    return found
