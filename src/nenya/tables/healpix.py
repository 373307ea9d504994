"""Cells of equal area on the globe: HEALPix in ring order (Gorski and others 2005, ApJ 622, 759, section 4).

Letters in shapes: N points.
"""

import numpy as np
from numpy.typing import NDArray

Float64Array = NDArray[np.float64]
IntArray = NDArray[np.int64]


def ring_cells(lon: Float64Array, lat: Float64Array, side: int) -> IntArray:
    """Return the HEALPix cell of each point in ring order, (N,) int64, -1 where a coordinate is not finite.

    Args:
        lon: (N,) degrees east.
        lat: (N,) degrees north.
        side: cells along an edge of the twelve base cells: 12 * side**2 cells in all.
    """
    lon, lat = np.asarray(lon, np.float64), np.asarray(lat, np.float64)
    known = np.isfinite(lon) & np.isfinite(lat) & (np.abs(lat) <= 90)
    z = np.sin(np.radians(np.where(known, lat, 0.0)))
    turn = np.mod(np.where(known, lon, 0.0), 360.0) / 90.0  # in quarters of the equator, 0 up to 4
    cell = np.where(np.abs(z) <= 2 / 3, _equatorial(z, turn, side), _polar(z, turn, side))
    found: IntArray = np.where(known, cell, -1)
    return found


def ring_centres(side: int) -> tuple[Float64Array, Float64Array]:
    """Return longitude (0 up to 360) and latitude of the centre of each cell, degrees: (12 * side**2,) each."""
    ring = np.arange(1, 4 * side)
    cap = np.minimum(np.minimum(ring, 4 * side - ring), side)
    z = np.where(cap < side, (1 - cap**2 / (3 * side**2)) * np.sign(2 * side - ring), 4 / 3 - 2 * ring / (3 * side))
    z = np.where((cap == side) & (ring != side) & (ring != 3 * side), 4 / 3 - 2 * ring / (3 * side), z)
    counts = 4 * cap
    inside = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    shifted = (cap < side) | ((ring - side) % 2 == 0)
    lon = (inside + np.repeat(np.where(shifted, 0.5, 0.0), counts)) * 90 / np.repeat(cap, counts)
    return lon, np.degrees(np.arcsin(np.repeat(z, counts)))


def _equatorial(z: Float64Array, turn: Float64Array, side: int) -> IntArray:
    """Return cells between the latitudes whose sine is -2/3 and 2/3."""
    middle, slope = side * (0.5 + turn), side * z * 0.75
    rising = np.floor(middle - slope).astype(np.int64)
    falling = np.floor(middle + slope).astype(np.int64)
    ring = side + 1 + rising - falling  # from the edge of the northern cap
    even = 1 - (ring & 1)
    place = (rising + falling - side + even + 1) // 2 % (4 * side)
    found: IntArray = 2 * side * (side - 1) + (ring - 1) * 4 * side + place
    return found


def _polar(z: Float64Array, turn: Float64Array, side: int) -> IntArray:
    """Return cells of the caps."""
    inside = turn - np.floor(turn)
    reach = side * np.sqrt(3 * (1 - np.abs(z)))
    rising = np.minimum(np.floor(inside * reach).astype(np.int64), side - 1)
    falling = np.minimum(np.floor((1 - inside) * reach).astype(np.int64), side - 1)
    ring = rising + falling + 1  # from the nearer pole
    place = np.floor(turn * ring).astype(np.int64) % (4 * ring)
    north = 2 * ring * (ring - 1) + place
    found: IntArray = np.where(z > 0, north, 12 * side**2 - 2 * ring * (ring + 1) + place)
    return found
