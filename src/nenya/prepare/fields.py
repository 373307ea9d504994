"""Two-dimensional fields of a dataset: its variable, coordinates, times and masks, found by their attributes.

Letters: H rows and W columns of a field.
"""

from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from nenya.errors import InputFileError
from nenya.options.commands import PrepareOptions
from nenya.prepare.axes import Turn, in_order, is_column, is_row, is_swath, order_of, turn_of
from nenya.prepare.coordinates import find_coordinates
from nenya.prepare.flags import FieldMasks
from nenya.prepare.geometry import Field, wraps
from nenya.prepare.levels import is_vertical, surface_level
from nenya.prepare.projections import grid_axes
from nenya.prepare.ranges import FieldRange, drop, nowhere
from nenya.prepare.sources import reading
from nenya.prepare.times import find_times, time_dim
from nenya.prepare.units import plain_text
from nenya.prepare.variables import (
    dims_text,
    find_variable,
)
from nenya.storage.process import check_memory

if TYPE_CHECKING:
    import xarray

_FACES = ("face", "tile", "faces", "tiles", "nf", "ntiles")
_OF_LINES = ("sst_dtime", "l2p_flags")  # variables that only swaths have, if their coordinates have two dimensions

N = TypeVar("N", bound=np.generic)

_COPIES = 4  # copies of a field in memory while it is read: packed, scaled, masked


