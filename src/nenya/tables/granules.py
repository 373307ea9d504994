"""The granules of a table: a granule is one time of one file.

Letters in shapes: N rows of the table.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pandas as pd

GRANULE = "granule"
"""Column of tables of `nenya prepare`: name of the file and time of the field."""

SOURCES = ("filename", "datetime", "row", "col", "face")
"""Columns from which the granules of an older table are derived."""

_LONGEST_GAP = np.timedelta64(30, "m")
"""Between cutouts of one swath: its pixels have times of their own. Fields of one file are further apart."""

IntArray = NDArray[np.int64]


def granule_name(file: str, time: np.datetime64) -> str:
    """Return the value of the column `granule` for one time (UTC) of a file."""
    return f"{file} {np.datetime_as_string(time, 's')}"


def granules(table: "pd.DataFrame") -> IntArray | None:
    """Return the granule of each row as a number, from the column `granule` or from file and time.

    In a table without the column, rows of one file are of several granules if the same position in the field has
    several times, or if their times are more than half an hour apart: the pixels of a swath differ by less.

    Args:
        table: with `granule`, or at least one of `filename` and `datetime`; `row`, `col` and `face` help.

    Returns:
        (N,) int64, equal for rows of one granule, -1 if unknown; None if the table has none of these columns.
    """
    import pandas as pd

    named = pd.factorize(table[GRANULE])[0].astype(np.int64) if GRANULE in table else None
    if named is not None and (named >= 0).all():
        return named
    derived = _derive(table)
    if named is None or derived is None:
        return derived if named is None else named
    return np.where(named >= 0, named + derived.max(initial=-1) + 1, derived)


def _derive(table: "pd.DataFrame") -> IntArray | None:
    """Return granules from file and time."""
    import pandas as pd

    if "filename" not in table and "datetime" not in table:
        return None
    file = np.zeros(len(table), np.int64)
    if "filename" in table:
        file = pd.factorize(table["filename"])[0].astype(np.int64)
    if "datetime" not in table:
        return file
    time = _times(table["datetime"])
    order = np.lexsort((time, file))
    f, t = file[order], time[order]
    gap = np.diff(t)
    changed = (np.diff(t.astype(np.int64)) != 0) if "filename" not in table else gap > _LONGEST_GAP
    changed |= np.isnat(t[1:]) != np.isnat(t[:-1])
    changed |= (gap > np.timedelta64(0)) & np.isin(f[1:], _of_several_times(table, file, time))
    starts = np.concatenate([[0], np.cumsum((np.diff(f) != 0) | changed)]) if len(f) else f
    found = np.empty(len(table), np.int64)
    found[order] = starts
    found[(file < 0) | (np.isnat(time) if "filename" not in table else False)] = -1
    return found


def _times(column: "pd.Series[Any]") -> NDArray[np.datetime64]:
    """Return dates as datetime64[us], NaT where they cannot be read."""
    import pandas as pd

    if column.dtype.kind not in "M":
        column = column.astype(str)
        found = pd.to_datetime(column, utc=True, errors="coerce", format="ISO8601")
        column = found if found.notna().any() else pd.to_datetime(column, utc=True, errors="coerce", format="mixed")
    elif getattr(column.dtype, "tz", None) is None:
        return column.to_numpy("datetime64[us]")
    return np.asarray(column.dt.tz_convert(None), "datetime64[us]")


def _of_several_times(table: "pd.DataFrame", file: IntArray, time: NDArray[np.datetime64]) -> IntArray:
    """Return the files in which a position in the field has several times."""
    import pandas as pd

    position = [name for name in ("row", "col", "face") if name in table]
    if not {"row", "col"} <= set(position):
        return np.empty(0, np.int64)
    places = pd.DataFrame({"file": file, **{name: table[name].to_numpy() for name in position}})
    first = places.assign(time=time).drop_duplicates()
    again = first.duplicated(["file", *position])
    return np.unique(first.loc[again, "file"].to_numpy(np.int64))
