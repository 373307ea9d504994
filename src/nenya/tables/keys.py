"""The join of a table with cutout files, latents files and other tables: `pp_file`, `pp_type` and `pp_idx`.

Letters in shapes: N rows of the table.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nenya.errors import InputFileError
from nenya.storage.paths import base_name, key_of, split_name
from nenya.storage.texts import counted
from nenya.tables.key_columns import NO_ROW, TYPES, BoolArray, IntArray, Keys
from nenya.tables.names import NamedFile, folder_of, match_names, one_folder

_REASONS = ("of other files", "of a missing partition", "with pp_idx missing", "with pp_idx out of range")
_BLOCK = 2**20  # rows at once, so that memory beyond the result does not grow with N
_ROW_BITS = 40  # of a row's number in a key that holds file, type and row


@dataclass(frozen=True)
class Part:
    """A partition of a file to which rows of a table may belong.

    Attributes:
        path: the file.
        names: possible names of its cutout file.
        types: values of pp_type that it has.
        start: index of its first row among all parts.
        rows: number of rows.
    """

    path: str
    names: tuple[str, ...]
    types: tuple[int, ...]
    start: int
    rows: int


@dataclass(frozen=True)
class Joined:
    """Result of a join.

    Attributes:
        number: (N,) int64, the index of each row's cutout or latent, -1 if there is none.
        what: `latent` or `cutout`.
        lost: reason -> number of rows without one for this reason.
        repeated: number of rows of a cutout that an earlier row has too.
    """

    number: IntArray
    what: str
    lost: dict[str, int]
    repeated: int

    @property
    def note(self) -> str:
        """One line with the number of placed rows, and of others and why; empty if none was lost or repeated."""
        missing, total = sum(self.lost.values()), len(self.number)
        if not missing and not self.repeated:
            return ""
        why = ", ".join(f"{count} {reason}" for reason, count in self.lost.items() if count)
        lost = f" ({missing} without a {self.what}: {why})" if missing else ""
        repeated = counted(self.repeated, "row repeats", "rows repeat")
        again = f"; {repeated} the {self.what} of an earlier row" if self.repeated else ""
        return f"placed {total - missing} of {total} rows{lost}{again}"

    def first_rows(self, total: int) -> IntArray:
        """Return for each of `total` cutouts the first row of the table that has it, -1 if none has: (total,)."""
        source = np.full(total, -1, np.int64)
        has = np.flatnonzero(self.number >= 0)[::-1]  # the last assignment, that of the first row, counts
        source[self.number[has]] = has
        return source


def cutout_parts(
    files: Iterable[tuple[str, Mapping[str, int]]], train_key: str = "train", valid_key: str = "valid"
) -> list[Part]:
    """Return the partitions of cutout files, identified by the names of the files.

    Args:
        files: path, and partition -> rows, of each.
        train_key: name of the partition that training uses.
        valid_key: name of the partition that validation uses.
    """
    found, start = [], 0
    for path, partitions in files:
        for name, rows in partitions.items():
            found.append(Part(path, (base_name(path),), part_types(name, train_key, valid_key), start, rows))
            start += rows
    return found


def part_types(name: str, train_key: str = "train", valid_key: str = "valid") -> tuple[int, ...]:
    """Return the values of pp_type of a partition: from its name, else from its role in the options."""
    if name in TYPES:
        return (TYPES[name],)
    return tuple(number for number, key in ((1, train_key), (0, valid_key)) if key == name)


def join(keys: Keys, parts: Sequence[Part], what: str = "latent") -> Joined:
    """Find the cutout of each row of a table among the partitions of some files.

    Args:
        keys: of the table.
        parts: the partitions.
        what: content of the files, for messages: `latent` or `cutout`.

    Raises:
        InputFileError: No row is found, or a name matches several files and the folder does not decide.
    """
    by_path: dict[str, list[int]] = {}
    for number, part in enumerate(parts):
        by_path.setdefault(part.path, []).append(number)
    files = [_named(path, parts[own[0]].names) for path, own in by_path.items()]
    if keys.names is None and len(files) != 1:
        raise InputFileError(f"expected a column pp_file in the table, as the {what}s are from {len(files)} files")
    match = np.array([*([0] if keys.names is None else match_names(keys.names, files)), -1])
    slot = np.full((len(files) + 1, 3), -1, np.int32)  # the last row and column: no file, no partition
    for place, (path, own) in enumerate(by_path.items()):
        for number in own:
            for kind in parts[number].types:
                if slot[place, kind] >= 0:
                    raise InputFileError(f"{path}: two of its partitions have pp_type {kind}: name only one of them")
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
        foreign, missing = of_file[file] < 0, known & (row == NO_ROW)
        counts = foreign, ~known & ~foreign, missing, known & ~inside & ~missing
        for reason, which in zip(lost, counts, strict=True):
            lost[reason] += int(np.count_nonzero(which))
    return found, lost


def _repeated(found: IntArray, total: int) -> int:
    """Return how many rows have the index of an earlier one."""
    seen = np.zeros(total + 1, bool)
    seen[found] = True  # -1 is the last one
    return int(np.count_nonzero(found >= 0)) - int(np.count_nonzero(seen[:total]))


def _nothing(keys: Keys, files: Sequence[NamedFile], joined: Joined) -> str:
    what = joined.what
    theirs = _some(sorted({file.names[0] for file in files}))
    own = (
        f"its pp_file values are {_some(sorted({key_of(name) for name in keys.names}))}, "
        if keys.names is not None
        else ""
    )
    why = "; ".join(f"{counted(count, 'row')} {reason}" for reason, count in joined.lost.items() if count)
    return f"no row of the table has a {what}: {own}the {what}s are from {theirs} ({why}): give the files of the table"


class Packed:
    """The rows of a table as numbers of their cutouts, to find those of other tables among them.

    Args:
        table: its keys.

    Attributes:
        number: (N,) int64, equal for rows of one cutout; -1 if a key is missing.
    """

    def __init__(self, table: Keys) -> None:
        self._table = table
        self._files, of_name = _groups(table)
        self.number = _packed(table, of_name)

    def of(self, found: Keys) -> IntArray:
        """Return the numbers of the rows of another table, (len(found),) int64, -1 for files that this one lacks.

        Raises:
            InputFileError: A name matches several files and the folder does not decide.
        """
        table = self._table
        match = [0] if found.names is None else match_names(found.names, self._files)
        if (found.names is None) != (table.names is None):
            _, groups = _groups(found if table.names is None else table)
            if len(set(groups)) > 1:
                raise InputFileError("expected a column pp_file in both tables, as one of them covers several files")
            match = [0] * len(match)
        if any((len(keys) and keys.row.max() >= 2**_ROW_BITS) for keys in (table, found)) or len(self._files) >= 2**20:
            raise InputFileError(f"expected pp_idx below {2**_ROW_BITS} and at most {2**20} files")
        return _packed(found, match)


def rows_of(table: Keys, found: Keys) -> tuple[BoolArray, BoolArray]:
    """Return which rows of a table are in another one, and which of the other are in it: (N,) and (len(found),) bool.

    Raises:
        InputFileError: A name matches several files and the folder does not decide.
    """
    packed = Packed(table)
    own, other = packed.number, packed.of(found)
    return np.isin(own, other[other >= 0]), np.isin(other, own[own >= 0])


def repeated_rows(keys: Keys) -> int:
    """Return how many rows of a table have the same cutout as an earlier one."""
    packed = _packed(keys, _groups(keys)[1])
    packed = packed[packed >= 0]
    return len(packed) - len(np.unique(packed))


def _groups(keys: Keys) -> tuple[list[NamedFile], list[int]]:
    """Return the different files that a table names, and for each of its names the index of its file."""
    by_key: dict[str, list[int]] = {}
    split = [split_name(name) for name in keys.names or [""]]
    for place, (_, key) in enumerate(split):
        by_key.setdefault(key, []).append(place)
    files: list[NamedFile] = []
    of_name = [-1] * len(split)
    for key, places in by_key.items():
        folders = dict.fromkeys(split[place][0] for place in places)
        groups = [tuple(folders)] if one_folder(folders) else [(folder,) for folder in folders]
        number = {folder: len(files) + i for i, group in enumerate(groups) for folder in group}
        for place in places:
            of_name[place] = number[split[place][0]]
        files += [NamedFile("/".join((*max(group, key=len), key)), (key,), group) for group in groups]
    return files, of_name


def _packed(keys: Keys, of_name: Sequence[int]) -> IntArray:
    """Return file, type and row of each row packed into one integer, -1 if one is missing."""
    file = np.array([*of_name, -1])[keys.file]
    known = (file >= 0) & (keys.kind >= 0) & (keys.row >= 0)
    packed = ((2 * file + keys.kind) << _ROW_BITS) + keys.row
    return np.where(known, packed, -1)


def _some(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
