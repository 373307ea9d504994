"""Cutouts from cutouts: the pixels that each step says, the same rows, a table that holds, nothing half done."""

import contextlib
import json
import os
import signal

import h5py
import numpy as np
import pandas as pd
import pytest
from conftest import red_noise, write_cutouts

from nenya.cli import run_command
from nenya.commands import derive as derive_module
from nenya.io import read_table, write_table
from nenya.prepare.derive import Derivation
from nenya.tables.quantities import central_dt

ROWS = {"train": 30, "valid": 12}
SIDE = 48


@pytest.fixture
def source(tmp_path):
    """A file of centred cutouts with its table, in another order than the file."""
    images = {name: red_noise(count, SIDE, seed) for seed, (name, count) in enumerate(ROWS.items())}
    images = {name: (v - v.mean(axis=(1, 2), keepdims=True)).astype("f4") for name, v in images.items()}
    path = write_cutouts(tmp_path / "a_preproc.h5", **images, train_labels=np.arange(30))
    with h5py.File(path, "a") as file:
        file.attrs["pointer"] = file["train"].ref  # an attribute that cannot be copied
        file.attrs.update({"sensor": "llc", "row_order": "north_up", "recipe_sha256": "0" * 64})
    every = np.concatenate(list(images.values()))
    level = np.linspace(5, 25, 42)
    table = pd.DataFrame(
        {
            "lat": np.linspace(-40, 40, 42),
            "UID": np.arange(42) + 10**18,
            "mean_temperature": level,
            **{name: np.percentile(every, q, axis=(1, 2)) + level for name, q in (("T10", 10), ("T90", 90))},
            "LL": 1.0,
            "height_km": 96.0,
            **{"row": np.arange(42), "col": 7, "height_px": 96, "width_px": 48},  # each pixel is two rows of the field
            "clear_fraction": np.where(np.arange(42) < 40, 1.0, 0.9),
            "pp_file": "s3://bucket/a_preproc.h5",
            "pp_type": [1] * 30 + [0] * 12,
            "pp_idx": [*range(30), *range(12)],
        }
    ).sample(frac=1, random_state=0)
    write_table(table, tmp_path / "a_preproc.parquet")
    return path


def read(path):
    """Return cutouts (N, H, W) of train, then valid."""
    with h5py.File(path) as file:
        return np.concatenate([file[name][:, 0] for name in ("train", "valid")])


def by_row(path):
    """Return the table of a file in the order of its cutouts."""
    return read_table(path).sort_values(["pp_type", "pp_idx"], ascending=[False, True]).reset_index(drop=True)


def test_each_step_gives_the_pixels_that_it_says(source, nenya_cli, tmp_path):
    old = read(source)
    code, said = nenya_cli("derive", [str(source), "crop=40", "coarsen=2", "demean=false", "out=b_preproc.h5"])
    assert code == 0, said
    want = old[:, 4:44, 4:44].reshape(42, 20, 2, 20, 2).mean(axis=(2, 4))
    assert np.allclose(read("b_preproc.h5"), want, atol=1e-6)
    table, before = by_row("b_preproc.parquet"), by_row("a_preproc.parquet")
    assert (table.UID == before.UID).all() and (table.lat == before.lat).all()
    assert set(table.pp_file) == {"b_preproc.h5"} and (table.pp_type == before.pp_type).all()
    assert np.allclose(table.T90, np.percentile(want, 90, axis=(1, 2)) + before.mean_temperature, atol=1e-5)
    assert np.allclose(table.mean_temperature, want.mean(axis=(1, 2)) + before.mean_temperature, atol=1e-5)
    assert (table.row == before.row + 8).all() and (table.col == 7 + 4).all() and table.row.dtype.kind == "i"
    assert np.allclose(table.height_km, 80) and "LL" not in table and "LL" in said
    assert (table.clear_fraction == 1).sum() == 40 and table.clear_fraction.isna().sum() == 2
    with h5py.File("b_preproc.h5") as file:
        assert file.attrs["row_order"] == "north_up" and file.attrs["derived_from"] == "a_preproc.h5"
        assert json.loads(file.attrs["derivation"])["coarsen"] == 2
        assert file["train_labels"][:].tolist() == list(range(30))
    code, said = nenya_cli("derive", [str(source), "coarsen=4", "resize=48", "out=same_preproc.h5"])
    assert code == 0 and read("same_preproc.h5").shape == old.shape
    assert np.abs(read("same_preproc.h5").mean(axis=(1, 2))).max() < 1e-5, "centred as the source"


