"""One join: what a table's row is the cutout of is the same for every command."""

from dataclasses import dataclass, field

import h5py
import numpy as np
import pandas as pd
import pytest

from nenya.archive.stages import whole_table
from nenya.commands.statistics import rows_of
from nenya.data.table_images import TableImages
from nenya.errors import InputFileError
from nenya.io import read_table, write_table
from nenya.latents.embed import embed_table
from nenya.latents.files import Latents
from nenya.latents.index import FilesSearcher, IndexSearcher
from nenya.latents.index_build import add_files
from nenya.latents.projector import Projector
from nenya.portal.dataset import open_dataset
from nenya.tables import keys
from nenya.tables.key_columns import read_keys
from nenya.tables.keys import Part, join

ROWS = {"train": 12, "valid": 8}
N, SIDE, DIM = sum(ROWS.values()), 16, 8
BIG = 2**63 + 12345678901


@dataclass
class Files:
    """Cutout files and latents files, the arrays in them, and their names in a table."""

    cutouts: list
    latents: list
    images: np.ndarray
    vectors: np.ndarray
    keys: pd.DataFrame = field(default_factory=pd.DataFrame)


def write_files(folder, pairs, partitions=("train", "valid"), seed=0):
    """Write cutouts and latents under names; the arrays are those of all files, one after the other."""
    rng = np.random.default_rng(seed)
    found, parts = Files([], [], np.empty((0, SIDE, SIDE), np.float32), np.empty((0, DIM), np.float32)), []
    for cutouts, latents in pairs:
        found.cutouts.append(folder / cutouts)
        found.latents.append(folder / latents)
        for path in (folder / cutouts, folder / latents):
            path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(folder / cutouts, "w") as images, h5py.File(folder / latents, "w") as vectors:
            for name in partitions:
                own = rng.normal(size=(ROWS[name], SIDE, SIDE)).cumsum(1).cumsum(2).astype(np.float32)
                some = rng.normal(size=(ROWS[name], DIM)).astype(np.float32)
                some /= np.linalg.norm(some, axis=1, keepdims=True)
                images[name], vectors[name] = own[:, None], some
                found.images = np.concatenate([found.images, own])
                found.vectors = np.concatenate([found.vectors, some])
                kind = {"train": 1, "valid": 0}[name]
                parts.append(pd.DataFrame({"pp_file": cutouts, "pp_type": kind, "pp_idx": np.arange(len(own))}))
    found.keys = pd.concat(parts, ignore_index=True)
    return found


def shuffled(files, seed=1):
    """Return a table of all cutouts in another order, and the number of each row's cutout."""
    order = np.random.default_rng(seed).permutation(len(files.keys))
    table = files.keys.iloc[order].reset_index(drop=True)
    table = table.assign(tag=np.arange(len(table)), lat=1.0, lon=2.0, DT=0.5, US0=np.arange(len(table)) / 10, US1=0.0)
    return table, order


def plain(folder, names=(("a_preproc.h5", "a_preproc_latents.h5"),), **kwargs):
    files = write_files(folder, names, **kwargs)
    return files, *shuffled(files)


def named(text):
    def make(folder):
        files, table, wanted = plain(folder)
        return files, table.assign(pp_file=text), wanted

    return make


def words(folder):
    files, table, wanted = plain(folder)
    return files, table.assign(pp_type=[("VALID", "Train")[kind] for kind in table["pp_type"]]), wanted


def bytes_and_floats(folder):
    files, table, wanted = plain(folder)
    file = pd.Series([b"PreProc/a_preproc.h5"] * len(table), dtype=object)
    return files, table.assign(pp_file=file, pp_type=table["pp_type"] * 1.0, pp_idx=table["pp_idx"] * 1.0), wanted


def older_names(folder):
    files, table, wanted = plain(folder)
    return files, table.rename(columns={name: f"ulmo_{name}" for name in ("pp_file", "pp_type", "pp_idx")}), wanted


