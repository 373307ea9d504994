import h5py
import numpy as np
import pytest
import torch

from nenya.data.synthetic import FlowOptions, TurbulentOcean, make_demo_file, turbulent_cutouts, write_cutouts
from nenya.errors import InputFileError, OptionError


@pytest.fixture(scope="module")
def cutouts():
    return turbulent_cutouts(480, seed=7)


@pytest.fixture
def small_ocean():
    return TurbulentOcean(64, np.random.default_rng(2), FlowOptions(eddy_scale=21))


def r_m_s_velocity(ocean):
    velocity = torch.fft.irfft2(ocean._velocity * ocean.state[0]).numpy()
    return np.sqrt((velocity**2).sum(axis=0).mean())


def spectral_slope(images, least, most):
    """Slope of the mean power against wavenumber, rings summed, between two numbers of waves in a cutout."""
    size = images.shape[-1]
    window = np.hanning(size)[:, None] * np.hanning(size)
    power = (np.abs(np.fft.fft2(images * window)) ** 2).mean(axis=0)
    frequency = np.fft.fftfreq(size) * size
    ring = np.rint(np.hypot(frequency[:, None], frequency)).astype(int)
    waves = np.arange(least, most + 1)
    rings = np.array([power[ring == number].mean() * number for number in waves])
    return np.polyfit(np.log(waves), np.log(rings), 1)[0]


def test_cutouts_are_finite_kelvins_without_a_mean(cutouts):
    assert cutouts.shape == (480, 32, 32)
    assert cutouts.dtype == np.float32
    assert np.isfinite(cutouts).all()
    assert np.abs(cutouts.mean(axis=(1, 2), dtype=np.float64)).max() < 1e-6
    assert 2 < np.abs(cutouts).max() < 10


def test_the_range_of_dt_is_that_of_quiet_and_energetic_seas(cutouts):
    low, high = np.quantile(cutouts.reshape(480, -1), [0.1, 0.9], axis=1)
    dt = high - low
    assert np.quantile(dt, 0.02) < 0.4
    assert 0.6 < np.median(dt) < 1.5
    assert np.quantile(dt, 0.98) > 2.5
    assert dt.min() > 0.05 and dt.max() < 8


def test_the_spectrum_is_red(cutouts):
    assert -5 < spectral_slope(cutouts, 2, 6) < -1.5
    assert -5 < spectral_slope(cutouts, 3, 10) < -1.5


def test_fronts_make_gradients_intermittent(cutouts):
    dx = np.diff(cutouts, axis=2)
    flatness = np.median((dx**4).mean(axis=(1, 2)) / (dx**2).mean(axis=(1, 2)) ** 2)
    assert flatness > 3.5  # 3 for a Gaussian field of any spectrum


def test_the_same_seed_gives_the_same_cutouts_however_many(cutouts):
    np.testing.assert_array_equal(turbulent_cutouts(50, seed=7), cutouts[:50])


