"""Tables of many rows: some of their columns, and a copy with more, without holding all of them in memory."""

from collections.abc import Collection, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nenya.errors import InputFileError, NenyaError, OutputError
from nenya.io import read_table, write_table
from nenya.storage.disk import atomic_path
from nenya.storage.table_files import check_numbers, check_table
from nenya.storage.table_integers import from_arrow, restore_integers
from nenya.storage.texts import first_words

if TYPE_CHECKING:
    import pandas as pd

_GROUP_ROWS = 2**20


def read_some(path: Path, names: Collection[str]) -> "pd.DataFrame":
    """Read those columns of a table that it has; of a .parquet file one at a time, so that memory holds no copies.

    Raises:
        InputFileError: As of `nenya.io.read_table`.
    """
    if path.suffix != ".parquet" or not path.is_file():
        found = read_table(path)
        return found[[name for name in found if name in names]]
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    check_table(path)
    try:
        schema, columns = pq.read_schema(path), {}
        read = partial(pq.read_table, path, pre_buffer=False)
        for name in [name for name in schema.names if name in names]:
            one = pd.read_parquet(path, columns=[name], pre_buffer=False)  # whose bytes would not be freed
            whole = restore_integers(one, lambda some: read(columns=some), schema)[name]
            columns[name] = whole.reset_index(drop=True).copy()  # of its own, not a view of what pyarrow has read
            del one, whole
            pa.default_memory_pool().release_unused()  # pyarrow holds what it has freed
        rows = pq.read_metadata(path).num_rows
    except Exception as error:  # pyarrow and pandas raise anything for a damaged file
        raise _damaged(path, error) from error
    return check_numbers(pd.DataFrame(columns, index=pd.RangeIndex(rows), copy=False), path)


def names_in_parts(path: Path) -> list[str]:
    """Return the columns of a table that can be read in parts, a .parquet file without an index; none of others."""
    import pyarrow.parquet as pq

    if path.suffix != ".parquet" or not path.is_file() or _has_index(path):
        return []
    return [str(name) for name in pq.read_schema(path).names]


def read_rows(path: Path, rows: NDArray[np.int64]) -> "pd.DataFrame":
    """Read some rows, (n,), of a .parquet file, in their order, with all columns.

    Raises:
        InputFileError: It cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    order, found, start = np.sort(rows), [], 0
    with pq.ParquetFile(path, pre_buffer=False) as file:
        for group in range(file.metadata.num_row_groups):
            stop = start + file.metadata.row_group(group).num_rows
            if np.searchsorted(order, start) == np.searchsorted(order, stop):  # none of the rows
                start = stop
                continue
            for batch in _batches(file, path, [group]):
                own = order[slice(*np.searchsorted(order, [start, start + batch.num_rows]))]
                found.append(batch.take(pa.array(own - start)))
                start += batch.num_rows
        table = pa.Table.from_batches(found, file.schema_arrow)
    some: pd.DataFrame = from_arrow(table).iloc[np.searchsorted(order, rows)]
    return some.reset_index(drop=True)


def write_with(source: Path, out: Path, columns: Mapping[str, NDArray[Any]]) -> None:
    """Write a copy of a table with more columns; of .parquet files block by block. It is either complete or absent.

    Args:
        source: the table.
        out: the copy.
        columns: name -> values of all rows; those that the table has are replaced.

    Raises:
        InputFileError: The table cannot be read, or has another number of rows.
        OutputError: The copy cannot be written.
    """
    if {source.suffix, out.suffix} != {".parquet"} or _has_index(source):
        write_table(read_table(source).assign(**columns), out)
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # With a buffer ahead, pyarrow holds the bytes of all that it has read.
        with pq.ParquetFile(source, pre_buffer=False) as file, atomic_path(out) as temporary:
            rows = file.metadata.num_rows
            if any(len(values) != rows for values in columns.values()):
                raise InputFileError(f"{source}: it has {rows} rows now, another number than before: run it again")
            schema = file.schema_arrow
            for name, values in columns.items():
                at, field = schema.get_field_index(name), pa.field(name, pa.from_numpy_dtype(np.asarray(values).dtype))
                schema = schema.append(field) if at < 0 else schema.set(at, field)
            start = 0
            with pq.ParquetWriter(temporary, schema) as writer:
                for batch in _batches(file, source):
                    stop = start + batch.num_rows
                    held = dict(zip(batch.schema.names, batch.columns, strict=True))
                    held |= {name: pa.array(values[start:stop]) for name, values in columns.items()}
                    writer.write_table(pa.table([held[name] for name in schema.names], schema=schema))
                    start = stop
    except NenyaError:
        raise
    except OSError as error:
        raise OutputError(f"cannot write {out}: {error.strerror or error}; choose another place with out=") from error


def _damaged(path: Path, error: Exception) -> InputFileError:
    said = first_words(str(error).strip() or type(error).__name__)
    return InputFileError(f"{path}: cannot be read as a table ({said}); copy or create it again")


def _batches(file: Any, path: Path, groups: list[int] | None = None) -> Iterator[Any]:
    """Yield the rows of a .parquet file, or of some of its groups; errors of reading are not those of writing."""
    try:
        yield from file.iter_batches(_GROUP_ROWS, row_groups=groups)
    except Exception as error:
        raise _damaged(path, error) from error


def _has_index(path: Path) -> bool:
    """Return whether a .parquet file has an index of pandas other than 0, 1 ..., which tables are written without."""
    import pyarrow.parquet as pq

    try:
        about = pq.read_schema(path).pandas_metadata or {}
    except Exception:  # damaged: its reader reports it
        return True
    plain = {"start": 0, "step": 1}
    return any(not isinstance(name, dict) or plain.items() - name.items() for name in about.get("index_columns", []))
