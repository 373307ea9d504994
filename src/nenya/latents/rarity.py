"""Rarity of latents: the distance to their nearest neighbours elsewhere, and their likelihood under a density model.

Letters: N latents of dimension D, k neighbours, M principal components, n rows of a sample.
"""

import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nenya.errors import InputFileError, OptionError
from nenya.latents.components import PCA, fit_pca
from nenya.latents.files import Latents
from nenya.latents.kept_answers import KeptAnswers, answer_of, in_pieces
from nenya.latents.nearest import QUERY_ROWS, Identity, Nearest, as_unit
from nenya.latents.rarity_cells import ANSWER, calibrated, cells_of, distances_in_cells, kept_pieces, mean_distance
from nenya.runtime.process import RowProgress

log = logging.getLogger(__name__)

Float64Array = NDArray[np.float64]
IntArray = NDArray[np.int64]

EXACT_ROWS = 100_000
"""Up to this number of latents, all are compared with all."""

CHECKED_ROWS = 500
"""Rows on which the error of rarities that are not exact is measured."""

PROBES = 64
"""Cells in which neighbours are searched, above `EXACT_ROWS` latents."""

_BLOCK_ROWS = 16384
_KEPT_ROWS = 8192  # rows after which the answers are kept
_HELD_OUT = 0.2  # share of the granules by which a density model is chosen
_MODELS = ((1, "full"), (2, "full"), (4, "full"), (8, "full"), (16, "full"), (32, "full"), (16, "diag"), (64, "diag"))
_SHARE, _MOST_COMPONENTS = 0.95, 24
_ROWS_PER_COMPONENT = 5  # of a mixture, for each principal component


@dataclass(frozen=True)
class Rarity:
    """Rarity of N latents.

    Attributes:
        rarity: (N,) float64, mean cosine distance to the k nearest allowed neighbours; NaN without a latent, or with
            fewer than k of them.
        percentile: (N,) float64, percentage of the known rarities that are as small or smaller; NaN where unknown.
        low: (N,) float64, lower end of the 95 % interval of the rarity; the rarity itself where it is exact.
        high: (N,) float64, its upper end.
        exact: whether all latents were compared with all.
        error: relative error of a rarity, one standard deviation; 0 where it is exact.
        spearman: rank correlation with the exact rarity, over `checked` rows; 1 where it is exact.
        checked: rows on which the error was measured.
        left_out: rows without a latent or a direction.
    """

    rarity: Float64Array
    percentile: Float64Array
    low: Float64Array
    high: Float64Array
    exact: bool
    error: float = 0.0
    spearman: float = 1.0
    checked: int = 0
    left_out: int = 0


def rarity_of(
    latents: Any,
    identity: Identity,
    k: int = 10,
    *,
    exact: bool | None = None,
    probes: int = PROBES,
    seed: int = 0,
    visible: bool = True,
    kept: KeptAnswers | None = None,
    cache_dir: str | None = None,
) -> Rarity:
    """Return how far each latent is from its nearest neighbours elsewhere.

    Exactly, all latents are compared with all. Otherwise they are divided into cells of about 250 rows by k-means. They
    are compared with those of the nearest cells, as many as hold the rows of `probes` cells of the mean size, so some
    neighbours are missed. Rarities of some rows are then computed both ways: a line through their logarithms removes
    the bias, and the scatter about the line is the error.

    Args:
        latents: (N, D) array, `RowsOf`, or `nenya.latents.files.Latents`.
        identity: of the N rows: rows of the same granule, or nearby in place and time, are not neighbours.
        k: neighbours.
        exact: compare all with all; default: up to `EXACT_ROWS` latents.
        probes: number of cells, of the mean size, in which neighbours are searched.
        seed: of the cells, and of the rows on which the error is measured.
        visible: whether progress is shown.
        kept: answers of an interrupted run with the same arguments, which are taken; those found here are added.
        cache_dir: folder of a temporary file of the latents in cells; default that of the system.

    Raises:
        InputFileError: No row has k allowed neighbours.
        OutputError: There is no space for the temporary file.
    """
    kept = kept or KeptAnswers()
    good, exact = _chosen(latents, k, exact)
    count = len(latents)
    found = np.full(count, np.nan)
    if exact:
        found[good] = _among_all(latents, good, identity, k, visible, kept)
    else:
        found[good] = _in_cells(latents, good, identity, k, probes, seed, visible, kept, cache_dir)
    if np.isnan(found).all():
        raise InputFileError(
            f"no latent has k={k} neighbours outside its own granule and surroundings: lower k=, apart_km= or "
            "apart_days=, or give same_granule=true"
        )
    left_out = count - len(good)
    if exact:
        return Rarity(found, percentiles(found), found, found, True, left_out=left_out)
    rows = np.flatnonzero(np.isfinite(found))
    checked = np.sort(np.random.default_rng(seed).choice(rows, min(CHECKED_ROWS, len(rows)), replace=False))
    true = _exact_of(latents, good, checked, identity, k, visible)
    fitted, error, spearman = calibrated(found, checked, true)
    low, high = fitted * np.exp(-1.96 * error), fitted * np.exp(1.96 * error)
    return Rarity(fitted, percentiles(fitted), low, high, False, error, spearman, len(checked), left_out)


