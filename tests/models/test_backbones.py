import json
import sys

import h5py
import numpy as np
import pytest
import torch
from objective_references import lars, numbers
from torch import nn

from nenya.commands.compose import compose
from nenya.errors import CheckpointError, OptionError
from nenya.models.backbones.make import BACKBONES
from nenya.models.backbones.vit import positions
from nenya.models.checkpoint import Checkpoint, infer_architecture, load_checkpoint, load_weights, save_pth
from nenya.models.inference import backend_of, count_multiply_adds, make_runner
from nenya.models.losses import contrastive_loss
from nenya.models.optimizers import LARS, make_optimizer, undecayed
from nenya.models.parts import in_parts
from nenya.models.resnet import ContrastiveNet
from nenya.options import own

NET = """
from pathlib import Path
from torch import nn

Path(__file__).with_name("imported").touch()

class Net(nn.Module):
    def __init__(self, nchannels=1):
        super().__init__()
        self.layer, self.out_features = nn.Conv2d(nchannels, 6, 3), 6

    def forward(self, images):
        return self.layer(images).mean(dim=(2, 3))

class Long(Net):
    def forward(self, images):
        return super().forward(images)[:, :5]

class Broken(Net):
    def forward(self, images):
        raise ValueError("only 64 pixels\\nare good")

class Nameless(nn.Module):
    pass

class Needs(nn.Module):
    def __init__(self, depth):
        super().__init__()

def function(views, generator):
    return views

number = 3
"""


@pytest.fixture
def own_nets(tmp_path, monkeypatch):
    """A module of the user's in the working folder; importing it leaves a file."""
    (tmp_path / "own_nets.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(own, "_permitted", set())
    yield tmp_path / "imported"
    sys.modules.pop("own_nets", None)


def small(name, **named):
    torch.manual_seed(0)
    return ContrastiveNet(name, feat_dim=5, width=4, **named)


@pytest.mark.parametrize("name", BACKBONES)
def test_each_encoder_reads_images_of_any_size_and_is_told_by_its_weights(name):
    net = small(name, nchannels=3).eval()
    one, three = torch.randn(2, 1, 21, 18), torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(net(one), net(one.expand(-1, 3, -1, -1)))
        for images in (one, three, torch.randn(2, 1, 8, 8)):
            assert net.encode(images).shape == (2, net.encoder.out_features)
            assert torch.isfinite(net(images)).all()
        changed = one.clone()
        changed[:, :, -1, -1] += 1  # the last pixel counts, though 21 and 18 are no multiples of a patch
        assert not torch.equal(net.encode(one), net.encode(changed))
        assert count_multiply_adds(net, 16, 16) > net.encoder.out_features
        for backend in ("packed", "folded", "eager"):
            run = make_runner(net, "projection", backend_of(net, backend), (2, 1, 21, 18))
            assert torch.equal(run(one), net(one)), "no batch norms to fold"
    assert infer_architecture(net.state_dict()) == net.architecture
    loaded = ContrastiveNet(**net.architecture)
    load_weights(loaded, Checkpoint("x", "pth", net.state_dict(), {}, 1, ""))
    with pytest.raises(CheckpointError, match=f"set model.ssl_model={name}"):
        load_weights(small("resnet18", nchannels=3), Checkpoint("x", "pth", net.state_dict(), {}, 1, ""))


def test_sizes_of_the_papers():
    count = {name: sum(p.numel() for p in ContrastiveNet(name, 8).encoder.parameters()) for name in ("vit_tiny",)}
    assert count["vit_tiny"] == pytest.approx(5.4e6, rel=0.03)  # 5.7 M with patches of 16 and three channels
    net = ContrastiveNet("convnext_tiny", 8, 3, 96)
    assert sum(p.numel() for p in net.encoder.parameters()) == pytest.approx(27.8e6, rel=0.01)
    assert net.encoder.out_features == 768
    codes = positions(3, 4, 8)
    assert codes.shape == (12, 8)
    assert len(codes.unique(dim=0)) == 12


@pytest.mark.parametrize("name", ["convnext_tiny", "vit_tiny", "resnet18"])
def test_a_batch_in_parts_has_the_gradient_of_the_whole(name):
    net, images = small(name).double(), torch.randn(10, 1, 8, 8, dtype=torch.float64)
    if name == "resnet18":
        net.eval()

    def gradients(forward):
        net.zero_grad()
        contrastive_loss(forward(images).reshape(5, 2, -1), temperature=0.5).backward()
        return [parameter.grad.clone() for parameter in net.parameters()]

    for mine, whole in zip(gradients(lambda x: in_parts(net, net, x, 4)), gradients(net), strict=True):
        torch.testing.assert_close(mine, whole, rtol=1e-9, atol=1e-12)


def test_running_statistics_change_once_for_each_part():
    norm = nn.BatchNorm1d(3)
    other, x = nn.BatchNorm1d(3), torch.randn(6, 3)
    in_parts(norm, norm, x, 2).square().sum().backward()
    for part in x.split(2):
        other(part)
    for name, value in other.state_dict().items():
        assert torch.equal(norm.state_dict()[name], value), name
    assert norm.momentum == 0.1


def test_lars_is_the_formula_and_leaves_biases_and_norms():
    weights, bias = (nn.Parameter(torch.from_numpy(numbers(seed, *shape))) for seed, shape in ((7, (4, 3)), (8, (3,))))
    gradients = [(numbers(9 + i, 4, 3), numbers(20 + i, 3)) for i in range(3)]
    optimizer = LARS(
        [{"params": [weights]}, {"params": [bias], "adapted": False, "weight_decay": 0.0}], 0.5, 0.9, 0.01, 0.02
    )
    wanted = [weights.detach().numpy().copy(), bias.detach().numpy().copy()]
    for of_weights, of_bias in gradients:
        weights.grad, bias.grad = torch.from_numpy(of_weights), torch.from_numpy(of_bias)
        optimizer.step()
    first, second = zip(*gradients, strict=True)
    np.testing.assert_allclose(weights.detach(), lars(wanted[0], first, 0.5, 0.9, 0.01, 0.02), rtol=1e-12)
    np.testing.assert_allclose(bias.detach(), lars(wanted[1], second, 0.5, 0.9, 0.0, 0.02, adapted=False), rtol=1e-12)
    zero = nn.Parameter(torch.zeros(2, 2))
    zero.grad = torch.ones(2, 2)
    LARS([zero], 0.5).step()
    assert torch.equal(zero.detach(), torch.full((2, 2), -0.5)), "weights of length 0 take the plain step"


@pytest.mark.parametrize("name", ["resnet18", "convnext_tiny", "vit_tiny"])
def test_biases_and_norms_are_not_decayed_and_nothing_else(name):
    net = small(name)
    kept = set(map(id, undecayed(net)))
    names = {key for key, parameter in net.named_parameters() if id(parameter) in kept}
    for key, parameter in net.named_parameters():
        assert (key in names) == (parameter.ndim == 1 or key.endswith("bias")), key
    for kind, decay in (("SGD", [1e-4]), ("LARS", [1e-4, 0.0]), ("AdamW", [1e-4, 0.0])):
        optimizer = make_optimizer(
            compose("train", ["model=demo", "data=x", f"optim.optimizer={kind}"]), net, on_gpu=False
        )
        assert [group["weight_decay"] for group in optimizer.param_groups] == decay
        assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(net.parameters()))
        assert all(not group.get("adapted", False) or group["weight_decay"] for group in optimizer.param_groups)


