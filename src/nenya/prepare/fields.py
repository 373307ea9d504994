"""Two-dimensional fields of a dataset: its variable, coordinates, times and masks, found by their attributes.

Letters: H rows and W columns of a field.
"""

import dataclasses
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nenya.errors import InputFileError
from nenya.options.commands import PrepareOptions
from nenya.options.declare import suggest
from nenya.prepare.flags import FieldMasks
from nenya.prepare.geometry import Field, wraps
from nenya.prepare.ranges import FieldRange, drop, nowhere
from nenya.prepare.sources import reading
from nenya.prepare.times import find_times
from nenya.prepare.variables import (
    LATITUDE_NAMES,
    LONGITUDE_NAMES,
    dims_text,
    find_variable,
    get_variable,
    is_coordinate_of,
    is_vertical,
    variables_of,
    with_dims_of,
)
from nenya.storage.memory import check_memory

if TYPE_CHECKING:
    import xarray

_FACES = ("face", "tile", "faces", "tiles")


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
        range: units and possible values.
        masks: quality, flags and masks.

    Raises:
        InputFileError: The variable, coordinates, time, quality or mask cannot be found, or the units do not fit the
            quantity.
    """

    def __init__(self, dataset: "xarray.Dataset", place: str, options: PrepareOptions) -> None:
        self.dataset, self.place, self.options = dataset, place, options
        array = find_variable(dataset, place, options)
        self.variable = str(array.name)
        self._lat = self._coordinate(array, "lat", options.lat)
        self._lon = self._coordinate(array, "lon", options.lon)
        self._lat, self._lon = (with_dims_of(array, coordinate) for coordinate in (self._lat, self._lon))
        self.time_dim, self.times = find_times(dataset, array, place, options)
        spatial = [d for d in array.dims if d in {*self._lat.dims, *self._lon.dims} and d != self.time_dim]
        self.face_dim = next(
            (d for d in spatial if str(d).lower() in _FACES), spatial[0] if len(spatial) == 3 else None
        )
        self.rows_cols = [d for d in spatial if d != self.face_dim]
        if len(self.rows_cols) != 2:
            raise InputFileError(
                f"{place}: expected a field: '{self.variable}' {dims_text(array)} has no two dimensions of "
                f"'{self._lat.name}' {dims_text(self._lat)} and '{self._lon.name}' {dims_text(self._lon)}"
            )
        self.faces = list(range(array.sizes[self.face_dim])) if self.face_dim is not None else [-1]
        self.range = FieldRange(array, place, options)
        self._array = array
        self._others = [d for d in array.dims if d not in (*spatial, self.time_dim)]
        self._check_others()
        self.level = options.level if self._others else 0
        self.masks = FieldMasks(dataset, array, place, options)
        self.dtime = self._find_dtime()

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
            lat, lon = self._degrees(self._lat, step, face, 90), self._degrees(self._lon, step, face, 540)
            good = np.isfinite(raw)
            masked = {"missing": int(good.size - np.count_nonzero(good))}
            if self.options.land is not None:
                drop(good, raw == self.options.land, masked, "land")
            if (empty := nowhere(lat, lon)) is not None:
                lat[empty] = lon[empty] = np.nan
                drop(good, empty, masked, "without a place")
            self.masks.apply(good, lambda array: self._plane(array, step, face), masked)
            seconds = None if self.dtime is None else self._plane(self.dtime, step, face).astype(np.float32)
        values = self.range.convert(raw, good, masked)
        self._bound(values, masked)
        field = Field(values, lat, lon, self.times[step], seconds, False, face, masked)
        return dataclasses.replace(field, wraps=wraps(field))

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
            chosen[self._others[0]] = self.options.level
        if self.time_dim in array.dims:
            chosen[self.time_dim] = step if array.sizes[self.time_dim] > 1 else 0
        if self.face_dim is not None and self.face_dim in array.dims:
            chosen[self.face_dim] = face
        plane = array.isel(chosen)
        check_memory(plane.size * max(8, plane.dtype.itemsize), f"{self.place}: '{array.name}'", copies=_COPIES)
        order = [d for d in self.rows_cols if d in plane.dims]
        return np.asarray(plane.transpose(*order).values)

    def _degrees(self, array: "xarray.DataArray", step: int, face: int, most: float) -> NDArray[np.float64]:
        """Return a coordinate, NaN where a pixel has none."""
        values = self._plane(array, step, face).astype(np.float64)
        values[~np.isfinite(values)] = np.nan
        if not np.isfinite(values).any():
            raise InputFileError(
                f"{self.place}: expected degrees in '{array.name}', got no finite value; lat= and lon= name other "
                "variables"
            )
        if np.nanmax(np.abs(values)) > most * 1.001:
            if np.nanmin(np.abs(values)) > most * 1.001 or "degree" in str(array.attrs.get("units", "degree")):
                values[np.abs(values) > most * 1.001] = np.nan
            if not np.isfinite(values).any() or "degree" not in str(array.attrs.get("units", "degree")):
                raise InputFileError(
                    f"{self.place}: '{array.name}' is not in degrees; lat= and lon= name other variables"
                )
        return values

    def _coordinate(self, array: "xarray.DataArray", kind: str, name: str | None) -> "xarray.DataArray":
        dataset, place = self.dataset, self.place
        if name is not None:
            return get_variable(dataset, name, place, f"{kind}=")
        word, names = ("latitude", LATITUDE_NAMES) if kind == "lat" else ("longitude", LONGITUDE_NAMES)
        direction = "north" if kind == "lat" else "east"
        tests: tuple[Callable[[xarray.DataArray], bool], ...] = (
            lambda v: v.attrs.get("standard_name") == word,
            lambda v: (
                re.fullmatch(f"degrees?_?{direction[0]}({direction[1:]})?", str(v.attrs.get("units", ""))) is not None
            ),
            lambda v: str(v.name).lower() in names,
        )
        for test in tests:
            found = [v for v in variables_of(dataset) if test(v) and is_coordinate_of(v, array)]
            if found:
                return max(found, key=lambda v: (v.name in array.coords, str(v.name).lower() in names, v.ndim))
        hint = suggest(names[0], [str(v) for v in dataset.variables])
        raise InputFileError(
            f"{place}: no {word} found for '{array.name}' {dims_text(array)}{hint}; {kind}= names it, "
            "coords= names another file that has it"
        )

    def _check_others(self) -> None:
        """Accept one vertical dimension, and dimensions of length 1."""
        several = [d for d in self._others if self._array.sizes[d] > 1]
        self._others = several
        if not several:
            return
        vertical = [d for d in several if is_vertical(self.dataset, str(d))]
        if several != vertical or len(several) > 1:
            raise InputFileError(
                f"{self.place}: '{self.variable}' has dimensions {dims_text(self._array)}, of which "
                f"{', '.join(map(str, several))} is neither time, level nor position; select one value of it beforehand"
            )
        if self.options.level >= self._array.sizes[several[0]]:
            raise InputFileError(
                f"{self.place}: expected level= below {self._array.sizes[several[0]]}, the size of {several[0]}, got "
                f"{self.options.level}"
            )

    def _find_dtime(self) -> "xarray.DataArray | None":
        """Return the seconds of each pixel after the field's time, as in L2P files."""
        found = self.dataset.variables.get("sst_dtime")
        if found is None or not set(self.rows_cols) <= set(found.dims):
            return None
        return self.dataset["sst_dtime"] if str(found.attrs.get("units", "")).startswith("s") else None
