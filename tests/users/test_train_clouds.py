"""Trainings under clouds: same seed, same run; killed or stopped, then resumed; masked cutouts; wrong input."""

import os
import shutil
import signal
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from conftest import QUICK, red_noise
from lightning.pytorch.callbacks import Callback

from nenya.models.checkpoint import load_checkpoint
from nenya.runtime import trainer as runtime

CLOUDY = [*QUICK, "model=clouds", "trainer.max_epochs=4"]


@pytest.fixture(scope="module")
def masked_file(tmp_path_factory):
    """40 training and 24 validation cutouts of 32 x 32 pixels, most of them masked in part by NaN."""
    path = tmp_path_factory.mktemp("masked") / "masked_preproc.h5"
    with h5py.File(path, "w") as file:
        for name, count, seed in (("train", 40, 1), ("valid", 24, 2)):
            cutouts = np.asarray(red_noise(count, seed=seed)).reshape(count, 32, 32).astype(np.float32)
            cutouts[5:, 3:12, 8:22] = np.nan
            file[name] = cutouts
    return path


@pytest.fixture(scope="module")
def cloudy_run(tmp_path_factory, masked_file):
    from nenya.cli import run_command

    folder = tmp_path_factory.mktemp("run") / "whole"
    assert run_command("train", [*CLOUDY, f"data={masked_file}", f"out={folder}"]) == 0
    return folder


def steps(run):
    with h5py.File(next(Path(run, "learning_curve").glob("*_losses_train.h5"))) as file:
        return file["loss_step_train"][()]


def weights(run, name="last.pth"):
    return load_checkpoint(Path(run) / name).state_dict


def test_masked_cutouts_are_trained_on_under_clouds(cloudy_run):
    assert len(steps(cloudy_run)) == 4 * 3, "all 40 cutouts"
    found = torch.load(cloudy_run / "checkpoints" / "last.ckpt", weights_only=True)["clouds"]
    assert found["clear_epochs"] == 2
    last = weights(cloudy_run)
    assert found["guide"].keys() == last.keys()
    assert not torch.equal(found["guide"]["encoder.conv1.weight"], last["encoder.conv1.weight"])
    assert last["encoder.conv1.weight"][:, 1].abs().max() > 0
    assert weights(cloudy_run, "checkpoints/last.ckpt").keys() == last.keys()


def test_the_same_seed_gives_the_same_cloudy_run(cloudy_run, masked_file, nenya_cli):
    code, said = nenya_cli("train", [*CLOUDY, f"data={masked_file}", "out=again", "loader.on_device=always"])
    assert code == 0, said
    assert np.array_equal(steps("again"), steps(cloudy_run))


