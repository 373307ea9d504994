"""Trainings on the rows of a list: the same as on partitions of these rows, refused where the list does not fit."""

import csv
import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from conftest import QUICK, red_noise, write_cutouts
from field_files import grid, save
from omegaconf import OmegaConf

from nenya.data.cutouts import inspect_cutouts
from nenya.data.row_list import read_row_list
from nenya.models.checkpoint import load_checkpoint
from nenya.storage.disk import sha256_file

SHORT = [arg for arg in QUICK if not arg.startswith("trainer.max_epochs")] + ["trainer.max_epochs=1"]


def losses(run: str) -> list[tuple[str, str]]:
    with next((Path(run) / "learning_curve").glob("*.csv")).open() as file:
        return [(row["loss_train"], row["loss_valid"]) for row in csv.DictReader(file)]


def steps(run: str) -> np.ndarray:
    with h5py.File(next((Path(run) / "learning_curve").glob("*_losses_train.h5"))) as file:
        return file["loss_step_train"][()]


def keys(name: str, **rows: int) -> pd.DataFrame:
    kinds = {"train": 1, "valid": 0}
    return pd.concat(
        [pd.DataFrame({"pp_file": name, "pp_type": kinds[part], "pp_idx": range(n)}) for part, n in rows.items()],
        ignore_index=True,
    )


@pytest.fixture
def files(tmp_path):
    """One file whose cutouts are all in `train`, and one with a partition for each use that the list gives them."""
    images = red_noise(64, seed=5)
    write_cutouts(tmp_path / "one_preproc.h5", train=images)
    table = keys("one_preproc.h5", train=64)
    use = np.random.default_rng(2).permutation(np.repeat(["train", "valid", "none"], [40, 16, 8]))
    table["split"] = use
    write_cutouts(tmp_path / "two_preproc.h5", train=images[use == "train"], valid=images[use == "valid"])
    return table


def test_a_list_trains_as_partitions_of_its_rows_do(files, nenya_cli):
    files.sample(frac=1, random_state=3).to_parquet("list.parquet")
    code, said = nenya_cli("train", [*SHORT, "data=one_preproc.h5", "rows=list.parquet", "out=listed"])
    assert code == 0, said
    code, said = nenya_cli("train", [*SHORT, "data=two_preproc.h5", "out=parted"])
    assert code == 0, said
    assert losses("listed") == losses("parted") and all(valid for _, valid in losses("listed"))
    assert np.array_equal(steps("listed"), steps("parted"))
    code, said = nenya_cli(
        "train", [*SHORT, "data=one_preproc.h5", "rows=list.parquet", "out=device", "loader.on_device=always"]
    )
    assert code == 0 and np.array_equal(steps("device"), steps("parted")), said
    assert "training on" not in said and "without a validation" not in said


def test_rows_of_both_partitions_of_several_files(tmp_path, nenya_cli):
    images = red_noise(60, seed=6)
    write_cutouts(tmp_path / "a.h5", train=images[:20], valid=images[20:30])
    write_cutouts(tmp_path / "b.h5", valid=images[30:60])
    write_cutouts(tmp_path / "idle.h5", train=red_noise(5, seed=7))
    table = pd.concat([keys("a.h5", train=20, valid=10), keys("b.h5", valid=30)], ignore_index=True)
    table["split"] = np.where(np.arange(60) % 3 == 0, "valid", "train")
    table.to_csv("list.csv", index=False)
    write_cutouts(tmp_path / "same.h5", train=images[np.arange(60) % 3 != 0], valid=images[::3])
    code, said = nenya_cli("train", [*SHORT, "data=[a.h5,idle.h5,b.h5]", "rows=list.csv", "out=listed"])
    assert code == 0, said
    assert nenya_cli("train", [*SHORT, "data=same.h5", "out=parted"])[0] == 0
    assert losses("listed") == losses("parted")


