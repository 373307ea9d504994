"""Nearest rows by cosine for many queries, apart from rows of the same granule or nearby in place and time.

Letters: Q queries, R reference rows, D the length of a latent, k neighbours.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nenya.defs import EARTH_KM
from nenya.errors import InputFileError
from nenya.runtime.blas import on_all_cores, parts
from nenya.tables.granules import granules
from nenya.tables.near import coordinates
from nenya.tables.place_and_time import dates_of, usual_names

if TYPE_CHECKING:
    import pandas as pd

Float32Array = NDArray[np.float32]
Float64Array = NDArray[np.float64]
IntArray = NDArray[np.int64]

TILE_ROWS = 2048
"""Reference rows compared at once."""

QUERY_ROWS = 1024
_UNIT_ROWS = 256  # rows scaled at once, that their float64 values stay in the cache
_MARGIN = 8  # rows beyond k that are kept in float32 before the exact ranking
_MORE = 4  # times k: rows kept if only some numbers of each are compared before it
_OUT = np.float32(-3)  # below every cosine


@dataclass(frozen=True)
class Identity:
    """What tells whether two rows are too close to be counted as neighbours.

    Attributes:
        number: (N,) int64, number of the row; a row is never its own neighbour.
        granule: (N,) int64, -1 if unknown, which equals none.
        place: (N, 3) float64, unit vectors, NaN if unknown; None: places are ignored.
        time: (N,) float64, days, NaN if unknown; None: times are ignored.
        km: rows within this distance are near each other.
        days: rows within this time are near each other; with both, rows must be near in place and in time.
    """

    number: IntArray
    granule: IntArray
    place: Float64Array | None = None
    time: Float64Array | None = None
    km: float = 0.0
    days: float = 0.0

    def take(self, rows: IntArray | slice) -> "Identity":
        """Return the identity of some rows."""
        place, time = (None if values is None else values[rows] for values in (self.place, self.time))
        return Identity(self.number[rows], self.granule[rows], place, time, self.km, self.days)


def identity_of(table: "pd.DataFrame", km: float | None, days: float | None, *, same_granule: bool = False) -> Identity:
    """Return the identity of the rows of a table.

    Args:
        table: with `granule`, `filename` or `datetime`, and lat, lon and datetime as needed; (N rows).
        km: see `Identity`; None: places are ignored.
        days: see `Identity`; None: times are ignored.
        same_granule: count neighbours of the same granule.

    Raises:
        InputFileError: The table lacks a column that `km` or `days` needs, or has no places or times in it.
    """
    table = usual_names(table)
    wanted = [*(("lat", "lon") if km is not None else ()), *(("datetime",) if days is not None else ())]
    if missing := [name for name in wanted if name not in table]:
        raise InputFileError(
            f"apart_km= and apart_days= need the columns {', '.join(missing)}, which the table does not have"
        )
    codes = None if same_granule else granules(table)
    return Identity(
        np.arange(len(table)),
        np.full(len(table), -1, np.int64) if codes is None else codes,
        None if km is None else unit_places(*coordinates(table)),
        None if days is None else days_of(table),
        km or 0.0,
        days or 0.0,
    )


def identity_of_rows(count: int) -> Identity:
    """Return the identity: each of N rows is near itself only."""
    return Identity(np.arange(count), np.full(count, -1, np.int64))


def unit_places(lat: Float64Array, lon: Float64Array) -> Float64Array:
    """Return unit vectors (N, 3) of positions in degrees; NaN where one is unknown."""
    phi, lam = np.radians(lat), np.radians(lon)
    return np.stack([np.cos(phi) * np.cos(lam), np.cos(phi) * np.sin(lam), np.sin(phi)], axis=1)


def days_of(table: "pd.DataFrame") -> Float64Array:
    """Return the column datetime of a table in days since 1970, (N,), NaN where unknown."""
    moments = dates_of(table["datetime"]).to_numpy("datetime64[us]")
    days: Float64Array = moments.astype(np.int64) / 86_400e6
    days[np.isnat(moments)] = np.nan
    return days


class Nearest:
    """Reference rows that are searched by cosine.

    Args:
        rows: (R, D) float32 of unit length, finite.
        identity: of these rows.
        leading: compare this many numbers of each row first, and all of them for the best; for rows turned so that the
            first ones hold most of their length. Default: all.
    """

    def __init__(self, rows: Float32Array, identity: Identity, leading: int | None = None) -> None:
        self.rows, self.identity = np.ascontiguousarray(rows, np.float32), identity
        self._some = leading if leading is not None and leading < self.rows.shape[1] else None
        self._first = self.rows if self._some is None else np.ascontiguousarray(self.rows[:, : self._some])

    def search(self, queries: Float32Array, identity: Identity, k: int) -> tuple[Float64Array, IntArray]:
        """Return the nearest allowed rows of each query, found by the calling thread.

        Args:
            queries: (Q, D) float32 of unit length, finite.
            identity: of the queries.
            k: neighbours of each.

        Returns:
            Cosines (Q, k) float64, falling, NaN where there are fewer, and the positions in `rows` as given to the
            constructor, (Q, k) int64, -1 there.
        """
        from nenya.latents.nearest_kernel import merge_best

        keep, own, count = k + _MARGIN if self._some is None else _MORE * k, self.identity, len(queries)
        first = queries if self._some is None else np.ascontiguousarray(queries[:, : self._some])
        best, found = np.full((count, keep), _OUT), np.full((count, keep), -1, np.int64)
        places = _both(identity.place, own.place, np.empty((0, 3)))
        times = _both(identity.time, own.time, np.empty(0))
        limits = float(np.cos(min(identity.km / EARTH_KM, np.pi)) - 1e-15), identity.days
        for start in range(0, len(self.rows), TILE_ROWS):
            tile = slice(start, start + TILE_ROWS)
            scores = first @ self._first[tile].T
            merge_best(
                best, found, scores, start, (identity.number, own.number[tile]), (identity.granule, own.granule[tile]),
                (places[0], places[1][tile]), (times[0], times[1][tile]), limits,
            )  # fmt: skip
        return self._rank(queries, found, k)

    def search_many(self, queries: Float32Array, identity: Identity, k: int) -> tuple[Float64Array, IntArray]:
        """Return what `search` returns, for any number of queries, found on all cores."""
        cosine, found = np.empty((len(queries), k)), np.empty((len(queries), k), np.int64)

        def work(part: slice) -> None:
            cosine[part], found[part] = self.search(queries[part], identity.take(part), k)

        on_all_cores(work, parts(len(queries), QUERY_ROWS))
        return cosine, found

    def _rank(self, queries: Float32Array, found: IntArray, k: int) -> tuple[Float64Array, IntArray]:
        """Rank the candidates in float64; ties by number."""
        from nenya.latents.nearest_kernel import cosines_of

        cosine = np.full(found.shape, np.nan)
        if self._some is not None:
            cosines_of(queries, self.rows, found, cosine)
        for row in _slices(len(queries) if self._some is None else 0, 256):
            known = found[row] >= 0
            vectors = self.rows[np.where(known, found[row], 0)].astype(np.float64)
            own = queries[row].astype(np.float64)
            lengths = np.sqrt((vectors**2).sum(axis=2) * (own**2).sum(axis=1)[:, None])
            cosine[row] = np.where(known, (vectors * own[:, None]).sum(axis=2) / lengths, np.nan)
        number = np.where(found >= 0, self.identity.number[found], np.iinfo(np.int64).max)
        order = np.lexsort((number, -np.nan_to_num(cosine, nan=-np.inf)), axis=1)[:, :k]
        return np.take_along_axis(cosine, order, axis=1), np.take_along_axis(found, order, axis=1)


def _slices(count: int, size: int) -> Iterator[slice]:
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def _both(
    one: Float64Array | None, other: Float64Array | None, none: Float64Array
) -> tuple[Float64Array, Float64Array]:
    """Return what queries and rows have for the compiled code: `none` twice where it is ignored."""
    return (none, none) if one is None or other is None else (np.ascontiguousarray(one), np.ascontiguousarray(other))


def as_unit(latents: NDArray[np.floating]) -> Float32Array:
    """Return latents (n, D) at unit length in float32; rows without a direction (NaN, infinity, zero) are NaN."""
    rows = np.asarray(latents)
    if rows.ndim != 2:
        raise InputFileError(f"expected latents of shape (N, D), got {rows.shape}")
    found = np.empty(rows.shape, np.float32)
    for some in _slices(len(rows), _UNIT_ROWS):
        found[some] = _units(np.asarray(rows[some], np.float64))
    return found


def _units(rows: Float64Array) -> Float64Array:
    with np.errstate(invalid="ignore", over="ignore"):
        lengths = np.sqrt((rows**2).sum(axis=1, keepdims=True))
        good = np.isfinite(lengths) & (lengths > 0)
        return np.where(good, rows / np.where(good, lengths, 1), np.nan)
