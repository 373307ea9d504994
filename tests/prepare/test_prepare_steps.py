"""The steps from field to cutout, each against a slow or known reference."""

import numpy as np
import pytest
from granules import clouds, red_field
from scipy.ndimage import median_filter

from nenya.data.inpaint import inpaint_biharmonic, inpaint_field
from nenya.errors import OptionError
from nenya.options.commands import PrepareOptions
from nenya.prepare.cutouts import (
    Windows,
    arc_km,
    centres,
    clear_share,
    footprint_km,
    grid_windows,
    integral,
    nearest_pixels,
)
from nenya.prepare.geometry import Field, to_degrees, to_vectors
from nenya.prepare.steps import add_noise, downscale, finish, median, output_size, resize, statistics
from nenya.prepare.work import covered, make_uid

TIME = np.datetime64("2010-01-01", "us")


def regular(height=40, width=60, lat=(-10.0, 10.0), lon=(0.0, 30.0), wraps=False) -> Field:
    values = red_field((height, width), 3).astype(np.float32)
    return Field(values, np.linspace(*lat, height), np.linspace(*lon, width), TIME, wraps=wraps)


def windows(*places, side=8) -> Windows:
    row, col = (np.array(axis, dtype=np.intp) for axis in zip(*places, strict=True))
    size = np.full(len(row), side, dtype=np.intp)
    return Windows(row, col, size, size, np.full(len(row), np.nan), np.full(len(row), -1), np.full(len(row), np.nan))


# Filling


def test_both_fillings_leave_clear_pixels_and_follow_smooth_surfaces():
    y, x = np.mgrid[:50, :60] / 10
    truth = (1 + 0.5 * x - 0.3 * y + 0.2 * x * y).astype(np.float32)  # its Laplacian is 0
    masked = np.zeros(truth.shape, bool)
    masked[10:17, 20:29] = masked[30, 30] = masked[40:44, 5:7] = True
    values = np.where(masked, np.nan, truth)
    for filled in (inpaint_field(values, masked), inpaint_biharmonic(values[None])[0]):
        assert np.array_equal(filled[~masked], truth[~masked])
        np.testing.assert_allclose(filled, truth, atol=2e-4)


def test_the_fast_filling_is_as_near_to_the_truth_as_the_published_one():
    truth = red_field((256, 256), 5)
    masked = clouds(truth.shape, 6, share=0.04)
    values = np.where(masked, np.nan, truth).astype(np.float32)
    fast, slow = inpaint_field(values, masked), inpaint_biharmonic(values[None])[0]

    def error(filled):
        return np.sqrt(((filled - truth)[masked] ** 2).mean())

    assert error(fast) < 1.02 * error(slow)
    assert error(fast) < 0.5 * np.sqrt(((np.nanmean(values) - truth)[masked] ** 2).mean())
    assert np.sqrt(((fast - slow)[masked] ** 2).mean()) < 0.2 * error(slow)


def test_many_pixels_are_filled_nearly_as_by_one_solution(monkeypatch):
    truth = red_field((256, 256), 7, 4.0)
    masked = clouds(truth.shape, 8, share=0.02)
    values = np.where(masked, np.nan, truth).astype(np.float32)
    exact = inpaint_field(values, masked)
    monkeypatch.setattr("nenya.data.inpaint._DIRECT", 100)
    near = inpaint_field(values, masked)
    error = np.sqrt(((exact - truth)[masked] ** 2).mean())
    assert np.sqrt(((near - truth)[masked] ** 2).mean()) < 1.5 * error


def test_what_nothing_reaches_stays_masked_and_what_is_not_wanted_too():
    values = np.full((20, 20), np.nan, np.float32)
    values[:8] = 1
    wanted = np.ones((20, 20), bool)
    wanted[10:12] = False
    filled = inpaint_field(values, wanted)
    assert np.isfinite(filled[:10]).all() and np.isnan(filled[10:]).all()
    assert np.isnan(inpaint_field(np.full((5, 5), np.nan, np.float32), np.ones((5, 5), bool))).all()
    assert np.isnan(inpaint_biharmonic(np.full((1, 5, 5), np.nan, np.float32))).all()


# The other steps


@pytest.mark.parametrize("size", [(3, 1), (1, 3), (3, 3), (2, 4)])
def test_a_median_beside_masked_pixels_is_that_of_the_others(size):
    images = np.random.default_rng(0).normal(size=(3, 12, 10)).astype(np.float32)
    wanted = median(images, size)
    images[1, 5, 4] = np.nan
    found = median(images, size)
    assert (np.isnan(found) == np.isnan(images)).all()
    rows, columns = (np.abs(np.arange(n) - centre) for n, centre in ((12, 5), (10, 4)))
    far = (rows[:, None] >= size[0]) | (columns >= size[1])
    np.testing.assert_array_equal(found[:, far], wanted[:, far])
    np.testing.assert_array_equal(found[[0, 2]], wanted[[0, 2]])
    if size[0] == 3 and size[1] == 1:
        np.testing.assert_allclose(found[1, 4, 4], images[1, [3, 4], 4].mean(), rtol=1e-6)


