"""Searchers of latents: files with their table, or a LanceDB index, which is a folder.

Letters in shapes: N rows, D the length of a latent.
"""

import errno
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nenya.errors import InputFileError, NenyaError, OutputError
from nenya.latents.examples import TABLE_ROW, Numbered, numbered, one_row, parse_example
from nenya.latents.files import Latents
from nenya.latents.index_rows import REFINE, VECTOR, IndexRows, vectors
from nenya.latents.lance_files import check_manifests
from nenya.latents.order import LEAST, MOST, SURE
from nenya.latents.similarity import Float32Array, Float64Array, IntArray, closest, closest_of, rank
from nenya.options.extras import need
from nenya.runtime.lean import import_lancedb
from nenya.storage.names import Json, read_json
from nenya.storage.table_integers import from_arrow
from nenya.tables.conditions import ROW, rows_where, sql_errors
from nenya.tables.granules import granules
from nenya.tables.place_and_time import dates_of, usual_names
from nenya.tables.quantities import with_dt

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

ABOUT = "nenya.json"
TABLE = "latents"
NARROW = 8_192
"""Conditions that keep at most this many rows are answered exactly, unless enough of them are near the query; in an
index of more than eight million rows up to four times as many."""

_MOST_DIM = 2**16
_MOST_ROWS = 2**40
_BATCH = 8192
_FEW = 16  # times NARROW: rows that are fetched one by one
_CACHE = 3 * 2**30  # bytes of the vector index that LanceDB keeps in memory at most: that of 50 million rows
_METADATA_CACHE = 2**28
_NARROW_SHARE = 1000  # one row in so many may satisfy a narrow condition of a large index, up to 4 * NARROW rows


@dataclass(frozen=True)
class Answer:
    """The rows closest to a query, closest first.

    Attributes:
        rows: (m,) int64, row numbers.
        cosine: (m,) float64.
        exact: whether these are certainly the closest.
        recall: share of the true ten closest that the index found when it was built, without conditions; None for
            an exact answer.
    """

    rows: IntArray
    cosine: Float64Array
    exact: bool
    recall: float | None = None

    @property
    def label(self) -> str:
        """`exact`, or `approximate` with the recall."""
        return "exact" if self.exact else f"approximate, recall@10 {self.recall:.3f} as measured at build time"


class FilesSearcher:
    """Latents files, searched directly.

    Args:
        latents: the rows.
        table: of the cutouts; rows without a latent are left out.

    Attributes:
        provenance: attributes of the files on the model.
        columns: names in the table.
    """

    def __init__(self, latents: Latents, table: "pd.DataFrame | None" = None) -> None:
        self.latents = latents
        self.provenance = latents.provenance
        self._given = table
        self.table = own_table(latents) if table is None else join(numbered(table), latents)
        self.columns = [str(name) for name in self.table.columns]
        self.dim = latents.shape[1]

    @cached_property
    def granules(self) -> Float64Array | None:
        """Number of the granule of each row of the table, (N,), NaN if unknown; None if it has no such columns."""
        found = granules(self.table)
        return None if found is None else np.where(found >= 0, found, np.nan)

    def search(
        self, query: Float64Array, k: int, sql: str | None = None, *, exact: bool = False, device: str = "cpu"
    ) -> Answer:
        """Return the k closest rows that satisfy a condition; always exact."""
        allowed = rows_where(self.table, sql) if sql else None
        found = closest(self.latents, query, k, allowed=allowed, device=device)
        count = int((found.rows[0] >= 0).sum())
        return Answer(found.rows[0, :count], found.cosine[0, :count], True)

    def find(self, example: str) -> int:
        """Return the number of the latent that an example names; see `parse_example`."""
        parts = [Numbered(part.cutout_names, part.partition, part.start, part.rows) for part in self.latents.parts]
        column, value = parse_example(example, self.columns, parts)
        if column == TABLE_ROW:
            return self._of_table_row(int(value))
        if column == ROW:
            found = np.array([int(value)]) if int(value) < len(self.latents) else np.empty(0, np.int64)
        else:
            found = np.flatnonzero(rows_where(self.table, value))
        return one_row(example, found, len(self.latents))

    def _of_table_row(self, row: int) -> int:
        """Return the number of the latent of a row of the table, which another row may repeat."""
        assert self._given is not None
        if row >= len(self._given):
            raise InputFileError(f"row {row} of the table does not exist; rows are 0 to {len(self._given) - 1}")
        try:
            return int(self.latents.join(self._given.iloc[[row]]).number[0])
        except InputFileError as error:
            raise InputFileError(f"row {row} of the table has no latent in the files of data=: {error}") from error

    def take(self, rows: IntArray) -> Float32Array:
        """Return latents by their numbers, (m, D)."""
        return self.latents.take(rows)

    def describe(self, rows: IntArray) -> "pd.DataFrame":
        """Return the table of some rows, in their order."""
        return self.table.iloc[rows].assign(**{ROW: rows}).reset_index(drop=True)


