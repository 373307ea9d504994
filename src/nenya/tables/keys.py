"""The join of a table with cutout files, latents files and other tables: `pp_file`, `pp_type` and `pp_idx`.

Letters in shapes: N rows of the table.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nenya.errors import InputFileError
from nenya.tables.names import NamedFile, base_name, folder_of, key_of, match_names, one_folder, split_name

if TYPE_CHECKING:
    import pandas as pd

IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

KEYS = ("pp_file", "pp_type", "pp_idx")
"""Columns that say which cutout a row is: its file, 0 (valid) or 1 (train), and the row in that partition."""

OLDER = {name: f"ulmo_{name}" for name in KEYS}
"""Their names in older tables."""

COLUMNS = (*KEYS, *OLDER.values())
TYPES = {"train": 1, "valid": 0}
PARTITIONS = {number: name for name, number in TYPES.items()}

_REASONS = ("of other files", "of a partition that is not there", "with pp_idx missing", "with pp_idx out of range")
_MOST_KINDS = 64  # different spellings of pp_type
_NONE = np.iinfo(np.int64).min  # a pp_idx that is missing
_UNKNOWN = -2  # a pp_type that is missing
_BLOCK = 2**20  # rows at once, so that memory beyond the result does not grow with N
_ROW_BITS = 40  # of a row's number in a key that holds file, type and row


@dataclass(frozen=True)
class Part:
    """A partition of a file that rows of a table are looked for in.

    Attributes:
        path: the file.
        names: names of its cutout file that count; several where they are not certain.
        types: values of pp_type that it has.
        start: number of its first row among all.
        rows: how many it has.
    """

    path: str
    names: tuple[str, ...]
    types: tuple[int, ...]
    start: int
    rows: int


@dataclass(frozen=True)
class Keys:
    """The key columns of a table.

    Attributes:
        names: different values of pp_file; None where the table has no such column and is of the only file.
        file: (N,) int32, their numbers, -1 where missing.
        kind: (N,) int8, pp_type: 1 train, 0 valid, -1 not in the file, -2 missing.
        row: (N,) int64, pp_idx; the smallest number where missing.
    """

    names: list[str] | None
    file: NDArray[np.int32]
    kind: NDArray[np.int8]
    row: IntArray

    def __len__(self) -> int:
        return len(self.row)

    def named(self, name: str) -> BoolArray:
        """Say which rows are of a file of this name, in any folder: (N,)."""
        wanted = np.array([*(key_of(text) == key_of(name) for text in self.names or []), False])
        found: BoolArray = wanted[self.file]
        return found

    def texts(self, rows: IntArray) -> Any:
        """Return pp_file of some rows as the table has it, as an array of pandas, missing where a row is -1."""
        import pandas as pd

        codes = np.where(rows < 0, -1, self.file[rows])
        return pd.Series(pd.Categorical.from_codes(codes, self.names or [])).astype("str").array


@dataclass(frozen=True)
class Joined:
    """What a join found.

    Attributes:
        number: (N,) int64, the number of each row's cutout or latent, -1 where there is none.
        what: `latent` or `cutout`.
        lost: reason -> rows that have none for it.
        repeated: rows whose cutout an earlier row has as well.
    """

    number: IntArray
    what: str
    lost: dict[str, int]
    repeated: int

    @property
    def note(self) -> str:
        """One line on what was placed, and on what was not and why; empty where nothing was lost or repeated."""
        missing, total = sum(self.lost.values()), len(self.number)
        if not missing and not self.repeated:
            return ""
        why = ", ".join(f"{count} {reason}" for reason, count in self.lost.items() if count)
        lost = f" ({missing} without a {self.what}: {why})" if missing else ""
        again = f"; {self.repeated} rows repeat the {self.what} of an earlier row" if self.repeated else ""
        return f"placed {total - missing} of {total} rows{lost}{again}"

    def first_rows(self, total: int) -> IntArray:
        """Return for each of `total` cutouts the first row of the table that has it, -1 where none has: (total,)."""
        source = np.full(total, -1, np.int64)
        has = np.flatnonzero(self.number >= 0)[::-1]  # the last assignment counts: the first row's
        source[self.number[has]] = has
        return source


def cutout_parts(
    files: Iterable[tuple[str, Mapping[str, int]]], train_key: str = "train", valid_key: str = "valid"
) -> list[Part]:
    """Return the partitions of cutout files, which are known by their own names.

    Args:
        files: path, and partition -> rows, of each.
        train_key: name of the partition that training uses.
        valid_key: name of that of validation.
    """
    found, start = [], 0
    for path, partitions in files:
        for name, rows in partitions.items():
            found.append(Part(path, (base_name(path),), part_types(name, train_key, valid_key), start, rows))
            start += rows
    return found


def part_types(name: str, train_key: str = "train", valid_key: str = "valid") -> tuple[int, ...]:
    """Return the values of pp_type that a partition has: by its name, else by the role that the options give it."""
    if name in TYPES:
        return (TYPES[name],)
    return tuple(number for number, key in ((1, train_key), (0, valid_key)) if key == name)


def has_keys(table: "pd.DataFrame") -> bool:
    """Say whether a table has pp_type and pp_idx under one of their names; pp_file may be left out."""
    return all(name in table or OLDER[name] in table for name in KEYS[1:])


def read_keys(table: "pd.DataFrame") -> Keys:
    """Read the key columns of a table, under their present or older names.

    Args:
        table: with pp_type (0 or `valid`, 1 or `train`, -1 for rows that are in no file), pp_idx (whole numbers) and,
            unless it is of a single file, pp_file (a name with or without folder and suffix).

    Raises:
        InputFileError: A column is missing or holds other values, or its present and its older name disagree.
    """
    if not has_keys(table):
        raise InputFileError(
            f"expected the columns {', '.join(KEYS)}, which join a table with its cutouts, got "
            f"{', '.join(map(str, table.columns))}"
        )
    if not len(table):
        raise InputFileError("the table has no rows: there is nothing to join with cutouts")
    kind = _either(table, "pp_type", _kinds, lambda values: values == _UNKNOWN)
    row = _either(table, "pp_idx", _rows, lambda values: values == _NONE)
    names, file = _files(table)
    return Keys(names, file, kind, row)


def join(keys: Keys, parts: Sequence[Part], what: str = "latent") -> Joined:
    """Find the cutout of each row of a table among the partitions of some files.

    Args:
        keys: of the table.
        parts: the partitions.
        what: is in the files, for messages: `latent` or `cutout`.

    Raises:
        InputFileError: Not one row is found; or names fit several files and the folder does not decide.
    """
    by_path: dict[str, list[int]] = {}
    for number, part in enumerate(parts):
        by_path.setdefault(part.path, []).append(number)
    files = [_named(path, parts[own[0]].names) for path, own in by_path.items()]
    if keys.names is None and len(files) != 1:
        raise InputFileError(f"the table has no column pp_file, and the {what}s are of {len(files)} files")
    match = np.array([*([0] if keys.names is None else match_names(keys.names, files)), -1])
    slot = np.full((len(files) + 1, 3), -1, np.int32)  # the last row and column: no file, no partition
    for place, (path, own) in enumerate(by_path.items()):
        for number in own:
            for kind in parts[number].types:
                if slot[place, kind] >= 0:
                    raise InputFileError(f"{path}: two of its partitions have pp_type {kind}: name one of them only")
                slot[place, kind] = number
    found, lost = _locate(keys, slot[match], match, parts)
    joined = Joined(found, what, lost, _repeated(found, sum(part.rows for part in parts)))
    if sum(lost.values()) == len(keys):
        raise InputFileError(_nothing(keys, files, joined))
    return joined


def _named(path: str, names: tuple[str, ...]) -> NamedFile:
    folders = dict.fromkeys(folder for folder in (folder_of(path), *map(folder_of, names)) if folder)
    return NamedFile(path, tuple(dict.fromkeys(map(key_of, names))), tuple(folders))


def _locate(
    keys: Keys, slot: NDArray[np.int32], of_file: IntArray, parts: Sequence[Part]
) -> tuple[IntArray, dict[str, int]]:
    starts, rows = (np.array([*values, 0]) for values in ([p.start for p in parts], [p.rows for p in parts]))
    found = np.full(len(keys), -1, np.int64)
    lost = dict.fromkeys(_REASONS, 0)
    for start in range(0, len(keys), _BLOCK):
        block = slice(start, start + _BLOCK)
        file, row = keys.file[block], keys.row[block]
        part = slot[file, np.maximum(keys.kind[block], -1)]
        known = part >= 0
        inside = known & (row >= 0) & (row < rows[part])
        found[block] = np.where(inside, starts[part] + row, -1)
        foreign, missing = of_file[file] < 0, known & (row == _NONE)
        counts = foreign, ~known & ~foreign, missing, known & ~inside & ~missing
        for reason, which in zip(lost, counts, strict=True):
            lost[reason] += int(np.count_nonzero(which))
    return found, lost


def _repeated(found: IntArray, total: int) -> int:
    """Return how many rows have the number of an earlier one."""
    seen = np.zeros(total + 1, bool)
    seen[found] = True  # -1 is the last one
    return int(np.count_nonzero(found >= 0)) - int(np.count_nonzero(seen[:total]))


def _nothing(keys: Keys, files: Sequence[NamedFile], joined: Joined) -> str:
    what = joined.what
    theirs = _some(sorted({file.names[0] for file in files}))
    own = f"its pp_file are {_some(sorted({key_of(name) for name in keys.names}))}, " if keys.names is not None else ""
    why = "; ".join(f"{count} rows {reason}" for reason, count in joined.lost.items() if count)
    return f"no row of the table has a {what}: {own}the {what}s are of {theirs} ({why}): give the {what}s of its cutout files"


def rows_of(table: Keys, found: Keys) -> tuple[BoolArray, BoolArray]:
    """Say which rows of a table are in another one, and which of the other are in it: (N,) and (len(found),) bool.

    Raises:
        InputFileError: Names fit several files and the folder does not decide.
    """
    files, of_name = _groups(table)
    match = [0] if found.names is None else match_names(found.names, files)
    if (found.names is None) != (table.names is None):
        _, groups = _groups(found if table.names is None else table)
        if len(set(groups)) > 1:
            raise InputFileError("one of the two tables has no column pp_file, and the other is of several files")
        match = [0] * len(match)
    if any((len(keys) and keys.row.max() >= 2**_ROW_BITS) or len(files) >= 2**20 for keys in (table, found)):
        raise InputFileError(f"expected pp_idx below {2**_ROW_BITS} and at most {2**20} files")
    own, other = _packed(table, of_name), _packed(found, match)
    return np.isin(own, other[other >= 0]), np.isin(other, own[own >= 0])


def _groups(keys: Keys) -> tuple[list[NamedFile], list[int]]:
    """Return the different files that a table names, and for each of its names the number of its file."""
    by_key: dict[str, list[int]] = {}
    split = [split_name(name) for name in keys.names or [""]]
    for place, (_, key) in enumerate(split):
        by_key.setdefault(key, []).append(place)
    files: list[NamedFile] = []
    of_name = [-1] * len(split)
    for key, places in by_key.items():
        folders = dict.fromkeys(split[place][0] for place in places)
        for group in [list(folders)] if one_folder(folders) else [[folder] for folder in folders]:
            for place in places:
                if split[place][0] in group:
                    of_name[place] = len(files)
            label = "/".join((*max(group, key=len), key))
            files.append(NamedFile(label, (key,), tuple(group)))
    return files, of_name


def _packed(keys: Keys, of_name: Sequence[int]) -> IntArray:
    """Return file, type and row of each row in one number, -1 where one is missing."""
    file = np.array([*of_name, -1])[keys.file]
    known = (file >= 0) & (keys.kind >= 0) & (keys.row >= 0)
    packed = ((2 * file + keys.kind) << _ROW_BITS) + keys.row
    return np.where(known, packed, -1)


def _either(
    table: "pd.DataFrame", name: str, read: Callable[[Any, str], Any], missing: Callable[[Any], BoolArray]
) -> Any:
    """Return a key column under its present or older name; where both are there they must agree."""
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
        f"the columns {name} and {OLDER[name]} disagree in {count} rows, first in row {row}: drop the one that is wrong"
    )


def _files(table: "pd.DataFrame") -> tuple[list[str] | None, NDArray[np.int32]]:
    """Return the different values of pp_file, and their number in each row, -1 where it is missing."""
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
    """Return pp_type as numbers, (N,): 1, 0, -1; -2 where it is missing."""
    import pandas as pd

    codes, values = pd.factorize(column)
    kinds = [_kind(value) for value in values[:_MOST_KINDS]]
    wrong = [value for value, kind in zip(values, kinds, strict=False) if kind < _UNKNOWN] or list(values[_MOST_KINDS:])
    if wrong:
        raise InputFileError(
            f"expected {name} of 1 (train), 0 (valid) or -1 (in no file), as numbers or words, got {_text(wrong[0])}"
        )
    known = np.array([*kinds, _UNKNOWN], np.int8)
    found: NDArray[np.int8] = known[codes]
    return found


def _kind(value: Hashable) -> int:
    """Return the number that a value of pp_type means, -3 where it means none."""
    text = _text(value).strip().lower()
    if text in TYPES or not text:
        return TYPES.get(text, _UNKNOWN)
    try:
        number = float(value if isinstance(value, bool | np.bool_) else text)
    except ValueError:
        return -3
    return int(number) if number in (-1, 0, 1) else -3


def _rows(column: "pd.Series[Any]", name: str) -> IntArray:
    """Return pp_idx as whole numbers, (N,), the smallest int64 where it is missing."""
    import pandas as pd

    if column.dtype.kind == "O" or isinstance(column.dtype, pd.StringDtype | pd.CategoricalDtype):
        codes, values = pd.factorize(column)
        numbers = pd.to_numeric(pd.Series([_text(value) for value in values], dtype=object), errors="coerce")
        if numbers.isna().any():
            wrong = _text(values[int(np.flatnonzero(numbers.isna())[0])])
            raise InputFileError(f"expected {name} of whole numbers, got {wrong}")
        found = np.append(_rows(numbers, name), _NONE)[codes]
        return np.asarray(found, np.int64)
    if column.dtype.kind not in "iuf":
        raise InputFileError(f"expected {name} of whole numbers, got {column.dtype}")
    missing = column.isna().to_numpy()
    values = column.to_numpy() if not missing.any() or column.dtype.kind == "f" and not _nullable(column) else None
    if values is None:
        values = column.fillna(0).to_numpy()
    if values.dtype.kind == "f":
        fractional = ~missing & ((values != np.trunc(values)) | (np.abs(values) >= 2**53))
        if fractional.any():
            row = int(np.flatnonzero(fractional)[0])
            raise InputFileError(f"expected {name} of whole numbers, got {values[row]} in row {row}")
        values = np.where(missing, 0, values)
    elif values.dtype == np.uint64:
        values = np.minimum(values, np.uint64(2**62))
    whole = values.astype(np.int64, copy=False)
    return np.where(missing, _NONE, whole) if missing.any() else whole


def _nullable(column: "pd.Series[Any]") -> bool:
    return not isinstance(column.dtype, np.dtype)


def _some(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