def both_names(folder):
    files, table, wanted = plain(folder)
    ulmo = {"ulmo_pp_file": "s3://b/a_preproc.h5", "ulmo_pp_type": table["pp_type"].map({0: "valid", 1: "train"})}
    return files, table.assign(ulmo_pp_idx=table["pp_idx"] * 1.0, **ulmo), wanted


def lacking(folder):
    files, table, wanted = plain(folder)
    table["pp_idx"] = table["pp_idx"].astype("Int64")
    for row, (name, value) in enumerate(
        [
            ("pp_file", "other.h5"),
            ("pp_type", -1),
            ("pp_idx", 999),
            ("pp_idx", -1),
            ("pp_idx", pd.NA),
            ("pp_file", None),
        ]
    ):
        table.loc[row, name] = value
        wanted[row] = -1
    return files, table, wanted


def repeated(folder):
    files, table, wanted = plain(folder)
    again = table.iloc[[3, 4]].assign(tag=[N, N + 1])
    return files, pd.concat([table, again], ignore_index=True), np.concatenate([wanted, wanted[[3, 4]]])


def two_folders(folder):
    return plain(folder, [(f"{name}/a_preproc.h5", f"{name}/a_preproc_latents.h5") for name in ("2012", "2013")])


def original_names(cutouts, latents):
    return lambda folder: plain(folder, [(cutouts, latents)])


def long_ids(folder):
    files, table, wanted = plain(folder)
    return files, table.assign(UID=np.arange(len(table), dtype=np.uint64) + np.uint64(BIG)), wanted


def one_partition(folder):
    files, table, wanted = plain(folder, partitions=("train",))
    more = table.iloc[:4].assign(pp_type=0, tag=[100, 101, 102, 103])
    return files, pd.concat([table, more], ignore_index=True), np.concatenate([wanted, [-1] * 4])


CASES = {
    "plain": plain,
    "no suffix": named("a_preproc"),
    "folder": named("s3://bucket/PreProc/a_preproc.h5"),
    "windows": named("C:\\data\\PreProc\\a_preproc.hdf5"),
    "words": words,
    "bytes and floats": bytes_and_floats,
    "older names": older_names,
    "both names": both_names,
    "lacking": lacking,
    "repeated": repeated,
    "two folders": two_folders,
    "latents of the original": original_names("X_preproc_viirs_std.h5", "lat/X_latents_viirs_std.h5"),
    "short latents of the original": original_names("X_preproc.h5", "X_latents.h5"),
    "long ids": long_ids,
    "one partition": one_partition,
}


def of_tags(table, numbers, tags):
    """Return the number for each row of a table from those of tags; a repeated row has that of the first one."""
    found = dict(
        zip(
            (int(tag) for tag in tags if not pd.isna(tag)),
            (n for n, t in zip(numbers, tags, strict=True) if not pd.isna(t)),
            strict=True,
        )
    )
    return [found.get(tag, -1) for tag in table["tag"]]


def by_search(files, table, folder, cli):
    archive = FilesSearcher(Latents(files.latents), table)
    return of_tags(table, range(len(archive.table)), archive.table["tag"])


def by_index(files, table, folder, cli):
    add_files(folder / "i.index", Latents(files.latents), table)
    rows = IndexSearcher(folder / "i.index").describe(np.arange(len(files.vectors)))
    return of_tags(table, rows["archive_row"], rows["tag"])


def by_update(files, table, folder, cli):
    whole = whole_table(Latents(files.latents), table.rename(columns={"tag": "kept"}))
    return of_tags(table, range(len(whole)), whole["kept"])


def by_spectra(files, table, folder, cli):
    write_table(table, folder / "t.parquet")
    code, said = cli(
        "spectra",
        [f"data=[{','.join(map(str, files.cutouts))}]", f"table={folder}/t.parquet", f"out={folder}/s", "band=[3,8]"],
    )
    if code:
        raise InputFileError(said)
    slopes = pd.concat([read_table(folder / "s" / f"{path.stem}_alpha.parquet") for path in files.cutouts])
    numbers = {alpha: number for number, alpha in enumerate(slopes["alpha"])}
    assert len(numbers) == len(files.images)
    return [numbers.get(alpha, -1) for alpha in read_table(folder / "s" / "t_alpha.parquet")["alpha"]]


