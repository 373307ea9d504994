"""Rows of an index: by number, wherever rows were left out, and under conditions of any width."""

import h5py
import numpy as np
import pytest

from nenya.errors import InputFileError
from nenya.latents import index as index_module
from nenya.latents import index_rows
from nenya.latents.files import Latents
from nenya.latents.index import FilesSearcher, IndexSearcher
from nenya.latents.index_build import add_files, build_index
from nenya.latents.index_recall import measure

pytest.importorskip("lancedb")

ROWS, DIM = 4000, 16


def write(path, rows, seed, nan=()):
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(9).standard_normal((20, DIM))
    vectors = centres[rng.integers(20, size=rows)] + 0.4 * rng.standard_normal((rows, DIM))
    vectors[list(nan)] = np.nan
    with h5py.File(path, "w") as file:
        file["valid"] = vectors.astype(np.float32)
    latents = Latents([path])
    return latents, latents.keys().assign(DT=rng.exponential(1.0, rows), lat=rng.uniform(-60, 60, rows))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    gone = np.random.default_rng(5).choice(ROWS, 900, replace=False)
    data = write(folder / "a_latents.h5", ROWS, 1, gone)
    add_files(folder / "i.index", *data)
    build_index(folder / "i.index", kind="IVF_RQ", index_from=0)
    return folder, data, IndexSearcher(folder / "i.index")


def test_rows_are_found_where_they_lie_though_others_were_left_out(made, monkeypatch):
    latents, searcher = made[1][0], made[2]
    good = np.flatnonzero(np.isfinite(latents[:]).all(axis=1))
    rows = np.random.default_rng(0).permutation(good)[:300]
    rows[7] = rows[3]
    asked = []
    monkeypatch.setattr(index_rows.IndexRows, "_with_numbers", lambda *given: asked.append(given))
    np.testing.assert_array_equal(searcher.take(rows), latents[:][rows])
    assert not asked, "no column is read for it"
    monkeypatch.undo()
    gone = np.setdiff1d(np.arange(ROWS), good)
    with pytest.raises(InputFileError, match=f"row {gone[0]} has no latent in the index"):
        searcher.take(gone[:1])


def test_rows_are_found_in_any_order_of_the_files(made, tmp_path):
    other = write(made[0] / "b_latents.h5", 500, 2)
    add_files(tmp_path / "i", *other)
    searcher = IndexSearcher(tmp_path / "i")
    table = searcher.table.to_arrow()
    searcher.table.delete("true")
    searcher.table.add(table.take(np.random.default_rng(3).permutation(len(table))))
    mixed = IndexSearcher(tmp_path / "i")
    rows = np.array([499, 0, 250])
    np.testing.assert_array_equal(mixed.take(rows), other[0][:][rows])


@pytest.mark.parametrize(
    ("sql", "exact"),
    [("DT > 0.2", False), ("DT > 1.5", False), ("DT > 1 AND lat > 20", False), ("DT > 4.5", True), ("DT > 99", True)],
)
def test_conditions_of_any_width(made, monkeypatch, sql, exact):
    monkeypatch.setattr(index_module, "NARROW", 100)
    monkeypatch.setattr(index_rows, "_SMALL_ROWS", 0)  # as in a large index
    monkeypatch.setattr(index_rows, "_POOL", 300)
    (latents, table), searcher = made[1:]
    files, hits, wanted = FilesSearcher(latents, table), 0, 0
    good = np.flatnonzero(np.isfinite(latents[:]).all(axis=1))
    for row in good[::300]:
        query = latents[:][row].astype(np.float64)
        found, true = searcher.search(query, 10, sql), files.search(query, 10, sql)
        assert found.exact == exact
        assert (searcher.describe(found.rows)["DT"] > float(sql.split()[2])).all()
        if exact:
            np.testing.assert_array_equal(found.rows, true.rows)
        hits, wanted = hits + len(set(found.rows) & set(true.rows)), wanted + len(true.rows)
    assert hits >= 0.95 * wanted


def test_the_rows_of_a_condition_are_read_once(made, monkeypatch):
    monkeypatch.setattr(index_module, "NARROW", 100)
    searcher = IndexSearcher(made[0] / "i.index")
    query = searcher.take(np.flatnonzero(np.isfinite(made[1][0][:]).all(axis=1))[:1])[0].astype(np.float64)
    first = searcher.search(query, 5, "DT > 4.5")
    monkeypatch.setattr(type(searcher.table), "search", None)  # a scan would fail
    monkeypatch.setattr(type(searcher.table), "take_row_ids", None)  # so would reading latents
    again = searcher.search(query, 5, "DT > 4.5")
    np.testing.assert_array_equal(first.rows, again.rows)


def test_the_recall_of_an_index_that_grew_is_that_measured_afresh(tmp_path):
    first, later = write(tmp_path / "a_latents.h5", 3000, 1), write(tmp_path / "b_latents.h5", 700, 4)
    add_files(tmp_path / "i", *first)
    before = build_index(tmp_path / "i", index_from=0)
    add_files(tmp_path / "i", *later)
    grown = build_index(tmp_path / "i", index_from=0)
    assert grown["recall"]["rows"] == 3700 and before["recall"]["rows"] == 3000
    searcher = IndexSearcher(tmp_path / "i")
    vectors = np.concatenate([first[0][:], later[0][:]]).astype(np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    near = np.sort(vectors[grown["recall"]["sample"]] @ vectors.T, axis=1)[:, ::-1][:, :11]
    np.testing.assert_allclose(grown["recall"]["cosine"], near, atol=1e-9)
    assert grown["recall"]["sample"] == before["recall"]["sample"]
    _, afresh = measure(tmp_path / "i", {**searcher.about, "recall": None}, 1234)
    assert afresh["value"] == pytest.approx(grown["recall"]["value"], abs=0.03)
