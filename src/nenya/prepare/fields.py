"""From a dataset to two-dimensional fields: variable, coordinates, time, masks, found by what the file says of them.

Letters: H rows and W columns of a field.
"""

import calendar
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nenya.errors import InputFileError, OptionError
from nenya.options.commands import PrepareOptions
from nenya.options.declare import suggest
from nenya.prepare.sources import reading
from nenya.storage.memory import check_memory

if TYPE_CHECKING:
    import xarray

_STANDARD = {
    "temperature": (
        *("sea_surface_temperature", "sea_surface_skin_temperature", "sea_surface_subskin_temperature"),
        *("sea_surface_foundation_temperature", "sea_water_temperature", "sea_water_potential_temperature"),
        *("sea_water_conservative_temperature", "surface_temperature"),
    ),
    "height": (
        *("sea_surface_height_above_sea_level", "sea_surface_height_above_geoid", "sea_surface_height"),
        *("sea_surface_height_above_reference_ellipsoid", "sea_surface_elevation"),
    ),
}
_NAMES = {
    "temperature": ("sea_surface_temperature", "analysed_sst", "sst", "tos", "thetao", "theta", "votemper", "sosstsst"),
    "height": ("sla", "adt", "ssha", "ssha_karin", "ssh_karin", "ssh", "zos", "eta", "sossheig"),
}
_LATITUDE = ("lat", "latitude", "nav_lat", "yc", "y_c")
_LONGITUDE = ("lon", "longitude", "nav_lon", "xc", "x_c")
_QUALITY = ("quality_level", "qual_sst", "quality_flag", "qual_sst4", "quality")
_FACES = ("face", "tile", "faces", "tiles")
_LEVELS = ("depth", "lev", "level", "z", "k", "deptht", "olevel", "s_rho", "height")
_KELVIN = re.compile(r"(deg(ree)?s?_?)?k(elvins?)?")
_CELSIUS = re.compile(r"(deg(ree)?s?_?)?c(elsius)?|°c|celsius_degrees?|deg(ree)?s?_?centigrade")
_LENGTH = {"m": 1.0, "meter": 1.0, "meters": 1.0, "metre": 1.0, "metres": 1.0, "cm": 0.01, "mm": 0.001}
_TIME_ATTRIBUTES = ("time_coverage_start", "start_time", "time_coverage_end")
_WATER = ("water", "sea", "ocean", "open_sea")


_COPIES = 4  # of a field in memory while it is read: packed, scaled, masked


@dataclass(frozen=True)
class Field:
    """One field: a granule, a time step, or a tile of it.

    Attributes:
        values: (H, W) float32, temperatures in degrees Celsius, NaN where masked.
        lat: degrees north, (H,) or (H, W), as in the file.
        lon: degrees east, (W,) or (H, W).
        time: of the field, UTC, datetime64[us].
        seconds: (H, W) seconds of each pixel after `time`, None if the file does not say.
        wraps: whether column 0 follows the last one, around the globe.
        face: number of the tile, -1 if there are none.
    """

    values: NDArray[np.float32]
    lat: NDArray[np.float64]
    lon: NDArray[np.float64]
    time: np.datetime64
    seconds: NDArray[np.float32] | None = None
    wraps: bool = False
    face: int = -1

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.values.shape[0], self.values.shape[1]

    def unit_vectors(self, rows: NDArray[np.intp], cols: NDArray[np.intp]) -> NDArray[np.float64]:
        """Return unit vectors (..., 3) of pixels, whose columns may run on around the globe where the field wraps."""
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


