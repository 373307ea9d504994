"""Columns of classes, such as clusters, months and regions: their codes, names, counts, and the commonest in a cell.

Letters: N rows, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nenya.tables.categories import LABELS, MOST, NOISE, NOISE_NAME
from nenya.tables.quantities import quantity_of
from nenya.tables.tags import COLUMN as TAG
from nenya.tables.tags import tags_in

MOST_TEXTS = 64
"""Distinct strings or labels, at most."""
NO_TAG = "no tags yet"
_LOOKED_AT = 100_000  # rows after which most other columns are recognised
_NAME = (0.16, 0.05)  # room of a name, as a fraction of the figure
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


@dataclass(frozen=True)
class Classes:
    """A column of classes.

    Attributes:
        name: of the column.
        values: its K distinct values, in order: integers or strings.
        codes: (N,) int16, the number of each row's value among them; -1 for a missing one.
        truth: whether the values 0 and 1 are truth values.
    """

    name: str
    values: tuple[int, ...] | tuple[str, ...]
    codes: NDArray[np.int16]
    truth: bool = False

    @property
    def labels(self) -> tuple[str, ...]:
        """The values in words: months by name, `noise` for label -1, and False and True as in figures."""
        if self.truth:
            return tuple(str(bool(value)) for value in self.values)
        if self.name == "month" and all(isinstance(v, int) and 1 <= v <= len(_MONTHS) for v in self.values):
            return tuple(_MONTHS[int(value) - 1] for value in self.values)
        return tuple(NOISE_NAME if code == self.noise else str(value) for code, value in enumerate(self.values))

    @property
    def noise(self) -> int:
        """The code of the rows that belong to no cluster; -1 if the column has no such label."""
        return self.values.index(NOISE) if self.name in LABELS and NOISE in self.values else -1

    @property
    def kind(self) -> str:
        """How the values follow each other: `cycle` (months), `order` (years) or `names`."""
        return {"month": "cycle", "year": "order"}.get(self.name, "names")

    def counts(self, mask: NDArray[np.bool_] | None = None) -> NDArray[np.int64]:
        """Return the number of rows of each class, (K,), among those of a mask."""
        codes = self.codes if mask is None else self.codes[mask]
        return np.bincount(codes[codes >= 0], minlength=len(self.values))[: len(self.values)]


def classes_of_numbers(name: str, values: NDArray[Any]) -> Classes | None:
    """Return the classes of a column of numbers, (N,): a few distinct integers without a unit; None if it holds others.

    A column of labels, such as `cluster`, has up to `MOST_TEXTS` of them, another one as many as figures tell apart.
    """
    import pandas as pd

    if quantity_of(name).unit:
        return None
    most = MOST_TEXTS if name in LABELS else MOST
    known = np.isfinite(values) if values.dtype.kind == "f" else np.ones(len(values), bool)
    known_values = values if known.all() else values[known]
    for some in (known_values[:_LOOKED_AT], known_values):
        distinct = np.sort(pd.unique(some))  # by a hash, which takes a tenth of the time of sorting
        if not 2 <= len(distinct) <= most and (len(distinct) > most or len(some) < _LOOKED_AT):
            return None
        if (distinct != np.round(distinct)).any():
            return None
    if len(distinct) < 2:
        return None
    codes = np.where(known, np.searchsorted(distinct, np.where(known, values, distinct[0])), -1)
    return Classes(name, tuple(int(value) for value in distinct), codes.astype(np.int16))


def classes_of_texts(name: str, codes: NDArray[np.integer], texts: Sequence[Any]) -> Classes | None:
    """Return the classes of a column of strings; None if there are too many or fewer than two.

    Args:
        name: of the column.
        codes: (N,), the number of each row's string; negative for a missing one.
        texts: the strings.
    """
    used = [number for number in np.unique(codes).tolist() if number >= 0] if len(texts) <= 4 * MOST_TEXTS else []
    if not 2 <= len(used) <= MOST_TEXTS:
        return None
    order = sorted(used, key=lambda number: str(texts[number]))
    place = np.full(len(texts) + 1, -1, np.int16)
    place[order] = np.arange(len(order))
    return Classes(name, tuple(str(texts[number]) for number in order), place[codes])


def classes_of_tags(codes: NDArray[np.integer], labels: Sequence[str]) -> Classes:
    """Return the classes of tags: their combinations, or, if these are too many, the first tag of each row.

    Args:
        codes: (N,), the number of each row's combination, negative for none.
        labels: the combinations; without any, there is one class without rows.
    """
    if len(labels) > MOST_TEXTS:
        first = [tags_in(label)[0] for label in labels]
        kept = sorted(set(first))[:MOST_TEXTS]
        place = np.array([kept.index(word) if word in kept else -1 for word in first] + [-1], np.int16)
        return Classes(TAG, tuple(kept), place[codes])
    return Classes(TAG, tuple(labels) or (NO_TAG,), codes.astype(np.int16))


def commonest(cells: NDArray[np.integer], codes: NDArray[np.integer], count: int, classes: int) -> NDArray[np.int16]:
    """Return the commonest class of each cell, (count,) int16; the first of equally common ones; -1 for none.

    Args:
        cells: (N,), cell of each row; negative outside.
        codes: (N,), of the rows' classes; negative ones are left out.
        count: number of cells.
        classes: number of classes K.
    """
    inside = (cells >= 0) & (codes >= 0)
    found = np.bincount(cells[inside].astype(np.int64) * classes + codes[inside], minlength=count * classes)
    table = found.reshape(count, classes)
    return np.where(table.any(axis=1), table.argmax(axis=1), -1).astype(np.int16)


def centres(
    x: NDArray[np.floating], y: NDArray[np.floating], classes: Classes, mask: NDArray[np.bool_] | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the median position of each class, two arrays (K,); NaN for classes without a row."""
    codes = classes.codes if mask is None else np.where(mask, classes.codes, -1)
    known = np.flatnonzero((codes >= 0) & np.isfinite(x) & np.isfinite(y))
    known = known[:: max(1, len(known) // _LOOKED_AT)]
    places = np.full((2, len(classes.values)), np.nan)
    for code in np.unique(codes[known]).tolist():
        rows = known[codes[known] == code]
        places[:, code] = np.median(x[rows]), np.median(y[rows])
    return places[0], places[1]


def apart(
    x: NDArray[np.float64], y: NDArray[np.float64], counts: NDArray[np.int64], extent: tuple[float, float, float, float]
) -> list[int]:
    """Return the classes, largest first, with names that do not cover each other at their positions.

    Args:
        x: (K,), as of `centres`.
        y: (K,).
        counts: (K,).
        extent: left, right, lower and upper end of the figure.
    """
    left, right, low, high = extent
    found: list[int] = []
    for code in np.argsort(-counts, kind="stable").tolist():
        inside = left <= x[code] <= right and low <= y[code] <= high
        near = any(
            abs(x[code] - x[k]) < _NAME[0] * (right - left) and abs(y[code] - y[k]) < _NAME[1] * (high - low)
            for k in found
        )
        if inside and not near:
            found.append(code)
    return found
