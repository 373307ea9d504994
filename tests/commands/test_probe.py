"""`nenya probe`: several models side by side, baselines of the images, archives, and input that cannot be right."""

import json

import h5py
import numpy as np
import pandas as pd
import pytest
from conftest import red_noise, write_cutouts
from portal_data import DIM, write_archive

from nenya.io import read_table, write_table
from nenya.latents.projector import Projector


@pytest.fixture
def files(tmp_path):
    """Latents a of 300 cutouts and b without the last 20 of valid, cutouts, and their table."""
    table, vectors, _ = write_archive(tmp_path)
    frame = read_table(table)
    with h5py.File(vectors) as file:
        x = np.concatenate([file["train"][()], file["valid"][()]])
    rng = np.random.default_rng(0)
    frame["known"] = 3 * x[:, 1] + 0.01 * rng.standard_normal(300)
    frame["kind"] = np.where(np.nan_to_num(x[:, 2]) > 0, "up", "down")
    frame["constant"], frame["empty"], frame["one"] = 1.0, np.nan, "x"
    frame["filled"] = np.where(np.arange(300) % 9 == 0, 9.96921e36, rng.random(300))
    frame["apart"] = np.where(np.arange(300) < 12, rng.random(300), np.nan)
    write_table(frame, table)
    (tmp_path / "b").mkdir()
    with h5py.File(tmp_path / "b" / "a_preproc_latents.h5", "w") as file:
        file["train"] = rng.standard_normal((240, 5)).astype(np.float32)
        file["valid"] = rng.standard_normal((40, 5)).astype(np.float32)
    return tmp_path


A, B, TABLE = "a_preproc_latents.h5", "b/a_preproc_latents.h5", "table=a.parquet"


def probe(nenya_cli, folder, *args):
    """Run the command; what it wrote and said."""
    code, said = nenya_cli("probe", [*args, "out=p", "clobber=true"])
    assert code == 0, said
    return json.loads((folder / "p" / "probe.json").read_text()), said


def test_models_stand_side_by_side(files, nenya_cli):
    results, said = probe(nenya_cli, files, A, B, TABLE, "columns=[known,kind,lon]", "names=[own,noise]")
    assert list(results["columns"]) == ["known", "kind", "lon"] and not results["left_out"]
    known, kind = results["columns"]["known"], results["columns"]["kind"]
    assert list(known) == ["own", "noise"] and set(known["own"]) == {"linear", "knn"}
    own, noise = known["own"]["linear"], known["noise"]["linear"]
    assert own["metric"] == "R2" and own["low"] > 0.9 and noise["low"] <= 0 < own["n"] == 279  # one is NaN
    assert {"value", "low", "high", "metric", "n", "folds", "shuffled"} <= set(own) and own["folds"] == 5
    assert kind["own"]["linear"]["metric"] == "balanced accuracy" and kind["own"]["linear"]["low"] > 0.8
    assert kind["noise"]["knn"]["low"] < 0.5 < kind["noise"]["knn"]["high"] and kind["own"]["knn"]["auc"] > 0.9
    assert results["made_by"]["by"] == "granule" and results["made_by"]["rows of all models"] == 280
    assert "280 of 300 rows have a latent of every model" in said and "1 of 280 rows are left out" in said
    assert "noise: placed 280 of 300 rows" in said and "known (R2, 279 rows, 56 blocks)" in said
    frame = read_table(files / "p" / "probe.csv")
    assert len(frame) == 12 and set(frame["model"]) == {"own", "noise"}
    assert (files / "p" / "probe.png").read_bytes()[:4] == b"\x89PNG"
    page = (files / "p" / "probe.html").read_text()
    assert "<p>known: own " in page and "data:image/png" in page and "<td>noise</td>" in page
    code, said = nenya_cli("probe", [A, TABLE, "out=p"])
    assert code == 2 and "clobber=true" in said


def test_the_order_of_rows_and_names_of_columns_change_nothing(files, nenya_cli):
    args = [f"latents=[{A},{B}]", "columns=[known,kind,datetime]", "names=[own,noise]", "sample=200"]
    one, _ = probe(nenya_cli, files, *args, TABLE)
    assert one["made_by"]["rows"] == 200 and {"season", "day"} <= set(one["columns"])
    frame = read_table(files / "a.parquet").sample(frac=1, random_state=3)
    write_table(frame, files / "other.csv")
    other, _ = probe(nenya_cli, files, *args, "table=other.csv")
    assert one["columns"] == other["columns"] and one["made_by"] == other["made_by"]


