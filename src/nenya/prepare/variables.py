"""Variables of a dataset, found by their names and attributes."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from nenya.errors import InputFileError
from nenya.options.commands import PrepareOptions
from nenya.options.declare import suggest

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
LATITUDE_NAMES = ("lat", "latitude", "nav_lat", "yc", "y_c")
LONGITUDE_NAMES = ("lon", "longitude", "nav_lon", "xc", "x_c")
QUALITY_NAMES = ("quality_level", "qual_sst", "quality_flag", "qual_sst4", "quality")
_LEVELS = ("depth", "lev", "level", "z", "k", "deptht", "olevel", "s_rho", "height")


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
        matches = [v for wanted in STANDARD_NAMES[kind] for v in fields if v.attrs.get("standard_name") == wanted]
        best = next((v for name in FIELD_NAMES[kind] for v in matches if str(v.name).lower() == name), None)
        best = best if best is not None else next((named[name] for name in FIELD_NAMES[kind] if name in named), None)
        if best is not None or matches:
            return best if best is not None else matches[0]
    if options.quantity == "any" and len(fields) == 1:
        return fields[0]
    names = ", ".join(str(v.name) for v in fields[:8]) or "none"
    what = "a single field" if options.quantity == "any" else f"a field of {options.quantity}"
    raise InputFileError(f"{place}: expected {what} by its attributes, got {names}; variable= names the field")


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
    return (
        attributes.get("standard_name") in names
        or "flag_meanings" in attributes
        or "bounds" in str(variable.name)
        or "bnds" in str(variable.name)
        or str(attributes.get("units", "")).startswith("degrees_")
        or str(variable.name).lower() in (*LATITUDE_NAMES, *LONGITUDE_NAMES, *QUALITY_NAMES)
    )


def is_coordinate_of(variable: "xarray.DataArray", array: "xarray.DataArray", *, whole: bool = False) -> bool:
    """Return whether a variable lies on the dimensions of another, or on dimensions of equal lengths."""
    if variable.dtype.kind not in "fiub" or not variable.ndim or "bounds" in str(variable.name):
        return False
    if variable.ndim < 2 and whole:
        return False
    sizes = {size for size in variable.shape if size > 1}
    inside = all(dim in array.dims or variable.sizes[dim] == 1 for dim in variable.dims)
    twin = variable.ndim == 2 and variable.shape == array.shape[-2:] and not set(variable.dims) <= set(array.dims)
    return (inside and bool(sizes)) or twin


def with_dims_of(array: "xarray.DataArray", other: "xarray.DataArray") -> "xarray.DataArray":
    """Return a variable with its dimensions renamed to those of the field."""
    if set(other.dims) <= set(array.dims) or other.shape != array.shape[-2:]:
        return other
    names = dict(zip(other.dims, array.dims[-2:], strict=True))
    plain = other.reset_coords(drop=True)
    return plain.rename({old: new for old, new in names.items() if old != new})


def is_vertical(dataset: "xarray.Dataset", dim: str) -> bool:
    """Return whether a dimension is a vertical one, by its name or its attributes."""
    attributes = dataset[dim].attrs if dim in dataset.variables else {}
    return dim.lower() in _LEVELS or attributes.get("axis") == "Z" or "positive" in attributes


def dims_text(array: "xarray.DataArray") -> str:
    """Return the dimensions of a variable and their sizes as text."""
    return "(" + ", ".join(f"{dim} {size}" for dim, size in array.sizes.items()) + ")"
