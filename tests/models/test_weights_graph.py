"""Networks as graphs: onnxruntime and torch.export give the latents of `nenya extract`."""

import json

import h5py
import numpy as np
import onnxruntime
import pytest
import torch
from conftest import red_noise, write_cutouts

from nenya.commands.compose import compose
from nenya.models.checkpoint import save_pth, sha256_file
from nenya.models.contrastive import make_net
from nenya.models.weights.graph import INPUT, OUTPUT, TOLERANCE
from nenya.options.flat import flat_view

CPU = "trainer.accelerator=cpu"
ROWS = 72


def write_weights(path, *given):
    """Write weights of an untrained network whose batch norms have seen something."""
    options = compose("extract", ["model=demo", "model.width=4", "model.feat_dim=8", *given])
    net = make_net(options)
    generator = torch.Generator().manual_seed(1)
    for name, tensor in net.state_dict().items():
        if name.endswith(("running_mean", "running_var", "scale")):
            tensor.uniform_(0.3, 0.9, generator=generator)
    save_pth(path, net, options=flat_view(options), epoch=1)
    return path


@pytest.fixture(scope="module")
def cutouts(tmp_path_factory, request):
    """Real cutouts of 64 x 64 pixels, some of them with masked pixels; red noise where there are none."""
    try:
        with h5py.File(request.getfixturevalue("shared") / "data" / "real_sst_preproc.h5") as file:
            real = np.concatenate([file["train"][:, 0], file["valid"][:, 0]])
        turned = [np.rot90(one, k, axes=(1, 2)) for one in (real, real[:, ::-1]) for k in range(4)]
        values = np.concatenate(turned)[:ROWS]
    except (pytest.skip.Exception, OSError):
        values = red_noise(ROWS, 64)
    values = values.astype(np.float32) + 0.25
    values[::5, :9, :20] = np.nan
    values[7] = np.nan
    return write_cutouts(tmp_path_factory.mktemp("graph") / "real_preproc.h5", valid=values)


def extracted(path):
    with h5py.File(path) as file:
        return file["valid"][()]


def run_onnx(path, images):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run([OUTPUT], {INPUT: images})[0]


def test_onnxruntime_gives_the_latents_of_real_cutouts(cutouts, nenya_cli, tmp_path):
    weights = write_weights(tmp_path / "w.pth")
    seen = [f"ckpt={weights}", "preprocess.masked=mean", "preprocess.file=demean"]
    code, said = nenya_cli("export", [*seen, "out=w.onnx", "preprocessing=true", f"data={cutouts}", "license=mit"])
    assert code == 0 and "w.onnx: latents of the graph are nenya's within" in said, said
    code, said = nenya_cli("extract", [*seen, cutouts, "out=l.h5", CPU])
    assert code == 0, said
    latents = extracted(tmp_path / "l.h5")
    with h5py.File(cutouts) as file:
        images = file["valid"][()]
    session = onnxruntime.InferenceSession(tmp_path / "w.onnx", providers=["CPUExecutionProvider"])
    for n in (1, 7, 64):
        found = session.run([OUTPUT], {INPUT: images[:n]})[0]
        np.testing.assert_allclose(found, latents[:n], rtol=0, atol=TOLERANCE)
    assert np.isnan(latents[7]).all() and np.isfinite(latents[:7]).all()
    about = session.get_modelmeta().custom_metadata_map
    assert about["weights_sha256"] == sha256_file(weights) and about["license"] == "mit"
    assert json.loads(about["preprocess"])["masked"] == "mean" and about["preprocess_in_graph"] == "true"
    assert (about["latent"], about["latent_dim"], "nenya_version" in about) == ("projection", "8", True)
    assert json.loads(about["input"])["shape"] == ["n", 1, 64, 64]
    assert len(list(tmp_path.glob("w*"))) == 2, "one file, without data beside it"


def test_the_program_of_torch(cutouts, nenya_cli, tmp_path):
    weights = write_weights(tmp_path / "w.pth", "model.latent=encoder")
    code, said = nenya_cli("export", [f"ckpt={weights}", "out=w.pt2", "size=16"])
    assert code == 0, said
    more = {"nenya.json": ""}
    module = torch.export.load(tmp_path / "w.pt2", extra_files=more).module()
    assert json.loads(more["nenya.json"])["weights_sha256"] == sha256_file(weights)
    assert module(torch.zeros(5, 1, 16, 16)).shape == (5, 32)