def test_a_seed_sequence_is_not_used_up():
    sequence = np.random.SeedSequence(4).spawn(2)[1]
    first, second = (turbulent_cutouts(4, 16, seed=sequence, grid=64) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    from_number, other = (turbulent_cutouts(4, 16, seed=seed, grid=64) for seed in (4, 5))
    np.testing.assert_array_equal(from_number, turbulent_cutouts(4, 16, seed=np.random.SeedSequence(4), grid=64))
    assert not np.isin(from_number, first).any() and not np.isin(from_number, other).any()


def test_no_cutout_comes_twice_even_without_noise():
    quiet = turbulent_cutouts(600, 16, seed=3, noise=0, grid=64).reshape(600, -1)
    scaled = quiet / np.linalg.norm(quiet, axis=1, keepdims=True)
    alike = np.abs(scaled @ scaled.T) - 2 * np.eye(600)
    assert alike.max() < 0.99999
    assert len(np.unique(quiet, axis=0)) == 600


def test_noise_is_white_with_the_given_deviation():
    noisy, clean = (turbulent_cutouts(16, seed=9, noise=noise, grid=64) for noise in (0.1, 0.0))
    difference = noisy - clean
    assert difference.std() == pytest.approx(0.1, rel=0.03)
    assert abs((difference[:, :, 1:] * difference[:, :, :-1]).mean()) < 0.001


@pytest.mark.parametrize(("size", "grid"), [(1, 64), (31, 64), (64, 64), (48, 100)])
def test_any_size_that_fits_is_cut(size, grid):
    assert turbulent_cutouts(2, size, seed=0, grid=grid).shape == (2, size, size)
    assert turbulent_cutouts(0, size, seed=0, grid=grid).shape == (0, size, size)


def test_the_flow_keeps_its_energy(small_ocean):
    assert r_m_s_velocity(small_ocean) == pytest.approx(1, abs=0.4)
    small_ocean.run(60)
    assert r_m_s_velocity(small_ocean) == pytest.approx(1, abs=0.4)


def test_the_flow_has_no_divergence_and_the_means_stay_zero(small_ocean):
    small_ocean.run(10)
    divergence = (small_ocean._minus_div * small_ocean._velocity * small_ocean.state[0]).sum(dim=0)
    assert divergence.abs().max() < 1e-4 * small_ocean.state[0].abs().max()
    assert np.abs(small_ocean.temperatures().mean(axis=(1, 2))).max() < 1e-4


def test_stirring_keeps_the_variance_of_temperature():
    options = FlowOptions(eddy_scale=21, drag=0, relaxation=0, damping=0)
    ocean = TurbulentOcean(64, np.random.default_rng(2), options)
    y, x = np.mgrid[:64, :64] * (2 * np.pi / 64)
    ocean.state[1] = torch.fft.rfft2(torch.from_numpy(1e4 * np.cos(x) * np.sin(y)))
    before = (ocean.temperatures()[0] ** 2).mean(dtype=np.float64)
    ocean.run(5)
    assert (ocean.temperatures()[0] ** 2).mean(dtype=np.float64) == pytest.approx(before, rel=0.003)


def test_a_steady_shear_carries_temperature_as_calculated():
    ocean = TurbulentOcean(64, np.random.default_rng(0), FlowOptions(alpha=2, drag=0, relaxation=0, damping=0))
    wave = 2 * np.pi / 64
    y, _ = np.mgrid[:64, :64]
    ocean.state[0] = torch.fft.rfft2(torch.from_numpy(-wave * np.cos(wave * y)))  # u = sin(wave y), v = 0
    elapsed = sum(ocean.step() for _ in range(5))
    np.testing.assert_allclose(ocean.temperatures()[0], -elapsed * np.sin(wave * y), atol=1e-3)
    np.testing.assert_allclose(ocean.temperatures()[1], 0, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": -1}, "n=-1"),
        ({"n": 1, "size": 0}, "size=0"),
        ({"n": 1, "noise": -0.1}, "noise=-0.1"),
        ({"n": 1, "grid": 65}, "grid=65: wanted an even number >= 64"),
        ({"n": 1, "size": 100, "grid": 64}, "grid=64: wanted an even number >= 100"),
    ],
)
def test_numbers_out_of_range_are_refused(options, message):
    with pytest.raises(OptionError, match=message):
        turbulent_cutouts(**options, seed=0)


@pytest.mark.parametrize("compression", [None, "gzip"])
def test_a_written_file_holds_whole_cutouts_in_each_chunk(tmp_path, cutouts, compression):
    path = tmp_path / "a_preproc.h5"
    write_cutouts(path, cutouts[:100], cutouts[100:110, None], compression=compression, chunks=32)
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["train"][:, 0], cutouts[:100])
        np.testing.assert_array_equal(file["valid"][:, 0], cutouts[100:110])
        assert file["train"].chunks == (32, 1, 32, 32)
        assert file["valid"].chunks == (10, 1, 32, 32)
        assert file["train"].dtype == np.float32
        assert file["train"].compression == compression
    assert list(tmp_path.iterdir()) == [path]


def test_a_partition_can_be_left_out_and_a_failure_leaves_the_old_file(tmp_path, cutouts):
    path = tmp_path / "a_preproc.h5"
    write_cutouts(path, None, cutouts[:5])
    before = path.read_bytes()
    with pytest.raises(InputFileError, match=r"train: shape \(5, 32\)"):
        write_cutouts(path, cutouts[:5, 0], None)
    with pytest.raises(OptionError, match="chunks=0"):
        write_cutouts(path, cutouts[:5], None, chunks=0)
    with pytest.raises(OptionError, match="0 partitions"):
        write_cutouts(path, None, None)
    with pytest.raises(ValueError, match="wrongzip"):
        write_cutouts(path, cutouts[:5], None, compression="wrongzip")
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_the_partitions_of_the_demonstration_come_from_different_realisations(tmp_path, monkeypatch):
    monkeypatch.setattr("nenya.data.synthetic.MIN_GRID", 64)
    first, second = tmp_path / "a.h5", tmp_path / "b.h5"
    for path in (first, second):
        make_demo_file(path, n_train=20, n_valid=20, size=16, seed=1)
    with h5py.File(first) as a, h5py.File(second) as b:
        train, valid = a["train"][:, 0], a["valid"][:, 0]
        np.testing.assert_array_equal(train, b["train"][:, 0])
        np.testing.assert_array_equal(valid, b["valid"][:, 0])
    flat = np.concatenate([train, valid]).reshape(40, -1)
    assert len(np.unique(flat, axis=0)) == 40
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    assert np.abs(flat[:20] @ flat[20:].T).max() < 0.999
