"""Places of cutouts on the globe: cells for their order, and geometries as well-known binary (WKB).

Letters in shapes: N rows.
"""

from dataclasses import dataclass
from typing import Any

import healpix  # type: ignore[import-untyped, unused-ignore]  # it ships no types
import numpy as np
from numpy.typing import NDArray

from nenya.defs import EARTH_KM
from nenya.errors import InputFileError

Float64Array = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

FINE = 2**16
"""Cells along an edge of HEALPix's base cells that order the rows: about 100 m."""

_POINT = np.dtype([("order", "u1"), ("kind", "<u4"), ("place", "<f8", 2)])
_POLYGON = np.dtype([("order", "u1"), ("kind", "<u4"), ("rings", "<u4"), ("points", "<u4"), ("places", "<f8", (5, 2))])
_TWO = np.dtype([("order", "u1"), ("kind", "<u4"), ("parts", "<u4"), ("polygons", _POLYGON, 2)])
_KINDS = {"Point": 1, "Polygon": 3, "MultiPolygon": 6}
_LEAST_COSINE = 1e-9  # of a latitude: a pole has no east and west


def longitudes(lon: Float64Array) -> Float64Array:
    """Return longitudes within -180 and 180, (N,); NaN stays.

    Raises:
        InputFileError: One lies outside -360 and 360.
    """
    wrong = np.abs(lon) > 360
    if wrong.any():
        raise InputFileError(f"expected lon from -360 to 360 degrees, got {lon[wrong][0]:g} in row {wrong.argmax()}")
    return np.where(np.abs(lon) <= 180, lon, (lon + 180) % 360 - 180)


def nested_cells(lon: Float64Array, lat: Float64Array, side: int) -> IntArray:
    """Return HEALPix's cell of each point in nested order, in which cells close by have close numbers.

    Args:
        lon: (N,) degrees east.
        lat: (N,) degrees north.
        side: cells along an edge of the twelve base cells, a power of two.

    Returns:
        (N,) int64, -1 where a coordinate is unknown.
    """
    known = np.isfinite(lon) & np.isfinite(lat)
    found = np.full(len(known), -1, np.int64)
    # The library crashes on NaN, and errs on longitudes below -360.
    found[known] = healpix.ang2pix(side, np.mod(lon[known], 360.0), lat[known], nest=True, lonlat=True)
    return found


@dataclass(frozen=True)
class Shapes:
    """Geometries of rows: none, a point, or a box along the parallels, in two parts if it crosses the date line.

    Attributes:
        lon: (N,) degrees east of the centre, -180 to 180, NaN if unknown.
        lat: (N,) degrees north of it.
        west: (N,) degrees east, NaN for a point; below -180 where the box crosses the date line.
        east: (N,) degrees east; above 180 where it crosses.
        south: (N,) degrees north.
        north: (N,) degrees north.
    """

    lon: Float64Array
    lat: Float64Array
    west: Float64Array
    east: Float64Array
    south: Float64Array
    north: Float64Array

    def take(self, rows: IntArray) -> "Shapes":
        """Return the shapes of some rows."""
        return Shapes(*(part[rows] for part in self._parts))

    @property
    def _parts(self) -> tuple[Float64Array, ...]:
        return self.lon, self.lat, self.west, self.east, self.south, self.north

    @property
    def known(self) -> BoolArray:
        """Rows with a geometry, (N,)."""
        found: BoolArray = np.isfinite(self.lon) & np.isfinite(self.lat)
        return found

    @property
    def boxed(self) -> BoolArray:
        """Rows whose geometry is a box, (N,)."""
        found: BoolArray = self.known & np.isfinite(self.west)
        return found

    @property
    def split(self) -> BoolArray:
        """Rows whose box crosses the date line, (N,)."""
        found: BoolArray = self.boxed & ((self.west < -180) | (self.east > 180))
        return found

    def bounds(self) -> Float64Array:
        """Return west, south, east and north of each geometry, (N, 4); -180 and 180 if it crosses the date line."""
        boxed, split = self.boxed, self.split
        west = np.where(split, -180.0, np.where(boxed, self.west, self.lon))
        east = np.where(split, 180.0, np.where(boxed, self.east, self.lon))
        south, north = (np.where(boxed, side, self.lat) for side in (self.south, self.north))
        bounds = np.stack([west, south, east, north], axis=1)
        bounds[~self.known] = np.nan
        return bounds

    def kinds(self) -> list[str]:
        """Return the kinds of geometries that there are."""
        boxed, split = self.boxed, self.split
        there = (("Point", self.known & ~boxed), ("Polygon", boxed & ~split), ("MultiPolygon", split))
        return [name for name, rows in there if rows.any()]

    def wkb(self) -> Any:
        """Return the geometries as an Arrow array of well-known binary (little-endian), null where unknown."""
        import pyarrow as pa

        boxed, split = self.boxed, self.split
        packed = (
            (self.known & ~boxed, self._points),
            (boxed & ~split, self._polygons),
            (split, self._halves),
        )
        parts = [(np.flatnonzero(rows), pack(np.flatnonzero(rows))) for rows, pack in packed if rows.any()]
        lengths = np.zeros(len(self.lon), np.int64)
        for rows, binary in parts:
            lengths[rows] = binary.dtype.itemsize
        ends = np.concatenate([[0], np.cumsum(lengths)])
        if ends[-1] >= 2**31:
            raise ValueError("too many geometries for one block")
        data = np.empty(ends[-1], np.uint8)
        for rows, binary in parts:
            size = binary.dtype.itemsize
            data[ends[rows][:, None] + np.arange(size)] = binary.view(np.uint8).reshape(-1, size)
        valid = pa.array(self.known).buffers()[1]
        buffers = [valid, pa.py_buffer(ends.astype(np.int32)), pa.py_buffer(data)]
        return pa.Array.from_buffers(pa.binary(), len(self.lon), buffers)

    def _points(self, rows: IntArray) -> NDArray[Any]:
        found = np.zeros(len(rows), _POINT)
        found["order"], found["kind"] = 1, _KINDS["Point"]
        found["place"] = np.stack([self.lon[rows], self.lat[rows]], axis=1)
        return found

    def _polygons(self, rows: IntArray) -> NDArray[Any]:
        return _boxes(self.west[rows], self.south[rows], self.east[rows], self.north[rows])

    def _halves(self, rows: IntArray) -> NDArray[Any]:
        """Return boxes across the date line: the part west of it, and the part east of it."""
        turn = np.where(self.west[rows] < -180, 360.0, 0.0)
        west, east = self.west[rows] + turn, self.east[rows] + turn
        line = np.full(len(rows), 180.0)
        found = np.zeros(len(rows), _TWO)
        found["order"], found["kind"], found["parts"] = 1, _KINDS["MultiPolygon"], 2
        found["polygons"][:, 0] = _boxes(west, self.south[rows], line, self.north[rows])
        found["polygons"][:, 1] = _boxes(-line, self.south[rows], east - 360, self.north[rows])
        return found


