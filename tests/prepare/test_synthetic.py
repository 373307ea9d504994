from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch

from nenya.analyze_image import calc_DT
from nenya.data.cutouts import inspect_cutouts
from nenya.data.spectra import MeanSpectrum, Recipe
from nenya.errors import InputFileError, OptionError
from nenya.io import read_table
from nenya.prepare.ocean import OceanOptions, _fields, _snapshots, ocean_blocks
from nenya.prepare.synthetic import (
    FlowOptions,
    TurbulentOcean,
    power_law,
    published_blocks,
    turbulent_cutouts,
    white_noise,
    write_cutouts,
)


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
        ({"n": 1, "grid": 65}, "grid=65: expected an even number >= 64"),
        ({"n": 1, "size": 100, "grid": 64}, "grid=64: expected an even number >= 100"),
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
    with pytest.raises(InputFileError, match=r"train: expected shape .* got \(5, 32\)"):
        write_cutouts(path, cutouts[:5, 0], None)
    with pytest.raises(OptionError, match="chunks=0"):
        write_cutouts(path, cutouts[:5], None, chunks=0)
    with pytest.raises(OptionError, match="0 partitions"):
        write_cutouts(path, None, None)
    with pytest.raises(ValueError, match="wrongzip"):
        write_cutouts(path, cutouts[:5], None, compression="wrongzip")
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["model.width=8", "model.latent=encoder"],
        ["model=v5", "preprocess.image=none", "model.weights=a b.pth"],
        ["model.name=mine", "model.feat_dim=32"],
    ],
)
def test_the_demonstration_says_the_arguments_of_its_network(args):
    from nenya.commands.compose import compose
    from nenya.commands.demo import model_arguments

    options = compose("demo", args)
    again = compose("portal", ["table=a.parquet", *model_arguments(options)])
    network = replace(options.model, layout=again.model.layout)  # the layout is of trainings alone
    assert (again.model, again.preprocess) == (network, options.preprocess)
    assert model_arguments(compose("demo", [])) == ["model=demo"]


@pytest.mark.parametrize("slope", [2.0, 4.0])
@pytest.mark.parametrize("size", [32, 21])
def test_a_power_law_is_exact_real_and_of_unit_variance(slope, size):
    fields = power_law(20, size, np.random.default_rng(5), slope=slope)
    assert fields.dtype == np.float32 and fields.shape == (20, size, size)
    np.testing.assert_allclose(fields.mean(axis=(1, 2)), 0, atol=1e-6)
    np.testing.assert_allclose(fields.std(axis=(1, 2)), 1, rtol=1e-6)
    k = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size))
    power = np.abs(np.fft.fft2(fields.astype(np.float64))) ** 2
    compensated = power[:, k > 0] * k[k > 0] ** slope
    np.testing.assert_allclose(
        compensated, np.broadcast_to(compensated.mean(axis=1, keepdims=True), compensated.shape), rtol=0.01
    )


def test_the_phases_of_a_power_law_are_uniform():
    waves = np.fft.fft2(power_law(4000, 8, np.random.default_rng(6), slope=2))
    phase = np.angle(waves[:, [1, 2, 1], [0, 1, 4]])
    for column in phase.T:
        counts, _ = np.histogram(column, bins=8, range=(-np.pi, np.pi))
        assert ((counts - 500) ** 2 / 500).sum() < 24  # chi squared of 7 degrees, beyond which one in 1,000 lies
    own_opposites = np.abs(np.angle(waves[:, [4, 0, 4], [0, 4, 4]]))
    assert np.minimum(own_opposites, np.pi - own_opposites).max() < 1e-3


def test_white_noise_is_standard_normal():
    noise = white_noise(300, 32, np.random.default_rng(1))
    assert noise.std() == pytest.approx(1, abs=0.005)
    assert abs(noise.mean()) < 0.005
    assert (noise.astype(np.float64) ** 4).mean() == pytest.approx(3, abs=0.05)


@pytest.mark.parametrize("kind", ["white", "power2", "power4"])
def test_the_first_fields_of_a_published_set_are_the_same_however_many(kind, monkeypatch):
    monkeypatch.setattr("nenya.prepare.synthetic.BLOCK_ROWS", 16)
    seed = np.random.SeedSequence(1234)
    whole = np.concatenate(list(published_blocks(kind, 40, 16, seed)))
    np.testing.assert_array_equal(np.concatenate(list(published_blocks(kind, 20, 16, seed))), whole[:20])
    assert len(np.unique(whole.reshape(40, -1), axis=0)) == 40