@dataclass(frozen=True)
class Search:
    """How neighbours are searched; see `rarity_of`."""

    k: int
    exact: bool | None
    probes: int
    seed: int
    cache_dir: str | None


def rarity_share(latents: Any, identity: Identity, how: Search, kept: KeptAnswers) -> None:
    """Find the distances of the rows of one shard of `rarity_of`, and keep them for the merge.

    Args:
        latents: as in `rarity_of`.
        identity: of the N rows.
        how: neighbours are searched.
        kept: answers of this worker, to which its rows are added.

    Raises:
        InputFileError: There are too few latents.
        OutputError: There is no space.
    """
    good, exact = _chosen(latents, how.k, how.exact)
    if exact:
        _among_all(latents, good, identity, how.k, True, kept)
        return
    with cells_of(latents, good, how.probes, how.seed, kept, how.cache_dir) as cells:
        distances_in_cells(cells, identity, how.k, kept, True)


def check_shards(latents: Any, how: Search, kept: KeptAnswers) -> None:
    """Check that all shards of `rarity_of` are complete, before anything else is computed.

    Args:
        latents: as in `rarity_of`.
        how: neighbours are searched.
        kept: answers of the shards.

    Raises:
        InputFileError: There are too few latents.
        OutputError: Shards are missing, which it names.
    """
    good, exact = _chosen(latents, how.k, how.exact)
    if exact:
        sizes = [min(_KEPT_ROWS, len(good) - start) for start in range(0, len(good), _KEPT_ROWS)]
    elif not (sizes := kept_pieces(len(latents), good, kept)):
        kept.refuse_all()
    missing = [n for n, rows in enumerate(sizes) if not kept.take_numbers(answer_of(ANSWER, n), np.empty(rows))]
    kept.refuse_missing(missing, len(sizes))


def _chosen(latents: Any, k: int, exact: bool | None) -> tuple[IntArray, bool]:
    """Return the rows that have a direction, and whether all are compared with all.

    Raises:
        InputFileError: There are too few of them.
    """
    good, count = known_rows(latents), len(latents)
    if len(good) <= k:
        raise InputFileError(f"expected more than k={k} latents with a direction (not NaN), got {len(good)} of {count}")
    return good, len(good) <= EXACT_ROWS if exact is None else exact


def percentiles(values: Float64Array) -> Float64Array:
    """Return the percentage of the known values that are as small or smaller: (N,), NaN if unknown.

    Examples:
        >>> import numpy as np
        >>> percentiles(np.array([0.1, 0.3, 0.2])).argsort().tolist()
        [0, 2, 1]
    """
    known = np.isfinite(values)
    some = values[known]
    order = np.argsort(some)
    some = some[order]
    counts = np.empty(len(some))
    counts[order] = np.searchsorted(some, some, side="right")  # in order, so that close values follow each other
    found = np.full(len(values), np.nan)
    found[known] = 100 * counts / max(1, len(some))
    return found


