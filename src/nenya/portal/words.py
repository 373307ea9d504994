"""Text parts of the page: facts, tables, chips; data from files are escaped here."""

import datetime
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from nenya.defs import REGIONS
from nenya.portal.state import Box, Category, Filter, Lasso
from nenya.portal.summary import Summary
from nenya.portal.upload import Upload
from nenya.tables.quantities import DT40_SIDE, central_dt, heading_of, quantity_of, title_of

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
_START = "<span class='start'><b>Start here:</b> click {}: {}. Drag a box or a range to filter.</span>"
CHANGED = (
    "<p class='note news'>The archive has changed: this page shows the earlier one. "
    "<button data-reload>Reload</button></p>"
)
CHANGED_BADLY = (
    "<p class='note news'>The files of the archive were replaced by others that cannot be opened (see the server's "
    "log): this page shows the earlier state.</p>"
)
_PLANES = {"umap": "UMAP", "map": "map"}
_CHANCE = (
    "<p class='hint'><b>Times chance</b> is the share of selected rows in a class, divided by the share of all "
    "rows in it: 1 for a random selection, 2 for twice as many. In grey its 95 % interval for "
    "independent cutouts (Wilson 1927); cutouts of one granule are not independent, so the true one is wider.</p>"
)


def note(text: str) -> str:
    """Return a persistent notice."""
    return f"<p class='note news'>{escape(text)}</p>"


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
    """Return latitude and longitude in words, such as 12.3 N, 140.0 W."""
    lat, lon = row.get("lat"), row.get("lon")
    if lat is None or lon is None or math.isnan(lat) or math.isnan(lon):
        return ""
    lon = (lon + 180) % 360 - 180
    return f"{abs(lat):.2f}° {'N' if lat >= 0 else 'S'}, {abs(lon):.2f}° {'E' if lon >= 0 else 'W'}"


def heading(title: str, what: str) -> str:
    """Return the heading of the primary image: kind and name."""
    return f"<b class='title'>{escape(title)}</b> <span class='hint'>{escape(what)}</span>"


def facts(row: Mapping[str, Any], number: int) -> str:
    """Return the table of facts of one row."""
    lines = [("place", escape(place(row)))] if place(row) else []
    names = [n for n in _FACTS if n in row and n not in ("lat", "lon")]
    rest = [n for n in row if n not in _FACTS and n not in ("lat", "lon")]
    lines += [(_title(name), shown(row[name])) for name in names]
    cells = "".join(f"<tr><th>{name}</th><td title='{value}'>{value}</td></tr>" for name, value in lines)
    more = "".join(f"<tr><th>{_title(n)}</th><td>{shown(row[n])}</td></tr>" for n in rest)
    return (
        f"<table class='facts'>{cells}</table>"
        f"<details><summary>row {number:,} of the table, all columns</summary>"
        f"<table class='facts'>{more}</table></details>"
    )


def _title(name: str) -> str:
    """Return the short title of a column, with the full one as tooltip."""
    return f"<span title='{escape(title_of(name), quote=True)}'>{escape(heading_of(name))}</span>"


def upload_facts(upload: Upload) -> str:
    """Return the table of facts of an uploaded image."""
    values, side = upload.image.astype(np.float64), len(upload.image)
    lines = [("file", upload.name), ("of the file", upload.source), ("size (pixels)", f"{side} x {side}")]
    if upload.side != side:
        lines.append(("averaged from", f"{upload.side} x {upload.side}"))
    lines.append((heading_of("DT"), f"{central_dt(values, side):.4g}"))
    if side >= DT40_SIDE:
        lines.append((heading_of("DT40"), f"{central_dt(values, DT40_SIDE):.4g}"))
    for name, value in (("lowest", values.min()), ("mean", values.mean()), ("highest", values.max())):
        lines.append((f"{name} (K, °C)", f"{value:.5g}"))
    if upload.place is not None:
        lines += [(title_of(name), f"{value:.4g}") for name, value in zip(("US0", "US1"), upload.place, strict=True)]
    cells = "".join(f"<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>" for name, text in lines if text)
    return f"<table class='facts'>{cells}</table>"


def _size(side: int) -> str:
    return f"{side} x {side} pixels"


def upload_taken(upload: Upload) -> str:
    """Return the plain-text message on an accepted image."""
    said = [f"{upload.name} is shown under New image."]
    if upload.source:
        other = "; Row chooses another" if upload.source.startswith("row ") else ""
        said.append(f"It is {upload.source} of the file{other}.")
    if upload.side != len(upload.image):
        said.append(
            f"It was averaged from {_size(upload.side)} to the size of the cutouts, {_size(len(upload.image))}."
        )
    return " ".join(said)