def test_all_columns_but_keys_are_taken_by_default(files, nenya_cli):
    results, said = probe(nenya_cli, files, A, TABLE, "by=rows", "shuffles=1", "sample=150")
    assert {"known", "kind", "lat", "lon", "T10", "T90", "region", "day"} <= set(results["columns"])
    assert {"constant", "empty", "one", "filled", "US0"} <= set(results["left_out"])
    assert "empty is not probed: no value" in said
    assert not {"pp_idx", "pp_type"} & {*results["columns"], *results["left_out"]}


@pytest.mark.parametrize(
    ("by", "folds"), [("granule", 5), ("time", 5), ("place", 5), ("partition", 1), ("rows", 5), ("region", 2)]
)
def test_folds(by, folds, files, nenya_cli):
    frame = read_table(files / "a.parquet")
    frame["region"] = frame["lat"].round(-1).astype(str)
    write_table(frame, files / "a.parquet")
    results, _ = probe(nenya_cli, files, A, TABLE, "columns=[known]", f"by={by}", "shuffles=1")
    own = results["columns"]["known"][A.removesuffix(".h5")]
    assert own["linear"]["folds"] == own["knn"]["folds"] == (5 if by == "region" else folds)
    assert own["linear"]["low"] > 0.9 and own["linear"]["n"] == (60 if by == "partition" else 299)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "expected table="),
        (["table=a.parquet", "latents="], "expected latents="),
        ([TABLE, "columns=[knwon]"], "columns=knwon; did you mean known?: expected columns of the table"),
        ([TABLE, "columns=[season2]"], "columns=season2"),
        ([TABLE, "columns=[known,constant]"], "columns=constant: cannot be probed: one value"),
        ([TABLE, "columns=[empty]"], "columns=empty: cannot be probed: no value"),
        ([TABLE, "columns=filled"], "columns=filled: cannot be probed: it has values beyond 1e+30"),
        ([TABLE, "columns=[one]"], "columns=one: cannot be probed: one value"),
        ([TABLE, "columns=[apart]"], "columns=apart: cannot be probed: its values are known in"),
        ([TABLE, "columns=[]"], "columns=[]"),
        ([TABLE, "columns=[known]", "by=regoin"], "by=regoin; did you mean region?: expected granule, time, place"),
        ([TABLE, "by=granule", "folds=80"], "by=granule: expected at least 80"),
        ([TABLE, "folds=2"], "folds=2"),
        ([TABLE, "columns=[known]", "k=290"], "columns=known: cannot be probed: too few rows"),
        ([TABLE, "columns=[known]", "names=[a,b]"], "names=: expected 1 names"),
        ([TABLE, "columns=[known]", "images=b/a_preproc.h5"], "rows have no cutout"),
        ([TABLE, "columns=[known]", "ckpt=last.pth"], "ckpt=last.pth: has an effect only with images="),
        ([TABLE, "columns=[known]", "version=v5"], "version=v5: has an effect only with archive="),
        ([TABLE, "archive=there"], "give one of them"),
        (["archive=there"], "there: no archive"),
        ([TABLE, "data=x.h5"], "use latents="),
        (["table=short.parquet"], "expected at least 50 rows"),
        (["table=strange.parquet"], "no row of the table"),
        ([TABLE, "out=page.html"], "expected a folder"),
        (["columns=[known]", TABLE, "latents=[a_preproc_latents.h5,strange_latents.h5]"], "strange"),
    ],
)
def test_what_cannot_be_right_is_refused_in_one_line(args, words, files, nenya_cli):
    frame = read_table(files / "a.parquet")
    write_table(frame.iloc[:30], files / "short.parquet")
    write_table(frame.assign(pp_file="strange_preproc.h5"), files / "strange.parquet")
    write_cutouts(files / "b" / "a_preproc.h5", train=red_noise(10, 16), valid=red_noise(3, 16))
    with h5py.File(files / "strange_latents.h5", "w") as file:
        file["valid"] = np.ones((60, 4), np.float32)
    before = sorted(files.rglob("*"))
    first = [] if any(arg.startswith("latents=") for arg in args) else [A]
    code, said = nenya_cli("probe", [*first, *args])
    assert code == 2 and words in said.splitlines()[-1], said
    assert "Traceback" not in said and sorted(files.rglob("*")) == before


