"""The projector: laws of its transform, against umap-learn's own, and its file."""

import os
import pickle
import re
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numba
import numpy as np
import pytest
from latent_sets import DIM, latents

from nenya.errors import InputFileError, OptionError
from nenya.latents.layout import _begin, _exp2, _log2, find_curve, place_rows
from nenya.latents.neighbours import Neighbours
from nenya.latents.projector import Parameters, Projector
from nenya.latents.umap_fit import FitProgress


@pytest.fixture(scope="module")
def projector():
    return Projector.fit(latents(600, 0), seed=3, fit_epochs=100)


@pytest.fixture(scope="module")
def file(projector, tmp_path_factory):
    path = tmp_path_factory.mktemp("projector") / "a_UMAP.h5"
    projector.save(path)
    return path


NEW = latents(300, 10)


# The search


@pytest.mark.parametrize("collapsed", [1.0, 1e-3, 1e-6])
def test_the_search_is_exact_and_breaks_ties_by_number(collapsed):
    rng = np.random.default_rng(0)
    rows = (1 + collapsed * rng.standard_normal((700, 40))).astype(np.float32)
    rows[300:320] = rows[5]
    asked = np.concatenate([rows[:20], (1 + collapsed * rng.standard_normal((30, 40))).astype(np.float32)])
    squares = ((asked[:, None].astype(np.float64) - rows.astype(np.float64)) ** 2).sum(axis=-1)
    wanted = np.argsort(squares, axis=1, kind="stable")[:, :10]
    distances, found = Neighbours(rows).search(asked, 10)
    np.testing.assert_allclose(distances, np.sqrt(np.take_along_axis(squares, wanted, axis=1)), rtol=1e-12)
    assert found[5].tolist() == [5, *range(300, 309)]
    others = np.arange(len(asked)) != 5
    np.testing.assert_array_equal(found[others], wanted[others])


def test_the_power_is_that_of_the_library():
    x = 10.0 ** np.random.default_rng(0).uniform(-12, 8, 2000)
    np.testing.assert_allclose([_exp2(0.79 * _log2(v)) for v in x], x**0.79, rtol=1e-8)


def test_the_curve_is_umap_learns():
    assert find_curve(0.1) == pytest.approx((1.5769434, 0.8950608), rel=1e-5)


# The transform


def mixed(value):
    """SplitMix64, as integers of Python."""
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB % 2**64
    return value ^ (value >> 31)


def moved(at, other, step, a, b):
    """One attraction (step > 0) or repulsion of umap-learn's `optimize_layout_euclidean`."""
    dx, dy = at[0] - float(other[0]), at[1] - float(other[1])
    square = dx * dx + dy * dy
    if square == 0:
        return at
    power = _exp2(b * _log2(square))
    if step > 0:
        force = -2.0 * a * b * power / square / (a * power + 1.0)
    else:
        force = 2.0 * b / ((0.001 + square) * (a * power + 1.0))
    x, y = (min(max(force * d, -4.0), 4.0) for d in (dx, dy))
    return at[0] + abs(step) * x, at[1] + abs(step) * y


def test_rows_side_by_side_go_where_steps_one_after_the_other_take_them():
    layout, (a, b), epochs, alpha, rate, seed = latents(60, 1)[:, :2].copy() * 4, find_curve(0.1), 30, 0.25, 5, 7
    distances, near = Neighbours(latents(60, 1)).search(NEW[:40], 6)
    periods, starts = np.empty((40, 6)), np.empty((2, 40))
    _begin(distances, near, layout, 6, epochs, periods, starts)
    wanted = np.empty((40, 2), np.float32)
    for r in range(40):
        at, due, negative = (float(starts[0, r]), float(starts[1, r])), periods[r].copy(), periods[r] / rate
        seen = negative.copy()
        for epoch in range(epochs):
            step = alpha * (1.0 - epoch / epochs)
            for j in np.flatnonzero(due <= epoch):
                at = moved(at, layout[near[r, j]], step, a, b)
                due[j] += periods[r, j]
                count = int((epoch - seen[j]) / negative[j])
                seen[j] += count * negative[j]
                code = mixed((seed + 0x9E3779B97F4A7C15 * (int(near[r, j]) + 1)) % 2**64) + epoch
                for i in range(1, count + 1):
                    other = (mixed((code + 0x9E3779B97F4A7C15 * i) % 2**64) >> 32) * len(layout) >> 32
                    at = moved(at, layout[other], -step, a, b)
        wanted[r] = at
    found = np.empty((40, 2), np.float32)
    place_rows(distances, near, layout, (a, b), 6, epochs, alpha, rate, 1.0, seed, found)
    assert np.array_equal(found, wanted)


