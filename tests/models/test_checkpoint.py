import json
import os
import pickle
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from nenya.errors import CheckpointError, OutputError
from nenya.models.checkpoint import (
    infer_architecture,
    load_checkpoint,
    load_weights,
    register_params_stubs,
    save_pth,
    save_safetensors,
)
from nenya.models.pickled import PARAMS_NAMES
from nenya.models.resnet import ARCHITECTURES, ContrastiveNet
from nenya.storage.disk import atomic_path, sha256_file

TINY = [
    "tiny_main",
    "tiny_nenya_io",
    "tiny_nenya_params",
    "tiny_nenya_params_legacyfmt",
    "tiny_ulmo_io",
    "tiny_ulmo_nenya_train_util",
    "tiny_ulmo_ssl_train_util",
]
OPTIONS = {"ssl_model": "resnet18", "lr_decay_epochs": [700, 800], "temp": 0.07, "cosine": True, "none": None}


def small_net(seed=0, **kwargs):
    torch.manual_seed(seed)
    return ContrastiveNet(**{"ssl_model": "resnet18", "feat_dim": 16, "width": 4, **kwargs})


def assert_same_weights(net, other):
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


def assert_one_line(error):
    assert "\n" not in str(error.value)


@pytest.fixture
def pth(tmp_path):
    save_pth(tmp_path / "last.pth", small_net(), options=OPTIONS, epoch=7)
    return tmp_path / "last.pth"


@pytest.mark.parametrize("name", TINY)
def test_users_checkpoints_load_under_every_name_of_params(goldens, name):
    path = goldens / "checkpoints" / f"{name}.pth"
    checkpoint = load_checkpoint(path)
    assert (checkpoint.layout, checkpoint.epoch) == ("pth", 3)
    assert next(iter(checkpoint.state_dict)) == "encoder.conv1.weight"
    assert len(checkpoint.state_dict) == 7
    assert not any("module" in tensor for tensor in checkpoint.state_dict)
    assert checkpoint.options["lr_decay_epochs"] == [700, 800, 900]
    assert checkpoint.options["ssl_method"] == "SimCLR"
    assert json.loads(json.dumps(checkpoint.options)) == checkpoint.options
    assert checkpoint.sha256 == sha256_file(path)


def test_loading_a_part_of_a_network_says_what_is_missing(goldens):
    checkpoint = load_checkpoint(goldens / "checkpoints" / "tiny_nenya_io.pth")
    with pytest.raises(CheckpointError, match=r"117 missing: encoder\.layer1.* and 114 more") as error:
        load_weights(ContrastiveNet("resnet18", nchannels=3), checkpoint)
    assert_one_line(error)
    with pytest.raises(CheckpointError, match=r"tiny_nenya_io\.pth: .* got 7 tensors without head\.2\.weight"):
        _ = checkpoint.architecture


def test_hostile_golden_is_refused_by_name(goldens, capfd):
    with pytest.raises(CheckpointError, match=r"posix\.system.*nothing was executed") as error:
        load_checkpoint(goldens / "checkpoints" / "tiny_hostile.pth")
    assert_one_line(error)
    assert capfd.readouterr().out == ""


class Hostile:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("suffix", [".pth", ".ckpt"])
def test_hostile_pickles_execute_nothing(tmp_path, suffix, zipped, protocol):
    path, marker = tmp_path / f"hostile{suffix}", tmp_path / "marker"
    content = {"model": small_net().state_dict(), "opt": Hostile(marker)}
    if zipped:
        torch.save(content, path, pickle_protocol=protocol)
    else:
        path.write_bytes(pickle.dumps({"opt": Hostile(marker)}, protocol=protocol))
    with pytest.raises(CheckpointError, match="nothing was executed") as error:
        load_checkpoint(path)
    assert_one_line(error)
    assert not marker.exists()


class With:
    """Pickled as a dictionary or weights that have attributes of the file's choice."""

    def __init__(self, content, **attributes):
        self.content, self.attributes = content, attributes

    def __reduce__(self):
        if isinstance(self.content, torch.Tensor):
            given = (self.content, False, OrderedDict(), self.attributes)
            return torch._utils._rebuild_parameter_with_state, given
        return OrderedDict, (), self.attributes, None, iter(self.content.items())


@pytest.mark.parametrize("attribute", ["items", "get", "values", "keys", "detach"])
@pytest.mark.parametrize("value", [3, OrderedDict], ids=str)
def test_a_file_replaces_no_method_by_what_it_names(pth, tmp_path, attribute, value):
    plain = torch.load(pth, weights_only=False)
    made = {attribute: value}
    weights = {name: With(tensor, **made) for name, tensor in plain["model"].items()}
    content = {**plain, "opt": With({"ssl_model": "a"}, **made), "model": With(weights, **made)}
    torch.save(With(content, **made), tmp_path / "a.pth")
    found = load_checkpoint(tmp_path / "a.pth")
    wanted = load_checkpoint(pth)
    assert found.options["ssl_model"] == "a" and found.state_dict.keys() == wanted.state_dict.keys()
    for name, tensor in found.state_dict.items():
        assert torch.equal(tensor, wanted.state_dict[name]) and not vars(tensor)


