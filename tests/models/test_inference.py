import json

import h5py
import numpy as np
import pytest
import torch
from conftest import red_noise, write_cutouts
from golden_weights import golden_state_dict

from nenya.errors import OptionError
from nenya.models import inference
from nenya.models.contrastive import ContrastiveModule
from nenya.models.inference import choose_backend, count_multiply_adds, make_runner, obstacle
from nenya.models.resnet import ARCHITECTURES, ContrastiveNet
from nenya.options.commands import ExtractOptions
from nenya.options.flat import FLAT, from_flat
from nenya.options.sections import BACKENDS, build_options

FOLDED = ("folded", "packed")


def skip_without(backend):
    reason = obstacle(backend, "cpu", "32-true")
    if reason:
        pytest.skip(reason)


@pytest.fixture(
    params=[pytest.param(name, marks=pytest.mark.slow) if name == "compiled" else name for name in BACKENDS]
)
def backend(request):
    skip_without(request.param)
    return request.param


def small_net(ssl_model="resnet18", nchannels=1, width=8):
    """A network whose batch norms do something."""
    torch.manual_seed(0)
    net = ContrastiveNet(ssl_model, feat_dim=16, nchannels=nchannels, width=width)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor, low in ((module.weight, 0.5), (module.bias, -0.5), (module.running_mean, -0.5)):
                torch.nn.init.uniform_(tensor, low, low + 1)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
    return net.eval()


# Latents

SLOW = [pytest.param(*pair, marks=pytest.mark.slow) for pair in (("resnet18", 3), ("resnet50", 1))]


@pytest.mark.parametrize(("ssl_model", "nchannels"), [("resnet18", 1), *SLOW])
@pytest.mark.parametrize("name", FOLDED)
@torch.inference_mode()
def test_latents_equal_the_goldens(goldens, name, ssl_model, nchannels):
    skip_without(name)
    case, every = f"{ssl_model}/nc{nchannels}", {"resnet18": 1, "resnet50": 2}[ssl_model]
    shapes = json.loads((goldens / "state_dict_shapes.json").read_text())[case]
    net = ContrastiveNet(ssl_model, 256, nchannels)
    net.load_state_dict(golden_state_dict(shapes))
    with np.load(goldens / "golden_public.npz", allow_pickle=False) as arrays:
        images = torch.from_numpy(np.concatenate([arrays["img/synthetic"], arrays["img/real"]])[::every, None])
        wanted = {"projection": arrays[f"latents/extract/{case}"][::every]}
        wanted["encoder"] = arrays[f"feat/encoder/{case}"][::every]
    for latent, values in wanted.items():
        found = make_runner(net.eval(), latent, name, images.shape)(images)
        np.testing.assert_allclose(found, values, rtol=0, atol=1e-5 * max(1, np.abs(values).max()))


@torch.inference_mode()
def test_compiled_latents_equal_the_goldens(goldens):
    skip_without("compiled")
    shapes = json.loads((goldens / "state_dict_shapes.json").read_text())["resnet18/nc1"]
    net = ContrastiveNet("resnet18", 256, 1)
    net.load_state_dict(golden_state_dict(shapes))
    with np.load(goldens / "golden_public.npz", allow_pickle=False) as arrays:
        images, wanted = torch.from_numpy(arrays["img/real"][:4, None]), arrays["latents/extract/resnet18/nc1"]
        wanted = wanted[len(arrays["img/synthetic"]) :][:4]
    found = make_runner(net.eval(), "projection", "compiled", images.shape)(images)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("ssl_model", ARCHITECTURES)
@pytest.mark.parametrize("name", FOLDED)
@torch.inference_mode()
def test_backends_agree_with_eager_for_any_shape(name, ssl_model):
    skip_without(name)
    for nchannels, shape in ((1, (3, 1, 12, 20)), (3, (2, 1, 17, 9)), (3, (2, 3, 16, 16)), (1, (1, 1, 8, 8))):
        net = small_net(ssl_model, nchannels)
        images = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        for latent, own in (("projection", net), ("encoder", net.encode)):
            wanted = own(images)
            found = make_runner(net, latent, name, shape)(images)
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5 * max(1, wanted.abs().max().item()))


