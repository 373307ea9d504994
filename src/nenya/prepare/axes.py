"""Rows and columns of a field: by the names of its dimensions and by its coordinates, never by their order in the file.

One rule holds for all grids: rows run from south to north, columns from west to east. A swath keeps its own frame: rows
are its scan lines, columns the pixels of a line, both as in the file.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from nenya.data.orientation import SOUTH_TO_NORTH, SWATH
from nenya.prepare.geometry import to_vectors

if TYPE_CHECKING:
    import xarray

_ROWS = re.compile(
    r"(y|j|nj|ny|jj|n?lat(itude)?s?|eta|yc|yh|yq|row|line|south_north|northing|rlat)([_\d].*)?|.*(_lines?|rows|along_?track)"
    r"|(y|lat|eta)_?\w+|atrack|n?scans?|nlines?|lines|num_lines"
)
_COLUMNS = re.compile(
    r"(x|i|ni|nx|ii|n?lon(gitude)?s?|nlong|xi|xc|xh|xq|col|pixel|west_east|easting|rlon)([_\d].*)?"
    r"|.*(_pixels?|pixels_per_line|columns|cols|across_?track|cross_?track|control_points)|(x|lon|xi)_?\w+|xtrack|n?pixels"
)
_SWATH = re.compile(
    r".*(lines?|pixels?|pixels_per_line|scans?|(along|a?cross)_?track|control_points)|[ax]track|n?fovs?|nrays?"
)
_LEVEL = re.compile(r"\s*(?:l|level[\s_-]*)([1-4])", re.IGNORECASE)
_SAMPLES = 64  # rows and columns at which the directions of a grid are looked at
_CLEAR = 0.3  # least share of a direction in the steps of a grid that decides

N = TypeVar("N", bound=np.generic)


def is_row(dim: Any) -> bool:
    """Return whether a dimension is called like the rows of a field."""
    return _ROWS.fullmatch(str(dim).lower()) is not None


def is_column(dim: Any) -> bool:
    """Return whether a dimension is called like the columns of a field."""
    return _COLUMNS.fullmatch(str(dim).lower()) is not None


def in_order(dims: Sequence[Any]) -> list[Any]:
    """Return two dimensions, that of the rows first; in the given order if their names do not say."""
    one, other = dims
    rows, columns = [is_row(d) and not is_column(d) for d in dims], [is_column(d) and not is_row(d) for d in dims]
    turned = (rows[1] and not rows[0]) or (columns[0] and not columns[1])
    return [other, one] if turned else [one, other]


def match_dims(array: "xarray.DataArray", other: "xarray.DataArray") -> "xarray.DataArray | None":
    """Return a variable with its dimensions named like those of a field, None if it does not lie on them.

    Dimensions of other names are matched by their lengths; where these leave a choice, rows go with rows and columns
    with columns, by their names, or, if the names do not say, two dimensions in the order that both variables have.
    """
    unknown = [d for d in other.dims if d not in array.dims and other.sizes[d] > 1]
    if not unknown:
        return other
    free = [d for d in array.dims if d not in other.dims and array.sizes[d] > 1]
    ways: list[tuple[Any, ...]] = []
    if len(unknown) == 1:
        ways = [(d,) for d in free]
    elif len(unknown) == 2 and len(free) >= 2:
        ways = [tuple(free[-2:]), tuple(free[:-3:-1])]
    ways = [way for way in ways if [array.sizes[d] for d in way] == [other.sizes[d] for d in unknown]]
    alike = [sum(_alike(one, two) for one, two in zip(unknown, way, strict=True)) for way in ways]
    if not ways or (len(unknown) == 1 and alike.count(max(alike)) > 1):
        return None
    best = ways[alike.index(max(alike))]
    return other.reset_coords(drop=True).rename(dict(zip(unknown, best, strict=True)))


def _alike(one: Any, other: Any) -> bool:
    """Return whether both dimensions are rows, or both are columns, by their names."""
    kinds = (is_row(one), is_column(one))
    return sum(kinds) == 1 and kinds == (is_row(other), is_column(other))


def is_swath(dataset: "xarray.Dataset", rows_cols: Sequence[Any], *, lines: bool) -> bool:
    """Return whether a field with coordinates of two dimensions is a swath.

    Args:
        dataset: of the file.
        rows_cols: the dimensions of the field.
        lines: whether each line or pixel has a time of its own.
    """
    kind = str(dataset.attrs.get("cdm_data_type", dataset.attrs.get("cdm_feature_type", ""))).lower()
    level = _LEVEL.match(str(dataset.attrs.get("processing_level", dataset.attrs.get("product_level", ""))))
    number = int(level.group(1)) if level is not None else 0
    named = any(_SWATH.fullmatch(str(d).lower()) for d in rows_cols)
    if kind == "grid" or number > 2:
        return named
    return lines or named or kind == "swath" or number in (1, 2)


@dataclass(frozen=True)
class Turn:
    """The way from a field as read to its rows and columns.

    Attributes:
        swap: whether the first dimension becomes the columns.
        up: whether the order of the rows is reversed, after that.
        across: whether the order of the columns is reversed.
    """

    swap: bool = False
    up: bool = False
    across: bool = False

    def __call__(self, plane: NDArray[N]) -> NDArray[N]:
        """Return an array (H, W)."""
        turned = plane.T if self.swap else plane
        return np.ascontiguousarray(turned[:: -1 if self.up else 1, :: -1 if self.across else 1])

    def places(
        self, lat: NDArray[np.float64], lon: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return latitude (H,) or (H, W) and longitude (W,) or (H, W) in degrees."""
        if lat.ndim == lon.ndim == 1:
            return lat[:: -1 if self.up else 1], lon[:: -1 if self.across else 1]
        return self(lat), self(lon)