class Layout:
    """Where the fields of a dataset are.

    Args:
        dataset: as opened; nothing but coordinates of time is read.
        place: name of the file, for errors.
        options: names and units that the user gives.

    Attributes:
        times: of the time steps, datetime64[us].
        faces: numbers of the tiles, [-1] where there are none.
        variable: name of the variable.

    Raises:
        InputFileError: Variable, coordinates, time, quality or mask are not to be found, or units are not of this
            quantity.
    """

    def __init__(self, dataset: "xarray.Dataset", place: str, options: PrepareOptions) -> None:
        self.dataset, self.place, self.options = dataset, place, options
        array = find_variable(dataset, place, options)
        self.variable = str(array.name)
        self._lat = self._coordinate(array, "lat", options.lat)
        self._lon = self._coordinate(array, "lon", options.lon)
        self._lat, self._lon = (_like(array, coordinate) for coordinate in (self._lat, self._lon))
        self.time_dim, self.times = find_times(dataset, array, place, options)
        spatial = [d for d in array.dims if d in {*self._lat.dims, *self._lon.dims} and d != self.time_dim]
        self.face_dim = next(
            (d for d in spatial if str(d).lower() in _FACES), spatial[0] if len(spatial) == 3 else None
        )
        self.rows_cols = [d for d in spatial if d != self.face_dim]
        if len(self.rows_cols) != 2:
            what = f"'{self.variable}' {_dims(array)} has no two dimensions of '{self._lat.name}' {_dims(self._lat)}"
            raise InputFileError(f"{place}: {what} and '{self._lon.name}' {_dims(self._lon)}; wanted is a field")
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
            InputFileError: The file cannot be read, or its coordinates are no degrees.
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
        """Mask what lies out of the bounds, and refuse a field of which nothing is within."""
        bounds = self.options.temp_bounds
        if bounds is None:
            return
        with np.errstate(invalid="ignore"):
            outside = ~((values >= bounds[0]) & (values <= bounds[1]))
        if outside.all() and np.isfinite(values).any():
            low, high = np.nanmin(values), np.nanmax(values)
            raise InputFileError(
                f"{self.place}: no value of '{self.variable}' is within temp_bounds {bounds}; they are {low:.4g} to "
                f"{high:.4g}, taken to be in '{self._units()}': units= states others"
            )
        values[outside] = np.nan

    def _units(self) -> str:
        return self.options.units or str(self._array.attrs.get("units", ""))

    def _plane(self, array: "xarray.DataArray", step: int, face: int) -> NDArray[Any]:
        """Return an array (H, W) of one time and tile; single other dimensions are left out."""
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
        """Return a coordinate; a pixel without one has NaN."""
        values = self._plane(array, step, face).astype(np.float64)
        values[~np.isfinite(values)] = np.nan
        if not np.isfinite(values).any():
            raise InputFileError(f"{self.place}: '{array.name}' has no finite value; wanted are degrees")
        if np.nanmax(np.abs(values)) > most * 1.001:
            if np.nanmin(np.abs(values)) > most * 1.001 or "degree" in str(array.attrs.get("units", "degree")):
                values[np.abs(values) > most * 1.001] = np.nan
            if not np.isfinite(values).any() or "degree" not in str(array.attrs.get("units", "degree")):
                raise InputFileError(f"{self.place}: '{array.name}' is not in degrees; lat= and lon= name others")
        return values

    def _coordinate(self, array: "xarray.DataArray", kind: str, name: str | None) -> "xarray.DataArray":
        dataset, place = self.dataset, self.place
        if name is not None:
            return _named(dataset, name, place, f"{kind}=")
        word, names = ("latitude", _LATITUDE) if kind == "lat" else ("longitude", _LONGITUDE)
        direction = "north" if kind == "lat" else "east"
        tests: tuple[Callable[[xarray.DataArray], bool], ...] = (
            lambda v: v.attrs.get("standard_name") == word,
            lambda v: (
                re.fullmatch(f"degrees?_?{direction[0]}({direction[1:]})?", str(v.attrs.get("units", ""))) is not None
            ),
            lambda v: str(v.name).lower() in names,
        )
        for test in tests:
            found = [v for v in _variables(dataset) if test(v) and _is_coordinate_of(v, array)]
            if found:
                return max(found, key=lambda v: (v.name in array.coords, str(v.name).lower() in names, v.ndim))
        hint = suggest(names[0], [str(v) for v in dataset.variables])
        raise InputFileError(
            f"{place}: no {word} of '{array.name}' {_dims(array)} is in it{hint}; {kind}= names it, "
            "coords= names a further file that has it"
        )

    def _check_others(self) -> None:
        """Let one vertical dimension pass, and single ones."""
        several = [d for d in self._others if self._array.sizes[d] > 1]
        self._others = several
        if not several:
            return
        vertical = [d for d in several if _is_vertical(self.dataset, str(d))]
        if several != vertical or len(several) > 1:
            raise InputFileError(
                f"{self.place}: '{self.variable}' has dimensions {_dims(self._array)}, of which "
                f"{', '.join(map(str, several))} is neither time, level nor place; choose one value of it beforehand"
            )
        if self.options.level >= self._array.sizes[several[0]]:
            raise InputFileError(
                f"{self.place}: level={self.options.level}, and {several[0]} has {self._array.sizes[several[0]]} levels"
            )

    def _find_quality(self) -> "tuple[xarray.DataArray, bool] | None":
        """Return the quality and whether high numbers are good, None if the recipe wants none."""
        options = self.options
        if options.quality_thresh is None and options.quality is None:
            return None
        if options.quality is not None:
            found = _named(self.dataset, options.quality, self.place, "quality=")
        else:
            near = [v for v in _variables(self.dataset) if _is_coordinate_of(v, self._array, whole=True)]
            named = {str(v.name).lower(): v for v in near}
            for v in near:
                if "quality_flag" in str(v.attrs.get("standard_name", "")):
                    named.setdefault("quality_flag", v)
            names = [f"qual_{self.variable}".lower(), *_QUALITY]
            match = next((named[name] for name in names if name in named), None)
            if match is None:
                raise InputFileError(
                    f"{self.place}: no quality variable is in it, and quality_thresh={options.quality_thresh} wants "
                    "one: quality= names it, quality_thresh=null does without"
                )
            found = match
        if options.quality_thresh is None:
            raise OptionError(f"quality={options.quality} needs quality_thresh=, the worst number that is kept")
        return _like(self._array, found), _high_is_good(found, options.best_quality)

    def _is_good(self, quality: NDArray[Any]) -> NDArray[np.bool_]:
        assert self.quality is not None and self.options.quality_thresh is not None
        with np.errstate(invalid="ignore"):
            limit = self.options.quality_thresh
            return np.asarray(quality >= limit if self.quality[1] else (quality <= limit) & (quality >= 0))

    def _find_mask(self) -> "tuple[xarray.DataArray, Callable[[NDArray[Any]], NDArray[np.bool_]]] | None":
        """Return the mask and what says of its values whether they are sea."""
        if self.options.mask is not None:
            found = _named(self.dataset, self.options.mask, self.place, "mask=")
            if not _is_coordinate_of(found, self._array, whole=True):
                raise InputFileError(f"{self.place}: mask '{found.name}' {_dims(found)} is not of '{self.variable}'")
            return _like(self._array, found), _is_sea(found)
        for variable in _variables(self.dataset):
            kind = str(variable.attrs.get("standard_name", ""))
            flags = str(variable.attrs.get("flag_meanings", "")).lower().split()
            binary = kind in ("sea_binary_mask", "land_binary_mask")
            named = str(variable.name).lower() == "mask" and bool(set(flags) & set(_WATER))
            if (binary or named) and _is_coordinate_of(variable, self._array, whole=True):
                return _like(self._array, variable), _is_sea(variable)
        return None

    def _find_dtime(self) -> "xarray.DataArray | None":
        """Return the seconds of each pixel after the field's time, as L2P files have them."""
        found = self.dataset.variables.get("sst_dtime")
        if found is None or not set(self.rows_cols) <= set(found.dims):
            return None
        return self.dataset["sst_dtime"] if str(found.attrs.get("units", "")).startswith("s") else None


