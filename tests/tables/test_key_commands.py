"""The join as users meet it: by commands, and by the functions that the first nenya's users call."""

import json

import numpy as np
import pandas as pd
import pytest
from conftest import red_noise, write_cutouts

from nenya import nenya_umap
from nenya.errors import InputFileError
from nenya.io import Params, read_table
from nenya.latents.files import Latents

KEYS = {"pp_type": [1] * 10 + [0] * 6, "pp_idx": [*range(10), *range(6)]}


@pytest.fixture
def folder(tmp_path):
    """Cutouts, latents under the original's name, and a table under the older names."""
    rows = np.random.default_rng(0).standard_normal((16, 8)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    write_cutouts(tmp_path / "a_preproc_std.h5", train=red_noise(10, seed=1), valid=red_noise(6, seed=2))
    write_cutouts(tmp_path / "a_latents_std.h5", train=rows[:10], valid=rows[10:])
    table = pd.DataFrame({"pp_file": "s3://b/PreProc/a_preproc_std", **KEYS, "DT": np.linspace(0, 3, 16)})
    table.to_parquet(tmp_path / "new.parquet")
    older = table.assign(pp_type=["valid" if kind == 0 else "train" for kind in KEYS["pp_type"]])
    older.rename(columns=lambda name: f"ulmo_{name}" if name.startswith("pp_") else name).to_parquet(
        tmp_path / "old.parquet"
    )
    return tmp_path


@pytest.mark.parametrize("name", ["new", "old"])
def test_spectra_take_the_tables_that_search_takes(folder, nenya_cli, name):
    code, said = nenya_cli("spectra", ["data=a_preproc_std.h5", f"table={name}.parquet", "out=s"])
    assert code == 0 and "alpha of 16 of 16 rows" in said, said
    slopes, joined = read_table("s/a_preproc_std_alpha.parquet"), read_table(f"s/{name}_alpha.parquet")
    np.testing.assert_array_equal(joined["alpha"], slopes["alpha"])


def test_spectra_refuse_a_table_of_other_files_before_the_work(folder, nenya_cli):
    read_table("new.parquet").assign(pp_file="b.h5").to_parquet("b.parquet")
    code, said = nenya_cli("spectra", ["data=a_preproc_std.h5", "table=b.parquet", "out=s"])
    assert code == 2 and said.strip().count("\n") == 0
    assert (
        "b.parquet: no row of the table has a cutout: its pp_file values are b, the cutouts are from a_preproc_std"
        in said
    )
    assert not (folder / "s").exists()


def test_statistics_of_rows_under_other_names(folder, nenya_cli):
    read_table("old.parquet").iloc[[2, 12]].to_csv("rows.csv", index=False)
    code, said = nenya_cli("statistics", ["table=new.parquet", "rows=rows.csv", "out=s.csv"])
    assert code == 0 and "2 of 16 rows" in said, said
    more = pd.concat([read_table("old.parquet").iloc[[2]], read_table("old.parquet").assign(ulmo_pp_file="b").iloc[:3]])
    more.to_csv("more.csv", index=False)
    code, said = nenya_cli("statistics", ["table=new.parquet", "rows=more.csv", "out=t.csv"])
    assert code == 0 and "found 1 of 4 rows (3 are not in the table)" in said, said
    more.iloc[1:].to_csv("none.csv", index=False)
    code, said = nenya_cli("statistics", ["table=new.parquet", "rows=none.csv", "out=u.csv"])
    assert code == 2 and "none of the 3 rows of rows= is in the table" in said, said


def test_folders_and_globs_find_latents_by_the_name_of_the_original(folder, nenya_cli):
    for data in (folder, f"{folder}/*.h5"):
        code, said = nenya_cli(
            "search",
            [f"data={data}", "table=old.parquet", "like=a_preproc_std:valid:2", "k=3", "out=f.csv", "clobber=true"],
        )
        assert code == 0, said
        assert set(read_table("f.csv")["pp_file"]) == {"s3://b/PreProc/a_preproc_std"}
    code, said = nenya_cli("spectra", [f"data={folder}", "out=s"])
    assert code == 0 and "a_latents_std" not in said, said


def test_a_gallery_says_which_rows_have_no_cutout(folder, nenya_cli):
    table = read_table("old.parquet").assign(US0=np.arange(16.0), US1=np.arange(16.0) % 4)
    table.loc[:2, "ulmo_pp_idx"] = 99
    table.to_parquet("part.parquet")
    args = ["kind=gallery", "table=part.parquet", "images=a_preproc_std.h5", "out=g.png", "cells=4"]
    code, said = nenya_cli("figures", args)
    assert code == 0 and "placed 13 of 16 rows (3 without a cutout: 3 with pp_idx out of range)" in said, said


def test_an_index_knows_both_readings_of_a_name(folder, nenya_cli):
    (folder / "a_latents_std.h5").rename(folder / "a_latents.h5")
    table = read_table("old.parquet").assign(ulmo_pp_file="a_preproc")
    table.to_parquet("a.parquet")
    code, said = nenya_cli("index", ["data=a_latents.h5", "table=a.parquet", "out=i.index"])
    assert code == 0, said
    for source in (["index=i.index"], ["data=a_latents.h5", "table=a.parquet"]):
        code, said = nenya_cli(
            "search", [*source, r"like=C:\d\a_preproc.h5:valid:2", "k=15", "out=f.csv", "clobber=true"]
        )
        assert code == 0 and len(read_table("f.csv")) == 15, said
        code, said = nenya_cli("search", [*source, "like=a_preproc:valid:6", "k=1"])
        assert code == 2 and "valid has rows 0 to 5" in said


def test_verify_finds_the_source_of_latents_by_the_name_of_the_original(folder, nenya_cli):
    code, said = nenya_cli("verify", ["a_latents_std.h5", "provenance=false", "source=a_preproc_std.h5"])
    assert code == 0, said


def test_a_map_is_fitted_with_latents_of_either_name(folder, monkeypatch):
    monkeypatch.setattr("nenya.latents.projector._fit_layout", lambda rows, parameters, epochs: rows[:, :2])
    values = {"feat_dim": 8, "s3_outdir": str(folder / "SSL"), "model_root": "M"}
    (folder / "opts.json").write_text(json.dumps(values))
    place = folder / "SSL" / Params(values).latents_folder
    place.mkdir(parents=True)
    (folder / "a_latents_std.h5").rename(place / "a_latents_std.h5")
    table = read_table(folder / "old.parquet")
    projector = nenya_umap.umap_subset(table, folder / "opts.json", folder / "u.parquet", n_neighbors=3)
    np.testing.assert_array_equal(
        read_table(folder / "u.parquet")[["US0", "US1"]], projector.transform(Latents([place / "a_latents_std.h5"])[:])
    )
    (place / "a_preproc_std_latents.h5").write_bytes((place / "a_latents_std.h5").read_bytes())
    with pytest.raises(
        InputFileError, match=r"a_preproc_std_latents.h5 and .*a_latents_std.h5 may both be the latents"
    ):
        nenya_umap.umap_subset(table, folder / "opts.json", folder / "v.parquet", n_neighbors=3)
