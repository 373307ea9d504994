"""Cutouts of the rows of a table, read from the files that it names.

Letters: N rows of the table, H and W pixels of a cutout.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nenya.data.cutouts import inspect_cutouts
from nenya.data.files import fetch, find_sources
from nenya.errors import InputFileError
from nenya.options import LoaderOptions

if TYPE_CHECKING:
    import pandas as pd


class TableImages:
    """Cutouts by the rows of a table; nothing is read but what is asked for.

    Args:
        data: cutout files: a path, folder, glob, s3:// address or a list.
        table: with pp_file (its folder does not count), pp_type (older: ulmo_pp_type; 1 train, 0 valid) and pp_idx.
            A table without pp_file is of the only file.
        loader: names of the partitions, and the folder of copies from S3; by default the usual ones.

    Attributes:
        known: (N,) bool, rows whose cutout is in one of the files.

    Raises:
        InputFileError: A file cannot be used, the table lacks a column, or no row has a cutout here.
    """

    def __init__(self, data: Any, table: "pd.DataFrame", loader: LoaderOptions | None = None) -> None:
        loader = loader or LoaderOptions()
        names = {1: loader.train_key, 0: loader.valid_key}
        paths = fetch(find_sources(data), loader.cache_dir)
        self._files = [inspect_cutouts(p, tuple(names.values()), allow_external=loader.allow_external) for p in paths]
        kind = next((name for name in ("pp_type", "ulmo_pp_type") if name in table), None)
        if kind is None or "pp_idx" not in table or ("pp_file" not in table and len(paths) > 1):
            raise InputFileError(
                f"the table has the columns {', '.join(map(str, table.columns))}; pp_file, pp_type and pp_idx are "
                "wanted, which join it to the cutouts"
            )
        self._rows = table["pp_idx"].to_numpy()
        self._table_files = table["pp_file"] if "pp_file" in table else None
        self._parts = [(file, name) for file in self._files for name in file.partitions]
        self._part = np.full(len(table), -1, np.int64)
        types = table[kind].to_numpy()
        stems = {name: Path(str(name)).stem for name in table["pp_file"].unique()} if "pp_file" in table else {}
        for number, (file, name) in enumerate(self._parts):
            mine = np.ones(len(table), bool)
            if stems:
                mine = table["pp_file"].isin([n for n, stem in stems.items() if stem == file.path.stem]).to_numpy(bool)
            mine = mine & np.isin(types, [value for value, key in names.items() if key == name])
            self._part[mine & (self._rows >= 0) & (self._rows < file.partitions[name].rows)] = number
        self.known: NDArray[np.bool_] = self._part >= 0
        if not self.known.any():
            raise InputFileError(
                f"no row of the table has a cutout in {', '.join(str(path) for path in paths[:3])}: give the cutout "
                "files that its pp_file names"
            )

    def _names(self, row: int) -> str:
        own = "the cutout file" if self._table_files is None else self._table_files.iloc[row]
        return f"row {self._rows[row]} of {own}"

    def read(self, rows: NDArray[np.integer] | Sequence[int]) -> NDArray[np.float32]:
        """Return the cutouts of known rows of the table, in their order: (n, H, W) float32, SSTa in K.

        Raises:
            InputFileError: A row has no cutout, cutouts differ in size, or a file is damaged.
        """
        rows = np.asarray(rows, np.int64)
        parts = self._part[rows]
        if (parts < 0).any():
            raise InputFileError(
                f"{self._names(rows[parts < 0][0])} is not in {', '.join(f.path.name for f in self._files[:3])}: give "
                "the cutout files that the table's pp_file names"
            )
        found: list[Any] = [None] * len(rows)
        for number in np.unique(parts):
            file, name = self._parts[number]
            places = np.flatnonzero(parts == number)
            with file.reader(name) as reader:
                wanted, back = np.unique(self._rows[rows[places]], return_inverse=True)
                for place, image in zip(places, reader.read_rows(wanted)[back], strict=True):
                    found[place] = image[0]
        sizes = {image.shape for image in found}
        if len(sizes) > 1:
            raise InputFileError(f"cutouts of the sizes {sorted(sizes)}: wanted files of one size")
        return np.stack(found) if found else np.zeros((0, 0, 0), np.float32)