def wraps(field: Field) -> bool:
    """Return whether a field's first column follows its last one: whether it goes around the globe."""
    height, width = field.shape
    if width < 8:
        return False
    rows = np.unique(np.linspace(0, height - 1, min(height, 32)).astype(np.intp))
    before, last, first = (field.unit_vectors(rows, np.full_like(rows, col)) for col in (width - 2, width - 1, 0))
    gap = np.linalg.norm(last - before, axis=-1)
    miss = np.linalg.norm(2 * last - before - first, axis=-1)
    sound = np.isfinite(gap) & np.isfinite(miss) & (gap > 1e-9)
    return bool(sound.any() and np.median(miss[sound] / gap[sound]) < 0.5)


def find_variable(dataset: "xarray.Dataset", place: str, options: PrepareOptions) -> "xarray.DataArray":
    """Return the variable that cutouts are made of: the user's, else by standard name, name, or the only field.

    Raises:
        InputFileError: There is none, or there are several to choose from.
    """
    if options.variable is not None:
        found = _named(dataset, options.variable, place, "variable=")
        if found.ndim < 2 or found.dtype.kind not in "fiu":
            raise InputFileError(f"{place}: '{found.name}' {_dims(found)} {found.dtype} is no field of numbers")
        return found
    fields = [
        v
        for v in _variables(dataset)
        if v.ndim >= 2 and v.dtype.kind in "fiu" and v.name not in dataset.coords and not _is_auxiliary(v)
    ]
    kinds = ["temperature", "height"] if options.quantity == "any" else [options.quantity]
    for kind in kinds:
        named = {str(v.name).lower(): v for v in fields}
        matches = [v for wanted in _STANDARD[kind] for v in fields if v.attrs.get("standard_name") == wanted]
        best = next((v for name in _NAMES[kind] for v in matches if str(v.name).lower() == name), None)
        best = best if best is not None else next((named[name] for name in _NAMES[kind] if name in named), None)
        if best is not None or matches:
            return best if best is not None else matches[0]
    if options.quantity == "any" and len(fields) == 1:
        return fields[0]
    names = ", ".join(str(v.name) for v in fields[:8]) or "none"
    what = "which field is meant" if options.quantity == "any" else f"a field of {options.quantity}"
    raise InputFileError(f"{place}: its attributes do not say {what}; variable= names it (fields in it: {names})")