class IndexSearcher:
    """A LanceDB index in a folder, as made by `nenya index`.

    Args:
        folder: the index.
        about: its description; default the content of its `nenya.json`.
        version: of LanceDB's table; default the latest.

    Attributes:
        about: dim, provenance, columns, sources, index, recall.
        provenance: attributes of the latents files on the model.
        columns: names in the table.

    Raises:
        InputFileError: There is no index, or not one of nenya.
    """

    def __init__(self, folder: Path, about: dict[str, Any] | None = None, version: int | None = None) -> None:
        self.folder, self.version = folder, version
        self.about = read_about(folder) if about is None else about
        self.provenance: dict[str, str] = self.about["provenance"]
        self.columns: list[str] = list(self.about["columns"])
        self.dim: int = self.about["dim"]
        self._table: Any = None
        self._rows: IndexRows | None = None
        unfinished = [s["stem"] for s in self.about["sources"] if not s["done"]]
        if unfinished:
            log.warning(
                "%s: holds only a part of %s; run the same nenya index command again to add the rest",
                folder,
                unfinished,
            )

    @property
    def table(self) -> Any:
        """LanceDB's table, opened on first use."""
        if self._table is None:
            with lance_errors(self.folder):
                table = open_table(self.folder)
                if self.version is not None:
                    table.checkout(self.version)
                self._table = table
        return self._table

    @property
    def rows(self) -> IndexRows:
        """The rows of the table, opened on first use."""
        if self._rows is None:
            self._rows = IndexRows(self.table, self.about)
        return self._rows

    def __len__(self) -> int:
        with lance_errors(self.folder):
            return self.rows.count

    def count(self, sql: str) -> int:
        """Return the number of rows that satisfy a condition."""
        with lance_errors(self.folder), sql_errors(sql, self.columns):
            return int(self.table.count_rows(sql))

    def search(
        self, query: Float64Array, k: int, sql: str | None = None, *, exact: bool = False, device: str = "cpu"
    ) -> Answer:
        """Return the k closest rows that satisfy a condition.

        The answer is exact on request, without a vector index, and if few rows satisfy the condition; see `NARROW`.

        Args:
            query: (D,).
            k: number of rows.
            sql: a condition; None for all rows.
            exact: compare every row.
            device: where an exact answer is computed.

        Raises:
            OptionError: The condition is not SQL, or names a missing column.
        """
        index = self.about["index"]
        few = False
        if index and not exact:
            found: tuple[IntArray, Float64Array] | None
            if sql:
                found = self._near_where(query, k, sql)
                few = found is None
            else:
                found = self.approximate(query, k, index["probes"])
                found = found if len(found[0]) == min(k, len(self)) else None  # the searched parts hold no more
            if found:
                return Answer(*found, False, self.about["recall"]["value"])
        elif sql:
            self.count(sql)  # says what is wrong with it
        best = closest_of(lambda: self.scan(sql, few=few), self.take, query, k, device=device)
        count = int((best.rows[0] >= 0).sum())
        return Answer(best.rows[0, :count], best.cosine[0, :count], True)

    def approximate(self, query: Float64Array, k: int, probes: int) -> tuple[IntArray, Float64Array]:
        """Return the k closest rows and their cosines by the vector index, searching `probes` of its parts."""
        query = np.asarray(query, np.float64) / np.linalg.norm(query)
        with lance_errors(self.folder):
            asked = self.table.search(query.astype(np.float32)).distance_type("cosine").nprobes(probes)
            asked = asked.limit(k).select([ROW, VECTOR, "_distance"])
            if self.about["index"]["kind"] == "IVF_RQ":
                asked = asked.refine_factor(REFINE)
            found = asked.to_arrow()
            return rank(found[ROW].to_numpy(), vectors(found[VECTOR], self.dim), query, k)

    def _near_where(self, query: Float64Array, k: int, sql: str) -> tuple[IntArray, Float64Array] | None:
        """Return the k closest rows under a condition by the vector index; None if too few rows satisfy it."""
        query = np.asarray(query, np.float64) / np.linalg.norm(query)
        with lance_errors(self.folder), sql_errors(sql, self.columns):
            narrow = max(NARROW, min(4 * NARROW, len(self) // _NARROW_SHARE))
            ids = self.rows.near_where(query, k, sql, self.about["index"], narrow)
        if ids is None:
            return None
        with lance_errors(self.folder):
            blocks = list(self.rows.vectors_of(ids))
        numbers, latents = (np.concatenate([block[i] for block in blocks]) for i in (0, 1))
        found = rank(numbers, latents, query, k)
        return found if len(found[0]) == k else None

    def scan(self, sql: str | None = None, *, few: bool = False) -> Iterator[tuple[IntArray, Float32Array]]:
        """Yield the numbers and the latents of the rows that satisfy a condition, block by block.

        Args:
            sql: the condition; None for all rows.
            few: fetch row by row, which is faster if few rows satisfy it.
        """
        with lance_errors(self.folder):
            if sql and few and len(self.rows.ids_where(sql)) <= _FEW * NARROW:
                yield from self.rows.vectors_where(sql)
                return
            asked = self.table.search().select([ROW, VECTOR])
            asked = asked.where(sql) if sql else asked
            for batch in asked.limit(max(1, len(self))).to_batches(_BATCH):
                yield batch.column(ROW).to_numpy(), vectors(batch.column(VECTOR), self.dim)

    def find(self, example: str) -> int:
        """Return the row that an example names; see `parse_example`."""
        parts = [
            Numbered(tuple(s.get("names") or [s["stem"]]), s["partition"], s["start"], s["rows"])
            for s in self.about["sources"]
        ]
        column, value = parse_example(example, self.columns, parts)
        sql = f"`{column}` = {int(value)}" if column else value
        with lance_errors(self.folder):
            found = self.table.search().where(sql).select([ROW]).limit(2).to_arrow()[ROW].to_numpy()
        if column == TABLE_ROW and len(found) != 1:
            why = "is in several tables of the index" if len(found) else "has no latent in the index"
            raise InputFileError(
                f"row {value} of the table {why}: give uid:<UID>, <cutout file>:<train or valid>:<row> or {ROW}:<row>"
            )
        return one_row(example, found, sum(s["rows"] for s in self.about["sources"]))

    def take(self, rows: IntArray) -> Float32Array:
        """Return latents by their numbers, (m, D)."""
        with lance_errors(self.folder):
            return vectors(self.rows.read(rows, [ROW, VECTOR])[VECTOR], self.dim)

    def describe(self, rows: IntArray) -> "pd.DataFrame":
        """Return the table of some rows, in their order."""
        with lance_errors(self.folder):
            return from_arrow(self.rows.read(rows, [ROW, *self.columns]))[[*self.columns, ROW]]


Searcher = FilesSearcher | IndexSearcher


def connect(folder: Path) -> Any:
    """Open the database of an index with a cache of limited size.

    Raises:
        OptionError: LanceDB is not installed.
    """
    need("search", f"the index {folder}")
    import_lancedb()
    import lancedb

    return lancedb.connect(folder, session=lancedb.Session(_CACHE, _METADATA_CACHE))


def open_table(folder: Path, schema: Any = None) -> Any:
    """Open LanceDB's table of an index, after checking that all of its data are in the folder.

    Args:
        folder: the index.
        schema: creates the table if there is none.

    Raises:
        InputFileError: They are not.
        OptionError: LanceDB is not installed.
    """
    database = connect(folder)
    check_manifests(folder / f"{TABLE}.lance")
    if schema is not None:
        return database.create_table(TABLE, schema=schema, exist_ok=True)
    return database.open_table(TABLE)


def read_about(folder: Path) -> dict[str, Any]:
    """Return the description of an index.

    Raises:
        InputFileError: There is no index, or not one of nenya.
    """
    try:
        found = read_json(folder / ABOUT, "rebuild the index with clobber=true")
    except NenyaError:
        raise
    except OSError as error:
        raise InputFileError(f"{folder}: not an index of nenya; nenya index data=... out={folder} makes one") from error
    return check_about(found)


def check_about(found: Json) -> dict[str, Any]:
    """Return the description of an index after checking each value.

    Raises:
        InputFileError: A value is missing, has the wrong type, or was written by a newer nenya.
    """
    if (number := found["format"].count()) != 1:
        raise InputFileError(
            f"{found.place}: expected an index of format 1, got format {number}: update nenya to read it"
        )
    found.object(("format", "dim", "provenance", "columns", "sources", "index", "recall"))
    dim = found["dim"]
    if not dim.count(_MOST_DIM):
        dim.refuse("the length of a latent")
    found["provenance"].texts()
    found["columns"].texts()
    for source in found["sources"].items():
        source.object(("stem", "names", "partition", "start", "rows", "sha256", "done", "left_out"))
        source["stem"].text()
        if (names := source.get("names")) is not None:
            for name in names.items():
                name.text()
        source["partition"].text()
        source["start"].count(_MOST_ROWS)
        source["rows"].count(_MOST_ROWS)
        source["sha256"].sha256()
        source["done"].flag()
        if source.get("left_out"):
            source["left_out"].count(_MOST_ROWS)
    _check_search(found["index"], found["recall"])
    whole: dict[str, Any] = found.value
    return whole


def _check_search(index: Json, recall: Json) -> None:
    """Check what a description says of the vector index and its recall."""
    if index.value is not None:
        index["kind"].text()
        for key in ("parts", "rows", "trained_on", "probes"):
            index[key].count(_MOST_ROWS)
        if index.get("indexed"):
            index["indexed"].count(_MOST_ROWS)
    if recall.value is not None:
        recall["value"].number()
        for key in ("at", "queries", "seed", "rows"):
            recall[key].count()
        if sample := recall.get("sample"):
            rows, near = sample.items(), recall["cosine"].items()
            if len(near) != len(rows):
                recall["cosine"].refuse(f"{len(rows)} lists, one of each row of the sample")
            for value in (*rows, *(value for cosines in near for value in cosines.items())):
                value.number()


@contextmanager
def lance_errors(folder: Path) -> Iterator[None]:
    """Turn errors of LanceDB on damaged files and full disks into one line.

    Raises:
        InputFileError: The index is damaged or unfinished.
        OutputError: The disk is full.
    """
    try:
        yield
    except (NenyaError, MemoryError):
        raise
    except BaseException as error:
        # A panic of the underlying library is not an Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        first = " ".join((str(error).strip() or type(error).__name__).split())
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or re.search(
            "No space left|os error 28", first
        ):
            raise OutputError(
                f"{folder}: cannot be written (No space left on device): free some space, then run the same command to "
                "resume"
            ) from error
        raise InputFileError(
            f"{folder}: the index is unfinished or damaged ({first[:150]}); run its nenya index command again"
        ) from error


def join(table: "pd.DataFrame", latents: Latents) -> "pd.DataFrame":
    """Return the columns of a table for all latents, with DT if it has T90 and T10, lat, lon and datetime.

    `pp_file` keeps its form in the table, so that answers can be joined to it. Columns of search answers are dropped.

    Args:
        table: of the cutouts, joined by `Latents.full_table`.
        latents: the rows.

    Raises:
        InputFileError: The table cannot be joined.
    """
    ours = [name for name in (ROW, VECTOR, "cosine", "rank", "answer", "recall", LEAST, MOST, SURE) if name in table]
    whole = usual_names(_own_names(latents.full_table(table.drop(columns=ours), own_names=False)))
    if "datetime" in whole:
        dates_of(whole["datetime"])  # says how many cannot be read
    return with_dt(whole)


def own_table(latents: Latents) -> "pd.DataFrame":
    """Return what latents files themselves say of their rows: keys, and what is known of masks."""
    return _own_names(latents.keys().assign(**latents.clearness()))


def _own_names(table: "pd.DataFrame") -> "pd.DataFrame":
    """Return a table in which the cosine of a masked cutout with itself is not named like that with an example."""
    return table.rename(columns={"cosine": "cosine_clear"})