def by_statistics(files, table, folder, cli):
    bare = table.drop(columns="UID", errors="ignore")
    found = [
        set(np.flatnonzero(rows_of(bare, files.keys.iloc[[n]])).tolist()) if n in _there(bare, files) else set()
        for n in range(len(files.keys))
    ]
    return [next((n for n, rows in enumerate(found) if row in rows), -1) for row in range(len(table))]


def _there(table, files):
    """Return the cutouts that have a row, which is all that may be asked for."""
    there = keys.rows_of(read_keys(table), read_keys(files.keys))[1]
    return set(np.flatnonzero(there).tolist())


def _number_of(image, files):
    return -1 if image is None else int(np.flatnonzero((files.images == image).all(axis=(1, 2)))[0])


def by_figures(files, table, folder, cli):
    images = TableImages([str(path) for path in files.cutouts], table)
    known = np.flatnonzero(images.known)
    found = dict(zip(known.tolist(), (_number_of(image, files) for image in images.read(known)), strict=True))
    return [found.get(row, -1) for row in range(len(table))]


def by_embed(files, table, folder, cli):
    projector = Projector.load(folder / "p.h5")
    embed_table(Latents(files.latents), table, folder / "u.parquet", folder / "p.h5")
    places = {tuple(place): n for n, place in enumerate(projector.transform(files.vectors).tolist())}
    return [
        places.get(tuple(place), -1) for place in read_table(folder / "u.parquet")[["US0", "US1"]].to_numpy().tolist()
    ]


def by_clusters(files, table, folder, cli):
    """Nearly as many clusters as latents: the label of a row, not its number, is what is compared."""
    write_table(table, folder / "c.parquet")
    data = f"data=[{','.join(map(str, files.latents))}]"
    k = f"k={len(files.vectors)}"
    for args in ([f"out={folder}/every.parquet"], [f"table={folder}/c.parquet", f"out={folder}/labels.parquet"]):
        code, said = cli("clusters", [data, k, *args])
        if code:
            raise InputFileError(said)
    labels = read_table(folder / "every.parquet")["cluster"].tolist()
    assert len(set(labels)) > len(labels) / 2
    wanted, found = table.attrs["wanted"], read_table(folder / "labels.parquet")["cluster"].tolist()
    same = [label == (labels[number] if number >= 0 else -1) for number, label in zip(wanted, found, strict=True)]
    return [number if fits else None for number, fits in zip(wanted, same, strict=True)]


def by_portal(files, table, folder, cli):
    write_table(table, folder / "portal.parquet")
    data = open_dataset(folder / "portal.parquet", Latents(files.latents), [str(path) for path in files.cutouts])
    assert [_number_of(image, files) for image in data.cutouts.of(np.arange(len(table)))] == data.latent_of.tolist()
    return data.latent_of.tolist()


CALLERS = {
    "search": by_search,
    "index": by_index,
    "update": by_update,
    "spectra": by_spectra,
    "statistics": by_statistics,
    "figures": by_figures,
    "embed": by_embed,
    "clusters": by_clusters,
    "portal": by_portal,
}
REFUSED = {("two folders", "spectra"), ("two folders", "index")}
"""Files of one name, whose results would have one name, are refused by these."""


@pytest.fixture(autouse=True)
def no_long_fit(monkeypatch):
    """A layout that costs nothing in place of UMAP's."""
    monkeypatch.setattr("nenya.latents.projector._fit_layout", lambda rows, parameters, epochs: 9 * rows[:, :2])


@pytest.fixture(scope="session")
def projector(tmp_path_factory):
    """A projector of other latents, fitted once."""
    rows = np.random.default_rng(9).normal(size=(60, DIM)).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nenya.latents.projector._fit_layout", lambda rows, parameters, epochs: 9 * rows[:, :2])
        fitted = Projector.fit(rows / np.linalg.norm(rows, axis=1, keepdims=True), 5)
    path = tmp_path_factory.mktemp("projector") / "p.h5"
    fitted.save(path)
    return path


