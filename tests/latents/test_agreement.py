"""Agreement of several trainings: rotations agree, unrelated latents do not."""

import h5py
import numpy as np
import pytest

from nenya.errors import InputFileError
from nenya.latents.agreement import agreement, aligned_rows
from nenya.latents.files import Latents


def write(folder, name: str, rows: np.ndarray, sha: str, source: str = "cut_preproc.h5") -> Latents:
    path = folder / f"{name}_latents.h5"
    with h5py.File(path, "w") as file:
        file["valid"] = rows.astype(np.float32)
        file.attrs["checkpoint_sha256"], file.attrs["source"] = sha * 32, source
    return Latents([path])


@pytest.fixture
def rows() -> np.ndarray:
    centres = 3 * np.random.default_rng(1).standard_normal((20, 6))
    return np.repeat(centres, 20, axis=0) + np.random.default_rng(0).standard_normal((400, 6))


def test_a_rotation_agrees_and_unrelated_latents_do_not(tmp_path, rows):
    turn = np.linalg.qr(np.random.default_rng(2).standard_normal((6, 6)))[0]
    other = rows @ turn
    other[:100] = np.random.default_rng(3).standard_normal((100, 6))  # rows of one run only
    runs = [write(tmp_path, "one", rows, "11"), write(tmp_path, "two", rows @ turn, "22")]
    same = agreement(runs, aligned_rows(runs)).measures()
    assert same["neighbours"]["value"] > 0.999 and same["distances"]["value"] > 0.999
    assert same["clusters"]["value"] > 0.8
    runs.append(write(tmp_path, "three", other, "33"))
    found = agreement(runs, aligned_rows(runs))
    assert found.measures()["neighbours"]["low"] < 0.9 < found.measures()["neighbours"]["high"]
    assert found.stability[:100].max() < 0.75 < np.median(found.stability[100:])
    strangers = [runs[0], write(tmp_path, "four", np.random.default_rng(4).standard_normal((400, 6)), "44")]
    chance = agreement(strangers, aligned_rows(strangers)).measures()["neighbours"]
    assert chance["value"] == pytest.approx(chance["expected"], abs=0.02)


def test_the_neighbours_are_those_of_a_slow_search(tmp_path, rows):
    other = rows + 0.5 * np.random.default_rng(5).standard_normal(rows.shape)
    runs = [write(tmp_path, "one", rows, "11"), write(tmp_path, "two", other, "22")]
    near = []
    for values in (run[:].astype(np.float64) for run in runs):
        unit = values / np.linalg.norm(values, axis=1, keepdims=True)
        cosine = unit @ unit.T
        np.fill_diagonal(cosine, -2)
        near.append(np.argsort(-cosine, axis=1)[:, :10])
    expected = [len(set(a) & set(b)) / 10 for a, b in zip(*near, strict=True)]
    assert agreement(runs, aligned_rows(runs)).stability == pytest.approx(expected)


def test_runs_of_other_cutouts_or_the_same_weights_are_refused(tmp_path, rows):
    one = write(tmp_path, "one", rows, "11")
    with pytest.raises(InputFileError, match="at least two trainings"):
        aligned_rows([one])
    with pytest.raises(InputFileError, match="the same weights"):
        aligned_rows([one, write(tmp_path, "two", rows, "11")])
    with pytest.raises(InputFileError, match="extract the same cutout files"):
        aligned_rows([one, write(tmp_path, "three", rows[:300], "33")])
    few = [write(tmp_path, f"few{n}", rows[:5], n * 2) for n in "56"]
    with pytest.raises(InputFileError, match="expected at least 12 cutouts"):
        agreement(few, aligned_rows(few))
