"""Examples of a search: what a number, a UID or a cutout names among the rows of latents."""

import re
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nenya.errors import InputFileError, OptionError
from nenya.latents.files import PARTITIONS
from nenya.storage.paths import key_of
from nenya.tables.conditions import ROW, text

if TYPE_CHECKING:
    import pandas as pd

TABLE_ROW = "table_row"
"""Column with the number of a row in the table that was given."""


class Numbered(NamedTuple):
    """A partition: names of its cutout file, its own name, its first row and its number of rows."""

    names: tuple[str, ...]
    partition: str
    start: int
    rows: int


def parse_example(example: str, columns: Sequence[str], parts: Sequence[Numbered]) -> tuple[str, str]:
    """Return how to look up an example: a column of row numbers and the number, or ("", a condition in SQL).

    Args:
        example: a row number (of the table if there is one, otherwise of the latents), `uid:<UID>`,
            `<train or valid>:<row in it>`, `<cutout file>:<train or valid>:<row in it>`, or `archive_row:<row>`;
            folder and suffix of the file are ignored.
        columns: of the table.
        parts: all partitions.

    Raises:
        OptionError: The example has none of these forms.
        InputFileError: There is no such row, or several files have this name.
    """
    example = str(example).strip()
    if example.isdecimal():
        return TABLE_ROW if TABLE_ROW in columns else ROW, example
    if match := re.fullmatch(rf"{ROW}:(\d+)", example):
        return ROW, match[1]
    if match := re.fullmatch(r"uid:(-?\w+)", example, re.I):
        if "UID" not in columns:
            raise OptionError(
                f"{example}: the table has no column UID; give a row number, or file:partition:row instead"
            )
        return "", f"CAST(`UID` AS STRING) = {text(match[1])}"
    if match := re.fullmatch(r"(?:(.+):)?(\w+):(\d+)", example):
        if match[2] in PARTITIONS:
            return ROW, _row_of(example, match[1] and key_of(match[1]), match[2], int(match[3]), parts)
    raise OptionError(
        f"{example}: expected a row number, uid:<UID>, <train or valid>:<row> or <cutout file>:<train or valid>:<row>"
    )


def numbered(table: "pd.DataFrame") -> "pd.DataFrame":
    """Return a table with the number of each row, counted from 0, in the column `table_row`."""
    return table.assign(**{TABLE_ROW: np.arange(len(table))})


def _row_of(example: str, key: str | None, partition: str, row: int, parts: Sequence[Numbered]) -> str:
    named = [p for p in parts if p.partition == partition and (key is None or key in map(key_of, p.names))]
    if len(named) == 1 and row < named[0].rows:
        return str(named[0].start + row)
    if named:
        several = f"{len(named)} files have {'this name' if key else f'{partition}: give <cutout file>:{example}'}"
        why = several if len(named) > 1 else f"{partition} has rows 0 to {named[0].rows - 1}"
    else:
        have = ", ".join(dict.fromkeys(f"{key_of(part.names[0])}:{part.partition}" for part in parts[:6]))
        why = f"no such partition among {len(parts)}, such as {have}"
    raise InputFileError(f"{example}: no row with a latent: {why}; check the name, or give the row number")


def one_row(example: str, found: NDArray[np.int64], rows: int) -> int:
    """Return the single row found for an example.

    Raises:
        InputFileError: There are none, or several.
    """
    if len(found) != 1:
        known = f"rows are 0 to {rows - 1}"
        if example.isdecimal() and int(example) >= rows:
            raise InputFileError(f"row {example} does not exist; {known}")
        what = "several rows match" if len(found) else f"no row with a latent among {rows} matches"
        raise InputFileError(f"{example}: {what}; check the name, or give the row number; {known}")
    return int(found[0])


def described(table: "pd.DataFrame", label: str) -> list[str]:
    """Return a line for each example: its row, and its cutout, place, date and UID if they are known.

    Args:
        table: of the examples, from a searcher's `describe`.
        label: the first word of each line.
    """
    lines = []
    for row in table.to_dict("records"):
        of_table: Any = row.get(TABLE_ROW)
        known = of_table is not None and of_table == of_table  # not NaN
        where = f"row {int(of_table)} of the table" if known else f"row {row[ROW]} of the latents"
        kind = {1: "train", 0: "valid"}.get(row["pp_type"], row["pp_type"])
        parts = [where, f"{row['pp_file']}:{kind}:{row['pp_idx']}", *place_and_date(row).splitlines()]
        parts += [f"UID {row['UID']}"] if row.get("UID") is not None else []
        lines.append(f"{label}: {', '.join(parts)}")
    return lines


def place_and_date(row: Mapping[Hashable, Any]) -> str:
    """Return place and time of a row of a table, in up to two lines, without missing parts."""
    import pandas as pd

    lines = []
    if {"lat", "lon"} <= set(row) and all(pd.notna(row[name]) and np.isfinite(row[name]) for name in ("lat", "lon")):
        lat, lon = float(row["lat"]), (float(row["lon"]) + 180) % 360 - 180
        lines.append(f"{abs(lat):.1f}\N{DEGREE SIGN}{'NS'[lat < 0]} {abs(lon):.1f}\N{DEGREE SIGN}{'EW'[lon < 0]}")
    date = pd.to_datetime(pd.Series([row.get("datetime")]), errors="coerce").iloc[0]
    if not pd.isna(date):
        lines.append(f"{date:%Y-%m-%d}")
    return "\n".join(lines)