@pytest.fixture(scope="module")
def ocean(tmp_path_factory):
    from nenya.cli import run_command

    path = tmp_path_factory.mktemp("ocean") / "ocean_preproc.h5"
    args = ["kind=ocean", "size=24", "n_train=70", "n_valid=20", f"out={path}", "seed=3", "clouds=0.2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nenya.prepare.ocean.MIN_GRID", 64)
        assert run_command("generate", args) == 0
    return path


def test_an_ocean_file_is_one_that_nenya_reads_with_a_row_of_the_table_for_each_cutout(ocean):
    table = read_table(ocean.with_suffix(".parquet"))
    info = inspect_cutouts(ocean)
    assert {name: part.rows for name, part in info.partitions.items()} == {"train": 70, "valid": 20}
    for name, kind in (("train", 1), ("valid", 0)):
        rows = table[table["pp_type"] == kind]
        assert rows["pp_idx"].tolist() == list(range(info.partitions[name].rows))
    assert set(table["pp_file"]) == {"ocean_preproc.h5"}
    assert table["UID"].is_unique
    assert not table.isna().any().any()


def test_the_truth_in_the_table_is_that_of_the_cutouts(ocean):
    table = read_table(ocean.with_suffix(".parquet"))
    with h5py.File(ocean) as file:
        images = np.concatenate([file["train"][:, 0], file["valid"][:, 0]]).astype(np.float64)
        clouds = np.concatenate([file["train_mask"][:, 0], file["valid_mask"][:, 0]])
    np.testing.assert_allclose(images.mean(axis=(1, 2)), 0, atol=1e-6)
    np.testing.assert_allclose(1 - clouds.mean(axis=(1, 2)), table["clear_fraction"])
    assert table["clear_fraction"].min() < 0.9 and (table["clear_fraction"] == 1).sum() > 20
    low, high = np.percentile(images, (10, 90), axis=(1, 2))
    np.testing.assert_allclose(high - low, table["DT"], rtol=1e-5)
    np.testing.assert_allclose(table["mean_temperature"] + low, table["T10"], rtol=1e-5)
    quiet = table["true_noise"] < 0.1 * table["true_DT"]
    np.testing.assert_allclose(table["DT"][quiet], table["true_DT"][quiet], rtol=0.1)
    finest = images[:, :-1, :-1] - images[:, 1:, :-1] - images[:, :-1, 1:] + images[:, 1:, 1:]
    noise = np.sqrt((finest**2).mean(axis=(1, 2)) / 4)  # the second difference is all noise where the field is smooth
    ratio = noise / table["true_noise"]
    assert ratio.min() > 0.93
    smooth = (table["true_slope"] > 3) & (table["true_noise"] > 0.15 * table["true_DT"])
    assert smooth.sum() > 3
    assert np.median(ratio[smooth]) < 1.15


def test_places_and_dates_are_plausible(ocean):
    table = read_table(ocean.with_suffix(".parquet"))
    assert table["lat"].between(-62, 50).all() and table["lon"].between(-180, 180).all()
    assert table["datetime"].between("2010-01-01", "2020-01-01").all()
    assert np.corrcoef(np.abs(table["lat"]), table["mean_temperature"])[0, 1] < -0.8


@pytest.fixture(scope="module")
def stirred():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nenya.prepare.ocean.MIN_GRID", 64)
        _, spectra, waves, _ = next(_snapshots(np.random.SeedSequence(8), OceanOptions(size=16)))
    return spectra, waves


def truth(**values):
    columns = {"lat": 0.0, "true_slope": 2.5, "true_anisotropy": 1.0, "true_orientation": 0.0, "front_angle": 50.0}
    return {name: np.array([value]) for name, value in {**columns, "true_eddy_size": 64.0, **values}.items()}


