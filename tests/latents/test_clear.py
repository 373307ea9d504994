"""The known error of masked cutouts in everything that reads latents files."""

import json

import h5py
import numpy as np
import pandas as pd
import pytest
from latent_sets import latents

from nenya.errors import InputFileError
from nenya.latents.embed import Fit, embed_table
from nenya.latents.files import Latents
from nenya.latents.order import intervals, order_line, sure, with_order
from nenya.latents.spread import DRAWS, drawn_latents

ROWS, MASKED = 120, 40
LEAST = 0.9


def write(path, *, columns=True, seed=0):
    """Write latents whose first rows are of masked cutouts, 10 of them below 0.9, 3 of an unknown cosine."""
    low = np.ones(ROWS, np.float32)
    low[:MASKED] = np.concatenate([np.full(3, np.nan), np.linspace(0.5, 0.85, 10), np.linspace(0.92, 0.999, 27)])
    with h5py.File(path, "w") as file:
        file["train"] = latents(ROWS, seed)
        file.attrs["source"] = "a_preproc.h5"
        if columns:
            file["train_clear"] = np.where(low < 1, np.float32(0.75), np.float32(1))
            file["train_cosine"] = 1 - (1 - low) / 3
            file["train_cosine_low"] = low
    return path


def table(path):
    given = pd.DataFrame({"pp_file": "a_preproc.h5", "pp_type": 1, "pp_idx": np.arange(ROWS), "DT": 1.0})
    given.sample(frac=1, random_state=1).to_parquet(path)
    return path


@pytest.fixture
def path(tmp_path):
    return write(tmp_path / "a_preproc_latents.h5")


@pytest.fixture
def old(tmp_path):
    return write(tmp_path / "old_latents.h5", columns=False)


def test_rows_below_a_least_cosine_are_read_as_nan(path, caplog):
    caplog.set_level("INFO")
    every, some = Latents([path]), Latents([path], least_cosine=LEAST)
    out = np.zeros(ROWS, bool)
    out[:13] = True
    assert "least_cosine=0.9: left out 13 of 120 rows (3 of them with an unknown cosine)" in caplog.text
    wanted = np.where(out[:, None], np.nan, every[:])
    order = np.random.default_rng(0).permutation(ROWS)
    assert np.array_equal(some[:], wanted, equal_nan=True)
    assert np.array_equal(some.take(order), wanted[order], equal_nan=True)
    assert np.array_equal(np.concatenate(list(some.view(slice(5, 60)))), wanted[5:60], equal_nan=True)
    assert np.array_equal(np.concatenate(list(some.view(slice(50, 60)))), wanted[50:60])
    assert np.isfinite(every[:]).all() and every.left_out is None


def test_files_that_say_nothing_of_the_cosine_are_refused_in_one_line(path, old):
    with pytest.raises(InputFileError, match="'train_cosine_low': no such data set") as error:
        Latents([path, old], least_cosine=LEAST)
    assert "\n" not in str(error.value)


def test_tables_get_the_columns_and_only_of_files_that_have_them(path, old, tmp_path):
    given = pd.read_parquet(table(tmp_path / "t.parquet"))
    made = Latents([path]).full_table(given.assign(cosine=7.0))
    assert list(made) == ["pp_file", "pp_type", "pp_idx", "DT", "clear", "cosine", "cosine_low"]
    assert (made["clear"].to_numpy()[:MASKED][3:] == 0.75).all()
    assert np.isnan(made["cosine"][:3]).all() and made["cosine_low"][119] == 1
    assert not {"clear", "cosine_low"} & set(Latents([old]).full_table(given))
    both = Latents([path, old])
    assert np.isnan(both.clearness()["cosine_low"][ROWS:]).all(), "unknown"
    assert np.isnan(both.clearness(np.array([-1]))["clear"]).all()


def test_a_column_of_another_length_is_refused(path):
    with h5py.File(path, "a") as file:
        del file["train_cosine_low"]
        file["train_cosine_low"] = np.ones(5, np.float32)
    with pytest.raises(InputFileError, match="expected 120 floating-point numbers"):
        Latents([path], least_cosine=LEAST)


