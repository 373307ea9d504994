"""Trainings with each objective: they go on after a kill with the same bits, and extraction takes the right network."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from conftest import red_noise, write_cutouts
from lightning.pytorch.callbacks import Callback

from nenya.models.checkpoint import load_checkpoint
from nenya.models.resnet import ContrastiveNet
from nenya.runtime import trainer as runtime

REPOSITORY = Path(__file__).resolve().parents[2]
SMALL = [
    *(
        "model=demo",
        "model.width=2",
        "model.feat_dim=8",
        "trainer=cpu",
        "trainer.max_epochs=2",
        "loader.train_key=rows",
    ),
    *("augment.random_jitter=[12,2]", "loader.batch_size_train=8", "checkpoint.every_minutes=0"),
    "trainer.enable_progress_bar=false",
]
PARTS = {
    "SimCLR": [],
    "VICReg": ["loss.expander=8"],
    "BarlowTwins": ["loss.expander=8"],
    "BYOL": ["loss.predictor=8"],
    "DINO": ["loss.prototypes=12"],
    "MoCo": ["loss.queue=10"],  # not a multiple of a batch
}
slow = pytest.mark.slow


@pytest.fixture(scope="module")
def cutouts(tmp_path_factory) -> Path:
    """A file of 20 cutouts of 16 x 16 pixels: three steps an epoch, the last one of four rows."""
    return write_cutouts(tmp_path_factory.mktemp("cutouts") / "small_preproc.h5", rows=red_noise(20, side=16))


class CopyAt(Callback):
    """Copies the run folder after a number of steps, as a kill at that moment would leave it."""

    def __init__(self, steps: int, run: Path, copy: Path) -> None:
        self.steps, self.run, self.copy = steps, run, copy

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.steps:
            shutil.copytree(self.run, self.copy)


@pytest.fixture
def copy_at(monkeypatch):
    """Add a `CopyAt` to the first Trainer that is made."""
    make = runtime.make_trainer

    def add(*args):
        left = [CopyAt(*args)]

        def with_callback(options, **settings):
            if "callbacks" in settings and left:
                settings["callbacks"] = [left.pop(), *settings["callbacks"]]
            return make(options, **settings)

        monkeypatch.setattr(runtime, "make_trainer", with_callback)

    return add


def same_bits(one: Path, other: Path) -> list[str]:
    """Check that two runs ended the same; return the names of the tensors."""
    states = [torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (one, other)]
    mine, whole = (state["state_dict"] for state in states)
    assert mine.keys() == whole.keys()
    assert all(torch.equal(mine[name], whole[name]) for name in whole), "state"
    for a, b in zip(*(state["optimizer_states"][0]["state"].values() for state in states), strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a if a[name] is not None), "optimizer"
    curves = []
    for run in (one, other):
        with h5py.File(next((run / "learning_curve").glob("*_train.h5"))) as file:
            curves.append(file["loss_step_train"][()])
    assert np.array_equal(*curves)
    assert np.isfinite(curves[0]).all()
    return list(whole)


@pytest.mark.parametrize(
    "method", ["VICReg", "DINO", "MoCo", *(pytest.param(m, marks=slow) for m in ("BarlowTwins", "BYOL", "SimCLR"))]
)
def test_a_resumed_training_ends_with_the_same_bits(method, cutouts, nenya_cli, copy_at, tmp_path):
    copy_at(4, tmp_path / "whole", tmp_path / "cut")
    code, said = nenya_cli(
        "train", [*SMALL, f"loss.ssl_method={method}", *PARTS[method], f"data={cutouts}", "out=whole"]
    )
    assert code == 0, said
    left = torch.load("cut/checkpoints/last.ckpt", weights_only=True)
    assert left["global_step"] == 4, "a step in the middle of an epoch"
    code, said = nenya_cli("train", ["resume=cut"])
    assert code == 0, said
    names = same_bits(tmp_path / "cut", tmp_path / "whole")
    parts = {name.split(".")[1] for name in names if name.startswith("objective.")}
    assert (
        parts
        == {
            "SimCLR": set(),
            "VICReg": {"expander"},
            "BarlowTwins": {"expander"},
            "BYOL": {"teacher", "predictor"},
            "DINO": {"teacher", "prototypes", "teacher_prototypes", "centre"},
            "MoCo": {"teacher", "queue", "oldest"},
        }[method]
    )
    final = torch.load("whole/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    changed = {name for name in names if not torch.equal(final[name], left["state_dict"][name])}
    assert parts == {name.split(".")[1] for name in changed if name.startswith("objective.")}, "all are in use"
    check_what_is_extracted(method, final)
    if method == "DINO":
        for name in ("last.pth", "checkpoints/last.ckpt"):
            args = [f"data={cutouts}", f"ckpt=whole/{name}", f"out={Path(name).stem}_{Path(name).suffix[1:]}"]
            code, said = nenya_cli("extract", [*args, "loader.train_key=rows", "loader.valid_key=rows", "trainer=cpu"])
            assert code == 0, said
        with h5py.File(tmp_path / "last_pth" / "small_preproc_latents.h5") as one:
            with h5py.File(tmp_path / "last_ckpt" / "small_preproc_latents.h5") as other:
                assert np.array_equal(one["rows"][()], other["rows"][()])
            assert one.attrs["extracted"] == "teacher"


def check_what_is_extracted(method: str, final: dict[str, torch.Tensor]) -> None:
    """Check that last.pth and last.ckpt hold the same network, and that it is the documented one."""
    kept, ours = (load_checkpoint(Path("whole") / name) for name in ("last.pth", "checkpoints/last.ckpt"))
    assert kept.state_dict.keys() == ours.state_dict.keys() == ContrastiveNet("resnet18", 8, 1, 2).state_dict().keys()
    assert all(torch.equal(kept.state_dict[name], ours.state_dict[name]) for name in kept.state_dict)
    assert kept.options["ssl_method"] == ours.options["ssl_method"] == method
    wanted = {"DINO": "teacher", "BYOL": "student", "MoCo": "student"}.get(method)
    assert kept.options.get("extracted") == ours.options.get("extracted") == wanted
    prefix = "objective.teacher." if wanted == "teacher" else "net."
    for name, tensor in kept.state_dict.items():
        in_head = method in ("VICReg", "BarlowTwins") and name.startswith("head.2.")
        assert torch.equal(tensor, final[prefix + name]) != in_head, name


@slow
@pytest.mark.parametrize("method", ["VICReg", "SimCLR"])
def test_a_process_killed_in_mid_epoch_resumes_with_the_same_bits(method, cutouts, tmp_path):
    args = [*SMALL, f"loss.ssl_method={method}", *PARTS[method], f"data={cutouts}", "loader.batch_size_train=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def start(*more):
        command = [sys.executable, REPOSITORY / "scripts" / "train.py", *more]
        return subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL, env=environment)

    assert start(*args, "out=whole").wait() == 0
    process = start(*args, "out=killed")
    last, step = tmp_path / "killed" / "checkpoints" / "last.ckpt", 0
    while not (step > 10 and 2 < step % 10 < 7):  # 10 steps an epoch
        assert process.poll() is None
        step = torch.load(last, weights_only=True)["global_step"] if last.exists() else 0
    process.send_signal(signal.SIGKILL)
    process.wait()
    left = torch.load(last, weights_only=True)["global_step"]
    assert left % 10 and 10 < left < 20, "killed between two epochs"
    assert start("resume=killed").wait() == 0
    same_bits(tmp_path / "killed", tmp_path / "whole")
