import csv
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
from conftest import QUICK
from lightning.pytorch.callbacks import Callback

from nenya.commands.compose import compose
from nenya.data.cutouts import inspect_cutouts
from nenya.data.datamodule import StepSampler, ViewsDataModule
from nenya.models.checkpoint import load_checkpoint
from nenya.models.contrastive import ContrastiveModule, make_net
from nenya.models.losses import contrastive_loss
from nenya.runtime import trainer as runtime

REPOSITORY = Path(__file__).resolve().parents[2]


def curve(run: Path) -> list[dict[str, str]]:
    with next((run / "learning_curve").glob("*.csv")).open() as file:
        return list(csv.DictReader(file))


def losses(run: Path) -> list[tuple[str, str]]:
    return [(row["loss_train"], row["loss_valid"]) for row in curve(run)]


def steps(run: Path) -> np.ndarray:
    with h5py.File(next((run / "learning_curve").glob("*_losses_train.h5"))) as file:
        return file["loss_step_train"][()]


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory, small_file) -> Path:
    from nenya.cli import run_command

    folder = tmp_path_factory.mktemp("run") / "whole"
    assert run_command("train", [*QUICK, f"data={small_file}", f"out={folder}"]) == 0
    return folder


def test_a_run_folder_holds_what_users_know(whole_run):
    found = {str(p.relative_to(whole_run)) for p in whole_run.rglob("*") if p.is_file()}
    name = "SimCLR_resnet18_lr_0.05_decay_0.0001_bsz_16_temp_0.07_trial_0_cosine"
    assert found == {
        "config.yaml",
        "last.pth",
        "checkpoints/last.ckpt",
        "checkpoints/best.ckpt",
        f"learning_curve/{name}.csv",
        f"learning_curve/{name}_losses_train.h5",
        f"learning_curve/{name}_losses_valid.h5",
    }
    with h5py.File(whole_run / "learning_curve" / f"{name}_losses_train.h5") as file:
        assert file["loss_train"].shape == (3,)
        assert file["loss_step_train"].shape == file["loss_avg_train"].shape == (9,)
        step, running = file["loss_step_train"][:3], file["loss_avg_train"][:3]
        assert np.allclose(running, np.cumsum(step * [16, 16, 8]) / [16, 32, 40])
        assert file["loss_train"][0] == running[-1]
    assert [row["epoch"] for row in curve(whole_run)] == ["1", "2", "3"]
    assert all(float(row["rankme"]) >= 1 and float(row["samples_per_second"]) > 0 for row in curve(whole_run))


def test_last_pth_has_the_users_layout_and_the_weights_of_last_ckpt(whole_run):
    plain = torch.load(whole_run / "last.pth", weights_only=True)
    assert plain["epoch"] == 3
    assert plain["opt"]["random_jitter"] == [24, 3]
    ours = load_checkpoint(whole_run / "checkpoints" / "last.ckpt")
    assert plain["model"].keys() == ours.state_dict.keys()
    assert all(torch.equal(plain["model"][key], ours.state_dict[key]) for key in ours.state_dict)


def test_the_same_seed_gives_the_same_run_and_another_does_not(whole_run, small_file, nenya_cli):
    for seed, same in ((1234, True), (1, False)):
        code, _ = nenya_cli("train", [*QUICK, f"data={small_file}", f"out=s{seed}", f"seed={seed}"])
        assert code == 0
        assert (losses(Path(f"s{seed}")) == losses(whole_run)) is same


def test_loader_processes_change_nothing(whole_run, small_file, nenya_cli):
    code, said = nenya_cli("train", [*QUICK, f"data={small_file}", "out=workers", "loader.num_workers=2"])
    assert code == 0, said
    assert losses(Path("workers")) == losses(whole_run)


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_data_that_lie_on_the_device_change_nothing(whole_run, small_file, nenya_cli, workers):
    args = [*QUICK, f"data={small_file}", "out=resident", f"loader.num_workers={workers}"]
    code, said = nenya_cli("train", [*args, "loader.on_device=always"])
    assert code == 0, said
    assert np.array_equal(steps(Path("resident")), steps(whole_run))
    assert losses(Path("resident")) == losses(whole_run)


