"""Partitions of published rows: by year, by cell of the globe, or by columns of few values.

Letters in shapes: N rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from nenya.errors import OptionError
from nenya.options.declare import suggest

if TYPE_CHECKING:
    import pandas as pd

IntArray = NDArray[np.int64]

YEAR, CELL = "year", "cell"
MOST = 2000
"""Partitions, beyond which a reader spends its time on opening files."""

_LONGEST = 255  # characters of a folder's name

MISSING = "__HIVE_DEFAULT_PARTITION__"
"""What Hive writes for a missing value; DuckDB and Arrow read it as null."""


@dataclass(frozen=True)
class Partitions:
    """The partition of each row.

    Attributes:
        names: what the rows are divided by; empty for one partition.
        values: of each partition, in the order of `names`; None where missing.
        code: (N,) the partition of each row.
    """

    names: tuple[str, ...]
    values: list[tuple[Any, ...]]
    code: IntArray

    def folder(self, code: int) -> str:
        """Return the folder of a partition in Hive's style, such as `year=2012/cell=17`; empty for the only one."""
        pairs = zip(self.names, self.values[code], strict=True)
        return "/".join(f"{name}={MISSING if value is None else quote(str(value), safe='')}" for name, value in pairs)

    def title(self, code: int) -> str:
        """Return the name of a partition in words: `year 2012, cell 17`."""
        pairs = zip(self.names, self.values[code], strict=True)
        return ", ".join(f"{name} {'unknown' if value is None else value}" for name, value in pairs)


def partitions_of(
    table: "pd.DataFrame", names: Sequence[str], times: NDArray[np.datetime64], cells: IntArray
) -> Partitions:
    """Return the partition of each row.

    Args:
        table: of the rows.
        names: `year`, `cell`, or columns.
        times: (N,) datetime64, NaT where unknown.
        cells: (N,) cell of the globe, -1 where unknown.

    Raises:
        OptionError: A name is neither, is given twice, needs dates or places that are all unknown, or gives too many
            partitions.
    """
    import pandas as pd

    shown = f"partition=[{','.join(names)}]"
    if len(set(names)) < len(names):
        raise OptionError(f"{shown}: expected each name once")
    keys: dict[str, Any] = {}
    for name in names:
        if name in table and name != YEAR:
            keys[name] = _column(table[name], shown)
        elif name == YEAR:
            if np.isnat(times).all():
                raise OptionError(f"{shown}: the table has no dates (a column datetime); leave partition= out")
            years = times.astype("datetime64[Y]").astype(np.int64) + 1970
            keys[name] = pd.array(np.where(np.isnat(times), 0, years), "Int64")
            keys[name][np.isnat(times)] = pd.NA
        elif name == CELL:
            if (cells < 0).all():
                raise OptionError(f"{shown}: no row has a place (columns lat and lon); leave partition= out")
            keys[name] = pd.array(np.maximum(cells, 0), "Int64")
            keys[name][cells < 0] = pd.NA
        else:
            meant = suggest(name, [YEAR, CELL, *map(str, table.columns)])
            raise OptionError(f"{shown}{meant}: expected {YEAR}, {CELL} or columns of the table, got {name}")
    if not keys:
        return Partitions((), [()], np.zeros(len(table), np.int64))
    frame = pd.DataFrame(keys)
    groups = frame.groupby(list(keys), dropna=False, sort=True)
    if groups.ngroups > MOST:
        raise OptionError(
            f"{shown} gives {groups.ngroups} partitions, expected at most {MOST}: give columns of fewer values"
        )
    code: IntArray = groups.ngroup().to_numpy().astype(np.int64)
    _, first = np.unique(code, return_index=True)
    values = [tuple(map(_plain, row)) for row in frame.iloc[first].itertuples(index=False, name=None)]
    found = Partitions(tuple(names), values, code)
    long = [part for number in range(len(values)) for part in found.folder(number).split("/") if len(part) > _LONGEST]
    if long:
        raise OptionError(f"{shown}: expected values that can name a folder, got one of {len(long[0])} characters")
    return found


def _column(column: "pd.Series[Any]", shown: str) -> Any:
    import pandas as pd

    if column.dtype.kind == "f" or column.dtype.kind == "M" or isinstance(column.dtype, pd.DatetimeTZDtype):
        raise OptionError(f"{shown}: expected a column of names or integers, got {column.name} of {column.dtype}")
    if column.dtype.kind in "iub":
        return column.reset_index(drop=True)
    texts = column.reset_index(drop=True).astype("string")
    return texts.mask(texts.fillna("x") == "")  # an empty name cannot be a folder's


def _plain(value: Any) -> Any:
    import pandas as pd

    if pd.isna(value):
        return None
    return value.item() if isinstance(value, np.generic) else value
