"""The users' own page on extraction: its calls run as written, and its definitions name what ours have."""

import ast
import inspect
import json
import sys
import textwrap
import types

import h5py
import numpy as np
import pytest
import torch
from conftest import red_noise, write_cutouts

from nenya import analyze_image, latents_extraction
from nenya.commands.compose import compose
from nenya.models.contrastive import make_net


@pytest.fixture(scope="session")
def blocks(shared) -> list[str]:
    lines = (shared / "seeds" / "latent_extraction.rst").read_text().splitlines()
    found, i = [], 0
    while i < len(lines):
        if lines[i].startswith(".. code-block:: python"):
            block = []
            i += 1
            while i < len(lines) and (not lines[i].strip() or lines[i].startswith(" ")):
                block.append(lines[i])
                i += 1
            found.append(textwrap.dedent("\n".join(block)))
        else:
            i += 1
    return found


def is_definition(block: str) -> bool:
    return all(isinstance(node, ast.ClassDef | ast.FunctionDef) for node in ast.parse(block).body)


@pytest.fixture(scope="session")
def calls(blocks) -> list[str]:
    return [block for block in blocks if not is_definition(block)]


@pytest.fixture(scope="session")
def definitions(blocks) -> dict[str, ast.AST]:
    return {node.name: node for block in blocks if is_definition(block) for node in ast.parse(block).body}


def the_call(calls: list[str], words: str) -> ast.Module:
    """The one block with these words."""
    found = [block for block in calls if words in block]
    assert len(found) == 1, words
    return ast.parse(found[0])


def execute(module: ast.Module, **names) -> dict:
    exec(compile(module, "the page", "exec"), names)
    return names


def test_the_page_has_the_blocks_that_are_tested_here(calls, definitions):
    assert len(calls) == 4
    assert set(definitions) == {"HDF5RGBDataset", "build_loader", "calc_latent"}


@pytest.fixture(scope="module")
def v5_folder(tmp_path_factory):
    """A folder like the users' $OS_SST: v5's weights as the original wrote them, options pickled and all."""
    folder = tmp_path_factory.mktemp("os_sst")
    path = folder / "MODIS_L2" / "Nenya" / "models" / "v4_last.pth"
    path.parent.mkdir(parents=True)
    net = make_net(compose("extract", ["model=v5"]))
    old = types.ModuleType("nenya.params")
    exec("class Params: pass", old.__dict__)
    opt = old.Params()
    opt.feat_dim = 256
    renamed = {
        name.replace("encoder.", "encoder.module.") if name.startswith("encoder.") else name: tensor
        for name, tensor in net.state_dict().items()
    }
    sys.modules["nenya.params"] = old
    try:
        torch.save({"opt": opt, "model": renamed, "optimizer": {}, "epoch": 50}, path)
    finally:
        del sys.modules["nenya.params"]
    return folder, net.eval()


@pytest.fixture(scope="module")
def data_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "data_preproc.h5"
    return write_cutouts(path, train=red_noise(5, seed=1), valid=red_noise(3, seed=2))


