"""Near-duplicates: which are left out, compared with a slow loop over all pairs; and balance over patterns."""

import signal
import subprocess
import sys

import h5py
import numpy as np
import pytest
from latent_sets import latents
from scipy.special import ndtr

from nenya.errors import OptionError
from nenya.latents import duplicates
from nenya.latents.duplicates import balance, nearest_cosines, prune, recall_at, strata
from nenya.latents.kept_answers import KeptAnswers

LIMIT = 0.98


def copies(groups=120, most=6, noise=0.004, seed=0):
    """Rows of unit length in groups of near-copies, shuffled, and the group of each."""
    rng = np.random.default_rng(seed)
    own = np.repeat(np.arange(groups), rng.integers(1, most + 1, groups))
    rng.shuffle(own)
    rows = rng.standard_normal((groups, 32))[own] + noise * rng.standard_normal((len(own), 32))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32), own


def one_by_one(rows, limit, first=0):
    """Keep each row that no kept row is above the limit of, in float64."""
    exact, kept = rows.astype(np.float64), []
    for i, row in enumerate(exact):
        if i < first or not kept or (exact[kept] @ row).max() <= limit:
            kept.append(i)
    return np.isin(np.arange(len(rows)), kept)


@pytest.mark.parametrize("limit", [0.7, 0.9, 0.97])
@pytest.mark.parametrize("first", [0, 200])
def test_it_is_the_loop_over_all_pairs(limit, first):
    rows = latents(1500, seed=3)
    found = prune(rows, limit, first=first)
    assert (found.kept == one_by_one(rows, limit, first)).all() and found.recall == 1
    assert 0 < found.kept.sum() < len(rows) and found.kept[:first].all()


@pytest.mark.parametrize("exact_to", [duplicates.EXACT_TO, 0])
def test_one_of_each_group_is_kept_and_again_changes_nothing(exact_to):
    rows, own = copies()
    found = prune(rows, LIMIT, exact_to=exact_to)
    assert (np.bincount(own[found.kept], minlength=120) == 1).all()
    assert (own[found.like[~found.kept]] == own[~found.kept]).all() and found.kept[found.like[~found.kept]].all()
    assert prune(rows[found.kept], LIMIT, exact_to=exact_to).kept.all()


@pytest.mark.parametrize("exact_to", [duplicates.EXACT_TO, 0])
def test_what_is_left_out_has_a_kept_near_duplicate_also_in_a_chain(exact_to):
    angle = np.linspace(0, 3, 400)  # each is near the next, and the first is far from the last
    rows = np.stack([np.cos(angle), np.sin(angle), 0 * angle, 0 * angle], axis=1).astype(np.float32)
    rows = rows[np.random.default_rng(0).permutation(400)]
    found = prune(rows, 0.99, exact_to=exact_to)
    cosine = np.einsum("ij,ij->i", rows.astype(np.float64), rows[found.like].astype(np.float64))
    assert (cosine[~found.kept] > 0.99).all() and found.kept[found.like[~found.kept]].all()
    assert 10 < found.kept.sum() < 50


@pytest.mark.parametrize(("block", "kept"), [(7, 5), (1, 1), (400, 1000)])
def test_blocks_change_nothing(block, kept, monkeypatch):
    rows = latents(300, seed=4)
    whole = prune(rows, 0.9, first=20)
    monkeypatch.setattr(duplicates, "_BLOCK", block)
    monkeypatch.setattr(duplicates, "_KEPT", kept)
    parts = prune(rows, 0.9, first=20)
    assert (parts.kept == whole.kept).all() and (parts.like == whole.like).all()


def test_a_pair_at_the_very_limit_is_decided_in_float64():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((400, 256))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    cosines = rows.astype(np.float64) @ rows[0].astype(np.float64)
    other = int(np.argsort(cosines)[-2])
    pair = rows[[0, other]]
    for _ in range(2):  # far below the rounding of float32
        assert prune(pair, cosines[other] + 1e-12).kept.all()
        assert list(prune(pair, cosines[other] - 1e-12).kept) == [True, False]
        pair = pair[::-1]
    assert (prune(rows, cosines[other] - 1e-12).kept == one_by_one(rows, cosines[other] - 1e-12)).all()


