"""What runs on a GPU, on devices that stand in for one: `meta`, which mixes with no other, and a CPU in disguise.

They show that a step has all of its tensors on one device and never asks for a value, which would make a GPU wait; and
the arithmetic that the predictions of speed rest on. No speed is measured.
"""

import contextlib
import types

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from nenya.commands.compose import compose
from nenya.data.augment import ViewSampler
from nenya.data.datamodule import CutoutRows
from nenya.latents.similarity import closest
from nenya.models.contrastive import make_net
from nenya.models.losses import contrastive_loss
from nenya.models.objectives.methods import make_objective
from nenya.models.optimizers import make_optimizer
from nenya.runtime.trainer import Ledger

SMALL = ["model=custom", "model.ssl_model=resnet18", "model.width=8", "model.feat_dim=16", "data=none.h5"]
OBJECTIVES = ("SimCLR", "SupCon", "VICReg", "BarlowTwins", "BYOL", "MoCo", "DINO")


@pytest.fixture
def meta(monkeypatch):
    """The device; autocast, which does not know it, does nothing there."""
    real = torch.autocast

    def autocast(device_type, *args, **kwargs):
        return contextlib.nullcontext() if device_type == "meta" else real(device_type, *args, **kwargs)

    monkeypatch.setattr(torch, "autocast", autocast)
    return torch.device("meta")


def test_devices_do_not_mix_on_meta(meta):
    """The stand-in tells what a GPU would tell."""
    with pytest.raises(RuntimeError, match="device"):
        torch.ones(3) + torch.empty(3, device=meta)
    with pytest.raises(RuntimeError, match="item"):
        torch.empty((), device=meta).item()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_step_stays_on_its_device_and_asks_for_no_value(name, meta):
    options = compose("train", [*SMALL, f"loss.ssl_method={name}"])
    with meta:
        net = make_net(options).train()
        objective = make_objective(options, net)
    views = ViewSampler().two_views(torch.empty(8, 1, 48, 48, device=meta), torch.Generator().manual_seed(0))
    assert views.device == meta and views.shape[:2] == (8, 2)

    def features(of):
        return (of if objective.normalised else of.project)(views.flatten(0, 1)).unflatten(0, (8, 2))

    targets = None if objective.teacher is None else features(objective.teacher).detach()
    labels = torch.zeros(8, dtype=torch.long, device=meta) if name == "SupCon" else None
    loss = objective(features(net), targets, labels)
    loss.backward()
    objective.after_step(net, 0.5)
    assert loss.device == meta and loss.shape == ()
    assert all(weight.grad.device == meta for weight in net.parameters() if weight.grad is not None)
    assert sum(weight.grad is not None for weight in net.parameters()) > 60


def test_resident_rows_become_views_on_the_device(meta):
    rows = CutoutRows([np.zeros((5, 48, 48), np.float32), np.zeros((3, 48, 48), np.float32)])
    rows.move_to(meta)
    assert rows.resident.shape == (8, 1, 48, 48) and rows.resident.device == meta and rows.arrays == []
    chosen = rows.resident[torch.tensor([7, 0, 3])]
    assert ViewSampler().two_views(chosen, torch.Generator().manual_seed(0)).device == meta


def test_the_operations_that_the_predictions_count(meta):
    """Of the published networks, ResNet50 of width 64, a cutout of 64 x 64: as `benchmarks/gpu.py` has them."""
    with meta:
        net = make_net(compose("extract", ["model=v5"]))
    with FlopCounterMode(display=False) as one, torch.inference_mode():
        net.eval()(torch.empty(4, 1, 64, 64, device=meta))
    assert one.get_total_flops() / 4 / 1e9 == pytest.approx(10.4, rel=0.01)
    net.train()
    with FlopCounterMode(display=False) as step:
        features = net(torch.empty(8, 1, 64, 64, device=meta)).unflatten(0, (4, 2))
        contrastive_loss(features).backward()
    assert step.get_total_flops() / 4 / 1e9 == pytest.approx(62, rel=0.01)
    assert sum(weight.numel() for weight in net.parameters()) == pytest.approx(28e6, rel=0.05)


