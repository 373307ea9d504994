"""`tags=`: one meaning in statistics, figures, search with and without an index, compare, and the classes of SupCon."""

import json
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from conftest import QUICK, red_noise, write_cutouts

from nenya.io import read_table, write_table
from nenya.tables.key_columns import read_keys
from nenya.tables.keys import Packed
from nenya.tables.tag_file import TagFile

N = 200


def tag(path, table, rows, word):
    keys = read_keys(table)
    TagFile(path).change(keys, Packed(keys), np.asarray(rows, np.int64), word, on=True)


@pytest.fixture
def archive(nenya_cli):
    """Write a table in an order of its own, latents, and tags beside the table; return the table."""
    rng = np.random.default_rng(7)
    latents = rng.normal(size=(N, 8)).astype(np.float32)
    with h5py.File("a_preproc_latents.h5", "w") as file:
        file["train"], file["valid"] = latents[:150], latents[150:]
        file.attrs.update(checkpoint_sha256="a" * 64, latent="projection", model_version="v5")
    table = pd.DataFrame(
        {
            "pp_file": "s3://bucket/a_preproc.h5",
            "pp_type": np.repeat([1, 0], [150, 50]),
            "pp_idx": np.concatenate([np.arange(150), np.arange(50)]),
            **{name: rng.normal(size=N) for name in ("US0", "US1", "DT", "alpha")},
            "lat": rng.uniform(-60, 60, N),
            "lon": rng.uniform(-180, 180, N),
            "datetime": np.datetime64("2012-01-01", "ns") + rng.integers(0, 700, N).astype("timedelta64[D]"),
            "filename": [f"g{n // 4}" for n in range(N)],
        }
    )
    table = table.sample(frac=1, random_state=1).reset_index(drop=True)
    write_table(table, Path("a.parquet"))
    tag(Path("a.tags.json"), table, range(30), "front")
    tag(Path("a.tags.json"), table, range(20, 60), "eddy")
    return table


def test_statistics_and_figures_of_tags(archive, nenya_cli):
    args = ["table=a.parquet", "tags=true", "where=tag = 'front'"]
    code, said = nenya_cli("statistics", [*args, "out=s.csv", "metrics=[DT]"])
    assert code == 0 and "60 of 200 rows are tagged" in said, said
    whole = read_table(Path("s.csv"))
    assert "30 of 200 rows" in said and len(whole)
    code, said = nenya_cli("figures", [*args, "kind=umap", "out=front.png"])
    assert code == 0 and Path("front.png").is_file(), said
    code, said = nenya_cli("figures", ["table=a.parquet", "tags=a.tags.json", "kind=metric", "metric=tag", "out=t.png"])
    assert code == 0 and Path("t.png").is_file(), said
    code, said = nenya_cli("figures", ["table=a.parquet", "kind=metric", "metric=tag", "out=u.png"])
    assert code == 2 and "tag" in said.splitlines()[-1]


def test_search_within_tags_with_and_without_an_index(archive, nenya_cli):
    pytest.importorskip("lancedb")
    assert nenya_cli("index", ["data=a_preproc_latents.h5", "table=a.parquet", "out=index"])[0] == 0
    files = ["data=a_preproc_latents.h5", "table=a.parquet"]
    wanted = {"tag = 'front'": range(30), "tag != 'front'": range(30, 60), "tag IS NULL": range(60, N)}
    wanted["tag = 'front' AND tag = 'eddy'"] = range(20, 30)
    for number, (where, rows) in enumerate(wanted.items()):
        answers = []
        for name, place in (("files", files), ("index", ["index=index"])):
            out = f"{name}{number}.parquet"
            given = ["tags=a.tags.json", "like=valid:3", "k=200", f"where={where}", f"out={out}"]
            code, said = nenya_cli("search", [*place, *given])
            assert code == 0, said
            answers.append(read_table(Path(out)))
        example = archive[(archive["pp_type"] == 0) & (archive["pp_idx"] == 3)].index[0]
        keys = [set(zip(found["pp_type"], found["pp_idx"], strict=True)) for found in answers]
        some = archive.loc[[row for row in rows if row != example]]
        assert keys[0] == keys[1] == set(zip(some["pp_type"], some["pp_idx"], strict=True)), where
        assert list(answers[0]["tag"].fillna("")) == list(answers[1]["tag"].fillna("")), where
    code, said = nenya_cli("search", ["index=index", "like=valid:3", "where=tag = 'front'"])
    assert code == 2 and "column tag does not exist" in said