@pytest.mark.slow
def test_a_compiled_training_starts_as_any_other(small_file, nenya_cli):
    """With 16 channels: torch's backward pass of four channels, laid out last, hangs or crashes on some CPUs.

    Later steps differ, as rounding grows from step to step in so small a network.
    """
    for backend in ("eager", "compiled"):
        args = [*QUICK, "model.width=16", f"data={small_file}", f"out={backend}", f"model.backend={backend}"]
        code, said = nenya_cli("train", args)
        assert code == 0, said
        assert "without compilation" not in said
    compiled, eager = steps(Path("compiled")), steps(Path("eager"))
    np.testing.assert_allclose(compiled[0], eager[0], rtol=1e-5)
    assert not np.array_equal(compiled, eager), "the compiled network was not used"


@pytest.mark.slow
def test_compiled_gradients_are_as_near_to_the_true_ones_as_eager_ones():
    options = compose("train", ["model=demo"])
    images = torch.randn(32, 1, 32, 32, generator=torch.Generator().manual_seed(0))

    def gradients(kind):
        net = make_net(options).train()
        net = net.double() if kind == "true" else net
        network = torch.compile(net.forward, dynamic=False) if kind == "compiled" else net
        contrastive_loss(network(images.to(next(net.parameters()).dtype)).reshape(16, 2, -1)).backward()
        return torch.cat([parameter.grad.flatten().double() for parameter in net.parameters()])

    true, eager, compiled = (gradients(kind) for kind in ("true", "eager", "compiled"))
    assert (compiled - true).norm() < 5 * (eager - true).norm()
    assert (compiled - true).norm() < 0.02 * true.norm()


class SignalAt(Callback):
    """Sends a signal to its own process at the n-th call of one hook."""

    def __init__(self, hook: str, calls: int, number: int) -> None:
        self.left, self.number = calls, number
        setattr(self, hook, self._count)

    def _count(self, *args, **kwargs):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), self.number)


@pytest.fixture
def add_callback(monkeypatch):
    """Add a callback to every Trainer that is made."""
    make = runtime.make_trainer

    def add(callback):
        def with_callback(options, **settings):
            if "callbacks" in settings:
                settings["callbacks"] = [callback, *settings["callbacks"]]
            return make(options, **settings)

        monkeypatch.setattr(runtime, "make_trainer", with_callback)

    return add


STOPS = [
    ("on_train_batch_start", 4, signal.SIGTERM),
    ("on_train_batch_start", 5, signal.SIGTERM),
    ("on_train_batch_start", 6, signal.SIGINT),
    ("on_validation_batch_start", 2, signal.SIGTERM),
    ("on_validation_batch_start", 1, signal.SIGINT),
]


@pytest.mark.parametrize(
    ("hook", "calls", "number", "workers"),
    [
        *((*stop, 0) for stop in STOPS),
        (*STOPS[1], 1),
        *(pytest.param(*stop, 1, marks=pytest.mark.slow) for stop in (STOPS[0], *STOPS[2:])),
    ],
)
def test_an_interrupted_run_goes_on_as_if_nothing_had_been(
    whole_run, small_file, nenya_cli, add_callback, hook, calls, number, workers
):
    add_callback(SignalAt(hook, calls, number))
    args = [*QUICK, f"data={small_file}", "out=cut", f"loader.num_workers={workers}"]
    code, said = nenya_cli("train", args)
    assert code == 75, said
    assert "resume=cut" in said.splitlines()[-1]
    assert not Path("cut/last.pth").exists()
    code, said = nenya_cli("train", ["resume=cut"])
    assert code == 0, said
    assert np.array_equal(steps(Path("cut")), steps(whole_run))
    assert losses(Path("cut")) == losses(whole_run)
    for name in ("last.pth", "checkpoints/best.ckpt", "checkpoints/last.ckpt"):
        mine, whole = (load_checkpoint(run / name).state_dict for run in (Path("cut"), whole_run))
        assert all(torch.equal(mine[key], whole[key]) for key in whole), name


def test_a_signal_in_the_last_batch_lets_the_run_end(whole_run, small_file, nenya_cli, add_callback):
    add_callback(SignalAt("on_train_batch_start", 9, signal.SIGTERM))
    code, said = nenya_cli("train", [*QUICK, f"data={small_file}", "out=run"])
    assert code == 0, said
    assert losses(Path("run")) == losses(whole_run)
    assert Path("run/last.pth").exists()


def test_a_signal_before_the_first_batch_ends_with_75(small_file, nenya_cli, add_callback):
    add_callback(SignalAt("setup", 1, signal.SIGINT))
    code, said = nenya_cli("train", [*QUICK, f"data={small_file}", "out=run"])
    assert code == 75, said


