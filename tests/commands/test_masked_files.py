"""Cutout files with masks in the commands that read or rewrite them."""

import shutil
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import torch

from nenya.analyze_image import get_latents
from nenya.cli import main
from nenya.commands.inspect import inspect_file
from nenya.data.cutouts import inspect_cutouts
from nenya.data.ensemble_spectra import load_images
from nenya.data.masks import InputReader
from nenya.errors import InputFileError
from nenya.latents_extraction import build_loader, calc_latent, model_latents_extract
from nenya.models.contrastive import make_net
from nenya.options.commands import ExtractOptions
from nenya.options.sections import build_options
from nenya.portal.upload import read_image

ROWS, SIDE = 12, 16


@pytest.fixture
def cutouts(tmp_path):
    """Fields with values under their masks: a clear one (0), a wholly masked one (1) and others."""
    rng = np.random.default_rng(0)
    fields = rng.standard_normal((ROWS, SIDE, SIDE)).cumsum(1).cumsum(2).astype(np.float32) / SIDE
    mask = rng.random(fields.shape) < 0.2
    mask[0], mask[1] = False, True
    with h5py.File(tmp_path / "a_preproc.h5", "w") as h5:
        h5.create_dataset("train", data=fields[:, None], chunks=(4, 1, 8, 8), compression="gzip")
        h5.create_dataset("train_mask", data=mask[:, None].astype(np.uint8), chunks=(4, 1, 8, 8), compression="gzip")
    return tmp_path / "a_preproc.h5", fields, mask


def options_of(masked):
    model = {"ssl_model": "resnet18", "feat_dim": 8, "width": 4, "mask_channel": masked == "mask"}
    return build_options(
        ExtractOptions, {"model": model, "preprocess": {"masked": masked}, "trainer": {"accelerator": "cpu"}}
    )


def holes_of(path, name="train"):
    with inspect_cutouts(path).reader(name) as reader:
        return InputReader(reader, "holes").read(0, len(reader))[:, 0]


def test_inspect_says_the_masked_share(cutouts):
    path, _, mask = cutouts
    report = inspect_file(path)
    line = next(line for line in report.lines if line.startswith("train_mask"))
    assert f"masked {mask.mean():.2%} of the pixels (most 100.00%), in {ROWS - 1} of {ROWS} cutouts" in line
    assert "train: 1 cutout has no clear pixel, and so no latent" in report.warnings
    with h5py.File(path, "r+") as h5:
        h5["train"][5, 0, 2, 2], h5["train_mask"][5, 0, 2, 2] = np.nan, 0
    with pytest.raises(InputFileError, match="row 5 of 'train' has 1 pixels that are not finite outside 'train_mask'"):
        inspect_file(path)


def test_wholly_masked_cutouts_are_not_called_equal(tmp_path):
    images = np.random.default_rng(0).standard_normal((6, SIDE, SIDE)).astype(np.float32)
    images[[0, 1, 5]] = np.nan
    with h5py.File(tmp_path / "a_preproc.h5", "w") as h5:
        h5["train"], h5["valid"] = images[:4, None], images[4:, None]
    assert not [line for line in inspect_file(tmp_path / "a_preproc.h5").warnings if "both" in line or "equal" in line]
    with h5py.File(tmp_path / "a_preproc.h5", "r+") as h5:
        h5["valid"][1] = h5["train"][2]
    assert "1 cutout is in both partitions" in " ".join(inspect_file(tmp_path / "a_preproc.h5").warnings)


def test_repack_keeps_masks(cutouts, tmp_path):
    path, fields, mask = cutouts
    assert main(["repack", f"data={path}", f"out={tmp_path / 'b.h5'}", "force=true"]) == 0
    np.testing.assert_array_equal(holes_of(tmp_path / "b.h5"), holes_of(path))
    with h5py.File(tmp_path / "m.h5", "w") as h5:
        h5["train"], h5["train_mask"] = fields.transpose(1, 2, 0), mask.transpose(1, 2, 0).astype(np.uint8)
    assert main(["repack", f"data={tmp_path / 'm.h5'}", "axes=hwn", f"out={tmp_path / 'n.h5'}"]) == 0
    np.testing.assert_array_equal(holes_of(tmp_path / "n.h5"), holes_of(path))


