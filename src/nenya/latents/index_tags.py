"""Tags of the rows of an index, which was built without them: conditions on tags as row numbers, and their column.

Letters in shapes: M marks, a tag of a cutout each.
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nenya.errors import OptionError
from nenya.latents.index import FilesSearcher, IndexSearcher, Searcher
from nenya.tables.conditions import ROW
from nenya.tables.key_columns import read_keys
from nenya.tables.keys import Packed, Part, join, part_types
from nenya.tables.tag_conditions import tag_terms
from nenya.tables.tags import COLUMN, column_of, given_tags, place_of_tags

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

MOST_ROWS = 50_000
"""Tagged rows that a condition on an index can name."""


class IndexTags:
    """The tags of the rows of an index.

    Args:
        index: the index.
        path: the file of tags.

    Attributes:
        tags: of the file.
        row: (M,) int64, the row of each mark in the index, -1 for none.

    Raises:
        InputFileError: The file is missing or not one of tags, or no tagged cutout is in the index.
        OptionError: The index has a column of that name.
    """

    def __init__(self, index: IndexSearcher, path: Path) -> None:
        if COLUMN in index.columns:
            raise OptionError(f"tags={path}: the index has a column {COLUMN} already: leave out tags=")
        self.tags = given_tags(path)
        parts = [
            Part(s["stem"], tuple(s.get("names") or [s["stem"]]), part_types(s["partition"]), s["start"], s["rows"])
            for s in index.about["sources"]
        ]
        self.row = join(self.tags.keys, parts).number if len(self.tags) else np.empty(0, np.int64)
        if lost := int((self.row < 0).sum()):
            log.warning("tags=%s: %d of %d tags are of cutouts that are not in the index", path, lost, len(self.row))

    def sql(self, words: list[str], positive: bool) -> str:
        """Return the condition of having one of some tags, or of having others only; see `tag_conditions.Has`.

        Raises:
            OptionError: Too many rows fulfil it.
        """
        known = self.row >= 0
        every = np.unique(self.row[known])
        chosen = [number for number, word in enumerate(self.tags.words) if word in words or not words]
        rows = np.unique(self.row[known & np.isin(self.tags.word, chosen)])
        if not positive and words:
            rows = np.setdiff1d(every, rows)
        if len(rows) > MOST_ROWS:
            raise OptionError(
                f"{len(rows):,} rows fulfil the condition on {COLUMN}, and an index takes at most {MOST_ROWS:,}: "
                "search the latents files by data=, or give another condition"
            )
        listed = f"(`{ROW}` IN ({', '.join(map(str, rows.tolist()))}))" if len(rows) else "(false)"
        return listed if positive or words else f"(NOT {listed})"


def index_tags(searcher: Searcher, given: Any, archive: str | None) -> IndexTags | None:
    """Return the tags of the rows of an index; None without tags, and for files: their table has a column of tags.

    Args:
        searcher: the index, or files.
        given: the option `tags`.
        archive: folder of the archive, if the index is of one.
    """
    place = None if isinstance(searcher, FilesSearcher) else place_of_tags(given, None, archive)
    return None if place is None or isinstance(searcher, FilesSearcher) else IndexTags(searcher, place)


def with_rows_of_tags(sql: str | None, tags: IndexTags | None) -> str | None:
    """Return a condition with row numbers in place of tags."""
    return sql if sql is None or tags is None else tag_terms(sql, tags.sql)


def with_tag_column(found: "pd.DataFrame", tags: IndexTags | None) -> "pd.DataFrame":
    """Return the rows of an answer with their tags."""
    if tags is None or not len(found):
        return found
    column = column_of(tags.tags, Packed(read_keys(found)))
    labels = np.array([*column.labels, None], object)
    return found.assign(**{COLUMN: labels[column.codes]})