@torch.inference_mode()
def test_rows_have_the_same_bits_wherever_they_stand(backend):
    net, rows = small_net(), torch.from_numpy(red_noise(8)[:, None])
    run = make_runner(net, "projection", backend, rows.shape)
    first = run(rows).clone()
    order = torch.tensor([5, 0, 7, 1, 6, 2, 4, 3])
    assert torch.equal(run(rows[order]), first[order])
    others = torch.cat([rows[:1], torch.zeros_like(rows[1:])])
    assert torch.equal(run(others)[0], first[0])


@torch.inference_mode()
def test_images_and_network_are_left_alone(backend):
    net, rows = small_net(), torch.from_numpy(red_noise(4)[:, None])
    state, before = {name: tensor.clone() for name, tensor in net.state_dict().items()}, rows.clone()
    wanted = net(rows)
    make_runner(net, "projection", backend, rows.shape)(rows)
    assert torch.equal(rows, before)
    assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())
    assert torch.equal(net(rows), wanted)


@torch.inference_mode()
def test_bfloat16_is_the_networks_own_but_for_rounding():
    net, rows = small_net(width=16), torch.from_numpy(red_noise(16)[:, None])
    exact = net(rows)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        wanted = net(rows)
        found = make_runner(net, "projection", "folded", rows.shape)(rows)
    assert found.dtype == torch.float32
    assert (found - exact).abs().max() < 2 * (wanted - exact).abs().max()


# The rule


def test_multiply_adds_of_the_published_network():
    assert count_multiply_adds(ContrastiveNet("resnet50"), 64, 64) == pytest.approx(5.2e9, rel=0.02)


@pytest.mark.parametrize("ssl_model", ARCHITECTURES)
@pytest.mark.parametrize("nchannels", [1, 3])
def test_multiply_adds_are_those_that_torch_counts(ssl_model, nchannels):
    from torch.utils.flop_counter import FlopCounterMode

    net = small_net(ssl_model, nchannels)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.zeros(1, 1, 20, 12))
    assert count_multiply_adds(net, 20, 12) == counter.get_total_flops() // 2


def test_auto_packs_on_a_cpu_and_compiles_only_what_is_long(monkeypatch):
    monkeypatch.setattr(inference, "_packs", lambda **_: True)
    monkeypatch.setattr(inference, "_why_not_compiled", lambda device: None)
    long, short = 1e18, 1e11
    assert choose_backend("auto", "cpu", "32-true", long) == "packed"
    assert choose_backend("auto", "cpu", "32-true", 0) == "packed"
    for device, precision in (("cpu", "bf16-mixed"), ("cuda", "32-true"), ("cuda", "bf16-mixed")):
        assert choose_backend("auto", device, precision, long) == "compiled"
        assert choose_backend("auto", device, precision, long, may_compile=False) == "folded"
        assert choose_backend("auto", device, precision, short) == "folded"
    assert choose_backend("auto", "mps", "32-true", long) == "folded"
    monkeypatch.setattr(inference, "_packs", lambda **_: False)
    assert choose_backend("auto", "cpu", "32-true", long) == "compiled"
    assert choose_backend("eager", "cpu", "32-true", long) == "eager"


def test_what_cannot_be_had_is_replaced_and_the_log_says_so_once(monkeypatch, caplog):
    monkeypatch.setattr(inference, "_why_not_compiled", lambda device: "no C++ compiler")
    inference._warn_once.cache_clear()
    for _ in range(3):
        assert choose_backend("compiled", "cpu", "bf16-mixed", 1e18) == "folded"
    (said,) = [record.getMessage() for record in caplog.records]
    assert said == "model.backend=compiled is not available here (no C++ compiler): using folded"
    assert choose_backend("packed", "cuda", "32-true", 0) == "folded"
    assert choose_backend("auto", "cuda", "32-true", 1e18) == "folded"


