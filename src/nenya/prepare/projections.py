"""Latitude and longitude of grids that only have projected coordinates, by their `grid_mapping` through pyproj."""

import functools
import json
import re
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nenya.errors import InputFileError, NenyaError
from nenya.storage.process import check_memory
from nenya.storage.texts import shown

if TYPE_CHECKING:
    import xarray

_STANDARD = {
    "x": ("projection_x_coordinate", "projection_x_angular_coordinate", "grid_longitude"),
    "y": ("projection_y_coordinate", "projection_y_angular_coordinate", "grid_latitude"),
}
_NAMES = {
    "x": ("x", "xc", "xgrid", "easting", "rlon", "x_coordinate", "fx"),
    "y": ("y", "yc", "ygrid", "northing", "rlat", "y_coordinate", "fy"),
}
_METRES = {"": 1.0, "m": 1.0, "meter": 1.0, "meters": 1.0, "metre": 1.0, "metres": 1.0, "km": 1e3}
_METRES |= dict.fromkeys(("kilometer", "kilometers", "kilometre", "kilometres"), 1e3)
_RADIANS = {"rad": 1.0, "radian": 1.0, "radians": 1.0, "mrad": 1e-3, "milliradian": 1e-3, "urad": 1e-6, "µrad": 1e-6}
_RADIANS |= dict.fromkeys(("microradian", "microradians"), 1e-6)
_MOST_WORDS = 1000  # characters of other attributes
_MOST_TEXT = 2**16  # characters of all attributes
_FILE = re.compile(r"\b(\w*grids\s*=\s*(?!@null\b(?!,))|(init|file|catalog|tables?)\s*=)|parameterfile|^\s*\{", re.I)
_SHIFT = re.compile(r"\+?\b(nadgrids=(?!@null\b(?!,))|geoidgrids=|geoid_crs=)\S*")
_OLD_CODE = re.compile(r"\+?init\s*=\s*epsg:(\d{1,6})(\s+\+(no_defs|type=crs|wktext))*", re.I)
_TEXTS = ("crs_wkt", "spatial_ref", "proj4", "proj4text", "proj4_string", "proj4_params", "proj_string", "epsg_code")


def grid_axes(
    dataset: "xarray.Dataset", array: "xarray.DataArray"
) -> "tuple[xarray.DataArray, xarray.DataArray] | None":
    """Return the projected coordinates y and x (one-dimensional) of a field, None if it has none."""
    found = []
    for kind in ("y", "x"):
        along = [dataset[name] for name in dataset.variables]
        along = [v for v in along if v.ndim == 1 and v.dtype.kind in "fiu" and v.dims[0] in array.dims and v.size > 1]
        said = [v for v in along if v.attrs.get("standard_name") in _STANDARD[kind]]
        said = said or [v for v in along if v.attrs.get("axis") == kind.upper() and not _is_degrees(v)]
        said = said or [v for v in along if str(v.name).lower() in _NAMES[kind] and not _is_degrees(v)]
        found.append(max(said, key=lambda v: v.name == v.dims[0], default=None))
    y, x = found
    return (y, x) if y is not None and x is not None and y.dims != x.dims else None


def project(
    dataset: "xarray.Dataset", array: "xarray.DataArray", place: str
) -> "tuple[xarray.DataArray, xarray.DataArray] | None":
    """Return latitude and longitude (y, x) in degrees of a projected grid, None if the field lies on none.

    Places off the Earth, such as the corners of a full disk of a geostationary satellite, are NaN.

    Raises:
        InputFileError: The projection cannot be understood.
    """
    import pyproj
    import xarray

    axes, mapping = grid_axes(dataset, array), _mapping(dataset, array)
    if axes is None or mapping is None:
        return None
    y, x = axes
    check_memory(y.size * x.size * 8, f"{place}: latitude and longitude of '{array.name}'", copies=5)
    try:
        crs = _crs(_checked({str(key): _plain(value) for key, value in mapping.attrs.items()}))
        east, north = np.meshgrid(*(_native(axis, mapping.attrs, place) for axis in (x, y)))
        if crs.is_projected:
            lon, lat = pyproj.Proj(crs)(east, north, inverse=True)
        else:
            lon, lat = pyproj.Transformer.from_crs(crs, "EPSG:4326", always_xy=True).transform(east, north)
    except NenyaError:
        raise
    except (pyproj.exceptions.ProjError, KeyError, TypeError, ValueError, RecursionError) as error:
        first = shown((str(error).strip() or type(error).__name__).splitlines()[0])
        raise InputFileError(
            f"{place}: the projection in '{mapping.name}' cannot be understood ({first}); lat= and lon= name "
            "coordinates in degrees, coords= another file that has them"
        ) from error
    lat, lon = (np.where(np.isfinite(lat) & np.isfinite(lon), values, np.nan) for values in (lat, lon))
    dims = (y.dims[0], x.dims[0])
    return tuple(  # type: ignore[return-value]  # of two
        xarray.DataArray(values, dims=dims, name=name, attrs={"units": units})
        for values, name, units in ((lat, "latitude", "degrees_north"), (lon, "longitude", "degrees_east"))
    )