def test_noise_is_seeded_and_independent_of_blocks_and_of_earlier_noise(source, nenya_cli, monkeypatch):
    args = [str(source), "noise=0.2", "seed=5", "demean=false"]
    for name in ("one", "two"):
        monkeypatch.setattr("nenya.data.cutouts._PIECE_BYTES", 2**25 if name == "one" else 4 * SIDE * SIDE * 7)
        assert nenya_cli("derive", [*args, f"out={name}_preproc.h5"])[0] == 0
    old, one = read(source), read("one_preproc.h5")
    assert np.array_equal(one, read("two_preproc.h5"))
    noise = (one - old).astype(float)
    assert noise.std() == pytest.approx(0.2, rel=0.01) and abs(noise.mean()) < 3e-3
    assert np.abs(np.corrcoef(noise.reshape(42, -1)) - np.eye(42)).max() < 0.12
    assert nenya_cli("derive", [*args, "out=three_preproc.h5", "clobber=true", "seed=6"])[0] == 0
    assert np.corrcoef((read("three_preproc.h5") - old).ravel(), noise.ravel())[0, 1] < 0.02
    again = ["one_preproc.h5", "noise=0.2", "seed=5", "demean=false", "out=four_preproc.h5"]
    assert nenya_cli("derive", again)[0] == 0
    assert (read("four_preproc.h5") - old).std() == pytest.approx(0.2 * 2**0.5, rel=0.01), "noise adds in quadrature"
    assert nenya_cli("derive", [str(source), "noise=llc_144km", "out=five_preproc.h5"])[0] == 0
    assert (read("five_preproc.h5") - old).std() == pytest.approx(0.039, rel=0.01)


def test_columns_for_an_old_table(source, nenya_cli, tmp_path):
    code, said = nenya_cli("derive", [str(source), "add=[DT40,slopes]", "out=more.csv"])
    assert code == 0, said
    made, old = read_table("more.csv"), read_table(tmp_path / "a_preproc.parquet")
    assert (made.UID == old.UID).all() and made.LL.notna().all(), "rows and columns stay"
    number = np.where(old.pp_type == 1, old.pp_idx, old.pp_idx + 30)
    assert np.allclose(made.DT40, central_dt(read(source), 40)[number], atol=1e-6)
    assert nenya_cli("spectra", [str(source), "table=a_preproc.parquet", "out=spectra"])[0] == 0
    slopes = read_table("spectra/a_preproc_with_alpha.parquet")
    assert np.allclose(made.alpha, slopes.alpha) and np.allclose(made.alpha_err, slopes.alpha_err)


def test_without_a_table_the_new_one_has_keys_and_quantities(source, nenya_cli, tmp_path):
    (tmp_path / "a_preproc.parquet").unlink()
    code, said = nenya_cli("derive", [str(source), "coarsen=2", "add=[slopes]", "band=[4,20]", "out=b_preproc.h5"])
    assert code == 0 and "no table" in said, said
    table = by_row("b_preproc.parquet")
    assert len(table) == 42 and table.alpha.notna().all() and "T90" not in table
    want = np.diff(np.percentile(read("b_preproc.h5"), [10, 90], axis=(1, 2)), axis=0)[0]
    assert np.allclose(table.DT, want, atol=1e-5), "differences need no mean"


