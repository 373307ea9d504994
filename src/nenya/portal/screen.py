"""Contents of a page: figures, texts and the work that draws them."""

import logging
import secrets
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nenya.errors import NenyaError
from nenya.portal import categories, pictures, points, words, work
from nenya.portal.dataset import Dataset
from nenya.portal.history import Selection
from nenya.portal.jobs import Jobs, Pools
from nenya.portal.pages import part
from nenya.portal.saved import SavedViews
from nenya.portal.sheets import Picture, Sheet
from nenya.portal.state import (
    PLANES,
    BoolArray,
    Filter,
    View,
)
from nenya.portal.tag_words import tag_notes
from nenya.portal.theme import Theme
from nenya.portal.uncertain import Uncertain
from nenya.portal.upload import Upload
from nenya.portal.views import Histogram, Plane
from nenya.portal.work import IntArray, Selected, Similar
from nenya.tables.quantities import title_of

log = logging.getLogger(__name__)

FloatArray = NDArray[np.float32]

PAGE_ROWS = 50
FIRST_CHARTS = 6
"""Histograms of a new page; others are created on request."""
_TITLES = {"umap": "UMAP", "map": "map"}


class Screen:
    """Figures and texts of one page, and the view that they show.

    Args:
        dataset: the data shared by all sessions.
        pools: threads shared by all sessions.
        call: runs a function in the page's own thread.
        theme: colours.
        view: the initial view.

    Attributes:
        name: of the table.
        key: a secret key that identifies the session in downloads and uploads.
        selection: the selected rows.
        shown: the filters of the displayed rows; they differ from the selection's while it is computed.
        planes: the UMAP and the map, if the table has them.
        histograms: by column.
        texts: parts of the page by name; `show_text` is called when one changes.
    """

    def __init__(
        self,
        dataset: Dataset,
        pools: Pools,
        call: Callable[[Callable[[], None]], None],
        theme: Theme,
        view: View | None = None,
    ) -> None:
        self.dataset, self.theme, self.key = dataset, theme, secrets.token_urlsafe(18)
        self.name = ""
        self.selection = Selection([view or View()])
        self.jobs = Jobs(pools, call, self._say)
        columns = dataset.columns
        homes = {"map": (-180.0, 180.0, -85.0, 85.0)}
        if "UMAP" not in columns.missing:
            homes["umap"] = pictures.extent_of(columns.values("US0"), columns.values("US1"))
        self.planes = {n: Plane(n, homes[n], theme) for n in ("umap", "map") if _TITLES[n] not in columns.missing}
        self.uncertain = Uncertain(self.planes.get("umap"), columns, theme)
        self.histograms = {name: Histogram(columns.charted(name), theme) for name in columns.metrics()[:FIRST_CHARTS]}
        self.gallery = Sheet("gallery", theme)
        self.near = Sheet("near", theme, 88)
        self.primary = Picture(theme)
        self.texts: dict[str, str] = {
            **{"count": words.count(columns.rows, columns.rows), "filters": self._chips(), "status": "", "heading": ""},
            **{"facts": "", "table": "", "stats": "", "near_note": "", "near_list": "", "news": "", "stop": ""},
            **{"legend": "", "saved": "", "card": "", "gallery_note": "", "near_pages": "", "tags": ""},
            "against": "",
        }
        self.show_text: Callable[[str, str], None] = lambda name, text: None
        self.saved: SavedViews | None = None
        self.view_changed: Callable[[], None] = lambda: None
        self.changed: Callable[[], None] = lambda: None
        self.span_changed: Callable[[tuple[float, float], tuple[float, float]], None] = lambda span, ends: None
        self.combine = "and"
        self.mask: BoolArray | None = None
        self.ordered: IntArray = np.empty(0, np.int64)
        self.shown: tuple[Filter, ...] | None = None
        self.page = self.sheet_page = 0
        self.gallery_rows: IntArray = np.empty(0, np.int64)
        self.near_rows: IntArray = np.empty(0, np.int64)
        self.gallery_picture: FloatArray | None = None
        self.upload: Upload | None = None
        self.example: int | None = None
        self.downloads = 0
        self.near_listed = dataset.cutouts is None
        self.found: Similar | None = None
        self.near_page = 0
        self.playing = False

    # Drawing

    def refresh(self) -> None:
        """Draw everything that depends on the selection; while time passes, only what follows it."""
        view, dataset = self.selection.view, self.dataset
        order = (view.order, view.descending)
        charts = dict(self.histograms)
        self._text("filters", self._chips())
        for plane in self.planes.values():
            plane.outline_of(view.filters)
        if not self.playing:
            self.changed()

        def done(found: Selected) -> None:
            self.mask, self.ordered = found.mask, found.ordered
            self.shown = view.filters
            self._text("count", words.count(len(self.ordered), dataset.columns.rows))
            for name, chart in charts.items():
                chart.show(found.counts[name], view.filters)
            for name in self.planes:
                self.draw_plane(name)
            self.draw_legend()
            self.page = self.sheet_page = 0
            self.draw_gallery()
            self._show_table()
            if not self.playing:
                self.settle()

        self.jobs.start(
            "selection",
            lambda t: work.select(dataset, view.filters, order, list(charts), t),
            done,
            title="" if self.playing else "selecting",
        )

    def settle(self) -> None:
        """Draw what depends on the selection and takes too long while time passes: statistics, and similar cutouts."""
        self._show_statistics()
        view = self.selection.view
        if view.near[0] and (self.upload or view.row is not None):
            self.find_near()
        if view.row is None and self.upload is None:
            self._show_example()

    @property
    def tab(self) -> str:
        """The tab that is open."""
        return self.selection.view.tab or ("gallery" if self.dataset.cutouts is not None else "table")

    def fit(self, name: str) -> None:
        """Follow the size of the UMAP or the map on the screen."""
        if self.planes[name].fit():
            self.draw_plane(name)

    def draw_plane(self, name: str) -> None:
        """Draw the UMAP or the map at its current zoom."""
        plane, view = self.planes[name], self.selection.view
        extent = plane.extent
        if not extent[0] < extent[1] or not extent[2] < extent[3]:
            return
        title = title_of(view.colour) if view.colour != "count" else ""
        classes = self.dataset.columns.classes(view.colour)
        shown = categories.colours(classes) if classes is not None else ()
        scale = self.dataset.columns.scale(view.colour) if title and classes is None else "linear"

        def pale_of(near: points.Near | None) -> FloatArray | None:
            return None if near is None else self.uncertain.paleness(name, near.rows)

        self.jobs.start(
            f"draw {name}",
            lambda ticket: work.plane_of(self.dataset, name, extent, view, ticket),
            lambda found: plane.show(found[0], found[1], extent, title, shown, found[2], scale, pale_of(found[2])),
        )
        pale = self.uncertain.view(name, view)
        if pale is not None:
            self.jobs.start(
                "pale places",
                lambda ticket: work.rasters(self.dataset, name, extent, pale, ticket)[1],
                lambda found: self.uncertain.pale(found, extent),
            )
        elif name == "umap":
            self.uncertain.pale(None, extent)

    def point_at(self, row: int | None, *, with_card: bool) -> None:
        """Mark the cutout that is pointed at in all panels, and show its thumbnail and facts; None for none."""
        columns = self.dataset.columns
        for name, plane in self.planes.items():
            place = (None, None) if row is None else (float(columns.values(axis)[row]) for axis in PLANES[name])
            plane.points.point_at(*place)
        for sheet, rows in ((self.gallery, self.gallery_rows), (self.near, self.near_rows)):
            sheet.light(-1 if row is None else next(iter(np.flatnonzero(rows == row).tolist()), -1))
        if row is None or not with_card:
            self.jobs.cancel("card")
            return
        self.jobs.start("card", lambda _: points.card(self.dataset, row), lambda text: self._text("card", text))

    def draw_legend(self) -> None:
        """Show the classes of the selected rows, if the colours are classes."""
        dataset, view = self.dataset, self.selection.view

        def done(legend: categories.Legend | None) -> None:
            self._text("legend", categories.legend_text(legend))
            if "umap" in self.planes:
                plane = self.planes["umap"]
                plane.name_at(*categories.names_on(legend, plane.home))

        self.jobs.start(
            "legend", lambda ticket: categories.make_legend(dataset, view.filters, view.colour, ticket), done
        )

    def draw_gallery(self) -> None:
        """Draw the current page of the gallery."""
        dataset, most, sheet = self.dataset, self.gallery.most, self.gallery
        if dataset.cutouts is None:
            return
        last = max(0, (len(self.ordered) - 1) // most)
        self.sheet_page = min(self.sheet_page, last)
        rows = self.ordered[self.sheet_page * most : (self.sheet_page + 1) * most]
        shape = (sheet.columns, sheet.rows)
        own = self.selection.view.scale == "own"

        def done(result: Any) -> None:
            if shape != (sheet.columns, sheet.rows):  # its size has become known since
                self.draw_gallery()
                return
            picture, span, captions, there = result
            self.gallery_rows, self.gallery_picture = rows, picture
            sheet.show(picture, span, captions, tag_notes(dataset.columns, rows, there), rows.tolist())
            lacking = there.count(False)
            note = f"{lacking} of these {len(rows)} have no image in the given files" if lacking else ""
            self._text("gallery_note", part("hint", text=note) if note else "")

        self.jobs.start(
            "gallery",
            lambda ticket: work.draw_sheet(dataset, rows, shape, own, ticket),
            done,
            title="" if self.playing else "drawing cutouts",
        )

    def show_row(self, row: int) -> None:
        """Make the cutout of a row the primary one, and search its neighbours."""
        self.upload = None
        self.selection.show(row=row)
        self.changed()
        self.draw_primary()
        self.find_near()

    @property
    def row(self) -> int | None:
        """The row of the primary image: the chosen one, else an example; None without any."""
        chosen = self.selection.view.row
        return self.example if chosen is None else chosen

    def _show_example(self) -> None:
        """Show a cutout of the selection, as none was chosen; it is no part of the view."""
        self.example = int(self.ordered[0]) if len(self.ordered) else None
        self.draw_primary()
        self.find_near()

    def draw_primary(self) -> None:
        """Show the primary image, its facts and positions."""
        row, upload, columns = self.row, self.upload, self.dataset.columns
        if upload is not None:
            self._show_picture(upload.image)
            self._text("heading", words.heading("New image", "not in the archive"))
            self._text("facts", words.upload_facts(upload))
            for plane in self.planes.values():
                plane.mark_at(None, None)
            self.uncertain.show_row(None)
            return
        if row is None:
            return
        pictures = self.dataset.cutouts is not None
        chosen = self.selection.view.row is not None
        what = "anomaly of sea-surface temperature, K" if pictures else f"row {row:,} of the table"
        if not chosen:
            what = "none is chosen yet: click a cutout, or a point; this one was drawn at random"
        title = ("Image" if pictures else "Cutout") if chosen else "Example"
        self._text("heading", words.heading(title, what))
        self._text("facts", words.facts(columns.row(row), row))
        for name, plane in self.planes.items():
            place = (float(columns.values(axis)[row]) for axis in PLANES[name]) if chosen else (None, None)
            plane.mark_at(*place)
        self.uncertain.show_row(row if chosen else None)
        if self.dataset.cutouts is not None:
            cutouts = self.dataset.cutouts
            self.jobs.start("primary", lambda _: cutouts.of(np.array([row]))[0], self._show_picture)

    @property
    def shown_name(self) -> str:
        """The name of the primary image within a sentence."""
        row = self.row
        if self.upload is not None:
            return f"the image {self.upload.name}"
        if self.selection.view.row is None and row is not None:
            return f"the example (row {row:,} of the table)"
        return "nothing" if row is None else f"row {row:,} of the table"

    def _show_picture(self, image: FloatArray | None) -> None:
        span = pictures.colour_range([image])
        self.primary.show(image, span)
        known = image[np.isfinite(image)] if image is not None else np.zeros(1)
        ends = (float(known.min()), float(known.max())) if len(known) else span
        self.span_changed(span, (min(ends[0], span[0]), max(ends[1], span[1])))

    def find_near(self) -> None:
        """Search the cutouts that are most similar; see `nenya.portal.near`."""
        raise NotImplementedError

    def draw_near(self) -> None:
        """Draw the similar cutouts; see `nenya.portal.near`."""
        raise NotImplementedError

    def _show_table(self) -> None:
        if self.tab != "table":
            return
        first = self.page * PAGE_ROWS
        numbers = self.ordered[first : first + PAGE_ROWS]
        rows = self.dataset.columns.take(numbers).to_pylist()
        self._text("table", words.table(rows, numbers.tolist(), first, len(self.ordered)))

    def _show_statistics(self) -> None:
        filters = self.selection.view.filters
        if self.tab != "stats":
            return
        self.jobs.start(
            "statistics",
            lambda ticket: work.statistics(self.dataset, filters, ticket.tick),
            lambda text: self._text("stats", text),
        )

    # Updates of the page

    def _text(self, name: str, text: str) -> None:
        self.texts[name] = text
        self.show_text(name, text)

    def _chips(self) -> str:
        dataset = self.dataset
        there = {"pictures": dataset.cutouts is not None, "latents": dataset.latents is not None}
        return words.chips(self.selection.view.filters, planes=list(self.planes), **there)

    def _say(self, text: str, busy: bool) -> None:
        self._text("status", part("status", text=text, busy=busy))
        self._text("stop", part("stop") if busy else "")  # apart, as changing text cannot be clicked

    def say_error(self, error: NenyaError) -> None:
        """Show a message that the user can act on."""
        self._say(str(error), False)

    def tell(self, news: str) -> None:
        """Show news on the archive."""
        self._text("news", news)

    def close(self) -> None:
        """Cancel all work."""
        self.jobs.cancel()
