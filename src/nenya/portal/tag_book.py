"""The tags of a portal: one file, the column of the table that shows it, and the sessions that follow its changes."""

import logging
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nenya.errors import InputFileError, NenyaError, OptionError
from nenya.portal.columns import Columns
from nenya.tables.key_columns import COLUMNS, IntArray, read_keys
from nenya.tables.keys import Packed
from nenya.tables.tag_file import TagFile
from nenya.tables.tags import COLUMN, Tags, column_of, tags_in

log = logging.getLogger(__name__)

BoolArray = NDArray[np.bool_]


class TagBook:
    """The tags of the cutouts of a table; they may be changed by several sessions, and by other programs.

    Args:
        columns: of the table, which gets the column of tags.
        path: of the file, which the first tag creates.
        writable: whether visitors may tag.

    Attributes:
        note: what to say of tagged cutouts that the table lacks.

    Raises:
        InputFileError: The file is not one of tags, or the table does not say its cutouts.
        OptionError: The table has a column of that name.
    """

    def __init__(self, columns: Columns, path: Path, *, writable: bool) -> None:
        if COLUMN in columns.names:
            raise OptionError(f"tags: the table has a column {COLUMN} already: rename it, or leave out tags=")
        self.columns, self.writable, self.note = columns, writable, ""
        self._file, self._lock = TagFile(path), threading.Lock()
        self._stamp = self._file.stamp()
        self._listeners: dict[object, Callable[[], None]] = {}
        self._keys = read_keys(columns.table.select([name for name in COLUMNS if name in columns.names]).to_pandas())
        self._packed = Packed(self._keys)
        self._show(self._file.read())

    @property
    def path(self) -> Path:
        """The file."""
        return self._file.path

    def counts_in(self, mask: BoolArray | None) -> dict[str, int]:
        """Return the tags, and the number of rows of a mask, (N,), that have each; None for all rows."""
        words, column = self._words, self._column
        codes = column.codes if mask is None else column.codes[mask]
        rows = np.bincount(codes[codes >= 0], minlength=len(column.labels)).tolist()
        found = dict.fromkeys(words, 0)
        for label, count in zip(column.labels, rows, strict=True):
            for word in tags_in(label):
                found[word] = found.get(word, 0) + count
        return found

    def change(self, rows: IntArray, word: str, *, on: bool) -> IntArray:
        """Give a tag to rows, or take it from them; return those that did not have (or had) it before.

        Raises:
            OptionError: Tagging is off.
            InputFileError: It is no tag, there are too many, a row cannot be tagged, or the file is damaged.
            OutputError: The file cannot be written.
        """
        if not self.writable:
            raise OptionError("tagging is off: start the portal with tags=true")
        with self._lock:
            made = self._file.change(self._keys, self._packed, rows, word, on=on)
            self._stamp = made.stamp
            self._show(made.tags)
        self._tell()
        return made.rows

    def look(self) -> None:
        """Read the file again if another program has changed it; a damaged one is logged, and the tags stay."""
        with self._lock:
            if (found := self._file.stamp()) == self._stamp:
                return
            self._stamp = found
            try:
                self._show(self._file.read())
            except NenyaError as error:
                log.warning("portal: %s", error)
                return
        self._tell()

    def follow(self, who: object, changed: Callable[[], None]) -> None:
        """Call a function after each change, in any thread, until `leave`."""
        self._listeners[who] = changed

    def leave(self, who: object) -> None:
        """Call the function of somebody no more."""
        self._listeners.pop(who, None)

    def _tell(self) -> None:
        for changed in list(self._listeners.values()):
            changed()

    def _show(self, tags: Tags) -> None:
        column = column_of(tags, self._packed)
        self._words, self._column, self.note = tags.words, column, column.note
        self.columns.set_tags(column.codes, column.labels)


def open_tags(columns: Columns, path: Path | None, *, asked: bool, writable: bool) -> tuple[TagBook | None, str]:
    """Return the tags of a portal, and what to say where they are not shown.

    Args:
        columns: of the table.
        path: of the file; None where there can be none.
        asked: whether they were requested: an error is raised, not said, and the file need not exist.
        writable: whether visitors may tag.

    Raises:
        NenyaError: They were requested, and cannot be shown.
    """
    if path is None or not (asked or path.exists()):
        return None, ""
    try:
        return TagBook(columns, path, writable=writable), ""
    except (InputFileError, OptionError) as error:
        if asked:
            raise
        return None, f"no tags: {error}"
