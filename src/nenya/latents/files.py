"""Latents files as one array: read in blocks or by row, and joined to the rows of a table.

Letters in shapes: N rows of all files together, D the length of a latent.
"""

import contextlib
import logging
import os
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
from numpy.typing import NDArray

from nenya.data.hdf5_links import Links
from nenya.data.hdf5_open import list_datasets, map_floats, open_hdf5
from nenya.errors import InputFileError
from nenya.latents.clear import CLEAR_COLUMNS, columns_in, left_out, read_column
from nenya.storage.paths import base_name, fetch, find_latents, is_s3, key_of
from nenya.storage.table_integers import take_rows
from nenya.tables import keys
from nenya.tables.key_columns import COLUMNS, TYPES, Keys, read_keys
from nenya.tables.keys import Joined, part_types
from nenya.tables.names import cutout_names

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]

PARTITIONS = ("train", "valid")
BLOCK_ROWS = 16384
_MAPPED = 2**29  # bytes read through memory maps before they are released
_AROUND = 2**16  # bytes that the system maps around one being read
_MOST_TEXT = 4096  # characters
_PROVENANCE = ("model_version", "checkpoint_sha256", "latent", "image_size")


@dataclass(frozen=True)
class Part:
    """A partition of a latents file.

    Attributes:
        path: the file.
        pp_file: name of its cutout file, without folder.
        names: possible names of the cutout file: several if the latents file does not state it.
        place: location of the latents file, if `path` is a copy.
        partition: `train` or `valid`.
        start: number of its first row among all rows.
        rows: number of rows.
        provenance: attributes of the file on how it was made.
        columns: names of what the file says of each row's mask; see `nenya.latents.clear`.
    """

    path: Path
    pp_file: str
    partition: str
    start: int
    rows: int
    provenance: dict[str, str]
    names: tuple[str, ...] = ()
    place: str = ""
    columns: tuple[str, ...] = ()

    @property
    def stem(self) -> str:
        """Name of the cutout file without its suffix, by which tables are joined."""
        return key_of(self.pp_file)

    @property
    def cutout_names(self) -> tuple[str, ...]:
        """Possible names of the cutout file."""
        return self.names or (self.pp_file,)

    def key(self) -> keys.Part:
        """Return its keys for the join with a table."""
        return keys.Part(
            self.place or str(self.path), self.cutout_names, part_types(self.partition), self.start, self.rows
        )


