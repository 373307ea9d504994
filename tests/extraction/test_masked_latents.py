import h5py
import numpy as np
import pytest
import torch

from nenya.cli import main
from nenya.data.augment import ViewSampler
from nenya.errors import CheckpointError, OptionError, OutputError
from nenya.models.checkpoint import load_checkpoint, save_pth, save_safetensors
from nenya.models.contrastive import load_model, make_net
from nenya.options.commands import ExtractOptions
from nenya.options.flat import flat_view
from nenya.options.sections import build_options

SMALL = {"ssl_model": "resnet18", "feat_dim": 8, "width": 4}
SIDE = 16


def options_of(masked="nan", **more):
    model = {**SMALL, "mask_channel": masked == "mask"}
    loader = {"batch_size_valid": 4, "block_size": 8}
    return build_options(ExtractOptions, {"model": model, "preprocess": {"masked": masked}, "loader": loader, **more})


def weights(folder, masked):
    options = options_of(masked)
    path = folder / f"{masked}.pth"
    net = make_net(options)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(generator=torch.Generator().manual_seed(1), std=0.1)
    save_pth(path, net, options=flat_view(options), epoch=1)
    return path


def cutouts(path, rows=21, seed=0):
    rng = np.random.default_rng(seed)
    fields = rng.standard_normal((rows, SIDE, SIDE)).cumsum(1).cumsum(2).astype(np.float32) / SIDE
    mask = rng.random(fields.shape) < rng.uniform(0, 0.5, (rows, 1, 1))
    mask[2], mask[3] = False, True
    with h5py.File(path, "w") as h5:
        h5["train"], h5["train_mask"] = fields[:, None], mask[:, None].astype(np.uint8)
    return fields, mask


def extract(path, ckpt, out, *more):
    code = main(["extract", f"data={path}", f"ckpt={ckpt}", f"out={out}", "trainer.accelerator=cpu",
                 "loader.batch_size_valid=4", "loader.block_size=8", *more])  # fmt: skip
    assert code == 0
    with h5py.File(out) as h5:
        return h5["train"][:], dict(h5.attrs)


@pytest.mark.parametrize("masked", ["nan", "fill", "mean", "mask"])
def test_rows_do_not_depend_on_their_block(tmp_path, masked):
    fields, mask = cutouts(tmp_path / "a.h5")
    ckpt = weights(tmp_path, masked)
    found, attributes = extract(tmp_path / "a.h5", ckpt, tmp_path / "l.h5")
    assert np.isnan(found).any(axis=1).tolist() == [row == 3 for row in range(21)]
    assert attributes.get("masked", "nan") == masked
    order = np.random.default_rng(1).permutation(21)
    with h5py.File(tmp_path / "b.h5", "w") as h5:
        h5["train"], h5["train_mask"] = fields[order], mask[order]
    again, _ = extract(tmp_path / "b.h5", ckpt, tmp_path / "m.h5", "loader.num_workers=1")
    np.testing.assert_array_equal(again, found[order])
    if masked != "nan":
        with h5py.File(tmp_path / "c.h5", "w") as h5:
            h5["train"] = np.where(mask, np.nan, fields).astype(np.float32)
        np.testing.assert_array_equal(extract(tmp_path / "c.h5", ckpt, tmp_path / "n.h5")[0], found)


def test_latents_of_other_masks_are_not_taken_for_these(tmp_path, capsys):
    cutouts(tmp_path / "a.h5")
    ckpt, out = weights(tmp_path, "fill"), tmp_path / "l.h5"
    extract(tmp_path / "a.h5", ckpt, out)
    for masked in ("mean", "nan"):
        arguments = ["extract", f"data={tmp_path / 'a.h5'}", f"ckpt={ckpt}", f"out={out}", "trainer.accelerator=cpu"]
        assert main([*arguments, f"preprocess.masked={masked}"]) != 0
        assert f"made with masked fill instead of {masked}" in capsys.readouterr().err


