"""The users' calls on maps: parts of a table, files by the name of a model, grids, regions."""

import json
import pickle

import h5py
import numpy as np
import pandas as pd
import pytest
from latent_sets import latents

from nenya import nenya_umap
from nenya.defs import DT_INTERVALS
from nenya.errors import InputFileError, OptionError
from nenya.io import Params
from nenya.latents.projector import Projector


@pytest.fixture
def table():
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "US0": rng.normal(0, 5, 4000),
            "US1": rng.normal(100, 1, 4000),
            "lat": rng.uniform(-60, 60, 4000),
            "lon": rng.uniform(-180, 180, 4000),
        }
    )


def test_the_grid_has_both_steps_right_and_a_margin(table):
    grid = nenya_umap.grid_umap(table.US0, table.US1, nxy=8, percent=[0, 100])
    assert (grid["dxv"], grid["dyv"]) == grid["dxdy"] == pytest.approx((np.ptp(table.US0) / 8, np.ptp(table.US1) / 8))
    low, high = table.US0.min() - grid["dxv"], table.US0.max() + grid["dxv"]
    assert (grid["xmin"], grid["xmax"]) == pytest.approx((low, high))
    for edges, step in zip((grid["xval"], grid["yval"]), grid["dxdy"], strict=True):
        assert len(edges) == 11
        np.testing.assert_allclose(np.diff(edges), step)
    assert nenya_umap.grid_umap([0, 1, np.nan], [0, 1, 5], 1, [0, 100])["ymax"] == 2
    with pytest.raises(InputFileError, match="differ"):
        nenya_umap.grid_umap([1, 1], [0, 1])


