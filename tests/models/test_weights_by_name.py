"""Weights from a folder, the Hub and the web; the Hub is a server of its own process, see `hub_server`."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import write_cutouts

from nenya.commands.compose import compose
from nenya.models.checkpoint import save_pth
from nenya.models.contrastive import make_net
from nenya.models.weights import named as by_name
from nenya.options.flat import flat_view

CPU = "trainer.accelerator=cpu"
FIRST, SECOND = "1" * 40, "2" * 40


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The stand-in hub: its folder and its address."""
    root = tmp_path_factory.mktemp("hub")
    words = [sys.executable, str(Path(__file__).parents[1] / "hub_server.py"), str(root)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    yield root, f"http://127.0.0.1:{int(process.stdout.readline())}"
    process.terminate()
    process.wait()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of `nenya export` of a network with a preprocessing of its own, and the weights that it is of."""
    from nenya.cli import run_command

    root = tmp_path_factory.mktemp("folder")
    options = compose("train", ["model=demo", "model.width=4", "model.latent=encoder", "archive.data_folder=/secret"])
    save_pth(root / "w.pth", make_net(options), options=flat_view(options), epoch=3)
    given = [f"ckpt={root / 'w.pth'}", "preprocess.file=demean", "preprocess.masked=mean", "license=cc-by-4.0"]
    assert run_command("export", [*given, f"out={root / 'hub'}/"]) == 0
    return root / "hub", root / "w.pth"


@pytest.fixture
def hub(server, folder, tmp_path, monkeypatch):
    """A hub with the repository ocean/net of two commits, an empty cache, and a function that sets what goes wrong."""
    root, address = server
    for name in ("ocean", "faults.json", "asked.txt", "half"):
        path = root / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    for commit in (FIRST, SECOND):
        shutil.copytree(folder[0], root / "ocean/net" / commit)
    (root / "ocean/net" / FIRST / "extra.txt").write_text("is never fetched")
    (root / "ocean/net/refs.json").write_text(json.dumps({"main": FIRST, "next": SECOND, "refs/pr/1": SECOND}))
    monkeypatch.setenv("HF_ENDPOINT", address)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    forget()

    class Hub:
        path, repository, url = root, root / "ocean/net", address

        @staticmethod
        def faults(**found):
            (root / "faults.json").write_text(json.dumps(found))
            forget()

        @staticmethod
        def asked():
            return (root / "asked.txt").read_text().splitlines() if (root / "asked.txt").exists() else []

    return Hub


def forget():
    """Look weights up again, as a new process does."""
    by_name._of_hub.cache_clear()
    by_name._of_web.cache_clear()


@pytest.fixture
def cutouts(tmp_path):
    """Cutouts with a mean and masked pixels, on which each option of the preprocessing has an effect."""
    values = np.random.default_rng(0).normal(3, 1, (9, 32, 32)).astype(np.float32)
    values[::2, :5, :7] = np.nan
    return write_cutouts(tmp_path / "a_preproc.h5", valid=values)


def latents_of(path):
    with h5py.File(path) as file:
        return file["valid"][()], dict(file.attrs)


def test_a_folder_goes_to_the_hub_and_back_bit_for_bit(hub, folder, cutouts, nenya_cli, tmp_path):
    same = ["model=demo", "model.width=4", "model.latent=encoder", "preprocess.file=demean", "preprocess.masked=mean"]
    for name, args in (
        ("pth", [f"ckpt={folder[1]}", *same]),
        ("folder", [f"ckpt={folder[0]}/"]),
        ("hub", ["ckpt=hf://ocean/net"]),
        ("branch", ["ckpt=hf://ocean/net@refs%2Fpr%2F1"]),
    ):
        code, said = nenya_cli("extract", [cutouts, f"out={name}.h5", CPU, *args])
        assert code == 0, said
    wanted, _ = latents_of(tmp_path / "pth.h5")
    assert np.isfinite(wanted).all()
    for name in ("folder", "hub", "branch"):
        np.testing.assert_array_equal(latents_of(tmp_path / f"{name}.h5")[0], wanted)
    found = latents_of(tmp_path / "hub.h5")[1]
    assert (found["checkpoint_source"], found["checkpoint_revision"]) == ("hf://ocean/net", FIRST)
    assert found["checkpoint_sha256"] == hashlib.sha256((folder[0] / "model.safetensors").read_bytes()).hexdigest()
    assert (found["preprocessing"], found["latent"], found["masked"]) == ("demean", "encoder", "mean")
    assert latents_of(tmp_path / "branch.h5")[1]["checkpoint_revision"] == SECOND
    assert not any("extra.txt" in line or "README" in line for line in hub.asked())
