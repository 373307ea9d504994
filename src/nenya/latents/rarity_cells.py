"""Neighbours of many latents, searched in the nearest cells of k-means instead of among all.

Letters: N latents of dimension D, C cells, k neighbours.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nenya.errors import InputFileError, NenyaError, OutputError
from nenya.latents.clusters import assign_kmeans, fit_kmeans
from nenya.latents.kept_answers import KeptAnswers, in_pieces
from nenya.latents.nearest import QUERY_ROWS, Identity, Nearest, as_unit
from nenya.storage.disk import temporary_folder
from nenya.storage.paths import scratch_folder

Float64Array = NDArray[np.float64]
Float32Array = NDArray[np.float32]
IntArray = NDArray[np.int64]

_BLOCK_ROWS = 16384
_LEAST_CHECKED = 20
_KEPT_ROWS = 20_000  # rows after which the answers are kept


class Cells:
    """Latents at unit length in a file, cell by cell, so that a cell is read at once.

    Args:
        path: of the new file.
        latents: (N, D).
        label: (N,) the cell of each, -1 for none.
        near: of each cell those in which the neighbours of its rows are searched, its own first.

    Attributes:
        members: of each cell, the rows in rising order.

    Raises:
        OutputError: The file cannot be written.
    """

    def __init__(self, path: Path, latents: Any, label: IntArray, near: list[IntArray]) -> None:
        order = np.argsort(label, kind="stable")[(label < 0).sum() :]
        sizes = np.bincount(label[order], minlength=len(near))
        self.members, self.near, self._width = np.split(order, np.cumsum(sizes)[:-1]), near, latents.shape[1]
        self._starts = np.concatenate([[0], np.cumsum(sizes)])
        self._path = path
        try:
            self._write(latents, label)
        except NenyaError:
            raise
        except OSError as error:
            raise OutputError(
                f"cannot write {path}: {error.strerror or error}: {4 * self._width * len(order) / 1e9:.1f} GB of "
                "space for temporary files are needed; set loader.cache_dir, or TMPDIR for the system's folder"
            ) from error

    def _write(self, latents: Any, label: IntArray) -> None:
        """Write each row at its place; rows of a block that are of one cell lie side by side."""
        row_bytes, written = 4 * self._width, self._starts[:-1].copy()
        with self._path.open("wb") as file:
            if self._starts[-1]:
                os.posix_fallocate(file.fileno(), 0, row_bytes * int(self._starts[-1]))
            for start in range(0, len(latents), _BLOCK_ROWS):
                own = label[start : start + _BLOCK_ROWS]
                order = np.argsort(own, kind="stable")[(own < 0).sum() :]
                rows = as_unit(np.asarray(latents[start : start + _BLOCK_ROWS]))[order]
                cells, first = np.unique(own[order], return_index=True)
                for cell, low, high in zip(cells, first, [*first[1:], len(order)], strict=True):
                    os.pwrite(file.fileno(), rows[low:high].tobytes(), int(written[cell]) * row_bytes)
                    written[cell] += high - low

    def around(self, cell: int) -> tuple[IntArray, Float32Array]:
        """Return the rows in which the neighbours of a cell's rows are searched: their numbers, and themselves."""
        parts = [self.members[other] for other in self.near[cell]]
        rows, at = np.empty((sum(map(len, parts)), self._width), np.float32), 0
        with self._path.open("rb") as file:
            for other, part in zip(self.near[cell], parts, strict=True):
                file.seek(4 * self._width * int(self._starts[other]))
                values = np.fromfile(file, np.float32, len(part) * self._width)
                rows[at : at + len(part)] = values.reshape(len(part), self._width)
                at += len(part)
        return np.concatenate(parts), rows


@contextmanager
def cells_of(
    latents: Any, good: IntArray, probes: int, seed: int, kept: KeptAnswers, cache_dir: str | None
) -> Iterator[Cells]:
    """Divide latents into about as many cells as the square root of their number.

    Args:
        latents: (N, D).
        good: rows that have a direction.
        probes: number of cells in which neighbours are searched; where they are large, fewer of as many rows.
        seed: of the cells.
        kept: answers of an interrupted run; the cells are added.
        cache_dir: folder of the temporary file; default that of the system.
    """
    count = max(1, round(len(good) ** 0.5))
    centres, labels = np.empty((count, latents.shape[1])), np.empty(len(latents))
    with kept.alone("cells"):
        if not (kept.take_numbers("centres", centres) and kept.take_numbers("cells", labels)):
            centres = fit_kmeans(latents, count, seed=seed, passes=1)
            labels[:] = assign_kmeans(latents, centres)
            kept.keep_numbers("centres", centres)
            kept.keep_numbers("cells", labels)
    label = np.full(len(latents), -1, np.int64)
    label[good] = labels[good].astype(np.int64)
    near = _nearest_cells(centres, np.bincount(label[good], minlength=count), probes)
    with temporary_folder("nenya-cells-", scratch_folder(cache_dir) if cache_dir else None) as folder:
        yield Cells(folder / "latents", latents, label, near)