NETWORKS = {
    "resnet34": ["model.ssl_model=resnet34", "model.nchannels=3"],
    "resnet50": ["model.ssl_model=resnet50", "model.latent=encoder"],
    "resnet101": ["model.ssl_model=resnet101", "model.width=2"],
    "convnext_tiny": ["model.ssl_model=convnext_tiny", "model.nchannels=3"],
    "convnext_small": ["model.ssl_model=convnext_small"],
    "vit_tiny": ["model.ssl_model=vit_tiny", "model.nchannels=3"],
    "vit_small": ["model.ssl_model=vit_small", "model.latent=encoder"],
    "a mask channel": ["model.mask_channel=true", "preprocess.masked=mask"],
}


@pytest.mark.slow
@pytest.mark.parametrize("inside", [False, True], ids=["network", "preprocessing"])
@pytest.mark.parametrize("name", NETWORKS)
def test_onnxruntime_gives_the_latents_of_every_network(cutouts, nenya_cli, tmp_path, name, inside):
    weights = write_weights(tmp_path / "w.pth", *NETWORKS[name])
    code, said = nenya_cli("export", [f"ckpt={weights}", "out=w.onnx", f"preprocessing={inside}", f"data={cutouts}"])
    assert code == 0, said
    code, said = nenya_cli("extract", [f"ckpt={weights}", cutouts, "out=l.h5", CPU])
    assert code == 0, said
    latents = extracted(tmp_path / "l.h5")
    with h5py.File(cutouts) as file:
        images = file["valid"][()]
    if not inside:
        masked = np.isnan(images)
        images = np.where(masked, 7, images)
        if "mask" in name:
            images = np.concatenate([images, masked], axis=1).astype(np.float32)
        good = ~masked.all(axis=(1, 2, 3)) if "mask" in name else ~masked.any(axis=(1, 2, 3))
        images, latents = images[good], latents[good]
    size = max(1, np.nanmax(np.abs(latents)))
    for n in (1, 7, len(images)):
        found = run_onnx(tmp_path / "w.onnx", images[:n])
        np.testing.assert_allclose(found, latents[:n], rtol=0, atol=TOLERANCE * size)


REFUSED = {
    "a filling": (
        ["out=x.onnx", "preprocessing=true", "preprocess.masked=fill"],
        "masked=fill cannot be part of a graph",
    ),
    "two sizes": (["out=x.onnx", "size=12", "data=CUTOUTS"], "size=12: data= has cutouts of 64 x 64 pixels"),
    "a format and another": (["out=x.pth", "format=onnx"], "expected a file ending in .onnx with format=onnx"),
    "no format": (["out=x.zip"], "expected a file ending in .safetensors, .pth, .onnx, .pt2, or a folder/"),
    "a folder without a place": (["format=hub"], "format=hub: expected out=, the folder to write"),
    "a graph's option": (
        ["out=x.pth", "preprocessing=true"],
        "preprocessing=True: has an effect only with format=on",
    ),
    "a licence nowhere": (["out=x.pth", "license=mit"], "license=mit: has an effect only with format=hub, onnx"),
    "no licence": (["out=x/", "license=I like it"], "license=I like it: expected an identifier such as cc-by-4.0"),
    "a name with folders": (["out=x/", "model.name=a/b"], "model.name=a/b: expected a plain name"),
    "a small size": (["out=x.onnx", "size=4"], "size=4: expected a number from 8 to 4096"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_exported_is_refused_in_one_line(cutouts, nenya_cli, tmp_path, tiny_weights, case):
    args, words = REFUSED[case]
    args = [arg.replace("CUTOUTS", str(cutouts)) for arg in args]
    code, said = nenya_cli("export", [f"ckpt={tiny_weights}", *args])
    assert code == 2 and words in said and len(said.splitlines()) == 1, said
    assert not list(tmp_path.iterdir())


def test_a_graph_that_differs_is_not_written(nenya_cli, tmp_path, tiny_weights, monkeypatch):
    monkeypatch.setattr("nenya.models.weights.graph.TOLERANCE", -1.0)
    code, said = nenya_cli("export", [f"ckpt={tiny_weights}", "out=w.pt2", "size=16"])
    assert code == 2 and "latents of the graph differ from nenya's by" in said and not list(tmp_path.iterdir())
