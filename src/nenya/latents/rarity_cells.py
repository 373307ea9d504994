"""Neighbours of many latents, searched in the nearest cells of k-means instead of among all.

Letters: N latents of dimension D, C cells, k neighbours.
"""

import math
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nenya.errors import InputFileError, NenyaError, OutputError
from nenya.latents.fine_cells import assign_all, fit_fine_cells
from nenya.latents.kept_answers import KeptAnswers, in_pieces
from nenya.latents.nearest import QUERY_ROWS, Identity, Nearest, as_unit
from nenya.runtime.blas import in_order
from nenya.storage.disk import temporary_folder
from nenya.storage.paths import scratch_folder

Float64Array = NDArray[np.float64]
Float32Array = NDArray[np.float32]
IntArray = NDArray[np.int64]

ANSWER = "rarity"
"""Name of the kept answers."""

_CELLS = "cells"  # name of the kept cell of each row
_CELL_ROWS = 250
"""Mean rows of a cell; few rows have as many cells as the square root of their number."""

_LEADING = 64
"""Numbers of each turned row that are compared with all others; the best are compared in full."""

_WRITE_BYTES = 2**28  # of rows written at once: the more, the more rows of a cell lie side by side
_READ_BYTES = 2**29  # of cells that stay in memory: those near a cell are often near the next one
_NEAR_ROWS = 256  # cells whose distances are in memory at once
_LOOKED_AT = 4  # times the probes: nearest cells that are sorted
_LEAST_CHECKED = 20
_KEPT_ROWS = 20_000  # rows after which the answers are kept


