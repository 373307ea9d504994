"""Exact search by cosine, directly on latents: one pass in float32, the closest ranked again in float64.

The latents are streamed from files, also through a GPU. Many queries against rows in memory are served by
`nenya.latents.neighbours`, by the same principle, but compiled: ten times as fast there, while loading the compiler
would slow down the start of a search.

Letters in shapes: N rows, D the length of a latent, Q queries, k rows for each query.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nenya.errors import InputFileError, OptionError
from nenya.runtime.blas import in_order
from nenya.runtime.process import cores

IntArray = NDArray[np.int64]
Float32Array = NDArray[np.float32]
Float64Array = NDArray[np.float64]
Scan = Callable[[], Iterator[tuple[IntArray, Float32Array]]]

BLOCK_ROWS = 4096
UNLIKE_WEIGHT = 0.5
"""Weight of negative examples relative to positive ones."""

_QUERIES = 64  # in one pass: a block has _QUERIES * BLOCK_ROWS scores
_THREADS = 8
_GPU_ROWS = 2**18
_MARGIN = 64  # rows beyond k kept in the float32 pass
_SPARSE = 8  # with at most one allowed row in this many, rows are fetched, not scanned
_TF32 = 2e-3  # error of a cosine on a GPU that may round factors to ten bits


class Rows(Protocol):
    """Rows to search: `nenya.latents.files.Latents`, or any object with a length, slices and `take`."""

    shape: tuple[int, int]

    def __len__(self) -> int: ...
    def __getitem__(self, rows: slice) -> Float32Array: ...
    def take(self, rows: Any) -> Float32Array:
        """Return rows in any order."""
        ...


@dataclass(frozen=True)
class Closest:
    """The rows closest to each query, closest first; ties by row number.

    Attributes:
        rows: (Q, k) int64, -1 where there are fewer than k.
        cosine: (Q, k) float64, NaN there.
    """

    rows: IntArray
    cosine: Float64Array


def closest(
    latents: "Rows | NDArray[np.floating]",
    queries: ArrayLike,
    k: int = 10,
    *,
    allowed: NDArray[np.bool_] | None = None,
    block_rows: int | None = None,
    threads: int | None = None,
    device: str = "cpu",
    tick: Callable[[float], None] = lambda _: None,
) -> Closest:
    """Find the k rows with the largest cosine to each query, exactly as in float64 over all rows.

    Rows with NaN and zero rows have no direction and are never found.

    Args:
        latents: (N, D), of any norm, taken as float32; `nenya.latents.files.Latents` stay on disk.
        queries: (Q, D) or (D,).
        k: rows for each query.
        allowed: (N,), mask of rows that may be found; default all.
        block_rows: rows at a time; default 4096, on a GPU 262,144. It affects only memory and speed.
        threads: of a CPU; default one per core, at most 8, and one for few rows. They affect only speed.
        device: "cpu" or "cuda": where the float32 pass is computed.
        tick: called with the share of rows that is done; an error raised in it ends the search.

    Raises:
        OptionError: `k` < 1, or the device is not available.
        InputFileError: A query is not finite, is zero, or differs in length from the latents.

    Examples:
        >>> import numpy as np
        >>> latents = np.eye(4, dtype=np.float32)
        >>> found = closest(latents, latents[2] + 0.1 * latents[0], k=2)
        >>> found.rows.tolist()
        [[2, 0]]
    """
    source = (
        latents if hasattr(latents, "take") and not isinstance(latents, np.ndarray) else _Array(np.asarray(latents))
    )
    size = block_rows or (BLOCK_ROWS if device == "cpu" else _GPU_ROWS)
    if threads is None and len(source) < BLOCK_ROWS:  # a pool of threads takes longer to start
        threads = 1

    def scan() -> Iterator[tuple[IntArray, Float32Array]]:
        for numbers, rows in _blocks(source, allowed, size):
            tick(numbers[-1] / len(source) if len(numbers) else 0.0)
            yield numbers, rows

    return closest_of(scan, source.take, queries, k, threads=threads, device=device)


def closest_of(
    scan: Scan,
    take: Callable[[IntArray], NDArray[np.floating]],
    queries: ArrayLike,
    k: int,
    *,
    threads: int | None = None,
    device: str = "cpu",
) -> Closest:
    """Find the closest rows like `closest`, in any source of blocks.

    Args:
        scan: starts a pass over all rows: their numbers, (n,), and the rows, (n, D) float32.
        take: returns rows, (m, D), by their numbers; their cosines are ranked in float64.
        queries: (Q, D) or (D,).
        k: rows for each query.
        threads: as of `closest`.
        device: as of `closest`.
    """
    if k < 1:
        raise OptionError(f"k={k}: expected at least 1")
    wanted = np.atleast_2d(np.asarray(queries, dtype=np.float64))
    lengths = np.linalg.norm(wanted, axis=1)
    if not (np.isfinite(lengths) & (lengths > 0)).all():
        raise InputFileError(
            "expected queries that are finite and not zero, got NaN or zeros: choose a cutout with a latent (without "
            "clouds)"
        )
    wanted = wanted / lengths[:, None]
    rows = np.full((len(wanted), k), -1, np.int64)
    cosine = np.full((len(wanted), k), np.nan)
    work, error = _Work(device, threads), _error(wanted.shape[1], device)
    for first in range(0, len(wanted), _QUERIES):
        part = wanted[first : first + _QUERIES]
        for i, best in enumerate(_first_pass(scan, part, k + _MARGIN, work)):
            order = np.sort(best.rows)
            found, near = rank(order, take(order), part[i], k)
            if len(found) == k and best.cut + error >= near[-1]:  # dropped rows may be among the closest
                found, near = _careful_pass(scan, part[i], k, float(near[-1]) - error, work)
            rows[first + i, : len(found)], cosine[first + i, : len(found)] = found, near
    return Closest(rows, cosine)


def rank(rows: IntArray, latents: NDArray[np.floating], query: Float64Array, k: int) -> tuple[IntArray, Float64Array]:
    """Return the k closest of some rows and their cosines in float64, ties by row number.

    Args:
        rows: (m,), their numbers.
        latents: (m, D).
        query: (D,), of unit length.
        k: largest number of rows to return.
    """
    vectors = np.asarray(latents, dtype=np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        # Row-wise sums, not a matrix product: equal rows get equal bits wherever they are.
        near = (vectors * query).sum(axis=1) / np.sqrt((vectors * vectors).sum(axis=1))
    known = np.flatnonzero(np.isfinite(near))
    order = known[np.lexsort((rows[known], -near[known]))[:k]]
    return rows[order], near[order]


def direction(like: NDArray[np.floating], unlike: NDArray[np.floating] | None = None) -> Float64Array:
    """Return the direction of examples: the mean of the positive ones minus half the mean of the negative ones.

    This is Rocchio's feedback (in Salton, 1971) with weights 1 and `UNLIKE_WEIGHT`, on latents of unit length.

    Args:
        like: (n, D) positive examples.
        unlike: (m, D) negative examples.

    Returns:
        (D,) float64, of unit length.

    Raises:
        InputFileError: An example has no direction (NaN), or they cancel out.

    Examples:
        >>> import numpy as np
        >>> direction(np.array([[1.0, 0.0], [1.0, 0.0]])).tolist()
        [1.0, 0.0]
    """
    mean = _units(like).mean(axis=0)
    if unlike is not None and len(unlike):
        mean = mean - UNLIKE_WEIGHT * _units(unlike).mean(axis=0)
    length = float(np.linalg.norm(mean))
    if length < 1e-6:
        raise InputFileError("the examples cancel out: they have no common direction; give fewer, or others")
    return np.asarray(mean / length, dtype=np.float64)


def _units(examples: NDArray[np.floating]) -> Float64Array:
    vectors = np.atleast_2d(np.asarray(examples, dtype=np.float64))
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    bad = np.flatnonzero(~np.isfinite(lengths[:, 0]) | (lengths[:, 0] == 0))
    if len(bad):
        raise InputFileError(
            f"example {bad[0] + 1} of {len(vectors)} has no latent (NaN) because of missing pixels: choose another"
        )
    return np.asarray(vectors / lengths)


class _Array:
    """An array in memory as rows."""

    def __init__(self, array: NDArray[np.floating]) -> None:
        if array.ndim != 2:
            raise InputFileError(f"expected latents of shape (N, D), got {array.shape}")
        self.array = np.asarray(array, dtype=np.float32)
        self.shape: tuple[int, int] = (array.shape[0], array.shape[1])

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, rows: slice) -> Float32Array:
        return self.array[rows]

    def take(self, rows: Any) -> Float32Array:
        return np.asarray(self.array[rows])


def _blocks(source: Rows, allowed: NDArray[np.bool_] | None, size: int) -> Iterator[tuple[IntArray, Float32Array]]:
    """Yield the numbers and the latents of the allowed rows."""
    if allowed is not None and allowed.shape != (len(source),):
        raise InputFileError(f"allowed: expected a mask of shape ({len(source)},), got {allowed.shape}")
    chosen = np.flatnonzero(allowed) if allowed is not None else None
    if chosen is not None and len(chosen) * _SPARSE < len(source):
        for start in range(0, len(chosen), size):
            yield chosen[start : start + size], source.take(chosen[start : start + size])
        return
    view = getattr(source, "view", source.__getitem__)
    for start in range(0, len(source), size):
        for low, block in _pieces(view(slice(start, min(start + size, len(source)))), start):
            numbers = np.arange(low, low + len(block))
            if allowed is not None:
                keep = allowed[low : low + len(block)]
                if not keep.all():  # a copy takes as long as the search
                    numbers, block = numbers[keep], block[keep]
            yield numbers, block


def _pieces(found: Any, start: int) -> Iterator[tuple[int, Float32Array]]:
    """Yield a block, or the pieces of a view, without copying."""
    for piece in [found] if isinstance(found, np.ndarray) else found:
        yield start, piece
        start += len(piece)


def _error(dim: int, device: str) -> float:
    """Return the largest error of a cosine in float32: a sum of D products, and two norms."""
    return _TF32 if device != "cpu" else (3 * dim + 16) * 2.0**-24


def _passing(block: Float32Array, queries: Any, cut: Float64Array) -> tuple[IntArray, IntArray, Float32Array]:
    """Return query, row and cosine in float32 wherever the cosine reaches the query's cut."""
    if block.shape[1] != queries.shape[1]:
        raise InputFileError(
            f"expected a query of {block.shape[1]} dimensions as in the latents, got {queries.shape[1]}"
        )
    if not isinstance(queries, np.ndarray):
        return _passing_on_gpu(block, queries, cut)
    scores = block @ queries.T if len(queries) > 1 else (block @ queries[0])[:, None]
    with np.errstate(invalid="ignore", divide="ignore"):
        scores /= np.sqrt(np.einsum("ij,ij->i", block, block))[:, None]
        # NaN passes no comparison; infinity (of a zero row) is removed.
        places, which = np.nonzero((scores >= cut.astype(np.float32)) & (scores < np.inf))
    return which, places, scores[places, which]