def test_a_compiler_that_is_missing_is_found_out(monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("\nno C++ compiler\nmore")

    monkeypatch.setattr(torch, "compile", broken)
    assert inference._why_not_compiled.__wrapped__("cpu") == "torch.compile fails: no C++ compiler"
    monkeypatch.setattr(torch.ops.mkldnn, "_convolution_pointwise", broken)
    assert not inference._packs.__wrapped__(half=False)


def test_the_option_is_checked_and_no_flat_name():
    with pytest.raises(OptionError, match=r"model.backend=fast: expected one of auto, eager"):
        build_options(ExtractOptions, {"model": {"backend": "fast"}})
    assert "backend" not in FLAT
    with pytest.raises(OptionError, match="backend"):
        from_flat({"backend": "eager"})


# In extraction


@pytest.fixture
def extract(nenya_cli, tiny_weights, tmp_path):
    """Extract a file into tmp_path/o: (data, *overrides) -> latents and attributes, or what was said."""

    def call(data, *overrides, code=0):
        place = tmp_path / "o" / "l.h5"
        arguments = ["model=demo", f"data={data}", f"ckpt={tiny_weights}", "trainer.accelerator=cpu", f"out={place}"]
        found, said = nenya_cli("extract", [*arguments, "loader.batch_size_valid=8", *overrides])
        assert found == code, said
        if code:
            return said
        with h5py.File(place) as file:
            return {name: file[name][:] for name in file}, dict(file.attrs)

    return call


def assert_identical(found, wanted):
    assert found.keys() == wanted.keys()
    for name in wanted:
        assert found[name].tobytes() == wanted[name].tobytes(), name


def test_bits_do_not_depend_on_blocks(extract, small_file, backend):
    chosen = f"model.backend={backend}", "clobber=true"
    first, attributes = extract(small_file, *chosen)
    assert attributes["backend"] == backend
    for blocks in (7,) if backend == "compiled" else (1, 7, 13):
        assert_identical(extract(small_file, *chosen, f"loader.block_size={blocks}")[0], first)


def test_partitions_of_different_sizes(extract, tmp_path, tiny_weights):
    path = write_cutouts(tmp_path / "two.h5", train=red_noise(9, side=32), valid=red_noise(5, side=24))
    wanted, _ = extract(path, "model.backend=eager")
    found, _ = extract(path, "model.backend=auto", "clobber=true")
    for name in wanted:
        np.testing.assert_allclose(found[name], wanted[name], rtol=0, atol=1e-5)


@pytest.fixture
def steps(monkeypatch):
    """Backends of the blocks that are computed; `steps.limit` of them, then an error comes."""

    class Steps(list):
        limit = None

    original, steps = ContrastiveModule.predict_step, Steps()

    def step(self, batch, batch_idx):
        if len(steps) == steps.limit:
            raise RuntimeError("stop")
        steps.append(self.backend)
        return original(self, batch, batch_idx)

    monkeypatch.setattr(ContrastiveModule, "predict_step", step)
    return steps


@pytest.mark.parametrize(("begun", "asked"), [("eager", "auto"), ("packed", "eager"), ("folded", "packed")])
def test_a_resume_goes_on_with_the_backend_that_it_was_begun_with(extract, small_file, steps, tmp_path, begun, asked):
    skip_without("packed")
    whole, _ = extract(small_file, f"model.backend={begun}", "loader.block_size=8")
    (tmp_path / "o" / "l.h5").unlink()
    steps.clear()
    steps.limit = 3
    extract(small_file, f"model.backend={begun}", "loader.block_size=8", code=2)
    steps.limit = None
    found, attributes = extract(small_file, f"model.backend={asked}", "loader.block_size=8")
    assert (attributes["backend"], list(steps)) == (begun, [begun] * 8)
    assert_identical(found, whole)


def test_a_resume_without_its_backend_is_refused(extract, small_file, steps, monkeypatch):
    skip_without("packed")
    steps.limit = 3
    extract(small_file, "loader.block_size=8", code=2)
    steps.limit = None
    monkeypatch.setattr(inference, "_packs", lambda **_: False)
    said = extract(small_file, "loader.block_size=8", code=2)
    assert "made with backend packed, which is not available here (torch has no oneDNN here)" in said
    assert "clobber=true" in said and said.count("\n") == 1
    assert extract(small_file, "loader.block_size=8", "clobber=true")[1]["backend"] == "folded"
