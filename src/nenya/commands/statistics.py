"""`nenya statistics`: compares selected cutouts with all: regions, seasons, years, quantities."""

import logging
import re
from pathlib import Path

import numpy as np
import pandas as pd

from nenya.archive.folder import open_chosen
from nenya.commands.pictures import formats_of, style_of
from nenya.errors import InputFileError, OptionError
from nenya.io import TABLE_SUFFIXES, read_table, write_table
from nenya.latents.clear import left_out
from nenya.options.commands import StatisticsOptions
from nenya.storage.disk import check_output, together
from nenya.storage.paths import local_path
from nenya.storage.table_integers import comparable
from nenya.storage.texts import lines_of, say
from nenya.tables import keys
from nenya.tables.comparison import trend
from nenya.tables.conditions import rows_where
from nenya.tables.key_columns import has_keys, read_keys
from nenya.tables.quantities import columns_of
from nenya.tables.statistics import METRICS, BoolArray, selection_statistics
from nenya.tables.tags import place_of_tags, with_tags

log = logging.getLogger(__name__)


_FOLDER = "outputs/statistics"
_NAMES = ("pp_file", "pp_type", "pp_idx", "UID", "filename")


def chosen_rows(table: "pd.DataFrame", options: StatisticsOptions) -> BoolArray:
    """Return the rows that fulfil all conditions of the options, (N,) bool.

    Raises:
        NenyaError: No condition is given, a condition does not parse, or a table cannot be read or joined.
    """
    chosen = np.ones(len(table), bool)
    given = 0
    if options.where is not None:
        chosen &= rows_where(table, options.where)
        given += 1
    if options.box is not None:
        x0, x1, y0, y1 = (float(v) for v in options.box)
        u, v = columns_of(table, "US0", "US1").T
        chosen &= (u >= x0) & (u <= x1) & (v >= y0) & (v <= y1)
        given += 1
    if options.cluster is not None:
        chosen &= columns_of(table, "cluster")[:, 0] == options.cluster
        given += 1
    if options.rows is not None:
        chosen &= rows_of(table, read_table(local_path(options.rows)))
        given += 1
    if not given:
        raise OptionError("expected a selection: where='DT > 2', box=[x0,x1,y0,y1], cluster=3 or rows=found.parquet")
    return chosen


def unused(options: StatisticsOptions) -> list[str]:
    """Return columns that name cutouts and that neither a condition nor a histogram needs; they are half of a table."""
    if options.rows is not None:
        return []
    named = " ".join([options.where or "", *options.metrics])
    return [name for name in _NAMES if not re.search(rf"\b{name}\b", named, re.IGNORECASE)]


def enough(table: "pd.DataFrame", least: float | None) -> "pd.DataFrame":
    """Return the rows of a table with at least this `cosine_low`, all rows for None; log how many are left out.

    Raises:
        OptionError: The table has no such column, or no such row.
    """
    if least is None:
        return table
    if "cosine_low" not in table:
        raise OptionError(
            f"least_cosine={least:g}: the table has no column cosine_low, which nenya embed writes for latents with a "
            "calibration; leave least_cosine out"
        )
    below = left_out(table["cosine_low"].to_numpy(np.float32), least)
    if below.all():
        raise OptionError(f"least_cosine={least:g} leaves none of {len(table)} rows: give a smaller one")
    return table[~below].reset_index(drop=True)


def rows_of(table: "pd.DataFrame", found: "pd.DataFrame") -> BoolArray:
    """Return which rows of a table are in another one, such as a search result: (N,) bool.

    Rows are joined by UID where it is complete and unique in both tables, else by pp_file, pp_type and
    pp_idx. Missing rows are logged.

    Raises:
        InputFileError: The tables share neither, or no row of the other one is in this one.
    """
    table, found = table.reset_index(drop=True), found.reset_index(drop=True)
    if _by_uid(table, found):
        own, other = comparable(table["UID"], found["UID"])
        chosen, there = np.zeros(len(table), bool), np.zeros(len(found), bool)
        chosen[own.index[own.isin(other)]] = True
        there[other.index[other.isin(own)]] = True
    else:
        chosen, there = keys.rows_of(read_keys(table), read_keys(found))
    if not there.any():
        raise InputFileError(f"none of the {len(found)} rows of rows= is in the table: give rows of this table")
    if not there.all():
        log.warning("found %d of %d rows (%d are not in the table)", there.sum(), len(found), (~there).sum())
    return chosen


