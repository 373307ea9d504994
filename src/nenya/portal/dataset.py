"""Data shared by all sessions of the portal: table, cutouts and latents, read in place."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from nenya.archive.folder import Opened, read_tables
from nenya.archive.manifest import MANIFEST
from nenya.data.cutouts import CutoutReader, inspect_cutouts
from nenya.errors import OptionError
from nenya.latents.files import Latents
from nenya.portal.columns import Columns
from nenya.portal.masks import Masks
from nenya.portal.state import PLANES, BoolArray, Filter
from nenya.portal.tag_book import TagBook
from nenya.storage.paths import fetch, find_sources
from nenya.tables.key_columns import COLUMNS, Keys, read_keys
from nenya.tables.keys import cutout_parts, join

if TYPE_CHECKING:
    from nenya.latents.projector import Projector

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.integer]
T = TypeVar("T")

_KEPT_BYTES = 2**26  # bytes of cutouts in memory
_KEPT_A_ROW = 32  # bytes of results kept: cells of two planes, orders and masks of some selections
_AT_ONCE = 16  # cutouts read at once
_TRIED = 200  # rows on which a projector is tested
_SAME_MAP = 0.05  # as a fraction of the extent of the UMAP


class Cancelled(Exception):
    """Work whose result is no longer needed."""


class Shared:
    """Results shared by sessions: computed once, the most recent ones are kept.

    Args:
        most: bytes of arrays to keep.

    Attributes:
        version: returns that of the data; results of another one are not returned.
    """

    def __init__(self, most: int = 2**26) -> None:
        self._most, self._bytes = most, 0
        self._lock = threading.Lock()
        self._kept: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._made: dict[Hashable, threading.Lock] = {}
        self.version: Callable[[], int] = int

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return the result of a key, computed if needed; concurrent callers wait. It must not be changed."""
        key = self.version(), key
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
    """Return the size in bytes of the arrays in a result."""
    if isinstance(value, np.ndarray):
        return value.nbytes
    if is_dataclass(value):
        value = [getattr(value, f.name) for f in fields(value)]
    if isinstance(value, dict):
        value = list(value.values())
    return sum(map(_bytes_of, value)) if isinstance(value, list | tuple) else 0