def test_drawn_latents_have_the_calibrated_cosines():
    rows = np.repeat(latents(3, 5), 400, axis=0) * 2
    rows += 1e-6 * np.random.default_rng(0).standard_normal(rows.shape).astype(np.float32)  # each draws for itself
    cosine, low = np.full(len(rows), 0.95, np.float32), np.full(len(rows), 0.8, np.float32)
    for directions in (None, latents(50, 8)):
        drawn = drawn_latents(rows, cosine, low, directions, latents(200, 6))
        assert drawn.shape == (1200, DRAWS, 32)
        assert np.linalg.norm(drawn, axis=-1) == pytest.approx(
            np.linalg.norm(rows, axis=-1)[:, None].repeat(DRAWS, 1), rel=1e-5
        )
        found = (drawn * rows[:, None]).sum(axis=-1) / np.linalg.norm(rows, axis=-1)[:, None] ** 2
        assert np.quantile(found, [0.5, 0.05]) == pytest.approx([0.95, 0.8], abs=0.01)
        assert (drawn_latents(rows[7:8], cosine[:1], low[:1], directions, latents(200, 6)) == drawn[7]).all()


def test_places_have_error_bars(path, tmp_path):
    source, given = Latents([path]), pd.read_parquet(table(tmp_path / "t.parquet"))
    embed_table(source, given, tmp_path / "out.parquet", Fit(n_neighbors=5), tmp_path / "map.h5")
    made = pd.read_parquet(tmp_path / "out.parquet").sort_values("pp_idx")
    spread = made["umap_spread"].to_numpy()
    assert (spread[MASKED:] == 0).all() and np.isnan(spread[:3]).all()
    assert (spread[3:MASKED] > 0).all()
    assert spread[3:8].mean() > 2 * spread[MASKED - 5 : MASKED].mean(), "the lower the cosine, the longer the bar"
    assert np.isfinite(made["US0"]).all()
    how = {"how": tmp_path / "map.h5", "directions": latents(9, 4)}
    embed_table(source, given[:50], tmp_path / "own.parquet", **how)
    own = pd.read_parquet(tmp_path / "own.parquet")
    assert not np.allclose(own["umap_spread"], pd.read_parquet(tmp_path / "out.parquet")["umap_spread"][:50])


def test_old_files_have_the_columns_they_had(old, tmp_path):
    given = pd.read_parquet(table(tmp_path / "t.parquet")).assign(pp_file="old.h5")
    with h5py.File(old, "a") as file:
        del file.attrs["source"]
    embed_table(Latents([old]), given, tmp_path / "out.parquet", Fit(n_neighbors=5))
    assert list(pd.read_parquet(tmp_path / "out.parquet")) == ["pp_file", "pp_type", "pp_idx", "DT", "US0", "US1"]


def test_embed_clusters_and_statistics_leave_out_and_count(path, tmp_path, nenya_cli):
    given = table(tmp_path / "t.parquet")
    shared = [path, f"table={given}", f"least_cosine={LEAST}"]
    code, said = nenya_cli("embed", [*shared, "out=e.parquet", "n_neighbors=5"])
    assert code == 0 and "left out 13 of 120 rows" in said and "placed 107 of 120 rows" in said, said
    code, said = nenya_cli("clusters", [*shared, "out=c.parquet", "k=3"])
    assert code == 0, said
    made = pd.read_parquet(tmp_path / "c.parquet").sort_values("pp_idx")
    assert (made["cluster"][made["pp_idx"] < 13] == -1).all() and (made["cluster"][made["pp_idx"] >= 13] >= 0).all()
    assert {"clear", "cosine", "cosine_low"} <= set(made)
    code, said = nenya_cli("statistics", ["table=e.parquet", f"least_cosine={LEAST}", "where=DT > 0", "metrics=[DT]"])
    assert code == 0 and "107 of 107 rows" in said, said
    code, said = nenya_cli("statistics", [f"table={given}", f"least_cosine={LEAST}", "where=DT > 0", "metrics=[DT]"])
    assert code == 2 and "has no column cosine_low" in said and said.count("\n") == 1


