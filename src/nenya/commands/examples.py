"""The lines on the examples of a search: row, cutout, place and date."""

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np

from nenya.latents.examples import TABLE_ROW
from nenya.latents.index import Searcher
from nenya.latents.similarity import IntArray
from nenya.tables.conditions import ROW


def described(archive: Searcher, rows: IntArray, label: str = "example") -> list[str]:
    """Return a line on each example: its row, cutout, place, date and UID, as far as they are known."""
    lines = []
    for row in archive.describe(rows).to_dict("records") if len(rows) else []:
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
