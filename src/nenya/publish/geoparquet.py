"""GeoParquet 1.1: one file for each partition, in folders of Hive's style, with the latent as a list of fixed size."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nenya.latents.index_rows import VECTOR
from nenya.publish.encoding import SCALE, Encoded
from nenya.publish.places import Shapes
from nenya.publish.rows import BOUNDS, GEOMETRY, Block, Rows

FOLDER = "geoparquet"
VERSION = "1.1.0"
SUFFIX = ".parquet"
MEDIA_TYPE = "application/vnd.apache.parquet"

_SIDES = ("xmin", "ymin", "xmax", "ymax")
_GROUP = 2**24  # bytes of latents in a row group: what a range request fetches
_FEWEST, _MOST = 2**10, 2**17  # rows of a row group
_GROUPS = 16  # in a file
_LEVEL = 3  # of zstd


@dataclass(frozen=True)
class PartFile:
    """A file.

    Attributes:
        name: relative to the folder of the writer.
        code: its partition.
        rows: number of rows.
        bounds: west, south, east, north of its geometries; None if it has none.
        first: earliest time, None if it has none.
        last: latest time.
    """

    name: str
    code: int
    rows: int
    bounds: list[float] | None = None
    first: np.datetime64 | None = None
    last: np.datetime64 | None = None


@dataclass
class _Open:
    """A file being written, and how many of its rows are still to be written."""

    file: PartFile
    writer: Any
    left: int


class GeoParquetWriter:
    """Writes published rows as GeoParquet.

    Args:
        folder: of the files, which must not exist.
        rows: to be written.
        dtype: type of the stored latents.
        about: texts for the metadata of every file, under their names.

    Attributes:
        files: those that are complete.
    """

    def __init__(self, folder: Path, rows: Rows, dtype: str, about: dict[str, str]) -> None:
        self.folder, self.rows, self.about = folder, rows, about
        self.files: list[PartFile] = []
        self._dtype = dtype
        width = np.dtype(dtype).itemsize * rows.dim
        self._group = 1 << (min(max(_GROUP // width, _FEWEST), _MOST).bit_length() - 1)
        self._open: _Open | None = None
        self._columns = [name for name in rows.table.column_names if name not in rows.partitions.names]

    def add(self, block: Block, encoded: Encoded) -> None:
        """Write the rows of a block."""
        start = 0
        while start < len(block.code):
            if self._open is None:
                self._open = self._begin(block, encoded, start)
            stop = min(start + self._group, start + self._open.left, len(block.code))
            part = slice(start, stop)
            self._open.writer.write_table(self._table(block, encoded, part), row_group_size=stop - start)
            self._open.left -= stop - start
            if not self._open.left:
                self._open.writer.close()
                self.files.append(self._open.file)
                self._open = None
            start = stop

    def close(self) -> None:
        """Do nothing: the last row finishes the last file."""

    def abort(self) -> None:
        """Close the file being written, which is incomplete."""
        if self._open is not None:
            self._open.writer.close()

    def _table(self, block: Block, encoded: Encoded, part: slice) -> Any:
        """Return rows of a block as they are written."""
        import pyarrow as pa

        assert block.shapes is not None
        shapes = block.shapes.take(np.arange(part.start, part.stop))
        own = block.table.slice(part.start, part.stop - part.start).select(self._columns)
        flat = pa.array(np.ascontiguousarray(encoded.values[part]).reshape(-1))
        columns: dict[str, Any] = {GEOMETRY: shapes.wkb(), BOUNDS: _boxes(shapes.bounds())}
        columns[VECTOR] = pa.FixedSizeListArray.from_arrays(flat, encoded.values.shape[1])
        if encoded.scale is not None:
            columns[SCALE] = pa.array(encoded.scale[part])
        columns |= dict(zip(own.column_names, own.columns, strict=True))
        return pa.table(columns)

    def _begin(self, block: Block, encoded: Encoded, start: int) -> _Open:
        """Begin the file of a row of a block: it holds the rest of the partition, or as many rows as fit."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        code = int(block.code[start])
        first = block.start + start
        end = int(np.searchsorted(self.rows.partitions.code, code, side="right"))
        numbers = np.arange(first, min(end, first + _GROUPS * self._group))
        assert self.rows.shapes is not None
        shapes = self.rows.shapes.take(numbers)
        place = self.rows.partitions.folder(code)
        name = f"part-{sum(file.code == code for file in self.files)}{SUFFIX}"
        file = PartFile(
            f"{place}/{name}" if place else name,
            code,
            len(numbers),
            bounds_of(shapes),
            *ends_of(self.rows.times[numbers]),
        )
        geo = json.dumps(geo_metadata(shapes.kinds(), file.bounds))
        schema = self._table(block, encoded, slice(start, start + 1)).schema.with_metadata({**self.about, "geo": geo})
        path = self.folder / file.name
        path.parent.mkdir(parents=True, exist_ok=True)
        texts = [f.name for f in schema if pa.types.is_string(f.type) or pa.types.is_boolean(f.type)]
        leaf = f"{VECTOR}.list.element"
        plain = [f.name for f in schema if f.name not in (VECTOR, BOUNDS, GEOMETRY)]
        writer = pq.ParquetWriter(
            path,
            schema,
            compression="zstd",
            compression_level=_LEVEL,
            use_dictionary=[*texts, *([leaf] if self._dtype == "int8" else [])],
            write_statistics=[*plain, *(f"{BOUNDS}.{side}" for side in _SIDES)],
            write_page_index=True,
        )
        return _Open(file, writer, len(numbers))


def bounds_of(shapes: Shapes) -> list[float] | None:
    """Return west, south, east and north of all geometries; None if there are none."""
    known = shapes.bounds()[shapes.known]
    if not len(known):
        return None
    return [float(side) for side in (*known[:, :2].min(axis=0), *known[:, 2:].max(axis=0))]


def ends_of(times: NDArray[np.datetime64]) -> tuple[np.datetime64 | None, np.datetime64 | None]:
    """Return the first and the last time; None if there are none."""
    known = times[~np.isnat(times)]
    return (known.min(), known.max()) if len(known) else (None, None)


def geo_metadata(kinds: Sequence[str], bounds: list[float] | None) -> dict[str, Any]:
    """Return the metadata of a GeoParquet file.

    Args:
        kinds: of its geometries.
        bounds: west, south, east, north; None if it has no geometry.
    """
    from pyproj import CRS

    covering = {side: [BOUNDS, side] for side in _SIDES}
    column: dict[str, Any] = {
        "encoding": "WKB",
        "geometry_types": sorted(kinds),
        "crs": CRS("OGC:CRS84").to_json_dict(),
        "orientation": "counterclockwise",
        "edges": "planar",
        "covering": {"bbox": covering},
    }
    if bounds is not None:
        column["bbox"] = bounds
    return {"version": VERSION, "primary_column": GEOMETRY, "columns": {GEOMETRY: column}}


def _boxes(bounds: NDArray[np.float64]) -> Any:
    """Return the bounds of geometries, (n, 4), as a column, null where there is none."""
    import pyarrow as pa

    missing = np.isnan(bounds[:, 0])
    sides = [pa.array(bounds[:, number], from_pandas=True) for number in range(4)]
    return pa.StructArray.from_arrays(sides, list(_SIDES), mask=pa.array(missing))
