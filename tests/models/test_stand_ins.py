import argparse
import pathlib
import pickle

import pytest
import torch
from lightning.fabric.utilities.data import AttributeDict
from omegaconf import OmegaConf

from nenya.errors import CheckpointError
from nenya.models.checkpoint import load_checkpoint
from nenya.models.resnet import ContrastiveNet

PREFIXES = ["model.", "net.", "module.", "_orig_mod.", "module._orig_mod.", "model.net.module.", "a.b_1.net._orig_mod."]


@pytest.fixture(scope="module")
def weights():
    torch.manual_seed(0)
    return ContrastiveNet("resnet18", 8, 1, 4).state_dict()


def same(found, weights):
    return list(found) == list(weights) and all(torch.equal(found[name], weights[name]) for name in weights)


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("key", ["model", "state_dict", "model_state_dict", ""])
def test_weights_under_any_prefix(weights, prefix, key, tmp_path):
    named = {prefix + name: value for name, value in weights.items()}
    path = tmp_path / "w.pth"
    torch.save({key: {**named, "criterion.weight": torch.ones(1)}, "epoch": 4} if key else named, path)
    assert same(load_checkpoint(path).state_dict, weights)


def test_two_networks_are_refused_by_name(weights, tmp_path):
    named = {prefix + name: value for name, value in weights.items() for prefix in ("student.", "teacher.")}
    torch.save({"model": named}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"holds several networks, student\., teacher\.: give a file"):
        load_checkpoint(tmp_path / "w.pth")


VALUES = {"lr": 0.1, "layers": [1, 2.5, {"a": None}], "on": True, "to": "${lr}"}
CONFIG = OmegaConf.create({**VALUES, "p": pathlib.Path("/x")})
PLAIN = {"lr": 0.1, "layers": [1, 2.5, {"a": None}], "on": True, "to": "${lr}", "p": "/x"}
KEPT = [
    (CONFIG, PLAIN),
    ({"cfg": CONFIG, "part": CONFIG.layers}, {"cfg": PLAIN, "part": PLAIN["layers"]}),
    ({"args": argparse.Namespace(a=1, b=argparse.Namespace(c=[2]))}, {"args": {"a": 1, "b": {"c": [2]}}}),
    (argparse.Namespace(a=pathlib.Path("/a/b c")), {"a": "/a/b c"}),
    (AttributeDict(a=1, p=pathlib.PureWindowsPath("c")), {"a": 1, "p": "c"}),
]


@pytest.mark.parametrize("number", range(len(KEPT)))
def test_options_of_lightning_are_read_without_their_classes(weights, number, tmp_path):
    given, plain = KEPT[number]
    path, before = tmp_path / "w.ckpt", set(map(str, torch.serialization.get_safe_globals()))
    named = {f"model.{name}": value for name, value in weights.items()}
    content = {"pytorch-lightning_version": "2.4.0", "epoch": 2, "state_dict": named, "hyper_parameters": given}
    torch.save({**content, "hparams_name": "cfg", "hparams_type": type(given)}, path)
    found = load_checkpoint(path)
    assert found.options == plain and found.epoch == 3 and same(found.state_dict, weights)
    after = set(map(str, torch.serialization.get_safe_globals()))
    assert after >= before and not [name for name in after if "omegaconf" in name or "argparse" in name]
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)


class Own:
    pass


@pytest.mark.parametrize("value", [Own(), {"deep": [Own()]}, pathlib.Path.cwd])
def test_anything_else_is_refused_by_name(weights, value, tmp_path):
    torch.save({"state_dict": weights, "hyper_parameters": {"value": value}}, tmp_path / "w.ckpt")
    with pytest.raises(CheckpointError, match=r"would load \S*(Own|getattr)"):
        load_checkpoint(tmp_path / "w.ckpt")