def test_the_allow_list_ends_with_the_loading(goldens):
    before = set(torch.serialization.get_safe_globals())
    load_checkpoint(goldens / "checkpoints" / "tiny_ulmo_io.pth")
    assert set(torch.serialization.get_safe_globals()) == before


def test_registered_stubs_let_plain_torch_read_the_users_files(goldens):
    with torch.serialization.safe_globals([]):
        register_params_stubs()
        content = torch.load(goldens / "checkpoints" / "tiny_ulmo_io.pth", weights_only=True)
    assert content["opt"].ssl_model == "resnet18"


def test_pth_round_trip(pth):
    checkpoint = load_checkpoint(str(pth))
    assert (checkpoint.layout, checkpoint.epoch, checkpoint.options) == ("pth", 7, OPTIONS)
    assert checkpoint.architecture == small_net().architecture
    net = small_net(seed=1)
    load_weights(net, checkpoint)
    assert_same_weights(net, small_net())


def test_plain_torch_reads_our_pth(tmp_path):
    net = small_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    net(torch.randn(2, 1, 8, 8)).sum().backward()
    optimizer.step()
    path = tmp_path / "new" / "last.pth"
    odd = {"folder": tmp_path, "rate": torch.tensor(0.5), "pair": (1, 2)}
    save_pth(path, net, options=odd, epoch=2, optimizer_state=optimizer.state_dict())
    content = torch.load(path, weights_only=True)
    assert content["opt"] == {"folder": str(tmp_path), "rate": 0.5, "pair": [1, 2]}
    assert content["epoch"] == 2
    assert list(content["model"]) == list(net.state_dict())
    optimizer.load_state_dict(content["optimizer"])


def test_safetensors_round_trip(tmp_path, pth):
    path = tmp_path / "weights.safetensors"
    save_safetensors(path, small_net(), {"licence": "BSD"}, options=OPTIONS, epoch=7)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    assert metadata["licence"] == "BSD"
    assert json.loads(metadata["architecture"]) == small_net().architecture
    again = tmp_path / "again.safetensors"
    save_safetensors(again, load_checkpoint(pth))
    for checkpoint in (load_checkpoint(path), load_checkpoint(again)):
        assert (checkpoint.layout, checkpoint.epoch, checkpoint.options) == ("safetensors", 7, OPTIONS)
        net = small_net(seed=1)
        load_weights(net, checkpoint)
        assert_same_weights(net, small_net())


@pytest.mark.parametrize("prefix", ["net.", "net._orig_mod.", "net.module."])
def test_ckpt_of_lightning(tmp_path, prefix):
    path = tmp_path / "last.ckpt"
    tensors = {prefix + name: tensor for name, tensor in small_net().state_dict().items()}
    content = {
        "pytorch-lightning_version": "2.6.6",
        "epoch": 4,
        "state_dict": {**tensors, "probe": torch.zeros(3)},
        "hyper_parameters": OPTIONS,
    }
    torch.save(content, path)
    checkpoint = load_checkpoint(path)
    assert (checkpoint.layout, checkpoint.epoch, checkpoint.options) == ("ckpt", 5, OPTIONS)
    net = small_net(seed=1)
    load_weights(net, checkpoint)
    assert_same_weights(net, small_net())


@pytest.mark.parametrize("ssl_model", ARCHITECTURES)
def test_architecture_is_told_from_the_tensors(ssl_model):
    with torch.device("meta"):
        net = ContrastiveNet(ssl_model, feat_dim=32, nchannels=3, width=8)
    assert infer_architecture(net.state_dict()) == net.architecture


def test_unknown_stages_are_no_architecture():
    tensors = {name: tensor for name, tensor in small_net().state_dict().items() if "layer4.1" not in name}
    with pytest.raises(CheckpointError, match=r"\(2, 2, 2, 1\) basic blocks"):
        infer_architecture(tensors)


@pytest.mark.parametrize(
    ("wanted", "setting"),
    [
        ({"nchannels": 3}, "model.nchannels=1"),
        ({"ssl_model": "resnet34"}, "model.ssl_model=resnet18"),
        ({"feat_dim": 8, "width": 8}, "model.feat_dim=16 model.width=4"),
    ],
)
def test_another_architecture_says_what_to_set(pth, wanted, setting):
    net = small_net(**wanted)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(CheckpointError, match=f"got a resnet18 with feat_dim 16.*set {setting}$") as error:
        load_weights(net, load_checkpoint(pth))
    assert_one_line(error)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_three_channels_into_one_says_to_set_three(tmp_path):
    save_pth(tmp_path / "three.pth", small_net(nchannels=3), options={}, epoch=1)
    with pytest.raises(CheckpointError, match=r"set model\.nchannels=3$"):
        load_weights(small_net(), load_checkpoint(tmp_path / "three.pth"))


