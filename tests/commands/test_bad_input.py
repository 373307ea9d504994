import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import red_noise, write_cutouts

import nenya.storage.disk

ROOT = Path(__file__).resolve().parents[2]
BOTH = ("extract", "train")


def tree(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


@pytest.fixture
def refused(nenya_cli, small_file, tiny_weights, tmp_path):
    """Run a command that must fail with one line that holds the given words, and leave nothing behind.

    What is not among the overrides is good: the model, the file, the weights, the folder.
    """

    def call(command, overrides, *words):
        good = {"model": "demo", "data": small_file, "trainer.accelerator": "cpu"}
        if command == "train":
            good |= {"loader.batch_size_train": 4}
        if command == "extract":
            good |= {"ckpt": tiny_weights, "out": tmp_path / "new"}
        given = {o.partition("=")[0] for o in overrides}
        before = tree(tmp_path)
        args = [f"{key}={value}" for key, value in good.items() if key not in given]
        code, said = nenya_cli(command, [*args, *(o for o in overrides if not o.endswith("=LEAVE_OUT"))])
        lines = said.splitlines()
        assert (code, len(lines)) == (2, 1), said
        assert lines[0].startswith(f"nenya {command}: ")
        for word in words:
            assert str(word) in lines[0]
        assert tree(tmp_path) == before
        return lines[0]

    return call


# Cutout files


def truncated(path):
    write_cutouts(path, train=red_noise(20), valid=red_noise(8))
    os.truncate(path, path.stat().st_size // 2)


def cutouts(**partitions):
    return lambda path: write_cutouts(path, **partitions)


def plain_text(path):
    path.write_text("latitude,longitude\n")


def link_to_nowhere(path):
    path.symlink_to(path.with_name("gone"))


FILES = {
    "no such file": (lambda path: None, ["no such file"]),
    "a dangling link": (link_to_nowhere, ["no such file"]),
    "a folder": (lambda path: path.mkdir(), ["folder", "name a cutout file"]),
    "not HDF5": (plain_text, ["not an HDF5 file"]),
    "an empty file": (lambda path: path.touch(), ["is empty", "copy"]),
    "cut short": (truncated, ["truncated", "copy"]),
    "neither partition": (
        cutouts(images=red_noise(4)),
        ["train or valid", "images (4, 1, 32, 32)", "loader.train_key"],
    ),
    "holds no data sets": (cutouts(), ["holds no data sets"]),
    "wrong rank": (cutouts(train=np.zeros((4, 32), np.float32)), ["'train'", "(4, 32)", "(N, H, W)"]),
    "five dimensions": (cutouts(train=np.zeros((4, 1, 1, 32, 32), np.float32)), ["(4, 1, 1, 32, 32)", "reshape"]),
    "two channels": (cutouts(train=np.zeros((4, 2, 32, 32), np.float32)), ["2 channels", "keep one"]),
    "channels last": (cutouts(train=np.zeros((4, 32, 32, 1), np.float32)), ["channels last", "move the channel"]),
    "not square": (cutouts(train=np.zeros((4, 32, 24), np.float32)), ["32 x 24", "squares"]),
    "integers": (cutouts(train=np.zeros((4, 32, 32), np.int16)), ["int16", "convert the data to float32"]),
    "no rows": (cutouts(train=np.zeros((0, 32, 32), np.float32)), ["(0, 1, 32, 32)", "no cutouts"]),
    "bad second partition": (
        cutouts(train=red_noise(4), valid=np.zeros((4, 32, 24), np.float32)),
        ["'valid'", "32 x 24"],
    ),
    "too small": (cutouts(train=red_noise(4, side=6)), ["6 x 6", "at least 8"]),
}


@pytest.mark.parametrize("command", BOTH)
@pytest.mark.parametrize("kind", FILES)
def test_cutout_files(refused, tmp_path, command, kind):
    make, words = FILES[kind]
    make(tmp_path / "bad.h5")
    refused(command, [f"data={tmp_path}/bad.h5"], tmp_path / "bad.h5", *words)


@pytest.mark.parametrize("command", BOTH)
def test_a_glob_that_matches_nothing(refused, tmp_path, command):
    refused(command, [f"data={tmp_path}/*_preproc.h5"], f"{tmp_path}/*_preproc.h5", "no file matches", "check")


@pytest.mark.parametrize("command", BOTH)
@pytest.mark.parametrize("data", ["data=LEAVE_OUT", "data=", "data=null", "data=[]"])
def test_no_data(refused, command, data):
    refused(command, [data], "data= is needed", "/path/to/")


@pytest.mark.parametrize("command", BOTH)
def test_an_unknown_place(refused, command, monkeypatch):
    monkeypatch.delenv("NOWHERE", raising=False)
    refused(command, ["data=$NOWHERE/a.h5"], "$NOWHERE/a.h5", "NOWHERE is not set")


@pytest.mark.parametrize("command", BOTH)
def test_a_file_that_may_not_be_read(refused, tmp_path, small_file, command):
    path = Path(shutil.copy(small_file, tmp_path / "secret.h5"))
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    refused(command, [f"data={path}"], path, "permissions")


def test_training_needs_its_partition(refused, tmp_path):
    write_cutouts(tmp_path / "valid.h5", valid=red_noise(4))
    write_cutouts(tmp_path / "train.h5", train=red_noise(4))
    both = f"data=[{tmp_path}/train.h5,{tmp_path}/valid.h5]"
    refused("train", [both], tmp_path / "valid.h5", "'train'", "loader.train_key")


def test_training_files_have_one_size(refused, tmp_path, small_file):
    write_cutouts(tmp_path / "large.h5", train=red_noise(4, side=40))
    refused("train", [f"data=[{small_file},{tmp_path}/large.h5]"], tmp_path / "large.h5", "40 x 40", "32 x 32")


@pytest.mark.parametrize("crop", ["[40,5]", "[33,0]"])
def test_a_crop_beyond_the_cutout(refused, crop):
    refused("train", [f"augment.random_jitter={crop}"], "random_jitter", "32 x 32")


LABELS = {
    "none": ({}, ["'train_labels'", "use SimCLR"]),
    "too few": ({"train_labels": np.arange(4)}, ["'train_labels'", "(4,)", "(6,)"]),
    "no numbers": ({"train_labels": np.linspace(0, 1, 6)}, ["'train_labels'", "float64", "integers"]),
    "a table": ({"train_labels": np.zeros((6, 2), int)}, ["'train_labels'", "(6, 2)"]),
    "none for validation": ({"train_labels": np.arange(6), "valid": red_noise(3)}, ["'valid_labels'"]),
}


@pytest.mark.parametrize("kind", LABELS)
def test_labels(refused, tmp_path, kind):
    others, words = LABELS[kind]
    path = write_cutouts(tmp_path / "classes.h5", train=red_noise(6), **others)
    refused("train", [f"data={path}", "loss.ssl_method=SupCon"], path, *words)


# Weights

WEIGHTS = {"extract": "ckpt", "train": "init_from"}


def torn(path, weights):
    path.write_bytes(weights.read_bytes()[:5000])


def rubbish(path, weights):
    path.write_bytes(os.urandom(3000))


def not_weights(path, weights):
    torch.save({"table": torch.zeros(3)}, path)


CHECKPOINTS = {
    "missing": (lambda path, weights: None, ["does not exist", ".safetensors"]),
    "folder": (lambda path, weights: path.mkdir(), ["folder"]),
    "empty": (lambda path, weights: path.touch(), ["is empty"]),
    "truncated": (torn, ["damaged", "Copy it again"]),
    "rubbish": (rubbish, ["damaged"]),
    "no weights": (not_weights, ["expected weights under 'model'", "table"]),
}


@pytest.mark.parametrize("command", BOTH)
@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_checkpoints(refused, tiny_weights, tmp_path, command, kind):
    make, words = CHECKPOINTS[kind]
    make(tmp_path / "bad.pth", tiny_weights)
    refused(command, [f"{WEIGHTS[command]}={tmp_path}/bad.pth"], tmp_path / "bad.pth", *words)


@pytest.mark.parametrize("command", BOTH)
def test_a_hostile_checkpoint_is_never_run(refused, goldens, command, capfd):
    path = goldens / "checkpoints" / "tiny_hostile.pth"
    refused(command, [f"{WEIGHTS[command]}={path}"], path, "refused", "nothing was executed")
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("command", BOTH)
@pytest.mark.parametrize(
    ("override", "fits"),
    [
        ("model.ssl_model=resnet34", "model.ssl_model=resnet18"),
        ("model.ssl_model=resnet50", "model.ssl_model=resnet18"),
        ("model.feat_dim=128", "model.feat_dim=64"),
        ("model.width=8", "model.width=16"),
    ],
)
def test_weights_of_another_network(refused, tiny_weights, command, override, fits):
    refused(command, [f"{WEIGHTS[command]}={tiny_weights}", override], tiny_weights, ": set " + fits)


def test_weights_of_other_channels_to_start_from(refused, tiny_weights):
    refused("train", [f"init_from={tiny_weights}", "model.nchannels=3"], ": set model.nchannels=1")


def test_a_model_without_weights(refused):
    refused("extract", ["ckpt=LEAVE_OUT"], "ckpt= is required", "demo")


def test_published_weights_whose_place_is_unknown(refused, monkeypatch):
    monkeypatch.delenv("OS_SST", raising=False)
    refused("extract", ["ckpt=LEAVE_OUT", "model=v5"], "OS_SST", "not set", "ckpt=")


# Places to write to


@pytest.fixture
def read_only_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no right to mount a disk")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("command", BOTH)
def test_a_read_only_disk(refused, read_only_disk, command):
    for folder in (read_only_disk, read_only_disk / "new"):
        refused(command, [f"out={folder}"], folder, "out=")


@pytest.mark.parametrize("command", BOTH)
@pytest.mark.parametrize("out", ["file/below", "file/below/deeper"])
def test_a_folder_that_cannot_be(refused, tmp_path, command, out):
    (tmp_path / "file").write_text("a file")
    refused(command, [f"out={tmp_path}/{out}"], tmp_path / out, "is a file, expected a folder", "out=")


@pytest.mark.parametrize("command", BOTH)
def test_out_that_is_a_file(refused, tmp_path, command):
    (tmp_path / "file").write_text("a file")
    refused(command, [f"out={tmp_path}/file"], tmp_path / "file", "out=")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc here")
@pytest.mark.parametrize("command", BOTH)
def test_a_file_system_that_takes_no_files(refused, command):
    refused(command, ["out=/proc/nenya"], "/proc/nenya", "out=")


@pytest.mark.parametrize("command", BOTH)
def test_too_little_room(refused, tmp_path, monkeypatch, command):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(nenya.storage.disk.shutil, "disk_usage", lambda _: usage)
    refused(command, [f"out={tmp_path}"], tmp_path, "needs", "0.0 MB are free", "make room", "out=")


def test_a_run_folder_in_use(refused, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("precious")
    refused("train", [f"out={tmp_path}/run"], tmp_path / "run", "thesis.tex", "out=")
    refused("train", [f"out={tmp_path}/run", "clobber=true"], tmp_path / "run", "thesis.tex", "out=")


@pytest.mark.parametrize("resume", ["last", "outputs/run"])
def test_a_run_that_is_not_there(refused, resume):
    refused("train", [f"resume={resume}"], f"resume={resume}", "run")


# Options

OF_TRAINING = ("optim", "opttim", "augment", "learning_rate")
OPTIONS = {
    "modl=v5": ["unknown option modl", "did you mean model?"],
    "model=demoo": ["model=demoo is unknown", "did you mean demo?", ".json"],
    "model=": ["model= is unknown", "possible:"],
    "trainer=cppu": ["trainer=cppu is unknown", "did you mean cpu?"],
    "logger=wandbb": ["did you mean wandb?"],
    "optim.learning_rat=0.1": ["unknown option optim.learning_rat", "did you mean learning_rate?"],
    "opttim.learning_rate=0.1": ["unknown option opttim", "did you mean optim?"],
    "optim.learning_rate.x=0.1": ["optim.learning_rate has no keys"],
    "feat_dim=3": ["unknown option feat_dim", "it is model.feat_dim"],
    "learning_rate=3": ["it is optim.learning_rate"],
    "max_epochs=3": ["it is trainer.max_epochs"],
    "optim=fast": ["optim is a section", "optim.learning_rate="],
    "optim.learning_rate=abc": ["optim.learning_rate", "abc"],
    "optim.learning_rate=-1": ["optim.learning_rate=-1", "above 0"],
    "optim.learning_rate=nan": ["optim.learning_rate=nan"],
    "optim.lr_decay_epochs=[1,x]": ["optim.lr_decay_epochs", "x"],
    "loader.batch_size_valid=0": ["loader.batch_size_valid=0", "at least 1"],
    "loader.batch_size_valid=2.5": ["loader.batch_size_valid", "2.5"],
    "loader.num_workers=-1": ["loader.num_workers=-1", "at least 0"],
    "model.ssl_model=resnet19": ["model.ssl_model=resnet19", "resnet18"],
    "model.nchannels=2": ["model.nchannels=2", "1, 3"],
    "model.latent=decoder": ["model.latent=decoder", "projection, encoder"],
    "preprocess.file=normalise": ["preprocess.file=normalise", "none, demean"],
    "augment.recipe=v5": ["augment.recipe=v5", "v4, v3, v2"],
    "augment.random_jitter=0": ["augment.random_jitter=0", "[40,5]"],
    "augment.random_jitter=[24]": ["augment.random_jitter", "[crop, jitter]"],
    "augment.flip=perhaps": ["augment.flip", "perhaps"],
    "seed=x": ["seed", "x"],
    "clobber=maybe": ["clobber", "maybe"],
    "data": ["data: expected key=value"],
    "+new=1": ["+new"],
    "~model": ["~model"],
    "trainer.accelerator=abacus": ["trainer", "abacus"],
    "trainer.precision=64-wrong": ["trainer", "64-wrong"],
    "trainer.strategy=chaos": ["trainer", "chaos"],
    "trainer.devices=none": ["trainer", "`devices`"],
}


@pytest.mark.parametrize("command", BOTH)
@pytest.mark.parametrize("override", OPTIONS)
def test_options(refused, command, override):
    if command == "extract" and override.startswith(OF_TRAINING):
        refused(
            command, [override], f"unknown option {override.partition('=')[0]}", "possible: archive, calibration, ckpt"
        )
    else:
        refused(command, [override], *OPTIONS[override])


@pytest.mark.parametrize(
    ("command", "args", "words"),
    [
        ("verify", ["x_latents.h5", "loss.temp=3"], ["unknown option loss.temp", "possible: data, loader"]),
        ("verify", ["x_latents.h5", "optim.momentum=0.1"], ["unknown option optim.momentum"]),
        ("verify", ["--cfg", "job", "loss.temp=3"], ["unknown option loss.temp"]),
        ("search", ["optim.momentum=0.1"], ["unknown option optim.momentum"]),
        ("status", ["clobber=true"], ["unknown option clobber"]),
        ("statistics", ["model=v5"], ["unknown option model"]),
        ("generate", ["data=a.h5"], ["unknown option data", "out= is the output"]),
        ("update", ["out=x"], ["unknown option out", "archive= for the archive"]),
        ("update", ["given=[seed]"], ["unknown option given", "possible: archive, at"]),
    ],
)
def test_what_means_nothing_to_a_command_is_refused(nenya_cli, command, args, words):
    code, said = nenya_cli(command, args)
    assert (code, len(said.splitlines())) == (2, 1), said
    for word in words:
        assert word in said


def test_options_of_the_other_command(refused):
    refused("train", ["ckpt=x.pth"], "unknown option ckpt")
    refused("extract", ["init_from=x.pth"], "unknown option init_from")
    refused("train", ["--multirun"], "--multirun applies to extract")


OPTION_FILES = {
    "missing": (None, ["opts.json: cannot read the option file", "No such file"]),
    "broken": ("{'ssl_model': 1", ["opts.json: not a JSON option file"]),
    "a list": ("[1, 2]", ["opts.json: expected a JSON object", "list"]),
    "unknown key": (json.dumps({"feat_dimm": 64}), ["unknown option feat_dimm", "did you mean feat_dim?"]),
    "a sectioned key": (json.dumps({"model.feat_dim": 64}), ["unknown option model.feat_dim"]),
    "wrong value": (json.dumps({"ssl_model": "vgg"}), ["model.ssl_model=vgg", "resnet18"]),
    "wrong kind": (json.dumps({"feat_dim": "many"}), ["model.feat_dim", "many"]),
    "a nested value": (json.dumps({"feat_dim": {"x": 1}}), ["model.feat_dim"]),
    "two jitters": (
        json.dumps({"random_jitter": [40, 5], "random_cropjitter": [30, 3]}),
        ["random_jitter=[40, 5]", "random_cropjitter=[30, 3]"],
    ),
}


@pytest.mark.parametrize("command", BOTH)
@pytest.mark.parametrize("kind", OPTION_FILES)
def test_option_files(refused, tmp_path, command, kind):
    text, words = OPTION_FILES[kind]
    if text is not None:
        (tmp_path / "opts.json").write_text(text)
    refused(command, [f"model={tmp_path}/opts.json"], *words)


# The face of errors


@pytest.mark.parametrize("command", BOTH)
def test_a_traceback_only_on_demand(nenya_cli, tmp_path, command):
    code, said = nenya_cli(command, ["model=demo", "data=gone.h5", f"out={tmp_path}/new", "traceback=true"])
    lines = said.splitlines()
    assert code == 2
    assert "Traceback (most recent call last):" in lines
    assert lines[-1].startswith(f"nenya {command}: gone.h5: no such file")


def test_help_and_import_are_quick(tmp_path):
    """Neither loads a heavy package; the help names the keys."""

    def modules(*args):
        command = [sys.executable, "-X", "importtime", *map(str, args)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        return done.stdout, {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}

    heavy = {"torch", "lightning", "pytorch_lightning", "umap", "numba", "wandb", "h5py", "boto3", "matplotlib"}
    said, loaded = modules(ROOT / "scripts" / "extract.py", "--help")
    assert "data=" in said and "ckpt=" in said and "model" in said
    listed = said.partition("$CONFIG")[2] or said.partition("== All options")[2]
    places = [listed.index(f"\n{key}:") for key in ("ckpt", "data", "model", "loader")]
    assert places == sorted(places)  # the command's own, those of all, sections
    assert "hydra" in loaded
    assert not heavy & loaded
    _, loaded = modules("-c", "import nenya")
    assert "nenya" in loaded
    assert not (heavy | {"numpy", "hydra"}) & loaded
    assert tree(tmp_path) == []
