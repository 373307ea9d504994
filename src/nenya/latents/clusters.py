"""Clusters of latents: mini-batch k-means, or HDBSCAN on a sample, with their most typical cutouts.

Latents are scaled to unit length, so that distances depend on direction alone, as in the loss; published latents have
unit length already. Rows with NaN belong to no cluster.

Letters: N latents of D dimensions, K clusters.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nenya.errors import InputFileError, OptionError
from nenya.latents.components import PCA, fit_pca
from nenya.runtime.blas import in_order

log = logging.getLogger(__name__)

FloatArray = NDArray[np.floating]
Float64Array = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

NOISE = -1
BLOCK_ROWS = 16384
_UNIT_ROWS = 512  # rows scaled at once, that their float64 values stay in the cache
_TILE = 1024  # rows whose distances to a sample are held at once
_NEIGHBOURS = 5  # neighbours by which HDBSCAN estimates the density
_STARTS = 5  # runs of k-means on the sample; the best one starts the passes


@dataclass(frozen=True)
class Clusters:
    """Clusters of N latents, numbered from the largest.

    Attributes:
        labels: (N,) int64, the cluster of each row, -1 for noise and for rows with NaN.
        sizes: (K,) int64, rows of each cluster.
        directions: (K, D) float64, mean direction of each cluster, of unit length.
        medoids: (K,) int64, the row (among the typical ones) nearest to the mean direction.
        closest: (K, M) int64, the M rows nearest to it, the medoid first; -1 where a cluster has fewer.
        cohesion: (K,) float64, length of the mean of the cluster's unit vectors: 1 if all are parallel.
        silhouettes: (K,) float64, mean silhouette of the cluster's rows in a sample (Rousseeuw 1987, J. Comput. Appl.
            Math. 20, 53); NaN if the sample has none.
        silhouette: mean over all rows of the sample that belong to a cluster.
        left_out: rows with NaN.
        approximate: whether rows were assigned by the nearest row of a sample.
    """

    labels: IntArray
    sizes: IntArray
    directions: Float64Array
    medoids: IntArray
    closest: IntArray
    cohesion: Float64Array
    silhouettes: Float64Array
    silhouette: float
    left_out: int
    approximate: bool


def kmeans_clusters(
    latents: Any,
    k: int,
    *,
    seed: int = 0,
    passes: int = 2,
    sample: int = 20_000,
    members: int = 9,
    typical: BoolArray | None = None,
) -> Clusters:
    """Divide latents into k clusters by mini-batch k-means; memory does not grow with the number of rows.

    The centres start from the best of five k-means runs on a sample; then blocks of rows, in a new random order for
    each pass, move them (Sculley 2010, WWW '10, 1177).

    Args:
        latents: (N, D) array, HDF5 data set or `Latents`.
        k: number of clusters.
        seed: of the sample, the starts and the order of the blocks.
        passes: number of passes over all rows.
        sample: number of rows for the starts and the silhouettes.
        members: number M of rows nearest to the mean direction that are kept for each cluster.
        typical: (N,) mask of rows for `medoids` and `closest`, where a cluster has any; default all.

    Raises:
        OptionError: k is below 1 or above the number of finite rows in the sample.

    Examples:
        >>> import numpy as np
        >>> latents = np.repeat(np.eye(2, 8, dtype=np.float32), 50, axis=0)
        >>> found = kmeans_clusters(latents, 2, seed=0)
        >>> sorted(np.bincount(found.labels).tolist())
        [50, 50]
    """
    centres = fit_kmeans(latents, k, seed=seed, passes=passes, sample=sample)
    labels, sums, left_out = _assign(latents, centres, BLOCK_ROWS)
    return _describe(latents, labels, sums, left_out, False, seed, sample, members, typical)


def fit_kmeans(latents: Any, k: int, *, seed: int = 0, passes: int = 2, sample: int = 20_000) -> Float64Array:
    """Return the centres, (k, D) float64, of `kmeans_clusters`."""
    from sklearn.cluster import MiniBatchKMeans

    rng = np.random.default_rng(seed)
    rows = unit_rows(_sampled(latents, sample, rng))
    if not 1 <= k <= len(rows):
        raise OptionError(f"k={k}: expected 1 to {len(rows)}, the number of finite rows in the sample")
    state = int(rng.integers(2**31))
    start = MiniBatchKMeans(k, n_init=_STARTS, random_state=state, batch_size=1024).fit(rows)
    model = MiniBatchKMeans(k, init=start.cluster_centers_, n_init=1, random_state=state, reassignment_ratio=0.0)
    firsts = np.arange(0, len(latents), BLOCK_ROWS)
    for _ in range(passes):
        for _, block in _blocks(latents, BLOCK_ROWS, rng.permutation(firsts)):
            known = np.isfinite(block[:, 0])
            if known.any():
                model.partial_fit(block if known.all() else block[known])
    return np.asarray(model.cluster_centers_, np.float64)


def assign_kmeans(latents: Any, centres: Float64Array, block_rows: int = BLOCK_ROWS) -> IntArray:
    """Return the nearest centre, (N,) int64, of each latent scaled to unit length, -1 for NaN; the first in a tie.

    Args:
        latents: (N, D).
        centres: (K, D) float64.
        block_rows: rows read at once; the result does not depend on it.
    """
    return _assign(latents, centres, block_rows)[0]


def _assign(latents: Any, centres: Float64Array, block_rows: int) -> tuple[IntArray, Float64Array, int]:
    """Return the labels of `assign_kmeans`, the sums of each cluster's unit rows, (K, D), and the rows with NaN."""
    labels, sums, left_out = np.full(len(latents), NOISE, np.int64), np.zeros(centres.shape), 0
    half = (centres**2).sum(axis=1) / 2

    def work(block: tuple[int, FloatArray]) -> tuple[Float64Array, int]:
        start, values = block
        rows = unit_rows(values)
        known = np.flatnonzero(np.isfinite(rows[:, 0]))
        rows = rows if len(known) == len(rows) else rows[known]
        own = (half - rows @ centres.T).argmin(axis=1)
        labels[start + known] = own
        return _cluster_sums(own, rows, len(centres)), len(values) - len(known)

    for found, missing in in_order(work, _raw(latents, block_rows)):
        sums += found
        left_out += missing
    return labels, sums, left_out


def hdbscan_clusters(
    latents: Any,
    *,
    seed: int = 0,
    sample: int = 10_000,
    components: int = 16,
    min_size: int | None = None,
    members: int = 9,
    typical: BoolArray | None = None,
) -> Clusters:
    """Find dense clusters by HDBSCAN on the principal components of a sample, and assign all rows to them.

    The clusters of the sample follow Campello, Moulavi and Sander (2013, PAKDD, 160). Every other row gets the cluster
    of the nearest row of the sample, or -1 if that is noise, or if it is farther away than the largest distance between
    nearest neighbours in that cluster of the sample. This approximates HDBSCAN on all rows.

    Args:
        latents: (N, D) array, HDF5 data set or `Latents`.
        seed: of the sample.
        sample: number of rows for HDBSCAN; its time grows with their square.
        components: number of principal components, at most D.
        min_size: smallest number of rows of a cluster in the sample; default a hundredth of the sample, at least 5.
        members: number M of rows nearest to the mean direction that are kept for each cluster.
        typical: (N,) mask of rows for `medoids` and `closest`, where a cluster has any; default all.

    Raises:
        InputFileError: The sample has fewer than two finite rows, or no cluster.
    """
    from sklearn.cluster import HDBSCAN

    rng = np.random.default_rng(seed)
    pca = fit_pca(unit_rows(rows) for _, rows in _raw(latents, BLOCK_ROWS))
    pca = replace(pca, components=pca.components[:components], explained_variance=pca.explained_variance[:components])
    known = pca.transform(unit_rows(_sampled(latents, sample, rng)))
    least = min_size or max(5, len(known) // 100)
    if not 2 <= least <= len(known):
        raise OptionError(f"min_size={least}: expected 2 to {len(known)}, the number of finite rows in the sample")
    labels = (
        HDBSCAN(min_cluster_size=least, min_samples=min(_NEIGHBOURS, len(known)), copy=True)
        .fit(known)
        .labels_.astype(np.int64)
    )
    if labels.max(initial=NOISE) == NOISE:
        raise InputFileError(
            f"HDBSCAN finds no cluster of at least {least} rows in a sample of {len(known)}: lower min_size, or give "
            "method=kmeans"
        )
    found = assign_nearest(latents, pca, known, labels)
    sums, left_out = np.zeros((int(found.max()) + 1, latents.shape[1])), 0
    for start, rows in _blocks(latents, BLOCK_ROWS):
        left_out += int(np.isnan(rows[:, 0]).sum())
        sums += _cluster_sums(found[start : start + len(rows)], rows, len(sums))
    return _describe(latents, found, sums, left_out, True, seed, sample, members, typical)


def assign_nearest(
    latents: Any, pca: PCA, known: Float64Array, labels: IntArray, block_rows: int = BLOCK_ROWS
) -> IntArray:
    """Return the clusters, (N,) int64, of latents by the nearest row of a sample; see `hdbscan_clusters`.

    Args:
        latents: (N, D).
        pca: of the latents scaled to unit length.
        known: (S, M) float64, the sample along the components.
        labels: (S,) its clusters, -1 for noise.
        block_rows: rows read at once; the result does not depend on it.
    """
    reach = np.zeros(labels.max() + 1)
    for cluster in range(len(reach)):
        reach[cluster] = _largest_gap(known[labels == cluster])
    found = np.full(len(latents), NOISE, np.int64)
    squares = (known**2).sum(axis=1)
    for start, rows in _blocks(latents, block_rows):
        finite = np.flatnonzero(np.isfinite(rows[:, 0]))
        points = pca.transform(rows[finite])
        for first in range(0, len(points), _TILE):
            tile = points[first : first + _TILE]
            nearest = (squares / 2 - tile @ known.T).argmin(axis=1)
            distance = np.linalg.norm(tile - known[nearest], axis=1)
            own = labels[nearest]
            found[start + finite[first : first + _TILE]] = np.where(distance > reach[own], NOISE, own)
    return found


def _largest_gap(points: Float64Array) -> float:
    """Return the largest distance between nearest neighbours, with a margin for rounding."""
    from scipy.spatial import cKDTree

    distance, _ = cKDTree(points).query(points, k=2)
    return float(np.asarray(distance)[:, 1].max()) * (1 + 1e-9)


def unit_rows(latents: FloatArray) -> Float64Array:
    """Return latents, (n, D), scaled to unit length in float64; zero rows stay zero, non-finite rows become NaN.

    Examples:
        >>> import numpy as np
        >>> unit_rows(np.array([[3.0, 4.0]])).tolist()
        [[0.6, 0.8]]
    """
    rows = np.asarray(latents)
    if rows.ndim != 2:
        raise InputFileError(f"expected latents of shape (N, D), got {rows.shape}")
    scaled = np.empty(rows.shape)
    for first in range(0, len(rows), _UNIT_ROWS):
        some = slice(first, first + _UNIT_ROWS)
        values = rows[some].astype(np.float64)
        length = np.sqrt(np.einsum("ij,ij->i", values, values))[:, None]
        with np.errstate(invalid="ignore"):
            np.divide(values, np.where(length > 0, length, 1), out=scaled[some])
        scaled[some][~np.isfinite(length[:, 0])] = np.nan
    return scaled


def _raw(latents: Any, block_rows: int, firsts: IntArray | None = None) -> Iterator[tuple[int, FloatArray]]:
    """Yield the first row number and the rows, (n, D), block by block, from row 0 or from those given."""
    for first in range(0, len(latents), block_rows) if firsts is None else firsts:
        yield int(first), np.asarray(latents[int(first) : int(first) + block_rows])


def _blocks(latents: Any, block_rows: int, firsts: IntArray | None = None) -> Iterator[tuple[int, Float64Array]]:
    """Yield what `_raw` does, at unit length; threads scale the next blocks in the meantime."""
    return in_order(lambda block: (block[0], unit_rows(block[1])), _raw(latents, block_rows, firsts))


def _sampled(latents: Any, count: int, rng: np.random.Generator) -> FloatArray:
    """Return at most `count` rows, drawn without replacement; non-finite ones are left out."""
    rows = np.arange(len(latents))
    if count < len(rows):
        rows = np.sort(rng.choice(len(latents), count, replace=False))
    values = np.asarray(_take(latents, rows))
    finite: FloatArray = values[np.isfinite(values).all(axis=1)]
    if len(finite) < 2:
        raise InputFileError(f"expected at least 2 finite latents in a sample of {len(rows)}, got {len(finite)}")
    return finite


def _take(latents: Any, rows: IntArray) -> Any:
    return latents.take(rows) if hasattr(latents, "parts") else latents[rows]


def _describe(
    latents: Any,
    labels: IntArray,
    sums: Float64Array,
    left_out: int,
    approximate: bool,
    seed: int,
    sample: int,
    members: int,
    typical: BoolArray | None,
) -> Clusters:
    """Number clusters from the largest, and find their directions, silhouettes and most typical rows."""
    sizes = np.bincount(labels[labels >= 0])
    order = np.argsort(-sizes, kind="stable")
    order = order[sizes[order] > 0]
    number = np.full(len(sizes) + 1, NOISE)
    number[order] = np.arange(len(order))
    labels, sizes, sums = number[labels], sizes[order], sums[order]  # label -1 indexes the last entry, which is -1
    length = np.linalg.norm(sums, axis=1)
    directions = sums / np.where(length > 0, length, 1)[:, None]
    closest = _closest(latents, labels if typical is None else np.where(typical, labels, NOISE), directions, members)
    if without := np.flatnonzero(closest[:, 0] < 0).tolist():  # clusters without a typical row
        closest[without] = _closest(latents, np.where(np.isin(labels, without), labels, NOISE), directions, members)[
            without
        ]
    each, overall = _silhouettes(latents, labels, len(sizes), np.random.default_rng([seed, 1]), sample)
    return Clusters(
        labels, sizes, directions, closest[:, 0], closest, length / sizes, each, overall, left_out, approximate
    )


def _cluster_sums(labels: IntArray, rows: Float64Array, count: int) -> Float64Array:
    """Sum the rows (n, D) of each cluster: (count, D)."""
    from scipy import sparse

    member = np.flatnonzero(labels >= 0)
    ones = sparse.csr_matrix((np.ones(len(member)), (labels[member], member)), (count, len(rows)))
    return np.asarray(ones @ rows if len(member) == len(rows) else ones[:, member] @ rows[member])  # without NaN


def _closest(latents: Any, labels: IntArray, directions: Float64Array, members: int) -> IntArray:
    """Return the rows of each cluster nearest to its direction, (K, members) int64; the first in a tie."""

    def work(block: tuple[int, FloatArray]) -> tuple[IntArray, IntArray, Float64Array]:
        start, values = block
        own = labels[start : start + len(values)]
        cosines = np.einsum("ij,ij->i", unit_rows(values), directions[own])  # label -1 is left out below
        inner = np.flatnonzero(own >= 0)
        return own[inner], start + inner, cosines[inner]

    cluster, row, cosine = np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)
    least = np.full(len(directions), -np.inf)  # cosine that a row must exceed to be kept
    for found, numbers, near in in_order(work, _raw(latents, BLOCK_ROWS)):
        better = near > least[found]
        cluster, row = np.concatenate([cluster, found[better]]), np.concatenate([row, numbers[better]])
        cosine = np.concatenate([cosine, near[better]])
        order = np.lexsort((row, -cosine, cluster))
        cluster, cosine, row = cluster[order], cosine[order], row[order]
        rank = _rank(cluster)
        last, kept = rank == members - 1, rank < members
        least[cluster[last]] = cosine[last]
        cluster, cosine, row = cluster[kept], cosine[kept], row[kept]
    closest = np.full((len(directions), members), -1, np.int64)
    closest[cluster, _rank(cluster)] = row
    return closest


def _rank(cluster: IntArray) -> IntArray:
    """Return the rank of each entry within its cluster; entries of a cluster are adjacent."""
    starts = np.flatnonzero(np.diff(cluster, prepend=-1))
    ranks: IntArray = np.arange(len(cluster)) - np.repeat(starts, np.diff(np.append(starts, len(cluster))))
    return ranks


def _silhouettes(
    latents: Any, labels: IntArray, count: int, rng: np.random.Generator, sample: int
) -> tuple[Float64Array, float]:
    """Return the mean silhouette of each cluster, (count,), and overall, over at most `sample` rows."""
    from sklearn.metrics import silhouette_samples

    member = np.flatnonzero(labels >= 0)
    most = min(sample, 5000)  # the distances of all pairs are held
    rows = member if len(member) <= most else np.sort(rng.choice(member, most, replace=False))
    own = labels[rows]
    if not 2 <= len(np.unique(own)) < len(rows):
        return np.full(count, np.nan), float("nan")
    values = silhouette_samples(unit_rows(_take(latents, rows)), own)
    each = np.bincount(own, minlength=count)
    sums = np.bincount(own, weights=values, minlength=count)
    return np.where(each > 0, sums / np.maximum(each, 1), np.nan), float(values.mean())
