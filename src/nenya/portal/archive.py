"""What all sessions of the portal share: the table, the cutouts and the latents, read where they lie."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from nenya.archive_folder import MANIFEST, Opened, read_tables
from nenya.data.cutouts import CutoutReader, inspect_cutouts
from nenya.data.files import fetch, find_sources
from nenya.errors import InputFileError, OptionError
from nenya.latents import Latents
from nenya.portal.columns import Columns
from nenya.portal.state import PLANES, BoolArray, Masks

if TYPE_CHECKING:
    from nenya.projector import Projector

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.integer]
T = TypeVar("T")

_PARTITIONS = {1: "train", 0: "valid"}
_KEPT_BYTES = 2**26  # of cutouts in memory
_TRIED = 200  # rows that a projector is tried on
_SAME_MAP = 0.05  # of the map's size


class Cancelled(Exception):
    """Work that nobody waits for any more."""


class Shared:
    """Results that sessions have in common: made once, the most recent ones are kept.

    Args:
        most: bytes of arrays that are kept.
    """

    def __init__(self, most: int = 2**26) -> None:
        self._most, self._bytes = most, 0
        self._lock = threading.Lock()
        self._kept: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._made: dict[Hashable, threading.Lock] = {}

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return what was made for a key, or make it; who asks for it meanwhile waits. It must not be changed."""
        with self._lock:
            making = self._made.setdefault(key, threading.Lock())
        with making:
            with self._lock:
                if key in self._kept:
                    self._kept.move_to_end(key)
                    self._made.pop(key, None)
                    found: T = self._kept[key][0]
                    return found
            try:
                found = make()
            finally:
                with self._lock:
                    self._made.pop(key, None)
            self._keep(key, found, _bytes_of(found) + 1000)
        return found

    def _keep(self, key: Hashable, found: Any, size: int) -> None:
        with self._lock:
            self._bytes += size - self._kept.pop(key, (None, 0))[1]
            self._kept[key] = found, size
            while self._bytes > self._most and len(self._kept) > 1:
                self._bytes -= self._kept.popitem(last=False)[1][1]


def _bytes_of(value: Any) -> int:
    """Return the bytes of the arrays in a result."""
    if isinstance(value, np.ndarray):
        return value.nbytes
    if is_dataclass(value):
        value = [getattr(value, f.name) for f in fields(value)]
    if isinstance(value, dict):
        value = list(value.values())
    return sum(map(_bytes_of, value)) if isinstance(value, list | tuple) else 0


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
        for path in paths:  # opened here and kept open: what replaces a file later is not read
            found = inspect_cutouts(path)
            for name, partition in found.partitions.items():
                reader = self._readers[path.stem, name] = found.reader(name)
                reader.read(0, min(1, partition.rows))
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
    """A table with its cutouts and latents. Files that are replaced after it was opened do not change it.

    Args:
        columns: of the table.
        latents: of its rows, if there are.
        images: cutout files of its rows.
        projector: of the table's US0 and US1, if it is known.

    Attributes:
        columns: of the table.
        masks: of filters, shared by all sessions.
        shared: results that sessions have in common.
        cutouts: None without images.
        latents: None without.
        latent_of: (N,) int64, the row's latent, -1 where it has none.
        projector: None without.
        files: what they were when they were opened.
        notes: sentences on what cannot be shown, and why.
    """

    def __init__(
        self,
        columns: Columns,
        latents: Latents | None = None,
        images: Sequence[Path] = (),
        projector: "Projector | None" = None,
    ) -> None:
        self.files: dict[Path, Stamp] = {}
        self.projector = projector
        self.columns, self.masks, self.shared = columns, Masks(columns), Shared()
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

    def check_projector(self) -> None:
        """Check that the projector is the one of the table's UMAP.

        Raises:
            OptionError: The table has no UMAP or there are no latents, or it places the table's rows elsewhere.
        """
        if self.projector is None:
            return
        if self.latents is None or "UMAP" in self.columns.missing:
            raise OptionError("projector= needs latents=, and a table with US0 and US1, which it made")
        places = np.stack([self.columns.values(name) for name in PLANES["umap"]], axis=1)
        rows = np.flatnonzero((self.latent_of >= 0) & np.isfinite(places).all(axis=1))
        rows = rows[:: max(1, len(rows) // _TRIED)]
        away = np.linalg.norm(self.projector.transform(self.latents.take(self.latent_of[rows])) - places[rows], axis=1)
        size = float(np.ptp(places[rows], axis=0).max()) if len(rows) else 0.0
        if len(rows) and not np.nanmedian(away) <= _SAME_MAP * size:
            raise OptionError(
                f"projector= places the table's rows elsewhere than US0 and US1 say ({np.nanmedian(away):.2g} away, in "
                f"a map {size:.2g} wide): give the projector that made them (nenya embed names it)"
            )

    def place_of(self, latent: FloatArray) -> tuple[float, float] | None:
        """Return where the projector places a latent (D,) in the UMAP; None without a projector."""
        if self.projector is None:
            return None
        x, y = self.projector.transform(latent)[0]
        return float(x), float(y)

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


Stamp = tuple[int, int, int] | None
"""Inode, size and time of a file; None where there is none."""


def stamps_of(paths: Iterable[Path]) -> dict[Path, Stamp]:
    """Return what files are now."""
    found: dict[Path, Stamp] = {}
    for path in paths:
        try:
            status = path.stat()
        except OSError:
            found[path] = None
        else:
            found[path] = (status.st_ino, status.st_size, status.st_mtime_ns)
    return found


def open_archive(
    table: Path,
    latents: Latents | None,
    images: Any,
    cache_dir: str | None = None,
    projector: Path | None = None,
) -> Archive:
    """Read a table and open what belongs to it.

    Args:
        table: its path.
        latents: of its rows.
        images: cutout files as `data=` takes them; None for no pictures.
        cache_dir: of copies of S3 objects.
        projector: file of the projector that made the table's US0 and US1.

    Raises:
        InputFileError: A file cannot be used, or does not belong to the table.
        OptionError: The projector is not the table's.
    """
    from nenya.portal.columns import read_arrow

    paths = fetch(find_sources(images), cache_dir) if images else []
    files = stamps_of([table, *paths, *([projector] if projector is not None else [])])
    if latents is not None:
        files |= stamps_of({part.path for part in latents.parts})
        latents.hold()
    return _opened(read_arrow(table), latents, paths, projector, files)


def open_version_archive(opened: Opened) -> Archive:
    """Open a model version of an archive folder; what is added to the folder later is not seen until it is opened anew.

    Args:
        opened: the version; none of its files is ever replaced.

    Raises:
        InputFileError: A file cannot be used.
    """
    from nenya.portal.columns import compact

    folder = opened.folder
    files = stamps_of([folder.root / MANIFEST]) if folder.url is None else {}
    table = compact(read_tables(opened.paths("table")))
    projector = folder.local(opened.version.projector)
    return _opened(table, opened.latents(), opened.paths("cutouts"), projector, files)


def _opened(
    table: Any, latents: Latents | None, images: list[Path], projector: Path | None, files: dict[Path, Stamp]
) -> Archive:
    loaded = None
    if projector is not None:
        from nenya.projector import Projector

        loaded = Projector.load(projector)
    archive = Archive(Columns(table), latents, images, loaded)
    archive.files = files
    archive.check_projector()
    archive.warm()
    return archive
