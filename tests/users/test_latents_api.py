"""The calls of the library that give latents in memory, against the network itself."""

import pickle

import h5py
import numpy as np
import pytest
import torch
from conftest import red_noise, write_cutouts
from torch.utils.data import DataLoader, TensorDataset

from nenya.errors import CheckpointError, InputFileError, OptionError
from nenya.extraction.memory import fit_channels
from nenya.io import Params
from nenya.latents_extraction import HDF5RGBDataset, build_loader, calc_latent, model_latents_extract
from nenya.models import contrastive
from nenya.models.checkpoint import save_pth
from nenya.models.losses import contrastive_loss
from nenya.train_util import set_model

VALUES = {"ssl_model": "resnet18", "width": 16, "feat_dim": 64, "nchannels": 1, "batch_size_valid": 4}


@pytest.fixture
def opt():
    return Params(VALUES)


@pytest.fixture(scope="module")
def latents_of(tiny_weights):
    """The slow reference: images (N, H, W) one by one through the network."""
    opt = Params(VALUES)
    model, _ = set_model(opt, cuda_use=False)
    model.load_state_dict(torch.load(tiny_weights)["model"])
    model.eval()

    def compute(images):
        with torch.no_grad():
            return np.concatenate([model(torch.from_numpy(image)[None, None]).numpy() for image in images])

    return compute


def close(came, expected):
    assert came.dtype == np.float32
    np.testing.assert_allclose(came, expected, atol=1e-6)


# The whole file


def test_both_partitions_in_order(opt, small_file, tiny_weights, latents_of):
    for partitions in (("train", "valid"), ("valid", "train"), ("valid",), ("test", "valid")):
        found = model_latents_extract(opt, small_file, tiny_weights, partitions=partitions)
        assert list(found) == [name for name in partitions if name != "test"]
        for name, latents in found.items():
            close(
                latents,
                latents_of(red_noise(*{"train": (40,), "valid": (24,)}[name], seed={"train": 1, "valid": 2}[name])),
            )


def test_they_are_bitwise_those_of_the_script(opt, small_file, tiny_weights, nenya_cli, tmp_path):
    found = model_latents_extract(opt, small_file, tiny_weights)
    arguments = [
        "model=demo",
        f"data={small_file}",
        f"ckpt={tiny_weights}",
        f"out={tmp_path}",
        "trainer.accelerator=cpu",
    ]
    code, said = nenya_cli("extract", [*arguments, "loader.batch_size_valid=4"])
    assert code == 0, said
    with h5py.File(tmp_path / "small_preproc_latents.h5") as file:
        for name, latents in found.items():
            np.testing.assert_array_equal(latents, file[name][:])


def test_debug_is_two_batches(opt, small_file, tiny_weights):
    whole = model_latents_extract(opt, small_file, tiny_weights)
    found = model_latents_extract(opt, small_file, tiny_weights, debug=True)
    assert {name: len(latents) for name, latents in found.items()} == {"train": 8, "valid": 8}
    close(found["train"], whole["train"][:8])


@pytest.mark.parametrize("rows", [[5, 3, 11], [7, 7, 0], np.arange(24)[::-1], np.arange(24) % 3 == 0, [], [23], (2, 4)])
def test_allowed_rows_in_their_order(opt, small_file, tiny_weights, latents_of, rows):
    images = red_noise(24, seed=2)
    found = model_latents_extract(opt, small_file, tiny_weights, partitions=("valid",), allowed_indices=rows)
    expected = images[np.asarray(rows, dtype=None if len(rows) else int)]
    assert found["valid"].shape == (len(expected), 64)
    if len(expected):
        close(found["valid"], latents_of(expected))


def test_allowed_rows_of_compressed_chunks(opt, tiny_weights, latents_of, tmp_path):
    images = red_noise(60, seed=9)
    with h5py.File(tmp_path / "z.h5", "w") as file:
        file.create_dataset("train", data=images[:, None], chunks=(16, 1, 8, 8), compression="gzip")
    rows = np.random.default_rng(0).permutation(60)[:25]
    opt.options.loader.block_size = 7
    found = model_latents_extract(opt, tmp_path / "z.h5", tiny_weights, allowed_indices=rows)
    close(found["train"], latents_of(images[rows]))


@pytest.mark.parametrize("rows", [[24], [-1], [0.5], [[0, 1]]])
def test_rows_that_are_not_there(opt, small_file, tiny_weights, rows):
    with pytest.raises(OptionError, match="allowed_indices"):
        model_latents_extract(opt, small_file, tiny_weights, partitions=("valid",), allowed_indices=rows)


