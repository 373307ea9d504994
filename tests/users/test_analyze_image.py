import json
import shutil

import numpy as np
import pytest
import torch
from conftest import red_noise
from golden_weights import golden_state_dict

from nenya import analyze_image
from nenya.defs import DT_BINS
from nenya.errors import CheckpointError, InputFileError, OptionError
from nenya.io import Params
from nenya.latents.projector import Projector
from nenya.models import contrastive

SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("resnet34/nc1", "resnet50/nc3")]
MODELS = ["resnet18/nc1", "resnet18/nc3", *SLOW]


@pytest.fixture(scope="module")
def golden(goldens):
    return np.load(goldens / "golden_public.npz", allow_pickle=False)


@pytest.fixture(scope="module")
def golden_file(goldens, tmp_path_factory):
    """(model) -> options, and a checkpoint in the original's layout with the golden weights."""
    shapes = json.loads((goldens / "state_dict_shapes.json").read_text())

    def make(model):
        ssl_model, channels = model.split("/")
        path = tmp_path_factory.mktemp("golden") / "last.pth"
        torch.save({"model": golden_state_dict(shapes[model]), "epoch": 1, "opt": {}}, path)
        return Params({"ssl_model": ssl_model, "nchannels": int(channels[2:]), "batch_size_valid": 8}), path

    return make


@pytest.mark.parametrize("model", MODELS)
def test_latents_of_single_images_are_the_originals(golden, golden_file, model):
    opt, path = golden_file(model)
    images = golden["img/real"]
    latents, seen = analyze_image.get_latents(images[:, None], path, opt)
    np.testing.assert_allclose(latents, golden[f"latents/single/{model}"], atol=5e-6)
    np.testing.assert_allclose(seen[:, 0], golden["img/real_demeaned"], atol=2e-6)
    assert (latents.dtype, seen.dtype, seen.shape) == (np.float32, np.float32, (18, 1, 64, 64))


@pytest.fixture(scope="module")
def opt():
    return Params({"ssl_model": "resnet18", "width": 16, "feat_dim": 64, "nchannels": 1, "model_root": "demo"})


@pytest.fixture(scope="module")
def image():
    return red_noise(1, side=32, seed=5)[0] + 12


def test_one_image_of_any_shape_gives_one_latent(tiny_weights, opt, image):
    expected, _ = analyze_image.get_latents(image, tiny_weights, opt)
    assert expected.shape == (1, 64)
    shapes = [image[None], image[None, None], np.repeat(image[None, None], 3, axis=1), torch.from_numpy(image)]
    for same in [*shapes, image.astype(np.float64)]:
        latents, seen = analyze_image.get_latents(same, tiny_weights, opt)
        np.testing.assert_allclose(latents, expected, atol=1e-6)
        assert seen.shape == (1, 1, 32, 32)


