"""The times of the fields of a dataset."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nenya.errors import InputFileError
from nenya.options.commands import PrepareOptions
from nenya.prepare.dates import Dates, dates_of, utc
from nenya.prepare.sources import reading
from nenya.prepare.variables import get_variable, variables_of

if TYPE_CHECKING:
    import xarray

_ATTRIBUTES = (
    *("time_coverage_start", "start_time", "time_coverage_end", "stop_time", "valid_time", "datetime", "date_time"),
    *("date", "time", "start_date", "acquisition_date", "nominal_date"),
)
_DIMENSIONS = re.compile(r"time\w*|t|ocean_time|valid_time|mt|xtime|date\w*|record|times")
_SHOWN = 3


@dataclass(frozen=True)
class Times:
    """The times of a dataset.

    Attributes:
        dim: the dimension of the time steps, None if there is none.
        values: of the steps that are used.
        steps: their indices along `dim`.
        lines: seconds of each line or pixel after the only time, on dimensions of the field; None without.
        notes: sentences on what was left out.
    """

    dim: Any
    values: list[np.datetime64]
    steps: list[int]
    lines: "xarray.DataArray | None" = None
    notes: list[str] = field(default_factory=list)


def find_times(
    dataset: "xarray.Dataset", array: "xarray.DataArray", place: str, options: PrepareOptions, spatial: Sequence[Any]
) -> Times:
    """Return the times of the fields of a variable.

    Args:
        dataset: the file.
        array: the variable.
        place: name of the file, for errors.
        options: names given by the user.
        spatial: the dimensions of its latitude and longitude; the time of each line, as swaths have it, lies on one.

    Raises:
        InputFileError: The file does not state the times of its fields.
    """
    dim = time_dim(dataset, array, spatial)
    steps = int(array.sizes[dim]) if dim is not None else 1
    if options.time is not None and options.time not in dataset.variables:
        return Times(dim, [_given_date(dataset, array, place, options.time, steps)], [0])
    with reading(place):
        found = _candidates(dataset, array, options)
    for variable, dates in found:
        inside = [d for d in variable.dims if d in array.dims and array.sizes[d] > 1]
        if inside and set(inside) <= set(spatial) and not np.isnat(dates).all():
            if steps == 1:
                return _of_lines(dim, variable, dates)
            continue
        own = inside[0] if inside else dim
        count = int(array.sizes[own]) if own is not None else 1
        values = list(dates.ravel())
        if len(values) == count and not np.isnat(dates).all():
            return _of_steps(own, values, place)
        if len(values) == 1 and not np.isnat(values[0]) and count > 1:
            continue  # one time cannot be that of several steps
    if steps == 1:
        for attributes in (array.attrs, dataset.attrs):
            for name in _ATTRIBUTES:
                date = _of_attribute(attributes.get(name))
                if date is not None:
                    return Times(dim, [date], [0])
    raise InputFileError(
        f"{place}: no readable time of '{array.name}'; time= names the variable, or gives the date itself, such as "
        "time=2015-01-16T12:00"
    )


def _given_date(
    dataset: "xarray.Dataset", array: "xarray.DataArray", place: str, text: str, steps: int
) -> np.datetime64:
    """Return the date that time= gives.

    Raises:
        InputFileError: It is neither a date nor a variable, or the field has several time steps.
    """
    try:
        date = np.datetime64(utc(text), "us")
    except ValueError:
        get_variable(dataset, text, place, "time=")
        raise
    if steps > 1:
        raise InputFileError(
            f"{place}: expected a time for each of the {steps} steps of '{array.name}', got one date, time={text}; "
            "time= names a variable that has them"
        )
    return date


def _candidates(
    dataset: "xarray.Dataset", array: "xarray.DataArray", options: PrepareOptions
) -> "list[tuple[xarray.DataArray, Dates]]":
    """Return the variables that may be the time, the likeliest first, with their dates."""
    if options.time is not None:
        dates = dates_of(dataset[options.time])
        return [(dataset[options.time], dates)] if dates is not None else []
    named = str(array.attrs.get("time", ""))
    found = []
    for variable in variables_of(dataset):
        name, standard = str(variable.name), str(variable.attrs.get("standard_name", ""))
        shaped = set(variable.dims) <= set(array.dims) or variable.size == 1
        if not shaped or not variable.size or variable.ndim > 2 or name.endswith(("bnds", "bounds")):
            continue
        if standard not in ("time", "") or (variable.ndim == 2 and standard != "time" and name.lower() != "time"):
            continue
        dates = dates_of(variable)
        if dates is not None:
            inside = bool(set(variable.dims) & set(array.dims))
            rank = (standard != "time", name != named, not inside, name not in variable.dims, name.lower() != "time")
            found.append((rank, variable, dates))
    return [(variable, dates) for _, variable, dates in sorted(found, key=lambda item: item[0])]


def _of_steps(dim: Any, values: list[np.datetime64], place: str) -> Times:
    """Return the steps with a time of their own: of repeated ones the first, none without a time."""
    kept: dict[np.datetime64, int] = {}
    missing, repeated = [], []
    for step, value in enumerate(values):
        if np.isnat(value):
            missing.append(step)
        elif value in kept:
            repeated.append(step)
        else:
            kept[value] = step
    notes = [
        f"{place}: left out {_listed(steps)} of {len(values)} time steps, {why}"
        for steps, why in ((missing, "without a time"), (repeated, "with the time of an earlier step"))
        if steps
    ]
    return Times(dim, list(kept), list(kept.values()), None, notes)


def _listed(steps: list[int]) -> str:
    shown = ", ".join(map(str, steps[:_SHOWN])) + (" ..." if len(steps) > _SHOWN else "")
    return f"{len(steps)} (number {shown})"


def _of_lines(dim: Any, variable: "xarray.DataArray", dates: Dates) -> Times:
    """Return the first time of lines or pixels, and the seconds of each after it; missing ones are interpolated."""
    known = ~np.isnat(dates)
    first = dates[known].min()
    seconds = np.full(dates.shape, np.nan)
    seconds[known] = (dates[known] - first) / np.timedelta64(1, "s")
    if dates.ndim == 1 and not known.all():
        places: NDArray[np.intp] = np.arange(len(dates))
        seconds = np.interp(places, places[known], seconds[known])
    return Times(dim, [first], [0], variable.copy(data=seconds.astype(np.float32)))


def _of_attribute(value: Any) -> np.datetime64 | None:
    """Return the date in an attribute, None if it is none."""
    text = value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)
    if not re.match(r"\s*\d{4}", text):
        return None
    try:
        return np.datetime64(utc(text), "us")
    except ValueError:
        return None


def time_dim(dataset: "xarray.Dataset", array: "xarray.DataArray", spatial: Sequence[Any] = ()) -> Any:
    """Return the dimension of the times of a field, None if there is none; never one of `spatial`."""
    for dim in array.dims:
        if dim in spatial:
            continue
        if _DIMENSIONS.fullmatch(str(dim).lower()):
            return dim
        if dim in dataset.variables and (dataset[dim].attrs.get("axis") == "T" or dataset[dim].dtype.kind == "M"):
            return dim
    return None
