"""`nenya.train.main` and `nenya.latents_extraction.main` with the users' JSON option files."""

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from conftest import red_noise, write_cutouts

from nenya import latents_extraction, train
from nenya.errors import CheckpointError, FilesFailed, InputFileError, OptionError
from nenya.io import Params, load_opt, losses_filenames
from nenya.models.checkpoint import save_pth
from nenya.train_util import set_model

VALUES = {
    **{"ssl_model": "resnet18", "width": 8, "feat_dim": 16, "nchannels": 1, "random_cropjitter": [24, 3]},
    **{"batch_size_train": 16, "batch_size_valid": 16, "epochs": 2, "learning_rate": 0.05, "cosine": True},
    **{"model_root": "TEST", "images_file": "cutouts.h5", "s3_outdir": "out", "cuda_use": True, "trial": 3},
}


@pytest.fixture
def options(tmp_path, monkeypatch, small_file):
    """A working folder with the cutouts; (changes) -> the option file."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(small_file, "cutouts.h5")

    def make(**changes):
        Path("opts.json").write_text(json.dumps({**VALUES, **changes}))
        return "opts.json"

    return make


def test_train_then_extract_with_one_option_file(options):
    path = options()
    folder = train.main(path)
    opt = Params(path)
    assert folder == Path("out") / opt.model_folder
    content = torch.load(folder / "last.pth", weights_only=True)
    assert content["epoch"] == 2
    with h5py.File(folder / "learning_curve" / f"{opt.model_name}_losses_train.h5") as file:
        assert len(file["loss_train"]) == 2
    latents_extraction.main(path, ["cutouts.h5"])
    latents = Path("out") / opt.latents_folder / "cutouts_latents.h5"
    expected = latents_extraction.model_latents_extract(opt, "cutouts.h5", folder / "last.pth")
    with h5py.File(latents) as file:
        for name in ("train", "valid"):
            np.testing.assert_array_equal(file[name][:], expected[name])


def test_an_earlier_run_is_set_aside_under_its_date(options):
    folder = train.main(options(epochs=1, save_freq=1), save_file="copy.pth")
    last = (folder / "last.pth").read_bytes()
    assert Path("copy.pth").read_bytes() == last
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(OSError, match="none"):
        train.main(options(images_file="none.h5"))
    assert (folder / "last.pth").read_bytes() == last, "nothing moves before the training can start"
    assert train.main(options(epochs=2, save_freq=1)) == folder
    (aside,) = folder.parent.glob(f"{folder.name}_20*")
    assert (aside / "last.pth").read_bytes() == last
    assert {"config.yaml", "opts.json", "ckpt_epoch_1.pth", "learning_curve"} <= {p.name for p in aside.iterdir()}
    assert (folder / "notes.txt").exists()
    assert torch.load(folder / "last.pth", weights_only=True)["epoch"] == 2
    (folder / "notes.txt").unlink()
    train.main(options(epochs=1), clobber=True)
    assert len(list(folder.parent.iterdir())) == 2


def test_the_files_of_the_first_nenya_and_resuming_from_one(options):
    """Epoch 3 from `ckpt_epoch_2.pth` is bit for bit that of the run that went through."""
    folder = train.main(options(epochs=3, save_freq=2))
    assert {path.name for path in folder.glob("ckpt_*")} == {"ckpt_epoch_2.pth"}
    content = torch.load(folder / "last.pth", weights_only=True)
    assert content["optimizer"]["state"][0]["momentum_buffer"].shape == content["model"]["encoder.conv1.weight"].shape
    assert Params(folder / "opts.json").dict == Params("opts.json").dict
    for path in (folder / "checkpoints" / "last.ckpt", folder / "last.pth", folder / "config.yaml"):
        path.unlink()
    theirs = torch.load(folder / "ckpt_epoch_2.pth", weights_only=True)  # as the first nenya wrote it on several GPUs
    names = {name.replace("encoder.", "encoder.module."): value for name, value in theirs["model"].items()}
    torch.save({**theirs, "opt": Params("opts.json"), "model": names}, folder / "ckpt_epoch_2.pth")
    train.main("opts.json", load_epoch=2)
    again = torch.load(folder / "last.pth", weights_only=True)
    assert all(torch.equal(content["model"][key], again["model"][key]) for key in content["model"])
    curves = losses_filenames(Params("opts.json"))
    with h5py.File(curves[0]) as train_file, h5py.File(curves[1]) as valid_file:
        assert len(train_file["loss_train"]) == len(valid_file["loss_valid"]) == 3
        assert len(train_file["loss_step_train"]) == 9
    with pytest.raises(FileNotFoundError, match="load_epoch=1"):
        train.main("opts.json", False, 1)
    with pytest.raises(ValueError, match="load_epoch=3"):
        train.main("opts.json", load_epoch=3)
    assert train.main(options(epochs=3), True, Path("weights.pth")).name.endswith("_debug")
    assert Path("weights.pth").exists(), "older scripts name a file for the weights there"


def test_option_files_of_the_first_years_train_and_extract(options, tmp_path):
    """They give the folders, name the data's folder, and have no s3_outdir."""
    values = {key: value for key, value in VALUES.items() if key not in ("s3_outdir", "images_file", "model_root")}
    values |= {"method": "SimCLR", "model": "resnet18", "dataset": "LLC", "batch_size": 16, "data_folder": "data/"}
    values |= {"model_folder": "./exp/model/", "latents_folder": "./exp/latents/", "epochs": 1, "save_freq": 50}
    for key in ("ssl_model", "batch_size_train"):
        values.pop(key)
    options()
    Path("data").mkdir()
    Path("cutouts.h5").rename("data/cutouts.h5")
    Path("old.json").write_text(json.dumps(values))
    folder = train.main("old.json")
    assert folder == Path("exp/model/SimCLR_LLC_resnet18_lr_0.05_decay_0.0001_bsz_16_temp_0.07_trial_3_cosine_warm")
    assert not list(folder.glob("ckpt_epoch_*"))
    latents_extraction.main("old.json", ["data/cutouts.h5"])
    with h5py.File("exp/latents/cutouts_latents.h5") as file:
        assert file["train"].shape == (40, 16)