def _mapping(dataset: "xarray.Dataset", array: "xarray.DataArray") -> "xarray.DataArray | None":
    """Return the grid mapping of a field: as it names it, or the only one of the file."""
    named = str(array.attrs.get("grid_mapping", array.encoding.get("grid_mapping", "")))
    for name in re.split(r"[:\s]+", named):
        if name in dataset.variables:
            return dataset[name]
    about = [dataset[name] for name in dataset.variables]
    found = [v for v in about if any(key in v.attrs for key in ("grid_mapping_name", *_TEXTS))]
    return found[0] if len(found) == 1 and not named else None


@functools.lru_cache(maxsize=16)
def _crs(attributes: str) -> Any:
    """Return the coordinate system of a grid mapping (JSON), by CF or by the text that it carries; slow to make."""
    import pyproj
    from pyproj import network

    network.set_network_enabled(active=False)  # type: ignore[attr-defined]  # its module imports it without exporting
    plain = json.loads(attributes)
    if "grid_mapping_name" in plain or "crs_wkt" in plain or "spatial_ref" in plain:
        return pyproj.CRS.from_cf(plain)
    for key in _TEXTS:
        if plain.get(key):
            return pyproj.CRS.from_user_input(plain[key])
    raise ValueError("it has neither grid_mapping_name nor crs_wkt")


def _checked(attributes: dict[str, Any]) -> str:
    """Return the attributes of a grid mapping as JSON, with nothing in them that names a file.

    PROJ would open files of definitions, and of shifts between datums, which projecting does not need.

    Raises:
        ValueError: They name one, or are too long.
    """
    kept = {}
    for key, value in attributes.items():
        if isinstance(value, str):
            code = _OLD_CODE.fullmatch(value.strip())
            proj = value.lstrip().startswith("+") or "+proj=" in value.partition("[")[0]
            value = f"EPSG:{code[1]}" if code else _SHIFT.sub("", value) if proj else value
            read = key in _TEXTS or key.endswith("_name")  # others are comments
            if read and _FILE.search(value):
                raise ValueError(f"{key} names a file, or is not WKT or a PROJ string: {shown(value, 60)}")
            if not read and (len(value) > _MOST_WORDS or _FILE.search(value)):
                continue
        kept[key] = value
    text = json.dumps(kept, default=str)
    if len(text) > _MOST_TEXT:
        raise ValueError(f"its attributes have {len(text)} characters")
    return text


def _plain(value: Any) -> Any:
    """Return an attribute as a number, a list or a text."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    listed = value.tolist() if hasattr(value, "tolist") else value
    return listed[0] if isinstance(listed, list) and len(listed) == 1 else listed


def _native(axis: "xarray.DataArray", mapping: Any, place: str) -> NDArray[np.float64]:
    """Return a projected coordinate in metres, that of a rotated grid in degrees."""
    values = np.asarray(axis.values, dtype=np.float64)
    units = str(axis.attrs.get("units", "")).strip().lower()
    name = str(mapping.get("grid_mapping_name", ""))
    if name == "rotated_latitude_longitude" or _is_degrees(axis):
        return values
    if name == "geostationary" and (units in _RADIANS or (units in ("", "1") and np.nanmax(np.abs(values)) < 1)):
        return values * _RADIANS.get(units, 1.0) * float(_plain(mapping["perspective_point_height"]))
    if units not in _METRES:
        raise InputFileError(
            f"{place}: expected '{axis.name}' in metres, kilometres or radians, got '{axis.attrs.get('units')}'"
        )
    return values * _METRES[units]


def _is_degrees(variable: "xarray.DataArray") -> bool:
    return str(variable.attrs.get("units", "")).lower().startswith("degree")