@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize("case", CASES)
def test_every_command_gives_the_same_answer(case, caller, tmp_path, nenya_cli, projector):
    files, table, wanted = CASES[case](tmp_path)
    table.attrs["wanted"] = wanted.tolist()
    (tmp_path / "p.h5").write_bytes(projector.read_bytes())
    if (case, caller) in REFUSED:
        with pytest.raises(InputFileError, match=r"two files are named|another content|different content"):
            CALLERS[caller](files, table, tmp_path, nenya_cli)
        return
    got = CALLERS[caller](files, table, tmp_path, nenya_cli)
    if case == "repeated" and caller in ("search", "index", "update"):  # a latent has one row: the first one
        wanted = np.concatenate([wanted[:N], [-1, -1]])
    assert list(got) == wanted.tolist()


def disagreeing(folder):
    files, table, _ = plain(folder)
    return files, table.assign(ulmo_pp_idx=np.roll(table["pp_idx"], 1)), "pp_idx and ulmo_pp_idx disagree in"


def disagreeing_files(folder):
    files, table, _ = plain(folder)
    return (
        files,
        table.assign(ulmo_pp_file=["b.h5"] * 3 + ["x/a_preproc.h5"] * (N - 3)),
        "ulmo_pp_file disagree in 3 rows",
    )


def disagreeing_types(folder):
    files, table, _ = plain(folder)
    return files, table.assign(ulmo_pp_type="train"), "pp_type and ulmo_pp_type disagree in 8 rows"


def fractional(folder):
    files, table, _ = plain(folder)
    return files, table.assign(pp_idx=table["pp_idx"] + 0.5), "expected integers in pp_idx, got"


def endless(folder):
    files, table, _ = plain(folder)
    return files, table.assign(pp_idx=[np.inf, *table["pp_idx"][1:]]), "expected integers in pp_idx, got inf"


def another_word(folder):
    files, table, _ = plain(folder)
    return files, table.assign(pp_type="test"), "expected 1 .train., 0 .valid. or -1 .* in pp_type, .*got test"


def another_number(folder):
    files, table, _ = plain(folder)
    return files, table.assign(pp_type=[2, *table["pp_type"][1:]]), "expected 1 .* in pp_type, .*got 2"


def no_row(folder):
    files, table, _ = plain(folder)
    return files, table.assign(pp_file="other.h5"), "no row of the table has a (latent|cutout)|none of the 20 rows"


def out_of_range(folder):
    files, table, _ = plain(folder)
    return files, table.assign(pp_idx=table["pp_idx"] + 100), "no row .*pp_idx out of range|none of the 20 rows"


def no_column(folder):
    files, table, _ = plain(folder)
    return files, table.drop(columns="pp_idx"), "expected the columns .*pp_idx.*, got pp_file, pp_type"


def two_names_in_the_table(folder):
    files, table, _ = plain(folder)
    table["pp_file"] = ["one/a_preproc.h5", "other/a_preproc.h5"] * (N // 2)
    return files, table, "one/a_preproc.* other/a_preproc"


REFUSALS = [disagreeing, disagreeing_files, disagreeing_types, fractional, endless, another_word, another_number]
REFUSALS += [no_row, out_of_range, no_column, two_names_in_the_table]


@pytest.mark.parametrize("make", REFUSALS, ids=lambda make: make.__name__)
def test_every_command_refuses_the_same_tables(make, tmp_path, nenya_cli, projector):
    files, table, said = make(tmp_path)
    (tmp_path / "p.h5").write_bytes(projector.read_bytes())
    callers = {**CALLERS, "statistics": lambda f, t, *_: rows_of(t, f.keys)}
    for name, call in callers.items():
        with pytest.raises(InputFileError, match=said):
            call(files, table, tmp_path, nenya_cli)
            pytest.fail(f"{name} took it")


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (
            ["one/a_preproc_latents.h5", "other/a_preproc_latents.h5"],
            "one/a_preproc_latents.h5 and .*other/a_preproc_la",
        ),
        (["a_latents.h5", "a_preproc_latents.h5"], "a_latents.h5 and .*a_preproc_latents.h5"),
        (
            ["a_preproc_latents.h5", "a_preproc_latents_debug.h5"],
            "a_preproc_latents.h5 and .*a_preproc_latents_debug.h5",
        ),
    ],
)
def test_two_latents_files_of_one_name_are_refused_and_named(tmp_path, names, said):
    files = write_files(tmp_path, [("a_preproc.h5", name) for name in names])
    latents, table = Latents(files.latents), files.keys.iloc[:N]
    with pytest.raises(InputFileError, match=f"matches two files, .*{said}"):
        latents.join(table)
    assert (
        (latents.join(table.assign(pp_file="s3://b/one/a_preproc.h5")).number >= 0).all() if "one" in names[0] else True
    )


