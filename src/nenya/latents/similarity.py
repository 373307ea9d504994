"""Exact search by cosine, straight from latents: one pass in float32, the closest ranked anew in float64.

Letters in shapes: N rows, D the length of a latent, Q queries, k rows that are wanted for each.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nenya.errors import InputFileError, OptionError
from nenya.runtime.threads import cores

IntArray = NDArray[np.int64]
Float32Array = NDArray[np.float32]
Float64Array = NDArray[np.float64]
Scan = Callable[[], Iterator[tuple[IntArray, Float32Array]]]

BLOCK_ROWS = 4096
UNLIKE_WEIGHT = 0.5
"""How much examples of what is not wanted count, against those of what is."""

_QUERIES = 64  # in one pass: scores of a block are _QUERIES * BLOCK_ROWS numbers
_THREADS = 8
_ONE_AT_A_TIME = threading.Lock()
_GPU_ROWS = 2**18
_MARGIN = 64  # rows beyond k that are kept in the float32 pass
_SPARSE = 8  # one row of so many wanted: rows are fetched, not scanned
_TF32 = 2e-3  # error of a cosine where a GPU may round factors to ten bits


class Rows(Protocol):
    """What is searched: `nenya.latents.files.Latents`, or anything with a length, slices and `take`."""

    shape: tuple[int, int]

    def __len__(self) -> int: ...
    def __getitem__(self, rows: slice) -> Float32Array: ...
    def take(self, rows: Any) -> Float32Array:
        """Return rows in any order."""
        ...


@dataclass(frozen=True)
class Closest:
    """The rows closest to each query, closest first; rows of equal cosine by their number.

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
    """Find the k rows whose cosine with each query is greatest, exactly: as in float64 over all rows.

    Rows with NaN, and those of length 0, have no direction and are never found.

    Args:
        latents: (N, D), of any length each, taken as float32; `nenya.latents.files.Latents` stay on the disk.
        queries: (Q, D) or (D,).
        k: rows for each query.
        allowed: (N,), which rows may be found; default all.
        block_rows: rows at a time; default 4096, on a GPU 262,144. It changes nothing but memory and speed.
        threads: of a CPU; default one a core, at most 8. They change nothing but speed.
        device: "cpu" or "cuda": where the float32 pass is computed.
        tick: is called with the share of the rows that is done; what it raises ends the search.

    Raises:
        OptionError: `k` < 1, or the device is not there.
        InputFileError: A query is not finite, is 0, or of another length than the latents.
    """
    source = (
        latents if hasattr(latents, "take") and not isinstance(latents, np.ndarray) else _Array(np.asarray(latents))
    )
    size = block_rows or (BLOCK_ROWS if device == "cpu" else _GPU_ROWS)

    def scan() -> Iterator[tuple[IntArray, Float32Array]]:
        for numbers, rows in _blocks(source, allowed, size):
            tick(numbers[-1] / len(source) if len(numbers) else 0.0)
            yield numbers, rows

    return closest_of(scan, source.take, queries, k, threads=threads, device=device)


def closest_of(
    scan: Scan,
    take: Callable[[IntArray], Float32Array],
    queries: ArrayLike,
    k: int,
    *,
    threads: int | None = None,
    device: str = "cpu",
) -> Closest:
    """Find the closest rows as `closest` does, in whatever yields blocks.

    Args:
        scan: starts a pass over all rows: their numbers, (n,), and the rows, (n, D) float32.
        take: returns rows, (m, D), by their numbers.
        queries: (Q, D) or (D,).
        k: rows for each query.
        threads: as of `closest`.
        device: as of `closest`.
    """
    if k < 1:
        raise OptionError(f"k={k}: wanted is at least 1")
    wanted = np.atleast_2d(np.asarray(queries, dtype=np.float64))
    lengths = np.linalg.norm(wanted, axis=1)
    if not (np.isfinite(lengths) & (lengths > 0)).all():
        raise InputFileError("a query without a direction came (NaN, or all 0): a cloudy cutout has no latent")
    wanted = wanted / lengths[:, None]
    rows = np.full((len(wanted), k), -1, np.int64)
    cosine = np.full((len(wanted), k), np.nan)
    work, error = _Work(device, threads), _error(wanted.shape[1], device)
    for first in range(0, len(wanted), _QUERIES):
        part = wanted[first : first + _QUERIES]
        for i, best in enumerate(_first_pass(scan, part, k + _MARGIN, work)):
            order = np.sort(best.rows)
            found, near = rank(order, take(order), part[i], k)
            if len(found) == k and best.cut + error >= near[-1]:  # rows left out may belong to the closest
                found, near = _careful_pass(scan, part[i], k, float(near[-1]) - error, work)
            rows[first + i, : len(found)], cosine[first + i, : len(found)] = found, near
    return Closest(rows, cosine)


