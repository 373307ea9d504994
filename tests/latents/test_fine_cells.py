"""Cells of a given size: as many as wanted, nearly the nearest ones, and rarities as true as with one level."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from nenya.errors import InputFileError
from nenya.latents.fine_cells import _shares, assign_all, fit_fine_cells
from nenya.latents.nearest import Identity, Nearest, as_unit, identity_of_rows
from nenya.latents.rarity import rarity_of

ROWS, DIM = 6000, 32


@pytest.fixture(scope="module")
def latents():
    """Rows on a curved surface of four dimensions, with noise."""
    rng = np.random.default_rng(0)
    inner = rng.standard_normal((ROWS, 4)) * rng.uniform(0.3, 1, (ROWS, 1))
    rows = np.sin(inner @ rng.standard_normal((4, 24)) + 1) @ rng.standard_normal((24, DIM))
    rows = (rows + 0.3 * rng.standard_normal((ROWS, DIM))).astype(np.float32)
    rows[17] = np.nan
    return rows


def test_every_row_is_in_nearly_its_nearest_cell(latents):
    cells = fit_fine_cells(latents, 120, 1)
    label, units = assign_all(latents, cells), as_unit(latents).astype(np.float64)
    assert label[17] == -1 and cells.centres.shape == (120, DIM) and cells.starts[-1] == 120
    known = label >= 0
    assert known.sum() == ROWS - 1 and np.bincount(label[known], minlength=120).max() < 8 * ROWS / 120
    distance = ((units[known, None] - cells.centres[None]) ** 2).sum(axis=2)
    own = distance[np.arange(ROWS - 1), label[known]]
    assert (own <= distance.min(axis=1) + 1e-5).mean() > 0.8, "a row near the edge of a coarse cell may be in another"
    assert own.mean() < 1.1 * distance.min(axis=1).mean()
    np.testing.assert_allclose(cells.turn @ cells.turn.T, np.eye(DIM), atol=1e-5)
    np.testing.assert_array_equal(fit_fine_cells(latents, 120, 1).centres, cells.centres)


@pytest.mark.parametrize(
    ("sizes", "count"), [([10, 0, 5, 1], 8), ([10, 0, 5, 1], 16), ([100, 100], 3), ([1, 1, 1, 97], 4), ([1] * 9, 9)]
)
def test_cells_are_shared_out_by_rows(sizes, count):
    shares = _shares(np.array(sizes), count)
    assert shares.sum() == count and (shares <= sizes).all() and (shares[np.array(sizes) > 0] >= 1).all()


def test_too_few_rows_for_the_cells(latents):
    with pytest.raises(InputFileError, match="expected at least 40 latents with a direction in a sample, got 30"):
        fit_fine_cells(latents[30:60], 40, 0)


def test_the_best_of_some_numbers_are_compared_in_full(latents):
    units = as_unit(np.delete(latents, 17, axis=0))
    turn = np.linalg.eigh((units.T @ units).astype(np.float64))[1][:, ::-1].astype(np.float32)
    turned, own = units @ turn, identity_of_rows(len(units))
    true, _ = Nearest(units, own).search(units[:200], own.take(slice(0, 200)), 10)
    found, rows = Nearest(turned, own, 12).search(turned[:200], own.take(slice(0, 200)), 10)
    assert (np.diff(found, axis=1) <= 0).all() and (rows != np.arange(200)[:, None]).all()
    np.testing.assert_allclose(found, (units[:200, None].astype(np.float64) * units[rows]).sum(axis=2), atol=1e-6)
    assert (1 - found.mean(axis=1)).mean() < 1.03 * (1 - true.mean(axis=1)).mean()


def test_rarity_in_cells_of_a_given_size(latents, monkeypatch):
    own = Identity(np.arange(ROWS), np.arange(ROWS) // 10)
    true = rarity_of(latents, own, 10, exact=True)
    monkeypatch.setattr("nenya.latents.rarity_cells._CELL_ROWS", 50)
    monkeypatch.setattr("nenya.latents.rarity_cells._LEADING", 16)
    monkeypatch.setattr("nenya.latents.rarity_cells._WRITE_BYTES", 4 * DIM * 700)
    monkeypatch.setattr("nenya.latents.rarity_cells._READ_BYTES", 4 * DIM * 300)
    found = rarity_of(latents, own, 10, exact=False, seed=1)
    assert not found.exact and found.error < 0.1 and np.isnan(found.rarity[17])
    known = np.isfinite(true.rarity)
    assert spearmanr(found.rarity[known], true.rarity[known]).statistic > 0.97
    inside = (found.low <= true.rarity * (1 + 1e-9)) & (found.high >= true.rarity * (1 - 1e-9))
    assert inside[known].mean() > 0.9
