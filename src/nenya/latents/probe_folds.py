"""Folds of the rows that are probed: by granule, time, place, the values of a column, or from train to valid.

Letters: n rows.
"""

import logging
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nenya.errors import InputFileError, OptionError
from nenya.latents.fold_blocks import blocks_for
from nenya.latents.linear import Folds
from nenya.options.declare import suggest
from nenya.tables.blocks import MarkArray, block_folds, blocks_of
from nenya.tables.place_and_time import usual_names
from nenya.tables.split import TRAIN, VALID, sides_of

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

IntArray = NDArray[np.int64]

KINDS = ("granule", "time", "place", "rows")
_NEEDS = {
    "granule": "granule, filename or datetime",
    "time": "datetime",
    "place": "lat and lon",
}


def folds_of(
    table: "pd.DataFrame", kinds: IntArray, by: str | None, count: int, marks: MarkArray
) -> tuple[Folds, IntArray]:
    """Return the folds of rows, and the rows that are in one.

    Args:
        table: of n rows.
        kinds: (n,) their pp_type.
        by: `granule`, `time`, `place`, `rows`, `partition` or a column; None: of the first three,
            the first one with all its columns in the table.
        count: number of folds; with `partition`, of those of the training rows in which penalties are chosen.
        marks: (n,) random numbers of the rows.

    Returns:
        Folds of the m rows, and their numbers, (m,): all but with `partition`, where rows of neither side are left out.

    Raises:
        OptionError: There is no such column.
        InputFileError: There are too few blocks, or the table does not have what tells them.
    """
    known = blocks_for(usual_names(table))
    if by is None:
        by = next(iter(known))
        if by == "rows":
            log.warning("the table has no granule, datetime or lat and lon: each row counts as independent (by=rows)")
    if by == "partition":
        return _train_to_valid(table, kinds, known, count, marks)
    if by in _NEEDS and by not in known:
        raise InputFileError(
            f"by={by}: the table has no column {_NEEDS[by]}; give by={next(iter(known))}, by=partition or by=<a column>"
        )
    if by not in known and by not in table:
        near = suggest(by, [*KINDS, "partition", *map(str, table.columns)])
        raise OptionError(f"by={by}{near}: expected granule, time, place, partition, rows or a column of the table")
    blocks = known[by] if by in known else blocks_of(table, by)
    found = len(np.unique(blocks))
    if found < count:
        fewer = f"folds={found}, or " if found >= 3 else ""
        raise InputFileError(
            f"by={by}: expected at least {count} of them among {len(table)} rows, one for each fold, got {found}; give "
            f"{fewer}by=partition, by=<a column> or by=rows"
        )
    fold = block_folds(blocks, count, marks)
    # What granules share is not independent in places either, and places do not hold complete granules.
    drawn = known["granule"] if by == "place" and "granule" in known else blocks
    return Folds(fold, tuple(range(count)), drawn, by), np.arange(len(table))


def _train_to_valid(
    table: "pd.DataFrame", kinds: IntArray, known: dict[str, IntArray], count: int, marks: MarkArray
) -> tuple[Folds, IntArray]:
    """Return the rows of train in groups, and those of valid as the one group that is predicted."""
    sides = sides_of(table, kinds)
    rows = np.flatnonzero((sides == TRAIN) | (sides == VALID))
    valid = sides[rows] == VALID
    numbers = {"train": int((~valid).sum()), "valid": int(valid.sum())}
    if not all(numbers.values()):
        raise InputFileError(
            f"by=partition: expected rows of train and of valid, got {numbers['train']} and {numbers['valid']}; give "
            "by=granule or another"
        )
    which = next(iter(known))
    blocks = known[which][rows]
    if which == "granule" and (shared := np.isin(blocks[valid], blocks[~valid]).mean()) > 0:
        log.warning(
            "%.3g %% of the valid rows are of a granule that is also in train: by=granule is safer", 100 * shared
        )
    group = np.full(len(rows), count, np.int64)
    own = blocks[~valid] if len(np.unique(blocks[~valid])) >= count else np.arange(numbers["train"])
    group[~valid] = block_folds(own, count, marks[rows][~valid])
    drawn = blocks if len(np.unique(blocks[valid])) > 1 else np.arange(len(rows))
    return Folds(group, (count,), drawn, "partition"), rows
