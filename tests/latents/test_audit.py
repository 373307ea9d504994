"""What latents tell of a table: planted nuisances, those in the table only, copied granules, and leaks of the split."""

import json
import re
import signal
import subprocess
import sys
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
from latent_sets import latents
from portal_data import write_archive
from sklearn.metrics import roc_auc_score

from nenya.errors import InputFileError, OptionError
from nenya.io import read_table, write_table
from nenya.latents.audit import audit, latent_features
from nenya.latents.audit_columns import kind_of, targets_of
from nenya.latents.nearest import Identity
from nenya.latents.probes import Features, Probe, Target, as_target, exchanges, p_value, score
from nenya.latents.shares import neighbour_shares
from nenya.storage.kept import Kept

ROWS, GRANULE = 600, 20


def table_of(rows=ROWS, seed=0):
    """A table whose columns have nothing to do with latents; sensors are those of granules."""
    rng = np.random.default_rng(seed)
    granule = np.arange(rows) // GRANULE
    return pd.DataFrame(
        {
            "granule": [f"g{number}" for number in granule],
            "sensor": np.array(["VIIRS", "MODIS"])[rng.integers(0, 2, granule[-1] + 1)[granule]],
            "DT": rng.gamma(2, 0.5, rows),
            "slope": rng.normal(size=rows),
            "pp_file": "a_preproc.h5",
            "pp_type": 1,
            "pp_idx": np.arange(rows),
        }
    )


def findings(x, table, **more):
    found = audit(x, table, visible=False, permutations=99, **more)
    return {one.name: one for one in found.findings}


def test_a_planted_nuisance_is_found_and_one_of_the_table_alone_is_not():
    table = table_of()
    x = latents(ROWS, 1)
    of_the_table = findings(x, table, columns=["sensor"])["sensor"]
    assert not of_the_table.found and of_the_table.scores["granule"].p > 0.01
    assert of_the_table.verdict.startswith("latents do not tell the sensor: AUC 0.")
    moved = x + 0.1 * (table["sensor"] == "VIIRS").to_numpy()[:, None] * np.random.default_rng(5).standard_normal(32)
    planted = findings(moved, table, columns=["sensor"])["sensor"]
    own = planted.scores["granule"]
    assert planted.found and own.low > 0.8 and own.low <= own.value <= own.high and own.shuffled < 0.6
    assert (
        planted.verdict
        == f"latents tell the sensor: AUC {own.value:.2f} ({planted.contrast:.2f} from DT and slope alone)"
    )
    assert 0.3 < planted.contrast < 0.7