def test_the_same_command_finds_its_output_and_another_does_not_overwrite_it(source, nenya_cli):
    args = [str(source), "coarsen=2", "out=b_preproc.h5"]
    assert nenya_cli("derive", args)[0] == 0
    before = os.stat("b_preproc.h5").st_mtime_ns
    code, said = nenya_cli("derive", args)
    assert code == 0 and "exists and is complete" in said and os.stat("b_preproc.h5").st_mtime_ns == before
    code, said = nenya_cli("derive", [*args, "noise=0.1"])
    assert code == 2 and "clobber=true" in said and os.stat("b_preproc.h5").st_mtime_ns == before
    assert nenya_cli("derive", [*args, "noise=0.1", "clobber=true"])[0] == 0
    assert sorted(os.listdir()) == ["a_preproc.h5", "a_preproc.parquet", "b_preproc.h5", "b_preproc.parquet"]


@pytest.mark.parametrize(
    ("args", "wanted"),
    [
        (["coarsen=5", "out=b.h5"], "expected a divisor of 48"),
        (["crop=41", "out=b.h5"], "expected an even number up to 48"),
        (["crop=50", "out=b.h5"], "expected an even number up to 48"),
        (["crop=32", "add=[DT40]", "out=b.h5"], "at least 40 x 40"),
        (["out=b.h5"], "nothing to derive"),
        (["noise=0.1"], "out= is required"),
        (["noise=viirs", "out=b.h5"], "a recipe with noise: llc_144km (0.039)"),
        (["noise=-1", "out=b.h5"], "noise=-1"),
        (["noise=0.1", "out=b.nc"], "expected a cutout file (.h5)"),
        (["noise=0.1", "out=a_preproc.h5", "clobber=true"], "would overwrite its own source"),
        (["noise=0.1", "out=b.csv", "add=[DT40]"], "a table holds no cutouts"),
        (["out=b.csv"], "add=[DT40,slopes]"),
        (["add=[DT41]", "out=b.csv"], "DT41"),
        (["coarsen=2", "out=b.h5", "table=other.parquet"], "no row of the table has a cutout"),
    ],
)
def test_what_cannot_be_is_one_line_and_leaves_nothing(source, nenya_cli, args, wanted):
    write_table(pd.DataFrame({"pp_file": ["z_preproc.h5"], "pp_type": [1], "pp_idx": [0]}), "other.parquet")
    before = sorted(os.listdir())
    code, said = nenya_cli("derive", [str(source), *args])
    assert code == 2 and said.count("\n") == 1 and wanted in said, said
    assert sorted(os.listdir()) == before


def test_a_stop_leaves_nothing_and_the_same_command_does_the_rest(tmp_path):
    path = write_cutouts(tmp_path / "big_preproc.h5", train=np.ones((4000, 64, 64), np.float32))
    original = derive_module.measure

    def derive(number):
        """Run the command in a fork of this process, which gets a signal in mid work; returns how it ended."""
        pid = os.fork()
        if pid == 0:
            code = 1
            with contextlib.suppress(BaseException):
                signal.signal(signal.SIGTERM, signal.SIG_DFL)

                def measure(images, *rest):
                    if len(images) > 1:
                        os.kill(os.getpid(), number)
                    return original(images, *rest)

                derive_module.measure = measure
                code = run_command("derive", [str(path), "noise=0.1", f"out={tmp_path}/b_preproc.h5"])
            os._exit(code)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    assert derive(signal.SIGTERM) == 75
    assert sorted(os.listdir(tmp_path)) == ["big_preproc.h5"]
    assert derive(signal.SIGKILL) == -signal.SIGKILL and not (tmp_path / "b_preproc.h5").exists()
    assert derive(signal.SIGCONT) == 0
    assert sorted(os.listdir(tmp_path)) == ["b_preproc.h5", "b_preproc.parquet", "big_preproc.h5"]


def test_steps_follow_in_their_order():
    images = red_noise(3, 16)
    steps = Derivation(crop=12, coarsen=2, median=(3, 1), resize=8)
    made = steps.apply(images, [])
    want = images[:, 2:14, 2:14].reshape(3, 6, 2, 6, 2).mean(axis=(2, 4))
    padded = np.pad(want, ((0, 0), (1, 1), (0, 0)), mode="symmetric")
    want = np.median(np.stack([padded[:, i : i + 6] for i in range(3)]), axis=0)
    assert made.shape == (3, 8, 8) and steps.side(16) == 8
    assert made.mean() == pytest.approx(want.mean(), abs=0.02) and not Derivation(seed=3)
