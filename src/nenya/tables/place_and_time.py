"""Columns of place and time: other names that tables have for them, and columns with some unreadable dates."""

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from nenya.errors import InputFileError

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

OTHER_NAMES = {"lat": ("latitude",), "lon": ("longitude",), "datetime": ("time", "date", "date_time")}
"""Name of a column in nenya -> other names of it, in any case."""


def usual_names(table: "pd.DataFrame") -> "pd.DataFrame":
    """Return a table with the columns lat, lon and datetime, as copies of those of other names, if it lacks them."""
    for name, other in other_names(list(table.columns)).items():
        if name == "datetime" and table[other].dtype.kind not in "MOT" and str(table[other].dtype) not in _TEXTS:
            continue  # numbers of hours, for instance
        table = table.assign(**{name: table[other]})
    return table


_TEXTS = ("string", "str", "category")


def other_names(columns: list[Any]) -> dict[str, Any]:
    """Return usual name -> the column that holds it under another name, for those that have no column of their own."""
    lower = {str(name).lower(): name for name in reversed(columns)}
    found: dict[str, Any] = {}
    for name, others in OTHER_NAMES.items():
        if name not in columns:
            known = [lower[other] for other in (name, *others) if other in lower]
            found |= {name: known[0]} if known else {}
    return found


def dates_of(column: "pd.Series[Any]", *, check: bool = True) -> "pd.Series[Any]":
    """Return a column as datetimes in UTC without a zone; values that are no dates are missing.

    Args:
        column: datetimes, or texts in ISO 8601.
        check: count values that are no dates in a warning.

    Raises:
        InputFileError: No value is a date (`check` only), or they are numbers.
    """
    import pandas as pd

    if column.dtype.kind == "M" or isinstance(column.dtype, pd.DatetimeTZDtype):
        moments = column
    else:
        if pd.api.types.is_numeric_dtype(column) and column.notna().any():
            raise InputFileError(f"{_EXPECTED} in the column {column.name}, got numbers ({column.dtype})")
        moments = pd.to_datetime(column, format="ISO8601", errors="coerce", utc=True)
        bad = np.flatnonzero(check & moments.isna() & column.notna())
        if len(bad) and not moments.notna().any():
            raise InputFileError(f"{_EXPECTED} in the column {column.name}, got {column.iloc[bad[0]]}")
        if len(bad):
            log.warning(
                "%d of %d values of the column %s are not dates such as 2012-03-01T12:00 and count as missing, first "
                "%s in row %d", len(bad), len(column), column.name, column.iloc[bad[0]], bad[0],
            )  # fmt: skip
    return moments.dt.tz_convert("UTC").dt.tz_localize(None) if moments.dt.tz is not None else moments


_EXPECTED = "expected dates such as 2012-03-01T12:00"
