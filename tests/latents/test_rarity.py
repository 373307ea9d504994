"""Rarity: against a float64 reference, with and without neighbours of the same granule or nearby; the command."""

import json
import signal
import subprocess
import sys

import h5py
import numpy as np
import pandas as pd
import pytest
from latent_sets import latents
from portal_data import write_archive
from scipy.stats import spearmanr

from nenya.commands.outliers import COLUMNS, TEXTURE_COLUMNS, _correlation, first_rows
from nenya.errors import InputFileError
from nenya.io import read_table, write_table
from nenya.latents.nearest import Identity, Nearest, as_unit, identity_of, unit_places
from nenya.latents.rarity import fit_density, percentiles, rarity_of, whiten
from nenya.latents.rarity_cells import _nearest_cells
from nenya.portal.columns import Columns, read_arrow
from nenya.storage.disk import sha256_file
from nenya.tables.conditions import rows_where

ROWS, K = 900, 5


def identity(rows=ROWS, seed=0, **near):
    rng = np.random.default_rng(seed)
    granule = rng.integers(0, rows // 20, rows)
    granule[:5] = -1
    place = unit_places(rng.uniform(-60, 60, rows), rng.uniform(-180, 180, rows))
    time = rng.uniform(0, 30, rows)
    place[7], time[8] = np.nan, np.nan
    return Identity(np.arange(rows), granule, place, time, **near)


def reference(x, own, k):
    """The mean cosine distance in float64, all pairs at once."""
    unit = x.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1)[:, None]
    cosine = unit @ unit.T
    same = (own.granule[:, None] == own.granule) & (own.granule >= 0)
    angle = np.arccos(np.clip(np.nan_to_num(own.place @ own.place.T, nan=-1), -1, 1))
    near = (6371 * angle <= own.km) & (np.abs(own.time[:, None] - own.time) <= own.days)
    cosine[same | near | np.eye(len(x), dtype=bool)] = -np.inf
    return 1 - -np.sort(-cosine, axis=1)[:, :k].mean(axis=1)


@pytest.mark.parametrize("near", [{}, {"km": 3000.0, "days": 10.0}], ids=["granules", "granules, places and times"])
def test_rarity_equals_a_float64_reference(near, monkeypatch):
    monkeypatch.setattr("nenya.latents.nearest.TILE_ROWS", 128)  # several tiles
    monkeypatch.setattr("nenya.latents.rarity.QUERY_ROWS", 100)
    x, own = latents(ROWS, 1) * np.float32(3), identity(**near)
    found = rarity_of(x, own, K)
    wanted = reference(x, own, K)
    np.testing.assert_allclose(found.rarity, wanted, atol=1e-8)  # rows at unit length are float32
    assert np.abs(wanted - reference(x, identity(), K)).max() > 1e-3 if near else True
    np.testing.assert_allclose(found.percentile, [100 * (found.rarity <= value).mean() for value in found.rarity])
    assert found.exact and found.error == 0


def test_neither_order_nor_blocks_change_the_rarity(monkeypatch):
    x, own = latents(ROWS, 1), identity(km=2000.0, days=9.0)
    found = rarity_of(x, own, K).rarity
    order = np.random.default_rng(3).permutation(ROWS)
    np.testing.assert_allclose(rarity_of(x[order], own.take(order), K).rarity, found[order], rtol=1e-9)
    monkeypatch.setattr("nenya.latents.nearest.TILE_ROWS", 64)
    np.testing.assert_allclose(rarity_of(x, own, K).rarity, found, rtol=1e-9)