def upload_refused(reason: str, shown: str) -> str:
    """Return the plain-text message on a refused image: reason, and image still shown."""
    return f"Refused: {reason.rstrip('.')}. Still shown: {shown}."


def caption(row: Mapping[str, Any]) -> str:
    """Return one line on a cutout, plain text for a tooltip."""
    parts = [place(row), shown(row["datetime"]) if row.get("datetime") is not None else ""]
    if row.get("DT") is not None:
        parts.append(f"DT {shown(float(row['DT']))} K")
    return ", ".join(part for part in parts if part)


def filter_text(item: Filter) -> str:
    """Return a filter in words: `map: 20°N to 35°N, 170°E to 160°W`."""
    if isinstance(item, Box):
        return f"{_PLANES[item.plane]}: {_area(item.plane, item.x, item.y)}"
    if isinstance(item, Lasso):
        x, y = zip(*item.points, strict=True)
        area = _area(item.plane, (min(x), max(x)), (min(y), max(y)))
        return f"{_PLANES[item.plane]} lasso of {len(item.points)} corners: within {area}"
    quantity = quantity_of(item.column)
    name, unit = quantity.title, quantity.unit.replace("deg ", "°")
    if isinstance(item, Category):
        more = f" and {len(item.values) - 3} more" if len(item.values) > 3 else ""
        return f"{name}: {', '.join(item.values[:3])}{more}"
    if item.column in ("lat", "lon"):
        return f"{name}: {_degrees(item.low, item.high, item.column)}"
    return f"{name}: {_between(item.low, item.high)}{' ' + unit if unit else ''}"


def _area(plane: str, x: tuple[float, float], y: tuple[float, float]) -> str:
    if plane == "umap":
        return f"US0 {_between(*x)}, US1 {_between(*y)}"
    lat = _degrees(max(y[0], -90.0), min(y[1], 90.0), "lat")
    return f"{lat}, {_degrees(*x, 'lon') if x[1] - x[0] < 360 else 'all longitudes'}"


def _decimals(low: float, high: float) -> int:
    """Return the number of decimals that resolves a hundredth of the difference of two numbers."""
    return max(0, 1 - math.floor(math.log10(high - low))) if high > low else 2


def _between(low: float, high: float) -> str:
    """Return a range of numbers with digits appropriate to its width."""
    if _decimals(low, high) > 5 or max(abs(low), abs(high)) >= 1e6:
        return f"{low:.4g} to {high:.4g}"
    digits = 0 if low == round(low) and high == round(high) else _decimals(low, high)
    ends = [f"{value:.{digits}f}" for value in (low, high)]
    return ends[0] if ends[0] == ends[1] else " to ".join(ends)


def _degrees(low: float, high: float, axis: str) -> str:
    """Return a range of latitudes or longitudes with their hemispheres; longitudes may exceed 180."""
    digits, ends = min(2, _decimals(low, high)), []
    for value in (low, high):
        value = round((value + 180) % 360 - 180 if axis == "lon" else value, digits)
        side = "" if value in (0, 180, -180) else ("NE" if value > 0 else "SW")[axis == "lon"]
        ends.append(f"{abs(value):.{digits}f}°{side}")
    return ends[0] if ends[0] == ends[1] else " to ".join(ends)


def chips(
    filters: Sequence[Filter], *, pictures: bool = True, planes: Iterable[str] = ("umap", "map"), latents: bool = True
) -> str:
    """Return the active filters, each with a button to remove it; without filters, a hint to start.

    Args:
        filters: the active ones.
        pictures: whether cutouts are shown and can be clicked.
        planes: the available ones of UMAP and map.
        latents: whether similar cutouts can be searched.
    """
    if not filters:
        points = " or ".join(f"the {_PLANES[name]}" for name in planes)
        what = ("a cutout" if pictures else "a row of the table") + (f", or a point of {points}" if points else "")
        then = "the most similar cutouts appear at the lower right" if latents else "it is shown at the upper right"
        return _START.format(what, then)
    return "".join(
        f"<button class='chip' data-action='remove:{escape(item.slot, quote=True)}' "
        f"title='remove this filter'>{escape(filter_text(item))} <b aria-hidden='true'>✕</b></button>"
        for item in filters
    )


def count(selected: int, total: int) -> str:
    """Return the number of selected rows."""
    share = f" ({selected / total:.1%})" if selected < total else ""
    return f"<output id='count' data-selected='{selected}'><b>{selected:,}</b> of {total:,} cutouts{share}</output>"


