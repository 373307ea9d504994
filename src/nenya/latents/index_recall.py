"""How many of the true nearest neighbours the vector index finds, measured on rows of the index itself.

The true neighbours of a sample of rows are found once, by comparing all rows, and kept; rows added later are compared
with the sample alone.

Letters: Q rows of the sample, k neighbours.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nenya.latents.index import IndexSearcher
from nenya.latents.similarity import Float32Array, Float64Array, IntArray, closest_of
from nenya.tables.conditions import ROW

TARGET = 0.99
"""Recall@10 for which the number of searched parts is chosen."""

_QUERIES = 64
_TOP = 10
_TIE = 1e-6
_BATCH_ROWS = 2**18
_KEPT = ("sample", "cosine")  # in `recall` of nenya.json: numbers of the sample, cosines of the nearest of each


def measure(folder: Path, about: dict[str, Any], seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Choose the number of searched parts, and measure the recall with it.

    Args:
        folder: the index.
        about: its description; if its `recall` has the true neighbours of a sample, only later rows are compared.
        seed: of the draw of a new sample.

    Returns:
        The values of `index` and `recall`.
    """
    searcher = IndexSearcher(folder, about)
    old = about["recall"] or {}
    if set(_KEPT) <= set(old) and old["rows"] <= len(searcher):
        sample, seed = np.array(old["sample"], np.int64), old["seed"]
        queries = searcher.take(sample)
        known = np.full((len(sample), _TOP + 1), np.nan)
        for row, cosine in zip(known, old["cosine"], strict=True):
            row[: len(cosine)] = cosine[: len(row)]
        truth = _with_later(searcher, queries, known, old["rows"])
    else:
        numbers = np.concatenate([batch.column(ROW).to_numpy() for batch in _numbers(searcher)])
        sample = np.sort(np.random.default_rng(seed).choice(numbers, min(_QUERIES, len(numbers)), replace=False))
        queries = searcher.take(sample)
        truth = closest_of(searcher.scan, searcher.take, queries, _TOP + 1).cosine
    parts, probes = about["index"]["parts"], 1
    while True:
        probes = min(parts, probes * 2)
        recall = _recall(searcher, sample, queries, truth, probes)
        if recall >= TARGET or probes == parts:
            break
    if (fewer := probes * 3 // 4) and (value := _recall(searcher, sample, queries, truth, fewer)) >= TARGET:
        probes, recall = fewer, value
    measured = {"at": _TOP, "value": recall, "queries": len(sample), "seed": seed, "rows": len(searcher)}
    kept = {"sample": sample.tolist(), "cosine": [[c for c in row if np.isfinite(c)] for row in truth.tolist()]}
    return {**about["index"], "probes": probes}, {**measured, **kept}


def _recall(
    searcher: IndexSearcher, sample: IntArray, queries: Float32Array, truth: Float64Array, probes: int
) -> float:
    """Return the share of the true neighbours that are found; a row as close as the last true one counts as one.

    Args:
        searcher: of the index.
        sample: (Q,) numbers of rows.
        queries: (Q, D) their latents.
        truth: (Q, k + 1) cosines of the nearest rows, falling; the first one is that of the row itself; NaN where
            there are fewer.
        probes: parts searched.
    """
    hits = wanted = 0
    for row, query, near in zip(sample, queries, truth, strict=True):
        others = near[1:][np.isfinite(near[1:])]
        rows, found = searcher.approximate(query, _TOP + 1, probes)
        own = found[rows != row][:_TOP]
        hits += int((own >= others[-1] - _TIE).sum()) if len(others) else 0
        wanted += len(others)
    return hits / max(1, wanted)


def _with_later(searcher: IndexSearcher, queries: Float32Array, truth: Float64Array, known: int) -> Float64Array:
    """Return the cosines of the nearest rows after comparing those from the place `known` on."""

    def later() -> Iterator[tuple[NDArray[np.int64], Float32Array]]:
        return searcher.rows.from_place(known)

    if known == len(searcher):
        return truth
    new = closest_of(later, searcher.take, queries, _TOP + 1).cosine
    return np.asarray(-np.sort(-np.concatenate([truth, new], axis=1), axis=1)[:, : truth.shape[1]])


def _numbers(searcher: IndexSearcher) -> Iterator[Any]:
    asked = searcher.table.search().select([ROW]).limit(max(1, len(searcher)))
    yield from asked.to_batches(_BATCH_ROWS)