@pytest.mark.parametrize("size", [(3, 1), (1, 3), (3, 3), (5, 1)])
def test_median_is_scipys(size):
    images = red_field((4 * 16, 16), 1).reshape(4, 16, 16).astype(np.float32)
    wanted = np.stack([median_filter(image, size=size) for image in images])
    assert np.array_equal(median(images, size), wanted)


def test_downscaling_keeps_means():
    images = red_field((3 * 12, 12), 1).reshape(3, 12, 12).astype(np.float32)
    small = downscale(images, (3, 3))
    assert small.shape == (3, 4, 4)
    np.testing.assert_allclose(small[1, 2, 3], images[1, 6:9, 9:12].mean(), rtol=1e-6)
    np.testing.assert_allclose(small.mean(axis=(1, 2)), images.mean(axis=(1, 2)), atol=1e-6)


@pytest.mark.parametrize("shape", [(72, 80), (40, 33), (64, 64)])
def test_resizing_keeps_planes(shape):
    y, x = ((np.arange(n) + 0.5) / n for n in shape)
    plane = (2 * y[:, None] - x[None, :]).astype(np.float32)
    z = (np.arange(64) + 0.5) / 64
    wanted = 2 * z[:, None] - z[None, :]
    np.testing.assert_allclose(resize(plane[None], 64)[0, 2:-2, 2:-2], wanted[2:-2, 2:-2], atol=1e-5)


def test_statistics_are_numpys():
    images = red_field((6 * 20, 20), 2).reshape(6, 20, 20).astype(np.float32)
    found = statistics(images)
    for i, image in enumerate(images):
        assert found["Tmin"][i] == image.min() and found["Tmax"][i] == image.max()
        np.testing.assert_allclose([found["T10"][i], found["T90"][i]], np.percentile(image, [10, 90]), rtol=1e-6)


def test_noise_is_each_cutouts_own():
    images = np.zeros((5, 32, 32), np.float32)
    seeds = [(1234, uid) for uid in range(5)]
    noisy = add_noise(images, 0.04, seeds)
    assert np.array_equal(noisy[3], add_noise(images[:1], 0.04, seeds[3:4])[0])
    assert not images.any() and not np.array_equal(noisy[0], noisy[1])
    assert abs(noisy.std() - 0.04) < 0.001


def test_the_order_of_the_steps():
    options = PrepareOptions(field_size=16, median=[3, 1], downscale=[2, 2], noise=0.1)
    images = red_field((2 * 16, 16), 4).reshape(2, 16, 16).astype(np.float32) + 20
    seeds = [(1, 2), (1, 3)]
    done, means = finish(images, options, seeds)
    wanted = downscale(median(add_noise(images, 0.1, seeds), (3, 1)), (2, 2))
    np.testing.assert_allclose(means, wanted.mean(axis=(1, 2)), rtol=1e-6)
    np.testing.assert_allclose(done, wanted - wanted.mean(axis=(1, 2), keepdims=True), atol=2e-6)
    assert np.abs(done.mean(axis=(1, 2), dtype=np.float64)).max() < 1e-6
    kept, _ = finish(images, PrepareOptions(field_size=16, demean=False), seeds)
    assert np.array_equal(kept, images)


def test_sizes_that_do_not_divide():
    assert output_size(PrepareOptions(field_size=192, downscale=[3, 3])) == 64
    for options in (PrepareOptions(field_size=64, downscale=[3, 3]), PrepareOptions(downscale=[2, 1])):
        with pytest.raises(OptionError, match="downscale"):
            output_size(options)


# Where cutouts lie


def test_clear_shares_are_those_of_a_loop():
    mask = clouds((50, 70), 1, 0.4)
    some = windows((0, 0), (3, 17), (42, 62), (20, 31))
    wanted = [mask[r : r + 8, c : c + 8].mean() for r, c in zip(some.row, some.col, strict=True)]
    np.testing.assert_allclose(clear_share(integral(mask), some), wanted)
    inside = covered(mask.shape, some)
    assert inside.sum() == 4 * 64 and inside[3:11, 17:25].all() and not inside[11, 17]


def test_the_grid_of_a_recipe():
    field = regular(40, 60)
    found = grid_windows(field, PrepareOptions(field_size=16, sub_grid_step=2))
    assert sorted(set(found.row)) == [0, 8, 16, 24] and sorted(set(found.col)) == [0, 8, 16, 24, 32, 40]
    found = grid_windows(field, PrepareOptions(field_size=16, step=10, nadir_offset=20))
    assert sorted(set(found.row)) == [0, 10, 20] and sorted(set(found.col)) == [10, 20, 30]
    assert len(grid_windows(field, PrepareOptions(field_size=64))) == 0


