"""`--multirun`: a job for each file, in this process and by submitit's local executor."""

import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import red_noise, write_cutouts

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def files(tmp_path):
    for seed, name in enumerate(["a", "b, c", "d=e"]):
        write_cutouts(tmp_path / f"{name}.h5", valid=red_noise(3, seed=seed))
    return tmp_path


@pytest.fixture
def expected(nenya_cli, files, tiny_weights, tmp_path_factory):
    out = tmp_path_factory.mktemp("expected")
    args = ["model=demo", f"data={files}", f"ckpt={tiny_weights}", f"out={out}", "trainer.accelerator=cpu"]
    assert nenya_cli("extract", args)[0] == 0
    return out


def assert_same(folder, expected):
    made = sorted(p.name for p in folder.glob("*_latents.h5"))
    assert made == sorted(p.name for p in expected.iterdir())
    for name in made:
        with h5py.File(folder / name) as one, h5py.File(expected / name) as other:
            np.testing.assert_array_equal(one["valid"][:], other["valid"][:])


def test_in_this_process(nenya_cli, files, expected, tiny_weights):
    (files / "bad.h5").write_bytes(b"rubbish")
    args = ["--multirun", "model=demo", f"data={files}", f"ckpt={tiny_weights}", "trainer.accelerator=cpu"]
    code, said = nenya_cli("extract", args)
    assert code == 1, said
    assert "4 jobs: 3 done, 1 failed" in said
    assert f"failed   {files}/bad.h5" in said
    assert_same(files, expected)
    assert sorted(p.name for p in files.iterdir() if not p.name.endswith(".h5")) == []


def test_a_share_is_of_the_list_not_of_each_job(nenya_cli, files, expected, tiny_weights, tmp_path):
    out = tmp_path / "shares"
    args = [
        "--multirun",
        "model=demo",
        f"data={files}",
        f"out={out}",
        f"ckpt={tiny_weights}",
        "trainer.accelerator=cpu",
    ]
    code, said = nenya_cli("extract", [*args, "shard=1/2"])
    assert code == 0 and "shard 1/2: 1 of 3 files" in said and "1 jobs: 1 done" in said, said
    assert len(list(out.iterdir())) == 1
    code, said = nenya_cli("extract", [*args, "shard=0/2"])
    assert code == 0 and "2 jobs: 2 done" in said, said
    assert_same(out, expected)


@pytest.mark.slow
def test_by_processes_of_the_launcher(files, expected, tiny_weights, tmp_path):
    (files / "bad.h5").write_bytes(b"rubbish")
    command = [sys.executable, ROOT / "scripts" / "extract.py", "-m", "hydra/launcher=local", "model=demo"]
    command += [f"data=[{files}/a.h5,'{files}/b, c.h5',{files}/d=e.h5,{files}/bad.h5]", f"ckpt={tiny_weights}"]
    done = subprocess.run([*command, "trainer.accelerator=cpu"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "4 jobs: 3 done, 1 failed" in done.stderr
    assert f"failed   {files}/bad.h5: " in done.stderr
    assert_same(files, expected)
    assert [p.name for p in (tmp_path / "outputs").iterdir()] == ["multirun"]  # the launcher's logs


@pytest.mark.slow
def test_several_tasks_of_one_job_share_a_file(files, expected, tiny_weights, tmp_path):
    command = [sys.executable, ROOT / "scripts" / "extract.py", "-m", "hydra/launcher=local", "model=demo"]
    command += ["hydra.launcher.tasks_per_node=2", f"data={files}/a.h5", f"ckpt={tiny_weights}", "trainer.strategy=ddp"]
    command += ["trainer.accelerator=cpu", "trainer.devices=2", "loader.block_size=1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    with h5py.File(files / "a_latents.h5") as one, h5py.File(expected / "a_latents.h5") as other:
        np.testing.assert_allclose(one["valid"][:], other["valid"][:], atol=1e-6)


def test_what_cannot_be_swept(nenya_cli, files, tiny_weights):
    args = [f"data={files}", f"ckpt={tiny_weights}", "model=demo", "trainer.accelerator=cpu"]
    cases = {
        "trainer.devices=2": "--multirun runs its jobs in one process, but trainer.devices starts several",
        "hydra/launcher=nonsense": "nonsense",
        "modle=v5": "did you mean model",
        "hydra/launcher=slurm": "this machine has no SLURM",
        "data=/nowhere/*.h5": "no file matches",
    }
    for override, words in cases.items():
        kept = [arg for arg in args if arg.partition("=")[0] != override.partition("=")[0]]
        code, said = nenya_cli("extract", ["--multirun", *kept, override])
        assert code == 2, said
        assert words in said
        assert said.count("\n") == 1
