"""Rows of an index: read by their numbers, and those under a condition that lie nearest to a query.

LanceDB knows rows by a row id; nenya by their number among all latents, `archive_row`. Rows are added in the order of
their numbers, so that the place of a number is found without reading the column.

Letters in shapes: m rows, D the length of a latent.
"""

import re
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nenya.errors import InputFileError
from nenya.tables.conditions import ROW

Float32Array = NDArray[np.float32]
Float64Array = NDArray[np.float64]
IntArray = NDArray[np.int64]

VECTOR = "latent"
REFINE = 10
"""Factor on the compressed neighbours that are ranked by their latents."""

_SCANNED_ROWS = 2**20  # of a batch of numbers; with LanceDB's default a scan takes ten times as long
_TAKEN_ROWS = 8192  # rows fetched at once
_IN_ROWS = 1000  # numbers in one condition
_POOL, _MOST_POOL = 4_000, 50_000  # neighbours without the condition, among which those that satisfy it are sought
_CHECKED_POOL = 20_000  # largest number of neighbours for which the columns of a condition are read
_ENOUGH = 10  # factor on k: so many of them make an answer
_MORE_REFINED = 3  # factor on the neighbours ranked under conditions: they are farther away, so differ less
_SMALL_ROWS = 2**18  # rows in one reading of the columns of a condition
_MORE_PROBES = 8  # factor on the parts searched under conditions, which leave fewer rows in each
_KEPT_CONDITIONS, _KEPT_ROWS, _KEPT_BYTES = 4, 2_000_000, 2**26


