"""Shards: shares of several workers and one merge give what one process gives, also where a worker is killed."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import shard_player
from latent_sets import latents

from nenya.commands import metrics
from nenya.errors import OptionError
from nenya.latents import embed
from nenya.latents.index import open_table, read_about
from nenya.latents.index_rows import VECTOR
from nenya.runtime.shards import Share, parse_share
from nenya.tables.conditions import ROW

PIECE_ROWS = 60


@pytest.fixture
def small_pieces(monkeypatch):
    for name in shard_player.PIECES:
        monkeypatch.setattr(name, PIECE_ROWS)
    monkeypatch.setattr("nenya.latents.projector._fit_layout", shard_player.fit_layout)


@pytest.fixture
def archive(tmp_path):
    """Two latents files of 400 rows, of which three are NaN, and their table."""
    tables = []
    for number, name in enumerate("ab"):
        rows = latents(400, number)
        rows[[7, 11, 250 + number]] = np.nan
        with h5py.File(tmp_path / f"{name}_preproc_latents.h5", "w") as h5:
            h5["train"], h5["valid"] = rows[:300], rows[300:]
        keys = {"pp_type": np.repeat([1, 0], [300, 100]), "pp_idx": np.r_[0:300, 0:100]}
        tables.append(pd.DataFrame({"pp_file": f"{name}_preproc.h5", **keys, "granule": np.arange(400) // 20}))
    pd.concat(tables).to_parquet(tmp_path / "table.parquet")
    return [f"data={tmp_path}/*_latents.h5", f"table={tmp_path}/table.parquet"]


COMMANDS = {
    "embed": ["ntrain=200", "approximate=false"],
    "outliers": ["exact=true", "k=5", "images=none", "rarest=5", "groups=2"],
    "outliers in cells": ["exact=false", "k=5", "probes=4", "images=none", "rarest=5", "groups=2"],
}


def files_of(folder):
    """Return name -> what is told of a file, for all files of a folder."""
    found = {}
    for path in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
        if path.suffix == ".parquet":
            found[path.name] = pd.util.hash_pandas_object(pd.read_parquet(path)).tolist()
        elif path.suffix == ".h5":
            with h5py.File(path) as file:
                found[path.name] = {name: file[name][()].tobytes() for name in file}
        else:
            found[path.name] = path.read_bytes()
    return found


@pytest.mark.parametrize("words", ["embed", "outliers", pytest.param("outliers in cells", marks=pytest.mark.slow)])
def test_shards_give_what_one_process_gives(words, archive, small_pieces, nenya_cli, tmp_path):
    command, args = words.split()[0], [*archive, *COMMANDS[words]]
    code, said = nenya_cli(command, [*args, "out=one/t.parquet"])
    assert code == 0, said
    args = [*args, "out=shared/t.parquet"]
    code, said = nenya_cli(command, [*args, "shard=merge"])
    assert code == 2 and "no shard of this work was begun" in said, said
    for number in (2, 0):
        code, said = nenya_cli(command, [*args, f"shard={number}/3"])
        assert code == 0 and f"shard {number}/3 is complete" in said, said
    code, said = nenya_cli(command, [*args, "shard=merge"])
    assert code == 2 and "shard 1/3 not complete" in said and "run shard=1/3 again" in said, said
    assert [path.name for path in (tmp_path / "shared").iterdir()] == ["t.parquet.shards"]
    assert nenya_cli(command, [*args, "shard=1/3"])[0] == 0
    code, said = nenya_cli(command, [*args, "shard=merge"])
    assert code == 0, said
    assert files_of("shared") == files_of("one")


def test_a_damaged_piece_is_made_again(archive, small_pieces, nenya_cli, tmp_path):
    args = ["embed", [*archive, "ntrain=200", "out=t.parquet"]]
    for number in (0, 1):
        assert nenya_cli(args[0], [*args[1], f"shard={number}/2"])[0] == 0
    piece = sorted(tmp_path.glob("t.parquet.shards/*/rows-*"))[3]
    before = piece.read_bytes()
    piece.write_bytes(before[:9] + bytes([before[9] ^ 1]) + before[10:])
    code, said = nenya_cli(args[0], [*args[1], "shard=merge"])
    assert code == 2 and "shard 1/2 not complete (1 of 14 pieces" in said, said
    code, said = nenya_cli(args[0], [*args[1], "shard=1/2"])
    assert code == 0 and "already placed" in said, said
    assert piece.read_bytes() == before
    assert nenya_cli(args[0], [*args[1], "shard=merge"])[0] == 0


def test_other_options_are_other_work(archive, small_pieces, nenya_cli):
    assert nenya_cli("outliers", [*archive, "k=5", "images=none", "shard=0/1", "out=t.parquet"])[0] == 0
    code, said = nenya_cli("outliers", [*archive, "k=6", "images=none", "shard=merge", "out=t.parquet"])
    assert code == 2 and "no shard of this work was begun with these files and options" in said, said


# What a merge leaves


def files_in(folder):
    """Return path -> content and time of the last change, for all files of a folder but locks."""
    files = [path for path in Path(folder).rglob("*") if path.is_file() and "lock" not in path.name]
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def blocks_in(folder):
    return len(list(Path(folder).rglob("rows-*")))


@pytest.fixture
def killed(nenya_cli, monkeypatch):
    """Run embed, and interrupt it when it calls a function of its module for the n-th time."""

    def run(args, name, calls):
        function, count = getattr(embed, name), itertools.count(1)

        def counted(*given):
            if next(count) == calls:
                raise KeyboardInterrupt
            return function(*given)

        with monkeypatch.context() as during:
            during.setattr(embed, name, counted)
            assert nenya_cli("embed", args)[0] == 75

    return run


def test_a_merge_that_overwrites_discards_no_unfinished_work(archive, small_pieces, nenya_cli, killed, tmp_path):
    args = [*archive, "clobber=true", "out=t.parquet"]
    shards, partial = tmp_path / "t.parquet.shards", tmp_path / "t.parquet.partial"
    assert nenya_cli("embed", [*args, "ntrain=200"])[0] == 0
    killed([*args, "ntrain=150"], "_write", 4)  # the manifest and two blocks are written
    for ntrain, share in ((200, "0/2"), (100, "1/2")):
        assert nenya_cli("embed", [*args, f"ntrain={ntrain}", f"shard={share}"])[0] == 0
    assert (blocks_in(partial), blocks_in(shards)) == (2, 14)
    before = files_in(tmp_path)
    code, said = nenya_cli("embed", [*args, "ntrain=200", "shard=merge"])
    assert code == 2 and "shard 1/2 not complete (7 of 14 pieces" in said, said
    assert files_in(tmp_path) == before
    assert nenya_cli("embed", [*args, "ntrain=200", "shard=1/2"])[0] == 0
    code, said = nenya_cli("embed", [*args, "ntrain=200", "shard=merge"])
    assert code == 0 and "kept the shards of other files or options" in said, said
    assert (blocks_in(partial), blocks_in(shards)) == (2, 7)
    assert files_in(partial).items() <= before.items() and files_in(shards).items() <= before.items()
    for share in ("0/2", "merge"):
        assert nenya_cli("embed", [*args, "ntrain=100", f"shard={share}"])[0] == 0
    code, said = nenya_cli("embed", [*args, "ntrain=150"])
    assert code == 0 and "resuming: 120 of 800 rows" in said, said
    assert sorted(path.name for path in tmp_path.glob("t*")) == ["t.parquet", "t_UMAP.h5", "table.parquet"]


def test_a_killed_merge_is_repeated(archive, small_pieces, nenya_cli, killed, tmp_path):
    for out in ("t", "u"):
        for number in (0, 1):
            assert nenya_cli("embed", [*archive, "ntrain=200", f"out={out}.parquet", f"shard={number}/2"])[0] == 0
    merge = [*archive, "ntrain=200", "shard=merge"]
    killed([*merge, "out=t.parquet"], "write_table", 1)
    assert (tmp_path / "t_UMAP.h5").exists() and not (tmp_path / "t.parquet").exists()
    code, said = nenya_cli("embed", [*merge, "out=t.parquet"])
    assert code == 0, said
    code, said = nenya_cli("embed", [*merge, "out=u.parquet", "umap_savefile=t_UMAP.h5"])
    assert code == 2 and "t_UMAP.h5 exists: clobber=true overwrites it" in said, said


@pytest.mark.parametrize("words", ["outliers", "outliers in cells"])
def test_missing_shards_of_outliers_are_named_first(words, archive, small_pieces, nenya_cli, monkeypatch, tmp_path):
    args = [*archive, *COMMANDS[words], "out=t.parquet"]

    def merge():
        with monkeypatch.context() as during:
            for later in ("nenya.commands.outliers.fit_density", "nenya.latents.rarity.cells_of"):
                during.setattr(later, None)
            return nenya_cli("outliers", [*args, "shard=merge"])

    code, said = merge()
    assert code == 2 and "no shard of this work was begun" in said, said
    assert nenya_cli("outliers", [*args, "shard=1/2"])[0] == 0
    code, said = merge()
    assert code == 2 and "shard 0/2 not complete (" in said, said
    assert nenya_cli("outliers", [*args, "shard=0/2"])[0] == 0
    for cells in tmp_path.glob("t.parquet.shards/*/cells"):
        cells.unlink()
        code, said = merge()
        assert code == 2 and "shards 0/2, 1/2 not complete: run shard=0/2 again" in said, said
        assert nenya_cli("outliers", [*args, "shard=0/2"])[0] == 0
    assert nenya_cli("outliers", [*args, "shard=merge"])[0] == 0


@pytest.mark.parametrize("text", ["3/3", "1", "a/b", "-1/2", "merged", "1/0"])
def test_a_malformed_share_is_refused(text):
    with pytest.raises(OptionError, match=r"expected i/n with i from 0 to n-1, such as shard=0/4, or shard=merge"):
        parse_share(text)


def test_shares_are_disjoint_and_complete():
    pieces = [piece for number in range(4) for piece in range(11) if Share(number, 4).owns(piece)]
    assert sorted(pieces) == list(range(11))
    assert parse_share("merge").merges and not any(map(parse_share("merge").owns, range(11)))
    assert parse_share(" 2 / 5 ") == Share(2, 5) and parse_share(None) is None


# Two machines


@pytest.fixture
def on_host():
    with shard_player.machines(PIECE_ROWS) as start:
        yield start


@pytest.mark.slow
@pytest.mark.parametrize("words", COMMANDS)
def test_two_machines_one_of_which_goes_away(words, archive, on_host, nenya_cli, small_pieces, tmp_path):
    command, args = words.split()[0], [*archive, *COMMANDS[words]]
    assert nenya_cli(command, [*args, "out=one/t.parquet"])[0] == 0
    args = [*args, "out=shared/t.parquet"]
    both = [
        on_host("one", command, [*args, "shard=0/2"]),
        on_host("two", command, [*args, "shard=1/2"], DIE_AFTER="4"),
    ]
    said = [process.communicate(timeout=300)[0] for process in both]
    assert both[0].returncode == 0, said[0]
    assert both[1].returncode == 137, said[1]  # SIGKILL
    code, merged = nenya_cli(command, [*args, "shard=merge"])
    assert code == 2 and "shard 1/2 not complete" in merged, merged
    again = on_host("three", command, [*args, "shard=1/2"])  # another machine continues
    words = again.communicate(timeout=300)[0]
    assert again.returncode == 0 and "resuming" in words, words
    code, merged = nenya_cli(command, [*args, "shard=merge"])
    assert code == 0, merged
    assert files_of("shared") == files_of("one")


@pytest.mark.slow
def test_a_dask_cluster_that_loses_a_worker(archive, nenya_cli, tmp_path):
    with h5py.File(tmp_path / "large_preproc_latents.h5", "w") as h5:
        h5["train"] = latents(40_000, 3)
    args = [f"data={tmp_path}/large_preproc_latents.h5", "k=5", "images=none", "rarest=5", "groups=2", "exact=true"]
    assert nenya_cli("outliers", [*args, "out=one/t.parquet"])[0] == 0

    def victim(cluster):
        return cluster.workers[0].pid if list(tmp_path.glob("shared/*.shards/*/rarity-*")) else None

    with shard_player.losing_cluster(victim) as (address, lost):
        code, said = nenya_cli("outliers", [*args, "out=shared/t.parquet", f"dask={address}"])
    assert code == 0 and lost, said
    assert "2 shards on the 2 workers" in said
    assert files_of("shared") == files_of("one")


# Files


def without_dates(folder):
    """Return name -> content of the results of `metrics`, without what tells when and where they were made."""
    found = {}
    for path in sorted(Path(folder).iterdir()):
        if path.name.endswith("_metrics.json"):
            values = json.loads(path.read_text())
            values["made_by"].pop("date")
            found[path.name] = {**values, "pca_file": Path(values["pca_file"]).name}
        elif path.name.endswith("_pca.npz"):
            with np.load(path) as arrays:
                found[path.name] = {name: arrays[name].tobytes() for name in arrays}
        elif path.suffix == ".csv":
            found[path.name] = path.read_bytes()
    return found


def test_metrics_of_files_are_shared(archive, nenya_cli, tmp_path):
    args = [archive[0], "sample=100", "coefficients=false"]
    assert nenya_cli("metrics", [*args, "out=one"])[0] == 0
    assert (tmp_path / "one" / "metrics.csv").read_text().count("\n") == 3
    args = [*args, "out=shared"]
    assert nenya_cli("metrics", [*args, "shard=1/2"])[0] == 0
    assert sorted(path.name for path in (tmp_path / "shared").glob("*.json")) == ["b_preproc_latents_metrics.json"]
    code, said = nenya_cli("metrics", [*args, "shard=merge"])
    assert code == 2 and "shard 0/2 not complete (1 of 2 pieces" in said, said
    before = (tmp_path / "shared" / "b_preproc_latents_metrics.json").stat().st_ino
    assert nenya_cli("metrics", [*args, "shard=1/2"])[0] == 0  # complete, so that nothing is written
    assert (tmp_path / "shared" / "b_preproc_latents_metrics.json").stat().st_ino == before
    (tmp_path / "shared" / "a_preproc_latents_metrics.json").write_text("of somebody else")
    code, said = nenya_cli("metrics", [*args, "shard=0/2"])
    assert code == 2 and "exists" in said and "clobber=true" in said, said
    (tmp_path / "shared" / "a_preproc_latents_metrics.json").unlink()
    assert nenya_cli("metrics", [*args, "shard=0/2"])[0] == 0
    code, said = nenya_cli("metrics", [*args, "shard=merge"])
    assert code == 0, said
    assert without_dates("shared") == without_dates("one")
    assert not list((tmp_path / "shared").glob("*.shards"))


def test_metrics_by_another_table_are_not_taken(archive, nenya_cli, tmp_path):
    args = [*archive, "sample=100", "coefficients=false", "out=shared"]
    assert nenya_cli("metrics", [*args, "shard=0/1"])[0] == 0
    table = pd.read_parquet(tmp_path / "table.parquet")
    table.assign(granule=0).to_parquet(tmp_path / "table.parquet")
    code, said = nenya_cli("metrics", [*args, "shard=merge"])
    assert code == 2 and "no shard of this work was begun with these files" in said, said


def test_metrics_of_a_killed_worker_go_on(archive, nenya_cli, monkeypatch, tmp_path):
    args = [archive[0], "sample=100", "coefficients=false", "out=shared", "shard=0/1"]
    write, written = metrics._write, []

    def killed(path, text):
        written.append(path)
        if len(written) == 3:
            raise KeyboardInterrupt
        write(path, text)

    monkeypatch.setattr(metrics, "_write", killed)
    assert nenya_cli("metrics", args)[0] == 75
    assert nenya_cli("metrics", args)[0] == 0
    assert [path.name[0] for path in written] == ["a", "a", "b", "b", "b"]
    assert nenya_cli("metrics", [*args[:-1], "shard=merge"])[0] == 0


def rows_in(index):
    """Return all rows of an index as a table in the order of their numbers, and what it says of its sources."""
    table = open_table(Path(index)).search().limit(10_000).to_arrow().to_pandas().sort_values(ROW, ignore_index=True)
    table[VECTOR] = [row.tobytes() for row in table[VECTOR]]
    return table, read_about(Path(index))["sources"]


def test_an_index_of_prepared_rows_is_that_of_one_process(archive, small_pieces, nenya_cli, tmp_path):
    args = [*archive, "of_sensor=modis"]
    assert nenya_cli("index", [*args, "out=one.index"])[0] == 0
    args = [*args, "out=shared.index"]
    for number in (0, 2):
        assert nenya_cli("index", [*args, f"shard={number}/3"])[0] == 0
    code, said = nenya_cli("index", [*args, "shard=merge"])
    assert code == 2 and "shard 1/3 not complete" in said and not (tmp_path / "shared.index").exists(), said
    assert nenya_cli("index", [*args, "shard=1/3"])[0] == 0
    code, said = nenya_cli("index", [*args, "shard=merge"])
    assert code == 0, said
    (one, sources), (shared, others) = rows_in("one.index"), rows_in("shared.index")
    pd.testing.assert_frame_equal(one, shared)
    assert sources == others and len(one) == 794
    assert not (tmp_path / "shared.index.shards").exists()


def test_shards_are_added_to_an_index(archive, small_pieces, nenya_cli, tmp_path):
    first, both = f"data={tmp_path}/a_preproc_latents.h5", archive
    assert nenya_cli("index", [*both, "out=one.index"])[0] == 0
    assert nenya_cli("index", [first, both[1], "out=shared.index"])[0] == 0
    for share in ("0/2", "1/2", "merge"):
        code, said = nenya_cli("index", [*both, "out=shared.index", f"shard={share}"])
        assert code == 0, said
    assert "794 rows, 397 of them new" in said
    pd.testing.assert_frame_equal(rows_in("one.index")[0], rows_in("shared.index")[0])


def test_a_damaged_answer_is_made_again_and_the_index_stays_until_then(archive, small_pieces, nenya_cli, tmp_path):
    args = [*archive, "out=shared.index", "clobber=true"]
    assert nenya_cli("index", args)[0] == 0
    before = rows_in("shared.index")[0]
    assert nenya_cli("index", [*args, "shard=0/1"])[0] == 0
    (found,) = (tmp_path / "shared.index.shards").glob("*/sha256-00000001")
    found.write_bytes(b"damaged")
    code, said = nenya_cli("index", [*args, "shard=merge"])
    assert code == 2 and "shard 0/1 not complete (1 of" in said, said
    pd.testing.assert_frame_equal(rows_in("shared.index")[0], before)
    assert nenya_cli("index", [*args, "shard=0/1"])[0] == 0
    code, said = nenya_cli("index", [*args, "shard=merge"])
    assert code == 0, said
    pd.testing.assert_frame_equal(rows_in("shared.index")[0], before)


@pytest.mark.slow
def test_the_job_array_of_slurm(archive, nenya_cli, small_pieces, tmp_path):
    """The script of the documentation, with an srun that starts its command here."""
    assert nenya_cli("embed", [*archive, "ntrain=200", "out=one/t.parquet"])[0] == 0
    (tmp_path / "bin").mkdir()
    player = f'exec {sys.executable} {shard_player.__file__} "$@"'
    for name, line in {"srun": 'exec "$@"', "nenya": player, "scontrol": "echo $* > requeued"}.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    args = [*archive, "ntrain=200", "out=shared/t.parquet"]

    def task(number, **env):
        array = {"SLURM_ARRAY_TASK_ID": str(number), "SLURM_ARRAY_TASK_COUNT": "2", "SLURM_ARRAY_JOB_ID": "77"}
        env = {
            **os.environ,
            "PATH": f"{tmp_path}/bin:{os.environ['PATH']}",
            "PIECE_ROWS": str(PIECE_ROWS),
            **array,
            **env,
        }
        script = Path(__file__).parents[2] / "docs" / "cluster" / "slurm_shards.sh"
        return subprocess.run(["bash", script, "embed", *args], env=env, capture_output=True, text=True, timeout=300)

    done = [task(0), task(1, DIE_AFTER="2"), task(1)]
    assert [one.returncode for one in done] == [0, 137, 0], done
    assert "resuming" in done[2].stderr and not Path("requeued").exists()
    assert nenya_cli("embed", [*args, "shard=merge"])[0] == 0
    assert files_of("shared") == files_of("one")
