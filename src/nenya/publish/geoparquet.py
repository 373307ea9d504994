"""GeoParquet 1.1: one file for each partition, in folders of Hive's style, with the latent as a list of fixed size."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nenya.latents.index import VECTOR
from nenya.publish.encoding import SCALE, Encoded
from nenya.publish.rows import BOUNDS, GEOMETRY, Block, Rows

FOLDER = "geoparquet"
VERSION = "1.1.0"
SUFFIX = ".parquet"
MEDIA_TYPE = "application/vnd.apache.parquet"

_SIDES = ("xmin", "ymin", "xmax", "ymax")
_GROUP = 2**24  # bytes of latents in a row group: what a range request fetches
_FEWEST, _MOST = 2**10, 2**17  # rows of a row group
_GROUPS = 64  # in a file
_LEVEL = 3  # of zstd


@dataclass
class File:
    """A file that was written.

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
    rows: int = 0
    bounds: list[float] | None = None
    first: np.datetime64 | None = None
    last: np.datetime64 | None = None


@dataclass
class _Open:
    """A file being written."""

    file: File
    writer: Any
    groups: int = 0
    kinds: set[str] = field(default_factory=set)


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
        self.folder, self.partitions, self.about = folder, rows.partitions, about
        self.files: list[File] = []
        self._dtype = dtype
        width = np.dtype(dtype).itemsize * rows.dim
        self._group = 1 << (min(max(_GROUP // width, _FEWEST), _MOST).bit_length() - 1)
        self._open: _Open | None = None
        self._columns = [name for name in rows.table.column_names if name not in rows.partitions.names]

    def add(self, block: Block, encoded: Encoded) -> None:
        """Write the rows of a block."""
        ends = np.flatnonzero(np.diff(block.code)) + 1
        for start, stop in zip([0, *ends], [*ends, len(block.code)], strict=True):
            self._add(block, encoded, slice(int(start), int(stop)))

    def close(self) -> None:
        """Finish the last file."""
        if self._open is not None:
            self._finish(self._open)

    def abort(self) -> None:
        """Close the file being written, which is incomplete."""
        if self._open is not None:
            self._open.writer.close()

    def _add(self, block: Block, encoded: Encoded, rows: slice) -> None:
        """Write rows of one partition, in row groups."""
        assert block.shapes is not None
        code = int(block.code[rows.start])
        if self._open is not None and self._open.file.code != code:
            self._finish(self._open)
        for start in range(rows.start, rows.stop, self._group):
            part = np.arange(start, min(start + self._group, rows.stop))
            shapes = block.shapes.take(part)
            bounds = shapes.bounds()
            table = self._table(block, encoded, part, shapes.wkb(), bounds)
            if self._open is not None and self._open.groups >= _GROUPS:
                self._finish(self._open)
            if self._open is None:
                self._open = self._begin(code, table.schema)
            self._open.writer.write_table(table, row_group_size=len(part))
            self._open.groups += 1
            self._open.kinds |= set(shapes.kinds())
            _widen(self._open.file, bounds, table)

    def _table(self, block: Block, encoded: Encoded, part: NDArray[np.int64], shapes: Any, bounds: Any) -> Any:
        import pyarrow as pa

        first = int(part[0])
        own = block.table.slice(first, len(part)).select(self._columns)
        flat = pa.array(np.ascontiguousarray(encoded.values[part]).reshape(-1))
        columns: dict[str, Any] = {GEOMETRY: shapes, BOUNDS: _boxes(bounds)}
        columns[VECTOR] = pa.FixedSizeListArray.from_arrays(flat, encoded.values.shape[1])
        if encoded.scale is not None:
            columns[SCALE] = pa.array(encoded.scale[part])
        columns |= dict(zip(own.column_names, own.columns, strict=True))
        return pa.table(columns)

    def _begin(self, code: int, schema: Any) -> _Open:
        import pyarrow as pa
        import pyarrow.parquet as pq

        place = self.partitions.folder(code)
        number = sum(file.code == code for file in self.files)
        name = f"{place}/part-{number}{SUFFIX}" if place else f"part-{number}{SUFFIX}"
        path = self.folder / name
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
        return _Open(File(name, code), writer)

    def _finish(self, opened: _Open) -> None:
        opened.writer.add_key_value_metadata({"geo": json.dumps(geo_metadata(opened.kinds, opened.file.bounds))})
        opened.writer.add_key_value_metadata(self.about)
        opened.writer.close()
        self.files.append(opened.file)
        self._open = None


def geo_metadata(kinds: set[str], bounds: list[float] | None) -> dict[str, Any]:
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


def _widen(file: File, bounds: NDArray[np.float64], table: Any) -> None:
    """Include rows in the count, the bounds and the times of a file."""
    import pyarrow.compute as pc

    from nenya.publish.rows import TIME

    file.rows += len(bounds)
    known = bounds[~np.isnan(bounds[:, 0])]
    if len(known):
        own = [*known[:, :2].min(axis=0), *known[:, 2:].max(axis=0)]
        if file.bounds is not None:
            own = [*map(min, own[:2], file.bounds[:2]), *map(max, own[2:], file.bounds[2:])]
        file.bounds = [float(side) for side in own]
    if TIME in table.column_names:
        ends = pc.min_max(table[TIME].cast("timestamp[us]"))
        first, last = (np.datetime64(ends[end].as_py(), "us") for end in ("min", "max"))
        if not np.isnat(first):
            file.first = first if file.first is None else min(first, file.first)
            file.last = last if file.last is None else max(last, file.last)