@pytest.mark.parametrize("approximate", [False, True])
def test_a_row_gets_the_same_bits_alone_in_a_batch_in_any_order_and_on_any_threads(projector, approximate):
    together = projector.transform(NEW, approximate=approximate)
    alone = np.concatenate([projector.transform(row, approximate=approximate) for row in NEW[:40]])
    assert np.array_equal(alone, together[:40])
    order = np.random.default_rng(0).permutation(len(NEW))
    assert np.array_equal(projector.transform(NEW[order], approximate=approximate), together[order])
    before = numba.get_num_threads()
    numba.set_num_threads(1)
    try:
        assert np.array_equal(projector.transform(NEW, approximate=approximate), together)
    finally:
        numba.set_num_threads(before)


def test_another_process_on_other_threads_gives_the_same_bits(projector, file, tmp_path):
    np.save(tmp_path / "new.npy", NEW)
    program = (
        "import sys, numpy as np\nfrom nenya.latents.projector import Projector\n"
        f"p = Projector.load({str(file)!r})\nassert p.probe_difference == 0\n"
        f"np.save({str(tmp_path / 'came.npy')!r}, p.transform(np.load({str(tmp_path / 'new.npy')!r})))\n"
        "assert not {'umap', 'pynndescent', 'sklearn', 'torch'} & set(sys.modules)\n"
    )
    threads = {"OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2", "NUMBA_NUM_THREADS": "2"}
    subprocess.run([sys.executable, "-c", program], check=True, env={**os.environ, **threads})
    assert np.array_equal(np.load(tmp_path / "came.npy"), projector.transform(NEW))


def test_equal_latents_get_equal_places_also_those_of_the_training(projector):
    train = projector.latents[:100]
    assert np.array_equal(projector.transform(np.concatenate([train, train]))[100:], projector.transform(train))
    close = np.linalg.norm(projector.transform(train) - projector.embedding[:100], axis=1)
    assert np.median(close) < 0.5 < np.ptp(projector.embedding, axis=0).min() / 10


def test_latents_that_differ_by_rounding_stay_where_they_are(projector):
    noise = np.random.default_rng(0).uniform(-1e-7, 1e-7, NEW.shape).astype(np.float32)
    moved = np.abs(projector.transform(NEW + noise) - projector.transform(NEW))
    assert moved.max() < 0.05


def test_rows_that_are_not_finite_get_nan_and_change_no_other(projector):
    rows = NEW[:10].copy()
    rows[2, 5], rows[7] = np.nan, np.inf
    came = projector.transform(rows)
    assert np.isnan(came[[2, 7]]).all()
    keep = [0, 1, 3, 4, 5, 6, 8, 9]
    assert np.array_equal(came[keep], projector.transform(NEW[:10])[keep])
    assert np.isnan(projector.transform(rows[[2]])).all()
    assert projector.transform(rows[:0]).shape == (0, 2)


def test_new_rows_are_as_trustworthy_as_umap_learns_own(projector):
    from sklearn.manifold import trustworthiness

    mapper = projector.to_umap()
    np.testing.assert_array_equal(mapper.embedding_, projector.embedding)
    theirs = mapper.transform(NEW)
    ours = projector.transform(NEW)
    assert trustworthiness(NEW, ours) >= trustworthiness(NEW, theirs) - 0.002  # its own seeds differ by more
    width = np.ptp(projector.embedding, axis=0).max()
    assert np.median(np.linalg.norm(ours - theirs, axis=1)) < 0.02 * width


def test_more_equal_rows_than_neighbours_have_a_place():
    rows = np.repeat(latents(3, 0), 20, axis=0)
    layout = np.random.default_rng(0).standard_normal((60, 2)).astype(np.float32)
    came = Projector.fit(rows, embedding=layout).transform(rows)
    assert np.isfinite(came).all()
    assert np.array_equal(came[:20], np.repeat(came[:1], 20, axis=0))


def test_the_cosine_metric_does_not_see_lengths():
    layout = np.random.default_rng(0).standard_normal((600, 2)).astype(np.float32)
    p = Projector.fit(latents(600, 0), metric="cosine", embedding=layout)
    assert np.array_equal(p.transform(4 * NEW[:20]), p.transform(NEW[:20]))


# Fitting


def test_a_layout_made_elsewhere_is_taken_without_the_rows_that_are_not_finite():
    rows, layout = latents(50, 0), np.random.default_rng(0).standard_normal((50, 2)).astype(np.float32)
    rows[3], layout[7] = np.nan, np.nan
    p = Projector.fit(rows, n_neighbors=5, embedding=layout)
    assert p.embedding.shape == (48, 2)
    assert (p.parameters.a, p.parameters.b) == find_curve(0.1)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"latents": np.zeros(5)}, InputFileError, r"got \(5,\)"),
        ({"latents": np.zeros((3, 2))}, InputFileError, "at least 4"),
        (
            {"latents": np.zeros((9, 2)), "embedding": np.zeros((8, 2))},
            InputFileError,
            r"expected a layout of shape \(9, 2\)",
        ),
        ({"latents": np.zeros((9, 2)), "metric": "manhattan"}, OptionError, "euclidean, cosine"),
        ({"latents": np.zeros((9, 2)), "n_neighbors": 9}, OptionError, "fewer than the 9 training rows"),
    ],
)
def test_what_cannot_be_fitted_is_said(arguments, error, words):
    with pytest.raises(error, match=words):
        Projector.fit(**arguments)


