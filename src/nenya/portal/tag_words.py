"""Tags as texts of the page: beside cutouts of the gallery, and the list of all tags."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nenya.portal.columns import Columns
from nenya.portal.pages import part
from nenya.portal.tag_book import TagBook
from nenya.tables.tags import COLUMN

_LONGEST = 14  # characters beside a cutout of the gallery


def tag_notes(columns: Columns, rows: NDArray[np.integer[Any]], there: Sequence[bool]) -> list[str]:
    """Return what stands beside cutouts of the gallery: their tags, shortened, or that there is no image."""
    texts = columns.table.column(COLUMN).take(rows).to_pylist() if columns.tagged else [""] * len(rows)
    short = [text if len(text := value or "") <= _LONGEST else f"{text[: _LONGEST - 1]}…" for value in texts]
    return [text if known else "no image" for text, known in zip(short, there, strict=True)]


def tag_list(book: TagBook, own: list[str], chosen: dict[str, int], told: str) -> str:
    """Return the list of tags: how many cutouts have each, and what can be done with it.

    Args:
        book: the tags.
        own: tags of the primary image.
        chosen: the number of selected rows that have each.
        told: what the last change has done.
    """
    counts = book.counts_in(None)
    lines = [(word, f"{count:,}", f"{chosen.get(word, 0):,}", word in own) for word, count in counts.items()]
    return part("tags", lines=lines, writable=book.writable, place=book.path.name, note=book.note, told=told)