def expected(net, images: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return net(torch.from_numpy(images)[:, None].expand(-1, net.nchannels, -1, -1)).numpy()


def test_basic_extraction(calls, v5_folder, data_file, monkeypatch):
    folder, net = v5_folder
    monkeypatch.setenv("OS_SST", str(folder))
    names = execute(the_call(calls, "latent_dict = model_latents_extract"), data_file=str(data_file))
    assert list(names["latent_dict"]) == ["train", "valid"]
    np.testing.assert_allclose(names["train_latents"], expected(net, red_noise(5, seed=1)), atol=5e-6)
    np.testing.assert_allclose(names["valid_latents"], expected(net, red_noise(3, seed=2)), atol=5e-6)
    assert names["train_latents"].dtype == np.float32


def test_single_image(calls, v5_folder, monkeypatch):
    from nenya.io import load_opt
    from nenya.latents.projector import Projector
    from nenya.nenya_umap import places

    folder, net = v5_folder
    monkeypatch.setenv("OS_SST", str(folder))
    opt, model_file = load_opt("v5")
    image = red_noise(1, side=64, seed=3)[0] + 25
    projector_file, table = places("v5", analyze_image.calc_DT(image, opt.random_jitter))
    rng = np.random.default_rng(0)
    latents = rng.standard_normal((40, 256)).astype(np.float32)
    projector = Projector.fit(latents, embedding=rng.standard_normal((40, 2)))
    projector.save(projector_file)
    names = execute(the_call(calls, "analyze_image.get_latents"), image=image, model_file=model_file, opt=opt)
    assert names["embedding"].shape == (1, 2) and names["table_file"] == str(table)
    np.testing.assert_array_equal(names["embedding"], projector.transform(names["latents"]))
    assert names["pp_img"].shape == (1, 1, 64, 64)
    np.testing.assert_allclose(names["pp_img"][0, 0], image - image.mean(dtype=np.float64), atol=1e-5)
    np.testing.assert_allclose(names["latents"], expected(net, names["pp_img"][:, 0]), atol=5e-6)
    square = image[12:52, 12:52]
    assert names["DT"] == pytest.approx(np.percentile(square, 90) - np.percentile(square, 10), rel=1e-6)


def test_batch(calls, s3_service, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    values = {"ssl_model": "resnet18", "width": 8, "feat_dim": 16, "nchannels": 1, "model_root": "M"}
    values |= {"s3_outdir": "s3://bucket/SSL/", "batch_size_valid": 4}
    (tmp_path / "path" / "to").mkdir(parents=True)
    (tmp_path / "path" / "to" / "opts_file.json").write_text(json.dumps(values))
    from nenya.io import Params, as_options
    from nenya.models.checkpoint import save_pth
    from nenya.options.sections import Options

    opt = Params(values)
    net = make_net(as_options(Options, opt)).eval()
    save_pth("last.pth", net, options=opt.dict, epoch=1)
    client = s3_service.client()
    client.create_bucket(Bucket="bucket")
    try:
        client.upload_file("last.pth", "bucket", f"SSL/{opt.model_folder}/last.pth")
        for i in (1, 2):
            path = write_cutouts(tmp_path / f"{i}.h5", valid=red_noise(3 + i, seed=i))
            client.upload_file(str(path), "bucket", f"PreProc/data_preproc_{i}.h5")
        execute(the_call(calls, "extract_main"))
        for i in (1, 2):
            client.download_file("bucket", f"SSL/{opt.latents_folder}/data_preproc_{i}_latents.h5", f"got_{i}.h5")
            with h5py.File(f"got_{i}.h5") as file:
                assert list(file) == ["valid"]
                np.testing.assert_allclose(file["valid"][:], expected(net, red_noise(3 + i, seed=i)), atol=5e-6)
        assert not [p for p in (tmp_path / "outputs").rglob("*") if p.is_file()]
    finally:
        for found in client.list_objects_v2(Bucket="bucket").get("Contents", []):
            client.delete_object(Bucket="bucket", Key=found["Key"])
        client.delete_bucket(Bucket="bucket")


@pytest.mark.parametrize("remove_module", [True, False])
def test_loading_a_model(calls, v5_folder, data_file, tmp_path, monkeypatch, remove_module):
    from nenya.io import load_opt

    folder, net = v5_folder
    monkeypatch.setenv("OS_SST", str(folder))
    opt, model_path = load_opt("v5")
    if not remove_module:
        model_path = str(tmp_path / "plain.pth")
        torch.save({"model": net.state_dict()}, model_path)
    names = execute(
        the_call(calls, "set_model"), torch=torch, opt=opt, model_path=model_path, using_gpu=False,
        remove_module=remove_module,
    )  # fmt: skip
    _, loader = latents_extraction.build_loader(str(data_file), "valid", 2, 0)
    latents = [latents_extraction.calc_latent(names["model"], images, False) for images, _ in loader]
    np.testing.assert_allclose(np.concatenate(latents), expected(net, red_noise(3, seed=2)), atol=5e-6)


@pytest.mark.parametrize("name", ["HDF5RGBDataset", "build_loader", "calc_latent"])
def test_our_definitions_take_the_arguments_of_the_page(definitions, name):
    theirs = definitions[name]
    if isinstance(theirs, ast.ClassDef):
        theirs = next(node for node in theirs.body if isinstance(node, ast.FunctionDef) and node.name == "__init__")
    arguments = [argument.arg for argument in theirs.args.args if argument.arg != "self"]
    defaults = [ast.literal_eval(node) for node in theirs.args.defaults]
    ours = list(inspect.signature(getattr(latents_extraction, name)).parameters.values())
    assert [parameter.name for parameter in ours[: len(arguments)]] == arguments
    first = len(arguments) - len(defaults)
    assert [parameter.default for parameter in ours[first : len(arguments)]] == defaults
    assert all(parameter.default is inspect.Parameter.empty for parameter in ours[:first])
    assert all(parameter.default is not inspect.Parameter.empty for parameter in ours[len(arguments) :])


def test_our_dataset_has_the_attributes_of_the_page(definitions, data_file):
    init = next(node for node in definitions["HDF5RGBDataset"].body if isinstance(node, ast.FunctionDef))
    attributes = [node for node in ast.walk(init) if isinstance(node, ast.Attribute)]
    named = {node.attr for node in attributes if ast.unparse(node.value) == "self"}
    assert named == {"file_path", "partition", "meta_dset", "h5f", "allowed_indices"}
    dataset = latents_extraction.HDF5RGBDataset(str(data_file), "train")
    assert dataset.file_path == str(data_file)
    assert (dataset.partition, dataset.meta_dset) == ("train", "train_metadata")
    assert dataset.h5f["train"].shape == (5, 1, 32, 32)
    np.testing.assert_array_equal(dataset.allowed_indices, np.arange(5))


def test_the_page_on_files_is_true(data_file, tiny_weights, nenya_cli, tmp_path):
    """'File name: Original filename with "_latents" suffix; Shape: (n_samples, feat_dim)'."""
    code, said = nenya_cli("extract", ["model=demo", f"data={data_file}", f"ckpt={tiny_weights}", f"out={tmp_path}"])
    assert code == 0, said
    with h5py.File(tmp_path / "data_preproc_latents.h5") as file:
        assert {name: item.shape for name, item in file.items()} == {"train": (5, 64), "valid": (3, 64)}