def test_metrics_say_what_they_left_out(path, tmp_path, nenya_cli):
    code, said = nenya_cli("metrics", [path, f"least_cosine={LEAST}", "out=m", "coefficients=false"])
    assert code == 0, said
    found = json.loads((tmp_path / "m" / "a_preproc_latents_metrics.json").read_text())
    assert found["clearness"]["rows_below_least_cosine"] == 13 and found["nonfinite_rows"] == 13
    assert found["clearness"]["clear"] == 1


def test_search_says_which_order_is_not_sure(path, old, tmp_path, nenya_cli):
    given = table(tmp_path / "t.parquet")
    code, said = nenya_cli("search", [path, f"table={given}", "like=train:100", "k=119", "out=s.csv"])
    made = pd.read_csv(tmp_path / "s.csv")
    assert code == 0 and "results is not sure" in said, said
    assert (made["cosine_least"] <= made["cosine"]).all() and (made["cosine"] <= made["cosine_most"]).all()
    clear = made["cosine_low"] == 1
    assert (made["cosine_least"][clear] == made["cosine_most"][clear]).all()
    assert not made["order_sure"][~clear].any() or made["order_sure"].any()
    assert {"cosine_clear", "clear"} <= set(made) and made["cosine"].is_monotonic_decreasing
    code, said = nenya_cli("search", [path, "like=train:100", "k=119", f"least_cosine={LEAST}", "out=l.csv"])
    assert code == 0 and len(pd.read_csv(tmp_path / "l.csv")) == 119 - 13 and "left out 13 of 120" in said
    code, said = nenya_cli("search", [old, "like=train:100", "k=3", "out=o.csv"])
    assert code == 0 and "order_sure" not in pd.read_csv(tmp_path / "o.csv") and "not sure" not in said
    code, said = nenya_cli("search", [old, "like=train:100", f"least_cosine={LEAST}"])
    assert code == 2 and "no such data set" in said


def test_an_index_knows_the_cosine(path, old, tmp_path, nenya_cli):
    assert nenya_cli("index", [path, "out=index"])[0] == 0
    code, said = nenya_cli("search", ["index=index", "like=train:100", "k=119", f"least_cosine={LEAST}", "out=l.csv"])
    made = pd.read_csv(tmp_path / "l.csv")
    assert code == 0 and len(made) == 119 - 13 and "left out 13 of 120 rows" in said, said
    assert (made["cosine_low"] >= LEAST).all()
    assert nenya_cli("index", [old, "out=other"])[0] == 0
    code, said = nenya_cli("search", ["index=other", "like=train:100", f"least_cosine={LEAST}"])
    assert code == 2 and "has no column cosine_low" in said and said.count("\n") == 1


def test_intervals_hold_the_cosine_of_the_clear_cutout():
    rng = np.random.default_rng(0)
    query, rows = latents(1, 3)[0].astype(float), latents(500, 4).astype(float)
    low = rng.uniform(0.5, 1, 500)
    across = rng.standard_normal(rows.shape)
    across -= (across * rows).sum(axis=1, keepdims=True) * rows
    across /= np.linalg.norm(across, axis=1, keepdims=True)
    clear = low[:, None] * rows + np.sqrt(1 - low**2)[:, None] * across
    least, most = intervals(rows @ query, low)
    assert ((least <= clear @ query + 1e-9) & (clear @ query <= most + 1e-9)).all()
    assert intervals(np.array([0.3]), np.array([np.nan])) == (pytest.approx(-1), pytest.approx(1))
    assert (np.array(intervals(np.array([0.3]), np.array([1.0]))) == 0.3).all()


def test_order_is_sure_where_no_intervals_overlap():
    least, most = np.array([0.9, 0.7, 0.6, 0.5, 0.5]), np.array([0.95, 0.8, 0.75, 0.5, 0.5])
    assert sure(least, most).tolist() == [True, False, False, True, True]
    found = pd.DataFrame({"rank": [1, 2], "cosine": [0.9, 0.89], "cosine_low": [0.99, 1.0]})
    made = with_order(found.copy())
    assert list(made)[:5] == ["rank", "cosine", "cosine_least", "cosine_most", "order_sure"]
    assert "the order of 2 of 2 results is not sure (rank 1, 2)" in order_line(made)
    assert order_line(with_order(found.assign(cosine_low=1.0))) == ""
    assert not with_order(found.assign(cosine_low=1.0), query_low=0.9)["order_sure"].any(), "the example is masked"