def test_the_folders_of_copies_count_not_where_the_copies_lie(tmp_path):
    files = write_files(tmp_path, [("a.h5", f"cache/{name}/a_latents.h5") for name in ("78f", "c01")])
    latents = Latents(files.latents, places=["s3://b/2012/a_latents.h5", "s3://b/2013/a_latents.h5"])
    table = files.keys.iloc[:N]
    for year, first in (("2012", 0), ("2013", N)):
        found = latents.join(table.assign(pp_file=f"s3://c/PreProc/{year}/a.h5")).number
        np.testing.assert_array_equal(found, first + np.arange(N))
    with pytest.raises(InputFileError, match=r"s3://b/2012/a_latents.h5 and s3://b/2013/a_latents.h5"):
        latents.join(table)


def test_what_a_latents_file_says_of_its_source_counts_more_than_its_name(tmp_path):
    files = write_files(tmp_path, [("b_preproc.h5", "renamed_latents.h5")])
    with h5py.File(files.latents[0], "a") as file:
        file.attrs["source"] = "C:\\data\\b_preproc.h5"
    latents = Latents(files.latents)
    assert latents.parts[0].pp_file == "b_preproc.h5"
    np.testing.assert_array_equal(latents.join(files.keys).number, np.arange(N))


def test_a_note_says_what_was_lost_and_why(tmp_path):
    files, table, _ = lacking(tmp_path)
    joined = Latents(files.latents).join(table)
    assert joined.note == (
        "placed 14 of 20 rows (6 without a latent: 2 of other files, 1 of a missing partition, "
        "1 with pp_idx missing, 2 with pp_idx out of range)"
    )
    files, table, _ = repeated(tmp_path)
    assert Latents(files.latents).join(table).note == "placed 22 of 22 rows; 2 rows repeat the latent of an earlier row"
    assert Latents(files.latents).join(files.keys).note == ""