# The file


def test_a_file_gives_back_the_same_projector(projector, file, caplog):
    again = Projector.load(file)
    assert again.parameters == projector.parameters
    assert again.probe_difference == 0 and not caplog.records
    assert again.probes.shape == (64, DIM) and again.probe_answers.shape == (64, 2)
    for approximate in (False, True):
        came, before = (p.transform(NEW, approximate=approximate) for p in (again, projector))
        assert np.array_equal(came, before)


def test_a_machine_that_places_otherwise_is_reported(projector, tmp_path, caplog):
    other = Projector(projector.latents, projector.embedding, projector.parameters)
    other.probe_answers = projector.probe_answers + np.float32(0.25)
    other.save(tmp_path / "other.h5")
    assert Projector.load(tmp_path / "other.h5").probe_difference == pytest.approx(0.25, rel=1e-4)
    assert "0.25 layout units" in caplog.text


@pytest.mark.parametrize("damage", ["altered", "torn", "incomplete", "other"])
def test_a_damaged_file_is_refused_with_how_to_refit(file, tmp_path, damage):
    path = tmp_path / "b_UMAP.h5"
    path.write_bytes(file.read_bytes()[: 4000 if damage == "torn" else None])
    if damage != "torn":
        with h5py.File(path, "r+") as h5:
            if damage == "altered":
                h5["latents"][3, 4] += 1
            elif damage == "incomplete":
                del h5["embedding"]
            else:
                del h5.attrs["format"]
    with pytest.raises(InputFileError, match="nenya embed data="):
        Projector.load(path)


def test_a_pickle_is_refused_unread_with_how_to_refit(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "exploded"),)

    path = tmp_path / "MODIS_UMAP.pkl"
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(InputFileError, match=r"got a pickle.*nenya embed data="):
        Projector.load(path)
    assert not (tmp_path / "exploded").exists()


def test_latents_of_another_model_are_refused(projector):
    with pytest.raises(InputFileError, match="expected latents of 32 dimensions"):
        projector.transform(np.zeros((3, 16)))


def test_parameters_are_checked():
    with pytest.raises(OptionError, match="n_neighbors"):
        Parameters(1.0, 1.0, n_neighbors=1)


@pytest.mark.slow
def test_libraries_two_years_older_read_the_file_and_place_alike(projector, file, tmp_path):
    """Makes a second environment; wants a package index and an interpreter that the old libraries know."""
    packages = ["umap-learn==0.5.6", "numpy==1.26.4", "numba==0.59.1", "scipy==1.13.1", "h5py==3.11.0"]
    packages += ["scikit-learn==1.5.0"]
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "old"], check=True)
    python = tmp_path / "old" / "bin" / "python"
    installed = subprocess.run([python, "-m", "pip", "install", "-q", *packages], capture_output=True, text=True)
    if installed.returncode:
        pytest.skip(f"the old libraries do not install here: {installed.stderr[-200:]}")
    np.save(tmp_path / "new.npy", NEW)
    program = (
        "import numpy as np, numba\nassert numba.__version__.startswith('0.59')\n"
        f"from nenya.latents.projector import Projector\np = Projector.load({str(file)!r})\n"
        f"np.save({str(tmp_path / 'came.npy')!r}, p.transform(np.load({str(tmp_path / 'new.npy')!r})))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2] / "src")}
    environment["NUMBA_CACHE_DIR"] = str(tmp_path / "cache")
    subprocess.run([python, "-c", program], check=True, env=environment)
    np.testing.assert_array_equal(np.load(tmp_path / "came.npy"), projector.transform(NEW))


def test_a_fit_says_how_far_it_is(caplog, monkeypatch):
    monkeypatch.setattr("nenya.latents.umap_fit._SECONDS_BETWEEN_LINES", 0.01)
    with caplog.at_level("INFO", "nenya"), FitProgress(600) as progress:
        wait_for(lambda: re.search(r"preparing the search of the nearest neighbours: \d+ s", caplog.text))
        for line in ("0 of 200\n", "\n", "150 of 200\n"):  # as umap-learn's progress bar writes
            progress.write(line)
        wait_for(lambda: re.search(r"layout, epoch 150 of 200, about \d+ s left in this stage: \d+ s", caplog.text))
    assert caplog.messages[0].startswith("600 rows: compiling")
    assert sum("layout in 200 epochs" in line for line in caplog.messages) == 1
    assert caplog.messages[-1].startswith("fitted in")
    with caplog.at_level("INFO", "nenya"):
        Projector.fit(latents(60, 0), n_neighbors=5, fit_epochs=20)
    assert any("layout in 20 epochs" in line for line in caplog.messages)  # umap-learn does write so


def wait_for(condition):
    for _ in range(60_000):
        if condition():
            return
        time.sleep(0.005)
    raise AssertionError("it did not come")