class _Stop(Callback):
    """Sends SIGTERM at the start of the last batch of an epoch."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.current_epoch == self.epoch and batch_idx == 1:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("epoch", [2, *(pytest.param(epoch, marks=pytest.mark.slow) for epoch in (1, 3))])
def test_a_cloudy_run_resumes_to_the_same_bits(cloudy_run, masked_file, nenya_cli, monkeypatch, epoch):
    """Stopped in the last epoch before the clouds, the first with a guide, and a later one."""
    make = runtime.make_trainer

    def stopping(options, **settings):
        if "callbacks" in settings:
            settings["callbacks"] = [_Stop(epoch), *settings["callbacks"]]
        return make(options, **settings)

    with monkeypatch.context() as patched:
        patched.setattr(runtime, "make_trainer", stopping)
        code, said = nenya_cli("train", [*CLOUDY, f"data={masked_file}", "out=run"])
        assert code != 0, said
    left = torch.load("run/checkpoints/last.ckpt", weights_only=True)
    assert left["global_step"] == 3 * epoch + 2, "in the middle of the epoch"
    assert (left["clouds"]["guide"] is None) is (epoch == 1)
    code, said = nenya_cli("train", ["resume=run"])
    assert code == 0, said
    assert np.array_equal(steps("run"), steps(cloudy_run))
    mine, whole = weights("run"), weights(cloudy_run)
    assert all(torch.equal(mine[name], whole[name]) for name in whole)


def test_more_epochs_keep_the_first_cloudy_one(cloudy_run, nenya_cli):
    shutil.copytree(cloudy_run, "run")
    code, said = nenya_cli("train", ["model=clouds", "resume=run", "trainer.max_epochs=6"])
    assert code == 0, said
    left = torch.load("run/checkpoints/last.ckpt", weights_only=True)["clouds"]
    assert left["clear_epochs"] == 2
    before = torch.load(cloudy_run / "checkpoints" / "last.ckpt", weights_only=True)["clouds"]["guide"]
    assert all(torch.equal(left["guide"][name], before[name]) for name in before)


def test_a_run_resumes_with_the_same_clouds_only(masked_file, nenya_cli, tmp_path):
    bank = tmp_path / "bank.h5"

    def write(row):
        with h5py.File(bank, "w") as file:
            file["train"] = np.zeros((4, 32, 32), np.float32)
            mask = np.zeros((4, 32, 32), np.uint8)
            mask[:, row : row + 9] = 1
            file["train_mask"] = mask

    write(3)
    words = [*CLOUDY, f"data={masked_file}", "out=run", "augment.cloud_masks=bank.h5", "trainer.max_epochs=2"]
    code, said = nenya_cli("train", words)
    assert code == 0, said
    write(13)
    code, said = nenya_cli("train", ["model=clouds", "resume=run", "trainer.max_epochs=3"])
    assert code == 2
    assert "resume with the same masks" in said


def test_published_weights_learn_clouds_at_once(masked_file, tiny_weights, nenya_cli):
    words = [*CLOUDY, "model.width=16", f"data={masked_file}", "out=run", "augment.clouds_from=0"]
    code, said = nenya_cli("train", [*words, f"init_from={tiny_weights}", "trainer.max_epochs=1"])
    assert code == 0, said
    guide = torch.load("run/checkpoints/last.ckpt", weights_only=True)["clouds"]["guide"]
    given = load_checkpoint(tiny_weights).state_dict
    assert torch.equal(guide["encoder.conv1.weight"][:, :1], given["encoder.conv1.weight"])
    assert torch.equal(guide["head.2.weight"], given["head.2.weight"])


@pytest.mark.parametrize("masked", ["fill", "mean"])
def test_a_network_without_a_mask_channel_trains_under_clouds(masked_file, nenya_cli, masked):
    words = [*QUICK, "augment.clouds=true", f"preprocess.masked={masked}", "trainer.max_epochs=2"]
    code, said = nenya_cli("train", [*words, f"data={masked_file}", "out=run"])
    assert code == 0, said
    assert weights("run")["encoder.conv1.weight"].shape[1] == 1


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["augment.cloud_masks=nowhere.h5"], "nowhere.h5"),
        (["augment.clouds_most=0"], "augment.clouds_most=0"),
        (["augment.clouds_from=1"], "augment.clouds_from=1"),
        (["augment.clouds_from=0"], "init_from="),
        (["loss.clear_weight=-1"], "loss.clear_weight=-1"),
        (["augment.clouds=false", "loss.clear_weight=0.5"], "has an effect only with augment.clouds=true"),
        (["augment.clouds=false", "augment.clouds_most=0.3"], "augment.clouds=true"),
    ],
)
def test_options_of_clouds_that_cannot_be_right_are_refused(masked_file, nenya_cli, words, expected):
    code, said = nenya_cli("train", [*CLOUDY, f"data={masked_file}", "out=run", *words])
    assert code == 2
    assert expected in said
    assert not Path("run").exists()


def test_a_bank_with_nan_outside_its_mask_is_refused(masked_file, nenya_cli):
    with h5py.File("bank.h5", "w") as file:
        file["train"] = np.zeros((4, 32, 32), np.float32)
        file["train"][2, 5, 5] = np.nan
        file["train_mask"] = np.zeros((4, 32, 32), np.uint8)
        file["train_mask"][:, :9] = 1
        file["train"][2, 20, 5] = np.nan
    code, said = nenya_cli("train", [*CLOUDY, f"data={masked_file}", "out=run", "augment.cloud_masks=bank.h5"])
    assert code == 2 and "row 2 of 'train' has 1 pixels that are not finite outside 'train_mask'" in said
    assert not Path("run").exists()
