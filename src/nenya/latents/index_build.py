"""Building and extending an index of latents, batch by batch, so that a killed run can resume."""

import hashlib
import itertools
import json
import logging
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nenya.data.hdf5_open import open_hdf5
from nenya.errors import InputFileError, OptionError
from nenya.latents.files import Latents, Part
from nenya.latents.index import (
    ABOUT,
    TABLE,
    join,
    lance_errors,
    open_table,
    own_table,
    read_about,
)
from nenya.latents.index_recall import measure
from nenya.latents.index_rows import VECTOR
from nenya.storage.disk import atomic_path
from nenya.storage.names import parse_json
from nenya.storage.small_files import refuse_links
from nenya.tables.conditions import ROW, as_arrow

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

log = logging.getLogger(__name__)

BATCH_ROWS = 65536
COMMIT_ROWS = 2**20
"""Rows added at a time. LanceDB writes them as one file; it would merge smaller files later."""

INDEX_FROM = 100_000
"""With fewer rows there is no vector index: the search is exact."""

FLAT_UP_TO = 500_000
"""Number of rows up to which the index holds full latents; beyond, one bit per dimension."""

KINDS = ("auto", "IVF_FLAT", "IVF_RQ")
_NEVER = timedelta(days=36_500)
"""Old states are kept, because a reader may still refer to them."""

_FRAGMENTS = 256  # fragments, beyond which they are merged
_SAMPLES = 64  # rows per part for training its centre
_GROWTH = 1.5  # growth in rows since the last training that triggers a new one
_MOST_PARTS = 2048  # so that building takes time in proportion to the rows, beyond four million
_LOOSE_ROWS = 2**15  # new rows that are searched one by one before they are put into the vector index


class Prepared(Protocol):
    """Rows of latents that were read and checked before; see `nenya.latents.index_shards`."""

    def hash_of(self, part: Part) -> str:
        """Return the hash of the rows of a partition."""

    def rows_of(self, part: Part) -> Iterable[tuple[int, Any]]:
        """Yield the batches of a partition: its first row within it, and the result of `rows_of`."""


class _Read:
    """Reads and checks rows when they are added.

    Args:
        latents: the rows.
        keys: table of the rows.
    """

    def __init__(self, latents: Latents, keys: "pd.DataFrame") -> None:
        self._latents, self._keys = latents, keys

    def hash_of(self, part: Part) -> str:
        return hash_of(part, self._latents)

    def rows_of(self, part: Part) -> Iterator[tuple[int, Any]]:
        for start in range(0, part.rows, BATCH_ROWS):
            stop = min(start + BATCH_ROWS, part.rows)
            yield start, rows_of(self._latents, self._keys, part.start + start, part.start + stop)
            self._latents.release()


def add_files(
    folder: Path, latents: Latents, table: "pd.DataFrame | None" = None, prepared: Prepared | None = None
) -> int:
    """Add the rows of latents files to an index, which is created if missing.

    Rows with NaN are left out, and their number is logged. A partition already in the index, by its name and content,
    is not added again; an unfinished one is resumed.

    Args:
        folder: the index.
        latents: the rows.
        table: of the cutouts.
        prepared: their rows, if shards prepared them.

    Returns:
        Number of added rows.

    Raises:
        InputFileError: The latents are from another model or have another length than those in the index; or a file
            of this name is in the index with different content; or the table does not fit.
    """
    keys = own_table(latents) if table is None else join(table, latents)
    about = _about(folder, latents, keys)
    write_about(folder, about)
    with lance_errors(folder):
        return _add_parts(folder, about, latents, prepared or _Read(latents, keys))


def _add_parts(folder: Path, about: dict[str, Any], latents: Latents, prepared: Prepared) -> int:
    """Add the partitions that are not in the index; return the number of added rows."""
    made = open_table(folder, _schema(about))
    wanted: list[_Addition] = []
    for part in latents.parts:
        begun = len(about["sources"])
        source = _source(folder, about, part, prepared)
        if source["done"] or any(source is one.source for one in wanted):  # or a copy of a file before
            log.info("%s of %s: already in the index", part.partition, part.path)
            continue
        there = np.empty(0, np.int64)
        if len(about["sources"]) == begun:  # of an interrupted run
            asked = made.search().where(_between(source["start"], part.rows)).select([ROW]).limit(part.rows)
            there = np.sort(asked.to_arrow()[ROW].to_numpy()) - source["start"]
        wanted.append(_Addition(part, source, there))
    write_about(folder, about)
    for table in _in_commits(_batches(about, wanted, prepared)):
        _commit(made, table)
        _finish(folder, about, wanted)
    _finish(folder, about, wanted)
    return sum(one.added for one in wanted)


