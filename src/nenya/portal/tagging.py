"""Actions of a session on tags: give and take them, select by them, undo and redo."""

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nenya.errors import InputFileError
from nenya.portal import words
from nenya.portal.near import Near
from nenya.portal.state import View, make_category
from nenya.portal.tag_words import tag_list
from nenya.tables.key_columns import IntArray
from nenya.tables.tags import COLUMN, check_word, tags_in

_MOST_ACTS = 20  # that can be undone
_MOST_WAITING = 4  # changes of one page that are being made
TARGETS = ("image", "selection")


@dataclass(frozen=True, eq=False)
class TagAct:
    """A change of tags that a session has made.

    Attributes:
        word: the tag.
        rows: that it has changed.
        on: whether they got it.
        view: what was shown then, by which undo knows that nothing else was done since.
    """

    word: str
    rows: IntArray = field(repr=False)
    on: bool
    view: View


class Tagging(Near):
    """The tags of a page."""

    _acts: tuple[TagAct, ...] = ()
    _undone: tuple[TagAct, ...] = ()
    _again: tuple[TagAct, ...] = ()  # that are being undone, or made again
    _running = 0
    _told = ""

    def follow_tags(self) -> None:
        """Show the tags, and follow their changes until the page is closed."""
        book = self.dataset.tags
        if book is not None:
            book.look()
            book.follow(self, lambda: self.jobs.call(self.tags_changed))
            self.show_tags()

    def close(self) -> None:
        """Cancel all work."""
        if self.dataset.tags is not None:
            self.dataset.tags.leave(self)
        super().close()

    def show_tags(self) -> None:
        """Show the list of tags."""
        book, filters, row = self.dataset.tags, self.selection.view.filters, self.row
        if book is None or self.tab != "tags":
            return
        columns, masks = self.dataset.columns, self.dataset.masks
        own = "" if row is None or self.upload is not None else columns.row(row).get(COLUMN) or ""
        self.jobs.start(
            "tags",
            lambda ticket: book.counts_in(masks.all_of(filters, lambda: ticket.tick(0.5))),
            lambda chosen: self._text("tags", tag_list(book, tags_in(own) if own else [], chosen, self._told)),
        )

    def draw_primary(self) -> None:
        """Show the primary image, its facts and positions."""
        super().draw_primary()
        self.show_tags()

    def _show_statistics(self) -> None:
        super()._show_statistics()
        self.show_tags()

    def tags_changed(self) -> None:
        """Draw what shows tags, after a change by anybody."""
        view, row = self.selection.view, self.row
        if view.colour == COLUMN or COLUMN in repr(view):
            self.refresh()
        else:
            self.draw_gallery()
            self._show_table()
        if row is not None and self.upload is None:
            self._text("facts", words.facts(self.dataset.columns.row(row), row))
        self.show_tags()

    def tag(self, text: str) -> None:
        """Give a tag to the primary image or the selection, or take it.

        Args:
            text: JSON of [tag, `image` or `selection`, whether to give it]; untrusted.

        Raises:
            InputFileError: It is no tag, or there is nothing to tag.
        """
        word, target, on = json.loads(text)
        if target not in TARGETS or type(on) is not bool:
            raise ValueError(target)
        word = check_word(word)
        if target == "selection":
            mask = self.dataset.masks.all_of(self.selection.view.filters)
            rows = np.arange(self.dataset.columns.rows) if mask is None else np.flatnonzero(mask)
        elif self.upload is not None or self.selection.view.row is None:
            raise InputFileError("no cutout of the archive is chosen: click one in the gallery, the UMAP or on the map")
        else:
            rows = np.array([self.selection.view.row])
        self._undone = ()
        self._change(TagAct(word, rows, on, self.selection.view))

    def _change(self, act: TagAct, of: TagAct | None = None, *, undo: bool = False) -> None:
        """Make a change in a thread, and remember it; several may run at once, and none replaces another.

        Args:
            act: the change.
            of: the one that it undoes, or makes again: it is forgotten when that is done, and kept if it fails.
            undo: whether it undoes one.
        """
        book = self.dataset.tags
        if book is None or not book.writable:
            raise InputFileError("tagging is off: start the portal with tags=true")
        if self._running >= _MOST_WAITING:
            raise InputFileError(f"{self._running} changes of tags are being made: wait until one ends")
        known = book
        self._running += 1
        self._again = (*self._again, *([of] if of else []))
        number = f"{act.word} {len(act.rows)} {id(act)}"

        def ended(_: str = "") -> None:
            self._running -= 1
            self._again = tuple(other for other in self._again if other is not of)

        def remember(changed: IntArray) -> None:
            self._acts, self._undone = (
                tuple(other for other in some if other is not of) for some in (self._acts, self._undone)
            )
            if undo and len(changed):
                self._undone = (*self._undone, TagAct(act.word, changed, not act.on, act.view))
            elif len(changed):
                self._acts = (*self._acts, TagAct(act.word, changed, act.on, act.view))[-_MOST_ACTS:]
            self.selection.pause()

        def work(_: Any) -> int:
            changed = known.change(act.rows, act.word, on=act.on)
            self.jobs.call(lambda: remember(changed))  # also if the work is cancelled meanwhile: it is done
            return len(changed)

        def done(count: int) -> None:
            ended()
            self._told = _said(act, count, undo=undo, redo=bool(of) and not undo)
            self._say(self._told, False)
            self.show_tags()

        self.jobs.start(f"tag {number}", work, done, title="tagging", ended=ended)

    def undo_tags(self) -> bool:
        """Undo the last change of tags, if nothing else was done since; return whether there is one."""
        if (act := self._last_of(self._acts)) is None:
            return False
        self._change(TagAct(act.word, act.rows, not act.on, act.view), act, undo=True)
        return True

    def redo_tags(self) -> bool:
        """Make the change of tags that was undone last, if nothing else was done since; return whether there is one."""
        if (act := self._last_of(self._undone)) is None:
            return False
        self._change(act, act)
        return True

    def _last_of(self, acts: tuple[TagAct, ...]) -> TagAct | None:
        """Return the last change that nobody undoes or makes again yet, if nothing else was done since; else None."""
        left = [act for act in acts if act not in self._again]
        return left[-1] if left and left[-1].view is self.selection.view else None

    def select_tagged(self, word: str) -> None:
        """Select the cutouts that have a tag."""
        self._add(make_category(COLUMN, [word]))
        self.refresh()

    def _add(self, item: Any) -> None:
        """Add a filter; see `nenya.portal.session`."""
        raise NotImplementedError


def _said(act: TagAct, count: int, *, undo: bool, redo: bool) -> str:
    """Return what a change has done."""
    what = f"{count:,} cutout{'' if count == 1 else 's'}"
    if not count:
        return f"no cutout changed: {'all have' if act.on else 'none has'} the tag {act.word}"
    begun = "undone: " if undo else "again: " if redo else ""
    return f"{begun}{act.word} {'given to' if act.on else 'taken from'} {what}{'' if undo else ' (u undoes it)'}"
