"""Power spectra: against a slow reference, against fields of a known law, and through the command."""

import re
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import red_noise, write_cutouts

from nenya.data.cutouts import inspect_cutouts, read_blocks
from nenya.data.spectra import (
    PERIODIC,
    MeanSpectrum,
    Recipe,
    density_factor,
    file_spectrum,
    fit_slopes,
    power,
    radial_power,
    wavenumbers,
)
from nenya.errors import InputFileError, OptionError
from nenya.io import read_table, write_table
from nenya.prepare.synthetic import power_law, white_noise

ROOT = Path(__file__).resolve().parents[2]


def slow_radial_power(image, window):
    """The recipe, wave by wave over the full plane."""
    size = len(image)
    y, x = np.mgrid[:size, :size]
    basis = np.stack([np.ones(size**2), x.ravel(), y.ravel()], axis=1)
    flat = image.astype(np.float64).ravel()
    image = (flat - basis @ np.linalg.lstsq(basis, flat, rcond=None)[0]).reshape(size, size)
    if window:
        image = image * np.hanning(size)[:, None] * np.hanning(size)
    power = np.abs(np.fft.fft2(image)) ** 2
    waves = np.rint(np.fft.fftfreq(size) * size).astype(int)
    bins = [[] for _ in range(size // 2)]
    for i, ky in enumerate(waves):
        for j, kx in enumerate(waves):
            edge = max(n for n in range(size // 2) if 2 * n * n <= kx * kx + ky * ky)  # n sqrt(2) <= |k|
            bins[edge].append(power[i, j])
    return np.array([np.mean(values) for values in bins])


@pytest.mark.parametrize("size", [16, 15])
@pytest.mark.parametrize("window", ["hann", "none"])
def test_the_spectrum_equals_a_slow_reference(size, window):
    images = red_noise(3, size, seed=4) + np.linspace(0, 5, size, dtype=np.float32)
    expected = [slow_radial_power(image, window == "hann") for image in images]
    np.testing.assert_allclose(radial_power(images, Recipe(window=window)), expected, rtol=1e-9)
    np.testing.assert_allclose(radial_power(images[:, None], Recipe(window=window)), expected, rtol=1e-9)


def test_the_bins_share_the_plane_from_zero_to_the_corner():
    centres = wavenumbers(64)
    assert len(centres) == 32
    np.testing.assert_allclose(np.diff(centres), np.sqrt(0.5) / 32)
    assert centres[0] == pytest.approx(np.sqrt(0.5) / 64)
    assert centres[-1] < np.sqrt(0.5)


@pytest.mark.parametrize("slope", [0.0, 1.0, 2.0, 3.0, 4.0])
@pytest.mark.parametrize("size", [64, 32])
def test_without_a_window_the_exponent_of_periodic_fields_comes_back(slope, size):
    rng = np.random.default_rng(11)
    fields = power_law(50, size, rng, slope=slope) if slope else white_noise(2000, size, rng)
    spectrum = MeanSpectrum(size, PERIODIC)
    spectrum.add(fields)
    assert spectrum.slope.beta == pytest.approx(slope, abs=0.05)
    assert spectrum.slope.error < 0.02
    assert spectrum.slope.alpha == -spectrum.slope.beta


def test_with_random_amplitudes_too_and_for_each_cutout():
    k = np.hypot(np.fft.fftfreq(64)[:, None], np.fft.rfftfreq(64))
    k[0, 0] = np.inf
    white = np.random.default_rng(3).standard_normal((400, 64, 64))
    fields = np.fft.irfft2(np.fft.rfft2(white) * k**-1.5)
    spectrum = MeanSpectrum(64, PERIODIC)
    single, _, _ = fit_slopes(spectrum.add(fields), 64, PERIODIC)
    assert spectrum.slope.beta == pytest.approx(3, abs=0.05)
    assert single.mean() == pytest.approx(3, abs=0.1)
    assert single.std() < 0.4


def test_the_published_recipe_on_the_published_sets():
    # The window and the wide bins bend steep spectra by a known amount, white noise by none.
    for slope, low, high in ((0.0, -0.02, 0.02), (2.0, 2.05, 2.2), (4.0, 4.35, 4.6)):
        rng = np.random.default_rng(1234)
        fields = power_law(300, 64, rng, slope=slope) if slope else white_noise(1500, 64, rng)
        spectrum = MeanSpectrum(64)
        spectrum.add(fields)
        assert low < spectrum.slope.beta < high


def test_the_error_is_that_of_least_squares():
    rng = np.random.default_rng(0)
    centres = wavenumbers(64)
    chosen = (1 / centres >= 4) & (1 / centres <= 40)
    truth = centres**-2.5 * np.exp(0.2 * rng.standard_normal((3000, 32)))
    beta, error, count = fit_slopes(truth, 64)
    assert count == chosen.sum() == 10
    assert beta.mean() == pytest.approx(2.5, abs=0.02)
    assert np.sqrt((error**2).mean()) == pytest.approx(beta.std(), rel=0.1)


def test_a_plane_adds_nothing_and_scale_changes_no_slope():
    images = red_noise(5, 32, seed=8).astype(np.float64)
    y, x = np.mgrid[:32, :32]
    np.testing.assert_allclose(radial_power(images + 3 * x - 2 * y + 7), radial_power(images), rtol=1e-6)
    np.testing.assert_allclose(radial_power(10 * images), 100 * radial_power(images))
    lines = images + np.cumsum(np.ones(32)) * np.arange(32)[:, None]  # a slope of its own in each row
    recipe = Recipe(detrend="lines")
    np.testing.assert_allclose(radial_power(lines, recipe), radial_power(images, recipe), rtol=1e-5)


def test_a_cutout_with_nan_is_left_out_and_a_constant_one_has_no_slope():
    images = red_noise(4, 32)
    images[1, 3, 3] = np.nan
    images[2] = 1.5
    spectrum, reference = MeanSpectrum(32), MeanSpectrum(32)
    beta, error, _ = fit_slopes(spectrum.add(images), 32)
    reference.add(images[[0, 2, 3]])
    assert np.isnan(beta).tolist() == np.isnan(error).tolist() == [False, True, True, False]
    assert (spectrum.rows, spectrum.left_out) == (3, 1)
    np.testing.assert_allclose(spectrum.power, reference.power, rtol=1e-12)
    empty = MeanSpectrum(32)
    empty.add(np.full((2, 32, 32), np.nan))
    with pytest.raises(InputFileError, match="without NaN, but all 2"):
        _ = empty.power


@pytest.mark.parametrize("shape", [(4, 32), (4, 32, 16), (4, 2, 32, 32), (4, 4, 4)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(InputFileError, match=r"expected images \(N, S, S\)"):
        radial_power(np.zeros(shape))


def test_a_band_without_bins_is_refused():
    with pytest.raises(OptionError, match=r"band=\[10, 11\] pixels holds 0 of the bins of a 32-pixel cutout"):
        fit_slopes(np.ones((1, 16)), 32, Recipe(band=(10, 11)))


@pytest.mark.parametrize("chunks", [None, (7, 1, 32, 32), (60, 1, 8, 8)])
def test_a_file_streams_to_what_the_whole_gives(tmp_path, chunks, monkeypatch):
    images = red_noise(60, seed=5)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("train", data=images[:, None], chunks=chunks)
    monkeypatch.setattr("nenya.data.cutouts._PIECE_BYTES", 16 * 32 * 32 * 4)
    info = inspect_cutouts(tmp_path / "a.h5")
    pieces = list(read_blocks(info, "train"))
    assert max(map(len, pieces)) <= 16
    np.testing.assert_array_equal(np.concatenate(pieces)[:, 0], images)
    assert sum(map(len, read_blocks(info, "train", 21))) == 21
    mean, alpha, error = file_spectrum(info, "train")
    beta, expected, _ = fit_slopes(radial_power(images), 32)
    np.testing.assert_allclose(alpha, -beta)
    np.testing.assert_allclose(error, expected)
    np.testing.assert_allclose(mean.power, radial_power(images).mean(axis=0))


def test_the_command_writes_figure_numbers_and_slopes(nenya_cli, small_file, tmp_path):
    import pandas as pd

    rows = pd.DataFrame({"pp_file": "s3://bucket/small_preproc.h5", "pp_type": [0, 1, 1, -1], "pp_idx": [3, 0, 39, 0]})
    write_table(rows, tmp_path / "cutouts.csv")
    code, said = nenya_cli("spectra", [small_file, "out=o", "band=[4,24]", "table=cutouts.csv", "pixel_km=2"])
    assert code == 0, said
    assert "small_preproc.h5 train: beta 2." in said and "40 cutouts" in said
    assert all(f"o/small_preproc_{end}" in said for end in ("spectrum.csv", "alpha.parquet"))
    assert (tmp_path / "o" / "small_preproc_spectrum.png").read_bytes()[:4] == b"\x89PNG"
    numbers = read_table(tmp_path / "o" / "small_preproc_spectrum.csv")
    assert list(numbers.columns) == ["wavelength_px", "train", "valid"] and len(numbers) == 16
    slopes = read_table(tmp_path / "o" / "small_preproc_alpha.parquet")
    assert slopes.groupby("pp_type").size().to_dict() == {0: 24, 1: 40}
    with h5py.File(small_file) as file:
        beta, _, _ = fit_slopes(radial_power(file["train"][:]), 32, Recipe(band=(4, 24)))
    np.testing.assert_allclose(slopes[slopes["pp_type"] == 1]["alpha"], -beta)
    joined = read_table(tmp_path / "o" / "cutouts_alpha.csv")
    np.testing.assert_allclose(joined["alpha"][1:3], -beta[[0, 39]])
    assert np.isnan(joined["alpha"][3]) and joined["pp_file"][0].startswith("s3://")
    code, said = nenya_cli("spectra", [small_file, "out=o"])
    assert code == 2 and "clobber=true" in said and said.count("\n") == 1


@pytest.mark.parametrize(
    ("args", "part"),
    [
        (["nothing.h5"], "nothing.h5"),
        (["band=[40,4]"], "two numbers [min, max]"),
        (["band=[1,4]"], "at least 2"),
        (["detrend=line"], "one of plane, lines, none"),
        (["table=none.parquet"], "no such table"),
    ],
)
def test_wrong_input_is_one_line(nenya_cli, tmp_path, args, part):
    write_cutouts(tmp_path / "a.h5", train=red_noise(3))
    code, said = nenya_cli("spectra", [*args, *([] if args[0].endswith(".h5") else ["data=a.h5"])])
    assert code == 2 and part in said.splitlines()[-1], said


def test_the_script(tmp_path, small_file):
    command = [sys.executable, ROOT / "scripts" / "spectra.py", small_file, "out=o"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "o" / "small_preproc_spectrum.png").is_file()


@pytest.mark.parametrize("window", ["none", "hann"])
def test_a_spectral_density_integrates_to_the_variance(window):
    fields = np.random.default_rng(0).standard_normal((400, 32, 32))
    recipe = Recipe(detrend="none", window=window)
    whole = power(fields, recipe)
    twice = np.full(17, 2.0)
    twice[[0, -1]] = 1  # waves of the half plane that stand for themselves
    integral = (whole.mean(axis=0) * twice).sum() * density_factor(32, recipe) / 32**2
    assert integral == pytest.approx(fields.var(), rel=0.02)


def test_the_spread_is_that_of_the_cutouts_own_spectra():
    fields = np.random.default_rng(1).standard_normal((300, 16, 16))
    fields[5, 0, 0] = np.nan
    mean = MeanSpectrum(16)
    own = np.concatenate([mean.add(part) for part in np.array_split(fields, 3)])
    for share in (0.1, 0.5, 0.9):
        expected = np.quantile(own[np.isfinite(own).all(axis=1)], share, axis=0, method="inverted_cdf")
        np.testing.assert_allclose(mean.quantile(share), expected, rtol=0.013)
    assert np.isnan(MeanSpectrum(16).quantile(0.5)).all()


def test_the_figure_has_units_small_ticks_references_and_a_spread(nenya_cli, small_file, tmp_path):
    common = [small_file, "band=[4,16]", "unit=m", "reference_slopes=[-2,-4]"]
    code, said = nenya_cli("spectra", [*common, "out=o", "pixel_km=2", "format=[svg,png]", "size=double"])
    assert code == 0, said
    assert {path.suffix for path in (tmp_path / "o").glob("*_spectrum.*")} == {".svg", ".png", ".csv"}
    text = (tmp_path / "o" / "small_preproc_spectrum.svg").read_text()
    said_in = re.findall("<!-- (.*?) -->", text)
    assert "power spectral density (m$^2$ km$^2$)" in said_in and "wavenumber (cycles/km)" in said_in
    assert {"$k^{-2}$", "$k^{-4}$", "wavelength (km)", "5", "10", "20"} <= set(said_in)
    assert text.count("FillBetweenPolyCollection") == 2 and text.count('<g id="xtick_') > 15
    code, said = nenya_cli("spectra", [*common[:2], "out=p", "spread=none", "reference_slopes=[]", "format=svg"])
    plain = (tmp_path / "p" / "small_preproc_spectrum.svg").read_text()
    assert code == 0 and "FillBetween" not in plain and "$k^" not in plain and "(K$^2$ pixel$^2$)" in plain
    for given, says in (
        ("spread=[0.9,0.1]", "spread="),
        ("format=gif", "format=gif"),
        ("reference_slopes=2", "a list"),
    ):
        code, said = nenya_cli("spectra", [*common[:2], "out=q", given])
        assert code == 2 and says in said and len(said.splitlines()) == 1 and not (tmp_path / "q").exists()
