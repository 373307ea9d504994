"""The search in lists: exact where all are searched, independent of other rows, and honest on what it finds."""

import numpy as np
import pytest
from latent_sets import latents

from nenya.latents import lists as module
from nenya.latents import neighbours_torch
from nenya.latents.lists import Lists, find_centroids, find_components, fit_lists
from nenya.latents.lists_kernel import STRIDE, empty_keys, keep_best, numbers_of, rank, to_integers
from nenya.latents.neighbours import Neighbours, distance
from nenya.latents.neighbours_torch import DeviceNeighbours
from nenya.latents.projector import Projector

NEW = latents(200, 10)


@pytest.fixture(scope="module")
def some():
    """2,000 rows in 40 lists, along 16 of 32 components."""
    neighbours = Neighbours(latents(2000, 1))
    centroids = find_centroids(neighbours.rows, 40, np.random.default_rng(0))
    components = find_components(neighbours.rows - neighbours.centre)[:, :16].copy()
    return Lists(neighbours, centroids, 8, components)


def test_all_lists_along_all_dimensions_are_exact(some):
    exact = some.neighbours.search(NEW, 15)
    for one, other in zip(Lists(some.neighbours, some.centroids, 40).search(NEW, 15), exact, strict=True):
        np.testing.assert_array_equal(one, other)


def test_few_lists_along_few_components_find_nearly_all(some):
    exact, near = some.neighbours.search(NEW, 15)[1], some.search(NEW, 15)[1]
    assert np.mean([len(set(a) & set(b)) for a, b in zip(near, exact, strict=True)]) > 0.9 * 15


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_a_row_has_the_same_neighbours_alone_and_in_any_batch(some, batch, monkeypatch):
    distances, found = some.search(NEW, 15)
    monkeypatch.setattr(module, "_BLOCK", 32)
    monkeypatch.setattr(module, "_COARSE", 5)
    for start in range(0, 70, batch):
        part = slice(start, start + batch)
        one = some.search(NEW[part], 15)
        assert np.array_equal(one[0], distances[part]) and np.array_equal(one[1], found[part])


def test_products_of_whole_numbers_do_not_depend_on_the_order_of_summation(some):
    whole, _ = some._whole(NEW)
    integers = some._integers[some._halves < np.inf]
    assert np.array_equal(whole, np.rint(whole)) and np.array_equal(integers, np.rint(integers))
    assert (np.abs(whole) @ np.abs(integers).T).max() < 2**24
    exact = whole.astype(np.int64) @ integers.T.astype(np.int64)
    order = np.random.default_rng(0).permutation(whole.shape[1])
    for columns in (order, order[::-1]):
        total = np.zeros(exact.shape, np.float32)
        for d in columns:
            total += whole[:, d, None] * integers[:, d]
        assert np.array_equal(total, exact)
    assert np.array_equal(whole @ integers.T, exact)


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e18])
def test_collapsed_and_distant_rows_have_neighbours(size):
    rows = (1 + 1e-3 * latents(300, 3)) * np.float32(size)
    lists = Lists(Neighbours(rows), find_centroids(rows, 3, np.random.default_rng(0)), 3)
    asked = np.concatenate([rows[:5], rows[:5] * np.float32(1e3), -rows[:5]])
    for one, other in zip(lists.search(asked, 5), lists.neighbours.search(asked, 5), strict=True):
        np.testing.assert_array_equal(one, other)


def test_equal_rows_are_ranked_by_number():
    rows = np.repeat(latents(4, 0), 50, axis=0)
    lists = Lists(Neighbours(rows), rows[::50].copy(), 4)
    distances, found = lists.search(rows[[10, 120]], 6)
    assert (distances == 0).all() and found.tolist() == [[0, 1, 2, 3, 4, 5], [100, 101, 102, 103, 104, 105]]


def test_lists_with_too_few_rows_fall_back_on_all():
    rows = latents(50, 1)
    lists = Lists(Neighbours(rows), rows[:40].copy(), 2)
    np.testing.assert_array_equal(lists.search(NEW[:20], 15)[1], Neighbours(rows).search(NEW[:20], 15)[1])


