"""Changes of a file of tags: several people and programs at once lose nothing, and a killed one leaves it complete.

Each change takes a lock, reads the file, adds or removes its own marks and replaces the file as a whole.

Letters in shapes: N rows of a table, n rows to change.
"""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nenya.errors import InputFileError, NenyaError, OutputError
from nenya.storage.disk import atomic_path
from nenya.storage.lock import one_at_a_time
from nenya.storage.small_files import refuse_link
from nenya.tables.key_columns import IntArray, Keys
from nenya.tables.keys import Packed
from nenya.tables.tags import MOST_BYTES, MOST_MARKS, MOST_TAGS, Tags, check_word, read_tags, to_json

_NO_KEYS = Keys(None, np.empty(0, np.int32), np.empty(0, np.int8), np.empty(0, np.int64))
NO_TAGS = Tags((), np.empty(0, np.int64), _NO_KEYS)
"""What a file that does not exist holds."""


Stamp = tuple[int, int, int] | None
"""Inode, bytes and nanoseconds of a file, which each change by anybody changes; None where there is no file."""


class Change(NamedTuple):
    """A change of a file of tags.

    Attributes:
        rows: of the table that it concerned, each cutout once.
        tags: all tags after it.
        stamp: of the file with these tags, whatever others have written since.
    """

    rows: IntArray
    tags: Tags
    stamp: Stamp


class TagFile:
    """A file of tags, which the first tag creates.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def stamp(self) -> Stamp:
        """Return the stamp of the file."""
        try:
            status = self.path.stat()
        except OSError:
            return None
        return status.st_ino, status.st_size, status.st_mtime_ns

    def read(self) -> Tags:
        """Return the tags.

        Raises:
            InputFileError: The file is damaged, or not one of tags.
        """
        try:
            return read_tags(self.path)
        except FileNotFoundError:
            return NO_TAGS

    def change(self, keys: Keys, packed: Packed, rows: IntArray, word: str, *, on: bool) -> Change:
        """Give a tag to rows of a table, or take it from them.

        Args:
            keys: of the table.
            packed: of the same table.
            rows: (n,) of the table.
            word: the tag.
            on: whether the rows get it.

        Returns:
            The change: its rows are those among the given ones that did not have the tag (or had it) before.

        Raises:
            InputFileError: The tag is not one, there are too many, a row cannot be tagged, or the file is damaged.
            OutputError: The file cannot be written.
        """
        word = check_word(word)
        refuse_link(self.path)
        if not len(rows):
            raise InputFileError("there are no cutouts to tag: select some first")
        if on and len(rows) > MOST_MARKS:
            raise InputFileError(f"expected at most {MOST_MARKS:,} cutouts to tag, got {len(rows):,}: select fewer")
        if lacking := int((packed.number[rows] < 0).sum()):
            raise InputFileError(
                f"{lacking:,} of {len(rows):,} cutouts cannot be tagged: the table does not say their file, partition "
                "and row (pp_file, pp_type, pp_idx); select others"
            )
        try:
            with one_at_a_time(self.path.with_name(f".{self.path.name}.lock")):
                stamp, tags = self.stamp(), self.read()
                changed = _changed(tags, packed, rows, word, on=on)
                if len(changed):
                    tags = _added(tags, keys, packed, changed, word) if on else _without(tags, packed, changed, word)
                    self._write(tags)
                    stamp = self.stamp()  # while the file is locked: nobody else has written it since
        except NenyaError:
            raise
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror or error}") from error
        return Change(changed, tags, stamp)

    def _write(self, tags: Tags) -> None:
        if len(tags.words) > MOST_TAGS:
            raise InputFileError(f"{MOST_TAGS} different tags are in use, the largest number allowed: remove one first")
        if len(tags) > MOST_MARKS:
            raise InputFileError(
                f"expected at most {MOST_MARKS:,} tagged cutouts, got {len(tags):,}: select fewer, or remove one"
            )
        data = to_json(tags).encode()
        if len(data) > MOST_BYTES:
            raise InputFileError(
                f"expected at most {MOST_BYTES:,} bytes of tags, got {len(data):,}: select fewer cutouts"
            )
        with atomic_path(self.path) as temporary:
            temporary.write_bytes(data)


def _numbers(tags: Tags, packed: Packed, word: str) -> tuple[IntArray, NDArray[np.bool_]]:
    """Return the cutouts of all marks as numbers of the table, and which marks are of a tag: two arrays (M,)."""
    number = packed.of(tags.keys) if len(tags) else np.empty(0, np.int64)
    own = np.zeros(len(tags), bool) if word not in tags.words else tags.word == tags.words.index(word)
    return number, own


def _changed(tags: Tags, packed: Packed, rows: IntArray, word: str, *, on: bool) -> IntArray:
    """Return the rows that a change concerns, each cutout once."""
    number, own = _numbers(tags, packed, word)
    has = np.isin(packed.number[rows], number[own])
    rows = rows[~has] if on else rows[has]
    found: IntArray = rows[np.sort(np.unique(packed.number[rows], return_index=True)[1])]
    return found


def _added(tags: Tags, keys: Keys, packed: Packed, rows: IntArray, word: str) -> Tags:
    """Return tags with those of some rows; a cutout file keeps the name by which the tags know it."""
    words = tuple(sorted({*tags.words, word}))
    names, place = _named(tags, keys, rows)
    of_word = np.array([words.index(one) for one in tags.words], np.int64)
    more = np.full(len(rows), words.index(word), np.int64)
    joined = Keys(
        None if names == [""] else names,
        np.concatenate([tags.keys.file, place[keys.file[rows]]]).astype(np.int32),
        np.concatenate([tags.keys.kind, keys.kind[rows]]).astype(np.int8),
        np.concatenate([tags.keys.row, keys.row[rows]]),
    )
    return Tags(words, np.concatenate([of_word[tags.word] if len(tags) else tags.word, more]), joined)


def _named(tags: Tags, keys: Keys, rows: IntArray) -> tuple[list[str], NDArray[np.int32]]:
    """Return the cutout files of tags and of some rows, and the number among them of each file of the table."""
    own, names = keys.names or [""], list(tags.keys.names or [])
    if len(tags) and (keys.names is None) != (tags.keys.names is None):
        return names or own[:1], np.zeros(len(own), np.int32)  # both are of one file, which one of them names
    place = np.zeros(len(own), np.int32)
    for file in np.unique(keys.file[rows]).tolist():
        if own[file] not in names:
            names.append(own[file])
        place[file] = names.index(own[file])
    return names, place


def _without(tags: Tags, packed: Packed, rows: IntArray, word: str) -> Tags:
    """Return tags without one tag of some rows."""
    number, own = _numbers(tags, packed, word)
    keep = ~(own & np.isin(number, packed.number[rows]))
    old = tags.keys
    left = Tags(tags.words, tags.word[keep], Keys(old.names, old.file[keep], old.kind[keep], old.row[keep]))
    used = np.unique(left.word)
    return replace(left, words=tuple(tags.words[n] for n in used.tolist()), word=np.searchsorted(used, left.word))
