"""Export of the portal to a folder that any browser shows without a server."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import bokeh
import numpy as np
from bokeh.core.json_encoder import serialize_json
from bokeh.document import Document
from bokeh.embed.util import standalone_docs_json_and_render_items
from bokeh.models import ColumnDataSource, TapTool
from numpy.typing import NDArray

from nenya.errors import NenyaError, OutputError
from nenya.options.commands import PortalOptions
from nenya.portal import pages, pictures
from nenya.portal.dataset import Dataset
from nenya.portal.png import coloured
from nenya.portal.state import PLANES
from nenya.portal.theme import Theme, plain
from nenya.portal.views import Histogram, Plane
from nenya.portal.work import cells_for
from nenya.storage.disk import sweep, temporary_name
from nenya.storage.small_files import refuse_link
from nenya.storage.texts import shown
from nenya.tables.quantities import title_of

IntArray = NDArray[np.int64]

_CHARTS = 8
_SHEET = (10, 6)
_INDEX, _RANDOM, _LOW, _HIGH = "index.html", "random", "low_dt", "high_dt"
_PAGE = {_INDEX, *(f"{key}.png" for key in (_RANDOM, _LOW, _HIGH))}

_BOKEH = Path(bokeh.__file__).parent / "server/static/js"


def write_page(dataset: Dataset, folder: Path, name: str, options: PortalOptions) -> Path:
    """Write a folder with `index.html` and sheets of cutouts; everything else is inlined.

    Args:
        dataset: the data to show.
        folder: created; it is either absent or complete.
        name: of the table.
        options: `sample`, `seed` and `clobber` are used.

    Returns:
        The path of the page.

    Raises:
        OutputError: The folder exists (without clobber), or cannot be written.
    """
    sweep(folder.parent)
    _check_place(folder, clobber=options.clobber)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error.strerror or error}") from error
    temporary = temporary_name(folder)
    try:
        temporary.mkdir()
        sheets = _write_sheets(dataset, temporary, options.seed)
        (temporary / _INDEX).write_text(_page(dataset, name, options, sheets))
        old = temporary_name(folder)  # a kill leaves the old page or the new one, never a part
        if folder.exists():
            os.replace(folder, old)
        os.replace(temporary, folder)
        shutil.rmtree(old, ignore_errors=True)
    except NenyaError:
        raise
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder / _INDEX


def _check_place(folder: Path, *, clobber: bool) -> None:
    """Check that a page can be written, and that overwriting removes nothing but a page."""
    refuse_link(folder)
    if not folder.exists():
        return
    if not folder.is_dir():
        raise OutputError(f"{folder} is a file, expected the name of a folder: name another place")
    if not clobber:
        raise OutputError(f"{folder} exists (clobber=true overwrites it, export= names another path)")
    found = {path.name for path in folder.iterdir()}
    others = sorted(found - _PAGE if _INDEX in found else found)
    if others:
        said = ", ".join(shown(name, 80) for name in others[:3])
        raise OutputError(f"{folder} holds files other than an exported page ({said}): name another place")


def _html(figures: list[Any], **values: Any) -> str:
    """Return a complete page, which runs only Bokeh's scripts and its own."""
    document = Document()
    for figure in figures:
        document.add_root(figure)
    docs, (item,) = standalone_docs_json_and_render_items(figures)
    scripts = [(_BOKEH / f"{name}.min.js").read_text() for name in ("bokeh", "bokeh-widgets")]
    scripts += [pages.text_of(f"{name}.js") for name in ("longitudes", "export")]
    return pages.render(
        "export.html",
        policy=pages.file_policy(scripts),
        scripts=scripts,
        settings={**values.pop("settings"), "docs": json.loads(serialize_json(docs)), "item": item.to_json()},
        roots=[(root.elementid, root.id) for root in item.roots],
        **values,
    )


