"""Latents files as one long array: read in blocks, row by row, and joined to the rows of a table.

Letters in shapes: N rows of all files together, D the length of a latent.
"""

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

from nenya.data.files import fetch, find_latents
from nenya.data.hdf5_links import Links
from nenya.data.hdf5_open import list_datasets, map_floats, open_hdf5
from nenya.errors import InputFileError

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]

PARTITIONS = ("train", "valid")
BLOCK_ROWS = 16384
_MAPPED = 2**29  # bytes of mapped files that stay in this process; the system keeps what it likes of them
_AROUND = 2**16  # bytes that the system maps around one that is read
_TYPES = {"train": 1, "valid": 0}
_PROVENANCE = ("model_version", "checkpoint_sha256", "latent", "image_size")


@dataclass(frozen=True)
class Part:
    """A partition of a latents file.

    Attributes:
        path: the file.
        pp_file: name of its cutout file, without folder.
        partition: `train` or `valid`.
        start: its first row among all.
        rows: how many it has.
        provenance: what the file says of how it was made.
    """

    path: Path
    pp_file: str
    partition: str
    start: int
    rows: int
    provenance: dict[str, str]

    @property
    def stem(self) -> str:
        """Name of the cutout file without its suffix, by which tables are joined."""
        return Path(self.pp_file).stem


