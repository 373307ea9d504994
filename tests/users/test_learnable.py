"""Trainings from which nothing can be learned, and those that look so and are not."""

import os

import numpy as np
import pytest
from conftest import red_noise, write_cutouts

from nenya.models.progress import CollapseWarning
from nenya.runtime.process import is_main_process, srun_tasks

QUICK = ["model=demo", "trainer.accelerator=cpu", "trainer.max_epochs=1", "loader.batch_size_train=8", "out=run"]
QUICK += ["model.width=4", "model.feat_dim=8"]
CUTOUTS = red_noise(16)
MISSING = np.where(np.arange(16)[:, None, None] > 0, np.float32("nan"), CUTOUTS)
ONE = np.repeat(red_noise(1), 16, 0)


@pytest.mark.parametrize(
    ("train", "args", "words"),
    [
        (CUTOUTS, ["loader.batch_size_train=1"], "loader.batch_size_train=1: expected at least 2, such as 16"),
        (CUTOUTS[:1], [], "expected at least 2 cutouts in 'train', got 1"),
        (CUTOUTS, ["loader.batch_size_train=17"], "batch_size_train=17: expected at most 16, the number of cutouts"),
        (ONE, [], "all cutouts in 'train' are equal"),
        (ONE + np.arange(16, dtype=np.float32)[:, None, None], [], "all cutouts in 'train' are equal up to their mean"),
        (0 * CUTOUTS, [], "all cutouts in 'train' are equal"),
        (MISSING, [], "expected at least 2 cutouts without missing pixels in 'train', got 1 of 16"),
        (CUTOUTS, ["loader.train_key=tain", "loader.valid_key=valid"], "expected a partition 'tain' for training"),
    ],
)
def test_a_training_that_cannot_learn_is_refused(train, args, words, tmp_path, nenya_cli):
    write_cutouts(tmp_path / "a.h5", train=train, valid=CUTOUTS)
    code, said = nenya_cli("train", [*QUICK, "data=a.h5", *args])
    assert code == 2 and words in said and len(said.splitlines()) == 1 and not (tmp_path / "run").exists()


def test_one_different_cutout_is_enough(tmp_path, nenya_cli):
    different = np.concatenate([np.repeat(ONE, 20, 0), CUTOUTS[-1:]])
    write_cutouts(tmp_path / "a.h5", train=different)
    code, said = nenya_cli("train", [*QUICK, "data=a.h5", "debug=true"])
    assert code == 0 and "equal" not in said


@pytest.mark.parametrize("precision", ["64-true", "bf16-true"])
def test_precisions_of_the_whole_network(precision, tmp_path, nenya_cli):
    write_cutouts(tmp_path / "a.h5", train=CUTOUTS, valid=CUTOUTS[:8])
    code, said = nenya_cli("train", [*QUICK, "data=a.h5", f"trainer.precision={precision}"])
    assert code == 0 and "epoch 1/1: train loss 2." in said, said
    code, said = nenya_cli(
        "extract", ["a.h5", "ckpt=run/last.pth", f"trainer.precision={precision}", "trainer.accelerator=cpu"]
    )
    assert code == 0 and "train 16, valid 8 rows of 8 dimensions" in said, said


def test_a_file_with_one_partition_and_cutouts_with_means(tmp_path, nenya_cli):
    write_cutouts(tmp_path / "a.h5", valid=CUTOUTS + 15)
    code, said = nenya_cli("train", [*QUICK, "a.h5"])
    assert code == 0 and "a.h5 has no 'train': training on 'valid', without a validation" in said
    assert "cutouts of 'valid' have means up to 15" in said and "valid loss" not in said
    code, said = nenya_cli("train", ["resume=run", "trainer.max_epochs=2"])
    assert code == 0 and "epoch 2/2" in said
    write_cutouts(tmp_path / "b.h5", train=CUTOUTS)
    code, said = nenya_cli("train", [*QUICK, "data=[a.h5,b.h5]", "clobber=true"])
    assert code == 2 and "a.h5: expected a partition 'train'" in said


def test_lines_of_progress_count_epochs_as_the_log_does(tmp_path, nenya_cli, monkeypatch):
    monkeypatch.setattr("nenya.runtime.process._SECONDS_BETWEEN_LINES", 0.0)
    write_cutouts(tmp_path / "a.h5", train=CUTOUTS)
    code, said = nenya_cli("train", [*QUICK, "a.h5", "trainer.max_epochs=2"])
    lines = [line.partition(", about")[0] for line in said.splitlines() if line.startswith("epoch")]
    shown = [line if "batches" in line else line.partition(":")[0] for line in lines]
    assert code == 0 and shown == [
        *("epoch 1/2: 1 of 4 batches", "epoch 1/2: 2 of 4 batches", "epoch 1/2"),
        *("epoch 2/2: 3 of 4 batches", "epoch 2/2: 4 of 4 batches", "epoch 2/2"),
    ]


class Trainer:
    def __init__(self, rank, epoch):
        self.callback_metrics, self.current_epoch = {"valid/rankme": rank}, epoch


def test_collapsed_latents_are_said_once(caplog):
    warning = CollapseWarning()
    for rank, epoch in ((1.01, 0), (9.0, 4), (1.2, 5), (1.1, 6)):
        warning.on_validation_epoch_end(Trainer(rank, epoch), None)
    (said,) = caplog.messages
    assert said.startswith("RankMe is 1.20 in epoch 6: the latents have collapsed") and "batch_size_train" in said


ALLOCATED = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_JOB_NAME": "sh", "SLURM_NODELIST": "n1"}


def test_an_allocation_of_slurm_without_srun_trains_here_and_says_so(tmp_path, nenya_cli, monkeypatch):
    for name, value in {**ALLOCATED, "SLURM_PROCID": "3", "SLURM_LOCALID": "3"}.items():  # left over in a notebook
        monkeypatch.setenv(name, value)
    assert is_main_process() and srun_tasks() == 1
    write_cutouts(tmp_path / "a.h5", train=CUTOUTS)
    code, said = nenya_cli("train", [*QUICK, "a.h5", "debug=true"])
    assert code == 0 and said.count("srun did not start this process") <= 1 and (tmp_path / "run/last.pth").exists()


def test_tasks_of_srun(monkeypatch):
    for name, value in {**ALLOCATED, "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3"}.items():
        monkeypatch.setenv(name, value)
    assert srun_tasks() == 4 and not is_main_process()
    os.environ["SLURM_STEP_NUM_TASKS"] = "1"  # a shell that srun started
    assert srun_tasks() == 1 and is_main_process()


@pytest.mark.parametrize(("name", "value"), [("SLURM_NTASKS", "4(x2)"), ("RANK", "first"), ("WORLD_SIZE", "-2")])
def test_variables_that_are_no_numbers_are_named(name, value, tmp_path, nenya_cli, monkeypatch):
    monkeypatch.setenv(name, value)
    write_cutouts(tmp_path / "a.h5", train=CUTOUTS)
    code, said = nenya_cli("train", [*(word for word in QUICK if word != "out=run"), "a.h5", "debug=true"])
    assert code == 2 and said.count("\n") == 1 and f"{name}={value} in the environment: expected a number" in said


def test_empty_variables_are_as_good_as_none(monkeypatch):
    for name in ("SLURM_NTASKS", "SLURM_STEP_NUM_TASKS", "RANK", "NODE_RANK"):
        monkeypatch.setenv(name, "")
    assert srun_tasks() == 1 and is_main_process()
