import logging

import h5py
import numpy as np
import pytest

from nenya.errors import InputFileError, OptionError
from nenya.pca import fit_pca


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
    monkeypatch.setattr("nenya.pca.BLOCK_ROWS", 64)
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
        ([np.zeros((3, 2)), np.zeros((3, 4))], r"\(3, 4\): wanted \(N, 2\)"),
        ([np.zeros(3)], r"\(3,\): wanted"),
        ([], "0 finite latents"),
    ],
)
def test_latents_that_cannot_be_fitted_are_refused(latents, message):
    with pytest.raises(InputFileError, match=message):
        fit_pca(latents)


def test_wrong_numbers_are_refused(latents):
    with pytest.raises(OptionError, match="n_components=13: wanted 1 to 12"):
        fit_pca(latents, 13)
    with pytest.raises(InputFileError, match=r"\(2, 5\): wanted \(N, 12\)"):
        fit_pca(latents).transform(np.zeros((2, 5)))