def test_each_cell_draws_one_of_its_own_rows(table):
    on_grid, cutouts, grid = nenya_umap.cutouts_on_umap_grid(table, 4, ("US0", "US1"), min_pts=3)
    assert len(cutouts) == 36
    for cell, row in enumerate(cutouts):
        low = grid["xval"][cell // 6], grid["yval"][cell % 6]
        high = grid["xval"][cell // 6 + 1], grid["yval"][cell % 6 + 1]
        inside = on_grid.US0.between(low[0], high[0]) & on_grid.US1.between(low[1], high[1])
        assert (row is None) == (inside.sum() < 3)
        assert row is None or inside[row.name]
    again = nenya_umap.cutouts_on_umap_grid(table, 4, ("US0", "US1"), min_pts=3)[1]
    other = nenya_umap.cutouts_on_umap_grid(table, 4, ("US0", "US1"), min_pts=3, seed=2)[1]
    names, same, different = ([None if r is None else r.name for r in rows] for rows in (cutouts, again, other))
    assert names == same != different


def test_a_region_is_compared_with_all_of_the_ocean(table):
    table.loc[0, ["lat", "lon"]] = 0, 225.0  # the same place as -135
    counts, own, rows, grid, xedges, _ = nenya_umap.regional_analysis("eqpacific", table, 4, min_counts=20)
    assert counts.shape == (6, 6) and len(xedges) == 7
    assert counts.sum() == pytest.approx(1) and own.sum() == pytest.approx(1)
    assert len(rows) > 3900, "the table of all regions"
    lon = np.where(rows.lon > 180, rows.lon - 360, rows.lon)
    region = rows[(rows.lat.abs() < 5) & (lon > -140) & (lon < -90)]
    assert 0 in region.index
    expected, *_ = np.histogram2d(region.US0, region.US1, bins=(grid["xval"], grid["yval"]))
    np.testing.assert_allclose(own, expected / expected.sum())
    few, _, everything, *_ = nenya_umap.regional_analysis("global", table, 4, min_counts=10**6)
    assert few.sum() == 0 and len(everything) > 3900
    table["LL"] = np.where(np.arange(len(table)) % 2, 1.0, np.nan)
    assert len(nenya_umap.regional_analysis("global", table, 4)[2]) < 2100, "rows without LL are left out"
    with pytest.raises(OptionError, match="eqpacific"):
        nenya_umap.regional_analysis("eqpacifc", table, 4)


def test_a_table_without_coordinates_says_how_to_make_them(table):
    with pytest.raises(InputFileError, match="nenya embed"):
        nenya_umap.cutouts_on_umap_grid(table.drop(columns="US1"), 4)


@pytest.mark.parametrize(
    ("model", "dt", "name"),
    [
        ("v5", 0.0, "MODIS_L2/Nenya/UMAP/MODIS_Nenya_96clear_v5_DT0_UMAP.h5"),
        ("v4", 1.0, "MODIS_L2/Nenya/UMAP/MODIS_SSL_96clear_v4_DT15_UMAP.h5"),
        ("CF", 2.5, "MODIS_L2/Nenya/UMAP/MODIS_SSL_cloud_free_DT4_UMAP.h5"),
        ("viirs_v1", 7, "VIIRS/Nenya/UMAP/VIIRS_Nenya_98clear_v1_DT5_UMAP.h5"),
    ],
)
def test_projector_and_table_are_found_by_model_and_dt(model, dt, name, tmp_path, monkeypatch):
    monkeypatch.setenv("OS_SST", str(tmp_path))
    projector = Projector.fit(latents(30, 0), embedding=np.zeros((30, 2)))
    projector.save(tmp_path / name)
    found, table = nenya_umap.load(model, DT=dt)
    np.testing.assert_array_equal(found.latents, projector.latents)
    assert table == str(tmp_path / name.replace("/UMAP/", "/Tables/").replace("_UMAP.h5", ".parquet"))


@pytest.mark.parametrize(("model", "dt"), [("v5", -1), ("v5", float("nan")), ("v5", None), ("v6", 1)])
def test_what_has_no_map_is_said(model, dt, tmp_path, monkeypatch):
    monkeypatch.setenv("OS_SST", str(tmp_path))
    with pytest.raises(OptionError, match=r"wanted is|expected|give DT="):
        nenya_umap.load(model, DT=dt)


def test_an_old_pickle_is_refused_with_how_to_refit(tmp_path, monkeypatch):
    monkeypatch.setenv("OS_SST", str(tmp_path))
    path, table = nenya_umap.places("v5", 0.7)
    path.parent.mkdir(parents=True)
    path.with_suffix(".pkl").write_bytes(pickle.dumps({}))
    with pytest.raises(InputFileError, match=rf"pickle.*nenya embed.* DT_cut=DT1 out={table} umap_savefile="):
        nenya_umap.load("v5", DT=0.7)


def test_a_part_of_a_table_is_mapped_with_the_latents_of_its_options(tmp_path, monkeypatch):
    monkeypatch.setattr("nenya.latents.projector._fit_layout", lambda rows, parameters, epochs: rows[:, :2])
    values = {"feat_dim": 32, "s3_outdir": str(tmp_path / "SSL"), "model_root": "M"}
    (tmp_path / "opts.json").write_text(json.dumps(values))
    folder = tmp_path / "SSL" / Params(values).latents_folder
    folder.mkdir(parents=True)
    rows = latents(200, 0)
    with h5py.File(folder / "a_preproc_latents.h5", "w") as h5:
        h5["valid"] = rows
    dt = np.linspace(0, 2, 200)
    table = pd.DataFrame({"pp_file": "a_preproc.h5", "pp_type": 0, "pp_idx": np.arange(200), "T90": 20 + dt, "T10": 20})
    table["alpha"] = np.where(np.arange(200) % 2, -1.6, -3.5)
    out = tmp_path / "part.parquet"
    projector = nenya_umap.umap_subset(table, tmp_path / "opts.json", out, DT_cut="DT1", alpha_cut="a2", ntrain=20)
    came = pd.read_parquet(out)
    interval = DT_INTERVALS["DT1"]
    wanted = (dt >= interval.low) & (dt < interval.high) & (table["alpha"].to_numpy() == -1.6)
    assert came["pp_idx"].tolist() == np.flatnonzero(wanted).tolist()
    assert len(projector.latents) == 20
    np.testing.assert_array_equal(came[["US0", "US1"]], projector.transform(rows[wanted]))
    saved = tmp_path / "part_UMAP.h5"
    again = nenya_umap.umap_subset(
        table, None, tmp_path / "all.parquet", latents=folder / "a_preproc_latents.h5", umap_savefile=saved,
        train_umap=False,
    )  # fmt: skip
    np.testing.assert_array_equal(again.embedding, projector.embedding)
    assert len(pd.read_parquet(tmp_path / "all.parquet")) == 200


def test_no_row_in_an_interval_is_said(table):
    table["DT"] = 9.0
    with pytest.raises(InputFileError, match="none of 4000 rows"):
        nenya_umap.cut_table(table, "DT1")
