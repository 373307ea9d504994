"""Clouds over views: their shares and shapes, what the network sees of them, and the banks they come from."""

import h5py
import numpy as np
import pytest
import torch

from nenya.commands.compose import compose
from nenya.data.augment import ViewSampler
from nenya.data.clouds import CloudSampler, generated_shapes, shapes_of_masks, turned
from nenya.data.cloudy_views import CloudyViews, cloudy_views
from nenya.data.cutouts import inspect_cutouts
from nenya.data.masks import network_input
from nenya.data.pyramid import fill_pyramid
from nenya.errors import InputFileError, OptionError

SIZE = 32
ORDER = generated_shapes(40, SIZE, seed=3)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def images(count, size=SIZE, seed=0):
    return torch.randn(count, 1, size, size, generator=seeded(seed))


@pytest.mark.parametrize("size", [8, 21, 32])
def test_the_filling_depends_on_clear_pixels_alone(size):
    field = images(5, size)
    clear = (images(5, size, seed=1) > -0.5).float()
    clear[4] = 0
    filled = fill_pyramid(field, clear)
    assert torch.equal(filled[clear > 0], field[clear > 0])
    assert torch.equal(filled, fill_pyramid(torch.where(clear > 0, field, 7.0), clear))
    assert torch.equal(filled[2:3], fill_pyramid(field[2:3], clear[2:3]))
    low, high = field.amin((1, 2, 3)), field.amax((1, 2, 3))
    assert all((filled[i] >= low[i]).all() and (filled[i] <= high[i]).all() for i in range(4)), "a mean, not a trend"
    assert not filled[4].any()
    torch.testing.assert_close(fill_pyramid(torch.full_like(field, 3.0), clear)[:4], torch.full_like(field[:4], 3.0))


def test_clouds_have_shares_up_to_the_most_and_many_shapes():
    sampler = CloudSampler(ORDER, 0.4, "mask")
    params = sampler.draw(3000, seeded())
    masks = sampler.masks(params, torch.device("cpu"))
    shares = masks.float().mean((1, 2, 3)).double()
    assert masks.shape == (3000, 1, SIZE, SIZE)
    assert shares.max() <= 0.4
    torch.testing.assert_close(shares, params.share, rtol=0, atol=1 / SIZE**2)
    assert 0.07 < (params.share == 0).double().mean() < 0.13
    counts = torch.histc(params.share[params.share > 0], 4, 0, 0.4)
    assert counts.min() > 0.7 * counts.mean(), "all shares are equally likely"
    assert len(params.shape.unique()) > 0.9 * 8 * len(ORDER)


def test_draws_do_not_depend_on_the_portion():
    sampler = CloudSampler(ORDER, 0.5, "mask")
    whole, generator = sampler.draw(10, seeded()), seeded()
    parts = [sampler.draw(n, generator) for n in (4, 6)]
    assert torch.equal(whole.share, torch.cat([part.share for part in parts]))
    assert torch.equal(whole[4:].shape, parts[1].shape)


def test_a_real_mask_at_its_own_share_is_as_it_was():
    masks = np.random.default_rng(1).random((6, SIZE, SIZE)) < 0.3
    masks[:, 4:14, 3:20] = True
    order = shapes_of_masks(masks)
    for mask, places in zip(masks, order, strict=True):
        assert sorted(places.ravel()) == list(range(SIZE**2))
        assert np.array_equal(places < mask.sum(), mask)


def test_shapes_are_of_a_seed():
    assert np.array_equal(ORDER, generated_shapes(40, SIZE, seed=3))
    assert not np.array_equal(ORDER, generated_shapes(40, SIZE, seed=4))


def test_a_mask_channel_marks_clouds_and_hides_what_is_below():
    sampler = CloudSampler(ORDER, 0.5, "mask")
    params, field = sampler.draw(50, seeded()), images(50)
    own = torch.zeros_like(field)
    own[0, :, :, :30] = 1  # nearly all: no further cloud
    own[1, :, :5] = 1
    laid = sampler.lay(torch.cat([field, own], 1), params)
    clouds = sampler.masks(params, torch.device("cpu"))
    assert torch.equal(laid[1:, 1:] > 0, (clouds | (own > 0))[1:])
    assert torch.equal(laid[0, 1:], own[0])
    assert torch.equal(laid[:, :1], torch.where(laid[:, 1:] > 0, 0.0, field))


@pytest.mark.parametrize("masked", ["fill", "mean"])
def test_without_a_mask_channel_clouds_are_filled_as_in_reading(masked):
    sampler = CloudSampler(ORDER, 0.5, masked)
    params, field = sampler.draw(20, seeded()), images(20)
    clouds = sampler.masks(params, torch.device("cpu"))[:, 0].numpy()
    wanted = network_input(field.numpy().copy(), clouds, masked)
    np.testing.assert_allclose(sampler.lay(field, params).numpy(), wanted, rtol=0, atol=1e-5)


def test_cutouts_are_turned_in_eight_ways():
    image = images(1).expand(8, -1, -1, -1)
    found = turned(image, torch.arange(8)).numpy()
    ways = [np.rot90(image[0, 0], k) for k in range(4)]
    ways += [way.T for way in ways]
    assert sorted(way.tobytes() for way in found[:, 0]) == sorted(way.tobytes() for way in ways)