def test_wanted_is_compared_too(pth):
    with pytest.raises(CheckpointError, match=r"set model\.nchannels=1$"):
        load_weights(small_net(), load_checkpoint(pth), {"nchannels": 3})


def test_tensors_that_do_not_fit_are_named(tmp_path):
    net = small_net()
    net.encoder.bn1.register_buffer("extra", torch.zeros(1))
    net.head[2].bias = torch.nn.Parameter(torch.zeros(5))
    save_pth(tmp_path / "odd.pth", net, options={}, epoch=1)
    wanted = r"1 unexpected: encoder\.bn1\.extra; 1 of different size: head\.2\.bias \(5,\) instead of \(16,\)"
    with pytest.raises(CheckpointError, match=wanted):
        load_weights(small_net(), load_checkpoint(tmp_path / "odd.pth"))


@pytest.mark.parametrize("name", ["tiny_nenya_io.pth", "tiny_nenya_params_legacyfmt.pth"])
@pytest.mark.parametrize("kept", [0, 1, 3, 10, 1000, 0.5, 0.99, -1])
def test_truncated_pth_is_refused(goldens, tmp_path, name, kept):
    content = (goldens / "checkpoints" / name).read_bytes()
    path = tmp_path / "cut.pth"
    path.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    with pytest.raises(CheckpointError, match=r"cut\.pth is (empty|damaged)") as error:
        load_checkpoint(path)
    assert_one_line(error)


@pytest.mark.parametrize("kept", [0, 4, 100, 0.5, -1])
def test_truncated_safetensors_is_refused(tmp_path, kept):
    path = tmp_path / "cut.safetensors"
    save_safetensors(path, small_net())
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    with pytest.raises(CheckpointError, match=r"cut\.safetensors is (empty|damaged)") as error:
        load_checkpoint(path)
    assert_one_line(error)


def test_a_changed_byte_among_the_weights_is_noticed(pth):
    content = bytearray(pth.read_bytes())
    content[len(content) // 2] ^= 255
    pth.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(pth)


def test_files_written_without_checksums_load(tmp_path):
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        save_pth(tmp_path / "last.pth", small_net(), options={}, epoch=1)
    finally:
        torch.serialization.set_crc32_options(before)
    assert load_checkpoint(tmp_path / "last.pth").architecture == small_net().architecture


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.pth", {"weights": {}}, "expected weights under 'model', got weights"),
        ("a.ckpt", {"epoch": 3}, "expected weights under 'state_dict', got epoch"),
        ("a.ckpt", {"pytorch-lightning_version": "2.6.6"}, "expected weights under 'state_dict'"),
        ("a.pth", [1, 2], "expected weights under 'model', got list"),
        ("a.pth", {"model": {}}, "expected a dictionary of weights"),
        ("a.pth", {"model": 3}, "expected a dictionary of weights, got int"),
        ("a.pth", {"model": {"a": 3}}, "expected tensors as weights, got other types for a"),
    ],
)
def test_other_contents_are_refused(tmp_path, name, content, message):
    torch.save(content, tmp_path / name)
    with pytest.raises(CheckpointError, match=message) as error:
        load_checkpoint(tmp_path / name)
    assert_one_line(error)


def test_files_of_other_kinds_are_named(small_file, tmp_path):
    with pytest.raises(CheckpointError, match=r"is an HDF5 file, as cutouts.*give weights"):
        load_checkpoint(small_file)
    (tmp_path / "a.pth").write_bytes(b"PAR1" + bytes(100))
    with pytest.raises(CheckpointError, match="is a parquet table"):
        load_checkpoint(tmp_path / "a.pth")


def test_files_that_are_no_checkpoints_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere\.pth does not exist: give the path of a"):
        load_checkpoint(tmp_path / "nowhere.pth")
    with pytest.raises(CheckpointError, match="folder"):
        load_checkpoint(tmp_path)
    (tmp_path / "text.pth").write_text("hello world, this is none")
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        load_checkpoint(tmp_path / "text.pth")


def test_a_failed_write_leaves_the_old_file_and_no_other(pth, monkeypatch):
    before = pth.read_bytes()

    def fail(path, data):
        with path.open("wb") as file:
            file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(OutputError, match=r"cannot write .*last\.pth: No space left on device"):
        save_pth(pth, small_net(seed=1), options={}, epoch=8)
    assert pth.read_bytes() == before
    assert [path.name for path in pth.parent.iterdir()] == ["last.pth"]


def test_atomic_path_shows_nothing_before_its_end(tmp_path):
    final = tmp_path / "new" / "file"
    with atomic_path(final) as temporary:
        temporary.write_bytes(b"content")
        assert not final.exists()
        assert temporary.parent == final.parent
    assert final.read_bytes() == b"content"
    assert list(final.parent.iterdir()) == [final]


def test_params_names_are_those_of_the_users():
    assert "nenya.params.Params" in PARAMS_NAMES
    assert all(name.endswith(".Params") for name in PARAMS_NAMES)