def test_partitions_of_other_names_have_the_role_that_the_options_give_them(tmp_path):
    from nenya.options.sections import LoaderOptions

    files = write_files(tmp_path, [("a_preproc.h5", "a_preproc_latents.h5")])
    with h5py.File(files.cutouts[0], "a") as file:
        file.move("train", "imgs")
    loader = LoaderOptions(train_key="imgs", valid_key="valid")
    table, order = shuffled(files)
    images = TableImages(str(files.cutouts[0]), table, loader)
    np.testing.assert_array_equal(images.read(np.arange(N)), files.images[order])
    swapped = TableImages(str(files.cutouts[0]), table[table.pp_type == 0], LoaderOptions(train_key="valid"))
    assert swapped.known.all()  # `valid` is pp_type 0, whatever a model was trained on


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".feather"])
def test_long_ids_keep_every_digit(tmp_path, nenya_cli, suffix):
    """Through a join with missing rows, in files, on the screen, in an index, in clusters and in statistics."""
    files, table, wanted = long_ids(tmp_path)
    table["count"] = np.arange(N, dtype=np.int32)
    uid = {number: int(value) for number, value in zip(wanted, table["UID"], strict=True)}
    part = table.iloc[:15]
    lost = sorted(wanted[15:].tolist())
    write_table(part, tmp_path / f"t{suffix}")
    data, place = f"data={files.latents[0]}", f"table=t{suffix}"
    example = f"like=a_preproc:{'train' if wanted[0] < 12 else 'valid'}:{wanted[0] - 12 * (wanted[0] >= 12)}"
    for source, out in ((f"{data} {place}", "f"), ("index=i.index", "i")):
        if out == "i":
            code, said = nenya_cli("index", [data, place, "out=i.index"])
            assert code == 0, said
        code, said = nenya_cli("search", [*source.split(), example, "k=30", f"out={out}{suffix}"])
        assert code == 0, said
        found = read_table(f"{out}{suffix}")
        numbers = np.where(found["pp_type"] == 1, found["pp_idx"], found["pp_idx"] + 12)
        for number, value in zip(numbers, found["UID"], strict=True):
            assert pd.isna(value) if number in lost else (int(value) == uid[number] and str(uid[number]) in said)
        assert str(found["UID"].dtype) == "UInt64" and found["count"].dtype.kind == "i"
        code, said = nenya_cli("search", [*source.split(), f"like=uid:{uid[wanted[1]]}", "k=1", f"out={out}1.csv"])
        assert code == 0, said
    chosen = table.iloc[[2, 9]]
    write_table(chosen[["UID"]], tmp_path / f"c{suffix}")
    assert np.flatnonzero(rows_of(table, read_table(tmp_path / f"c{suffix}"))).tolist() == [2, 9]
    code, said = nenya_cli("clusters", [data, place, "k=4", "out=labels.csv"])
    assert code == 0, said
    groups = read_table("labels_groups.csv").dropna(subset="medoid_UID")
    assert groups["medoid_UID"].astype("UInt64").isin(part["UID"]).all() and len(groups)


def test_dates_are_no_keys_but_any_integers_stay_whole_in_the_archive(tmp_path):
    files, table, _ = plain(tmp_path)
    table = table.assign(UID=np.arange(N) + 2**62, flag=True).iloc[:10]
    whole = whole_table(Latents(files.latents), table)
    assert (
        str(whole["UID"].dtype) == "Int64" and str(whole["flag"].dtype) == "boolean" and whole["UID"].isna().sum() == 10
    )
    assert set(whole["UID"].dropna()) == set(table["UID"])


def test_the_first_of_two_rows_counts(tmp_path, caplog):
    files, table, wanted = repeated(tmp_path)
    table["lat"] = np.arange(len(table))
    archive = FilesSearcher(Latents(files.latents), table)
    assert archive.table["lat"][wanted[3]] == 3 and "2 rows repeat the latent of an earlier row" in caplog.text


def test_the_join_of_ten_million_rows_is_a_matter_of_arrays():
    """As many steps of Python for many rows as for few, and memory of a few numbers a row."""
    import sys
    import tracemalloc

    def steps(rows):
        table = pd.DataFrame({"pp_file": "a.h5", "pp_type": np.ones(rows, np.int8), "pp_idx": np.arange(rows)})
        part = [Part("a_latents.h5", ("a.h5",), (1,), 0, rows)]
        count = 0

        def trace(*_):
            nonlocal count
            count += 1

        sys.setprofile(trace)
        try:
            joined = join(read_keys(table), part)
        finally:
            sys.setprofile(None)
        assert joined.note == ""
        return count

    assert steps(100_000) < 1.1 * steps(1000) + 50
    rows = 2_000_000
    table = pd.DataFrame({"pp_file": "a.h5", "pp_type": np.ones(rows, np.int8), "pp_idx": np.arange(rows)})
    tracemalloc.start()
    try:
        join(read_keys(table), [Part("a_latents.h5", ("a.h5",), (1,), 0, rows)])
        assert tracemalloc.get_traced_memory()[1] < 100 * rows
    finally:
        tracemalloc.stop()