class Cutouts:
    """The cutouts of a table's rows, read from HDF5 files on demand; recent ones are kept.

    Args:
        keys: of the table.
        paths: the files.

    Attributes:
        side: side in pixels of the cutouts in the first file.
        missing: number of rows of the table without a cutout in the files.

    Raises:
        InputFileError: A file is not a cutout file, or no row of the table has a cutout.
    """

    def __init__(self, keys: Keys, paths: Sequence[Path]) -> None:
        self._lock = threading.Lock()
        self._readers: list[CutoutReader] = []
        self.side, files = 0, []
        for path in paths:  # opened here and kept open, so that a replaced file is not read
            found = inspect_cutouts(path)
            files.append((str(path), {name: partition.rows for name, partition in found.partitions.items()}))
            for name, partition in found.partitions.items():
                self._readers.append(found.reader(name))
                self._readers[-1].read(0, min(1, partition.rows))
                self.side = self.side or partition.height
        parts = cutout_parts(files)
        self._starts = np.array([part.start for part in parts])
        joined = join(keys, parts, "cutout")
        self._number = joined.number
        self.missing = sum(joined.lost.values())
        self._kept: OrderedDict[int, FloatArray] = OrderedDict()

    def order(self, rows: IntArray) -> IntArray:
        """Return rows in the order in which the files hold their cutouts, in which they are read fastest."""
        return rows[np.argsort(self._number[rows], kind="stable")]

    def of(
        self, rows: IntArray, tick: Callable[[float], None] = lambda _: None, at_once: int = _AT_ONCE
    ) -> list[FloatArray | None]:
        """Return the cutouts of rows, each (H, W) float32, or None if no file has it.

        Args:
            rows: of the table, in any order.
            tick: called with the fraction done; an exception from it ends the work.
            at_once: cutouts read between two calls of `tick`.

        Raises:
            InputFileError: A file is damaged.
        """
        numbers = self._number[rows]
        todo = np.array([n for n in np.unique(numbers[numbers >= 0]).tolist() if n not in self._kept], np.int64)
        for done, (reader, places, some) in enumerate(groups := self._groups(todo, at_once)):
            tick(done / len(groups))
            with self._lock:
                images = reader.read_rows(places)[:, 0]
                for number, image in zip(some.tolist(), images, strict=True):
                    self._kept[number] = image
        found = [self._kept.get(number) for number in numbers.tolist()]
        with self._lock:
            most = max(256, _KEPT_BYTES // max(1, 4 * self.side**2))
            while len(self._kept) > most:
                self._kept.popitem(last=False)
        return found

    def masks(self, rows: IntArray) -> list[NDArray[np.bool_] | None]:
        """Return the masks of the cutouts of a few rows, each (H, W); None where no file has a mask or the cutout."""
        found: list[NDArray[np.bool_] | None] = []
        for number in self._number[rows].tolist():
            part = int(np.searchsorted(self._starts, number, side="right")) - 1
            with self._lock:
                row = np.array([number - self._starts[part]])
                mask = self._readers[part].read_mask_rows(row) if number >= 0 else None
            found.append(None if mask is None else mask[0])
        return found

    def _groups(self, numbers: IntArray, at_once: int) -> list[tuple[CutoutReader, IntArray, IntArray]]:
        """Return reader, rows in its partition and indices (increasing) of cutouts, a few at a time."""
        parts = np.searchsorted(self._starts, numbers, side="right") - 1
        result = []
        for part in np.unique(parts).tolist():
            own = numbers[parts == part]
            for some in np.split(own, range(at_once, len(own), at_once)):
                result.append((self._readers[part], some - self._starts[part], some))
        return result


class Dataset:
    """A table with its cutouts and latents, unaffected by later replacement of the files.

    Args:
        columns: of the table.
        latents: of its rows, if given.
        images: cutout files of its rows.
        projector: of the table's US0 and US1, if given.
        in_order: which of `latents` and `images` have one row for each row of the table, in its order; the others are
            joined by their keys.

    Attributes:
        columns: of the table.
        masks: of filters, shared by all sessions.
        shared: results shared by sessions.
        cutouts: None without images.
        latents: None without.
        latent_of: (N,) int64, latent of each row, -1 for none.
        projector: None without.
        files: their stamps when opened.
        first: filters with which pages begin.
        notes: sentences on parts that cannot be shown, with reasons.
        tags: of the table's cutouts; None where they are neither shown nor given.
        in_order: as given.
    """

    def __init__(
        self,
        columns: Columns,
        latents: Latents | None = None,
        images: Sequence[Path] = (),
        projector: "Projector | None" = None,
        in_order: Collection[str] = (),
    ) -> None:
        self.files: dict[Path, Stamp] = {}
        self.first: tuple[Filter, ...] = ()
        self.projector, self.in_order = projector, frozenset(in_order)
        self.columns, self.masks, self.shared = columns, Masks(columns), Shared(max(2**26, _KEPT_A_ROW * columns.rows))
        self.shared.version = lambda: columns.version
        self.tags: TagBook | None = None
        given = {name for name, there in (("latents", latents is not None), ("images", bool(images))) if there}
        own = np.arange(columns.rows)
        keys = Keys(None, np.zeros(len(own), np.int32), np.zeros(len(own), np.int8), own)
        by_name = keys
        if given - set(in_order):
            by_name = read_keys(columns.table.select([name for name in COLUMNS if name in columns.names]).to_pandas())
        self.cutouts = Cutouts(keys if "images" in in_order else by_name, images) if images else None
        self.latents = latents
        self.latent_of = np.full(columns.rows, -1, np.int64)
        self.row_of, repeated = np.empty(0, np.int64), 0
        if latents is not None:
            joined = latents.join(keys if "latents" in in_order else by_name)
            self.latent_of, self.row_of = joined.number, joined.first_rows(len(latents))
            repeated = joined.repeated
        self.notes = [
            f"no {view}: the table has no column {', '.join(lacking)}" for view, lacking in columns.missing.items()
        ]
        if not images:
            self.notes.append("no cutouts shown: give the cutout files by images=")
        if latents is None:
            self.notes.append("no similar cutouts: give the latents files by latents=")
        if self.cutouts is not None and self.cutouts.missing:
            self.notes.append(f"{self.cutouts.missing:,} rows have no cutout in the given files")
        if latents is not None and (lacking_rows := int((self.latent_of < 0).sum())):
            self.notes.append(f"{lacking_rows:,} rows have no latent in the given files")
        if latents is not None and latents.left_out is not None:
            self.notes.append(f"{int(latents.left_out.sum()):,} latents are left out by least_cosine=")
        if repeated:
            self.notes.append(
                f"{repeated:,} rows repeat the latent of an earlier row, which is the one listed as similar"
            )

    def check_projector(self) -> None:
        """Check that the projector made the table's UMAP.

        Raises:
            OptionError: The table has no UMAP, there are no latents, or the projector places the rows elsewhere.
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
                f"projector= does not reproduce US0 and US1 of the table (median distance {np.nanmedian(away):.2g}, in "
                f"a UMAP {size:.2g} wide): give the projector that made them (nenya embed prints its name)"
            )

    def place_of(self, latent: FloatArray) -> tuple[float, float] | None:
        """Return the position of a latent (D,) in the UMAP; None without a projector."""
        if self.projector is None:
            return None
        x, y = self.projector.transform(latent)[0]
        return float(x), float(y)

    def warm(self) -> None:
        """Compute the results needed by the first view."""
        for name in self.columns.metrics():
            self.columns.charted(name)
        self.columns.class_names()

    def first_rows(self) -> NDArray[np.int64]:
        """Return the rows of the table that pass the first filters, (n,)."""
        mask = self.masks.all_of(self.first)
        return np.arange(self.columns.rows) if mask is None else np.flatnonzero(mask)

    def allowed(self, mask: BoolArray | None, without: BoolArray | None = None) -> BoolArray:
        """Return which latents a search may return, by masks of the table's rows: (len(latents),) bool."""
        allowed = self.row_of >= 0
        rows = self.row_of[allowed]
        keep = np.ones(len(rows), bool) if mask is None else mask[rows]
        if without is not None:
            keep &= ~without[rows]
        allowed[allowed] = keep
        return allowed


Stamp = tuple[int, int, int] | None
"""Inode, size and modification time of a file; None if it does not exist."""


def stamps_of(paths: Iterable[Path]) -> dict[Path, Stamp]:
    """Return the present stamps of files."""
    found: dict[Path, Stamp] = {}
    for path in paths:
        try:
            status = path.stat()
        except OSError:
            found[path] = None
        else:
            found[path] = (status.st_ino, status.st_size, status.st_mtime_ns)
    return found


def open_dataset(
    table: Path,
    latents: Latents | None,
    images: Any,
    cache_dir: str | None = None,
    projector: Path | None = None,
) -> Dataset:
    """Read a table and open its latents and cutouts.

    Args:
        table: its path.
        latents: of its rows.
        images: cutout files in the form of `data=`; None for no cutouts.
        cache_dir: folder for copies of S3 objects.
        projector: file of the projector that made the table's US0 and US1.

    Raises:
        InputFileError: A file cannot be used, or does not belong to the table.
        OptionError: The projector did not make the table's UMAP.
    """
    from nenya.portal.columns import read_arrow

    paths = fetch(find_sources(images), cache_dir) if images else []
    files = stamps_of([table, *paths, *([projector] if projector is not None else [])])
    if latents is not None:
        files |= stamps_of({part.path for part in latents.parts})
        latents.hold()
    return _opened(read_arrow(table), latents, paths, projector, files)


def open_version_dataset(opened: Opened, least_cosine: float | None = None) -> Dataset:
    """Open a model version of an archive folder; later additions are seen when it is opened again.

    Args:
        opened: the version; its files are never replaced.
        least_cosine: as of `nenya.latents.files.Latents`.

    Raises:
        InputFileError: A file cannot be used.
    """
    from nenya.portal.columns import compact

    folder = opened.folder
    files = stamps_of([folder.root / MANIFEST]) if folder.url is None else {}
    table = compact(read_tables(opened.paths("table")))
    projector = folder.local(opened.version.projector)
    return _opened(table, opened.latents(least_cosine), opened.paths("cutouts"), projector, files)


def _opened(
    table: Any, latents: Latents | None, images: list[Path], projector: Path | None, files: dict[Path, Stamp]
) -> Dataset:
    loaded = None
    if projector is not None:
        from nenya.latents.projector import Projector

        loaded = Projector.load(projector)
    dataset = Dataset(Columns(table), latents, images, loaded)
    dataset.files = files
    dataset.check_projector()
    dataset.warm()
    return dataset