def known_rows(latents: Any) -> IntArray:
    """Return the rows of latents (N, D) that have a direction: they are finite and not zero."""
    found = [
        start + np.flatnonzero(np.isfinite(as_unit(np.asarray(latents[start : start + _BLOCK_ROWS]))[:, 0]))
        for start in range(0, len(latents), _BLOCK_ROWS)
    ]
    return np.concatenate([np.empty(0, np.int64), *found])


def _unit(latents: Any, rows: IntArray) -> NDArray[np.float32]:
    return as_unit(take_rows(latents, rows))


def take_rows(latents: Any, rows: IntArray) -> NDArray[np.floating]:
    """Return rows of an array, or of latents files, (n, D)."""
    return np.asarray(latents.take(rows) if hasattr(latents, "parts") else latents[rows])


def _among_all(
    latents: Any, good: IntArray, identity: Identity, k: int, visible: bool, kept: KeptAnswers
) -> Float64Array:
    """Return the mean cosine distance of rows to their k nearest among themselves, (n,), NaN with fewer."""
    order = good[np.argsort(identity.granule[good], kind="stable")]
    reference = Nearest(_unit(latents, order), identity.take(order))
    starts = range(0, len(order), _KEPT_ROWS)

    def work(number: int) -> Float64Array:
        rows = slice(starts[number], starts[number] + _KEPT_ROWS)
        units, own = reference.rows[rows], reference.identity.take(rows)
        parts = [slice(first, first + QUERY_ROWS) for first in range(0, len(units), QUERY_ROWS)]
        return np.concatenate([mean_distance(reference, units[some], own.take(some), k) for some in parts])

    pieces = [order[start : start + _KEPT_ROWS] for start in starts]
    return in_pieces(pieces, len(latents), work, kept, name=ANSWER, visible=visible)[good]


def _in_cells(  # of one search
    latents: Any, good: IntArray, identity: Identity, k: int, probes: int, seed: int, visible: bool, kept: KeptAnswers,
    cache_dir: str | None,
) -> Float64Array:  # fmt: skip
    """Return what `_among_all` returns, with neighbours searched in the nearest cells of k-means."""
    with cells_of(latents, good, probes, seed, kept, cache_dir) as cells:
        found = distances_in_cells(cells, identity, k, kept, visible)
    if len(few := good[np.isnan(found[good])]):  # their neighbours are in other cells
        found[few] = _exact_of(latents, good, few, identity, k, visible)
    return found[good]


