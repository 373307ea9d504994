"""Which rows of a table are near others in place and time.

Letters in shapes: N rows of the table.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nenya.defs import EARTH_KM
from nenya.errors import InputFileError
from nenya.storage.texts import counted
from nenya.tables.place_and_time import dates_of, usual_names

if TYPE_CHECKING:
    import pandas as pd

BoolArray = NDArray[np.bool_]
Float64Array = NDArray[np.float64]
IntArray = NDArray[np.int64]

_DAY = 86_400_000_000  # microseconds
_EDGE = 1 + 1e-9  # rounding of a chord: a row at the very distance counts as near


@dataclass(frozen=True)
class Distance:
    """How near is near: both that are given must hold.

    Attributes:
        km: great-circle distance, None for any.
        days: difference of times, None for any.
    """

    km: float | None = None
    days: float | None = None

    def __bool__(self) -> bool:
        """Return whether either is given."""
        return self.km is not None or self.days is not None

    def __str__(self) -> str:
        """Return the words for it: 50 km and 2 days."""
        words = [f"{self.km:g} km"] if self.km is not None else []
        words += [counted(self.days, "day", form="g")] if self.days is not None else []
        return " and ".join(words)


class Places:
    """Places and times of the rows of a table.

    Args:
        table: with `lat` and `lon` (degrees) where `distance.km` is given, `datetime` where `distance.days` is.
        distance: how near is near.

    Attributes:
        known: (N,) bool, rows with a known place and a known time, as far as these are needed.

    Raises:
        InputFileError: A needed column is missing, or holds no dates.
    """

    def __init__(self, table: "pd.DataFrame", distance: Distance) -> None:
        table = usual_names(table)
        self.distance = distance
        self.known = np.ones(len(table), bool)
        self.points: Float64Array | None = None
        self.times: IntArray | None = None
        if distance.km is not None:
            lat, lon = coordinates(table)
            self.known &= np.isfinite(lat) & np.isfinite(lon)
            self.points = unit_vectors(lat, lon)
        if distance.days is not None:
            self.times, dated = microseconds(table)
            self.known &= dated

    def near(self, rows: IntArray, others: IntArray) -> BoolArray:
        """Return which of some rows have any of the others near; rows of unknown place or time are near none.

        Args:
            rows: (n,) row numbers.
            others: (m,) row numbers.

        Returns:
            (n,) bool.
        """
        found = np.zeros(len(rows), bool)
        asked = np.flatnonzero(self.known[rows])
        others = others[self.known[others]]
        if not len(asked) or not len(others):
            return found
        if self.times is None:
            found[asked] = self._within_km(rows[asked], others)
        elif self.points is None:
            found[asked] = self._within_days(rows[asked], others)
        else:
            found[asked] = self._within_both(rows[asked], others)
        return found

    @property
    def _chord(self) -> float:
        """Largest chord on the unit sphere."""
        assert self.distance.km is not None
        return 2 * math.sin(min(self.distance.km / EARTH_KM / 2, math.pi / 2)) * _EDGE

    @property
    def _span(self) -> int:
        """Largest difference of times, microseconds."""
        assert self.distance.days is not None
        return math.ceil(min(self.distance.days * _DAY, 2.0**61))

    def _within_km(self, rows: IntArray, others: IntArray) -> BoolArray:
        from scipy.spatial import cKDTree

        assert self.points is not None
        nearest, _ = cKDTree(self.points[others]).query(self.points[rows], distance_upper_bound=self._chord * _EDGE)
        return np.asarray(nearest <= self._chord)

    def _within_days(self, rows: IntArray, others: IntArray) -> BoolArray:
        assert self.times is not None
        ordered, times = np.sort(self.times[others]), self.times[rows]
        low = np.searchsorted(ordered, times - self._span, "left")
        return np.asarray(low < np.searchsorted(ordered, times + self._span, "right"))

    def _within_both(self, rows: IntArray, others: IntArray) -> BoolArray:
        """Compare short spans of time, one after the other: most others are surely within the days, or surely not."""
        assert self.times is not None
        order = np.argsort(self.times[rows], kind="stable")
        times = self.times[rows][order]
        others = others[np.argsort(self.times[others], kind="stable")]
        theirs = self.times[others]
        found = np.zeros(len(rows), bool)
        start = 0
        while start < len(order):
            first = times[start]
            stop = int(np.searchsorted(times, first + self._span // 4, "right"))
            last = times[stop - 1]
            sure = slice(
                np.searchsorted(theirs, last - self._span, "left"), np.searchsorted(theirs, first + self._span, "right")
            )
            own = order[start:stop]
            if sure.start < sure.stop:
                found[own] = self._within_km(rows[own], others[sure])
            left = own[~found[own]]
            early = slice(np.searchsorted(theirs, first - self._span, "left"), sure.start)
            late = slice(max(sure.stop, early.stop), np.searchsorted(theirs, last + self._span, "right"))
            for part in (early, late):
                if len(left) and part.start < part.stop:
                    found[left] |= self._within_pairs(rows[left], others[part])
            start = stop
        return found

    def _within_pairs(self, rows: IntArray, others: IntArray) -> BoolArray:
        """Look at all pairs within the km, and compare their times."""
        from scipy.spatial import cKDTree

        assert self.points is not None
        assert self.times is not None
        pairs = cKDTree(self.points[rows]).query_ball_tree(cKDTree(self.points[others]), self._chord)
        found = np.zeros(len(rows), bool)
        for i, near in enumerate(pairs):
            found[i] = bool((np.abs(self.times[others[near]] - self.times[rows[i]]) <= self._span).any())
        return found


def coordinates(table: "pd.DataFrame") -> tuple[Float64Array, Float64Array]:
    """Return latitudes and longitudes, (N,) float64 in degrees, NaN where unknown.

    Raises:
        InputFileError: The table has no `lat` or no `lon`, or values that are none.
    """
    from nenya.tables.quantities import columns_of

    missing = [name for name in ("lat", "lon") if name not in table]
    if missing:
        raise InputFileError(f"expected the columns lat and lon for places, got {', '.join(map(str, table.columns))}")
    lat, lon = columns_of(table, "lat", "lon").T
    if (np.abs(lat) > 90).any():
        raise InputFileError(f"expected lat from -90 to 90 degrees, got {lat[np.abs(lat) > 90][0]:g}")
    return lat, lon


def microseconds(table: "pd.DataFrame") -> tuple[IntArray, BoolArray]:
    """Return times as microseconds since 1970, (N,) int64, and which are known, (N,).

    Raises:
        InputFileError: The table has no `datetime`, or no dates in it.
    """
    if "datetime" not in table:
        raise InputFileError(f"expected the column datetime for times, got {', '.join(map(str, table.columns))}")
    moments = dates_of(table["datetime"]).to_numpy("datetime64[us]")
    known = ~np.isnat(moments)
    return np.where(known, moments.astype(np.int64), 0), known


def unit_vectors(lat: Float64Array, lon: Float64Array) -> Float64Array:
    """Return points on the unit sphere, (N, 3); the pole where a place is unknown."""
    lat, lon = np.radians(np.where(np.isfinite(lat), lat, 90.0)), np.radians(np.where(np.isfinite(lon), lon, 0.0))
    return np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=1)
