"""Disks that are full from any change on: one line, exit code 2, nothing half-written, and the same command goes on."""

import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from conftest import write_cutouts
from granules import grid

from nenya.data.hdf5_open import open_hdf5
from nenya.latents.index import IndexSearcher

TESTS = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Run a command on a disk that is full from a call on: (folder, command, args, call) -> (exit code, output)."""
    if shutil.which("cc") is None or sys.platform != "linux":
        pytest.skip("a C compiler on Linux is needed")
    place = tmp_path_factory.mktemp("library")
    library, log = place / "full_disk.so", place / "log"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, TESTS / "full_disk.c", "-ldl"], check=True)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    env = {**os.environ, "LD_PRELOAD": str(library)}
    server = subprocess.Popen([sys.executable, TESTS / "forked_run.py"], **pipes, text=True, env=env)

    def call(folder, command, args, at=None):
        env = {"FULL_DISK_UNDER": str(folder), "FULL_DISK_AT": str(at)} if at else {}
        request = {"folder": str(folder), "command": command, "args": args, "env": env, "log": str(log)}
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        return int(server.stdout.readline()), log.read_text()

    yield call
    server.stdin.close()
    server.wait(300)


def some_calls(step):
    return itertools.count(1, step)


def leftovers(folder):
    """Return hidden temporaries."""
    return [str(path) for path in folder.rglob("*") if path.name.endswith((".tmp", ".part"))]


def read(path):
    with open_hdf5(path) as file:
        return {name: file[name][()] for name in file}


@pytest.mark.parametrize("step", [89, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_prepare_on_a_full_disk(run, tmp_path, step, workers):
    days = tmp_path / "days"
    days.mkdir()
    for seed in range(2):
        grid(times=1, seed=seed).assign_attrs(day=seed).to_netcdf(days / f"day_{seed}.nc", engine="h5netcdf")
    args = ["sensor=grid", f"data={days}", "field_size=32", f"workers={workers}", "out=c_preproc.h5"]
    (tmp_path / "whole").mkdir()
    assert run(tmp_path / "whole", "prepare", args)[0] == 0
    wanted = read(tmp_path / "whole" / "c_preproc.h5")
    for call in some_calls(step if workers == 1 else 4 * step):
        folder = tmp_path / f"disk-{call}"
        folder.mkdir()
        code, said = run(folder, "prepare", args, at=call)
        if code == 0:
            break
        lines = [line for line in said.splitlines() if not line.startswith("day_")]  # which tell what was read
        assert code == 2 and len(lines) == 1 and "No space left on device" in lines[0], f"call {call}: {said}"
        assert "OSError" not in said and not leftovers(folder), f"call {call}: {said} {leftovers(folder)}"
        there = {path.name for path in folder.iterdir()}
        assert there <= {"c_preproc.h5.partial"}, f"call {call}: {there}"
        for part in folder.rglob("*.npz"):
            np.load(part)["clearest"]
        code, said = run(folder, "prepare", args)
        assert code == 0, f"call {call}: {said}"
        assert {path.name for path in folder.iterdir()} == {"c_preproc.h5", "c_preproc.parquet"}
        came = read(folder / "c_preproc.h5")
        assert came.keys() == wanted.keys()
        for name, values in wanted.items():
            np.testing.assert_array_equal(came[name], values)
        shutil.rmtree(folder)
    assert call > 1


@pytest.mark.parametrize("step", [31, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_index_on_a_full_disk(run, tmp_path, step):
    rows = np.random.default_rng(0).standard_normal((60, 8)).astype(np.float32)
    write_cutouts(tmp_path / "b_latents.h5", train=rows)
    pd.DataFrame({"pp_file": "b.h5", "pp_type": 1, "pp_idx": range(60)}).to_parquet(tmp_path / "b.parquet")
    args = [f"data={tmp_path}/b_latents.h5", f"table={tmp_path}/b.parquet", "out=b.index", "index_from=10"]
    for call in some_calls(step):
        folder = tmp_path / f"disk-{call}"
        folder.mkdir()
        code, said = run(folder, "index", args, at=call)
        if code == 0:
            break
        last = said.splitlines()[-1]
        assert code == 2 and "No space left on device" in last, f"call {call}: {said}"
        assert "Error" not in said and not leftovers(folder), f"call {call}: {said} {leftovers(folder)}"
        code, said = run(folder, "index", args)
        assert code == 0, f"call {call}: {said}"
        archive = IndexSearcher(folder / "b.index")
        assert len(archive) == 60 and archive.about["index"]["rows"] == 60
        np.testing.assert_array_equal(archive.take(np.arange(60)), rows)
        shutil.rmtree(folder)
    assert call > 1


@pytest.mark.parametrize(
    "command",
    ["statistics", *(pytest.param(c, marks=pytest.mark.slow) for c in ("spectra", "search", "export", "inspect"))],
)
def test_several_results_appear_together_on_a_full_disk(run, tmp_path, tiny_weights, command):
    """None of them is there after an error, so that the same command does the work."""
    rows = np.random.default_rng(0).standard_normal((12, 32, 32)).astype(np.float32)
    write_cutouts(tmp_path / "b.h5", train=rows)
    write_cutouts(tmp_path / "b_latents.h5", train=rows.reshape(12, -1)[:, :8])
    keys = {"pp_file": "b.h5", "pp_type": 1, "pp_idx": range(12)}
    pd.DataFrame({**keys, "lat": np.linspace(-9, 9, 12), "lon": 5.0, "DT": 1.0}).to_parquet(tmp_path / "b.parquet")
    data, table = f"data={tmp_path}/b_latents.h5", f"table={tmp_path}/b.parquet"
    args = {
        "statistics": [table, "where='lat > 0'", "out=s.csv"],
        "spectra": [f"data={tmp_path}/b.h5", "out=sp"],
        "search": [data, table, "like=3", f"images={tmp_path}/b.h5", "out=f.csv"],
        "inspect": [f"data={tmp_path}/b.h5", "out=i.json"],
        "export": ["model=demo", f"ckpt={tiny_weights}", "out=w.safetensors"],
    }[command]
    wanted = {"statistics": 2, "spectra": 3, "search": 2, "export": 1, "inspect": 1}[command]
    for call in (2, 6, 10, 80):
        folder = tmp_path / f"disk-{call}"
        folder.mkdir()
        code, said = run(folder, command, args, at=call)
        there = [path for path in folder.rglob("*") if path.is_file()]
        if code == 0:
            assert len(there) == wanted
            break
        last = said.splitlines()[-1]
        assert code == 2 and "No space left on device" in last and "Error" not in last, f"call {call}: {said}"
        assert there == [], f"call {call}: {there}"
    assert call > 2


def test_the_disk_is_full_where_it_is_said_to_be(run, tmp_path):
    """Without the preloaded library's help the same commands end well, so that the tests above test something."""
    rows = np.random.default_rng(0).standard_normal((60, 8)).astype(np.float32)
    with h5py.File(tmp_path / "b_latents.h5", "w") as file:
        file["train"] = rows
    code, said = run(tmp_path, "index", ["data=b_latents.h5", "out=b.index"])
    assert code == 0 and "60 rows" in said