def test_hashes_find_the_stated_share_of_pairs():
    rng = np.random.default_rng(1)
    for cosine in (0.98, 0.97, 0.96):
        first = rng.standard_normal((1500, 32))
        first /= np.linalg.norm(first, axis=1, keepdims=True)
        other = rng.standard_normal(first.shape)
        other -= (other * first).sum(axis=1, keepdims=True) * first
        other /= np.linalg.norm(other, axis=1, keepdims=True)
        pairs = np.concatenate([first, cosine * first + np.sqrt(1 - cosine**2) * other]).astype(np.float32)
        codes = [duplicates._codes(pairs, np.arange(3000), LIMIT, [5, table]) for table in range(duplicates._TABLES)]
        together = np.any([code[:1500] == code[1500:] for code in codes], axis=0).mean()
        assert abs(together - recall_at(cosine, LIMIT)) < 0.03
    assert 0.95 < recall_at(LIMIT, LIMIT) < recall_at(0.99, LIMIT) < recall_at(0.9999, LIMIT) <= 1
    ratio, limit = duplicates._WIDTH, 0.5  # the formula of the source, by its normal distribution
    one = 1 - 2 * ndtr(-ratio) - 2 / (np.sqrt(2 * np.pi) * ratio) * (1 - np.exp(-(ratio**2) / 2))
    expected = 1 - (1 - one**duplicates._FUNCTIONS) ** duplicates._TABLES
    assert recall_at(limit, limit) == pytest.approx(expected)


def test_hashes_keep_hardly_more_than_all_pairs():
    rows = latents(3000, seed=6)
    exact, hashed = prune(rows, LIMIT), prune(rows, LIMIT, exact_to=0)
    assert hashed.recall == recall_at(LIMIT, LIMIT)
    assert abs(int(hashed.kept.sum()) - int(exact.kept.sum())) < 0.03 * len(rows)
    assert (prune(rows, LIMIT, exact_to=0).kept == hashed.kept).all()


def test_strata_are_as_equal_as_their_sizes_allow():
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2, 3, -1], [500, 100, 30, 3, 50]))
    for keep in (4, 12, 100, 101, 102, 400, 633):
        chosen = balance(labels, keep)
        counts = np.bincount(labels[chosen], minlength=4)
        assert counts.sum() == keep and (labels[chosen] >= 0).all()
        cut = counts < np.array([500, 100, 30, 3])
        assert not cut.any() or counts[cut].min() >= counts.max() - 1, "only strata as large as any give less than all"
    assert list(np.bincount(labels[balance(labels)])) == [65, 65, 30, 3], "at most the median of the sizes"
    first = np.flatnonzero(labels == 0)[:65]
    assert balance(labels)[first].all(), "earlier rows first"
    with pytest.raises(OptionError, match="keep=700: expected at most 633"):
        balance(labels, 700)


def test_patterns_are_balanced_whatever_the_share_of_each():
    rng = np.random.default_rng(0)
    centres = np.eye(5, 16)
    own = np.repeat(np.arange(5), [600, 200, 100, 60, 40])
    rows = (centres[own] + 0.05 * rng.standard_normal((1000, 16))).astype(np.float32)
    labels = strata(rows, 5, seed=2)
    counts = np.bincount(own[balance(labels, 200)], minlength=5)
    assert counts.max() - counts.min() <= 1
    with pytest.raises(OptionError, match="k=2000: expected 1 to 1000"):
        strata(rows, 2000)


