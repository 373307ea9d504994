"""Dates in the forms that files have: decoded or not, of any calendar, as texts, or as numbers such as 20150131."""

import calendar as months_of
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import xarray

Dates = NDArray[np.datetime64]

_SINCE = re.compile(r"\s*(\w+)\s+since\s+(.+?)\s*", re.IGNORECASE)
_CALENDARS = {"360": "360_day", "365": "noleap", "366": "all_leap", "365_days": "noleap", "none": "standard"}
_LONG = {"month": 1, "months": 1, "mon": 1, "mons": 1, "year": 12, "years": 12, "yr": 12, "yrs": 12, "common_year": 12}
_SECONDS = {"d": 86400.0, "h": 3600.0, "s": 1.0}
_SECONDS |= {"day": 86400.0, "hour": 3600.0, "hr": 3600.0, "minute": 60.0, "min": 60.0, "second": 1.0, "sec": 1.0}
_SECONDS |= {"millisecond": 1e-3, "msec": 1e-3, "ms": 1e-3, "microsecond": 1e-6, "microsec": 1e-6, "us": 1e-6}
_MOST_SECONDS = 3e11  # before and after a date; numbers beyond, some 9500 years, are fill values
_DIGITS = {6: "%Y%m", 8: "%Y%m%d", 10: "%Y%m%d%H", 12: "%Y%m%d%H%M", 14: "%Y%m%d%H%M%S"}


def dates_of(variable: "xarray.DataArray") -> Dates | None:
    """Return the dates of a variable, datetime64[us] of its shape, NaT where there is none; None if it has no dates.

    A date that exists only in a model's calendar (30 February) becomes the last day of its month.
    """
    kind = variable.dtype.kind
    if kind == "M":
        return np.asarray(variable.values).astype("datetime64[us]")
    if kind not in "iufOSU" or not variable.size:
        return None
    attributes = {**variable.encoding, **variable.attrs}
    if kind in "iuf" and not _may_be_dates(str(attributes.get("units", "")), str(variable.name)):
        return None  # before its values are read
    values = np.asarray(variable.values)
    try:
        if kind in "OSU":
            return _of_objects(values)
        return _of_numbers(values.astype(np.float64), attributes)
    except (ValueError, OverflowError, TypeError):
        return None


def utc(text: str) -> datetime:
    """Return a date in UTC without zone, from ISO 8601, the compact form of L2P files, or that of WRF.

    Raises:
        ValueError: The text is no date.
    """
    text = re.sub(r"(?<=\d)_(?=\d\d:)", "T", text.strip())
    compact = re.fullmatch(r"(\d{8})[T ]?(\d{6})(?:\.\d+)?Z?", text)
    found = datetime.strptime("".join(compact.groups()), "%Y%m%d%H%M%S") if compact else datetime.fromisoformat(text)
    return found.astimezone(UTC).replace(tzinfo=None) if found.tzinfo else found


def _of_objects(values: NDArray[Any]) -> Dates | None:
    """Return dates from texts, or from objects of a calendar."""
    found = []
    for value in values.ravel():
        if hasattr(value, "calendar"):
            found.append(_of_calendar(value))
            continue
        text = value.decode("ascii", "replace") if isinstance(value, bytes) else value
        if not isinstance(text, str):
            return None
        found.append(np.datetime64(utc(text), "us") if text.strip() else np.datetime64("NaT", "us"))
    return np.array(found, dtype="datetime64[us]").reshape(values.shape)


def _of_calendar(value: Any) -> np.datetime64:
    if value.calendar == "julian":
        value = value.change_calendar("standard")
    day = min(value.day, months_of.monthrange(value.year, value.month)[1]) if value.year > 0 else min(value.day, 28)
    text = f"{value.year:04d}-{value.month:02d}-{day:02d}T{value.hour:02d}:{value.minute:02d}:{value.second:02d}"
    return np.datetime64(text, "us") + np.timedelta64(int(value.microsecond), "us")


def _may_be_dates(units: str, name: str) -> bool:
    """Return whether numbers may be dates, by their units and their name."""
    if units in ("", "1"):
        return re.search("time|date|day", name.lower()) is not None
    return _SINCE.fullmatch(units) is not None or "%Y" in units or "yyyy" in units.lower()


def _of_numbers(values: NDArray[np.float64], attributes: Any) -> Dates | None:
    """Return dates from numbers since a date, or from numbers whose digits are a date."""
    units = str(attributes.get("units", ""))
    since = _SINCE.fullmatch(units)
    unit = "" if since is None else since.group(1).lower()
    seconds = 2.6e6 * _LONG[unit] if unit in _LONG else _SECONDS.get(unit, _SECONDS.get(unit.removesuffix("s"), 3e-7))
    good = np.isfinite(values) & (np.abs(values) * seconds < _MOST_SECONDS)
    found = np.full(values.shape, np.datetime64("NaT"), dtype="datetime64[us]")
    if since is not None:
        calendar = str(attributes.get("calendar", "standard")).lower()
        found[good] = _since(values[good], unit, since.group(2), _CALENDARS.get(calendar, calendar))
        return found
    if not good.any():
        return None
    found[good] = [_of_digits(value) for value in values[good]]
    return found


def _since(values: NDArray[np.float64], unit: str, start: str, calendar: str) -> Dates:
    import cftime  # type: ignore[import-untyped]  # it ships no types

    if unit not in _LONG:
        made = cftime.num2date(values, f"{unit} since {start}", calendar=calendar, only_use_cftime_datetimes=True)
        return np.array([_of_calendar(value) for value in np.ravel(made)], dtype="datetime64[us]")
    months = values * _LONG[unit]
    if calendar == "360_day":
        made = cftime.num2date(months * 30, f"days since {start}", calendar=calendar)
        return np.array([_of_calendar(value) for value in np.ravel(made)], dtype="datetime64[us]")
    first = cftime.num2date(0, f"days since {start}", calendar=calendar, only_use_cftime_datetimes=True)
    return np.array([_after_months(first, value) for value in months], dtype="datetime64[us]")


def _after_months(first: Any, months: float) -> np.datetime64:
    """Return a date some months after another: complete months, and a fraction of the last one's days."""
    whole = int(np.floor(months))
    year, month = divmod(first.year * 12 + first.month - 1 + whole, 12)
    days = months_of.monthrange(year, month + 1)[1]
    start = _of_calendar(first.replace(year=year, month=month + 1, day=min(first.day, days)))
    return start + np.timedelta64(round((months - whole) * days * 86_400_000_000), "us")


def _of_digits(value: float) -> np.datetime64:
    """Return the date that the digits of a number write, such as 20150131 or 20150131.5."""
    whole = int(np.floor(value))
    form = _DIGITS.get(len(str(whole)))
    if form is None or not 1800 <= int(str(whole)[:4]) <= 2200:
        raise ValueError(f"{value} is no date")
    date = np.datetime64(datetime.strptime(str(whole), form), "us")
    return date + np.timedelta64(round((value - whole) * 86_400_000_000) if len(str(whole)) == 8 else 0, "us")
