"""Views: equality with the original's, and the laws that random views obey."""

import numpy as np
import pytest
import torch

from nenya.data.augment import ViewParameters, ViewSampler
from nenya.errors import OptionError


def parameters(n, *, crop, angle=0.0, flips=(False, False), shift=(0, 0), seed=0):
    return ViewParameters(
        flip_cols=torch.full((n,), flips[0]),
        flip_rows=torch.full((n,), flips[1]),
        angle=torch.full((n,), angle, dtype=torch.float64),
        crop_rows=torch.full((n,), crop),
        crop_cols=torch.full((n,), crop),
        shift_rows=torch.full((n,), shift[0]),
        shift_cols=torch.full((n,), shift[1]),
        noise_seed=torch.arange(n) + seed,
    )


@pytest.fixture
def images():
    return torch.randn(6, 1, 64, 64, generator=torch.Generator().manual_seed(1))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("case", "crop", "jitter"), [("sst_40_5", 40, 5), ("big_110_10", 110, 10), ("clamp_54_8", 54, 8)]
)
@pytest.mark.parametrize(("demean", "output"), [(False, "out_raw"), (True, "out_demean")])
def test_views_equal_the_originals(goldens, case, crop, jitter, demean, output):
    with np.load(goldens / "golden_aug_public.npz", allow_pickle=False) as stored:
        images, drawn, wanted = (stored[f"{case}/{name}"] for name in ("images", "params", output))
    drawn = torch.from_numpy(drawn).reshape(-1, 5)
    side = torch.full((len(drawn),), crop)
    params = ViewParameters(drawn[:, 0] == 1, drawn[:, 1] == 1, drawn[:, 2], side, side, *drawn[:, 3:].long().T, side)
    views = ViewSampler(crop=crop, jitter=jitter, demean=demean).apply(torch.from_numpy(images)[:, None], params)
    np.testing.assert_allclose(views.reshape(wanted.shape).numpy(), wanted, rtol=0, atol=5e-5)


def test_views_equal_scikit_image(images):
    transform = pytest.importorskip("skimage.transform")
    params = parameters(6, crop=40, angle=33.0, flips=(True, False), shift=(-3, 5))
    views = ViewSampler(demean=False).apply(images, params).numpy()
    for image, view in zip(images[:, 0].numpy(), views[:, 0], strict=True):
        turned = transform.rotate(image[:, ::-1], 33.0, preserve_range=True)
        wanted = transform.resize(turned[9:49, 17:57], (64, 64), order=1, anti_aliasing=False)
        np.testing.assert_allclose(view, wanted, atol=2e-5)


@pytest.mark.parametrize("options", [{}, {"resampling": "composed"}, {"padding": "reflection"}, {"rotate": False}])
def test_no_rotation_and_no_crop_is_the_identity(images, options):
    views = ViewSampler(crop=64, jitter=0, demean=False, **options).apply(images, parameters(6, crop=64))
    torch.testing.assert_close(views, images, rtol=0, atol=2e-5)