def _write_sheets(dataset: Dataset, folder: Path, seed: int) -> list[tuple[str, str]]:
    """Write sheets of cutouts; return their file names and titles."""
    if dataset.cutouts is None:
        return []
    rng, columns, rows = np.random.default_rng(seed), dataset.columns, dataset.first_rows()
    most = min(_SHEET[0] * _SHEET[1], len(rows))
    chosen: dict[str, tuple[str, IntArray]] = {
        _RANDOM: ("cutouts drawn at random", rows[rng.choice(len(rows), most, replace=False)]),
    }
    if "DT" in columns.metrics():
        dt = columns.values("DT")[rows]
        chosen[_LOW] = ("the smallest DT", rows[np.argsort(dt, kind="stable")[:most]])
        chosen[_HIGH] = ("the largest DT", rows[np.argsort(np.where(np.isnan(dt), np.inf, -dt), kind="stable")[:most]])
    found = []
    for key, (title, rows) in chosen.items():
        images = dataset.cutouts.of(rows)
        span = pictures.colour_range(images)
        lines = -(-len(rows) // _SHEET[0])
        (folder / f"{key}.png").write_bytes(coloured(pictures.sheet(images, _SHEET[0], lines, own_scale=False), span))
        found.append((f"{key}.png", f"{title} (colours from {span[0]:.2f} to {span[1]:.2f} K)"))
    return found


def _page(dataset: Dataset, name: str, options: PortalOptions, sheets: list[tuple[str, str]]) -> str:
    """Return the page: planes and histograms of one sample of rows, linked by a script."""
    columns, theme = dataset.columns, Theme()
    rng = np.random.default_rng(options.seed)
    rows = dataset.first_rows()
    some = np.sort(rows[rng.choice(len(rows), min(options.sample, len(rows)), replace=False)])
    names = columns.metrics()[:_CHARTS]
    planes = {n: axes for n, axes in PLANES.items() if all(a in columns for a in axes)}
    wanted = {*names, *(axis for axes in planes.values() for axis in axes)}
    source = ColumnDataSource(
        {"index": some, **{column: columns.values(column)[some] for column in wanted}}, name="rows"
    )
    charts = [Histogram(columns.binned(column), theme) for column in names]
    views = [_plane(dataset, view, axes, source, theme) for view, axes in planes.items()]
    for view in views:
        view.colours.cells[0].name, view.outline.name = f"front {view.name}", f"outline {view.name}"
    for number, chart in enumerate(charts):
        chart.plot.update(width=300, height=130, sizing_mode=None)
        chart.source.name, chart.range.name, chart.plot.xaxis[0].name = (
            f"{kind} {number}" for kind in ("bars", "range", "axis")
        )
    for plot in (*(view.plot for view in views), *(chart.plot for chart in charts)):
        plot.tools = [tool for tool in plot.tools if not isinstance(tool, TapTool)]  # without a server it shows nothing
    settings = {
        "planes": {n: list(axes) for n, axes in planes.items()},
        "charts": [
            [column, chart.plot.name, plain(title_of(column))] for column, chart in zip(names, charts, strict=True)
        ],
    }
    return _html(
        [*(view.plot for view in views), *(chart.plot for chart in charts)],
        settings=settings,
        name=name,
        rows=len(rows),
        sample=len(some),
        planes=len(views),
        sheets=sheets,
    )


def _plane(dataset: Dataset, name: str, axes: tuple[str, str], source: ColumnDataSource, theme: Theme) -> Plane:
    x, y = (dataset.columns.values(axis) for axis in axes)
    home = (-180.0, 180.0, -85.0, 85.0) if name == "map" else pictures.extent_of(x, y)
    plane = Plane(name, home, theme)
    around = 360.0 if name == "map" else None
    mask = dataset.masks.all_of(dataset.first)
    whole = pictures.raster(x, y, home, cells_for(dataset.columns.rows, name), mask=mask, around=around)
    plane.show(whole, whole, home, "")
    plane.plot.update(width=600, height=430, sizing_mode=None)
    plane.plot.scatter(
        axes[0], axes[1], source=source, size=5, line_color=None, fill_color=theme.mark, fill_alpha=0.0,
        selection_fill_alpha=0.9, nonselection_fill_alpha=0.0, name="sample",
    )  # fmt: skip
    plane.plot.title.text = f"{'Map' if name == 'map' else 'UMAP'}: cutouts in each cell; red: selected ones"
    return plane
