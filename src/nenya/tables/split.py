"""Divide the rows of a table into those to train on and those to validate on, and measure what leaks between them.

Cutouts of one granule, or near each other in place and time, are nearly the same: if some are trained on and others
validated on, the validation is too good. So complete units go to one side, granules or blocks of time or of place, and
rows near the other side can be left out.

Letters in shapes: N rows of the table.
"""

import hashlib
import logging
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nenya.defs import EARTH_KM
from nenya.errors import InputFileError, OptionError
from nenya.options.declare import suggest
from nenya.tables.granules import granules
from nenya.tables.key_columns import Keys, read_keys
from nenya.tables.keys import repeated_rows
from nenya.tables.near import Distance, Places, coordinates, microseconds
from nenya.tables.place_and_time import usual_names

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

IntArray = NDArray[np.int64]
SplitArray = NDArray[np.int8]

SPLIT = "split"
"""Column of row lists."""

ROWS = "pp_rows"
"""Column of row lists: number of cutouts in the partition, as the list was made; missing where it was not known."""

TRAIN, VALID, NONE = 1, 0, -1
"""Uses of a row, numbered as in pp_type: to train on, to validate on, to leave out."""

WORDS = {TRAIN: "train", VALID: "valid", NONE: "none"}
"""The values of the column `split`."""

UNITS = ("granule", "time", "place")
"""What goes to one side as a whole, beside the values of a column."""

_DAY = 86_400_000_000  # microseconds


@dataclass(frozen=True)
class Units:
    """What goes to one side as a whole.

    Attributes:
        by: granule, time, place, or the name of a column.
        days: length of a block of time.
        km: side of a block of place.
        valid: values of the column to validate on; None: drawn.
    """

    by: str = "granule"
    days: float = 30.0
    km: float = 500.0
    valid: tuple[Any, ...] | None = None


@dataclass(frozen=True)
class Leakage:
    """How much of the validation is known from the training.

    Attributes:
        train: number of rows to train on.
        valid: number of rows to validate on.
        same_granule: share of the valid rows with a row to train on of the same granule; None if unknown.
        near: share of the valid rows with a row to train on that is near in place and time; None if unknown.
    """

    train: int
    valid: int
    same_granule: float | None
    near: float | None

    def to_dict(self) -> dict[str, float | None]:
        """Return it as plain values."""
        return asdict(self)


def split_rows(
    table: "pd.DataFrame", units: Units, *, valid_fraction: float = 0.25, seed: int = 0, buffer: Distance | None = None
) -> SplitArray:
    """Say which rows of a table to train on and which to validate on.

    Complete units are drawn for the validation, by a hash of the seed and of their rows' keys, until the number of rows
    is the nearest possible to the fraction. So the order of the rows does not matter. Then training
    rows near a validation row are left out, and so are rows of an unknown unit.

    Args:
        table: pp_file, pp_type and pp_idx, and the columns that the units and the buffer need.
        units: what goes to one side as a whole.
        valid_fraction: of the rows of known unit, between 0 and 1.
        seed: of the draw.
        buffer: rows to train on this near to a row to validate on are left out; None: none are.

    Returns:
        (N,) int8: 1 to train on, 0 to validate on, -1 to leave out.

    Raises:
        InputFileError: A column is missing, or a cutout has two rows.
        OptionError: There are fewer than two units, or the buffer leaves nothing to train on.
    """
    table = table.reset_index(drop=True)
    keys = read_keys(table)
    if repeated := repeated_rows(keys):
        raise InputFileError(f"{repeated} rows repeat the cutout of an earlier row: give each cutout one row")
    unit = units_of(table, units)
    places = Places(table, buffer) if buffer else None
    if places is not None:
        unit = np.where(places.known, unit, -1)
    known = np.flatnonzero(unit >= 0)
    if len(np.unique(unit[known])) < 2:
        raise OptionError(_one_unit(units, len(known)))
    chosen = _named(table, units) if units.valid is not None else _drawn(keys, unit, valid_fraction, seed)
    found = np.full(len(table), NONE, np.int8)
    found[known] = np.where(chosen[known], VALID, TRAIN)
    if not (found == VALID).any() or not (found == TRAIN).any():
        raise OptionError(f"valid={list(units.valid or ())}: expected values that leave rows on both sides")
    if places is not None:
        train = np.flatnonzero(found == TRAIN)
        found[train[places.near(train, np.flatnonzero(found == VALID))]] = NONE
        if not (found == TRAIN).any():
            raise OptionError(
                f"a buffer of {buffer} leaves no row to train on: make it smaller, or the units larger (block_km=, "
                "block_days=)"
            )
    return found