def _finish(folder: Path, about: dict[str, Any], wanted: "list[_Addition]") -> None:
    """Record the partitions that are completely in the index."""
    for one in wanted:
        if one.read and not one.source["done"] and not one.waiting:
            source = one.source
            source["done"], source["left_out"] = True, one.part.rows - one.added - len(one.there)
            log.info(
                "%s of %s: added %d rows%s", one.part.partition, one.part.path, one.added,
                f", left out {source['left_out']} without a latent (NaN)" if source["left_out"] else "",
            )  # fmt: skip
    write_about(folder, about)


@dataclass
class _Addition:
    """A partition that is being added.

    Attributes:
        part: the partition.
        source: its entry among the sources of the index.
        there: its rows that are in the index already, rising.
        added: rows read so far that have a latent and are new.
        waiting: of them, those that are not in the index yet.
        read: whether all rows have been read.
    """

    part: Part
    source: dict[str, Any]
    there: NDArray[np.int64]
    added: int = 0
    waiting: int = 0
    read: bool = False


def _batches(
    about: dict[str, Any], wanted: list[_Addition], prepared: Prepared
) -> "Iterator[tuple[_Addition, pa.Table]]":
    """Yield rows that are to be added, as Arrow tables, with their partition; those with NaN are left out."""
    import pyarrow as pa

    schema = _schema(about)
    for one in wanted:
        for start, rows in prepared.rows_of(one.part):
            numbers = start + rows[ROW].to_numpy()
            new = np.flatnonzero(~np.isin(numbers, one.there))
            one.added, one.waiting = one.added + len(new), one.waiting + len(new)
            columns = _columns(about, schema, rows.take(new))
            columns[ROW] = pa.array(one.source["start"] + numbers[new])
            yield one, pa.table(columns, schema=schema)
        one.read = True


def _in_commits(batches: "Iterator[tuple[_Addition, pa.Table]]") -> "Iterator[Iterator[pa.Table]]":
    """Divide rows into streams of `COMMIT_ROWS` each, across partitions; each is to be read before the next."""
    left: list[tuple[_Addition, Any]] = []

    def stream() -> "Iterator[pa.Table]":
        room = COMMIT_ROWS
        while room and (pair := left.pop() if left else next(batches, None)):
            one, table = pair
            if len(table) > room:
                left.append((one, table.slice(room)))
                table = table.slice(0, room)
            room -= len(table)
            one.waiting -= len(table)
            if len(table):
                yield table

    while (first := next(own := stream(), None)) is not None:
        yield itertools.chain([first], own)


def _commit(made: Any, tables: "Iterator[pa.Table]") -> None:
    """Add rows in one atomic step; an error in making them is raised as it is."""
    import pyarrow as pa

    first, failed = next(tables), []

    def batches() -> "Iterator[pa.RecordBatch]":
        try:
            for table in itertools.chain([first], tables):
                yield from table.to_batches()
        except Exception as error:
            failed.append(error)
            raise

    try:
        made.add(pa.RecordBatchReader.from_batches(first.schema, batches()))
    except Exception:
        if failed:  # LanceDB has made another of it
            raise failed[0] from None
        raise


def build_index(folder: Path, *, kind: str = "auto", index_from: int = INDEX_FROM, seed: int = 1234) -> dict[str, Any]:
    """Update the vector index to all rows, and measure its recall against exact search.

    Args:
        folder: the index.
        kind: IVF_FLAT, IVF_RQ, or auto: by the number of rows.
        index_from: with fewer rows there is no vector index.
        seed: of the draw of the rows for measuring recall.

    Returns:
        The values of `index` and `recall` in `nenya.json`.
    """
    with lance_errors(folder):
        return _build_index(folder, kind, index_from, seed)


