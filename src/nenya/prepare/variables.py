"""Variables of a dataset, found by their names and attributes."""

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from nenya.errors import InputFileError
from nenya.options.commands import PrepareOptions
from nenya.options.declare import suggest
from nenya.prepare.axes import match_dims

if TYPE_CHECKING:
    import xarray

STANDARD_NAMES = {
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
FIELD_NAMES = {
    "temperature": ("sea_surface_temperature", "analysed_sst", "sst", "tos", "thetao", "theta", "votemper", "sosstsst"),
    "height": ("sla", "adt", "ssha", "ssha_karin", "ssh_karin", "ssh", "zos", "eta", "sossheig"),
}
LATITUDE_NAMES = (
    *("lat", "latitude", "nav_lat", "nav_lat_grid_t", "gphit", "lat_rho", "tlat", "yc", "y_c", "xlat", "xlat_m"),
    *("plat", "geolat", "geolat_t", "yt_ocean", "yh", "lats", "latitudes", "lat_u", "lat_v", "lat_psi", "ulat"),
    *("geolat_c", "yg"),
)
LONGITUDE_NAMES = (
    *("lon", "longitude", "nav_lon", "nav_lon_grid_t", "glamt", "lon_rho", "tlong", "xc", "x_c", "xlong", "xlong_m"),
    *("plon", "geolon", "geolon_t", "xt_ocean", "xh", "lons", "longitudes", "lon_u", "lon_v", "lon_psi", "ulong"),
    *("geolon_c", "xg", "tlon", "ulon"),
)
QUALITY_NAMES = ("quality_level", "qual_sst", "quality_flag", "qual_sst4", "quality")
_DIRECTED = re.compile(r"degrees?_?(north|south|east|west|true|n|e|w|t)|degrees?_s")
_ABOUT = re.compile(
    r"err(or)?s?|sses|bias(es)?|std(dev|ev)?|stdv|sd|deviation|uncertaint(y|ies)|uncert|variance|var|rmse?|spread|flags?|"
    r"counts?|nobs|number|num|quality|qual|qc|mask|weights?|difference|diff|dtime|increment|trend|clim(atology)?"
)


def find_variable(dataset: "xarray.Dataset", place: str, options: PrepareOptions) -> "xarray.DataArray":
    """Return the variable for cutouts: the user's, otherwise by standard name, by name, or the only field.

    Raises:
        InputFileError: There is none, or there are several candidates.
    """
    if options.variable is not None:
        found = get_variable(dataset, options.variable, place, "variable=")
        if found.ndim < 2 or found.dtype.kind not in "fiu":
            raise InputFileError(
                f"{place}: expected a field of numbers, got '{found.name}' {dims_text(found)} {found.dtype}"
            )
        return found
    fields = [
        v
        for v in variables_of(dataset)
        if v.ndim >= 2 and v.dtype.kind in "fiu" and v.name not in dataset.coords and not _is_auxiliary(v)
    ]
    kinds = ["temperature", "height"] if options.quantity == "any" else [options.quantity]
    for kind in kinds:
        named = {str(v.name).lower(): v for v in fields}
        matches = _of_first([[v for v in fields if v.attrs.get("standard_name") == s] for s in STANDARD_NAMES[kind]])
        best = next((v for name in FIELD_NAMES[kind] for v in matches if str(v.name).lower() == name), None)
        best = best if best is not None else next((named[name] for name in FIELD_NAMES[kind] if name in named), None)
        if best is None and len(matches) > 1:
            names = ", ".join(str(v.name) for v in matches)
            raise InputFileError(
                f"{place}: expected one field of {kind}, got {names} with the same standard name; variable= names one"
            )
        if best is not None or matches:
            return best if best is not None else matches[0]
    if options.quantity == "any" and len(fields) == 1:
        return fields[0]
    names = ", ".join(str(v.name) for v in fields[:8]) or "none"
    what = "a single field" if options.quantity == "any" else f"a field of {options.quantity}"
    raise InputFileError(f"{place}: expected {what} by its attributes, got {names}; variable= names the field")


def _of_first(groups: "list[list[xarray.DataArray]]") -> "list[xarray.DataArray]":
    """Return the fields of the first standard name that any has, without errors, biases and counts of a field."""
    for group in groups:
        fields = [v for v in group if not _is_about_another(v)]
        if fields:
            return fields
    return next((group for group in groups if group), [])


def _is_about_another(variable: "xarray.DataArray") -> bool:
    """Return whether a variable is an error, bias, flag or count of a field rather than the field."""
    words = re.split(r"[^a-z]+", f"{variable.name} {variable.attrs.get('long_name', '')}".lower())
    return any(_ABOUT.fullmatch(word) for word in words)


def variables_of(dataset: "xarray.Dataset") -> "Iterable[xarray.DataArray]":
    """Yield all variables of a dataset, coordinates included."""
    return (dataset[name] for name in dataset.variables)


def get_variable(dataset: "xarray.Dataset", name: str, place: str, option: str) -> "xarray.DataArray":
    """Return the variable that an option names.

    Args:
        dataset: as opened.
        name: the variable.
        place: name of the file, for errors.
        option: how the option is written, such as `lat=`, for errors.

    Raises:
        InputFileError: The dataset has no such variable.
    """
    if name not in dataset.variables:
        known = [str(v) for v in dataset.variables]
        raise InputFileError(
            f"{place}: {option}{name}: no such variable{suggest(name, known)} (variables: {', '.join(known[:20])})"
        )
    return dataset[name]


def _is_auxiliary(variable: "xarray.DataArray") -> bool:
    """Return whether a variable is a coordinate, bound or flag by its attributes."""
    attributes = variable.attrs
    names = ("latitude", "longitude", "time")
    return bool(
        attributes.get("standard_name") in names
        or "flag_meanings" in attributes
        or "bounds" in str(variable.name)
        or "bnds" in str(variable.name)
        or _DIRECTED.fullmatch(str(attributes.get("units", "")).lower())
        or str(variable.name).lower() in (*LATITUDE_NAMES, *LONGITUDE_NAMES, *QUALITY_NAMES)
    )


def is_coordinate_of(variable: "xarray.DataArray", array: "xarray.DataArray", *, whole: bool = False) -> bool:
    """Return whether a variable lies on the dimensions of another, or on dimensions of equal lengths.

    Args:
        variable: to look at.
        array: the field.
        whole: whether it must have two dimensions.
    """
    if variable.dtype.kind not in "fiub" or variable.ndim < (2 if whole else 1) or "bounds" in str(variable.name):
        return False
    return max(variable.shape) > 1 and match_dims(array, variable) is not None


def with_dims_of(array: "xarray.DataArray", other: "xarray.DataArray") -> "xarray.DataArray":
    """Return a variable with its dimensions renamed to those of the field."""
    found = match_dims(array, other)
    return other if found is None else found


def dims_text(array: "xarray.DataArray") -> str:
    """Return the dimensions of a variable and their sizes as text."""
    return "(" + ", ".join(f"{dim} {size}" for dim, size in array.sizes.items()) + ")"