class Layout:
    """The layout of the fields in a dataset.

    Args:
        dataset: as opened; only time coordinates are read.
        place: name of the file, for errors.
        options: names and units given by the user.

    Attributes:
        times: of the time steps, datetime64[us].
        faces: numbers of the tiles, [-1] without tiles.
        variable: name of the variable.
        level: index of the vertical level, 0 without levels.
        swath: whether the fields are a swath, which keeps its own frame.
        range: units and possible values.
        masks: quality, flags and masks.
        notes: sentences for the user on what was left out.

    Raises:
        InputFileError: The variable, coordinates, time, quality or mask cannot be found, or the units do not fit the
            quantity.
    """

    def __init__(self, dataset: "xarray.Dataset", place: str, options: PrepareOptions) -> None:
        self.dataset, self.place, self.options = dataset, place, options
        array = find_variable(dataset, place, options)
        self.variable = str(array.name)
        self._lat, self._lon = find_coordinates(dataset, array, place, options)
        spatial = self._spatial(array)
        found = find_times(dataset, array, place, options, spatial)
        self.time_dim, self.times, self._steps, self.notes = found.dim, found.values, found.steps, list(found.notes)
        self.face_dim = _face_of(spatial)
        self.rows_cols = self._rows_cols(array, [d for d in spatial if d != self.face_dim])
        self.faces = list(range(array.sizes[self.face_dim])) if self.face_dim is not None else [-1]
        self.range = FieldRange(array, place, options)
        self._array = array
        self._others = [d for d in array.dims if d not in (*spatial, self.time_dim) and array.sizes[d] > 1]
        self.level = self._find_level()
        self.masks = FieldMasks(dataset, array, place, options)
        self.dtime = found.lines if found.lines is not None else self._find_dtime()
        flat = max(self._lat.ndim, self._lon.ndim) < 2
        self._axes = self._directions()
        lines = self._has_lines()
        self.swath = not flat and self._axes is None and is_swath(dataset, self.rows_cols, lines=lines)

    @property
    def row_order(self) -> str:
        """The order of rows and columns, as cutout files record it."""
        return order_of(swath=self.swath)

    @property
    def level_dim(self) -> str | None:
        """Name of the vertical dimension, None without levels."""
        return str(self._others[0]) if self._others else None

    def read(self, step: int, face: int) -> Field:
        """Read one field.

        Args:
            step: index of the time.
            face: number of the tile, or -1.

        Raises:
            InputFileError: The file cannot be read, or its coordinates are not in degrees.
        """
        with reading(self.place):
            raw = self._plane(self._array, step, face)
            lat, lon = self._places(step, face, raw.shape)
            good = np.isfinite(raw)
            masked = {"missing": int(good.size - np.count_nonzero(good))}
            if self.options.land is not None:
                drop(good, raw == self.options.land, masked, "land")
            if (empty := nowhere(lat, lon)) is not None:
                lat, lon = np.where(empty, np.nan, lat), np.where(empty, np.nan, lon)
            if not np.isfinite(lat.sum() + lon.sum()):
                unknown = np.isnan(lat[:, None] if lat.ndim == 1 else lat) | np.isnan(lon)
                drop(good, unknown, masked, "without a place")
            self.masks.apply(good, lambda array: self._plane(array, step, face), masked)
            seconds = None if self.dtime is None else self._seconds(step, face, raw.shape)
        values = self.range.convert(raw, good, masked)
        self.range.check_latitude(values, lat)
        self._bound(values, masked)
        turn = Turn() if self.swath else turn_of(lat, lon, self._axes or (1, 1))
        values, lat, lon = turn(values), *turn.places(lat, lon)
        seconds = None if seconds is None else turn(seconds)
        field = Field(values, lat, lon, self.times[step], seconds, False, face, masked, self.range.possible)
        return replace(field, wraps=wraps(field))

    def _bound(self, values: NDArray[np.float32], masked: dict[str, int]) -> None:
        """Mask values outside the bounds, and refuse a field entirely outside."""
        bounds = self.options.temp_bounds
        if bounds is None:
            return
        with np.errstate(invalid="ignore"):
            outside = ~((values >= bounds[0]) & (values <= bounds[1]))
        if outside.all() and np.isfinite(values).any():
            low, high = np.nanmin(values), np.nanmax(values)
            raise InputFileError(
                f"{self.place}: expected values of '{self.variable}' within temp_bounds {bounds}, got {low:.4g} to "
                f"{high:.4g} from '{self.range.units}': if these are not its units, give units="
            )
        inside = np.isfinite(values)
        drop(inside, outside, masked, "outside temp_bounds")
        values[outside] = np.nan

    def _plane(self, array: "xarray.DataArray", step: int, face: int) -> NDArray[Any]:
        """Return an array (H, W) of one time and tile; other dimensions of length 1 are dropped."""
        chosen = {d: 0 for d in array.dims if d not in (self.time_dim, self.face_dim, *self.rows_cols)}
        if chosen.keys() & set(self._others):
            chosen[self._others[0]] = self.level
        if self.time_dim in array.dims:
            chosen[self.time_dim] = self._steps[step] if array.sizes[self.time_dim] > 1 else 0
        if self.face_dim is not None and self.face_dim in array.dims:
            chosen[self.face_dim] = face
        plane = array.isel(chosen)
        check_memory(plane.size * max(8, plane.dtype.itemsize), f"{self.place}: '{array.name}'", copies=_COPIES)
        order = [d for d in self.rows_cols if d in plane.dims]
        return np.asarray(plane.transpose(*order).values)

    def _places(self, step: int, face: int, shape: tuple[int, ...]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return latitude (H,) or (H, W) and longitude (W,) or (H, W); both have two dimensions if one has."""
        lat, lon = self._degrees(self._lat, step, face, 90), self._degrees(self._lon, step, face, 540)
        if lat.ndim == lon.ndim:
            return lat, lon
        return self._spread(self._lat, lat, shape), self._spread(self._lon, lon, shape)

    def _spread(self, array: "xarray.DataArray", plane: NDArray[N], shape: tuple[int, ...]) -> NDArray[N]:
        """Return an array of rows or of columns as (H, W)."""
        if plane.ndim == 1:
            plane = plane[:, None] if self.rows_cols[0] in array.dims else plane[None]
        return np.broadcast_to(plane, shape)

    def _degrees(self, array: "xarray.DataArray", step: int, face: int, most: float) -> NDArray[np.float64]:
        """Return a coordinate, NaN where a pixel has none."""
        values = self._plane(array, step, face).astype(np.float64)
        if plain_text(array.attrs.get("units", "")).lower() in ("rad", "radian", "radians"):
            values = np.degrees(values)
        low, high = np.fmin.reduce(values, axis=None), np.fmax.reduce(values, axis=None)
        if np.isinf(low) or np.isinf(high):
            values[~np.isfinite(values)] = np.nan
            low, high = np.fmin.reduce(values, axis=None), np.fmax.reduce(values, axis=None)
        if np.isnan(high):
            raise InputFileError(
                f"{self.place}: expected degrees in '{array.name}', got no finite value; lat= and lon= name other "
                "variables"
            )
        if low == high and values.size > 1:
            raise InputFileError(
                f"{self.place}: expected degrees in '{array.name}', got {low:g} everywhere; lat= and lon= name other "
                "variables, coords= another file that has them"
            )
        if max(-low, high) > most * 1.001:
            if np.nanmin(np.abs(values)) > most * 1.001 or "degree" in str(array.attrs.get("units", "degree")):
                values[np.abs(values) > most * 1.001] = np.nan
            if not np.isfinite(values).any() or "degree" not in str(array.attrs.get("units", "degree")):
                raise InputFileError(
                    f"{self.place}: '{array.name}' is not in degrees; lat= and lon= name other variables"
                )
        return values

    def _spatial(self, array: "xarray.DataArray") -> list[Any]:
        """Return the dimensions of latitude and longitude, without that of the times if the coordinates have it too."""
        found = [d for d in array.dims if d in {*self._lat.dims, *self._lon.dims}]
        times = time_dim(self.dataset, array) if len(found) > 2 else None
        return [d for d in found if d != times]

    def _rows_cols(self, array: "xarray.DataArray", dims: list[Any]) -> list[Any]:
        """Return the dimensions of rows and columns: of one-dimensional coordinates latitude's first, else by name."""
        if len(dims) != 2:
            raise InputFileError(
                f"{self.place}: expected a field: '{self.variable}' {dims_text(array)} has no two dimensions of "
                f"'{self._lat.name}' {dims_text(self._lat)} and '{self._lon.name}' {dims_text(self._lon)}"
            )
        lat, lon = ([d for d in v.dims if d in dims] for v in (self._lat, self._lon))
        if len(lat) == len(lon) == 1:
            return [*lat, *lon]
        return in_order(dims)

    def _directions(self) -> tuple[int, int] | None:
        """Return whether the projected coordinates of rows and columns rise (1) or fall (-1); None without any."""
        axes = grid_axes(self.dataset, self._array)
        if axes is None or {*axes[0].dims, *axes[1].dims} != set(self.rows_cols):
            return None
        rise = {axis.dims[0]: 1 if axis.values[-1] >= axis.values[0] else -1 for axis in axes}
        return rise[self.rows_cols[0]], rise[self.rows_cols[1]]

    def _seconds(self, step: int, face: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Return the seconds (H, W) of each pixel after the field's time."""
        assert self.dtime is not None
        return self._spread(self.dtime, self._plane(self.dtime, step, face).astype(np.float32), shape)

    def _has_lines(self) -> bool:
        """Return whether lines or pixels have times of their own."""
        return self.dtime is not None or any(str(name).lower() in _OF_LINES for name in self.dataset.variables)

    def _find_level(self) -> int:
        """Return the index of the level, 0 without levels; other dimensions of length above 1 are refused."""
        several = self._others
        if not several:
            return 0
        vertical = [d for d in several if is_vertical(self.dataset, str(d))]
        if several != vertical or len(several) > 1:
            raise InputFileError(
                f"{self.place}: '{self.variable}' has dimensions {dims_text(self._array)}; "
                f"{', '.join(map(str, [d for d in several if d not in vertical] or several))} is neither time, level "
                "nor position; select one value of it beforehand"
            )
        size = self._array.sizes[several[0]]
        if self.options.level is None:
            level, note = surface_level(self.dataset, str(several[0]), size, self.place)
            self.notes += [note] if note else []
            return level
        if self.options.level >= size:
            raise InputFileError(
                f"{self.place}: expected level= below {size}, the size of {several[0]}, got {self.options.level}"
            )
        return self.options.level

    def _find_dtime(self) -> "xarray.DataArray | None":
        """Return the seconds of each pixel after the field's time, as in L2P files."""
        found = self.dataset.variables.get("sst_dtime")
        if found is None or not set(self.rows_cols) <= set(found.dims):
            return None
        return self.dataset["sst_dtime"] if str(found.attrs.get("units", "")).startswith("s") else None


def _face_of(spatial: list[Any]) -> Any:
    """Return the dimension of the tiles, None without any: by its name, or that which is no row or column."""
    named = [d for d in spatial if str(d).lower() in _FACES]
    if named or len(spatial) != 3:
        return named[0] if named else None
    others = [d for d in spatial if not is_row(d) and not is_column(d)]
    return others[0] if len(others) == 1 else None