def test_folds_by_granule_change_the_verdict_where_granules_are_copied():
    x = latents(ROWS // GRANULE, 1)[np.arange(ROWS) // GRANULE]
    x = x + 1e-3 * np.random.default_rng(0).standard_normal(x.shape).astype(np.float32)
    told = 0
    for seed in range(1, 4):
        table = table_of(seed=seed)
        copied = findings(x, table, columns=["sensor"])["sensor"]
        assert copied.scores["rows"].value > 0.99  # each row's copies are in the other folds
        assert copied.scores["granule"].value < 0.9
        told += copied.found
        without = findings(x, table.drop(columns="granule"), columns=["sensor"])["sensor"]
        assert without.main == "rows" and without.found
    assert told == 0


def test_columns_that_should_be_told_are_told_and_numbers_are_scored_by_r2():
    table, x = table_of(), latents(ROWS, 1)
    table["DT"] = np.exp(3 * x[:, 3])
    table["lon"] = np.degrees(np.arctan2(x[:, 4], x[:, 5]))
    found = findings(x, table)
    assert {"sensor", "DT", "slope", "lon", "pp_idx"} == set(found)
    assert found["DT"].found and found["DT"].scores["granule"].value > 0.8 and found["DT"].measure == "R2"
    assert found["DT"].contrast < 0.1  # from the slope alone: a column does not tell itself
    assert found["DT"].verdict.endswith("from slope alone)") and found["slope"].verdict.endswith("from DT alone)")
    assert found["lon"].found and not found["slope"].found
    assert (found["DT"].kind, found["sensor"].kind, kind_of("note")) == ("ocean", "nuisance", "other")


def test_the_order_of_columns_changes_nothing():
    table, x = table_of(), latents(ROWS, 1)
    one = findings(x, table, columns=["sensor", "DT"])
    other = findings(x, table[table.columns[::-1]], columns=["sensor", "DT"])
    for name in one:
        for kind, made in one[name].scores.items():
            np.testing.assert_equal(vars(other[name].scores[kind]), vars(made))


def test_p_values_under_the_null_are_not_too_small():
    rng = np.random.default_rng(0)
    rows, blocks = 300, np.arange(300) // 10
    features = Features(rng.standard_normal((rows, 3)), rng.standard_normal((rows, 3)))
    near = Features(features.near[blocks], features.linear[blocks] + 0.01 * rng.standard_normal((rows, 3)))
    probe = Probe(near, blocks % 5)
    found = []
    for seed in range(40):
        of_blocks = np.random.default_rng(seed).integers(0, 2, 30)[blocks].astype(float)
        made = score(probe, Target(of_blocks[:, None], True), blocks, permutations=59, seed=seed)
        found.append(made.p)
    assert 0.3 < np.mean(found) < 0.7 and np.mean(np.array(found) < 0.1) < 0.25


def test_probes_against_slow_references():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((200, 4))
    features, fold = Features(x, x), np.arange(200) % 5
    y = (x[:, 0] + 0.5 * rng.standard_normal(200) > 0).astype(float)
    probe = Probe(features, fold, k=7)
    knn, linear = probe.predict(y[:, None])
    expected, wins, pairs = np.empty(200), 0.0, 0
    for i in range(200):
        others = np.flatnonzero(fold != fold[i])
        nearest = others[np.argsort(((x[others] - x[i]) ** 2).sum(axis=1))[:7]]
        expected[i] = y[nearest].mean()
    np.testing.assert_allclose(knn[:, 0], expected)
    for name in range(5):
        rows = fold == name
        number = y[rows].sum() * (1 - y[rows]).sum()
        wins, pairs = wins + number * roc_auc_score(y[rows], linear[rows, 0]), pairs + number
    made = score(probe, Target(y[:, None], True), np.arange(200), permutations=50)
    assert made.linear == pytest.approx(wins / pairs) and made.value == max(made.knn, made.linear)
    assert made.low < made.value < made.high and made.p < 0.02
    order = exchanges(np.repeat(np.arange(40), 5), 3, rng)
    assert (np.sort(order, axis=1) == np.arange(200)).all()
    assert (order.reshape(3, 40, 5) // 5 == order.reshape(3, 40, 5)[:, :, :1] // 5).all()  # blocks stay together
    assert p_value(0.9, np.full(30, 0.5)) == pytest.approx(1 / 31) and p_value(0.1, rng.random(99)) > 0.5


def test_columns_that_cannot_be_probed_say_why():
    rows = 100
    assert as_target(pd.Series(["a"] * rows)) == "one value"
    assert as_target(pd.Series([None] * rows, dtype=object)) == "no value"
    assert as_target(pd.Series([f"n{i}" for i in range(rows)])).startswith("100 different values, expected numbers or")
    assert as_target(pd.Series(["a"] * 95 + ["b"] * 5)) == "fewer than 20 rows of a second value"
    target, known = as_target(pd.Series([1.5, np.inf, None, *np.arange(97.0)]))
    assert not target.classes and known.sum() == 98 and 0 < target.values.min() < target.values.max() < 1
    lists = pd.Series([[1, 2], [3]] * 50)
    assert as_target(lists)[0].classes
    target, _ = as_target(pd.Series([True, False] * 50))
    assert target.classes and target.values.shape == (100, 1)


def test_every_kind_of_column_has_a_target():
    rows = 240
    number, half = np.arange(rows), rows // 2
    table = pd.DataFrame(
        {
            "truth": pd.array([True, False, None] * 80, dtype="boolean"),
            "level": pd.array([*range(12)] * 20, dtype="Int64"),
            "kind": pd.Categorical(["a", "b", "c"] * 80),
            "passed": pd.to_timedelta(number, "h"),
            "made_at": [f"2012-01-{1 + i % 28:02d}T00:00:{i % 60:02d}" for i in number],
            "month": 1 + number % 12,
            "gap": np.where(number < half, np.nan, number),
            "mixed": np.array([None, 3, 2.5] * 80, object),
            "latitude": number / 4.0,
            "longitude": number * 1.5,
            "time": pd.Timestamp("2012-01-01") + pd.to_timedelta(number * 7, "h"),
            "view_azimuth": number * 1.5 - 180,
            "true_orientation": number % 180,
            "months_since": number,
            "comment": [f"c{i}" for i in number],
        }
    )
    found, left_out = targets_of(table)
    assert set(left_out) == {"comment"}
    classes = {name for name, (target, _) in found.items() if target.classes}
    assert classes == {"truth", "level", "kind", "mixed"} and found["level"][0].values.shape[1] <= 12
    circles = {name for name, (target, _) in found.items() if target.values.shape[1] == 2 and not target.classes}
    assert circles == {"month", "longitude", "view_azimuth", "true_orientation", "season", "hour"}
    january, july, december = (found["month"][0].values[i] for i in (0, 6, 11))
    assert np.linalg.norm(january - december) < 0.6 < 1.9 < np.linalg.norm(january - july)
    assert found["truth"][1].sum() == 160 and found["gap"][1].sum() == half
    assert np.ptp(found["passed"][0].values) > 0.99 and found["made_at"][0].values.shape == (rows, 1)
    assert set(targets_of(table, ["time"])[0]) == {"season", "hour", "day"}


def test_columns_with_gaps_are_audited_where_they_are_known():
    table, x = table_of(), latents(ROWS, 1)
    rng = np.random.default_rng(0)
    some = rng.random(ROWS) < 0.7
    table["gap"] = np.where(some, x[:, 3], np.nan)
    table["infinite"] = np.where(some, x[:, 3], np.inf)
    table["flag"] = pd.array(np.where(some, x[:, 3] > np.median(x[:, 3]), None), dtype="boolean")
    table["single"] = np.where(np.arange(ROWS) < GRANULE, np.arange(ROWS) + 0.5, np.nan)  # of one granule
    names = ["gap", "infinite", "flag", "single"]
    made = audit(x, table, columns=names, visible=False, permutations=99)
    found = {one.name: one for one in made.findings}
    assert set(found) == {"gap", "infinite", "flag"} and "in one granule each" in made.left_out["single"]
    assert all(one.found and one.rows == some.sum() for one in found.values())
    alone = findings(x[some], table[some].reset_index(drop=True), columns=["gap"])["gap"]
    assert found["gap"].scores["rows"].value == pytest.approx(alone.scores["rows"].value, abs=0.05)


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("nuisance", "sensor ViewAngle clear_fraction cloudy ulmo_pp_idx pp_type row cols day hour granule noise_level "
         "true_noise swath_position scan_line land_km filename orbit split x satellite_azimuth quality_level"),
        ("ocean", "DT true_slope lat latitude lon season month day_of_year mean_temperature sst_mean T10 region depth"),
        ("other", "note wind growth profile arrow island_name LL"),
    ],
)  # fmt: skip
def test_kinds_of_columns(kind, names):
    assert {name: kind_of(name) for name in names.split()} == dict.fromkeys(names.split(), kind)


