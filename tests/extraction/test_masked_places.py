"""Latents of masked cutouts from and to S3, and by two processes."""

import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import red_noise, write_cutouts

from nenya.data.mask_shapes import varied_masks

ROOT = Path(__file__).resolve().parents[2]
HOW = ["model=demo", "trainer.accelerator=cpu", "preprocess.masked=fill", "loader.block_size=4"]


@pytest.fixture
def cutouts(tmp_path):
    """A file of 16 pixels a side with masks by a data set, values below them, and a wholly masked cutout."""
    masks = varied_masks(22, 16, 0.5, np.random.default_rng(0))
    masks[3], masks[4] = False, True
    path = write_cutouts(tmp_path / "a.h5", train=red_noise(22, 16, 5), valid=red_noise(5, 16, 6))
    with h5py.File(path, "a") as file:
        file["train_mask"] = masks.astype(np.uint8)
    return path


def columns(path):
    with h5py.File(path) as file:
        return {name: file[name][:] for name in file}


def check_same(found, wanted, **tolerance):
    assert set(found) == set(wanted) == {"train", "train_clear", "valid", "valid_clear"}
    for name, values in wanted.items():
        np.testing.assert_allclose(found[name], values, **tolerance)


def test_masks_come_from_s3(cutouts, tmp_path, s3_service, s3_bucket, tiny_weights, nenya_cli):
    client = s3_service.client()
    client.upload_file(str(cutouts), s3_bucket, "in/a.h5")
    for data, out in ((cutouts, tmp_path / "out"), (f"s3://{s3_bucket}/in/a.h5", f"s3://{s3_bucket}/out/")):
        code, said = nenya_cli("extract", [f"data={data}", *HOW, f"ckpt={tiny_weights}", f"out={out}"])
        assert code == 0, said
    client.download_file(s3_bucket, "out/a_latents.h5", str(tmp_path / "got.h5"))
    wanted = columns(tmp_path / "out" / "a_latents.h5")
    check_same(columns(tmp_path / "got.h5"), wanted, rtol=0, atol=0)
    assert np.isnan(wanted["train"]).all(axis=1).tolist() == [row == 4 for row in range(22)]
    assert wanted["train_clear"][3] == 1 and wanted["train_clear"][4] == 0


@pytest.mark.slow
def test_two_processes_fill_what_one_fills(cutouts, tmp_path, tiny_weights, nenya_cli):
    code, said = nenya_cli("extract", [f"data={cutouts}", *HOW, f"ckpt={tiny_weights}", f"out={tmp_path / 'one.h5'}"])
    assert code == 0, said
    command = [sys.executable, ROOT / "scripts" / "extract.py", f"data={cutouts}", *HOW, f"ckpt={tiny_weights}"]
    command += [f"out={tmp_path / 'two.h5'}", "trainer.devices=2", "trainer.strategy=ddp"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    check_same(columns(tmp_path / "two.h5"), columns(tmp_path / "one.h5"), atol=1e-6)
    assert not list(tmp_path.glob("*.partial"))