def rank(rows: IntArray, latents: NDArray[np.floating], query: Float64Array, k: int) -> tuple[IntArray, Float64Array]:
    """Return the k closest of some rows and their cosines in float64, rows of equal cosine by their number.

    Args:
        rows: (m,), their numbers.
        latents: (m, D).
        query: (D,), of length 1.
        k: at most so many are returned.
    """
    vectors = np.asarray(latents, dtype=np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        # Sums of each row by itself, not a matrix product: equal rows get equal bits wherever they stand.
        near = (vectors * query).sum(axis=1) / np.sqrt((vectors * vectors).sum(axis=1))
    known = np.flatnonzero(np.isfinite(near))
    order = known[np.lexsort((rows[known], -near[known]))[:k]]
    return rows[order], near[order]


def direction(like: NDArray[np.floating], unlike: NDArray[np.floating] | None = None) -> Float64Array:
    """Return the direction of examples: the mean of what is wanted less half the mean of what is not.

    This is Rocchio's feedback (in Salton, 1971) with weights 1 and `UNLIKE_WEIGHT`, on latents of length 1.

    Args:
        like: (n, D) examples of what is wanted.
        unlike: (m, D) examples of what is not.

    Returns:
        (D,) float64, of length 1.

    Raises:
        InputFileError: An example has no direction (NaN), or they cancel out.
    """
    mean = _units(like).mean(axis=0)
    if unlike is not None and len(unlike):
        mean = mean - UNLIKE_WEIGHT * _units(unlike).mean(axis=0)
    length = float(np.linalg.norm(mean))
    if length < 1e-6:
        raise InputFileError("the examples cancel out: they have no direction in common; give fewer, or others")
    return np.asarray(mean / length, dtype=np.float64)


def _units(examples: NDArray[np.floating]) -> Float64Array:
    vectors = np.atleast_2d(np.asarray(examples, dtype=np.float64))
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    bad = np.flatnonzero(~np.isfinite(lengths[:, 0]) | (lengths[:, 0] == 0))
    if len(bad):
        raise InputFileError(f"example {bad[0] + 1} of {len(vectors)} has no latent (NaN): it has missing pixels")
    return np.asarray(vectors / lengths)


class _Array:
    """An array in memory as rows."""

    def __init__(self, array: NDArray[np.floating]) -> None:
        if array.ndim != 2:
            raise InputFileError(f"latents of shape {array.shape} came; wanted is (N, D)")
        self.array = np.asarray(array, dtype=np.float32)
        self.shape: tuple[int, int] = (array.shape[0], array.shape[1])

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, rows: slice) -> Float32Array:
        return self.array[rows]

    def take(self, rows: Any) -> Float32Array:
        return np.asarray(self.array[rows])


def _blocks(source: Rows, allowed: NDArray[np.bool_] | None, size: int) -> Iterator[tuple[IntArray, Float32Array]]:
    """Yield the numbers and the latents of the rows that are allowed."""
    if allowed is not None and allowed.shape != (len(source),):
        raise InputFileError(f"allowed has the shape {allowed.shape}; wanted is ({len(source)},)")
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
                numbers, block = numbers[keep], block[keep]
            yield numbers, block