def test_the_order_of_rows_changes_nothing():
    table, x = table_of(), latents(ROWS, 1)
    table["DT"] = x[:, 3]
    order = np.random.default_rng(0).permutation(ROWS)
    one, other = (
        findings(x[rows], table.iloc[rows].reset_index(drop=True), columns=["sensor", "DT"], sample=300)
        for rows in (np.arange(ROWS), order)
    )
    for name in one:
        for kind, made in one[name].scores.items():
            np.testing.assert_equal(vars(other[name].scores[kind]), vars(made))


def test_finished_columns_are_kept(tmp_path):
    table, x = table_of(), latents(ROWS, 1)
    whole = findings(x, table, columns=["sensor", "DT"])
    done = []

    class Broken(Kept):
        def put(self, name, value):
            super().put(name, value)
            done.append(name)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        findings(x, table, columns=["sensor", "DT"], kept=Broken(tmp_path / "kept"))
    with (tmp_path / "kept").open("ab") as file:
        file.write(b'\n["half a li')
    kept = Kept(tmp_path / "kept")
    assert len(kept) == len(done) == 1
    again = findings(x, table, columns=["sensor", "DT"], kept=kept)
    assert len(kept) == 2
    for name in whole:
        np.testing.assert_equal(asdict(again[name]), asdict(whole[name]))
    kept = Kept(tmp_path / "kept")
    findings(x + 0.01, table, columns=["DT"], kept=kept)
    assert len(kept) == 3, "other latents have results of their own"


