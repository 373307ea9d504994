"""Tags: words that people give to cutouts, kept in one small file and joined to tables by the keys of the cutouts.

A file of tags is JSON: tag -> cutout file -> partition -> rows in it. It says nothing of the position of a row in a
table, so that it fits a table that was sorted or has grown.

Letters in shapes: N rows of a table, M marks (a tag of a cutout).
"""

import json
import logging
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nenya.errors import InputFileError, NenyaError, OptionError
from nenya.storage.paths import local_path
from nenya.storage.small_files import read_small, strict_json
from nenya.storage.texts import shown
from nenya.tables.key_columns import TYPES, IntArray, Keys, read_keys
from nenya.tables.keys import Packed

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

COLUMN = "tag"
"""Column with the tags of a row, in order and joined by `JOINED`; missing where there are none."""
JOINED = ", "
MOST_TAGS = 100
"""Different tags of a file, at most."""
MOST_MARKS = 500_000
"""Tags of cutouts in a file, at most."""
LONGEST = 40
"""Characters of a tag, at most."""
MOST_BYTES = 2**24
_LONGEST_FILE = 1000  # characters of the name of a cutout file
_KEY = "nenya_tags"
_VERSION = 1
_LIKE_FORMULAS = ("=", "+", "-", "@")  # beginnings that a spreadsheet takes for a formula
_ROWS = 2**40


@dataclass(frozen=True)
class Tags:
    """Tags of cutouts.

    Attributes:
        words: the different tags, in order.
        word: (M,) int64, the number of each mark's tag.
        keys: of the marks' cutouts, M.
    """

    words: tuple[str, ...]
    word: IntArray
    keys: Keys

    def __len__(self) -> int:
        return len(self.word)


@dataclass(frozen=True)
class TagColumn:
    """The tags of the rows of a table.

    Attributes:
        labels: the different combinations of tags.
        codes: (N,) int32, the number of each row's combination, -1 for none.
        lost: number of tagged cutouts that the table lacks.
        total: number of tagged cutouts.
    """

    labels: tuple[str, ...]
    codes: NDArray[np.int32]
    lost: int
    total: int

    @property
    def note(self) -> str:
        """What to say of cutouts that the table lacks; empty if it has all."""
        return f"{self.lost:,} of {self.total:,} tagged cutouts are not in the table" if self.lost else ""


def check_word(text: Any) -> str:
    """Return a tag without needless spaces, and in the composed form of Unicode (NFC): one letter has one spelling.

    Raises:
        InputFileError: It is empty, too long, or holds a comma or characters that cannot be seen.
    """
    word = " ".join(_composed(text).split()) if isinstance(text, str) else ""
    if not 0 < len(word) <= LONGEST or not word.isprintable() or "," in word or word.startswith(_LIKE_FORMULAS):
        raise InputFileError(
            f"expected a tag of 1 to {LONGEST} characters, without commas, not beginning with =, +, - or @, got "
            f"{shown(repr(word or text), 60)}"
        )
    return word


def asked_tag(text: str) -> str:
    """Return the tag that a condition names, spelled as `check_word` spells it.

    Raises:
        OptionError: It holds a comma, so that no cutout can have it.
    """
    if "," in text:
        both = " AND ".join(f"{COLUMN} = '{word.strip()}'" for word in text.split(","))
        raise OptionError(
            f"{COLUMN} = {shown(repr(text), 60)}: a tag has no comma, so that this selects nothing; "
            f"{shown(both, 120)} selects the cutouts with all of these tags"
        )
    return _composed(text)


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def place_of_tags(given: Any, table: str | None, archive: str | None) -> Path | None:
    """Return the file of tags that `tags=` names; None without it.

    Args:
        given: a path, or true for the file beside the table or in the archive.
        table: path of the table.
        archive: folder of an archive.

    Raises:
        OptionError: true is given, but there is no folder for it.
    """
    if given is None or given is False:
        return None
    if given is not True:
        return local_path(str(given))
    place = str(archive or table or "")
    if not place or "://" in place:
        raise OptionError(f"tags=true needs table= or archive= in a folder of this machine, got {place or 'neither'}")
    path = local_path(place)
    return path / "portal_tags.json" if archive else path.with_suffix(".tags.json")


