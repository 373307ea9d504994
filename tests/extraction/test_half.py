"""Extraction in bfloat16 on a CPU."""

import json

import h5py
import numpy as np
import pytest
import torch

from nenya.extraction import half
from nenya.extraction.half import compared, is_half, trainer_options
from nenya.models.inference import make_runner, obstacle
from nenya.models.resnet import ContrastiveNet
from nenya.options.commands import ExtractOptions
from nenya.options.sections import build_options

needs_half = pytest.mark.skipif(bool(obstacle("packed", "cpu", "bf16-true")), reason="oneDNN has no bfloat16 here")
EXTRACT = ["model=demo", "trainer=cpu"]


def options_of(**trainer):
    values = {"model": {"ssl_model": "resnet18"}, "trainer": {"accelerator": "cpu", **trainer}}
    return build_options(ExtractOptions, values)


@needs_half
@pytest.mark.parametrize("latent", ["projection", "encoder"])
@pytest.mark.parametrize("architecture", ["resnet18", "resnet50"])
def test_bfloat16_is_near_to_float32(architecture, latent):
    torch.manual_seed(0)
    net = ContrastiveNet(architecture, 32, 1, width=16).eval()
    for norm in (m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)):  # as after a training
        norm.running_mean.normal_(0, 0.3)
        norm.running_var.uniform_(0.5, 2.0)
    images = torch.randn(16, 1, 32, 32)
    with torch.no_grad():
        exact, near = (make_runner(net, latent, "packed", images.shape, half=half)(images) for half in (False, True))
    assert near.dtype == torch.float32 and not torch.equal(exact, near)
    assert torch.nn.functional.cosine_similarity(exact, near).min() > 0.9999
    assert {p.dtype for p in net.parameters()} == {torch.float32}


@needs_half
def test_the_network_stays_in_float32(tmp_path, small_file, tiny_weights, nenya_cli):
    latents = {}
    for precision in ("32-true", "bf16-true"):
        out = tmp_path / f"{precision}.h5"
        args = [*EXTRACT, f"trainer.precision={precision}", f"data={small_file}", f"ckpt={tiny_weights}", f"out={out}"]
        code, said = nenya_cli("extract", args)
        assert code == 0, said
        assert ("bfloat16 against float32" in said) == (precision == "bf16-true")
        with h5py.File(out) as file:
            latents[precision] = file["train"][:]
            attributes = dict(file.attrs)
        assert attributes["precision"] == precision and attributes["backend"] == "packed"
    about = json.loads(attributes["bfloat16_agreement"])
    assert 0.9999 < about["least_cosine"] < 1 and 0.8 < about["same_neighbours"] <= 1 and about["neighbours"] == 10
    assert about["cutouts"] >= 20
    cosines = (latents["32-true"] * latents["bf16-true"]).sum(axis=1)
    assert not np.array_equal(latents["32-true"], latents["bf16-true"]) and np.nanmin(cosines) > 0.9999
    assert np.array_equal(np.isnan(latents["32-true"]), np.isnan(latents["bf16-true"]))


def test_who_converts_the_network(monkeypatch):
    net = ContrastiveNet("resnet18", 8, 1, width=4)
    monkeypatch.setattr(half, "choose_backend", lambda *_, **__: "packed")
    given = options_of(precision="bf16-true")
    assert is_half(given, net) and trainer_options(given, net).precision == "32-true"
    assert given.trainer.precision == "bf16-true"  # so the latents file says
    for other in (options_of(), options_of(precision="bf16-mixed")):
        assert not is_half(other, net) and trainer_options(other, net) is other.trainer
    gpu = build_options(ExtractOptions, {"trainer": {"accelerator": "gpu", "precision": "bf16-true"}})
    assert trainer_options(gpu, net) is gpu.trainer
    monkeypatch.setattr(half, "choose_backend", lambda *_, **__: "folded")
    assert trainer_options(given, net) is given.trainer


def test_the_comparison_of_latents():
    exact = torch.nn.functional.normalize(torch.randn(40, 16, generator=torch.Generator().manual_seed(0)), dim=1)
    assert compared(exact, exact) == {"least_cosine": 1.0, "neighbours": 10, "same_neighbours": 1.0}
    other = torch.nn.functional.normalize(torch.randn(40, 16, generator=torch.Generator().manual_seed(1)), dim=1)
    found = compared(exact, other)
    assert found["least_cosine"] < 0 and found["same_neighbours"] < 0.5  # by chance 10 of 39
    assert compared(exact[:3], exact[:3])["neighbours"] == 2
    turned = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(2)))[0]
    assert compared(exact, exact @ turned)["same_neighbours"] == 1.0