def options_of(*words):
    return compose("train", ["model=clouds", "trainer=cpu", "trainer.max_epochs=4", *words])


def batch_of(total, first=0, count=None):
    own = torch.zeros(total, 1, SIZE, SIZE)
    whole = torch.cat([images(total), own], 1)[first : first + (count or total)]
    return {"images": whole, "index": 5, "first": first, "total": total}


def plain():
    raise AssertionError("random views were asked for")


def test_both_views_are_the_cutout_under_different_clouds():
    clouds = CloudyViews(options_of(), ORDER)
    found = clouds.lay(batch_of(30), 0, 2, plain)
    views, clear = found["views"], found["clear"]
    assert views.shape == clear.shape == (30, 2, 2, SIZE, SIZE)
    masks = views[:, :, 1] > 0
    assert (masks[:, 0] != masks[:, 1]).flatten(1).any(1).double().mean() > 0.8
    assert not clear[:, :, 1].any()
    assert torch.equal(views[:, :, 0], clear[:, :, 0].masked_fill(masks, 0.0))
    order = [clear[:, view, 0].flatten(1).sort().values for view in (0, 1)]
    assert torch.equal(*order)
    assert torch.equal(order[0], batch_of(30)["images"][:, 0].flatten(1).sort().values), "the complete cutout"


def test_clouds_depend_on_the_place_in_the_whole_batch_and_on_the_epoch():
    clouds = CloudyViews(options_of(), ORDER)
    whole = clouds.lay(batch_of(10), 0, 2, plain)
    shares = [clouds.lay(batch_of(10, first, 5), 0, 2, plain) for first in (0, 5)]
    for name in ("views", "clear"):
        assert torch.equal(whole[name], torch.cat([share[name] for share in shares]))
    assert torch.equal(whole["views"], clouds.lay(batch_of(10), 0, 2, plain)["views"])
    assert not torch.equal(whole["views"], clouds.lay(batch_of(10), 0, 3, plain)["views"])


def test_first_epochs_are_clear_and_validation_is_cloudy():
    clouds = CloudyViews(options_of(), ORDER)
    views = batch_of(10)["images"][:, None].repeat(1, 2, 1, 1, 1)
    assert clouds.lay(batch_of(10), 0, 1, lambda: views)["views"] is views
    valid = clouds.lay(batch_of(10), 1, 0, lambda: views)
    assert valid.keys() == {"views"}
    assert valid["views"][:, :, 1].any()


def test_without_a_guide_random_views_get_clouds():
    clouds = CloudyViews(options_of("loss.clear_weight=0", "augment.clouds_from=0"), ORDER)
    views = batch_of(10)["images"][:, None].repeat(1, 2, 1, 1, 1)
    found = clouds.lay(batch_of(10), 0, 0, lambda: views)
    assert found.keys() == {"views"}
    assert found["views"][:, 0, 1].any()


@pytest.fixture
def masked_file(tmp_path):
    path = tmp_path / "masked.h5"
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        file["train"] = rng.standard_normal((20, SIZE, SIZE)).astype(np.float32)
        mask = np.zeros((20, SIZE, SIZE), np.uint8)
        mask[3:, 2:9, 4:11] = 1
        file["train_mask"] = mask
    return path


def bank(path, *words):
    options = options_of(*words)
    return cloudy_views(
        options, [inspect_cutouts(path, ("train", "valid"))], ViewSampler(crop=24, jitter=3), guide=False
    )


@pytest.mark.parametrize("where", ["own", "file", "nan"])
def test_masks_of_files_are_a_bank(masked_file, tmp_path, where):
    other = tmp_path / "nan.h5"
    with h5py.File(masked_file) as file, h5py.File(other, "w") as new:
        new["valid"] = np.where(file["train_mask"][()] > 0, np.nan, file["train"][()])
    source = {"own": "own", "file": masked_file, "nan": other}[where]
    found = bank(masked_file, f"augment.cloud_masks={source}").sampler
    one = found.masks(found.draw(1, seeded())[:0], torch.device("cpu"))
    assert one.shape == (0, 1, SIZE, SIZE)
    assert len(found._order) == 8 * 17


@pytest.mark.parametrize(
    ("what", "words"),
    [("size", "expected masks of 32 x 32"), ("clear", "no partly masked cutouts"), ("none", "nowhere.h5")],
)
def test_a_wrong_bank_is_refused(masked_file, tmp_path, what, words):
    other = tmp_path / ("nowhere.h5" if what == "none" else "other.h5")
    if what != "none":
        with h5py.File(other, "w") as file:
            side = 64 if what == "size" else SIZE
            file["train"] = np.zeros((5, side, side), np.float32)
    with pytest.raises(InputFileError, match=words) as caught:
        bank(masked_file, f"augment.cloud_masks={other}")
    assert "\n" not in str(caught.value)


def test_a_training_without_a_clear_epoch_needs_weights(masked_file):
    with pytest.raises(OptionError, match="init_from="):
        bank(masked_file, "augment.clouds_from=0")


def test_without_the_option_there_are_none(masked_file):
    assert bank(masked_file, "augment.clouds=false") is None
