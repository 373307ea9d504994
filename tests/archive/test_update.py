"""Archives that are updated: what is there, what is not, and what readers see meanwhile."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from conftest import red_noise, write_cutouts
from granules import grid
from shard_player import losing_cluster, machines

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

from update_chaos import digest  # noqa: E402

from nenya.archive import commit  # noqa: E402
from nenya.archive.folder import Folder, open_version, render  # noqa: E402
from nenya.archive.index_writer import IndexWriter  # noqa: E402
from nenya.archive.manifest import parse  # noqa: E402
from nenya.commands import portal as command  # noqa: E402
from nenya.commands.compose import compose  # noqa: E402
from nenya.errors import InputFileError, OptionError, OutputError  # noqa: E402
from nenya.latents.projector import Projector  # noqa: E402
from nenya.portal.dataset import open_version_dataset, stamps_of  # noqa: E402
from nenya.storage.flock import flock  # noqa: E402
from nenya.storage.lock import OutputLock, read_lock  # noqa: E402

TINY = ["model=demo", "model.width=1"]
QUICK = ["trainer.accelerator=cpu", "model.backend=eager", "workers=1"]
BEGIN = [*TINY, "k=4", "passes=1"]


def table_of(name, seed):
    rng = np.random.default_rng(seed)
    table = pd.DataFrame({"pp_file": name, "pp_type": [1] * 12 + [0] * 6, "pp_idx": [*range(12), *range(6)]})
    table["lat"], table["lon"] = rng.uniform(-60, 60, 18), rng.uniform(-180, 180, 18)
    table["datetime"] = pd.Timestamp("2012-01-01") + pd.to_timedelta(np.arange(18) + 24 * seed, unit="h")
    table["UID"] = 2**60 + 100 * seed + np.arange(18)
    return table.sample(frac=1, random_state=seed)


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """Cutout files a, b (with tables) and c (without), and a map."""
    folder = tmp_path_factory.mktemp("files")
    for seed, name in enumerate("abc"):
        train = red_noise(12, seed=seed)
        train[3, 0, 0] = np.nan
        write_cutouts(folder / f"{name}_preproc.h5", train=train, valid=red_noise(6, seed=seed + 10))
        if name != "c":
            table_of(f"{name}_preproc.h5", seed).to_parquet(folder / f"{name}_preproc.parquet")
    rows = np.random.default_rng(0).standard_normal((100, 64)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    Projector.fit(rows, embedding=rows[:, :2] * 10).save(folder / "map.h5")
    return folder


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """Weights of a network as small as can be."""
    from nenya.commands.compose import compose
    from nenya.models.checkpoint import save_pth
    from nenya.models.contrastive import make_net

    path = tmp_path_factory.mktemp("weights") / "tiny.pth"
    save_pth(path, make_net(compose("extract", TINY)), options={}, epoch=1)
    return path


@pytest.fixture
def update(nenya_cli, files, weights):
    """Update the archive `archive` in the test's folder: (exit code, what it said)."""

    def call(*args, begin=False, place="archive"):
        first = [*BEGIN, f"ckpt={weights}", f"projector={files / 'map.h5'}"] if begin else []
        return nenya_cli("update", [f"archive={place}", *QUICK, *first, *args])

    return call


@pytest.fixture(scope="session")
def whole(files, weights, tmp_path_factory):
    """An archive of a, b and c, built in one go; not to be changed."""
    from nenya.cli import run_command

    place = tmp_path_factory.mktemp("whole") / "archive"
    first = [*BEGIN, *QUICK, f"ckpt={weights}", f"projector={files / 'map.h5'}"]
    args = [*first, f"archive={place}", f"new={files}/*_preproc.h5"]
    assert run_command("update", args) == 0
    return place


@pytest.fixture
def copy(whole, tmp_path):
    """A copy of it, named `archive`."""
    return Path(shutil.copytree(whole, tmp_path / "archive"))


def stems(place, version=None):
    return [added.stem for added in open_version(str(place), version).version.files]


def everything(place):
    return {
        p: (p.stat().st_mtime_ns, p.read_bytes()) for p in Path(place).rglob("*") if p.is_file() and p.name != "lock"
    }


# What is there


def test_an_archive_holds_all_that_is_made_of_its_files(whole, files):
    opened = open_version(str(whole))
    assert stems(whole) == ["a_preproc", "b_preproc", "c_preproc"]
    latents, table = opened.latents(), opened.table()
    assert latents.shape == (54, 64) and len(table) == 54
    assert list(opened.version.files[0].dates) == ["2012-01-01T00:00:00", "2012-01-01T17:00:00"]
    assert [added.left_out for added in opened.version.files] == [1, 1, 1]
    given = pd.concat([table_of("a", 0), table_of("b", 1)]).sort_values("UID", ignore_index=True)
    known = table[table["UID"].notna()].sort_values("UID", ignore_index=True)
    assert known["UID"].astype("int64").tolist() == given["UID"].tolist()
    np.testing.assert_array_equal(known["lat"], given["lat"])
    places = Projector.load(opened.folder.local(opened.version.projector)).transform(latents[0 : len(latents)])
    np.testing.assert_array_equal(table[["US0", "US1"]].to_numpy(), places)
    assert set(table["cluster"]) == {-1, 0, 1, 2, 3} and (table["cluster"] == -1).sum() == 3
    np.testing.assert_array_equal(table["rarity"].isna(), table["cluster"] == -1)
    assert table["rarity_percentile"].max() == 100 and table["rarity_percentile"].min() > 0
    index = opened.index()
    assert len(index) == 51 == opened.version.index.rows
    row = index.find("b_preproc:valid:2")
    np.testing.assert_array_equal(index.take(np.array([row]))[0], latents.take([18 + 12 + 2])[0])
    assert index.describe(np.array([row]))["cluster"][0] == table["cluster"][18 + 12 + 2]
    assert not list((whole / ".work").glob("[!l]*"))


