"""Two processes on one batch over S3."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import red_noise, write_cutouts

from nenya.errors import Interrupted
from nenya.extraction.ranks import Follower, Leader

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["lightning", "torchrun"])
def test_two_processes_make_what_one_makes(s3_service, s3_bucket, tiny_weights, tmp_path, nenya_cli, launcher):
    client = s3_service.client()
    for seed, name in enumerate("abc"):
        path = write_cutouts(tmp_path / f"{name}.h5", train=red_noise(11, seed=seed), valid=red_noise(3, seed=9 + seed))
        client.upload_file(str(path), s3_bucket, f"in/{name}.h5")
    client.put_object(Bucket=s3_bucket, Key="in/bad.h5", Body=b"rubbish")
    work = tmp_path / "work"
    work.mkdir()
    start = [sys.executable]
    if launcher == "torchrun":
        start += ["-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0", "--rdzv-backend=c10d"]
        start += ["--rdzv-endpoint=127.0.0.1:0"]
    command = [
        *start,
        ROOT / "scripts" / "extract.py",
        "model=demo",
        f"data=s3://{s3_bucket}/in/",
        f"ckpt={tiny_weights}",
    ]
    command += [f"out=s3://{s3_bucket}/out/", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.strategy=ddp"]
    done = subprocess.run([*command, "loader.block_size=4"], cwd=work, capture_output=True, text=True, timeout=900)
    assert done.returncode == 1, done.stderr
    assert "4 files: 3 done, 1 failed" in done.stderr
    assert not [p for p in (work / "outputs").rglob("*") if p.is_file()]
    code, said = nenya_cli(
        "extract", ["model=demo", "data=[a.h5,b.h5,c.h5]", f"ckpt={tiny_weights}", "trainer.accelerator=cpu"]
    )
    assert code == 0, said
    for name in "abc":
        client.download_file(s3_bucket, f"out/{name}_latents.h5", str(tmp_path / "got.h5"))
        with h5py.File(tmp_path / "got.h5") as came, h5py.File(tmp_path / f"{name}_latents.h5") as expected:
            assert json.loads(came.attrs["rows"]) == {"train": 11, "valid": 3}
            for part in ("train", "valid"):
                np.testing.assert_allclose(came[part][:], expected[part][:], atol=1e-6)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "batch-1"
    folder.mkdir()
    (folder / "lock").touch()
    return folder


def test_what_is_told_is_heard(folder, monkeypatch):
    monkeypatch.setenv("NENYA_BATCH", "")  # so that it is unset afterwards
    with Leader(folder) as leader:
        follower = Follower(folder.parent)
        leader.tell(0, [Path("/a.h5"), Path("/b.h5"), "s3://x/a.h5"])
        leader.tell(1, None)
        assert follower.hear(0) == ["/a.h5", "/b.h5", "s3://x/a.h5"]
        assert follower.hear(1) is None
        threading.Timer(0.3, leader.tell, (2, ["late"])).start()
        lock = (folder / "lock").open("rb")
        import fcntl

        fcntl.flock(lock, fcntl.LOCK_EX)
        assert follower.hear(2) == ["late"]
        leader.end()
        with pytest.raises(EOFError):
            follower.hear(3)
        lock.close()
    assert "NENYA_BATCH" not in os.environ


def test_a_first_process_that_is_gone(folder, monkeypatch):
    monkeypatch.setenv("NENYA_BATCH", str(folder))
    with pytest.raises(Interrupted, match="the first process of the batch has ended"):
        Follower(folder.parent).hear(0)


def test_processes_that_were_started_together_meet(folder, monkeypatch):
    for name, value in {"RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "12345"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("NENYA_BATCH", "")  # so that it is unset afterwards
    with Leader(folder) as leader:
        leader.tell(0, ["x"])
        monkeypatch.delenv("NENYA_BATCH")
        assert Follower(folder.parent).hear(0) == ["x"]
        pointer = next(folder.parent.glob("session-*"))
        os.utime(pointer, (1, 1))  # of a run long ago
        other = Follower(folder.parent)
        renewed = []
        threading.Timer(0.3, lambda: (renewed.append(True), os.utime(pointer))).start()
        assert other.hear(0) == ["x"] and renewed
    assert not list(folder.parent.glob("session-*"))