class Latents:
    """The rows of latents files: of each file `train`, then `valid`.

    It has `shape`, `ndim`, a length and slices as an array has, and keeps nothing in memory. Rows of cutouts with
    missing pixels are NaN. Contiguous float32 data sets, which nenya writes, are mapped into memory.

    Args:
        paths: local latents files, in the order of their rows.
        partitions: which of their data sets; a name or several.
        allow_external: whether links, virtual data sets and external storage may lead out of a file's folder.

    Attributes:
        parts: partitions of all files, in the order of their rows.
        shape: (N, D).
        links: where links may lead, and data lie.

    Raises:
        InputFileError: A file does not open, has no latents, or latents of another length or other weights.
    """

    ndim = 2
    dtype = np.dtype(np.float32)

    def __init__(
        self, paths: Sequence[Path], partitions: Sequence[str] = PARTITIONS, *, allow_external: bool = False
    ) -> None:
        self.links: Links = "any" if allow_external else "folder"
        partitions = (partitions,) if isinstance(partitions, str) else partitions
        self.parts: list[Part] = []
        dim = start = 0
        for path in paths:
            with _open(path, self.links) as file:
                found = [name for name in partitions if _is_latents(file, name)]
                if not found:
                    raise InputFileError(
                        f"{path}: no data set of latents (N, D) named {' or '.join(partitions)}; it has "
                        f"{list_datasets(file)}"
                    )
                provenance = {name: str(file.attrs[name]) for name in _PROVENANCE if name in file.attrs}
                pp_file = Path(str(file.attrs.get("source", _without_suffix(path)))).name
                for name in found:
                    rows, width = file[name].shape
                    if dim not in (0, width):
                        raise InputFileError(f"{path}: latents of length {width}, those before have {dim}: one model")
                    dim = width
                    self.parts.append(Part(path, pp_file, name, start, rows, provenance))
                    start += rows
        self.shape = (start, dim)
        self._check_one_model()
        self._arrays: dict[int, Any] = {}
        self._held: dict[Path, tuple[h5py.File, int]] = {}
        self._read = 0

    def __len__(self) -> int:
        return self.shape[0]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_arrays": {}, "_held": {}}

    def __getitem__(self, rows: slice) -> FloatArray:
        """Return consecutive rows, (n, D) float32."""
        start, stop, step = rows.indices(len(self))
        if step != 1:
            raise ValueError("only consecutive rows are read by a slice; take(rows) reads any")
        out = np.empty((max(0, stop - start), self.shape[1]), np.float32)
        self._count(out.nbytes)
        for index, part in enumerate(self.parts):
            low, high = max(start, part.start), min(stop, part.start + part.rows)
            if low < high:
                out[low - start : high - start] = self._array(index)[low - part.start : high - part.start]
        return out

    def view(self, rows: slice) -> Iterator[FloatArray]:
        """Yield consecutive rows piece by piece, (n, D) float32, without a copy where a file is mapped into memory."""
        start, stop, _ = rows.indices(len(self))
        self._count(max(0, stop - start) * 4 * self.shape[1])
        for index, part in enumerate(self.parts):
            low, high = max(start, part.start), min(stop, part.start + part.rows)
            if low < high:
                yield np.asarray(self._array(index)[low - part.start : high - part.start], np.float32)

    def hold(self) -> None:
        """Open all files and keep them open, so that files that replace them later are not read."""
        for path in dict.fromkeys(part.path for part in self.parts):
            if path not in self._held:
                descriptor = os.open(path, os.O_RDONLY)
                weakref.finalize(self, os.close, descriptor)
                self._held[path] = open_hdf5(path, links=self.links), descriptor

    def release(self) -> None:
        """Let go of the maps, and of files that are not held; the next read opens them again."""
        self._arrays.clear()

    def blocks(self, rows: int = BLOCK_ROWS) -> Iterator[tuple[int, FloatArray]]:
        """Yield the first row and the rows, (n, D) float32, of one block after the other."""
        for start in range(0, len(self), rows):
            yield start, self[start : start + rows]

    def take(self, rows: NDArray[np.integer] | Sequence[int]) -> FloatArray:
        """Return rows in any order, also several times: (n, D) float32.

        Raises:
            IndexError: There is no such row.
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
        return out

    def sample(self, count: int, rng: np.random.Generator) -> IntArray:
        """Return the numbers of at most `count` rows, drawn without repetition, in rising order."""
        if count >= len(self):
            return np.arange(len(self))
        return np.sort(rng.choice(len(self), count, replace=False))

    @property
    def provenance(self) -> dict[str, str]:
        """What the files say: model_version, checkpoint_sha256, latent, image_size (pixels a side of a cutout)."""
        return self.parts[0].provenance

    def keys(self) -> "pd.DataFrame":
        """Return the table of all rows: pp_file (name of the cutout file), pp_type (1 train, 0 valid), pp_idx."""
        import pandas as pd

        files = list(dict.fromkeys(p.pp_file for p in self.parts))
        codes = np.repeat([files.index(p.pp_file) for p in self.parts], [p.rows for p in self.parts])
        return pd.DataFrame(
            {
                "pp_file": pd.Categorical.from_codes(codes, files).astype("str"),  # without texts of a fixed width
                "pp_type": np.repeat([_TYPES.get(p.partition, -1) for p in self.parts], [p.rows for p in self.parts]),
                "pp_idx": np.concatenate([np.arange(p.rows) for p in self.parts]),
            }
        )

    def positions(self, table: "pd.DataFrame") -> IntArray:
        """Return for each row of a table the number of its latent, (len(table),), -1 where there is none.

        Rows are joined by the name of `pp_file` (folder and suffix do not count), `pp_type` (older tables:
        `ulmo_pp_type`; 1 train, 0 valid) and `pp_idx`. A table without `pp_file` is of the only file.

        Raises:
            InputFileError: A column is missing, or not one row of the table has a latent here.
        """
        kind = next((name for name in ("pp_type", "ulmo_pp_type") if name in table), None)
        if kind is None or "pp_idx" not in table:
            raise InputFileError(
                f"the table has the columns {', '.join(map(str, table.columns))}; pp_file, pp_type and pp_idx "
                "are wanted, which join it to the latents"
            )
        stems = {part.stem for part in self.parts}
        if "pp_file" in table:
            names = table["pp_file"].astype("category")
            stem_of = {name: Path(str(name)).stem for name in names.cat.categories}
            own = names.cat.codes.to_numpy()
        elif len(stems) == 1:
            stem_of, own = {"": next(iter(stems))}, np.zeros(len(table), np.int8)
            names = None
        else:
            raise InputFileError(f"the table has no column pp_file, and the latents are of {len(stems)} files")
        codes = {name: i for i, name in enumerate(names.cat.categories if names is not None else [""])}
        types, rows = table[kind].to_numpy(), table["pp_idx"].to_numpy()
        found = np.full(len(table), -1, np.int64)
        for part in self.parts:
            for name, code in codes.items():
                if stem_of[name] == part.stem:
                    mine = (own == code) & (types == _TYPES.get(part.partition, -1)) & (rows >= 0) & (rows < part.rows)
                    found[mine] = part.start + rows[mine]
        if len(table) and (found < 0).all():
            raise InputFileError(
                f"no row of the table has a latent: its pp_file are {_some(sorted(set(stem_of.values())))}, the "
                f"latents are of {_some(sorted(stems))}: give the latents of the table's cutout files"
            )
        return found

    def _count(self, nbytes: int) -> None:
        """Let go of the maps once so many bytes were read through them, so that memory does not grow with the files."""
        self._read += nbytes
        if self._read > _MAPPED:
            self.release()
            self._read = nbytes

    def _array(self, index: int) -> Any:
        """Return a partition as a memory map, or as the data set where that cannot be."""
        found = self._arrays.get(index)  # another thread may let go of it meanwhile
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
                    f"{part.path} and {first.path} are of different weights ({others[:12]}, {ours[:12]}): "
                    "latents of two models cannot be compared"
                )


def open_latents(
    data: Any,
    cache_dir: str | None = None,
    partitions: Sequence[str] = PARTITIONS,
    *,
    allow_external: bool = False,
) -> Latents:
    """Open the latents files that `data=` stands for: a path, folder, glob, s3:// address or a list.

    Args:
        data: see `nenya.data.files.find_latents`; objects of S3 are copied to `cache_dir` and kept there.
        cache_dir: of temporary copies; default `outputs/cache`.
        partitions: which data sets.
        allow_external: as of `Latents`.

    Raises:
        OptionError: Nothing is given.
        InputFileError: There are none, or they cannot be used together.
        StorageError: An S3 service does not give them.
    """
    return Latents(fetch(find_latents(data), cache_dir), partitions, allow_external=allow_external)


def _gather(array: Any, rows: IntArray) -> FloatArray:
    """Return rising rows of a memory map or data set, which HDF5 reads quickly only in slabs."""
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
    """Open a latents file, and say what was wanted where it is none."""
    try:
        return open_hdf5(path, links=links)
    except InputFileError as error:
        said = str(error).replace("an HDF5 file of cutouts", "a latents file, which nenya extract writes")
        raise InputFileError(said) from error


def _is_latents(file: h5py.File, name: str) -> bool:
    dataset = file.get(name)
    return isinstance(dataset, h5py.Dataset) and dataset.ndim == 2 and dataset.dtype.kind == "f"


def _without_suffix(path: Path) -> str:
    return path.stem.removesuffix("_debug").removesuffix("_latents") + ".h5"


def _some(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