def _pieces(found: Any, start: int) -> Iterator[tuple[int, Float32Array]]:
    """Yield a block, or the pieces that a view gives without copying."""
    for piece in [found] if isinstance(found, np.ndarray) else found:
        yield start, piece
        start += len(piece)


def _error(dim: int, device: str) -> float:
    """Return the most by which a cosine of float32 may be wrong: sums of D products, and two norms of that kind."""
    return _TF32 if device != "cpu" else (3 * dim + 16) * 2.0**-24


def _passing(block: Float32Array, queries: Any, cut: Float64Array) -> tuple[IntArray, IntArray, Float32Array]:
    """Return query, row and cosine in float32 wherever that is at least the query's cut."""
    if block.shape[1] != queries.shape[1]:
        raise InputFileError(f"a query of {queries.shape[1]} numbers came; the latents have {block.shape[1]}")
    if not isinstance(queries, np.ndarray):
        return _passing_on_gpu(block, queries, cut)
    scores = block @ queries.T if len(queries) > 1 else (block @ queries[0])[:, None]
    with np.errstate(invalid="ignore", divide="ignore"):
        scores /= np.sqrt(np.einsum("ij,ij->i", block, block))[:, None]
        # NaN passes no comparison, infinity (of a row without length) is taken out.
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
    """The best rows so far of one query; whatever was left out is not above `cut`."""

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
    """Find for each query the `keep` best rows of float32."""
    vectors = work.put(queries)
    best = [_Best(keep) for _ in queries]
    cut = np.full(len(queries), -2.0)

    def look(item: tuple[IntArray, Float32Array]) -> tuple[IntArray, IntArray, Float32Array]:
        which, places, scores = _passing(item[1], vectors, cut)  # an old cut only lets more pass
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
    """Return the k closest rows of all that may be as close as `least`, however many those are."""
    vectors, cut = work.put(query[None]), np.array([least - 1e-6])
    rows, kept, near = np.empty(0, np.int64), np.empty((0, len(query)), np.float32), np.empty(0)

    def look(item: tuple[IntArray, Float32Array]) -> tuple[IntArray, Float32Array]:
        places = _passing(item[1], vectors, cut)[1]
        best, _ = rank(places, item[1][places], query, k)  # numbers rise with the places
        return item[0][best], item[1][best]

    for found, latents in work.spread(look, scan()):
        rows, kept = np.concatenate([rows, found]), np.concatenate([kept, latents])
        ordered, near = rank(rows, kept, query, k)
        order = np.argsort(rows)
        rows, kept = ordered, kept[order[np.searchsorted(rows, ordered, sorter=order)]]
    return rows, near


class _Work:
    """Where a pass is computed, and on how many threads."""

    def __init__(self, device: str, threads: int | None) -> None:
        if device != "cpu":
            import torch

            if not torch.cuda.is_available():
                raise OptionError(f"device={device}: no GPU here that torch can use; device=cpu works anywhere")
        self.device = device
        self.threads = 1 if device != "cpu" else min(_THREADS, cores()) if threads is None else threads

    def put(self, queries: Float64Array) -> Any:
        """Return the queries as float32 on the device."""
        if self.device == "cpu":
            return queries.astype(np.float32)
        import torch

        return torch.from_numpy(queries.astype(np.float32)).to(self.device)

    def spread(self, work: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        """Yield the results in the order of the items, of which few are under way at a time."""
        if self.threads < 2:
            yield from map(work, items)
            return
        from threadpoolctl import threadpool_limits

        # Each thread computes alone. The limit is the process's, so that only one search at a time may set it.
        with _ONE_AT_A_TIME, threadpool_limits(1, "blas"), ThreadPoolExecutor(self.threads, "search") as pool:
            ahead: deque[Any] = deque()
            try:
                for item in items:
                    ahead.append(pool.submit(work, item))
                    if len(ahead) > 2 * self.threads:
                        yield ahead.popleft().result()
                while ahead:
                    yield ahead.popleft().result()
            finally:
                for future in ahead:
                    future.cancel()