def test_a_debug_run_stands_apart(options):
    folder = train.main(options(), debug=True)
    assert folder.name.endswith("_debug")
    assert not list(Path("out/models/TEST").glob("*_warm/last.pth"))


def test_what_an_option_file_must_say(options):
    with pytest.raises(OptionError, match="images_file is required"):
        train.main(options(images_file=""))
    with pytest.raises(InputFileError, match=r"none\.h5: no such file"):
        train.main(options(images_file="none.h5"))
    with pytest.raises(CheckpointError, match=r"checkpoint models/TEST/.*/last\.pth does not exist"):
        latents_extraction.main(options(s3_outdir=""), ["cutouts.h5"])
    with pytest.raises(CheckpointError, match=r"out/models/TEST/.*/last\.pth does not exist"):
        latents_extraction.main(options(), ["cutouts.h5"])


@pytest.fixture
def trained(options):
    """The option file, and the folder of latents, beside weights like those that a run leaves."""
    path = options()
    opt = Params(path)
    net, _ = set_model(opt, cuda_use=False)
    save_pth(Path("out") / opt.model_folder / "last.pth", net, options=opt.dict, epoch=1)
    return path, Path("out") / opt.latents_folder


def test_several_files_of_which_one_fails(trained):
    path, folder = trained
    write_cutouts(Path("b.h5"), valid=red_noise(3))
    Path("bad.h5").write_bytes(b"rubbish")
    with pytest.raises(FilesFailed, match=r"1 of 3 files failed; the first: bad\.h5: not an HDF5 file"):
        latents_extraction.main(path, ["b.h5", "bad.h5", "cutouts.h5"])
    assert sorted(p.name for p in folder.iterdir()) == ["b_latents.h5", "cutouts_latents.h5"]
    with pytest.raises(InputFileError, match="not an HDF5 file"):
        latents_extraction.main(path, ["bad.h5"])


def test_debug_and_clobber(trained):
    path, folder = trained
    latents_extraction.main(path, ["cutouts.h5"], debug=True)
    assert [p.name for p in folder.iterdir()] == ["cutouts_latents_debug.h5"]
    latents_extraction.main(path, ["cutouts.h5"])
    made = (folder / "cutouts_latents.h5").stat().st_mtime_ns
    latents_extraction.main(path, ["cutouts.h5", "cutouts.h5"], clobber=True)
    assert (folder / "cutouts_latents.h5").stat().st_mtime_ns > made


# Latents that are there


@pytest.fixture
def two_files(trained):
    path, folder = trained
    write_cutouts(Path("b.h5"), valid=red_noise(3))
    latents_extraction.main(path, ["cutouts.h5", "b.h5"])
    return path, folder


def again(path):
    latents_extraction.main(path, ["cutouts.h5", "b.h5"])


def test_whole_latents_of_the_same_source_are_left_alone(two_files, caplog):
    path, folder = two_files
    made = {p: p.stat().st_mtime_ns for p in folder.iterdir()}
    caplog.set_level("INFO", logger="nenya")
    again(path)
    Path("b.h5").touch()  # the same bytes
    again(path)
    assert {p: p.stat().st_mtime_ns for p in folder.iterdir()} == made
    assert caplog.text.count("2 files: 2 skipped") == 2


def test_latents_of_another_source_are_not(two_files):
    path, folder = two_files
    before = (folder / "b_latents.h5").read_bytes()
    write_cutouts(Path("b.h5"), valid=red_noise(3, seed=5))
    with pytest.raises(FilesFailed, match=r"b_latents\.h5 exists, made from a source that has changed since: clobber"):
        again(path)
    assert (folder / "b_latents.h5").read_bytes() == before


def test_latents_of_other_weights_are_not(two_files):
    path, _ = two_files
    weights = Path("out") / Params(path).model_folder / "last.pth"
    content = torch.load(weights, weights_only=True)
    content["model"]["head.2.bias"] += 1
    torch.save(content, weights)
    with pytest.raises(FilesFailed, match=r"2 of 2 files failed; the first: .*made with checkpoint_sha256"):
        again(path)


