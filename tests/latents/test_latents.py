"""Latents files as one array, joined to a table."""

import pickle
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import h5py
import numpy as np
import pandas as pd
import pytest

from nenya.defs import DT_BINS, DT_INTERVALS, SLOPE_INTERVALS, dt_bin
from nenya.errors import InputFileError
from nenya.latents.files import Latents, open_latents


def write(path, rng, **rows):
    kinds = {"chunks": (7, 3), "compression": "gzip"} if "packed" in path.name else {}
    with h5py.File(path, "w") as file:
        for name, count in rows.items():
            file.create_dataset(name, data=rng.standard_normal((count, 8), dtype=np.float32), **kinds)
    return path


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(0)
    return [
        write(tmp_path / "a_latents.h5", rng, train=50, valid=13),
        write(tmp_path / "packed_latents.h5", rng, valid=40, train=31),
        write(tmp_path / "c_latents.h5", rng, valid=5),
    ]


def whole(files):
    arrays = []
    for path in files:
        with h5py.File(path) as file:
            arrays += [file[name][:] for name in ("train", "valid") if name in file]
    return np.concatenate(arrays)


def test_rows_are_those_of_the_files_in_order(files):
    latents, wanted = Latents(files), whole(files)
    assert latents.shape == wanted.shape == (139, 8)
    np.testing.assert_array_equal(np.concatenate([block for _, block in latents.blocks(20)]), wanted)
    assert [start for start, _ in latents.blocks(20)] == list(range(0, 139, 20))
    rows = np.random.default_rng(1).integers(0, 139, 500)
    np.testing.assert_array_equal(latents.take(rows), wanted[rows])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(latents)).take(rows), wanted[rows])  # noqa: S301 - ours
    with pytest.raises(IndexError):
        latents.take([139])
    rng = np.random.default_rng(2)
    assert len(set(latents.sample(30, rng))) == 30
    np.testing.assert_array_equal(latents.sample(500, rng), np.arange(139))
    one = Latents(files, partitions="valid")  # a name is no list of letters
    assert {part.partition for part in one.parts} == {"valid"} and len(one) < 139


def test_threads_read_while_maps_are_let_go_of(files, monkeypatch):
    monkeypatch.setattr("nenya.latents.files._MAPPED", 2000)
    latents, wanted = Latents(files), whole(files)

    def read(seed):
        rows = np.random.default_rng(seed).integers(0, 139, 5)
        return np.array_equal(latents.take(rows), wanted[rows])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(400)))


def test_views_let_go_of_maps_as_copies_do(files, monkeypatch):
    monkeypatch.setattr("nenya.latents.files._MAPPED", 2000)
    latents, wanted = Latents(files), whole(files)
    released = []
    monkeypatch.setattr(latents, "release", lambda: released.append(latents._arrays.clear()))
    for start in range(0, 139, 20):
        rows = slice(start, start + 20)
        np.testing.assert_array_equal(np.concatenate(list(latents.view(rows))), wanted[rows])
    assert len(released) == 139 * 8 * 4 // 2000


def test_rows_from_all_over_a_file_are_read_in_pieces(files, monkeypatch):
    monkeypatch.setattr("nenya.latents.files._MAPPED", 2**16 * 7)
    latents, wanted = Latents(files), whole(files)
    released = []
    monkeypatch.setattr(latents, "release", lambda: released.append(latents._arrays.clear()))
    rows = np.random.default_rng(3).integers(0, 139, 50)
    np.testing.assert_array_equal(latents.take(rows), wanted[rows])
    assert len(released) == 7