def test_each_image_loses_its_own_mean(tiny_weights, opt, image):
    batch = np.stack([image, image - 40])[:, None]
    latents, seen = analyze_image.get_latents(batch, tiny_weights, opt)
    np.testing.assert_allclose(seen.mean(axis=(1, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(latents[0], latents[1], atol=1e-5)


def test_the_mean_stays_where_that_is_asked_for(tiny_weights, opt, image):
    kept = Params(opt.dict)
    kept.options.preprocess.image = "none"
    latents, seen = analyze_image.get_latents(image, tiny_weights, kept)
    np.testing.assert_array_equal(seen[0, 0], image)
    assert np.abs(latents - analyze_image.get_latents(image, tiny_weights, opt)[0]).max() > 1e-3


def test_an_image_with_a_hole_gives_nan(tiny_weights, opt, image):
    batch = np.stack([image, image])[:, None]
    batch[1, 0, 3, 3] = np.nan
    latents, _ = analyze_image.get_latents(batch, tiny_weights, opt)
    assert np.isfinite(latents[0]).all()
    assert np.isnan(latents[1]).all()


def test_masked_pixels_are_holes(tiny_weights, opt, image):
    mask = np.zeros(image.shape, bool)
    mask[3, 3] = True
    masked = np.ma.array(np.where(mask, -9999, image), mask=mask)
    latents, seen = analyze_image.get_latents(np.ma.stack([masked, np.ma.array(image)])[:, None], tiny_weights, opt)
    assert np.isnan(latents[0]).all() and np.isnan(seen[0, 0, 3, 3])
    np.testing.assert_allclose(latents[1:], analyze_image.get_latents(image, tiny_weights, opt)[0], atol=1e-6)
    inside = np.ma.masked_greater(np.arange(1024.0).reshape(32, 32), 500)
    assert np.isnan(analyze_image.calc_DT(inside, [24, 3]))
    assert np.isfinite(analyze_image.calc_DT(masked, [8, 3]))  # the mask lies outside of the square
    whole = np.ma.array(np.arange(1024).reshape(32, 32))
    assert analyze_image.calc_DT(whole, [24, 3]) == analyze_image.calc_DT(whole.data, [24, 3])


def test_a_multiple_of_the_cutouts_size_is_averaged_down(image):
    threefold = np.kron(image, np.ones((3, 3), np.float32))
    np.testing.assert_allclose(analyze_image.resized(threefold, 32), image, atol=1e-6)
    assert analyze_image.resized(np.array([[0, 1], [0, 1]]), 1) == 0.5  # whole numbers are not cut off
    assert analyze_image.resized(image, 0) is image
    for side in (24, 64):
        with pytest.raises(InputFileError, match=f"expected an image of {side} x {side} .*got 32 x 32"):
            analyze_image.resized(image, side)


def test_an_image_of_another_size_is_averaged_on_request_and_otherwise_said(tiny_weights, opt, image, caplog):
    threefold = np.kron(image, np.ones((3, 3), np.float32))
    known = Params(opt.dict)
    known.options.model.image_size = 32
    expected, _ = analyze_image.get_latents(image, tiny_weights, opt)
    latents, seen = analyze_image.get_latents(threefold, tiny_weights, known, side=32)
    np.testing.assert_allclose(latents, expected, atol=1e-5)
    assert seen.shape == (1, 1, 32, 32)
    assert analyze_image.get_latents(threefold, tiny_weights, opt)[1].shape == (1, 1, 96, 96)  # nothing says a size
    assert analyze_image.get_latents(threefold, tiny_weights, known, side=0)[1].shape == (1, 1, 96, 96)
    assert not caplog.messages
    assert analyze_image.get_latents(threefold, tiny_weights, known)[1].shape == (1, 1, 96, 96)  # as a file's cutouts
    assert "image of 96 pixels a side, but model" in caplog.text and "is designed for 32; it keeps" in caplog.text
    with pytest.raises(InputFileError, match=r"expected an image of 32 x 32 pixels or a multiple, got 40 x 40"):
        analyze_image.get_latents(np.zeros((40, 40)), tiny_weights, known, side=32)


@pytest.mark.parametrize("says", ["model", "map", "nothing"])
def test_an_image_has_one_place_at_any_size(tiny_weights, opt, image, monkeypatch, tmp_path, says):
    used = Params(opt.dict)
    used.options.model.image_size = 32 if says == "model" else None
    monkeypatch.setenv("OS_SST", str(tmp_path))
    monkeypatch.setattr(analyze_image, "load_opt", lambda name: (used, str(tiny_weights)))
    dim = analyze_image.get_latents(image, tiny_weights, opt)[0].shape[1]
    rng = np.random.default_rng(0)
    folder = tmp_path / "MODIS_L2" / "Nenya" / "UMAP"
    folder.mkdir(parents=True)
    for name in DT_BINS:
        projector = Projector.fit(rng.standard_normal((30, dim)), embedding=rng.standard_normal((30, 2)))
        projector.image_size = 32 if says == "map" else 0
        projector.save(folder / f"MODIS_Nenya_96clear_v5_{name}_UMAP.h5")
    noise = rng.choice([-3, 3], (32, 32, 2)).astype(np.float32)  # of the pixels, none of their means
    fine = np.kron(image, np.ones((2, 2), np.float32))
    fine[:, ::2] += noise.repeat(2, axis=0)[..., 0]
    fine[:, 1::2] -= noise.repeat(2, axis=0)[..., 0]
    one, other = (analyze_image.umap_image("v5", given) for given in (image, fine))
    if says == "nothing":
        assert other[1].shape == (1, 1, 64, 64)
    else:
        assert other[1].shape == (1, 1, 32, 32) and other[2] == one[2] and other[3] == pytest.approx(one[3], abs=1e-4)
        np.testing.assert_allclose(other[4], one[4], atol=1e-4)
        np.testing.assert_allclose(other[0], one[0], atol=0.05)
        with pytest.raises(InputFileError, match=r"expected an image of 32 x 32 pixels or a multiple, got 40 x 40"):
            analyze_image.umap_image("v5", rng.standard_normal((40, 40)))


def test_a_model_without_maps_and_holes_are_said(image, tiny_weights, tmp_path, monkeypatch):
    with pytest.raises(OptionError, match=r"model demo has no UMAPs.*v5"):
        analyze_image.umap_image("demo", image)
    monkeypatch.setenv("OS_SST", str(tmp_path))
    weights = tmp_path / "MODIS_L2" / "Nenya" / "models" / "v4_last.pth"
    weights.parent.mkdir(parents=True)
    shutil.copy(tiny_weights, weights)
    holed = image.copy()
    holed[0, 0] = np.nan  # outside of the square that DT is of
    with pytest.raises(InputFileError, match=r"1 of 1024 pixels .* missing"):
        analyze_image.umap_image("v5", holed)


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((32,), r"\(32,\)"),
        ((5, 32, 32), r"\(N, 1, H, W\).*\(5, 32, 32\)"),
        ((2, 2, 32, 32), r"\(2, 2, 32, 32\)"),
        ((2, 3, 32, 32), r"\(2, 3, 32, 32\)"),
        ((32, 30), "square"),
        ((0, 1, 32, 32), r"\(0, 1, 32, 32\)"),
        ((4, 4), "4"),
    ],
)
def test_another_shape_is_refused(tiny_weights, opt, shape, words):
    values = np.random.default_rng(0).standard_normal(shape)
    with pytest.raises(InputFileError, match=words):
        analyze_image.get_latents(values, tiny_weights, opt)


def test_text_is_no_image(tiny_weights, opt):
    with pytest.raises(InputFileError, match="expected an image of integers or floats"):
        analyze_image.get_latents(np.full((32, 32), "a"), tiny_weights, opt)


def test_a_model_is_read_once_until_its_file_changes(tiny_weights, opt, image, tmp_path, monkeypatch):
    path = tmp_path / "last.pth"
    path.write_bytes(tiny_weights.read_bytes())
    reads = []
    load = contrastive.load_checkpoint
    monkeypatch.setattr(contrastive, "load_checkpoint", lambda source: reads.append(source) or load(source))
    first, _ = analyze_image.get_latents(image, path, opt)
    analyze_image.get_latents(image, str(path), opt)
    assert len(reads) == 1
    content = torch.load(path, weights_only=True)
    content["model"]["head.2.bias"] += 1
    torch.save(content, path)
    other, _ = analyze_image.get_latents(image, path, opt)
    assert len(reads) == 2
    assert np.abs(other - first).max() > 1e-3
    with pytest.raises(CheckpointError, match=r"none\.pth"):
        analyze_image.get_latents(image, tmp_path / "none.pth", opt)


# DT


def test_dt_is_the_originals(golden):
    images = golden["img/real"]
    np.testing.assert_allclose(analyze_image.calc_DT(images, [40, 5]), golden["dt/random_jitter_40_5"], rtol=1e-6)
    np.testing.assert_allclose(analyze_image.calc_DT(images[:, None], [40, 5]), golden["dt/4d"], rtol=1e-6)
    single = analyze_image.calc_DT(images[-1], [40, 5])
    assert isinstance(single, float)
    assert single == pytest.approx(float(golden["dt/single_test_image"]), rel=1e-6)
    for crop in ("40_5", "53_9"):
        expected = golden[f"dt/synthetic_{crop}"]
        jitter = [int(n) for n in crop.split("_")]
        np.testing.assert_allclose(analyze_image.calc_DT(golden["img/synthetic"], jitter), expected, rtol=1e-6)


def test_dt_of_a_ramp_is_known():
    ramp = np.broadcast_to(np.arange(64.0), (64, 64))  # the central 40 columns are 12 ... 51
    assert analyze_image.calc_DT(ramp, [40, 5]) == pytest.approx(47 - 16, abs=0.5)


@pytest.mark.parametrize(
    ("images", "jitter", "error"),
    [
        (np.zeros(5), [40, 5], InputFileError),
        (np.zeros((64, 64)), 0, OptionError),
        (np.zeros((64, 64)), [1, 0], OptionError),
        (np.zeros((64, 64)), [], OptionError),
    ],
)
def test_dt_of_what_has_none_is_refused(images, jitter, error):
    with pytest.raises(error, match=r"expected|side above"):
        analyze_image.calc_DT(images, jitter)
