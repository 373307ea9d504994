"""Textures: against plain numpy and scipy; artefacts among cutouts of an ocean."""

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from nenya.data.texture import TextureError, read_textures, texture_likelihood, texture_of
from nenya.prepare.ocean import OceanOptions, ocean_blocks

RNG = np.random.default_rng


def test_the_likelihood_is_the_mean_over_pairs_of_numbers():
    x = RNG(0).normal(size=(300, 5)) @ RNG(1).normal(size=(5, 5)) + 3
    x[7, 2] = np.nan
    found = texture_likelihood(x)
    good = np.delete(x, 7, axis=0)
    mean, covariance = good.mean(axis=0), np.cov(good.T, bias=True)
    wanted = sum(
        multivariate_normal(mean[[i, j]], covariance[np.ix_([i, j], [i, j])]).logpdf(good[:, [i, j]])
        for i in range(5)
        for j in range(i)
    )
    np.testing.assert_allclose(np.delete(found, 7), wanted / 4, rtol=1e-10)
    assert np.isnan(found[7])
    np.testing.assert_allclose(np.diff(texture_likelihood(2 * x + 1)[:5]), np.diff(found[:5]), rtol=1e-9)


def test_numbers_of_a_texture_equal_plain_numpy():
    image = RNG(0).normal(size=(16, 24)).cumsum(axis=0)
    found = np.exp(texture_of(image[None])[0])
    down, along = np.diff(image, axis=0), np.diff(image, axis=1)
    np.testing.assert_allclose(found[:3], [image.var(), down.var(), along.var()], rtol=1e-9)
    np.testing.assert_allclose(found[5], np.diff(along, axis=0).var(), rtol=1e-9)
    np.testing.assert_allclose(found[6], np.diff(image.mean(axis=0), 2).var(), rtol=1e-9)
    np.testing.assert_allclose(found[8], (down**4).mean() / (down**2).mean() ** 2, rtol=1e-9)
    turned = np.exp(texture_of(image.T[None])[0])  # rows and columns change places
    np.testing.assert_allclose(turned[[0, 2, 1, 4, 3, 5, 7, 6, 9, 8]], found[:10], rtol=1e-9)
    np.testing.assert_allclose(np.sort(turned[10:]), np.sort(found[10:]), rtol=1e-9)


@pytest.mark.parametrize("shape", [(8, 8), (9, 8), (8, 40), (64, 64)])
def test_shapes_missing_pixels_and_blocks(shape, monkeypatch):
    monkeypatch.setattr("nenya.data.texture._BLOCK_ROWS", 4)
    images = RNG(0).normal(size=(30, *shape)).cumsum(axis=1)
    images[3, :2], images[4] = np.nan, np.nan
    rows = np.delete(np.arange(30), 11)
    found = read_textures(lambda wanted: images[wanted], rows, 30, visible=False)
    assert np.isfinite(np.delete(found, [4, 11], axis=0)).all() and np.isnan(found[[4, 11]]).all()
    np.testing.assert_allclose(found[rows], texture_of(images[rows]), rtol=1e-12)
    filled = images[3].copy()
    filled[np.isnan(filled)] = np.nanmean(filled)
    np.testing.assert_allclose(found[3], texture_of(filled[None])[0], rtol=1e-9)


def test_what_tells_nothing_is_refused():
    with pytest.raises(TextureError, match=r"at least 8 pixels along a side, got \(3, 7, 9\)"):
        texture_of(np.zeros((3, 7, 9)))
    with pytest.raises(TextureError, match="more than 20 cutouts"):
        texture_likelihood(RNG(0).normal(size=(20, 20)))
    with pytest.raises(TextureError, match="have the same texture"):
        texture_likelihood(texture_of(np.zeros((30, 8, 8))))


def test_stripes_cloud_edges_and_noise_are_among_the_rarest_four_in_a_hundred():
    rng, size, rows, planted = RNG(5), 32, 1250, 12
    blocks = ocean_blocks(rows, np.random.SeedSequence(3), OceanOptions(size))
    images = np.concatenate([block.cutouts for block in blocks]).astype(np.float64)
    chosen = rng.choice(rows, planted, replace=False)
    y, x = np.mgrid[:size, :size] - size / 2
    for number, row in enumerate(chosen):
        if number % 3 == 0:
            images[row, rng.integers(6) :: 6] += rng.choice([-1, 1]) * rng.uniform(0.5, 1.5)
        elif number % 3 == 1:
            images[row] -= rng.uniform(2, 5) * (np.cos(number) * x + np.sin(number) * y > rng.uniform(3, 8))
        else:
            images[row] += rng.normal(0, rng.uniform(0.5, 1.5), (size, size))
    rarest = np.argsort(texture_likelihood(texture_of(images)))[: rows // 25]
    assert np.isin(chosen, rarest).sum() >= 0.9 * planted