def _by_uid(table: "pd.DataFrame", found: "pd.DataFrame") -> bool:
    """Return whether UID, rather than pp_file, pp_type and pp_idx, joins two tables."""
    have = ["UID" in one for one in (table, found)]
    keyed = [has_keys(one) for one in (table, found)]
    if not all(have) and not all(keyed):
        lacking = found if not (have[1] or keyed[1]) else table
        raise InputFileError(
            f"expected the columns UID, or pp_file, pp_type and pp_idx, in the table and in rows=, got "
            f"{', '.join(map(str, lacking.columns))}"
        )
    if not all(have) or not all(keyed):
        return all(have)
    ids = table["UID"], found["UID"]
    return bool(ids[1].notna().all() and ids[0].is_unique and not any(column.dtype.kind == "f" for column in ids))


def run(options: StatisticsOptions) -> int:
    """Write the statistics of a selection as table and figure.

    Args:
        options: of `scripts/selection_statistics.py`.

    Returns:
        0.

    Raises:
        NenyaError: An option is not possible, the table cannot be read, or a result cannot be written.
    """
    from nenya.plotting.statistics import draw_statistics

    if options.table and options.data:
        raise OptionError(f"table={options.table} and data=: give the table once, by table=")
    options.table = options.table or (options.data if isinstance(options.data, str) else None)
    opened = open_chosen(options)
    source = Path(opened.name if opened else local_path(options.table or ""))
    out = local_path(options.out or f"{_FOLDER}/{source.stem}_statistics.parquet")
    if out.suffix not in TABLE_SUFFIXES:
        if out.suffix and not out.is_dir():
            raise OptionError(f"out={out}: expected a folder or a table ({', '.join(TABLE_SUFFIXES)})")
        out = out / f"{source.stem}_statistics.parquet"
    suffixes = formats_of(options) or [options.picture]
    if options.picture != ".png":
        suffixes = [options.picture, *suffixes]
    pictures = [out.with_suffix(suffix) for suffix in dict.fromkeys(suffixes)]
    for path in (out, *pictures):
        check_output(path, options.clobber)
    style = style_of(options)
    place = place_of_tags(options.tags, options.table, options.archive_dir)
    read = opened.table() if opened else read_table(source, leave_out=[] if place else unused(options))
    table = enough(with_tags(read, place), options.least_cosine)
    if list(options.metrics) != list(METRICS):  # those are drawn where the table has them
        columns_of(table, *options.metrics)
    chosen = chosen_rows(table, options)
    if not chosen.any():
        raise OptionError(f"the conditions select none of {len(table)} rows: widen where=, box=, cluster= or rows=")
    found = selection_statistics(table, chosen, metrics=tuple(options.metrics), degrees=options.degrees)
    for what, part in (("lon and lat: no regions, no map", found.regions), ("datetime: no seasons", found.seasons)):
        if not len(part):
            log.warning("%s: no column of %s", source, what)
    words = [options.where, options.box and f"UMAP box {list(options.box)}", options.rows]
    words.append(None if options.cluster is None else f"cluster {options.cluster}")
    title = ", ".join(str(word) for word in words if word)
    with together():
        write_table(found.table(), out)
        draw_statistics(found, pictures, title=title, style=style)
    say(f"{found.selected} of {found.whole} rows ({100 * found.selected / found.whole:.2f} %): {title}")
    for row in found.regions[found.regions["whole"] > 0].itertuples():
        within = f"{row.ratio:.2f} ({row.ratio_low:.2f} to {row.ratio_high:.2f})"
        say(f"  {row.name:14s} {row.selected:9d}  {within} times the share in all rows")
    if line := trend(found.years):
        points = f"{100 * line.slope:+.3g} +- {100 * line.error:.2g}"
        say(f"  share of each year's rows: {points} percentage points a year")
    log.info("%s", lines_of([out, *pictures]))
    return 0