def near_list(rows: Sequence[Mapping[str, Any]], numbers: Sequence[int], cosine: Sequence[float]) -> str:
    """Return similar cutouts as a list, closest first; a click shows one."""
    names = [n for n in ("place", "datetime", "DT") if any(_near_cell(row, n) for row in rows)]
    head = "".join(f"<th scope='col'>{text}</th>" for text in ("row", *map(_title, names), "cosine"))
    body = "".join(
        f"<tr data-action='row:{number}' tabindex='0'><td>{number}</td>"
        + "".join(f"<td>{_near_cell(row, n) or '-'}</td>" for n in names)
        + f"<td>{close:.4f}</td></tr>"
        for row, number, close in zip(rows, numbers, cosine, strict=True)
    )
    return f"<table class='rows'><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _near_cell(row: Mapping[str, Any], name: str) -> str:
    if name == "place":
        return place(row)
    return shown(row[name]) if row.get(name) is not None else ""


def table(rows: Sequence[Mapping[str, Any]], numbers: Sequence[int], first: int, total: int) -> str:
    """Return one page of the selected rows; a click on one shows its cutout."""
    if not rows:
        return "<p class='hint'>No rows are selected.</p>"
    names = [n for n in _TABLE if n in rows[0]] + [n for n in rows[0] if n not in _TABLE]
    head = "".join(f"<th scope='col'>{_title(name)}</th>" for name in names)
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
    intro = "<p class='hint'>All rows are selected: add filters to compare a part with all.</p>" if whole else ""
    parts = []
    for name, lines in found.comparisons.items():
        kept = lines[lines["whole"] > 0]
        body = "".join(
            f"<tr><th{_bounds(name, part)}>{escape(part)}</th><td>{line.selected:,}</td>"
            f"<td>{line.whole:,}</td><td>{_ratio(line)}</td></tr>"
            for part, line in zip(kept["name"].astype(str), kept.itertuples(), strict=True)
        )
        text = (
            f"<table class='rows stat-{name}'><thead><tr><th>{name}</th><th>selected</th><th>all</th>"
            f"<th>times chance</th></tr></thead><tbody>{body}</tbody></table>"
        )
        if name == "region":
            text = f"<div>{text}{_regions(found, lines['name'][lines['whole'] == 0])}</div>"
        parts.append(text)
    if not {"season", "year"} & set(found.comparisons):
        parts.append("<p class='hint'>No seasons, years or trend: the table has no dates (column datetime).</p>")
    elif not whole:  # the trend of all rows is trivial
        parts.append(_trend(found))
    body = "".join(f"<tr><th>{escape(n)}</th><td>{a:.4g}</td><td>{b:.4g}</td></tr>" for n, a, b in found.medians)
    parts.append(
        "<table class='rows'><thead><tr><th>median</th><th>selected</th><th>all</th></tr></thead>"
        f"<tbody>{body}</tbody></table>"
    )
    return f"{intro}{_CHANCE if found.comparisons else ''}<div class='stats'>{''.join(parts)}</div>"


def _trend(found: Summary) -> str:
    line = found.trend
    if line is None:
        return "<p class='trend'>trend: fewer than three years</p>"
    return (
        f"<p class='trend' title='a line through the shares of {line.years} years, weighted by rows; the "
        f"error is from counting, or from the scatter about the line if larger'>trend of its share of each year's "
        f"rows: {100 * line.slope:+.3g} ± {100 * line.error:.2g} percentage points a year</p>"
    )


def _bounds(kind: str, name: str) -> str:
    """Return the bounds of a region as a tooltip."""
    if kind != "region":
        return ""
    region = REGIONS[name]
    return f" title='{_degrees(*region.lat, 'lat')}, {_degrees(*region.lon, 'lon')}'"


def _regions(found: Summary, empty: Iterable[str]) -> str:
    """Return a note on the regions, and on rows and regions absent from the table."""
    chosen, whole = found.elsewhere
    said = f"Regions are boxes defined in publications (hover for bounds); {chosen:,} selected "
    said += f"and {whole:,} of all rows are in none of them."
    without = ", ".join(empty)
    return f"<p class='hint elsewhere'>{said}{f' No row is in {without}.' if without else ''}</p>"


def _ratio(line: Any) -> str:
    """Return the frequency of the selection relative to chance, with its interval."""
    if math.isnan(line.ratio):
        return "-"
    ends = (
        ""
        if math.isnan(line.ratio_low)
        else f" <span class='hint'>{line.ratio_low:.2f} to {line.ratio_high:.2f}</span>"
    )
    return f"<meter min='0' max='4' value='{line.ratio:.3f}'></meter> {line.ratio:.2f}{ends}"
