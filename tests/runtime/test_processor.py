"""What a training with `auto` takes from the processor."""

import copy
import logging

import pytest
import torch
from conftest import QUICK

from nenya.commands.compose import compose
from nenya.errors import OptionError
from nenya.io import model_versions
from nenya.models.contrastive import ContrastiveModule, make_net
from nenya.options.commands import ExtractOptions, TrainOptions
from nenya.options.sections import build_options
from nenya.runtime import processor
from nenya.runtime.processor import kind_of_processor
from nenya.runtime.processor import settle as settled

AUTO = {"trainer": {"precision": "auto", "accelerator": "cpu"}, "model": {"layout": "auto"}}


@pytest.fixture(autouse=True)
def threads():
    """Give back the number of threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def on(monkeypatch, kind, threads=1):
    """Pretend to be on a kind of processor."""
    monkeypatch.setattr(processor, "kind_of_processor", lambda accelerator: kind)
    torch.set_num_threads(threads)


def settle(options):
    return settled(options)[0]


def train_options(**more):
    return build_options(TrainOptions, {**AUTO, **more})


@pytest.mark.parametrize(
    ("able", "kind", "precision", "layout"),
    [
        ({"amx_bf16": True, "avx512_bf16": True, "avx512_f": True}, "amx_bf16", "bf16-mixed", "channels_last"),
        ({"avx512_bf16": True, "avx512_f": True, "avx2": True}, "avx512_bf16", "bf16-mixed", "channels_last"),
        ({"avx512_f": True, "avx2": True}, "avx512", "32-true", "channels_last"),
        ({"avx512_f": False, "avx2": True}, "avx2", "32-true", "channels_last"),
        ({"neon": True}, "other", "32-true", "contiguous"),
    ],
)
def test_the_table_of_cpus(monkeypatch, able, kind, precision, layout):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    assert kind_of_processor("cpu") == kind
    chosen = settle(train_options())
    assert (chosen.trainer.precision, chosen.model.layout) == (precision, layout)
    assert chosen.optim.fused is (True if layout == "channels_last" else None)
    monkeypatch.setattr(torch._C, "_has_mkldnn", False)
    assert kind_of_processor("auto") == "other"


def test_the_table_of_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for capability, kind in (((7, 5), "cuda"), ((8, 0), "cuda_bf16"), ((9, 0), "cuda_bf16")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda capability=capability: capability)
        assert kind_of_processor("auto") == kind_of_processor("gpu") == kind
    assert not kind_of_processor("cpu").startswith("cuda") and kind_of_processor("mps") == "other"


def test_torch_names_what_this_processor_can():
    assert {"avx2", "avx512_f", "avx512_bf16", "amx_bf16"} <= set(torch.cpu.get_capabilities()) or (
        torch.cpu.get_capabilities()["architecture"] != "x86_64"
    )


@pytest.mark.parametrize("kind", ["avx512_bf16", "avx2", "cuda"])
def test_narrow_networks_are_laid_out_so_that_no_processor_overwrites_memory(monkeypatch, kind):
    on(monkeypatch, kind)
    for width, layout in ((7, "channels_last" if kind == "cuda" else "contiguous"), (8, "channels_last")):
        chosen = settle(train_options(model={"layout": "auto", "width": width}))
        assert (chosen.model.layout, chosen.optim.fused) == (layout, True)
        asked = train_options(model={"layout": "channels_last", "width": width})
        if (width, kind) == (7, "avx2"):
            with pytest.raises(OptionError, match=r"model\.width=7: expected a width of 8 or more on this processor"):
                settle(asked)
        else:
            assert settle(asked).model.layout == "channels_last"


def test_gradients_of_each_layout_that_auto_chooses_are_those_of_float64():
    torch.manual_seed(0)
    for width in (2, 8, 9):
        options = settle(train_options(model={"layout": "auto", "width": width, "ssl_model": "resnet18"}))
        net, images = make_net(options), torch.randn(8, 1, 16, 16)
        turn = torch.randn_like(net(images))
        gradients = []
        for kind in (torch.float64, torch.float32):
            form = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}[options.model.layout]
            own = copy.deepcopy(net).to(dtype=kind, memory_format=form)
            (own(images.to(dtype=kind, memory_format=form)) * turn).sum().backward()
            gradients.append(torch.cat([parameter.grad.double().flatten() for parameter in own.parameters()]))
        exact, found = gradients
        assert (found - exact).norm() < 0.003 * exact.norm()


def test_only_what_is_auto_is_chosen(monkeypatch):
    on(monkeypatch, "avx512_bf16")
    given = build_options(TrainOptions, {})
    assert settle(given) is given
    half, said = settled(build_options(TrainOptions, {"trainer": {"precision": "auto"}}))
    assert (half.trainer.precision, half.model.layout, half.optim.fused) == ("bf16-mixed", "contiguous", None)
    assert said == "chosen for this processor (avx512_bf16, 1 thread): trainer.precision=bf16-mixed"
    slow = settle(train_options(optim={"optimizer": "LARS"}))
    assert slow.model.layout == "channels_last" and slow.optim.fused is None
    assert settle(train_options(optim={"fused": False})).optim.fused is False


def test_a_resumed_run_keeps_its_choice_and_says_where_it_is_elsewhere(monkeypatch, caplog):
    on(monkeypatch, "avx512_bf16")
    begun = settle(train_options())
    begun.resume = "run"
    with caplog.at_level(logging.WARNING):
        assert settle(begun) is begun
    assert not caplog.text
    on(monkeypatch, "avx2")
    with caplog.at_level(logging.WARNING):
        kept = settle(begun)
    assert (kept.trainer.precision, kept.model.layout) == ("bf16-mixed", "channels_last")
    assert "the run began on another processor (avx512_bf16, 1 thread; this one: avx2, 1 thread)" in caplog.text
    assert "slow without bfloat16" in caplog.text


def test_a_resumed_run_keeps_its_threads(monkeypatch):
    monkeypatch.setattr(processor, "cores", lambda: 2)
    on(monkeypatch, "avx2", threads=2)
    begun = settle(train_options())
    begun.resume = "run"
    assert begun.processor == "avx2, 2 threads"
    torch.set_num_threads(1)
    settle(begun)
    assert torch.get_num_threads() == 2


def test_no_more_threads_than_cores(monkeypatch):
    monkeypatch.setattr(processor, "cores", lambda: 1)
    on(monkeypatch, "avx2", threads=2)
    assert settle(train_options()).processor == "avx2, 1 thread"


def test_latents_do_not_depend_on_the_processor():
    values = {"trainer": {"precision": "auto"}}
    assert build_options(ExtractOptions, values).trainer.precision == "32-true"
    assert compose("extract", ["model=demo", "data=a.h5"]).trainer.precision == "32-true"
    assert compose("train", ["model=demo"]).trainer.precision == "auto"


def test_published_versions_stay_as_they_are():
    chosen = set()
    for name in model_versions():
        options = compose("train", [f"model={name}"])
        if (options.trainer.precision, options.model.layout, options.optim.fused) != ("32-true", "contiguous", None):
            chosen.add(name)
    assert chosen == {"demo", "clouds"}


def test_training_by_auto_is_repeatable_and_its_loss_in_float32(monkeypatch, small_file, nenya_cli, tmp_path):
    on(monkeypatch, "avx512_bf16")
    seen, loss = [], ContrastiveModule._loss

    def spied(self, batch):
        found = loss(self, batch)
        seen.append((found.dtype, self.net.encoder.conv1.weight.is_contiguous(memory_format=torch.channels_last)))
        return found

    monkeypatch.setattr(ContrastiveModule, "_loss", spied)
    auto = [
        *QUICK[:-2],
        "model.width=8",
        "trainer.max_epochs=2",
        "trainer.precision=auto",
        "model.layout=auto",
        f"data={small_file}",
    ]
    weights = []
    for out in ("first", "second"):
        code, said = nenya_cli("train", [*auto, f"out={out}"])
        assert code == 0 and "chosen for this processor (avx512_bf16, 1 thread)" in said, said
        weights.append(torch.load(tmp_path / out / "last.pth", weights_only=True)["model"])
    assert seen and {kind for kind, _ in seen} == {torch.float32}
    assert {tensor.dtype for tensor in weights[0].values()} <= {torch.float32, torch.int64}
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    config = (tmp_path / "first" / "config.yaml").read_text()
    for line in ("precision: bf16-mixed", "layout: channels_last", "fused: true", "processor: avx512_bf16, 1 thread"):
        assert line in config
    assert "auto" not in [line.split(": ")[1] for line in config.splitlines() if "precision" in line]
    on(monkeypatch, "avx2")
    code, said = nenya_cli("train", ["resume=first", "trainer.max_epochs=3"])
    assert code == 0 and "the run began on another processor" in said, said