def test_a_cutout_with_a_hole(opt, tiny_weights, latents_of, tmp_path):
    images = red_noise(6, seed=3)
    images[2, 4, 4] = np.nan
    images[4, 1, 1] = np.inf
    path = write_cutouts(tmp_path / "holes.h5", valid=images)
    found = model_latents_extract(opt, path, tiny_weights)["valid"]
    assert np.isnan(found[[2, 4]]).all()
    close(found[[0, 1, 3, 5]], latents_of(images[[0, 1, 3, 5]]))


def test_weights_are_loaded_once(opt, small_file, tiny_weights, tmp_path, monkeypatch):
    path = tmp_path / "last.pth"
    path.write_bytes(tiny_weights.read_bytes())
    reads = []
    load = contrastive.load_checkpoint
    monkeypatch.setattr(contrastive, "load_checkpoint", lambda source: reads.append(source) or load(source))
    for _ in range(3):
        model_latents_extract(opt, small_file, path, debug=True)
    assert len(reads) == 1


def test_weights_with_module_in_their_names(opt, small_file, tiny_weights, tmp_path):
    content = torch.load(tiny_weights)
    content["model"] = {name.replace("encoder.", "encoder.module."): t for name, t in content["model"].items()}
    torch.save(content, tmp_path / "module.pth")
    plain = model_latents_extract(opt, small_file, tiny_weights, remove_module=False)
    for remove_module in (True, False):
        found = model_latents_extract(opt, small_file, tmp_path / "module.pth", remove_module)
        np.testing.assert_array_equal(found["valid"], plain["valid"])


def test_a_network_of_three_channels_gives_the_same(small_file, tmp_path):
    opt = Params({**VALUES, "nchannels": 3})
    model, _ = set_model(opt, cuda_use=False)
    save_pth(tmp_path / "three.pth", model, options=opt.dict, epoch=1)
    found = model_latents_extract(opt, small_file, tmp_path / "three.pth")["valid"]
    images = torch.from_numpy(red_noise(24, seed=2))[:, None]
    with torch.no_grad():
        close(found, model.eval()(images.expand(-1, 3, -1, -1)).numpy())
    opt.nchannels = 1  # the checkpoint's channels are what counts
    np.testing.assert_array_equal(model_latents_extract(opt, small_file, tmp_path / "three.pth")["valid"], found)


@pytest.mark.parametrize(
    ("file", "weights_file", "error", "words"),
    [
        ("none.h5", None, InputFileError, "no such file"),
        (None, None, OptionError, "data_file=None"),
        ("small", "none.pth", CheckpointError, "does not exist"),
    ],
)
def test_bad_input(opt, small_file, tiny_weights, file, weights_file, error, words):
    file = small_file if file == "small" else file
    with pytest.raises(error, match=words):
        model_latents_extract(opt, file, weights_file or tiny_weights)


def test_no_weights_and_no_partition(opt, small_file, tiny_weights):
    with pytest.raises(OptionError, match="model_path=None"):
        model_latents_extract(opt, small_file, None)
    with pytest.raises(InputFileError, match=r"data set named test.*train \(40, 1, 32, 32\)"):
        model_latents_extract(opt, small_file, tiny_weights, partitions=("test",))


def test_several_files_are_never_taken_for_one(opt, tiny_weights, tmp_path):
    for name in "ab":
        write_cutouts(tmp_path / f"{name}.h5", valid=red_noise(2))
    for place in (tmp_path, f"{tmp_path}/*.h5"):
        with pytest.raises(OptionError, match=r"expected one file, got 2, first .*a\.h5"):
            model_latents_extract(opt, place, tiny_weights)
    with pytest.raises(OptionError, match="one cutout file"):
        model_latents_extract(opt, [tmp_path / "a.h5"], tiny_weights)


def test_a_partition_may_be_named_alone(opt, small_file, tiny_weights):
    assert list(model_latents_extract(opt, small_file, tiny_weights, partitions="valid")) == ["valid"]
    for none in ((), None):
        with pytest.raises(OptionError, match="partitions= is empty"):
            model_latents_extract(opt, small_file, tiny_weights, partitions=none)


