"""Latitude and longitude of a field: by CF attributes, by the names that models use, or by a projection."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from nenya.errors import InputFileError
from nenya.options.commands import PrepareOptions
from nenya.options.declare import suggest
from nenya.prepare.axes import in_order, is_column, is_row, match_dims
from nenya.prepare.projections import grid_axes, project
from nenya.prepare.units import plain_text
from nenya.prepare.variables import LATITUDE_NAMES, LONGITUDE_NAMES, dims_text, get_variable, variables_of

if TYPE_CHECKING:
    import xarray

_LENGTH = re.compile(r"([\d.e+-]+\s*)?(k|c|m|kilo|centi|milli)?m(et(er|re)s?)?")
_NOT_GEOGRAPHIC = ("grid_latitude", "grid_longitude", "projection_x_coordinate", "projection_y_coordinate")


@dataclass(frozen=True)
class _Kind:
    option: str
    word: str
    names: tuple[str, ...]
    units: re.Pattern[str]


_LAT = _Kind("lat", "latitude", LATITUDE_NAMES, re.compile(r"deg(ree)?s?n(orth)?"))
_LON = _Kind("lon", "longitude", LONGITUDE_NAMES, re.compile(r"deg(ree)?s?e(ast)?"))


@dataclass(frozen=True)
class _Candidate:
    """A variable that may be a coordinate; a lower `rank` is a better reason."""

    variable: Any
    rank: tuple[Any, ...]


def find_coordinates(
    dataset: "xarray.Dataset", array: "xarray.DataArray", place: str, options: PrepareOptions
) -> "tuple[xarray.DataArray, xarray.DataArray]":
    """Return latitude and longitude, on dimensions of the field.

    Raises:
        InputFileError: There are none, or the projection of the grid cannot be understood.
    """
    lats, lons = (list(_candidates(dataset, array, kind, place, options)) for kind in (_LAT, _LON))
    pairs = [(one, other) for one in lats for other in lons if _span(array, one, other)]
    if pairs:
        lat, lon = (one.variable for one in min(pairs, key=lambda pair: _worth(array, *pair)))
        _check_order(dataset, array, lat, lon, place)
        return lat, lon
    if options.lat is None and options.lon is None:
        projected = project(dataset, array, place)
        if projected is not None:
            return projected
    if lats and lons:
        return lats[0].variable, lons[0].variable
    kind = _LON if lats else _LAT
    if not lats and not lons and grid_axes(dataset, array) is not None:
        raise InputFileError(
            f"{place}: '{array.name}' {dims_text(array)} has projected coordinates, but no grid_mapping that names the "
            "projection; lat= and lon= name coordinates in degrees, coords= another file that has them"
        )
    hint = suggest(kind.names[0], [str(v) for v in dataset.variables])
    raise InputFileError(
        f"{place}: no {kind.word} found for '{array.name}' {dims_text(array)}{hint}; {kind.option}= names it, "
        "coords= names another file that has it"
    )


def _candidates(
    dataset: "xarray.Dataset", array: "xarray.DataArray", kind: _Kind, place: str, options: PrepareOptions
) -> Iterator[_Candidate]:
    """Yield the variables that may be a coordinate of a field, as many as there are reasons for."""
    given = getattr(options, kind.option)
    if given is not None:
        variable = get_variable(dataset, given, place, f"{kind.option}=")
        matched = match_dims(array, variable)
        yield _Candidate(variable if matched is None else matched, (False, False, 0, 0, 0))
        return
    listed = str(array.encoding.get("coordinates", array.attrs.get("coordinates", ""))).split()
    for variable in variables_of(dataset):
        name = str(variable.name)
        standard = str(variable.attrs.get("standard_name", ""))
        if variable.dtype.kind not in "fiu" or not variable.ndim or standard in _NOT_GEOGRAPHIC or _is_bound(name):
            continue
        if _is_length(variable):
            continue
        units = re.sub(r"[\s_.]", "", str(variable.attrs.get("units", "")).lower())
        known = kind.names.index(name.lower()) if name.lower() in kind.names else len(kind.names)
        reasons = (standard == kind.word, kind.units.fullmatch(units) is not None, known < len(kind.names))
        matched = match_dims(array, variable) if any(reasons) else None
        if matched is not None and max(matched.shape) > 1:
            exact = set(variable.dims) <= set(array.dims)
            yield _Candidate(matched, (not exact, name not in listed, reasons.index(True), known, -variable.ndim))


def _check_order(
    dataset: "xarray.Dataset", array: "xarray.DataArray", lat: "xarray.DataArray", lon: "xarray.DataArray", place: str
) -> None:
    """Refuse coordinates of a square field that have other dimension names and seem to be in another order.

    Raises:
        InputFileError: Latitude runs along what the field calls its columns, and longitude along its rows.
    """
    dims = dataset[lat.name].dims if lat.name in dataset.variables else lat.dims
    square = lat.ndim == lon.ndim == 2 and lat.shape[0] == lat.shape[1]
    if not square or set(dims) & set(array.dims) or any(is_row(d) or is_column(d) for d in dims):
        return
    rows, cols = in_order(lat.dims)
    if not (is_row(rows) and is_column(cols)):
        return
    north, east = (
        [
            float(np.nanmean(np.abs(np.diff(np.asarray(v.transpose(d, ...).values, np.float64), axis=0))))
            for d in (rows, cols)
        ]
        for v in (lat, lon)
    )
    if north[1] > 2 * north[0] and east[0] > 2 * east[1]:
        raise InputFileError(
            f"{place}: '{lat.name}' {dims_text(dataset[lat.name])} lies on other dimensions than '{array.name}' "
            f"{dims_text(array)}, and its values run along {cols}: their order is not known; rename the dimensions, or "
            "coords= names a file with coordinates in the order of the field"
        )


def _is_length(variable: "xarray.DataArray") -> bool:
    """Return whether a variable is in metres or kilometres, as projected coordinates are."""
    return _LENGTH.fullmatch(plain_text(variable.attrs.get("units", "")).lower()) is not None


def _is_bound(name: str) -> bool:
    return re.search(r"bounds|bnds|vertices|corner", name.lower()) is not None


def _dims(array: "xarray.DataArray", candidate: _Candidate) -> list[Any]:
    return [d for d in candidate.variable.dims if d in array.dims]


def _span(array: "xarray.DataArray", lat: _Candidate, lon: _Candidate) -> bool:
    """Return whether latitude and longitude give two dimensions of a field their places."""
    return len({*_dims(array, lat), *_dims(array, lon)}) >= 2


def _worth(array: "xarray.DataArray", lat: _Candidate, lon: _Candidate) -> tuple[Any, ...]:
    """Return the order of a pair: coordinates on the same dimensions, then the better reasons of both."""
    alike = set(_dims(array, lat)) == set(_dims(array, lon)) or not set(_dims(array, lat)) & set(_dims(array, lon))
    return not alike, *(item for both in zip(lat.rank, lon.rank, strict=False) for item in both)