def _passing_on_gpu(block: Float32Array, queries: Any, cut: Float64Array) -> tuple[IntArray, IntArray, Float32Array]:
    import torch

    rows = torch.from_numpy(block if block.flags.writeable else block.copy()).to(queries.device)
    scores = (rows @ queries.T) / torch.linalg.vector_norm(rows, dim=1)[:, None]
    enough = torch.from_numpy(cut.astype(np.float32)).to(queries.device)
    places, which = torch.nonzero((scores >= enough) & (scores < torch.inf), as_tuple=True)
    return which.cpu().numpy(), places.cpu().numpy(), scores[places, which].cpu().numpy()


@dataclass
class _Best:
    """The best rows so far of one query; no dropped row is above `cut`."""

    keep: int
    cut: float = -2.0
    rows: IntArray = field(default_factory=lambda: np.empty(0, np.int64))
    scores: Float32Array = field(default_factory=lambda: np.empty(0, np.float32))

    def add(self, rows: IntArray, scores: Float32Array) -> None:
        self.rows, self.scores = np.concatenate([self.rows, rows]), np.concatenate([self.scores, scores])
        if len(self.rows) > self.keep:
            best = np.argpartition(-self.scores, self.keep - 1)[: self.keep]
            self.rows, self.scores = self.rows[best], self.scores[best]
            self.cut = float(self.scores.min())