def test_means_and_holes_are_said(opt, tiny_weights, tmp_path, caplog):
    images = red_noise(4) + 20
    images[1, 0, 0] = np.nan
    path = write_cutouts(tmp_path / "warm.h5", valid=images)
    model_latents_extract(opt, path, tiny_weights)
    assert "cutouts of 'valid' have means up to 20" in caplog.text
    assert "1 row of 'valid' is NaN" in caplog.text


def test_a_file_of_latents_is_told_apart(opt, small_file, tiny_weights, nenya_cli, tmp_path):
    args = ["model=demo", f"data={small_file}", f"ckpt={tiny_weights}", f"out={tmp_path}/x.h5"]
    assert nenya_cli("extract", [*args, "trainer.accelerator=cpu"])[0] == 0
    with pytest.raises(InputFileError, match=r"x\.h5: expected a cutout file, got a latents file"):
        model_latents_extract(opt, tmp_path / "x.h5", tiny_weights)


def test_a_mask_of_another_length(opt, small_file, tiny_weights):
    with pytest.raises(OptionError, match=r"a mask of shape \(24,\) .* got \(2,\)"):
        model_latents_extract(opt, small_file, tiny_weights, partitions="valid", allowed_indices=[True, False])


def test_a_checkpoint_that_holds_options(opt, small_file, tiny_weights, tmp_path):
    content = torch.load(tiny_weights)
    torch.save({**content, "opt": opt}, tmp_path / "own.pth")
    assert torch.load(tmp_path / "own.pth")["epoch"] == 1
    found = model_latents_extract(opt, small_file, tmp_path / "own.pth", debug=True)
    assert list(found) == ["train", "valid"]


@pytest.mark.parametrize("wrong", ["v5", None, 5])
def test_what_is_no_options(small_file, tiny_weights, wrong):
    with pytest.raises(OptionError, match="expected options from load_opt"):
        model_latents_extract(wrong, small_file, tiny_weights)
    with pytest.raises(OptionError, match="expected options from load_opt"):
        set_model(wrong)


# A loader of one's own


def test_a_loader_of_the_page(opt, small_file, tiny_weights, latents_of):
    _, loader = build_loader(small_file, "valid", batch_size=5, num_workers=0)
    found = model_latents_extract(opt, small_file, tiny_weights, in_loader=loader)
    assert list(found) == ["valid"]
    close(found["valid"], latents_of(red_noise(24, seed=2)))
    assert len(model_latents_extract(opt, None, tiny_weights, in_loader=loader, debug=True)["valid"]) == 10


def test_a_loader_of_tensors(opt, tiny_weights, latents_of):
    images = red_noise(5, seed=4)
    images[3, 0, 0] = np.nan
    for nchannels in (1, 3):
        tensors = TensorDataset(torch.from_numpy(images)[:, None].expand(-1, nchannels, -1, -1))
        loader = DataLoader(tensors, batch_size=2)
        found = model_latents_extract(opt, None, tiny_weights, partitions=["valid"], in_loader=loader)["valid"]
        assert np.isnan(found[3]).all()
        close(found[[0, 1, 2, 4]], latents_of(images[[0, 1, 2, 4]]))
    with pytest.raises(OptionError, match="in_loader yields the cutouts of one partition"):
        model_latents_extract(opt, None, tiny_weights, in_loader=loader)
    with pytest.raises(OptionError, match="give them to build_loader"):
        model_latents_extract(opt, None, tiny_weights, in_loader=loader, partitions="valid", allowed_indices=[0])


def test_different_channels_are_refused():
    images = torch.randn(2, 3, 8, 8)
    assert fit_channels(images, 3) is images
    with pytest.raises(InputFileError, match="got 3 different ones"):
        fit_channels(images, 1)


# Data sets and loaders


@pytest.fixture
def with_metadata(tmp_path):
    path = write_cutouts(tmp_path / "m.h5", train=red_noise(9, seed=1), valid=red_noise(5, seed=2))
    with h5py.File(path, "a") as file:
        file["valid_metadata"] = [f"granule {i}" for i in range(5)]
        file["train_metadata"] = np.arange(18.0).reshape(9, 2)
    return path


def test_items(with_metadata):
    dataset = HDF5RGBDataset(with_metadata, "valid")
    image, metadata = dataset[3]
    assert (image.shape, image.dtype, metadata) == ((3, 32, 32), np.float32, "granule 3")
    np.testing.assert_array_equal(image, np.repeat(red_noise(5, seed=2)[3][None], 3, axis=0))
    one, values = HDF5RGBDataset(with_metadata, "train", [4, 2], nchannels=1)[1]
    assert one.shape == (1, 32, 32)
    np.testing.assert_array_equal(values, [4, 5])
    np.testing.assert_array_equal(one[0], red_noise(9, seed=1)[2])
    assert dataset[-1][1] == "granule 4"
    with pytest.raises(IndexError):
        dataset[5]


