"""`nenya inspect`: each kind of file is told, and what is wrong with it."""

import importlib
import pickle
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from conftest import red_noise, write_cutouts

from nenya.commands.inspect import inspect_file, measure_cutouts
from nenya.data.cutouts import inspect_cutouts
from nenya.errors import CheckpointError, InputFileError
from nenya.io import write_table
from nenya.options.commands import InspectOptions

ROOT = Path(__file__).resolve().parents[2]


def demeaned(rows, seed=0):
    images = red_noise(rows, seed=seed)
    return images - images.mean(axis=(1, 2), keepdims=True)


def test_a_good_cutout_file_has_no_warnings(nenya_cli, tmp_path):
    write_cutouts(tmp_path / "a_preproc.h5", train=demeaned(80, 1), valid=demeaned(10, 2))
    code, said = nenya_cli("inspect", ["a_preproc.h5", "out=sheets"])
    assert code == 0, said
    assert "warning" not in said
    assert "train: (80, 1, 32, 32) float32, contiguous" in said and "clear 100.00%" in said
    assert (tmp_path / "sheets" / "a_preproc_contact.png").read_bytes()[:4] == b"\x89PNG"
    report = inspect_file(tmp_path / "a_preproc.h5")
    assert report.sheet.shape == (64, 1, 32, 32)
    with h5py.File(tmp_path / "a_preproc.h5") as file:
        np.testing.assert_array_equal(report.sheet[[0, -1]], file["train"][[0, 79]])


def test_statistics_are_those_of_the_pixels(tmp_path, monkeypatch):
    images = red_noise(30) + np.arange(30, dtype=np.float32)[:, None, None]
    images[4, :8] = np.nan
    images[5] = np.nan
    images[6, 0, 0] = np.inf
    monkeypatch.setattr("nenya.data.cutouts._PIECE_BYTES", 7 * 4096)
    found = measure_cutouts(inspect_cutouts(write_cutouts(tmp_path / "a.h5", train=images)), "train")
    finite = np.where(np.isfinite(images), images, np.nan).astype(np.float64)
    some = [i for i in range(30) if i != 5]
    np.testing.assert_allclose(found.means[some], np.nanmean(finite[some], axis=(1, 2)), rtol=1e-12)
    np.testing.assert_allclose(found.deviations[some], np.nanstd(finite[some], axis=(1, 2)), rtol=1e-9)
    np.testing.assert_allclose(found.clear, np.isfinite(images).mean(axis=(1, 2)))
    assert np.isnan(found.means[5]) and found.rows == 30 and found.repeated == 0
    assert (found.low, found.high) == (np.nanmin(finite), np.nanmax(finite))


@pytest.mark.parametrize(
    ("change", "warning"),
    [
        (lambda f, x: f.create_dataset("train", data=x + 290), "20 cutouts have a nonzero mean"),
        (lambda f, x: f.create_dataset("train", data=x.astype("f8")), "float64 takes twice the space"),
        (lambda f, x: f.create_dataset("train", data=x.astype(">f4")), "big-endian"),
        (lambda f, x: f.create_dataset("train", data=x, chunks=(20, 4, 4), compression="gzip"), "automatic chunks"),
        (lambda f, x: f.create_dataset("train", data=x[[0, 1, 1, 2, 1]]), "2 cutouts repeat an earlier one"),
        (lambda f, x: f.create_dataset("train", data=np.where(x > 1, np.nan, x)), "cutouts hold NaN"),
        (lambda f, x: f.create_dataset("train", data=x * 0), "20 cutouts are constant"),
        (lambda f, x: [f.create_dataset(n, data=x[s]) for n, s in (("train", slice(9)), ("valid", slice(6, 20)))],
         "3 cutouts are in both partitions"),
        (lambda f, x: f.create_dataset("train", data=np.full_like(x, np.nan)), "no finite pixel"),
    ],
)  # fmt: skip
def test_what_would_go_wrong_later_is_said(tmp_path, change, warning):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        change(file, demeaned(20))
    report = inspect_file(tmp_path / "a.h5")
    assert any(warning in line for line in report.warnings), report.warnings