class Latents:
    """The rows of latents files: of each file `train`, then `valid`.

    It has `shape`, `ndim`, a length and slices like an array, and keeps nothing in memory. Rows of cutouts with
    missing pixels are NaN. Contiguous float32 data sets, as nenya writes them, are memory-mapped.

    Args:
        paths: local latents files, in the order of their rows.
        partitions: names of the data sets to read; one or several.
        places: locations of the files, if `paths` are copies: their folders distinguish files of the same name.
        allow_external: whether links, virtual data sets and external storage may lead out of a file's folder.
        least_cosine: rows with a smaller or unknown `cosine_low` are read as NaN.

    Attributes:
        parts: partitions of all files, in the order of their rows.
        shape: (N, D).
        links: where links may lead and data may lie.

    Raises:
        InputFileError: A file cannot be opened, has no latents, or its latents have another length or other weights;
            or it says nothing of the cosine.
    """

    ndim = 2
    dtype = np.dtype(np.float32)

    def __init__(
        self,
        paths: Sequence[Path],
        partitions: Sequence[str] = PARTITIONS,
        places: Sequence[Path | str] | None = None,
        *,
        allow_external: bool = False,
        least_cosine: float | None = None,
    ) -> None:
        self.links: Links = "any" if allow_external else "folder"
        partitions = (partitions,) if isinstance(partitions, str) else partitions
        self.parts: list[Part] = []
        dim = start = 0
        for path, place in zip(paths, places or paths, strict=True):
            with _open(path, self.links) as file:
                found = [name for name in partitions if _is_latents(file, name)]
                if not found:
                    raise InputFileError(
                        f"{path}: expected latents (N, D) in a data set named {' or '.join(partitions)}, got "
                        f"{list_datasets(file)}"
                    )
                provenance = {name: _text(path, file, name) for name in _PROVENANCE if name in file.attrs}
                names = _cutout_names(path, _text(path, file, "source") if "source" in file.attrs else None)
                for name in found:
                    rows, width = file[name].shape
                    if dim not in (0, width):
                        raise InputFileError(
                            f"{path}: expected latents of {dim} dimensions as in the other files, got {width}: give "
                            "latents of one model"
                        )
                    dim = width
                    own = tuple(columns_in(file, name))
                    part = Part(path, base_name(names[0]), name, start, rows, provenance, names, str(place), own)
                    self.parts.append(part)
                    start += rows
        self.shape = (start, dim)
        self._check_one_model()
        self._arrays: dict[int, Any] = {}
        self._held: dict[Path, tuple[h5py.File, int]] = {}
        self._read = 0
        self.left_out: NDArray[np.bool_] | None = None
        if least_cosine is not None:
            self.left_out = left_out(self._column("cosine_low"), least_cosine)

    def __len__(self) -> int:
        return self.shape[0]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_arrays": {}, "_held": {}}

    def __getitem__(self, rows: slice) -> FloatArray:
        """Return consecutive rows, (n, D) float32."""
        start, stop, step = rows.indices(len(self))
        if step != 1:
            raise ValueError("a slice reads consecutive rows only; take(rows) reads any rows")
        out = np.empty((max(0, stop - start), self.shape[1]), np.float32)
        self._count(out.nbytes)
        for index, part in enumerate(self.parts):
            low, high = max(start, part.start), min(stop, part.start + part.rows)
            if low < high:
                out[low - start : high - start] = self._array(index)[low - part.start : high - part.start]
        if self.left_out is not None:
            out[self.left_out[start:stop]] = np.nan
        return out

    def view(self, rows: slice) -> Iterator[FloatArray]:
        """Yield consecutive rows piece by piece, (n, D) float32, without a copy where a file is memory-mapped."""
        start, stop, _ = rows.indices(len(self))
        if self.left_out is not None and self.left_out[start:stop].any():
            yield self[start:stop]
            return
        self._count(max(0, stop - start) * 4 * self.shape[1])
        for index, part in enumerate(self.parts):
            low, high = max(start, part.start), min(stop, part.start + part.rows)
            if low < high:
                yield np.asarray(self._array(index)[low - part.start : high - part.start], np.float32)

    def hold(self) -> None:
        """Open all files and keep them open, so that files replaced later are still read as they are now."""
        for path in dict.fromkeys(part.path for part in self.parts):
            if path not in self._held:
                descriptor = os.open(path, os.O_RDONLY)
                weakref.finalize(self, os.close, descriptor)
                self._held[path] = open_hdf5(path, links=self.links), descriptor

    def states(self) -> list[str]:
        """Return for each file what tells its content apart: place, size, and the time of its last change.

        That of a copy of an object is the same on all machines: its folder in the cache is named after the content.
        """
        found = {}
        for part in self.parts:
            state = part.path.stat()
            copied = is_s3(part.place)
            place = part.place if copied else part.path.resolve()
            found[part.path] = f"{place} {state.st_size} {part.path.parent.name if copied else state.st_mtime_ns}"
        return list(found.values())

    def release(self) -> None:
        """Release memory maps, and files that are not held; the next read opens them again."""
        self._arrays.clear()

    def blocks(self, rows: int = BLOCK_ROWS) -> Iterator[tuple[int, FloatArray]]:
        """Yield the first row number and the rows, (n, D) float32, block by block."""
        for start in range(0, len(self), rows):
            yield start, self[start : start + rows]

    def take(self, rows: NDArray[np.integer] | Sequence[int]) -> FloatArray:
        """Return rows in any order, with repetitions: (n, D) float32.

        Raises:
            IndexError: A row does not exist.
        """
        wanted = np.asarray(rows, dtype=np.int64)
        if wanted.size and (wanted.min() < 0 or wanted.max() >= len(self)):
            raise IndexError(f"rows {wanted.min()} to {wanted.max()} of {len(self)}")
        order = np.argsort(wanted, kind="stable")
        ordered = wanted[order]
        out = np.empty((len(wanted), self.shape[1]), np.float32)
        cost = max(_AROUND, 4 * self.shape[1])
        at_once = max(1, _MAPPED // cost)
        for first in range(0, len(wanted), at_once):
            some = ordered[first : first + at_once]
            self._count(len(some) * cost)
            for index, part in enumerate(self.parts):
                low, high = np.searchsorted(some, (part.start, part.start + part.rows))
                if low < high:
                    out[order[first + low : first + high]] = _gather(self._array(index), some[low:high] - part.start)
        if self.left_out is not None:
            out[self.left_out[wanted]] = np.nan
        return out

    def sample(self, count: int, rng: np.random.Generator) -> IntArray:
        """Return the numbers of at most `count` rows, drawn without replacement, in rising order."""
        if count >= len(self):
            return np.arange(len(self))
        return np.sort(rng.choice(len(self), count, replace=False))

    @property
    def provenance(self) -> dict[str, str]:
        """Attributes of the files: model_version, checkpoint_sha256, latent, image_size (pixels a side of a cutout)."""
        return self.parts[0].provenance

    def keys(self, rows: IntArray | None = None) -> "pd.DataFrame":
        """Return the keys of some rows, or of all: pp_file (without folder), pp_type (1 train, 0 valid) and pp_idx."""
        import pandas as pd

        files = list(dict.fromkeys(part.pp_file for part in self.parts))
        own = np.array([files.index(part.pp_file) for part in self.parts], np.int64)
        kinds = np.array([TYPES.get(part.partition, -1) for part in self.parts], np.int64)
        starts = np.array([part.start for part in self.parts], np.int64)
        if rows is None:
            part = np.repeat(np.arange(len(self.parts)), [part.rows for part in self.parts])
            rows = np.arange(len(self))
        else:
            part = np.searchsorted(starts, rows, side="right") - 1
        return pd.DataFrame(
            {
                "pp_file": pd.Series(files, dtype="str").array.take(own[part]),  # not fixed-width text
                "pp_type": kinds[part],
                "pp_idx": rows - starts[part],
            }
        )

    @property
    def columns(self) -> list[str]:
        """Names of what the files, or some of them, say of each row's mask; see `nenya.latents.clear`."""
        return [name for name in CLEAR_COLUMNS if any(name in part.columns for part in self.parts)]

    def clearness(self, rows: IntArray | None = None) -> dict[str, FloatArray]:
        """Return `columns` of some rows, or of all: name -> (n,); NaN where a file says nothing, and for row -1."""
        found = {name: self._column(name, known=True) for name in self.columns}
        if rows is None:
            return found
        return {name: np.where(rows < 0, np.float32(np.nan), values[rows]) for name, values in found.items()}

    def _column(self, name: str, *, known: bool = False) -> FloatArray:
        """Read a column of all files, (N,); with `known`, files without it have NaN."""
        out = np.full(len(self), np.nan, np.float32)
        for part in self.parts:
            if known and name not in part.columns:
                continue
            held = self._held.get(part.path)
            with contextlib.nullcontext(held[0]) if held else open_hdf5(part.path, links=self.links) as file:
                out[part.start : part.start + part.rows] = read_column(file, part.partition, name, part.rows)
        return out

    def join(self, table: "pd.DataFrame | Keys") -> Joined:
        """Join the rows of a table, or its keys, to their latents, as `nenya.tables.keys` says.

        Raises:
            InputFileError: A column is missing, no row of the table has a latent here, or names fit several files.
        """
        found = table if isinstance(table, Keys) else read_keys(table)
        return keys.join(found, [part.key() for part in self.parts])

    def positions(self, table: "pd.DataFrame") -> IntArray:
        """Return the number of the latent of each row of a table, (len(table),), -1 for none; log how many have none.

        Raises:
            InputFileError: See `join`.
        """
        joined = self.join(table)
        if joined.note:
            log.warning("%s", joined.note)
        return joined.number

    def full_table(self, table: "pd.DataFrame", *, own_names: bool = True) -> "pd.DataFrame":
        """Return a table of all latents: pp_file, pp_type, pp_idx, the other columns of a table, and `clearness`.

        Integers stay integers where rows are missing. If rows of the table repeat a latent, the first one counts.

        Args:
            table: of the cutouts.
            own_names: take `pp_file` from `keys`, not from the table.

        Raises:
            InputFileError: See `join`.
        """
        found = read_keys(table)
        joined = self.join(found)
        source = joined.first_rows(len(self))
        if joined.note:
            log.warning("%s%s", joined.note, ": the first one counts" if joined.repeated else "")
        if missing := int((source < 0).sum()):
            log.warning("%d of %d latents have no row in the table; their columns are empty", missing, len(self))
        whole = self.keys()
        if not own_names and found.names is not None:
            given = found.texts(source)
            whole["pp_file"] = whole["pp_file"].mask(source >= 0, given) if missing else given
        columns = table[[name for name in table if name not in COLUMNS and name not in self.columns]]
        for name, column in take_rows(columns, source).items():
            whole[name] = column
        return whole.assign(**self.clearness())

    def _count(self, nbytes: int) -> None:
        """Release the memory maps after a number of bytes, so that memory use does not grow with the files."""
        self._read += nbytes
        if self._read > _MAPPED:
            self.release()
            self._read = nbytes

    def _array(self, index: int) -> Any:
        """Return a partition as a memory map, or as the data set if it cannot be mapped."""
        found = self._arrays.get(index)  # another thread may release it in the meantime
        if found is None:
            part = self.parts[index]
            file, descriptor = self._held.get(part.path) or (open_hdf5(part.path, links=self.links), None)
            with part.path.open("rb") if descriptor is None else os.fdopen(os.dup(descriptor), "rb") as raw:
                found = map_floats(file, part.partition, raw)
            if found is None:
                found = file[part.partition]
            elif descriptor is None:
                file.close()
            self._arrays[index] = found
        return found

    def _check_one_model(self) -> None:
        for part in self.parts[1:]:
            first = self.parts[0]
            ours, others = (p.provenance.get("checkpoint_sha256") for p in (first, part))
            if ours and others and ours != others:
                raise InputFileError(
                    f"{part.path} and {first.path} were made with different weights ({others[:12]}, {ours[:12]}): "
                    "give latents of one model, as those of two cannot be compared"
                )


def open_latents(
    data: Any,
    cache_dir: str | None = None,
    partitions: Sequence[str] = PARTITIONS,
    *,
    allow_external: bool = False,
    least_cosine: float | None = None,
) -> Latents:
    """Open the latents files of `data=`: a path, folder, glob, s3:// address or a list.

    Args:
        data: see `nenya.storage.paths.find_latents`; objects of S3 are copied to `cache_dir` and kept there.
        cache_dir: of temporary copies; default `outputs/cache`.
        partitions: names of the data sets to read.
        allow_external: as of `Latents`.
        least_cosine: as of `Latents`.

    Raises:
        OptionError: Nothing is given.
        InputFileError: There are no files, or they cannot be used together.
        StorageError: An S3 service does not deliver them.
    """
    places = find_latents(data)
    return Latents(
        fetch(places, cache_dir), partitions, places, allow_external=allow_external, least_cosine=least_cosine
    )


def _gather(array: Any, rows: IntArray) -> FloatArray:
    """Return rising rows of a memory map or data set; HDF5 is read in slabs for speed."""
    if isinstance(array, np.ndarray):
        return np.asarray(array[rows])
    out = np.empty((len(rows), array.shape[1]), np.float32)
    first = 0
    while first < len(rows):
        start = int(rows[first])
        last = int(np.searchsorted(rows, start + BLOCK_ROWS))
        slab = array[start : int(rows[last - 1]) + 1]
        out[first:last] = slab[rows[first:last] - start]
        first = last
    return out


def _open(path: Path, links: Links) -> h5py.File:
    """Open a latents file; an error says that latents were expected."""
    try:
        return open_hdf5(path, links=links)
    except InputFileError as error:
        said = str(error).replace("an HDF5 file of cutouts", "a latents file, which nenya extract writes")
        raise InputFileError(said) from error


def _is_latents(file: h5py.File, name: str) -> bool:
    dataset = file.get(name)
    return isinstance(dataset, h5py.Dataset) and dataset.ndim == 2 and dataset.dtype.kind == "f"


def _text(path: Path, file: h5py.File, name: str) -> str:
    """Return an attribute that is a short text or a number."""
    text = str(file.attrs.one(name))
    if len(text) > _MOST_TEXT:
        raise InputFileError(f"{path}: attribute '{name}' has {len(text)} characters, expected at most {_MOST_TEXT}")
    return text


def _cutout_names(path: Path, source: str | None) -> tuple[str, ...]:
    """Return possible names of the cutout file of a latents file: the one stated in it, otherwise by its own name."""
    if source is None:
        return tuple(f"{key}.h5" for key in cutout_names(path.name))
    return (source,)