def test_no_metadata_is_none(small_file):
    dataset = HDF5RGBDataset(small_file, "train", np.array([], dtype=int))
    assert len(dataset) == 0
    assert HDF5RGBDataset(small_file, "train")[0][1] is None


def test_any_float_type_comes_as_float32(tmp_path):
    images = red_noise(4)
    for dtype in ("<f8", ">f4", "<f2"):
        path = write_cutouts(tmp_path / f"{dtype[1:]}.h5", train=images.astype(dtype))
        assert HDF5RGBDataset(path, "train")[2][0].dtype == np.float32


def test_making_one_touches_no_disk_and_it_pickles(with_metadata):
    dataset = HDF5RGBDataset("/nowhere/none.h5", "train")
    with pytest.raises(InputFileError, match="no such file"):
        len(dataset)
    dataset = HDF5RGBDataset(with_metadata, "valid", [1, 2])
    _ = dataset[0]
    twin = pickle.loads(pickle.dumps(dataset))  # noqa: S301  # our own bytes
    np.testing.assert_array_equal(twin[1][0], dataset[1][0])
    assert twin.h5f is not dataset.h5f


@pytest.mark.parametrize("workers", [0, 2])
def test_loader(with_metadata, workers):
    dset, loader = build_loader(with_metadata, "valid", batch_size=2, num_workers=workers, allowed_indices=[4, 0, 2])
    assert isinstance(dset, HDF5RGBDataset)
    batches = list(loader)
    assert [tuple(images.shape) for images, _ in batches] == [(2, 3, 32, 32), (1, 3, 32, 32)]
    assert [metadata for _, metadata in batches] == [["granule 4", "granule 0"], ["granule 2"]]
    came = torch.cat([images for images, _ in batches]).numpy()
    np.testing.assert_array_equal(came[:, 1], red_noise(5, seed=2)[[4, 0, 2]])


def test_loader_without_metadata(small_file):
    _, loader = build_loader(small_file, "train", batch_size=40, num_workers=0)
    ((images, metadata),) = loader
    assert images.shape == (40, 3, 32, 32)
    assert metadata == [None] * 40


# Models


def test_latents_of_a_batch(opt, tiny_weights, latents_of):
    model, criterion = set_model(opt, cuda_use=False)
    model.load_state_dict(torch.load(tiny_weights)["model"])
    model.train()
    images = red_noise(3, seed=8)
    for channels in (1, 3):
        latents = calc_latent(model, torch.from_numpy(images)[:, None].expand(-1, channels, -1, -1), False)
        close(latents, latents_of(images))
    double = torch.from_numpy(images).double()[:, None]
    close(calc_latent(model, double, False), latents_of(images))
    close(calc_latent(model, double.numpy(), False), latents_of(images))
    with pytest.raises(InputFileError, match=r"shape \(B, C, H, W\), got \(32, 32\)"):
        calc_latent(model, double[0, 0], False)
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    features = torch.nn.functional.normalize(torch.randn(4, 2, 64, generator=torch.Generator().manual_seed(1)), dim=2)
    torch.testing.assert_close(criterion(features), contrastive_loss(features, temperature=0.07))
    labels = torch.tensor([0, 0, 1, 1])
    torch.testing.assert_close(criterion(features, labels), contrastive_loss(features, labels))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(opt, caplog):
    model, _ = set_model(opt, cuda_use=True)
    assert "no GPU here: computing on the CPU" in caplog.text
    assert next(model.parameters()).device.type == "cpu"
    with pytest.raises(OptionError, match="no GPU"):
        calc_latent(model, torch.zeros(1, 1, 32, 32), True)


def test_the_original_s_files_load_with_plain_torch(goldens):
    for path in sorted((goldens / "checkpoints").glob("*.pth")):
        if "hostile" in path.name:
            with pytest.raises(pickle.UnpicklingError):
                torch.load(path)
        else:
            assert "model" in torch.load(path), path


def test_a_new_model_is_drawn_from_the_seed(opt):
    first, again = set_model(opt, cuda_use=False)[0], set_model(opt, cuda_use=False)[0]
    for one, two in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, two)