KILLED = """
import os, signal
from nenya.cli import main
from nenya.storage.kept import Kept

put, done = Kept.put, []

def killed_after_three(self, name, value):
    put(self, name, value)
    done.append(name)
    if len(done) == 3:
        os.kill(os.getpid(), signal.SIGKILL)

Kept.put = killed_after_three
main()
"""


def test_a_killed_audit_resumes(archive, nenya_cli, tmp_path):
    table, vectors, _ = archive
    args = [vectors, f"table={table}", "permutations=19"]
    assert nenya_cli("audit", [*args, "out=whole"])[0] == 0
    process = subprocess.run([sys.executable, "-c", KILLED, "audit", *map(str, args), "out=killed"], cwd=tmp_path)
    assert process.returncode == -signal.SIGKILL
    assert [path.name for path in (tmp_path / "killed").iterdir()] == ["audit.partial"]
    code, said = nenya_cli("audit", [*args, "out=killed"])
    assert code == 0 and re.search(r"resuming: 3 of \d+ columns are already audited", said), said
    assert sorted(path.name for path in (tmp_path / "killed").iterdir()) == ["audit.csv", "audit.html", "audit.json"]
    for name in ("audit.json", "audit.csv"):
        assert (tmp_path / "killed" / name).read_text() == (tmp_path / "whole" / name).read_text()


def test_the_column_split_counts_before_the_partitions(archive, nenya_cli, tmp_path):
    table, vectors, _ = archive
    frame = read_table(table)
    frame["split"] = np.where(np.arange(300) % 2, "train", "valid")  # each granule on both sides
    write_table(frame, table)
    args = [vectors, f"table={table}", "permutations=19", "columns=[T90]"]
    assert nenya_cli("audit", [*args, "out=a"])[0] == 0
    split = json.loads((tmp_path / "a" / "audit.json").read_text())["neighbours"]["split"]
    assert split["valid_rows"] in (149, 150) and split["granule_in_train"] == 1


def test_an_untrained_network_is_compared():
    table, x = table_of(), latents(ROWS, 1)
    other = np.random.default_rng(0).standard_normal((ROWS, 8))
    table["DT"] = x[:, 3]
    found = findings(x, table, columns=["DT"], untrained=lambda rows: other[rows])["DT"]
    assert found.scores["granule"].value > 0.8 > 0.2 > found.untrained
    assert "from an untrained network" in found.verdict
    assert latent_features(x, np.arange(50)).linear.shape == (50, 5)


def test_neighbours_of_the_same_granule_copies_and_the_split():
    rng = np.random.default_rng(0)
    x, granule = latents(400, 1), np.arange(400) // 20
    own = Identity(np.arange(400), granule)
    valid = np.zeros(400, bool)
    valid[:100] = True
    random = neighbour_shares(x, own, valid, visible=False, duplicate=0.99999)
    assert random["same_granule"]["p"] > 0.001 and random["same_granule"]["chance"] == pytest.approx(19 / 399, abs=0.01)
    assert random["split"]["granule_in_train"] == 0 and random["split"]["duplicate_in_train"] == 0
    assert random["split"]["nearest_in_train"] == pytest.approx(0.75, abs=0.15)
    copied = x.copy()
    copied[100:150] = x[:50] * 2  # half of the validation set is in train
    found = neighbour_shares(copied, own, valid, visible=False, duplicate=0.99999)
    assert found["split"]["duplicate_in_train"] == 0.5 and found["duplicates"]["other_granule"] == pytest.approx(0.25)
    mixed = neighbour_shares(x, own, rng.random(400) < 0.3, visible=False)
    assert mixed["split"]["granule_in_train"] == 1
    near = x[granule * 20] + 1e-3 * rng.standard_normal(x.shape)
    assert neighbour_shares(near, own, None, visible=False)["same_granule"]["value"] == 1


