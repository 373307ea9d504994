"""The columns of a table as an audit takes them: what kind each is, and its values as a target of a probe.

Letters: n rows.
"""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nenya.latents.nearest import days_of
from nenya.latents.probes import Target, as_target
from nenya.tables.place_and_time import other_names, usual_names
from nenya.tables.quantities import numbers_of

if TYPE_CHECKING:
    import pandas as pd

Float64Array = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

KINDS = ("nuisance", "ocean", "other")
"""What latents should not know, what they should, and the rest."""

DERIVED = ("season", "hour", "day")
"""Quantities that are audited in place of the column datetime."""

_YEAR = 365.25  # days
_MADE_OF_LATENTS = re.compile(
    r"(US?[01]|cluster|rarity.*|latent_LL|texture_.*|rare_group|density_ratio|silhouette|stability|cosine|cosine_low|umap_spread|rank|outlier.*)$"
)
_KEYS = re.compile(r"(UID|pp_root|granule|gid|id|index|level_0|Unnamed.*)$")
_OF_SEASON = re.compile(r"(^|_)(season|month|doy|day_of_(the_)?year|dayofyear|year_?day|julian_day)(_|$)", re.I)
_NUISANCE = re.compile(
    r"(^|_)((row|col|line|pass|day|hour|face|fold|split|version|recipe|resolution|x|y|nan|gap|ice)(_|s?$)|pp_|field_size|"
    r"sensor|satellite|platform|instrument|mission|detector|granule|orbit|cycle|file|partition|clear|cloud|mask|inpaint|"
    r"fill|flag|quality|sses|swath|scan|pixel|column|nadir|track|view|zenith|azimuth|angle|incidence|sun_?|solar|glint|noise|nedt|"
    r"stripe|coast|land|dist_|distance|process|creat|missing)",
    re.I,
)
_OCEAN = re.compile(
    r"(true_|DT|slope|alpha|lat$|lat_|latitude|lon$|lon_|longitude|region|basin|mean_temperature|T(10|90|min|max)|SST|"
    r"depth|eddy|front|merid|zonal|.*temperature)",
    re.I,
)
_CIRCLES = (
    (re.compile(r"(^|_)(lon|longitude)(_|$)", re.I), 360.0),
    (re.compile(r"(^|_)month(_|$)", re.I), 12.0),
    (re.compile(r"(^|_)(doy|day_of_(the_)?year|dayofyear|year_?day|julian_day)(_|$)", re.I), _YEAR),
    (re.compile(r"(^|_)(hour|local_time|solar_time)(_|$)", re.I), 24.0),
    (re.compile(r"(azimuth|heading|bearing|direction|aspect)", re.I), 360.0),
    (re.compile(r"orientation", re.I), 180.0),
)
_READ_AS_DATES = 50  # texts that must be dates, for the column to be one


def kind_of(name: str) -> str:
    """Return whether latents should tell a column: `ocean`; should not: `nuisance`; or `other`."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z][a-z])", "_", name)  # ViewAngle
    if _OF_SEASON.search(words):
        return "ocean"
    if _NUISANCE.search(words):
        return "nuisance"
    return "ocean" if _OCEAN.match(name) else "other"


def targets_of(
    table: "pd.DataFrame", columns: list[str] | None = None, *, ranks: bool = True
) -> tuple[dict[str, tuple[Target, BoolArray]], dict[str, str]]:
    """Return name -> target and which rows have one, and name -> why a column is left out.

    A datetime is audited as `season` and `hour` (circular, UTC) and `day` (its rank), other dates by their rank, and
    longitudes, months, days of the year, hours, azimuths, directions and orientations on their circle.

    Args:
        table: of n rows.
        columns: those that are requested; default all that are neither keys nor made of the latents.
        ranks: whether numbers become their ranks; see `nenya.latents.probes.as_target`.
    """
    found: dict[str, tuple[Target, BoolArray]] = {}
    left_out: dict[str, str] = {}
    for name, source, column in _columns(table):
        if columns is not None and name not in columns and source not in columns:
            continue
        if columns is None and (_MADE_OF_LATENTS.match(name) or _KEYS.match(name)):
            key = "its rows are in one fold: see the neighbours of the same granule" if name == "granule" else "a key"
            left_out[name] = "made of the latents" if _MADE_OF_LATENTS.match(name) else key
            continue
        made: Any = column if isinstance(column, tuple | str) else as_target(column, ranks=ranks)
        if isinstance(made, str):
            left_out[name] = made
        else:
            found[name] = made
    return found, left_out


def _columns(table: "pd.DataFrame") -> Iterator[tuple[str, str, Any]]:
    """Yield name, name of the column, and its values, or its target and which rows are known."""
    import pandas as pd

    usual = {own: name for name, own in other_names(list(table.columns)).items() if name in usual_names(table.iloc[:1])}
    for own in table:
        column, name = table[own], usual.get(own, str(own))
        if name == "datetime":
            yield from ((part, str(own), values) for part, values in _parts_of(table) if part not in table)
        elif column.dtype.kind == "m":
            yield str(own), str(own), column.dt.total_seconds()
        elif _is_dates(column):
            yield str(own), str(own), pd.Series(days_of(pd.DataFrame({"datetime": column})))
        elif (turn := _turn_of(name, column)) is not None:
            yield str(own), str(own), _circle(numbers_of(column) / turn)
        else:
            yield str(own), str(own), column


def _parts_of(table: "pd.DataFrame") -> Iterator[tuple[str, Any]]:
    """Yield season, hour and day of the datetimes of a table."""
    import pandas as pd

    days = days_of(usual_names(table))
    yield "season", _circle(days / _YEAR)
    if np.isfinite(days).any() and np.ptp(np.mod(days[np.isfinite(days)], 1)) > 0:
        yield "hour", _circle(np.mod(days, 1))
    yield "day", pd.Series(np.floor(days))


def _is_dates(column: "pd.Series[Any]") -> bool:
    """Return whether a column holds datetimes, or texts that are dates in ISO 8601."""
    import pandas as pd

    if column.dtype.kind == "M" or isinstance(column.dtype, pd.DatetimeTZDtype):
        return True
    some = column.dropna().iloc[:_READ_AS_DATES]
    if not len(some) or not all(isinstance(value, str) and len(value) >= len("2012-01-01") for value in some):
        return False
    return bool(pd.to_datetime(some.astype(object), format="ISO8601", errors="coerce", utc=True).notna().all())


def _turn_of(name: str, column: "pd.Series[Any]") -> float | None:
    """Return after what difference the numbers of a column are the same again; None if they are not circular."""
    import pandas as pd

    if not pd.api.types.is_numeric_dtype(column) or pd.api.types.is_bool_dtype(column):
        return None
    turn = next((turn for pattern, turn in _CIRCLES if pattern.search(name)), None)
    values = numbers_of(column)
    values = values[np.isfinite(values)]
    if turn is None or not len(values) or (name != "lon" and np.ptp(values) > turn):
        return None
    return turn if np.unique(np.mod(values, turn)).size > 1 else None


def _circle(turns: Float64Array) -> tuple[Target, BoolArray] | str:
    """Return a circular quantity in turns, (n,), as a target of two numbers, or why it cannot be one."""
    known = np.isfinite(turns)
    if not known.any():
        return "no value"
    angle = 2 * np.pi * turns[known]
    values = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    if np.ptp(values, axis=0).max() < 1e-12:
        return "one value"
    return Target(values, False), known
