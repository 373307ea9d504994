"""A user's session: actions of the user and their effects."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from nenya.errors import InputFileError, NenyaError
from nenya.portal import categories, pictures, words, work
from nenya.portal.against import Against
from nenya.portal.jobs import Ticket
from nenya.portal.question import make_question
from nenya.portal.quick import rarest_order, without_cloudy
from nenya.portal.recolour import recolour
from nenya.portal.saved import listed
from nenya.portal.screen import PAGE_ROWS
from nenya.portal.sets import MODES
from nenya.portal.state import (
    TABS,
    Filter,
    Range,
    View,
    check_filter,
    make_box,
    make_category,
    make_lasso,
    make_range,
    read_view,
)
from nenya.portal.theme import Theme
from nenya.portal.timing import Timed
from nenya.portal.upload import Upload
from nenya.portal.views import Histogram


class Session(Timed, Against):
    """The session of one user: the screen and the user's actions."""

    def geometry(self, plane: str, geometry: dict[str, Any]) -> None:
        """Apply a box or a lasso drawn in the UMAP or on the map."""
        try:
            if geometry.get("type") == "rect":
                ends = geometry["x0"], geometry["x1"], geometry["y0"], geometry["y1"]
                self._add(make_box(plane, ends[:2], ends[2:]))
            elif geometry.get("type") == "poly":
                self._add(make_lasso(plane, list(zip(geometry["x"], geometry["y"], strict=True))))
            else:
                return
        except NenyaError:
            raise
        except (ValueError, TypeError, KeyError, ArithmeticError):
            return  # a box without area from a click, a lasso of two points, or a shape that no mouse draws
        self.refresh()

    def brush(self, column: str, low: Any, high: Any) -> None:
        """Apply a range drawn over a histogram."""
        values = self.dataset.columns.values(column)
        try:
            drawn = make_range(column, min(low, high), max(low, high))
        except NenyaError:
            raise
        except (ValueError, TypeError, ArithmeticError):
            return  # a shape that no mouse draws
        self._add(make_range(column, *self.histograms[column].ends(drawn.low, drawn.high, values)))
        self.refresh()

    def slide(self, column: str) -> None:
        """Follow the range over a histogram that is moved or stretched; moves within two seconds are one step."""
        chart, view = self.histograms[column], self.selection.view
        now = next((f for f in view.filters if isinstance(f, Range) and f.column == column), None)
        try:
            drawn = make_range(column, *sorted((float(chart.range.left), float(chart.range.right))))
        except (ValueError, TypeError):
            return
        item = make_range(column, *chart.ends(drawn.low, drawn.high, self.dataset.columns.values(column)))
        if now is None or item == now or (drawn.low, drawn.high) == (now.low, now.high):
            return
        chart.moved = (item.low, item.high)
        self.selection.slide(item)
        self.refresh()

    def _add(self, item: Filter) -> None:
        """Add a filter if it is valid for the table."""
        check_filter(item, self.dataset.columns)
        self.selection.add(item, self.combine)

    def ask(self, text: Any) -> None:
        """Apply a typed condition; an empty one removes it.

        Raises:
            OptionError: It is not a condition.
        """
        if isinstance(text, str) and not text.strip():
            self.selection.remove("question")
        else:
            self._add(make_question(text))
        self.refresh()

    def add_category(self, column: str, values: Any) -> None:
        """Apply a choice of strings.

        Raises:
            InputFileError: The column does not have them.
        """
        try:
            self._add(make_category(column, values))
        except NenyaError:
            raise
        except (KeyError, ValueError, TypeError):
            raise InputFileError("a filter needs a text column, and one or more of its values") from None
        self.refresh()

    def add_range(self, column: str, low: float | None, high: float | None) -> None:
        """Apply a typed range; a missing end leaves it open, and longitudes may cross the dateline.

        Raises:
            InputFileError: Both ends are missing, or the lowest is above the highest.
        """
        try:
            values = self.dataset.columns.values(column)
            if low is None and high is None:
                raise ValueError
            low = float(np.fmin.reduce(values)) if low is None else low
            high = float(np.fmax.reduce(values)) if high is None else high
            if low > high and column == "lon":
                self._add(make_box("map", (low, high + 360.0), (-90.0, 90.0)))
            elif low > high and column != "month":
                raise InputFileError(f"the range from {low:g} to {high:g} is empty: from must be below to")
            else:
                self._add(make_range(column, low, high))
        except NenyaError:
            raise
        except (KeyError, ValueError, TypeError, ArithmeticError):
            raise InputFileError("a filter needs a numeric column, and a lowest or highest value") from None
        self.refresh()

    def act(self, text: str) -> None:
        """Perform the action of a button, key or click: `undo`, `remove:map`, `row:17` ..."""
        name, _, value = text.partition(":")
        plain = {"undo": self.undo, "redo": self.redo, "reset": self.reset, "cancel": self.stop}
        plain |= {"similar": self.show_most_similar, "views": self.list_views}
        steps = {"page": self.turn, "sheet": self.turn_gallery, "near": self.turn_near, "step": self.step}
        others = {"remove": self._remove, "tab": self._open_tab, "list": self._list_near, "like": self._set_example}
        others |= {
            "theme": self._set_theme,
            "combine": self._set_mode,
            "select": self._select_near,
            "figure": self._by_key,
            "time": self.act_on_time,
            "quick": self._quick,
            "tag": self.tag,
            "tagged": self.select_tagged,
            "against": self.against,
            "compare": self.compare,
        }
        numbered = {"row": self._show_numbered, "go": self._go, "class": self._add_class}
        if name in plain:
            plain[name]()
        elif name in steps and value in ("1", "-1"):
            steps[name](int(value))
        elif name in others:
            others[name](value)
        elif name in numbered and value.isdecimal() and len(value) < 12:
            numbered[name](int(value))
        elif name in ("save", "open", "forget") and self.saved is not None:
            self._use_views(name, value)

    def _remove(self, slot: str) -> None:
        self.selection.remove(slot)
        self.refresh()

    def _quick(self, name: str) -> None:
        """Show the rarest cutouts first, or hide the cloudy ones."""
        columns = self.dataset.columns
        if name == "rarest" and (order := rarest_order(columns)) is not None:
            tab = self.tab if self.tab in ("gallery", "table") else ""
            self.go_to(replace(self.selection.view, order=order[0], descending=order[1], tab=tab))
        elif name == "clear":
            self.selection.add(without_cloudy(columns))
            self.refresh()

    def _open_tab(self, name: str) -> None:
        if name in TABS:
            self.go_to(replace(self.selection.view, tab=name))

    def _list_near(self, value: str) -> None:
        self.near_listed = value == "1"
        self._show_near_list()

    def _set_theme(self, name: str) -> None:
        """Give the figures the colours of a light or a dark page."""
        old, new = self.theme, Theme(name == "dark")
        if name not in ("dark", "light") or old == new:
            return
        figures = [plane.plot for plane in self.planes.values()] + [chart.plot for chart in self.histograms.values()]
        figures += [self.time_chart.plot] if self.time_chart is not None else []
        figures += [self.gallery.plot, self.near.plot, self.primary.plot]
        recolour({model for figure in figures for model in figure.references()}, old, new)
        self.theme = new
        for kind, plane in self.planes.items():
            plane.follow(new)
            self.draw_plane(kind)

    def _by_key(self, value: str) -> None:
        """Move, zoom or choose in a figure by a key: `umap left`, `gallery right`."""
        name, _, key = value.partition(" ")
        if name in self.planes and key == "choose":
            left, right, low, high = self.planes[name].extent
            self.tap(name, (left + right) / 2, (low + high) / 2, anywhere=True)
        elif name in self.planes and self.planes[name].nudge(key):
            self.zoomed(name)
        elif name == "gallery" and key in ("left", "right"):
            self.step(1 if key == "right" else -1)
        elif name == "near" and key == "choose":
            self.show_most_similar()

    def _set_example(self, value: str) -> None:
        self.go_to(replace(self.selection.view, examples=self.with_example(value)))

    def _set_mode(self, value: str) -> None:
        self.combine = value if value in MODES else self.combine

    def _select_near(self, value: str) -> None:
        if value == "near":
            self._add(self.near_filter())
            self.refresh()

    def _show_numbered(self, row: int) -> None:
        if row < self.dataset.columns.rows:
            self.show_row(row)

    def _go(self, step: int) -> None:
        self._went(self.selection.view, moved=self.selection.go(step))

    def _add_class(self, code: int) -> None:
        """Select the rows of a class of the colours."""
        classes = self.dataset.columns.classes(self.selection.view.colour)
        if classes is not None and code < len(classes.values):
            self._add(categories.filter_of(classes, code))
            self.refresh()

    def undo(self) -> None:
        """Return to the view before the last change, or undo the change of tags after it."""
        if self.undo_tags():
            return
        self._went(self.selection.view, moved=self.selection.undo())

    def redo(self) -> None:
        """Make the change that was undone."""
        if self.redo_tags():
            return
        self._went(self.selection.view, moved=self.selection.redo())

    def reset(self) -> None:
        """Remove all filters, and show the full UMAP and map."""
        self.go_to(replace(self.selection.view, filters=(), zoom=()))
        for plane in self.planes.values():  # also where they were moved since the last step
            plane.show_extent(None)

    def go_to(self, view: View) -> None:
        """Make a step to another view, and draw what differs."""
        before = self.selection.view
        self._went(before, moved=self.selection.go_to(view))

    def _went(self, before: View, *, moved: bool) -> None:
        """Draw what differs between the view before a step and the current one."""
        view = self.selection.view
        if not moved:
            return
        self.changed()
        self.view_changed()
        for name, plane in self.planes.items():
            if before.extent(name) != view.extent(name):
                plane.show_extent(view.extent(name))
        redraw = {n for n in self.planes if before.extent(n) != view.extent(n) or before.colour != view.colour}
        if any(getattr(before, name) != getattr(view, name) for name in ("filters", "order", "descending", "held")):
            self.refresh()
        else:
            for name in redraw:
                self.draw_plane(name)
            if before.colour != view.colour:
                self.draw_legend()
            if before.scale != view.scale:
                self.draw_gallery()
                self.draw_near()
            if before.tab != view.tab:
                self._show_table()
                self._show_statistics()
        if before.row != view.row:
            self.upload = None
            if view.row is None:
                self._show_example()
            else:
                self.draw_primary()
                self.find_near()
        elif (before.near, before.examples) != (view.near, view.examples):
            self.find_near()

    def zoomed(self, name: str) -> None:
        """Note and draw a plane that was zoomed or moved."""
        plane = self.planes[name]
        extent = plane.extent
        if extent[0] < extent[1] and extent[2] < extent[3]:
            plane.note_extent()
            self.selection.zoom(name, None if plane.is_whole else extent)
            self.changed()
            self.draw_plane(name)

    def list_views(self) -> None:
        """Show the list of named views."""
        if self.saved is not None:
            self._text("saved", listed(self.saved))

    def _use_views(self, action: str, name: str) -> None:
        """Save, open or forget a named view."""
        assert self.saved is not None
        if action == "open":
            text = self.saved.read().get(name)
            if text is None:
                raise InputFileError("there is no view of this name any more")
            self.go_to(read_view(text, self.dataset.columns))
            return
        if action == "save":
            self.saved.save(name, self.selection.view.to_text())
        else:
            self.saved.forget(name)
        self.list_views()

    def stop(self) -> None:
        """Cancel running work."""
        if self.jobs.busy:
            self.jobs.cancel()
            self._say("stopped", False)

    def show_most_similar(self) -> None:
        """Make the closest neighbour the primary one."""
        if len(self.near_rows):
            self.show_row(int(self.near_rows[0]))

    def more_charts(self) -> list[Histogram]:
        """Create the remaining histograms."""
        columns = self.dataset.columns
        new = {n: Histogram(columns.charted(n), self.theme) for n in columns.metrics() if n not in self.histograms}
        for name, chart in new.items():
            chart.show(pictures.histogram(chart.binned, self.mask), self.selection.view.filters)
            self.histograms[name] = chart
        return list(new.values())

    def turn(self, step: int) -> None:
        """Change the page of the table."""
        last = max(0, (len(self.ordered) - 1) // PAGE_ROWS)
        self.page = min(max(0, self.page + step), last)
        self._show_table()

    def turn_gallery(self, step: int) -> None:
        """Show the next or previous page of the gallery."""
        self.sheet_page = max(0, self.sheet_page + step)
        self.draw_gallery()

    def step(self, step: int) -> None:
        """Make the next or previous cutout of the gallery the primary one."""
        rows = self.gallery_rows.tolist()
        if rows:
            here = rows.index(self.selection.view.row) if self.selection.view.row in rows else -1
            self.show_row(rows[(here + step) % len(rows) if here >= 0 else 0])

    def point(self, text: str) -> None:
        """Follow the mouse: `card:17` over a point, `light:17` over a cutout of a sheet, `` over nothing."""
        kind, _, value = text.partition(":")
        if not value:
            self.point_at(None, with_card=False)
        elif value.isdigit() and len(value) < 12 and int(value) < self.dataset.columns.rows:
            self.point_at(int(value), with_card=kind == "card")

    def tap(self, plane: str, x: float, y: float, *, anywhere: bool = False) -> None:
        """Make the selected cutout closest to a point of the UMAP or the map the primary one, if it is near."""
        filters, extent = self.selection.view.filters, self.planes[plane].extent

        def done(row: int | None) -> None:
            if row is None:
                self._say("No selected cutout is near this point: click nearer to one.", False)
            else:
                self.show_row(row)

        self.jobs.start("tap", lambda _: work.nearest_to(self.dataset, plane, (x, y), extent, filters, anywhere), done)

    def take_upload(self, name: str, read: Callable[[Ticket], Upload], told: Callable[[str, bool], None]) -> None:
        """Make an uploaded image the primary one, and search its neighbours.

        Args:
            name: of its file.
            read: reads, checks and encodes it; runs in a thread.
            told: called with the message to the user, and whether the image was accepted.
        """

        def done(upload: Upload) -> None:
            self.upload = upload
            self.draw_primary()
            self.find_near()
            told(words.upload_taken(upload), True)

        def ended(text: str) -> None:
            told(words.upload_refused(text, self.shown_name), False)

        self.jobs.start("upload", read, done, title=f"encoding {name}", slow=True, ended=ended)

    def set_order(self, order: str, descending: bool) -> None:
        """Set the order of the gallery and the table."""
        self.go_to(replace(self.selection.view, order=order, descending=descending))

    def set_colour(self, colour: str) -> None:
        """Set the quantity shown by the colours of the UMAP and the map."""
        self.go_to(replace(self.selection.view, colour=colour))

    def set_scale(self, scale: str) -> None:
        """Set whether the cutouts of the gallery share a colour scale."""
        self.go_to(replace(self.selection.view, scale=scale))

    def set_near(self, *, filtered: bool, other_granules: bool) -> None:
        """Set which neighbours are shown."""
        self.go_to(replace(self.selection.view, near=(filtered, other_granules)))
