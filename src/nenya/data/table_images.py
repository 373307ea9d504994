"""Cutouts of the rows of a table, read from the files named in it.

Letters: N rows of the table, H and W pixels of a cutout.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nenya.data.cutouts import inspect_cutouts
from nenya.data.masks import InputReader
from nenya.data.orientation import picture_text, read_row_order
from nenya.errors import InputFileError
from nenya.options.sections import LoaderOptions
from nenya.storage.paths import fetch, find_sources
from nenya.tables.key_columns import read_keys
from nenya.tables.keys import cutout_parts, join

if TYPE_CHECKING:
    import pandas as pd


def check_images(data: Any, loader: LoaderOptions) -> None:
    """Check that local cutout files can be read, before work that needs them at its end.

    Args:
        data: as of `TableImages`.
        loader: likewise.

    Raises:
        InputFileError: A file is missing or holds no cutouts.
    """
    names = (loader.train_key, loader.valid_key)
    for place in find_sources(data):
        if isinstance(place, Path):
            inspect_cutouts(place, names, allow_external=loader.allow_external)


class TableImages:
    """Cutouts by rows of a table; only requested cutouts are read.

    Args:
        data: cutout files: a path, folder, glob, s3:// address or a list.
        table: with pp_file, pp_type and pp_idx, as of `nenya.tables.keys`; without pp_file it is of the only file.
        loader: names of the partitions, and the folder of copies from S3.
        masked: what is read of masked pixels: as of `nenya.data.masks.InputReader`, without `mask`.

    Attributes:
        known: (N,) bool, rows whose cutout is in one of the files.
        note: number of rows without a cutout, and why; empty if all have one.

    Raises:
        InputFileError: A file cannot be used, the table lacks a column, or no row has a cutout here.
    """

    def __init__(
        self, data: Any, table: "pd.DataFrame", loader: LoaderOptions | None = None, masked: str = "nan"
    ) -> None:
        self._masked = masked
        loader = loader or LoaderOptions()
        names = (loader.train_key, loader.valid_key)
        places = find_sources(data)
        paths = fetch(places, loader.cache_dir)
        self._files = [inspect_cutouts(p, names, allow_external=loader.allow_external) for p in paths]
        self._parts = [(file, name) for file in self._files for name in file.partitions]
        self._keys = read_keys(table)
        rows = [{name: partition.rows for name, partition in file.partitions.items()} for file in self._files]
        parts = cutout_parts(zip(map(str, places), rows, strict=True), *names)
        self._starts = np.array([part.start for part in parts])
        joined = join(self._keys, parts, "cutout")
        self._number, self.note = joined.number, joined.note
        self.known: NDArray[np.bool_] = self._number >= 0

    def titled(self, title: str) -> str:
        """Return the title of a picture of cutouts, with a line on what is up if that is not north."""
        frame = picture_text(read_row_order(file.path) for file in self._files)
        return f"{title}\n{frame}" if frame else title

    def _name(self, row: int) -> str:
        names = self._keys.names
        return f"row {self._keys.row[row]} of {'the cutout file' if names is None else names[self._keys.file[row]]}"

    def read(self, rows: NDArray[np.integer] | Sequence[int]) -> NDArray[np.float32]:
        """Return the cutouts of known rows of the table, in their order: (n, H, W) float32, SSTa in K.

        Raises:
            InputFileError: A row has no cutout, cutouts differ in size, or a file is damaged.
        """
        rows = np.asarray(rows, np.int64)
        numbers = self._number[rows]
        if (numbers < 0).any():
            raise InputFileError(
                f"{self._name(rows[numbers < 0][0])} is not in {', '.join(f.path.name for f in self._files[:3])}: give "
                "the cutout files that the table's pp_file names"
            )
        parts = np.searchsorted(self._starts, numbers, side="right") - 1
        found: list[Any] = [None] * len(rows)
        for number in np.unique(parts):
            file, name = self._parts[number]
            places = np.flatnonzero(parts == number)
            with file.reader(name) as reader:
                wanted, back = np.unique(numbers[places] - self._starts[number], return_inverse=True)
                images = InputReader(reader, self._masked).read_rows(wanted)[back]
                for place, image in zip(places, images, strict=True):
                    found[place] = image[0]
        sizes = {image.shape for image in found}
        if len(sizes) > 1:
            raise InputFileError(f"expected cutouts of one size, got {sorted(sizes)}")
        return np.stack(found) if found else np.zeros((0, 0, 0), np.float32)
