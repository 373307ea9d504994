"""Time: the months that a page shows, moved by hand or by play; what follows them, and the share of the selection.

The browser has the clock. It sends the months of a step with a number, and the next step only once the page says that
the one of that number is drawn, so that nothing queues up: steps that come too early are skipped there, and counted.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from nenya.portal.jobs import Ticket
from nenya.portal.near import Near
from nenya.portal.spans import SLOT, Months, make_months, make_pace, months_of, without_months
from nenya.portal.time_chart import TimeChart, share_text
from nenya.portal.work import picked
from nenya.tables.over_time import share_within, shares_over_time

_DRAWN = ("selection", "draw umap", "draw map", "pale places", "legend", "gallery")
_MOST_FRAMES = 10**9


class Timed(Near):
    """The time of a page.

    Attributes:
        time_chart: the share of the selection over time; None until the page asks for it.
        show_time: called with the state of the time, as JSON.
        open_chart: makes the chart.
        dates: first and last month of the table, counted from January 1970; None without dates.
    """

    time_chart: TimeChart | None = None
    _frame: int | None = None
    _drawn = 0
    _counted: tuple[Any, ...] | None = None  # filters, and their rows counted by unit
    _charted: tuple[Any, ...] | None = None

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.show_time: Callable[[str], None] = lambda _: None
        self.open_chart: Callable[[], None] = lambda: None
        self.jobs.ended = self._work_ended
        self.dates = self.dataset.columns.dates

    def act_on_time(self, text: str) -> None:
        """Perform an action: `move 480 482 7`, `stop`, `off`, `pace 12 2`, `open`; the text is untrusted."""
        name, *rest = text.split(" ")
        if self.dates is None or len(rest) > 3 or any(not value.lstrip("-").isdecimal() for value in rest):
            return
        numbers = [int(value) for value in rest if len(value) < 12]
        if name == "move" and len(numbers) == 3 and 0 < numbers[2] < _MOST_FRAMES:
            self._move(self.months_from(*numbers[:2]), numbers[2])
        elif name == "stop":
            self.rest()
        elif name == "off":
            self.rest()
            self._remove_months()
        elif name == "pace" and len(numbers) == 2:
            self.go_to(replace(self.selection.view, pace=make_pace(numbers)))
            self.draw_shares()
        elif name == "open":
            if self.time_chart is None:
                self.open_chart()
            self.draw_shares()
            self.tell_time()

    def months_from(self, first: int, last: int) -> Months:
        """Return months within the dates of the table, as many as wanted if it has them.

        Raises:
            ValueError: They are in the wrong order.
        """
        assert self.dates is not None
        start, end = self.dates
        count = min(make_months(first, last).count, end - start + 1)
        first = min(max(first, start), end - count + 1)
        return Months(first, first + count - 1)

    def choose_months(self, first: int, last: int) -> None:
        """Show some months, as a step of its own."""
        self.rest()
        self.selection.play(self.months_from(first, last))
        self.selection.rest()
        self.refresh()

    def slide_months(self, chart: TimeChart) -> None:
        """Follow the months over the chart that are moved or stretched; moves until another change are one step."""
        first, last = chart.months_at(float(chart.window.left), float(chart.window.right))
        found, shown = self.months_from(first, last), months_of(self.selection.view.filters)
        if found != shown:
            self.rest()
            self.selection.play(found)
            self.refresh()

    def _move(self, months: Months, frame: int) -> None:
        """Show the months of a step; the page is told when all of it is drawn."""
        if not self.playing:
            held = months_of(self.selection.view.filters) is not None
            for plane in self.planes.values():
                plane.colours.held = held  # the colours of all rows are none to keep
        self.playing, self._frame = True, frame
        self.selection.play(months)
        self.refresh()

    def rest(self) -> None:
        """End the passing of time, and draw what did not follow it."""
        if not self.playing:
            return
        self.playing, self._frame = False, None
        self.selection.rest()
        for plane in self.planes.values():
            plane.colours.held = False
        self.changed()
        if not self.jobs.runs(["selection"]):
            self.settle()

    def _remove_months(self) -> None:
        self.selection.remove(SLOT)
        self.refresh()

    def _work_ended(self) -> None:
        if self._frame is None or self.jobs.runs(_DRAWN):
            return
        self._drawn, self._frame = self._frame, None
        for plane in self.planes.values():
            plane.colours.held = self.playing
        self.tell_time()

    def tell_time(self) -> None:
        """Tell the page's script which months are shown, the number of the last drawn step, and the share."""
        view = self.selection.view
        months = months_of(view.filters)
        if self.time_chart is not None:
            self.time_chart.show_window(months)
        state = {
            "months": None if months is None else [months.first, months.last],
            "pace": list(view.pace),
            "drawn": self._drawn,
            "share": "" if months is None else self._share_of(months),
        }
        self.show_time(json.dumps(state))

    def _share_of(self, months: Months) -> str:
        """Return the share of the selection in some months, in words; empty until its rows are counted."""
        filters, columns = without_months(self.selection.view.filters), self.dataset.columns
        if self._counted is None or self._counted[0] != filters:
            return ""
        return share_text(share_within(columns.units, self._counted[1], months.first, months.last))

    def draw_shares(self) -> None:
        """Draw the share of the selection over time, if the page asked for it and it has changed."""
        chart, view, dataset = self.time_chart, self.selection.view, self.dataset
        filters, step = without_months(view.filters), view.pace[0]
        if chart is None or self._charted == (filters, step):
            return

        def count(ticket: Ticket) -> Any:
            rows, units = picked(dataset, filters, ticket), dataset.columns.units
            ticket.tick(0.8)
            selected = dataset.shared.get(("by unit", filters), lambda: units.selected(rows))
            return selected, shares_over_time(units, selected, step)

        def done(found: Any) -> None:
            self._counted = (filters, found[0])
            chart.show(found[1], step)
            self.tell_time()

        def ended(_: str) -> None:
            self._charted = None

        self.jobs.start("shares over time", count, done, title="counting by month", ended=ended)
        self._charted = (filters, step)  # after older work of this kind has ended

    def settle(self) -> None:
        """Draw what depends on the selection and does not follow the time."""
        super().settle()
        self.draw_shares()

    def go_to(self, view: Any) -> None:
        """Make a step to another view; see `nenya.portal.session.Session`."""
        raise NotImplementedError