@pytest.mark.parametrize("angle", [90, 180, 270])
@pytest.mark.parametrize("resampling", ["two-step", "composed"])
def test_right_angles_turn_counter_clockwise(images, angle, resampling):
    params = parameters(6, crop=64, angle=float(angle))
    views = ViewSampler(crop=64, jitter=0, demean=False, resampling=resampling).apply(images, params)
    torch.testing.assert_close(views, torch.rot90(images, angle // 90, (2, 3)), rtol=0, atol=5e-5)


@pytest.mark.parametrize("rotate", [True, False])
@pytest.mark.parametrize("flips", [(True, False), (False, True), (True, True)])
def test_flips_reverse_columns_and_rows(images, rotate, flips):
    views = ViewSampler(crop=64, jitter=0, demean=False, rotate=rotate).apply(
        images, parameters(6, crop=64, flips=flips)
    )
    wanted = images.flip([axis for axis, flip in ((3, flips[0]), (2, flips[1])) if flip])
    torch.testing.assert_close(views, wanted, rtol=0, atol=2e-5)


def test_crop_without_rotation_is_a_shifted_window(images):
    params = parameters(6, crop=32, shift=(4, -5))
    views = ViewSampler(crop=32, jitter=5, demean=False, rotate=False).apply(images, params)
    window = images[:, :, 20:52, 11:43]
    wanted = torch.nn.functional.interpolate(window, size=(64, 64), mode="bilinear", align_corners=False)
    torch.testing.assert_close(views[:, :, 1:-1, 1:-1], wanted[:, :, 1:-1, 1:-1])


def test_the_first_views_belong_to_the_first_image(images):
    params = parameters(12, crop=64)
    views = ViewSampler(crop=64, jitter=0, demean=False).apply(images, params)
    torch.testing.assert_close(views, images.repeat_interleave(2, 0), rtol=0, atol=2e-5)


def test_composed_views_resemble_two_step_views_and_blur_less():
    size = torch.arange(64) / 64
    smooth = torch.sin(9 * size)[:, None] * torch.cos(7 * size)
    params = ViewSampler().draw(8, 64, seeded())
    two_step, composed = (ViewSampler(resampling=r).apply(smooth[None, None], params) for r in ("two-step", "composed"))
    assert (two_step - composed).abs().mean() < 0.02 * two_step.std()
    assert composed.std() > two_step.std()


@pytest.mark.parametrize("resampling", ["two-step", "composed"])
def test_reflection_leaves_no_dark_corners(resampling):
    warm = torch.full((4, 1, 64, 64), 20.0)
    params = parameters(4, crop=60, angle=45.0)
    options = {"crop": 60, "jitter": 0, "demean": False, "resampling": resampling}
    assert ViewSampler(**options).apply(warm, params).min() < 1
    views = ViewSampler(padding="reflection", **options).apply(warm, params)
    torch.testing.assert_close(views, warm)


@pytest.mark.parametrize("recipe", ["v4", "v3", "v2"])
@pytest.mark.parametrize("resampling", ["two-step", "composed"])
@pytest.mark.parametrize("gauss_noise", [0.0, 0.1])
def test_demeaned_views_have_no_mean(images, recipe, resampling, gauss_noise):
    crop = 5 if recipe == "v2" else 40
    sampler = ViewSampler(recipe=recipe, crop=crop, resampling=resampling, gauss_noise=gauss_noise)
    views = sampler.two_views(images + 10, seeded())
    assert views.shape == (6, 2, 1, 64, 64)
    assert views.dtype == torch.float32
    assert views.mean((2, 3, 4)).abs().max() < 1e-5


def test_noise_has_the_given_strength_and_its_own_seed(images):
    params = parameters(6, crop=64)
    plain, noisy = (
        ViewSampler(crop=64, jitter=0, demean=False, gauss_noise=g).apply(images, params) for g in (0.0, 0.05)
    )
    noise = noisy - plain
    assert abs(noise.std() / 0.05 - 1) < 0.03
    assert abs(torch.corrcoef(noise.flatten(1)) - torch.eye(6)).max() < 0.06
    again = ViewSampler(crop=64, jitter=0, demean=False, gauss_noise=0.05).apply(images[3:], params[3:])
    torch.testing.assert_close(again, noisy[3:], rtol=0, atol=1e-6)


@pytest.mark.parametrize("recipe", ["v4", "v2", "v3"])
def test_same_seed_same_views_however_the_batch_is_split(images, recipe):
    sampler = ViewSampler(recipe=recipe, crop=40 if recipe == "v4" else 5, gauss_noise=0.01)
    whole = sampler.two_views(images, seeded(3))
    generator = seeded(3)
    parts = torch.cat([sampler.two_views(images[rows], generator) for rows in (slice(0, 1), slice(1, 6))])
    torch.testing.assert_close(parts, whole, rtol=0, atol=5e-5)
    assert torch.equal(whole, sampler.two_views(images, seeded(3)))
    assert not torch.allclose(whole, sampler.two_views(images, seeded(4)))


def test_drawing_ignores_the_global_generator(images):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    ViewSampler(gauss_noise=0.1).two_views(images, seeded())
    assert torch.equal(state, torch.get_rng_state())


def test_draws_of_v4_are_uniform():
    params = ViewSampler(crop=40, jitter=5).draw(20_000, 64, seeded())
    for shift in (params.shift_rows, params.shift_cols):
        counts = torch.bincount(shift + 5, minlength=11)
        assert len(counts) == 11
        assert (counts / 20_000 - 1 / 11).abs().max() < 0.01
    for flip in (params.flip_rows, params.flip_cols):
        assert abs(flip.double().mean() - 0.5) < 0.02
    assert torch.histc(params.angle, 12, 0, 360).min() > 1500
    assert (params.crop_rows == 40).all()


def test_switching_a_step_off_leaves_the_other_draws_unchanged():
    full, plain = (ViewSampler(flip=f, rotate=f).draw(50, 64, seeded()) for f in (True, False))
    assert not plain.flip_rows.any()
    assert not plain.flip_cols.any()
    assert not plain.angle.any()
    assert torch.equal(full.shift_rows, plain.shift_rows)


def test_v2_cuts_stay_within_the_image():
    params = ViewSampler(recipe="v2", crop=5, jitter=5).draw(5000, 64, seeded())
    cut, shift = 64 - params.crop_rows, params.shift_rows
    assert set(cut.tolist()) == {0, 1, 2, 3, 4, 5}
    assert (shift.abs() <= cut // 2).all()
    assert not torch.equal(params.crop_rows, params.crop_cols)


def test_v3_doubles_the_central_square(images):
    sampler = ViewSampler(recipe="v3", crop=0, jitter=0, rotate=False, flip=False, demean=False)
    views = sampler.two_views(images, seeded())[:, 0]
    wanted = torch.nn.functional.interpolate(images[:, :, 16:48, 16:48], scale_factor=2.0, mode="bilinear")
    torch.testing.assert_close(views[:, :, 1:-1, 1:-1], wanted[:, :, 1:-1, 1:-1])


def test_odd_sizes_and_crops():
    sampler = ViewSampler(crop=21, jitter=3)
    views = sampler.two_views(torch.ones(2, 1, 29, 29) + torch.arange(29.0), seeded())
    assert views.shape == (2, 2, 1, 29, 29)
    assert views.isfinite().all()


def test_one_nan_pixel_spoils_no_other_image(images):
    images[2, 0, 30, 30] = torch.nan
    views = ViewSampler().two_views(images, seeded())
    spoilt = views.isnan().any(-1).any(-1).any(-1).any(-1)
    assert spoilt.tolist() == [False, False, True, False, False, False]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recipe": "v5"}, r"augment\.recipe is 'v5'; expected one of v4, v3, v2"),
        ({"resampling": "cubic"}, r"augment\.resampling is 'cubic'"),
        ({"padding": "wrap"}, r"augment\.padding is 'wrap'"),
        ({"crop": 1}, "at least 2 pixels, got 1"),
        ({"jitter": -1}, r"random_jitter: .*\[40, -1\]"),
        ({"gauss_noise": -0.1}, "gauss_noise: .*-0.1"),
        ({"gauss_noise": float("nan")}, "gauss_noise: .*nan"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(OptionError, match=message):
        ViewSampler(**options)


@pytest.mark.parametrize(
    ("options", "size", "message"),
    [
        ({"crop": 40}, 28, "crop of 40 pixels exceeds the cutouts of 28 x 28"),
        ({"crop": 40, "jitter": 60}, 64, "jitter of 60 pixels moves the crop"),
        ({"recipe": "v2", "crop": 40}, 40, "cutouts of 40 x 40"),
        ({"recipe": "v3"}, 28, "crop of 32 pixels exceeds the cutouts of 28 x 28"),
    ],
)
def test_crops_that_do_not_fit_are_refused_before_any_view(options, size, message):
    with pytest.raises(OptionError, match=message):
        ViewSampler(**options).draw(2, size, seeded())


@pytest.mark.parametrize("shape", [(2, 3, 64, 64), (2, 1, 64, 32)])
def test_images_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match="expected images"):
        ViewSampler().two_views(torch.zeros(shape), seeded())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_same_views_on_cpu_and_gpu(images):
    sampler = ViewSampler(gauss_noise=0.01)
    views = sampler.two_views(images.cuda(), seeded())
    torch.testing.assert_close(views.cpu(), sampler.two_views(images, seeded()), rtol=0, atol=5e-5)
