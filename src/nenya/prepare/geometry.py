"""A field, and where on the globe its pixels are."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Field:
    """One field: a granule, a time step, or a tile of it.

    Attributes:
        values: (H, W) float32, temperatures in degrees Celsius, NaN where masked.
        lat: degrees north, (H,) or (H, W), as in the file.
        lon: degrees east, (W,) or (H, W).
        time: of the field, UTC, datetime64[us].
        seconds: (H, W) seconds of each pixel after `time`, None if not in the file.
        wraps: whether column 0 follows the last column, around the globe.
        face: number of the tile, -1 without tiles.
        masked: reason -> number of pixels masked for it.
        possible: smallest and largest possible value, for pixels that are filled.
    """

    values: NDArray[np.float32]
    lat: NDArray[np.float64]
    lon: NDArray[np.float64]
    time: np.datetime64
    seconds: NDArray[np.float32] | None = None
    wraps: bool = False
    face: int = -1
    masked: Mapping[str, int] = field(default_factory=dict)
    possible: tuple[float, float] = (-np.inf, np.inf)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.values.shape[0], self.values.shape[1]

    def unit_vectors(self, rows: NDArray[np.intp], cols: NDArray[np.intp]) -> NDArray[np.float64]:
        """Return unit vectors (..., 3) of pixels; columns past the last one wrap around the globe."""
        cols = cols % self.shape[1]
        lat = self.lat[rows] if self.lat.ndim == 1 else self.lat[rows, cols]
        lon = self.lon[cols] if self.lon.ndim == 1 else self.lon[rows, cols]
        return to_vectors(lat, lon)


def to_vectors(lat: NDArray[np.float64], lon: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return unit vectors (..., 3) of places in degrees."""
    phi, lam = np.radians(lat, dtype=np.float64), np.radians(lon, dtype=np.float64)
    phi, lam = np.broadcast_arrays(phi, lam)
    return np.stack([np.cos(phi) * np.cos(lam), np.cos(phi) * np.sin(lam), np.sin(phi)], axis=-1)


def to_degrees(vectors: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return latitude and longitude (-180 to 180) in degrees of vectors (..., 3) of any length."""
    x, y, z = np.moveaxis(vectors, -1, 0)
    return np.degrees(np.arctan2(z, np.hypot(x, y))), np.degrees(np.arctan2(y, x))


def wraps(field: Field) -> bool:
    """Return whether a field's first column follows its last one around the globe."""
    height, width = field.shape
    if width < 8:
        return False
    rows = np.unique(np.linspace(0, height - 1, min(height, 32)).astype(np.intp))
    before, last, first = (field.unit_vectors(rows, np.full_like(rows, col)) for col in (width - 2, width - 1, 0))
    gap = np.linalg.norm(last - before, axis=-1)
    miss = np.linalg.norm(2 * last - before - first, axis=-1)
    sound = np.isfinite(gap) & np.isfinite(miss) & (gap > 1e-9)
    return bool(sound.any() and np.median(miss[sound] / gap[sound]) < 0.5)