def read_tags(path: Path) -> Tags:
    """Read a file of tags.

    Raises:
        FileNotFoundError: There is none.
        InputFileError: It is damaged, too large, or not one of tags.
    """
    try:
        data = read_small(path, MOST_BYTES)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise InputFileError(f"{path}: cannot be read as tags ({getattr(error, 'strerror', None) or error})") from error
    try:
        found = strict_json(data, 8)
        if found[_KEY] != _VERSION:
            raise ValueError(f"{_KEY} is not {_VERSION}")
        return _built(found["tags"])
    except (ValueError, TypeError, KeyError, AttributeError, NenyaError, RecursionError) as error:
        raise InputFileError(
            f"{path}: expected tags, as nenya portal tags=true writes them, got another file ({shown(error, 200)}); "
            "move it away or give the right one"
        ) from error


def given_tags(path: Path) -> Tags:
    """Return the tags of a file that must exist; as `read_tags`.

    Raises:
        InputFileError: There is no such file, or it is not one of tags.
    """
    try:
        return read_tags(path)
    except FileNotFoundError:
        raise InputFileError(
            f"tags={path}: no such file; nenya portal tags=true writes it with the first tag"
        ) from None


def _built(found: Any) -> Tags:
    """Build tags from untrusted values."""
    if len(found) > MOST_TAGS:
        raise ValueError(f"{len(found):,} tags, more than {MOST_TAGS}")
    names: dict[str, int] = {}
    words = sorted({_composed(word) for word in found})
    parts: dict[tuple[int, int, int], IntArray] = {}
    total = 0
    for word, files in found.items():
        number = words.index(_composed(word))
        if check_word(word) != words[number]:
            raise ValueError(f"{word!r} is no tag")
        for name, partitions in files.items():
            if len(name) > _LONGEST_FILE:
                raise ValueError("the name of a cutout file is too long")
            file = names.setdefault(name, len(names))
            for partition, rows in partitions.items():
                total += len(rows)
                if total > MOST_MARKS:
                    raise ValueError(f"more than {MOST_MARKS:,} tags of cutouts")
                if not isinstance(rows, list) or any(type(row) is not int or not 0 <= row < _ROWS for row in rows):
                    raise ValueError(f"rows of {word!r} that are no numbers")
                key = number, file, TYPES[partition]  # two spellings of a tag may have the same rows
                parts[key] = np.union1d(parts.get(key, np.empty(0, np.int64)), np.array(rows, np.int64))
    return _joined(words, list(names), [(*key, rows) for key, rows in parts.items()])


def _joined(words: Sequence[str], names: list[str], parts: list[tuple[int, int, int, IntArray]]) -> Tags:
    """Return tags from (tag, file, type, rows)."""

    def each(place: int, kind: Any) -> NDArray[Any]:
        return np.concatenate([np.full(len(part[3]), part[place], kind) for part in parts] or [np.empty(0, kind)])

    row = np.concatenate([part[3] for part in parts] or [np.empty(0, np.int64)])
    keys = Keys(None if names in ([""], []) else names, each(1, np.int32), each(2, np.int8), row)
    return Tags(tuple(words), each(0, np.int64), keys)


def to_json(tags: Tags) -> str:
    """Return the text of a file of tags."""
    names = tags.keys.names or [""]
    kinds = {number: name for name, number in TYPES.items()}
    found: dict[str, dict[str, dict[str, list[int]]]] = {word: {} for word in tags.words}
    order = np.lexsort((tags.keys.row, tags.keys.kind, tags.keys.file, tags.word))
    labels = np.stack([tags.word, tags.keys.file, tags.keys.kind])[:, order]
    breaks = np.flatnonzero((np.diff(labels) != 0).any(axis=0)) + 1
    for rows, start in zip(np.split(tags.keys.row[order], breaks), [0, *breaks.tolist()], strict=True):
        if len(rows):
            word, file, kind = labels[:, start].tolist()
            found[tags.words[word]].setdefault(names[file], {})[kinds[kind]] = rows.tolist()
    used = {word: files for word, files in found.items() if files}
    return json.dumps({_KEY: _VERSION, "tags": used}, ensure_ascii=False, separators=(",", ":")) + "\n"