def test_files_are_those_that_the_commands_alone_make(whole, nenya_cli, files, weights, tmp_path):
    args = [*TINY, *QUICK[:2], f"ckpt={weights}", f"data={files / 'a_preproc.h5'}", "out=."]
    assert nenya_cli("extract", args)[0] == 0
    (ours,) = (path for path in open_version(str(whole)).paths("latents") if path.name.startswith("a_"))
    with h5py.File(ours) as mine, h5py.File(tmp_path / "a_preproc_latents.h5") as alone:
        for name in ("train", "valid"):
            assert mine[name][()].tobytes() == alone[name][()].tobytes()
        assert mine.attrs["source_sha256"] == alone.attrs["source_sha256"]


def test_search_and_portal_take_an_archive(copy, nenya_cli):
    code, said = nenya_cli(
        "search", ["archive=archive", "like=a_preproc:train:1", "k=2", "where=rarity_percentile > 50", "out=f.csv"]
    )
    assert code == 0, said
    found = pd.read_csv("f.csv")
    assert len(found) == 2 and (found["rarity_percentile"] > 50).all()
    code, said = nenya_cli("search", ["archive=archive", "data=a.h5", "like=1"])
    assert code == 2 and "data=a.h5 and archive=archive: give one of them" in said
    code, said = nenya_cli("search", ["archive=archive", "image=i.npy", "k=1"])
    assert code == 2 and "i.npy" in said
    np.save("i.npy", red_noise(12, seed=1)[5])
    code, said = nenya_cli("search", ["archive=archive", "image=i.npy", "k=1", "out=g.csv"])
    assert code == 0, said
    found = pd.read_csv("g.csv").iloc[0]
    assert (found["pp_file"], found["pp_idx"]) == ("b_preproc.h5", 5) and found["cosine"] > 0.99
    assert nenya_cli("portal", ["archive=archive", "table=a.csv"])[0] == 2

    code, said = nenya_cli("statistics", ["archive=archive", "cluster=0", "metrics=[cluster]", "out=."])
    assert code == 0 and " of 54 rows" in said and Path("demo_statistics.parquet").is_file(), said
    code, said = nenya_cli("figures", ["archive=archive", "kind=gallery", "cells=3", "out=g.png"])
    assert code == 0 and Path("g.png").stat().st_size > 5000, said
    for name in ("statistics", "figures"):
        code, said = nenya_cli(name, ["archive=archive", "table=a.csv", "out=x"])
        assert code == 2 and "table=a.csv and archive=archive: give one of them" in said

    shown = open_version_dataset(open_version("archive"))
    assert {"rarity", "rarity_percentile"} <= set(shown.columns.metrics())
    assert shown.columns.rows == 54 and (shown.latent_of == np.arange(54)).all()
    assert all(image is not None for image in shown.cutouts.of(np.array([0, 20, 53])))


def test_a_map_and_groups_are_learnt_from_the_first_files(update, files, weights, monkeypatch):
    """umap-learn itself is left out: it takes ten seconds to compile."""
    fit, seen = Projector.fit.__func__, []

    def quick(cls, rows, n_neighbors, min_dist, metric, seed):
        seen.append((len(rows), n_neighbors, seed))
        good = rows[np.isfinite(rows).all(axis=1)]
        return fit(cls, good, n_neighbors, min_dist, metric, seed, embedding=good[:, :2] * 10)

    monkeypatch.setattr(Projector, "fit", classmethod(quick))
    new = f"new=[{files}/a_preproc.h5,{files}/b_preproc.h5]"
    code, said = update(*BEGIN, f"ckpt={weights}", "n_neighbors=7", new)
    assert code == 0, said
    assert seen == [(36, 7, 1234)]
    before = open_version("archive").version
    assert update(f"new={files}/c_preproc.h5")[0] == 0
    after = open_version("archive").version
    assert len(seen) == 1 and (after.projector, after.clusters) == (before.projector, before.clusters)
    with h5py.File("archive/demo/clusters.h5") as file:
        assert (np.diff(file["sizes"][()]) <= 0).all() and file["sizes"][()].sum() == 34
    code, said = update("version=big", *TINY, "k=40", f"ckpt={weights}", f"new={files}/a_preproc.h5")
    assert code == 2 and "k=40" in said and list(Folder("archive").read()) == ["demo"]


# New files


def test_a_rerun_does_nothing(copy, update, files):
    before = everything(copy)
    code, said = update(f"new={files}/*_preproc.h5")
    assert code == 0 and "3 already in the archive" in said
    assert everything(copy) == before
    (copy.parent / "moved").mkdir()
    moved = shutil.copy(files / "a_preproc.h5", copy.parent / "moved")
    code, said = update(f"new={moved}")
    assert code == 0 and "1 already in the archive" in said, said
    assert everything(copy) == before


