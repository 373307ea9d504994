"""Weights from a folder, the Hub and the web; the Hub is a server of its own process, see `hub_server`."""

import hashlib
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import write_cutouts
from safetensors.numpy import load_file, save_file

from nenya.commands.compose import compose
from nenya.commands.network import with_network
from nenya.errors import InputFileError, MissingFileError, NenyaError, OptionError, OutputError, StorageError
from nenya.models.checkpoint import load_checkpoint, save_pth
from nenya.models.contrastive import make_net
from nenya.models.weights import named as by_name
from nenya.models.weights.named import find_weights
from nenya.options.flat import flat_view
from nenya.options.own import permit_arguments
from nenya.storage.hub import HubName, Repository, guarded, parse_name

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
    save_pth(root / "w.pth", make_net(options), options={**flat_view(options), "model_version": "demo"}, epoch=3)
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
    assert {line.split("/")[-1].split()[0] for line in hub.asked()} == {
        *("config.json", "preprocessor.json", "model.safetensors")
    }, "nothing else is asked for"


def test_what_the_user_says_of_the_network_holds_or_is_refused(hub, cutouts, nenya_cli, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def options(*given):
        args = ["ckpt=hf://ocean/net", *given]
        return with_network(compose("extract", [str(cutouts), *args]), args)

    found = options("model.latent=projection", "preprocess.file=none")
    assert (found.model.ssl_model, found.model.width, found.model.latent) == ("resnet18", 4, "projection")
    assert (found.preprocess.file, found.preprocess.masked, found.model.name) == ("none", "mean", "demo")
    assert options("model=v5").model.ssl_model == "resnet50", "a model that is named is taken as it is"
    code, said = nenya_cli("extract", [cutouts, "ckpt=hf://ocean/net", "out=x.h5", CPU, "model.width=8"])
    assert code == 2 and "width 4: set model.width=4" in said.splitlines()[-1] and "hf://ocean/net" in said
    code, said = nenya_cli("extract", [cutouts, "ckpt=hf://ocean/net", "out=y.h5", CPU, "preprocess.file=none"])
    assert code == 0 and "hf://ocean/net says preprocess.file=demean, but preprocess.file=none is set" in said


OWN = """
import torch

class Net(torch.nn.Module):
    out_features = 8

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 8)

    def forward(self, images):
        return self.layer(images.mean(dim=(1, 2, 3))[:, None])
"""


def test_other_networks_go_round(cutouts, nenya_cli, tmp_path, monkeypatch):
    (tmp_path / "my_small_nets.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    mask = ["model.mask_channel=true", "preprocess.masked=mask", "model.width=2"]
    own = ["model.ssl_model=my_small_nets.Net", "preprocess.masked=fill"]
    for name, given, more in (("mask", mask, []), ("own", own, own[:1])):
        named = ["model=demo", *given]
        permit_arguments(named)
        options = compose("extract", named)
        save_pth(tmp_path / f"{name}.pth", make_net(options), options=flat_view(options), epoch=1)
        assert nenya_cli("export", [*named, f"ckpt={name}.pth", f"out={name}/"])[0] == 0
        assert nenya_cli("extract", [*named, f"ckpt={name}.pth", cutouts, f"out={name}.h5", CPU])[0] == 0
        if more:
            code, said = nenya_cli("extract", [f"ckpt={name}/", cutouts, "out=x.h5", CPU])
            assert code == 2 and "give model.ssl_model=my_small_nets.Net if you have that code" in said
        code, said = nenya_cli("extract", [f"ckpt={name}/", *more, cutouts, f"out={name}2.h5", CPU])
        assert code == 0, said
        first, second = (latents_of(tmp_path / f"{name}{n}.h5")[0] for n in ("", "2"))
        np.testing.assert_array_equal(first, second)
        assert np.isfinite(first).all()


def test_the_files_of_a_folder(folder):
    from huggingface_hub import ModelCard

    where, weights = folder
    config, seen = (json.loads((where / name).read_text()) for name in ("config.json", "preprocessor.json"))
    assert config["model"] == {
        **{"name": "demo", "ssl_model": "resnet18", "feat_dim": 64, "nchannels": 1, "width": 4},
        **{"mask_channel": False, "latent": "encoder", "image_size": 32},
    }
    assert (config["latent_dim"], config["license"]) == (32, "cc-by-4.0")
    assert seen["preprocess"] == {"file": "demean", "image": "demean", "masked": "mean", "dt_crop": 24}
    assert any("mean of each cutout is subtracted" in step for step in seen["steps"])
    card = ModelCard((where / "README.md").read_text())
    assert (card.data.license, card.data.library_name) == ("cc-by-4.0", "nenya") and "nenya" in card.data.tags
    assert card.data.pipeline_tag == "image-feature-extraction" and card.text.strip().startswith("# demo")
    everything = b"".join(path.read_bytes() for path in where.iterdir())
    assert b"/secret" not in everything, "paths of the training are not published"
    assert load_checkpoint(where / "model.safetensors").options["preprocess_file"] == "demean"
    assert load_checkpoint(where / "model.safetensors").epoch == load_checkpoint(weights).epoch == 3


def test_a_folder_is_overwritten_only_with_clobber(folder, nenya_cli, tmp_path):
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub/notes.txt").write_text("mine")
    assert nenya_cli("export", [f"ckpt={folder[1]}", "out=hub"])[0] == 0
    code, said = nenya_cli("export", [f"ckpt={folder[1]}", "out=hub"])
    assert code == 2 and "hub/model.safetensors exists (clobber=true" in said
    assert nenya_cli("export", ["ckpt=hub", "out=hub/", "clobber=true", "license=mit", "model.name=mine"])[0] == 0
    assert (tmp_path / "hub/README.md").read_text().count("# mine") == 1
    assert json.loads((tmp_path / "hub/config.json").read_text())["license"] == "mit"
    assert sorted(path.name for path in (tmp_path / "hub").iterdir()) == [
        *("README.md", "config.json", "model.safetensors", "notes.txt", "preprocessor.json")
    ]


WRONG_NAMES = {
    "hf://ocean": "expected hf://owner/name",
    "hf://ocean/net@": "expected hf://owner/name",
    "hf://ocean/../net": "expected hf://owner/name",
    "hf://ocean/net@../x": "expected a branch, a tag or a commit",
    "hf://ocean/net@..%2F..%2Fx": "expected a branch, a tag or a commit",
    "hf://ocean/net@main/../../x.pth": "with a part that is empty, . or ..",
    "hf://ocean/net/README.md": "expected a file ending in .safetensors",
    "hf://datasets/ocean/net": "expected a repository of models, got one of datasets",
    "hf://oce--an/net": "expected hf://owner/name",
    "http://example.org/w.pth": "http:// is taken from this machine only",
    "https://me:secret@example.org/w.pth": "addresses with a password are not taken",
    "https://example.org/page.html": "expected the address of a file ending in .safetensors",
    "https:///w.pth": "expected https://host/path",
    "ftp://example.org/w.pth": "hf://, https://, s3:// or nenya://",
}


@pytest.mark.parametrize("text", WRONG_NAMES)
def test_a_name_that_cannot_be_right(hub, text):
    with pytest.raises(OptionError) as caught:
        find_weights(text)
    assert WRONG_NAMES[text] in str(caught.value) and "secret" not in str(caught.value)
    assert hub.asked() == []


def test_names_of_the_hub():
    assert parse_name("hf://a/b/") == HubName("a/b")
    assert parse_name("hf://a/b") == HubName("a/b") and str(parse_name("hf://models/a/b")) == "hf://a/b"
    found = parse_name("hf://a/b@refs%2Fpr%2F3/deep/w.pth")
    assert found == HubName("a/b", "refs/pr/3", "deep/w.pth") and parse_name(str(found)) == found


FAULTS = {
    "a private repository": ({"private": True}, "hf://ocean/net", MissingFileError, "log in with hf auth login"),
    "a gated repository": ({"gated": True}, "hf://ocean/net", StorageError, "accept the terms at http://127.0.0.1"),
    "no repository": ({}, "hf://ocean/nothing", MissingFileError, "no such repository, or it is private"),
    "no revision": ({}, "hf://ocean/net@v9", MissingFileError, "no revision v9; check the branch, tag or commit"),
    "no commit": ({}, f"hf://ocean/net@{'9' * 40}", MissingFileError, "no revision 9999"),
    "no file": ({}, "hf://ocean/net/gone.pth", MissingFileError, "the repository has no gone.pth"),
    "a hub that is down": ({"down": True}, "hf://ocean/net", StorageError, "the hub answers 503, and model.safeten"),
    "no hub": ({"other": True}, "hf://ocean/net", StorageError, "does not answer as a hub"),
    "a file that is too short": ({"short": "model.safetensors"}, "hf://ocean/net", StorageError, "the hub broke off"),
    "a size": ({"length": 10**12}, "hf://ocean/net", InputFileError, "model.safetensors has 1000000 MB"),
    "a file without an end": ({"long": "model.safetensors"}, "hf://ocean/net", InputFileError, "announced bytes"),
    "no https": ({"insecure": True}, "hf://ocean/net", StorageError, "redirected to example.org, which is not https"),
    "a tag that leaves the cache": ({"etag": "../../../x"}, "hf://ocean/net", StorageError, "sends X-Linked-Etag"),
    "a commit that leaves it": ({"commit": "../../x"}, "hf://ocean/net", StorageError, "sends X-Repo-Commit"),
    "another hash": ({"etag": "0" * 64}, "hf://ocean/net", InputFileError, "differs from the hash that the hub gave"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_what_goes_wrong_at_the_hub_is_one_line(hub, case, tmp_path):
    faults, text, error, words = FAULTS[case]
    hub.faults(**faults)
    with pytest.raises(error) as caught:
        find_weights(text)
    said = str(caught.value)
    assert words in said and said.startswith(text.replace("net/gone", "net@main/gone")) and "\n" not in said
    cached = [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix in (".safetensors", ".json")]
    assert not cached and not (tmp_path / "x").exists()
    hub.faults()
    if "nothing" not in text and "@" not in text and "gone" not in text:
        assert Path(find_weights(text).place).is_file(), "and nothing is left that harms"


@pytest.mark.slow
def test_a_hub_that_breaks_off_again_and_again(hub, tmp_path):
    hub.faults(cut="model.safetensors")
    with pytest.raises(StorageError) as caught:
        find_weights("hf://ocean/net")
    assert str(caught.value).startswith("hf://ocean/net: ") and "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("model.safetensors"))


def test_what_is_cached_is_used_without_a_hub(hub, monkeypatch, caplog):
    assert find_weights("hf://ocean/net").origin["checkpoint_revision"] == FIRST
    for word, fault in (("answers 503", True), ("HF_HUB_OFFLINE is set", False)):
        hub.faults(down=fault)
        if not fault:
            monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        found = find_weights("hf://ocean/net")
        assert found.said["width"] == 4 and found.origin["checkpoint_revision"] == FIRST
        assert word in caplog.text and f"using the revision in the cache, {FIRST}" in caplog.text
        with pytest.raises(StorageError, match="of this revision is not in the cache"):
            find_weights("hf://ocean/net@next")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    forget()
    assert find_weights("hf://ocean/net").origin["checkpoint_revision"] == FIRST
    monkeypatch.setenv("HF_ENDPOINT", "http://example.org")
    forget()
    with pytest.raises(OptionError, match=r"HF_ENDPOINT=http://example\.org: expected an https:// address"):
        find_weights("hf://ocean/net")


def test_a_cache_that_cannot_be_written(hub, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "file"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(OutputError, match=r"hf://ocean/net: cannot write the hub's cache .*: set HF_HUB_CACHE"):
        find_weights("hf://ocean/net")
    with pytest.raises(OutputError, match=r"cannot make the folder .*; set loader\.cache_dir"):
        find_weights(f"{hub.url}/elsewhere/ocean/net/{FIRST}/model.safetensors")


def test_a_commit_in_the_cache_asks_nobody(hub):
    find_weights(f"hf://ocean/net@{FIRST}")
    asked = len(hub.asked())
    hub.faults(down=True)
    assert find_weights(f"hf://ocean/net@{FIRST}").origin["checkpoint_revision"] == FIRST
    assert len(hub.asked()) == asked


def test_a_branch_that_moves_is_followed(hub):
    refs = hub.repository / "refs.json"
    find_weights("hf://ocean/net")
    refs.write_text(json.dumps({"main": SECOND}))
    assert find_weights("hf://ocean/net").origin["checkpoint_revision"] == FIRST, "one run has one revision"
    forget()
    assert find_weights("hf://ocean/net").origin["checkpoint_revision"] == SECOND


def test_a_damaged_cache_is_said_and_mended(hub):
    path = Path(find_weights("hf://ocean/net").place)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.resolve().write_bytes(content)
    forget()
    with pytest.raises(InputFileError, match=r"hf://ocean/net: model.safetensors differs .* run the command again"):
        find_weights("hf://ocean/net")
    assert Path(find_weights("hf://ocean/net").place).is_file()


@pytest.mark.parametrize("scheme", ["hf", "http"])
def test_a_killed_download_is_begun_again(hub, folder, scheme, tmp_path):
    text = "hf://ocean/net" if scheme == "hf" else f"{hub.url}/elsewhere/ocean/net/{FIRST}/model.safetensors"
    hub.faults(slow="model.safetensors")
    words = [sys.executable, "-c", f"from nenya.models.weights.named import find_weights; find_weights({text!r})"]
    process = subprocess.Popen(words, env=dict(os.environ))
    for _ in range(600):
        if (hub.path / "half").exists():
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not list(tmp_path.rglob("*.safetensors")) or scheme == "http"
    hub.faults()
    found = Path(find_weights(text).place)
    assert found.read_bytes() == (folder[0] / "model.safetensors").read_bytes()
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == (scheme == "http"), "the half file was removed"


def edited(hub, file, change):
    path = hub.repository / FIRST / file
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    return path


DAMAGED = {
    "a class to import": ("config.json", lambda v: v["model"].update(ssl_model="os.system"), "nothing was imported"),
    "another network": ("config.json", lambda v: v["model"].update(width=8), "says width 8, its weights are of 4"),
    "a huge network": ("config.json", lambda v: v["model"].update(width=10**9), "model.width=1000000000: expected a"),
    "a hash": ("config.json", lambda v: v["weights"].update(sha256="0" * 64), "expected sha256 0000"),
    "another file": ("config.json", lambda v: v["weights"].update(file="../x"), "weights.file: expected model.safet"),
    "a name with folders": ("config.json", lambda v: v["model"].update(name="../x"), "model.name: expected a plain"),
    "an unknown key": ("config.json", lambda v: v["model"].update(_target_="os.system"), "unknown key '_target_'"),
    "a key that is missing": ("config.json", lambda v: v["model"].pop("latent"), "model.latent is missing"),
    "a newer format": ("config.json", lambda v: v.update(format_version=2), "format_version 2 is of a newer nenya"),
    "another program": ("config.json", lambda v: v.pop("format"), "expected a file of nenya export"),
    "a mask": ("preprocessor.json", lambda v: v["preprocess"].update(masked="mask"), "if, and only if"),
    "a step": (
        "preprocessor.json",
        lambda v: v["preprocess"].update(file="exec"),
        "preprocess.file=exec: expected one",
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_what_a_folder_says_is_checked_as_data(hub, cutouts, nenya_cli, case, tmp_path):
    file, change, words = DAMAGED[case]
    edited(hub, file, change)
    for ckpt in ("hf://ocean/net", hub.repository / FIRST):
        code, said = nenya_cli("extract", [cutouts, f"ckpt={ckpt}", "out=x.h5", CPU])
        assert code == 2 and words in said.splitlines()[-1], said
    assert not (tmp_path / "x.h5").exists()


def test_weights_with_code_in_them_are_refused_unread(hub, cutouts, nenya_cli, tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/ran",)

    (hub.repository / FIRST / "evil.pth").write_bytes(pickle.dumps({"model": Evil()}))
    code, said = nenya_cli("extract", [cutouts, "ckpt=hf://ocean/net/evil.pth", "out=x.h5", CPU])
    assert code == 2 and "hf://ocean/net@main/evil.pth" in said.splitlines()[-1] and not (tmp_path / "ran").exists()


def test_other_files_of_a_repository(hub, folder):
    shutil.copy(folder[1], hub.repository / FIRST / "w.pth")
    found = find_weights("hf://ocean/net/w.pth")
    assert not found.said and found.origin["checkpoint_source"] == "hf://ocean/net@main/w.pth"
    (hub.repository / FIRST / "config.json").unlink()
    forget()
    assert not find_weights("hf://ocean/net").said, "weights alone are weights"
    hub.faults(down=True)
    assert not find_weights("hf://ocean/net").said, "and are known to be alone"


def test_the_web(hub, folder, cutouts, nenya_cli, tmp_path, caplog):
    content = (folder[0] / "model.safetensors").read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    url = f"{hub.url}/elsewhere/ocean/net/{FIRST}/model.safetensors?token=hush"
    code, said = nenya_cli("extract", [cutouts, f"ckpt={url}", f"sha256={sha256}", "out=a.h5", CPU])
    assert code == 0, said
    _, about = latents_of(tmp_path / "a.h5")
    assert about["checkpoint_source"] == url.partition("?")[0] and about["checkpoint_sha256"] == sha256
    assert b"hush" not in (tmp_path / "a.h5").read_bytes()
    hub.faults(down=True)
    assert Path(find_weights(url, sha256).place) == tmp_path / f"cache/nenya/weights/{sha256}/model.safetensors"
    with pytest.raises(StorageError, match="answers 503") as caught:
        find_weights(url)
    assert "hush" not in str(caught.value)
    hub.faults()
    with pytest.raises(InputFileError, match=f"expected sha256 {'0' * 64}, got {sha256}"):
        find_weights(url, "0" * 64)
    assert not (tmp_path / f"cache/nenya/weights/{'0' * 64}").exists()


def test_an_address_without_a_hash_is_followed(hub, folder, caplog):
    caplog.set_level("INFO")
    url, path = f"{hub.url}/elsewhere/ocean/net/w.safetensors", hub.repository / "w.safetensors"
    shutil.copy(folder[0] / "model.safetensors", path)
    first = find_weights(url)
    assert f"sha256={hashlib.sha256(path.read_bytes()).hexdigest()} pins it" in caplog.text
    asked = [line for line in hub.asked() if line.startswith("GET")]
    forget()
    assert find_weights(url) == first
    assert [line for line in hub.asked() if line.startswith("GET")] == asked, "the same file is not fetched again"
    hub.faults(down=True)
    assert find_weights(url) == first and "answers 503" in caplog.text and "using the copy" in caplog.text
    save_file(load_file(path), path, {"changed": "yes"})
    hub.faults()
    assert find_weights(url) != first
    path.unlink()
    forget()
    with pytest.raises(MissingFileError, match="no such file"):
        find_weights(url)


def test_a_copy_of_the_web_that_is_damaged_is_fetched_again(hub, folder, tmp_path, monkeypatch):
    url = f"{hub.url}/elsewhere/ocean/net/{FIRST}/model.safetensors"
    found = find_weights(url, cache_dir=str(tmp_path / "own"))
    assert Path(found.place).parents[1] == tmp_path / "own/weights"
    Path(found.place).write_bytes(b"x")
    hub.faults(short="model.safetensors")
    sha256 = next(iter(found.sha256))
    with pytest.raises(InputFileError, match="expected sha256"):
        find_weights(url, sha256, str(tmp_path / "own"))
    hub.faults(cut="model.safetensors")
    with pytest.raises(NenyaError, match="try again"):
        find_weights(url, sha256, str(tmp_path / "own"))
    hub.faults()
    assert Path(find_weights(url, sha256, str(tmp_path / "own")).place).stat().st_size > 1000
    monkeypatch.setattr(by_name, "MOST_BYTES", 1000)
    with pytest.raises(StorageError, match="expected at most"):
        find_weights(url.replace(FIRST, SECOND), cache_dir=str(tmp_path / "another"))


def test_a_hash_is_checked_of_any_weights(hub, folder, cutouts, nenya_cli, s3_service, s3_bucket):
    s3_service.client().upload_file(str(folder[1]), s3_bucket, "w.pth")
    for ckpt in ("hf://ocean/net", folder[0], folder[1], f"s3://{s3_bucket}/w.pth"):
        code, said = nenya_cli("extract", [cutouts, f"ckpt={ckpt}", "out=x.h5", CPU, f"sha256={'0' * 64}"])
        assert code == 2 and f"expected sha256 {'0' * 64}" in said.splitlines()[-1], said
    code, said = nenya_cli("extract", [cutouts, f"ckpt={folder[1]}", "out=x.h5", CPU, "sha256=abc"])
    assert code == 2 and "sha256=abc: expected 64 hexadecimal digits" in said


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://127.0.0.1:9/x", "127.0.0.1:9, which is not https"),
        ("http://example.org/x", "example.org, which is not https"),
        ("https://10.0.0.1/x", "an inner network, 10.0.0.1"),
        ("https://localhost/x", "an inner network, localhost"),
    ],
)
def test_a_hub_leads_to_no_inner_network(url, words):
    from huggingface_hub.utils import get_session

    with guarded("hf://a/b", "https://hub.example.org"), pytest.raises(StorageError, match=f"hf://a/b: .*{words}"):
        get_session().get(url)


def test_the_hub_is_asked_in_secret_only_of_itself(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_hush")
    repository = Repository(HubName("ocean/net"))
    repository.get("model.safetensors", 10**6)
    asked = hub.asked()
    assert any("/resolve/" in line and "hf_hush" in line for line in asked)
    assert not any("/elsewhere/" in line and "hf_hush" in line for line in asked)