def truncate(path):
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def drop_rows(path):
    with h5py.File(path, "a") as file:
        rows = file["valid"][:-1]
        del file["valid"]
        file["valid"] = rows


def drop_provenance(path):
    with h5py.File(path, "a") as file:
        del file.attrs["checkpoint_sha256"]


@pytest.mark.parametrize(
    ("damage", "words"),
    [(truncate, "is incomplete"), (drop_rows, "expected 3 rows"), (drop_provenance, "has no provenance")],
)
def test_latents_that_are_not_whole_are_not(two_files, damage, words):
    path, folder = two_files
    damage(folder / "b_latents.h5")
    with pytest.raises(FilesFailed, match=rf"1 of 2 files failed; the first: b\.h5: .*{words}.*clobber=true"):
        again(path)
    latents_extraction.main(path, ["cutouts.h5", "b.h5"], clobber=True)
    again(path)


# On S3


def test_training_and_options_on_s3(s3_service, s3_bucket, options, nenya_cli):
    client = s3_service.client()
    client.upload_file("cutouts.h5", s3_bucket, "data/cutouts.h5")
    path = options(s3_outdir=f"s3://{s3_bucket}/SSL/", data_folder=f"s3://{s3_bucket}/data/", width=4, epochs=1)
    client.upload_file(path, s3_bucket, "opts.json")
    url = f"s3://{s3_bucket}/opts.json"
    folder = train.main(url)
    opt = Params(path)
    assert folder == Path(opt.model_folder)
    client.download_file(s3_bucket, f"SSL/{opt.model_folder}/last.pth", "got.pth")
    assert Path("got.pth").read_bytes() == (folder / "last.pth").read_bytes()
    assert f"s3://{s3_bucket}/data/cutouts.h5" in (folder / "config.yaml").read_text()
    latents_extraction.main(url, [f"s3://{s3_bucket}/data/"])
    assert client.head_object(Bucket=s3_bucket, Key=f"SSL/{opt.latents_folder}/cutouts_latents.h5")
    weights = f"s3://{s3_bucket}/SSL/{opt.model_folder}/last.pth"
    found = latents_extraction.model_latents_extract(opt, f"s3://{s3_bucket}/data/cutouts.h5", weights)
    same = latents_extraction.model_latents_extract(opt, "cutouts.h5", folder / "last.pth")
    np.testing.assert_array_equal(found["train"], same["train"])
    code, said = nenya_cli("train", [f"model={url}", f"data=s3://{s3_bucket}/data/", f"init_from={weights}", "out=new"])
    assert code == 0, said
    code, said = nenya_cli("export", [f"model={url}", f"ckpt={weights}", "out=w.safetensors"])
    assert code == 0, said
    code, said = nenya_cli("train", ["resume=new", "trainer.max_epochs=2"])
    assert code == 0, said


def test_the_published_weights_on_s3_are_an_address():
    opt, weights = load_opt("LLC")
    assert weights.startswith("s3://llc/")
    assert opt.feat_dim == 256


def test_what_is_not_on_s3(s3_service, s3_bucket, small_file, trained):
    path, _ = trained
    opt = Params(path)
    weights = Path("out") / opt.model_folder / "last.pth"
    with pytest.raises(CheckpointError, match=r"s3://.*/none\.pth does not exist"):
        latents_extraction.model_latents_extract(opt, small_file, f"s3://{s3_bucket}/none.pth")
    client = s3_service.client()
    client.put_object(Bucket=s3_bucket, Key="bad.h5", Body=b"rubbish")
    with pytest.raises(InputFileError, match=rf"^s3://{s3_bucket}/bad\.h5: not an HDF5 file"):
        latents_extraction.model_latents_extract(opt, f"s3://{s3_bucket}/bad.h5", weights)
    assert not [p for p in Path("outputs").rglob("*") if p.is_file()]
    with pytest.raises(OptionError, match="pp_files is empty"):
        latents_extraction.main(path, [])
    with pytest.raises(InputFileError, match=r"s3://.*/none\.h5: the object does not exist"):
        latents_extraction.model_latents_extract(opt, f"s3://{s3_bucket}/none.h5", weights)


def test_the_help_says_what_the_options_mean_and_leaves_out_what_has_no_use(nenya_cli):
    code, said = nenya_cli("search", ["--help", "k=7"])
    assert code == 0 and "\nk: 7  " in said and "# number of results" in said and "\nlike: null " in said
    assert "data: null" in said and "# latents files" in said
    sections = ("loss", "augment", "optim", "trainer", "checkpoint", "logger")
    assert not [name for name in sections if f"\n{name}:" in said] and "\nmodel:" in said and "\nloader:" in said
    assert "num_workers: 0 " in said and "distinct: false " in said and "\narchive: null " in said
    code, said = nenya_cli("train", ["model=v5", "-h"])
    assert code == 0 and all(f"\n{name}:" in said for name in sections) and "  name: v5 " in said
    assert nenya_cli("search", ["kk=7", "--help"])[0] == 2
