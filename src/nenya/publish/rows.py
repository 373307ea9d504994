"""The rows to publish: latents with their table, selected, ordered in space, and read block by block.

Letters in shapes: N latents, M published rows, D the length of a latent.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nenya.errors import InputFileError, OptionError
from nenya.latents.files import Latents
from nenya.latents.index import join, own_table
from nenya.latents.index_rows import VECTOR
from nenya.publish.encoding import SCALE
from nenya.publish.partitions import CELL, YEAR, Partitions, partitions_of
from nenya.publish.places import FINE, Shapes, footprints, nested_cells, points
from nenya.tables.conditions import ROW, as_arrow, rows_where
from nenya.tables.near import coordinates
from nenya.tables.place_and_time import dates_of
from nenya.tables.quantities import columns_of

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

GEOMETRY, BOUNDS, TIME = "geometry", "bbox", "datetime"
OWN = (ROW, VECTOR, SCALE, GEOMETRY, BOUNDS)
"""Columns of published files that are not the table's."""

EXTENTS = ("height_km", "width_km")
_BLOCK = 2**26  # bytes of float32 latents in a block
_FEWEST, _MOST = 2**10, 2**16  # rows of a block


@dataclass(frozen=True)
class Choice:
    """What is to be published.

    Attributes:
        where: a condition on the rows; None for all.
        geometry: `point` or `footprint`.
        partition: names for `partitions_of`; None: by year where there are dates.
        side: of the cells of partition=cell.
        placed: whether every row needs a place: without columns of places the table is refused.
    """

    where: str | None = None
    geometry: str = "point"
    partition: Sequence[str] | None = None
    side: int = 1
    placed: bool = True


@dataclass(frozen=True)
class Block:
    """Consecutive published rows.

    Attributes:
        start: number of the first one.
        table: an Arrow table of their columns.
        latents: (n, D) float32.
        shapes: their geometries; None without places.
        code: (n,) their partitions.
    """

    start: int
    table: Any
    latents: FloatArray
    shapes: Shapes | None
    code: IntArray


