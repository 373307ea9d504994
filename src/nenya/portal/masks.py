"""Masks of filters: which rows of the table pass them."""

import threading
from collections import OrderedDict
from collections.abc import Callable

from nenya.portal.columns import Columns
from nenya.portal.spans import Months
from nenya.portal.state import BoolArray, Filter


class Masks:
    """Masks of filters, shared by all sessions; the most recent ones are kept.

    Args:
        columns: of the table.
        most: number of masks to keep, N bytes each.
    """

    def __init__(self, columns: Columns, most: int = 24) -> None:
        self.columns, self._most = columns, most
        self._kept: OrderedDict[tuple[int, Filter], BoolArray] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, item: Filter, tick: Callable[[], None] = lambda: None) -> BoolArray:
        """Return the mask of a filter, (N,) bool, which must not be modified; `tick` may end slow work."""
        if isinstance(item, Months):  # as quick to make as to keep
            return item.mask(self.columns)
        key = self.columns.version, item
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        mask = item.mask(self.columns, tick)
        mask.flags.writeable = False
        with self._lock:
            self._kept[key] = mask
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)
        return mask

    def all_of(self, items: tuple[Filter, ...], tick: Callable[[], None] = lambda: None) -> BoolArray | None:
        """Return the mask of the rows that pass all filters, (N,) bool; None if there are no filters."""
        if not items:
            return None
        found = self.of(items[0], tick)
        for item in items[1:]:
            found = found & self.of(item, tick)
        return found