class IndexRows:
    """The rows of LanceDB's table.

    Args:
        table: LanceDB's.
        about: description of the index.
    """

    def __init__(self, table: Any, about: dict[str, Any]) -> None:
        self.table, self.dim = table, int(about["dim"])
        self.count = int(table.count_rows())
        self._columns: list[str] = list(about["columns"])
        self._missing = max(0, sum(source["rows"] for source in about["sources"]) - self.count)
        self._kept: OrderedDict[str, IntArray] = OrderedDict()
        self._latents: OrderedDict[str, list[tuple[IntArray, Float32Array]]] = OrderedDict()

    def read(self, rows: IntArray, columns: list[str]) -> Any:
        """Return columns of rows by their numbers, as an Arrow table in the same order.

        Raises:
            InputFileError: A row is not in the index.
        """
        import pyarrow as pa

        wanted = np.unique(rows)
        found = self._at_places(wanted, columns)
        if found is None:  # the files of the index were resumed in another order
            found = pa.concat_tables([self._with_numbers(part, columns) for part in _parts(wanted, _IN_ROWS)])
        return found.take(_order(found[ROW].to_numpy(), rows))

    def _at_places(self, wanted: IntArray, columns: list[str]) -> Any:
        """Return rows, rising, from where they lie if numbers rise; None if they are absent."""
        import pyarrow as pa

        places = self._places(wanted)
        if len(places) and (places.min() < 0 or places.max() >= self.count):
            return None
        parts = [
            self.table.take_offsets(part.tolist()).select(columns).to_arrow() for part in _parts(places, _TAKEN_ROWS)
        ]
        found = pa.concat_tables(parts)
        there = np.sort(found[ROW].to_numpy())
        return found if np.array_equal(there, wanted) else None

    def _places(self, wanted: IntArray) -> IntArray:
        """Return the places of rising numbers, by bisection between the bounds that the rows left out give."""
        low, high = np.maximum(wanted - self._missing, 0), np.minimum(wanted, self.count - 1)
        while (open_ := np.flatnonzero(low < high)).size:
            middle = (low[open_] + high[open_]) // 2
            some, which = np.unique(middle, return_inverse=True)
            found = self.table.take_offsets(some.tolist()).select([ROW]).to_arrow()[ROW].to_numpy()
            below = np.sort(found)[which] < wanted[open_]
            low[open_] = np.where(below, middle + 1, low[open_])
            high[open_] = np.where(below, high[open_], middle)
        return np.asarray(low, np.int64)

    def _with_numbers(self, part: IntArray, columns: list[str]) -> Any:
        sql = f"`{ROW}` IN ({', '.join(map(str, part))})" if len(part) else "false"
        return self.table.search().where(sql).select(columns).limit(len(part) + 1).to_arrow()

    def ids_where(self, sql: str) -> IntArray:
        """Return the row ids that satisfy a condition, rising; those of the last few conditions are kept."""
        if sql in self._kept:
            self._kept.move_to_end(sql)
            return self._kept[sql]
        asked = (
            self.table.search().where(sql).select([self._column_of(sql)]).with_row_id(True).limit(max(1, self.count))
        )
        parts = [batch.column("_rowid").to_numpy().astype(np.int64) for batch in asked.to_batches(_SCANNED_ROWS)]
        found = np.sort(np.concatenate([np.empty(0, np.int64), *parts]))
        if len(found) <= _KEPT_ROWS:
            self._kept[sql] = found
            while len(self._kept) > _KEPT_CONDITIONS:
                self._kept.popitem(last=False)
        return found

    def _column_of(self, sql: str) -> str:
        """Return a column that a condition reads anyway, by which a scan of the rows takes half the time."""
        return next((name for name in self._columns if re.search(rf"\b{re.escape(name)}\b", sql)), ROW)

    def from_place(self, place: int) -> Iterator[tuple[IntArray, Float32Array]]:
        """Yield the numbers and the latents of the rows added from a place on, block by block."""
        for part in _parts(np.arange(place, self.count), _TAKEN_ROWS):
            found = self.table.take_offsets(part.tolist()).select([ROW, VECTOR]).to_arrow()
            yield found[ROW].to_numpy(), vectors(found[VECTOR], self.dim)

    def vectors_of(self, ids: IntArray) -> Iterator[tuple[IntArray, Float32Array]]:
        """Yield the numbers and the latents of rows by their row ids, block by block."""
        for part in _parts(ids, _TAKEN_ROWS):
            found = self.table.take_row_ids(part.tolist()).select([ROW, VECTOR]).to_arrow()
            yield found[ROW].to_numpy(), vectors(found[VECTOR], self.dim)

    def vectors_where(self, sql: str) -> Iterator[tuple[IntArray, Float32Array]]:
        """Yield the numbers and the latents of the rows of a condition, block by block; a few rows are kept."""
        if sql not in self._latents:
            ids = self.ids_where(sql)
            if 4 * self.dim * len(ids) > _KEPT_BYTES:
                yield from self.vectors_of(ids)
                return
            self._latents[sql] = list(self.vectors_of(ids))
            while len(self._latents) > _KEPT_CONDITIONS:
                self._latents.popitem(last=False)
        self._latents.move_to_end(sql)
        yield from self._latents[sql]

    def near(
        self, query: Float64Array, count: int, probes: int, sql: str | None = None, *, prefilter: bool = False
    ) -> IntArray:
        """Return row ids near a query, by the distances of the vector index, nearest first.

        Args:
            query: (D,).
            count: of neighbours.
            probes: parts searched.
            sql: a condition.
            prefilter: count neighbours that satisfy the condition, in further parts if there are too few, instead of
                dropping those of the neighbours that do not.
        """
        asked = self.table.search(query.astype(np.float32)).distance_type("cosine").limit(count)
        asked = asked.select(["_distance"]).with_row_id(True)
        if prefilter:
            asked = asked.minimum_nprobes(probes).maximum_nprobes(0)
        else:
            asked = asked.nprobes(probes)
        if sql:
            asked = asked.where(sql, prefilter=prefilter)
        found = asked.to_arrow()
        order = np.argsort(found["_distance"].to_numpy(), kind="stable")
        return np.asarray(found["_rowid"].to_numpy()[order], np.int64)

    def near_where(self, query: Float64Array, k: int, sql: str, index: dict[str, Any], narrow: int) -> IntArray | None:
        """Return row ids near a query that satisfy a condition, enough to rank; None if few rows do.

        In a large index, the condition is checked on the nearest neighbours alone, without reading its columns of all
        rows. The share of them that satisfies it says how far the search must go: the k nearest rows of a share s lie
        among the k / s nearest of all, in parts / s instead of the parts that suffice without a condition. Only if
        few of the neighbours satisfy it, the columns are read: either so few rows satisfy the condition that all of
        them are to be compared, or the neighbours are sought among more rows, or last among those of the condition
        alone.

        Args:
            query: (D,).
            k: number of rows.
            sql: a condition.
            index: its kind, parts and probes.
            narrow: number of rows up to which all are to be compared.
        """
        parts, probes = index["parts"], index["probes"]
        wanted, ranked = 2 * _ENOUGH * k, _MORE_REFINED * REFINE * k
        if self.count <= _SMALL_ROWS and len(self.ids_where(sql)) <= max(narrow, k):
            return None
        if sql not in self._kept and (pool := max(_POOL, wanted)) <= _MOST_POOL:
            found = self.near(query, pool, min(parts, _MORE_PROBES * probes), sql)
            if len(found) >= max(_ENOUGH * k, pool // _MORE_PROBES):
                return found[:ranked]
            share = len(found) / pool
            if wanted <= share * _CHECKED_POOL:
                found = self.near(query, int(wanted / share), min(parts, int(probes / share)), sql)
                if len(found) >= _ENOUGH * k:
                    return found[:ranked]
        kept = self.ids_where(sql)
        if len(kept) <= max(narrow, k):
            return None
        share = len(kept) / self.count
        if wanted <= share * 8 * _MOST_POOL:
            pool, wider = min(int(wanted / share), _MOST_POOL), min(parts, int(_MORE_PROBES + probes / share))
            found = self.near(query, pool, wider)
            places = np.minimum(np.searchsorted(kept, found), len(kept) - 1)
            found = np.asarray(found[kept[places] == found], np.int64)
            if len(found) >= _ENOUGH // 2 * k:
                return found[:ranked]
        return self.near(query, ranked, min(parts, _MORE_PROBES * probes), sql, prefilter=True)


def vectors(column: Any, dim: int) -> Float32Array:
    """Return a column of latents as a writable array, (m, D)."""
    values = column.combine_chunks() if hasattr(column, "combine_chunks") else column
    flat: NDArray[np.float32] = values.flatten().to_numpy(zero_copy_only=False)
    return np.array(flat, np.float32).reshape(-1, dim)


def _parts(values: IntArray, size: int) -> list[IntArray]:
    return [values[start : start + size] for start in range(0, max(1, len(values)), size)]


def _order(found: IntArray, wanted: IntArray) -> IntArray:
    """Return the position of each wanted row among those found."""
    order = np.argsort(found)
    places = np.searchsorted(found, wanted, sorter=order)
    lost = [row for row, place in zip(wanted, places, strict=True) if place == len(found) or found[order[place]] != row]
    if lost:
        raise InputFileError(f"row {lost[0]} has no latent in the index")
    return np.asarray(order[places])
