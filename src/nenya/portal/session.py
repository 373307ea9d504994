"""One browser's page: its view, the figures and texts that show it, and what its actions change."""

import logging
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nenya.errors import InputFileError, NenyaError
from nenya.portal import pictures, summary, words
from nenya.portal.archive import Archive
from nenya.portal.columns import title_of
from nenya.portal.jobs import Jobs, Ticket
from nenya.portal.state import (
    PLANES,
    BoolArray,
    Filter,
    Selection,
    View,
    make_box,
    make_lasso,
    make_range,
)
from nenya.portal.views import Histogram, Picture, Plane, Sheet, Theme
from nenya.similarity import closest

log = logging.getLogger(__name__)

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]

PAGE_ROWS = 50
FIRST_CHARTS = 6
"""Histograms that a page opens with; the others are made when they are asked for."""
_CELLS = {"umap": (320, 320), "map": (360, 240)}
_NEAREST = 60
ORDERS = ("random", "table order")


@dataclass
class Upload:
    """An image that a user brought.

    Attributes:
        name: what the file was called.
        image: (H, W) float32, K, as it was given.
        latent: (D,) float32.
    """

    name: str
    image: FloatArray
    latent: FloatArray


class Session:
    """The state of one page.

    Args:
        archive: what all sessions share.
        pool: threads that all sessions share.
        call: has a function called by the page's own thread.
        theme: colours.
        view: at first.

    Attributes:
        key: a secret name, by which downloads and uploads find this session.
        selection: what is selected.
        shown: the filters that the page shows the rows of; others while a selection goes on.
        planes: the UMAP and the map, where the table has them.
        histograms: by column.
        texts: pieces of the page by name; `show_text` is called when one changes.
    """

    def __init__(
        self,
        archive: Archive,
        pool: ThreadPoolExecutor,
        call: Callable[[Callable[[], None]], None],
        theme: Theme,
        view: View | None = None,
    ) -> None:
        self.archive, self.theme, self.key = archive, theme, secrets.token_urlsafe(18)
        self.selection = Selection(view or View())
        self.jobs = Jobs(pool, call, self._say)
        columns = archive.columns
        homes = {"map": (-180.0, 180.0, -85.0, 85.0)}
        if "UMAP" not in columns.missing:
            homes["umap"] = pictures.extent_of(columns.values("US0"), columns.values("US1"))
        self.planes = {n: Plane(n, homes[n], theme) for n in ("umap", "map") if _TITLES[n] not in columns.missing}
        self.histograms = {name: Histogram(columns.binned(name), theme) for name in columns.metrics()[:FIRST_CHARTS]}
        self.gallery = Sheet("gallery", theme)
        self.near = Sheet("near", theme, 88, bar=False)
        self.primary = Picture(theme)
        self.texts: dict[str, str] = {
            **{"count": words.count(columns.rows, columns.rows), "filters": words.chips(()), "status": ""},
            **{"facts": "", "table": "", "stats": "", "near_note": ""},
        }
        self.show_text: Callable[[str, str], None] = lambda name, text: None
        self.changed: Callable[[], None] = lambda: None
        self.span_changed: Callable[[tuple[float, float], tuple[float, float]], None] = lambda span, ends: None
        self.order, self.descending = "random", False
        self.near_filtered, self.near_other_granules = True, True
        self.mask: BoolArray | None = None
        self.ordered: IntArray = np.empty(0, np.int64)
        self.tab = "gallery"
        self.shown: tuple[Filter, ...] | None = None
        self.page = self.sheet_page = 0
        self.gallery_rows: IntArray = np.empty(0, np.int64)
        self.near_rows: IntArray = np.empty(0, np.int64)
        self.gallery_picture: FloatArray | None = None
        self.upload: Upload | None = None
        self._near_found: tuple[IntArray, NDArray[np.float64]] | None = None

    # What users do

    def geometry(self, plane: str, geometry: dict[str, Any]) -> None:
        """Take a box or a lasso that was drawn in the UMAP or on the map."""
        try:
            if geometry.get("type") == "rect":
                ends = geometry["x0"], geometry["x1"], geometry["y0"], geometry["y1"]
                self.selection.add(make_box(plane, ends[:2], ends[2:]))
            elif geometry.get("type") == "poly":
                self.selection.add(make_lasso(plane, list(zip(geometry["x"], geometry["y"], strict=True))))
            else:
                return
        except (ValueError, TypeError, KeyError):
            return  # a click that became a box without an area, or a lasso of two points
        self.refresh()

    def brush(self, column: str, low: float, high: float) -> None:
        """Take a range that was drawn over a histogram."""
        values = self.archive.columns.values(column)
        self.selection.add(make_range(column, *self.histograms[column].ends(low, high, values)))
        self.refresh()

    def add_range(self, column: str, low: float, high: float) -> None:
        """Take a range that was typed.

        Raises:
            InputFileError: A number is missing.
        """
        try:
            self.archive.columns.values(column)
            self.selection.add(make_range(column, low, high))
        except (KeyError, ValueError, TypeError):
            raise InputFileError("a filter wants a column of numbers, a lowest and a highest value") from None
        self.refresh()

    def act(self, text: str) -> None:
        """Do what a button, a key or a click on the page asks for: `undo`, `remove:map`, `row:17` ..."""
        name, _, value = text.partition(":")
        if name == "undo":
            if self.selection.undo():
                self.refresh()
        elif name == "reset":
            self.selection.reset()
            self.refresh()
        elif name == "remove":
            self.selection.remove(value)
            self.refresh()
        elif name == "cancel":
            self.jobs.cancel()
            self._say("stopped", False)
        elif name == "row" and value.isdigit() and int(value) < self.archive.columns.rows:
            self.show_row(int(value))
        elif name == "tab":
            self.tab = value
            self._show_table()
            self._show_statistics()
        elif name == "page" and value in ("1", "-1"):
            self.turn(int(value))
        elif name == "sheet" and value in ("1", "-1"):
            self.sheet_page = max(0, self.sheet_page + int(value))
            self.draw_gallery()
        elif name == "step" and value in ("1", "-1"):
            self.step(int(value))

    def more_charts(self) -> list[Histogram]:
        """Make the histograms that the page does not have yet."""
        columns = self.archive.columns
        new = {n: Histogram(columns.binned(n), self.theme) for n in columns.metrics() if n not in self.histograms}
        for name, chart in new.items():
            chart.show(pictures.histogram(chart.binned, self.mask), self.selection.view.filters)
            self.histograms[name] = chart
        return list(new.values())

    def turn(self, step: int) -> None:
        """Turn the table's page."""
        last = max(0, (len(self.ordered) - 1) // PAGE_ROWS)
        self.page = min(max(0, self.page + step), last)
        self._show_table()

    def step(self, step: int) -> None:
        """Make the next, or the last, cutout of the gallery the primary one."""
        rows = self.gallery_rows.tolist()
        if rows:
            here = rows.index(self.selection.view.row) if self.selection.view.row in rows else -1
            self.show_row(rows[(here + step) % len(rows) if here >= 0 else 0])

    def tap(self, plane: str, x: float, y: float) -> None:
        """Make the selected cutout closest to a place of the UMAP or the map the primary one."""
        view, columns = self.selection.view, self.archive.columns
        left, right, low, high = self.planes[plane].extent

        def work(_: Ticket) -> int | None:
            mask = self.archive.masks.all_of(view.filters)
            across, up = (columns.values(name) for name in PLANES[plane])
            if plane == "map":
                away = np.abs(np.mod(across - np.float32(x) + 180, 360) - 180)
            else:
                away = np.abs(across - np.float32(x))
            distance = (away / (right - left)) ** 2 + ((up - np.float32(y)) / (high - low)) ** 2
            if mask is not None:
                distance = np.where(mask, distance, np.inf)
            best = int(np.nanargmin(distance)) if np.isfinite(distance).any() else None
            return best if best is not None and distance[best] < 0.03**2 else None

        def done(row: int | None) -> None:
            if row is None:
                self._say("No selected cutout lies there: click nearer to one.", False)
            else:
                self.show_row(row)

        self.jobs.start("tap", work, done)

    def show_row(self, row: int) -> None:
        """Make a row's cutout the primary one, and look for its neighbours."""
        self.upload = None
        self.selection.show(row=row)
        self.changed()
        self.draw_primary()
        self.find_near()

    def show_upload(self, upload: Upload) -> None:
        """Make an image that a user brought the primary one, and look for its neighbours."""
        self.upload = upload
        self.draw_primary()
        self.find_near()

    def set_order(self, order: str, descending: bool) -> None:
        """Choose the order of the gallery and the table."""
        self.order, self.descending = order, descending
        self.refresh()

    def set_colour(self, colour: str) -> None:
        """Choose what the colours of the UMAP and the map mean."""
        self.selection.show(colour=colour)
        self.changed()
        for name in self.planes:
            self.draw_plane(name)

    def set_scale(self, scale: str) -> None:
        """Choose whether the gallery's cutouts share a colour scale."""
        self.selection.show(scale=scale)
        self.changed()
        self.draw_gallery()
        self._draw_near()

    def set_near(self, *, filtered: bool, other_granules: bool) -> None:
        """Choose which neighbours are shown."""
        self.near_filtered, self.near_other_granules = filtered, other_granules
        self.find_near()

    # What is drawn

    def refresh(self) -> None:
        """Draw all that depends on the selection."""
        view, archive, order, descending = self.selection.view, self.archive, self.order, self.descending
        charts = dict(self.histograms)
        self._text("filters", words.chips(view.filters))
        for plane in self.planes.values():
            plane.outline_of(view.filters)
        self.changed()

        def work(ticket: Ticket) -> tuple[BoolArray | None, IntArray, dict[str, NDArray[np.int64]]]:
            mask = archive.masks.all_of(view.filters)
            ticket.tick(0.3)
            counts = {n: pictures.histogram(h.binned, mask) for n, h in charts.items()}
            ticket.tick(0.6)
            return mask, ordered_rows(archive, mask, order, descending), counts

        def done(result: tuple[BoolArray | None, IntArray, dict[str, NDArray[np.int64]]]) -> None:
            self.mask, self.ordered, counts = result
            self.shown = view.filters
            self._text("count", words.count(len(self.ordered), archive.columns.rows))
            for name, chart in charts.items():
                chart.show(counts[name], view.filters)
            for name in self.planes:
                self.draw_plane(name)
            self.page = self.sheet_page = 0
            self.draw_gallery()
            self._show_table()
            self._show_statistics()
            if self.near_filtered and (self.upload or view.row is not None):
                self.find_near()
            if self.selection.view.row is None and len(self.ordered) and not self.upload:
                self.show_row(int(self.ordered[0]))

        self.jobs.start("selection", work, done, title="selecting")

    def draw_plane(self, name: str) -> None:
        """Draw the UMAP or the map as it is zoomed now."""
        plane, view, columns = self.planes[name], self.selection.view, self.archive.columns
        extent, filtered = plane.extent, bool(view.filters)
        if not extent[0] < extent[1] or not extent[2] < extent[3]:
            return

        def work(ticket: Ticket) -> tuple[FloatArray | None, FloatArray]:
            mask = self.archive.masks.all_of(view.filters)
            x, y = (columns.values(column) for column in PLANES[name])
            around = 360.0 if name == "map" else None
            shape = cells_for(columns.rows, name)
            values = columns.values(view.colour) if view.colour != "count" else None
            whole = pictures.raster(x, y, extent, shape, around=around) if filtered else None
            ticket.tick(0.5)
            return whole, pictures.raster(x, y, extent, shape, mask=mask, values=values, around=around)

        title = title_of(view.colour) if view.colour != "count" else ""
        self.jobs.start(f"draw {name}", work, lambda found: plane.show(found[0], found[1], extent, title))

    def draw_gallery(self) -> None:
        """Draw the gallery's page of cutouts."""
        archive, most, sheet = self.archive, self.gallery.most, self.gallery
        if archive.cutouts is None:
            return
        last = max(0, (len(self.ordered) - 1) // most)
        self.sheet_page = min(self.sheet_page, last)
        rows = self.ordered[self.sheet_page * most : (self.sheet_page + 1) * most]
        shape = (sheet.columns, sheet.rows)
        own = self.selection.view.scale == "own"

        def work(ticket: Ticket) -> Any:
            return draw_sheet(archive, rows, shape, own, ticket)

        def done(result: Any) -> None:
            picture, span, facts = result
            self.gallery_rows, self.gallery_picture = rows, picture
            sheet.show(picture, span, [words.caption(row) for row in facts], [""] * len(facts))

        self.jobs.start("gallery", work, done, title="drawing cutouts")

    def draw_primary(self) -> None:
        """Show the primary image, its facts and its places."""
        row, upload, columns = self.selection.view.row, self.upload, self.archive.columns
        if upload is not None:
            self._show_picture(upload.image)
            side = len(upload.image)
            self._text("facts", f"<p><b>New image</b> {escape(upload.name)}, {side} pixels a side</p>")
            for plane in self.planes.values():
                plane.mark_at(None, None)
            return
        if row is None:
            return
        self._text("facts", words.facts(columns.row(row), row))
        for name, plane in self.planes.items():
            x, y = (float(columns.values(column)[row]) for column in PLANES[name])
            plane.mark_at(x, y)
        if self.archive.cutouts is not None:
            cutouts = self.archive.cutouts
            self.jobs.start("primary", lambda _: cutouts.of(np.array([row]))[0], self._show_picture)

    def _show_picture(self, image: FloatArray | None) -> None:
        span = pictures.colour_range([image])
        self.primary.show(image, span)
        known = image[np.isfinite(image)] if image is not None else np.zeros(1)
        ends = (float(known.min()), float(known.max())) if len(known) else span
        self.span_changed(span, (min(ends[0], span[0]), max(ends[1], span[1])))

    def find_near(self) -> None:
        """Look for the cutouts whose latents are closest to the primary image's."""
        archive, view, upload = self.archive, self.selection.view, self.upload
        latents, row = archive.latents, self.selection.view.row
        if latents is None or (upload is None and row is None):
            return
        filters = view.filters if self.near_filtered else ()
        apart = self.near_other_granules

        def work(ticket: Ticket) -> Any:
            if upload is not None:
                query, without = upload.latent, None
            else:
                assert row is not None
                place = archive.latent_of[row]
                query = latents.take([place])[0] if place >= 0 else np.full(1, np.nan, np.float32)
                if not np.isfinite(query).all():
                    return None
                without = archive.columns.same_granule(row) if apart else np.arange(archive.columns.rows) == row
            allowed = archive.allowed(archive.masks.all_of(filters), without)
            found = closest(latents, query, _NEAREST, allowed=allowed, tick=ticket.tick)
            count = int((found.rows[0] >= 0).sum())
            return archive.row_of[found.rows[0, :count]], found.cosine[0, :count]

        def done(result: Any) -> None:
            if result is None:
                self._near_found = None
                self._text(
                    "near_note",
                    "<p class='note'>This cutout has no latent (missing pixels, or not in the latents files).</p>",
                )
                return
            self._near_found = result
            kind = " within the filters" if filters else ""
            placed = ""
            if upload is not None and self._place_upload(*result):
                placed = "; marked in the UMAP between its five closest"
            self._text("near_note", f"<p class='note'>{len(result[0])} closest by cosine of latents{kind}{placed}</p>")
            self._draw_near()

        self.jobs.start("near", work, done, title="searching similar cutouts")

    def _place_upload(self, rows: IntArray, cosine: NDArray[np.float64]) -> bool:
        """Mark a new image at the mean place of its five neighbours, weighted by their closeness; say whether it is."""
        if "umap" not in self.planes or not len(rows):
            return False
        weight = np.maximum(cosine[:5] - cosine[: 5 + 1].min() + 1e-6, 1e-6)
        x, y = (self.archive.columns.values(name)[rows[:5]].astype(np.float64) for name in PLANES["umap"])
        known = np.isfinite(x) & np.isfinite(y)
        if known.any():
            at = [float(np.average(v[known], weights=weight[known])) for v in (x, y)]
            self.planes["umap"].mark_at(*at)
        return bool(known.any())

    def _draw_near(self) -> None:
        """Draw the sheet of neighbours and mark them in the UMAP and on the map."""
        if self._near_found is None:
            return
        archive, sheet = self.archive, self.near
        rows, cosine = self._near_found[0][: sheet.most], self._near_found[1][: sheet.most]
        columns = archive.columns
        for name, plane in self.planes.items():
            x, y = (columns.values(column)[rows] for column in PLANES[name])
            plane.mark_near(x, y)
        self.near_rows = rows
        own, shape = self.selection.view.scale == "own", (sheet.columns, sheet.rows)

        def done(result: Any) -> None:
            picture, span, facts = result
            texts = [f"{words.caption(row)}, cosine {c:.4f}" for row, c in zip(facts, cosine, strict=True)]
            sheet.show(picture, span, texts, [f"{c:.3f}" for c in cosine])

        self.jobs.start("near sheet", lambda ticket: draw_sheet(archive, rows, shape, own, ticket), done)

    def _show_table(self) -> None:
        if self.tab != "table":
            return
        first = self.page * PAGE_ROWS
        numbers = self.ordered[first : first + PAGE_ROWS]
        rows = self.archive.columns.take(numbers).to_pylist()
        self._text("table", words.table(rows, numbers.tolist(), first, len(self.ordered)))

    def _show_statistics(self) -> None:
        columns, mask = self.archive.columns, self.mask
        if self.tab != "stats":
            return

        def work(ticket: Ticket) -> str:
            lines = summary.compare(columns, mask)
            ticket.tick(0.7)
            trend = summary.trend(lines["year"], columns.rows) if "year" in lines else ""
            return words.statistics(lines, summary.medians(columns, mask), trend, mask is None)

        self.jobs.start("statistics", work, lambda text: self._text("stats", text))

    # Talking to the page

    def _text(self, name: str, text: str) -> None:
        self.texts[name] = text
        self.show_text(name, text)

    def _say(self, text: str, busy: bool) -> None:
        stop = " <button data-action='cancel' title='Escape'>stop</button>" if busy else ""
        self._text("status", f"<span data-busy='{int(busy)}'>{escape(text)}</span>{stop}")

    def say_error(self, error: NenyaError) -> None:
        """Show what a user can act on."""
        self._say(str(error), False)

    def close(self) -> None:
        """Give up all work."""
        self.jobs.cancel()


_TITLES = {"umap": "UMAP", "map": "map"}


def cells_for(rows: int, plane: str) -> tuple[int, int]:
    """Return how many cells a raster has: fewer where there are few rows, so that each can be seen."""
    wide, tall = _CELLS[plane]
    share = min(1.0, max(0.3, np.sqrt(rows / 200_000)))
    return int(wide * share), int(tall * share)


def ordered_rows(archive: Archive, mask: BoolArray | None, order: str, descending: bool) -> IntArray:
    """Return the selected rows in the order of the gallery and the table.

    Args:
        archive: with the table.
        mask: (N,), the selection; None for all.
        order: `random` (always the same), `table order`, or a metric: missing values come last.
        descending: the largest value first.
    """
    rows = np.arange(archive.columns.rows) if mask is None else np.flatnonzero(mask)
    if order == "random":
        first = rows[np.random.default_rng(len(rows)).choice(len(rows), min(len(rows), 5000), replace=False)]
        left = np.zeros(archive.columns.rows, bool)
        left[rows] = True
        left[first] = False
        return np.concatenate([first, np.flatnonzero(left)])
    if order == "table order":
        return rows
    values = archive.columns.values(order)[rows]
    return np.asarray(rows[np.argsort(-values if descending else values, kind="stable")])


def draw_sheet(archive: Archive, rows: IntArray, shape: tuple[int, int], own: bool, ticket: Ticket) -> Any:
    """Return the picture of some rows' cutouts, their colour range (None where each has its own) and their facts."""
    images: list[FloatArray | None] = [None] * len(rows)
    if archive.cutouts is not None:
        images = archive.cutouts.of(rows, ticket.tick)
    picture = pictures.sheet(images, *shape, own_scale=own)
    return picture, None if own else pictures.colour_range(images), archive.columns.take(rows).to_pylist()