def test_the_run_records_its_list_and_resumes_with_it_alone(files, tmp_path, nenya_cli):
    files.to_parquet("list.parquet")
    args = [*SHORT, "data=one_preproc.h5", "rows=list.parquet", "optim.cosine=false"]  # no rate depends on the end
    assert nenya_cli("train", [*args, "out=whole", "trainer.max_epochs=2"])[0] == 0
    config = OmegaConf.load("whole/config.yaml")
    digest = sha256_file(Path("list.parquet"))
    assert config.rows == str(tmp_path / "list.parquet") and config.rows_sha256 == digest
    assert load_checkpoint(Path("whole/last.pth")).options["rows_sha256"] == digest

    assert nenya_cli("train", [*args, "out=run"])[0] == 0
    files.iloc[::-1].to_parquet("other.parquet")
    code, said = nenya_cli("train", ["resume=run", "trainer.max_epochs=2", "rows=other.parquet"])
    assert code == 2 and "other.parquet: the row list has changed: expected the sha256" in said
    assert said.count("\n") == 1
    shutil.move("list.parquet", "moved.parquet")
    code, said = nenya_cli("train", ["resume=run", "trainer.max_epochs=2"])
    assert code == 2 and "list.parquet" in said and said.count("\n") == 1
    code, said = nenya_cli("train", ["resume=run", "trainer.max_epochs=2", "rows=moved.parquet"])
    assert code == 0, said
    assert losses("run") == losses("whole")


def beyond(table):
    return table.assign(pp_idx=table["pp_idx"] + 10)


def of_others(table):
    return table.assign(pp_file="other_preproc.h5")


def some_of_others(table):
    return table.assign(pp_file=["x.h5"] * 5 + ["one_preproc.h5"] * 59)