def test_a_mask_channel_is_in_the_checkpoint(tmp_path):
    path = weights(tmp_path, "mask")
    found = load_checkpoint(path)
    assert found.architecture == {**SMALL, "nchannels": 1, "mask_channel": True}
    assert (found.options["mask_channel"], found.options["masked"]) == (True, "mask")
    save_safetensors(tmp_path / "a.safetensors", found)
    assert load_checkpoint(tmp_path / "a.safetensors").architecture == found.architecture
    _, module = load_model(options_of("mask"), str(path))
    with torch.inference_mode():
        images = torch.randn(3, 2, SIDE, SIDE)
        assert module.eval()(images).shape == (3, 8)
        assert not torch.equal(module(images), module(images * torch.tensor([1.0, 0.0])[:, None, None]))


@pytest.mark.parametrize("masked", ["fill", "mask"])
def test_a_mean_is_warned_of_only_if_the_network_sees_it(tmp_path, masked, capsys):
    cutouts(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5") as h5, h5py.File(tmp_path / "b.h5", "w") as other:
        other["train"], other["train_mask"] = h5["train"][:] + np.float32(5), h5["train_mask"][:]
    ckpt, found = weights(tmp_path, masked), []
    for name in "ab":
        found.append(extract(tmp_path / f"{name}.h5", ckpt, tmp_path / f"{name}_l.h5")[0])
    said = capsys.readouterr().err
    assert ("have means up to" in said) == (masked == "fill")
    assert np.allclose(found[0], found[1], atol=1e-4, equal_nan=True) == (masked == "mask")


def test_nan_outside_the_mask_ends_an_extraction_and_a_training(tmp_path, capsys):
    cutouts(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "r+") as h5:
        h5["train"][9, 0, :2, :2], h5["train_mask"][9, 0, :2, :2] = np.nan, 0
    wanted = "row 9 of 'train' has 4 pixels that are not finite outside 'train_mask'"
    ckpt, data = weights(tmp_path, "nan"), f"data={tmp_path / 'a.h5'}"
    assert main(["extract", data, f"ckpt={ckpt}", f"out={tmp_path / 'l.h5'}", "trainer.accelerator=cpu"]) == 2
    assert wanted in capsys.readouterr().err and not (tmp_path / "l.h5").exists()
    assert main(["train", data, f"out={tmp_path / 'run'}", "model=demo", "trainer.accelerator=cpu", "debug=true",
                 "loader.batch_size_train=10", "augment.random_jitter=[12,2]"]) == 2  # fmt: skip
    assert wanted in capsys.readouterr().err


def test_finished_rows_of_other_masks_are_not_taken_over(tmp_path):
    from nenya.data.cutouts import inspect_cutouts
    from nenya.extraction.journal import BlockStore, begin, describe_status, journal_line

    cutouts(tmp_path / "a.h5")
    file, store = inspect_cutouts(tmp_path / "a.h5"), BlockStore(tmp_path / "l.h5", {"train": 21}, 8)
    same = {"checkpoint_sha256": "0" * 64, "preprocessing": "none", "latent": "projection", "precision": "32-true",
            "rows": {"train": 21}, "dim": 8, "device": "cpu", "torch_version": "2", "backend": "folded", "threads": 1,
            "batch_size": 4, "block_size": 8, "source": {"sha256": None, **describe_status(file.path)}}  # fmt: skip
    store.partial.mkdir()
    store.start({**same, "masked": "fill"})
    (store.partial / "journal-0-x").write_bytes(journal_line(0, bytes(8 * 8 * 4), 0))
    assert begin(store, {**same, "masked": "fill"}, file, clobber=False).done == {0}
    for other in ({}, {"masked": "mean"}):
        now = other.get("masked", "nan")
        with pytest.raises(OutputError, match=f"made with masked fill instead of {now}: clobber=true starts over"):
            begin(store, {**same, **other}, file, clobber=False)


@pytest.mark.parametrize(("of", "read", "words"), [
    ("mask", "fill", "the network sees the mask as a second channel: set model.mask_channel=true preprocess.*=mask"),
    ("mask", "nan", "sees the mask as a second channel"),
    ("fill", "mask", "the network has no mask channel"),
])  # fmt: skip
def test_weights_of_the_other_kind_are_refused(tmp_path, of, read, words):
    with pytest.raises(CheckpointError, match=words):
        load_model(options_of(read), str(weights(tmp_path, of)))


@pytest.mark.parametrize(("model", "masked"), [({"mask_channel": True}, "fill"), ({}, "mask")])
def test_half_of_the_options_is_refused(model, masked):
    with pytest.raises(OptionError, match=r"preprocess\.masked"):
        make_net(build_options(ExtractOptions, {"model": {**SMALL, **model}, "preprocess": {"masked": masked}}))


@pytest.mark.parametrize("chunks", [None, (4, 1, SIDE, SIDE)])
def test_a_wholly_masked_cutout_of_finite_values_is_not_trained_on(tmp_path, chunks):
    from nenya.data.cutouts import inspect_cutouts
    from nenya.data.datamodule import ViewsDataModule
    from nenya.data.row_list import RowList

    fields, mask = cutouts(tmp_path / "a.h5")
    with h5py.File(tmp_path / "b.h5", "w") as h5:
        h5.create_dataset("train", data=fields[:, None], chunks=chunks)
        h5.create_dataset("train_mask", data=mask[:, None], chunks=chunks)
    file = inspect_cutouts(tmp_path / "b.h5")
    for masked in ("nan", "fill"):
        data = ViewsDataModule(options_of(masked), [file], tmp_path)
        data.setup("fit")
        assert data._usable["train"].tolist() == [row for row in range(len(fields)) if row != 3]
    chosen = RowList(((file, "train"),), np.array([3, 5, 7]), np.array([], np.int64), "")
    data = ViewsDataModule(options_of(), [file], tmp_path, chosen)
    data.setup("fit")
    assert data._usable["train"].tolist() == [5, 7]


@pytest.mark.parametrize("masked", ["fill", "mask"])
def test_masked_cutouts_are_trained_on(tmp_path, masked, capsys):
    cutouts(tmp_path / "a.h5")
    model = [f"model.{key}={value}" for key, value in SMALL.items()]
    arguments = ["train", f"data={tmp_path / 'a.h5'}", f"out={tmp_path / 'run'}", "model=custom", *model,
                 f"model.mask_channel={masked == 'mask'}", f"preprocess.masked={masked}", "trainer.accelerator=cpu",
                 "loader.batch_size_train=10", "augment.random_jitter=[12,2]", "trainer.max_epochs=1",
                 "trainer.enable_progress_bar=false"]  # fmt: skip
    assert main(arguments) == 0
    assert "skipping 1 of 21 cutouts without a clear pixel" in capsys.readouterr().err
    found = load_checkpoint(tmp_path / "run" / "last.pth")
    assert found.architecture.get("mask_channel", False) is (masked == "mask")
    latents, _ = extract(tmp_path / "a.h5", tmp_path / "run" / "last.pth", tmp_path / "l.h5")
    assert int(np.isfinite(latents).all(axis=1).sum()) == 20


def test_a_mask_is_turned_with_its_image():
    from nenya.data.datamodule import ViewsDataModule
    from nenya.data.extra_views import ExtraViews

    options = options_of("mask", augment={"random_jitter": [12, 2]})
    data = ViewsDataModule.__new__(ViewsDataModule)
    data.options = options
    data.extra = ExtraViews(options.augment)
    data.views = data.mask_views = ViewSampler(crop=12, jitter=2, demean=False)
    spot = torch.zeros(5, 1, SIDE, SIDE)
    spot[:, :, 5:9, 4:12] = 1
    batch = {"images": spot.repeat(1, 2, 1, 1), "index": 0, "first": 0, "total": 5}
    views = data.make_views(batch, "train", 0)
    assert views.shape == (5, 2, 2, SIDE, SIDE)
    torch.testing.assert_close(views[:, :, 1], (views[:, :, 0] > 0.5).float(), rtol=0, atol=0)
    plain = data.make_views({**batch, "images": spot}, "train", 0)
    assert torch.equal(plain[:, :, 0], views[:, :, 0]), "the mask draws nothing"
