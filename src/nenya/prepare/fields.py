"""Two-dimensional fields of a dataset: its variable, coordinates, times and masks, found by their attributes.

Letters: H rows and W columns of a field.
"""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nenya.errors import InputFileError, OptionError
from nenya.options.commands import PrepareOptions
from nenya.options.declare import suggest
from nenya.prepare.geometry import Field, wraps
from nenya.prepare.sources import reading
from nenya.prepare.times import find_times
from nenya.prepare.variables import (
    LATITUDE_NAMES,
    LONGITUDE_NAMES,
    QUALITY_NAMES,
    WATER_FLAGS,
    dims_text,
    find_units,
    find_variable,
    get_variable,
    high_is_good,
    is_coordinate_of,
    is_vertical,
    sea_test,
    variables_of,
    with_dims_of,
)
from nenya.storage.process import check_memory

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
        self.scale, self.offset = find_units(array, place, options)
        self._array = array
        self._others = [d for d in array.dims if d not in (*spatial, self.time_dim)]
        self._check_others()
        self.quality = self._find_quality()
        self.mask = self._find_mask()
        self.dtime = self._find_dtime()

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
            if self.options.land is not None:
                good &= raw != self.options.land
            if self.quality is not None:
                good &= self._is_good(self._plane(self.quality[0], step, face))
            if self.mask is not None:
                good &= self.mask[1](self._plane(self.mask[0], step, face))
            seconds = None if self.dtime is None else self._plane(self.dtime, step, face).astype(np.float32)
        values = (raw * np.float64(self.scale) + self.offset).astype(np.float32)
        values[~good] = np.nan
        self._bound(values)
        field = Field(values, lat, lon, self.times[step], seconds, False, face)
        return Field(values, lat, lon, self.times[step], seconds, wraps(field), face)

    def _bound(self, values: NDArray[np.float32]) -> None:
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
                f"{high:.4g} from '{self._units()}': if these are not its units, give units="
            )
        values[outside] = np.nan

    def _units(self) -> str:
        return self.options.units or str(self._array.attrs.get("units", ""))

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

    def _find_quality(self) -> "tuple[xarray.DataArray, bool] | None":
        """Return the quality and whether high values are good, None if the recipe uses none."""
        options = self.options
        if options.quality_thresh is None and options.quality is None:
            return None
        if options.quality is not None:
            found = get_variable(self.dataset, options.quality, self.place, "quality=")
        else:
            near = [v for v in variables_of(self.dataset) if is_coordinate_of(v, self._array, whole=True)]
            named = {str(v.name).lower(): v for v in near}
            for v in near:
                if "quality_flag" in str(v.attrs.get("standard_name", "")):
                    named.setdefault("quality_flag", v)
            names = [f"qual_{self.variable}".lower(), *QUALITY_NAMES]
            match = next((named[name] for name in names if name in named), None)
            if match is None:
                raise InputFileError(
                    f"{self.place}: no quality variable found, but quality_thresh={options.quality_thresh} needs "
                    "one: quality= names it, quality_thresh=null ignores quality"
                )
            found = match
        if options.quality_thresh is None:
            raise OptionError(f"quality={options.quality} needs quality_thresh=, the worst value that is kept")
        return with_dims_of(self._array, found), high_is_good(found, options.best_quality)

    def _is_good(self, quality: NDArray[Any]) -> NDArray[np.bool_]:
        assert self.quality is not None and self.options.quality_thresh is not None
        with np.errstate(invalid="ignore"):
            limit = self.options.quality_thresh
            return np.asarray(quality >= limit if self.quality[1] else (quality <= limit) & (quality >= 0))

    def _find_mask(self) -> "tuple[xarray.DataArray, Callable[[NDArray[Any]], NDArray[np.bool_]]] | None":
        """Return the mask and a function of its values that is true for sea."""
        if self.options.mask is not None:
            found = get_variable(self.dataset, self.options.mask, self.place, "mask=")
            if not is_coordinate_of(found, self._array, whole=True):
                raise InputFileError(
                    f"{self.place}: expected a mask on the grid of '{self.variable}', got '{found.name}' "
                    f"{dims_text(found)}"
                )
            return with_dims_of(self._array, found), sea_test(found)
        for variable in variables_of(self.dataset):
            kind = str(variable.attrs.get("standard_name", ""))
            flags = str(variable.attrs.get("flag_meanings", "")).lower().split()
            binary = kind in ("sea_binary_mask", "land_binary_mask")
            named = str(variable.name).lower() == "mask" and bool(set(flags) & set(WATER_FLAGS))
            if (binary or named) and is_coordinate_of(variable, self._array, whole=True):
                return with_dims_of(self._array, variable), sea_test(variable)
        return None

    def _find_dtime(self) -> "xarray.DataArray | None":
        """Return the seconds of each pixel after the field's time, as in L2P files."""
        found = self.dataset.variables.get("sst_dtime")
        if found is None or not set(self.rows_cols) <= set(found.dims):
            return None
        return self.dataset["sst_dtime"] if str(found.attrs.get("units", "")).startswith("s") else None
