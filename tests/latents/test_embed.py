"""Maps of whole tables: every row gets the place that the projector gives it, also after a kill."""

import h5py
import numpy as np
import pandas as pd
import pytest
from latent_sets import latents

from nenya.errors import OutputError
from nenya.latents import embed
from nenya.latents.files import Latents
from nenya.latents.projector import Projector


@pytest.fixture(autouse=True)
def no_long_fit(monkeypatch):
    """A layout that costs nothing in place of UMAP's."""
    monkeypatch.setattr("nenya.latents.projector._fit_layout", lambda rows, parameters, epochs: 9 * rows[:, :2])


@pytest.fixture
def files(tmp_path):
    """Latents of 300 + 100 cutouts, two of which are missing, and a table of 350 of them in any order."""
    path = tmp_path / "a_preproc_latents.h5"
    rows = latents(400, 0)
    rows[[5, 310]] = np.nan
    with h5py.File(path, "w") as h5:
        h5["train"], h5["valid"] = rows[:300], rows[300:]
        h5.attrs["image_size"] = 64
    chosen = np.random.default_rng(0).permutation(400)[:350]
    table = pd.DataFrame(
        {
            "pp_file": "s3://bucket/a_preproc.h5",
            "pp_type": np.where(chosen < 300, 1, 0),
            "pp_idx": np.where(chosen < 300, chosen, chosen - 300),
            "DT": np.linspace(0, 3, 350),
        }
    )
    table.loc[7, "pp_idx"] = 9999  # of a cutout that has no latent
    table.to_parquet(tmp_path / "a.parquet")
    expected = rows[chosen]
    expected[7] = np.nan
    return path, tmp_path / "a.parquet", table, expected


def test_a_table_gets_the_places_of_the_projector(files, nenya_cli, tmp_path):
    path, table_file, table, rows = files
    code, said = nenya_cli("embed", [f"data={path}", f"table={table_file}", "out=map/b.parquet", "ntrain=200"])
    assert code == 0, said
    missing = np.isnan(rows).any(axis=1)
    assert f"placed {(~missing).sum()} of 350 rows (1 without a latent, 2 with a non-finite" in said, said
    assert "1 without a latent: 1 with pp_idx out of range" in said
    assert "51 of 400 latents have no row in the table" in said
    came = pd.read_parquet("map/b.parquet")
    projector = Projector.load("map/b_UMAP.h5")
    assert 195 <= len(projector.latents) <= 200 and projector.image_size == 64
    np.testing.assert_array_equal(came[["US0", "US1"]], projector.transform(rows))
    pd.testing.assert_frame_equal(came.drop(columns=["US0", "US1"]), table)
    assert not (tmp_path / "map" / "b.parquet.partial").exists()
    args = [f"data={path}", "projector=map/b_UMAP.h5", "out=map/all.parquet"]
    code, said = nenya_cli("embed", args)
    assert code == 0, said
    every = pd.read_parquet("map/all.parquet")
    assert every["pp_type"].tolist() == [1] * 300 + [0] * 100
    np.testing.assert_array_equal(every[["US0", "US1"]], projector.transform(Latents([path])[:]))
    code, said = nenya_cli("embed", args)
    assert code == 2 and "clobber=true" in said


def test_a_killed_run_goes_on_and_gives_the_same_bits(files, tmp_path, monkeypatch):
    path, _, table, _ = files
    monkeypatch.setattr(embed, "BLOCK_ROWS", 50)
    undisturbed = tmp_path / "undisturbed.parquet"
    embed.embed_table(Latents([path]), table, undisturbed, embed.Fit(200), tmp_path / "u_UMAP.h5")
    counted = []
    transform = Projector.transform

    def killed_after_three(self, rows, **settings):
        if len(rows) == 50:
            counted.append(1)
            if len(counted) == 4:
                raise KeyboardInterrupt
        return transform(self, rows, **settings)

    monkeypatch.setattr(Projector, "transform", killed_after_three)
    out, saved = tmp_path / "killed.parquet", tmp_path / "killed_UMAP.h5"
    with pytest.raises(KeyboardInterrupt):
        embed.embed_table(Latents([path]), table, out, embed.Fit(200), saved)
    assert not out.exists() and not saved.exists()
    with pytest.raises(OutputError, match="different data or options"):
        embed.embed_table(Latents([path]), table, out, embed.Fit(150), saved)
    block = sorted((tmp_path / "killed.parquet.partial").glob("rows-*"))[1]
    block.write_bytes(block.read_bytes()[:-9] + b"123456789")
    monkeypatch.setattr(Projector, "fit", None)
    embed.embed_table(Latents([path]), table, out, embed.Fit(200), saved)
    assert len(counted) == 4 + 4  # of seven blocks the last is shorter; three were done, of which one was damaged
    pd.testing.assert_frame_equal(pd.read_parquet(out), pd.read_parquet(undisturbed))
    assert saved.exists() and not (tmp_path / "killed.parquet.partial").exists()


