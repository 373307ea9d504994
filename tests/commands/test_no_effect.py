"""Options that would have no effect, inputs given twice, and outputs that cannot be written: one line, nothing left."""

import shutil

import h5py
import numpy as np
import pandas as pd
import pytest
from conftest import red_noise, write_cutouts

from nenya.errors import OptionError
from nenya.io import write_table
from nenya.options.commands import ClustersOptions, FiguresOptions
from nenya.options.effects import check_effects
from nenya.options.sections import TrainerOptions, build_options
from nenya.runtime.trainer import make_trainer
from nenya.storage.lock import OutputLock

ROWS = 24


@pytest.fixture
def files(tmp_path):
    """Cutouts, latents without provenance, their table, and a file where a folder is wanted."""
    rng = np.random.default_rng(0)
    write_cutouts(tmp_path / "a_preproc.h5", valid=red_noise(ROWS))
    with h5py.File(tmp_path / "a_preproc_latents.h5", "w") as file:
        rows = rng.standard_normal((ROWS, 8)).astype(np.float32)
        file["valid"] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    table = pd.DataFrame({"pp_file": "a_preproc.h5", "pp_type": 0, "pp_idx": np.arange(ROWS)})
    table = table.assign(lat=rng.uniform(-60, 60, ROWS), lon=rng.uniform(-180, 180, ROWS), DT=rng.random(ROWS))
    write_table(table.assign(US0=rng.random(ROWS), US1=rng.random(ROWS)), tmp_path / "t.parquet")
    table[["lat", "lon"]].to_csv(tmp_path / "no_keys.csv", index=False)
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty.h5").touch()
    return tmp_path


DATA = "data=a_preproc_latents.h5"
REFUSED = {
    "settings of a fit beside a projector": (
        *("embed", [DATA, "table=t.parquet", "projector=p.h5", "n_neighbors=5", "out=new/m.parquet"]),
        "n_neighbors=5: has no effect with projector=",
    ),
    "a place for a projector that exists": (
        *("embed", [DATA, "table=t.parquet", "projector=p.h5", "umap_savefile=q.h5", "out=m.parquet"]),
        "umap_savefile=q.h5: has no effect with projector=",
    ),
    "a mean in a figure of densities": (
        *("figures", ["table=t.parquet", "metric=DT", "out=new/f.png"]),
        "metric=DT: has an effect only with kind=metric or kind=map",
    ),
    "epochs of an extraction": (
        *("extract", ["a_preproc.h5", "model=demo", "trainer.max_epochs=3", "out=new/"]),
        "trainer.max_epochs: has an effect only in a training; leave it out",
    ),
    "a batch of training in a search": (
        *("search", [DATA, "like=1", "loader.batch_size_train=3"]),
        "loader.batch_size_train: has an effect only in a training",
    ),
    "latents by the name of the portal": (
        "clusters",
        ["latents=a_preproc_latents.h5", "k=2"],
        "data= names the latents",
    ),
    "k of HDBSCAN": (
        *("clusters", [DATA, "method=hdbscan", "k=5", "out=new/"]),
        "k=5: has an effect only with method=kmeans",
    ),
    "a picture without images": (
        *("search", [DATA, "like=1", "figure=new/x.png"]),
        "figure=new/x.png: has an effect only with images=",
    ),
    "a version without an archive": (
        *("statistics", ["table=t.parquet", "where=DT > 0", "version=v5"]),
        "version=v5: has an effect only with archive=",
    ),
    "a table given twice": ("statistics", ["table=t.parquet", DATA, "where=DT > 0"], "give the table once"),
    "data given twice": ("repack", ["data=a_preproc.h5", "data=b.h5"], "several files are a list, data=[a,b]"),
    "a table given by two names": ("statistics", ["table=t.parquet", "table=u.parquet"], "give table= once"),
    "a value without an option": ("repack", ["data=a_preproc.h5", "=3"], "=3: expected key=value"),
    "a column that does not exist": (
        *("statistics", ["table=t.parquet", "where=DT > 0", "metrics=[foo]", "out=new/s.csv"]),
        "the table has no column foo",
    ),
    "a partition that does not exist": (
        *("train", ["model=demo", "data=a_preproc.h5", "loader.train_key=spring"]),
        "expected a partition 'spring' for training, found only valid",
    ),
    "images that do not exist": ("search", [DATA, "like=1", "images=b.h5"], "b.h5: no such file"),
    "images that are empty": ("search", [DATA, "like=1", "images=empty.h5", "out=f.csv"], "the file is empty"),
    "spectra below a file": ("spectra", ["a_preproc.h5", "out=file"], "file is a file, expected a folder"),
    "a contact sheet below a file": ("inspect", ["a_preproc.h5", "out=file"], "file is a file, expected a folder"),
    "an index below a file": ("index", [DATA, "out=file"], "file is a file, expected a folder"),
    "generated cutouts below a file": (
        *("generate", ["kind=white", "n_train=2", "n_valid=2", "out=file/w.h5"]),
        "file is a file, expected a folder",
    ),
    "an index of nothing in a new folder": ("index", ["data=b_latents.h5", "out=x/y/z.index"], "no such file"),
    "a port that no machine has": ("portal", ["table=t.parquet", "port=70000"], "expected a number from 0 to 65535"),
    "verified: missing": ("verify", ["b_latents.h5"], "b_latents.h5: no such file; check the path"),
    "verified: empty": ("verify", ["empty.h5"], "empty.h5: the file is empty"),
    "verified: a text": ("verify", ["file"], "not an HDF5 file"),
    "verified: cutouts": ("verify", ["a_preproc.h5"], "expected a latents file, got a cutout file"),
    "verified against a missing source": (
        *("verify", ["a_preproc_latents.h5", "provenance=false", "source=b.h5"]),
        "source=b.h5: no such file",
    ),
    "a projector that is none": (
        *("embed", [DATA, "table=t.parquet", "projector=a_preproc.h5", "out=new/m.parquet"]),
        "a_preproc.h5: expected a projector, got another HDF5 file; fit it again",
    ),
    "a table of new files without their names": (
        *("update", ["archive=arc", "model=demo", "ckpt=w.pth", "new=a_preproc.h5", "table=no_keys.csv"]),
        "table=no_keys.csv: expected the columns pp_file",
    ),
}


