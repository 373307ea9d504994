"""`nenya verify`: good files pass, and each kind of damage is named."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import red_noise, write_cutouts

from nenya.commands.verify import verify_file

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def made(tmp_path_factory, small_file, tiny_weights) -> Path:
    from nenya.cli import run_command

    folder = tmp_path_factory.mktemp("made")
    images = red_noise(6, seed=3)
    images[2, 0, 0] = np.nan
    holes = write_cutouts(folder / "holes.h5", valid=images)
    args = ["model=demo", f"data=[{small_file},{holes}]", f"ckpt={tiny_weights}", f"out={folder}"]
    assert run_command("extract", [*args, "trainer.accelerator=cpu"]) == 0
    return folder


@pytest.fixture
def latents(made, tmp_path) -> Path:
    return Path(shutil.copy(made / "small_preproc_latents.h5", tmp_path))


def test_good_files_pass(nenya_cli, made, small_file):
    code, said = nenya_cli("verify", [made / "small_preproc_latents.h5"])
    assert code == 0, said
    assert "ok " in said and "train 40, valid 24 rows of 64 dimensions, 100.00% finite; model demo" in said
    code, said = nenya_cli("verify", [f"data={made}", f"source=[{small_file},{made}/holes.h5]"])
    assert code == 0, said
    assert "83.33% finite" in said
    assert "2 files: 2 good, 0 bad" in said


def test_a_source_of_another_content_and_the_same_size(made, small_file, nenya_cli, tmp_path):
    other = tmp_path / small_file.name
    shutil.copy(small_file, other)
    with h5py.File(other, "a") as file:
        file["train"][3] = 2 * file["train"][3]
    assert other.stat().st_size == small_file.stat().st_size
    code, said = nenya_cli("verify", [f"{made}/{small_file.stem}_latents.h5", f"source={other}"])
    assert code == 2 and "differs from the source of the latents" in said, said


def test_the_command_for_scripts(made, tmp_path):
    command = [sys.executable, ROOT / "scripts" / "verify.py"]
    done = subprocess.run([*command, made / "holes_latents.h5"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    done = subprocess.run([*command, tmp_path / "none_latents.h5"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "none_latents.h5" in done.stderr


def flip(path):
    with h5py.File(path) as file:
        place = file["valid"].id.get_offset() + 4 * (64 * 5 + 3)
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)
        file.seek(place)
        file.write(bytes([byte[0] ^ 1]))


def change(name, value):
    def damage(path):
        with h5py.File(path, "a") as file:
            file["train"][3] = value

    return damage


def drop(what):
    def damage(path):
        with h5py.File(path, "a") as file:
            del (file if what in file else file.attrs)[what]

    return damage


def cut(path):
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def shorten(path):
    with h5py.File(path, "a") as file:
        rows = file["valid"][:-1]
        del file["valid"]
        file["valid"] = rows


DAMAGES = {
    "a flipped bit": (flip, "altered since it was written"),
    "a row of zeros": (change("train", 0), "1 row of 'train' is not of length 1"),
    "a row of NaN": (change("train", np.nan), "1 row is not finite, expected 0 as when it was written"),
    "a partition that is gone": (drop("train"), "incomplete"),
    "a row that is gone": (shorten, "expected 24 rows"),
    "half a file": (cut, "incomplete"),
    "no provenance": (drop("checkpoint_sha256"), "has no provenance"),
    "no file of HDF5": (lambda path: path.write_bytes(b"rubbish"), "not an HDF5 file"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_named(nenya_cli, latents, made, name):
    damage, words = DAMAGES[name]
    damage(latents)
    assert verify_file(latents).problems
    code, said = nenya_cli("verify", [latents])
    assert (code, said.count("\n")) == (2, 1), said
    assert words in said
    code, said = nenya_cli("verify", [latents, made / "holes_latents.h5"])
    assert code == 1
    assert f"BAD  {latents}: " in said and "2 files: 1 good, 1 bad" in said


def test_files_of_the_first_nenya(nenya_cli, tmp_path):
    rows = np.random.default_rng(0).standard_normal((7, 16)).astype(np.float32)
    with h5py.File(tmp_path / "old_latents.h5", "w") as file:
        file["valid"] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    assert nenya_cli("verify", [tmp_path / "old_latents.h5"])[0] == 2
    code, said = nenya_cli("verify", [tmp_path / "old_latents.h5", "provenance=false"])
    assert code == 0, said
    assert "valid 7 rows of 16 dimensions, 100.00% finite; no provenance" in said
    with h5py.File(tmp_path / "old_latents.h5", "a") as file:
        file["valid"][2] *= 2
    code, said = nenya_cli("verify", [tmp_path / "old_latents.h5", "provenance=false"])
    assert code == 2
    assert "1 row of 'valid' is not of length 1" in said


def test_another_source(nenya_cli, latents, tmp_path):
    other = write_cutouts(tmp_path / "small_preproc.h5", train=red_noise(40, seed=1), valid=red_noise(23, seed=2))
    code, said = nenya_cli("verify", [latents, f"source={other}"])
    assert code == 2
    assert "'valid' has 24 rows" in said and "has 23 cutouts" in said
    code, said = nenya_cli("verify", [latents, f"source={write_cutouts(tmp_path / 'x.h5', train=red_noise(2))}"])
    assert code == 2
    assert "source= has no small_preproc.h5" in said


def test_nothing_to_verify(nenya_cli, tmp_path):
    for args, words in (
        ([], "data= is needed"),
        ([tmp_path], "no latents file"),
        ([tmp_path / "gone_latents.h5"], "gone_latents.h5: no such file; check the path"),
        ([f"data={tmp_path}/*.h5"], "no latents"),
    ):
        code, said = nenya_cli("verify", args)
        assert code == 2 and words in said


def test_files_on_s3(s3_service, s3_bucket, nenya_cli, made, small_file, tiny_weights, tmp_path):
    client = s3_service.client()
    client.upload_file(str(small_file), s3_bucket, "in/small_preproc.h5")
    place = f"s3://{s3_bucket}"
    args = ["model=demo", f"data={place}/in/", f"ckpt={tiny_weights}", f"out={place}/out/", "trainer.accelerator=cpu"]
    assert nenya_cli("extract", args)[0] == 0
    code, said = nenya_cli("verify", [f"data={place}/out/", f"source={place}/in/"])
    assert code == 0, said
    metadata = client.head_object(Bucket=s3_bucket, Key="out/small_preproc_latents.h5")["Metadata"]
    body = bytearray((made / "small_preproc_latents.h5").read_bytes())
    body[-100] ^= 1
    client.put_object(Bucket=s3_bucket, Key="out/small_preproc_latents.h5", Body=bytes(body), Metadata=metadata)
    code, said = nenya_cli("verify", [f"{place}/out/small_preproc_latents.h5"])
    assert code == 2
    assert "small_preproc_latents.h5" in said and said.count("\n") == 1
    assert json.loads(metadata["nenya"])["rows"]
    assert not [p for p in (tmp_path / "outputs").rglob("*") if p.is_file()]


@pytest.mark.parametrize("name", ["precision", "model_version", "source_size"])
def test_an_attribute_that_is_a_list(latents, nenya_cli, name):
    with h5py.File(latents, "a") as file:
        file.attrs[name] = np.arange(3)
    code, said = nenya_cli("verify", [latents])
    assert code == 2 and f"attribute '{name}' is a list" in said and "ValueError" not in said