def test_an_existing_projector_is_not_replaced(files, tmp_path):
    path, _, table, _ = files
    saved = tmp_path / "mine_UMAP.h5"
    saved.write_text("precious")
    with pytest.raises(OutputError, match="exists"):
        embed.embed_table(Latents([path]), table, tmp_path / "c.parquet", embed.Fit(100), saved)
    assert saved.read_text() == "precious"


def test_an_interval_of_dt_is_chosen_by_name(files, nenya_cli):
    path, table_file, _, _ = files
    code, said = nenya_cli("embed", [path, f"table={table_file}", "out=d.parquet", "DT_cut=DT1", "approximate=true"])
    assert code == 0, said
    assert pd.read_parquet("d.parquet")["DT"].between(0.5, 1, inclusive="left").all()
    code, said = nenya_cli("embed", [path, f"table={table_file}", "out=e.parquet", "DT_cut=DT3"])
    assert code == 2 and "DT_cut=DT3" in said
    code, said = nenya_cli("embed", [path, f"table={table_file}", "out=e.parquet", "DT_cut=DT5"])
    assert code == 2 and "none of 350 rows lies in DT_cut=DT5" in said
    code, said = nenya_cli("embed", [path, "out=e.parquet", "ntrain=abc"])
    assert code == 2 and "ntrain=abc: expected an integer" in said


def test_a_projector_that_cannot_be_used_is_refused_before_anything_is_begun(files, nenya_cli, tmp_path):
    path, _, _, _ = files
    Projector.fit(latents(30, 0)[:, :8], embedding=np.zeros((30, 2))).save("short_UMAP.h5")
    code, said = nenya_cli("embed", [f"data={path}", "projector=short_UMAP.h5", "out=f.parquet"])
    assert code == 2 and "expected latents of 8 dimensions, got 32" in said
    (tmp_path / "x.pkl").write_bytes(b"\x80\x04.")
    code, said = nenya_cli("embed", [f"data={path}", "projector=x.pkl", "out=f.parquet"])
    assert code == 2 and "a pickle" in said
    (tmp_path / "junk.h5").write_text("junk")
    for junk, what in (
        ("junk.h5", "expected a projector in HDF5, got another kind of file"),
        (".", "expected a projector file, got a folder"),
    ):
        code, said = nenya_cli("embed", [f"data={path}", f"projector={junk}", "out=f.parquet"])
        assert code == 2 and what in said and "fit it again" in said and "pickle" not in said
    code, said = nenya_cli("embed", ["data=junk.h5", "out=f.parquet"])
    assert code == 2 and "a latents file, which nenya extract writes" in said, said
    assert not (tmp_path / "f.parquet.partial").exists()


def write(path, rows):
    with h5py.File(path, "w") as h5:
        h5["train"] = rows.astype(np.float32)
    return path


@pytest.mark.parametrize("count", [4, 5, 12])
def test_a_map_of_few_rows_has_fewer_neighbours(count, nenya_cli, tmp_path):
    path = write(tmp_path / "few_latents.h5", np.random.default_rng(count).normal(size=(count, 6)))
    code, said = nenya_cli("embed", [path])
    assert code == 0 and f"n_neighbors=15 needs more rows: using {count - 1} for {count} rows" in said, said
    assert f"placed {count} of {count} rows" in said


@pytest.mark.parametrize("rows", [np.ones((3, 6)), np.full((40, 6), np.nan)])
def test_too_few_rows_leave_nothing_behind(rows, nenya_cli, tmp_path):
    path = write(tmp_path / "few_latents.h5", rows)
    code, said = nenya_cli("embed", [path])
    assert code == 2 and "expected at least 4 rows with a finite latent for a UMAP, got" in said, said
    assert [found.name for found in tmp_path.iterdir()] == ["few_latents.h5"]


def test_an_error_of_the_fit_leaves_nothing_behind_and_one_after_it_the_work(nenya_cli, tmp_path, monkeypatch):
    path = write(tmp_path / "a_latents.h5", np.random.default_rng(0).normal(size=(30, 6)))
    with monkeypatch.context() as patch:
        patch.setattr("nenya.latents.projector._fit_layout", lambda *_: 1 / 0)
        assert nenya_cli("embed", [path])[0] == 2
    assert [found.name for found in tmp_path.iterdir()] == ["a_latents.h5"]
    with monkeypatch.context() as patch:
        patch.setattr(embed, "_place_rows", lambda *_: 1 / 0)
        assert nenya_cli("embed", [path])[0] == 2
    assert (tmp_path / "a_umap.parquet.partial" / "projector.h5").exists()
    assert nenya_cli("embed", [path])[0] == 0