@pytest.mark.parametrize("case", REFUSED, ids=str)
def test_what_cannot_be_meant_is_refused_in_one_line_before_any_work(case, files, tiny_weights, nenya_cli):
    command, args, words = REFUSED[case]
    shutil.copy(tiny_weights, files / "w.pth")
    before = sorted(files.rglob("*"))
    code, said = nenya_cli(command, args)
    assert (code, len(said.splitlines())) == (2, 1), said
    assert words in said
    assert said.count("fit it again") <= 1
    assert sorted(files.rglob("*")) == before


def test_the_last_value_of_an_option_given_twice_counts_and_that_is_said(files, nenya_cli):
    args = ["kind=white", "n_train=2", "n_valid=2", "size=16", "size=8", "out=w.h5"]
    code, said = nenya_cli("generate", args)
    assert code == 0 and "size=16 and size=8: the last one counted" in said
    with h5py.File(files / "w.h5") as file:
        assert file["train"].shape == (2, 1, 8, 8)
    again = nenya_cli("generate", [*args[:3], "size=8", "size=8", "clobber=true", "out=w.h5"])
    assert again[0] == 0 and "counts" not in again[1]


def test_every_rule_names_options_of_its_command():
    from nenya.commands.compose import command_names, options_of

    for command in command_names():
        kind = options_of(command)
        names = set(kind.__dataclass_fields__)
        needed = {text.partition("=")[0] for text in (*kind.only_with.values(), *kind.not_with.values())}
        assert {*kind.only_with, *kind.not_with, *needed} <= names, command


def test_each_command_that_reads_files_takes_the_access_to_s3():
    from nenya.commands.compose import command_names, compose, options_of
    from nenya.options.sections import taken

    commands = [name for name in command_names() if "storage" in taken(options_of(name))]
    assert {"prepare", "train", "extract", "search", "update"} <= set(commands)
    for command in commands:
        assert compose(command, ["storage.anonymous=true"]).storage.anonymous is True, command


def test_options_at_their_defaults_and_those_that_are_needed_pass():
    assert build_options(ClustersOptions, {"method": "hdbscan", "min_size": 3}).min_size == 3
    assert build_options(FiguresOptions, {"kind": "map", "metric": "DT", "degrees": 5.0}).metric == "DT"
    with pytest.raises(
        OptionError, match=r"version=v5: has an effect only with archive=; add it, or leave version= out"
    ):
        check_effects(FiguresOptions(version="v5"), FiguresOptions.only_with, {})


def test_a_lock_that_cannot_be_kept_leaves_none_of_its_folders(tmp_path):
    (tmp_path / "kept").mkdir()
    with OutputLock(tmp_path / "kept" / "a" / "b" / "lock", "b"):
        assert (tmp_path / "kept" / "a" / "b" / "lock").is_file()
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "kept"]
    with OutputLock(tmp_path / "c" / "d" / "lock", "d"):
        (tmp_path / "c" / "other").touch()
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "c", tmp_path / "c" / "other", tmp_path / "kept"]


def test_more_processes_than_cores_are_refused_before_they_start():
    with pytest.raises(OptionError, match=r"trainer\.devices=9999: expected at most"):
        make_trainer(TrainerOptions(accelerator="cpu", devices=9999), logger=False)


def test_several_inspected_files_name_each_bad_one_once(files, nenya_cli):
    code, said = nenya_cli("inspect", ["a_preproc.h5", "b.h5", "sheet=false"])
    assert code == 1 and "BAD  b.h5: no such file" in said and said.count("b.h5") == 1
    code, said = nenya_cli("inspect", ["t.parquet"])
    assert code == 0 and not any(len(word) > 15 and word.replace(".", "").isdigit() for word in said.split())