def _first_pass(scan: Scan, queries: Float64Array, keep: int, work: "_Work") -> list[_Best]:
    """Find the `keep` best rows of each query in float32."""
    vectors = work.put(queries)
    best = [_Best(keep) for _ in queries]
    cut = np.full(len(queries), -2.0)

    def look(item: tuple[IntArray, Float32Array]) -> tuple[IntArray, IntArray, Float32Array]:
        which, places, scores = _passing(item[1], vectors, cut)  # an outdated cut only passes more rows
        return which, item[0][places], scores

    for which, rows, scores in work.spread(look, scan()):
        for query in np.unique(which):
            mine = which == query
            best[query].add(rows[mine], scores[mine])
            cut[query] = best[query].cut
    return best


def _careful_pass(
    scan: Scan, query: Float64Array, k: int, least: float, work: "_Work"
) -> tuple[IntArray, Float64Array]:
    """Return the k closest of all rows that may be as close as `least`, however many there are."""
    vectors, cut = work.put(query[None]), np.array([least - 1e-6])
    rows, kept, near = np.empty(0, np.int64), np.empty((0, len(query)), np.float32), np.empty(0)

    def look(item: tuple[IntArray, Float32Array]) -> tuple[IntArray, Float32Array]:
        places = _passing(item[1], vectors, cut)[1]
        best, _ = rank(places, item[1][places], query, k)  # row numbers rise with the positions
        return item[0][best], item[1][best]

    for found, latents in work.spread(look, scan()):
        rows, kept = np.concatenate([rows, found]), np.concatenate([kept, latents])
        ordered, near = rank(rows, kept, query, k)
        order = np.argsort(rows)
        rows, kept = ordered, kept[order[np.searchsorted(rows, ordered, sorter=order)]]
    return rows, near


class _Work:
    """The device and the number of threads of a pass."""

    def __init__(self, device: str, threads: int | None) -> None:
        if device != "cpu":
            import torch

            if not torch.cuda.is_available():
                raise OptionError(f"device={device}: torch finds no GPU here; give device=cpu")
        self.device = device
        self.threads = 1 if device != "cpu" else min(_THREADS, cores()) if threads is None else threads

    def put(self, queries: Float64Array) -> Any:
        """Return the queries as float32 on the device."""
        if self.device == "cpu":
            return queries.astype(np.float32)
        import torch

        return torch.from_numpy(queries.astype(np.float32)).to(self.device)

    def spread(self, work: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        """Yield the results in the order of the items, with few in progress at a time."""
        return in_order(work, items, self.threads, "search")