def column_of(tags: Tags, table: Packed) -> TagColumn:
    """Return the tags of the rows of a table.

    Raises:
        InputFileError: A name of a cutout file matches several, and the folder does not decide.
    """
    number = table.of(tags.keys) if len(tags) else np.empty(0, np.int64)
    labels, place, cutouts = combined(tags, number)
    return _placed(table, labels, place, cutouts, tags)


def _placed(table: Packed, labels: tuple[str, ...], place: IntArray, cutouts: IntArray, tags: Tags) -> TagColumn:
    codes = np.full(len(table.number), -1, np.int32)
    total = _cutouts(tags.keys)
    if not len(cutouts):
        return TagColumn(labels, codes, total, total)
    at = np.minimum(np.searchsorted(cutouts, table.number), len(cutouts) - 1)
    has = (cutouts[at] == table.number) & (table.number >= 0)
    codes[has] = place[at[has]]
    there = np.zeros(len(cutouts), bool)
    there[at[has]] = True
    return TagColumn(labels, codes, total - int(there.sum()), total)


def _cutouts(keys: Keys) -> int:
    """Return the number of different cutouts of marks."""
    file = 2 * keys.file.astype(np.int64) + keys.kind
    order = np.lexsort((keys.row, file))
    file, row = file[order], keys.row[order]
    return int(((np.diff(file) != 0) | (np.diff(row) != 0)).sum()) + bool(len(row))


def combined(tags: Tags, number: IntArray) -> tuple[tuple[str, ...], IntArray, IntArray]:
    """Return the combinations of tags, and that of each tagged cutout.

    Args:
        tags: M marks.
        number: (M,), the cutout of each mark; negative ones are left out.

    Returns:
        The K combinations; the number of each cutout's combination, (C,); and the cutouts, (C,), rising.
    """
    known = number >= 0
    pairs = np.unique(np.stack([number[known], tags.word[known]]), axis=1)
    cutouts, first, count = np.unique(pairs[0], return_index=True, return_counts=True)
    single = count == 1
    names = [tags.words[word] for word in np.unique(pairs[1][first[single]]).tolist()]
    several = {
        int(place): JOINED.join(tags.words[word] for word in pairs[1][first[place] : first[place] + count[place]])
        for place in np.flatnonzero(~single)
    }
    labels = sorted({*names, *several.values()})
    at = {label: i for i, label in enumerate(labels)}
    of_word = np.array([at.get(word, -1) for word in tags.words] or [-1])
    place = of_word[pairs[1][first]] if len(first) else np.empty(0, np.int64)
    for which, label in several.items():
        place[which] = at[label]
    return tuple(labels), place.astype(np.int64), cutouts


def tags_in(label: str) -> list[str]:
    """Return the tags of a value of the column."""
    return label.split(JOINED)


def with_tags(table: "pd.DataFrame", path: Path | None) -> "pd.DataFrame":
    """Return a table with the column of tags; unchanged without a file.

    Args:
        table: with pp_type, pp_idx and, unless it belongs to one file, pp_file.
        path: the file of tags.

    Raises:
        InputFileError: The file is missing or not one of tags, the table lacks the keys, or none of its rows is tagged.
        OptionError: The table has a column of that name.
    """
    if path is None:
        return table
    import pandas as pd

    if COLUMN in table:
        raise OptionError(
            f"tags={path}: the table has a column {COLUMN} already: leave out tags=, or rename the column"
        )
    found = column_of(given_tags(path), Packed(read_keys(table)))
    if found.total and found.lost == found.total:
        raise InputFileError(f"tags={path}: none of its {found.total:,} tagged cutouts is in the table: check both")
    if found.note:
        log.warning("tags=%s: %s", path, found.note)
    log.info("tags=%s: %d of %d rows are tagged", path, int((found.codes >= 0).sum()), len(table))
    values = pd.Categorical.from_codes(found.codes, pd.Index(found.labels, dtype=object))
    return table.assign(**{COLUMN: pd.Series(values, index=table.index).astype(object).where(found.codes >= 0, None)})