WRONG = {
    "beyond": (beyond, "of 56 rows have no cutout in data= .*with pp_idx out of range"),
    "of another file": (of_others, "its pp_file values are other_preproc"),
    "some of another file": (some_of_others, "rows have no cutout in data= .*of other files"),
    "of another partition": (lambda t: t.assign(pp_type=0), "of a missing partition"),
    "nothing": (lambda t: t.assign(split="none"), "expected rows to train on .*none among 64 rows"),
    "no training": (lambda t: t.assign(split="valid"), "64 rows are to validate on"),
    "missing words": (lambda t: t.assign(split=None), "expected rows to train on"),
    "empty": (lambda t: t.iloc[:0], "got none among 0 rows"),
    "twice": (lambda t: pd.concat([t, t.iloc[:3]]), "3 rows name the cutout of an earlier row"),
    "both uses": (lambda t: t.assign(pp_idx=t["pp_idx"] // 2), "32 rows name the cutout of an earlier row"),
    "other words": (lambda t: t.assign(split="test"), "expected train, valid or none in the column split, got test"),
    "no split": (lambda t: t.drop(columns="split"), "expected the column split"),
    "no keys": (lambda t: t.drop(columns="pp_idx"), "expected the columns pp_file, pp_type, pp_idx"),
    "fractions": (lambda t: t.assign(pp_idx=t["pp_idx"] + 0.5), "expected integers in pp_idx"),
    "missing numbers": (lambda t: t.assign(pp_idx=t["pp_idx"].where(t["pp_idx"] > 3)), "with pp_idx missing"),
    "one row": (lambda t: t[t["split"] == "train"].iloc[:1], "at least 2 cutouts to train on .split = train., got 1"),
    "a small batch": (lambda t: t.iloc[:9], "loader.batch_size_train=16: expected at most"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_list_is_refused_in_one_line(files, nenya_cli, case):
    import re

    change, said = WRONG[case]
    change(files).to_parquet("list.parquet")
    code, found = nenya_cli("train", [*SHORT, "data=one_preproc.h5", "rows=list.parquet", "out=run"])
    *_, last = found.strip().splitlines()
    assert code == 2 and re.search(said, last), found
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["rows=none.parquet"], "none.parquet: no such table"),
        (["rows=one_preproc.h5"], "not a table by its suffix"),
        (["rows=s3://bucket/list.parquet"], "expected a local path"),
        (["rows=list.parquet", "rows_sha256=12"], "rows_sha256=12: expected 64 hexadecimal digits"),
    ],
)
def test_other_values_are_refused(files, nenya_cli, args, said):
    files.to_parquet("list.parquet")
    code, found = nenya_cli("train", [*SHORT, "data=one_preproc.h5", "out=run", *args])
    assert code == 2 and said in found and found.count("\n") == 1
    assert not Path("run").exists()


def test_a_list_without_validation_is_said(files, nenya_cli):
    files[files["split"] == "train"].to_parquet("list.parquet")
    code, said = nenya_cli("train", [*SHORT, "data=one_preproc.h5", "rows=list.parquet", "out=run"])
    assert code == 0 and "no row to validate on (split = valid): training without a validation" in said
    assert [valid for _, valid in losses("run")] == [""]


def test_cutouts_with_nan_count_only_where_they_are_listed(tmp_path, nenya_cli):
    images = red_noise(50, seed=8)
    images[[3, 40], 5, 5] = np.nan
    write_cutouts(tmp_path / "a.h5", train=images)
    table = keys("a.h5", train=50).assign(split="train")
    table.loc[40:44, "split"] = "none"
    table.to_parquet("list.parquet")
    code, said = nenya_cli("train", [*SHORT, "data=a.h5", "rows=list.parquet", "out=run"])
    assert code == 0 and "train: skipping 1 of 45 cutouts with non-finite pixels" in said
    assert np.isfinite(steps("run")).all()


def test_labels_follow_the_rows(tmp_path, nenya_cli):
    images, labels = red_noise(48, seed=9), np.arange(48) % 3
    write_cutouts(tmp_path / "a.h5", train=images, train_labels=labels)
    table = keys("a.h5", train=48).assign(split=np.where(np.arange(48) % 4 == 0, "valid", "train"))
    table.to_parquet("list.parquet")
    listed = np.arange(48) % 4 != 0
    write_cutouts(
        tmp_path / "b.h5", train=images[listed], valid=images[~listed],
        train_labels=labels[listed], valid_labels=labels[~listed],
    )  # fmt: skip
    args = [*SHORT, "loss.ssl_method=SupCon"]
    code, said = nenya_cli("train", [*args, "data=a.h5", "rows=list.parquet", "out=listed"])
    assert code == 0, said
    assert nenya_cli("train", [*args, "data=b.h5", "out=parted"])[0] == 0
    assert losses("listed") == losses("parted")


def test_a_list_from_python(files, tmp_path):
    files.to_parquet(tmp_path / "list.parquet")
    chosen = read_row_list(
        tmp_path / "list.parquet", [inspect_cutouts(tmp_path / "one_preproc.h5")], ("train", "valid")
    )
    assert list(chosen.train) == list(np.flatnonzero(files["split"] == "train"))
    ((file, part, rows),) = chosen.in_parts("valid")
    assert (file.path.name, part) == ("one_preproc.h5", "train")
    assert list(rows) == list(np.flatnonzero(files["split"] == "valid"))


def located(rows: int, name: str) -> pd.DataFrame:
    rng = np.random.default_rng(3)
    table = keys(name, train=rows)
    own = np.arange(rows) // 8
    table["lat"], table["lon"] = own * 10 - 40 + rng.normal(0, 0.5, rows), rng.normal(0, 0.5, rows)
    table["datetime"] = pd.Timestamp("2012-01-01") + pd.to_timedelta(own * 10, "D")
    table["granule"] = [f"g{number}" for number in own]
    return table


def test_split_prune_and_train_one_after_the_other(tmp_path, tiny_weights, nenya_cli):
    images = red_noise(64, seed=10)
    images[60:] = images[:4]  # copies in another granule
    write_cutouts(tmp_path / "a_preproc.h5", train=images)
    located(64, "a_preproc.h5").to_parquet("a.parquet")
    args = ["data=a_preproc.h5", f"ckpt={tiny_weights}", "trainer=cpu", "model=demo"]
    assert nenya_cli("extract", args)[0] == 0
    code, said = nenya_cli("split", ["a.parquet", "out=split.parquet", "latents=a_preproc_latents.h5", "apart_km=50"])
    assert code == 0, said
    assert "by granule: 48 train, 16 valid, 0 left out" in said
    assert "before: 64 rows to train on, 0 to validate on: no validation" in said
    assert "after: 0.0 % of the valid rows have a train row of their granule, 0.0 % have one within 50 km" in said
    record = json.loads(Path("split.json").read_text())
    assert record["rows"] == {"train": 48, "valid": 16, "none": 0} and record["options"]["by"] == "granule"
    assert record["after"]["same_granule"] == 0 and 0.5 < record["after"]["nearest_cosine"] <= 1

    list_ = pd.read_parquet("split.parquet")
    assert list(list_.columns) == ["pp_file", "pp_type", "pp_idx", "pp_rows", "split"]
    code, said = nenya_cli("prune", ["a_preproc_latents.h5", "rows=split.parquet", "cosine=0.999999", "out=pruned.csv"])
    assert code == 0, said
    pruned = pd.read_csv("pruned.csv", keep_default_na=False)
    left = pruned["split"].to_numpy() != list_["split"].to_numpy()
    pairs = [{number, number + 60} for number in range(4)]
    assert all(sum(left[list(pair)]) == (list(list_["split"][list(pair)]) != ["valid", "valid"]) for pair in pairs)
    assert left.sum() <= 4 and (list_["split"][left] == "train").all()
    code, said = nenya_cli("train", [*SHORT, "data=a_preproc.h5", "rows=pruned.csv", "out=run"])
    assert code == 0, said
    assert all(float(valid) > 0 for _, valid in losses("run"))


def test_prune_changes_nothing_with_the_order_of_the_table(tmp_path, tiny_weights, nenya_cli):
    images = red_noise(60, seed=12)
    write_cutouts(tmp_path / "a_preproc.h5", train=images[:40], valid=images[40:])
    args = ["data=a_preproc.h5", f"ckpt={tiny_weights}", "trainer=cpu", "model=demo"]
    assert nenya_cli("extract", args)[0] == 0
    table = keys("a_preproc.h5", train=40, valid=20)
    table["UID"] = np.arange(60) + 2**60
    found = []
    for seed in (1, 2):
        table.sample(frac=1, random_state=seed).to_parquet(f"{seed}.parquet")
        args = [f"table={seed}.parquet", "cosine=0.99999", "k=3", "keep=9", f"out=out{seed}.parquet"]
        code, said = nenya_cli("prune", ["a_preproc_latents.h5", *args])
        assert code == 0 and "9 of 40 rows to train on are kept; 20 validation rows are kept" in said, said
        found.append(pd.read_parquet(f"out{seed}.parquet").sort_values("UID", ignore_index=True))
    pd.testing.assert_frame_equal(*found)
    assert (found[0]["split"][40:] == "valid").all() and (found[0]["split"] == "train").sum() == 9
    record = json.loads(Path("out1.json").read_text())
    assert record["train_before"] == 40 and record["train_after"] == 9 and len(record["strata"]) == 3
    code, said = nenya_cli("prune", ["a_preproc_latents.h5", "out=default.parquet", "cosine=0.1"])
    assert code == 2 and "cosine=0.1 leaves 0 of 40 rows to train on, expected at least 2" in said
    args = ["a_preproc_latents.h5", "out=default.parquet", "cosine=0.999999"]
    assert nenya_cli("prune", args)[0] == 0
    code, said = nenya_cli("prune", args)
    assert code == 2 and "default.parquet exists" in said


@pytest.mark.parametrize(
    ("command", "args", "said"),
    [
        ("split", [], "expected a table of cutouts"),
        ("split", ["a.parquet", "out=x.h5"], "out=x.h5: expected a table"),
        ("split", ["a.parquet", "valid_fraction=1"], "a fraction above 0 and below 1"),
        ("split", ["a.parquet", "block_km=100"], "block_km=100 changes nothing with by=granule: it is of by=place"),
        ("split", ["a.parquet", "by=granule", "valid=[x]", "valid_fraction=0.5"], "valid_fraction=0.5 changes nothing"),
        ("split", ["a.parquet", "apart_km=0"], "a number above 0"),
        ("split", ["a.parquet", "by=colour"], "a.parquet: by=colour: expected granule, time, place or a column"),
        ("split", ["a.parquet", "by=[granule,DT]"], "by=[granule,DT]: expected one value, got a list"),
        ("split", ["[a.parquet,b.parquet]"], "table=[a.parquet,b.parquet]: expected one value, got a list"),
        ("split", ["a.parquet", "out=a.parquet", "clobber=true"], "out=a.parquet is the table of the cutouts"),
        ("split", ["a.parquet", "data=x.h5"], "use table= for the rows, latents= for their latents"),
        ("split", ["a.parquet", "by=granule", "valid=[g99]"], "expected values of the column granule, such as g0, g1"),
        ("prune", ["l.h5", "cosine=null"], "nothing to do"),
        ("prune", ["l.h5", "keep=4"], "keep=4: expected k="),
        ("prune", ["l.h5", "rows=a.parquet", "table=a.parquet"], "give one of them"),
        ("prune", ["l.h5", "cosine=1.5"], "a cosine above 0 and below 1"),
        ("prune", ["l.h5"], "l.h5"),
        ("prune", [], "latents"),
        ("prune", ["[l.h5,m.h5]"], "l.h5: no such file"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(tmp_path, nenya_cli, command, args, said):
    located(32, "a_preproc.h5").to_parquet("a.parquet")
    code, found = nenya_cli(command, args)
    assert code == 2 and said in found and found.count("\n") == 1, found
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.parquet"]


def test_one_granule_is_divided_by_place_as_the_hint_says(tmp_path, nenya_cli):
    save(grid(), tmp_path / "sst.nc")
    args = ["data=sst.nc", "out=a_preproc.h5", "workers=1", "field_size=32", "sub_grid_step=4", "sensor=grid"]
    code, said = nenya_cli("prepare", args)
    assert code == 0 and "a_preproc.parquet by=place out=split.parquet" in said, said
    code, said = nenya_cli("split", ["a_preproc.parquet"])
    assert code == 2 and "by=granule: expected at least two granules, got one for all" in said and "by=place" in said
    code, said = nenya_cli("split", ["a_preproc.parquet", "by=place", "block_km=200", "out=split.parquet"])
    assert code == 0, said
    code, said = nenya_cli("train", [*SHORT, "data=a_preproc.h5", "rows=split.parquet", "out=run"])
    assert code == 0 and all(float(valid) > 0 for _, valid in losses("run")), said
    code, said = nenya_cli("train", [*SHORT, "data=a_preproc.h5", "out=other"])
    assert code == 0 and "training without a validation (nenya split divides cutouts" in said


def test_a_list_of_another_file_of_the_same_name_is_refused(tmp_path, nenya_cli):
    (tmp_path / "old").mkdir()
    write_cutouts(tmp_path / "old" / "a_preproc.h5", train=red_noise(64, seed=1))
    write_cutouts(tmp_path / "a_preproc.h5", train=red_noise(66, seed=1))
    located(64, "a_preproc.h5").to_parquet("old/a.parquet")
    assert nenya_cli("split", ["old/a.parquet", "out=list.csv"])[0] == 0
    code, said = nenya_cli("train", [*SHORT, "data=a_preproc.h5", "rows=list.csv", "out=run"])
    assert code == 2 and "expected a partition of 64 cutouts in a_preproc.h5, got 66: give the file of the list" in said
    assert not Path("run").exists()
    (tmp_path / "alone").mkdir()
    located(64, "a_preproc.h5").to_parquet("alone/a.parquet")
    assert nenya_cli("split", ["alone/a.parquet", "out=alone.parquet"])[0] == 0
    assert "pp_rows" not in pd.read_parquet("alone.parquet"), "unknown where the file is not beside its table"


def test_what_is_said_of_a_column_that_divides_single_rows_and_of_times_that_are_none(tmp_path, nenya_cli):
    table = located(32, "a_preproc.h5")
    table.assign(DT=np.arange(32) / 7).to_parquet("a.parquet")
    code, said = nenya_cli("split", ["a.parquet", "by=DT", "out=a.csv"])
    assert code == 0 and "by=DT: 32 rows have 32 values, so that hardly any are kept together" in said
    code, said = nenya_cli("split", ["a.parquet", "by=granule", "out=b.csv"])
    assert code == 0 and "kept together" not in said
    table.assign(datetime="yesterday").to_parquet("b.parquet")
    code, said = nenya_cli("split", ["b.parquet", "by=place", "out=c.csv"])
    assert code == 2 and "b.parquet: expected dates such as 2012-03-01T12:00 in the column datetime, got yes" in said
    assert not Path("c.csv").exists()


def test_prune_takes_a_list_and_refuses_single_rows_and_its_own_table(tmp_path, nenya_cli):
    rows = np.random.default_rng(0).standard_normal((6, 8)).astype(np.float32)
    for name in "ab":
        with h5py.File(f"{name}_preproc_latents.h5", "w") as file:
            file["train"] = rows if name == "a" else rows + 5
    code, said = nenya_cli("prune", ["[a_preproc_latents.h5,b_preproc_latents.h5]", "cosine=0.9999", "out=both.csv"])
    assert code == 0 and "of 12 rows to train on are kept" in said, said
    keys("a_preproc.h5", train=1).to_parquet("one.parquet")
    code, said = nenya_cli("prune", ["a_preproc_latents.h5", "table=one.parquet", "out=o.csv"])
    assert code == 2 and "expected at least 2 rows to train on that have a latent, got 1 of 1" in said
    keys("a_preproc.h5", train=6).to_parquet("a.parquet")
    args = ["a_preproc_latents.h5", "table=a.parquet", "out=a.parquet", "clobber=true"]
    code, said = nenya_cli("prune", args)
    assert code == 2 and "out=a.parquet is the table of the cutouts, which a row list would replace" in said
    assert len(pd.read_parquet("a.parquet")) == 6 and not Path("a.json").exists()
