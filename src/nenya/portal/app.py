"""The page of one session in Panel: figures, widgets and texts connected to a `Session`."""

import json
import logging
from collections.abc import Callable, Iterable
from typing import Any

import panel as pn
from bokeh.events import RangesUpdate, SelectionGeometry, Tap
from bokeh.models import Div, InlineStyleSheet, TextInput

from nenya.errors import NenyaError, OptionError
from nenya.portal import pair_words, words
from nenya.portal.categories import colour_choices
from nenya.portal.dataset import Dataset
from nenya.portal.jobs import Pools
from nenya.portal.pages import text_of
from nenya.portal.question import condition_words
from nenya.portal.quick import orders_of, quick_actions
from nenya.portal.saved import SavedViews
from nenya.portal.session import Session
from nenya.portal.state import TABS, View, read_view
from nenya.portal.theme import Theme
from nenya.portal.time_panel import add_time, time_settings
from nenya.portal.views import Histogram
from nenya.portal.work import ORDERS
from nenya.tables.quantities import title_of

log = logging.getLogger(__name__)

_WIDEST = 340  # pixels of a menu
_CLASSED = (
    "facts",
    "table",
    "stats",
    "tags",
    "against",
    "near_note",
    "near_list",
    "legend",
    "saved",
    "card",
    "gallery_note",
)
_TITLES = ("Gallery", "Table", "Statistics", "Add filter", "New image", "Download", "Tags", "A/B")


class _Page(pn.Template):  # type: ignore[misc]  # Panel's types are not read
    """A template that counts its roots once, not once per root, and takes only the roots that it shows."""

    unwanted: frozenset[str] = frozenset()

    def add_panel(self, name: str, panel: Any, tags: Any = ()) -> None:
        """Add a root if the page has a slot for it."""
        if name not in self.unwanted:
            super().add_panel(name, panel, list(tags))

    def _init_doc(self, doc: Any = None, *args: Any, **settings: Any) -> Any:
        if doc is None:
            return super()._init_doc(doc, *args, **settings)
        with doc.models.freeze():
            return super()._init_doc(doc, *args, **settings)


def make_page(
    dataset: Dataset,
    pools: Pools,
    *,
    name: str,
    can_upload: bool,
    limit_mb: int,
    arguments: dict[str, str],
    saved: SavedViews | None = None,
) -> tuple[Any, Session]:
    """Return the page of a new session, and the session.

    Args:
        dataset: the data shared by all sessions.
        pools: threads shared by all sessions.
        name: name of the table, shown at the top.
        can_upload: whether there are weights for uploaded images.
        limit_mb: largest upload, MB.
        arguments: of the address: `view`, `theme`; untrusted.
        saved: named views, if visitors may save some.
    """
    document = pn.state.curdoc
    theme = Theme(arguments.get("theme") == "dark")
    trouble, view = "", View(dataset.first)
    if arguments.get("view"):
        try:
            view = read_view(arguments["view"], dataset.columns)
        except OptionError as error:
            trouble = str(error)

    def call(function: Callable[[], None]) -> None:
        if document is not None and document.session_context is not None and document.session_context.destroyed:
            return
        document.add_next_tick_callback(function)

    session = Session(dataset, pools, call, theme, view)
    session.name, session.saved = name, saved
    for plane, extent in view.zoom:
        if plane in session.planes:
            session.planes[plane].show_extent(extent)
    page = _Page("", location=False)
    page.unwanted = _unwanted(session)
    _add_texts(page, session)
    _add_figures(page, session)
    _add_widgets(page, session)
    if session.dates is not None:
        add_time(page, session)
    columns = dataset.columns
    variables: dict[str, Any] = {
        "dark": theme.dark,
        "name": name,
        "key": session.key,
        "umap": "umap" in session.planes,
        "map": "map" in session.planes,
        "charts": bool(session.histograms),
        "images": dataset.cutouts is not None,
        "latents": dataset.latents is not None,
        "upload": can_upload,
        "limit_mb": limit_mb,
        "time": time_settings(session),
        "quick": quick_actions(dataset),
        "tabs": list(zip(TABS, _TITLES, strict=True)),
        "saved": saved is not None,
        "tags": dataset.tags is not None,
        "tagging": dataset.tags is not None and dataset.tags.writable,
        "notes": dataset.notes,
        "words": condition_words(columns),
        "samples": pair_words.choices(),
        "numbers": [
            (n, title_of(n)) for n in [*columns.metrics(), *[p for p in ("lon", "US0", "US1") if p in columns]]
        ],
        "categories": list(columns.categories().items()),
    }
    page.add_variable("nenya", variables)

    session.follow_tags()
    session.refresh()
    if view.row is not None:
        session.draw_primary()
        session.find_near()
    if trouble:
        session.tell(words.note(trouble))  # else it overwrites the status of running work
    return page, session


