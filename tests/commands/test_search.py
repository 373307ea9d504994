"""The index of an archive, and search by the command line."""

import json
import re
import shutil
import signal
import subprocess
import sys

import h5py
import numpy as np
import pandas as pd
import pytest

from nenya.commands.search import cutout_side, far_apart, place_and_date, read_image
from nenya.errors import InputFileError, OptionError
from nenya.io import read_table, write_table
from nenya.latents import index as archive
from nenya.latents import index_build as archive_build
from nenya.latents.files import Latents
from nenya.latents.index import FilesSearcher, IndexSearcher
from nenya.latents.index_build import add_files, build_index
from nenya.options.commands import SearchOptions
from nenya.tables.conditions import ROW, Conditions

DIM = 16


def write_latents(path, seed, checkpoint="a" * 64, **rows):
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((30, DIM))
    with h5py.File(path, "w") as file:
        for name, count in rows.items():
            latents = centres[rng.integers(0, 30, count)] + 0.3 * rng.standard_normal((count, DIM))
            latents /= np.linalg.norm(latents, axis=1, keepdims=True)
            latents[5::50] = np.nan
            file[name] = latents.astype(np.float32)
        file.attrs.update(checkpoint_sha256=checkpoint, latent="projection", model_version="v5")
    return path


def table_of(latents, seed=0):
    rng, keys = np.random.default_rng(seed), latents.keys()
    n = len(keys)
    made = keys.assign(
        lat=rng.uniform(-90, 90, n),
        lon=rng.uniform(-180, 180, n),
        datetime=pd.Timestamp("2012-01-01") + pd.to_timedelta(rng.integers(0, 8000, n), unit="h"),
        filename=[f"granule{i}" for i in rng.integers(0, n // 10, n)],
        UID=rng.integers(0, 2**60, n) + seed,
        T10=rng.uniform(0, 5, n),
        row=rng.integers(0, 2000, n),  # of the pixel in the granule: not ours
    )
    made["T90"] = made["T10"] + rng.exponential(1, n)
    made["pp_file"] = "s3://archive/PreProc/" + made["pp_file"]
    return made.sample(frac=1, random_state=seed)


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    path = write_latents(tmp_path_factory.mktemp("first") / "a_preproc_latents.h5", 1, train=900, valid=400)
    return Latents([path]), table_of(Latents([path]))


@pytest.fixture(scope="module")
def second(tmp_path_factory):
    path = write_latents(tmp_path_factory.mktemp("second") / "b_preproc_latents.h5", 2, valid=300)
    return Latents([path]), table_of(Latents([path]), 7)


@pytest.fixture(scope="module")
def index(first, tmp_path_factory):
    folder = tmp_path_factory.mktemp("index") / "archive.index"
    add_files(folder, *first)
    build_index(folder, index_from=0)
    return IndexSearcher(folder)


def content(folder):
    table = IndexSearcher(folder).table.to_arrow().to_pandas().sort_values("archive_row", ignore_index=True)
    return table.assign(latent=[tuple(row) for row in table["latent"]])


def test_a_search_loads_no_network_and_no_figures(index):
    code = "import sys; from nenya.cli import run_command; run_command('search', sys.argv[1:]); print(*sys.modules)"
    said = subprocess.check_output([sys.executable, "-c", code, f"index={index.folder}", "like=3"], text=True)
    assert "rank" in said
    heavy = {"torch", "lightning", "matplotlib", "scipy", "numba", "boto3", "lance_namespace_urllib3_client.api"}
    assert "lancedb" in said.split() and not heavy & set(said.split())


def test_index_and_files_give_the_same_answers(index, first):
    files = FilesSearcher(*first)
    rows = [0, 7, 901]
    np.testing.assert_array_equal(index.take(np.array(rows)), first[0].take(rows))
    for conditions in (
        Conditions(),
        Conditions(lon=[150, -100], season=["DJF", "MAM"]),
        Conditions(DT="DT1", where="row < 1000 AND filename <> 'granule3'"),
        Conditions(dates=["2012-02-01", "2012-03-31"]),
        Conditions(lat=[89.99, 90]),
    ):
        sql = conditions.sql(index.columns)
        assert sql == conditions.sql(files.columns)
        for row in rows:
            query = first[0].take([row])[0]
            by_index, by_files = index.search(query, 25, sql, exact=True), files.search(query, 25, sql)
            np.testing.assert_array_equal(by_index.rows, by_files.rows)
            np.testing.assert_array_equal(by_index.cosine, by_files.cosine)
            assert by_index.exact and by_files.label == "exact"
            described, wanted = index.describe(by_index.rows), files.describe(by_files.rows)
            shown = [name for name in wanted if name not in ("datetime", "table_row")]
            pd.testing.assert_frame_equal(described[shown], wanted[shown], check_dtype=False)
            assert (described["datetime"].to_numpy() == wanted["datetime"].to_numpy()).all()


def test_an_answer_says_what_it_is(index, first):
    latents, about = first[0], index.about
    query = latents.take([3])[0]
    approximate = index.search(query, 10)
    assert not approximate.exact and approximate.recall == about["recall"]["value"]
    assert approximate.label == f"approximate, recall@10 {about['recall']['value']:.3f} as measured at build time"
    assert index.search(query, 10, "lat > 0").label == "exact"  # it keeps few rows
    # The recall that is said is that of the sample, measured anew against plain float64.
    good = np.flatnonzero(np.isfinite(latents[:]).all(axis=1))
    sample = np.sort(np.random.default_rng(about["recall"]["seed"]).choice(good, 64, replace=False))
    rows, hits = latents[:][good].astype(np.float64), 0
    for row in sample:
        near = rows @ latents[:][row].astype(np.float64)
        near[good == row] = -9
        wanted = set(good[np.argsort(-near)[:10]])
        found, _ = index.approximate(latents[:][row], 11, about["index"]["probes"])
        hits += len(set(found[found != row][:10]) & wanted)
    assert hits / 640 == pytest.approx(about["recall"]["value"], abs=0.003)
    assert about["recall"]["queries"] == 64 and about["recall"]["rows"] == len(good)


def test_an_index_under_conditions(index, first, monkeypatch):
    monkeypatch.setattr(archive, "NARROW", 0)
    files, query = FilesSearcher(*first), first[0].take([3])[0]
    wide, rare = index.search(query, 10, "lat > -60"), index.search(query, 400, "lat > 45")
    assert not wide.exact and (index.describe(wide.rows)["lat"] > -60).all()
    wanted = files.search(query, 10, "lat > -60").rows
    assert len(set(wide.rows) & set(wanted)) >= 9
    assert rare.exact  # the index looks at too few rows for so many
    np.testing.assert_array_equal(rare.rows, files.search(query, 400, "lat > 45").rows)


def test_a_compressed_index_says_its_own_recall(first, tmp_path):
    add_files(tmp_path / "rq", *first)
    built = build_index(tmp_path / "rq", kind="IVF_RQ", index_from=0)
    answer = IndexSearcher(tmp_path / "rq").search(first[0].take([3])[0], 10)
    assert built["index"]["kind"] == "IVF_RQ" and answer.recall == built["recall"]["value"] > 0.8
    assert 3 in answer.rows


def test_examples_by_number_uid_and_cutout(index, first):
    files, (latents, table) = FilesSearcher(*first), first
    place = latents.positions(table)[10]
    row = table.iloc[10]
    kind = {1: "train", 0: "valid"}[row["pp_type"]]
    for searched in (index, files):
        number = "10" if searched is files else str(place)  # of the table where there is one
        for name in (number, f"uid:{row['UID']}", f"some/a_preproc.h5:{kind}:{row['pp_idx']}", f"archive_row:{place}"):
            assert searched.find(name) == place
        assert searched.find(f"{kind}:{row['pp_idx']}") == place
        last = len(table) - 1 if searched is files else 1299
        for name, said in (("99999", f"rows are 0 to {last}"), ("uid:1", "no row"), ("x:train:1", "no row")):
            with pytest.raises(InputFileError, match=said):
                searched.find(name)
        with pytest.raises(OptionError, match="expected a row number"):
            searched.find("' OR 1=1")


def test_files_are_added_once_and_later_ones_behind(first, second, tmp_path):
    folder = tmp_path / "archive.index"
    assert add_files(folder, *first) == 1300 - 26
    assert add_files(folder, *first) == 0
    assert build_index(folder)["index"] is None  # few rows: no vector index
    build_index(folder, index_from=0)
    assert add_files(folder, *second) == 300 - 6
    built = build_index(folder, index_from=0)
    archive = IndexSearcher(folder)
    assert built["index"]["rows"] == len(archive) == 1300 + 300 - 32
    query = second[0].take([17])
    assert archive.search(query[0], 3).rows[0] == 1300 + 17 == archive.find("b_preproc:valid:17")
    both = Latents([first[0].parts[0].path, second[0].parts[0].path])
    table = pd.concat([first[1], second[1]])
    wanted = FilesSearcher(both, table).search(query[0], 20, "lat > 0")
    np.testing.assert_array_equal(archive.search(query[0], 20, "lat > 0").rows, wanted.rows)


def test_a_copy_of_a_file_is_not_added_twice(first, tmp_path):
    path = first[0].parts[0].path
    (tmp_path / "copy").mkdir()
    copy = shutil.copy(path, tmp_path / "copy" / path.name)
    assert add_files(tmp_path / "archive.index", Latents([path, type(path)(copy)])) == 1300 - 26
    assert content(tmp_path / "archive.index")[ROW].is_unique


def test_what_does_not_belong_is_refused(first, tmp_path):
    folder = tmp_path / "archive.index"
    add_files(folder, *first)
    other = write_latents(tmp_path / "c_latents.h5", 3, checkpoint="b" * 64, valid=10)
    with pytest.raises(InputFileError, match="latents of two models cannot be compared"):
        add_files(folder, Latents([other]))
    same_name = write_latents(tmp_path / "a_preproc_latents.h5", 4, train=900)
    with pytest.raises(InputFileError, match="with different content"):
        add_files(folder, Latents([same_name]))
    with h5py.File(tmp_path / "d_latents.h5", "w") as file:
        file["valid"] = np.ones((3, 5), np.float32)
    with pytest.raises(InputFileError, match=r"expected latents of 16 dimensions.*got 5"):
        add_files(folder, Latents([tmp_path / "d_latents.h5"]))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("")
    with pytest.raises(OptionError, match="expected an index or an empty folder"):
        add_files(tmp_path / "full", *first)
    with pytest.raises(InputFileError, match="index of nenya"):
        IndexSearcher(tmp_path / "full")
    assert len(content(folder)) == 1274


KILLED = """
import os, signal, sys
from pathlib import Path
from nenya.latents import index as archive
from nenya.latents import index_build as archive_build
from nenya.io import read_table
from nenya.latents.files import Latents
archive_build.BATCH_ROWS, archive_build.COMMIT_ROWS = 30, 100
add, done = archive_build._commit, []
def commit(*given):
    add(*given)
    done.append(1)
    if len(done) == int(sys.argv[4]):
        os.kill(os.getpid(), signal.SIGKILL)
archive_build._commit = commit
archive_build.add_files(Path(sys.argv[1]), Latents([Path(sys.argv[2])]), read_table(sys.argv[3]))
"""


@pytest.mark.parametrize("batches", [pytest.param(4, marks=pytest.mark.slow), 9])
def test_a_killed_build_goes_on_to_the_same_content(first, tmp_path, monkeypatch, batches):
    write_table(first[1], tmp_path / "table.parquet")
    given = [tmp_path / "killed", first[0].parts[0].path, tmp_path / "table.parquet", batches]
    ended = subprocess.run([sys.executable, "-c", KILLED, *map(str, given)], capture_output=True)
    assert ended.returncode == -signal.SIGKILL
    begun = IndexSearcher(tmp_path / "killed")
    assert len(begun) == 100 * batches  # one after the other, each whole
    assert not all(source["done"] for source in begun.about["sources"])
    monkeypatch.setattr(archive_build, "COMMIT_ROWS", 170)  # not even the batches need be the same
    add_files(tmp_path / "killed", *first)
    add_files(tmp_path / "whole", *first)
    pd.testing.assert_frame_equal(content(tmp_path / "killed"), content(tmp_path / "whole"))
    assert json.loads((tmp_path / "killed" / "nenya.json").read_text()) == json.loads(
        (tmp_path / "whole" / "nenya.json").read_text()
    )


def test_near_copies():
    table = pd.DataFrame(
        {
            "filename": ["a", "a", "b", "b", "c", "d"],
            "lat": [0.0, 0, 0.5, 0, 60, 0],
            "lon": [179.9, 10, -179.9, 50, 0, 179.8],
            "datetime": pd.to_datetime(["2012-01-01"] * 4 + ["2012-01-05", "2012-01-05"]),
        }
    )
    # The first row is the example; numbers are those of the others.
    assert list(far_apart(table, 1, 9, distinct=True)) == [1, 3, 4]
    assert list(far_apart(table, 1, 9, km=100)) == [0, 2, 3]  # across the dateline
    assert list(far_apart(table, 1, 9, km=100, hours=24)) == [0, 2, 3, 4]
    assert list(far_apart(table, 1, 9, hours=24)) == [3]
    assert list(far_apart(table, 1, 2, distinct=True)) == [1, 3]
    months = table.assign(filename="model.nc", datetime=pd.date_range("2012-01-01", periods=6, freq="MS"))
    assert list(far_apart(months, 1, 9, distinct=True)) == [0, 1, 2, 3, 4], "each time of a file is a granule"
    months["granule"] = ["x", "x", "x", "y", "y", "z"]
    assert list(far_apart(months, 1, 9, distinct=True)) == [2, 4]
    with pytest.raises(OptionError, match="need the columns filename"):
        far_apart(table.drop(columns="filename"), 1, 9, distinct=True)


def test_places_and_dates_in_words():
    row = {"lat": -12.34, "lon": 190.0, "datetime": pd.Timestamp("2012-03-04T05:06")}
    assert place_and_date(row) == "12.3\N{DEGREE SIGN}S 170.0\N{DEGREE SIGN}W\n2012-03-04"
    assert place_and_date({"lat": 1.0, "lon": np.nan, "datetime": "2012-03-04"}) == "2012-03-04"
    assert place_and_date({"cosine": 1.0}) == place_and_date({"datetime": pd.NaT}) == ""


def test_commands(first, second, tmp_path, nenya_cli):
    for name, (_, table) in (("one", first), ("two", second)):
        write_table(table, tmp_path / f"{name}.parquet")
    paths = [given[0].parts[0].path for given in (first, second)]
    code, said = nenya_cli("index", ["add", f"data={paths[0]}", "out=a.index"])
    assert code == 2 and "index of nenya" in said
    code, said = nenya_cli("index", [f"data={paths[0]}", "table=one.parquet", "out=a.index", "of_sensor=MODIS"])
    assert code == 0 and "1274 rows, 1274 of them new" in said
    code, said = nenya_cli("index", ["add", f"data={paths[1]}", "table=two.parquet", "out=a.index", "of_sensor=VIIRS"])
    assert code == 0 and "1568 rows, 294 of them new" in said
    search = ["index=a.index", "like=[archive_row:3,b_preproc:valid:9]", "unlike=archive_row:8", "distinct=true", "k=5"]
    code, said = nenya_cli("search", [*search, "of_sensor=[VIIRS]", "where=row < 1500", "out=found.csv"])
    assert (
        code == 0
        and "\nexact where" in said
        and re.match(r"example: row \d+ of the table, \S*a_preproc\.h5:train:3", said)
    )
    found = read_table(tmp_path / "found.csv")
    assert list(found["rank"]) == [1, 2, 3, 4, 5] and (found["answer"] == "exact").all()
    assert (found["sensor"] == "VIIRS").all() and (found["row"] < 1500).all()
    assert found["cosine"].is_monotonic_decreasing and found["filename"].is_unique
    assert not set(found["archive_row"]) & {3, 8, 1309}
    keys = ["pp_file", "pp_type", "pp_idx"]  # the texts of the table: it can be joined
    assert found.merge(second[1], on=keys)["UID_y"].tolist() == found["UID"].tolist()
    assert nenya_cli("search", [f"data={paths[0]}", "like=3", "k=4", "out=bare.csv"])[0] == 0
    assert set(read_table(tmp_path / "bare.csv")["pp_file"]) == {"a_preproc.h5"}
    code, said = nenya_cli("search", ["index=a.index", "like=archive_row:3", "lat=[10,10]", "out=none.csv"])
    assert code == 0 and "nothing found: no other row with a latent fulfils" in said and "Empty" not in said
    assert "none.csv is not written" in said and not (tmp_path / "none.csv").exists()
    (tmp_path / "begun.index").mkdir()  # as a kill leaves it before the first rows
    (tmp_path / "begun.index" / "nenya.json").write_bytes((tmp_path / "a.index" / "nenya.json").read_bytes())
    for args, wanted in (
        (["index=a.index", "like=archive_row:3", "where=lat >> 1"], "expected SQL such as"),
        (["index=a.index", "like=archive_row:3", "region=atlantis"], "possible: coastalcali"),
        (["index=a.index", "like=archive_row:5"], "no row with a latent"),
        (["index=a.index", "like=archive_row:99999"], "rows are 0 to 1599"),
        (["index=a.index", "like=3"], "row 3 of the table is in several tables of the index: give uid:<UID>"),
        ([f"data={paths[0]}", "like=99999"], "rows are 0 to 1299"),
        (["index=a.index", "like=archive_row:3", "k=abc"], "k=abc: expected an integer"),
        (["index=a.index", "like=archive_row:3", "dates=[2012-01-01,2012-06-31]"], "got 2012-06-31"),
        ([f"data={paths[0]}", "like=3", "DT=DT1"], "table="),
        (["index=a.index"], "expected like= or image="),
        (["like=3"], "expected index=, data= or archive="),
        (["index=b.index", "like=3"], "index of nenya"),
        (["index=a.index", "like=archive_row:3", "out=found.png"], "expected one of .parquet"),
        (["index=a.index", "like=archive_row:3", "out=found.csv"], "clobber=true"),
        (["index=begun.index", "like=3"], "the index is unfinished"),
    ):
        code, said = nenya_cli("search", args)
        assert code == 2 and len(said.splitlines()) == 1 and wanted in said, said


def test_search_by_images(small_file, tiny_weights, tmp_path, nenya_cli):
    from nenya.analyze_image import get_latents
    from nenya.commands.compose import compose

    with h5py.File(small_file) as file:
        cutouts = file["train"][:, 0]
    latents, _ = get_latents(cutouts[:, None], tiny_weights, compose("extract", ["model=demo"]))
    with h5py.File(tmp_path / "small_preproc_latents.h5", "w") as file:
        file["train"] = latents
    np.save(tmp_path / "image.npy", cutouts[7])
    np.savez(tmp_path / "images.npz", a=cutouts[7], b=cutouts[7:9])
    model = ["data=small_preproc_latents.h5", "model=demo", f"ckpt={tiny_weights}"]
    for image in ("image.npy", f"{small_file}:train:7"):
        code, said = nenya_cli(
            "search", [*model, f"image={image}", "k=3", "out=a.csv", "clobber=true", f"images={small_file}"]
        )
        assert code == 0, said
        found = read_table(tmp_path / "a.csv")
        assert found["pp_idx"][0] == 7 and found["cosine"][0] == pytest.approx(1, abs=1e-5)
        assert (tmp_path / "a.png").stat().st_size > 10_000
    archive, asked = FilesSearcher(Latents([tmp_path / "small_preproc_latents.h5"])), SearchOptions(image="image.npy")
    assert cutout_side(asked, archive) == 0
    shutil.copy(small_file, tmp_path / "small_preproc.h5")  # beside its latents
    assert cutout_side(asked, archive) == 32
    # Images of another size: a multiple is averaged down to the cutouts', whose size the model or images= says.
    np.save(tmp_path / "twice.npy", np.kron(cutouts[7], np.ones((2, 2), np.float32)))
    code, said = nenya_cli("search", [*model, "image=twice.npy", "k=1", "out=b.csv"])
    assert code == 0 and "averaged from 64 to 32 pixels" in said and read_table("b.csv")["pp_idx"][0] == 7
    np.save(tmp_path / "larger.npy", np.zeros((48, 48)))
    np.save(tmp_path / "holes.npy", np.where(cutouts[7] > 0, np.nan, cutouts[7]))
    for name, wanted in (("larger", "32 x 32 pixels or a multiple, got 48 x 48"), ("holes", "(NaN)")):
        code, said = nenya_cli("search", [*model, f"image={name}.npy", f"images={small_file}"])
        assert code == 2 and len(said.splitlines()) == 1 and wanted in said and name in said, said
    assert len(read_image("images.npz")) == 3
    np.save(tmp_path / "pickled.npy", np.array([{}]), allow_pickle=True)
    for name, said in (("pickled.npy", "numeric array"), ("absent.npy", "No such file"), ("a.png", "expected .npy")):
        with pytest.raises((InputFileError, OptionError), match=said):
            read_image(name)


@pytest.mark.slow
def test_an_index_on_s3(first, second, s3_bucket, s3_service, tmp_path, nenya_cli):
    for name, (_, table) in (("one", first), ("two", second)):
        write_table(table, tmp_path / f"{name}.parquet")
    paths, url = [given[0].parts[0].path for given in (first, second)], f"s3://{s3_bucket}/deep/archive.index"
    assert nenya_cli("search", [f"index={url}", "like=3"])[0] == 2
    base = ["table=one.parquet", f"out={url}", "index_from=0"]
    assert nenya_cli("index", [f"data={paths[0]}", *base])[0] == 0
    listed = {o["Key"]: o["ETag"] for o in s3_service.client().list_objects_v2(Bucket=s3_bucket)["Contents"]}
    code, said = nenya_cli("index", [f"data={paths[0]}", *base])
    assert code == 0 and "no new files" in said
    code, said = nenya_cli("index", ["add", f"data={paths[1]}", "table=two.parquet", f"out={url}", "index_from=0"])
    assert code == 0 and "1568 rows, 294 of them new" in said
    now = {o["Key"]: o["ETag"] for o in s3_service.client().list_objects_v2(Bucket=s3_bucket)["Contents"]}
    pointer = "deep/archive.index/current.json"
    assert {k: v for k, v in listed.items() if k != pointer}.items() <= now.items()  # versions never change
    code, said = nenya_cli("search", [f"index={url}", "like=b_preproc:valid:9", "loader.cache_dir=elsewhere", "k=3"])
    assert code == 0 and "\napproximate, recall@10" in said, said
    pointed = json.loads(s3_service.client().get_object(Bucket=s3_bucket, Key=pointer)["Body"].read())
    pointed["files"][0]["name"] = "../../evil"
    s3_service.client().put_object(Bucket=s3_bucket, Key=pointer, Body=json.dumps(pointed).encode())
    code, said = nenya_cli("search", [f"index={url}", "like=3"])
    assert code == 2 and "not that of an index" in said


def a_table_in_another_order(tmp_path):
    """Latents of 8 valid and 40 train cutouts, and their table, valid rows first, with other names of columns."""
    path = write_latents(tmp_path / "a_preproc_latents.h5", 3, train=40, valid=8)
    keys = Latents([path]).keys()
    table = pd.concat([keys[keys["pp_type"] == 0], keys[keys["pp_type"] == 1]], ignore_index=True)
    table["latitude"], table["longitude"] = np.linspace(-60, 60, 48), np.linspace(0, 350, 48)
    table["time"] = [f"2012-{1 + i % 12:02d}-15T06:00" for i in range(48)]
    table["UID"] = np.arange(500, 548)
    return path, table


def test_a_number_is_a_row_of_the_table_with_and_without_an_index(tmp_path, nenya_cli):
    path, table = a_table_in_another_order(tmp_path)
    write_table(table, tmp_path / "t.parquet")
    assert nenya_cli("index", [path, "table=t.parquet", "out=a.index"])[0] == 0
    answers = []
    for source in ([path, "table=t.parquet"], ["index=a.index"]):
        for like in ("2", "valid:2", "a_preproc:valid:2", "uid:502", "archive_row:42"):
            code, said = nenya_cli("search", [*source, f"like={like}", "k=3"])
            assert code == 0, said
            first, rest = said.split("\n", 1)
            lat, lon = f"{-60 + 120 * 2 / 47:.1f}"[1:], f"{350 * 2 / 47:.1f}"
            assert first == (
                f"example: row 2 of the table, a_preproc.h5:valid:2, {lat}\N{DEGREE SIGN}S {lon}\N{DEGREE SIGN}E, "
                "2012-03-15, UID 502"
            )
            answers.append(tuple(tuple(line.split()[:5]) for line in rest.splitlines()[2:]))
    assert len(set(answers)) == 1
    code, said = nenya_cli("search", [path, "like=2", "k=3"])
    assert code == 0 and said.startswith("example: row 2 of the latents, a_preproc.h5:train:2\n")
    for like, words in (
        ("48", "row 48 of the table does not exist; rows are 0 to 47"),
        ("test:3", "expected a row number"),
    ):
        code, said = nenya_cli("search", [path, "table=t.parquet", f"like={like}"])
        assert code == 2 and words in said and len(said.splitlines()) == 1


def test_a_row_of_the_table_that_has_no_latent_or_that_another_row_repeats(tmp_path):
    path, table = a_table_in_another_order(tmp_path)
    twice = pd.concat([table.iloc[[5]], table, table.iloc[[5]].assign(pp_idx=999)], ignore_index=True)
    files = FilesSearcher(Latents([path]), twice)
    assert files.find("0") == files.find("6") == files.find("valid:5") == 45
    with pytest.raises(InputFileError, match="row 49 of the table has no latent"):
        files.find("49")


def test_conditions_on_columns_of_other_names_and_with_a_bad_date(tmp_path, nenya_cli):
    path, table = a_table_in_another_order(tmp_path)
    table.loc[3, "time"] = "2012-99-99"
    write_table(table, tmp_path / "t.csv")
    where = [path, "table=t.csv", "like=0", "k=50"]
    for condition in ("season=DJF", "dates=[2012-12-01,2012-12-31]", "lat=[-90,0]", "where=latitude < 0"):
        code, said = nenya_cli("search", [*where, condition])
        assert code == 0 and said.count("1 of 48 values of the column datetime are not dates") == 1, said
    assert nenya_cli("search", [*where, "season=DJF", "out=found.csv"])[0] == 0
    found = read_table(tmp_path / "found.csv")
    assert len(found) >= 9 and {str(day)[5:7] for day in found["datetime"]} == {"12", "01", "02"}
    assert nenya_cli("search", [*where, "apart_km=1", "apart_hours=1"])[0] == 0
    code, said = nenya_cli("statistics", ["t.csv", "where=lat < 0", "out=statistics"])
    assert code == 0 and "Traceback" not in said
    table["time"] = "no date"
    write_table(table, tmp_path / "t.csv")
    code, said = nenya_cli("search", [*where, "season=DJF"])
    assert code == 2 and "expected dates such as 2012-03-01T12:00 in the column datetime, got no date" in said