def test_the_cosine_of_the_nearest_row():
    rows = latents(400, seed=8)
    train, valid = np.arange(300), np.arange(300, 400)
    expected = (rows[valid].astype(np.float64) @ rows[train].astype(np.float64).T).max(axis=1)
    np.testing.assert_allclose(nearest_cosines(rows, train, valid), expected, atol=1e-6)
    assert len(nearest_cosines(rows, train, valid, sample=10)) == 10
    gaps = rows.copy()
    gaps[[0, 5, 310]], gaps[7] = np.nan, 0  # without a latent, or a direction
    left = np.delete(train, [0, 5, 7]), np.delete(valid, 10)
    expected = (rows[left[1]].astype(np.float64) @ rows[left[0]].astype(np.float64).T).max(axis=1)
    np.testing.assert_allclose(nearest_cosines(gaps, train, valid), expected, atol=1e-6)
    assert len(nearest_cosines(rows, train, valid[:0])) == 0


@pytest.mark.parametrize("cosine", [0, 1, -0.5, float("nan")])
def test_other_limits_are_refused(cosine):
    with pytest.raises(OptionError, match="expected a number above 0 and below 1"):
        prune(latents(10, seed=0), cosine)


class Stopped(Exception):
    """The run ends here."""


@pytest.mark.parametrize(("exact_to", "name"), [(duplicates.EXACT_TO, "pairs"), (0, "hashes")])
@pytest.mark.parametrize("steps", [1, 3])
def test_an_interrupted_run_continues_to_the_same_rows(exact_to, name, steps, tmp_path, monkeypatch):
    monkeypatch.setattr(duplicates, "_BLOCK", 50)
    monkeypatch.setattr(duplicates, "_KEPT_ROWS", 100)
    rows, _ = copies(noise=0.02)
    whole = prune(rows, LIMIT, exact_to=exact_to, first=60)
    state, count = KeptAnswers(tmp_path / "partial", "own"), []

    def keep(self, what, values):
        kept(self, what, values)
        count.append(what)
        if len(count) == steps:
            raise Stopped

    kept = KeptAnswers.keep_numbers
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(KeptAnswers, "keep_numbers", keep)
        prune(rows, LIMIT, exact_to=exact_to, first=60, kept=state)
    assert (tmp_path / "partial" / "own" / name).is_file()
    ticks = []
    found = prune(rows, LIMIT, exact_to=exact_to, first=60, kept=state, tick=ticks.append)
    assert (found.like == whole.like).all() and (whole.like >= 0).sum() > 50
    assert sum(ticks) == len(rows) and ticks[0] in (steps * 100, len(rows) * steps // duplicates._TABLES)


KILLED = """
import os, signal, sys
from nenya.cli import main
from nenya.latents import duplicates
from nenya.latents.kept_answers import KeptAnswers
keep, done = KeptAnswers.keep, []
def killed(self, name, answer):
    keep(self, name, answer)
    done.append(name)
    if len(done) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
KeptAnswers.keep, duplicates._KEPT_ROWS, duplicates._BLOCK = killed, 100, 50
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("exact_to", [100_000, 0])
def test_a_killed_command_continues_to_the_same_list(exact_to, nenya_cli, tmp_path):
    rows, _ = copies(noise=0.02)
    rows[7] = np.nan
    with h5py.File(tmp_path / "sea_latents.h5", "w") as file:
        file["valid"], file["train"] = rows[:60], rows[60:]
    args = ["sea_latents.h5", f"exact_to={exact_to}", "k=10"]
    assert nenya_cli("prune", [*args, "out=whole.csv"])[0] == 0
    done = subprocess.run([sys.executable, "-c", KILLED, "prune", *args, "out=cut.csv"], cwd=tmp_path)
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / "cut.partial").is_dir() and not (tmp_path / "cut.csv").exists()
    code, said = nenya_cli("prune", [*args, "out=cut.csv"])
    assert code == 0 and "resuming: 2" in said, said
    assert (tmp_path / "cut.csv").read_text() == (tmp_path / "whole.csv").read_text()
    assert (tmp_path / "cut.json").read_text() == (tmp_path / "whole.json").read_text()
    assert not (tmp_path / "cut.partial").exists()