def _unwanted(session: Session) -> frozenset[str]:
    """Return the names of page parts to omit because the table, images or latents lack the data."""
    names: set[str] = set()
    if session.dataset.cutouts is None:
        names |= {"gallery", "primary", "span", "order", "scale", "near", "gallery_note"}
    if session.dataset.latents is None:
        names |= {"near", "near_filtered", "near_other", "near_note", "near_list", "near_pages"}
    if not session.planes:
        names |= {"colour", "legend"}
    if not session.histograms:
        names.add("histograms")
    if session.saved is None:
        names.add("saved")
    if session.dataset.tags is None:
        names.add("tags")
    return frozenset(names)


def _add_texts(page: Any, session: Session) -> None:
    style = InlineStyleSheet(css=text_of("parts.css"))
    texts = {
        name: Div(
            name=f"text_{name}",
            text=text,
            stylesheets=[style],
            sizing_mode="stretch_width",
            margin=0,
            disable_math=True,
            css_classes=[name] if name in _CLASSED else [],
        )
        for name, text in session.texts.items()
    }
    for name, div in texts.items():
        page.add_panel(name, pn.pane.Bokeh(div, sizing_mode="stretch_width", margin=0))

    def show(name: str, text: str) -> None:
        texts[name].text = text

    session.show_text = show
    channel = TextInput(name="nenya_channel", visible=False)
    channel.on_change("value", lambda _attr, _old, text: _act(session, str(text)))
    page.add_panel("channel", pn.pane.Bokeh(channel, visible=False))
    pointer = TextInput(name="nenya_pointer", visible=False)
    pointer.on_change("value", lambda _attr, _old, text: session.point(str(text).partition("|")[2]))
    page.add_panel("pointer", pn.pane.Bokeh(pointer, visible=False))
    link = TextInput(name="nenya_view", visible=False)
    page.add_panel("link", pn.pane.Bokeh(link, visible=False))

    def changed() -> None:
        link.value = f"{session.selection.step}|{session.tab}|{session.selection.view.to_text()}"
        session.tell_time()

    session.changed = changed


def _act(session: Session, text: str) -> None:
    """Perform an action of the page's scripts; the text is untrusted."""
    action = text.partition("|")[2][:5000]
    name, _, value = action.partition(":")
    try:
        if name == "range":
            column, low, high = json.loads(value)
            session.add_range(str(column), low, high)
        elif name == "ask":
            session.ask(json.loads(value))
        elif name == "category":
            column, values = json.loads(value)
            session.add_category(str(column), values)
        else:
            session.act(action)
    except NenyaError as error:
        session.say_error(error)
    except (ValueError, TypeError, ArithmeticError, RecursionError):
        log.debug("portal: unknown action: %.80r", text)  # a visitor could fill the log with it


def _pane(plot: Any) -> Any:
    return pn.pane.Bokeh(plot, sizing_mode="stretch_both", margin=0)


def _add_figures(page: Any, session: Session) -> None:
    def drawn(name: str, event: Any) -> None:
        if event.final:
            session.geometry(name, event.geometry)

    for name, plane in session.planes.items():
        plot = plane.plot
        plot.on_event(SelectionGeometry, lambda event, n=name: drawn(n, event))
        plot.on_event(RangesUpdate, lambda _event, n=name: session.zoomed(n))
        plot.on_event(Tap, lambda event, n=name: session.tap(n, event.x, event.y))
        for size in ("inner_width", "inner_height"):
            plot.on_change(size, lambda _attr, _old, _new, n=name: session.fit(n))
        page.add_panel(name, _pane(plot))
    _add_histograms(page, session)
    for sheet, draw in ((session.gallery, session.draw_gallery), (session.near, session.draw_near)):

        def tapped(event: Any, sheet: Any = sheet) -> None:
            rows = session.gallery_rows if sheet is session.gallery else session.near_rows
            index = sheet.index_at(event.x, event.y)
            if index is not None and index < len(rows):
                session.show_row(int(rows[index]))

        def resized(_attr: str, _old: Any, _new: Any, sheet: Any = sheet, draw: Callable[[], None] = draw) -> None:
            if sheet.fit():
                draw()

        sheet.plot.on_event(Tap, tapped)
        sheet.plot.on_change("inner_width", resized)
        sheet.plot.on_change("inner_height", resized)
        page.add_panel(sheet.plot.name, _pane(sheet.plot))
    primary = session.primary
    for size in ("inner_width", "inner_height"):
        primary.plot.on_change(size, lambda _attr, _old, _new: primary.fit())
    page.add_panel("primary", _pane(primary.plot))


