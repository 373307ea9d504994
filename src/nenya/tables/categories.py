"""Categories in a column of a table: texts, truth values, and integers with few values. A mean of them says nothing.

Letters: N rows, K categories.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nenya.errors import InputFileError, OptionError
from nenya.tables.grids import Grid
from nenya.tables.quantities import quantity_of

if TYPE_CHECKING:
    import pandas as pd

FloatArray = NDArray[np.floating]
IntArray = NDArray[np.int64]

MOST = 20
"""Categories that are told apart; of more, the rarest become one."""
_MOST_TEXTS = 200  # different texts of a column of categories
LABELS = frozenset(("cluster", "label", "group", "part", "sensor", "region", "index", "pp_type", "flag"))
"""Columns whose integers are names, however many there are."""
NOISE = -1
"""The label of rows that belong to no cluster: noise, and rows without a latent."""
NOISE_NAME = "noise"
_CALENDAR = {
    "month": dict(enumerate("Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split(), 1)),
}
CYCLIC = {"month": 12, "hour": 24, "season": 4}
"""Cyclic columns, and their number of values: the first value follows the last one."""
ORDERED = frozenset((*CYCLIC, "year", "level", "quality", "quality_level"))
"""Columns whose integers have an order that colours should show."""


@dataclass(frozen=True)
class Categories:
    """The categories of the rows of a table.

    Attributes:
        name: of the column.
        codes: (N,) int64, numbers of the categories, -1 for rows without one.
        values: K values of the column, or a text for several together.
        labels: K names.
        rest: number of the category that holds the rows of no cluster, or the rarest categories; -1 if there is none.
    """

    name: str
    codes: IntArray
    values: tuple[Any, ...]
    labels: tuple[str, ...]
    rest: int = -1

    @property
    def counts(self) -> IntArray:
        """Rows of each category, (K,) int64."""
        return np.bincount(self.codes[self.codes >= 0], minlength=len(self.labels))

    def take(self, rows: Any) -> "Categories":
        """Return the same categories of some rows."""
        return Categories(self.name, self.codes[rows], self.values, self.labels, self.rest)

    def most_frequent(self, grid: Grid, x: FloatArray, y: FloatArray, least: int = 1) -> FloatArray:
        """Return the category with most rows in each cell, (R, C) float64; NaN with fewer than `least` rows.

        Of equally frequent categories the one with fewer rows in all is taken, so that none is hidden.
        """
        known = self.codes >= 0
        order = np.argsort(self.counts, kind="stable")
        counts = np.stack([grid.counts(*(v[known & (self.codes == k)] for v in (x, y))) for k in order])
        found = order[counts.argmax(axis=0)].astype(np.float64)
        return np.where(counts.sum(axis=0) >= max(least, 1), found, np.nan)


def categories_of(
    table: "pd.DataFrame",
    name: str,
    *,
    wanted: bool | None = None,
    names: Mapping[Any, Any] | None = None,
) -> Categories | None:
    """Return the categories in a column, or None if it holds numbers that can be averaged.

    Categories are texts, truth values, and integers with at most `MOST` values, or of a column of labels, such as
    `cluster`. Integers with missing values may be stored as floats. A column with a unit, such as K, has none.

    Args:
        table: with the column; one that lacks it has no categories of it.
        name: of the column. A column `<name>_name`, if there is one, has the names of its values.
        wanted: True: the column has categories; False: it has numbers; None: as its values tell.
        names: value -> name, of some values at least.

    Raises:
        InputFileError: More different values than a picture can tell apart.
        OptionError: A name is given to a value that the column does not have.
    """
    import pandas as pd

    if wanted is False or name not in table:
        return None
    column = table[name]
    numeric = pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)
    if numeric and not (wanted or _is_labels(column, name)):
        return None
    if (not numeric and column.dtype.kind in "mM") or isinstance(column.dtype, pd.DatetimeTZDtype | pd.PeriodDtype):
        return None
    codes, values = pd.factorize(column if numeric else column.astype("string"), sort=True)
    if not len(values):
        raise InputFileError(f"the column {name} has no value in {len(column):,} rows")
    if len(values) > _MOST_TEXTS and not (numeric and name in LABELS):
        raise InputFileError(
            f"the column {name} has {len(values):,} different values, expected numbers, or at most {_MOST_TEXTS} "
            "categories"
        )
    plain = [int(v) if numeric and float(v).is_integer() else v.item() if hasattr(v, "item") else v for v in values]
    labels = _labels(plain, name, _named(table, name, column, plain) | _given(names, plain, name))
    return _folded(name, np.asarray(codes, np.int64), plain, labels)


def _is_labels(column: "pd.Series[Any]", name: str) -> bool:
    """Return whether numbers are labels of categories."""
    if quantity_of(name).unit:
        return False
    known = column.dropna().to_numpy()
    if known.dtype.kind == "f":
        if len(known) == len(column) and name not in LABELS:
            return False
        if not np.isfinite(known).all() or (known != np.round(known)).any():
            return False
    elif known.dtype.kind not in "iu":
        return False
    return name in LABELS or 0 < len(np.unique(known)) <= MOST


def _named(table: "pd.DataFrame", name: str, column: "pd.Series[Any]", values: list[Any]) -> dict[Any, str]:
    """Return the names that a column `<name>_name` gives to values."""
    other = f"{name}_name"
    if other not in table:
        return {}
    known = column.notna() & table[other].notna()
    first = table.loc[known, [name, other]].drop_duplicates(name)
    texts = dict(zip(first[name], first[other].astype("string"), strict=True))
    return {value: str(texts[value]) for value in values if value in texts}


def _given(names: Mapping[Any, Any] | None, values: list[Any], name: str) -> dict[Any, str]:
    if not names:
        return {}
    as_text = {str(value): value for value in values}
    unknown = [key for key in names if str(key) not in as_text]
    if unknown:
        raise OptionError(
            f"names= of {unknown[0]}: the column {name} has no such value; it has {', '.join(list(as_text)[:MOST])}"
        )
    return {as_text[str(key)]: str(text) for key, text in names.items()}


def _labels(values: list[Any], name: str, named: Mapping[Any, str]) -> list[str]:
    calendar = _CALENDAR.get(name, {})
    none = {NOISE: NOISE_NAME} if name in LABELS else {}
    known = {**calendar, **none, **named}
    keep_number = name in LABELS and not isinstance(values[0], str)
    return [
        f"{value}: {named[value]}" if keep_number and value in named else str(known.get(value, value))
        for value in values
    ]


def _folded(name: str, codes: IntArray, values: list[Any], labels: list[str]) -> Categories:
    """Return categories; the rarest ones beyond `MOST` become one category, which comes last."""
    none = [k for k, value in enumerate(values) if name in LABELS and value == NOISE]
    kept = [k for k in range(len(values)) if k not in none]
    if len(values) > MOST:
        counts = np.bincount(codes[codes >= 0], minlength=len(values))
        frequent = sorted(kept, key=lambda k: -counts[k])[: MOST - 1]
        others = len(kept) - len(frequent)
        kept = sorted(frequent)
        last: tuple[list[Any], list[str]] = (["others"], [f"{others} others"])
    else:
        last = ([values[k] for k in none], [labels[k] for k in none])
    number = np.full(len(values) + 1, -1)
    number[kept] = np.arange(len(kept))
    if last[0]:
        number[:-1][number[:-1] < 0] = len(kept)
    rest = len(kept) if last[0] else -1
    return Categories(
        name,
        number[codes],
        (*(values[k] for k in kept), *last[0]),
        (*(labels[k] for k in kept), *last[1]),
        rest,
    )
