import logging

import h5py
import numpy as np
import pytest

from nenya.errors import InputFileError, OptionError
from nenya.latents.components import fit_pca
from nenya.latents.metrics import rankme
from nenya.pca import fit_latents, load, open_coefficients


@pytest.fixture
def latents():
    rng = np.random.default_rng(5)
    return rng.standard_normal((300, 12)) * np.geomspace(3, 0.1, 12) @ np.linalg.qr(rng.standard_normal((12, 12)))[0]


def reference(latents):
    centred = latents - latents.mean(axis=0)
    _, singular, components = np.linalg.svd(centred, full_matrices=False)
    largest = components[np.arange(len(components)), np.abs(components).argmax(axis=1)]
    return components * np.sign(largest)[:, None], singular**2 / (len(latents) - 1)


@pytest.mark.parametrize("offset", [0.0, 1e4])
@pytest.mark.parametrize("sizes", [[300], [1, 299], [7] * 42 + [6], [150, 0, 150]])
def test_equals_svd_in_any_blocking_and_with_an_offset(latents, offset, sizes):
    shifted = latents + offset
    pca = fit_pca(np.split(shifted, np.cumsum(sizes)[:-1]))
    components, variance = reference(shifted)
    np.testing.assert_allclose(pca.components, components, atol=1e-10)
    np.testing.assert_allclose(pca.explained_variance, variance, rtol=1e-10)
    np.testing.assert_allclose(pca.mean, shifted.mean(axis=0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(pca.explained_variance_ratio.sum(), 1, rtol=1e-12)


def test_one_array_and_a_data_set_are_read_in_blocks(latents, tmp_path, monkeypatch):
    monkeypatch.setattr("nenya.latents.components.BLOCK_ROWS", 64)
    with h5py.File(tmp_path / "latents.h5", "w") as file:
        from_file = fit_pca(file.create_dataset("train", data=latents))
    components, _ = reference(latents)
    np.testing.assert_allclose(fit_pca(latents).components, components, atol=1e-10)
    np.testing.assert_array_equal(from_file.components, fit_pca(latents).components)


def test_coordinates_are_uncorrelated_with_the_explained_variance(latents):
    pca = fit_pca(latents, 4)
    coordinates = pca.transform(latents)
    assert coordinates.shape == (300, 4)
    np.testing.assert_allclose(np.cov(coordinates.T), np.diag(pca.explained_variance), atol=1e-10)


def test_all_components_restore_the_latents(latents):
    pca = fit_pca(latents)
    np.testing.assert_allclose(pca.transform(latents) @ pca.components + pca.mean, latents, atol=1e-10)


def test_rows_that_are_not_finite_are_left_out_and_counted(latents, caplog):
    spoilt = np.insert(latents, [0, 100, 300], np.nan, axis=0)
    spoilt[0, 1:] = 1.0
    with caplog.at_level(logging.WARNING, "nenya.pca"):
        pca = fit_pca([spoilt[:1], spoilt[1:]])
    assert (pca.n_rows, pca.n_left_out) == (300, 3)
    assert "3 of 303 latents" in caplog.text
    np.testing.assert_allclose(pca.components, fit_pca(latents).components, atol=1e-10)
    assert np.isnan(pca.transform(spoilt)[0]).all()


def test_equal_latents_have_no_variance():
    pca = fit_pca(np.full((10, 3), 0.1))
    np.testing.assert_allclose(pca.explained_variance, 0, atol=1e-30)
    assert np.isfinite(pca.explained_variance_ratio).all()


@pytest.mark.parametrize(
    ("latents", "message"),
    [
        (np.full((5, 2), np.nan), "5 left out"),
        ([np.zeros((3, 2)), np.zeros((3, 4))], r"shape \(N, 2\), got \(3, 4\)"),
        ([np.zeros(3)], r"expected latents .* got \(3,\)"),
        ([], "at least 2 finite latents, got 0"),
    ],
)
def test_latents_that_cannot_be_fitted_are_refused(latents, message):
    with pytest.raises(InputFileError, match=message):
        fit_pca(latents)


def test_wrong_numbers_are_refused(latents):
    with pytest.raises(OptionError, match="n_components=13: expected 1 to 12"):
        fit_pca(latents, 13)
    with pytest.raises(InputFileError, match=r"shape \(N, 12\), got \(2, 5\)"):
        fit_pca(latents).transform(np.zeros((2, 5)))


def collapsed(kind, rows=3000, width=24):
    """Latents that have lost most of their dimensions."""
    rng = np.random.default_rng(3)
    if kind == "falling":  # over 14 decades
        left = np.linalg.qr(rng.standard_normal((rows, width)))[0]
        return left * np.geomspace(1, 1e-14, width) @ np.linalg.qr(rng.standard_normal((width, width)))[0]
    if kind == "constant":
        return rng.standard_normal(width) + 1e-6 * rng.standard_normal((rows, width))
    unit = rng.standard_normal((rows, 3)) @ rng.standard_normal((3, width)) + 1e-5 * rng.standard_normal((rows, width))
    if kind == "float32":
        return (unit / np.linalg.norm(unit, axis=1, keepdims=True)).astype(np.float32)
    return rng.standard_normal((rows, width)) * np.geomspace(1, 0.1, width)


@pytest.mark.parametrize("kind", ["falling", "constant", "float32", "good"])
def test_spectrum_and_rank_equal_those_of_the_whole_matrix(kind):
    latents = collapsed(kind)
    pca = fit_pca(np.split(latents, [7, 500, 501, 1700]))
    whole = latents.astype(np.float64)
    uncentred = np.linalg.svd(whole, compute_uv=False)
    centred = np.linalg.svd(whole - whole.mean(axis=0), compute_uv=False)
    resolved = 1e-15 * np.sqrt(len(latents))  # of the largest: what float64 resolves of either matrix
    np.testing.assert_allclose(pca.uncentred, uncentred, rtol=1e-9, atol=resolved * uncentred[0])
    found = np.sqrt(pca.spectrum * (len(latents) - 1))
    np.testing.assert_allclose(found, centred, rtol=1e-9, atol=resolved * uncentred[0])
    assert pca.rankme == pytest.approx(rankme(latents), rel=1e-9)
    variance = centred**2
    assert pca.participation_ratio == pytest.approx(variance.sum() ** 2 / (variance**2).sum(), rel=1e-9)
    for share in (0.95, 0.99):
        assert pca.modes_for(share) == int((np.cumsum(variance) < share * variance.sum()).sum()) + 1


def test_small_singular_values_survive():
    latents = collapsed("falling")
    found = fit_pca(np.split(latents, 10)).uncentred
    np.testing.assert_allclose(found, np.geomspace(1, 1e-14, 24), rtol=0.1)
    squares = np.sqrt(np.maximum(np.linalg.eigvalsh(latents.T @ latents)[::-1], 0))
    assert squares[-1] < 1e-16 or squares[-1] > 1e-10  # the Gram matrix does not have them


def test_fewer_latents_than_numbers():
    latents = np.random.default_rng(0).standard_normal((5, 9))
    pca = fit_pca([latents[:2], latents[2:]])
    assert pca.components.shape == (5, 9)
    np.testing.assert_allclose(pca.components @ pca.components.T, np.eye(5), atol=1e-12)
    assert pca.explained_variance[4] == pytest.approx(0, abs=1e-28)
    assert pca.rankme == pytest.approx(rankme(latents), rel=1e-9)


def test_what_is_saved_is_what_users_know(tmp_path, latents):
    spoilt = latents.astype(np.float32)
    spoilt[3] = np.nan
    with h5py.File(tmp_path / "a_latents.h5", "w") as file:
        file["train"], file["valid"] = spoilt[:200], spoilt[200:]
    pca = fit_latents(tmp_path / "a_latents.h5", tmp_path / "pca.npz")
    with np.load(tmp_path / "pca.npz", allow_pickle=False) as saved:
        good = np.delete(spoilt.astype(np.float64), 3, axis=0)
        np.testing.assert_allclose(np.delete(saved["Y"], 3, axis=0) @ saved["M"] + saved["mean"], good, atol=1e-5)
        assert np.isnan(saved["Y"][3]).all()
        assert saved["Y"].dtype == np.float32
        assert saved["explained_variance"].sum() == pytest.approx(1)
        coefficients = saved["Y"]
    np.testing.assert_array_equal(open_coefficients(tmp_path / "pca.npz"), coefficients)
    for name, value in vars(load(tmp_path / "pca.npz")).items():
        np.testing.assert_array_equal(value, getattr(pca, name))
    only = fit_latents(str(tmp_path / "a_latents.h5"), tmp_path / "b.npz", "valid", 60, n_components=4)
    assert only.n_rows == 60
    assert open_coefficients(tmp_path / "b.npz").shape == (60, 4)


def test_saved_files_that_are_none_are_refused(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"no archive")
    np.savez(tmp_path / "b.npz", M=np.array([{}], dtype=object))
    for name in ("a.npz", "b.npz", "none.npz"):
        with pytest.raises(InputFileError, match=f"{name}: expected principal components of nenya"):
            load(tmp_path / name)
        with pytest.raises(InputFileError, match=f"{name}: expected coefficients of nenya"):
            open_coefficients(tmp_path / name)