def test_auto_takes_the_optimizer_of_the_paper():
    kinds = {}
    for method in ("SimCLR", "SupCon", "VICReg", "BarlowTwins", "BYOL", "DINO", "MoCo"):
        options = compose("train", ["model=demo", "data=x", f"loss.ssl_method={method}"])
        kinds[method] = type(make_optimizer(options, nn.Linear(2, 2), on_gpu=False)).__name__
    assert {name for name, kind in kinds.items() if kind == "LARS"} == {"VICReg", "BarlowTwins", "BYOL"}
    assert set(kinds.values()) == {"LARS", "SGD"}


REFUSED = {
    "loss.ssl_method=Vicreg": "expected one of SimCLR, SupCon, VICReg, BarlowTwins, BYOL, DINO, MoCo",
    "loss.ssl_method=MoCo loss.queue=63": "loss.queue=63: expected at least loader.batch_size_train=64",
    "loss.queue=100": "loss.queue=100: has an effect only with loss.ssl_method=MoCo, got SimCLR",
    "loss.ssl_method=VICReg loss.temp=0.1": "only with loss.ssl_method=SimCLR or SupCon or MoCo, got VICReg",
    "loss.ssl_method=BYOL loss.contrast_mode=one": "SimCLR or SupCon, got BYOL",
    "loss.ssl_method=BYOL loss.ema=1": "loss.ema=1.0: expected a number from 0 to below 1",
    "loss.ssl_method=DINO loss.prototypes=1": "expected a number from 2",
    "loss.ssl_method=VICReg loader.batch_size_train=1": "VICReg needs at least 2",
    "loss.ssl_method=VICReg loader.labels=kinds": "loader.labels=kinds: VICReg learns without labels",
    "loader.labels=kinds": "SimCLR learns without labels",
    "optim.trust=0.1": "optim.trust=0.1: has an effect only with optim.optimizer=LARS, got SGD",
    "optim.optimizer=AdamW optim.momentum=0.8": "SGD or LARS, got AdamW",
    "loss.ssl_method=VICReg optim.momentum=1.5": "expected below 1 with optim.optimizer=LARS",
    "optim.optimizer=lars": "expected one of auto, SGD, LARS, AdamW",
    "optim.micro_batch=65": "expected at most loader.batch_size_train=64",
    "optim.micro_batch=8 model.backend=compiled": "leave one of them out",
    "model.ssl_model=convnext": "expected one of resnet18, resnet34",
    "augment.extra=[flip]": "expected a list of dotted names",
}


