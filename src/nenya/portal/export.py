"""The portal's essentials as a folder that any browser shows without a server."""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from bokeh.embed import components
from bokeh.events import SelectionGeometry
from bokeh.layouts import column, row
from bokeh.models import Button, ColumnDataSource, CustomJS, Div
from bokeh.resources import INLINE
from numpy.typing import NDArray

from nenya.analysis_options import PortalOptions
from nenya.errors import OutputError
from nenya.portal import pictures
from nenya.portal.archive import Archive
from nenya.portal.columns import title_of
from nenya.portal.downloads import coloured
from nenya.portal.state import PLANES
from nenya.portal.theme import Theme
from nenya.portal.views import Histogram, Plane
from nenya.portal.work import cells_for
from nenya.temporaries import sweep, temporary_name

IntArray = NDArray[np.int64]

_CHARTS = 8
_SHEET = (10, 6)

# One geometry or range for each view; the rows that pass all are selected, counted and drawn.
_APPLY = """
const filters = store.tags[0];
if (cb_obj.geometry === undefined) { for (const view in filters) delete filters[view]; }
else {
  if (!cb_obj.final) return;
  filters[name] = cb_obj.geometry;
}
const data = source.data, count = data.index.length;
const inside = (g, x, y) => {
  if (g.type === "rect") return x >= Math.min(g.x0, g.x1) && x <= Math.max(g.x0, g.x1) &&
    (y === undefined || (y >= Math.min(g.y0, g.y1) && y <= Math.max(g.y0, g.y1)));
  let odd = false;
  for (let i = 0, j = g.x.length - 1; i < g.x.length; j = i++)
    if ((g.y[i] > y) !== (g.y[j] > y) && x < (g.x[j] - g.x[i]) * (y - g.y[i]) / (g.y[j] - g.y[i]) + g.x[i]) odd = !odd;
  return odd;
};
const chosen = [];
for (let i = 0; i < count; i++) {
  let keep = true;
  for (const [view, g] of Object.entries(filters)) {
    if (planes[view] === undefined) { keep = inside(g, data[view][i]); }
    else {
      const [xs, ys] = planes[view], x = data[xs][i], y = data[ys][i];
      keep = view === "map" ? [-360, 0, 360].some((turn) => inside(g, x + turn, y)) : inside(g, x, y);
    }
    if (!keep) break;
  }
  if (keep) chosen.push(i);
}
const none = Object.keys(filters).length === 0;
source.selected.indices = none ? [] : chosen;
for (const [view, [front, outline]] of Object.entries(shown)) {
  front.visible = none;  // the grey density behind it stays
  const g = filters[view];
  if (g === undefined) outline.data = {xs: [], ys: []};
  else if (g.type === "rect") outline.data = {xs: [[g.x0, g.x1, g.x1, g.x0]], ys: [[g.y0, g.y0, g.y1, g.y1]]};
  else outline.data = {xs: [Array.from(g.x)], ys: [Array.from(g.y)]};
}
for (const [column, range] of Object.entries(ranges)) {
  const g = filters[column];
  if (g !== undefined) range.setv({left: Math.min(g.x0, g.x1), right: Math.max(g.x0, g.x1)});
  range.visible = g !== undefined;
}
for (const [column, bars] of Object.entries(charts)) {
  const left = bars.data.left, right = bars.data.right, n = left.length, sums = new Array(n).fill(0);
  const low = left[0], width = right[0] - left[0];
  for (const i of chosen) {
    const value = data[column][i];
    if (Number.isFinite(value)) sums[Math.min(n - 1, Math.max(0, Math.floor((value - low) / width)))]++;
  }
  const total = Math.max(1, sums.reduce((a, b) => a + b, 0));
  bars.data = Object.assign({}, bars.data, {chosen: sums.map((s) => s / total)});
  const tallest = 100 * Math.max(...bars.data.chosen, ...bars.data.whole);
  const share = tallest < 10 ? tallest.toPrecision(2) : tallest.toFixed(0);
  axes[column].axis_label = `${titles[column]}; bars up to ${share} %`;
}
said.text = "<b>" + chosen.length + "</b> of " + count + " cutouts of the sample" +
  (none ? "" : " selected (red); filters: " + Object.keys(filters).join(", "));
"""


def write_page(archive: Archive, folder: Path, name: str, options: PortalOptions) -> Path:
    """Write a folder with `index.html` and sheets of cutouts; all else is inlined.

    Args:
        archive: what is shown.
        folder: is made; absent or whole.
        name: of the table.
        options: `sample`, `seed` and `clobber` are used.

    Returns:
        The page.

    Raises:
        OutputError: The folder exists (without clobber), or cannot be written.
    """
    sweep(folder.parent)
    if folder.exists() and not options.clobber:
        raise OutputError(f"{folder} exists already: clobber=true replaces it, export= names another place")
    if folder.exists() and not (folder / "index.html").is_file() and any(folder.iterdir()):
        raise OutputError(f"{folder} holds other things than an exported page: name another place")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error.strerror or error}") from error
    temporary = temporary_name(folder)
    try:
        temporary.mkdir()
        sheets = _write_sheets(archive, temporary, options.seed)
        body = _layout(archive, name, options, sheets)
        (temporary / "index.html").write_text(_html(body, f"Nenya: {name}"))
        old = temporary_name(folder)  # no kill leaves a part of the page that is replaced
        if folder.exists():
            os.replace(folder, old)
        os.replace(temporary, folder)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder / "index.html"


