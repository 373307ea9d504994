import math

import numpy as np
import pytest
import torch

from nenya.metrics import feature_std, rankme, uniformity


def random_latents(rows, length, seed=0):
    return np.random.default_rng(seed).standard_normal((rows, length))


def test_collapsed_latents():
    latents = np.tile(random_latents(1, 16), (50, 1))
    assert feature_std(latents) == pytest.approx(0, abs=1e-12)
    assert uniformity(latents) == pytest.approx(0, abs=1e-12)
    assert rankme(latents) == pytest.approx(1, abs=1e-9)


def test_latents_spread_over_the_sphere():
    latents = random_latents(4000, 16)
    assert feature_std(latents) == pytest.approx(1 / math.sqrt(16), rel=0.01)
    # 2 - 2 cos has mean 2 over the sphere, and log mean exp lies above exp of the mean.
    assert -4 < uniformity(latents) < -3
    assert rankme(latents) == pytest.approx(16, rel=0.01)


def test_rankme_counts_equal_directions_and_the_offset():
    assert rankme(np.vstack([np.eye(8)[:5], np.zeros((4, 8))])) == pytest.approx(5, rel=1e-12)
    offset = random_latents(500, 8) * 1e-6 + 1
    assert rankme(offset) == pytest.approx(1, abs=1e-3)


def test_rankme_is_the_entropy_of_the_singular_values():
    assert rankme(np.diag([3.0, 1.0])) == pytest.approx(math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25)))


def test_uniformity_equals_its_definition_over_blocks():
    latents = random_latents(1500, 3, seed=2)
    unit = latents / np.linalg.norm(latents, axis=1, keepdims=True)
    squares = ((unit[:, None] - unit[None]) ** 2).sum(axis=2)
    pairs = squares[np.triu_indices(1500, 1)]
    assert uniformity(latents) == pytest.approx(math.log(np.exp(-2 * pairs).mean()), rel=1e-12)
    assert uniformity(latents, t=0.5) == pytest.approx(math.log(np.exp(-0.5 * pairs).mean()), rel=1e-12)


@pytest.mark.parametrize("metric", [feature_std, uniformity, rankme])
def test_missing_rows_are_left_out(metric):
    latents = random_latents(40, 5)
    with_missing = np.insert(latents, 7, np.nan, axis=0)
    assert metric(with_missing) == metric(latents)


@pytest.mark.parametrize("metric", [feature_std, uniformity, rankme])
def test_tensors_and_arrays_agree(metric):
    latents = random_latents(40, 5)
    tensor = torch.from_numpy(latents).requires_grad_()
    assert metric(tensor) == metric(latents)
    half = tensor.bfloat16()
    assert metric(half) == metric(half.detach().double().numpy())


def test_too_few_rows():
    assert math.isnan(uniformity(random_latents(1, 4)))
    assert rankme(np.zeros((3, 4))) == 0
    with pytest.raises(ValueError, match=r"\(N, D\)"):
        rankme(np.zeros(4))
