"""A training loop of a user's own, with the names of the first nenya."""

import json
import pickle

import h5py
import numpy as np
import pytest
import torch
from conftest import red_noise, write_cutouts

from nenya import params, train_util
from nenya.errors import OptionError
from nenya.io import losses_filenames
from nenya.losses import SupConLoss
from nenya.models.checkpoint import load_checkpoint
from nenya.models.losses import contrastive_loss
from nenya.models.resnet_big import LinearClassifier, SupCEResNet, SupConResNet
from nenya.util import AverageMeter, accuracy, adjust_learning_rate, save_model, set_optimizer, warmup_learning_rate


@pytest.fixture
def opt(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_cutouts(tmp_path / "a_preproc.h5", train=red_noise(20), valid=red_noise(7, seed=1))
    values = {"ssl_model": "resnet18", "width": 4, "feat_dim": 8, "nchannels": 3, "random_cropjitter": [24, 3]}
    values |= {"batch_size_train": 8, "batch_size_valid": 4, "epochs": 12, "images_file": "a_preproc.h5"}
    values |= {"data_folder": "./", "model_root": "T", "cuda_use": True, "trial": 1, "s3_outdir": "s3://nowhere/"}
    (tmp_path / "opts.json").write_text(json.dumps(values))
    found = params.Params("opts.json")
    params.option_preprocess(found)
    return found


def test_a_loop_trains_and_its_checkpoint_is_read(opt, tmp_path, caplog):
    model, criterion = train_util.set_model(opt, cuda_use=opt.cuda_use)
    if not torch.cuda.is_available():
        assert "computing on the CPU" in caplog.text
    optimizer = set_optimizer(opt, model)
    before = model.encoder.conv1.weight.detach().clone()
    torch.manual_seed(0)
    curves = [[] for _ in range(6)]
    for epoch in (1, 2):
        adjust_learning_rate(opt, optimizer, epoch)
        found = train_util.train_model(
            train_util.nenya_loader(opt), model, criterion, optimizer, epoch, opt, cuda_use=opt.cuda_use
        )
        seen = train_util.train_model(
            train_util.nenya_loader(opt, valid=True), model, criterion, None, epoch, opt, update_model=False
        )
        for curve, value in zip(curves, (*found, *seen), strict=True):
            curve.extend(value if isinstance(value, list) else [value])
    assert len(found[1]) == len(found[2]) == 3
    assert len(seen[1]) == 2
    assert found[0] == found[2][-1] == pytest.approx(np.average(found[1], weights=[8, 8, 4]))
    assert not torch.equal(before, model.encoder.conv1.weight)
    save_model(model, optimizer, opt, 2, tmp_path / opt.model_folder / "ckpt_epoch_2.pth")
    read = load_checkpoint(tmp_path / opt.model_folder / "ckpt_epoch_2.pth")
    assert read.epoch == 2
    assert read.options["trial"] == 1
    assert torch.equal(read.state_dict["encoder.conv1.weight"], model.encoder.conv1.weight)
    train_util.save_losses(opt, *curves)
    with h5py.File(losses_filenames(opt)[1]) as file:
        assert file["loss_valid"][:].tolist() == curves[3]
        assert len(file["loss_step_valid"]) == 4


def test_validation_changes_nothing(opt):
    model, criterion = train_util.set_model(opt)
    before = pickle.dumps({name: value.numpy() for name, value in model.state_dict().items()})
    train_util.train_model(train_util.nenya_loader(opt, valid=True), model, criterion, None, 1, opt, False, False)
    assert pickle.dumps({name: value.numpy() for name, value in model.state_dict().items()}) == before
    with pytest.raises(OptionError, match="optimizer=None"):
        train_util.train_model([], model, criterion, None, 1, opt)


def test_learning_rates(opt):
    optimizer = set_optimizer(opt, torch.nn.Linear(1, 1))
    rates = []
    for epoch in range(1, 13):
        adjust_learning_rate(opt, optimizer, epoch)
        warmup_learning_rate(opt, epoch, 0, 4, optimizer)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates[0] == pytest.approx(0.01)
    low = 0.05 * 0.1**3
    assert rates[10:] == pytest.approx([low + (0.05 - low) * (1 + np.cos(np.pi * e / 12)) / 2 for e in (11, 12)])


def test_views_of_one_cutout_agree_with_the_goldens(goldens):
    """Each transformation alone, by the angle and shifts that it would draw."""
    stored = np.load(goldens / "golden_aug_public.npz", allow_pickle=False)
    case, side = "sst_40_5", 40
    image, (flip_cols, flip_rows, angle, *shift) = stored[f"{case}/images"][0], stored[f"{case}/params"][0, 0]
    image = image.reshape(image.shape[-2:])
    image = image[:, ::-1] if flip_cols else image
    image = image[::-1] if flip_rows else image
    turned = train_util._viewed(image, angle=float(angle))
    sides = {"crop_rows": side, "crop_cols": side, "shift_rows": int(shift[0]), "shift_cols": int(shift[1])}
    view = train_util.Demean()(train_util._viewed(turned, **sides))
    np.testing.assert_allclose(view, stored[f"{case}/out_demean"][0, 0].squeeze(), atol=5e-5)


@pytest.mark.parametrize("shape", [(32, 32), (32, 32, 1), (32, 32, 3)])
def test_transformations_keep_the_shape(shape):
    image = np.random.default_rng(0).normal(size=shape).astype("f4")
    kept = image.copy()
    for change in (
        train_util.RandomFlip(), train_util.RandomRotate(), train_util.JitterCrop(20, 0, 3), train_util.Demean(),
        train_util.GaussianNoise((0, 0.1)), train_util.GaussianBlurring(1), train_util.RandomJitterCrop(5, 5),
    ):  # fmt: skip
        found = change(image)
        assert found.shape == shape
        assert np.isfinite(found).all()
    assert np.array_equal(image, kept)
    assert train_util.ThreeChannel()(np.zeros((4, 4, 1))).shape == (4, 4, 3)
    assert train_util.JitterCrop(16, 2)(image.reshape(32, 32, -1)).shape == (32, 32, 3)


def test_the_loss_and_the_meter():
    features = torch.nn.functional.normalize(torch.randn(6, 2, 8, generator=torch.Generator().manual_seed(0)), dim=2)
    assert SupConLoss(temperature=0.1)(features) == contrastive_loss(features, temperature=0.1)
    with pytest.raises(ValueError, match="labels"):
        SupConLoss()(features, mask=torch.eye(6))
    meter = AverageMeter()
    meter.update(2.0, 3)
    meter.update(4.0)
    assert (meter.val, meter.avg, meter.sum, meter.count) == (4.0, 2.5, 10.0, 4)
    scores = torch.tensor([[0.1, 0.9, 0.0], [0.5, 0.2, 0.3]])
    assert [float(v) for v in accuracy(scores, torch.tensor([1, 2]), (1, 2))] == [50.0, 100.0]


def test_networks_by_their_names():
    images = torch.zeros(2, 1, 16, 16)
    net = SupConResNet(name="resnet18", feat_dim=5)
    assert net(images + 1).shape == (2, 5)
    assert list(net.state_dict())[-1] == "head.2.bias"
    grey, rgb = torch.rand(3, 1, 16, 16), torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(net.eval()(grey), net(grey.expand(-1, 3, -1, -1)))
    for nchannels in (1, 3):  # as the option files of different years have it
        weights = SupConResNet("resnet18", feat_dim=5, nchannels=nchannels)
        net.load_state_dict(weights.state_dict())
        assert (net.nchannels, net.architecture) == (nchannels, weights.architecture)
        torch.testing.assert_close(net(grey), weights.eval()(grey))
    assert net(rgb).shape == (2, 5)
    with pytest.raises(RuntimeError, match="size mismatch"):
        SupConResNet("resnet18", feat_dim=5, nchannels=1).load_state_dict(net.state_dict())
    assert SupConResNet("resnet18", "linear", 7, 3)(images.expand(-1, 3, -1, -1) + 1).shape == (2, 7)
    assert SupCEResNet("resnet18", 4, 1)(images).shape == (2, 4)
    assert LinearClassifier("resnet18", 3)(torch.zeros(2, 512)).shape == (2, 3)
    for bad in ({"name": "resnet19"}, {"head": "mpl"}):
        with pytest.raises(OptionError):
            SupConResNet(**bad)
