"""The columns of a table that identify the cutout of each row, under their present or older names, checked.

Letters in shapes: N rows of the table.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nenya.errors import InputFileError
from nenya.storage.paths import key_of, split_name
from nenya.tables.names import one_folder

if TYPE_CHECKING:
    import pandas as pd

IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

KEYS = ("pp_file", "pp_type", "pp_idx")
"""Columns that identify a cutout: its file, 0 (valid) or 1 (train), and the row in that partition."""

OLDER = {name: f"ulmo_{name}" for name in KEYS}
"""Their names in older tables."""

COLUMNS = (*KEYS, *OLDER.values())
TYPES = {"train": 1, "valid": 0}

_MOST_KINDS = 64  # different spellings of pp_type
NO_ROW = np.iinfo(np.int64).min  # a pp_idx that is missing
_UNKNOWN = -2  # a pp_type that is missing


@dataclass(frozen=True)
class Keys:
    """The key columns of a table.

    Attributes:
        names: different values of pp_file; None if the table has no such column and belongs to the only file.
        file: (N,) int32, index into `names`, -1 if missing.
        kind: (N,) int8, pp_type: 1 train, 0 valid, -1 not in the file, -2 missing.
        row: (N,) int64, pp_idx; the smallest int64 if missing.
    """

    names: list[str] | None
    file: NDArray[np.int32]
    kind: NDArray[np.int8]
    row: IntArray

    def __len__(self) -> int:
        return len(self.row)

    def named(self, name: str) -> BoolArray:
        """Return which rows belong to a file of this name, in any folder: (N,)."""
        wanted = np.array([*(key_of(text) == key_of(name) for text in self.names or []), False])
        found: BoolArray = wanted[self.file]
        return found

    def texts(self, rows: IntArray) -> Any:
        """Return pp_file of some rows as in the table, as a pandas array, missing where a row is -1."""
        import pandas as pd

        codes = np.where(rows < 0, -1, self.file[rows])
        return pd.Series(list(self.names or []), dtype="str").array.take(codes, allow_fill=True)


def has_keys(table: "pd.DataFrame") -> bool:
    """Return whether a table has pp_type and pp_idx under one of their names; pp_file is optional."""
    return all(name in table or OLDER[name] in table for name in KEYS[1:])


def read_keys(table: "pd.DataFrame") -> Keys:
    """Read the key columns of a table, under their present or older names.

    Args:
        table: with pp_type (0 or `valid`, 1 or `train`, -1 for rows in no file), pp_idx (integers) and, unless it
            belongs to a single file, pp_file (a name with or without folder and suffix).

    Raises:
        InputFileError: A column is missing or has invalid values, or its present and its older name disagree.
    """
    if not has_keys(table):
        raise InputFileError(
            f"expected the columns {', '.join(KEYS)}, which join a table with its cutouts, got "
            f"{', '.join(map(str, table.columns))}"
        )
    if not len(table):
        raise InputFileError("expected a table with rows to join with cutouts, got an empty one")
    kind = _either(table, "pp_type", _kinds, lambda values: values == _UNKNOWN)
    row = _either(table, "pp_idx", _rows, lambda values: values == NO_ROW)
    names, file = _files(table)
    return Keys(names, file, kind, row)


def _either(
    table: "pd.DataFrame", name: str, read: Callable[[Any, str], Any], missing: Callable[[Any], BoolArray]
) -> Any:
    """Return a key column under its present or older name; if both exist they must agree."""
    names = [own for own in (name, OLDER[name]) if own in table]
    first, *rest = (read(table[own], own) for own in names)
    for other in rest:
        differ = (first != other) & ~missing(first) & ~missing(other)
        if count := int(np.count_nonzero(differ)):
            raise _disagreement(name, count, int(np.flatnonzero(differ)[0]))
        first = np.where(missing(first), other, first)
    return first


def _disagreement(name: str, count: int, row: int) -> InputFileError:
    return InputFileError(
        f"the columns {name} and {OLDER[name]} disagree in {count} rows, first in row {row}: drop the wrong one"
    )


def _files(table: "pd.DataFrame") -> tuple[list[str] | None, NDArray[np.int32]]:
    """Return the different values of pp_file, and their index in each row, -1 if missing."""
    columns = [own for own in ("pp_file", OLDER["pp_file"]) if own in table]
    if not columns:
        return None, np.zeros(len(table), np.int32)
    (codes, names), *rest = (_factorized(table[own]) for own in columns)
    for other_codes, other_names in rest:
        both = np.flatnonzero((codes >= 0) & (other_codes >= 0))
        pairs = np.unique(codes[both].astype(np.int64) * max(1, len(other_names)) + other_codes[both])
        for one, other in ((pair // len(other_names), pair % len(other_names)) for pair in pairs.tolist()):
            (folder, key), (other_folder, other_key) = split_name(names[one]), split_name(other_names[other])
            if key != other_key or not one_folder((folder, other_folder)):
                differ = (codes == one) & (other_codes == other)
                raise _disagreement("pp_file", int(differ.sum()), int(np.flatnonzero(differ)[0]))
        gaps = (codes < 0) & (other_codes >= 0)
        if gaps.any():
            codes = np.where(gaps, len(names) + other_codes, codes).astype(np.int32)
            names = [*names, *other_names]
    used = np.unique(codes[codes >= 0])
    place = np.full(len(names) + 1, -1, np.int32)
    place[used] = np.arange(len(used))
    return [names[number] for number in used.tolist()], place[codes]


def _factorized(column: "pd.Series[Any]") -> tuple[NDArray[np.int32], list[str]]:
    import pandas as pd

    codes, values = pd.factorize(column)
    return codes.astype(np.int32), [_text(value) for value in values]


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _kinds(column: "pd.Series[Any]", name: str) -> NDArray[np.int8]:
    """Return pp_type as numbers, (N,): 1, 0, -1; -2 if missing."""
    import pandas as pd

    codes, values = pd.factorize(column)
    kinds = [_kind(value) for value in values[:_MOST_KINDS]]
    wrong = [value for value, kind in zip(values, kinds, strict=False) if kind < _UNKNOWN] or list(values[_MOST_KINDS:])
    if wrong:
        raise InputFileError(
            f"expected 1 (train), 0 (valid) or -1 (in no file) in {name}, as numbers or words, got {_text(wrong[0])}"
        )
    known = np.array([*kinds, _UNKNOWN], np.int8)
    found: NDArray[np.int8] = known[codes]
    return found


def _kind(value: Hashable) -> int:
    """Return the number that a value of pp_type means, -3 if it is invalid."""
    text = _text(value).strip().lower()
    if text in TYPES or not text:
        return TYPES.get(text, _UNKNOWN)
    try:
        number = float(value if isinstance(value, bool | np.bool_) else text)
    except ValueError:
        return -3
    return int(number) if number in (-1, 0, 1) else -3


def _rows(column: "pd.Series[Any]", name: str) -> IntArray:
    """Return pp_idx as integers, (N,), the smallest int64 if missing."""
    import pandas as pd

    if column.dtype.kind == "O" or isinstance(column.dtype, pd.StringDtype | pd.CategoricalDtype):
        codes, distinct = pd.factorize(column)
        numbers = pd.to_numeric(pd.Series([_text(value) for value in distinct], dtype=object), errors="coerce")
        if numbers.isna().any():
            wrong = _text(distinct[int(np.flatnonzero(numbers.isna())[0])])
            raise InputFileError(f"expected integers in {name}, got {wrong}")
        found = np.append(_rows(numbers, name), NO_ROW)[codes]
        return np.asarray(found, np.int64)
    if column.dtype.kind not in "iuf":
        raise InputFileError(f"expected integers in {name}, got {column.dtype}")
    missing = column.isna().to_numpy()
    floats = column.dtype.kind == "f" and not _nullable(column)
    values: NDArray[Any] = (column.fillna(0) if missing.any() and not floats else column).to_numpy()
    if values.dtype.kind == "f":
        fractional = ~missing & ((values != np.trunc(values)) | (np.abs(values) >= 2**53))
        if fractional.any():
            row = int(np.flatnonzero(fractional)[0])
            raise InputFileError(f"expected integers in {name}, got {values[row]} in row {row}")
        values = np.where(missing, 0, values)
    elif values.dtype == np.uint64:
        values = np.minimum(values, np.uint64(2**62))
    rows: IntArray = values.astype(np.int64, copy=False)
    return np.where(missing, NO_ROW, rows) if missing.any() else rows


def _nullable(column: "pd.Series[Any]") -> bool:
    return not isinstance(column.dtype, np.dtype)