def _nearest_cells(centres: Float64Array, sizes: IntArray, probes: int) -> list[IntArray]:
    """Return of each cell the nearest ones, itself first, that hold as many rows as `probes` cells do on average.

    The cells of k-means are of very unequal sizes where latents form clusters; a number of cells would be any number of
    rows.
    """
    order = np.argsort(_squares(centres), axis=1, kind="stable")
    rows = np.cumsum(sizes[order], axis=1)
    count = (rows < probes * sizes.mean()).sum(axis=1) + 1
    return [own[:number] for own, number in zip(order, count, strict=True)]


def _squares(centres: Float64Array) -> Float64Array:
    """Return the squared distances of all pairs, (C, C), with a row's own first."""
    found: Float64Array = (centres**2).sum(axis=1) - 2 * centres @ centres.T
    np.fill_diagonal(found, -np.inf)
    return found


def distances_in_cells(cells: Cells, identity: Identity, k: int, kept: KeptAnswers, visible: bool) -> Float64Array:
    """Return the mean cosine distance of each row to its k nearest allowed rows in the nearest cells, (N,).

    Args:
        cells: of the rows.
        identity: of the N rows.
        k: neighbours.
        kept: answers of an interrupted run, which are taken; those found here are added.
        visible: whether progress is shown.

    Returns:
        (N,), NaN for rows in no cell, or with fewer than k allowed rows there.
    """
    groups = _pieces(np.array([len(own) for own in cells.members]))
    pieces = [np.concatenate([cells.members[cell] for cell in group]) for group in groups]

    def work(number: int) -> Float64Array:
        return np.concatenate([_of_cell(cells, cell, identity, k) for cell in groups[number]])

    return in_pieces(pieces, len(identity.number), work, kept, name="rarity", visible=visible)


def _of_cell(cells: Cells, cell: int, identity: Identity, k: int) -> Float64Array:
    own = cells.members[cell]
    if not len(own):
        return np.empty(0)
    rows, units = cells.around(cell)  # the cell's own rows are the first
    reference = Nearest(units, identity.take(rows))
    return np.concatenate([
        mean_distance(reference, units[start : min(start + QUERY_ROWS, len(own))],
                      identity.take(own[start : start + QUERY_ROWS]), k)
        for start in range(0, len(own), QUERY_ROWS)
    ])  # fmt: skip


def _pieces(sizes: IntArray) -> list[IntArray]:
    """Return the cells in pieces of about as many rows."""
    return np.split(np.arange(len(sizes)), np.flatnonzero(np.diff(np.cumsum(sizes) // _KEPT_ROWS)) + 1)


def mean_distance(reference: Nearest, queries: Float32Array, identity: Identity, k: int) -> Float64Array:
    """Return the mean cosine distance of queries to their k nearest allowed rows, (Q,), NaN with fewer."""
    found: Float64Array = 1 - reference.search(queries, identity, k)[0].mean(axis=1)
    return found


def calibrated(rarity: Float64Array, checked: IntArray, true: Float64Array) -> tuple[Float64Array, float, float]:
    """Return rarities without bias, (N,), their relative error and the rank correlation with the exact ones.

    Args:
        rarity: (N,) from the nearest cells.
        checked: (n,) rows of which the exact rarity is known.
        true: (n,) it.

    Raises:
        InputFileError: Too few of them have one.
    """
    from scipy.stats import spearmanr

    known = np.isfinite(true) & (true > 0) & (rarity[checked] > 0)
    if known.sum() < _LEAST_CHECKED:
        raise InputFileError(
            f"expected at least {_LEAST_CHECKED} latents with k neighbours elsewhere to measure the error, got "
            f"{known.sum()}: lower k=, or give exact=true"
        )
    x, y = np.log(rarity[checked][known]), np.log(true[known])
    if np.abs(x - y).max() < 1e-9:  # no neighbour was missed
        return rarity, 0.0, 1.0
    slope, level = np.polyfit(x, y, 1) if np.ptp(x) > 0 else (1.0, float((y - x).mean()))
    slope = max(float(slope), 1e-3)  # the order of the rows stays
    level = float((y - slope * x).mean())
    error = float(np.sqrt(((y - slope * x - level) ** 2).sum() / max(1, len(x) - 2)))
    fitted = np.exp(level + slope * np.log(np.maximum(rarity, 1e-12)))
    return np.asarray(fitted, np.float64), error, float(spearmanr(x, y).statistic)
