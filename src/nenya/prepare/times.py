"""The times of the fields of a dataset."""

import calendar
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from nenya.errors import InputFileError, NenyaError
from nenya.options.commands import PrepareOptions
from nenya.prepare.sources import reading
from nenya.prepare.variables import get_variable, variables_of

if TYPE_CHECKING:
    import xarray

_TIME_ATTRIBUTES = ("time_coverage_start", "start_time", "time_coverage_end")


def find_times(
    dataset: "xarray.Dataset", array: "xarray.DataArray", place: str, options: PrepareOptions
) -> tuple[Any, list[np.datetime64]]:
    """Return the time dimension, None if there is none, and the times.

    Raises:
        InputFileError: The file does not state the times of its fields.
    """
    if options.time is not None and options.time not in dataset.variables:
        try:
            return _time_dim(dataset, array), [np.datetime64(_utc(options.time), "us")] * _steps(dataset, array)
        except NenyaError:
            raise
        except ValueError:
            get_variable(dataset, options.time, place, "time=")
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
            except NenyaError:
                raise
            except (KeyError, ValueError):
                continue
    raise InputFileError(
        f"{place}: no readable time of '{array.name}'; time= names the variable, or gives the date itself, such as "
        "time=2015-01-16T12:00"
    )


def _time_variable(
    dataset: "xarray.Dataset", array: "xarray.DataArray", options: PrepareOptions
) -> "xarray.DataArray | None":
    if options.time is not None:
        return dataset[options.time]
    dates = [
        v for v in variables_of(dataset) if _is_date(v) and v.ndim <= 1 and not str(v.name).endswith(("bnds", "bounds"))
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
    """Return a date in UTC without zone, from ISO 8601 or the compact form of L2P files."""
    compact = re.fullmatch(r"(\d{8})[T ]?(\d{6})(?:\.\d+)?Z?", text.strip())
    found = datetime.strptime("".join(compact.groups()), "%Y%m%d%H%M%S") if compact else datetime.fromisoformat(text)
    return found.astimezone(UTC).replace(tzinfo=None) if found.tzinfo else found


def _to_datetime64(value: Any) -> np.datetime64:
    """Return a date; one that exists only in a model's calendar (30 February) as the last day of its month."""
    if isinstance(value, np.datetime64):
        return value.astype("datetime64[us]")  # type: ignore[no-any-return]  # of a type that numpy's stubs miss
    day = min(value.day, calendar.monthrange(value.year, value.month)[1])
    date = datetime(value.year, value.month, day, value.hour, value.minute, value.second, value.microsecond)
    return np.datetime64(date, "us")