def find_units(array: "xarray.DataArray", place: str, options: PrepareOptions) -> tuple[float, float]:
    """Return factor and offset to degrees Celsius or metres; 1 and 0 for any other quantity.

    Raises:
        InputFileError: The units are missing or not those of the quantity.
    """
    given = options.units if options.units is not None else array.attrs.get("units")
    name = re.sub(r"[\s.]+", "_", str(given).strip().lower()) if given is not None else ""
    standard = str(array.attrs.get("standard_name", ""))
    quantity = options.quantity
    if quantity == "any":
        quantity = next((k for k, names in _STANDARD.items() if standard in names), "any")
        if quantity == "any" and _KELVIN.fullmatch(name) and "temp" in f"{standard} {array.name}".lower():
            quantity = "temperature"
    if quantity == "temperature":
        if _KELVIN.fullmatch(name):
            return 1.0, -273.15
        if _CELSIUS.fullmatch(name):
            return 1.0, 0.0
        wanted = "K or degC"
    elif quantity == "height":
        if name in _LENGTH:
            return _LENGTH[name], 0.0
        wanted = "m or cm"
    else:
        return 1.0, 0.0
    said = f"has units '{given}'" if given is not None else "has no units"
    raise InputFileError(
        f"{place}: '{array.name}' {said}, wanted for a {quantity} are {wanted}; units= states "
        "them, variable= names another"
    )