@pytest.mark.parametrize("args", REFUSED)
def test_options_that_do_not_suit_are_refused(args):
    with pytest.raises(OptionError) as error:
        compose("train", ["model=demo", "data=x", *args.split(" ")])
    assert REFUSED[args] in str(error.value)
    assert "\n" not in str(error.value)


def test_a_width_that_does_not_suit_a_vit_is_refused():
    with pytest.raises(OptionError, match=r"model\.width=6: expected a multiple of 4 with vit_tiny"):
        ContrastiveNet("vit_tiny", width=6)


WRONG = {
    "own_nets.None_": "module own_nets has no None_",
    "no_such.Net": "found no module no_such",
    "own_nets.function": "expected a class derived from torch.nn.Module, got function function",
    "own_nets.number": "got int number",
    "own_nets.Nameless": "expected an attribute out_features",
    "own_nets.Needs": "Needs() fails: TypeError",
    "own_nets.Long": "expected features of shape (2, 6), got (2, 5)",
    "own_nets.Broken": "fails for images of shape (2, 1, 32, 32): ValueError: only 64 pixels",
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_classes_are_refused_in_one_line(name, own_nets, nenya_cli, small_file, tmp_path):
    code, said = nenya_cli("train", ["model=demo", f"model.ssl_model={name}", f"data={small_file}", "out=run"])
    (line,) = said.strip().splitlines()
    assert code == 2
    assert f"model.ssl_model={name}: " in line and WRONG[name] in line
    assert not (tmp_path / "run").exists()


def own_checkpoint(path, name="own_nets.Net"):
    """Write weights of `Net` under a name, without importing anything."""
    net = ContrastiveNet("resnet18", 5, width=1)
    net.encoder = nn.Module()
    net.encoder.layer, net.head = nn.Conv2d(1, 6, 3), nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 5))
    options = {"ssl_model": name, "feat_dim": 5, "nchannels": 1, "width": 64, "latent": "projection"}
    save_pth(path, net, options=options, epoch=1)
    return path


def test_a_checkpoint_never_imports_what_it_names(own_nets, nenya_cli, small_file, tmp_path):
    path = own_checkpoint(tmp_path / "net.pth")
    code, said = nenya_cli("inspect", [path])
    assert code == 0 and "own_nets.Net" in said
    code, said = nenya_cli("extract", [f"data={small_file}", f"ckpt={path}", "out=l", "trainer=cpu"])
    assert code == 2 and "give model.ssl_model=own_nets.Net if you have that code" in said
    named = {"ssl_model": "own_nets.Net", "feat_dim": 5, "nchannels": 1, "random_jitter": [24, 3]}
    (tmp_path / "opts.json").write_text(json.dumps(named))
    code, said = nenya_cli("extract", [f"data={small_file}", f"ckpt={path}", "out=l", "model=opts.json"])
    assert code == 2 and "code is imported only if you name it yourself" in said
    code, said = nenya_cli("train", [f"data={small_file}", "model=opts.json", "out=r"])
    assert code == 2 and "named by a file" in said
    assert not own_nets.exists(), "the module was imported"
    args = [f"data={small_file}", f"ckpt={path}", "out=l", "model.ssl_model=own_nets.Net", "trainer=cpu"]
    code, said = nenya_cli("extract", args)
    assert code == 0, said
    assert own_nets.exists()
    with h5py.File(next((tmp_path / "l").glob("*_latents.h5"))) as file:
        assert file.attrs["ssl_model"] == "own_nets.Net"
        assert file["train"].shape == (40, 5)


def test_a_training_with_own_code_resumes_only_if_it_is_named_again(own_nets, nenya_cli, small_file, tmp_path):
    args = ["model.ssl_model=own_nets.Net", "model=demo", "trainer=cpu", "trainer.max_epochs=1", "optim.micro_batch=9"]
    args.append("loader.batch_size_train=16")
    code, said = nenya_cli("train", [*args, f"data={small_file}", "out=run", "augment.extra=[own_nets.function]"])
    assert code == 0, said
    kept = load_checkpoint(tmp_path / "run" / "last.pth")
    assert kept.options["ssl_model"] == "own_nets.Net"
    assert kept.options["extra"] == ["own_nets.function"]
    assert kept.architecture["feat_dim"] == 64
    sys.modules.pop("own_nets")
    own_nets.unlink()
    own._permitted.clear()
    code, said = nenya_cli("train", ["resume=run", "trainer.max_epochs=2"])
    assert code == 2 and "named by a file" in said
    code, said = nenya_cli("train", ["resume=run", "trainer.max_epochs=2", "model.ssl_model=own_nets.Net"])
    assert code == 2 and "augment.extra=own_nets.function: named by a file" in said
    named = ["model.ssl_model=own_nets.Net", "augment.extra=[own_nets.function]"]
    code, said = nenya_cli("train", ["resume=run", "trainer.max_epochs=2", *named])
    assert code == 0, said