def nearest_among(
    latents: Any, good: IntArray, rows: IntArray, identity: Identity, k: int, *, name: str = "", visible: bool = True
) -> tuple[Float64Array, IntArray]:
    """Return the nearest allowed neighbours of a few rows: one pass over all latents in parts that fit into memory.

    Args:
        latents: (N, D).
        good: rows that may be neighbours.
        rows: (n,) rows that are searched for.
        identity: of the N rows.
        k: neighbours of each.
        name: of the work, for its progress.
        visible: whether progress is shown.

    Returns:
        Cosines (n, k) float64, falling, NaN where there are fewer, and rows (n, k) int64, -1 there.
    """
    queries, own = _unit(latents, rows), identity.take(rows)
    best, found = np.full((len(rows), k), -np.inf), np.full((len(rows), k), -1)
    with RowProgress(name, len(good), visible=visible) as progress:
        for start in range(0, len(good), EXACT_ROWS // 4):
            part = good[start : start + EXACT_ROWS // 4]
            reference = Nearest(_unit(latents, part), identity.take(part))
            cosine, near = reference.search_many(queries, own, k)
            both = np.concatenate([best, np.nan_to_num(cosine, nan=-np.inf)], axis=1)
            numbers = np.concatenate([found, np.where(near >= 0, part[near], -1)], axis=1)
            order = np.argsort(-both, axis=1, kind="stable")[:, :k]
            best, found = np.take_along_axis(both, order, axis=1), np.take_along_axis(numbers, order, axis=1)
            progress.advance(len(part))
    return np.where(np.isfinite(best), best, np.nan), found


def _exact_of(latents: Any, good: IntArray, rows: IntArray, identity: Identity, k: int, visible: bool) -> Float64Array:
    """Return the exact rarity of a few rows, (n,)."""
    cosine, _ = nearest_among(latents, good, rows, identity, k, name="exact rarity of some rows", visible=visible)
    return np.asarray(1 - cosine.mean(axis=1), np.float64)


@dataclass(frozen=True)
class Density:
    """A Gaussian mixture in whitened principal components, chosen by the likelihood of latents that it had not seen.

    Attributes:
        pca: of the latents at unit length, with M components.
        mixture: a fitted `sklearn.mixture.GaussianMixture`.
        name: of the mixture, in words.
        tried: name -> mean log-likelihood of the latents held out (nats), of all mixtures.
    """

    pca: PCA
    mixture: Any
    name: str
    tried: dict[str, float]

    def log_likelihood(self, latents: Any) -> Float64Array:
        """Return the log-likelihood (nats) of latents (N, D) in the whitened components, (N,), NaN where unknown."""
        found = np.full(len(latents), np.nan)
        for start, block in _unit_blocks(latents):
            known = np.flatnonzero(np.isfinite(block[:, 0]))
            if len(known):
                found[start + known] = self.mixture.score_samples(whiten(self.pca, block[known]))
        return found


def whiten(pca: PCA, rows: NDArray[np.floating]) -> Float64Array:
    """Return rows (n, D) along the components, each with variance one: (n, M)."""
    return np.asarray(pca.transform(rows) / np.sqrt(pca.explained_variance), np.float64)


def fit_components(latents: Any, components: int | None = None) -> PCA:
    """Fit principal components of latents (N, D) at unit length.

    Args:
        latents: all of them, streamed.
        components: number M to keep; default: as many as hold 95 % of the variance, at most 24.

    Raises:
        InputFileError: The latents have no variance, or fewer than two are known.
        OptionError: There are fewer components.
    """
    pca = fit_pca(block[np.isfinite(block[:, 0])].astype(np.float64) for _, block in _unit_blocks(latents))
    able = int((pca.explained_variance > 1e-10 * max(pca.total_variance, 1e-300)).sum())
    if not able:
        raise InputFileError("all latents are equal: expected latents that differ")
    if components is not None and components > able:
        raise OptionError(f"components={components}: expected at most {able}, the dimensions in which the latents vary")
    kept = components or min(able, _MOST_COMPONENTS, max(1, pca.modes_for(_SHARE)))
    return PCA(
        pca.mean, pca.components[:kept], pca.explained_variance[:kept], pca.total_variance, pca.n_rows,
        pca.n_left_out, pca.spectrum, pca.uncentred,
    )  # fmt: skip


def fit_density(
    latents: Any, granule: IntArray, *, components: int | None = None, sample: int = 10_000, seed: int = 0
) -> Density:
    """Fit the Gaussian mixture under which latents of other granules are most likely.

    Args:
        latents: (N, D) array, `RowsOf`, or `nenya.latents.files.Latents`.
        granule: (N,) granule of each row, -1 if unknown: complete granules are held out.
        components: see `fit_components`; above `EXACT_ROWS` latents they are fitted on so many of them.
        sample: rows on which mixtures are fitted.
        seed: of the sample, the rows held out, and the starts.

    Raises:
        InputFileError: Fewer than ten latents are known.
    """
    rng = np.random.default_rng(seed)
    many = len(latents) > EXACT_ROWS
    some = np.sort(np.random.default_rng([seed, 1]).choice(len(latents), EXACT_ROWS, replace=False)) if many else None
    pca = fit_components(latents if some is None else take_rows(latents, some), components)
    rows = np.sort(rng.choice(len(latents), min(sample, len(latents)), replace=False))
    units = _unit(latents, rows)
    known = np.isfinite(units[:, 0])
    if known.sum() < 10:
        raise InputFileError(f"expected at least 10 known latents for a density model, got {known.sum()}")
    points, blocks = whiten(pca, units[known]), granule[rows[known]]
    held = _held_out(blocks, rng)
    state, tried = int(rng.integers(2**31)), {}
    for number, kind in _MODELS:
        if number > 1 and number * _ROWS_PER_COMPONENT * points.shape[1] > int((~held).sum()):
            continue
        tried[number, kind] = float(_mixture(number, kind, state, points[~held]).score(points[held]))
    number, kind = max(tried, key=lambda model: tried[model])
    names = {model: f"{model[0]} {model[1]} Gaussian{'s' if model[0] > 1 else ''}" for model in tried}
    mixture = _mixture(number, kind, state, points)
    return Density(pca, mixture, names[number, kind], {names[model]: value for model, value in tried.items()})


def _mixture(number: int, kind: str, state: int, points: Float64Array) -> Any:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    made = GaussianMixture(number, covariance_type=kind, reg_covar=1e-3, random_state=state, max_iter=200, tol=1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # held-out rows judge it, also where points are equal
        return made.fit(points)


def _held_out(blocks: IntArray, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Return which rows are held out: a fifth of the granules, or of the rows where there are too few granules."""
    blocks = np.where(blocks >= 0, blocks, blocks.max(initial=0) + 1 + np.arange(len(blocks)))
    _, first, own = np.unique(blocks, return_index=True, return_inverse=True)
    if len(first) < 5:
        first = own = np.arange(len(blocks))
    names = np.argsort(first)  # by their first row: how granules are numbered does not matter
    chosen = names[rng.permutation(len(names))[: max(1, round(_HELD_OUT * len(names)))]]
    found: NDArray[np.bool_] = np.isin(own, chosen)
    return found


def _unit_blocks(latents: Any) -> Iterator[tuple[int, NDArray[np.float32]]]:
    for start in range(0, len(latents), _BLOCK_ROWS):
        yield start, as_unit(np.asarray(latents[start : start + _BLOCK_ROWS]))


class RowsOf:
    """Some rows of latents in an order, as an array: only the requested rows are read.

    Args:
        latents: `nenya.latents.files.Latents`.
        rows: (N,) their numbers.

    Attributes:
        shape: (N, D).
    """

    ndim = 2

    def __init__(self, latents: Latents, rows: IntArray) -> None:
        self._latents, self._rows = latents, rows
        self.shape = (len(rows), latents.shape[1])

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, rows: slice | IntArray) -> NDArray[np.float32]:
        """Return rows, (n, D) float32."""
        wanted = self._rows[rows]
        if isinstance(rows, slice) and len(wanted) and (np.diff(wanted) == 1).all():  # read at once
            return self._latents[int(wanted[0]) : int(wanted[-1]) + 1]
        return self._latents.take(wanted)


def joined_rows(positions: IntArray) -> tuple[IntArray, IntArray]:
    """Return the rows of a table to which latents belong, each latent once, and the place of each row among them.

    Args:
        positions: (T,) number of the latent of each row of the table, -1 for none.

    Returns:
        (N,) int64, the first row of the table for each latent, in the order of the latents; (T,) int64, for each row
        of the table the number of its latent among these N, -1 for none.

    Raises:
        InputFileError: No row has a latent.
    """
    has = np.flatnonzero(positions >= 0)
    if not len(has):
        raise InputFileError(f"none of the {len(positions)} rows of the table has a latent")
    _, first, place = np.unique(positions[has], return_index=True, return_inverse=True)
    found = np.full(len(positions), -1, np.int64)
    found[has] = place
    return has[first], found


def groups_of(rows: NDArray[np.floating], count: int, seed: int = 0) -> IntArray:
    """Divide rare latents (n, D) into at most `count` clusters by k-means: (n,) int64, 0 the largest."""
    from sklearn.cluster import KMeans

    units = as_unit(rows).astype(np.float64)
    most = min(count, len(np.unique(units, axis=0)))
    labels = KMeans(most, n_init=10, random_state=seed).fit(units).labels_
    order = np.argsort(-np.bincount(labels, minlength=most), kind="stable")
    number = np.empty(most, np.int64)
    number[order] = np.arange(most)
    found: IntArray = number[labels]
    return found