def find_times(
    dataset: "xarray.Dataset", array: "xarray.DataArray", place: str, options: PrepareOptions
) -> tuple[Any, list[np.datetime64]]:
    """Return the dimension of time, None if there is none, and the times.

    Raises:
        InputFileError: The file does not say when its fields were.
    """
    if options.time is not None and options.time not in dataset.variables:
        try:
            return _time_dim(dataset, array), [np.datetime64(_utc(options.time), "us")] * _steps(dataset, array)
        except ValueError:
            _named(dataset, options.time, place, "time=")
    found = _time_variable(dataset, array, options)
    if found is not None:
        with reading(place):
            values = [_to_datetime64(value) for value in np.atleast_1d(found.values).ravel()]
        dim = next((d for d in found.dims if d in array.dims), _time_dim(dataset, array))
        steps = array.sizes[dim] if dim is not None else 1
        if len(values) in (1, steps):
            values = values * steps if len(values) == 1 else values
            if not any(np.isnat(value) for value in values):
                return dim, values
    if _steps(dataset, array) == 1:
        for name in _TIME_ATTRIBUTES:
            try:
                return _time_dim(dataset, array), [np.datetime64(_utc(str(dataset.attrs[name])), "us")]
            except (KeyError, ValueError):
                continue
    raise InputFileError(
        f"{place}: it does not say when '{array.name}' was (no time that can be read); time= names the variable, or "
        "states the date itself, such as time=2015-01-16T12:00"
    )


def _time_variable(
    dataset: "xarray.Dataset", array: "xarray.DataArray", options: PrepareOptions
) -> "xarray.DataArray | None":
    if options.time is not None:
        return dataset[options.time]
    dates = [
        v for v in _variables(dataset) if _is_date(v) and v.ndim <= 1 and not str(v.name).endswith(("bnds", "bounds"))
    ]
    dates = [v for v in dates if v.size and (set(v.dims) <= set(array.dims) or v.size == 1)]
    order = {"time": 0, "": 1}
    dates = [v for v in dates if str(v.attrs.get("standard_name", "")) in order]
    return min(
        dates,
        key=lambda v: (
            order[str(v.attrs.get("standard_name", ""))],
            not set(v.dims) & set(array.dims),
            v.name != "time",
        ),
        default=None,
    )


def _is_date(variable: "xarray.DataArray") -> bool:
    if variable.dtype.kind == "M":
        return True
    return variable.dtype == object and variable.size > 0 and hasattr(variable.values.ravel()[0], "calendar")


def _time_dim(dataset: "xarray.Dataset", array: "xarray.DataArray") -> Any:
    for dim in array.dims:
        if str(dim).lower() in ("time", "time_counter", "t", "ocean_time"):
            return dim
        if dim in dataset.variables and dataset[dim].attrs.get("axis") == "T":
            return dim
    return None


def _steps(dataset: "xarray.Dataset", array: "xarray.DataArray") -> int:
    dim = _time_dim(dataset, array)
    return int(array.sizes[dim]) if dim is not None else 1


def _utc(text: str) -> datetime:
    """Return a date without zone, in UTC, of ISO 8601, of the compact form of L2P files, or of seconds."""
    compact = re.fullmatch(r"(\d{8})[T ]?(\d{6})(?:\.\d+)?Z?", text.strip())
    found = datetime.strptime("".join(compact.groups()), "%Y%m%d%H%M%S") if compact else datetime.fromisoformat(text)
    return found.astimezone(UTC).replace(tzinfo=None) if found.tzinfo else found


def _to_datetime64(value: Any) -> np.datetime64:
    """Return a date; one of a model's calendar that ours lacks (30 February) as the last day of its month."""
    if isinstance(value, np.datetime64):
        return value.astype("datetime64[us]")  # type: ignore[no-any-return]  # of a type that numpy's stubs miss
    day = min(value.day, calendar.monthrange(value.year, value.month)[1])
    date = datetime(value.year, value.month, day, value.hour, value.minute, value.second, value.microsecond)
    return np.datetime64(date, "us")


def _variables(dataset: "xarray.Dataset") -> "Iterable[xarray.DataArray]":
    return (dataset[name] for name in dataset.variables)


def _named(dataset: "xarray.Dataset", name: str, place: str, option: str) -> "xarray.DataArray":
    if name not in dataset.variables:
        known = [str(v) for v in dataset.variables]
        raise InputFileError(
            f"{place}: {option}{name} is not in it{suggest(name, known)} (there are: {', '.join(known[:20])})"
        )
    return dataset[name]


