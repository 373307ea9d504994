"""Pieces of the page that are text: facts, tables, chips; whatever comes from files is escaped here."""

import datetime
import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from nenya.portal.columns import title_of
from nenya.portal.state import Filter
from nenya.portal.summary import Summary

_FACTS = (
    "DT",
    "US0",
    "US1",
    "lat",
    "lon",
    "datetime",
    "filename",
    "region",
    "LL",
    "clear_fraction",
    "mean_temperature",
)
_TABLE = ("datetime", "lat", "lon", "DT", "US0", "US1", "LL", "clear_fraction", "filename", "pp_file", "pp_idx")
_START = (
    "<span class='start'><b>Start here:</b> click a cutout, or a point of the UMAP or the map: the cutouts most like "
    "it appear at the lower right. Drag a box or a range to filter.</span>"
)
CHANGED = (
    "<p class='note news'>The archive has changed: this page shows the old one. <button data-reload>Reload</button></p>"
)
CHANGED_BADLY = (
    "<p class='note news'>The archive has changed, and cannot be opened as it is now (the server's log says why): "
    "this page shows the old one.</p>"
)
_CHANCE = (
    "share of the selection there / share of all rows there; 1 is by chance. The interval is that of counting "
    "independent cutouts (Wilson 1927): cutouts of one granule are not, so that the true one is wider"
)


def shown(value: Any) -> str:
    """Return a value of a table as text, escaped for the page."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, datetime.datetime):
        return escape(value.strftime("%Y-%m-%d %H:%M"))
    return escape(str(value)[:200])


def place(row: Mapping[str, Any]) -> str:
    """Return latitude and longitude for a person, such as 12.3 N, 140.0 W."""
    lat, lon = row.get("lat"), row.get("lon")
    if lat is None or lon is None or math.isnan(lat) or math.isnan(lon):
        return ""
    lon = (lon + 180) % 360 - 180
    return f"{abs(lat):.2f}° {'N' if lat >= 0 else 'S'}, {abs(lon):.2f}° {'E' if lon >= 0 else 'W'}"


def facts(row: Mapping[str, Any], number: int) -> str:
    """Return the table of one row's facts."""
    lines = [("place", escape(place(row)))] if place(row) else []
    names = [n for n in _FACTS if n in row and n not in ("lat", "lon")]
    rest = [n for n in row if n not in _FACTS and n not in ("lat", "lon")]
    lines += [(escape(title_of(name)), shown(row[name])) for name in names]
    cells = "".join(f"<tr><th>{name}</th><td title='{value}'>{value}</td></tr>" for name, value in lines)
    more = "".join(f"<tr><th>{escape(title_of(n))}</th><td>{shown(row[n])}</td></tr>" for n in rest)
    return (
        f"<table class='facts'>{cells}</table>"
        f"<details><summary>row {number:,} of the table, all columns</summary>"
        f"<table class='facts'>{more}</table></details>"
    )


def caption(row: Mapping[str, Any]) -> str:
    """Return one line on a cutout, plain text for a tooltip."""
    parts = [place(row), shown(row["datetime"]) if row.get("datetime") is not None else ""]
    if row.get("DT") is not None:
        parts.append(f"DT {shown(float(row['DT']))} K")
    return ", ".join(part for part in parts if part)


def chips(filters: Sequence[Filter]) -> str:
    """Return the active filters, each with a button that takes it away."""
    if not filters:
        return _START
    return "".join(
        f"<button class='chip' data-action='remove:{escape(item.slot, quote=True)}' "
        f"title='remove this filter'>{escape(item.text)} <b aria-hidden='true'>✕</b></button>"
        for item in filters
    )


def count(selected: int, total: int) -> str:
    """Return how many rows are selected."""
    share = f" ({selected / total:.1%})" if selected < total else ""
    return f"<output id='count' data-selected='{selected}'><b>{selected:,}</b> of {total:,} cutouts{share}</output>"


def table(rows: Sequence[Mapping[str, Any]], numbers: Sequence[int], first: int, total: int) -> str:
    """Return one page of the selected rows; a click on one shows its cutout."""
    if not rows:
        return "<p class='hint'>No rows are selected.</p>"
    names = [n for n in _TABLE if n in rows[0]] + [n for n in rows[0] if n not in _TABLE]
    head = "".join(f"<th scope='col'>{escape(title_of(name))}</th>" for name in names)
    body = "".join(
        f"<tr data-action='row:{number}' tabindex='0'>" + "".join(f"<td>{shown(row[n])}</td>" for n in names) + "</tr>"
        for row, number in zip(rows, numbers, strict=True)
    )
    more = "".join(
        f"<button data-action='page:{step}'{' disabled' if off else ''}>{text}</button>"
        for step, text, off in ((-1, "before", first == 0), (1, "next", first + len(rows) >= total))
    )
    return (
        f"<p>rows {first + 1:,} to {first + len(rows):,} of {total:,} {more}</p>"
        f"<table class='rows'><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    )


def statistics(found: Summary, whole: bool) -> str:
    """Return the comparison of the selection with all rows."""
    parts = ["<p class='hint'>All rows are selected: filters show how a part differs.</p>"] if whole else []
    for name, lines in found.comparisons.items():
        body = "".join(
            f"<tr><th>{escape(line.name)}</th><td>{line.selected:,}</td><td>{line.whole:,}</td><td>{_ratio(line)}</td></tr>"
            for line in lines.itertuples()
        )
        parts.append(
            f"<table class='rows stat-{name}'><thead><tr><th>{name}</th><th>selected</th><th>all</th>"
            f"<th title='{_CHANCE}'>times chance (95 %)</th></tr></thead><tbody>{body}</tbody></table>"
        )
    if found.trend is not None:
        line = found.trend
        parts.append(
            f"<p class='trend' title='a line through the shares of {line.years} years, by their numbers of rows; the "
            f"error is that of counting, or of the scatter about the line if larger'>trend of its share of each year's "
            f"rows: {100 * line.slope:+.3g} ± {100 * line.error:.2g} percentage points a year</p>"
        )
    elif "year" in found.comparisons:
        parts.append("<p class='trend'>trend: fewer than three years</p>")
    body = "".join(f"<tr><th>{escape(n)}</th><td>{a:.4g}</td><td>{b:.4g}</td></tr>" for n, a, b in found.medians)
    parts.append(
        "<table class='rows'><thead><tr><th>median</th><th>selected</th><th>all</th></tr></thead>"
        f"<tbody>{body}</tbody></table>"
    )
    return f"<div class='stats'>{''.join(parts)}</div>"


def _ratio(line: Any) -> str:
    """Return how often the selection is somewhere, against chance, with its interval."""
    if math.isnan(line.ratio):
        return "-"
    ends = (
        ""
        if math.isnan(line.ratio_low)
        else f" <span class='hint'>{line.ratio_low:.2f} to {line.ratio_high:.2f}</span>"
    )
    return f"<meter min='0' max='4' value='{line.ratio:.3f}'></meter> {line.ratio:.2f}{ends}"