def _add_histograms(page: Any, session: Session) -> None:
    def pane(chart: Histogram) -> Any:
        name = chart.binned.name

        def brushed(event: Any) -> None:
            if event.final and event.geometry.get("type") == "rect":
                session.brush(name, event.geometry.get("x0"), event.geometry.get("x1"))

        def slid(_attr: str, _old: Any, _new: Any) -> None:
            if chart.range.visible and not chart.is_setting:
                session.slide(name)

        chart.plot.on_event(SelectionGeometry, brushed)
        for end in ("left", "right"):
            chart.range.on_change(end, slid)
        return pn.pane.Bokeh(chart.plot, sizing_mode="stretch_width", height=104, margin=0)

    charts = pn.Column(*map(pane, session.histograms.values()), sizing_mode="stretch_width", margin=0)
    left = len(session.dataset.columns.metrics()) - len(session.histograms)
    if left:
        more = pn.widgets.Button(label=f"{left} more histograms", stylesheets=[text_of("widget.css")])

        def add(_event: Any) -> None:
            charts[:] = [*charts[:-1], *map(pane, session.more_charts())]

        more.on_click(add)
        charts.append(more)
    page.add_panel("histograms", charts)


def wide(options: Iterable[str]) -> dict[str, int]:
    """Return the width of a menu in which its longest entry has room; the page narrows it where the screen is."""
    return {"width": min(_WIDEST, 44 + round(6.6 * max(map(len, options))))}


def _add_widgets(page: Any, session: Session) -> None:
    view = session.selection.view
    look = {"stylesheets": [text_of("widget.css")], "margin": (0, 4)}
    choices = colour_choices(session.dataset)
    colour = pn.widgets.Select(options=choices, value=view.colour, **wide(choices), **look)
    colour.param.watch(lambda event: session.set_colour(event.new), "value")
    orders: dict[str, tuple[str, bool]] = {name: (name, False) for name in ORDERS}
    orders |= orders_of(session.dataset.columns)
    order = pn.widgets.Select(options=list(orders), value=_order_of(view, orders), **wide(orders), **look)
    order.param.watch(lambda event: session.set_order(*orders[event.new]), "value")
    scales = {"shared colour scale": "shared", "own colour scales": "own"}
    scale = pn.widgets.Select(options=scales, value=view.scale, **wide(scales), **look)
    scale.param.watch(lambda event: session.set_scale(event.new), "value")
    filtered = pn.widgets.Checkbox(label="within the filters", value=view.near[0], **look)
    others = pn.widgets.Checkbox(label="from other granules only", value=view.near[1], **look)

    def near(event: Any, place: int) -> None:
        both = [*session.selection.view.near]
        both[place] = event.new
        session.set_near(filtered=both[0], other_granules=both[1])

    filtered.param.watch(lambda event: near(event, 0), "value")
    others.param.watch(lambda event: near(event, 1), "value")
    span = pn.widgets.RangeSlider(
        label="colours (K)", start=-1.0, end=1.0, value=(-1.0, 1.0), step=0.01, sizing_mode="stretch_width", **look
    )
    span.param.watch(lambda event: session.primary.colour_between(*event.new), "value")

    def span_changed(value: tuple[float, float], ends: tuple[float, float]) -> None:
        step = max((ends[1] - ends[0]) / 200, 1e-4)
        span.param.update(start=ends[0], end=ends[1], value=value, step=step)

    def view_changed() -> None:
        """Show the options of a view that undo, a link or the browser has restored."""
        view = session.selection.view
        colour.value, scale.value, order.value = view.colour, view.scale, _order_of(view, orders)
        for box, value in zip((filtered, others), view.near, strict=True):
            box.value = value

    session.span_changed, session.view_changed = span_changed, view_changed
    widgets = {"colour": colour, "order": order, "scale": scale, "span": span}
    for name, widget in {**widgets, "near_filtered": filtered, "near_other": others}.items():
        page.add_panel(name, widget)


def _order_of(view: View, orders: dict[str, tuple[str, bool]]) -> str:
    """Return the title of a view's order."""
    return next((title for title, order in orders.items() if order == (view.order, view.descending)), "random")