def test_resume_from_another_folder_with_more_epochs_and_other_groups(small_file, nenya_cli, tmp_path, monkeypatch):
    (tmp_path / "near.h5").write_bytes(small_file.read_bytes())
    code, said = nenya_cli("train", [*QUICK, "data=near.h5", "out=run"])
    assert code == 0, said
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    code, said = nenya_cli("train", ["model=demo", "resume=../run", "trainer.max_epochs=5", "trainer=cpu"])
    assert code == 0, said
    code, said = nenya_cli("train", ["resume=../run"])
    assert code == 0, said
    assert len(losses(tmp_path / "run")) == 5
    code, said = nenya_cli("train", ["model=v5", "resume=../run"])
    assert code == 2
    assert "has model=demo" in said
    other = tmp_path / "other.h5"
    with h5py.File(small_file) as source, h5py.File(other, "w") as file:
        file["train"] = source["train"][:30]
    code, said = nenya_cli("train", [f"data={other}", "resume=../run", "trainer.max_epochs=6"])
    assert code == 2
    assert "with the same data=" in said


@pytest.mark.parametrize("name", ["checkpoints", "learning_curve", "checkpoints/best.ckpt", "last.pth"])
def test_links_in_a_run_lead_nowhere(whole_run, nenya_cli, tmp_path, name):
    """A run that somebody handed over is resumed in its own folder, or not at all."""
    shutil.copytree(whole_run, "run")
    precious = tmp_path / "precious"
    shutil.move(f"run/{name}", precious)
    Path("run", name).symlink_to(precious)
    before = {path: path.read_bytes() for path in [precious, *precious.rglob("*")] if path.is_file()}
    code, said = nenya_cli("train", ["resume=run", "trainer.max_epochs=4"])
    assert code == 2 and "links are not followed" in said, said
    assert before == {path: path.read_bytes() for path in [precious, *precious.rglob("*")] if path.is_file()}


def test_clobber_replaces_a_run_and_nothing_else(small_file, nenya_cli, tmp_path):
    args = [*QUICK, f"data={small_file}", "out=run", "debug=true", "clobber=true"]
    assert nenya_cli("train", args)[0] == 0
    assert nenya_cli("train", args)[0] == 0
    (tmp_path / "run" / "thesis.tex").write_text("years of work")
    code, said = nenya_cli("train", args)
    assert code == 2
    assert "thesis.tex" in said
    assert (tmp_path / "run" / "last.pth").exists()
    code, said = nenya_cli("train", [*QUICK, f"data={small_file}", "out=new", "optim.lr_decay_rate=2"])
    assert code == 2
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("frequency", [2, 9])
def test_the_last_checkpoint_is_of_the_last_epoch(small_file, nenya_cli, frequency):
    code, said = nenya_cli("train", [*QUICK, f"data={small_file}", "out=run", f"checkpoint.save_freq={frequency}"])
    assert code == 0, said
    assert load_checkpoint(Path("run/checkpoints/last.ckpt")).epoch == 3
    assert Path("run/checkpoints/best.ckpt").exists()


def test_without_validation_the_best_epoch_has_the_least_training_loss(small_file, nenya_cli):
    code, said = nenya_cli("train", [*QUICK, f"data={small_file}", "out=run", "trainer.limit_val_batches=0"])
    assert code == 0, said
    train = [float(row["loss_train"]) for row in curve(Path("run"))]
    assert load_checkpoint(Path("run/checkpoints/best.ckpt")).epoch == 1 + int(np.argmin(train))


def test_figures_of_the_validation_stand_only_where_it_ran(small_file, nenya_cli):
    code, said = nenya_cli("train", [*QUICK, f"data={small_file}", "out=run", "trainer.check_val_every_n_epoch=2"])
    assert code == 0, said
    assert [bool(row["rankme"]) for row in curve(Path("run"))] == [False, True, False]
    assert [bool(row["loss_valid"]) for row in curve(Path("run"))] == [False, True, False]


class Watcher(Callback):
    """Compares the network before and after each validation of a real run."""

    def __init__(self):
        self.checked = 0

    def on_validation_start(self, trainer, pl_module):
        self.before = {name: tensor.clone() for name, tensor in pl_module.state_dict().items()}
        self.rate = trainer.optimizers[0].param_groups[0]["lr"]

    def on_validation_batch_end(self, trainer, pl_module, *args, **kwargs):
        assert not any(layer.training for layer in pl_module.net.modules())
        assert not torch.is_grad_enabled()

    def on_validation_end(self, trainer, pl_module):
        assert all(torch.equal(self.before[name], tensor) for name, tensor in pl_module.state_dict().items())
        assert trainer.optimizers[0].param_groups[0]["lr"] == self.rate
        self.checked += 1


