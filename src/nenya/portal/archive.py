"""What all sessions of the portal share: the table, the cutouts and the latents, read where they lie."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nenya.archive_folder import Opened, read_tables
from nenya.data.cutouts import CutoutReader, inspect_cutouts
from nenya.data.files import fetch, find_sources
from nenya.errors import InputFileError
from nenya.latents import Latents
from nenya.portal.columns import Columns
from nenya.portal.state import BoolArray, Masks

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]

_PARTITIONS = {1: "train", 0: "valid"}
_KEPT_BYTES = 2**27  # of cutouts in memory


class Cancelled(Exception):
    """Work that nobody waits for any more."""


class Cutouts:
    """The cutouts of a table's rows, drawn from HDF5 files on demand; the last ones are kept.

    Args:
        columns: of the table, with pp_file, pp_type and pp_idx.
        paths: the files.

    Attributes:
        side: pixels a side of the first file's cutouts.

    Raises:
        InputFileError: A file is no cutout file, or the table does not say which cutout a row is.
    """

    def __init__(self, columns: Columns, paths: Sequence[Path]) -> None:
        self._columns, self._lock = columns, threading.Lock()
        self._kind = "pp_type" if "pp_type" in columns else "ulmo_pp_type"
        if "pp_idx" not in columns or self._kind not in columns:
            raise InputFileError(
                "the table has no pp_idx and pp_type, which say which cutout a row is: leave out images="
            )
        self._readers: dict[tuple[str, str], CutoutReader] = {}
        self.side = 0
        for path in paths:
            found = inspect_cutouts(path)
            for name, partition in found.partitions.items():
                self._readers[path.stem, name] = found.reader(name)
                self.side = self.side or partition.height
        self._only = paths[0].stem if len(paths) == 1 and "pp_file" not in columns else ""
        self._kept: OrderedDict[int, FloatArray] = OrderedDict()

    def of(self, rows: IntArray, tick: Callable[[float], None] = lambda _: None) -> list[FloatArray | None]:
        """Return the cutouts of rows, each (H, W) float32, None where no file has it.

        Args:
            rows: of the table, in any order.
            tick: is called with the share that is done; what it raises ends the work.

        Raises:
            InputFileError: A file is damaged there.
        """
        todo = np.array([row for row in dict.fromkeys(rows.tolist()) if row not in self._kept], np.int64)
        for done, (reader, numbers, places) in enumerate(groups := self._groups(todo)):
            tick(done / len(groups))
            with self._lock:
                images = reader.read_rows(numbers)[:, 0]
                for row, image in zip(places.tolist(), images, strict=True):
                    self._kept[row] = image
        found = [self._kept.get(row) for row in rows.tolist()]
        with self._lock:
            most = max(256, _KEPT_BYTES // max(1, 4 * self.side**2))
            while len(self._kept) > most:
                self._kept.popitem(last=False)
        return found

    def _groups(self, rows: IntArray) -> list[tuple[CutoutReader, IntArray, IntArray]]:
        """Return reader, rows in its partition (rising) and rows of the table, for a few cutouts at a time."""
        if not len(rows):
            return []
        keys = self._columns.take(rows)
        stems = [Path(str(v)).stem for v in keys.column("pp_file").to_pylist()] if not self._only else [self._only]
        stems = stems * (1 if len(stems) == len(rows) else len(rows))
        kinds, numbers = keys.column(self._kind).to_pylist(), keys.column("pp_idx").to_pylist()
        chosen: dict[tuple[str, str], dict[int, int]] = {}
        for row, stem, kind, number in zip(rows.tolist(), stems, kinds, numbers, strict=True):
            place = (stem, _PARTITIONS.get(kind, ""))
            if place in self._readers and number is not None and 0 <= number < len(self._readers[place]):
                chosen.setdefault(place, {})[int(number)] = row
        result = []
        for place, wanted in chosen.items():
            ordered = sorted(wanted)
            for start in range(0, len(ordered), 16):
                part = ordered[start : start + 16]
                result.append((self._readers[place], np.array(part), np.array([wanted[n] for n in part])))
        return result


class Archive:
    """A table with its cutouts and latents.

    Args:
        columns: of the table.
        latents: of its rows, if there are.
        images: cutout files of its rows.

    Attributes:
        columns: of the table.
        masks: of filters, shared by all sessions.
        cutouts: None without images.
        latents: None without.
        latent_of: (N,) int64, the row's latent, -1 where it has none.
        notes: sentences on what cannot be shown, and why.
    """

    def __init__(self, columns: Columns, latents: Latents | None = None, images: Sequence[Path] = ()) -> None:
        self.columns, self.masks = columns, Masks(columns)
        self.cutouts = Cutouts(columns, images) if images else None
        self.latents = latents
        self.latent_of = np.full(columns.rows, -1, np.int64)
        self.row_of = np.empty(0, np.int64)
        if latents is not None:
            names = [n for n in ("pp_file", "pp_type", "ulmo_pp_type", "pp_idx") if n in columns.names]
            self.latent_of = latents.positions(columns.table.select(names).to_pandas())
            self.row_of = np.full(len(latents), -1, np.int64)
            has = np.flatnonzero(self.latent_of >= 0)
            self.row_of[self.latent_of[has]] = has
        self.notes = [
            f"no {view}: the table has no column {', '.join(lacking)}" for view, lacking in columns.missing.items()
        ]
        if not images:
            self.notes.append("no pictures: images= names the cutout files")
        if latents is None:
            self.notes.append("no similar images: latents= names the latents files")
        if latents is not None and (lacking_rows := int((self.latent_of < 0).sum())):
            self.notes.append(f"{lacking_rows:,} rows have no latent in the files given")

    def warm(self) -> None:
        """Make what the first view needs."""
        for name in self.columns.metrics():
            self.columns.binned(name)

    def allowed(self, mask: BoolArray | None, without: BoolArray | None = None) -> BoolArray:
        """Say which latents a search may return, by masks of the table's rows: (len(latents),) bool."""
        allowed = self.row_of >= 0
        rows = self.row_of[allowed]
        keep = np.ones(len(rows), bool) if mask is None else mask[rows]
        if without is not None:
            keep &= ~without[rows]
        allowed[allowed] = keep
        return allowed


def open_archive(table: Path, latents: Latents | None, images: Any, cache_dir: str | None = None) -> Archive:
    """Read a table and open what belongs to it.

    Args:
        table: its path.
        latents: of its rows.
        images: cutout files as `data=` takes them; None for no pictures.
        cache_dir: of copies of S3 objects.

    Raises:
        InputFileError: A file cannot be used, or does not belong to the table.
    """
    from nenya.portal.columns import read_arrow

    paths = fetch(find_sources(images), cache_dir) if images else []
    archive = Archive(Columns(read_arrow(table)), latents, paths)
    archive.warm()
    return archive


def open_version_archive(opened: Opened) -> Archive:
    """Open a model version of an archive folder; what is added to the folder later is not seen."""
    from nenya.portal.columns import compact

    table = compact(read_tables(opened.paths("table")).replace_schema_metadata(None))
    archive = Archive(Columns(table), opened.latents(), opened.paths("cutouts"))
    archive.warm()
    return archive