def _boxes(west: Float64Array, south: Float64Array, east: Float64Array, north: Float64Array) -> NDArray[Any]:
    """Return boxes as WKB, each a ring that begins in the south-west and runs counterclockwise."""
    found = np.zeros(len(west), _POLYGON)
    found["order"], found["kind"], found["rings"], found["points"] = 1, _KINDS["Polygon"], 1, 5
    found["places"][:, :, 0] = np.stack([west, east, east, west, west], axis=1)
    found["places"][:, :, 1] = np.stack([south, south, north, north, south], axis=1)
    return found


def points(lon: Float64Array, lat: Float64Array) -> Shapes:
    """Return centres as points.

    Args:
        lon: (N,) degrees east, -360 to 360.
        lat: (N,) degrees north.

    Raises:
        InputFileError: A longitude lies outside.
    """
    none = np.full(len(lon), np.nan)
    known = np.isfinite(lon) & np.isfinite(lat)
    return Shapes(np.where(known, longitudes(lon), np.nan), np.where(known, lat, np.nan), none, none, none, none)


def footprints(lon: Float64Array, lat: Float64Array, height: Float64Array, width: Float64Array) -> Shapes:
    """Return boxes along the parallels around centres; a row of unknown extent stays a point.

    Args:
        lon: (N,) degrees east.
        lat: (N,) degrees north.
        height: (N,) km from south to north.
        width: (N,) km from west to east, at the latitude of the centre.

    Raises:
        InputFileError: A longitude lies outside -360 and 360, or an extent is negative.
    """
    for name, extent in (("height_km", height), ("width_km", width)):
        if (extent < 0).any():
            raise InputFileError(f"expected {name} of at least 0, got {extent[extent < 0][0]:g}")
    centres = points(lon, lat)
    sized = centres.known & np.isfinite(height) & np.isfinite(width)
    tall = np.degrees(height / EARTH_KM) / 2
    wide = np.degrees(width / EARTH_KM) / 2 / np.maximum(np.cos(np.radians(centres.lat)), _LEAST_COSINE)
    south, north = np.maximum(centres.lat - tall, -90), np.minimum(centres.lat + tall, 90)
    around = (wide >= 180) | (np.abs(centres.lat) + tall >= 90)  # a box that holds a pole holds all longitudes
    west, east = np.where(around, -180, centres.lon - wide), np.where(around, 180, centres.lon + wide)
    parts = (np.where(sized, part, np.nan) for part in (west, east, south, north))
    return Shapes(centres.lon, centres.lat, *parts)