def _html(body: Any, title: str) -> str:
    """Return a whole page; Bokeh's own way to it is one that Panel changes for its server."""
    script, div = components(body)
    library = "".join(f"<script>{text}</script>" for text in INLINE.js_raw)
    return (
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{_escaped(title)}</title>"
        f"{library}</head><body>{div}{script}</body></html>"
    )


def _write_sheets(archive: Archive, folder: Path, seed: int) -> list[tuple[str, str]]:
    """Write sheets of cutouts; return their file names and what they show."""
    if archive.cutouts is None:
        return []
    rng, columns = np.random.default_rng(seed), archive.columns
    most = min(_SHEET[0] * _SHEET[1], columns.rows)
    chosen: dict[str, tuple[str, IntArray]] = {
        "random": ("cutouts drawn at random", rng.choice(columns.rows, most, replace=False)),
    }
    if "DT" in columns.metrics():
        dt = columns.values("DT")
        chosen["low_dt"] = ("the smallest DT", np.argsort(dt, kind="stable")[:most])
        chosen["high_dt"] = ("the largest DT", np.argsort(np.where(np.isnan(dt), np.inf, -dt), kind="stable")[:most])
    found = []
    for key, (title, rows) in chosen.items():
        images = archive.cutouts.of(rows)
        span = pictures.colour_range(images)
        lines = -(-len(rows) // _SHEET[0])
        (folder / f"{key}.png").write_bytes(coloured(pictures.sheet(images, _SHEET[0], lines, own_scale=False), span))
        found.append((f"{key}.png", f"{title} (colours from {span[0]:.2f} to {span[1]:.2f} K)"))
    return found


def _layout(archive: Archive, name: str, options: PortalOptions, sheets: list[tuple[str, str]]) -> Any:
    """Return the page: planes and histograms over one source of sampled rows, linked by a script of its own."""
    columns, theme = archive.columns, Theme()
    rng = np.random.default_rng(options.seed)
    some = np.sort(rng.choice(columns.rows, min(options.sample, columns.rows), replace=False))
    names = columns.metrics()[:_CHARTS]
    planes = {n: axes for n, axes in PLANES.items() if all(a in columns for a in axes)}
    wanted = {*names, *(axis for axes in planes.values() for axis in axes)}
    source = ColumnDataSource({"index": some, **{column: columns.values(column)[some] for column in wanted}})
    store, said = Div(visible=False, tags=[{}]), Div(text=f"<b>{len(some)}</b> of {len(some)} cutouts of the sample")
    charts = {column: Histogram(columns.binned(column), theme) for column in names}
    views = {view: _plane(archive, view, axes, source, theme) for view, axes in planes.items()}
    figures = [plane.plot for plane in views.values()]
    shared = {
        "shown": {n: [plane.shown, plane.outline] for n, plane in views.items()},
        "ranges": {n: c.range for n, c in charts.items()},
        "axes": {n: c.plot.xaxis[0] for n, c in charts.items()}, "titles": {n: title_of(n) for n in charts},
        "source": source, "store": store, "said": said,
        "charts": {n: c.source for n, c in charts.items()}, "planes": {n: list(axes) for n, axes in planes.items()},
    }  # fmt: skip
    for key, plot in [*((f.name, f) for f in figures), *((n, c.plot) for n, c in charts.items())]:
        plot.js_on_event(SelectionGeometry, CustomJS(args={**shared, "name": key}, code=_APPLY))
    reset = Button(label="Reset", width=90)
    reset.js_on_event("button_click", CustomJS(args={**shared, "name": ""}, code=_APPLY))
    head = Div(
        text=f"<h2 style='margin:0'>Nenya: {_escaped(name)}</h2>{columns.rows:,} cutouts; the selection works on "
        f"{len(some):,} of them. Drag a box (or a lasso: second tool) in the UMAP or on the map, or a range over a "
        f"histogram: all intersect."
    )
    note = "<p>The sheets below were drawn once, of all cutouts: they do not follow the selection.</p>"
    pages = [Div(text=note)] if sheets else []
    pages += [
        Div(text=f"<h3>{title}</h3><img src='{file}' alt='{title}' style='max-width:100%'>") for file, title in sheets
    ]
    for chart in charts.values():
        chart.plot.update(width=300, height=130, sizing_mode=None)
    bars = [chart.plot for chart in charts.values()]
    rows = [row(*bars[i : i + 4]) for i in range(0, len(bars), 4)]
    return column(head, row(reset, said), store, row(*figures), *rows, *pages, name="portal")


def _plane(archive: Archive, name: str, axes: tuple[str, str], source: ColumnDataSource, theme: Theme) -> Plane:
    x, y = (archive.columns.values(axis) for axis in axes)
    home = (-180.0, 180.0, -85.0, 85.0) if name == "map" else pictures.extent_of(x, y)
    plane = Plane(name, home, theme)
    around = 360.0 if name == "map" else None
    whole = pictures.raster(x, y, home, cells_for(archive.columns.rows, name), around=around)
    plane.show(whole, whole, home, "")
    plane.plot.update(width=600, height=430, sizing_mode=None)
    plane.plot.scatter(
        axes[0], axes[1], source=source, size=5, line_color=None, fill_color=theme.mark, fill_alpha=0.0,
        selection_fill_alpha=0.9, nonselection_fill_alpha=0.0, name="sample",
    )  # fmt: skip
    plane.plot.title.text = f"{'Map' if name == 'map' else 'UMAP'}: cutouts in each cell; red: selected ones"
    return plane


def _escaped(text: str) -> str:
    from html import escape

    return escape(text)
