"""The history of a session's views: one step for each change of what is shown, with undo and redo."""

import math
import time
from dataclasses import dataclass, field, replace
from typing import Any

from nenya.portal.sets import combined
from nenya.portal.state import Filter, View

MOST_STEPS = 200
"""Earlier views that are kept."""
_PAUSE = 2.0  # seconds between zooms, or moves of a range, that are steps of their own


@dataclass
class Selection:
    """The views of one session: the current one, earlier ones, and those that were undone.

    Attributes:
        views: in order.
        place: of the current view among them.
        first: number of the first one: views are numbered from the start of the session, and old ones are forgotten.
    """

    views: list[View] = field(default_factory=lambda: [View()])
    place: int = 0
    first: int = 0
    _last: tuple[str, float] = ("", 0.0)

    @property
    def view(self) -> View:
        """The current view."""
        return self.views[self.place]

    @property
    def step(self) -> int:
        """The number of the current view."""
        return self.first + self.place

    def add(self, item: Filter, mode: str = "and") -> None:
        """Add a filter, replacing that of the same view or column; or add its rows, or take them away.

        Args:
            item: the filter.
            mode: of `nenya.portal.sets.MODES`.
        """
        self.show(filters=combined(self.view.filters, item, mode))

    def remove(self, slot: str) -> None:
        """Remove the filter of a view or column, if there is one."""
        self.show(filters=tuple(f for f in self.view.filters if f.slot != slot))

    def reset(self) -> None:
        """Remove all filters, and show the full UMAP and map."""
        self.show(filters=(), zoom=())

    def show(self, **changes: Any) -> bool:
        """Make a step to a changed view; return False if nothing changes."""
        return self.go_to(replace(self.view, **changes))

    def go_to(self, view: View) -> bool:
        """Make a step to a view; return False if it is the current one."""
        self._last = ("", 0.0)
        if view == self.view:
            return False
        self.views = [*self.views[: self.place + 1], view]
        left = max(0, len(self.views) - MOST_STEPS)
        self.views, self.first = self.views[left:], self.first + left
        self.place = len(self.views) - 1
        return True

    def zoom(self, plane: str, extent: tuple[float, float, float, float] | None) -> bool:
        """Note the extent of a plane, None for its full one; zooms of a plane within two seconds are one step."""
        zoom = tuple((name, ends) for name, ends in self.view.zoom if name != plane)
        if extent is not None:
            zoom = (*zoom, (plane, extent))
        return self._flow(plane, replace(self.view, zoom=tuple(sorted(zoom))))

    def slide(self, item: Filter) -> bool:
        """Replace the filter of the same column while it is moved; moves within two seconds are one step."""
        filters = tuple(item if other.slot == item.slot else other for other in self.view.filters)
        return self._flow(item.slot, replace(self.view, filters=filters))

    def play(self, item: Filter) -> bool:
        """Replace the filter of the same place; all such changes until another one, or `rest`, are one step."""
        filters = tuple(other for other in self.view.filters if other.slot != item.slot)
        return self._flow("play", replace(self.view, filters=(*filters, item)), pause=math.inf)

    def rest(self) -> None:
        """Make the next change a step of its own."""
        self._last = ("", 0.0)

    def _flow(self, what: str, view: View, pause: float = _PAUSE) -> bool:
        """Make a step to a view, or change the last one if it was of the same kind and within some seconds."""
        now = time.monotonic()
        if view == self.view:
            return False
        if self._last[0] == what and now - self._last[1] < pause and self.place == len(self.views) - 1:
            self.views[self.place] = view
        else:
            self.go_to(view)
        self._last = (what, now)
        return True

    def pause(self) -> None:
        """Make the next zoom or move of a range a step of its own."""
        self._last = ("", 0.0)

    def undo(self) -> bool:
        """Return to the view before the last step; return False if there is none."""
        return self.go(self.step - 1)

    def redo(self) -> bool:
        """Make the step that was undone; return False if there is none."""
        return self.go(self.step + 1)

    def go(self, step: int) -> bool:
        """Go to the view of a number; return False if it is not kept, or the current one."""
        if not 0 <= step - self.first < len(self.views) or step == self.step:
            return False
        self.place, self._last = step - self.first, ("", 0.0)
        return True
