"""nenya.open_archive: archives, latents files and published folders as one lazy data set or a table."""

import json
import subprocess
import sys

import h5py
import numpy as np
import pandas as pd
import pytest
from conftest import red_noise, write_cutouts
from portal_data import write_archive

import nenya
from nenya.errors import InputFileError, OptionError
from nenya.io import read_table, write_table
from nenya.latents.projector import Projector

ROWS = 300
pytest.importorskip("dask")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Latents, one of them NaN, and their table in another order."""
    table, vectors, _ = write_archive(tmp_path_factory.mktemp("source"))
    frame = read_table(table)
    frame["UID"], frame["row"], frame["day"] = 2**62 + np.arange(ROWS), 7, np.arange(ROWS) % 2 == 0
    frame["area"] = np.array(["North Sea", "50 % = a/b", "\u00d8st"], object)[np.arange(ROWS) % 3]
    write_table(frame.sample(frac=1, random_state=1), table)
    return vectors, table, frame


def original(source):
    with h5py.File(source[0]) as file:
        return np.concatenate([file["train"][:], file["valid"][:]])


def test_latents_and_table_are_a_lazy_dataset(source, monkeypatch):
    monkeypatch.setattr("nenya.publish.opened._CHUNK", 4 * 12 * 64)
    found = nenya.open_archive(source[0], table=source[1])
    assert found.sizes == {"row": ROWS, "dimension": 12}
    assert set(found.coords) == {"row", "latitude", "longitude", "time"}
    assert found.latent.chunks == ((64, 64, 64, 64, 44), (12,)) and found.latent.dtype == np.float32
    np.testing.assert_array_equal(found.latent.sel(row=[12, 3]), original(source)[[12, 3]])
    np.testing.assert_array_equal(found.latent, original(source))  # NaN where there is none
    frame = source[2]
    np.testing.assert_array_equal(found.latitude, frame["lat"])
    np.testing.assert_array_equal(found.time.to_numpy(), frame["datetime"].to_numpy())
    assert (found.UID.to_numpy() == frame["UID"]).all() and list(found.region.to_numpy()) == list(frame["region"])
    north = found.where(found.latitude > 0, drop=True).latent.mean("row")
    wanted = np.nanmean(original(source)[(frame["lat"] > 0).to_numpy()], axis=0)
    np.testing.assert_allclose(north, wanted, rtol=1e-5)


def test_nothing_is_read_before_it_is_needed(source, monkeypatch):
    from nenya.latents.files import Latents

    read = []
    slices = Latents.__getitem__
    monkeypatch.setattr(Latents, "__getitem__", lambda self, rows: read.append(rows) or slices(self, rows))
    monkeypatch.setattr("nenya.publish.opened._CHUNK", 4 * 12 * 64)
    found = nenya.open_archive(source[0], table=source[1])
    part = found.latent[70:80]
    assert read == []
    part.compute()
    assert [(rows.start, rows.stop) for rows in read] in ([(64, 128)], [(70, 80)])


@pytest.mark.parametrize("as_", ["pandas", "arrow"])
def test_a_table_in_one_call(source, as_):
    found = nenya.open_archive(source[0], table=source[1], as_=as_)
    frame = found if as_ == "pandas" else found.to_pandas()
    np.testing.assert_array_equal(np.stack(frame["latent"]), original(source))
    assert (frame["UID"].to_numpy() == source[2]["UID"]).all() and frame["UID"].dtype == np.int64
    if as_ == "arrow":
        assert str(found.schema.field("latent").type) == "fixed_size_list<item: float>[12]"


@pytest.mark.parametrize(
    ("formats", "dtype", "partition"),
    [("zarr", "float32", "[]"), ("geoparquet", "float32", "[year,region,pp_type]"), ("geoparquet", "float16", "[]"),
     ("[zarr,stac]", "int8", "[]"), ("geoparquet", "int8", "[area,day]"), ("lance", "int8", "[]")],
)  # fmt: skip
def test_published_folders_open_like_their_source(nenya_cli, source, tmp_path, monkeypatch, formats, dtype, partition):
    if formats == "lance":
        pytest.importorskip("lancedb")
    for name, value in (("rows._BLOCK", 1), ("rows._FEWEST", 64), ("geoparquet._GROUP", 1), ("geoparquet._FEWEST", 16),
                        ("geoparquet._GROUPS", 2), ("opened._CHUNK", 4 * 12 * 50)):  # fmt: skip
        monkeypatch.setattr(f"nenya.publish.{name}", value)
    args = [f"latents={source[0]}", f"table={source[1]}", "out=out", f"format={formats}", f"dtype={dtype}"]
    code, said = nenya_cli("publish", [*args, f"partition={partition}"])
    assert code == 0, said
    found = nenya.open_archive("out")
    row = found.row.to_numpy()
    assert sorted(row) == [number for number in range(ROWS) if number != 7]
    tolerance = {"float32": 0, "float16": 1e-3, "int8": 1 / 250}[dtype]
    np.testing.assert_allclose(found.latent, original(source)[row], atol=tolerance)
    assert found.latent.dtype == np.float32 and found.latent.chunks[0][0] == 50
    np.testing.assert_array_equal(found.latent[101:133], found.latent.to_numpy()[101:133])
    wanted = source[2].iloc[row]
    np.testing.assert_array_equal(found.latitude, wanted["lat"])
    np.testing.assert_array_equal(found.time.to_numpy(), wanted["datetime"].to_numpy("datetime64[us]"))
    assert (found.row_column == 7).all()  # the table's own column of this name
    for name in ("UID", "pp_idx", "pp_type", "region", "T90", "area", "day"):
        assert list(found[name].to_numpy()) == list(wanted[name]), name
    table = nenya.open_archive("out", as_="arrow")
    assert table.schema.field("pp_type").type == "int64" and "geometry" not in table.column_names
    np.testing.assert_array_equal(np.stack(table.to_pandas()["latent"]), found.latent)


def test_an_archive_opens_with_all_of_its_files(nenya_cli, tiny_weights, tmp_path):
    for seed, name in enumerate("ab"):
        images = red_noise(12, seed=seed)
        images[3, 0, 0] = np.nan
        write_cutouts(tmp_path / f"{name}_preproc.h5", train=images, valid=red_noise(4, seed=seed + 10))
        frame = pd.DataFrame({"pp_file": f"{name}_preproc.h5", "pp_type": [1] * 12 + [0] * 4})
        frame["pp_idx"] = [*range(12), *range(4)]
        frame["lat"], frame["lon"] = np.arange(16.0) + 20 * seed, np.arange(16.0)
        frame["datetime"] = pd.Timestamp("2012-01-01") + pd.to_timedelta(np.arange(16), unit="D")
        write_table(frame, tmp_path / f"{name}_preproc.parquet")
    rows = np.random.default_rng(0).standard_normal((100, 64)).astype(np.float32)
    Projector.fit(rows, embedding=rows[:, :2]).save(tmp_path / "map.h5")
    args = ["archive=archive", "model=demo", "model.width=16", "k=2", "passes=1", "trainer.accelerator=cpu"]
    args += ["model.backend=eager", "workers=1", "projector=map.h5", f"ckpt={tiny_weights}", "new=*_preproc.h5"]
    code, said = nenya_cli("update", args)
    assert code == 0, said
    found = nenya.open_archive("archive")
    assert found.sizes["row"] == 32 and list(found.pp_file.to_numpy()[[0, 31]]) == ["a_preproc.h5", "b_preproc.h5"]
    assert np.isnan(found.latent).all("dimension").to_numpy().nonzero()[0].tolist() == [3, 19]
    assert found.attrs["checkpoint_sha256"] and {"cluster", "US0"} <= set(found)
    np.testing.assert_array_equal(found.latitude[[0, 16]], [0, 20])
    code, said = nenya_cli("publish", ["archive=archive", "out=published", "format=[geoparquet,stac]"])
    assert code == 0 and "30 rows" in said and "2 without a latent (NaN)" in said
    published = nenya.open_archive("published").sortby("row")
    np.testing.assert_array_equal(published.latent, found.latent.dropna("row"))
    sha256 = json.loads((tmp_path / "published" / "published.json").read_text())["model"]["checkpoint_sha256"]
    assert sha256 == found.attrs["checkpoint_sha256"] == published.attrs["checkpoint_sha256"]
    with pytest.raises(OptionError, match="version=v9"):
        nenya.open_archive("archive", version="v9")
    with pytest.raises(OptionError, match="has its own table"):
        nenya.open_archive("archive", table="a_preproc.parquet")


def test_what_cannot_be_opened(nenya_cli, source, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputFileError, match="got a folder with none of them"):
        nenya.open_archive(tmp_path / "empty")
    with pytest.raises(InputFileError, match=r"nothing\.h5"):
        nenya.open_archive(tmp_path / "nothing.h5")
    with pytest.raises(OptionError, match="as_=polars: expected one of xarray, pandas, arrow"):
        nenya.open_archive(source[0], as_="polars")
    with pytest.raises(OptionError, match="no archive of nenya update"):
        nenya.open_archive(source[0], version="v5")
    other = write_table(source[2].assign(pp_file="other"), tmp_path / "other.parquet") or tmp_path / "other.parquet"
    with pytest.raises(InputFileError, match="no row of the table has a latent"):
        nenya.open_archive(source[0], table=other)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(OptionError, match=r"needs dask.*nenya\[publish\]"):
        nenya.open_archive(source[0])


def test_damaged_folders_are_refused_in_one_line(nenya_cli, source, tmp_path):
    args = [f"latents={source[0]}", f"table={source[1]}", "format=[geoparquet]", "partition=[]"]
    assert nenya_cli("publish", [*args, "out=out"])[0] == 0
    about = tmp_path / "out" / "published.json"
    good = json.loads(about.read_text())

    def refused(match, **changes):
        about.write_text(json.dumps({**good, **changes}))
        with pytest.raises(InputFileError, match=match) as caught:
            nenya.open_archive("out", as_="arrow")
        assert "\n" not in str(caught.value)

    refused("expected published latents of format 1, got 2", format=2)
    refused("expected 298 rows, got 299", rows=298)
    refused("expected 5 rows, got 299", parts=[{"name": "part-0.parquet", "rows": 5}])
    refused("plain relative name", parts=[{"name": "../../secret.parquet", "rows": 299}])
    refused("one of float32, float16, int8", stored={"dtype": "object"})
    refused("formats out of", formats=["pickle"])
    (tmp_path / "out" / "geoparquet" / "part-0.parquet").write_bytes(b"PAR1 and no more")
    refused(r"part-0\.parquet: cannot be read")
    about.write_text("{")
    with pytest.raises(InputFileError, match="damaged"):
        nenya.open_archive("out")


def test_importing_nenya_loads_none_of_it():
    code = "import sys, nenya; nenya.open_archive; print(*sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    assert not {"numpy", "xarray", "dask", "pyarrow", "torch", "nenya.publish"} & set(loaded)