def test_what_is_kept_does_not_depend_on_the_order_of_the_lists():
    rng = np.random.default_rng(0)
    scores = rng.integers(-20, 20, (6, 3 * STRIDE)).astype(np.float32)
    kept = []
    for order in ((0, 1, 2), (2, 0, 1)):
        best, worst = empty_keys(6, 10)
        for i in order:
            own = np.arange(i * STRIDE, (i + 1) * STRIDE)
            ones = np.ones(6, np.float32)
            keep_best(
                -scores[:, own], np.zeros(STRIDE, np.float32), ones, np.float32(1), np.arange(6), own, best, worst
            )
        kept.append(numbers_of(np.sort(best, axis=1)))
    assert np.array_equal(kept[0], kept[1])
    assert np.array_equal(kept[0], np.argsort(scores, axis=1, kind="stable")[:, :10])


@pytest.mark.parametrize("dim", [1, 3, 30, 32])
def test_distances_are_those_of_the_exact_search_bit_for_bit(dim):
    rng = np.random.default_rng(dim)
    rows, x = (rng.standard_normal((n, dim)).astype(np.float32) for n in (40, 3))
    candidates = np.stack([rng.permutation(40)[:21] for _ in range(3)])
    candidates[1, 18:] = -1
    squares, found = np.empty((3, 20)), np.empty((3, 20), np.int64)
    rank(x, rows, candidates, squares, found)
    for r in range(3):
        own = candidates[r][candidates[r] >= 0]
        wanted = sorted((distance(x[r], rows[n]), n) for n in own)[:20]
        assert squares[r, : len(wanted)].tolist() == [value for value, _ in wanted]
        assert found[r, : len(wanted)].tolist() == [number for _, number in wanted]
        assert np.isinf(squares[r, len(wanted) :]).all()


def test_rows_without_a_length_become_zeros():
    rows = np.array([[3.0, -4.0], [0, 0], [np.inf, 1]])
    out, units = np.empty((3, 2), np.float32), np.empty(3)
    to_integers(rows, 50.0, out, units)
    assert out.tolist() == [[30, -40], [0, 0], [0, 0]] and units.tolist() == [0.1, 0, 0]


def test_a_fit_reaches_the_recall_that_it_states():
    rows = latents(3000, 2)
    lists, recall = fit_lists(Neighbours(rows), 15, 0)
    assert recall >= module.RECALL and 1 < len(lists.centroids) and lists.probes <= len(lists.centroids)
    exact, near = lists.neighbours.search(NEW, 15)[1], lists.search(NEW, 15)[1]
    assert np.mean([len(set(a) & set(b)) / 15 for a, b in zip(near, exact, strict=True)]) > 0.985


@pytest.mark.parametrize("collapsed", [1.0, 1e-3, 1e-6])
def test_a_device_finds_the_same_rows_and_says_where_it_cannot_know(collapsed, monkeypatch):
    rng = np.random.default_rng(0)
    rows = (1 + collapsed * rng.standard_normal((700, 40))).astype(np.float32)
    rows[300:400] = rows[5]  # more equal rows than candidates
    asked = np.concatenate([rows[:20], (1 + collapsed * rng.standard_normal((30, 40))).astype(np.float32)])
    neighbours = Neighbours(rows)
    exact, searched = neighbours.search(asked, 10), []
    monkeypatch.setattr(neighbours_torch, "_SCORES", 4 * 700 * 16)
    own = Neighbours.search
    monkeypatch.setattr(Neighbours, "search", lambda self, x, k: searched.append(len(x)) or own(self, x, k))
    for one, other in zip(DeviceNeighbours(neighbours, "cpu").search(asked, 10), exact, strict=True):
        np.testing.assert_array_equal(one, other)
    assert sum(searched) >= 1 and (collapsed < 1 or sum(searched) == 1)  # the row that has a hundred equal ones


def test_a_device_places_rows_where_the_processor_does():
    rows = latents(300, 0)
    projector = Projector.fit(rows, embedding=9 * rows[:, :2])
    assert np.array_equal(projector.transform(NEW, device="cpu"), projector.transform(NEW))
    assert np.array_equal(projector.transform(NEW, device="cpu", approximate=True), projector.transform(NEW))


def test_no_torch_is_loaded_where_there_is_no_gpu(monkeypatch, tmp_path):
    monkeypatch.setattr(neighbours_torch, "Path", lambda _: tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "torch", None)  # its import fails
    assert neighbours_torch.gpu() is None