def _build_index(folder: Path, kind: str, index_from: int, seed: int) -> dict[str, Any]:
    about = read_about(folder)
    made = open_table(folder)
    rows = int(made.count_rows())
    index = about["index"]
    fits = index is not None and rows <= _GROWTH * index["trained_on"]
    by_rows = "IVF_FLAT" if rows <= FLAT_UP_TO else "IVF_RQ"
    chosen = kind if kind != "auto" else index["kind"] if fits else by_rows
    if rows < max(index_from, 2):
        if index:
            for old in made.list_indices():
                made.drop_index(old.name)
        about["index"] = about["recall"] = None
        write_about(folder, about)
        return {"index": None, "recall": None}
    current = index and index["rows"] == rows and index["kind"] == chosen
    if current and about["recall"]:
        return {"index": index, "recall": about["recall"]}
    if fits and index["kind"] == chosen:
        held = index.get("indexed", index["rows"])
        if rows - held > _LOOSE_ROWS:
            made.optimize(cleanup_older_than=_NEVER)
            held = rows
        index = {**index, "rows": rows, "indexed": held}
    else:
        from lancedb.index import IvfFlat, IvfRq

        parts = max(1, min(round(rows**0.5), rows // 2, _MOST_PARTS))
        settings = {"distance_type": "cosine", "num_partitions": parts, "sample_rate": _SAMPLES, "max_iterations": 20}
        if not index and made.stats()["fragment_stats"]["num_small_fragments"] > 1:
            made.optimize(cleanup_older_than=_NEVER)  # later, the vector index would have to be written again with them
        log.info("%s: training %s on %d rows in %d parts", folder, chosen, rows, parts)
        made.create_index(
            VECTOR, config=IvfFlat(**settings) if chosen == "IVF_FLAT" else IvfRq(**settings), replace=True
        )
        index = {"kind": chosen, "parts": parts, "rows": rows, "trained_on": rows, "indexed": rows}
        about["recall"] = None
    about["index"], about["recall"] = measure(folder, {**about, "index": index}, seed)
    write_about(folder, about)
    log.info("%s: %s", folder, recall_line(about))
    return {"index": about["index"], "recall": about["recall"]}


def compact(folder: Path) -> bool:
    """Merge the small fragments of an index, one for each added file; return whether there were too many."""
    with lance_errors(folder):
        made = open_table(folder)
        if made.stats()["fragment_stats"]["num_fragments"] <= _FRAGMENTS:
            return False
        made.optimize(cleanup_older_than=_NEVER)
        return True


def drop_old_states(folder: Path) -> None:
    """Remove states of an index that were replaced more than a week ago and are no longer read."""
    with lance_errors(folder):
        open_table(folder).optimize(cleanup_older_than=timedelta(days=7))


def recall_line(about: dict[str, Any]) -> str:
    """Return the kind and the recall of an index in one line."""
    if not about["index"]:
        return "exact search: no vector index"
    index, recall = about["index"], about["recall"]
    return (
        f"{index['kind']} of {index['rows']} rows, searching {index['probes']} of {index['parts']} parts: recall@"
        f"{recall['at']} {recall['value']:.4f} over {recall['queries']} rows (seed {recall['seed']})"
    )


def write_about(folder: Path, about: dict[str, Any]) -> None:
    """Write `nenya.json` of an index atomically."""
    with atomic_path(folder / ABOUT) as temporary:
        temporary.write_text(json.dumps(about, indent=1) + "\n")


def remove_index(folder: Path) -> None:
    """Remove an index; any other folder is left alone.

    Raises:
        InputFileError: It is not an index.
    """
    read_about(folder)
    refuse_links(folder, below=True)
    shutil.rmtree(folder / f"{TABLE}.lance", ignore_errors=True)
    (folder / ABOUT).unlink()


def _about(folder: Path, latents: Latents, keys: "pd.DataFrame") -> dict[str, Any]:
    """Return the description of the index after checking that the latents fit it."""
    columns = {str(name): str(as_arrow(keys[name].iloc[:0]).type) for name in keys.columns}
    if not (folder / ABOUT).exists():
        if folder.exists() and any(path.name != "lock" for path in folder.iterdir()):
            raise OptionError(
                f"out={folder}: expected an index or an empty folder, got other files; give a new folder, such as "
                "archive.index"
            )
        return {
            "format": 1, "dim": latents.shape[1], "provenance": latents.provenance, "columns": columns, "sources": [],
            "index": None, "recall": None,
        }  # fmt: skip
    about = read_about(folder)
    place = latents.parts[0].path
    if about["dim"] != latents.shape[1]:
        raise InputFileError(
            f"{place}: expected latents of {about['dim']} dimensions as in {folder}, got {latents.shape[1]}"
        )
    for name in ("checkpoint_sha256", "latent"):
        ours, others = about["provenance"].get(name), latents.provenance.get(name)
        if ours and others and ours != others:
            raise InputFileError(
                f"{place}: expected latents with {name} {ours[:12]} as in {folder}, got {others[:12]}: latents of two "
                "models cannot be compared; make an index for each"
            )
    if bool(about["provenance"]) != bool(latents.provenance):
        log.warning("%s or %s does not state its model, so it is not checked that the models agree", place, folder)
    for names, what in (
        (set(columns) - set(about["columns"]), "not in the index and left out"),
        (set(about["columns"]) - set(columns), "not in this table and left empty"),
    ):
        if names:
            log.warning("%s: columns %s are %s", place, ", ".join(sorted(names)), what)
    return about


def _source(folder: Path, about: dict[str, Any], part: Part, prepared: Prepared) -> dict[str, Any]:
    """Return the entry of a partition among the sources; it may be new, unfinished or finished."""
    sha256 = prepared.hash_of(part)
    for source in about["sources"]:
        if (source["stem"], source["partition"]) == (part.stem, part.partition):
            if source["sha256"] != sha256:
                raise InputFileError(
                    f"{part.path}: {part.partition} of {part.stem} is in {folder} with different content; rebuild the "
                    "index with clobber=true, or rename the file"
                )
            return source  # type: ignore[no-any-return]
    start = sum(source["rows"] for source in about["sources"])
    new = {"stem": part.stem, "partition": part.partition, "start": start, "rows": part.rows, "sha256": sha256}
    about["sources"].append({**new, "names": list(part.names), "done": False})
    return about["sources"][-1]  # type: ignore[no-any-return]


def hash_of(part: Part, latents: Latents) -> str:
    """Return the hash of a partition's rows: from the file's attributes, or computed."""
    with open_hdf5(part.path, links=latents.links) as file:
        said = parse_json(str(file.attrs.one("latents_sha256", "{}")), f"{part.path}: attribute latents_sha256")
    if part.partition in said.object():
        return said[part.partition].sha256()
    digest = hashlib.sha256()
    for start in range(part.start, part.start + part.rows, BATCH_ROWS):
        block = latents[start : min(start + BATCH_ROWS, part.start + part.rows)]
        digest.update(np.ascontiguousarray(block, "<f4").tobytes())
        latents.release()
    return digest.hexdigest()


def _schema(about: dict[str, Any]) -> Any:
    import pyarrow as pa

    kinds = {
        "uint64": pa.uint64(),
        "double": pa.float64(),
        "timestamp[us]": pa.timestamp("us"),
        "int64": pa.int64(),
        "bool": pa.bool_(),
    }
    fields = [(name, kinds.get(kind, pa.string())) for name, kind in about["columns"].items()]
    return pa.schema([(ROW, pa.int64()), *fields, (VECTOR, pa.list_(pa.float32(), about["dim"]))])


def _between(start: int, rows: int) -> str:
    return f"`{ROW}` >= {start} AND `{ROW}` < {start + rows}"


def rows_of(latents: Latents, keys: "pd.DataFrame", start: int, stop: int) -> Any:
    """Return the finite rows from `start` to `stop` as an Arrow table: number from `start` on, columns, latent.

    Args:
        latents: the rows.
        keys: table of all rows.
        start: first row.
        stop: end of the rows.
    """
    import pyarrow as pa

    block = latents[start:stop]
    good = np.flatnonzero(np.isfinite(block).all(axis=1))
    some = keys.iloc[start + good]
    flat = pa.array(np.ascontiguousarray(block[good], np.float32).ravel())
    return pa.table(
        {
            ROW: pa.array(good),
            **{str(name): as_arrow(some[name]) for name in keys.columns},
            VECTOR: pa.FixedSizeListArray.from_arrays(flat, block.shape[1]),
        }
    )


def _columns(about: dict[str, Any], schema: Any, rows: Any) -> dict[str, Any]:
    """Return the columns of rows, and their latents, in the types of the index."""
    import pyarrow as pa

    columns = {VECTOR: rows[VECTOR]}
    for name in about["columns"]:
        kind = schema.field(name).type
        try:
            columns[name] = rows[name].cast(kind) if name in rows.schema.names else pa.nulls(len(rows), kind)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise InputFileError(
                f"column {name} of the table: expected type {kind} as in the index: {str(error).splitlines()[0]}"
            ) from error
    return columns
