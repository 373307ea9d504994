import math

import numpy as np
import pytest
import torch

from nenya.latents.metrics import (
    alignment,
    feature_std,
    mean_cosine,
    nearest_rows,
    neighbour_agreement,
    rankme,
    uniformity,
)


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


def test_alignment_of_equal_opposite_and_turned_pairs():
    latents = random_latents(30, 6)
    assert alignment(latents, 3 * latents) == pytest.approx(0, abs=1e-12)
    assert mean_cosine(latents, 3 * latents) == pytest.approx(1)
    assert alignment(latents, -latents) == pytest.approx(4)
    others = random_latents(30, 6, seed=1)
    cosine = mean_cosine(latents, others)
    assert alignment(latents, others) == pytest.approx(2 - 2 * cosine)
    with_missing = np.insert(latents, 3, np.nan, axis=0)
    assert mean_cosine(with_missing, np.insert(others, 3, 1.0, axis=0)) == pytest.approx(cosine)
    assert math.isnan(alignment(np.full((2, 3), np.nan), np.zeros((2, 3))))
    with pytest.raises(ValueError, match="equal shape"):
        alignment(latents, others[:5])


def test_nearest_rows_equal_a_sort_of_all_distances():
    latents = random_latents(1500, 4)
    distance = np.linalg.norm(latents[:, None] - latents[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    np.testing.assert_array_equal(nearest_rows(latents, 5), np.argsort(distance, axis=1)[:, :5])
    with pytest.raises(ValueError, match="k=3: expected 1 to 2 neighbours for 3"):
        nearest_rows(latents[:3], 3)


def test_neighbours_agree_fully_not_at_all_or_in_part():
    rng = np.random.default_rng(4)
    angle = rng.uniform(0, 2 * np.pi, 1200)
    neighbours = nearest_rows(np.column_stack([np.cos(angle), np.sin(angle)]), 8)
    season = (angle / (2 * np.pi) + 0.4) % 1  # jumps where nothing in the latents does
    circular, error = neighbour_agreement(neighbours, season, period=1.0)
    assert circular > 0.98
    assert 0 < error < 0.01
    assert neighbour_agreement(neighbours, season)[0] < circular  # on a line, two sides of the jump are far apart
    agreement, error = neighbour_agreement(neighbours, rng.standard_normal(1200))
    assert abs(agreement) < 4 * error
    part = np.cos(angle) + rng.standard_normal(1200)
    assert 0.1 < neighbour_agreement(neighbours, part)[0] < 0.6
    classes = np.repeat([0.0, 1.0], 50)
    twins = np.concatenate([nearest_rows(random_latents(50, 2), 3), 50 + nearest_rows(random_latents(50, 2), 3)])
    assert neighbour_agreement(twins, classes) == (1.0, 0.0)
    for constant in (np.ones(100), 31.7 + 1e-9 * rng.standard_normal(100), np.zeros(100), np.full(100, np.nan)):
        assert math.isnan(neighbour_agreement(twins, constant)[0])
        assert math.isnan(neighbour_agreement(twins, constant, period=1.0)[1])


def test_neighbour_agreement_is_its_definition_and_leaves_out_what_is_not_known():
    neighbours = np.array([[1, 2], [0, 2], [1, 3], [2, 1]])
    values = np.array([0.0, 1.0, 3.0, np.nan])
    near = (np.mean([1, 3]) + np.mean([1, 2]) + 2) / 3
    assert neighbour_agreement(neighbours, values)[0] == pytest.approx(1 - near / 2)