def units_of(table: "pd.DataFrame", units: Units) -> IntArray:
    """Return the unit of each row as a number, (N,) int64, -1 where it is unknown.

    Blocks of time hold complete granules: the earliest time of a granule counts.

    Raises:
        InputFileError: A column is missing.
    """
    import pandas as pd

    if units.by == "granule":
        return _granules(table)
    if units.by == "time":
        return _blocks_of_time(usual_names(table), units.days)
    if units.by == "place":
        return _blocks_of_place(usual_names(table), units.km)
    if units.by not in table:
        columns = list(map(str, table.columns))
        meant = suggest(units.by, [*UNITS, *columns])
        raise InputFileError(
            f"by={units.by}{meant}: expected {', '.join(UNITS)} or a column of the table: {', '.join(columns)}"
        )
    return pd.factorize(table[units.by])[0].astype(np.int64)


def leakage(table: "pd.DataFrame", split: SplitArray, near: Distance) -> Leakage:
    """Measure how much of the validation is known from the training.

    Args:
        table: of the rows; what it has no columns for is None in the result.
        split: (N,) 1 to train on, 0 to validate on, -1 neither.
        near: distance up to which a row counts as near.
    """
    table = table.reset_index(drop=True)
    train, valid = (np.flatnonzero(split == kind) for kind in (TRAIN, VALID))
    own = granules(table)
    same = None if own is None or (own < 0).all() else _share(np.isin(own[valid], own[train]) & (own[valid] >= 0))
    columns = usual_names(table)
    have = [name for name in ("lat", "lon") if near.km is not None] + ["datetime"] * (near.days is not None)
    by_place = all(name in columns for name in have) and bool(near)
    close = _share(Places(table, near).near(valid, train)) if by_place else None
    return Leakage(len(train), len(valid), same, close)


def splits_of(table: "pd.DataFrame") -> SplitArray:
    """Return the column `split` of a row list as numbers: (N,) int8, 1 train, 0 valid, -1 none or missing.

    Raises:
        InputFileError: There is no such column, or another value in it.
    """
    import pandas as pd

    if SPLIT not in table:
        raise InputFileError(
            f"expected the column split (train, valid or none), got {', '.join(map(str, table.columns))}: nenya split "
            "and nenya prune write such lists"
        )
    codes, values = pd.factorize(table[SPLIT])
    numbers = {word: number for number, word in WORDS.items()}
    words = [str(value).strip().lower() for value in values[:64]]
    wrong = [word for word in words if word not in numbers] or list(map(str, values[64:]))
    if wrong:
        raise InputFileError(f"expected train, valid or none in the column split, got {wrong[0][:40]}")
    return np.array([*(numbers[word] for word in words), NONE], np.int8)[codes]


def sides_of(table: "pd.DataFrame", kinds: NDArray[np.int64]) -> SplitArray:
    """Return what rows are used for, by the column `split`, else by pp_type: (N,) int8, 1 train, 0 valid, -1 neither.

    Args:
        table: of N rows.
        kinds: (N,) their pp_type.
    """
    if SPLIT in table:
        try:
            return splits_of(table)
        except InputFileError:
            log.warning("the column split has other values than train, valid and none: the partitions count")
    return np.where(kinds >= 0, kinds, NONE).astype(np.int8)


def stored_split(keys: Keys) -> SplitArray:
    """Return what the rows are used for without a list, by their partition: (N,) int8, 1 train, 0 valid, -1 neither."""
    return np.where(keys.kind >= 0, keys.kind, NONE).astype(np.int8)