@pytest.mark.parametrize("slope", [1.5, 2.5, 4.0])
def test_the_whole_field_has_the_slope_of_the_table(stirred, slope):
    field = _fields(*stirred, truth(true_slope=slope), np.random.default_rng(0), 64)
    spectrum, reference = (MeanSpectrum(64, Recipe(detrend="none", window="none")) for _ in range(2))
    spectrum.add(field)
    reference.add(power_law(1, 64, np.random.default_rng(0), slope=slope))
    assert spectrum.slope.beta == pytest.approx(reference.slope.beta, abs=0.25)


def test_the_field_is_drawn_out_along_the_orientation_of_the_table(stirred):
    columns = truth(true_anisotropy=3.0, true_orientation=30.0)
    field = _fields(*stirred, columns, np.random.default_rng(0), 64)[0]
    theta = np.radians(columns["true_orientation"][0])
    dy, dx = np.gradient(field)
    along = dx * np.cos(theta) + dy * np.sin(theta)
    across = dy * np.cos(theta) - dx * np.sin(theta)
    assert across.std() > 1.6 * along.std()


@pytest.fixture
def small_grid(monkeypatch):
    monkeypatch.setattr("nenya.prepare.ocean.MIN_GRID", 64)


def test_the_same_ocean_comes_again_and_no_cutout_comes_twice(small_grid):
    first, again = (list(ocean_blocks(n, np.random.SeedSequence(4), OceanOptions(16))) for n in (5, 70))
    np.testing.assert_array_equal(first[0].cutouts, again[0].cutouts[:5])
    assert all((first[0].columns[name] == again[0].columns[name][:5]).all() for name in first[0].columns)
    assert sum(len(block.cutouts) for block in again) == 70
    flat = np.concatenate([block.cutouts for block in again]).reshape(70, -1)
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    assert (np.abs(flat @ flat.T) - 2 * np.eye(70)).max() < 0.999
    assert "DT40" not in first[0].columns  # the cutouts are smaller


def test_the_difference_of_the_central_pixels_is_in_the_table(small_grid):
    block = next(ocean_blocks(3, np.random.SeedSequence(4), OceanOptions(44)))
    assert block.columns["DT40"].tolist() == calc_DT(block.cutouts, [40, 5]).tolist()
    assert (block.columns["DT40"] != block.columns["DT"]).all()


def test_masked_pixels_are_nan_and_the_rest_has_no_mean(small_grid):
    block = next(ocean_blocks(16, np.random.SeedSequence(4), OceanOptions(16, most_clouds=0.5, masked=True)))
    np.testing.assert_array_equal(np.isnan(block.cutouts), block.clouds == 1)
    assert 0.05 < block.clouds.mean() < 0.3
    np.testing.assert_allclose(np.nanmean(block.cutouts, axis=(1, 2)), 0, atol=1e-6)


def test_the_command_writes_the_published_sets_as_they_are_drawn(nenya_cli, tmp_path):
    code, said = nenya_cli("generate", ["kind=power2", "n_train=30", "n_valid=10", "size=16", "out=a"])
    assert code == 0, said
    seeds = np.random.SeedSequence(1234).spawn(2)
    with h5py.File(tmp_path / "a" / "power2_16x16_preproc.h5") as file:
        for name, count, seed in zip(("train", "valid"), (30, 10), seeds, strict=True):
            drawn = np.concatenate(list(published_blocks("power2", count, 16, seed)))
            np.testing.assert_array_equal(file[name][:, 0], drawn)
        assert '"seed": 1234' in file.attrs["options"]
    code, said = nenya_cli("generate", ["kind=power2", "n_train=30", "size=16", "out=a"])
    assert code == 2 and "exists" in said and "clobber=true" in said
    code, said = nenya_cli("generate", ["kind=pink"])
    assert code == 2 and "one of ocean, white, power2, power4" in said
    code, said = nenya_cli("generate", ["data=x.h5"])
    assert code == 2 and "creates its own data" in said
    assert said.count("\n") == 1


def test_without_a_gpu_an_ocean_on_one_is_refused(nenya_cli, monkeypatch, tmp_path):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    code, said = nenya_cli("generate", ["out=o.txt"])
    assert code == 2 and "out=o.txt: expected a folder or a .h5 file" in said
    code, said = nenya_cli("generate", ["device=cuda", "out=o"])
    assert code == 2 and "no GPU on this machine" in said
    assert not list((tmp_path / "o").glob("*"))
