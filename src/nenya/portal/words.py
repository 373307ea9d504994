"""Text parts of the page: facts, tables, chips; `parts.html` has their HTML, and escapes data from files."""

import datetime
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nenya.defs import REGIONS
from nenya.portal.pages import part
from nenya.portal.question import Question
from nenya.portal.sets import Either, Rows, Without
from nenya.portal.spans import Months, span_name
from nenya.portal.state import Box, Category, Filter, Lasso
from nenya.portal.summary import Summary
from nenya.portal.upload import Upload
from nenya.tables.quantities import DT40_SIDE, central_dt, heading_of, quantity_of, title_of

if TYPE_CHECKING:
    import pandas as pd

_FACTS = (
    "tag",
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
    "clear",
    "cosine_low",
    "umap_spread",
    "mean_temperature",
)
_TABLE = ("tag", "datetime", "lat", "lon", "DT", "US0", "US1", "LL", "clear_fraction", "filename", "pp_file", "pp_idx")
_CHANGED_BADLY = (
    "The files of the archive were replaced by others that cannot be opened (see the server's log): this page shows "
    "the earlier state."
)
_PLANES = {"umap": "UMAP", "map": "map"}


def note(text: str) -> str:
    """Return a persistent notice."""
    return part("news", text=text)


def changed() -> str:
    """Return the notice that the archive has changed."""
    return part("changed")


def changed_badly() -> str:
    """Return the notice that the archive has changed to one that cannot be opened."""
    return note(_CHANGED_BADLY)