def test_a_bad_file_is_said_and_the_others_go_on(update, files, tmp_path):
    new = tmp_path / "new"
    new.mkdir()
    (new / "a0_preproc.h5").write_bytes(b"no cutouts")
    for name in ("a_preproc.h5", "a_preproc.parquet", "c_preproc.h5"):
        shutil.copy(files / name, new)
    shutil.copy(files / "b_preproc.h5", new / "b_preproc.h5")
    table_of("other_preproc.h5", 1).to_parquet(new / "b_preproc.parquet")
    code, said = update("new=new", begin=True)
    assert code == 1
    assert said.count("no table (a .parquet") == 1
    assert "failed: new/a0_preproc.h5: not an HDF5 file" in said
    assert "UMAP and clusters of version demo are fitted, once, without the 1 failed files" in said
    assert "failed: new/b_preproc.h5: no row of the table has a latent" in said
    assert stems("archive") == ["a_preproc", "c_preproc"]
    assert not any(
        "b_preproc" in str(p) or "a0" in str(p) for p in Path("archive").rglob("*.h5") if ".work" not in p.parts
    )
    shutil.copy(files / "b_preproc.parquet", new)
    (new / "a0_preproc.h5").unlink()
    code, said = update("new=new")
    assert code == 0 and "1 added, 2 already in the archive" in said, said
    assert stems("archive") == ["a_preproc", "c_preproc", "b_preproc"]
    write_cutouts(new / "a_preproc.h5", train=red_noise(4, seed=77))
    code, said = update("new=new/a_preproc.h5")
    assert code == 1 and "has another file of this name" in said
    assert stems("archive") == ["a_preproc", "c_preproc", "b_preproc"]


def test_nothing_of_a_first_call_that_fails_is_there(update, nenya_cli, files, tmp_path):
    (tmp_path / "bad_preproc.h5").write_bytes(b"")
    code, said = update("new=bad_preproc.h5", begin=True)
    assert code == 1 and "bad_preproc.h5" in said
    assert not Path("archive/archive.json").exists()
    assert nenya_cli("status", ["archive"])[0] == 1
    assert update("new=nothing/*.h5")[0] == 2
    code, said = update(f"new={files}/a_preproc.h5", "k=3", begin=True)  # other options, as nothing is there yet
    assert code == 0, said
    assert nenya_cli("status", ["archive"])[0] == 0


def test_what_cannot_begin_leaves_nothing(update, weights):
    code, said = update("new=nothing", place="typo")
    assert code == 2 and "typo: no archive; give model= and ckpt=" in said
    code, said = update(*TINY, "new=nothing", "ckpt=typo.pth")
    assert code == 2 and "typo.pth: no such file of weights" in said
    code, said = update("model=demo", "model.width=2", "new=nothing", f"ckpt={weights}")
    assert code == 2 and str(weights) in said and "model.width=1" in said
    assert os.listdir() == []


def test_the_same_cutouts_under_another_name_are_left_out(copy, update, files, tmp_path):
    shutil.copy(files / "b_preproc.h5", tmp_path / "renamed_preproc.h5")
    before = Path("archive/archive.json").read_bytes()
    code, said = update("new=renamed_preproc.h5")
    assert code == 0 and "the archive has the same cutouts as b_preproc" in said and "1 already in the archive" in said
    assert Path("archive/archive.json").read_bytes() == before


def test_cutouts_of_another_size_are_refused(copy, update, files, tmp_path):
    before = everything(copy)
    write_cutouts(tmp_path / "d_preproc.h5", valid=red_noise(12, side=16))
    code, said = update("new=d_preproc.h5")
    assert code == 1 and "expected cutouts of 32 x 32 pixels (version demo), got 16 x 16: begin another" in said
    assert everything(copy) == before
    shutil.copy(files / "a_preproc.h5", tmp_path / "z_preproc.h5")
    code, said = update("new=[d_preproc.h5,z_preproc.h5]", begin=True, place="other")
    assert code == 1 and "expected cutouts of 16 x 16 pixels (version demo)" in said and stems("other") == ["d_preproc"]


def test_files_of_another_row_order_are_refused(copy, update, tmp_path):
    for name, order in (("south", "south_to_north"), ("swath", "swath")):
        write_cutouts(tmp_path / f"{name}_preproc.h5", train=red_noise(4, seed=31), valid=red_noise(2, seed=32))
        with h5py.File(tmp_path / f"{name}_preproc.h5", "a") as file:
            file.attrs["row_order"] = order
    before = everything(copy)
    code, said = update(f"new={tmp_path}/south_preproc.h5")
    assert code == 1 and "rows in an order that is not recorded, as in the archive, got rows from south to" in said
    assert everything(copy) == before and not list((copy / ".work").rglob("*.h5"))
    assert update(f"new={tmp_path}/swath_preproc.h5")[0] == 0  # swaths always had their own frame
    added = open_version(str(copy)).version.files[-1]
    assert (added.stem, added.row_order) == ("swath_preproc", "swath")
    code, said = update(f"new={tmp_path}/south_preproc.h5")
    assert code == 1 and "expected rows along a swath" in said


def test_columns_that_only_later_tables_have_are_said_once(copy, update, tmp_path):
    (tmp_path / "new").mkdir()
    for seed, name in ((7, "d"), (8, "e")):
        write_cutouts(
            tmp_path / "new" / f"{name}_preproc.h5", train=red_noise(12, seed=seed), valid=red_noise(6, seed=9)
        )
        table_of(f"{name}_preproc.h5", seed).assign(depth=1.5).to_parquet(f"new/{name}_preproc.parquet")
    code, said = update("new=new")
    assert (
        code == 0 and said.count("searches have no conditions on depth") == said.count("have no conditions on") == 1
    ), said
    assert open_version("archive").table()["depth"].notna().sum() == 36


