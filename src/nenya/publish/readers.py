"""Reading what `nenya publish` wrote: the columns as an Arrow table, and latents in slices, from each format.

Letters in shapes: N rows, D the length of a latent.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray

from nenya.errors import InputFileError, NenyaError
from nenya.latents.index import open_table
from nenya.latents.index_rows import VECTOR
from nenya.publish.about import Published
from nenya.publish.encoding import SCALE, Encoded
from nenya.publish.geoparquet import FOLDER as GEOPARQUET
from nenya.publish.lance_table import FOLDER as LANCE
from nenya.publish.partitions import MISSING
from nenya.publish.variables import variable_names
from nenya.publish.zarr_store import FOLDER as ZARR
from nenya.storage.names import inside
from nenya.storage.table_files import check_table
from nenya.storage.texts import first_words

FloatArray = NDArray[np.float32]


class Slices(Protocol):
    """Latents of consecutive rows, read as they are needed."""

    shape: tuple[int, int]

    def __getitem__(self, rows: slice) -> FloatArray:
        """Return consecutive rows, (n, D) float32."""


@dataclass(frozen=True)
class Part:
    """A GeoParquet file.

    Attributes:
        path: the file.
        start: number of its first row.
        rows: number of rows.
        fixed: column -> its value in all rows, for columns that are in the names of folders only.
    """

    path: Path
    start: int
    rows: int
    fixed: dict[str, Any]


class ParquetLatents:
    """Latents in GeoParquet files.

    Args:
        parts: the files, in order.
        shape: (N, D).
    """

    def __init__(self, parts: list[Part], shape: tuple[int, int]) -> None:
        self.parts, self.shape = parts, shape

    def __getitem__(self, rows: slice) -> FloatArray:
        """Return consecutive rows, (n, D) float32; row groups without any of them are not read."""
        start, stop, _ = rows.indices(self.shape[0])
        out = np.empty((max(0, stop - start), self.shape[1]), np.float32)
        for part in self.parts:
            low, high = max(start, part.start), min(stop, part.start + part.rows)
            if low < high:
                with _errors(part.path):
                    out[low - start : high - start] = self._read(part, low - part.start, high - part.start)
        return out

    def _read(self, part: Part, low: int, high: int) -> FloatArray:
        import pyarrow.parquet as pq

        with pq.ParquetFile(part.path) as file:
            counts = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
            ends = np.cumsum(counts)
            first, last = np.searchsorted(ends, [low, high - 1], side="right")
            names = [name for name in (VECTOR, SCALE) if name in file.schema_arrow.names]
            table = file.read_row_groups(list(range(first, last + 1)), columns=names)
        skipped = int(ends[first]) - counts[first]
        return decoded(table.slice(low - skipped, high - low), self.shape[1])


class LanceLatents:
    """Latents in a LanceDB table.

    Args:
        folder: the database.
        shape: (N, D).
    """

    def __init__(self, folder: Path, shape: tuple[int, int]) -> None:
        self.folder, self.shape = folder, shape

    def __getitem__(self, rows: slice) -> FloatArray:
        """Return consecutive rows, (n, D) float32."""
        start, stop, _ = rows.indices(self.shape[0])
        if start >= stop:
            return np.empty((0, self.shape[1]), np.float32)
        with _errors(self.folder):
            table = open_table(self.folder)
            names = [name for name in (VECTOR, SCALE) if name in table.schema.names]
            found = table.search().select(names).offset(start).limit(stop - start).to_arrow()
            return decoded(found, self.shape[1])


class ZarrLatents:
    """Latents in a Zarr store.

    Args:
        group: the store, opened.
        shape: (N, D).
    """

    def __init__(self, group: Any, shape: tuple[int, int]) -> None:
        self.group, self.shape = group, shape

    def __getitem__(self, rows: slice) -> FloatArray:
        """Return consecutive rows, (n, D) float32; chunks without any of them are not unpacked."""
        with _errors(self.group.store):
            scale = self.group[SCALE][rows] if SCALE in self.group else None
            return Encoded(self.group[VECTOR][rows], scale).decoded()


def decoded(table: Any, dim: int) -> FloatArray:
    """Return the latents in an Arrow table of their columns, (n, D) float32."""
    column = table[VECTOR].combine_chunks()
    values = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, dim)
    scale = table[SCALE].to_numpy() if SCALE in table.column_names else None
    return Encoded(values, scale).decoded()


def read_parquet(published: Published) -> tuple[Any, Slices]:
    """Return the columns and the latents of GeoParquet files.

    Raises:
        InputFileError: A file is missing or damaged, or has another number of rows than `published.json` says.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = published.columns
    parts, tables, start = [], [], 0
    for told, rows in published.parts:
        path = inside(published.folder / GEOPARQUET, told)
        with _errors(path):
            check_table(path)
            part = Part(path, start, rows, _fixed(told, columns))
            with pq.ParquetFile(path) as file:
                table = file.read([name for name in file.schema_arrow.names if name in columns])
        if len(table) != part.rows:
            raise InputFileError(f"{path}: expected {part.rows} rows, got {len(table)}; publish it again")
        for name, value in part.fixed.items():
            table = table.append_column(name, pa.array([value]).take(pa.array(np.zeros(len(table), np.int64))))
        parts.append(part)
        tables.append(table.select([name for name in columns if name in table.column_names]))
        start += part.rows
    whole = pa.concat_tables(tables, promote_options="permissive")
    _check_rows(published, len(whole))
    return whole, ParquetLatents(parts, (published.rows, published.dim))


