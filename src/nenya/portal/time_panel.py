"""The panel of time in the page: its chart, made when it is first asked for, and what its script is told."""

from typing import Any

import panel as pn
from bokeh.events import SelectionGeometry, Tap
from bokeh.models import Column, TextInput

from nenya.portal.session import Session
from nenya.portal.spans import SPEEDS, STEPS, months_of
from nenya.portal.time_chart import TimeChart

_WINDOWS = (1, 2, 3, 6, 12, 24, 36, 60, 120)  # months
_STEP_NAMES = {1: "month", 3: "season", 12: "year"}


def time_settings(session: Session) -> dict[str, Any] | None:
    """Return what the page needs for its panel of time; None for a table without dates."""
    if session.dates is None:
        return None
    first, last = session.dates
    count = last - first + 1
    windows = [months for months in _WINDOWS if months < count] or [count]
    years = range(1970 + first // 12, 1970 + last // 12 + 1)
    return {
        "first": first,
        "last": last,
        "years": list(years) if len(years) > 1 else [],
        "windows": [(months, _length(months)) for months in windows],
        "steps": [(step, _STEP_NAMES[step]) for step in STEPS],
        "speeds": list(SPEEDS),
    }


def _length(months: int) -> str:
    years, left = divmod(months, 12)
    if left or not years:
        return f"{months} month{'s' if months > 1 else ''}"
    return f"{years} year{'s' if years > 1 else ''}"


def add_time(page: Any, session: Session) -> None:
    """Add the panel of time to a page."""
    state = TextInput(name="nenya_time", visible=False)
    page.add_panel("time_state", pn.pane.Bokeh(state, visible=False))
    place = Column(sizing_mode="stretch_width", margin=0)
    page.add_panel("timeline", pn.pane.Bokeh(place, sizing_mode="stretch_width", margin=0))

    def show(text: str) -> None:
        state.value = text

    def open_chart() -> None:
        assert session.dates is not None
        chart = TimeChart(*session.dates, session.theme)
        session.time_chart = chart
        _listen(session, chart)
        place.children = [chart.plot]  # by Bokeh itself: Panel would send it after what is drawn in it

    session.show_time, session.open_chart = show, open_chart


def _listen(session: Session, chart: TimeChart) -> None:
    def brushed(event: Any) -> None:
        ends = event.geometry.get("x0"), event.geometry.get("x1")
        if event.final and all(isinstance(end, int | float) for end in ends):
            session.choose_months(*chart.months_at(*ends))

    def tapped(event: Any) -> None:
        if isinstance(event.x, int | float):
            first = chart.months_at(event.x, event.x)[0]
            shown = months_of(session.selection.view.filters)
            session.choose_months(first, first + (shown.count if shown is not None else 1) - 1)

    def slid(_attr: str, _old: Any, _new: Any) -> None:
        if not chart.is_setting and chart.window.visible:
            session.slide_months(chart)

    chart.plot.on_event(SelectionGeometry, brushed)
    chart.plot.on_event(Tap, tapped)
    for end in ("left", "right"):
        chart.window.on_change(end, slid)