def test_derive_carries_masks(cutouts, tmp_path):
    path, fields, mask = cutouts
    assert main(["derive", f"data={path}", "crop=12", "coarsen=2", f"out={tmp_path / 'd_preproc.h5'}"]) == 0
    with h5py.File(tmp_path / "d_preproc.h5") as h5:
        found = h5["train_mask"][:, 0]
        cut = (slice(None), slice(2, 14), slice(2, 14))
        np.testing.assert_array_equal(found, mask[cut].reshape(ROWS, 6, 2, 6, 2).any(axis=(2, 4)))
        wanted = fields[cut].reshape(ROWS, 6, 2, 6, 2).mean(axis=(2, 4))
        np.testing.assert_allclose(h5["train"][:, 0], np.where(found, np.nan, wanted), atol=1e-5)
    assert len(pd.read_parquet(tmp_path / "d_preproc.parquet")) == ROWS


def test_values_under_a_mask_change_nothing(cutouts, tmp_path, nenya_cli):
    path, _, mask = cutouts
    for name, value in (("a", None), ("b", np.float32(-32767))):
        if value is not None:
            shutil.copy(path, tmp_path / f"{name}_preproc.h5")
            with h5py.File(tmp_path / f"{name}_preproc.h5", "r+") as h5:
                fields = h5["train"][:, 0]
                fields[mask] = value
                h5["train"][:, 0] = fields
        args = [f"data={name}_preproc.h5", f"out={name}_new.h5", "demean=true", "median=[3,3]"]
        assert nenya_cli("derive", args)[0] == 0
        code, said = nenya_cli("spectra", [f"data={name}_preproc.h5", f"out={name}_spectra"])
        assert code == 0, said
    spectra, alphas = (
        [Path(f"{name}_spectra/{name}_preproc_{what}") for name in "ab"] for what in ("spectrum.csv", "alpha.parquet")
    )
    assert spectra[0].read_text() == spectra[1].read_text()
    pd.testing.assert_frame_equal(*(pd.read_parquet(file).drop(columns="pp_file", errors="ignore") for file in alphas))
    with h5py.File("a_new.h5") as a, h5py.File("b_new.h5") as b:
        np.testing.assert_array_equal(a["train"], b["train"])
        assert np.abs(b["train"][0]).max() < 100
    found = [load_images(f"{name}_preproc.h5") for name in "ab"]
    np.testing.assert_array_equal(*found)
    assert (np.isnan(found[0]) == mask).all()


def test_derive_refuses_damage_outside_a_mask(cutouts, tmp_path, capsys):
    path, _, _ = cutouts
    with h5py.File(path, "r+") as h5:
        h5["train"][5, 0, 2, 2], h5["train_mask"][5, 0, 2, 2] = np.nan, 0
    assert main(["derive", f"data={path}", "coarsen=2", f"out={tmp_path / 'd_preproc.h5'}"]) == 2
    assert "row 5 of 'train' has 1 pixels that are not finite outside 'train_mask'" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("masked", ["fill", "mean", "mask"])
def test_images_have_the_latents_of_their_rows(cutouts, tmp_path, masked):
    path, _, _ = cutouts
    options = options_of(masked)
    net = make_net(options).eval()
    of_file = model_latents_extract(options, str(path), model=net, using_gpu=False)["train"]
    assert np.isnan(of_file).any(axis=1).tolist() == [row == 1 for row in range(ROWS)]
    _, loader = build_loader(path, "train", 5, 0, nchannels=1)
    of_loader = model_latents_extract(options, in_loader=loader, model=net, partitions="train", using_gpu=False)
    np.testing.assert_allclose(of_loader["train"], of_file, atol=1e-5)
    holes = holes_of(path)[[0, 2, 5]]
    torch.save({"model": net.state_dict(), "opt": {}, "epoch": 1}, tmp_path / "w.pth")
    options.preprocess.image = "none"
    latents, images = get_latents(holes[:, None], str(tmp_path / "w.pth"), options)
    np.testing.assert_allclose(latents, of_file[[0, 2, 5]], atol=1e-5)
    assert images.shape == (3, 1, SIDE, SIDE) and np.isfinite(images).all()
    if masked == "mask":  # NaN is the mask
        np.testing.assert_allclose(calc_latent(net, torch.from_numpy(holes[:, None]), False), latents, atol=1e-5)


def test_an_uploaded_row_comes_with_its_mask(cutouts):
    path, fields, _ = cutouts
    data, holes = path.read_bytes(), holes_of(path)
    np.testing.assert_array_equal(read_image("a.h5", data, "3").image, fields[3])
    np.testing.assert_array_equal(read_image("a.h5", data, "3", masked=True).image, holes[3])
    with pytest.raises(InputFileError, match="no clear pixel"):
        read_image("a.h5", data, "1", masked=True)