def _fixed(name: str, columns: dict[str, str]) -> dict[str, Any]:
    """Return the columns of a table that the folders of a file name, with their values."""
    found: dict[str, Any] = {}
    for folder in name.split("/")[:-1]:
        column, _, text = folder.partition("=")
        if column in columns:
            kind, value = columns[column], unquote(text)
            plain = int(value) if "int" in kind and text != MISSING else value == "True" if kind == "bool" else value
            found[column] = None if text == MISSING else plain
    return found


def read_lance(published: Published) -> tuple[Any, Slices]:
    """Return the columns and the latents of a LanceDB table.

    Raises:
        InputFileError: It is missing or damaged, or has another number of rows than `published.json` says.
    """
    folder = published.folder / LANCE
    with _errors(folder):
        table = open_table(folder)
        _check_rows(published, table.count_rows())
        whole = table.search().select(list(published.columns)).limit(max(1, published.rows)).to_arrow()
    return whole, LanceLatents(folder, (published.rows, published.dim))


def read_zarr(published: Published) -> tuple[Any, Slices]:
    """Return the columns and the latents of a Zarr store, after checking that its metadata name nothing that runs code.

    Raises:
        InputFileError: It is missing or damaged, or has another number of rows than `published.json` says.
    """
    import pyarrow as pa
    import zarr

    from nenya.prepare.zarr_stores import LocalZarr

    folder = published.folder / ZARR
    with _errors(folder):
        group: Any = zarr.open_group(LocalZarr(folder), mode="r", use_consolidated=False)
        _check_rows(published, group[VECTOR].shape[0])
        columns = {}
        for name, variable in variable_names(list(published.columns)).items():
            values = group[variable][:]
            if published.columns[name].startswith("timestamp"):
                moments = values.view("datetime64[us]") if values.dtype.kind == "i" else values
                columns[name] = pa.array(moments, pa.timestamp("us", "UTC"))
            else:
                columns[name] = pa.array(values, from_pandas=True)
        return pa.table(columns), ZarrLatents(group, (published.rows, published.dim))


def _check_rows(published: Published, rows: int) -> None:
    if rows != published.rows:
        raise InputFileError(f"{published.folder}: expected {published.rows} rows, got {rows}; publish it again")


READERS: dict[str, Callable[[Published], tuple[Any, Slices]]] = {
    "zarr": read_zarr,
    "geoparquet": read_parquet,
    "lance": read_lance,
}
"""Format -> reader; the first one that was published is used."""


@contextmanager
def _errors(place: Any) -> Iterator[None]:
    """Turn what libraries say of damaged files into one line."""
    try:
        yield
    except (NenyaError, MemoryError):
        raise
    except BaseException as error:
        # A panic of LanceDB is not an Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        said = first_words(str(error).strip() or type(error).__name__)
        raise InputFileError(
            f"{place}: cannot be read ({said}); publish it again, or take an undamaged copy"
        ) from error