def _is_auxiliary(variable: "xarray.DataArray") -> bool:
    """Return whether a variable is a coordinate, bound or flag by its attributes."""
    attributes = variable.attrs
    names = ("latitude", "longitude", "time")
    return (
        attributes.get("standard_name") in names
        or "flag_meanings" in attributes
        or "bounds" in str(variable.name)
        or "bnds" in str(variable.name)
        or str(attributes.get("units", "")).startswith("degrees_")
        or str(variable.name).lower() in (*_LATITUDE, *_LONGITUDE, *_QUALITY)
    )


def _is_coordinate_of(variable: "xarray.DataArray", array: "xarray.DataArray", *, whole: bool = False) -> bool:
    """Return whether a variable lies on the dimensions of another, or on others of the same lengths."""
    if variable.dtype.kind not in "fiub" or not variable.ndim or "bounds" in str(variable.name):
        return False
    if variable.ndim < 2 and whole:
        return False
    sizes = {size for size in variable.shape if size > 1}
    inside = all(dim in array.dims or variable.sizes[dim] == 1 for dim in variable.dims)
    twin = variable.ndim == 2 and variable.shape == array.shape[-2:] and not set(variable.dims) <= set(array.dims)
    return (inside and bool(sizes)) or twin


def _like(array: "xarray.DataArray", other: "xarray.DataArray") -> "xarray.DataArray":
    """Return a variable whose dimensions bear the names of those of the field."""
    if set(other.dims) <= set(array.dims) or other.shape != array.shape[-2:]:
        return other
    names = dict(zip(other.dims, array.dims[-2:], strict=True))
    plain = other.reset_coords(drop=True)
    return plain.rename({old: new for old, new in names.items() if old != new})


def _is_vertical(dataset: "xarray.Dataset", dim: str) -> bool:
    attributes = dataset[dim].attrs if dim in dataset.variables else {}
    return dim.lower() in _LEVELS or attributes.get("axis") == "Z" or "positive" in attributes


def _high_is_good(quality: "xarray.DataArray", given: str) -> bool:
    if given != "auto":
        return given == "high"
    meanings = str(quality.attrs.get("flag_meanings", "")).lower().replace(",", " ").split()
    if meanings and re.search("best|good", meanings[0]):
        return False
    if meanings and re.search("best|good", meanings[-1]):
        return True
    return not str(quality.name).lower().startswith("qual_")


def _is_sea(mask: "xarray.DataArray") -> Callable[[NDArray[Any]], NDArray[np.bool_]]:
    """Return what says which values of a mask are sea: its flags, its standard name, or not 0."""
    meanings = str(mask.attrs.get("flag_meanings", "")).lower().split()
    water = [i for i, meaning in enumerate(meanings) if meaning in _WATER]
    bits, values = (
        np.atleast_1d(mask.attrs[key]) if key in mask.attrs else None for key in ("flag_masks", "flag_values")
    )
    if water and bits is not None and len(bits) == len(meanings):
        wanted = int(np.bitwise_or.reduce(bits[water].astype(np.int64)))
        unwanted = int(np.bitwise_or.reduce(bits.astype(np.int64))) & ~wanted
        return lambda v: (_whole(v) & wanted != 0) & (_whole(v) & unwanted == 0)
    if water and values is not None and len(values) == len(meanings):
        return lambda v: np.isin(v, values[water])
    if mask.attrs.get("standard_name") == "land_binary_mask":
        return lambda v: v == 0
    return lambda v: np.isfinite(v) & (v != 0)


def _whole(values: NDArray[Any]) -> NDArray[np.int64]:
    return np.asarray(np.nan_to_num(values, nan=0), dtype=np.int64)


def _dims(array: "xarray.DataArray") -> str:
    return "(" + ", ".join(f"{dim} {size}" for dim, size in array.sizes.items()) + ")"