class Cells:
    """Latents at unit length in a file, cell by cell, so that a cell is read at once.

    Args:
        path: of the new file.
        latents: (N, D).
        label: (N,) the cell of each, -1 for none.
        near: of each cell those in which the neighbours of its rows are searched, its own first.
        turn: (D, D) float32, orthogonal, by which rows are turned so that their first numbers hold most of their
            length.

    Attributes:
        members: of each cell, the rows in rising order.

    Raises:
        OutputError: The file cannot be written.
    """

    def __init__(self, path: Path, latents: Any, label: IntArray, near: list[IntArray], turn: Float32Array) -> None:
        order = np.argsort(label, kind="stable")[(label < 0).sum() :]
        sizes = np.bincount(label[order], minlength=len(near))
        self.members, self.near, self._width = np.split(order, np.cumsum(sizes)[:-1]), near, latents.shape[1]
        self._starts = np.concatenate([[0], np.cumsum(sizes)])
        self._path, self._turn = path, turn
        self._held: OrderedDict[int, Float32Array] = OrderedDict()  # of several threads
        self._lock = threading.Lock()
        self._held_bytes = 0
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
            size = max(1, _WRITE_BYTES // row_bytes)
            for start in range(0, len(latents), size):
                own = label[start : start + size]
                order = np.argsort(own, kind="stable")[(own < 0).sum() :]
                rows = as_unit(np.asarray(latents[start : start + size])) @ self._turn
                cells, first = np.unique(own[order], return_index=True)
                for cell, low, high in zip(cells, first, [*first[1:], len(order)], strict=True):
                    os.pwrite(file.fileno(), rows[order[low:high]].tobytes(), int(written[cell]) * row_bytes)
                    written[cell] += high - low

    def around(self, cell: int) -> tuple[IntArray, Float32Array]:
        """Return the rows in which the neighbours of a cell's rows are searched: their numbers, and themselves."""
        near = self.near[cell]
        return np.concatenate([self.members[other] for other in near]), np.concatenate([*map(self._read, near)])

    def _read(self, cell: int) -> Float32Array:
        """Return the rows of a cell, (n, D); those of the last cells are kept."""
        with self._lock:
            if cell in self._held:
                self._held.move_to_end(cell)
                return self._held[cell]
        count = len(self.members[cell]) * self._width
        with self._path.open("rb") as file:
            file.seek(4 * self._width * int(self._starts[cell]))
            values = np.fromfile(file, np.float32, count).reshape(-1, self._width)
        with self._lock:
            if cell not in self._held:
                self._held[cell] = values
                self._held_bytes += values.nbytes
            while self._held_bytes > _READ_BYTES and len(self._held) > 1:
                self._held_bytes -= self._held.popitem(last=False)[1].nbytes
        return values


@contextmanager
def cells_of(
    latents: Any, good: IntArray, probes: int, seed: int, kept: KeptAnswers, cache_dir: str | None
) -> Iterator[Cells]:
    """Divide latents into cells of about `_CELL_ROWS` rows, or fewer if there are few rows.

    Args:
        latents: (N, D).
        good: rows that have a direction.
        probes: number of cells in which neighbours are searched; where they are large, fewer of as many rows.
        seed: of the cells.
        kept: answers of an interrupted run; the cells are added.
        cache_dir: folder of the temporary file; default that of the system.
    """
    with temporary_folder("nenya-cells-", scratch_folder(cache_dir) if cache_dir else None) as folder:
        yield Cells(folder / "latents", latents, *_divided(latents, good, probes, seed, kept))


def _divided(
    latents: Any, good: IntArray, probes: int, seed: int, kept: KeptAnswers
) -> tuple[IntArray, list[IntArray], Float32Array]:
    """Return the cell of each row, (N,) with -1 for none, the cells near each, and the turn of rows; see `cells_of`."""
    count = _cell_count(len(good))
    centres, labels = np.empty((count, latents.shape[1])), np.empty(len(latents))
    turn = np.eye(latents.shape[1])
    arrays = {"centres": centres, _CELLS: labels, "turn": turn}
    with kept.alone("cells"):
        if not all(kept.take_numbers(name, values) for name, values in arrays.items()):
            fine = fit_fine_cells(latents, count, seed)
            centres[:], labels[:], turn[:] = fine.centres, assign_all(latents, fine), fine.turn
            for name, values in arrays.items():
                kept.keep_numbers(name, values)
    label = np.full(len(latents), -1, np.int64)
    label[good] = labels[good].astype(np.int64)
    near = _nearest_cells(centres, np.bincount(label[good], minlength=count), probes)
    return label, near, turn.astype(np.float32)


def _cell_count(rows: int) -> int:
    """Return the number of cells of so many rows."""
    return max(1, math.isqrt(rows), round(rows / _CELL_ROWS))


def kept_pieces(rows: int, good: IntArray, kept: KeptAnswers) -> list[int]:
    """Return the number of rows of each piece of `distances_in_cells`, from the cells that were kept.

    Args:
        rows: N.
        good: rows that have a direction.
        kept: answers of shards.

    Returns:
        Empty if the cells are missing.
    """
    labels = np.empty(rows)
    if not kept.take_numbers(_CELLS, labels):
        return []
    sizes = np.bincount(labels[good].astype(np.int64), minlength=_cell_count(len(good)))
    return [int(sizes[group].sum()) for group in _pieces(sizes)]


def _nearest_cells(centres: Float64Array, sizes: IntArray, probes: int) -> list[IntArray]:
    """Return of each cell the nearest ones, itself first, that hold as many rows as `probes` cells do on average.

    The cells of k-means are of very unequal sizes where latents form clusters; a number of cells would be any number of
    rows.
    """
    lengths, wanted = (centres**2).sum(axis=1), min(probes * sizes.mean(), sizes.sum())

    def work(start: int) -> list[IntArray]:
        some = centres[start : start + _NEAR_ROWS]
        squares = lengths - 2 * some @ centres.T
        squares[np.arange(len(some)), start + np.arange(len(some))] = -np.inf  # its own first
        return [_first_cells(own, sizes, wanted, _LOOKED_AT * probes) for own in squares]

    found = in_order(work, range(0, len(centres), _NEAR_ROWS))
    return [near for some in found for near in some]


def _first_cells(squares: Float64Array, sizes: IntArray, wanted: float, count: int) -> IntArray:
    """Return the nearest cells that hold a number of rows, looked for among the `count` nearest, or more if needed."""
    near = np.argpartition(squares, count)[:count] if count < len(squares) else np.arange(len(squares))
    near = near[np.lexsort((near, squares[near]))]
    rows = np.cumsum(sizes[near])
    if rows[-1] < wanted:
        return _first_cells(squares, sizes, wanted, 4 * count)
    return np.asarray(near[: int(np.searchsorted(rows, wanted)) + 1].copy(), np.int64)


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

    return in_pieces(pieces, len(identity.number), work, kept, name=ANSWER, visible=visible)


def _of_cell(cells: Cells, cell: int, identity: Identity, k: int) -> Float64Array:
    own = cells.members[cell]
    if not len(own):
        return np.empty(0)
    rows, units = cells.around(cell)  # the cell's own rows are the first
    reference = Nearest(units, identity.take(rows), _LEADING)
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
        checked: (n,) rows with a known exact rarity.
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