def test_ranks_of_the_cells_and_of_all_agree_and_the_error_is_stated():
    rows = 6000
    x = latents(rows, 1) + 0.1 * np.random.default_rng(0).standard_normal((rows, 32)).astype(np.float32)
    own = Identity(np.arange(rows), np.arange(rows) // 10)
    true = rarity_of(x, own, 10, exact=True)
    for probes in (32, 12):
        found = rarity_of(x, own, 10, exact=False, probes=probes, seed=1)
        assert not found.exact and 0 <= found.error < 0.1
        inside = (found.low <= true.rarity * (1 + 1e-9)) & (found.high >= true.rarity * (1 - 1e-9))
        assert inside.mean() > 0.9
        if probes == 32:
            assert spearmanr(found.rarity, true.rarity).statistic > 0.99
            assert found.spearman == pytest.approx(spearmanr(found.rarity, true.rarity).statistic, abs=0.005)
    again = rarity_of(x, own, 10, exact=False, probes=12, seed=1)
    np.testing.assert_array_equal(again.rarity, found.rarity)


@pytest.mark.parametrize("exact", [True, False])
def test_fifty_latents_of_artefacts_among_5000_are_among_the_200_rarest(exact):
    """Three kinds of artefacts, each in a direction that the ocean's latents hardly have, in granules of their own."""
    rng = np.random.default_rng(0)
    x, kinds = latents(5000, 1), np.linalg.qr(rng.standard_normal((32, 3)))[0].T
    chosen = rng.choice(5000, 50, replace=False)
    x[chosen] += kinds[np.arange(50) % 3] * rng.uniform(0.5, 1, (50, 1)) + 0.1 * rng.standard_normal((50, 32))
    found = rarity_of(x, Identity(np.arange(5000), np.arange(5000) // 10), 20, exact=exact)
    rarest = np.argsort(-found.rarity)[:200]
    assert np.isin(chosen, rarest).sum() >= 45
    assert (found.percentile[rarest] > 95.9).all()


def test_missing_latents_and_too_few_neighbours():
    x, own = latents(60, 1), Identity(np.arange(60), np.arange(60) // 20)
    x[3], x[4] = np.nan, 0
    found = rarity_of(x, own, K)
    assert np.isnan(found.rarity[[3, 4]]).all() and np.isfinite(np.delete(found.rarity, [3, 4])).all()
    assert found.left_out == 2 and np.nanmax(found.percentile) == 100
    with pytest.raises(InputFileError, match=r"no latent has k=5 neighbours outside its own granule"):
        rarity_of(x, Identity(np.arange(60), np.zeros(60, np.int64)), K)
    with pytest.raises(InputFileError, match=r"expected more than k=80"):
        rarity_of(x, own, 80)
    with pytest.raises(InputFileError, match="need the columns lat, lon"):
        identity_of(pd.DataFrame({"datetime": ["2012-01-01"]}), 10.0, 1.0)


def test_equal_rows_are_each_others_neighbours():
    x = np.repeat(as_unit(latents(20, 1)), 3, axis=0)
    cosine, rows = Nearest(x, Identity(np.arange(60), np.full(60, -1))).search(
        x, Identity(np.arange(60), np.full(60, -1)), 2
    )
    np.testing.assert_allclose(cosine, 1, atol=1e-7)
    assert (rows // 3 == np.arange(60)[:, None] // 3).all() and (rows != np.arange(60)[:, None]).all()


def test_the_density_is_that_of_the_true_mixture():
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((4, 8))
    x = centres[rng.integers(0, 4, 2000)] + 0.1 * rng.standard_normal((2000, 8))
    found = fit_density(x, np.full(2000, -1), components=4, seed=1)
    assert found.tried[found.name] == max(found.tried.values()) and found.name.startswith("4 ")
    unit = as_unit(x)
    values = found.log_likelihood(x)
    np.testing.assert_allclose(values, found.mixture.score_samples(whiten(found.pca, unit)))
    np.testing.assert_allclose(whiten(found.pca, unit).var(axis=0, ddof=1), 1, rtol=1e-5)
    assert found.log_likelihood(-x).max() < np.quantile(values, 0.05)  # nothing lies on the other side


@pytest.fixture
def archive(tmp_path):
    return write_archive(tmp_path)


def test_the_command(archive, nenya_cli, tmp_path):
    table, vectors, cutouts = archive
    frame = read_table(table)
    frame["LL"] = -np.arange(len(frame), dtype=np.float64)
    write_table(frame, table)
    code, said = nenya_cli("outliers", [vectors, f"table={table}", f"images={cutouts}", "out=o.parquet", "rarest=30"])
    assert code == 0, said
    made = read_table(tmp_path / "o.parquet")
    pd.testing.assert_frame_equal(made[list(frame)], frame)
    assert set(made) - set(frame) == {*COLUMNS, *TEXTURE_COLUMNS}
    assert np.isnan(made.loc[7, list(TEXTURE_COLUMNS)].astype(float)).all()
    assert made["texture_percentile"].max() == 100 == made.loc[made["texture_LL"].idxmin(), "texture_percentile"]
    assert np.isnan(made.loc[7, list(COLUMNS)].astype(float)).all() and made.drop(7)[list(COLUMNS)].notna().all(
        axis=None
    )
    results = json.loads((tmp_path / "o.json").read_text())
    assert results["answer"] == "exact" and results["without_latent"] == 1
    assert results["rank_correlation"]["rarity and latent_LL"]["value"] < -0.5
    expected = spearmanr(made["LL"].drop(7), made["latent_LL"].drop(7)).statistic
    assert results["rank_correlation"]["LL and latent_LL"]["value"] == pytest.approx(expected)
    assert "rank correlation of LL and rarity" in said
    rarest = read_table(tmp_path / "o_rarest.csv")
    tail = np.fmin((100 - made["rarity_percentile"]) / 0.25, (100 - made["texture_percentile"]) / 0.75)
    assert rarest["table_row"].nunique() == 30 and tail[rarest["table_row"]].is_monotonic_increasing
    assert tail[rarest["table_row"]].max() <= tail.drop(rarest["table_row"]).min()
    assert 15 < (rarest["rare_by"] == "texture").sum() < 30
    assert sorted(path.name for path in (tmp_path / "o_groups").iterdir()) == [
        f"group_{i}.png" for i in range(rarest["rare_group"].nunique())
    ]
    assert rows_where(made, "rarity_percentile > 90 AND latent_LL < 0").sum() > 0
    assert rows_where(made, "texture_percentile > 90").sum() == (made["texture_percentile"] > 90).sum() > 20
    assert {*COLUMNS, *TEXTURE_COLUMNS} <= set(Columns(read_arrow(tmp_path / "o.parquet")).metrics())
    shuffled = frame.sample(frac=1, random_state=1)
    write_table(shuffled, tmp_path / "s.parquet")
    code, said = nenya_cli("outliers", [vectors, "table=s.parquet", "out=s_out.parquet"])
    assert code == 0, said
    again = read_table(tmp_path / "s_out.parquet")
    assert "images= would also find artefacts" in said and not set(TEXTURE_COLUMNS) & set(again)
    rarest = read_table(tmp_path / "s_out_rarest.csv")
    np.testing.assert_allclose(rarest["rarity"], -np.sort(-again["rarity"])[: len(rarest)])
    for name in COLUMNS:
        np.testing.assert_allclose(again[name], made[name].to_numpy()[shuffled.index], rtol=1e-9)


def test_a_large_table_is_copied_in_parts_with_the_same_answer(archive, nenya_cli, tmp_path, monkeypatch):
    table, vectors, _ = archive
    frame = read_table(table).rename(columns={"lat": "Latitude"})
    frame["LL"], frame["note"] = -np.arange(len(frame), dtype=np.float64), "of the user"
    write_table(frame, tmp_path / "t.parquet")
    answers = []
    for name, most in (("whole", 10**6), ("parts", 100)):
        monkeypatch.setattr("nenya.commands.outliers.EXACT_ROWS", most)
        if name == "parts":
            monkeypatch.setattr("nenya.commands.outliers.read_table", None)  # the complete table is not read
        asked = [vectors, "table=t.parquet", "images=none", "exact=true", f"out={name}.parquet", "rarest=20"]
        code, said = nenya_cli("outliers", asked)
        assert code == 0, said
        answers.append([read_table(tmp_path / f"{name}{end}") for end in (".parquet", "_rarest.csv")])
        answers[-1].append(json.loads((tmp_path / f"{name}.json").read_text()))
    for one, other in zip(answers[0][:2], answers[1][:2], strict=True):
        pd.testing.assert_frame_equal(one, other)
    assert answers[0][2] == answers[1][2] and {"note", "Latitude", "LL"} <= set(answers[1][1])


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["apart_km=10", "table=bare.parquet"], "need the columns lat, lon"),
        (["out=o.h5"], "expected a folder or a table"),
        (["k=0"], "k=0"),
        (["k=400"], "expected more than k=400"),
        (["components=50"], "components=50: expected at most"),
        (["where=x"], "where"),
    ],
)
def test_what_cannot_be_right_is_refused_in_one_line(args, words, archive, nenya_cli, tmp_path):
    write_table(read_table(archive[0])[["pp_file", "pp_type", "pp_idx"]], tmp_path / "bare.parquet")
    before = sorted(tmp_path.rglob("*"))
    code, said = nenya_cli("outliers", [archive[1], *args])
    assert code == 2 and words in said.splitlines()[-1], said
    assert sorted(tmp_path.rglob("*")) == before


def test_cutouts_beside_the_latents_are_used_while_they_are_those_of_the_latents(archive, nenya_cli, tmp_path):
    table, vectors, cutouts = archive

    def textures(*args):
        code, said = nenya_cli("outliers", [vectors, f"table={table}", "out=o.parquet", "clobber=true", *args])
        assert code == 0, said
        made = read_table(tmp_path / "o.parquet")
        return made[TEXTURE_COLUMNS[0]].to_numpy(float) if TEXTURE_COLUMNS[0] in made else None, said

    assert textures()[0] is None  # these latents do not say what they were made of
    with h5py.File(vectors, "r+") as file:
        size, sha256 = cutouts.stat().st_size, sha256_file(cutouts)
        file.attrs.update(source=cutouts.name, source_size=size, source_sha256=sha256)
    wanted, _ = textures(f"images={cutouts}")
    found, said = textures()
    np.testing.assert_array_equal(found, wanted)
    assert sum("images=none: without" in line for line in said.splitlines()) == 1
    assert textures("images=none")[0] is textures("images=false")[0] is None
    moved = tmp_path / "latents" / vectors.name
    moved.parent.mkdir()
    vectors.rename(moved)
    vectors = moved
    np.testing.assert_array_equal(textures()[0], wanted)  # beside the table
    with h5py.File(cutouts, "r+") as file:
        file["valid"][0] += 1
    assert cutouts.stat().st_size == size and textures()[0] is None


KILLED = """
import os, signal, sys
from nenya.latents.kept_answers import KeptAnswers
from nenya.cli import main
keep, done = KeptAnswers.keep, []
def killed(self, name, answer):
    keep(self, name, answer)
    done.append(name)
    if sum(one.startswith("rarity") for one in done) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
KeptAnswers.keep = killed
import nenya.latents.rarity, nenya.latents.rarity_cells
nenya.latents.rarity._KEPT_ROWS = nenya.latents.rarity_cells._KEPT_ROWS = 60
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("exact", ["true", "false"])
def test_killed_outliers_continue_to_the_same_answer(exact, archive, nenya_cli, tmp_path, monkeypatch):
    for module in ("rarity", "rarity_cells"):
        monkeypatch.setattr(f"nenya.latents.{module}._KEPT_ROWS", 60)
    searched, search = [], Nearest.search
    monkeypatch.setattr(Nearest, "search", lambda *args: searched.append(len(args[1])) or search(*args))
    args = [str(archive[1]), f"table={archive[0]}", f"exact={exact}", "images=none", "components=2", "sample=60"]
    assert nenya_cli("outliers", [*args, "out=whole.parquet"])[0] == 0
    whole = sum(searched)
    done = subprocess.run([sys.executable, "-c", KILLED, "outliers", *args, "out=cut.parquet"], cwd=tmp_path)
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / "cut.partial").is_dir() and not (tmp_path / "cut.parquet").exists()
    code, said = nenya_cli("outliers", [*args, "out=cut.parquet"])
    assert code == 0 and "resuming: rarity of " in said, said
    pd.testing.assert_frame_equal(read_table(tmp_path / "cut.parquet"), read_table(tmp_path / "whole.parquet"))
    assert (tmp_path / "cut.json").read_text() == (tmp_path / "whole.json").read_text()
    assert not (tmp_path / "cut.partial").exists()
    assert sum(searched) - whole <= whole - 100  # what was known was not searched again


def test_the_nearest_cells_hold_as_many_rows_whatever_their_sizes():
    rng = np.random.default_rng(0)
    centres, sizes = rng.standard_normal((50, 4)), np.where(np.arange(50) % 5 > 0, 1, rng.integers(100, 400, 50))
    wanted = 8 * sizes.mean()
    for cell, near in enumerate(_nearest_cells(centres, sizes, 8)):
        assert near[0] == cell and sizes[near].sum() >= wanted > sizes[near[:-1]].sum()
        distance = ((centres - centres[cell]) ** 2).sum(axis=1)
        assert distance[near].max() <= np.delete(distance, near).min(initial=np.inf)
    assert all(len(near) == 8 for near in _nearest_cells(centres, np.full(50, 7), 8))
    assert all(len(near) == 50 for near in _nearest_cells(centres, sizes, 60)[:1])


@pytest.mark.parametrize("seed", range(20))
def test_the_first_rows_are_those_of_sorting_all(seed):
    rng = np.random.default_rng(seed)
    tail, rarity = rng.integers(0, 30, 2000).astype(float), rng.integers(0, 5, 2000).astype(float)
    tail[rng.random(2000) < 0.2] = np.inf
    place = rng.integers(0, 2000 if seed % 2 else 60, 2000)
    order = np.lexsort((place, -rarity, tail))
    order = order[np.isfinite(tail[order])]
    wanted = order[np.sort(np.unique(place[order], return_index=True)[1])]
    for count in (1, 50, 3000):
        assert first_rows(tail, rarity, place, count).tolist() == wanted[:count].tolist()


def test_the_correlation_of_many_rows_is_that_of_some_within_its_interval(monkeypatch):
    monkeypatch.setattr("nenya.commands.outliers._CORRELATED_ROWS", 500)
    rng, inside = np.random.default_rng(0), 0
    for seed in range(100):
        one = pd.Series(np.sort(rng.normal(size=5000)))  # the first rows are of another kind than all
        other = 0.6 * one + rng.normal(size=5000)
        other[:100] = np.nan
        found = _correlation(one, other, seed)
        inside += found["low"] <= spearmanr(one[100:], other[100:]).statistic <= found["high"]
        assert found["rows"] == 500
    assert 90 <= inside


def test_percentiles_count_the_values_that_are_as_small_or_smaller():
    values = np.random.default_rng(0).integers(0, 40, 500).astype(float)
    values[::7] = np.nan
    known = values[np.isfinite(values)]
    wanted = [100 * (known <= value).sum() / len(known) if np.isfinite(value) else np.nan for value in values]
    np.testing.assert_array_equal(percentiles(values), wanted)
