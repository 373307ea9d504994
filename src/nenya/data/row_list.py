"""Row lists: tables that say which cutouts of files are trained on and which are validated on, as `nenya split` writes.

Letters in shapes: N rows of the list.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nenya.data.cutouts import CutoutFile
from nenya.errors import InputFileError
from nenya.io import read_table
from nenya.storage.disk import sha256_file
from nenya.tables.key_columns import read_keys
from nenya.tables.keys import Part, cutout_parts, join, repeated_rows
from nenya.tables.split import ROWS, TRAIN, VALID, splits_of

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class RowList:
    """The cutouts of a training: those to train on, and those to validate on.

    Attributes:
        parts: partitions of files that have such rows; their rows are numbered consecutively.
        train: numbers of the rows to train on, (n,) int64, rising.
        valid: numbers of the rows to validate on, (m,) int64, rising.
        sha256: of the file of the list, 64 hexadecimal digits.
        labels: class of each row of the parts, (sum of their rows,) int64, -1 for none; None: those in the files.
    """

    parts: tuple[tuple[CutoutFile, str], ...]
    train: IntArray
    valid: IntArray
    sha256: str
    labels: IntArray | None = None

    def of(self, stage: str) -> IntArray:
        """Return the rows of a stage, `train` or `valid`."""
        return self.train if stage == "train" else self.valid

    def in_parts(self, stage: str) -> Iterator[tuple[CutoutFile, str, IntArray]]:
        """Yield file, partition and rising rows of it, for the partitions that have rows of a stage."""
        rows, start = self.of(stage), 0
        for file, partition in self.parts:
            stop = start + file.partitions[partition].rows
            low, high = np.searchsorted(rows, (start, stop))
            if low < high:
                yield file, partition, rows[low:high] - start
            start = stop


def read_row_list(path: Path, files: Sequence[CutoutFile], keys: tuple[str, str], sha256: str | None = None) -> RowList:
    """Read a row list, and find its cutouts.

    Args:
        path: the table: pp_file, pp_type, pp_idx and `split`, which is `train`, `valid`, or `none` for rows to leave
            out. pp_type says in which partition of the file a cutout is, not what it is used for.
        files: the cutout files, each with its partitions of `keys`.
        keys: names of the partitions that pp_type 1 (train) and 0 (valid) stand for.
        sha256: expected of the file; None for any.

    Raises:
        InputFileError: The list cannot be read, has changed, has no row to train on, names a cutout twice, or one
            that the files do not have.
    """
    found = sha256_file(path) if path.is_file() else ""
    if sha256 and found and found != sha256:
        raise InputFileError(
            f"{path}: the row list has changed: expected the sha256 {sha256[:12]}..., got {found[:12]}...: give the "
            "list with which the run began, or start a new run"
        )
    table = read_table(path)
    parts = cutout_parts([(str(f.path), {name: p.rows for name, p in f.partitions.items()}) for f in files], *keys)
    try:
        split = splits_of(table)
        _check_any(split)
        if repeated := repeated_rows(read_keys(table)):
            raise InputFileError(f"{repeated} rows name the cutout of an earlier row: name each cutout once")
        used = (split == TRAIN) | (split == VALID)
        joined = join(read_keys(table[used]), parts, "cutout")
        if joined.repeated:
            raise InputFileError(f"{joined.repeated} rows name the cutout of an earlier row: name each cutout once")
        if lost := sum(joined.lost.values()):
            why = ", ".join(f"{count} {reason}" for reason, count in joined.lost.items() if count)
            raise InputFileError(
                f"{lost} of {len(joined.number)} rows have no cutout in data= ({why}): give all files of the list to "
                "data=, or a list of these files"
            )
        _check_lengths(table[used], joined.number, parts)
    except InputFileError as error:
        raise InputFileError(f"{path}: {error}") from error
    if not (split == VALID).any():
        log.warning("%s: no row to validate on (split = valid): training without a validation", path)
    chosen = [np.sort(joined.number[split[used] == kind]) for kind in (TRAIN, VALID)]
    return _numbered(parts, {str(f.path): f for f in files}, chosen, found)


def _check_any(split: NDArray[np.int8]) -> None:
    """Refuse a list without a row to train on."""
    if not (split == TRAIN).any():
        valid = int((split == VALID).sum())
        raise InputFileError(
            f"expected rows to train on (split = train), got none among {len(split)} rows; {valid} rows are to "
            "validate on: make the list again with nenya split"
        )


def _check_lengths(table: "pd.DataFrame", number: IntArray, parts: Sequence[Part]) -> None:
    """Refuse files if the number of cutouts in a partition has changed since the list was made."""
    import pandas as pd

    if ROWS not in table:
        return
    said = pd.to_numeric(table[ROWS], errors="coerce").to_numpy(np.float64, na_value=np.nan)
    own = np.searchsorted([part.start for part in parts], number, side="right") - 1
    have = np.array([part.rows for part in parts])[own]
    wrong = np.flatnonzero(np.isfinite(said) & (said != have))
    if len(wrong):
        row = wrong[0]
        raise InputFileError(
            f"the list is of another file: expected a partition of {said[row]:g} cutouts in "
            f"{Path(parts[own[row]].path).name}, got {have[row]}: give the file of the list, or make the list again"
        )


def _numbered(parts: Sequence[Part], files: dict[str, CutoutFile], chosen: Sequence[IntArray], sha256: str) -> RowList:
    """Number the chosen rows among those partitions that have any."""
    named = [(file, name) for file in files.values() for name in file.partitions]
    every = np.concatenate(chosen)
    shifts, kept, start = [], [], 0
    for part, own in zip(parts, named, strict=True):
        shifts.append(start - part.start)
        if ((every >= part.start) & (every < part.start + part.rows)).any():
            kept.append(own)
            start += part.rows
    starts = np.array([part.start for part in parts])
    train, valid = (rows + np.array(shifts)[np.searchsorted(starts, rows, side="right") - 1] for rows in chosen)
    return RowList(tuple(kept), train, valid, sha256)
