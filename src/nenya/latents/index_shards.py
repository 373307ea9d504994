"""Shards of an index: workers read, join and check the rows of latents files; the merge appends them in order.

A piece is a batch of rows of a partition, kept as an Arrow file. The vector index itself is trained by the merge, in
one process, since LanceDB trains it on all rows.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nenya.errors import InputFileError
from nenya.latents import index_build
from nenya.latents.files import Latents, Part
from nenya.latents.index import join, own_table
from nenya.latents.kept_answers import KeptAnswers, digest
from nenya.runtime.process import RowProgress
from nenya.runtime.shards import Share
from nenya.storage.disk import sha256_file

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Piece:
    """A batch of rows of a partition.

    Attributes:
        part: number of the partition.
        start: its first row, within the partition.
        stop: the end of its rows.
    """

    part: int
    start: int
    stop: int


class IndexShards:
    """The prepared rows of an index.

    Args:
        folder: of the pieces, which all workers see.
        latents: all of them.
        table: file of the table, which the pieces depend on; None without one.
        of_sensor: value of the column `sensor`, likewise.
        share: of this worker.
    """

    def __init__(self, folder: Path, latents: Latents, table: Path | None, of_sensor: str | None, share: Share) -> None:
        settings = (None if table is None else sha256_file(table), of_sensor, index_build.BATCH_ROWS)
        self.kept, self._latents = KeptAnswers(folder, digest([latents], settings, ()), share), latents
        rows = index_build.BATCH_ROWS
        self.pieces = [
            Piece(number, start, min(start + rows, part.rows))
            for number, part in enumerate(latents.parts)
            for start in range(0, part.rows, rows)
        ]

    def prepare(self, table: "pd.DataFrame | None") -> None:
        """Prepare the pieces of this worker.

        Args:
            table: of the cutouts.
        """
        latents = self._latents
        keys = own_table(latents) if table is None else join(table, latents)
        mine = [number for number in range(len(self.pieces)) if self.kept.owns(number)]
        left = [number for number in mine if not self._is_there(number, self.pieces[number])]
        rows = {number: self.pieces[number].stop - self.pieces[number].start for number in mine}
        before = sum(rows.values()) - sum(rows[number] for number in left)
        with RowProgress("preparing", sum(rows.values()), before=before) as progress:
            for number in left:
                piece = self.pieces[number]
                part = latents.parts[piece.part]
                if piece.start == 0:
                    self.kept.keep(_hash(piece.part), index_build.hash_of(part, latents).encode())
                made = index_build.rows_of(latents, keys, part.start + piece.start, part.start + piece.stop)
                self.kept.keep(_name(number), _written(made))
                latents.release()
                progress.advance(rows[number])

    def check(self) -> None:
        """Check that all pieces are there.

        Raises:
            OutputError: Some are missing; the shards are named.
        """
        missing = [number for number, piece in enumerate(self.pieces) if not self._is_there(number, piece)]
        self.kept.refuse_missing(missing, len(self.pieces))

    def _is_there(self, number: int, piece: Piece) -> bool:
        names = [_name(number), *([_hash(piece.part)] if piece.start == 0 else [])]
        return all(self.kept.take(name) is not None for name in names)

    def hash_of(self, part: Part) -> str:
        """Return the hash of the rows of a partition."""
        return self._answer(_hash(self._latents.parts.index(part))).decode()

    def rows_of(self, part: Part) -> Iterable[tuple[int, Any]]:
        """Yield the prepared batches of a partition: first row within it, and an Arrow table."""
        import pyarrow as pa

        own = self._latents.parts.index(part)
        for number, piece in enumerate(self.pieces):
            if piece.part == own:
                with pa.ipc.open_file(pa.py_buffer(self._answer(_name(number)))) as file:
                    yield piece.start, file.read_all()

    def _answer(self, name: str) -> bytes:
        found = self.kept.take(name)
        if found is None:
            raise InputFileError(f"{self.kept.place / name}: it vanished while it was needed; run the shards again")
        return found


def _name(number: int) -> str:
    return f"rows-{number:08d}"


def _hash(part: int) -> str:
    return f"sha256-{part:08d}"


def _written(table: Any) -> bytes:
    """Return an Arrow table as the bytes of an Arrow file."""
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as file:
        file.write_table(table)
    return bytes(sink.getvalue())
