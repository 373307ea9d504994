"""Archives, latents files and published folders as one data set: lazily in xarray, or as a table.

Letters in shapes: N rows, D the length of a latent.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nenya.archive.folder import open_version
from nenya.archive.manifest import MANIFEST
from nenya.errors import InputFileError, OptionError
from nenya.io import read_table
from nenya.latents.files import Latents, open_latents
from nenya.latents.index import join, own_table
from nenya.latents.index_rows import VECTOR
from nenya.options.extras import need
from nenya.publish.about import ABOUT, model_of, read_published
from nenya.publish.readers import READERS, Slices
from nenya.publish.rows import arrow_columns
from nenya.publish.variables import COORDINATES, DIMENSION, ROWS, attributes_of, kind_of, values_of, variable_names
from nenya.storage.paths import HDF5_SUFFIXES, is_s3, local_path
from nenya.storage.table_integers import from_arrow

AS = ("xarray", "pandas", "arrow")
"""What `open_archive` returns: an `xarray.Dataset`, a `pandas.DataFrame` or a `pyarrow.Table`."""

_CHUNK = 2**26  # bytes of latents in a chunk of dask


@dataclass(frozen=True)
class Found:
    """Latents and their columns.

    Attributes:
        table: Arrow table of the columns, N rows.
        latents: the latents of these rows.
        about: texts on the model.
    """

    table: Any
    latents: Slices
    about: dict[str, str]


def open_archive(
    path: str | os.PathLike[str],
    *,
    table: str | os.PathLike[str] | None = None,
    version: str | None = None,
    as_: str = "xarray",
    cache_dir: str | None = None,
) -> Any:
    """Open latents with their table; see `nenya.open_archive`."""
    if as_ not in AS:
        raise OptionError(f"as_={as_}: expected one of {', '.join(AS)}")
    if as_ == "xarray":
        need("publish", "as_=xarray")
    found = _find(str(path), None if table is None else str(table), version, cache_dir)
    if as_ == "xarray":
        return as_dataset(found)
    return as_arrow_table(found) if as_ == "arrow" else as_frame(found)


def _find(text: str, table: str | None, version: str | None, cache_dir: str | None) -> Found:
    """Find out what a path is, and open it."""
    place = None if is_s3(text) else local_path(text)
    latents = text.endswith(HDF5_SUFFIXES) if place is None else not any((place / name).exists() for name in _KNOWN)
    if table is not None and not latents:
        raise OptionError(f"table={table}: {text} has its own table; leave table= out")
    if version is not None and (latents or (place is not None and (place / ABOUT).exists())):
        raise OptionError(f"version={version}: {text} is no archive of nenya update; leave version= out")
    if latents:
        if place is not None and place.is_dir() and not any(place.rglob("*latents*")):
            raise InputFileError(
                f"{text}: expected an archive of nenya update, latents files or a folder of nenya publish, got a "
                "folder with none of them"
            )
        return _of_latents(open_latents(text, cache_dir), None if table is None else read_table(local_path(table)))
    if place is not None and (place / ABOUT).exists():
        return _of_published(place)
    opened = open_version(text, version, cache_dir)
    return _of_latents(opened.latents(), opened.table())


_KNOWN = (MANIFEST, ABOUT)


def _of_latents(latents: Latents, table: Any) -> Found:
    whole = own_table(latents) if table is None else join(table, latents)
    about = {name: text for name, text in model_of(latents).items() if isinstance(text, str)}
    return Found(arrow_columns(whole, np.arange(len(latents))), latents, about)


def _of_published(folder: Path) -> Found:
    published = read_published(folder)
    for name, read in READERS.items():
        if name in published.formats:
            table, latents = read(published)
            return Found(table, latents, published.model)
    raise InputFileError(f"{folder}: expected one of {', '.join(READERS)}, got {', '.join(published.formats)}")


class _Blocks:
    """Latents as dask takes them: an array that is sliced along both dimensions.

    Args:
        latents: the rows.
    """

    ndim, dtype = 2, np.dtype(np.float32)

    def __init__(self, latents: Slices) -> None:
        self.latents, self.shape = latents, latents.shape

    def __getitem__(self, key: tuple[slice, slice]) -> Any:
        rows, columns = key
        return self.latents[rows][:, columns]


def as_dataset(found: Found) -> Any:
    """Return an `xarray.Dataset`: `latent` (row, dimension) as a dask array, and the columns along row."""
    import dask.array as da
    import xarray as xr

    dim = found.latents.shape[1]
    chunk = max(1, _CHUNK // (4 * max(1, dim)))
    empty = np.empty((0, 0), np.float32)
    blocks: Any = da.from_array  # which has no types
    latent = blocks(_Blocks(found.latents), (chunk, dim), name=False, meta=empty)
    names = variable_names(found.table.column_names)
    variables = {variable: _variable(found.table[name], variable) for name, variable in names.items()}
    coordinates = [COORDINATES[name] for name in names if name in COORDINATES]
    whole = {VECTOR: ((ROWS, DIMENSION), latent, attributes_of(VECTOR)), **variables}
    return xr.Dataset(whole, attrs=found.about).set_coords(coordinates)


def _variable(column: Any, name: str) -> tuple[str, Any, dict[str, str]]:
    kind = kind_of(column)
    values = column.to_pandas().to_numpy(object) if kind.kind == "U" else values_of(column, kind)
    return ROWS, values, attributes_of(name)


def as_arrow_table(found: Found) -> Any:
    """Return a `pyarrow.Table` of the columns and of `latent`, a list of fixed size of float32."""
    import pyarrow as pa

    count, dim = found.latents.shape
    flat = pa.array(found.latents[0:count].reshape(-1))
    plain = found.table.replace_schema_metadata(None)
    return plain.append_column(VECTOR, pa.FixedSizeListArray.from_arrays(flat, dim))


def as_frame(found: Found) -> Any:
    """Return a `pandas.DataFrame` of the columns and of `latent`, arrays (D,) float32."""
    count, _ = found.latents.shape
    return from_arrow(found.table).assign(**{VECTOR: list(found.latents[0:count])})