def test_two_tags_are_compared(archive, nenya_cli):
    tag(Path("a.tags.json"), archive, range(100, 140), "calm")
    args = ["data=a_preproc_latents.h5", "table=a.parquet", "tags=true", "out=c", "permutations=39"]
    code, said = nenya_cli("compare", [*args, "a=tag = 'front'", "b=tag = 'calm'"])
    assert code == 0, said
    assert json.loads(Path("c/compare.json").read_text())["whole"]["rows_of_a"] == 30


@pytest.mark.parametrize("command", ["statistics", "figures", "search", "train"])
def test_a_bad_file_of_tags_is_one_line(archive, nenya_cli, command):
    Path("bad.json").write_text('{"nenya_tags": 1, "tags": {"<b>": {"x": {"train": [1e400]}}}}')
    args = {
        "statistics": ["table=a.parquet", "where=DT > 0"],
        "figures": ["table=a.parquet"],
        "search": ["data=a_preproc_latents.h5", "table=a.parquet", "like=3"],
        "train": ["data=a_preproc.h5", "loss.ssl_method=SupCon", *QUICK],
    }[command]
    write_cutouts(Path("a_preproc.h5"), train=red_noise(8))
    for place, why in (("bad.json", "expected tags, as nenya portal"), ("none.json", "no such file")):
        code, said = nenya_cli(command, [*args, f"tags={place}"])
        assert code == 2 and why in said.splitlines()[-1], said
    code, said = nenya_cli(command, [*args, "tags=7"])
    assert code == 2 and "tags=7: expected a path, true or false" in said.splitlines()[-1]


def losses(run):
    path = next((Path(run) / "learning_curve").glob("*.csv"))
    return pd.read_csv(path)[["loss_train", "loss_valid"]].to_numpy()


SHORT = [*(arg for arg in QUICK if not arg.startswith("trainer.max_epochs")), "trainer.max_epochs=1"]


def test_supcon_learns_the_tags_as_it_learns_labels(tmp_path, nenya_cli, caplog):
    images, classes = red_noise(48, seed=9), np.array(["", "eddy", "front"])[np.arange(48) % 3]
    use = np.arange(48) % 4 == 0
    write_cutouts(Path("a.h5"), train=images[~use], valid=images[use])
    table = pd.DataFrame({"pp_file": "a.h5", "pp_type": np.where(use, 0, 1), "word": classes})
    table["pp_idx"] = table.groupby("pp_type").cumcount()
    for word in ("front", "eddy"):
        tag(Path("a.tags.json"), table, np.flatnonzero(classes == word), word)
    known = classes != ""
    write_cutouts(
        Path("b.h5"), train=images[~use & known], valid=images[use & known],
        train_labels=np.arange(48)[~use & known] % 3, valid_labels=np.arange(48)[use & known] % 3,
    )  # fmt: skip
    args = [*SHORT, "loss.ssl_method=SupCon"]
    code, said = nenya_cli("train", [*args, "data=a.h5", "tags=a.tags.json", "out=tagged"])
    assert code == 0 and "training on 24 tagged cutouts (eddy: 12; front: 12), validating on 8" in said, said
    assert nenya_cli("train", [*args, "data=b.h5", "out=labelled"])[0] == 0
    assert np.array_equal(losses("tagged"), losses("labelled")) and np.isfinite(losses("tagged")).all()
    config = Path("tagged/config.yaml").read_text()
    assert "tags_sha256: " in config and str(tmp_path / "a.tags.json") in config
    tag(Path("a.tags.json"), table, [0], "front")
    code, said = nenya_cli("train", ["resume=tagged", "trainer.max_epochs=2"])
    assert code == 2 and "the tags have changed" in said.splitlines()[-1]


def test_tags_that_cannot_be_learnt_are_refused(tmp_path, nenya_cli):
    write_cutouts(Path("a.h5"), train=red_noise(12), valid=red_noise(6))
    table = pd.DataFrame({"pp_file": "a.h5", "pp_type": 0, "pp_idx": np.arange(6)})
    tag(Path("a.tags.json"), table, [0, 1], "front")
    args = [*SHORT, "data=a.h5", "tags=a.tags.json"]
    for more, why in (
        ([], "SimCLR learns without classes"),
        (["loss.ssl_method=SupCon"], "no tagged cutout is among those to train on, but 2 to validate on"),
        (["loss.ssl_method=SupCon", "loader.labels=kinds"], "give one of them"),
        (["loss.ssl_method=SupCon", "tags=true"], "give their file"),
    ):
        code, said = nenya_cli("train", [*args, *more, "out=run"])
        assert code == 2 and why in said.splitlines()[-1], said
    assert not Path("run").exists()