def turn_of(lat: NDArray[np.float64], lon: NDArray[np.float64], axes: tuple[int, int] = (1, 1)) -> Turn:
    """Return how a grid is turned so that rows run to the north and columns to the east.

    Where the grid shows no direction, such as around a pole, its own axes decide.

    Args:
        lat: degrees, of the first dimension (A,), or (A, B).
        lon: degrees, of the second dimension (B,), or (A, B).
        axes: direction of the projected coordinates of both dimensions, 1 or -1; 1 without any.
    """
    if lat.ndim == 1 and lon.ndim == 1:
        return Turn(up=_runs_down(lat), across=_runs_down(lon, 360.0))
    north, east = zip(*(_direction(lat, lon, axis) for axis in (0, 1)), strict=True)
    swap = abs(north[1]) * abs(east[0]) > 1.5 * abs(north[0]) * abs(east[1]) and abs(north[1]) > _CLEAR
    rows, columns = (1, 0) if swap else (0, 1)
    if abs(north[rows]) < _CLEAR and abs(east[columns]) < _CLEAR:
        return Turn(up=axes[0] < 0, across=axes[1] < 0)
    up = north[rows] < 0 if abs(north[rows]) >= _CLEAR else axes[rows] < 0
    return Turn(swap, bool(up), bool(east[columns] < 0))


def _runs_down(values: NDArray[np.float64], around: float | None = None) -> bool:
    """Return whether a coordinate falls, except for a jump around the globe."""
    steps = np.diff(values[np.isfinite(values)])
    if around is not None:
        steps = (steps + around / 2) % around - around / 2
    return bool(len(steps)) and bool(np.median(steps) < 0)


def _direction(lat: NDArray[np.float64], lon: NDArray[np.float64], axis: int) -> tuple[float, float]:
    """Return the mean north and east components (-1 to 1) of the steps of a grid (A, B) along an axis."""
    most = [n - (1 if i == axis else 0) for i, n in enumerate(lat.shape)]
    if min(most) < 1:
        return 0.0, 0.0
    a, b = (np.unique(np.linspace(0, n - 1, min(n, _SAMPLES)).astype(np.intp)) for n in most)
    here, there = np.ix_(a, b), np.ix_(a + (axis == 0), b + (axis == 1))
    start = to_vectors(lat[here], lon[here])
    step = to_vectors(lat[there], lon[there]) - start
    phi, lam = np.radians(lat[here]), np.radians(lon[here])
    up = np.stack([-np.sin(phi) * np.cos(lam), -np.sin(phi) * np.sin(lam), np.cos(phi)], axis=-1)
    right = np.stack([-np.sin(lam), np.cos(lam), np.zeros_like(lam)], axis=-1)
    length = np.linalg.norm(step, axis=-1)
    good = np.isfinite(length) & (length > 1e-9)
    if not good.any():
        return 0.0, 0.0
    parts = [((step * way).sum(axis=-1)[good] / length[good]).mean() for way in (up, right)]
    return float(parts[0]), float(parts[1])


def order_of(*, swath: bool) -> str:
    """Return the row order of a file of cutouts of such fields."""
    return SWATH if swath else SOUTH_TO_NORTH