# A CPU in disguise


@pytest.fixture
def disguised(monkeypatch):
    """Let torch say that there is a GPU with 10 MB free, whose tensors are those of the CPU."""
    to = torch.Tensor.to

    def moved(tensor, *args, **kwargs):
        there = [("cpu" if str(value).startswith("cuda") else value) for value in args]
        return to(tensor, *there, **{k: "cpu" if k == "device" else v for k, v in kwargs.items()})

    monkeypatch.setattr(torch.Tensor, "to", moved)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (10_000_000, 80_000_000_000))


def test_a_search_on_the_device_finds_what_the_cpu_finds(disguised):
    rows = np.random.default_rng(0).standard_normal((3000, 24)).astype(np.float32)
    here, there = (closest(rows, rows[5].astype(np.float64), 10, device=device) for device in ("cpu", "cuda"))
    np.testing.assert_array_equal(here.rows, there.rows)
    np.testing.assert_array_equal(here.cosine, there.cosine)


@pytest.mark.parametrize(("rows", "fits"), [(1000, True), (1300, False)])
def test_rows_are_kept_on_the_device_if_they_take_half_of_what_is_free(rows, fits, disguised):
    from nenya.data.datamodule import ViewsDataModule

    data = types.SimpleNamespace(
        options=compose("train", SMALL), _rows={"train": CutoutRows([np.zeros((rows, 32, 32), np.float32)])}
    )
    data._each = lambda: list(data._rows.values())
    assert ViewsDataModule._belongs_on(data, torch.device("cuda")) is fits
    assert ViewsDataModule._belongs_on(data, torch.device("cpu")) is False


def test_stages_are_timed_by_the_clock_of_the_device(monkeypatch):
    clock = [0.0]

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            clock[0] += 7.0
            self.at = clock[0]

        def synchronize(self):
            pass

        def elapsed_time(self, later):
            return later.at - self.at

    monkeypatch.setattr(torch.cuda, "Event", Event)
    ledger = Ledger(torch.device("cuda"))
    for _ in range(3):
        ledger.start("Strategy.training_step")
        ledger.stop("Strategy.training_step")
    ledger._settle()
    assert sum(ledger._seconds.values()) == pytest.approx(5 * 7e-3)


@pytest.mark.parametrize("kind", ["SGD", "AdamW"])
def test_the_optimizer_is_fused_on_a_gpu(kind):
    options = compose("train", [*SMALL, f"optim.optimizer={kind}"])
    net = make_net(options)
    assert make_optimizer(options, net, on_gpu=True).defaults["fused"] is True
    assert not make_optimizer(options, net, on_gpu=False).defaults["fused"]


def test_the_fused_steps_are_those_of_torch():
    """Also of parameters whose gradients begin later, which torch's fused SGD refuses without all buffers."""
    options = compose("train", [*SMALL, "optim.optimizer=SGD", "optim.learning_rate=0.1", "optim.fused=true"])

    def trained(*, ours, late):
        torch.manual_seed(0)
        net = torch.nn.ModuleList([torch.nn.Linear(7, 5), torch.nn.Linear(7, 5)])
        usual = {"lr": 0.1, "momentum": options.optim.momentum, "weight_decay": options.optim.weight_decay}
        plain = torch.optim.SGD(net.parameters(), **usual, fused=not late)
        optimizer = make_optimizer(options, net, on_gpu=False) if ours else plain
        rows = torch.randn(8, 7)
        for step in range(4):
            optimizer.zero_grad()
            sum(part(rows).square().mean() for part in net if part is net[0] or step > 1 or not late).backward()
            optimizer.step()
        return torch.cat([weights.detach().ravel() for weights in net.parameters()])

    torch.testing.assert_close(trained(ours=True, late=False), trained(ours=False, late=False), rtol=0, atol=0)
    torch.testing.assert_close(trained(ours=True, late=True), trained(ours=False, late=True))