def test_validation_in_a_run_is_in_evaluation_mode_and_updates_nothing(small_file, nenya_cli, add_callback):
    watcher = Watcher()
    add_callback(watcher)
    code, said = nenya_cli("train", [*QUICK, f"data={small_file}", "out=run"])
    assert code == 0, said
    assert watcher.checked == 3


def test_resume_is_the_same_run_or_refused(whole_run, nenya_cli):
    code, said = nenya_cli("train", [f"resume={whole_run}", "optim.learning_rate=0.1"])
    assert code == 2
    assert "learning_rate=0.05" in said
    code, said = nenya_cli("train", ["resume=nowhere"])
    assert code == 2
    assert "without config.yaml" in said
    debugged = Path("outputs/demo/2012-01-01_00-00-00_debug/checkpoints")  # a look at two batches is no run
    debugged.mkdir(parents=True)
    (debugged / "last.ckpt").touch()
    code, said = nenya_cli("train", ["model=demo", "resume=last"])
    assert code == 2
    assert "no run of model demo" in said


@pytest.mark.slow
def train_apart(folder, *args):
    """Train in a process of its own, whose threads and libraries no other test has set."""
    command = [sys.executable, REPOSITORY / "scripts" / "train.py", *args]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_killed_process_resumes_from_its_last_epoch(small_file, tmp_path):
    args = [*QUICK, f"data={small_file}", "trainer.max_epochs=12"]
    train_apart(tmp_path, *args, "out=whole")
    command = [sys.executable, REPOSITORY / "scripts" / "train.py", *args, "out=killed"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if line.startswith("epoch 2/12"):  # the first epoch's checkpoint is written by now
            break
    process.kill()
    process.communicate()
    assert not (tmp_path / "killed" / "last.pth").exists()
    train_apart(tmp_path, "resume=killed")
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")


@pytest.mark.slow
def test_a_killed_process_resumes_from_a_step_in_mid_epoch(small_file, tmp_path):
    args = [*QUICK, f"data={small_file}", "loader.batch_size_train=2", "checkpoint.every_minutes=0"]
    args.append("trainer.max_epochs=2")
    train_apart(tmp_path, *args, "checkpoint.every_minutes=10", "out=whole")
    command = [sys.executable, REPOSITORY / "scripts" / "train.py", *args, "out=killed"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL)
    last, step = tmp_path / "killed" / "checkpoints" / "last.ckpt", 0
    while not (step > 20 and 3 < step % 20 < 12):  # 20 steps an epoch
        assert process.poll() is None
        step = torch.load(last, weights_only=True)["global_step"] if last.exists() else 0
    process.kill()
    process.wait()
    left = torch.load(last, weights_only=True)["global_step"]
    assert left % 20 and 20 < left < 40, "killed between two epochs"
    last.with_name(".last.ckpt.1-ab.tmp").write_bytes(b"a kill in the middle of writing leaves such a file")
    train_apart(tmp_path, "resume=killed")
    assert np.array_equal(steps(tmp_path / "killed"), steps(tmp_path / "whole"))
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    assert sorted(p.name for p in last.parent.iterdir()) == ["best.ckpt", "last.ckpt"]
    for name in ("last.pth", "checkpoints/best.ckpt", "checkpoints/last.ckpt"):
        mine, whole = (load_checkpoint(tmp_path / run / name).state_dict for run in ("killed", "whole"))
        assert all(torch.equal(mine[key], whole[key]) for key in whole), name


def test_a_disk_that_fills_in_a_checkpoint_leaves_the_one_before(
    whole_run, small_file, nenya_cli, add_callback, tmp_path
):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("no right to mount a small disk")
    last = disk / "run" / "checkpoints" / "last.ckpt"

    class Fill(Callback):
        """Leaves room for half a checkpoint once, when there are two epochs."""

        filled = False

        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 2 and not self.filled:
                self.filled, free = True, os.statvfs(disk)
                (disk / "filler").write_bytes(bytes(free.f_bavail * free.f_bsize - last.stat().st_size // 2))

    try:
        add_callback(Fill())
        code, said = nenya_cli("train", [*QUICK, f"data={small_file}", f"out={disk / 'run'}"])
        assert code == 2, said
        (line,) = [line for line in said.splitlines() if line.startswith("nenya train")]
        assert "No space left on device" in line and f"resume={disk / 'run'} continues" in line
        assert load_checkpoint(last).epoch == 2
        assert not [p for p in last.parent.iterdir() if p.name.startswith(".")]
        code, said = nenya_cli("train", [f"resume={disk / 'run'}"])
        assert code == 2 and ("No space left" in said or "are free" in said)
        (disk / "filler").unlink()
        code, said = nenya_cli("train", [f"resume={disk / 'run'}"])
        assert code == 0, said
        assert losses(disk / "run") == losses(whole_run)
        mine, whole = (
            load_checkpoint(run / "checkpoints" / "last.ckpt").state_dict for run in (disk / "run", whole_run)
        )
        assert all(torch.equal(mine[key], whole[key]) for key in whole)
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_validation_sees_the_same_views_each_time(small_file):
    options = compose("train", [*QUICK, f"data={small_file}"])
    data = ViewsDataModule(options, [inspect_cutouts(small_file)], Path("unused"))
    data.setup("fit")
    batch = next(iter(data.val_dataloader()[0]))
    first, again = (data.make_views(batch, "valid", 0) for _ in range(2))
    assert torch.equal(first, again)


@pytest.mark.parametrize("stage", ["train", "valid"])
def test_views_do_not_depend_on_the_number_of_processes(small_file, stage):
    options = compose("train", [*QUICK, f"data={small_file}"])
    data = ViewsDataModule(options, [inspect_cutouts(small_file)], Path("unused"))
    data.setup("fit")
    rows, arrays = np.arange(24), data._rows[stage]
    alone, *shares = (
        [data.make_views(arrays.__getitems__(step), stage, 0) for step in StepSampler(rows, 10, 1, share, shuffle=True)]
        for share in ((0, 1), (0, 3), (1, 3), (2, 3))
    )
    for i, views in enumerate(alone):
        parts = torch.cat([share[i] for share in shares])
        assert torch.allclose(parts, views, atol=1e-6)


def test_steps_cover_every_row_once_in_a_new_order_each_epoch():
    sampler = StepSampler(np.arange(100), 32, 7, (0, 1), shuffle=True)
    orders = []
    for epoch in (0, 1):
        sampler.epoch = lambda epoch=epoch: epoch
        orders.append(np.concatenate([step.rows for step in sampler]))
        assert sorted(orders[-1]) == list(range(100))
    assert not np.array_equal(*orders)
    sampler.start = 2
    assert np.array_equal(np.concatenate([step.rows for step in sampler]), orders[1][64:])
    assert len(list(sampler)) == len(sampler) == 4


@pytest.mark.slow
def test_two_processes_equal_one(whole_run, small_file, tmp_path):
    """BatchNorm frozen, as its statistics are each process's own: see `frozen_run.py`."""
    outputs = []
    for world in (1, 2):
        command = [sys.executable, REPOSITORY / "tests" / "frozen_run.py", str(world), small_file, f"w{world}"]
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=900)
        outputs.append(tmp_path / f"w{world}")
    assert np.allclose(steps(outputs[0]), steps(outputs[1]), rtol=1e-4)
    one, two = (load_checkpoint(run / "last.pth").state_dict for run in outputs)
    assert all(torch.allclose(one[key], two[key], rtol=1e-3, atol=1e-5) for key in one)


def test_supcon_learns_from_labels(tmp_path, nenya_cli, small_file):
    path = tmp_path / "labelled.h5"
    with h5py.File(small_file) as source, h5py.File(path, "w") as file:
        for name in ("train", "valid"):
            file[name] = source[name][()]
            file[f"{name}_labels"] = np.arange(len(source[name])) % 3
    code, said = nenya_cli("train", [*QUICK, f"data={path}", "out=run", "loss.ssl_method=SupCon"])
    assert code == 0, said
    rows = curve(Path("run"))
    assert float(rows[-1]["loss_train"]) < float(rows[0]["loss_train"])


def test_fine_tuning_starts_from_the_weights(whole_run, small_file, nenya_cli, monkeypatch):
    rates = [f"init_from={whole_run / 'last.pth'}", "optim.learning_rate=1e-12", "optim.weight_decay=0"]
    code, said = nenya_cli("train", [*QUICK, *rates, f"data={small_file}", "out=tuned", "trainer.max_epochs=1"])
    assert code == 0, said
    before, after = (load_checkpoint(run / "last.pth").state_dict for run in (whole_run, Path("tuned")))
    weights = [key for key in before if "running" not in key and "num_batches" not in key]
    assert all(torch.allclose(before[key], after[key], atol=1e-9) for key in weights)
    code, said = nenya_cli("train", [*QUICK[:1], f"init_from={whole_run / 'last.pth'}", f"data={small_file}"])
    assert code == 2
    assert "model.width=4" in said


def test_a_loss_that_is_not_finite_stops_the_run(small_file, nenya_cli, monkeypatch):
    monkeypatch.setattr(ContrastiveModule, "_loss", lambda self, batch: self.net(batch["images"]).sum() * torch.nan)
    code, said = nenya_cli("train", [*QUICK, f"data={small_file}", "out=run"])
    assert code == 2
    assert "loss became nan in epoch 1" in said.splitlines()[-1]
    assert not list(Path("run").glob("**/*.ckpt"))


def test_cutouts_with_nan_are_left_out_of_training(tmp_path, small_file, nenya_cli):
    path = tmp_path / "holes.h5"
    with h5py.File(small_file) as source, h5py.File(path, "w") as file:
        cutouts = source["train"][()]
        cutouts[3, 0, 5, 5] = np.nan
        file["train"] = cutouts
    code, said = nenya_cli("train", [*QUICK, f"data={path}", "out=run", "trainer.max_epochs=1"])
    assert code == 0, said
    assert "1 of 40 cutouts" in said
    assert np.isfinite(steps(Path("run"))).all()
    assert losses(Path("run"))[0][1] == "", "there is no validation partition"


def test_training_on_real_cutouts_from_a_list_of_files(shared, tmp_path, nenya_cli):
    real, more = shared / "data" / "real_sst_preproc.h5", tmp_path / "more.h5"
    with h5py.File(real) as source, h5py.File(more, "w") as file:
        file["train"] = source["train"][()][:, 0, ::-1]
    code, said = nenya_cli(
        "train",
        ["model=v5", "model.ssl_model=resnet18", "model.width=8", f"data=[{real},{more}]", "out=run",
         "loader.batch_size_train=6", "trainer.max_epochs=2", "trainer=cpu"],
    )  # fmt: skip
    assert code == 0, said
    assert len(steps(Path("run"))) == 2 * 3, "18 cutouts of two files"
    code, said = nenya_cli(
        "extract",
        ["model=v5", "model.ssl_model=resnet18", "model.width=8", f"data={real}", "ckpt=run/last.pth", "out=o"],
    )
    assert code == 0, said
    with h5py.File("o/real_sst_preproc_latents.h5") as file:
        assert (file["train"].shape, file["valid"].shape) == ((9, 256), (5, 256))
        assert np.allclose(np.linalg.norm(file["train"][()], axis=1), 1, atol=1e-5)


def test_wandb_logs_offline_without_a_key(small_file, nenya_cli, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(Path.cwd()))
    args = [*QUICK, f"data={small_file}", "out=run", "logger=wandb", "trainer.max_epochs=1"]
    code, said = nenya_cli("train", args)
    assert code == 0, said
    assert "offline, because there is no key" in said
    files = list(Path("run/wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 1
    logged = files[0].read_bytes()
    for name in (b"epoch/loss_train", b"epoch/rankme", b"epoch/learning_rate", b"nenya_version", b"ledger/forward"):
        assert name in logged


def test_debug_runs_two_batches(small_file, nenya_cli):
    code, said = nenya_cli("train", [*QUICK, f"data={small_file}", "out=run", "debug=true"])
    assert code == 0, said
    assert len(steps(Path("run"))) == 2


def test_initial_weights_come_from_the_seed_and_follow_the_original():
    one, same, other = (make_net(compose("train", ["model=demo", f"seed={s}"])).state_dict() for s in (1, 1, 2))
    key = "encoder.layer1.0.conv1.weight"
    assert torch.equal(one[key], same[key])
    assert not torch.equal(one[key], other[key])
    assert one[key].std().item() == pytest.approx((2 / (16 * 9)) ** 0.5, rel=0.1)
    assert (one["encoder.bn1.weight"] == 1).all()
    assert (one["encoder.bn1.bias"] == 0).all()