def test_a_table_in_any_order_finds_its_rows(files):
    latents = Latents(files)
    table = latents.keys().sample(frac=1, random_state=0)
    wanted = table.index.to_numpy()
    np.testing.assert_array_equal(latents.positions(table), wanted)
    other = table.rename(columns={"pp_type": "ulmo_pp_type"})
    other["pp_file"] = "s3://bucket/PreProc/" + other["pp_file"]
    np.testing.assert_array_equal(latents.positions(other), wanted)
    other.loc[other.index[:3], "pp_idx"] = 1000
    other.loc[other.index[3:5], "ulmo_pp_type"] = -1
    np.testing.assert_array_equal(latents.positions(other), [-1] * 5 + list(wanted[5:]))
    single = Latents(files[:1])
    np.testing.assert_array_equal(single.positions(single.keys().drop(columns="pp_file")), np.arange(63))


def test_what_cannot_be_joined(files):
    latents = Latents(files)
    with pytest.raises(InputFileError, match=r"expected the columns pp_file, pp_type, pp_idx.*, got lat"):
        latents.positions(pd.DataFrame({"lat": [0.0]}))
    with pytest.raises(InputFileError, match="expected a column pp_file"):
        latents.positions(latents.keys().drop(columns="pp_file"))
    with pytest.raises(InputFileError, match="its pp_file values are other, the latents are from a, c, packed"):
        latents.positions(latents.keys().assign(pp_file="other.h5"))


def test_files_that_do_not_go_together(files, tmp_path):
    with h5py.File(tmp_path / "wide_latents.h5", "w") as file:
        file["train"] = np.zeros((3, 9), np.float32)
    with pytest.raises(InputFileError, match="expected latents of 8 dimensions as in the other files, got 9"):
        Latents([files[0], tmp_path / "wide_latents.h5"])
    with h5py.File(tmp_path / "none_latents.h5", "w") as file:
        file["images"] = np.zeros((3, 9), np.float32)
    with pytest.raises(InputFileError, match=r"named train or valid, got images \(3, 9\)"):
        Latents([tmp_path / "none_latents.h5"])
    for path, weights in zip(files[:2], "ab", strict=True):
        with h5py.File(path, "a") as file:
            file.attrs["checkpoint_sha256"] = weights * 64
    with pytest.raises(InputFileError, match="different weights"):
        Latents(files)
    with pytest.raises(InputFileError, match="no such file"):
        open_latents(str(tmp_path / "missing_latents.h5"))


def test_each_difference_of_temperature_has_one_bin():
    for dt in np.random.default_rng(0).uniform(0, 8, 200):
        assert [name for name in DT_BINS if dt in DT_INTERVALS[name]] == [dt_bin(dt)]
    assert [dt_bin(dt) for dt in (0, 0.5, 1.2, 2, 3, 4, 40)] == ["DT0", "DT1", "DT15", "DT2", "DT4", "DT5", "DT5"]
    assert 1.0 in DT_INTERVALS["DT10"] and 1.06 not in DT_INTERVALS["DT10"]
    for dt in (-0.1, float("nan")):
        with pytest.raises(ValueError, match="no bin"):
            dt_bin(dt)
    bins = list(SLOPE_INTERVALS.values())
    assert all(lower.high == upper.low for upper, lower in pairwise(bins))


def test_held_files_are_read_on_after_they_were_replaced(tmp_path):
    old, new = np.random.default_rng(1).normal(size=(2, 40, 6)).astype("f4")
    for chunks in (None, (8, 6)):
        path, other = tmp_path / "a_latents.h5", tmp_path / "b_latents.h5"
        for place, rows in ((path, old), (other, new)):
            with h5py.File(place, "w") as file:
                file.create_dataset("valid", data=rows, chunks=chunks)
        held, free = Latents([path]), Latents([path])
        held.hold()
        other.replace(path)
        for _ in range(2):
            assert np.array_equal(held[0:40], old) and np.array_equal(held.take([3, 1]), old[[3, 1]])
            held.release()
        assert np.array_equal(free[0:40], new)
        again = pickle.loads(pickle.dumps(held))  # noqa: S301 - ours
        assert np.array_equal(again[0:40], new)