def test_granules_go_through_the_recipe(update, files, weights, tmp_path):
    (tmp_path / "new").mkdir()
    recipe = ["sensor=grid", "field_size=32", "clear_threshold=100", "valid_fraction=0.5"]
    for day in range(3):
        grid((64, 96), times=1, seed=day).to_netcdf(f"new/g{day}.nc", engine="h5netcdf")
    cloudy = grid((64, 96), times=1)
    (cloudy * np.nan).assign_coords(cloudy.coords).to_netcdf("new/cloudy.nc", engine="h5netcdf")
    Path("new/torn.nc").write_bytes(Path("new/g0.nc").read_bytes()[:3000])
    code, said = update("new=new/g0.nc", begin=True)
    assert code == 2 and "expected sensor= with the first granules, such as new/g0.nc" in said
    assert len(said.splitlines()) == 1 and not Path("archive").exists()
    code, said = update("new=new/g0.nc", *recipe, "granules_per_file=2", begin=True)
    assert code == 0, said
    code, said = update("new=new", "granules_per_file=2")
    assert code == 1 and "failed: new/torn.nc" in said and "1 added, 1 already in the archive, 1 failed" in said, said
    version = open_version("archive").version
    assert version.settings["sensor"]["field_size"] == 32
    assert [[mark[0] for mark in added.sources] for added in version.files] == [["g0.nc"], ["g1.nc", "g2.nc"]]
    assert [mark[0] for mark in version.empty] == ["cloudy.nc"]
    table = open_version("archive").table()
    assert set(table["filename"]) == {"g0.nc", "g1.nc", "g2.nc"} and table["UID"].is_unique
    before = Path("archive/archive.json").read_bytes()
    Path("new/torn.nc").unlink()
    code, said = update("new=new", "granules_per_file=2")
    assert code == 0 and "4 already in the archive" in said, said
    assert Path("archive/archive.json").read_bytes() == before
    code, said = update("new=new", "field_size=64")
    assert code == 2 and "field_size=64" in said and "field_size=32" in said
    more = [*TINY, f"ckpt={weights}", f"projector={files / 'map.h5'}", "k=3"]
    assert update("version=two", *more)[0] == 0  # without a recipe of its own: it takes the cutouts of the other
    code, said = update("new=new", "granules_per_file=2")
    assert code == 0 and "two: 3 already in the archive" in said, said  # it has not looked at the cloudy one yet
    code, said = update("new=new", "granules_per_file=2")
    assert code == 0 and said.count("4 already in the archive") == 2, said


# Model versions


@pytest.mark.parametrize("other", ["data=a.h5", "clobber=true", "version=cutouts", "sesnor=modis", "new=null", "new="])
def test_what_is_not_for_archives(update, other):
    code, said = update("new=nowhere_preproc.h5", other, begin=True)
    assert code == 2 and other.split("=")[0] in said and not Path("archive").exists()


@pytest.mark.parametrize("other", ["k=5", "preprocess.file=demean", "model.feat_dim=32", "n_neighbors=9", "seed=3"])
def test_other_options_are_refused(copy, update, other):
    before = everything(copy)
    code, said = update("new=nowhere_preproc.h5", other)
    assert code == 2 and other in said and "version=" in said
    assert everything(copy) == before


def test_other_weights_are_refused_and_the_same_are_not(copy, update, files, weights, tmp_path):
    (tmp_path / "other.pth").write_bytes(Path(weights).read_bytes() + b"1")
    code, said = update(f"new={files}/a_preproc.h5", "ckpt=other.pth")
    assert code == 2 and "expected the weights that version demo was begun with" in said
    assert update(f"new={files}/a_preproc.h5", *TINY, f"ckpt={weights}", "k=4")[0] == 0