def test_latents_of_other_cutouts_of_the_same_name_are_refused(files, nenya_cli):
    for name, sha in ((A, "a" * 64), (B, "b" * 64)):
        with h5py.File(files / name, "a") as file:
            file.attrs["source_sha256"] = sha
    code, said = nenya_cli("probe", [A, B, TABLE, "columns=[known]"])
    assert code == 2 and "latents of two different files" in said.splitlines()[-1], said


def test_images_give_what_takes_no_training(files, nenya_cli, tiny_weights):
    args = [A, TABLE, "columns=[known,T90]", "images=a_preproc.h5", "shuffles=1", "names=[own]"]
    results, said = probe(nenya_cli, files, *args)
    expected = ["own", "image PCA, 12", "image PCA, 12 squared", "log power spectrum", "DT and moments"]
    assert list(results["columns"]["known"]) == expected and DIM == 12
    assert "own does not say its network" in said and results["models"]["image PCA, 12"]["features"] == 12
    results, _ = probe(nenya_cli, files, *args, f"ckpt={tiny_weights}", "model=demo", "model.feat_dim=12")
    assert list(results["columns"]["known"]) == [*expected, "untrained resnet18"]
    assert results["models"]["untrained resnet18"] == {"features": 12, "trained": False}
    code, said = nenya_cli("probe", [*args[:-1], "names=['DT and moments']", "out=q"])
    assert code == 2 and "give the model another name" in said
    code, said = nenya_cli("probe", [*args, f"ckpt={tiny_weights}", "out=q"])
    assert code == 2 and "expected a network with latents of 12 dimensions" in said and not (files / "q").exists()


def test_the_untrained_network_is_that_of_the_latents_file(nenya_cli, tiny_weights, tmp_path):
    images = red_noise(90)
    images[4, :3, :3] = np.nan
    write_cutouts(tmp_path / "a_preproc.h5", train=images[:60], valid=images[60:])
    table = pd.DataFrame({"pp_file": "a_preproc.h5", "pp_type": [1] * 60 + [0] * 30})
    table["pp_idx"] = [*range(60), *range(30)]
    table["DT"] = np.ptp(images, axis=(1, 2))
    write_table(table, tmp_path / "a.parquet")
    for out, more in (("one", []), ("two", ["model.latent=encoder", "preprocess.masked=fill"])):
        code, said = nenya_cli("extract", ["a_preproc.h5", "model=demo", f"ckpt={tiny_weights}", f"out={out}", *more])
        assert code == 0, said
    args = ["latents=[one,two]", TABLE, "columns=[DT]", "images=a_preproc.h5", "shuffles=1", "by=partition"]
    results, said = probe(nenya_cli, tmp_path, *args)
    found = results["columns"]["DT"]
    untrained = [name for name in found if name.startswith("untrained")]
    assert untrained == ["untrained resnet18", "untrained resnet18 of two"], said
    assert found["one"]["linear"]["n"] == 30 and "left out" in said


@pytest.mark.slow
def test_an_archive_has_its_own_latents_and_table(nenya_cli, tiny_weights, tmp_path):
    images = red_noise(80)
    write_cutouts(tmp_path / "a_preproc.h5", train=images[:50], valid=images[50:])
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"pp_file": "a_preproc.h5", "pp_type": [1] * 50 + [0] * 30})
    table["pp_idx"] = [*range(50), *range(30)]
    table["lat"], table["lon"] = rng.uniform(-60, 60, 80), rng.uniform(-180, 180, 80)
    table["UID"], table["DT"] = np.arange(80), np.ptp(images, axis=(1, 2))
    write_table(table, tmp_path / "a_preproc.parquet")
    rows = rng.standard_normal((100, 64)).astype(np.float32)
    Projector.fit(rows / np.linalg.norm(rows, axis=1, keepdims=True), embedding=rows[:, :2]).save(tmp_path / "map.h5")
    first = ["model=demo", f"ckpt={tiny_weights}", "k=4", "passes=1", "workers=1", "projector=map.h5"]
    code, said = nenya_cli("update", ["archive=kept", "new=a_preproc.h5", *first])
    assert code == 0, said
    with h5py.File(tmp_path / "a_preproc_latents.h5", "w") as file:
        file["train"], file["valid"] = (rng.standard_normal((n, 6)).astype(np.float32) for n in (50, 30))
    results, _ = probe(nenya_cli, tmp_path, "archive=kept", "columns=[DT]", "by=rows", "latents=a_preproc_latents.h5")
    assert list(results["columns"]["DT"]) == ["demo", "a_preproc_latents"]
    assert results["columns"]["DT"]["demo"]["linear"]["n"] == 80