@pytest.fixture
def archive(tmp_path):
    return write_archive(tmp_path)


def test_the_command(archive, nenya_cli, tmp_path):
    table, vectors, _ = archive
    frame = read_table(table)
    rng = np.random.default_rng(0)
    frame["sensor"] = np.array(["<b>A</b>", "B"])[rng.integers(0, 2, 60)[np.arange(300) // 5]]
    write_table(frame, table)
    args = [vectors, f"table={table}", "out=audit", "permutations=19"]
    code, said = nenya_cli("audit", args)
    assert code == 0, said
    results = json.loads((tmp_path / "audit" / "audit.json").read_text())
    columns = {column["column"]: column for column in results["columns"]}
    assert {"sensor", "lat", "lon", "season", "day", "T90", "pp_idx", "pp_type", "region"} <= set(columns)
    assert not columns["sensor"]["found"] and {"granule", "time", "place", "rows"} <= set(columns["sensor"]["folds"])
    assert results["left_out"]["US0"] == "made of the latents"
    text = (tmp_path / "audit" / "audit.html").read_text()
    lines = [line for kind in results["verdicts"].values() for line, _ in kind]
    first = text.index("<li")
    assert all(line.replace("<", "&lt;") in text for line in lines) and first < text.index("<table")
    assert "<b>A" not in text and "latents do not tell the sensor" in said
    assert sorted(read_table(tmp_path / "audit" / "audit.csv")["column"]) == sorted(columns)
    code, said = nenya_cli("audit", args)
    assert code == 2 and "clobber=true" in said


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["table="], "table"),
        ([], "expected table="),
        (["table=a.parquet", "columns=[senor]"], "columns=senor: expected columns of the table"),
        (["table=a.parquet", "images=a_preproc.h5"], "give ckpt= or model="),
        (["table=a.parquet", "ckpt=last.pth"], "needs images="),
        (["table=a.parquet", "out=page.html"], "expected a folder"),
        (["table=a.parquet", "columns=[US0,3]"], "columns"),
        (["table=a.parquet", "permutations=2"], "permutations=2"),
    ],
)
def test_what_cannot_be_right_is_refused_in_one_line(args, words, archive, nenya_cli, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    code, said = nenya_cli("audit", [archive[1], *args])
    assert code == 2 and words in said.splitlines()[-1], said
    assert sorted(tmp_path.rglob("*")) == before


def test_too_few_rows_and_columns_that_do_not_exist():
    with pytest.raises(InputFileError, match="at least 50 rows with a latent for an audit, got 40"):
        audit(latents(40, 1), table_of(40), visible=False)
    with pytest.raises(OptionError, match="columns=where"):
        audit(latents(ROWS, 1), table_of(), columns=["where"], visible=False)
    with pytest.raises(InputFileError, match="expected a table with columns to audit"):
        audit(latents(ROWS, 1), table_of()[["pp_file", "pp_type", "granule"]].assign(pp_idx=0), visible=False)


@pytest.mark.slow
def test_false_alarms_are_as_rare_as_stated():
    """One column in twenty that has nothing to do with the latents has p < 0.05, of classes and of numbers."""
    x, p = latents(ROWS, 1), []
    for seed in range(20):
        rng, table = np.random.default_rng(seed), table_of(seed=seed + 100)
        table["number"] = rng.standard_normal(ROWS // GRANULE)[np.arange(ROWS) // GRANULE]
        found = findings(x, table, columns=["sensor", "number"])
        assert sum(one.found for one in found.values()) <= 2
        p += [one.scores["granule"].p for one in found.values()]
    assert np.mean(np.array(p) < 0.05) < 0.16 and 0.35 < np.mean(p) < 0.65


@pytest.mark.slow
def test_noise_of_one_sensor_in_the_cutouts_is_found(nenya_cli, tmp_path):
    """0.1 K of white noise in the cutouts of one sensor, seen through an untrained network; another is in the table."""
    import h5py
    import torch

    from nenya.commands.compose import compose
    from nenya.latents_extraction import calc_latent
    from nenya.models.contrastive import ContrastiveModule, make_net

    code, said = nenya_cli("generate", ["size=32", "n_train=1200", "n_valid=2", "clouds=0", "out=sea_preproc.h5"])
    assert code == 0, said
    table = read_table(tmp_path / "sea_preproc.parquet")
    table = table[table["pp_type"] == 1].reset_index(drop=True)
    with h5py.File(tmp_path / "sea_preproc.h5") as file:
        cutouts = file["train"][:, 0]
    table["granule"], rng = table["filename"], np.random.default_rng(0)
    own, number = pd.factorize(table["granule"])[0], table["granule"].nunique()
    table["sensor"], table["satellite"] = (np.array(["A", "B"])[rng.integers(0, 2, number)[own]] for _ in range(2))
    cutouts = cutouts + 0.1 * (table["sensor"] == "B").to_numpy()[:, None, None] * rng.standard_normal(cutouts.shape)
    images = torch.from_numpy((cutouts - cutouts.mean(axis=(1, 2), keepdims=True)).astype(np.float32))[:, None]
    options = compose("extract", ["model=demo"])
    net = ContrastiveModule(options, make_net(options), trained=False)
    x = np.concatenate([calc_latent(net, part, False) for part in images.split(200)])
    found = findings(x, table, columns=["sensor", "satellite"])
    assert found["sensor"].found and found["sensor"].scores["granule"].low > 0.55, found["sensor"].verdict
    assert found["sensor"].contrast < 0.65 and not found["satellite"].found, found["satellite"].verdict


def test_images_are_compared_with_an_untrained_network_of_the_same_kind(archive, nenya_cli, tmp_path, tiny_weights):
    table, vectors, cutouts = archive
    args = [vectors, f"table={table}", f"images={cutouts}", f"ckpt={tiny_weights}", "columns=[T90]", "permutations=19"]
    code, said = nenya_cli("audit", [*args, "out=a"])
    assert code == 2 and "expected a network with latents of 12 dimensions, as in the file, got 64" in said
    assert not (tmp_path / "a").exists()
    code, said = nenya_cli("audit", [*args, "model=demo", "model.feat_dim=12", "out=b"])
    assert code == 0 and "from an untrained network" in said, said
    assert json.loads((tmp_path / "b" / "audit.json").read_text())["columns"][0]["untrained"] is not None
    args = [arg for arg in args if not str(arg).startswith("ckpt=")]
    code, said = nenya_cli("audit", [*args, "out=c"])
    assert code == 2 and "images= needs the kind of network that made the latents: give ckpt= or model=" in said
    code, said = nenya_cli("audit", [*args, "model=demo", "model.feat_dim=12", "out=c"])
    assert code == 0 and "from an untrained network" in said, said


@pytest.mark.parametrize(
    ("columns", "args", "words"),
    [
        ({"lat": 100.0}, ["columns=[T90]"], "expected lat from -90 to 90 degrees, got 100"),
        ({"datetime": "yesterday"}, ["columns=[T90]"], "expected dates such as 2012-03-01T12:00"),
        ({}, ["columns=[T90]", "k=2000"], "k=2000: expected fewer than the rows of a probe"),
        ({"T90": [1.0] * 5 + [None] * 100_000}, ["columns=[T90]"], "expected a table with columns to audit"),
        ({}, ["columns=[]"], "columns=[]: expected a list of columns"),
    ],
)
def test_what_cannot_be_audited_is_refused_in_one_line(columns, args, words, archive, nenya_cli, tmp_path):
    table, vectors, *_ = archive
    frame = read_table(table)
    for name, value in columns.items():
        frame[name] = value[: len(frame)] if isinstance(value, list) else value
    write_table(frame, tmp_path / "wrong.parquet")
    before = sorted(tmp_path.rglob("*"))
    code, said = nenya_cli("audit", [str(vectors), "table=wrong.parquet", "permutations=19", "out=o", *args])
    assert code == 2 and words in said.splitlines()[-1], said
    assert sorted(tmp_path.rglob("*")) == before
