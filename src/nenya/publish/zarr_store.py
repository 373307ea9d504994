"""Zarr version 3: a store of latents and columns in chunks along the rows, with consolidated metadata."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from nenya.latents.index_rows import VECTOR
from nenya.publish.encoding import SCALE, Encoded
from nenya.publish.rows import Block, Rows
from nenya.publish.variables import COORDINATES, DIMENSION, ROWS, attributes_of, kind_of, values_of, variable_names

FOLDER = "latents.zarr"
MEDIA_TYPE = "application/vnd.zarr; version=3"

_CHUNK = 2**20  # bytes of latents that are unpacked at once; shards, the files, hold a block
_FEWEST = 2**8  # rows of a chunk
_TIME = {"units": "microseconds since 1970-01-01", "calendar": "proleptic_gregorian"}
_NO_TIME = np.iinfo(np.int64).min


class ZarrWriter:
    """Writes published rows as a Zarr store.

    Args:
        folder: the store, which must not exist.
        rows: to be written.
        dtype: type of the stored latents.
        about: texts for its attributes, under their names.
    """

    def __init__(self, folder: Path, rows: Rows, dtype: str, about: dict[str, str]) -> None:
        import zarr

        self.folder, self._names = folder, variable_names(rows.table.column_names)
        self._kinds = {name: kind_of(rows.table[name]) for name in self._names}
        coordinates = [self._names[name] for name in COORDINATES if name in self._names and self._names[name] != ROWS]
        self._group = zarr.open_group(folder, mode="w-", zarr_format=3)
        self._group.attrs.update({"Conventions": "CF-1.11", "coordinates": " ".join(coordinates), **about})
        count, block = len(rows), rows.block_rows
        width = np.dtype(dtype).itemsize * rows.dim
        chunk = min(block, 1 << (max(_CHUNK // width, _FEWEST).bit_length() - 1))
        self._latent = self._group.create_array(
            VECTOR,
            shape=(count, rows.dim),
            chunks=(chunk, rows.dim),
            shards=(block, rows.dim),
            dtype=dtype,
            dimension_names=(ROWS, DIMENSION),
            attributes=attributes_of(VECTOR),
        )
        self._columns = {name: self._column(name, count, block) for name in self._names}
        self._scale = self._array(SCALE, np.dtype(np.float32), count, block) if dtype == "int8" else None

    def add(self, block: Block, encoded: Encoded) -> None:
        """Write the rows of a block."""
        rows = slice(block.start, block.start + len(block.latents))
        self._latent[rows] = encoded.values
        if self._scale is not None:
            self._scale[rows] = encoded.scale
        for name, array in self._columns.items():
            values = values_of(block.table[name], self._kinds[name])
            array[rows] = values.astype(np.int64) if values.dtype.kind == "M" else values

    def close(self) -> None:
        """Consolidate the metadata."""
        import zarr

        with _known_warnings():
            zarr.consolidate_metadata(self.folder)

    def abort(self) -> None:
        """Do nothing: no file is open."""

    def _column(self, column: str, count: int, block: int) -> Any:
        kind, name = self._kinds[column], self._names[column]
        if kind.kind != "M":
            return self._array(name, kind, count, block)
        return self._array(name, np.dtype(np.int64), count, block, {**_TIME, "_FillValue": _NO_TIME})

    def _array(self, name: str, kind: Any, count: int, block: int, more: dict[str, Any] | None = None) -> Any:
        with _known_warnings():
            return self._group.create_array(
                name,
                shape=(count,),
                chunks=(min(block, count),),
                dtype=kind,
                dimension_names=(ROWS,),
                attributes={**attributes_of(name), **(more or {})},
            )


@contextmanager
def _known_warnings() -> Iterator[None]:
    """Ignore what Zarr says of texts and consolidated metadata: they are newer than its specification of version 3."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Consolidated metadata is currently not part")
        warnings.filterwarnings("ignore", "The data type .* does not have a Zarr V3 specification")
        yield