def test_one_chunk_is_one_chunk(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("train", data=demeaned(20)[:, None], chunks=(10, 1, 32, 32))
    (line,) = [line for line in inspect_file(tmp_path / "a.h5").lines if "chunks (" in line]
    assert "one cutout (4 kB) unpacks 1 chunk, 0.04 MB" in line


def test_the_cost_of_a_chunk_is_what_is_unpacked(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("train", data=demeaned(20)[:, None], chunks=(10, 1, 16, 12))
    line = inspect_file(tmp_path / "a.h5").lines[0]
    assert "one cutout (4 kB) unpacks 6 chunks, 0.05 MB" in line  # 2 x 3 chunks of 10 x 16 x 12 x 4 bytes


def test_only_so_many_rows_are_read(tmp_path):
    path = write_cutouts(tmp_path / "a.h5", train=demeaned(30))
    assert any("of the first 12 rows" in line for line in inspect_file(path, InspectOptions(rows=12)).lines)


def test_latents_are_told_from_cutouts(tmp_path):
    latents = np.random.default_rng(1).standard_normal((50, 8)).astype(np.float32)
    latents /= np.linalg.norm(latents, axis=1, keepdims=True)
    latents[3] = np.nan
    write_cutouts(tmp_path / "a_latents.h5", train=latents)
    report = inspect_file(tmp_path / "a_latents.h5")
    assert report.kind.startswith("latents")
    assert "train 50; 8 dimensions" in report.lines[0]
    assert any("no provenance" in line for line in report.warnings)
    assert any("1 row is not finite" in line for line in report.warnings)
    write_cutouts(tmp_path / "b_latents.h5", train=np.tile(latents[:1], (50, 1)))
    assert any("collapsed" in line for line in inspect_file(tmp_path / "b_latents.h5").warnings)


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".feather"])
def test_a_table_and_what_is_wrong_with_it(tmp_path, suffix):
    import pandas as pd

    good = {"lat": [1.0, 2, 3], "lon": [5.0, 6, 7], "pp_file": "a.h5", "pp_type": [0, 1, -1], "pp_idx": [0, 0, 0]}
    write_table(pd.DataFrame({**good, "UID": [1, 2, 3]}), tmp_path / f"good{suffix}")
    report = inspect_file(tmp_path / f"good{suffix}")
    assert report.kind == "table, 3 rows, 6 columns" and not report.warnings
    assert "lat: float64, 1 to 3" in report.lines
    bad = {**good, "lat": [95.0, 2, np.nan], "pp_type": [1, 1, 0], "UID": [1, 1, 2]}
    write_table(pd.DataFrame(bad), tmp_path / f"bad{suffix}")
    warnings = "\n".join(inspect_file(tmp_path / f"bad{suffix}").warnings)
    for part in ("2 rows have a lat", "1 row shares pp_file", "1 row repeats the UID"):
        assert part in warnings
    write_table(pd.DataFrame({"x": ["text", None]}), tmp_path / f"other{suffix}")
    report = inspect_file(tmp_path / f"other{suffix}")
    assert "such as text, 1 missing" in report.lines[0]
    assert "cannot be joined" in report.warnings[0] and len(report.warnings) == 3


def test_a_checkpoint_and_one_with_nan(tmp_path, tiny_weights):
    report = inspect_file(tiny_weights)
    assert report.kind.startswith("checkpoint (pth)")
    assert "feat_dim 64" in report.lines[0] and "epoch 1" in report.lines[1]
    assert not report.warnings
    content = torch.load(tiny_weights, weights_only=True)
    content["model"]["head.2.bias"][0] = float("nan")
    torch.save(content, tmp_path / "bad.pth")
    assert "head.2.bias" in inspect_file(tmp_path / "bad.pth").warnings[0]


class Touch:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_nothing_in_a_hostile_checkpoint_is_run(tmp_path):
    torch.save({"model": {}, "opt": Touch(tmp_path / "ran")}, tmp_path / "bad.pth")
    (tmp_path / "old.pth").write_bytes(pickle.dumps(Touch(tmp_path / "ran")))
    for name in ("bad.pth", "old.pth"):
        with pytest.raises(CheckpointError):
            inspect_file(tmp_path / name)
    assert not (tmp_path / "ran").exists()


def test_a_run_folder(tmp_path):
    run = tmp_path / "run"
    (run / "learning_curve").mkdir(parents=True)
    (run / "config.yaml").write_text("model: {name: v5, feat_dim: 256}\ndata: a.h5\nseed: 3\n")
    (run / "learning_curve" / "a.csv").write_text("epoch,loss_train\n1,5.5\n2,4.25\n")
    report = inspect_file(run)
    assert report.kind == "run folder of model v5"
    assert "loss_train 4.25" in report.lines[-1]
    assert "resume=" in report.warnings[0]
    (run / "config.yaml").write_text("a: !!python/object/apply:os.system ['true']")
    with pytest.raises(InputFileError, match="cannot be read"):
        inspect_file(run)


def test_several_files_of_all_kinds_and_a_bad_one(nenya_cli, tmp_path, tiny_weights):
    write_cutouts(tmp_path / "a.h5", valid=demeaned(3))
    (tmp_path / "cut.h5").write_bytes((tmp_path / "a.h5").read_bytes()[:900])
    code, said = nenya_cli("inspect", ["a.h5", "cut.h5", tiny_weights, "sheet=false"])
    assert code == 1, said
    assert "a.h5: cutouts" in said and "BAD  cut.h5" in said and "checkpoint (pth)" in said
    assert not list(tmp_path.rglob("*.png"))


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("none.h5", None, "none.h5"),
        ("a.txt", b"hello", "unknown kind of file"),
        ("a.parquet", b"PAR1 but not really", "cannot be read as a table"),
        ("a.ckpt", b"", "is empty"),
        ("a.h5", b"\x89HDF\r\n\x1a\n", "a.h5"),
    ],
)
def test_a_bad_file_is_one_line(nenya_cli, tmp_path, name, content, part):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    code, said = nenya_cli("inspect", [name])
    assert code == 2 and part in said and said.count("\n") == 1, said


def test_the_script_does_not_shadow_the_standard_library(tmp_path):
    write_cutouts(tmp_path / "a.h5", valid=demeaned(3))
    command = [sys.executable, ROOT / "scripts" / "inspect_file.py", "a.h5"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "outputs" / "inspect" / "a_contact.png").is_file()
    for script in (ROOT / "scripts").glob("*.py"):
        assert script.stem not in sys.stdlib_module_names
    assert importlib.import_module("inspect").__file__ != str(ROOT / "scripts" / "inspect_file.py")
