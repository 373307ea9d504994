"""The vertical dimension of a field, and its level nearest to the surface."""

import re
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nenya.errors import InputFileError

if TYPE_CHECKING:
    import xarray

_NAMES = re.compile(
    r"depth\w*|lev|lev_\w+|levels?|zlev\w*|olevel|nav_lev|bottom_top\w*|layers?|height|altitude|plev|isobaric\w*|sigma\w*|"
    r"s_(rho|w)|sc_[rw]|z|zt|zl|zi|z_[tlwi]\w*|z_rho|k|kk|k_[lup]\w*|nz|[sz]t_ocean|[sz]w_ocean"
)
_STANDARD = re.compile(r"depth.*|height.*|altitude|ocean_.*coordinate.*|(air|sea_water)_pressure|model_level_number")
_MEASURED = re.compile(r"(milli|centi|deci|kilo)?met(er|re)s?|[mck]?m|d?bars?|decibars?|h?pa|mbar|millibars?|1|")
_TOP_FIRST = ("depth", "olevel", "nav_lev", "z_t", "st_ocean", "zt")
_TOP_LAST = ("s_rho",)


def is_vertical(dataset: "xarray.Dataset", dim: str) -> bool:
    """Return whether a dimension is a vertical one, by its name or the attributes of its coordinate."""
    return _NAMES.fullmatch(dim.lower()) is not None or _coordinate(dataset, dim) is not None


def surface_level(dataset: "xarray.Dataset", dim: str, size: int, place: str) -> tuple[int, str]:
    """Return the index of the level nearest to the surface, and a sentence if it is known by a name only.

    The nearest depth, height or sigma is the one of smallest magnitude, in any direction and of any sign. The nearest
    air pressure is the largest. For numbered levels `positive` says which end is the surface. Without a coordinate, a
    level is taken only for depths, which begin at the surface, and for models with a known order of levels.

    Args:
        dataset: of the field.
        dim: the vertical dimension.
        size: number of its levels.
        place: name of the file, for errors.

    Raises:
        InputFileError: The order of the levels is not known.
    """
    found, name = _coordinate(dataset, dim), dim.lower()
    if found is not None:
        values = np.asarray(found.values, dtype=np.float64)
        index = _nearest(values, found) if np.isfinite(values).all() else None
        if index is not None:
            return index, ""
    elif name.startswith(_TOP_FIRST) or name in _TOP_LAST:
        index = size - 1 if name in _TOP_LAST else 0
        note = f"'{dim}' has no coordinate: level {index} is taken as the surface; level= names another"
        return index, f"{place}: {note}"
    why = "has no coordinate" if found is None else f"is numbered by '{found.name}' without saying which end is up"
    raise InputFileError(
        f"{place}: which of the {size} levels is the surface is not known, as '{dim}' {why}; level= gives its index, "
        f"such as level=0 or level={size - 1}"
    )


def _nearest(values: NDArray[np.float64], coordinate: "xarray.DataArray") -> int | None:
    """Return the index of the level nearest to the surface, None if the attributes do not say."""
    attributes, name = coordinate.attrs, str(coordinate.name).lower()
    standard, positive = str(attributes.get("standard_name", "")).lower(), str(attributes.get("positive", "")).lower()
    units = str(attributes.get("units", "")).strip().lower()
    if standard == "air_pressure" or units in ("pa", "hpa", "mbar", "millibar", "millibars"):
        return int(values.argmax())
    bare = units in ("", "1", "level", "levels", "layer", "count")
    measured = standard.startswith(("depth", "height")) or name.startswith(("depth", "height", "altitude"))
    if bare and not measured and np.array_equal(values, np.rint(values)) and (np.abs(np.diff(values)) == 1).all():
        if positive in ("up", "down"):
            return int(values.argmin() if positive == "down" else values.argmax())
        ends = {**dict.fromkeys(_TOP_FIRST, values.argmin()), **dict.fromkeys(_TOP_LAST, values.argmax())}
        return int(ends[name]) if name in ends else None
    if bare and positive == "up" and (values >= 0).all() and values.max() <= 1:
        return int(values.argmax())  # a fraction of the water column, from the bottom
    return int(np.abs(values).argmin())


def _coordinate(dataset: "xarray.Dataset", dim: str) -> "xarray.DataArray | None":
    """Return the vertical coordinate of a dimension: of its own name, or another variable along it alone."""
    along = [dataset[name] for name in dataset.variables if dataset[name].dims == (dim,)]
    named = _NAMES.fullmatch(dim.lower()) is not None
    found = [
        v for v in along
        if v.dtype.kind in "fiu" and (_is_said(v) or (named and _NAMES.fullmatch(str(v.name).lower())))
    ]  # fmt: skip
    return max(found, key=lambda v: (str(v.attrs.get("units", "")) not in ("", "1"), v.name == dim), default=None)


def _is_said(variable: Any) -> bool:
    """Return whether the attributes of a variable say that it is vertical."""
    attributes = variable.attrs
    units = str(attributes.get("units", "")).strip().lower()
    standard = str(attributes.get("standard_name", "")).lower()
    if _STANDARD.fullmatch(standard) or attributes.get("axis") == "Z":
        return True
    return str(attributes.get("positive", "")).lower() in ("up", "down") and _MEASURED.fullmatch(units) is not None