def shown(value: Any) -> str:
    """Return a value of a table as text."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, datetime.datetime):
        return value.strftime("%Y-%m-%d %H:%M")
    return str(value)[:200]


def place(row: Mapping[str, Any]) -> str:
    """Return latitude and longitude in words, such as 12.3 N, 140.0 W."""
    lat, lon = row.get("lat"), row.get("lon")
    if lat is None or lon is None or math.isnan(lat) or math.isnan(lon):
        return ""
    lon = (lon + 180) % 360 - 180
    return f"{abs(lat):.2f}° {'N' if lat >= 0 else 'S'}, {abs(lon):.2f}° {'E' if lon >= 0 else 'W'}"


def heading(title: str, what: str) -> str:
    """Return the heading of the primary image: kind and name."""
    return part("heading", title=title, what=what)


def facts(row: Mapping[str, Any], number: int) -> str:
    """Return the table of facts of one row."""
    lines: list[tuple[Any, str]] = [("place", place(row))] if place(row) else []
    names = [n for n in _FACTS if n in row and n not in ("lat", "lon")]
    rest = [n for n in row if n not in _FACTS and n not in ("lat", "lon")]
    lines += [(_title(name), shown(row[name])) for name in names]
    return part("facts", lines=lines, rest=[(_title(n), shown(row[n])) for n in rest], number=f"{number:,}")


def _title(name: str) -> dict[str, str]:
    """Return the short title of a column, with the full one as tooltip."""
    return {"title": title_of(name), "heading": heading_of(name)}


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
    return part("fact_table", lines=[line for line in lines if line[1]])


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


def card_lines(row: Mapping[str, Any]) -> list[str]:
    """Return a few facts on a cutout, for the card beside the mouse."""
    named = [f"{title_of(name)}: {shown(row[name])}" for name in ("cluster", "region", "LL") if name in row]
    named += [f"tag: {shown(row['tag'])}"] if row.get("tag") else []
    return [*caption(row).split(", ", 2), *named][:6]


def filter_text(item: Filter) -> str:
    """Return a filter in words: `map: 20°N to 35°N, 170°E to 160°W`."""
    if isinstance(item, Question):
        return item.text
    if isinstance(item, Rows):
        return item.title
    if isinstance(item, Months):
        return f"time: {span_name(item.first, item.last)}"
    if isinstance(item, Either):
        return " or ".join(_joined(branch) for branch in item.branches)
    if isinstance(item, Without):
        return f"not {_joined(item.filters)}"
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


def _joined(filters: Sequence[Filter]) -> str:
    texts = [filter_text(item) for item in filters]
    return texts[0] if len(texts) == 1 else f"({' and '.join(texts)})"


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
        return part("start", what=what, then=then)
    return part("chips", filters=[(item.slot, filter_text(item)) for item in filters])


def count(selected: int, total: int) -> str:
    """Return the number of selected rows."""
    share = f" ({selected / total:.1%})" if selected < total else ""
    return part("count", selected=selected, text=f"{selected:,}", total=f"{total:,}", share=share)


def near_list(rows: Sequence[Mapping[str, Any]], numbers: Sequence[int], cosine: Sequence[float]) -> str:
    """Return similar cutouts as a list, closest first; a click shows one."""
    names = [n for n in ("place", "datetime", "DT") if any(_near_cell(row, n) for row in rows)]
    lines = [
        (number, [str(number), *(_near_cell(row, n) or "-" for n in names), f"{close:.4f}"])
        for row, number, close in zip(rows, numbers, cosine, strict=True)
    ]
    return part("rows", names=["row", *map(_title, names), "cosine"], lines=lines)


def _near_cell(row: Mapping[str, Any], name: str) -> str:
    if name == "place":
        return place(row)
    return shown(row[name]) if row.get(name) is not None else ""


def table(rows: Sequence[Mapping[str, Any]], numbers: Sequence[int], first: int, total: int) -> str:
    """Return one page of the selected rows; a click on one shows its cutout."""
    present = list(rows[0]) if rows else []
    names = [n for n in _TABLE if n in present] + [n for n in present if n not in _TABLE]
    return part(
        "table",
        names=[_title(name) for name in names],
        lines=[(number, [shown(row[n]) for n in names]) for row, number in zip(rows, numbers, strict=True)],
        first=f"{first + 1:,}",
        last=f"{first + len(rows):,}",
        total=f"{total:,}",
        is_first=first == 0,
        is_last=first + len(rows) >= total,
    )


def statistics(found: Summary, whole: bool) -> str:
    """Return the comparison of the selection with all rows."""
    return part(
        "statistics",
        comparisons=[(name, _lines(name, lines[lines["whole"] > 0])) for name, lines in found.comparisons.items()],
        elsewhere=_elsewhere(found),
        dated=bool({"season", "year"} & set(found.comparisons)),
        all_rows=whole,
        line=_trend(found),  # that of all rows is trivial
        medians=[(name, f"{mine:.4g}", f"{of_all:.4g}") for name, mine, of_all in found.medians],
    )


def _lines(kind: str, lines: "pd.DataFrame") -> list[dict[str, Any]]:
    """Return the lines of a comparison."""
    return [
        {
            "name": name,
            "bounds": bounds_of(kind, name),
            "selected": f"{line.selected:,}",
            "whole": f"{line.whole:,}",
            "ratio": ratio_of(line),
        }
        for name, line in zip(lines["name"].astype(str), lines.itertuples(), strict=True)
    ]


def _trend(found: Summary) -> dict[str, str] | None:
    line = found.trend
    if line is None:
        return None
    return {"years": str(line.years), "slope": f"{100 * line.slope:+.3g}", "error": f"{100 * line.error:.2g}"}


def bounds_of(kind: str, name: str) -> str:
    """Return the bounds of a region as a tooltip."""
    if kind != "region":
        return ""
    region = REGIONS[name]
    return f"{_degrees(*region.lat, 'lat')}, {_degrees(*region.lon, 'lon')}"


def _elsewhere(found: Summary) -> tuple[str, str, str]:
    """Return the selected rows and all rows in no region, and the regions without a row."""
    chosen, whole = found.elsewhere
    lines = found.comparisons.get("region")
    without = "" if lines is None else ", ".join(lines["name"][lines["whole"] == 0])
    return f"{chosen:,}", f"{whole:,}", without


def ratio_of(line: Any) -> dict[str, str] | None:
    """Return the frequency of the selection relative to chance, with its interval; None if it is undefined."""
    if math.isnan(line.ratio):
        return None
    ends = "" if math.isnan(line.ratio_low) else f"{line.ratio_low:.2f} to {line.ratio_high:.2f}"
    return {"meter": f"{line.ratio:.3f}", "text": f"{line.ratio:.2f}", "ends": ends}