@dataclass
class Rows:
    """The published rows in their order.

    Attributes:
        latents: of all rows.
        number: (M,) which of them.
        table: Arrow table of the columns, M rows.
        shapes: their geometries; None without places.
        times: (M,) datetime64[us], UTC, NaT where unknown.
        partitions: their partitions.
        left_out: reason -> number of latents that are not published.
    """

    latents: Latents
    number: IntArray
    table: Any
    shapes: Shapes | None
    times: NDArray[np.datetime64]
    partitions: Partitions
    left_out: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.number)

    @property
    def dim(self) -> int:
        """D."""
        return self.latents.shape[1]

    @property
    def block_rows(self) -> int:
        """Rows of a block: a power of two."""
        return 1 << (min(max(_BLOCK // (4 * self.dim), _FEWEST), _MOST).bit_length() - 1)

    def blocks(self) -> Iterator[Block]:
        """Yield all rows block by block."""
        for start in range(0, len(self), self.block_rows):
            rows = np.arange(start, min(start + self.block_rows, len(self)))
            yield Block(
                start,
                self.table.slice(start, len(rows)),
                self.latents.take(self.number[rows]),
                None if self.shapes is None else self.shapes.take(rows),
                self.partitions.code[rows],
            )
            self.latents.release()

    @property
    def without_place(self) -> int:
        """Number of rows without a place."""
        return len(self) if self.shapes is None else int((~self.shapes.known).sum())

    @property
    def without_time(self) -> int:
        """Number of rows without a time."""
        return int(np.isnat(self.times).sum())


def select(latents: Latents, table: "pd.DataFrame | None", choice: Choice) -> Rows:
    """Select the rows to publish, and order them: by partition, then along HEALPix's nested cells, then by time.

    Latents with NaN are left out. Rows of unknown place come last in their partition. All of it is logged.

    Args:
        latents: of all rows.
        table: of the cutouts, joined by `Latents.full_table`; None for the latents' own keys.
        choice: what to publish.

    Raises:
        InputFileError: The table cannot be joined, lacks a needed column, or a place is impossible.
        OptionError: A condition or a partition is not possible, or no row is left.
    """
    whole = own_table(latents) if table is None else _own_columns(join(table, latents), choice)
    if choice.placed and not {"lat", "lon"} <= set(whole):
        hint = "" if table is not None else ": give the table of the cutouts by table="
        there = ", ".join(map(str, whole.columns))
        raise InputFileError(f"expected the columns lat and lon, the places of the cutouts, got {there}{hint}")
    kept, left_out = _kept(latents, whole, choice.where)
    numbers = np.flatnonzero(kept)
    whole = whole.iloc[numbers].reset_index(drop=True)
    times = _times(whole)
    shapes = _shapes(whole, choice)
    cells = np.full(len(whole), -1, np.int64) if shapes is None else nested_cells(shapes.lon, shapes.lat, FINE)
    coarse = np.where(cells < 0, -1, cells // (FINE // choice.side) ** 2)
    names = choice.partition if choice.partition is not None else [] if np.isnat(times).all() else [YEAR]
    partitions = partitions_of(whole, names, times, coarse)
    late = np.where(np.isnat(times), np.iinfo(np.int64).max, times.astype(np.int64))
    order = np.lexsort((late, np.where(cells < 0, np.iinfo(np.int64).max, cells), partitions.code))
    found = Rows(
        latents,
        numbers[order],
        arrow_columns(whole, numbers, order),
        None if shapes is None else shapes.take(order),
        times[order],
        Partitions(partitions.names, partitions.values, partitions.code[order]),
        left_out,
    )
    _say(found, choice)
    return found


def _own_columns(whole: "pd.DataFrame", choice: Choice) -> "pd.DataFrame":
    """Return a table without the column names of published files, and without names that differ in case only."""
    divided = (YEAR,) if choice.partition is None else choice.partition
    names = [*OWN, *(name for name in divided if name in (YEAR, CELL))]
    taken = [str(name) for name in whole if str(name).lower() in names]
    lower = [str(name).lower() for name in whole]
    same = [
        name
        for name, small in zip(map(str, whole), lower, strict=True)
        if lower.count(small) > 1 and name != small and name not in taken
    ]
    if taken:
        log.warning("columns %s of the table are left out, as published files have their own", ", ".join(taken))
    if same:
        log.warning("columns %s are left out: the table has others whose names differ in case only", ", ".join(same))
    return whole.drop(columns=[*taken, *same])


def _kept(latents: Latents, whole: "pd.DataFrame", where: str | None) -> tuple[BoolArray, dict[str, int]]:
    """Return which latents are published, (N,), and how many are not, by reason."""
    chosen = np.ones(len(latents), bool) if where is None else rows_where(whole, where)
    if not chosen.any():
        raise OptionError(f"where={where} selects none of {len(latents)} rows: give another condition")
    below = chosen & (latents.left_out if latents.left_out is not None else np.zeros(len(latents), bool))
    finite = np.empty(len(latents), bool)
    for start, block in latents.blocks():
        finite[start : start + len(block)] = np.isfinite(block).all(axis=1)
    latents.release()
    counts = {
        "not selected by where=": int((~chosen).sum()),
        "below least_cosine=": int(below.sum()),
        "without a latent (NaN)": int((chosen & ~below & ~finite).sum()),
    }
    kept = chosen & ~below & finite
    if not kept.any():
        raise InputFileError(
            f"none of {len(latents)} rows has a latent to publish ({_counted(counts)}): give other files or conditions"
        )
    return kept, {reason: count for reason, count in counts.items() if count}


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in counts.items() if count)


def _times(whole: "pd.DataFrame") -> NDArray[np.datetime64]:
    if TIME not in whole:
        return np.full(len(whole), "NaT", "datetime64[us]")
    return dates_of(whole[TIME], check=False).to_numpy("datetime64[us]")


def _shapes(whole: "pd.DataFrame", choice: Choice) -> Shapes | None:
    if not {"lat", "lon"} <= set(whole):
        return None
    lat, lon = coordinates(whole)
    if choice.geometry == "point":
        return points(lon, lat)
    if missing := [name for name in EXTENTS if name not in whole]:
        raise InputFileError(
            f"geometry=footprint needs a column {' and '.join(missing)} in the table, the extent of the cutouts in km; "
            "use geometry=point"
        )
    height, width = columns_of(whole, *EXTENTS).T
    return footprints(lon, lat, height, width)


def arrow_columns(whole: "pd.DataFrame", numbers: IntArray, order: IntArray | None = None) -> Any:
    """Return the columns of a table as an Arrow table that begins with the number of the latent.

    Args:
        whole: of M rows.
        numbers: (M,) of their latents.
        order: (M,) of the result; default as they are.
    """
    import pyarrow as pa

    columns = {ROW: pa.array(numbers)}
    for name in whole:
        column = whole[name]
        found = pa.array(column, from_pandas=True) if column.dtype.kind in "iufb" else as_arrow(column)
        columns[str(name)] = found.cast(pa.timestamp("us", "UTC")) if pa.types.is_timestamp(found.type) else found
    table = pa.table(columns)
    return (table if order is None else table.take(pa.array(order))).combine_chunks()


def _say(rows: Rows, choice: Choice) -> None:
    total = len(rows.latents)
    if rows.left_out:
        log.warning("publishing %d of %d rows: %s", len(rows), total, _counted(rows.left_out))
    if choice.placed and rows.without_place:
        log.warning("%d of %d rows have no place (lat, lon): their geometry is null", rows.without_place, len(rows))
    if rows.without_time:
        log.warning("%d of %d rows have no time (datetime): it is null", rows.without_time, len(rows))
    if rows.shapes is None or choice.geometry == "point":
        return
    if lone := int((rows.shapes.known & ~rows.shapes.boxed).sum()):
        log.warning("%d rows have no %s: their geometry is a point", lone, " or ".join(EXTENTS))
    if split := int(rows.shapes.split.sum()):
        log.info("%d footprints cross the date line: each is a MultiPolygon of its two parts", split)