def row_hashes(keys: Keys, seed: int) -> NDArray[np.uint64]:
    """Return a random number for each row, (N,) uint64, that depends on the seed and its key, not on the other rows."""
    names = [hashlib.sha256(f"{seed} {name}".encode()).digest()[:8] for name in keys.names or [""]]
    mixed = np.array([*(int.from_bytes(name, "little") for name in names), 0], np.uint64)[keys.file]
    for part in (keys.kind.astype(np.int64), keys.row):
        mixed = _mix(mixed ^ _mix(part.astype(np.uint64)))
    return mixed


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Mix the bits of numbers (splitmix64; Steele and others 2014, OOPSLA '14, 453)."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _drawn(keys: Keys, unit: IntArray, fraction: float, seed: int) -> NDArray[np.bool_]:
    """Return which rows to validate on, (N,): units in the order of a hash, up to the nearest number of rows."""
    hashes = row_hashes(keys, seed)
    known = np.flatnonzero(unit >= 0)
    names, codes, sizes = np.unique(unit[known], return_inverse=True, return_counts=True)
    first = np.full(len(names), np.iinfo(np.uint64).max, np.uint64)
    np.minimum.at(first, codes, hashes[known])
    order = np.argsort(_mix(first), kind="stable")  # mixed again, as the least of many hashes is small
    total = np.cumsum(sizes[order])
    count = int(np.argmin(np.abs(total[:-1] - fraction * total[-1]))) + 1
    chosen = np.zeros(len(names), bool)
    chosen[order[:count]] = True
    found = np.zeros(len(unit), bool)
    found[known] = chosen[codes]
    return found


def _named(table: "pd.DataFrame", units: Units) -> NDArray[np.bool_]:
    """Return which rows have one of the values to validate on, (N,)."""
    if units.by in UNITS and units.by not in table:
        raise OptionError(f"valid= names values of a column, and by={units.by} is none: give by=<column>")
    column = table[units.by]
    texts, wanted = column.astype(str), [str(value) for value in units.valid or ()]
    if strange := [value for value in wanted if value not in set(texts)]:
        some = ", ".join(sorted(set(texts[column.notna()]))[:10])
        raise OptionError(f"valid={strange[0]}: expected values of the column {units.by}, such as {some}")
    return texts.isin(wanted).to_numpy()


def _granules(table: "pd.DataFrame") -> IntArray:
    found = granules(table)
    if found is None:
        raise InputFileError(
            "by=granule: expected a column granule, filename or datetime, got "
            f"{', '.join(map(str, table.columns))}: divide by=place or by a column"
        )
    return found


def _blocks_of_time(table: "pd.DataFrame", days: float) -> IntArray:
    times, known = microseconds(table)
    if (own := granules(table)) is not None:
        inside = known & (own >= 0)
        earliest = np.full(int(own.max(initial=-1)) + 1, np.iinfo(np.int64).max)
        np.minimum.at(earliest, own[inside], times[inside])
        times = np.where(inside, earliest[own], times)
    block = np.floor(times / (days * _DAY)).astype(np.int64)
    return np.where(known, np.unique(block, return_inverse=True)[1], -1)


def _blocks_of_place(table: "pd.DataFrame", km: float) -> IntArray:
    """Return blocks of nearly equal area: bands of latitude, each divided into an integer number of blocks."""
    lat, lon = coordinates(table)
    known = np.isfinite(lat) & np.isfinite(lon)
    lat, lon = np.where(known, lat, 0), np.where(known, lon, 0)
    bands = max(1, round(np.pi * EARTH_KM / km))
    band = np.minimum(((lat + 90) / 180 * bands).astype(np.int64), bands - 1)
    middle = np.radians((band + 0.5) / bands * 180 - 90)
    across = np.maximum(1, np.rint(2 * np.pi * EARTH_KM * np.cos(middle) / km)).astype(np.int64)
    column = np.minimum((lon % 360 / 360 * across).astype(np.int64), across - 1)
    return np.where(known, np.unique(band * 2**32 + column, return_inverse=True)[1], -1)


def _share(which: NDArray[np.bool_]) -> float | None:
    return float(which.mean()) if len(which) else None


def _one_unit(units: Units, rows: int) -> str:
    if not rows:
        return f"by={units.by}: expected rows whose {units.by} is known, got none"
    what = {"granule": "granules", "time": f"blocks of {units.days:g} days", "place": f"blocks of {units.km:g} km"}
    advice = {
        "granule": "by=place divides one granule",
        "time": "give smaller ones with block_days=",
        "place": "give smaller ones with block_km=",
    }
    name = what.get(units.by, f"values of {units.by}")
    return (
        f"by={units.by}: expected at least two {name}, got one for all {rows} rows: "
        f"{advice.get(units.by, 'divide by=place or by another column')}"
    )