def test_a_globe_has_cutouts_across_its_seam():
    field = regular(40, 60, lon=(0.0, 354.0), wraps=True)
    found = grid_windows(field, PrepareOptions(field_size=16, sub_grid_step=2))
    assert sorted(set(found.col)) == [0, 8, 16, 24, 32, 40, 48]
    _, lon = centres(field, found.take(found.col == 48))
    np.testing.assert_allclose(lon, -(360 - (48 + 7.5) * 6), atol=1e-9)


def test_centres_at_dateline_and_pole():
    field = regular(40, 60, lat=(-10, 10), lon=(170.25, 199.75))
    some = windows((0, 15), (7, 16))  # with their middles at 179.5 and 180 degrees
    lat, lon = centres(field, some)
    step = 29.5 / 59
    np.testing.assert_allclose(lon % 360, [179.5, 180], atol=1e-9)
    lat, lon = centres(field, windows((3, 30)))
    np.testing.assert_allclose(lon, 170.25 + 33.5 * step - 360, atol=1e-9)
    np.testing.assert_allclose(lat, -10 + 6.5 * 20 / 39, atol=2e-3)
    ring = np.arange(8) * 45.0
    lats, lons = np.meshgrid(np.linspace(86, 90, 8), ring, indexing="ij")
    pole = Field(np.zeros((8, 8), np.float32), lats, lons, TIME)
    assert centres(pole, windows((0, 0)))[0] > 80
    y, x = np.mgrid[-3.5:4, -3.5:4]
    lats, lons = to_degrees(np.stack([x, y, np.full_like(x, 300.0)], axis=-1))
    lat, _ = centres(Field(np.zeros((8, 8), np.float32), lats, lons, TIME), windows((0, 0)))
    np.testing.assert_allclose(lat, 90, atol=1e-6)


def test_footprints():
    field = regular(101, 101, lat=(-5, 5), lon=(175, 185))
    tall, wide = footprint_km(field, windows((46, 46), side=10))
    np.testing.assert_allclose([tall[0], wide[0]], 111.195, rtol=1e-3)
    north = regular(101, 101, lat=(55, 65), lon=(0, 10))
    tall, wide = footprint_km(north, windows((46, 46), side=10))
    np.testing.assert_allclose(wide / tall, 0.5, rtol=0.01)


def test_fixed_km_takes_more_pixels_where_they_are_narrow():
    field = regular(200, 200, lat=(50, 70), lon=(0, 20))
    found = grid_windows(field, PrepareOptions(field_size=64, fixed_km=300.0))
    tall, wide = footprint_km(field, found)
    np.testing.assert_allclose(tall, 300, rtol=0.03)
    np.testing.assert_allclose(wide, 300, rtol=0.12)
    assert len(set(found.width)) > 2 and len(set(found.height)) <= 2


@pytest.mark.parametrize("wraps", [False, True])
def test_nearest_pixels_are_those_of_a_search_through_all(wraps):
    field = regular(60, 90, lat=(-80, 80), lon=(0, 356) if wraps else (150, 210), wraps=wraps)
    rng = np.random.default_rng(0)
    places = np.stack([rng.uniform(-75, 75, 40), rng.uniform(0, 356, 40) if wraps else rng.uniform(152, 208, 40)], 1)
    row, col, km = nearest_pixels(field, places)
    grid = to_vectors(field.lat[:, None], field.lon[None, :])
    for i, target in enumerate(to_vectors(places[:, 0], places[:, 1])):
        distance = arc_km(grid, target)
        assert np.isclose(distance.min(), km[i], atol=1e-6)
        assert np.isclose(distance[row[i], col[i]], km[i], atol=1e-6)


def test_uids():
    first = make_uid("a.nc", TIME, -1, (0, 0, 64, 64, -1))
    assert first == 5542246555383835917  # for ever: tables are joined by it
    others = {make_uid("a.nc", TIME, f, (r, c, 64, 64, -1)) for f in range(3) for r in range(30) for c in range(30)}
    assert len(others) == 2700


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"median": [100_000_000, 100_000_000]}, "median=.*: expected at most field_size=32 rows and columns"),
        ({"median": [3, 33]}, "median=.*: expected at most field_size=32 rows and columns"),
        ({"fixed_km": 1e300}, r"fixed_km=1e\+300: expected at most 20015 km"),
    ],
)
def test_sizes_beyond_a_cutout_or_the_globe_are_refused(values, said):
    with pytest.raises(OptionError, match=said):
        output_size(PrepareOptions(field_size=32, **values))


@pytest.mark.parametrize("values", [{"fixed_km": 20000.0}, {"step": 10**30}, {"fixed_km": 1e-300}])
def test_sizes_beyond_a_field_give_no_cutout_or_one(values):
    lat, lon = np.linspace(0, 1e-9, 40), np.linspace(0, 1e-9, 40)
    field = Field(np.zeros((40, 40), np.float32), lat, lon, np.datetime64("2020-01-01", "us"))
    assert len(grid_windows(field, PrepareOptions(field_size=32, **values))) == (1 if "step" in values else 0)