def test_weights_by_name_are_recorded(update, nenya_cli, files, weights, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    handler = partial(SimpleHTTPRequestHandler, directory=str(Path(weights).parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/{Path(weights).name}"
        given = [*BEGIN, f"projector={files / 'map.h5'}", f"new={files}/a_preproc.h5", f"ckpt={url}?token=hush"]
        code, said = update(*given, f"sha256={'0' * 64}")
        assert code == 2 and "expected sha256 0000" in said and not (tmp_path / "archive").exists()
        assert update(*given)[0] == 0
        server.shutdown()
    code, said = nenya_cli("status", ["archive"])
    assert code == 0 and f"  weights     {url}\n" in said
    assert not any(b"hush" in path.read_bytes() for path in (tmp_path / "archive").rglob("*") if path.is_file())
    # A folder of weights says network and preprocessing of a version.
    code, said = nenya_cli("export", [*TINY, f"ckpt={weights}", "out=folder/", "preprocess.file=demean"])
    assert code == 0, said
    code, said = update(
        "ckpt=folder/", "version=mine", f"projector={files / 'map.h5'}", "k=4", f"new={files}/a_preproc.h5"
    )
    assert code == 0, said
    settings = open_version(str(tmp_path / "archive"), "mine").version.settings
    assert (settings["model"]["width"], settings["preprocess"]["file"]) == (1, "demean")


def test_two_versions_side_by_side(copy, update, nenya_cli, files, weights):
    cutouts = {p: p.stat().st_ino for p in (copy / "cutouts").iterdir()}
    first = digest(open_version("archive"))
    more = [*TINY, f"ckpt={weights}", f"projector={files / 'map.h5'}"]
    code, said = update("version=wide", "model.latent=encoder", "k=3", *more)
    assert code == 2 and ("numbers" in said or "dimensions" in said)  # the map is of latents of another length
    code, said = update("version=five", "k=5", *more)
    assert code == 0, said
    assert stems(copy, "five") == stems(copy, "demo")
    assert {p: p.stat().st_ino for p in (copy / "cutouts").iterdir()} == cutouts
    assert digest(open_version("archive", "demo")) == first
    assert open_version("archive", "five").table()["cluster"].max() == 4
    assert open_version("archive", "five").table()["UID"].notna().sum() == 36
    with pytest.raises(OptionError, match="demo, five"):
        open_version("archive")
    code, said = nenya_cli("search", ["archive=archive", "like=1"])
    assert code == 2 and "version=" in said
    write_cutouts(Path("d_preproc.h5"), valid=red_noise(5, seed=8))
    code, said = update("new=d_preproc.h5")
    assert code == 0 and said.count("added d_preproc.h5") == 2
    Path("e_preproc.h5").write_bytes(b"no cutouts")
    code, said = update("new=e_preproc.h5")
    assert code == 1 and all(
        f"failed in version {name}: e_preproc.h5: not an HDF5" in said for name in ("demo", "five")
    )
    assert stems(copy, "five") == stems(copy, "demo") == ["a_preproc", "b_preproc", "c_preproc", "d_preproc"]


# Stopped, killed, at once


class Stop(BaseException):
    """Stands for a kill: nothing catches it."""


STEPS = [(Folder, "commit", 2, True)]
MORE = [(Folder, "publish", n, late) for n in range(1, 13) for late in (False, True)]
MORE += [(IndexWriter, "add", n, late) for n in (1, 2) for late in (False, True)]
MORE += [(IndexWriter, "publish", 2, False), (IndexWriter, "publish", 1, True)]
MORE += [(Folder, "commit", 1, False), (Folder, "commit", 3, True)]


@pytest.mark.parametrize(
    ("owner", "name", "number", "late"),
    [*STEPS, *(pytest.param(*step, marks=pytest.mark.slow) for step in MORE)],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_an_update_that_was_stopped_goes_on(update, files, whole, monkeypatch, owner, name, number, late):
    original, calls = getattr(owner, name), []

    def stopping(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == number and not late:
            raise Stop
        found = original(self, *args, **kwargs)
        if len(calls) == number:
            raise Stop
        return found

    new = f"new={files}/*_preproc.h5"
    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(owner, name, stopping)
        update(new, begin=True)
    manifest = Folder("archive").read()
    if manifest:
        opened = open_version("archive")
        assert len(opened.table()) == len(opened.latents()) == 18 * len(stems("archive"))
        assert len(opened.index()) == 17 * len(stems("archive"))
    if number == 4:  # somebody adds something else first
        extra = [f"new={files}/c_preproc.h5"] if not manifest else [new]
        assert update(*extra, begin=not manifest)[0] == 0
    assert update(new, begin=not manifest)[0] == 0
    if stems("archive") == stems(whole):
        assert digest(open_version("archive")) == digest(open_version(str(whole)))
    assert sorted(stems("archive")) == stems(whole)
    named = {entry.name for entry in open_version("archive").version.entries()}
    kept = {p.relative_to("archive") for p in Path("archive").rglob("*") if p.is_file() and p.name != "lock"}
    others = {str(p) for p in kept if not {"index", "index-states"} & set(p.parts)} - {"archive.json"}
    assert others <= named


def test_what_was_added_and_not_committed_is_never_seen(copy, update, files, tmp_path, monkeypatch):
    """A file that was in the index when the update was killed, and never came again."""
    write_cutouts(tmp_path / "d_preproc.h5", valid=red_noise(5, seed=8))
    write_cutouts(tmp_path / "e_preproc.h5", valid=red_noise(4, seed=9))
    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(Folder, "commit", lambda *_: (_ for _ in ()).throw(Stop()))
        update("new=d_preproc.h5")
    assert (copy / "cutouts" / "d_preproc.h5").exists()
    assert len(open_version("archive").index()) == 51
    assert update("new=e_preproc.h5")[0] == 0
    assert not (copy / "cutouts" / "d_preproc.h5").exists()
    index = open_version("archive").index()
    assert len(index) == 55 and index.find("e_preproc:valid:0") == 54
    with pytest.raises(InputFileError):
        index.find("d_preproc:valid:0")


def test_the_second_update_at_once_says_who_holds_it(copy, update, nenya_cli, files):
    with OutputLock(copy / ".work" / "lock", "archive"):
        code, said = update(f"new={files}/a_preproc.h5")
        assert "being updated by process" in nenya_cli("status", ["archive"])[1]
        (copy / ".work" / "next" / "one").mkdir(parents=True)
        held = nenya_cli("status", ["archive"])
        assert held[0] == 0 and "version next: 1 cutout file in work" in held[1]
    assert code == 2 and f"process {os.getpid()}" in said and "noticed at once on this machine" in said
    left = nenya_cli("status", ["archive"])
    assert left[0] == 1 and "version next: 1 cutout file unfinished; run the same nenya update again" in left[1]
    (copy / ".work" / "next" / "one").rmdir()
    (copy / ".work" / "next").rmdir()
    assert "being updated" not in nenya_cli("status", ["archive"])[1]


def test_a_reader_goes_on_through_an_update(copy, update, tmp_path):
    opened = open_version("archive")
    latents, index = opened.latents(), opened.index()
    len(index)  # it opens late
    before, shown = digest(opened), open_version_dataset(opened)
    assert shown.files == stamps_of([copy / "archive.json"])
    reopened, _ = command._folder(compose("portal", ["archive=archive"]))
    assert reopened().columns.rows == 54
    write_cutouts(tmp_path / "d_preproc.h5", valid=red_noise(5, seed=8))
    assert update("new=d_preproc.h5")[0] == 0
    np.testing.assert_array_equal(shown.cutouts.of(np.array([14]))[0], red_noise(6, seed=10)[2])
    assert shown.columns.rows == len(shown.latents) == 54
    assert digest(opened) == before and len(latents) == 54 and len(index) == 51
    assert len(open_version("archive").index()) == 56
    assert shown.files != stamps_of(shown.files)  # which an open page says
    assert reopened().columns.rows == len(reopened().latents) == 59


def test_kill_9(update, nenya_cli, files, weights, whole):
    first = [*BEGIN, *QUICK, f"ckpt={weights}", f"projector={files / 'map.h5'}"]
    args = ["update", *first, "archive=archive", f"new={files}/*_preproc.h5"]
    code = "import sys; from nenya.cli import main; sys.exit(main())"
    for _ in range(5):  # on a busy machine it may be done before it is killed
        shutil.rmtree("archive", ignore_errors=True)
        with subprocess.Popen([sys.executable, "-c", code, *args], stderr=subprocess.DEVNULL) as process:
            while not Path("archive/archive.json").exists() and process.poll() is None:
                time.sleep(0.002)
            process.kill()
        if process.returncode == -signal.SIGKILL and len(stems("archive")) < 3:
            break
    assert process.returncode == -signal.SIGKILL
    assert "being updated" not in nenya_cli("status", ["archive"])[1]
    opened = open_version("archive")
    assert len(opened.table()) == len(opened.latents()) == 18 * len(stems("archive")) < 54
    assert update(f"new={files}/*_preproc.h5")[0] == 0
    assert os.listdir("archive/.work") == ["lock"]
    assert not [path for path in Path("archive").rglob("*") if path.name.endswith((".tmp", ".part", ".partial"))]
    assert digest(open_version("archive")) == digest(open_version(str(whole)))


@pytest.mark.slow
def test_a_stopped_update_is_not_taken_for_gone(copy, update, nenya_cli, tmp_path):
    """However old its lock is, or will be; what both add is there in the end."""
    for seed, name in enumerate("defg"):
        write_cutouts(tmp_path / f"{name}_preproc.h5", valid=red_noise(5, seed=30 + seed))
    args = ["update", "archive=archive", *QUICK, "new=[d_preproc.h5,e_preproc.h5,f_preproc.h5]"]
    code = "import sys; from nenya.cli import main; sys.exit(main())"
    before, lock = (copy / "archive.json").read_bytes(), copy / ".work" / "lock"
    process = subprocess.Popen([sys.executable, "-c", code, *args], stderr=subprocess.DEVNULL)
    try:
        while (copy / "archive.json").read_bytes() == before and process.poll() is None:
            time.sleep(0.002)
        process.send_signal(signal.SIGSTOP)
        assert process.poll() is None and len(stems("archive")) < 6
        for age in (1000, 7200, -960):
            os.utime(lock, (time.time() - age, time.time() - age))
            number, said = update("new=g_preproc.h5")
            assert number == 2 and f"process {process.pid} on" in said and said.count("\n") == 1, said
        process.send_signal(signal.SIGCONT)
        assert process.wait(300) == 0
    finally:
        process.kill()
        process.wait()
    assert update("new=g_preproc.h5")[0] == 0
    assert set(stems("archive")) == {f"{name}_preproc" for name in "abcdefg"}
    assert nenya_cli("status", ["archive", "check=true"])[0] == 0


def test_files_that_no_version_names_are_said(copy, update, nenya_cli):
    assert nenya_cli("status", ["archive", "check=true"])[0] == 0
    (copy / "demo" / "tables" / "lost.parquet").touch()
    (copy / "cutouts" / "lost.h5").touch()
    code, said = nenya_cli("status", ["archive", "check=true"])
    assert code == 1 and "UNNAMED       cutouts/lost.h5" in said and "demo/tables/lost.parquet" in said
    assert json.loads(nenya_cli("status", ["archive", "check=true", "json=true"])[1])["unnamed"]
    assert nenya_cli("status", ["archive"])[0] == 0


@pytest.mark.slow
def test_50_kills(tmp_path):
    out = tmp_path / "chaos.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "update_chaos.py"), "--kills=50", f"--out={out}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(out.read_bytes())["modes"].values()
    assert sum(mode["kills"] for mode in found) >= 50
    assert all(mode["equal"] == mode["cases"] for mode in found)


# The vector index, S3, status


def test_the_vector_index_follows(copy, update, tmp_path):
    write_cutouts(tmp_path / "d_preproc.h5", valid=red_noise(5, seed=8))
    assert update("new=d_preproc.h5", "index_from=20")[0] == 0
    opened = open_version("archive")
    assert "IVF_FLAT of 56 rows" in opened.version.index.searched_by
    latents = opened.latents()
    answer = opened.index().search(latents.take([7])[0].astype(np.float64), 3)
    assert not answer.exact and len(answer.rows) == 3
    before = (copy / "archive.json").read_bytes()
    assert update("new=d_preproc.h5", "index_from=20")[0] == 0
    assert (copy / "archive.json").read_bytes() == before


def test_an_archive_on_s3(update, nenya_cli, files, whole, s3_bucket, s3_service, tmp_path, monkeypatch):
    from nenya.storage.s3.service import store

    for name in ("a_preproc.h5", "a_preproc.parquet", "b_preproc.h5", "b_preproc.parquet", "c_preproc.h5"):
        store().upload(files / name, f"s3://{s3_bucket}/in/{name}")
    place = f"s3://{s3_bucket}/archive"
    code, said = update(f"new=s3://{s3_bucket}/in/", begin=True, place=place)
    assert code == 0 and "3 added" in said, said
    code, said = update(f"new={files}/a_preproc.h5", "loader.cache_dir=another", place=place)
    assert code == 0 and "1 already in the archive" in said, said
    found, wanted = digest(open_version(place, cache_dir="read")), digest(open_version(str(whole)))
    assert {k for k in wanted if found[k] != wanted[k]} == {"files"}  # whose sources are elsewhere
    assert nenya_cli("status", [place, "check=true", "loader.cache_dir=third"])[0] == 0
    assert nenya_cli("search", [f"archive={place}", "like=4", "loader.cache_dir=third"])[0] == 0
    holder = {"host": "elsewhere", "pid": 12, "since": "noon", "alive": 4e9}

    def say(alive):
        data = json.dumps({**holder, "alive": alive}).encode()
        s3_service.client().put_object(Bucket=s3_bucket, Key="archive/update-lock.json", Body=data)

    say(4e9)  # its clock tells nothing, in either direction
    monkeypatch.setattr("nenya.archive.lease._LOOK", 0.1)
    done = threading.Event()

    def beat():  # from before the update looks until it ends, however slow it is
        for number in itertools.count(1):
            if done.wait(0.5):
                return
            say(number)

    beats = threading.Thread(target=beat)
    beats.start()
    code, said = update(f"new=s3://{s3_bucket}/in/", place=place)
    done.set()
    beats.join()
    assert code == 2 and "process 12 on elsewhere since noon" in said
    say(4e9)
    monkeypatch.setattr("nenya.archive.lease.SILENT", 0.5)
    write_cutouts(tmp_path / "d_preproc.h5", valid=red_noise(5, seed=8))
    assert update("new=d_preproc.h5", place=place)[0] == 0
    s3_service.client().delete_object(Bucket=s3_bucket, Key="archive/demo/tables/d_preproc.parquet")
    code, said = nenya_cli("status", [place])
    assert code == 1 and "demo/tables/d_preproc.parquet" in said


def test_two_machines_cannot_both_commit(whole, s3_bucket, tmp_path):
    place, manifest = f"s3://{s3_bucket}/archive", Folder(str(whole)).read()
    one, other = (Folder(place, str(tmp_path / name)) for name in ("one", "other"))
    assert one.read() == other.read() == {}
    one.commit(manifest)
    with pytest.raises(OutputError, match="another update"):
        other.commit({})
    assert other.read() == manifest == one.read()
    one.commit({**manifest, "two": manifest["demo"]})
    with pytest.raises(OutputError, match="another update"):
        other.commit(manifest)
    assert list(Folder(place).read()) == ["demo", "two"]


def test_an_answer_is_on_the_standard_output_and_nothing_else(whole):
    command = [sys.executable, str(ROOT / "scripts" / "status.py"), str(whole)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""
    assert f"{whole}, version demo" in done.stdout and "complete" in done.stdout
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()  # as `head` does
        assert process.stderr.read() == ""
    assert process.returncode == 141


def test_status_says_what_is_there_and_what_is_wrong(copy, update, nenya_cli):
    code, said = nenya_cli("status", ["archive"])
    assert code == 0 and "3 cutout files, train 36, valid 18 cutouts" in said and "2012-01-01" in said
    code, said = nenya_cli("status", ["archive", "json=true"])
    found = json.loads(said)
    assert code == 0
    assert found["good"] and found["versions"]["demo"]["rows"] == {"train": 36, "valid": 18}
    assert {"nenya", "torch", "lancedb", "python"} <= set(found["versions"]["demo"]["made"])
    latents = copy / "demo" / "latents" / "b_preproc_latents.h5"
    data = bytearray(latents.read_bytes())
    data[-1] ^= 1
    latents.write_bytes(data)
    assert nenya_cli("status", ["archive"])[0] == 0
    code, said = nenya_cli("status", ["archive", "check=true"])
    assert code == 1 and "DAMAGED" in said and latents.name in said
    latents.unlink()
    code, said = nenya_cli("status", ["archive"])
    assert code == 1 and "MISSING" in said
    code, said = update()
    assert code == 1 and f"missing or damaged files listed in archive.json: demo/latents/{latents.name};" in said
    shutil.rmtree(copy / "demo" / "index")
    assert "demo/index" in nenya_cli("status", ["archive"])[1]
    assert nenya_cli("status", ["nowhere"])[0] == 2
    code, said = nenya_cli("status", ["archive/archive.json"])
    assert code == 2 and "expected the folder of an archive, got a file" in said
    code, said = nenya_cli("status", ["archive", "check=maybe"])
    assert code == 2 and "check=maybe: expected true or false" in said
    code, said = update("new=nowhere", "version=nosuch")
    assert code == 2 and "version=nosuch: archive has demo; to begin another version, give model= and ckpt=" in said


def test_a_folder_with_other_things_is_left_alone(update, files, tmp_path):
    (tmp_path / "archive" / "cutouts").mkdir(parents=True)
    shutil.copy(files / "a_preproc.h5", tmp_path / "archive" / "cutouts")
    code, said = update("new=archive/cutouts", begin=True)
    assert code == 2 and "has no archive.json, but other files" in said
    assert os.listdir(tmp_path / "archive" / "cutouts") == ["a_preproc.h5"]


def test_the_manifest_is_read_as_it_is_written_and_checked(whole):
    data = (whole / "archive.json").read_bytes()
    assert render(parse(data, "here")) == data
    assert max(map(len, data.splitlines())) < 2000
    values = json.loads(data)
    with pytest.raises(InputFileError, match="newer nenya"):
        parse(json.dumps({**values, "format": 2}).encode(), "here")
    with pytest.raises(InputFileError, match="damaged"):
        parse(data[:-200], "here")
    with pytest.raises(InputFileError, match="expected a plain relative name"):
        parse(data.replace(b"demo/weights.pth", b"../weights.pth"), "here")


def test_a_commit_waits_for_its_turn_and_gives_up_in_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(commit, "_PATIENCE", 0.1)
    path = tmp_path / "manifest.json"
    path.write_bytes(b"old")
    descriptor = os.open(tmp_path, os.O_RDONLY)
    try:
        assert flock(descriptor)
        with pytest.raises(OutputError, match="another update is changing it"):
            commit.replace_file(path, b"new", commit.fingerprint(b"old"), lambda: None, "archive")
        assert path.read_bytes() == b"old"
    finally:
        os.close(descriptor)
    commit.replace_file(path, b"new", commit.fingerprint(b"old"), lambda: None, "archive")
    assert path.read_bytes() == b"new"


# Shards


def test_shards_of_a_first_update_and_of_the_next_ones(update, files, weights, whole, tmp_path):
    both = [f"{files}/a_preproc.h5", f"{files}/b_preproc.h5", f"{files}/c_preproc.h5"]
    new = f"new=[{','.join(both)}]"
    assert update(new, "shard=0/2", begin=True)[0] == 0
    assert not (tmp_path / "archive" / "archive.json").exists()
    code, said = update(new, "shard=merge", begin=True)
    assert code == 2 and "shard 1/2 not complete (1 of 3 pieces" in said, said
    code, said = update(new, "shard=1/2", begin=True)
    assert code == 0 and "1 of 3 files are of this shard" in said, said
    made = {path: path.stat().st_ino for path in (tmp_path / "archive" / ".work").rglob("*_latents.h5")}
    assert len(made) == 3
    code, said = update(new, "shard=merge", begin=True)
    assert code == 0, said
    inodes = [path.stat().st_ino for path in (tmp_path / "archive").rglob("*_latents.h5")]
    assert sorted(inodes) == sorted(made.values())  # what the workers made is what is published
    assert digest(open_version("archive")) == digest(open_version(str(whole)))
    assert not list((tmp_path / "archive" / ".work").glob(".shards/*/*"))


@pytest.mark.slow
def test_shards_into_an_archive_place_their_rows(update, files, whole, tmp_path):
    assert update(f"new={files}/a_preproc.h5", begin=True)[0] == 0
    new = f"new=[{files}/b_preproc.h5,{files}/c_preproc.h5]"
    for number in (1, 0):
        code, said = update(new, f"shard={number}/2")
        assert code == 0, said
    assert len(list((tmp_path / "archive" / ".work").rglob("table/*.parquet"))) == 2
    assert stems("archive") == ["a_preproc"]
    assert update(new, "shard=merge")[0] == 0
    assert update(f"new={files}/a_preproc.h5", begin=True, place="one")[0] == 0
    assert update(new, place="one")[0] == 0
    assert digest(open_version("archive")) == digest(open_version("one"))


def test_a_file_that_no_worker_can_use_is_reported_by_the_merge(update, files, tmp_path):
    assert update(f"new={files}/a_preproc.h5", begin=True)[0] == 0
    (tmp_path / "bad_preproc.h5").write_bytes(b"not HDF5")
    new = f"new=[{tmp_path}/bad_preproc.h5,{files}/b_preproc.h5]"
    code, said = update(new, "shard=0/1")
    assert code == 1 and "bad_preproc.h5" in said, said
    code, said = update(new, "shard=merge")
    assert code == 1 and "bad_preproc.h5" in said and stems("archive") == ["a_preproc", "b_preproc"], said


def test_updates_and_shards_keep_out_of_each_others_way(update, files, tmp_path):
    assert update(f"new={files}/a_preproc.h5", begin=True)[0] == 0
    work = tmp_path / "archive" / ".work"
    new = f"new={files}/b_preproc.h5"
    with OutputLock(work / ".shards" / "demo" / "shard-3-of-9.lock", "shard 3/9"):
        code, said = update(new)
        assert code == 2 and "shard-3-of-9 of an update is being made by process" in said, said
    with OutputLock(work / "lock", "archive"):
        code, said = update(new, "shard=0/2")
        assert code == 2 and "is being updated by process" in said, said
    assert update(new)[0] == 0


def test_workers_with_other_options_are_refused(update, files, tmp_path):
    new = f"new=[{files}/a_preproc.h5,{files}/b_preproc.h5]"
    assert update(new, "shard=0/2", begin=True)[0] == 0
    code, said = update(new, "shard=1/2", "seed=5", begin=True)
    assert code == 2 and "holds unfinished work with other weights or options" in said, said
    assert len(list((tmp_path / "archive" / ".work").rglob("*_latents.h5"))) == 1
    assert update(new, "shard=1/2", begin=True)[0] == 0
    code, said = update(new, "shard=merge", "seed=5", begin=True)
    assert code == 2 and "holds unfinished work with other weights or options" in said, said
    assert len(list((tmp_path / "archive" / ".work").rglob("*_latents.h5"))) == 2


@pytest.mark.slow
def test_two_machines_of_an_update_one_of_which_goes_away(update, files, weights, whole, tmp_path):
    args = [*BEGIN, *QUICK, f"ckpt={weights}", f"projector={files / 'map.h5'}", "archive=archive"]
    args = [*args, f"new=[{files}/a_preproc.h5,{files}/b_preproc.h5,{files}/c_preproc.h5]"]
    with machines(60) as start:
        both = [
            start("one", "update", [*args, "shard=0/2"], DIE_AFTER="4"),
            start("two", "update", [*args, "shard=1/2"]),
        ]
        said = [process.communicate(timeout=300)[0] for process in both]
        assert [process.returncode for process in both] == [137, 0], said
        code, merged = update(*args[-1:], "shard=merge", begin=True)
        assert code == 2 and "shard 0/2 not complete (1 of 3 pieces" in merged, merged
        again = start("three", "update", [*args, "shard=0/2"])
        said = again.communicate(timeout=300)[0]
        assert again.returncode == 0, said
    code, merged = update(*args[-1:], "shard=merge", begin=True)
    assert code == 0, merged
    assert digest(open_version("archive")) == digest(open_version(str(whole)))


@pytest.mark.slow
def test_an_update_on_a_dask_cluster_that_loses_a_worker(update, files, whole, tmp_path):
    new = f"new=[{files}/a_preproc.h5,{files}/b_preproc.h5,{files}/c_preproc.h5]"
    work = tmp_path / "archive" / ".work"

    def victim(cluster):
        begun = list(work.glob("demo/*/*"))
        return read_lock(work / ".shards" / "demo" / "shard-0-of-2.lock").said.get("pid") if begun else None

    with losing_cluster(victim) as (address, lost):
        code, said = update(new, f"dask={address}", begin=True)
    assert code == 0 and lost, said
    assert "2 shards on the 2 workers" in said and "3 added" in said
    assert digest(open_version("archive")) == digest(open_version(str(whole)))
